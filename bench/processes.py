"""Processes that the measurements need beside their own, each a module and a role in it.

Each says in one line of JSON that it is ready, or what it has measured, and ends when its standard input is closed:
so none stays behind, whatever becomes of the one that started it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_END_SECONDS = 30.0


# The side that starts them.


@dataclass(frozen=True)
class Running:
    """A process that was started."""

    process: subprocess.Popen[str]

    def line(self) -> dict[str, Any]:
        """The next thing that it says. Raises RuntimeError if it ends instead."""
        text = self.process.stdout.readline() if self.process.stdout else ""
        if not text:
            raise RuntimeError(f"{self.process.args!r} ended with exit code {self.process.wait(_END_SECONDS)}")
        found: dict[str, Any] = json.loads(text)
        return found

    def end(self) -> None:
        """Have it end."""
        if self.process.stdin:
            self.process.stdin.close()


@contextmanager
def started(module: str, role: str, *arguments: object, log: Path | None = None) -> Iterator[Running]:
    """That module in that role, until the `with` ends. `log` is where its standard error goes."""
    command = [sys.executable, "-m", module, role, *map(str, arguments)]
    with open(log, "ab") if log else nullcontext() as file, subprocess.Popen(  # noqa: S603 - modules of this package
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
    ) as process:
        running = Running(process)
        try:
            yield running
        finally:
            running.end()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


# The side that is started.


def say(**what: object) -> None:
    """Tell it to the one that started this process."""
    print(json.dumps(what), flush=True)


def wait_for_end() -> None:
    """Return when this process is to end."""
    sys.stdin.read()


def play(roles: Mapping[str, Callable[..., None]]) -> None:
    """Do what the command line says: a role and its arguments."""
    roles[sys.argv[1]](*sys.argv[2:])
