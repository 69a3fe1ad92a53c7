"""Where a file has data, and the digest of it: computed in a thread of its own, close behind the one that copies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import stat
import struct
import threading
from collections.abc import Callable, Iterator

from host.copy_link import BLOCK_LIMIT, LOOK_SECONDS

DIGEST_BYTES = hashlib.sha256().digest_size
# How many ranges the digest may lag behind: 16 GiB of a dense file, some 2 MB of memory. So much because a file of
# which a large part was there before a broken connection is read from its beginning while the rest already flows.
_LAG = 16384
# Small enough to stay in the processor's cache between read() and the digest.
_PIECE = 256 << 10
# A file's dirty pages are handed to the disk in such pieces: left to the kernel they pile up to a tenth of the memory.
_WRITEBACK = 32 << 20
_PAGE = 4096
_ZEROS = bytes(BLOCK_LIMIT)
_RANGE = struct.Struct("!QQ")


def is_zero(view: memoryview) -> bool:
    """Whether these bytes, at most BLOCK_LIMIT of them, are all zero."""
    return _ZEROS.startswith(view)


def data_ranges(descriptor: int, length: int, look: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """Where the file or block device has data: begin and end of each range, in ascending order, one at a time.

    What the file system does not tell is found by reading. `look` is called now and then. Raises OSError.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not _tells_holes(descriptor, length, status.st_blocks * 512):
        yield from _ranges_by_reading(descriptor, length, look)
        return
    position = 0
    while (begin := next_data(descriptor, position, length)) < length:
        position = min(os.lseek(descriptor, begin, os.SEEK_HOLE), length)
        yield begin, position


def next_data(descriptor: int, position: int, end: int) -> int:
    """Where data begins at or after the position; `end` if not before it. Raises OSError."""
    try:
        return min(os.lseek(descriptor, position, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        if error.errno == errno.EINVAL:
            return position
        raise


def _tells_holes(descriptor: int, length: int, allocated: int) -> bool:
    """Whether the file system tells where the file has holes. One that cannot may also say that all is data."""
    try:
        return os.lseek(descriptor, 0, os.SEEK_HOLE) < length or allocated >= length
    except OSError as error:
        return error.errno == errno.ENXIO


def _ranges_by_reading(descriptor: int, length: int, look: Callable[[], None]) -> Iterator[tuple[int, int]]:
    buffer = memoryview(bytearray(BLOCK_LIMIT))
    position = 0
    while position < length:
        look()
        count = os.preadv(descriptor, [buffer[:length - position]], position)
        if not count:
            return
        begin = 0
        for page in range(0, count, _PAGE):
            if is_zero(buffer[page:min(page + _PAGE, count)]):
                if begin < page:
                    yield position + begin, position + page
                begin = page + _PAGE
        if begin < count:
            yield position + begin, position + count
        position += count


class Follower:
    """The digest of one file: SHA-256 over offset, length and content of each range, and the file's length at last.

    It reads the file itself, in a thread of its own. With `whole` it looks between the ranges too, and what is not
    zero there makes the digest another one. With `written` the file is this end's own: it goes to the disk meanwhile,
    and has arrived there once the digest is told. `look_now` is called while somebody has to wait.
    """

    def __init__(self, descriptor: int, look_now: Callable[[], None], whole: bool, written: bool) -> None:
        self._look_now = look_now
        self._whole = whole
        self._written = written
        self._descriptor = os.dup(descriptor)
        self._ranges: queue.Queue[tuple[int, int] | None] = queue.Queue(_LAG)
        self._sha = hashlib.sha256()
        self._buffer = memoryview(bytearray(_PIECE))
        self._error: OSError | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="file-digest", daemon=True)
        self._thread.start()

    def follow(self, offset: int, length: int) -> None:
        """Take in the next range, which lies behind the last one. Raises OSError if the file could not be read."""
        while self._error is None:
            try:
                self._ranges.put((offset, length), timeout=LOOK_SECONDS)
                return
            except queue.Full:
                self._look_now()
        raise self._error

    def digest(self, length: int) -> bytes:
        """Wait for the digest of the whole file of this length. Raises OSError if it could not be read or written."""
        self.follow(length, 0)
        while self._thread.is_alive():
            self._thread.join(LOOK_SECONDS)
            self._look_now()
        if self._error is not None:
            raise self._error
        return self._sha.digest()

    def abandon(self) -> None:
        """Let the thread end at its next piece; may be called at any time."""
        self._abandoned = True
        with contextlib.suppress(queue.Full):
            self._ranges.put_nowait(None)

    def _run(self) -> None:
        try:
            self._follow_to_the_end()
        except OSError as error:
            self._error = error
        finally:
            os.close(self._descriptor)

    def _follow_to_the_end(self) -> None:
        reached = begun = 0
        while (following := self._ranges.get()) is not None and not self._abandoned:
            offset, length = following
            if self._whole:
                self._take_strays(reached, offset)
            self._take(offset, length)
            reached = offset + length
            if self._written and reached - begun >= _WRITEBACK:
                # Begins to write them, and does not wait for it.
                os.posix_fadvise(self._descriptor, begun, reached - begun, os.POSIX_FADV_DONTNEED)
                begun = reached
            if not length:
                break
        if self._written and not self._abandoned:
            os.fsync(self._descriptor)

    def _take(self, offset: int, length: int) -> None:
        self._sha.update(_RANGE.pack(offset, length))
        end = offset + length
        while offset < end and not self._abandoned:
            piece = self._buffer[:end - offset]
            count = os.preadv(self._descriptor, [piece], offset)
            if not count:
                raise OSError(errno.EIO, "it has become shorter while it was read")
            self._sha.update(piece[:count])
            offset += count

    def _take_strays(self, begin: int, end: int) -> None:
        """Take in what is not zero where the file should have no data."""
        while (begin := next_data(self._descriptor, begin, end)) < end and not self._abandoned:
            piece = self._buffer[:end - begin]
            count = os.preadv(self._descriptor, [piece], begin)
            if not count:
                return
            if not is_zero(piece[:count]):
                self._take(begin, count)
            begin += count
