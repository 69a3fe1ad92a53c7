"""The journal of an agent: a file that says which requests it began and how they ended, each line on disk before the
controller hears of it.

A line is the CRC-32 of its JSON in eight hexadecimal digits, a space, and the JSON. Lines are only ever appended; what
is past its time is left out when the file is written anew under another name.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import queue
import stat
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from constant import Command
from wire.errors import ErrorCode, MigrationError
from wire.memory import Begun, Ended, Entry, Memory, Seen
from wire.message import can_hold, read_json, result_from_wire, result_to_wire, write_json
from wire.phrase import Phrase
from wire.records import Obstacle
from wire.schema import from_wire, record, to_wire

log = logging.getLogger(__name__)

JOURNAL_FILE = "journal"
# 1 on this version's first line; a later version that writes something else counts on.
_FORMAT = 1


@record
class Head:
    """The first line. The epoch names this journal: a request made for another one is not begun."""

    epoch: str
    format: int = _FORMAT

    def __post_init__(self) -> None:
        if self.format != _FORMAT or not self.epoch:
            raise ValueError("a journal of another version")


_KINDS: dict[str, type] = {"head": Head, "begun": Begun, "ended": Ended, "seen": Seen}
_NAMES = {kind: name for name, kind in _KINDS.items()}


# Lines.


def to_line(entry: Head | Entry) -> bytes:
    """One entry as a line of the file."""
    content = to_wire(entry)
    if isinstance(entry, Ended):
        content["cmd_result"] = result_to_wire(entry.cmd, entry.cmd_result)
    text = write_json({_NAMES[type(entry)]: content})
    return b"%08x %b\n" % (zlib.crc32(text), text)


def from_line(line: bytes) -> Head | Entry:
    """The entry that a line, with its end, holds. Raises ValueError for a line that is damaged or not known."""
    return _entry(_text(line))


def _text(line: bytes) -> bytes:
    """The JSON in a line. Raises ValueError for a line that is not as it was written."""
    checksum, space, text = line[:8], line[8:9], line[9:-1]
    if space != b" " or line[-1:] != b"\n" or checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("damaged")
    return text


def _entry(text: bytes) -> Head | Entry:
    found = read_json(text.decode())
    if len(found) != 1:
        raise ValueError("no entry")
    (name, content), = found.items()
    if name not in _KINDS or not isinstance(content, dict):
        raise ValueError("an entry of another version")
    if name == "ended":
        content["cmd_result"] = _result(Command(content.get("cmd")), content.get("cmd_result"))
    entry: Head | Entry = from_wire(_KINDS[name], content)
    return entry


def _result(command: Command, content: object) -> object:
    """The result in an Ended; one that an older version wrote otherwise still says that the request has ended."""
    try:
        result = result_from_wire(command, content)
    except (ValueError, MigrationError):
        result = None
    if can_hold(command, result):
        return result
    facts = {"host": Phrase("this host"), "problem": Phrase("its result was stored by another version")}
    return Obstacle(code=ErrorCode.MESSAGE_INVALID, facts=facts)


@dataclass(frozen=True)
class Contents:
    """What was read of a journal: the entries that are known, and what is wrong with the rest."""

    head: Head | None
    entries: tuple[Entry, ...]
    intact: int
    """Bytes up to the end of the last intact line."""
    damaged: bool
    """Whether more is wrong than an unfinished last line: then it is not certain that all ids are known."""


def read_lines(content: bytes) -> Contents:
    """Read a journal. What follows its last intact line is what a crash left of the line being written."""
    head: Head | None = None
    entries: list[Entry] = []
    intact = position = 0
    damaged = suspect = False
    for line in content.splitlines(keepends=True):
        position += len(line)
        try:
            text = _text(line)
        except ValueError:
            # A crash leaves a line without its end, and only as the last one.
            suspect = True
            damaged = damaged or line.endswith(b"\n")
            continue
        damaged = damaged or suspect
        intact = position
        try:
            entry = _entry(text)
        except (ValueError, MigrationError):
            damaged = True
            continue
        if isinstance(entry, Head):
            head = entry
        else:
            entries.append(entry)
    return Contents(head, tuple(entries), intact, damaged or (head is None and bool(entries)))


# The file.


class Journal:
    """The open file, and what was in it. Only one process at a time has the journal of a directory."""

    def __init__(self, directory: Path, new_epoch: Callable[[], str]) -> None:
        """Read the journal in `directory`, or begin one there. `new_epoch` gives what no journal had before.

        Raises MigrationError JOURNAL_IN_USE or JOURNAL_UNUSABLE.
        """
        self.path = directory / JOURNAL_FILE
        self._directory = self._file = -1
        # Whether the file's name is on disk as well.
        self._named = True
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            self._lock()
            self._read(new_epoch)
        except OSError as error:
            self.close()
            path = error.filename if isinstance(error.filename, str) else str(self.path)
            facts = {"path": path, "reason": error.strerror or str(error)}
            raise MigrationError(ErrorCode.JOURNAL_UNUSABLE, facts) from error
        except MigrationError:
            self.close()
            raise

    def _lock(self) -> None:
        # On the directory, because the file is another one after replace().
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MigrationError(ErrorCode.JOURNAL_IN_USE, {"path": str(self.path)}) from error

    def _read(self, new_epoch: Callable[[], str]) -> None:
        content = self._content()
        contents = read_lines(content)
        self.entries = contents.entries
        if contents.head is None or contents.damaged:
            self.epoch = new_epoch()
            if content:
                self._set_aside()
            self.replace(self.entries)
            return
        self.epoch = contents.head.epoch
        self._size = contents.intact
        self._file = self._open(os.O_APPEND)
        if len(content) > self._size:
            log.warning("%s ends in an unfinished line of %d bytes, which a crash left: it is cut off", self.path,
                        len(content) - self._size)
            self._cut()

    def _content(self) -> bytes:
        try:
            # Without waiting for whoever writes into a pipe that somebody has put there.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return b""
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(self.path))
            return file.read()

    def _set_aside(self) -> None:
        aside = self.path.with_name(f"{JOURNAL_FILE}.damaged")
        # A second name; the first one is the damaged file's until the new file takes it.
        aside.unlink(missing_ok=True)
        os.link(self.path, aside)
        log.error("%s is damaged and kept as %s; %d intact entries of it are kept. Requests that were made for the "
                  "old journal are not begun", self.path, aside, len(self.entries))

    def _open(self, flags: int, suffix: str = "") -> int:
        path = self.path.with_name(JOURNAL_FILE + suffix)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, 0o600)

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries, on disk when it returns. Raises OSError; then none of them is in the file."""
        lines = b"".join(to_line(entry) for entry in entries)
        self._cut()
        try:
            _write(self._file, lines)
            self._name()
        except OSError:
            self._cut()
            raise
        self._size += len(lines)

    def _cut(self) -> None:
        """Take off the end what an earlier failure may have left there."""
        if os.fstat(self._file).st_size != self._size:
            os.ftruncate(self._file, self._size)

    def replace(self, entries: Sequence[Entry]) -> None:
        """Put a new file with just these entries in the place of the old one.

        Raises OSError; then the old one stays, or the new one is in its place and only its name may not be on disk.
        """
        lines = b"".join(to_line(entry) for entry in (Head(epoch=self.epoch), *entries))
        file = self._open(os.O_APPEND | os.O_TRUNC, ".new")
        try:
            _write(file, lines)
            os.replace(self.path.with_name(f"{JOURNAL_FILE}.new"), self.path)
        except OSError:
            os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size, self._named = file, len(lines), False
        self._name()

    def memory(self, now: float, wall: float, adopted: frozenset[str] = frozenset()) -> Memory:
        """What an agent that starts at these times remembers of its earlier lives; the file keeps no more than that.

        What was interrupted is written down as that, unless it is `adopted`.
        """
        memory = Memory(now, wall)
        memory.restore(self.entries, adopted)
        kept = memory.entries()
        if {(type(entry), entry.request_id) for entry in kept} != {
                (type(entry), entry.request_id) for entry in self.entries}:
            try:
                self.replace(kept)
            except OSError as error:
                log.warning("%s cannot be written anew, it goes on as it is: %s", self.path, error.strerror)
        return memory

    def _name(self) -> None:
        if not self._named:
            os.fsync(self._directory)
            self._named = True

    def close(self) -> None:
        """Close the file and let another process have it."""
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._directory = -1


def _write(file: int, content: bytes) -> None:
    """Write all of it and have it on disk. Raises OSError."""
    while content:
        content = content[os.write(file, content):]
    os.fdatasync(file)


@dataclass(frozen=True)
class _Work:
    entries: Sequence[Entry]
    done: Callable[[str | None], None]
    anew: bool


def _is_anew(work: _Work) -> bool:
    return work.anew


class JournalWriter:
    """Writes in a thread of its own, because a disk that is busy with a migration can take a second to answer.

    What has come together meanwhile is written at once.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def put(self, entries: Sequence[Entry], done: Callable[[str | None], None], *, anew: bool = False) -> None:
        """Have entries appended, or `anew` a file that holds just them. What is put first is written first.

        `done` is called in the writer's thread, with None or the reason why it could not be written.
        """
        self._queue.put(_Work(entries, done, anew))

    def close(self) -> None:
        """Write what has been put, then end the thread and close the journal."""
        self._queue.put(None)
        self._thread.join()
        self._journal.close()

    def _run(self) -> None:
        while True:
            together = [self._queue.get()]
            while not self._queue.empty():
                together.append(self._queue.get())
            for anew, group in itertools.groupby([each for each in together if each is not None], _is_anew):
                self._write(list(group), anew=anew)
            if None in together:
                return

    def _write(self, works: Sequence[_Work], *, anew: bool) -> None:
        if anew:
            # The last one holds whatever those before it do.
            self._do(works, lambda: self._journal.replace(works[-1].entries))
        else:
            self._do(works, lambda: self._journal.append([entry for work in works for entry in work.entries]))

    @staticmethod
    def _do(works: Sequence[_Work], write: Callable[[], None]) -> None:
        reason = None
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
        except Exception as error:
            log.exception("the journal cannot be written")
            reason = repr(error)
        for work in works:
            work.done(reason)
