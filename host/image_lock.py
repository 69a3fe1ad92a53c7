"""Keeps QEMU from opening images for writing while they are copied, with the locks that QEMU itself takes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence

from wire.errors import ErrorCode, MigrationError

# QEMU's block/file-posix.c: a byte for each permission, and one for each that is not shared with others. Whoever wants
# to write asks whether somebody holds the byte of "do not share writing", BLK_PERM_WRITE being bit 1.
_UNSHARED_WRITE = 200 + 1
_TAKEN_WRITE = 100 + 1
# Linux's fcntl.h; Python names them from 3.9 on only where the C library does.
_OFD_SETLK, _OFD_GETLK = 37, 36
# struct flock with 64 bit: type, whence, start, length, pid.
_FLOCK = "hhqqi"


@contextlib.contextmanager
def image_locks(paths: Sequence[str], host: str) -> Iterator[None]:
    """Have nobody write to these images for the length of a `with`: a VM that is started meanwhile does not start.

    Raises MigrationError FILE_CHANGED for one that is being written to already.
    """
    with contextlib.ExitStack() as opened:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            _lock(descriptor, path, host)
        yield


def _lock(descriptor: int, path: str, host: str) -> None:
    fcntl.fcntl(descriptor, _OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, _UNSHARED_WRITE, 1, 0))
    # A lock to write would be refused if anybody held one on that byte, to read as well.
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _TAKEN_WRITE, 1, 0)
    kind = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, _OFD_GETLK, asked))[0]
    if kind != fcntl.F_UNLCK:
        raise MigrationError(ErrorCode.FILE_CHANGED, {"path": path, "host": host})
