"""Which file one is, so that what a job made is told from whatever else lies at the same path later: also after an
inode number was given again, and after the file system was mounted again or the host was started again.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass

# linux/fs.h: _IOR('v', 1, long), of which file systems fill an int: the inode's generation, new whenever an inode
# number is given again. A file handle of NFS tells a file by the same two.
_FS_IOC_GETVERSION = 0x80087601


@dataclass(frozen=True)
class FileIdentity:
    """A file, by its numbers. A generation of None is one that the file system does not tell."""

    device: int
    inode: int
    generation: int | None = None

    @classmethod
    def of(cls, descriptor: int) -> FileIdentity:
        """That of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino, _generation(descriptor))

    @classmethod
    def at(cls, path: str, *, follow: bool = False) -> FileIdentity:
        """That of what lies at the path; a link there is only followed if asked to. Raises OSError."""
        status = os.stat(path, follow_symlinks=follow)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            # To open a device may do something.
            return cls(status.st_dev, status.st_ino)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
        try:
            return cls.of(descriptor)
        finally:
            os.close(descriptor)

    def is_at(self, path: str, *, follow: bool = False) -> bool:
        """Whether that file is what lies at the path now."""
        try:
            now = FileIdentity.at(path, follow=follow)
        except OSError:
            return False
        if now.inode != self.inode:
            return False
        if self.generation is None or now.generation is None:
            return now.device == self.device
        # Not the device: its number may be another one after the file system was mounted again.
        return now.generation == self.generation


def remove_if_same(path: str, identity: FileIdentity) -> None:
    """Remove the file at the path if it still is this one."""
    if identity.is_at(path):
        os.unlink(path)


def is_open_elsewhere(descriptor: int) -> bool:
    """Whether another process has the block device open that is open here."""
    device, own = os.fstat(descriptor).st_rdev, str(os.getpid())
    for process in os.listdir("/proc"):
        if not process.isdigit() or process == own:
            continue
        # A process may end meanwhile.
        with contextlib.suppress(OSError), os.scandir(f"/proc/{process}/fd") as opened:
            for entry in opened:
                with contextlib.suppress(OSError):
                    # By its name first: to look at a file on another host may take for ever.
                    if not os.readlink(entry.path).startswith("/dev/"):
                        continue
                    status = entry.stat()
                    if stat.S_ISBLK(status.st_mode) and status.st_rdev == device:
                        return True
    return False


def _generation(descriptor: int) -> int | None:
    answer = array.array("i", [0, 0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, _FS_IOC_GETVERSION, answer)
        # Zero is what those say that keep none.
        return answer[0] or None
    return None
