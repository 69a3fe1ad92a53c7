"""The measurement beside virsh: what is typed, which runs in which order, and what figures come of what was seen."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

libvirt = pytest.importorskip(
    "libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)", exc_type=ImportError)
pytest.importorskip("paramiko", reason="paramiko is not installed (apt-get install python3-paramiko)")

from bench.life_events import LifeEvent, switchover  # noqa: E402 - nothing below can be imported without both
from bench.meter import Mark, Process, Usage, accounts, flowing_since, program, usage, wire_bytes  # noqa: E402
from bench.peer_cases import CASES, MINUTE, PLAIN, Case, chosen, order  # noqa: E402
from bench.peer_commands import Image, Line, Names, Way, lines  # noqa: E402
from bench.peer_figures import Results, Run, job_figures, longest_gap, median, ratio, verdicts  # noqa: E402
from bench.peer_scene import with_disks  # noqa: E402

GIB = 1 << 30
IMAGE = Image("/var/lib/libvirt/images/VM1.qcow2", "vda", 8 * GIB)
SECOND = Image("/var/lib/libvirt/images/VM1-1.qcow2", "vdb", 4 * GIB)
NAMES = Names("VM1", "192.0.2.11", "192.0.2.12", (IMAGE,))
TWO = Names("VM1", "192.0.2.11", "192.0.2.12", (IMAGE, SECOND))


def typed(way: Way, names: Names = NAMES) -> list[tuple[str, list[str]]]:
    """The lines of a way as words."""
    return [(line.host, shlex.split(line.text)) for line in lines(way, names)]


def a_run(way: Way = Way.OURS, case: str = "plain-full", **more: Any) -> Run:
    """A run of 10 s that took libvirt 9.5."""
    figures: dict[str, Any] = {
        "pair": 1, "at": "", "load": 0.5, "seconds": 10.0, "lines": [], "wire_bytes": 2100, "source_allocated": 2000,
        "destination_allocated": 2000, "destination_length": 2000, "libvirt_seconds": 9.5, "memory_bytes": 100,
        "gap_ms": 200.0, **more}
    return Run(case=case, way=way.name, **figures)


# What is typed.


@pytest.mark.parametrize("way", list(Way))
def test_exactly_one_line_of_a_way_begins_to_move_the_disks(way: Way) -> None:
    assert sum(line.moves for line in lines(way, TWO)) == 1


def test_ours_is_one_line_on_the_management_host() -> None:
    (host, words), = typed(Way.OURS)
    assert host == "boss"
    assert words[-4:] == ["192.0.2.11", "192.0.2.12", "kvm", "VM1"]


def test_beforehand_each_file_is_made_at_the_destination_in_the_size_of_its_disk() -> None:
    *made, (host, words) = typed(Way.VIRSH_FILE, TWO)
    assert made == [("node2", ["qemu-img", "create", "-q", "-f", "qcow2", image.path, str(image.size)])
                    for image in (IMAGE, SECOND)]
    assert host == "node1"
    assert words[4:] == [
        "migrate", "--live", "--p2p", "--persistent", "--copy-storage-all", "VM1", "qemu+ssh://kvm@192.0.2.12/system"]


def test_with_a_pool_libvirt_makes_the_file() -> None:
    assert typed(Way.VIRSH_POOL) == typed(Way.VIRSH_FILE)[1:]


def test_scp_copies_only_what_was_frozen_before_and_joins_it_again() -> None:
    steps = [(host, [word for word in words if word not in ("-q", "-c", "qemu:///system")][:2])
             for host, words in typed(Way.SCP)]
    assert [(host, words[1] if words[0] == "virsh" else words[0]) for host, words in steps] == [
        ("node1", "snapshot-create-as"), ("node1", "scp"), ("node2", "qemu-img"), ("node1", "migrate"),
        ("node2", "blockcommit"), ("node2", "rm")]
    text = " ".join(line.text for line in lines(Way.SCP, NAMES))
    assert "--copy-storage-inc" in text
    assert f"-b {IMAGE.path} {IMAGE.path}.copied-layer" in text


def test_rsync_keeps_holes_and_the_definition_follows_through_ssh() -> None:
    copied, defined = lines(Way.RSYNC, TWO)
    assert copied.text.startswith(f"rsync -S {IMAGE.path} {SECOND.path} root@192.0.2.12:")
    assert " | ssh kvm@192.0.2.12 " in defined.text
    assert defined.text.endswith("/dev/stdin'")


def test_a_name_with_a_space_stays_one_word() -> None:
    odd = Names("my VM", "192.0.2.11", "192.0.2.12", (IMAGE,))
    assert "my VM" in typed(Way.VIRSH_POOL, odd)[0][1]


def test_a_line_says_where_it_is_typed() -> None:
    assert lines(Way.VIRSH_POOL, NAMES)[0] == Line("node1", lines(Way.VIRSH_POOL, NAMES)[0].text, moves=True)


# Which runs.


def test_the_ways_take_turns() -> None:
    case = Case(PLAIN, None, (Way.OURS, Way.VIRSH_POOL))
    assert order(case, 2) == [(1, Way.OURS), (1, Way.VIRSH_POOL), (2, Way.OURS), (2, Way.VIRSH_POOL)]


def test_what_takes_minutes_is_not_repeated() -> None:
    assert len(order(Case(MINUTE, 100, (Way.OURS, Way.VIRSH_POOL), most_pairs=1), 3)) == 2
    once = Case(PLAIN, 1000, (Way.OURS, Way.SCP), once=(Way.SCP,))
    assert [way for _, way in order(once, 3)] == [Way.OURS, Way.SCP, Way.OURS, Way.OURS]


def test_a_case_is_chosen_by_its_name_or_by_its_vm() -> None:
    assert [case.name for case in chosen(["plain-1000"], quick=False)] == ["plain-1000"]
    assert [case.name for case in chosen(["plain"], quick=False)] == ["plain-full", "plain-1000"]
    assert [case.name for case in chosen(["minute"], quick=True)] == ["minute-100"]


def test_a_quick_round_leaves_out_the_slow_link_alone() -> None:
    assert {case.name for case in CASES} - {case.name for case in chosen([], quick=True)} == {"minute-100"}


def test_a_case_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no case plian: .*plain-full"):
        chosen(["plian"], quick=False)


def test_each_case_has_a_name_of_its_own_and_ours_first() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.ways[0] is Way.OURS for case in CASES)


def test_more_disks_are_like_the_first_one_but_for_image_and_name() -> None:
    document = ("<domain><devices><disk type='file'><driver cache='none'/><source file='/a'/><target dev='vda'/></disk>"
                "<serial/></devices></domain>")
    disks = ElementTree.fromstring(with_disks(document, ["/b"])).findall("devices/disk")  # noqa: S314 - made above
    seen = [[element.attrib for element in disk] for disk in disks]
    assert seen == [[{"cache": "none"}, {"file": name}, {"dev": target}] for name, target in (
        ("/a", "vda"), ("/b", "vdb"))]


# Meters.


NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:      10       1    0    0    0     0          0         0       10       1    0    0    0     0       0          0
  eth0:    1000      20    0    0    0     0          0         0      300      10    0    0    0     0       0          0
"""  # noqa: E501 - as the kernel writes it


def test_both_directions_of_the_cable_are_counted() -> None:
    assert wire_bytes(NET_DEV) == 1300
    with pytest.raises(ValueError, match="no interface eth1"):
        wire_bytes(NET_DEV, "eth1")


def test_bytes_flow_from_the_moment_by_which_enough_have_crossed_since_the_moving_began() -> None:
    marks = [Mark(1.0, 0), Mark(2.0, 900), Mark(3.0, 950), Mark(4.0, 1100), Mark(5.0, 9000)]
    assert flowing_since(marks, 0.0, 500) == 2.0
    assert flowing_since(marks, 2.5, 200) == 4.0
    assert flowing_since(marks, 2.5, 9000) is None


STAT = "77 (a (b) c) S 1 77 77 0 -1 4194560 1 2 3 4 150 50 30 20 20 0 1 0 12345 1 1"


def test_processor_time_is_a_processes_own_and_that_of_its_ended_children() -> None:
    found = usage(STAT, "Name:\ta\nVmHWM:\t    2048 kB\n")
    assert (found.cpu / found.children, found.peak) == (4.0, 2 << 20)


def test_what_a_process_used_before_does_not_count_but_all_of_one_that_began_meanwhile_does() -> None:
    before, after = Usage(5.0, 1.0, 10), Usage(7.0, 4.0, 20)
    found = accounts([Process("agent", before, after, True), Process("agent", before, after, False)])
    assert (found["agent"].cpu, found["agent"].children, found["agent"].peak) == (9.0, 7.0, 20)


@pytest.mark.parametrize(("name", "words", "found"), [
    ("python3", "/usr/bin/python3 /x/vmmigration-agent.py", "agent"),
    ("python3", "/usr/bin/python3 /x/vmmigration.py --json", "controller"),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64 -name x", "qemu-system"),
    ("qemu-img", "qemu-img info", "qemu-img"),
    ("sshd", "sshd: kvm [priv]", "sshd"), ("ssh", "ssh -N", "ssh"), ("tini", "tini", "other"),
])
def test_a_program_is_told_by_its_name_or_its_words(name: str, words: str, found: str) -> None:
    assert program(name, words) == found


# Events.

SUSPENDED, RESUMED, STOPPED = (
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_STOPPED)
LEFT = LifeEvent(1.0, "node1", (SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED))
GONE = LifeEvent(1.5, "node1", (STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED))


def test_a_guest_that_libvirt_resumes_itself_waits_for_nobody() -> None:
    resumed = LifeEvent(1.2, "node2", (RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_MIGRATED))
    found = switchover([LEFT, resumed, GONE], "node1", "node2")
    assert found.parts(1.25) == {"arriving": 200.0, "handing over": 0.0, "first tick": 50.0}
    assert found.done == 1.5


def test_a_guest_that_arrives_paused_waits_until_it_is_handed_over() -> None:
    paused = LifeEvent(1.2, "node2", (SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED))
    resumed = LifeEvent(1.22, "node2", (RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED))
    found = switchover([LEFT, paused, resumed, GONE], "node1", "node2")
    assert found.parts(1.25) == {"arriving": 200.0, "handing over": 20.0, "first tick": 30.0}


def test_events_without_an_end_are_no_switchover() -> None:
    with pytest.raises(ValueError, match="node2 did not say"):
        switchover([LEFT, GONE], "node1", "node2")


# Figures.


def test_what_libvirt_says_of_a_job_is_read_with_its_units() -> None:
    text = "Job type:   Completed\nTime elapsed:   3160   ms\nFile processed:   260.500 MiB\nConstant pages:   31\n"
    assert job_figures(text) == {"Time elapsed": 3.16, "File processed": 260.5 * (1 << 20)}


def test_the_longest_gap_is_that_of_the_time_that_is_looked_at() -> None:
    ticks = [(0.0, "node1"), (5.0, "node1"), (5.1, "node1"), (5.4, "node2"), (5.5, "node2"), (9.0, "node2")]
    assert longest_gap(ticks, 5.05, 5.45) == pytest.approx((0.3, 0.3, 0.1))
    longest, between, _ = longest_gap(ticks[:3], 4.0, 6.0)
    assert (longest, between) == (5.0, None)
    with pytest.raises(ValueError, match="no ticks"):
        longest_gap(ticks, 20.0, 30.0)


def test_a_median_leaves_out_what_is_not_known() -> None:
    runs = [a_run(gap_ms=None), a_run(gap_ms=100.0), a_run(gap_ms=300.0)]
    assert median(runs, lambda run: run.gap_ms) == 200.0
    assert ratio([a_run(gap_ms=None)], runs, lambda run: run.gap_ms) is None


def test_what_must_cross_is_what_is_allocated_and_the_memory() -> None:
    assert a_run().wire_ratio == 1.0
    assert a_run().outside == 0.5
    assert a_run(libvirt_seconds=None).outside is None


def results(*runs: Run) -> Results:
    """Of these runs."""
    return Results({"processor": "x"}, "2026-01-01", "script/bench peers", runs)


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    kept = results(a_run(), a_run(Way.SCP, lines=[{"host": "node1", "text": "scp", "seconds": 1.0}]))
    kept.save(tmp_path / "new" / "figures.json")
    assert Results.load(tmp_path / "new" / "figures.json") == kept


def missed(*runs: Run) -> set[tuple[str, Way | None]]:
    """The goals that these runs miss."""
    return {(verdict.goal, verdict.way) for verdict in verdicts(results(*runs)) if not verdict.met}


def test_a_goal_is_met_at_its_limit_and_missed_above_it() -> None:
    as_good = a_run(), a_run(Way.VIRSH_FILE)
    assert missed(*as_good) == set()
    assert {verdict.goal for verdict in verdicts(results(*as_good))} == {"total", "gap", "outside", "wire"}
    worse = a_run(seconds=10.5, gap_ms=210.0, wire_bytes=2200)
    assert missed(worse, a_run(Way.VIRSH_FILE)) == {
        ("total", Way.VIRSH_FILE), ("gap", Way.VIRSH_FILE), ("outside", None), ("wire", None)}


def test_the_large_disk_has_goals_of_its_own() -> None:
    large = {way: a_run(way, "large-full") for way in (Way.VIRSH_FILE, Way.VIRSH_POOL)}
    assert missed(a_run(case="large-full", seconds=6.1, libvirt_seconds=5.5), *large.values()) == {
        ("total", Way.VIRSH_FILE), ("total", Way.VIRSH_POOL)}
    assert missed(a_run(case="large-full", seconds=6.0, libvirt_seconds=5.5), *large.values()) == {
        ("total", Way.VIRSH_POOL)}
    assert missed(a_run(case="large-full", seconds=4.0, libvirt_seconds=3.5), *large.values()) == set()


def test_what_is_added_to_a_minute_is_judged_as_a_share_too() -> None:
    minute = a_run(case="minute-100", seconds=60.0, libvirt_seconds=58.7)
    assert missed(minute) == {("outside", None)}
    assert missed(a_run(case="minute-100", seconds=60.0, libvirt_seconds=58.2)) == {("outside", None), ("share", None)}
