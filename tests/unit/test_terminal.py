"""What a terminal can show, as its environment and its own words tell."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import logging
import os
import struct
import sys
import termios
import types
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from console import terminal
from console.terminal import Echo, LogHandler, Look, in_foreground, look_of, obeys_sequences, put


class Stream(io.StringIO):
    """A stream with that encoding, which may be a terminal."""

    def __init__(self, encoding: str | None = "utf-8", *, tty: bool = True) -> None:
        super().__init__()
        self._encoding, self._tty = encoding, tty

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a StringIO has none, and says so
        """As it was given."""
        return self._encoding  # type: ignore[return-value]  # None as well

    def isatty(self) -> bool:
        return self._tty

    def fileno(self) -> int:
        """One that is no terminal's, so that its size is nowhere but in the environment."""
        return 10**6


@contextlib.contextmanager
def pseudo_terminal(width: int, height: int) -> Iterator[io.TextIOWrapper]:
    """The program's side of one of that size."""
    leader, follower = os.openpty()
    try:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        with os.fdopen(follower, "w", encoding="utf-8") as stream:
            yield stream
    finally:
        os.close(leader)


# Whether it can be drawn on.


@pytest.mark.parametrize(("environment", "obeys"), [
    ({"TERM": "xterm-256color"}, True), ({"TERM": "screen", "NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False),
    ({"TERM": ""}, False), ({}, False),
])
def test_a_terminal_obeys_unless_it_is_dumb_or_unknown(environment: Mapping[str, str], obeys: bool) -> None:
    assert obeys_sequences(Stream(), environment) is obeys
    assert not obeys_sequences(Stream(tty=False), environment)


# How it looks.


@pytest.mark.parametrize(("environment", "coloured"), [
    ({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_that_is_not_empty_takes_the_colours_away(environment: Mapping[str, str], coloured: bool) -> None:
    assert look_of(Stream(), environment).coloured is coloured


@pytest.mark.parametrize(("encoding", "term", "drawn"), [
    ("utf-8", "xterm", True), ("UTF8", "xterm", True), ("ascii", "xterm", False), ("latin-1", "xterm", False),
    ("gbk", "xterm", False), (None, "xterm", False), ("no-such", "xterm", False), ("utf-8", "linux", False),
])
def test_signs_beyond_ascii_are_for_utf_8_where_they_are_one_column_wide(
    monkeypatch: pytest.MonkeyPatch, encoding: str | None, term: str, drawn: bool,
) -> None:
    monkeypatch.setattr(os, "device_encoding", lambda _file: "UTF-8")
    assert look_of(Stream(encoding), {"TERM": term}).unicode is drawn
    monkeypatch.setattr(os, "device_encoding", lambda _file: "cp936")
    assert look_of(Stream(encoding), {"TERM": term}).unicode is False


def test_a_terminal_tells_its_size_itself_whatever_the_environment_says() -> None:
    environment = {"COLUMNS": "7", "LINES": "3"}
    with pseudo_terminal(133, 50) as stream:
        assert (look_of(stream, environment).width, look_of(stream, environment).height) == (133, 50)
    with pseudo_terminal(0, 0) as stream:
        assert (look_of(stream, environment).width, look_of(stream, environment).height) == (7, 3)


@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "", "LINES": "x"}, {"COLUMNS": "-1", "LINES": "0"}])
def test_a_size_that_nobody_tells_is_that_of_a_vt100(environment: Mapping[str, str]) -> None:
    look = look_of(Stream(), environment)
    assert (look.width, look.height) == (Look().width, Look().height) == (80, 24)


# Whose it is.


def test_what_is_no_terminal_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_foreground(Stream())
    monkeypatch.setattr(os, "tcgetpgrp", lambda _file: os.getpgrp() + 1)
    assert not in_foreground(Stream())
    monkeypatch.delattr(os, "tcgetpgrp")
    assert in_foreground(Stream())


# Windows.


class Kernel:
    """What kernel32.dll does for a console: a new one obeys when it is asked, an old one refuses, a pipe is none."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.mode = 0x0003

    def GetConsoleMode(self, _handle: object, mode: Any) -> int:  # noqa: N802 - its name in the library
        """Tell the mode."""
        mode._obj.value = self.mode
        return int(self._kind != "pipe")

    def SetConsoleMode(self, _handle: object, mode: int) -> int:  # noqa: N802 - its name in the library
        """Take a mode."""
        self.mode = mode
        return int(self._kind == "new")


@pytest.mark.parametrize(("kind", "obeys"), [("new", True), ("old", False), ("pipe", False)])
def test_a_windows_console_is_asked_to_obey_and_may_refuse(
    monkeypatch: pytest.MonkeyPatch, kind: str, obeys: bool,
) -> None:
    kernel, msvcrt = Kernel(kind), types.ModuleType("msvcrt")
    vars(msvcrt).update(get_osfhandle=lambda file: file)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(ctypes, "WinDLL", lambda _name: kernel, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert obeys_sequences(Stream(), {}) is obeys
    assert kernel.mode == (0x0003 if kind == "pipe" else 0x0007)
    assert not obeys_sequences(Stream(), {"TERM": "dumb"})
    assert not obeys_sequences(Stream(tty=False), {})


def test_without_termios_there_is_nothing_to_switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "termios", None)
    with pseudo_terminal(80, 24) as stream:
        echo = Echo(stream)
        echo.off()
        assert termios.tcgetattr(stream.fileno())[3] & termios.ECHO


# Writing.


def test_what_cannot_be_encoded_is_written_as_its_number() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    assert put(stream, "node 复\n")
    assert written.getvalue() == b"node \\u590d\n"


def test_what_is_logged_does_not_steer_the_terminal_and_a_traceback_keeps_its_lines() -> None:
    stream = io.StringIO()
    handler = LogHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("%s said %s", "node", "fine\x1b[2J\nERROR: \x9b1m")
    assert stream.getvalue() == "WARNING: node said fine?[2J?ERROR: ?1m\n"
    try:
        raise ValueError("\x1b]0;owned")
    except ValueError:
        logger.exception("broken")
    assert stream.getvalue().count("\n") > 3
    assert stream.getvalue().endswith("\nValueError: ?]0;owned\n")
