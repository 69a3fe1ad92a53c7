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
    marks: list[_Mark] = []
    arrived, now = 0, 0.0
    try:
        arrived = connection.recv_into(buffer)
        if not arrived:
            return None
        begin = now = time.monotonic()
        connection.settimeout(seconds * _SLOW)
        while arrived < at_most and (now < begin + seconds or (
                now < begin + seconds * _SLOW and not _told_enough(marks, _Mark(now, arrived), seconds))):
            got = connection.recv_into(buffer)
            if not got:
                break
            now = time.monotonic()
            arrived += got
            warm = now > begin + seconds * _WARM_UP or arrived > at_most * _WARM_UP
            if warm and (not marks or arrived - marks[-1].arrived >= at_most * _PIECE):
                marks.append(_Mark(now, arrived))
    except OSError:
        # As far as it came.
        now = time.monotonic()
    return _rate(marks, _Mark(now, arrived))


class _Mark(NamedTuple):
    """When how many bytes had arrived."""

    time: float
    arrived: int


def _told_enough(marks: Sequence[_Mark], end: _Mark, seconds: float) -> bool:
    return bool(marks) and end.arrived > marks[0].arrived and end.time - marks[0].time >= seconds * _LEAST_PART


def _rate(marks: Sequence[_Mark], end: _Mark) -> int | None:
    """The rate from the first mark on, bytes per second: of the piece in the middle, where there are some."""
    rates = [
        (later.arrived - mark.arrived) / (later.time - mark.time)
        for mark, later in zip(marks, marks[1:]) if later.time > mark.time]
    if len(rates) >= _ENOUGH_PIECES:
        return round(statistics.median(rates))
    if not marks or end.arrived <= marks[0].arrived or end.time <= marks[0].time:
        return None
    return round((end.arrived - marks[0].arrived) / (end.time - marks[0].time))


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
