"""The terminal: what it can show, writing to it whatever becomes of it, and nothing to it that would steer it.

Whoever has drawn something at its end, for now, makes room for all that is written here.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Optional, TextIO

try:
    import termios
except ImportError:
    # Windows has none, and echoes only what a program reads.
    termios = None  # type: ignore[assignment]  # there are no stubs of a module that is not there

# What is assumed where nobody says, such as on a serial line: that of a VT100.
_WIDTH, _HEIGHT = 80, 24
# Drawn by the Linux console's own font as something else, or not at all.
_POOR_TERMINALS = ("linux",)
# A Windows console with one of these draws a line's signs two columns wide: Japanese, Chinese, Korean.
_WIDE_CODE_PAGES = ("cp932", "cp936", "cp949", "cp950")
# wincon.h; Windows 10 of 2016 and later.
_ENABLE_VIRTUAL_TERMINAL_PROCESSING = 0x0004


@dataclass(frozen=True)
class Look:
    """What a terminal shows: columns, rows, whether colours are wanted, and whether signs beyond ASCII come out."""

    width: int = _WIDTH
    height: int = _HEIGHT
    coloured: bool = False
    unicode: bool = True


def look_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Look:
    """What the terminal behind the stream shows now: it may be made wider or narrower at any time."""
    width, height = _size(stream, environment)
    return Look(
        width, height, coloured=not environment.get("NO_COLOR"),
        unicode=environment.get("TERM") not in _POOR_TERMINALS and _draws_lines(stream))


def _size(stream: TextIO, environment: Mapping[str, str]) -> tuple[int, int]:
    """Columns and rows, from the stream itself: stdout may be a file. Else as COLUMNS and LINES say."""
    with contextlib.suppress(OSError, ValueError):
        size = os.get_terminal_size(stream.fileno())
        if size.columns > 0 and size.lines > 0:
            return size.columns, size.lines
    told = [environment.get(name, "") for name in ("COLUMNS", "LINES")]
    width, height = (int(each) if each.isascii() and each.isdigit() else 0 for each in told)
    return width or _WIDTH, height or _HEIGHT


def _draws_lines(stream: TextIO) -> bool:
    """Whether the signs of a bar come out one column wide.

    Of the older encodings only those of Asia have them, whose terminals draw them two columns wide (annex 11).
    """
    try:
        encoding, page = codecs.lookup(stream.encoding or "ascii").name, os.device_encoding(stream.fileno())
    except (LookupError, OSError, ValueError):
        return False
    return encoding == "utf-8" and page not in _WIDE_CODE_PAGES


def obeys_sequences(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the stream is a terminal that obeys escape sequences. A Windows console is asked to do so from now on."""
    if not stream.isatty() or environment.get("TERM") == "dumb":
        return False
    if sys.platform == "win32":
        return _windows_console_obeys(stream)
    return bool(environment.get("TERM"))


def _windows_console_obeys(stream: TextIO) -> bool:
    """Whether that console has obeyed when it was asked; older ones than of 2016 do not."""
    if sys.platform != "win32":
        return False
    # Only Windows has all of them.
    import ctypes
    import msvcrt

    kernel = ctypes.WinDLL("kernel32")
    try:
        handle = ctypes.c_void_p(msvcrt.get_osfhandle(stream.fileno()))
    except (OSError, ValueError):
        return False
    mode = ctypes.c_uint32()
    if not kernel.GetConsoleMode(handle, ctypes.byref(mode)):
        return False
    return bool(kernel.SetConsoleMode(handle, mode.value | _ENABLE_VIRTUAL_TERMINAL_PROCESSING))


def in_foreground(stream: TextIO) -> bool:
    """Whether the terminal is this program's at the moment, and not the shell's or another program's."""
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):
        # Windows has no such thing, and what is no terminal belongs to nobody.
        return True


class Echo:
    """Keeps what is typed from being echoed into what is drawn. Ctrl-C and Ctrl-Z do what they always do."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._off = False

    def off(self) -> None:
        """Switch it off, if it is on."""
        if not self._off:
            self._off = self._set(on=False)

    def back(self) -> None:
        """Switch it on again, if it was on."""
        if self._off:
            self._set(on=True)
            self._off = False

    def _set(self, *, on: bool) -> bool:
        """Whether that changed anything."""
        if termios is None:
            return False
        try:
            attributes = termios.tcgetattr(self._stream.fileno())
            if bool(attributes[3] & termios.ECHO) is on:
                return False
            attributes[3] ^= termios.ECHO
            termios.tcsetattr(self._stream.fileno(), termios.TCSANOW, attributes)
        except (termios.error, OSError, ValueError):
            return False
        return True


class _End:
    """Who has drawn something at the terminal's end."""

    def __init__(self) -> None:
        self.make_room: Optional[Callable[[], AbstractContextManager[None]]] = None


_end = _End()


def drawn_by(make_room: Optional[Callable[[], AbstractContextManager[None]]]) -> None:
    """Name who takes off, for the length of a `with`, what is drawn at the terminal's end; None when nobody has."""
    _end.make_room = make_room


def write(stream: TextIO, text: str) -> bool:
    """Write to a stream of the terminal's, above what is drawn at its end, and say whether it was possible.

    One that is closed goes nowhere then.
    """
    make_room = _end.make_room
    with make_room() if make_room is not None else contextlib.nullcontext():
        return put(stream, text)


def put(stream: TextIO, text: str) -> bool:
    """The same, wherever the cursor is: for who has drawn there."""
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        return put(stream, text.encode("ascii", "backslashreplace").decode())
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            # Python flushes once more at its end, and a failure there would take the place of our exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


class LogHandler(logging.Handler):
    """Has what is logged written like everything else."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            # Only a traceback has lines of its own: a message may hold what another host has said.
            told = logging.makeLogRecord({**vars(record), "msg": printable(record.getMessage()), "args": ()})
            write(self._stream, "\n".join(map(printable, self.format(told).split("\n"))) + "\n")
        except Exception:
            self.handleError(record)


def printable(text: str) -> str:
    """Text from another host without what would steer the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
