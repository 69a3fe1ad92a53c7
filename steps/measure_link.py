"""MEASURE_LINK: for a moment the source sends and the destination counts, the way that disk and memory will take.

The source counts meanwhile what the guest writes to its memory and its disks. Nothing stays behind on either host.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from constant import DomainState, Transport
from host import link_rate, orphans
from host.hypervisor import Hypervisor
from host.job_files import JobSockets, socket_directory
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.records import LinkArguments, LinkReport

_MIB = 1024 * 1024
# libvirt counts for whole seconds.
_DIRTY_SECONDS = 1
_DIRTY_LIMIT_SECONDS = 1.8


def run(context: StepContext, arguments: LinkArguments) -> LinkReport:
    """This host's part of it. Raises MigrationError LINK_NOT_MEASURED, PORTS_CLOSED or one of SSH's errors."""
    try:
        if context.host == arguments.destination:
            rate = _receive(context, arguments)
            if rate is not None and arguments.bandwidth:
                # What comes in bursts, after a pause of either host, may look like more than was sent.
                rate = min(rate, arguments.bandwidth * _MIB)
            return LinkReport(rate=rate)
        return _send(context, arguments)
    except OSError as error:
        raise MigrationError(ErrorCode.LINK_NOT_MEASURED, {
            "host": arguments.source, "destination": arguments.destination,
            "reason": error.strerror or str(error)}) from error


def _receive(context: StepContext, arguments: LinkArguments) -> int | None:
    seconds = arguments.milliseconds / 1000
    if arguments.transport is Transport.TCP:
        with link_rate.listen_at((arguments.destination, link_rate.port_of(arguments.job_id))) as server:
            return link_rate.receive(server, seconds, arguments.at_most)
    path = JobSockets.named(arguments.job_id).probed
    # Of an agent that was ended in the middle of this.
    orphans.clear(os.path.dirname(path))
    with socket_directory(os.path.dirname(path), (0, 0), [arguments.user], context.host), \
            link_rate.listen_on(path) as server:
        return link_rate.receive(server, seconds, arguments.at_most)


def _send(context: StepContext, arguments: LinkArguments) -> LinkReport:
    if arguments.destination not in context.destinations:
        raise MigrationError(ErrorCode.DESTINATION_NOT_ALLOWED, {
            "host": context.host, "address": arguments.destination, "path": str(context.destinations.path)})
    with Hypervisor.open(context.host) as hypervisor:
        writing = _Writing.of(hypervisor, arguments)
        with _connected(context, hypervisor, arguments) as connection:
            link_rate.send(
                connection, arguments.milliseconds / 1000, arguments.bandwidth * _MIB, arguments.at_most)
        return writing.report() if writing is not None else LinkReport()


@dataclass
class _Writing:
    """What the guest writes from now on."""

    hypervisor: Hypervisor
    domain: str
    began: float
    written: int
    counting: bool

    @classmethod
    def of(cls, hypervisor: Hypervisor, arguments: LinkArguments) -> _Writing | None:
        """Begin to count, if it is about a guest that runs."""
        domain = arguments.domain
        if domain is None or not arguments.milliseconds or hypervisor.state(domain) is not DomainState.RUNNING:
            return None
        began = time.monotonic()
        return cls(hypervisor, domain, began, hypervisor.written_bytes(domain),
                   hypervisor.start_dirty_rate(domain, _DIRTY_SECONDS))

    def report(self) -> LinkReport:
        """What was counted until now."""
        dirty_rate = self._dirty_rate() if self.counting else None
        # A fast link is measured within a moment, too short for what a guest writes now and then.
        time.sleep(max(0.0, self.began + _DIRTY_SECONDS - time.monotonic()))
        seconds = time.monotonic() - self.began
        written = self.hypervisor.written_bytes(self.domain) - self.written
        return LinkReport(dirty_rate=dirty_rate, write_rate=round(written / seconds))

    def _dirty_rate(self) -> int | None:
        """Bytes per second; None if libvirt does not come to an end with it."""
        while (rate := self.hypervisor.dirty_rate(self.domain)) is None:
            if time.monotonic() > self.began + _DIRTY_LIMIT_SECONDS:
                return None
            time.sleep(0.02)
        return rate


@contextlib.contextmanager
def _connected(
    context: StepContext, hypervisor: Hypervisor, arguments: LinkArguments,
) -> Iterator[socket.socket]:
    """A connection to the destination's end, the way that the migration will take."""
    if arguments.transport is Transport.TCP:
        port = link_rate.port_of(arguments.job_id)
        family = socket.AF_INET6 if ":" in arguments.destination else socket.AF_INET
        try:
            connection = link_rate.meet(family, (arguments.destination, port))
        except OSError as error:
            raise link_rate.ports_closed(context.host, arguments.destination, port, error) from error
        with connection:
            yield connection
        return
    with context.tunnels.of_link(context.host, hypervisor, arguments), \
            link_rate.meet(socket.AF_UNIX, JobSockets.named(arguments.job_id).probe) as connection:
        yield connection
