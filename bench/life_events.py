"""When libvirt of each node says that a domain was suspended, resumed or stopped, and what that makes of a migration.

`virsh domjobinfo` counts a migration up to the moment in which the destination has finished it. What the source's
libvirt does then, before its call returns, is part of the migration too: above all it waits for its QEMU to end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import libvirt

from tests.lab import Host

_SETTLE_SECONDS = 0.1
# (event, detail) of libvirt's lifecycle events. Left to itself libvirt resumes the guest where it has arrived; one that
# is to be handed over arrives paused, and somebody resumes it a moment later.
_LEFT = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED)
_GONE = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED)
_ARRIVED = (
    (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_MIGRATED),
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED))


@dataclass(frozen=True)
class LifeEvent:
    """One event: seconds of the monotonic clock, the node's name, the event and its detail."""

    time: float
    host: str
    kind: tuple[int, int]


@dataclass(frozen=True)
class Switchover:
    """How a migration ended. Seconds of the monotonic clock: the guest stood still at the source, had arrived at the
    destination, went on there; libvirt at the source was done.
    """

    left: float
    arrived: float
    resumed: float
    done: float

    def parts(self, ticked: float) -> dict[str, float]:
        """How long the guest waited for what, until its next tick; milliseconds."""
        moments = [self.left, self.arrived, self.resumed, ticked]
        names = ("arriving", "handing over", "first tick")
        return {name: round((later - before) * 1000, 1) for name, before, later in zip(names, moments, moments[1:])}


def switchover(events: Sequence[LifeEvent], source: str, destination: str) -> Switchover:
    """Out of what both nodes have said. Raises ValueError if that is not the end of a migration."""
    def last(host: str, kinds: Sequence[tuple[int, int]]) -> LifeEvent:
        found = [event for event in events if event.host == host and event.kind in kinds]
        if not found:
            raise ValueError(f"{host} did not say {kinds}: {events}")
        return found[-1]

    arrived = last(destination, _ARRIVED)
    resumed = next((event for event in events if event.host == destination and event.time >= arrived.time
                    and event.kind[0] == libvirt.VIR_DOMAIN_EVENT_RESUMED), arrived)
    return Switchover(last(source, [_LEFT]).time, arrived.time, resumed.time, last(source, [_GONE]).time)


@dataclass
class LifeEvents:
    """Listens on some nodes for the length of a `with`."""

    hosts: Sequence[Host]
    domain: str
    seen: list[LifeEvent] = field(default_factory=list)
    _connections: list[tuple[Any, int]] = field(default_factory=list)

    def __enter__(self) -> LifeEvents:
        _run_loop()
        for host in self.hosts:
            # The host's own socket, as it is reached from outside.
            socket = f"/proc/{host.init.pid}/root/run/libvirt/libvirt-sock"
            connection = libvirt.open(f"qemu+unix:///system?socket={socket}")
            number = connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._note, host.name)
            self._connections.append((connection, number))
        return self

    def __exit__(self, *_what: object) -> None:
        # What was said last is still on its way.
        time.sleep(_SETTLE_SECONDS)
        for connection, number in self._connections:
            connection.domainEventDeregisterAny(number)
            connection.close()

    def _note(self, _connection: object, domain: Any, event: int, detail: int, host: str) -> None:
        if domain.name() == self.domain:
            self.seen.append(LifeEvent(time.monotonic(), host, (event, detail)))


_loop: threading.Thread | None = None


def _run_loop() -> None:
    """Have libvirt's event loop run, in a thread of its own, from before the first connection on."""
    global _loop
    if _loop is not None:
        return
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    _loop = threading.Thread(target=run, name="libvirt-events", daemon=True)
    _loop.start()
