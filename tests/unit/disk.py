"""A disk that fails, or whose machine stops, at any one of the system calls that write to it, and journals on it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import pytest

from constant import Command
from wire.errors import MigrationError
from wire.journal import JOURNAL_FILE, Head, Journal, to_line
from wire.memory import Begun, Entry

OLD, NEW = "0123456789abcdef", "fedcba9876543210"
HEAD = Head(epoch=OLD)
ONE, TWO, THREE, FOUR = (
    Begun(
        request_id=f"{number:032x}", digest="ab" * 32, agent_ip="192.0.2.11", cmd=Command.COPY_DISK_FILE,
        asked_by="192.0.2.1", at=1_790_000_000, job_id="0badcafe", domain="büro") for number in range(1, 5))
Line = Union[Head, Entry]
_WRITING = (
    "open", "mkdir", "rmdir", "write", "fdatasync", "fsync", "ftruncate", "chown", "fchown", "replace", "rename",
    "link", "unlink")


# Journals.


def lines(*entries: Line) -> bytes:
    """Entries as a file has them."""
    return b"".join(to_line(entry) for entry in entries)


def line_of(content: object) -> bytes:
    """Any JSON as a line with the right checksum."""
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def journal_file(directory: Path, content: bytes = lines(HEAD, ONE, TWO)) -> Path:
    """A journal that an earlier agent has left there, and nothing beside it."""
    directory.mkdir(exist_ok=True)
    for path in directory.glob(f"{JOURNAL_FILE}.*"):
        path.unlink()
    (directory / JOURNAL_FILE).write_bytes(content)
    return directory / JOURNAL_FILE


def never() -> str:
    """The epoch of a journal that needs no new one."""
    raise AssertionError("a new epoch was made")


def new() -> str:
    """The epoch that no journal had before."""
    return NEW


@contextlib.contextmanager
def opened(directory: Path, new_epoch: Callable[[], str] = never) -> Iterator[Journal]:
    """The journal in a directory, as an agent that starts there opens it."""
    with contextlib.closing(Journal(directory, new_epoch)) as journal:
        yield journal


def entries_in(directory: Path, new_epoch: Callable[[], str] = never) -> list[Entry]:
    """What an agent that starts now would know."""
    with opened(directory, new_epoch) as journal:
        return list(journal.entries)


def refused(directory: Path) -> MigrationError:
    """The error with which a journal is refused."""
    with pytest.raises(MigrationError) as caught:
        Journal(directory, new)
    return caught.value


# The disk.


@dataclass
class Calls:
    """The system calls that were asked for, and those that were made, each with the inode that it is about."""

    asked: int = 0
    made: list[tuple[str, int]] = field(default_factory=list)

    def names(self) -> list[str]:
        """The names of those that were made."""
        return [name for name, _inode in self.made]


class KilledError(BaseException):
    """The process ends here and now: no handler of an error is run."""


@contextlib.contextmanager
def system_calls(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[int, str], None] = lambda _number, _name: None,
) -> Iterator[Calls]:
    """Watch the system calls that write; `before` has the number and the name of each, and may let it fail."""
    calls = Calls()

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(target: Any, *arguments: Any, **named: Any) -> Any:
            calls.asked += 1
            before(calls.asked - 1, name)
            result = real(target, *arguments, **named)
            calls.made.append((name, os.fstat(target).st_ino if isinstance(target, int) else 0))
            return result
        return call

    with monkeypatch.context() as patched:
        for name in _WRITING:
            patched.setattr(os, name, watched(name))
        yield calls


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing wait for the disk: for tests that write hundreds of journals."""
    for name in ("fdatasync", "fsync"):
        monkeypatch.setattr(os, name, lambda _file: None)


def failing(number: int, code: int = errno.EIO) -> Callable[[int, str], None]:
    """Let the system call with that number fail."""
    def before(asked: int, _name: str) -> None:
        if asked == number:
            raise OSError(code, os.strerror(code))
    return before


def failing_from(number: int) -> Callable[[int, str], None]:
    """Let the system call with that number fail, and all that follow."""
    def before(asked: int, _name: str) -> None:
        if asked >= number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    return before


def failing_at(name: str) -> Callable[[int, str], None]:
    """Let every system call of that name fail."""
    def before(_asked: int, called: str) -> None:
        if called == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    return before


def error_of(action: Callable[[], object]) -> Exception | None:
    """The error in which it ends, if it does."""
    try:
        action()
    except (OSError, MigrationError) as error:
        return error
    return None


def killed(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> bool:
    """Do it in a process that is killed at the system call with that number. Whether it came to that."""
    descriptors: list[int] = []
    really_open = os.open

    def open_noted(*arguments: Any) -> int:
        descriptors.append(really_open(*arguments))
        return descriptors[-1]

    def before(asked: int, _name: str) -> None:
        # Nor does it do anything afterwards, whatever is to be done at its end.
        if asked >= number:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", open_noted)
        try:
            with system_calls(patched, before):
                action()
        except KilledError:
            # The system closes what the process had opened, which ends its lock.
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            return True
    return False


@contextlib.contextmanager
def room_for(monkeypatch: pytest.MonkeyPatch, room: int) -> Iterator[None]:
    """A disk on which so many more bytes fit."""
    real, left = os.write, room

    def write(file: int, content: bytes) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(file, content[:left])
        left -= written
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        yield
