"""What is shown while a run goes on: lines, a bar or JSON, at most so often, and figures as a person writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest

from console.arguments import parse
from console.display import Display, display_mode
from console.figures import DiskMeters, RateMeter, duration, percent, progress_text, size
from constant import Command
from control.conversation import StepResult
from tests.unit.samples import DESTINATION, PASS, SOURCE, FakeClock
from wire.records import DiskProgress, Progress

WORDS = [SOURCE, DESTINATION, "kvm", "VM1"]

def shown(mode: str, reports: Sequence[tuple[float, int]], total: int = 1000) -> str:
    """What a Display writes for one step with progress at these seconds."""
    stream, clock = io.StringIO(), FakeClock(0.0)
    display = Display(mode, stream, clock)
    display.step_began(Command.LIVE_MIGRATION, SOURCE)
    for now, done in reports:
        clock.now = now
        progress = Progress(phase="copying the disk", done=done, total=total)
        display.step_progress(Command.LIVE_MIGRATION, SOURCE, progress)
    display.step_ended(StepResult(Command.LIVE_MIGRATION, SOURCE, 12.0, "downtime 87 ms"))
    return stream.getvalue()


def test_plain_lines_come_at_most_every_five_seconds() -> None:
    lines = shown("plain", [(second / 2, second * 5) for second in range(40)]).splitlines()
    assert len(lines) == 3 + 1
    assert [line.split("%")[0].split()[-1] for line in lines[:-1]] == ["5", "10", "15"]
    assert all(line.startswith(f"LIVE_MIGRATION          {SOURCE}") for line in lines)
    assert "\r" not in "".join(lines)


def test_a_bar_is_drawn_over_itself_and_is_gone_at_the_end() -> None:
    written = shown("bar", [(0.0, 0), (1.0, 250), (2.0, 500)])
    assert "[..........." in written
    assert "[##########..........] copying the disk 50%" in written
    assert written.count("\n") == 1
    assert written.split("\r\x1b[K")[-1].startswith(f"LIVE_MIGRATION          {SOURCE}")


def test_json_progress_is_one_object_a_line() -> None:
    events = [json.loads(line) for line in shown("json", [(0.0, 0), (5.0, 500)]).splitlines()]
    assert [event["event"] for event in events] == ["step-began", "progress", "progress", "step-ended"]
    assert (events[2]["percent"], events[2]["done"], events[2]["total"], events[2]["rate"]) == (50, 500, 1000, 100)


def mirrored(mode: str) -> str:
    """What a Display writes of two disks, of which one is written to, and of a pass over the memory."""
    stream, clock = io.StringIO(), FakeClock(0.0)
    display = Display(mode, stream, clock)
    display.step_began(Command.LIVE_MIGRATION, SOURCE)
    for second in (0, 3, 6):
        clock.now = float(second)
        disks = (DiskProgress("vda", 120 * second << 20, 1600 << 20), DiskProgress("vdb", 60 * second << 20, 360 << 20))
        display.step_progress(Command.LIVE_MIGRATION, SOURCE, Progress(
            phase="copying the disk", done=180 * second << 20, total=2000 << 20, disks=disks))
    clock.now = 12.0
    display.step_progress(Command.LIVE_MIGRATION, SOURCE, Progress(
        phase="copying memory, pass 5", done=1980 << 20, total=2000 << 20, memory=PASS))
    return stream.getvalue()


def test_several_disks_are_told_each_with_percent_and_rate() -> None:
    first, second = mirrored("plain").splitlines()
    assert first.endswith(", vda 45 % 120 MiB/s, vdb 99 % 60 MiB/s")
    assert "copying the disk 54%, 1.05 GiB of 1.95 GiB, 180 MiB/s, " in first
    assert "vda" not in second
    one = Progress(phase="x", done=1, total=2, disks=(DiskProgress("vda", 1, 2),))
    assert "vda" not in progress_text(one, 50, metered((0.0, 0)), DiskMeters())


def test_json_progress_tells_each_disk_and_each_pass() -> None:
    events = [json.loads(line) for line in mirrored("json").splitlines()]
    assert events[3]["disks"] == [
        {"target": "vda", "done": 720 << 20, "total": 1600 << 20, "percent": 45, "rate": 120 << 20},
        {"target": "vdb", "done": 360 << 20, "total": 360 << 20, "percent": 99, "rate": 60 << 20}]
    assert (events[3]["memory"], events[4]["disks"]) == (None, [])
    assert events[4]["memory"] == {
        "pass": 5, "left": 40 << 20, "rate": 60 << 20, "dirty_rate": 120 << 20, "downtime_limit_ms": 675,
        "post_copy": False}


def test_a_disk_of_which_nothing_is_known_yet_has_no_rate() -> None:
    assert DiskMeters().text((DiskProgress("vda", 0, 0),)) == "vda 0 %"


def test_nothing_is_shown_when_nothing_is_asked_for() -> None:
    assert shown("none", [(0.0, 0), (10.0, 500)]) == ""


def test_the_percentage_never_goes_back_and_is_never_a_hundred() -> None:
    written = shown("json", [(0.0, 100), (1.0, 700), (2.0, 300), (3.0, 800), (4.0, 1000)])
    events = [json.loads(line) for line in written.splitlines()]
    assert [event["percent"] for event in events if event["event"] == "progress"] == [10, 70, 70, 80, 99]


def test_each_step_begins_anew_at_nought() -> None:
    stream = io.StringIO()
    display = Display("json", stream, FakeClock(0.0))
    for done in (900, 100):
        display.step_began(Command.COPY_DISK_FILE, SOURCE)
        display.step_progress(Command.COPY_DISK_FILE, SOURCE, Progress(phase="x", done=done, total=1000))
    assert [json.loads(line).get("percent") for line in stream.getvalue().splitlines()] == [None, 90, None, 10]


@pytest.mark.parametrize("columns", [1, 2, 10, 40, 80, 200])
def test_no_bar_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    written = shown("bar", [(0.0, 0), (1.0, 250), (2.0, 500)])
    drawn = [part for part in written.split("\r\x1b[K")[:-1]]
    assert len(drawn) > 3
    assert all(len(part) < columns for part in drawn if part)


def metered(*samples: tuple[float, int]) -> RateMeter:
    """A meter that has seen these counts."""
    meter = RateMeter()
    for now, done in samples:
        meter.add(now, done)
    return meter


def test_progress_of_unknown_size_names_its_phase() -> None:
    progress = Progress(phase="opening the SSH tunnel", done=0, total=0)
    assert progress_text(progress, 0, metered((0.0, 0))) == "opening the SSH tunnel"


def test_the_time_left_is_told_only_when_it_can_be_known() -> None:
    mib = 1 << 20
    half = Progress(phase="x", done=1 << 30, total=2 << 30)
    assert progress_text(half, 50, metered((0.0, 0), (4.0, 4 * mib))).endswith("1 MiB/s, 17:04 min left")
    for samples in ([(0.0, 0)], [(0.0, 0), (0.5, mib)], [(0.0, mib), (9.0, mib)]):
        assert "left" not in progress_text(half, 50, metered(*samples))


def test_a_rate_is_that_of_the_last_seconds_and_never_negative() -> None:
    slow_then_fast = [(float(second), 100 * second if second < 5 else 1000 * second - 4600) for second in range(11)]
    assert metered(*slow_then_fast).rate() == pytest.approx(1000.0)
    assert metered((1.0, 5)).rate() == 0.0
    assert metered((1.0, 5), (4.0, 1)).rate() == 0.0


def test_sizes_times_and_percentages_read_as_a_person_writes_them() -> None:
    assert [size(count) for count in (0, 1023, 1024, 5 << 20, 3 << 29)] == [
        "0 B", "1023 B", "1 KiB", "5 MiB", "1.50 GiB"]
    assert [duration(seconds) for seconds in (0.9, 59, 60, 185, 3599, 3750)] == [
        "0 s", "59 s", "1:00 min", "3:05 min", "59:59 min", "1:02:30 h"]
    assert percent(Progress(phase="x", done=1, total=0), 0) == 0
    assert percent(Progress(phase="x", done=5, total=4), 0) == 99


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("options", "on_terminal", "elsewhere"), [
    ([], "bar", "plain"), (["-q"], "none", "none"), (["--progress", "plain"], "plain", "plain"),
    (["--progress", "json"], "json", "json"), (["-q", "--progress", "json"], "none", "none"),
])
def test_how_progress_is_shown_follows_the_options_and_the_stream(
    options: Sequence[str], on_terminal: str, elsewhere: str,
) -> None:
    parsed = parse([*options, *WORDS])
    assert display_mode(parsed, Terminal()) == on_terminal
    assert display_mode(parsed, io.StringIO()) == elsewhere
