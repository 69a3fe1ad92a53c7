"""The source's end of copying whole files: what has data in them goes through a stream socket, at a given rate.

The other end is host/file_receiving.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from host.copy_link import BLOCK_LIMIT, LOOK_SECONDS, Frame, FrameKind, Link, Progress, Standing, Watch
from host.file_ranges import Follower, data_ranges
from host.staging import Upload, is_small
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

# With a limit the link shall be free for others several times a second.
_LIMITED_BLOCK = 256 << 10
# How much time that a sleep took too long is made up for.
_CATCH_UP_SECONDS = 0.1
_TIME_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Outgoing:
    """A file or block device to copy."""

    path: str


@dataclass(frozen=True)
class Sent:
    """What became of a file. Lengths are in bytes."""

    path: str
    length: int
    data: int
    """How many of its bytes this call sent; holes, and what was there already, are not among them."""
    kept: bool
    """The destination had the same file before the job."""


def send_files(connection: socket.socket, files: Sequence[Outgoing], host: str, watch: Watch,
               limit: int = 0, upload: Upload | None = None) -> list[Sent]:
    """Copy the files to the Receiver at the other end, `limit` bytes per second at most (0: as fast as it goes).

    Small ones go by `upload`, if there is one, others through the stream. `host` is this one, for errors. Returns when
    all files are verified and at their places there. The connection is closed in any case. Raises ConnectionError if
    it broke: called again with another one, the copying goes on where it was. Raises MigrationError FILE_UNREADABLE,
    FILE_CHANGED, MESSAGE_INVALID, the watch's reason to stop, or what the other end met: PATH_TAKEN,
    FILE_NOT_WRITTEN, DIRECTORY_MISSING, COPY_DAMAGED or its own reason to stop.
    """
    link = Link(connection, watch, host)
    progress, pace = Progress(watch), _Pace(link, watch, limit)
    with link.conversation():
        sent = [
            _Sending(link, index, file.path, progress, pace, upload).run() for index, file in enumerate(files)]
        # All files are complete: whether the other end hears that we know changes nothing.
        with contextlib.suppress(ConnectionError):
            link.send(FrameKind.GOODBYE)
            link.expect(FrameKind.GOODBYE)
    return sent


class _Pace:
    """Spreads blocks evenly over time."""

    def __init__(self, link: Link, watch: Watch, limit: int) -> None:
        self._link = link
        self._watch = watch
        self._limit = limit
        self._due = watch.clock()
        self.block = _LIMITED_BLOCK if limit else BLOCK_LIMIT

    def wait_for(self, count: int) -> None:
        """Wait until so many bytes may go."""
        if not self._limit:
            return
        while (early := self._due - self._watch.clock()) > 0:
            self._watch.sleep(min(early, LOOK_SECONDS))
            self._link.look()
        self._due = max(self._due, self._watch.clock() - _CATCH_UP_SECONDS) + count / self._limit


class _Sending:
    """One file on its way."""

    def __init__(self, link: Link, index: int, path: str, progress: Progress, pace: _Pace,
                 upload: Upload | None) -> None:
        self._link = link
        self._index = index
        self._path = path
        self._progress = progress
        self._pace = pace
        self._upload = upload
        self._sent = 0

    def run(self) -> Sent:
        """Send what the other end lacks."""
        with self._readable(), _opened(self._path) as descriptor:
            before = os.fstat(descriptor)
            length = os.lseek(descriptor, 0, os.SEEK_END)
            self._link.send(FrameKind.OFFER, self._index, _time_of(before), length)
            frame = self._link.expect(FrameKind.STANDING, self._index)
            standing, reach = self._standing(frame, length), frame.offset
            if standing is Standing.CHANGED:
                raise self._changed()
            if standing in (Standing.COMPLETE, Standing.KEPT):
                self._progress.add(reach)
            else:
                with self._followed(descriptor, before, length) as follower:
                    if standing is Standing.NOTHING and self._stage(descriptor, before):
                        self._announce_staged(length, follower)
                    else:
                        known = length if standing is Standing.EXISTING else reach
                        self._send_ranges(descriptor, length, known, follower)
                self._link.expect(FrameKind.COMPLETE, self._index)
            self._progress.tell()
            return Sent(self._path, length, self._sent, standing in (Standing.EXISTING, Standing.KEPT))

    def _standing(self, frame: Frame, length: int) -> Standing:
        try:
            standing = Standing(frame.length)
        except ValueError:
            raise self._link.malformed(f"an unknown standing {frame.length} of file {self._index}") from None
        if frame.offset > length:
            raise self._link.malformed(f"{frame.offset} bytes of file {self._index}, which has {length}")
        return standing

    def _stage(self, descriptor: int, before: os.stat_result) -> bool:
        """Upload a small file; False if it is to go through the stream."""
        if self._upload is None or not is_small(before):
            return False
        return self._upload.put(str(self._index), descriptor, before.st_size, self._may_send)

    def _may_send(self, count: int) -> None:
        self._pace.wait_for(count)
        self._link.look()

    @contextmanager
    def _followed(self, descriptor: int, before: os.stat_result, length: int) -> Iterator[Follower]:
        """What follows the ranges that the block sends; the digest of them all goes behind them."""
        follower = Follower(descriptor, self._link.look_now, whole=False, written=False)
        try:
            yield follower
            digest = follower.digest(length)
            self._refuse_change(before, descriptor)
            self._link.send(FrameKind.END, self._index, 0, len(digest), digest)
        except ConnectionError:
            raise
        except OSError:
            # A file that was cut short cannot be read to its end.
            self._refuse_change(before, descriptor)
            raise
        finally:
            follower.abandon()

    def _announce_staged(self, length: int, follower: Follower) -> None:
        """Say that the file was uploaded."""
        self._link.send(FrameKind.STAGED, self._index, 0, length)
        self._count(0, length, follower)

    def _send_ranges(self, descriptor: int, length: int, reach: int, follower: Follower) -> None:
        """Send the ranges, without their data below `reach`."""
        for begin, end in data_ranges(descriptor, length, self._link.look):
            known = min(end, reach)
            if begin < known:
                self._link.send(FrameKind.KNOWN, self._index, begin, known - begin)
                follower.follow(begin, known - begin)
                self._progress.add(known - begin)
            self._send_range(descriptor, max(begin, reach), end, follower)

    def _send_range(self, descriptor: int, begin: int, end: int, follower: Follower) -> None:
        for offset in range(begin, end, self._pace.block):
            count = min(self._pace.block, end - offset)
            self._may_send(count)
            self._link.hear()
            if not self._link.send_data(self._index, descriptor, offset, count):
                raise self._changed()
            self._count(offset, count, follower)

    def _count(self, offset: int, count: int, follower: Follower) -> None:
        """Data that has been sent."""
        follower.follow(offset, count)
        self._sent += count
        self._progress.add(count)

    def _refuse_change(self, before: os.stat_result, descriptor: int) -> None:
        """Raise MigrationError FILE_CHANGED if the file is not as it was."""
        now = os.fstat(descriptor)
        if (now.st_size, _time_of(now)) != (before.st_size, _time_of(before)):
            raise self._changed()

    def _changed(self) -> MigrationError:
        return MigrationError(ErrorCode.FILE_CHANGED, {"path": self._path, "host": self._link.host})

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Raise MigrationError FILE_UNREADABLE for what the file's file system says."""
        try:
            yield
        except ConnectionError:
            raise
        except OSError as error:
            reason = Phrase("{reason} (on {host})", {
                "reason": error.strerror or str(error), "host": self._link.host})
            raise MigrationError(ErrorCode.FILE_UNREADABLE, {"path": self._path, "reason": reason}) from error


def _time_of(status: os.stat_result) -> int:
    """When a file was changed last, as the wire has it. A block device's node tells nothing of the kind."""
    return status.st_mtime_ns & _TIME_MASK if stat.S_ISREG(status.st_mode) else 0


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """The file, open for reading. Raises OSError, also for what is neither a file nor a block device."""
    # Opening a pipe would wait for somebody who writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise OSError("it is neither a file nor a block device")
        yield descriptor
    finally:
        os.close(descriptor)
