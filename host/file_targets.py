"""What the destination's end of a copying writes to: a new file beside its final name, or a block device in place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from host.copy_link import BLOCK_LIMIT
from host.file_identity import FileIdentity, remove_if_same
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

# linux/fs.h: _IO(0x12, 127), offset and length in bytes; the device zeroes them, or the kernel writes zeros.
_BLKZEROOUT = 0x127F
# So much at once, since nobody can stop the kernel meanwhile.
_ZERO_PIECE = 16 << 20

MadeCallback = Callable[[str, FileIdentity], None]


@dataclass(frozen=True)
class Incoming:
    """Where a file is to be, and whose it is then. A block device below /dev is written in place, and stays whose."""

    path: str
    owner: tuple[int, int]
    mode: int
    ending: str = ".part"

    @property
    def part(self) -> str:
        """Its name while it is incomplete."""
        return self.path + self.ending


class Target(Protocol):
    """What is written to."""

    descriptor: int
    holes: bool
    """What is not written reads as zeros, and is looked at in the end."""

    def skip(self, begin: int, end: int, look: Callable[[], None]) -> None:
        """Let this range read as zeros; `look` is called now and then."""

    def put_in_place(self) -> None:
        """Give it its owner, mode and name."""

    def close(self) -> None:
        """Close it, whatever became of it."""


@contextmanager
def writing(path: str, host: str) -> Iterator[None]:
    """Turn what the file system says of this path into MigrationError FILE_NOT_WRITTEN."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        reason = Phrase("{reason} (on {host})", {"reason": error.strerror or str(error), "host": host})
        raise MigrationError(ErrorCode.FILE_NOT_WRITTEN, {"path": path, "reason": reason}) from error


def is_device(path: str) -> bool:
    """Whether a block device lies at the path, which leads below /dev."""
    with contextlib.suppress(OSError):
        return os.path.realpath(path).startswith("/dev/") and stat.S_ISBLK(os.stat(path).st_mode)
    return False


def existing_length(incoming: Incoming, host: str) -> int | None:
    """The length of the file that has the final name already; None if there is none.

    Raises MigrationError PATH_TAKEN for anything but a plain file.
    """
    try:
        status = os.lstat(incoming.path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise taken(incoming.path, host)
    return status.st_size


def taken(path: str, host: str) -> MigrationError:
    """The error for a path at which something lies that is not the job's."""
    return MigrationError(ErrorCode.PATH_TAKEN, {"path": path, "host": host})


class ExistingFile:
    """A file that was there before the job: read, and never touched."""

    holes = True

    def __init__(self, incoming: Incoming) -> None:
        self.descriptor = os.open(incoming.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def skip(self, begin: int, end: int, look: Callable[[], None]) -> None:
        """What lies there is only looked at."""

    def put_in_place(self) -> None:
        """It is."""

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)


class Device:
    """A block device, written in place. Raises MigrationError FILE_NOT_WRITTEN if it is too small."""

    holes = False

    def __init__(self, incoming: Incoming, length: int, host: str) -> None:
        # Exclusively: not one that is mounted, or part of another device.
        self.descriptor = os.open(incoming.path, os.O_RDWR | os.O_EXCL)
        size = os.lseek(self.descriptor, 0, os.SEEK_END)
        if size < length:
            os.close(self.descriptor)
            reason = Phrase("the device holds {size} bytes, {length} are needed (on {host})", {
                "size": str(size), "length": str(length), "host": host})
            raise MigrationError(ErrorCode.FILE_NOT_WRITTEN, {"path": incoming.path, "reason": reason})

    def skip(self, begin: int, end: int, look: Callable[[], None]) -> None:
        """Zero the range: anything may lie there."""
        for offset in range(begin, end, _ZERO_PIECE):
            look()
            count = min(_ZERO_PIECE, end - offset)
            try:
                fcntl.ioctl(self.descriptor, _BLKZEROOUT, struct.pack("=QQ", offset, count))
            except OSError as error:
                # Not whole sectors, or a device that cannot.
                if error.errno not in (errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP):
                    raise
                for piece in range(offset, offset + count, BLOCK_LIMIT):
                    write_all(self.descriptor, memoryview(bytes(min(BLOCK_LIMIT, offset + count - piece))), piece)

    def put_in_place(self) -> None:
        """It is."""

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)


class PartFile:
    """A new file that gets its final name when it is complete and verified."""

    holes = True

    def __init__(self, incoming: Incoming, host: str, made: MadeCallback) -> None:
        self._incoming = incoming
        self._host = host
        self._made = made
        self._name = os.path.basename(incoming.part)
        path = os.path.dirname(incoming.path)
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            facts = {"path": path, "host": host, "reason": error.strerror or str(error)}
            raise MigrationError(ErrorCode.DIRECTORY_MISSING, facts) from error
        self.descriptor = -1

    def make(self, length: int) -> FileIdentity:
        """Make it, of this length and without any data, and have it written down; returns which file it is.

        Raises OSError, MigrationError PATH_TAKEN, FILE_NOT_WRITTEN. Leaves nothing behind then.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            self.descriptor = os.open(self._name, flags, 0o600, dir_fd=self._directory)
        except FileExistsError as error:
            raise taken(self._incoming.part, self._host) from error
        identity = FileIdentity.of(self.descriptor)
        try:
            self._write_down(self._incoming.part, identity)
            os.ftruncate(self.descriptor, length)
        except BaseException:
            remove_if_same(self._incoming.part, identity)
            raise
        return identity

    def make_again(self, identity: FileIdentity) -> None:
        """Open the one that was made in an earlier connection. Raises OSError, also if it is another one now."""
        self.descriptor = os.open(self._name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._directory)
        if FileIdentity.of(self.descriptor) != identity:
            raise OSError("somebody has put another file in its place")

    def skip(self, begin: int, end: int, look: Callable[[], None]) -> None:
        """What was never written is a hole."""

    def put_in_place(self) -> None:
        """Give it its owner, its mode and its final name, which is never taken from another file.

        Raises OSError, MigrationError PATH_TAKEN, FILE_NOT_WRITTEN.
        """
        os.fchown(self.descriptor, *self._incoming.owner)
        os.fchmod(self.descriptor, self._incoming.mode)
        os.fsync(self.descriptor)
        # Before it has that name: should the host die in between, nothing is there that nobody knows of. The ledger
        # tells the file by its inode, so that another one at that name is never taken for the job's.
        self._write_down(self._incoming.path, FileIdentity.of(self.descriptor))
        name = os.path.basename(self._incoming.path)
        try:
            # By the descriptor, whatever has become of the part's name; with a directory's descriptor, without which
            # Python calls link(), and that does not follow.
            os.link(f"/proc/self/fd/{self.descriptor}", name, src_dir_fd=self._directory, dst_dir_fd=self._directory,
                    follow_symlinks=True)
        except FileExistsError as error:
            raise taken(self._incoming.path, self._host) from error
        if FileIdentity.of(self.descriptor).is_at(self._incoming.part):
            os.unlink(self._name, dir_fd=self._directory)
        os.fsync(self._directory)

    def close(self) -> None:
        """Close it, and its directory."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        os.close(self._directory)

    def _write_down(self, path: str, identity: FileIdentity) -> None:
        try:
            self._made(path, identity)
        except OSError as error:
            reason = Phrase("{reason} (on {host})", {"reason": error.strerror or str(error), "host": self._host})
            facts = {"path": str(error.filename) if error.filename else Phrase("the ledger"), "reason": reason}
            raise MigrationError(ErrorCode.FILE_NOT_WRITTEN, facts) from error


def write_all(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of it there. Raises OSError."""
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
