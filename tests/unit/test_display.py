"""What is shown while a run goes on: a screen, lines or JSON, at most so often, and figures as a person writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest

from console.arguments import parse
from console.display import Display, display_mode
from console.figures import RateMeter, Running, StepMeter, disks_text, duration, percent, progress_text, size
from constant import Command
from control.conversation import StepResult
from tests.unit.emulated import EmulatedTerminal, Turns
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


def test_a_plain_line_of_progress_does_not_let_a_host_steer_the_terminal() -> None:
    stream, clock = io.StringIO(), FakeClock(0.0)
    display = Display("plain", stream, clock)
    display.step_began(Command.LIVE_MIGRATION, SOURCE)
    clock.now = 6.0
    display.step_progress(Command.LIVE_MIGRATION, SOURCE, Progress(phase="x\x1b[2J\n\x9b1m", done=1, total=2))
    assert stream.getvalue().endswith("\n")
    assert stream.getvalue()[:-1].isprintable()


class Screen:
    """A Display on a terminal."""

    def __init__(self, width: int = 80, height: int = 24) -> None:
        self.clock = FakeClock(0.0)
        self.terminal = EmulatedTerminal(self.clock, width, height)
        self.turns = Turns(self.clock)
        self.display = Display("screen", self.terminal, self.clock, look=self.terminal.look, repeat=self.turns)

    def pass_time(self, seconds: float) -> list[str]:
        """Let so much time go by; what is seen then."""
        self.turns.pass_time(seconds)
        return self.terminal.lines()

    def progress(self, done: int, total: int = 1000) -> None:
        """LIVE_MIGRATION tells how far it is."""
        self.display.step_progress(
            Command.LIVE_MIGRATION, SOURCE, Progress(phase="copying the disk", done=done, total=total))


def test_a_screen_shows_steps_that_are_done_and_below_them_what_runs() -> None:
    screen = Screen()
    screen.display.step_began(Command.HELLO, SOURCE)
    screen.pass_time(1.0)
    screen.display.step_ended(StepResult(Command.HELLO, SOURCE, 1.0, "node1, libvirt 9.0.0"))
    screen.display.step_began(Command.CHECK_SOURCE, SOURCE)
    screen.display.step_began(Command.CHECK_LINK, SOURCE)
    done = ["HELLO                  192.0.2.11      ok 1.00 s  node1, libvirt 9.0.0"]
    assert screen.pass_time(3.25) == [
        *done,
        " CHECK_SOURCE          192.0.2.11            3 s",
        " CHECK_LINK            192.0.2.11            3 s"]
    screen.display.step_ended(StepResult(Command.CHECK_LINK, SOURCE, 3.0, "3 checks, nothing in the way"))
    done += ["CHECK_LINK             192.0.2.11      ok 3.00 s  3 checks, nothing in the way"]
    assert screen.pass_time(0.5) == [*done, " CHECK_SOURCE          192.0.2.11            3 s"]
    screen.display.clear()
    assert screen.terminal.lines() == done


def test_a_screen_keeps_time_while_nothing_arrives() -> None:
    screen = Screen()
    screen.display.step_began(Command.LIVE_MIGRATION, SOURCE)
    for second in range(4):
        screen.progress(100 * second)
        screen.pass_time(1.0)
    shown = screen.pass_time(3.25)
    assert shown[0].split()[2:4] == ["7", "s"]
    assert shown[1].endswith("30 %  300 B of 1000 B  100 B/s  7 s left")
    assert screen.pass_time(60.0)[1].endswith("30 %  300 B of 1000 B  no news for 1:04 min")


def test_what_ctrl_c_does_is_said_above_what_runs_in_as_many_lines_as_it_takes() -> None:
    screen = Screen(40)
    screen.display.step_began(Command.LIVE_MIGRATION, SOURCE)
    screen.pass_time(1.25)
    screen.display.leaving(2.0)
    assert screen.pass_time(0.5) == [
        "Leaving: the running step goes on.", "Ctrl-C once more within 2 s cancels the", "job.",
        " LIVE_MIGRATION .11 1 s"]
    screen.display.cancelling(possible=False)
    assert screen.pass_time(0.5)[3:6] == [
        "Too late to cancel: this clears up.", "Another Ctrl-C leaves at once, with", "that unfinished."]


def test_a_cancel_that_was_typed_is_told_without_a_second_ctrl_c() -> None:
    for pressed, said in ((True, "yet. Another Ctrl-C leaves at once"), (False, "yet. Ctrl-C leaves at once")):
        screen = Screen(200)
        screen.display.cancelling(possible=True, pressed=pressed)
        assert said in screen.pass_time(0.5)[0]


def test_after_it_was_cleared_a_screen_shows_nothing_of_what_had_not_ended() -> None:
    screen = Screen()
    screen.display.step_began(Command.LIVE_MIGRATION, SOURCE)
    screen.progress(500)
    screen.display.clear()
    screen.display.step_began(Command.ROLL_BACK, SOURCE)
    assert screen.pass_time(1.25) == [" ROLL_BACK             192.0.2.11            1 s"]


def test_steps_side_by_side_have_figures_of_their_own() -> None:
    stream, clock = io.StringIO(), FakeClock(0.0)
    display = Display("json", stream, clock)
    for host in (SOURCE, DESTINATION):
        display.step_began(Command.COPY_DISK_FILE, host)
    for second, done in ((0.0, 0), (5.0, 500)):
        clock.now = second
        for host, share in ((SOURCE, 1), (DESTINATION, 2)):
            clock.now += 0.5
            display.step_progress(
                Command.COPY_DISK_FILE, host, Progress(phase="x", done=done * share, total=2000))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["percent"], event["rate"]) for event in events[-2:]] == [(25, 100), (50, 200)]


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
    assert "vda" not in progress_text(running(one))


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
    disks = (DiskProgress("vda", 0, 0),)
    assert disks_text(running(Progress(phase="x", done=0, total=0, disks=disks)), disks) == "vda 0 %"


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


def running(progress: Progress, *samples: tuple[float, int]) -> Running:
    """A step that has told these counts, at these seconds, before that progress."""
    meter = StepMeter(Command.LIVE_MIGRATION, SOURCE, 0.0)
    for now, done in samples:
        meter.add(now, Progress(phase="x", done=done, total=progress.total))
    meter.add(samples[-1][0] if samples else 0.0, progress)
    return meter.at(10.0)


def metered(*samples: tuple[float, int]) -> RateMeter:
    """A meter that has seen these counts."""
    meter = RateMeter()
    for now, done in samples:
        meter.add(now, done)
    return meter


def test_progress_of_unknown_size_names_its_phase() -> None:
    progress = Progress(phase="opening the SSH tunnel", done=0, total=0)
    assert progress_text(running(progress)) == "opening the SSH tunnel"
    assert progress_text(Running(Command.LIVE_MIGRATION, SOURCE, 0.0)) == ""


def test_the_time_left_is_told_only_when_it_can_be_known() -> None:
    mib = 1 << 20

    def told(*samples: tuple[float, int]) -> str:
        return progress_text(running(Progress(phase="x", done=samples[-1][1], total=(1 << 30) + 4 * mib), *samples))

    assert told((0.0, 0), (4.0, 4 * mib)).endswith(" of 1.00 GiB, 1 MiB/s, 17:04 min left")
    assert "left" not in told((0.0, 0))
    assert "left" not in told((0.0, 0), (0.5, mib))
    assert told((0.0, mib), (4.5, mib)).endswith(", nothing is moving")


def test_a_rate_is_that_of_the_last_seconds_and_never_negative() -> None:
    slow_then_fast = [(float(second), 100 * second if second < 5 else 1000 * second - 4600) for second in range(11)]
    assert metered(*slow_then_fast).rate() == pytest.approx(1000.0)
    assert metered((1.0, 5)).rate() == metered().rate() == 0.0
    assert not metered().stalled()
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
    ([], "screen", "plain"), (["-q"], "none", "none"), (["--progress", "plain"], "plain", "plain"),
    (["--progress", "json"], "json", "json"), (["-q", "--progress", "json"], "none", "none"),
])
def test_how_progress_is_shown_follows_the_options_and_the_stream(
    monkeypatch: pytest.MonkeyPatch, options: Sequence[str], on_terminal: str, elsewhere: str,
) -> None:
    parsed = parse([*options, *WORDS])
    monkeypatch.setenv("TERM", "xterm")
    assert display_mode(parsed, Terminal()) == on_terminal
    assert display_mode(parsed, io.StringIO()) == elsewhere
    monkeypatch.setenv("TERM", "dumb")
    assert display_mode(parsed, Terminal()) == elsewhere
