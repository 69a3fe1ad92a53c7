"""The stream between the two ends of a copying: frames, the errors that cross in them, and looks at whether to stop.

Nothing here waits for the other end for longer than about half a second without a look.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from wire.errors import ErrorCode, MigrationError
from wire.message import read_json, write_json
from wire.records import Obstacle
from wire.schema import from_wire, to_wire

# The most that one frame carries of a file, in bytes.
BLOCK_LIMIT = 1 << 20
# How long one end waits for the other, or for its own disk, until it looks again whether it is to stop.
LOOK_SECONDS = 0.5
# How long an end that gives up stays to tell the other one why.
_PARTING_SECONDS = 0.5
_PROGRESS_BYTES = 1 << 20
# Kind, number of the file, offset, length: 0.5 % of the smallest range that a file system keeps apart.
_HEADER = struct.Struct("!BIQQ")
# What is read ahead: the headers and contents of some small ranges at once.
_AHEAD_BYTES = 64 << 10
# What the kernel holds between this end and ssh: with its own 208 KiB the two wait for each other all the time on a
# busy host. socket(7), asm-generic/socket.h: root may have more than the system's limit.
_STREAM_BYTES = 1 << 20
_SO_SNDBUFFORCE = 32
_ERROR_LIMIT = 64 << 10


@dataclass(frozen=True)
class Watch:
    """What an end of a copying tells its caller and asks it.

    `moved` gets the bytes of data that are at the destination so far, of all files, at most once per MiB; what was
    there before a broken connection counts as well. `reason_to_stop` is asked at least once a second.
    """

    moved: Callable[[int], None]
    reason_to_stop: Callable[[], MigrationError | None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class FrameKind(IntEnum):
    """What a frame says. Of each file: OFFER, STANDING, any number of KNOWN and DATA or one STAGED, END, COMPLETE."""

    OFFER = 1
    """The sender has this file: `length` bytes; `offset` is its time of change, only to be compared."""
    STANDING = 2
    """The receiver's answer: `length` is a Standing, `offset` how far the file is there."""
    KNOWN = 3
    """A range of data that the receiver has already."""
    DATA = 4
    """A range of data; its `length` bytes follow."""
    END = 5
    """The ranges are all told; the digest follows."""
    COMPLETE = 6
    """The receiver has the file, verified, on disk and at its name."""
    GOODBYE = 7
    """Every file is complete; said by the sender, then by the receiver."""
    ERROR = 8
    """This end gives up; the error follows, as JSON."""
    STAGED = 9
    """The whole file, all of it data, which lies in the staging directory under its number."""


class Standing(IntEnum):
    """How much of a file the destination has."""

    NOTHING = 0
    PART = 1
    """All that lies below the offset."""
    EXISTING = 2
    """A file of that length was there before the job."""
    COMPLETE = 3
    """All, from an earlier connection; the offset is the number of its bytes of data."""
    KEPT = 4
    """The same, of a file that was there before the job."""
    CHANGED = 5
    """The source's file is not the one of an earlier connection."""


@dataclass(frozen=True)
class Frame:
    """A frame without what follows it."""

    kind: FrameKind
    index: int
    offset: int
    length: int


class Progress:
    """Counts the bytes of data that are at the destination and tells them on, not too often."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._done = 0
        self._told = 0

    def add(self, count: int) -> None:
        """So many more."""
        self._done += count
        if self._done - self._told >= _PROGRESS_BYTES:
            self.tell()

    def tell(self) -> None:
        """Tell what was counted, if there is something new."""
        if self._done > self._told:
            self._told = self._done
            self._watch.moved(self._done)


class Link:
    """One end of the stream. A broken stream raises ConnectionError; what the other end met, its MigrationError."""

    def __init__(self, connection: socket.socket, watch: Watch, host: str) -> None:
        connection.setblocking(False)
        _widen(connection)
        self.host = host
        """This end's."""
        self._connection = connection
        self._watch = watch
        self._next_look = watch.clock()
        self._poll = select.poll()
        self._ahead = memoryview(bytearray(_AHEAD_BYTES))
        self._start = self._end = 0
        # What has been announced to the other end and not been sent.
        self._unsent = b""
        self._owed = 0
        self._was_told = False

    @contextmanager
    def conversation(self) -> Iterator[None]:
        """Tell the other end of a MigrationError that ends the block, and close the connection in any case."""
        try:
            yield
        except MigrationError as error:
            if not self._was_told:
                self._part(error)
            raise
        finally:
            self._connection.close()

    def look(self) -> None:
        """Raise the reason to stop if there is one; to be called as often as one likes."""
        if self._watch.clock() >= self._next_look:
            self.look_now()

    def look_now(self) -> None:
        """The same, without regard to when it was last done."""
        self._next_look = self._watch.clock() + LOOK_SECONDS
        reason = self._watch.reason_to_stop()
        if reason is not None:
            raise reason

    def malformed(self, problem: str) -> MigrationError:
        """The error for what the other end should never send."""
        return MigrationError(ErrorCode.MESSAGE_INVALID, {"host": self.host, "problem": problem})

    def send(self, kind: FrameKind, index: int = 0, offset: int = 0, length: int = 0, body: bytes = b"") -> None:
        """Send a frame, and what follows it."""
        self._unsent = _HEADER.pack(kind, index, offset, length) + body
        while self._unsent:
            try:
                self._unsent = self._unsent[self._connection.send(self._unsent):]
            except BlockingIOError:
                self._wait_to_send()
            except OSError as error:
                raise self._broken(error) from error

    def send_data(self, index: int, descriptor: int, offset: int, length: int) -> bool:
        """Send a frame with that range of a file, which goes from the page cache to the socket without a copy.

        Returns whether the file had all of it; if not, only an error can follow. Raises OSError for the file's sake.
        """
        self._owed = length
        self.send(FrameKind.DATA, index, offset, length)
        end = offset + length
        while self._owed:
            try:
                sent = os.sendfile(self._connection.fileno(), descriptor, end - self._owed, self._owed)
            except BlockingIOError:
                self._wait_to_send()
                continue
            except ConnectionError as error:
                raise self._broken(error) from error
            if not sent:
                return False
            self._owed -= sent
        return True

    def hear(self) -> None:
        """Raise the other end's error if one has come while this end was only sending."""
        self._poll.register(self._connection, select.POLLIN)
        if self._start < self._end or self._poll.poll(0):
            raise self.malformed(f"{self.receive().kind.name} where nothing was to be said")

    def expect(self, kind: FrameKind, index: int = 0) -> Frame:
        """The next frame, which has to be of this kind and about this file."""
        frame = self.receive()
        if (frame.kind, frame.index) != (kind, index):
            raise self.malformed(f"{frame.kind.name} of file {frame.index} where {kind.name} of file {index} was due")
        return frame

    def receive(self) -> Frame:
        """The next frame; if it is an error, raise that."""
        header = bytearray(_HEADER.size)
        self.receive_into(memoryview(header))
        number, index, offset, length = _HEADER.unpack(header)
        try:
            kind = FrameKind(number)
        except ValueError:
            raise self.malformed(f"a frame of unknown kind {number}") from None
        if kind is FrameKind.ERROR:
            raise self._error(length)
        return Frame(kind, index, offset, length)

    def receive_into(self, target: memoryview) -> None:
        """Fill the buffer with what comes next."""
        filled = 0
        while filled < len(target):
            if self._start == self._end and len(target) - filled >= _AHEAD_BYTES:
                filled += self._read(target[filled:])
                continue
            if self._start == self._end:
                self._start, self._end = 0, self._read(self._ahead)
            count = min(len(target) - filled, self._end - self._start)
            target[filled:filled + count] = self._ahead[self._start:self._start + count]
            self._start += count
            filled += count

    def _read(self, target: memoryview) -> int:
        while True:
            try:
                count = self._connection.recv_into(target)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except OSError as error:
                raise ConnectionError(error.strerror or str(error)) from error
            if not count:
                raise ConnectionError("the other end has closed the connection")
            return count

    def _error(self, length: int) -> MigrationError:
        """The error that follows in so many bytes."""
        if length > _ERROR_LIMIT:
            return self.malformed(f"an error of {length} bytes")
        body = bytearray(length)
        self.receive_into(memoryview(body))
        try:
            told = from_wire(Obstacle, read_json(body.decode()))
        except ValueError:
            return self.malformed("an error that is none")
        self._was_told = True
        return told.error()

    def _wait(self, events: int) -> int:
        """Wait until one of the events is there, and look in between; returns what is there, or 0 after a look."""
        self._poll.register(self._connection, events)
        ready = self._poll.poll(LOOK_SECONDS * 1000)
        if ready:
            self.look()
            return ready[0][1]
        self.look_now()
        return 0

    def _wait_to_send(self) -> None:
        """Wait until the stream takes more. The other end has nothing to say meanwhile but why it gives up."""
        if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
            self.hear()

    def _broken(self, error: OSError) -> ConnectionError:
        """The error for a stream that takes nothing any more; raises instead what the other end said last."""
        with contextlib.suppress(ConnectionError):
            while True:
                self.receive()
        return ConnectionError(error.strerror or str(error))

    def _part(self, error: MigrationError) -> None:
        """Tell the error, and let the other end read it: a connection closed at once would throw it away."""
        body = write_json(to_wire(Obstacle.of(error)))
        if len(body) > _ERROR_LIMIT:
            body = write_json(to_wire(Obstacle(code=error.code, facts={})))
        frame = _HEADER.pack(FrameKind.ERROR, 0, 0, len(body)) + body
        deadline = time.monotonic() + _PARTING_SECONDS
        with contextlib.suppress(OSError):
            self._connection.settimeout(_PARTING_SECONDS)
            # Frames only begin where the one before has ended.
            self._connection.sendall(self._unsent + bytes(self._owed) + frame)
            self._connection.shutdown(socket.SHUT_WR)
            while self._connection.recv_into(self._ahead) and time.monotonic() < deadline:
                pass


def _widen(connection: socket.socket) -> None:
    """Let the kernel hold more of what is sent, if this process may ask for it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _STREAM_BYTES)
