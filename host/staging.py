"""Small files by SFTP: the source uploads each into the job's staging directory, the destination's agent takes it over.

What SFTP does not take goes through the stream of host/copy_link.py, as all larger files do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Optional, Protocol, cast

import paramiko

from host.copy_link import LOOK_SECONDS
from host.ssh import Login, Tunnel, subsystem
from wire.phrase import Phrase

log = logging.getLogger(__name__)

# Up to here paramiko's SFTP takes no more than 0.06 s (78 MB/s, design.md section 4).
SMALL_BYTES = 4 << 20

Before = Callable[[int], None]
"""Is told how many bytes are to go next: may wait, and raises the reason to stop. With 0 it only looks."""


class Upload(Protocol):
    """What brings a small file to the destination."""

    def put(self, name: str, descriptor: int, length: int, before: Before) -> bool:
        """Bring the file there as `name`. False if that cannot be done this way; raises what `before` raises."""


def is_small(status: os.stat_result) -> bool:
    """Whether a file is one for SFTP: a plain one without holes, which SFTP does not know."""
    return stat.S_ISREG(status.st_mode) and 0 < status.st_size <= min(SMALL_BYTES, status.st_blocks * 512)


class SftpUpload:
    """Uploads through OpenSSH's own login, opened for the first file and closed at the end of a `with`.

    OpenSSH and not paramiko logs in: the same configuration, keys and known hosts as for the tunnel.
    """

    def __init__(self, login: Login, directory: str) -> None:
        self._login = login
        self._directory = directory
        self._open = contextlib.ExitStack()
        self._client: Optional[paramiko.SFTPClient] = None
        self._stream: Optional[_Stream] = None
        self._failed = False

    def __enter__(self) -> SftpUpload:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType],
    ) -> None:
        self._open.close()

    def put(self, name: str, descriptor: int, length: int, before: Before) -> bool:
        """Upload the file. False if SFTP is not to be had there, which is logged once."""
        if self._failed:
            return False
        try:
            self._put(name, _Pieces(descriptor, before), before)
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._failed = True
            log.warning(
                "no SFTP to %s@%s, the stream takes small files too: %s",
                self._login.user, self._login.destination, str(error) or type(error).__name__)
            return False
        return True

    def _put(self, name: str, pieces: _Pieces, before: Before) -> None:
        if self._client is None or self._stream is None:
            child, connection = self._open.enter_context(subsystem(self._login, "sftp"))
            self._stream = _Stream(connection, child, before)
            # Of a channel it uses just what a _Stream has.
            self._client = paramiko.SFTPClient(cast("paramiko.Channel", self._stream))
        self._stream.before = before
        # It only calls read().
        self._client.putfo(cast("IO[bytes]", pieces), f"{self._directory}/{name}")


class _Pieces:
    """A file as putfo() reads it."""

    def __init__(self, descriptor: int, before: Before) -> None:
        self._descriptor = descriptor
        self._before = before
        self._offset = 0

    def read(self, size: int) -> bytes:
        """The next piece; empty at the end."""
        piece = os.pread(self._descriptor, size, self._offset)
        self._before(len(piece))
        self._offset += len(piece)
        return piece


class _Stream:
    """What paramiko talks through: no wait in it is longer than half a second without a look."""

    def __init__(self, connection: socket.socket, child: Tunnel, before: Before) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._child = child
        self.before = before

    def send(self, data: bytes) -> int:
        """Send some of it."""
        self._wait(select.POLLOUT)
        return self._connection.send(data)

    def recv(self, size: int) -> bytes:
        """What comes next; empty if nothing will."""
        self._wait(select.POLLIN)
        data = self._connection.recv(size)
        if not data:
            raise ConnectionError(self._child.lost().facts["reason"])
        return data

    def recv_ready(self) -> bool:
        """Whether something has come."""
        return self._ready(select.POLLIN, 0)

    def get_name(self) -> str:
        """What paramiko calls it in the log."""
        return "sftp"

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def _wait(self, events: int) -> None:
        while not self._ready(events, LOOK_SECONDS):
            self.before(0)

    def _ready(self, events: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._connection, events)
        return bool(poll.poll(seconds * 1000))


@contextmanager
def staged(directory: str, name: str, length: int) -> Iterator[Callable[[memoryview], None]]:
    """A file that was uploaded, read piece by piece, and removed at the end of the `with`.

    Another user wrote it: it has to be a plain file of this length, and it may change while it is read. Raises OSError.
    """
    within = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=within)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != length:
                raise OSError(0, Phrase("what was uploaded for it is no file of {length} bytes", {
                    "length": str(length)}))
            yield lambda piece: _fill(file.fileno(), piece)
        os.unlink(name, dir_fd=within)
    finally:
        os.close(within)


def _fill(descriptor: int, piece: memoryview) -> None:
    filled = 0
    while filled < len(piece):
        count = os.readv(descriptor, [piece[filled:]])
        if not count:
            raise OSError("what was uploaded for it has become shorter")
        filled += count
