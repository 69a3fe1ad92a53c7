"""The checks at the end of a run with a fault can fail: each rule of tests/faults on what it must find."""

from __future__ import annotations

import dataclasses

import pytest

from tests.faults import invariants
from tests.faults.invariants import DESTINATION, SOURCE, RunRecord, Sample
from tests.lab.witness import Tick, WitnessReport

REPORT = WitnessReport(
    name="vm", ticks=3, first_tick=1, last_tick=3, last_tick_age_ms=0, host=DESTINATION, median_interval_ms=10,
    longest_gap_ms=100, gap_before_tick=2, gap_after_tick=1, gap_from_host=SOURCE, gap_to_host=DESTINATION,
    gap_at_seconds=0, repeated_ticks=0, failed_writes=0, image="node2:/x", required_records=3, missing_records=0,
    first_missing=None)


def ticks(text: str) -> list[Tick]:
    """`1a 2a 3b`: number and host, a for the source, b for the destination."""
    hosts = {"a": SOURCE, "b": DESTINATION}
    return [Tick(index / 100, hosts[word[-1]], int(word[:-1])) for index, word in enumerate(text.split())]


def samples(host: str, *words: tuple[float, str]) -> list[Sample]:
    """Looks at one host; a `+` behind the state says that it is locked."""
    return [Sample(at, at + 0.1, host, state.rstrip("+"), state.endswith("+")) for at, state in words]


@pytest.mark.parametrize("text", ["", "1a 2a", "1b 2b", "1a 2a 3b 9b"])
def test_a_guest_that_stays_or_goes_over_once_is_sound(text: str) -> None:
    assert invariants.of_ticks(ticks(text)) == []


@pytest.mark.parametrize(("text", "words"), [
    ("1a 2b 3a", "two copies ran, or it went back"),
    ("1b 2a", "two copies ran, or it went back"),
    ("1a 2a 2b", "1 tick(s) came again, the first is 2"),
    ("5a 6a 3a", "came again, the first is 3"),
])
def test_ticks_of_two_copies_are_seen(text: str, words: str) -> None:
    assert any(words in violation for violation in invariants.of_ticks(ticks(text)))


def test_a_lost_record_and_a_failed_write_are_seen() -> None:
    assert invariants.of_witness(REPORT, disk_was_broken=False) == []
    lost = dataclasses.replace(REPORT, missing_records=1, first_missing=2)
    assert "1 of 3 acknowledged records are not on node2:/x, the first is 2" in invariants.of_witness(
        lost, disk_was_broken=True)
    failed = dataclasses.replace(REPORT, failed_writes=2)
    assert invariants.of_witness(failed, disk_was_broken=False) == ["2 writes failed in the guest"]
    assert invariants.of_witness(failed, disk_was_broken=True) == []


def test_the_time_to_unlocked_counts_from_the_fault_to_the_look_that_saw_it_unlocked() -> None:
    seen = [*samples(SOURCE, (0, "running"), (1, "running+"), (2, "running+"), (30, "running+"), (31, "running")),
            *samples(DESTINATION, (0, "absent"), (2, "paused"), (31, "absent"))]
    assert invariants.longest_stuck(seen, 2.5) == pytest.approx(28.6)
    assert invariants.longest_stuck(seen, 0.5) == pytest.approx(30.1)
    assert invariants.longest_stuck(seen, 40) == 0


def test_a_vm_that_is_never_unlocked_is_stuck_until_the_last_look() -> None:
    seen = samples(SOURCE, (0, "running"), (1, "running+"), (90, "running+"))
    assert invariants.longest_stuck(seen, 5) == pytest.approx(85.1)


def test_a_vm_that_runs_at_the_destination_is_not_stuck() -> None:
    seen = [*samples(SOURCE, (0, "running+"), (1, "shut off"), (90, "shut off")),
            *samples(DESTINATION, (0, "paused"), (1, "running"), (90, "running"))]
    assert invariants.longest_stuck(seen, 0) == pytest.approx(1.1)


def test_a_paused_vm_and_one_that_nobody_can_ask_about_are_stuck() -> None:
    seen = [*samples(SOURCE, (0, "paused"), (50, "unknown")), *samples(DESTINATION, (0, "paused"), (50, "paused"))]
    assert invariants.longest_stuck(seen, 0) == pytest.approx(50.1)
    assert invariants.of_stuck(60.5, judged=True)
    assert not invariants.of_stuck(60.5, judged=False)
    assert not invariants.of_stuck(59.9, judged=True)


def test_two_that_run_are_seen_only_where_the_looks_overlap() -> None:
    over = [*samples(SOURCE, (0, "running"), (2, "shut off")), *samples(DESTINATION, (1, "paused"), (2, "running"))]
    assert invariants.of_samples(over) == []
    twice = [*samples(SOURCE, (0, "running"), (2, "running")), *samples(DESTINATION, (1, "running"))]
    assert invariants.of_samples(twice) == ["libvirt on node1 and on node2 both said that it runs"]


@pytest.mark.parametrize(("code", "source", "destination", "true"), [
    (0, "shut off", "running", True), (0, "running", "absent", False), (6, "shut off", "paused", False),
    (5, "running", "absent", True), (5, "shut off", "running", False), (5, "paused", "absent", False),
    (3, "running", "absent", True), (4, "shut off", "running", False), (2, "absent", "running", False),
    (7, "shut off", "running", True), (8, "running", "absent", True), (None, "absent", "absent", True),
])
def test_an_exit_code_is_held_to_what_it_says(code: int | None, source: str, destination: str, true: bool) -> None:
    assert (invariants.of_claim(code, {SOURCE: source, DESTINATION: destination}) == []) is true


def test_one_that_has_moved_may_be_told_as_shut_off_since_unless_the_exit_code_says_that_all_is_well() -> None:
    off = {SOURCE: "shut off", DESTINATION: "shut off"}
    assert invariants.of_claim(6, off, "shut off") == []
    assert invariants.of_claim(0, off, "shut off") != []
    assert invariants.of_claim(6, {SOURCE: "shut off", DESTINATION: "running"}, "shut off") != []


def test_exits_that_are_never_right() -> None:
    assert invariants.of_exit(1, "")
    assert invariants.of_exit(77, "")
    assert invariants.of_exit(5, "Traceback (most recent call last)")
    assert not invariants.of_exit(5, "")
    assert not invariants.of_exit(None, "")


def test_resume_has_to_know_once_all_is_healed() -> None:
    assert invariants.of_recovery("resume", 7, healed=True)
    assert not invariants.of_recovery("resume", 7, healed=False)
    assert not invariants.of_recovery("resume", 5, healed=True)
    assert not invariants.of_recovery("alone", None, healed=True)


@pytest.mark.parametrize(("outcome", "home", "true"), [
    ("moved", DESTINATION, True), ("moved", SOURCE, False), ("rolled back", SOURCE, True),
    ("rolled back", DESTINATION, False), (None, SOURCE, False)])
def test_what_list_says_is_held_against_where_the_vm_is(outcome: str | None, home: str, true: bool) -> None:
    assert (invariants.of_job(outcome, home, began=True) == []) is true
    assert invariants.of_job(outcome, home, began=False) == []


@pytest.mark.parametrize(("source", "destination", "true"), [
    ("running", "absent", True), ("shut off", "running", True), ("running", "running", False),
    ("shut off", "shut off", False), ("running", "paused", False), ("paused", "absent", False)])
def test_exactly_one_host_runs_it(source: str, destination: str, true: bool) -> None:
    assert (invariants.exactly_one({SOURCE: source, DESTINATION: destination}) == []) is true


def test_a_file_that_was_there_has_to_stay_as_it_was() -> None:
    assert invariants.of_files({"a": "1"}, {"a": "1", "b": "2"}) == []
    assert invariants.of_files({"a": "1"}, {"a": "2"}) == ["a was there before and has changed"]
    assert invariants.of_files({"a": "1"}, {}) == ["a was there before and is gone"]


@pytest.mark.parametrize(("host", "names", "home", "true"), [
    (DESTINATION, ["vm.qcow2"], DESTINATION, True), (DESTINATION, ["vm.qcow2"], SOURCE, False),
    (DESTINATION, [], SOURCE, True), (DESTINATION, [], DESTINATION, False),
    (DESTINATION, ["vm.qcow2.vmmigration-1a2b3c4d"], SOURCE, False), (DESTINATION, ["else"], SOURCE, False),
    (SOURCE, ["vm.qcow2"], SOURCE, True), (SOURCE, ["vm.qcow2.moved-1a2b3c4d"], DESTINATION, True),
    (SOURCE, ["vm.qcow2.moved-1a2b3c4d"], SOURCE, False), (SOURCE, ["vm.part", "vm.qcow2"], SOURCE, False),
])
def test_the_directory_of_images_holds_what_it_may(host: str, names: list[str], home: str, true: bool) -> None:
    assert (invariants.of_images(host, names, "vm", home=home) == []) is true


def test_a_rule_that_is_left_is_named() -> None:
    assert invariants.of_rules("node1", "table a\n", "table a\n") == []
    assert invariants.of_rules("node1", "table a\n", "table a\n    drop\n") == [
        "node1: the packet filter has changed: drop"]


def test_the_table_counts_outcomes_and_tells_each_violation_with_its_seed() -> None:
    fine = RunRecord(7, "link-5", "LIVE_MIGRATION", reached=True, exit_code=0, home=DESTINATION, stuck_seconds=4.04,
                     longest_gap_ms=250.4)
    bad = dataclasses.replace(fine, seed=8, exit_code=7, recovery="resume", final_exit_code=5, home=SOURCE,
                              stuck_seconds=61, violations=("it was stuck",), evidence="kept-there")
    late = dataclasses.replace(fine, seed=9, fault="reboot-source", reached=False, stuck_seconds=400)
    text = invariants.table([fine, fine, bad, late])
    line = next(line for line in text.splitlines() if line.startswith("link-5"))
    assert "2 x exit 0 -> node2; 1 x exit 7, resume 5 -> node1" in line
    assert line.split()[-4:] == ["61.0", "250", "0.0", "1"]
    assert "no fault, exit 0 -> node2" in text
    assert "longest time to unlocked 61.0 s" in text
    assert "violations: 1 in 1 runs" in text
    assert "seed 8: link-5 in LIVE_MIGRATION" in text
    assert "- it was stuck" in text
    assert "kept-there" in text


def test_a_killed_command_is_told_from_one_that_ended() -> None:
    killed = RunRecord(1, "kill-controller", "HELLO", recovery="alone", home=SOURCE)
    assert killed.outcome == "killed, alone -> node1"
    assert killed.as_json()["outcome"] == killed.outcome
