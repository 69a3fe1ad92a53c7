"""LIVE_MIGRATION: the SSH tunnel, then libvirt's own peer-to-peer live migration with storage through it."""

from __future__ import annotations

import logging
import time
import urllib.parse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Optional

from constant import CopyStorage, DomainState, Pause, Transport
from host import orphans
from host.connections import cut_connections
from host.domain_edit import Changes, edit
from host.domain_xml import describe, inserted_media
from host.hypervisor import Hypervisor, MigrationThread, libvirt_errors
from host.job_files import JobSockets, remove_socket_directory
from host.job_statistics import JobStatistics
from host.kept_tunnels import qemu_users
from host.migration_target import MigrationTarget
from host.orphans import OrphanedTunnel
from host.qemu_process import ExitWatch, process_id
from host.ssh import Login
from steps.context import StepContext
from steps.convergence import ConvergenceControl, Stage
from steps.domain_changes import changes_for
from steps.hand_over import Peer, is_held
from steps.resting import bring_to_rest, has_left
from steps.watching import Running, Watch, Way
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.phrase import Phrase
from wire.placement import is_device
from wire.records import Migration, MigrationReport, Progress, StepArguments

log = logging.getLogger(__name__)


def run(context: StepContext, arguments: StepArguments) -> MigrationReport:
    """Move the running domain. Raises MigrationError; the domain then runs here, unlocked."""
    migration = arguments.migration
    if migration.destination not in context.destinations:
        raise MigrationError(ErrorCode.DESTINATION_NOT_ALLOWED, {
            "host": context.host, "address": migration.destination, "path": str(context.destinations.path)})
    facts = arguments.known_facts()
    sockets = JobSockets.of(migration)
    login = Login(context.host, migration.user, migration.destination)
    context.progress(Progress(phase=Phrase("opening the SSH tunnel"), done=0, total=0))
    with Hypervisor.open(context.host) as hypervisor:
        target = _target(migration, facts, sockets, *_documents(hypervisor, migration, facts))
        users = qemu_users(hypervisor, facts.virtualization)
        forwards = sockets.forwards(migration.destination_daemon, migration.transport)
        with context.tunnels.of(login, sockets, forwards, users, keep=False) as opened:
            if hypervisor.state(migration.domain) is not facts.state:
                raise MigrationError(ErrorCode.NOT_AS_EXPECTED, {
                    "host": context.host, "domain": migration.domain,
                    "problem": Phrase("VM {domain} is no longer {state}", {
                        "domain": migration.domain, "state": Phrase(facts.state.value)})})
            thread = MigrationThread(context.host, migration.domain, target)
            thread.start()
            # While libvirt begins: it takes longer than that to come to the end for which the peer is needed.
            with Peer(target.connection, migration) as peer, _released_at_once(peer, migration, facts):
                watch = _watch(context, migration, facts, hypervisor, opened, peer)
                return follow(watch, thread, facts, peer)


def adopt(context: StepContext, arguments: StepArguments) -> MigrationReport:
    """Go on with a migration that an earlier life of this agent has begun, as far as there is anything left of it.

    Nothing is begun again. Raises MigrationError; the domain then runs here, unlocked.
    """
    migration, facts = arguments.migration, arguments.known_facts()
    sockets = JobSockets.of(migration)
    login = Login(context.host, migration.user, migration.destination)
    left = OrphanedTunnel(login, orphans.find(sockets.directory))
    try:
        with Hypervisor.open(context.host) as hypervisor, \
                Peer(_connection(sockets), migration) as peer, _released_at_once(peer, migration, facts):
            watch = _watch(context, migration, facts, hypervisor, left, peer)
            log.info("VM %s: going on with the migration that was begun before", migration.domain)
            return follow(watch, AdoptedMigration(hypervisor, migration.domain, context.host), facts, peer)
    finally:
        left.let_go()
        remove_socket_directory(sockets.directory)


def _watch(
    context: StepContext, migration: Migration, facts: DomainFacts, hypervisor: Hypervisor, way: Way, peer: Peer,
) -> Watch:
    return Watch(
        context, migration, hypervisor, way,
        lambda: cut_connections(migration.domain, migration.destination, context.host),
        begun=peer.begun, memory=facts.memory_to_move)


class AdoptedMigration:
    """A migration that runs in libvirt without anybody waiting for its end."""

    def __init__(self, hypervisor: Hypervisor, domain: str, host: str) -> None:
        self._hypervisor = hypervisor
        self._domain = domain
        self._host = host
        # How it ended nobody has been told: it is looked at.
        self.error: Exception | None = MigrationError(
            ErrorCode.MIGRATION_INTERRUPTED, {"domain": domain, "host": host})

    def is_alive(self) -> bool:
        """Whether libvirt's job still runs, and is not only kept for the recovery of a post-copy that broke off.

        Nothing can be said for it if libvirtd itself has died; then it is looked at anew, as after any other end.
        """
        try:
            with libvirt_errors(self._host):
                if not self._hypervisor.has_job(self._domain):
                    return False
                return self._hypervisor.view(self._domain).pause is not Pause.POST_COPY_FAILED
        except MigrationError as error:
            log.warning("VM %s: its migration cannot be followed any more: %s", self._domain, error.message)
            return False

    def join(self, timeout: float) -> None:
        """Let time pass."""
        time.sleep(timeout)


def _released_at_once(peer: Peer, migration: Migration, facts: DomainFacts) -> AbstractContextManager[object]:
    """Has the peer release the VM in the moment in which the QEMU here is gone, instead of when libvirt says so."""
    if not is_held(migration, facts):
        return nullcontext()
    try:
        return ExitWatch(process_id(migration.domain), peer.source_ended)
    except (OSError, ValueError) as error:
        log.info("VM %s is handed over when libvirt says so: %s", migration.domain, error)
        return nullcontext()


def follow(
    watch: Watch, running: Running, facts: DomainFacts, peer: Peer,
) -> MigrationReport:
    """Follow it to its end, and hand the VM over to the peer.

    Raises MigrationError if the VM has not moved; only of one that may be on both hosts in part the tunnel stays.
    """
    context, migration = watch.context, watch.migration
    try:
        watch.follow(running, tuple(disk.target for disk in facts.mirrored))
    except MigrationError as error:
        peer.failed()
        view = bring_to_rest(context.host, migration, facts, watch.tell)
        if view is None or not has_left(view, peer.view):
            if view is not None and not view.split:
                watch.tunnel.close()
            raise
        log.warning("VM %s has moved although libvirt said: %s", migration.domain, error.message)
    if facts.state is DomainState.SHUT_OFF:
        return MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1)
    ended = time.monotonic()
    held = is_held(migration, facts) and not peer.release()
    paused = round((time.monotonic() - ended) * 1000)
    with Hypervisor.open(context.host) as hypervisor:
        report = _after_switchover(hypervisor, migration.domain, watch.control, watch.last)
    watch.tunnel.close()
    if report.downtime >= 0 and is_held(migration, facts):
        report = replace(report, downtime=report.downtime + paused)
    return replace(report, held=held)


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


def _connection(sockets: JobSockets) -> str:
    """libvirt's URI of the destination, through the tunnel."""
    return f"qemu+unix:///system?socket={sockets.libvirt}"


def _target(
    migration: Migration, facts: DomainFacts, sockets: JobSockets, document: Optional[str], lasting: Optional[str],
) -> MigrationTarget:
    """Each address is given: left to itself, libvirt would have to resolve the destination's host name."""
    address = f"[{migration.destination}]" if ":" in migration.destination else migration.destination
    over_ssh = migration.transport is Transport.SSH
    return MigrationTarget(
        connection=_connection(sockets),
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
        held=is_held(migration, facts),
        synchronous_writes=migration.convergence.synchronous_writes,
    )


def _copy_storage(migration: Migration, facts: DomainFacts) -> CopyStorage:
    """What the mirror writes. Into what the job made itself, empty, it need not write zeros first."""
    placement = migration.placement(facts)
    # A block device holds whatever was on it; a chain that becomes one image has to be read as a whole: without that
    # the copy would lack data, whatever the admin has asked for.
    if migration.flatten or any(is_device(placement.path(disk.path)) for disk in facts.mirrored):
        return CopyStorage.ALL
    return CopyStorage.INC if migration.copy_storage is CopyStorage.AUTO else migration.copy_storage
