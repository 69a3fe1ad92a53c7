"""Runs that do not get to their end: cancelled, timed out, cut off. The VM goes on where it is, unlocked."""

from __future__ import annotations

import signal
import time

from . import Agent
from .conftest import Admin, Guest, MakeGuest, Run, job_leftovers

# In MiB/s: a slow_guest() then moves for some nine seconds, time enough to break something.
SLOW = ("--bandwidth", "100")
# What must be over 60 s after a cut (design.md, section 6).
UNLOCKED_SECONDS = 60.0


def slow_guest(make_guest: MakeGuest, name: str) -> Guest:
    """A guest whose move lasts by its disk.

    With less of a disk and a lower rate the memory would take a second pass nearly every time, which the emulator's
    guests do not all live through (GuestSpec.domain_xml).
    """
    return make_guest(name, disk_mib=1024, data_mib=768)


def wait_until_copying(guest: Guest) -> None:
    """Return when the migration has begun to move bytes."""
    deadline = time.monotonic() + 30
    node1 = guest.lab.host("node1")
    while "Data processed" not in guest.on(node1, "domjobinfo"):
        assert time.monotonic() < deadline, "no migration began"
        time.sleep(0.1)


def assert_as_before(guest: Guest) -> None:
    """What holds after a run that was rolled back."""
    node1, node2 = guest.lab.nodes
    assert guest.state(node1) == "running"
    assert "None" in guest.on(node1, "domjobinfo")
    assert guest.state(node2) == "absent"
    assert not node2.path(guest.disk).exists()
    guest.witness.wait_for_ticks(20)
    report = guest.witness.report()
    assert report.sound, report.to_text()
    assert report.host == "node1"
    assert (job_leftovers(node1), job_leftovers(node2)) == ([], [])


def assert_unlocked_in_time(guest: Guest) -> None:
    """The VM goes on where it was, unlocked, within a minute from now."""
    node1 = guest.lab.host("node1")
    deadline = time.monotonic() + UNLOCKED_SECONDS
    while "None" not in guest.on(node1, "domjobinfo"):
        assert time.monotonic() < deadline, "the VM is still locked"
        time.sleep(0.5)
    assert guest.state(node1) == "running"
    assert guest.witness.ticking(5)


def test_a_second_ctrl_c_rolls_back_and_a_second_run_just_works(admin: Admin, make_guest: MakeGuest) -> None:
    guest = slow_guest(make_guest, "cancel")
    process = admin.start(guest.name, *SLOW)
    wait_until_copying(guest)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 5, stdout + stderr
    assert "Rolled back: cancel runs on" in stdout
    assert "was cancelled" in stderr
    assert_as_before(guest)
    again = admin.migrate(guest.name)
    assert again.code == 0, again.text


def test_a_migration_past_its_timeout_is_rolled_back(admin: Admin, make_guest: MakeGuest) -> None:
    guest = slow_guest(make_guest, "slow")
    run = admin.migrate(guest.name, *SLOW, "--timeout", "2")
    assert run.code == 5, run.text
    assert "VM slow was not moved within 2 s" in run.stderr
    assert_as_before(guest)


def test_sigterm_of_the_source_agent_rolls_back_before_it_ends(
    admin: Admin, make_guest: MakeGuest, agents: dict[str, Agent],
) -> None:
    guest = slow_guest(make_guest, "term")
    process = admin.start(guest.name, *SLOW)
    wait_until_copying(guest)
    assert agents["node1"].stop(timeout=40) == 0
    run = Run.of(process)
    agents["node1"] = admin.lab.start_agent(admin.lab.host("node1"))
    assert run.code == 5, run.text
    assert f"the agent on {admin.lab.host('node1').address} was stopped" in run.stderr
    assert_as_before(guest)


def test_a_cut_link_leaves_the_vm_running_and_unlocked_within_a_minute(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = slow_guest(make_guest, "cable")
    node2 = admin.lab.host("node2")
    process = admin.start(guest.name, *SLOW)
    wait_until_copying(guest)
    node2.link(up=False)
    try:
        assert_unlocked_in_time(guest)
    finally:
        node2.link(up=True)
    run = Run.of(process)
    # The link came back in time for the destination's agent to be asked: it removed what was made there.
    assert run.code == 5, run.text
    assert "SSH tunnel" in run.stderr
    assert_as_before(guest)


def test_over_plain_tcp_a_cut_link_leaves_the_vm_running_and_unlocked_within_a_minute_too(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    """QEMU itself would wait on its dead connection for ever (design.md, section 4)."""
    guest = slow_guest(make_guest, "plain")
    node2 = admin.lab.host("node2")
    for node in admin.lab.nodes:
        node.firewall(on=False)
    try:
        process = admin.start(guest.name, *SLOW, "--transport", "tcp")
        wait_until_copying(guest)
        node2.link(up=False)
        assert_unlocked_in_time(guest)
    finally:
        node2.link(up=True)
        for node in admin.lab.nodes:
            node.firewall()
    stdout, stderr = process.communicate(timeout=150)
    assert process.returncode == 5, stdout + stderr
    assert_as_before(guest)
