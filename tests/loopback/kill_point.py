"""The moment at which one of the programs here ends itself with SIGKILL, and a file in which it writes before that."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

BEFORE, WITHIN, AFTER = "before", "within", "after"


def die() -> NoReturn:
    """End this process as `kill -9` does: nothing is flushed, closed or said."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")


class KillPoint:
    """Counts how often something was done; the process dies at the `number`th time. Number 0 never comes."""

    def __init__(self, number: int = 0, when: str = BEFORE) -> None:
        self._number = number
        self._when = when
        self.count = 0

    @classmethod
    def add_option(cls, parser: argparse.ArgumentParser, what: str) -> None:
        """`--kill-at N WHEN`; from_option() takes what argparse makes of it."""
        parser.add_argument("--kill-at", nargs=2, metavar=("N", "WHEN"), default=("0", BEFORE),
                            help=f"die with SIGKILL {BEFORE}, {WITHIN} or {AFTER} the Nth {what}")

    @classmethod
    def from_option(cls, given: tuple[str, str]) -> KillPoint:
        """The one that was asked for."""
        return cls(int(given[0]), given[1])

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """What is counted is done in the `with`."""
        self.count += 1
        self._die_if(BEFORE)
        yield
        self._die_if(AFTER)

    def _die_if(self, when: str) -> None:
        if self.count == self._number and self._when == when:
            die()

    @property
    def comes_within(self) -> bool:
        """Whether what is being done now is to be broken off in the middle."""
        return self.count == self._number and self._when == WITHIN


def write_line(path: Path, content: object) -> None:
    """Append one line of JSON, on disk when this returns: what a killed process has said remains."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(content).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
