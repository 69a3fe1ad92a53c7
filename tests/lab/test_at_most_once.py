"""What the journal and the locks are for, against real libvirt: two runs at once, agents killed in the middle."""

from __future__ import annotations

import signal

from wire.journal import read_lines
from wire.memory import Begun, Ended

from . import Agent, Host
from .conftest import Admin, MakeGuest, Run, job_leftovers
from .test_interrupted import SLOW, slow_guest, wait_until_copying

JOURNAL = "/var/lib/vmmigration/journal"


def kill(admin: Admin, agents: dict[str, Agent], name: str) -> None:
    """End the agent of a host by SIGKILL, as a crash would, and start another."""
    agents[name].process.send_signal(signal.SIGKILL)
    agents[name].process.wait(10)
    agents[name] = admin.lab.start_agent(admin.lab.host(name))


def begun_and_ended(host: Host) -> tuple[list[str], list[str]]:
    """The ids of the requests that the journal of a host's agent says were begun, and ended."""
    contents = read_lines(host.path(JOURNAL).read_bytes())
    assert not contents.damaged
    return ([entry.request_id for entry in contents.entries if isinstance(entry, Begun)],
            [entry.request_id for entry in contents.entries if isinstance(entry, Ended)])


def test_of_two_runs_that_move_one_vm_the_second_is_told_who_does_and_the_first_ends_well(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = slow_guest(make_guest, "twice")
    first = admin.start(guest.name, *SLOW, "--json")
    wait_until_copying(guest)
    second = admin.migrate(guest.name)
    stdout, stderr = first.communicate(timeout=120)
    assert second.code == 3, second.text
    job_id = Run(first.returncode, stdout, stderr).result()["job_id"]
    boss = admin.lab.host("boss").address
    assert f"VM twice is being migrated on {admin.lab.host('node1').address} already: job {job_id}, asked for by " \
        f"root@{admin.lab.host('boss').full_name} ({boss}) since" in second.stderr
    assert first.returncode == 0, stdout + stderr
    assert guest.witness.report().sound


def test_a_destination_agent_that_is_killed_in_the_middle_and_started_again_brings_the_run_to_its_end(
    admin: Admin, make_guest: MakeGuest, agents: dict[str, Agent],
) -> None:
    guest = slow_guest(make_guest, "killed-there")
    process = admin.start(guest.name, *SLOW)
    wait_until_copying(guest)
    kill(admin, agents, "node2")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stdout + stderr
    assert guest.state(admin.lab.host("node2")) == "running"
    assert guest.witness.report().sound
    begun, ended = begun_and_ended(admin.lab.host("node2"))
    assert len(begun) == len(set(begun))
    assert set(begun) == set(ended)


def test_a_source_agent_that_is_killed_in_the_middle_goes_on_with_the_move_and_runs_nothing_again(
    admin: Admin, make_guest: MakeGuest, agents: dict[str, Agent],
) -> None:
    guest = slow_guest(make_guest, "killed-here")
    process = admin.start(guest.name, *SLOW)
    wait_until_copying(guest)
    kill(admin, agents, "node1")
    stdout, stderr = process.communicate(timeout=120)
    run = Run(process.returncode, stdout, stderr)
    assert run.code == 0, run.text
    node1, node2 = admin.lab.nodes
    assert (guest.state(node1), guest.state(node2)) == ("shut off", "running")
    guest.witness.wait_for_ticks(20)
    assert guest.witness.report().sound
    assert job_leftovers(node1) == job_leftovers(node2) == []
    begun, ended = begun_and_ended(node1)
    assert len(begun) == len(set(begun))
    assert set(begun) == set(ended)
