"""Measures how much a link carries: one end sends for a moment, the other counts what arrives.

Through a unix socket that SSH forwards, or over TCP: the way that the migration itself will take.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

# libvirt's migration_port_min and the number of ports from there (qemu.conf), which a firewall has to let in.
_FIRST_PORT, _PORTS = 49152, 64
_CHUNK = 256 * 1024
# How long the two ends wait for each other: a login takes some of it.
_MEET_SECONDS = 5.0
_RETRY_SECONDS = 0.03
# What arrives first, of the time or of the bytes, went through empty buffers, and through TCP's slow start: of 40 MiB
# at 500 MiB/s the first 6 came with less than half of that (measured).
_WARM_UP = 0.5
# A pause of either host while little is sent must not pass for a slow link: the rest is looked at in such pieces.
_PIECE = 1 / 16
_ENOUGH_PIECES = 3
# A link that carries little brings a piece now and then (at 1 Mbit/s up to a second may pass between two, measured):
# it is waited for up to so many times the time, until what arrived was on its way for this part of it.
_SLOW = 4
_LEAST_PART = 0.25
# Nor is a slow link waited for until the end once enough pieces, one behind the other, came at the same rate: at
# 100 Mbit/s that takes half the time. TCP's slow start doubles its rate from one round trip to the next: no two pieces
# are the same then.
_STEADY_PART = 0.4
_SAME = 0.9


def port_of(job_id: str) -> int:
    """The TCP port on which a job's link is tried: one of libvirt's for migrations, the same on both ends."""
    return _FIRST_PORT + int(job_id, 16) % _PORTS


def listen_at(address: tuple[str, int]) -> socket.socket:
    """A TCP socket that listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(1)
    except OSError:
        server.close()
        raise
    return server


@contextmanager
def listen_on(path: str) -> Iterator[socket.socket]:
    """A unix socket that listens for the length of a `with`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        try:
            # The kernel takes the umask off, and with it what the directory's access list allows.
            os.chmod(path, 0o660)
            server.listen(1)
            yield server
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def receive(server: socket.socket, seconds: float, at_most: int = 0) -> int | None:
    """Wait for the other end and count for `seconds` from its first byte, or until `at_most` bytes are there (0: all).

    Returns bytes per second; None if nobody came, or too little to tell.
    """
    server.settimeout(_MEET_SECONDS)
    try:
        connection, _ = server.accept()
    except OSError:
        # Python 3.9's time-out is no TimeoutError yet.
        return None
    with connection:
        connection.settimeout(_MEET_SECONDS)
        with contextlib.suppress(OSError):
            connection.recv(1)
        # A sign of life, without which a forwarded socket looks open although nobody is at its other end.
        connection.sendall(b"r")
        return _count(connection, seconds, at_most or sys.maxsize) if seconds else None


def _count(connection: socket.socket, seconds: float, at_most: int) -> int | None:
    buffer = bytearray(_CHUNK)
    now = 0.0
    counting: Counting | None = None
    try:
        while counting is None or counting.goes_on():
            got = connection.recv_into(buffer)
            if not got:
                break
            now = time.monotonic()
            if counting is None:
                counting = Counting(seconds, at_most, now, got)
                connection.settimeout(seconds * _SLOW)
            else:
                counting.add(now, got)
    except OSError:
        # As far as it came.
        now = time.monotonic()
    return counting.rate(now) if counting is not None else None


class _Mark(NamedTuple):
    """When how many bytes had arrived."""

    time: float
    arrived: int


class Counting:
    """What has arrived since the first `arrived` bytes, and whether it is enough: `seconds` or `at_most` bytes are."""

    def __init__(self, seconds: float, at_most: int, now: float, arrived: int) -> None:
        """Times are the monotonic clock's."""
        self._seconds = seconds
        self._at_most = at_most
        self._end = _Mark(now, arrived)
        self._all = [self._end]
        self._warm: list[_Mark] = []

    def add(self, now: float, size: int) -> None:
        """So many bytes more have arrived."""
        self._end = _Mark(now, self._end.arrived + size)
        warm = now > self._all[0].time + self._seconds * _WARM_UP or self._end.arrived > self._at_most * _WARM_UP
        for marks in (self._all, self._warm) if warm else (self._all,):
            if not marks or self._end.arrived - marks[-1].arrived >= self._at_most * _PIECE:
                marks.append(self._end)

    def goes_on(self) -> bool:
        """Whether more has to arrive."""
        passed = self._end.time - self._all[0].time
        if self._end.arrived >= self._at_most or (passed >= self._seconds * _STEADY_PART and self._steady()):
            return False
        return passed < self._seconds or (passed < self._seconds * _SLOW and not self._has_told())

    def _steady(self) -> list[float]:
        """The rates of the last pieces, if they are the same and nothing has come behind them."""
        rates = _rates(self._all)[-_ENOUGH_PIECES:] if self._end == self._all[-1] else []
        return rates if len(rates) == _ENOUGH_PIECES and min(rates) >= max(rates) * _SAME else []

    def _has_told(self) -> bool:
        return bool(self._warm) and self._end.arrived > self._warm[0].arrived and (
            self._end.time - self._warm[0].time >= self._seconds * _LEAST_PART)

    def rate(self, now: float) -> int | None:
        """Bytes per second until now: of the piece in the middle, where there are some; None if too little came."""
        rates = _rates(self._warm)
        if len(rates) < _ENOUGH_PIECES:
            rates = self._steady() if now == self._end.time else []
        if rates:
            return round(statistics.median(rates))
        if not self._warm or self._end.arrived <= self._warm[0].arrived or now <= self._warm[0].time:
            return None
        return round((self._end.arrived - self._warm[0].arrived) / (now - self._warm[0].time))


def _rates(marks: Sequence[_Mark]) -> list[float]:
    """Bytes per second of each piece."""
    return [
        (later.arrived - mark.arrived) / (later.time - mark.time)
        for mark, later in zip(marks, marks[1:]) if later.time > mark.time]


def meet(family: int, address: str | tuple[str, int]) -> socket.socket:
    """Connect to the other end, again and again until it listens. Raises OSError with the last reason."""
    deadline = time.monotonic() + _MEET_SECONDS
    while True:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            connection.connect(address)
            # The first word is this end's: sshd, until a session has begun, sends small packets as Nagle has it, and
            # without anything that goes the other way TCP acknowledges its opening 40 ms late (measured).
            connection.sendall(b"s")
            if connection.recv(1):
                return connection
            reason = OSError(0, Phrase("nobody listens there"))
        except OSError as error:
            reason = error
        connection.close()
        if time.monotonic() > deadline:
            raise reason
        time.sleep(_RETRY_SECONDS)


def send(connection: socket.socket, seconds: float, limit: int, at_most: int = 0) -> None:
    """Send until the other end has had enough, at most `limit` bytes per second and `at_most` bytes (0: no limit)."""
    block = os.urandom(_CHUNK)
    begin = time.monotonic()
    deadline = begin + seconds + _MEET_SECONDS
    connection.settimeout(_MEET_SECONDS)
    sent = 0
    with contextlib.suppress(OSError):
        while (now := time.monotonic()) < deadline:
            if limit and sent > limit * (now - begin):
                time.sleep(_CHUNK / limit)
                continue
            if at_most and sent >= at_most:
                # What is on its way still has to arrive.
                connection.recv(1)
                return
            sent += connection.send(block)


def ports_closed(host: str, destination: str, port: int, error: OSError) -> MigrationError:
    """The error for a port that cannot be reached."""
    reason = error.strerror or str(error) or Phrase("no answer")
    return MigrationError(ErrorCode.PORTS_CLOSED, {
        "host": host, "destination": destination, "port": str(port), "reason": reason})
