"""What is written down of a run while it goes on, and the rates and passes that are worked out from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from console.recorder import SAMPLES_LIMIT, Observers, Press, Recorder, Recording, Sample, Span, Track, Wish
from console.report_rates import (
    Kind,
    Level,
    Series,
    band,
    crossed_bytes,
    edges_of,
    fewer,
    passes_of,
    series_of,
)
from constant import Command
from control.conversation import ControllerSettings, StepResult
from controller import Controller
from tests.unit.samples import AGENTS, DESTINATION, MASTER, MIGRATION, MOVED, SOURCE, FakeClock
from tests.unit.scripted import Notes, ScriptedAgents, WithProgress
from wire.records import DiskProgress, MemoryProgress, Progress

MOVE = Command.LIVE_MIGRATION


def progress(done: int, phase: str = "copying") -> Progress:
    """So many bytes of a thousand."""
    return Progress(phase=phase, done=done, total=1000)


def recorded(*samples: Sample, command: Command = MOVE, host: str = SOURCE, began: float = 0.0) -> Recording:
    """A recording of one step."""
    return Recording(100.0, tracks=(Track(command, host, began, samples),))


def memory(passes: int, dirty_rate: int | None = None, left: int = 0, limit: int = 300) -> MemoryProgress:
    """A pass over the memory."""
    return MemoryProgress(passes=passes, left=left, rate=None, dirty_rate=dirty_rate, downtime_limit=limit)


# The recorder.


def test_every_observer_is_told_everything_in_its_turn() -> None:
    first, second = Notes(), Notes()
    both = Observers(first, second)
    both.step_began(MOVE, SOURCE)
    both.step_progress(MOVE, SOURCE, progress(1))
    both.step_ended(StepResult(MOVE, SOURCE, 1.0, ""))
    both.leaving(2.0)
    both.cancelling(possible=False)
    assert first.told == second.told == [
        f"LIVE_MIGRATION {SOURCE} began", f"LIVE_MIGRATION {SOURCE} 1/1000", f"LIVE_MIGRATION {SOURCE} ended",
        "leaving in 2 s", "too late to cancel"]


def test_the_steps_of_a_run_are_on_the_time_line_with_their_seconds_and_nothing_else_is() -> None:
    agents = ScriptedAgents(script={(MOVE, SOURCE): WithProgress((progress(1), progress(2)), MOVED)})
    recorder = Recorder(agents.clock)
    controller = Controller(ControllerSettings(agents=AGENTS, keys=(MASTER,)), agents, recorder, agents.clock)
    report = controller.migrate(MIGRATION)
    recording = recorder.recording()
    assert {id(span.result) for span in recording.spans} == {id(step) for step in report.steps}
    for span in recording.spans:
        assert span.result is not None
        assert span.ended - span.began == pytest.approx(span.result.seconds)
    assert recording.seconds == pytest.approx(report.seconds)
    began = [round(span.began, 2) for span in recording.spans]
    assert began == sorted(began)
    assert [(track.command, track.host, [sample.done for sample in track.samples]) for track in recording.tracks] == [
        (MOVE, SOURCE, [1, 2])]


def test_checks_that_are_made_side_by_side_overlap_on_the_time_line() -> None:
    agents = ScriptedAgents()
    recorder = Recorder(agents.clock)
    Controller(ControllerSettings(agents=AGENTS, keys=(MASTER,)), agents, recorder, agents.clock).migrate(MIGRATION)
    spans = {(span.command, span.host): span for span in recorder.recording().spans}
    here, way = spans[Command.CHECK_SOURCE, SOURCE], spans[Command.CHECK_LINK, SOURCE]
    assert here.began == way.began < here.ended < way.ended
    # Both greetings leave at once, whichever is waited for first.
    assert spans[Command.HELLO, SOURCE].began == spans[Command.HELLO, DESTINATION].began


def test_steps_that_began_at_once_stay_in_the_order_in_which_they_were_told_of() -> None:
    clock = FakeClock()
    recorder = Recorder(clock)
    for host in (SOURCE, DESTINATION):
        recorder.step_began(Command.HELLO, host)
    clock.now += 0.5
    recorder.step_ended(StepResult(Command.HELLO, SOURCE, 0.4999, ""))
    recorder.step_ended(StepResult(Command.HELLO, DESTINATION, 0.5, ""))
    assert [span.host for span in recorder.recording().spans] == [SOURCE, DESTINATION]


def test_a_step_that_had_ended_before_it_was_waited_for_is_as_long_as_it_was() -> None:
    clock = FakeClock()
    recorder = Recorder(clock)
    clock.now += 3
    recorder.step_began(MOVE, SOURCE)
    clock.now += 20
    recorder.step_ended(StepResult(MOVE, SOURCE, 1.5, ""))
    assert [(span.began, span.ended) for span in recorder.recording().spans] == [(3.0, 4.5)]


def test_a_step_that_has_not_ended_goes_on_to_the_end_of_the_recording() -> None:
    clock = FakeClock()
    recorder = Recorder(clock)
    clock.now += 3
    recorder.step_began(MOVE, SOURCE)
    clock.now += 5
    recording = recorder.recording()
    assert recording.spans == (Span(MOVE, SOURCE, 3.0, 8.0, None),)


@pytest.mark.parametrize(("possible", "wish"), [(True, Wish.CANCEL), (False, Wish.CANCEL_TOO_LATE)])
def test_a_second_ctrl_c_takes_the_place_of_the_first(possible: bool, wish: Wish) -> None:
    clock = FakeClock()
    recorder = Recorder(clock)
    clock.now += 5
    recorder.leaving(2.0)
    assert recorder.recording().presses == (Press(5.0, Wish.LEAVE),)
    clock.now += 1
    recorder.cancelling(possible=possible)
    assert recorder.recording().presses == (Press(6.0, wish),)


def test_a_cancel_that_was_typed_is_no_ctrl_c() -> None:
    recorder = Recorder(FakeClock())
    recorder.cancelling(possible=True, pressed=False)
    assert recorder.recording().presses == ()


@pytest.mark.parametrize("count", [SAMPLES_LIMIT, SAMPLES_LIMIT + 1, 86_400, 250_001])
def test_however_long_a_run_is_the_samples_are_few_and_spread_over_all_of_it(count: int) -> None:
    clock = FakeClock(0.0)
    recorder = Recorder(clock)
    recorder.step_began(MOVE, SOURCE)
    most = 0
    for number in range(count):
        clock.now = float(number)
        recorder.step_progress(MOVE, SOURCE, progress(number))
        if number % 1000 == 0:
            most = max(most, len(recorder.recording().tracks[0].samples))
    samples = recorder.recording().tracks[0].samples
    assert max(most, len(samples)) <= SAMPLES_LIMIT
    assert len(samples) > SAMPLES_LIMIT / 3
    assert (samples[0].done, samples[-1].done) == (0, count - 1)
    gaps = [after.at - before.at for before, after in zip(samples, samples[1:])]
    assert max(gaps) <= 4 * count / SAMPLES_LIMIT + 1


def test_a_clock_that_stands_still_does_not_fill_the_memory() -> None:
    recorder = Recorder(FakeClock())
    for number in range(5 * SAMPLES_LIMIT):
        recorder.step_progress(MOVE, SOURCE, progress(number))
    assert len(recorder.recording().tracks[0].samples) <= SAMPLES_LIMIT


# Rates.


def rates(series: Sequence[Series], kind: Kind, name: str = "") -> list[float]:
    """The levels of one series."""
    return [level.rate for each in series if (each.kind, each.name) == (kind, name) for level in each.levels]


def test_each_disk_has_its_own_rate_until_it_is_across() -> None:
    def disks(first: int, second: int) -> tuple[DiskProgress, ...]:
        return DiskProgress("vda", first, 100), DiskProgress("vdb", second, 400)
    found = series_of(recorded(
        Sample(2.0, "", 140, 500, disks(100, 40)), Sample(4.0, "", 300, 500, disks(100, 200)),
        Sample(5.0, "", 500, 500, disks(100, 400))), SOURCE)
    assert rates(found, Kind.DISK, "vda") == [50.0]
    assert rates(found, Kind.DISK, "vdb") == [20.0, 80.0, 200.0]
    assert [each.mean for each in found] == [50.0, 80.0]
    assert [each.peak for each in found] == [50.0, 200.0]


def test_what_the_disks_lacked_when_the_memory_began_is_theirs_and_not_the_memorys() -> None:
    found = series_of(recorded(
        Sample(1.0, "", 70, 100, (DiskProgress("vda", 70, 100),)), Sample(2.0, "", 150, 400, memory=memory(1)),
        Sample(4.0, "", 350, 400, memory=memory(2, 30))), SOURCE)
    assert rates(found, Kind.DISK, "vda") == [70.0, 30.0]
    assert rates(found, Kind.MEMORY) == [50.0, 100.0]
    assert rates(found, Kind.DIRTY) == [30.0]


def test_files_have_a_rate_at_the_source_alone() -> None:
    samples = (Sample(1.0, "", 10, 100), Sample(2.0, "", 40, 100))
    assert rates(series_of(recorded(*samples, command=Command.COPY_DISK_FILE), SOURCE), Kind.FILES) == [10.0, 30.0]
    assert series_of(recorded(*samples, command=Command.COPY_DISK_FILE, host=DESTINATION), SOURCE) == ()


def test_a_step_that_starts_over_has_no_rate_below_nothing() -> None:
    found = series_of(recorded(Sample(1.0, "", 50, 100), Sample(2.0, "", 10, 100), Sample(3.0, "", 30, 100)), SOURCE)
    assert rates(found, Kind.DISK) == [50.0, 0.0, 20.0]


def test_what_an_earlier_command_has_seen_of_a_step_is_no_rate_of_this_one() -> None:
    """A job that is gone on with tells at once of all that it has done."""
    known = Sample(1.0, "", 500, 900, (DiskProgress("vda", 500, 800),))
    later = Sample(11.0, "", 700, 900, (DiskProgress("vda", 700, 800),))
    memories = (Sample(13.0, "", 840, 900, memory=memory(3, 5)),)
    begun = recorded(known, later, *memories)
    assert rates(series_of(dataclasses.replace(begun, resumed=True), SOURCE), Kind.DISK, "vda") == [20.0, 50.0]
    assert rates(series_of(begun, SOURCE), Kind.DISK, "vda") == [500.0, 20.0, 50.0]
    passed = dataclasses.replace(recorded(*memories), resumed=True)
    assert [each.sent for each in passes_of(passed, SOURCE)] == [0]
    recorder = Recorder(FakeClock(), resumes=True)
    assert recorder.recording().resumed
    assert not Recorder(FakeClock()).recording().resumed


def test_what_was_told_first_of_a_job_that_is_gone_on_with_may_be_old_and_is_not_counted_from() -> None:
    samples = (Sample(1.0, "", 500, 900), Sample(1.1, "", 560, 900), Sample(3.1, "", 600, 900))
    assert rates(series_of(dataclasses.replace(recorded(*samples), resumed=True), SOURCE), Kind.DISK) == [20.0]


def test_samples_that_come_too_near_to_each_other_make_one_level() -> None:
    near = (Sample(1.0, "", 10, 99), Sample(1.05, "", 25, 99), Sample(2.0, "", 30, 99), Sample(2.2, "", 34, 99))
    levels = [level for series in series_of(recorded(*near), SOURCE) for level in series.levels]
    assert [(level.began, level.ended) for level in levels] == [(0.0, 1.0), (1.0, 2.2)]
    assert [level.rate for level in levels] == pytest.approx([10.0, 20.0])
    # All that was told is in it, up to the last.
    assert sum(level.rate * (level.ended - level.began) for level in levels) == pytest.approx(34)


def test_a_step_that_is_over_in_no_time_has_no_rate() -> None:
    assert series_of(recorded(Sample(0.1, "", 15, 15), command=Command.COPY_DISK_FILE), SOURCE) == ()
    assert series_of(recorded(Sample(0.0, "", 5, 9)), SOURCE) == ()
    assert rates(series_of(recorded(Sample(1.0, "", 5, 9), Sample(1.0, "", 9, 9)), SOURCE), Kind.DISK) == [9.0]
    short = passes_of(recorded(Sample(1.0, "", 5, 9), Sample(1.2, "", 9, 9, memory=memory(1))), SOURCE)
    assert [(each.sent, each.rate) for each in short] == [(4, 0.0)]


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_drawing_more_coarsely_loses_no_bytes(limit: int) -> None:
    levels = tuple(Level(place, place + 1 + place % 2 * 0.5, float(place * 7 % 5)) for place in range(2, 60, 2))
    series = Series(Kind.DISK, "vda", levels)
    edges = edges_of([series], limit)
    assert len(edges) - 1 <= max(limit, len(levels) * 2)
    drawn = band(series, edges)
    carried = sum(rate * (after - before) for rate, before, after in zip(drawn.rates, edges, edges[1:]))
    assert carried == pytest.approx(series.bytes)


def test_of_many_disks_the_smallest_are_drawn_as_one_that_carries_all_of_theirs() -> None:
    disks = [Series(Kind.DISK, f"vd{place}", (Level(0, 2, float(place)), Level(2, 3, 1.0))) for place in range(9)]
    found = fewer(disks, 5, "other disks")
    assert [each.name for each in found] == ["vd5", "vd6", "vd7", "vd8", "other disks"]
    assert found[-1].bytes == pytest.approx(sum(each.bytes for each in disks[:5]))
    assert fewer(disks[:5], 5, "other disks") == tuple(disks[:5])


def test_each_pass_over_the_memory_is_told_with_what_it_sent_and_left() -> None:
    found = passes_of(recorded(
        Sample(1.0, "", 100, 100, (DiskProgress("vda", 90, 100),)),
        Sample(3.0, "", 310, 400, memory=memory(1, left=90)),
        Sample(4.0, "", 400, 400, memory=memory(1)), Sample(6.0, "", 460, 500, memory=memory(2, 55, 40, 675))), SOURCE)
    assert [(each.number, each.began, each.ended, each.sent, each.left) for each in found] == [
        (1, 1.0, 4.0, 290, 0), (2, 4.0, 6.0, 60, 40)]
    assert (found[1].dirty_rate, found[1].downtime_limit, found[1].rate) == (55, 675, 30.0)


def test_what_had_crossed_is_counted_once_at_the_source() -> None:
    tracks = tuple(Track(command, host, 0.0, (Sample(1.0, "", done, 9),)) for command, host, done in (
        (Command.COPY_DISK_FILE, SOURCE, 3), (Command.COPY_DISK_FILE, DESTINATION, 3), (MOVE, SOURCE, 4)))
    assert crossed_bytes(Recording(1.0, tracks=tracks), SOURCE) == 7
