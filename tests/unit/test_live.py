"""What is drawn at a terminal's end: seldom, in one go, without debris, and out of the way of what else is written."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import live as live_module
from console import terminal as terminal_module
from console.live import INTERVAL_SECONDS, Live, repeat_in_thread
from console.terminal import Echo, LogHandler, Look, write
from tests.unit.emulated import EmulatedTerminal, Turns
from tests.unit.samples import ROOT, FakeClock


@dataclass
class Scene:
    """A Live on a terminal, and what its block is now."""

    width: int = 80
    height: int = 24
    block: list[str] = field(default_factory=list)
    clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))

    def __post_init__(self) -> None:
        self.terminal = EmulatedTerminal(self.clock, self.width, self.height)
        self.turns = Turns(self.clock)
        self.live = Live(
            self.terminal, lambda look: [line[:look.width - 1] for line in self.block[:look.height - 1]],
            lock=threading.RLock(), clock=self.clock, look=self.terminal.look, repeat=self.turns)

    def show(self, *block: str) -> None:
        """The block becomes this."""
        self.block[:] = block
        self.live.changed()

    def say(self, *lines: str) -> None:
        """Have these stay above it."""
        self.live.say(lambda _look: lines)

    @property
    def writes(self) -> list[float]:
        """When something was written."""
        return [at for at, _text in self.terminal.written]


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Nothing is drawn yet."""
    made = Scene()
    yield made
    made.live.stop()


# Without debris.


def test_a_block_is_drawn_over_itself_and_is_gone_at_the_end(scene: Scene) -> None:
    scene.say("HELLO ok")
    for block in (("one", "two long line", "three"), ("ONE",), ("1", "2"), ()):
        scene.show(*block)
        scene.turns.pass_time(1.0)
        assert scene.terminal.lines() == ["HELLO ok", *block]
    scene.show("ONE", "TWO")
    scene.live.stop()
    assert scene.terminal.lines() == ["HELLO ok"]
    assert scene.terminal.cursor == (0, 1)


def test_what_stays_is_written_above_the_block(scene: Scene) -> None:
    scene.show("a long line of the block", "and another", "and a third")
    scene.turns.pass_time(1.0)
    scene.say("short", "too")
    scene.turns.pass_time(1.0)
    assert scene.terminal.lines() == ["short", "too", "a long line of the block", "and another", "and a third"]
    assert scene.terminal.cursor == (0, 2)


def test_at_the_bottom_of_the_terminal_it_scrolls() -> None:
    scene = Scene(height=6)
    said = [f"line {number}" for number in range(20)]
    for line in said:
        scene.block[:] = [line, "x", "y"]
        scene.say(line)
        scene.turns.pass_time(0.25)
    assert scene.terminal.lines() == [*said, "line 19", "x", "y"]
    scene.live.stop()
    assert scene.terminal.lines() == said


LINES = st.lists(st.text("abc ", min_size=1, max_size=30).map(lambda line: f"|{line}|"), max_size=6)


@given(st.lists(st.tuples(LINES, LINES, st.sampled_from([0.0, 0.03, 0.1, 0.25])), max_size=20), st.integers(3, 12))
def test_whatever_comes_and_goes_nothing_else_is_left(
    events: list[tuple[list[str], list[str], float]], height: int,
) -> None:
    scene, said = Scene(32, height), []
    for stays, block, seconds in events:
        said += stays
        scene.block[:] = block
        scene.say(*stays)
        scene.turns.pass_time(seconds)
        if seconds >= 2 * INTERVAL_SECONDS:
            assert scene.terminal.lines() == [*said, *block[:height - 1]]
    scene.live.stop()
    assert scene.terminal.lines() == said


@pytest.mark.parametrize("width", [40, 12, 200])
def test_a_terminal_that_is_resized_shows_the_block_once(scene: Scene, width: int) -> None:
    scene.say("stays")
    scene.show("x" * 60, "y" * 60, "z" * 60)
    scene.turns.pass_time(1.0)
    scene.terminal.resize(width, 24)
    scene.turns.pass_time(0.25)
    cut = min(width - 1, 60)
    assert scene.terminal.lines() == ["stays", "x" * cut, "y" * cut, "z" * cut]
    scene.live.stop()
    assert scene.terminal.lines() == ["stays"]


def test_what_is_wider_than_thought_is_cut_and_not_wrapped(scene: Scene) -> None:
    scene.say("stays")
    scene.live._compose = lambda _look: ["x" * 100, "y" * 100]
    scene.turns.pass_time(1.0)
    assert len(scene.terminal.lines()) == 3
    scene.live.stop()
    assert scene.terminal.lines() == ["stays"]
    write(scene.terminal, "w" * 100 + "\n")
    assert scene.terminal.lines() == ["stays", "w" * 80, "w" * 20], "lines wrap again afterwards"


# Seldom.


def most_in_a_second(times: list[float]) -> int:
    """How many of them are in the second that has most."""
    return max(sum(begin <= at < begin + 1.0 - 1e-9 for at in times) for begin in times)


def test_however_much_happens_there_are_ten_writes_a_second_at_most(scene: Scene) -> None:
    for number in range(5000):
        scene.block[:] = [f"at {number}"]
        if number % 100 == 50:
            scene.say(f"step {number}")
        else:
            scene.live.changed()
        scene.turns.pass_time(0.001)
        if number % 500 == 499:
            write(scene.terminal, f"warning {number}\n")
    scene.turns.pass_time(1.0)
    own = [at for at, text in scene.terminal.written if "warning" not in text]
    assert 8 <= most_in_a_second(own) <= 10
    lines = scene.terminal.lines()
    assert [line for line in lines if "step" in line] == [f"step {number}" for number in range(50, 5000, 100)]
    assert (len(lines), lines[-1]) == (50 + 10 + 1, "at 4999")


def test_steps_that_end_in_quick_succession_are_one_write(scene: Scene) -> None:
    scene.say("first")
    assert scene.writes == [0.0], "the first is there at once"
    scene.turns.pass_time(0.01)
    for number in range(9):
        scene.say(f"step {number}")
        scene.show("runs")
    assert scene.terminal.lines() == ["first"]
    scene.turns.pass_time(0.25)
    assert scene.terminal.lines() == ["first", *(f"step {number}" for number in range(9)), "runs"]
    assert len(scene.writes) == 2


def test_nothing_is_written_while_nothing_changes(scene: Scene) -> None:
    scene.show("runs")
    scene.turns.pass_time(10.0)
    assert len(scene.writes) == 1
    scene.block[:] = ["runs on"]
    scene.turns.pass_time(10.0)
    assert len(scene.writes) == 2, "what changes by itself is drawn although nothing happens"


def test_what_waits_is_there_at_the_end(scene: Scene) -> None:
    scene.say("first")
    scene.say("second")
    scene.live.stop()
    assert scene.terminal.lines() == ["first", "second"]
    assert scene.turns.call is None
    scene.show("again")
    scene.turns.pass_time(1.0)
    assert scene.terminal.lines() == ["first", "second", "again"]


def test_a_turn_that_comes_after_the_end_draws_nothing(scene: Scene) -> None:
    scene.show("runs")
    scene.live.stop()
    scene.clock.now += 1.0
    scene.turns.calls[0]()
    assert scene.terminal.lines() == []


def test_the_thread_calls_until_it_is_ended() -> None:
    called = threading.Event()
    end = repeat_in_thread(0.001, called.set)
    assert called.wait(10.0)
    end()
    thread = next((each for each in threading.enumerate() if each.name == "screen"), None)
    if thread is not None:
        thread.join(10.0)
        assert not thread.is_alive()


# What else is written.


def test_what_others_write_goes_above_it_after_what_waits(scene: Scene) -> None:
    scene.say("step")
    scene.show("runs", "━━━")
    scene.turns.pass_time(1.0)
    scene.say("another step")
    assert write(scene.terminal, "a warning\n")
    assert scene.terminal.lines() == ["step", "another step", "a warning"]
    scene.turns.pass_time(0.25)
    assert scene.terminal.lines() == ["step", "another step", "a warning", "runs", "━━━"]


def test_it_makes_room_on_another_stream_of_the_same_terminal(scene: Scene) -> None:
    scene.show("runs")
    stdout = io.StringIO()
    write(stdout, "the result\n")
    assert scene.terminal.lines() == []


def test_a_log_line_goes_above_it_whole(scene: Scene) -> None:
    handler = LogHandler(scene.terminal)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    scene.show("runs, a longer line than the other")
    handler.handle(logging.makeLogRecord({"levelname": "WARNING", "msg": "cannot %s", "args": ("cancel",)}))
    scene.turns.pass_time(0.25)
    assert scene.terminal.lines() == ["WARNING: cannot cancel", "runs, a longer line than the other"]


LOGGING_RUN = """
import contextlib, logging, sys, vmmigration
from console.terminal import drawn_by

@contextlib.contextmanager
def making_room():
    sys.stderr.write("made room: ")
    yield

vmmigration.main(["new-key", "needless"])
drawn_by(making_room)
logging.getLogger("udpmodule").warning("cannot cancel")
"""


def test_the_commands_own_log_makes_room_as_well() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", LOGGING_RUN], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    assert re.fullmatch(r"made room: [-0-9:, ]+ WARNING udpmodule: cannot cancel", finished.stderr.splitlines()[-1])


def test_much_that_others_write_does_not_keep_it_away(scene: Scene) -> None:
    for number in range(100):
        scene.show(f"runs {number}")
        write(scene.terminal, "log\n")
        scene.turns.pass_time(0.04)
        scene.show(f"runs {number}")
    assert sum("runs" in text for _at, text in scene.terminal.written) > 20


def test_after_its_end_it_is_in_nobodys_way(scene: Scene) -> None:
    scene.show("runs")
    scene.live.stop()
    before = len(scene.writes)
    write(scene.terminal, "the result\n")
    assert len(scene.writes) == before + 1
    assert terminal_module._end.make_room is None


def test_in_the_background_only_lines_that_stay_are_written(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "in_foreground", lambda _stream: False)
    scene.show("runs")
    scene.turns.pass_time(1.0)
    assert scene.writes == []
    scene.say("step")
    assert scene.terminal.written[0][1] == "step\n"


class Gone(EmulatedTerminal):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        super().write(text)
        raise BrokenPipeError


def test_a_terminal_that_is_gone_is_left_alone(scene: Scene) -> None:
    gone = Gone(scene.clock)
    live = Live(gone, lambda _look: ["runs"], lock=threading.RLock(), clock=scene.clock, look=Look, repeat=scene.turns)
    live.changed()
    assert scene.turns.call is None
    for _each in range(3):
        scene.clock.now += 1.0
        live.changed()
        live.say(lambda _look: ["step"])
        live.stop()
    assert len(gone.written) == 1


# The keyboard.


@contextlib.contextmanager
def pseudo_terminal() -> Iterator[io.TextIOWrapper]:
    """The program's side of one."""
    leader, follower = os.openpty()
    try:
        with os.fdopen(follower, "w", encoding="utf-8") as stream:
            yield stream
    finally:
        os.close(leader)


def echoes(stream: io.TextIOWrapper) -> bool:
    """Whether the terminal echoes what is typed."""
    return bool(termios.tcgetattr(stream.fileno())[3] & termios.ECHO)


def test_nothing_that_is_typed_is_echoed_into_the_block(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "in_foreground", lambda _stream: True)
    with pseudo_terminal() as stream:
        shown = ["runs"]
        live = Live(
            stream, lambda _look: shown, lock=threading.RLock(), clock=scene.clock, look=Look, repeat=scene.turns)
        live.say(lambda _look: ["step"])
        assert not echoes(stream)
        live.stop()
        assert echoes(stream)


def test_a_terminal_that_does_not_echo_stays_so() -> None:
    with pseudo_terminal() as stream:
        attributes = termios.tcgetattr(stream.fileno())
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(stream.fileno(), termios.TCSANOW, attributes)
        echo = Echo(stream)
        echo.off()
        echo.back()
        assert not echoes(stream)
    Echo(io.StringIO()).off()


def test_ctrl_z_is_caught_for_as_long_as_it_is_drawn_and_only_if_it_stops_programs(scene: Scene) -> None:
    def handler() -> object:
        return signal.getsignal(signal.SIGTSTP)

    kept = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    try:
        scene.show("runs")
        assert callable(handler())
        scene.live.stop()
        assert handler() is signal.SIG_DFL
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        scene.show("runs again")
        scene.live.stop()
        assert handler() is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTSTP, kept)
