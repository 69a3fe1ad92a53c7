"""Both ends of a copying in one process, with a relay between them that counts, cuts and flips."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from host import copy_link
from host.copy_link import Watch
from host.file_identity import FileIdentity
from host.file_ranges import data_ranges
from host.file_receiving import Receiver
from host.file_sending import Outgoing, Sent, send_files
from host.file_targets import Incoming
from host.staging import Upload
from wire.errors import ErrorCode, MigrationError

SOURCE, DESTINATION = "192.0.2.11", "192.0.2.12"
ME = (os.getuid(), os.getgid())
CANCELLED = MigrationError(ErrorCode.MIGRATION_CANCELLED, {"domain": "web", "reason": "Ctrl-C"})
QUIET = Watch(lambda done: None, lambda: None)
KIB, MIB = 1 << 10, 1 << 20
# The wire format, written down once more: an agent of the same version is at the other end, maybe of another build.
HEADER = struct.Struct("!BIQQ")
OFFER, STANDING, KNOWN, DATA, END, COMPLETE, GOODBYE, ERROR = range(1, 9)
NOTHING, PART, EXISTING, DONE, KEPT, CHANGED = range(6)


def noise(length: int) -> bytes:
    """Bytes that are the same in each run."""
    return random.Random(length).randbytes(length)  # noqa: S311 - nothing secret


@dataclass
class Relay:
    """What lies between the two ends: carries both ways, counts, and does harm to what the sender says."""

    cut: int | None = None
    """Break the connection after so many bytes."""
    flip: int | None = None
    """Change that byte."""
    cut_answers: int | None = None
    """Break it after so many bytes the other way."""
    carried: int = 0

    def run(self, sender: socket.socket, receiver: socket.socket) -> None:
        answers = threading.Thread(target=self._carry, args=(receiver, sender, self.cut_answers, None))
        answers.start()
        self.carried = self._carry(sender, receiver, self.cut, self.flip)
        answers.join()
        sender.close()
        receiver.close()

    def _carry(self, origin: socket.socket, target: socket.socket, cut: int | None, flip: int | None) -> int:
        carried = 0
        with contextlib.suppress(OSError):
            while data := bytearray(origin.recv(256 * KIB)):
                if flip is not None and carried <= flip < carried + len(data):
                    data[flip - carried] ^= 1
                if cut is not None and carried + len(data) >= cut:
                    target.sendall(data[:cut - carried])
                    origin.shutdown(socket.SHUT_RDWR)
                    target.shutdown(socket.SHUT_RDWR)
                    break
                target.sendall(data)
                carried += len(data)
            target.shutdown(socket.SHUT_WR)
        return carried


@dataclass
class Copied:
    """How it ended at either end."""

    sent: Future[list[Sent]]
    served: Future[bool]

    @property
    def codes(self) -> tuple[ErrorCode, ErrorCode]:
        """Both ends' errors."""
        both = self.sent.exception(), self.served.exception()
        assert isinstance(both[0], MigrationError), both
        assert isinstance(both[1], MigrationError), both
        assert dict(both[0].facts) == dict(both[1].facts)
        return both[0].code, both[1].code

    @property
    def facts(self) -> dict[str, str]:
        """The facts of both ends' error."""
        error = self.served.exception()
        assert isinstance(error, MigrationError)
        assert "?" not in error.message + error.hint
        return dict(error.facts)


@dataclass
class Pair:
    """Two directories for two hosts, and what the destination's ledger was told."""

    source: Path
    destination: Path
    staging: Path
    made: list[tuple[str, int]] = field(default_factory=list)
    when_made: Callable[[str], None] = lambda path: None

    def put(self, name: str, *pieces: tuple[int, bytes], length: int | None = None) -> Path:
        """A file of the source with these pieces of data."""
        with open(self.source / name, "wb") as file:
            for offset, content in pieces:
                file.seek(offset)
                file.write(content)
            if length is not None:
                file.truncate(length)
        return self.source / name

    def write_down(self, path: str, identity: FileIdentity) -> None:
        self.made.append((Path(path).name, identity.inode))
        self.when_made(path)

    def receiver(self, *names: str, watch: Watch = QUIET) -> Receiver:
        files = [Incoming(str(self.destination / name), ME, 0o640) for name in names]
        return Receiver(files, DESTINATION, self.write_down, watch, str(self.staging))

    def copy(self, *names: str, receiver: Receiver | None = None, relay: Relay | None = None, watch: Watch = QUIET,
             limit: int = 0, upload: Upload | None = None) -> Copied:
        """Run both ends until both have ended."""
        files = [Outgoing(str(self.source / name)) for name in names]
        receiver = receiver or self.receiver(*names)
        sending, left = socket.socketpair()
        right, receiving = socket.socketpair()
        with ThreadPoolExecutor(3) as pool:
            carrying = pool.submit((relay or Relay()).run, left, right)
            copied = Copied(
                pool.submit(send_files, sending, files, SOURCE, watch, limit, upload),
                pool.submit(receiver.serve, receiving))
        carrying.result()
        assert sending.fileno() == receiving.fileno() == -1
        return copied

    def same(self, *names: str) -> bool:
        """Whether these files, and no others, are there as they are at the source, holes included."""
        return self.names() == sorted(names) and all(
            (self.source / name).read_bytes() == (self.destination / name).read_bytes()
            and ranges(self.source / name) == ranges(self.destination / name) for name in names)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.destination.iterdir())


def make_pair(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Two empty directories. Waits become short, and little fits between the two ends."""
    monkeypatch.setattr(copy_link, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(copy_link, "_PARTING_SECONDS", 0.05)
    monkeypatch.setattr(copy_link, "_STREAM_BYTES", 64 * KIB)
    pair = Pair(directory / "source", directory / "destination", directory / "staging")
    for made in (pair.source, pair.destination, pair.staging):
        made.mkdir()
    return pair


def ranges(path: Path) -> list[tuple[int, int]]:
    """Where the file has data."""
    with open(path, "rb") as file:
        return list(data_ranges(file.fileno(), path.stat().st_size, lambda: None))


def contents(path: Path) -> list[bytes]:
    """The bytes of each of its ranges."""
    with open(path, "rb") as file:
        return [os.pread(file.fileno(), end - begin, begin) for begin, end in ranges(path)]


FRAGMENTS = tuple((offset, noise(4096)) for offset in range(0, 2 * MIB, 8192))
