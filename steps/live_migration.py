"""LIVE_MIGRATION: the SSH tunnel, then libvirt's own peer-to-peer live migration with storage through it."""

from __future__ import annotations

import logging
import time
import urllib.parse
from dataclasses import dataclass, field, replace
from typing import Optional

from constant import LIBVIRT_SOCKETS, CopyStorage, DomainState, Transport
from host.domain_edit import Changes, edit
from host.domain_xml import describe, inserted_media
from host.hypervisor import Hypervisor, MigrationTarget, MigrationThread
from host.job_files import JobSockets, socket_directory
from host.job_statistics import JobStatistics
from host.ssh import Login, Tunnel, tunnel
from steps.context import StepContext
from steps.convergence import Advice, ConvergenceControl, Remedy, Stage
from steps.domain_changes import changes_for
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.placement import is_device
from wire.records import Migration, MigrationReport, Progress, StepArguments, fitting

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_STATISTICS_SECONDS = 0.5
# libvirt ends a job some time after it was asked to, and may have missed the first asking while it began.
_ABORT_AGAIN_SECONDS = 2.0


def run(context: StepContext, arguments: StepArguments) -> MigrationReport:
    """Move the running domain. Raises MigrationError; the domain then runs here, as libvirt left it."""
    migration = arguments.migration
    if migration.destination not in context.destinations:
        raise MigrationError(ErrorCode.DESTINATION_NOT_ALLOWED, {
            "host": context.host, "address": migration.destination, "path": str(context.destinations.path)})
    facts = arguments.known_facts()
    sockets = JobSockets.of(migration)
    login = Login(context.host, migration.user, migration.destination)
    context.progress(Progress(phase="opening the SSH tunnel", done=0, total=0))
    with Hypervisor.open(context.host) as hypervisor:
        target = _target(migration, facts, sockets, *_documents(hypervisor, migration, facts))
        uid, _ = hypervisor.qemu_ids(facts.virtualization)
        with socket_directory(sockets.directory, (0, 0), [str(uid)] if uid else [], context.host), \
                tunnel(login, _forwards(migration, sockets)) as opened:
            if hypervisor.state(migration.domain) is not facts.state:
                raise MigrationError(ErrorCode.NOT_AS_EXPECTED, {
                    "host": context.host, "domain": migration.domain,
                    "problem": f"VM {migration.domain} is no longer {facts.state.value}"})
            watch = _Watch(context, migration, hypervisor, opened)
            watch.follow(target)
            if target.offline:
                return MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1)
            return _after_switchover(hypervisor, migration.domain, watch.control, watch.last)


def _documents(
    hypervisor: Hypervisor, migration: Migration, facts: DomainFacts,
) -> tuple[Optional[str], Optional[str]]:
    """The domain's XML for the other host, of the running domain and of its definition.

    None where it is what libvirt itself would send.
    """
    inactive = hypervisor.document(migration.domain, inactive=True) if facts.persistent else None
    live = inactive if facts.state is DomainState.SHUT_OFF else hypervisor.migratable_document(migration.domain)
    drives = frozenset(
        disk.target for each in (live, inactive) if each is not None for disk in inserted_media(describe(each)))
    changes = changes_for(migration, facts, drives, live=True)
    if changes == Changes(name=changes.name) or live is None:
        # libvirt itself gives it another name, where it is to have one.
        return None, None
    lasting = changes_for(migration, facts, drives, live=False)
    return edit(live, replace(changes, name=None)), edit(inactive, lasting) if inactive is not None else None


def _after_switchover(
    hypervisor: Hypervisor, domain: str, control: ConvergenceControl, last: Optional[JobStatistics] = None,
) -> MigrationReport:
    """libvirt's figures. Nothing that goes wrong here makes a failure of a migration that has succeeded."""
    try:
        if hypervisor.state(domain) is DomainState.ABSENT and last is not None:
            # A transient domain is gone, and libvirt's figures with it: these are no older than a moment.
            return MigrationReport(disk_bytes=last.disk_done, memory_bytes=last.memory_done, downtime=-1)

        # At once, not only in FINISH: the copy left behind must not start with this host, whatever dies now.
        if hypervisor.autostart(domain):
            hypervisor.set_autostart(domain, False)
        return replace(
            hypervisor.finished_job(domain), downtime_limit=control.downtime_limit, passes=control.passes,
            post_copy=control.stage is Stage.POST_COPY)
    except Exception as error:
        log.warning("VM %s has moved; its figures or its autostart here: %s", domain, error)
        return MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1)


def _forwards(migration: Migration, sockets: JobSockets) -> dict[str, str]:
    forwards = {sockets.libvirt: LIBVIRT_SOCKETS[migration.destination_daemon]}
    if migration.transport is Transport.SSH:
        forwards.update({sockets.memory: sockets.memory, sockets.disks: sockets.disks})
    return forwards


def _target(
    migration: Migration, facts: DomainFacts, sockets: JobSockets, document: Optional[str], lasting: Optional[str],
) -> MigrationTarget:
    """Each address is given: left to itself, libvirt would have to resolve the destination's host name."""
    address = f"[{migration.destination}]" if ":" in migration.destination else migration.destination
    over_ssh = migration.transport is Transport.SSH
    return MigrationTarget(
        connection=f"qemu+unix:///system?socket={sockets.libvirt}",
        memory=f"unix://{urllib.parse.quote(sockets.memory)}" if over_ssh else f"tcp://{address}",
        disks=f"unix://{urllib.parse.quote(sockets.disks)}" if over_ssh else f"tcp://{address}",
        listen_address=None if over_ssh else migration.destination,
        copy_storage=_copy_storage(migration, facts),
        bandwidth=migration.bandwidth,
        mirrored=tuple(disk.target for disk in facts.mirrored),
        offline=facts.state is DomainState.SHUT_OFF,
        persistent=facts.persistent,
        name=migration.new_name,
        document=document,
        lasting=lasting,
        auto_converge=migration.convergence.auto_converge,
        post_copy=migration.convergence.may_post_copy,
        synchronous_writes=migration.convergence.synchronous_writes,
    )


def _copy_storage(migration: Migration, facts: DomainFacts) -> CopyStorage:
    """What the mirror writes. Into what the job made itself, empty, it need not write zeros first."""
    if migration.copy_storage is not CopyStorage.AUTO:
        return migration.copy_storage
    placement = migration.placement(facts)
    # A block device holds whatever was on it; a chain that becomes one image has to be read as a whole.
    whole = migration.flatten or any(is_device(placement.path(disk.path)) for disk in facts.mirrored)
    return CopyStorage.ALL if whole else CopyStorage.INC


@dataclass
class _Watch:
    """Follows one migration: reports how far it is, helps it to converge, ends it on cancel or a lost tunnel.

    Once post-copy has begun the guest is on neither host alone: nothing is ended any more, whatever happens.
    """

    context: StepContext
    migration: Migration
    hypervisor: Hypervisor
    tunnel: Tunnel
    control: ConvergenceControl = field(init=False)
    last: Optional[JobStatistics] = None
    _stopped_by: MigrationError | None = None
    _abort_at: float = 0.0
    _failed: frozenset[Remedy] = frozenset()

    def __post_init__(self) -> None:
        self.control = ConvergenceControl(self.migration.convergence, self.migration.timeout)

    def follow(self, target: MigrationTarget) -> None:
        """Migrate to `target` and return when it is done. Raises MigrationError with the reason that came first."""
        began = statistics_at = time.monotonic()
        thread = MigrationThread(self.context.host, self.migration.domain, target)
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)
            now = time.monotonic()
            if now >= statistics_at and thread.is_alive():
                self._look(now - began, target.mirrored)
                statistics_at = now + _STATISTICS_SECONDS
            self._stop_if_asked(now)
        if thread.error is not None:
            raise self._reason(thread.error)

    # What ends it.

    def _stop_if_asked(self, now: float) -> None:
        self._stopped_by = self._stopped_by or self._reason_to_stop()
        if self._stopped_by is None or now < self._abort_at or self.control.stage is Stage.POST_COPY:
            return
        log.warning("asking libvirt to end the migration: %s", self._stopped_by.message)
        self.hypervisor.abort_job(self.migration.domain)
        self._abort_at = now + _ABORT_AGAIN_SECONDS

    def _reason_to_stop(self) -> MigrationError | None:
        if self.context.cancellation.reason is not None:
            facts = {"domain": self.migration.domain, "reason": self.context.cancellation.reason}
            return MigrationError(ErrorCode.MIGRATION_CANCELLED, facts)
        return self.tunnel.lost() if self.tunnel.ended() else None

    def _reason(self, error: Exception) -> Exception:
        """Why it failed: libvirt may notice first and name a closed socket; the admin needs the reason behind it."""
        if self.control.stage is Stage.PAUSED:
            # libvirt has let it go on already, unless the pause came after the end of the migration.
            self.hypervisor.resume_if_suspended(self.migration.domain)
        lost = self.tunnel.lost() if self.tunnel.ended() else None
        if self.control.stage is not Stage.POST_COPY:
            return self._stopped_by or lost or error
        told = lost or error
        reason = told.facts.get("reason", told.message) if isinstance(told, MigrationError) else str(told)
        return MigrationError(ErrorCode.POST_COPY_FAILED, {
            "domain": self.migration.domain, "host": self.context.host, "destination": self.migration.destination,
            "user": self.migration.user, "reason": reason.rstrip(".")})

    # What helps it.

    def _look(self, seconds: float, mirrored: tuple[str, ...]) -> None:
        """Take libvirt's figures, do what they call for, and report."""
        statistics = self.hypervisor.job_statistics(self.migration.domain)
        advice = self.control.look(statistics, seconds)
        if self._stopped_by is None:
            self._do(advice)
        if statistics is not None:
            self.last = statistics
            progress = as_progress(statistics, self.control)
            disks = self.hypervisor.mirrors(self.migration.domain, mirrored) if statistics.mirroring else ()
            self.context.progress(replace(progress, disks=fitting(disks)))

    def _do(self, advice: Advice) -> None:
        domain = self.migration.domain
        try:
            if advice.remedy is Remedy.ABORT:
                facts = {"domain": domain, "seconds": str(self.migration.timeout)}
                self._stopped_by = MigrationError(ErrorCode.MIGRATION_TIMEOUT, facts)
            elif advice.remedy is Remedy.SET_DOWNTIME:
                self.hypervisor.set_downtime_limit(domain, advice.downtime)
            elif advice.remedy is Remedy.SUSPEND:
                self.hypervisor.suspend(domain)
            elif advice.remedy is Remedy.START_POST_COPY:
                self.hypervisor.start_post_copy(domain)
                # Without its way between the hosts the guest would be lost.
                self.tunnel.keep()
        except MigrationError as error:
            # It may just have ended. Otherwise it is advised, and tried, again.
            if advice.remedy not in self._failed:
                log.warning("VM %s: cannot %s: %s", domain, advice.remedy.value, error.message)
                self._failed |= {advice.remedy}
            return
        self.control.did(advice)
        if advice.news:
            log.warning("VM %s: %s", domain, advice.news)


def as_progress(statistics: JobStatistics, control: ConvergenceControl) -> Progress:
    """libvirt's counts as one figure: disk and memory together, since both cross the same link."""
    done = statistics.disk_done + statistics.memory_done
    return Progress(
        phase=control.phase(), done=done, total=max(done, statistics.disk_total + statistics.memory_total),
        memory=control.memory())
