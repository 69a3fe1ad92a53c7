"""A shell that is open on a lab's host, as an admin has one: how long a line takes is told from Enter to the prompt."""

from __future__ import annotations

import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Host, LabError

#: In the host's own /tmp.
_OUTPUT, _ERRORS = "/tmp/terminal.out", "/tmp/terminal.err"  # noqa: S108 - see above


@dataclass(frozen=True)
class Typed:
    """A line that was typed and came to its end. Seconds of the monotonic clock."""

    began: float
    ended: float
    output: str


class Terminal:
    """An open shell of root. It is there before anything is measured, so that no login is counted."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._shell = host.popen(["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/root")
        if self._shell.stdin is None or self._shell.stdout is None:
            raise LabError("a shell without pipes")
        self._keyboard, self._screen = self._shell.stdin, self._shell.stdout
        # Until it answers it is not open.
        self.type("true", 30.0)

    @property
    def errors(self) -> Path:
        """Where the standard error of what runs can be read, from outside."""
        return self._host.path(_ERRORS)

    def type(self, line: str, seconds: float) -> Typed:
        """Press Enter after a line and wait for the prompt. Raises LabError if it fails, or is not there in time."""
        began = time.monotonic()
        self._keyboard.write(f"{{ {line}\n}} >{_OUTPUT} 2>{_ERRORS} </dev/null; echo $?\n")
        self._keyboard.flush()
        if not select.select([self._screen], [], [], seconds)[0]:
            raise LabError(f"{self._host.full_name}: no prompt {seconds:.0f} s after `{line}`")
        status = self._screen.readline().strip()
        ended = time.monotonic()
        output = self._host.path(_OUTPUT).read_text(errors="replace")
        if status != "0":
            said = self.errors.read_text(errors="replace").strip()[-2000:]
            raise LabError(f"{self._host.full_name}: `{line}` ended with {status or 'its shell'}: {said}")
        return Typed(began, ended, output)

    def close(self) -> None:
        """End the shell, and what runs in it."""
        self._keyboard.close()
        try:
            self._shell.wait(5.0)
        except subprocess.TimeoutExpired:
            self._shell.kill()
            self._shell.wait()


