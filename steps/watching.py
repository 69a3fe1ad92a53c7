"""Follows a migration that libvirt runs: tells how far it is, helps it to converge, and ends it when it is cancelled,
when its tunnel is gone or when nothing moves any more.

What it goes by are the bytes that have crossed, not libvirt's percent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Optional, Protocol

from host.hypervisor import Hypervisor
from host.job_statistics import JobStatistics
from steps.context import StepContext
from steps.convergence import Advice, ConvergenceControl, Remedy, Stage
from wire.errors import ErrorCode, MigrationError
from wire.records import DiskProgress, Migration, Progress, fitting, post_copy_failed

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_STATISTICS_SECONDS = 0.5
# From the request QEMU takes a moment until it is in post-copy and libvirt knows. Ended in that moment, the guest might
# be on neither host.
_SWITCH_SECONDS = 2.0
# libvirt ends a job some time after it was asked to, and may have missed the first asking while it began.
_ABORT_AGAIN_SECONDS = 2.0
# No byte for so long, while a VM is locked: with the seconds of ending it below, that is over within the minute of
# design.md, section 6. A link that only lost packets has long gone on by then (TCP repeats after 0.2 to 12 s).
STALL_SECONDS = 35.0
# Before the first byte a QEMU over there may take its time to begin, with memory that is allocated beforehand.
_START_SECONDS = 120.0
# A job that goes on so long after it was asked to end has its tunnel closed, and then its connections.
_CLOSE_TUNNEL_SECONDS = 6.0
_CLOSE_CONNECTIONS_SECONDS = 10.0


class Running(Protocol):
    """A migration that runs: libvirt's call in a thread, or one that an earlier life of this agent has begun."""

    error: Optional[Exception]

    def is_alive(self) -> bool:
        """Whether it still runs."""

    def join(self, timeout: float) -> None:
        """Wait for its end, at most so many seconds."""


class Way(Protocol):
    """The tunnel that it goes through."""

    def ended(self) -> bool:
        """Whether it is gone."""

    def lost(self) -> MigrationError:
        """The error for that."""

    def keep(self) -> None:
        """Leave it open until close(), whatever becomes of this process."""

    def close(self) -> None:
        """Close it."""


@dataclass
class Watch:
    """Follows one migration.

    Once post-copy has begun the guest is on neither host alone: nothing is ended any more, whatever happens.
    """

    context: StepContext
    migration: Migration
    hypervisor: Hypervisor
    tunnel: Way
    cut_connections: Callable[[], object] = lambda: None
    """Cuts what QEMU itself has open to the destination: the last resort where no tunnel carries it."""
    begun: Callable[[], object] = lambda: None
    """Called once, when libvirt has begun to move something: both hosts have the domain then."""
    memory: int = 0
    """Bytes of memory that will follow the disks, as far as that is known: QEMU counts them only once they do."""
    control: ConvergenceControl = field(init=False)
    last: Optional[JobStatistics] = None
    _stopped_by: MigrationError | None = None
    _stop_since: float = 0.0
    _abort_at: float = 0.0
    _closed: int = 0
    _moved_at: float = 0.0
    _tell_at: float = 0.0
    _counted: tuple[int, ...] = ()
    _failed: frozenset[Remedy] = frozenset()

    def __post_init__(self) -> None:
        self.control = ConvergenceControl(self.migration.convergence, self.migration.timeout)

    def follow(self, running: Running, mirrored: tuple[str, ...]) -> None:
        """Return when it is done. Raises MigrationError with the reason that came first."""
        began = look_at = self._moved_at = time.monotonic()
        while running.is_alive():
            running.join(_LOOK_SECONDS)
            now = time.monotonic()
            if now >= look_at and running.is_alive():
                self._look(now, now - began, mirrored)
                look_at = now if self.control.passes_are_short() else now + _STATISTICS_SECONDS
            self._stop_if_asked(now)
        if running.error is not None:
            raise self._reason(running.error)

    # What ends it.

    def _stop_if_asked(self, now: float) -> None:
        if self._stopped_by is None:
            self._stopped_by, self._stop_since = self._reason_to_stop(now), now
        if self._stopped_by is None or self._may_be_split():
            return
        if now >= self._abort_at:
            log.warning("asking libvirt to end the migration: %s", self._stopped_by.message)
            self.hypervisor.abort_job(self.migration.domain)
            self._abort_at = now + _ABORT_AGAIN_SECONDS
        if self._closed == 0 and now - self._stop_since >= _CLOSE_TUNNEL_SECONDS:
            log.warning("the migration does not end: closing its tunnel")
            self._closed = 1
            self.tunnel.close()
        elif self._closed == 1 and now - self._stop_since >= _CLOSE_CONNECTIONS_SECONDS:
            log.warning("the migration does not end: cutting its connections")
            self._closed = 2
            self.cut_connections()

    def _may_be_split(self) -> bool:
        """Whether the guest may run at the destination without all of its memory: then nothing is ended."""
        split = self.hypervisor.is_split(self.migration.domain)
        return split if split is not None else self.control.stage is Stage.POST_COPY

    def _reason_to_stop(self, now: float) -> MigrationError | None:
        if self.context.cancellation.reason is not None:
            facts = {"domain": self.migration.domain, "reason": self.context.cancellation.reason}
            return MigrationError(ErrorCode.MIGRATION_CANCELLED, facts)
        if self.tunnel.ended():
            return self.tunnel.lost()
        if now - self._moved_at >= (STALL_SECONDS if self._counted else _START_SECONDS):
            return MigrationError(ErrorCode.MIGRATION_STALLED, {
                "domain": self.migration.domain, "host": self.context.host,
                "destination": self.migration.destination, "seconds": f"{now - self._moved_at:.0f}"})
        return None

    def _reason(self, error: Exception) -> Exception:
        """Why it failed: libvirt may notice first and name a closed socket; the admin needs the reason behind it."""
        if self.control.stage is Stage.PAUSED:
            # libvirt has let it go on already, unless the pause came after the end of the migration.
            self.hypervisor.resume_if_suspended(self.migration.domain)
        lost = self.tunnel.lost() if self.tunnel.ended() and not self._closed else None
        if self.control.stage is not Stage.POST_COPY or self.hypervisor.is_whole(self.migration.domain):
            return self._stopped_by or lost or error
        told = lost or error
        reason = told.facts.get("reason", told.message) if isinstance(told, MigrationError) else str(told).rstrip(".")
        return post_copy_failed(self.migration, reason)

    # What helps it.

    def _look(self, now: float, seconds: float, mirrored: tuple[str, ...]) -> None:
        """Take libvirt's figures, do what they call for, and report."""
        statistics = self.hypervisor.job_statistics(self.migration.domain)
        advice = self.control.look(statistics, seconds)
        if self._stopped_by is None:
            self._do(advice)
        if statistics is None:
            return
        self.last = statistics
        disks = self.hypervisor.mirrors(self.migration.domain, mirrored) if statistics.mirroring else ()
        if self.control.stage is not Stage.POST_COPY and self.hypervisor.is_split(self.migration.domain):
            # Begun by an earlier life of this agent, or by a person.
            self.control.stage = Stage.POST_COPY
            self.tunnel.keep()
        counted = (statistics.disk_done, statistics.memory_done, statistics.passes, *(each.done for each in disks))
        if any(counted) and counted != self._counted:
            if not self._counted:
                self.begun()
            # Before the first byte libvirt tells of a job too, with nothing counted.
            self._counted, self._moved_at = counted, now
        if now >= self._tell_at:
            self._tell_at = now + _STATISTICS_SECONDS
            self.tell(statistics, disks)

    def tell(self, statistics: JobStatistics, disks: tuple[DiskProgress, ...] = ()) -> None:
        """Report how far it is."""
        self.context.progress(replace(as_progress(statistics, self.control, self.memory), disks=fitting(disks)))

    def _do(self, advice: Advice) -> None:
        domain = self.migration.domain
        try:
            if advice.remedy is Remedy.ABORT:
                facts = {"domain": domain, "seconds": str(self.migration.timeout)}
                self._stopped_by, self._stop_since = (
                    MigrationError(ErrorCode.MIGRATION_TIMEOUT, facts), time.monotonic())
            elif advice.remedy is Remedy.SET_DOWNTIME:
                self.hypervisor.set_downtime_limit(domain, advice.downtime)
            elif advice.remedy is Remedy.SUSPEND:
                self.hypervisor.suspend(domain)
            elif advice.remedy is Remedy.START_POST_COPY:
                self.hypervisor.start_post_copy(domain)
                # Without its way between the hosts the guest would be lost.
                self.tunnel.keep()
                self._abort_at = time.monotonic() + _SWITCH_SECONDS
        except MigrationError as error:
            # It may just have ended. Otherwise it is advised, and tried, again.
            if advice.remedy not in self._failed:
                log.warning("VM %s: cannot %s: %s", domain, advice.remedy.value, error.message)
                self._failed |= {advice.remedy}
            return
        self.control.did(advice)
        if advice.news:
            log.warning("VM %s: %s", domain, advice.news)


def as_progress(statistics: JobStatistics, control: ConvergenceControl, memory: int = 0) -> Progress:
    """libvirt's counts as one figure: disk and memory together, since both cross the same link.

    `memory` is what is expected of it until libvirt counts it: or else the end of the disks would pass for the end.
    """
    done = statistics.disk_done + statistics.memory_done
    # Pages of zeros are part of its size and do not cross: what is left tells better than what there is in all.
    of_memory = statistics.memory_done + statistics.memory_left if statistics.passes else statistics.memory_total
    total = statistics.disk_total + (of_memory or memory) if statistics.disk_total else of_memory
    return Progress(
        phase=control.phase(), done=done, total=max(done, total),
        memory=control.memory())
