"""The commands about jobs: a move that its command has left is seen, taken up, cancelled and repaired from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import Any

from . import Agent
from .conftest import CONTROLLER, PYTHON, Admin, Guest, MakeGuest, job_leftovers, virsh
from .test_interrupted import SLOW, assert_as_before, slow_guest, wait_until_copying


def begin(admin: Admin, guest: Guest, *options: str) -> subprocess.Popen[str]:
    """Start a slow move and return once bytes cross."""
    process = admin.start(guest.name, *SLOW, *options)
    wait_until_copying(guest)
    return process


def jobs(admin: Admin, *words: str) -> list[dict[str, Any]]:
    """What `list` or `status` tells, the newest first."""
    told = admin.command(*(words or ("list",)), "--json")
    assert told.code == 0, told.text
    found: list[dict[str, Any]] = told.result()["jobs"]
    return found


def leave(process: subprocess.Popen[str]) -> str:
    """Ctrl-C, once; returns what the admin read then."""
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 8, stderr
    return stderr


def assert_arrived(guest: Guest) -> None:
    """What holds once the move has come to its end, however it did."""
    node1, node2 = guest.lab.nodes
    assert (guest.state(node1), guest.state(node2)) == ("shut off", "running")
    guest.witness.wait_for_ticks(20)
    report = guest.witness.report()
    assert report.sound, report.to_text()
    assert report.host == "node2"
    assert job_leftovers(node1) == job_leftovers(node2) == []


def test_one_ctrl_c_leaves_the_job_to_itself_and_resume_takes_it_up(admin: Admin, make_guest: MakeGuest) -> None:
    guest = slow_guest(make_guest, "left")
    said = leave(begin(admin, guest))
    job_id = jobs(admin)[0]["job_id"]
    assert f"`vmmigration.py resume {job_id}` takes it up again" in said
    told = jobs(admin, "status")
    assert [(each["job_id"], each["outcome"]) for each in told] == [(job_id, None)]
    assert [each["command"] for each in told[0]["doing"]] == ["LIVE_MIGRATION"]
    resumed = admin.command("resume", job_id)
    assert resumed.code == 0, resumed.text
    assert_arrived(guest)
    ended = jobs(admin)[0]
    assert (ended["outcome"], ended["hosts"]) == ("moved", [node.address for node in admin.lab.nodes])
    assert ended["bytes"] > 768 * 1024 * 1024
    assert ended["downtime_ms"] >= 0
    again = admin.command("resume", job_id)
    assert (again.code, "left runs on" in again.stdout) == (0, True), again.text


def test_a_job_whose_controller_was_killed_is_finished_by_the_hosts_alone(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = slow_guest(make_guest, "orphan")
    process = begin(admin, guest)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 150
    while jobs(admin)[0]["outcome"] is None:
        assert time.monotonic() < deadline, jobs(admin)
        time.sleep(2)
    assert jobs(admin)[0]["outcome"] == "moved"
    assert_arrived(guest)


def test_cancel_from_another_command_rolls_the_job_back_and_both_say_so(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = slow_guest(make_guest, "called-off")
    process = begin(admin, guest)
    job_id = jobs(admin, "status")[0]["job_id"]
    cancelled = admin.command("cancel", job_id)
    assert cancelled.code == 0, cancelled.text
    assert "Rolled back: called-off runs on" in cancelled.stdout
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 5, stdout + stderr
    assert_as_before(guest)
    too_late = admin.command("cancel", job_id)
    assert too_late.code == 3, too_late.text
    assert "it has ended, rolled back" in too_late.stderr


def test_cancel_of_a_job_that_never_began_on_the_source_leaves_alone_what_else_moves_the_vm(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = slow_guest(make_guest, "contested")
    node1, node2 = admin.lab.nodes
    # Ended between PREPARE_DESTINATION and the source's first step: the link is measured meanwhile.
    process = admin.start(guest.name, "--progress", "json")
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if (event["event"], event.get("command")) == ("step-ended", "PREPARE_DESTINATION"):
            break
    process.kill()
    process.communicate()
    job_id = jobs(admin)[0]["job_id"]
    # As a person would go on by hand, to another name and file.
    there = "/var/lib/libvirt/images/by-hand.qcow2"
    node2.run(["qemu-img", "create", "-q", "-f", "qcow2", there, "1G"])
    node1.path("/tmp/by-hand.xml").write_text(  # noqa: S108 - the host's own
        guest.on(node1, "dumpxml", "--migratable").replace(guest.disk, there))
    for node in admin.lab.nodes:
        node.firewall(on=False)
    try:
        by_hand = node1.popen([
            "virsh", "-q", "-c", "qemu:///system", "migrate", "--live", "--p2p", "--copy-storage-all", *SLOW,
            "--xml", "/tmp/by-hand.xml", "--dname", "by-hand", guest.name,  # noqa: S108 - see above
            f"qemu+ssh://kvm@{node2.address}/system", f"tcp://{node2.address}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until_copying(guest)
        cancelled = admin.command("cancel", job_id)
        _, stderr = by_hand.communicate(timeout=120)
    finally:
        for node in admin.lab.nodes:
            node.firewall()
    assert by_hand.returncode == 0, stderr
    assert cancelled.code == 0, cancelled.text
    assert not node2.path(guest.disk).exists()
    assert virsh(node2, "domstate", "by-hand").strip() == "running"
    virsh(node2, "destroy", "by-hand")
    node2.path(there).unlink()


def test_cancel_after_the_switchover_says_that_it_is_too_late(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("late")
    run = admin.migrate(guest.name, "--json")
    refused = admin.command("cancel", run.result()["job_id"])
    assert refused.code == 3, refused.text
    assert f"VM late has moved to {admin.lab.host('node2').address}" in refused.stderr


def test_status_shows_a_job_live_until_it_ends(admin: Admin, make_guest: MakeGuest) -> None:
    guest = slow_guest(make_guest, "watched")
    process = begin(admin, guest)
    shown = admin.command("--progress", "json", "status", guest.name)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stdout + stderr
    assert shown.code == 0, shown.text
    events = [json.loads(line) for line in shown.stderr.splitlines()]
    assert "progress" in {event["event"] for event in events}
    # Only what the job does, none of what is asked to find out.
    assert {event["command"] for event in events} == {"LIVE_MIGRATION"}
    assert "moved" in shown.stdout


def test_repair_says_where_a_vm_is_and_does_not_disturb_a_job_that_runs(admin: Admin, make_guest: MakeGuest) -> None:
    guest = slow_guest(make_guest, "where")
    addresses = [node.address for node in admin.lab.nodes]
    before = admin.command("repair", guest.name, *addresses)
    assert before.code == 0, before.text
    assert "where: runs on source only." in before.stdout
    process = begin(admin, guest)
    refused = admin.command("repair", guest.name, *addresses)
    assert refused.code == 3, refused.text
    assert f"LIVE_MIGRATION on {addresses[0]}" in refused.stderr
    leave(process)
    time.sleep(12)
    repaired = admin.command("repair", guest.name, *addresses)
    assert repaired.code == 0, repaired.text
    assert "where: runs on destination only." in repaired.stdout
    assert_arrived(guest)


def test_repair_of_a_vm_that_runs_twice_names_the_commands_and_does_nothing(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = make_guest("both")
    node1, node2 = admin.lab.nodes
    # As a person would bring it about: the same definition over there, on an image of its own.
    node2.path(guest.disk).write_bytes(node1.path(guest.disk).read_bytes())
    node2.path("/tmp/both.xml").write_text(guest.on(node1, "dumpxml", "--inactive"))  # noqa: S108 - the host's own
    node2.run(["virsh", "-q", "-c", "qemu:///system", "create", "/tmp/both.xml"])  # noqa: S108 - see above
    told = admin.command("repair", guest.name, node1.address, node2.address)
    assert told.code == 7, told.text
    assert "both: runs on both." in told.stdout
    assert f"on {node1.address}:  virsh destroy both" in told.stdout
    assert (guest.state(node1), guest.state(node2)) == ("running", "running")
    guest.on(node2, "destroy")


def test_a_second_admin_is_told_who_moves_the_vm_from_where_and_since_when(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = slow_guest(make_guest, "wanted")
    process = begin(admin, guest)
    job_id = jobs(admin, "status")[0]["job_id"]
    refused = admin.migrate(guest.name)
    assert refused.code == 3, refused.text
    boss = admin.lab.host("boss")
    told = f"job {job_id}, asked for by root@{boss.full_name} ({boss.address}) since 20"
    assert told in refused.stderr, refused.text
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stdout + stderr
    assert_arrived(guest)


def test_moves_in_opposite_directions_go_on_side_by_side(
    admin: Admin, make_guest: MakeGuest, agents: dict[str, Agent],
) -> None:
    there, here = make_guest("there"), make_guest("here", disk_mib=256, data_mib=64)
    assert admin.migrate(here.name).code == 0
    first = admin.lab.host("boss").popen(
        [PYTHON, CONTROLLER, *admin.words(here.name, back=True)[2:]], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    second = admin.start(there.name)
    for process in (first, second):
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stdout + stderr
    node1, node2 = admin.lab.nodes
    assert [each.state(node) for each in (there, here) for node in (node1, node2)] == [
        "shut off", "running", "running", "shut off"]
