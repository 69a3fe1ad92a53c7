"""A terminal in memory, which shows what a person would see of what is written to it, and when that was written."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import pyte

from console.terminal import Look
from tests.unit.samples import FakeClock


class EmulatedTerminal(io.StringIO):
    """A stream that is a terminal. Lines that are too long for a narrower one are cut, as by xterm."""

    def __init__(self, clock: FakeClock, width: int = 80, height: int = 24) -> None:
        super().__init__()
        self._clock = clock
        self._screen = pyte.HistoryScreen(width, height, history=10_000)
        self._stream = pyte.Stream(self._screen)
        self.written: list[tuple[float, str]] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Show it, with a carriage return before each line feed, as the kernel adds them."""
        self.written.append((self._clock.now, text))
        self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    def look(self) -> Look:
        """How large it is now."""
        return Look(self._screen.columns, self._screen.lines)

    def resize(self, width: int, height: int) -> None:
        """Make it larger or smaller."""
        self._screen.resize(height, width)

    @property
    def cursor(self) -> tuple[int, int]:
        """Column and row."""
        return self._screen.cursor.x, self._screen.cursor.y

    def lines(self) -> list[str]:
        """All that can be seen, or scrolled back to, without the empty rows below."""
        places = range(self._screen.columns)
        above = ["".join(line[place].data for place in places) for line in self._screen.history.top]
        shown = "\n".join(line.rstrip() for line in [*above, *self._screen.display])
        return shown.rstrip("\n").split("\n") if shown.strip("\n") else []


@dataclass
class Turns:
    """Stands for the thread that calls a function again and again: it is called when a test says so."""

    clock: FakeClock
    call: Callable[[], None] | None = None
    seconds: float = 0.0
    calls: list[Callable[[], None]] = field(default_factory=list)

    def __call__(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Begin."""
        assert self.call is None, "two at once"
        self.call, self.seconds = call, seconds
        self.calls.append(call)
        return self._end

    def _end(self) -> None:
        self.call = None

    def pass_time(self, seconds: float) -> None:
        """Let so much time go by."""
        until = self.clock.now + seconds
        while self.call is not None and self.clock.now + self.seconds <= until + 1e-9:
            self.clock.now += self.seconds
            self.call()
        self.clock.now = until
