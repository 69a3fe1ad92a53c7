"""Draws a block of lines at the end of a terminal, over itself, below lines that stay, at most ten times a second.

The cursor rests on the first column of the block: whatever a terminal that was made wider or narrower has done to the
lines below it, all of them are erased from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Optional, TextIO

from console.terminal import Echo, Look, drawn_by, in_foreground, put

# Ten writes a second at most: eight of these, which leaves two for what does not wait, such as making room.
INTERVAL_SECONDS = 0.125

# ECMA-48 and DEC's private modes. A line that is longer than thought is cut by the terminal, not wrapped.
_ERASE_BELOW, _ERASE_LINE = "\x1b[J", "\x1b[K"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"

# Calls a function every so many seconds, until the function that is returned is called.
Repeat = Callable[[float, Callable[[], None]], Callable[[], None]]


def repeat_in_thread(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """Repeat, in a thread of its own."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            call()

    # Where no thread can be started the block changes with what happens, and with nothing else.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=run, name="screen", daemon=True).start()
    return ended.set


class Live:
    """The end of one terminal. Who calls it holds the lock, and what it calls has it.

    What happens sooner than INTERVAL_SECONDS after the last time is written with what else happens until then.
    """

    def __init__(
        self, stream: TextIO, compose: Callable[[Look], Sequence[str]], *, lock: AbstractContextManager[bool],
        clock: Callable[[], float], look: Callable[[], Look], repeat: Repeat = repeat_in_thread,
    ) -> None:
        """`compose` gives the block as it is now, no line of it wider than the terminal, and one row less than that."""
        self._lock = lock
        self._stream = stream
        self._compose = compose
        self._clock = clock
        self._look = look
        self._repeat = repeat
        self._echo = Echo(stream)
        self._end_repeating: Optional[Callable[[], None]] = None
        self._waiting: list[str] = []
        self._drawn: list[str] = []
        self._drawn_on = Look()
        self._written_at = float("-inf")
        self._gone = False
        self._catches_suspend = False

    def say(self, lines: Callable[[Look], Sequence[str]]) -> None:
        """Have lines stay above the block."""
        self._waiting += lines(self._look())
        self.changed()

    def changed(self) -> None:
        """Something of the block may have changed: draw it, now or soon."""
        if self._gone:
            return
        if self._end_repeating is None:
            self._catch_suspend()
            drawn_by(self.aside)
            self._end_repeating = self._repeat(INTERVAL_SECONDS, self._turn)
        self._refresh()

    def _turn(self) -> None:
        with self._lock:
            # It may have been ended while this waited.
            if self._end_repeating is not None:
                self._refresh()

    def _refresh(self) -> None:
        """Write what waits and draw the block, if there is anything new and the last time is long enough ago."""
        if self._clock() - self._written_at < INTERVAL_SECONDS:
            return
        look = self._look()
        # In the background the terminal is somebody else's.
        block = list(self._compose(look)) if in_foreground(self._stream) else []
        if self._waiting or block != self._drawn or (block and look != self._drawn_on):
            self._write(block, look)

    def _write(self, block: list[str], look: Look) -> None:
        """In one go, so that nothing is seen half drawn."""
        before = "\r" if self._drawn else ""
        if self._drawn and look != self._drawn_on:
            # What was there is wrapped over by now.
            before += _ERASE_BELOW
        stays = "".join(f"{line}{_ERASE_LINE if self._drawn else ''}\n" for line in self._waiting)
        if block:
            self._echo.off()
            up = f"\x1b[{len(block) - 1}A" if len(block) > 1 else ""
            drawn = "\n".join(f"{line}{_ERASE_LINE}" for line in block)
            text = f"{before}{_NO_WRAP}{stays}{drawn}{_ERASE_BELOW}\r{up}{_WRAP}"
        else:
            text = f"{before}{stays}{_ERASE_BELOW if self._drawn else ''}"
        self._waiting, self._drawn, self._drawn_on = [], block, look
        self._written_at = self._clock()
        if not put(self._stream, text):
            # Nobody is looking any more. That is no reason to leave a migration alone in the middle.
            self._gone = True
            self.stop()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """For the length of a `with`, nothing is drawn, and what waited is there."""
        with self._lock:
            self._clear()
            yield

    def stop(self) -> None:
        """Take the block off the terminal; changed() brings it back."""
        self._clear()
        if self._end_repeating is not None:
            self._end_repeating()
            self._end_repeating = None
            drawn_by(None)
        self._leave_suspend()
        self._echo.back()

    def _clear(self) -> None:
        if not self._gone and (self._waiting or self._drawn):
            self._write([], self._look())

    # Ctrl-Z.

    def _catch_suspend(self) -> None:
        """Leave the shell a terminal as it was."""
        if hasattr(signal, "SIGTSTP") and threading.current_thread() is threading.main_thread() and (
                signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL):
            signal.signal(signal.SIGTSTP, self._suspend)
            self._catches_suspend = True

    def _leave_suspend(self) -> None:
        if self._catches_suspend and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            self._catches_suspend = False

    def _suspend(self, number: int, _frame: Optional[FrameType]) -> None:
        with self._lock:
            self._clear()
            self._echo.back()
            signal.signal(number, signal.SIG_DFL)
            # Here it stands still until the shell has it go on.
            os.kill(os.getpid(), number)
            signal.signal(number, self._suspend)
