"""The destination's end of copying whole files: written, read back, compared and only then put at their names.

The other end is host/file_sending.py.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from host.copy_link import BLOCK_LIMIT, Frame, FrameKind, Link, Progress, Standing, Watch
from host.file_identity import FileIdentity, remove_if_same
from host.file_ranges import DIGEST_BYTES, Follower
from host.file_targets import (
    Device,
    ExistingFile,
    Incoming,
    MadeCallback,
    PartFile,
    Target,
    existing_length,
    is_device,
    taken,
    write_all,
    writing,
)
from host.staging import SMALL_BYTES, staged
from wire.errors import ErrorCode, MigrationError

# Small enough to stay in the processor's cache between recv() and write().
_PIECE = 256 << 10
_LENGTH_LIMIT = (1 << 63) - 1


@dataclass
class _State:
    """What is known of a file from one connection to the next."""

    incoming: Incoming
    offer: tuple[int, int] | None = None
    """Time of change and length of the source's file."""
    part: FileIdentity | None = field(default=None, repr=False)
    reach: int = 0
    """All below is written."""
    data: int = 0
    standing: Standing = Standing.NOTHING

    @property
    def complete(self) -> bool:
        return self.standing in (Standing.COMPLETE, Standing.KEPT)


class Receiver:
    """Receives files at the paths that its caller names, over one connection or, as they break, over several.

    `host` is this one, for errors. `made` is called with each name and the file's status: for the name with .part
    when that was just made, and for the final name just before the file, the same inode, gets it. `staging` is the
    directory that the sender may upload small files to.
    """

    def __init__(self, files: Sequence[Incoming], host: str, made: MadeCallback, watch: Watch,
                 staging: str) -> None:
        self._states = [_State(file) for file in files]
        self._host = host
        self._made = made
        self._watch = watch
        self._staging = staging
        self._buffer = memoryview(bytearray(_PIECE))

    @property
    def complete(self) -> bool:
        """Whether all files are at their places, whether or not the sender got to know it."""
        return all(state.complete for state in self._states)

    def received(self) -> list[str]:
        """The paths of the files that are complete and were not there before."""
        return [state.incoming.path for state in self._states if state.standing is Standing.COMPLETE]

    def serve(self, connection: socket.socket) -> bool:
        """Receive until all files are complete and the sender knows it: True. False if the connection broke before.

        After False it is to be called again with the next connection. This one is closed in any case. Raises
        MigrationError PATH_TAKEN, FILE_NOT_WRITTEN, DIRECTORY_MISSING, COPY_DAMAGED, MESSAGE_INVALID, the watch's
        reason to stop, or what the sender met; then nothing is left but what was complete before, and it is over.
        """
        link = Link(connection, self._watch, self._host)
        progress = Progress(self._watch)
        try:
            with link.conversation():
                for index, state in enumerate(self._states):
                    _Receiving(link, index, state, progress, self._buffer, self._made, self._staging).run()
                    progress.tell()
                link.expect(FrameKind.GOODBYE)
                with contextlib.suppress(ConnectionError):
                    link.send(FrameKind.GOODBYE)
        except ConnectionError:
            return False
        except MigrationError:
            self._discard()
            raise
        return True

    def _discard(self) -> None:
        """Remove what is incomplete: it may fill the disk."""
        for state in self._states:
            if state.part is not None and not state.complete:
                with contextlib.suppress(OSError):
                    remove_if_same(state.incoming.part, state.part)


class _Receiving:
    """One file on its way, in one connection."""

    def __init__(self, link: Link, index: int, state: _State, progress: Progress, buffer: memoryview,
                 made: MadeCallback, staging: str) -> None:
        self._link = link
        self._index = index
        self._state = state
        self._incoming = state.incoming
        self._progress = progress
        self._buffer = buffer
        self._made = made
        self._staging = staging
        self._length = 0
        self._known = 0
        # The end of the last range.
        self._position = 0
        self._data = 0

    def run(self) -> None:
        """Receive what is not here."""
        offer = self._link.expect(FrameKind.OFFER, self._index)
        self._length = offer.length
        if self._length > _LENGTH_LIMIT:
            raise self._link.malformed(f"a file of {self._length} bytes")
        if self._state.offer not in (None, (offer.offset, offer.length)):
            self._tell_standing(Standing.CHANGED, 0)
            # The sender knows how that file is called there, and says so.
            self._link.receive()
            raise self._link.malformed("more of a file that has changed")
        self._state.offer = (offer.offset, offer.length)
        if self._state.complete:
            self._tell_standing(self._state.standing, self._state.data)
            self._progress.add(self._state.data)
            return
        with writing(self._incoming.path, self._link.host):
            standing, target = self._open()
            try:
                self._receive(standing, target)
            finally:
                target.close()
        self._state.data = self._data
        self._state.standing = Standing.KEPT if standing is Standing.EXISTING else Standing.COMPLETE
        self._link.send(FrameKind.COMPLETE, self._index)

    def _tell_standing(self, standing: Standing, reach: int) -> None:
        self._link.send(FrameKind.STANDING, self._index, reach, standing)

    def _open(self) -> tuple[Standing, Target]:
        """What the file is written to, or compared with."""
        state, incoming, host = self._state, self._incoming, self._link.host
        partly = Standing.PART if state.reach else Standing.NOTHING
        if is_device(incoming.path):
            return partly, Device(incoming, self._length, host)
        length = existing_length(incoming, host)
        if length is not None and (length != self._length or state.part is not None):
            raise taken(incoming.path, host)
        if length is not None:
            return Standing.EXISTING, ExistingFile(incoming)
        target = PartFile(incoming, host, self._made)
        try:
            if state.part is None:
                state.part = target.make(self._length)
            else:
                target.make_again(state.part)
        except BaseException:
            target.close()
            raise
        return partly, target

    def _receive(self, standing: Standing, target: Target) -> None:
        """Take in all ranges and the digest, and put the file in place if it is right."""
        self._known = self._length if standing is Standing.EXISTING else self._state.reach
        self._tell_standing(standing, self._state.reach)
        follower = Follower(
            target.descriptor, self._link.look_now, whole=target.holes, written=standing is not Standing.EXISTING)
        try:
            while (frame := self._link.receive()).kind is not FrameKind.END:
                self._check(frame)
                self._take_in(frame, target)
                follower.follow(frame.offset, frame.length)
                self._position = frame.offset + frame.length
                self._data += frame.length
                self._link.look()
            theirs = self._receive_digest(frame)
            target.skip(max(self._position, self._known), self._length, self._link.look)
            ours = follower.digest(self._length)
        finally:
            follower.abandon()
        if not hmac.compare_digest(ours, theirs):
            raise self._different(standing)
        target.put_in_place()

    def _check(self, frame: Frame) -> None:
        """Raise MigrationError MESSAGE_INVALID for a range that cannot be."""
        end = frame.offset + frame.length
        if frame.kind is FrameKind.DATA:
            fits = self._known <= frame.offset and frame.length <= BLOCK_LIMIT
        elif frame.kind is FrameKind.STAGED:
            fits = not self._known and frame.length == self._length <= SMALL_BYTES
        else:
            fits = frame.kind is FrameKind.KNOWN and end <= self._known
        if not fits or frame.index != self._index or not frame.length or not (
                self._position <= frame.offset and end <= self._length):
            raise self._link.malformed(
                f"{frame.kind.name} of file {frame.index} at {frame.offset}, {frame.length} bytes, where file "
                f"{self._index} has {self._length} bytes, {self._known} known, and is at {self._position}")

    def _take_in(self, frame: Frame, target: Target) -> None:
        """Write the range, wherever it comes from."""
        if frame.kind is FrameKind.DATA:
            self._write(frame, target, self._link.receive_into)
        elif frame.kind is FrameKind.STAGED:
            with staged(self._staging, str(self._index), frame.length) as read_into:
                self._write(frame, target, read_into)
        else:
            self._progress.add(frame.length)

    def _write(self, frame: Frame, target: Target, read_into: Callable[[memoryview], None]) -> None:
        target.skip(max(self._position, self._known), frame.offset, self._link.look)
        offset, end = frame.offset, frame.offset + frame.length
        while offset < end:
            piece = self._buffer[:end - offset]
            read_into(piece)
            write_all(target.descriptor, piece, offset)
            offset += len(piece)
            self._state.reach = offset
            self._progress.add(len(piece))

    def _receive_digest(self, frame: Frame) -> bytes:
        if (frame.index, frame.offset, frame.length) != (self._index, 0, DIGEST_BYTES):
            raise self._link.malformed(f"END of file {frame.index} with {frame.length} bytes")
        digest = bytearray(DIGEST_BYTES)
        self._link.receive_into(memoryview(digest))
        return bytes(digest)

    def _different(self, standing: Standing) -> MigrationError:
        """The error for a file that is not as the source's."""
        if standing is Standing.EXISTING:
            return taken(self._incoming.path, self._link.host)
        return MigrationError(ErrorCode.COPY_DAMAGED, {"path": self._incoming.path, "host": self._link.host})
