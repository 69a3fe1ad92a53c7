"""COPY_DISK_FILE: what the mirror of LIVE_MIGRATION does not carry, sent over SSH beforehand, with its holes kept.

The source sends and the destination receives, each in its own step. The top image of a running VM is never copied as a
file: it would be torn, and every byte would cross twice.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from constant import FilePurpose, ImageFormat
from host import image
from host.copy_link import Watch
from host.file_identity import FileIdentity
from host.file_receiving import Receiver
from host.file_sending import Outgoing, Sent, send_files
from host.file_targets import Incoming
from host.hypervisor import Hypervisor
from host.image_lock import image_locks
from host.job_files import (
    JobSockets,
    MadeKind,
    in_system_directory,
    refuse_system_directory,
    staging_directory,
)
from host.kept_tunnels import qemu_users
from host.link_rate import listen_on
from host.ssh import Login
from host.staging import SftpUpload, Upload
from steps.check_source import domain_facts
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts, FileFacts
from wire.phrase import SEMICOLON, Phrase, joined, template
from wire.placement import Placement, is_device
from wire.records import Migration, Progress, StepArguments, StepReport

_MIB = 1024 * 1024
# A link that is down for longer ends the copying; what is there by then is lost. Three times ssh's own patience.
_PATIENCE_SECONDS = 45.0
_AGAIN_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_BOOT = frozenset({FilePurpose.KERNEL, FilePurpose.INITRD, FilePurpose.DEVICE_TREE})
# Kernels and media are read by whoever may; anything else is QEMU's user's alone.
_READABLE = _BOOT | {FilePurpose.MEDIUM, FilePurpose.LAYER}
_SENDING = Phrase("sending files over SSH")


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """This host's end of it. Raises MigrationError; what was made until then is in the ledger of the destination."""
    migration, facts = arguments.migration, arguments.known_facts()
    files = files_to_send(migration.placement(facts), facts)
    if not files:
        names = joined(disk.path.rpartition("/")[2] for disk in facts.mirrored)
        return StepReport(summary=Phrase(
            "nothing to send beforehand, {names} crosses in the live migration", {"names": names}))
    if context.host == migration.destination:
        return _Receiving(context, migration, facts, files).run()
    return _send(context, migration, facts, files)


def files_to_send(placement: Placement, facts: DomainFacts) -> list[FileFacts]:
    """The files that the destination gets, in their order. A kernel among the system's own comes with the system."""
    return [
        file for file in facts.files
        if not (file.purpose in _BOOT and in_system_directory(placement.path(file.path)))]


class _Patience:
    """Looks whether to stop, tells how far the copying is, and for how long nothing has moved."""

    def __init__(self, context: StepContext, migration: Migration, files: Sequence[FileFacts]) -> None:
        self._context = context
        self._domain = migration.domain
        self._total = sum(min(file.allocated, file.length) for file in files)
        self._since = time.monotonic()
        self.watch = Watch(moved=self._moved, reason_to_stop=self._reason_to_stop)

    def _moved(self, done: int) -> None:
        self._since = time.monotonic()
        self._context.progress(Progress(phase=_SENDING, done=done, total=max(done, self._total)))

    def _reason_to_stop(self) -> MigrationError | None:
        reason = self._context.cancellation.reason
        if reason is None:
            return None
        return MigrationError(ErrorCode.MIGRATION_CANCELLED, {"domain": self._domain, "reason": reason})

    def check(self) -> None:
        """Raise what there is to stop for."""
        error = self._reason_to_stop()
        if error is not None:
            raise error

    def is_over(self) -> bool:
        """Whether nothing has moved for too long."""
        return time.monotonic() - self._since > _PATIENCE_SECONDS


# The source.


def _send(
    context: StepContext, migration: Migration, facts: DomainFacts, files: Sequence[FileFacts],
) -> StepReport:
    if migration.destination not in context.destinations:
        raise MigrationError(ErrorCode.DESTINATION_NOT_ALLOWED, {
            "host": context.host, "address": migration.destination, "path": str(context.destinations.path)})
    _refuse_strange(context, migration, files)
    patience = _Patience(context, migration, files)
    outgoing = [Outgoing(path=file.path) for file in files]
    limit = migration.bandwidth * _MIB
    alone = [disk.path for disk in facts.disks if disk.sent]
    with image_locks(alone, context.host):
        while True:
            try:
                with _connected(context, migration, facts.virtualization) as (connection, upload):
                    sent = send_files(connection, outgoing, context.host, patience.watch, limit, upload)
                return StepReport(summary=summarise(sent, files), bytes=sum(each.data for each in sent))
            except (OSError, MigrationError) as error:
                # A broken link is waited for: the other end knows how far it is.
                _raise_unless_lost(error, patience, migration, context.host)
            patience.check()
            time.sleep(_AGAIN_SECONDS)


def _refuse_strange(context: StepContext, migration: Migration, files: Sequence[FileFacts]) -> None:
    """Raise MigrationError for a file that is not the domain's: no request has root read what it likes."""
    with Hypervisor.open(context.host) as hypervisor:
        own = {file.path for file in domain_facts(context.host, hypervisor, migration).files}
    strange = [file.path for file in files if file.path not in own]
    if strange:
        problem = Phrase("{paths} does not belong to VM {domain}", {
            "paths": joined(strange), "domain": migration.domain})
        raise MigrationError(ErrorCode.MESSAGE_INVALID, {"host": context.host, "problem": problem})


def _raise_unless_lost(
    error: OSError | MigrationError, patience: _Patience, migration: Migration, host: str,
) -> None:
    lost = (ErrorCode.TUNNEL_LOST, ErrorCode.SSH_UNREACHABLE, ErrorCode.SSH_FAILED)
    if isinstance(error, MigrationError) and error.code not in lost:
        raise error
    if patience.is_over():
        reason = error.facts.get("reason", "") if isinstance(error, MigrationError) else error.strerror or str(error)
        raise MigrationError(ErrorCode.TUNNEL_LOST, {
            "host": host, "user": migration.user, "destination": migration.destination, "reason": reason}) from error


@contextmanager
def _connected(
    context: StepContext, migration: Migration, virtualization: str,
) -> Iterator[tuple[socket.socket, Upload]]:
    """The ways to the destination's end, inside SSH whatever the migration itself takes."""
    login = Login(context.host, migration.user, migration.destination)
    sockets = JobSockets.of(migration)
    with Hypervisor.open(context.host) as hypervisor:
        users = qemu_users(hypervisor, virtualization)
    forwards = sockets.forwards(migration.destination_daemon, migration.transport)
    with context.tunnels.of(login, sockets, forwards, users, keep=True), \
            SftpUpload(login, sockets.staging) as upload, \
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(sockets.files)
        yield connection, upload


def summarise(sent: Sequence[Sent], files: Sequence[FileFacts]) -> str:
    """What was sent and what was there already, in a few words."""
    parts = []
    went = [(file, each) for file, each in zip(files, sent) if not each.kept]
    if went:
        amount = sum(each.data for _file, each in went) / _MIB
        names = joined(file.path.rpartition("/")[2] for file, _each in went)
        parts.append(Phrase("sent {names}: {size} MiB of data", {"names": names, "size": f"{amount:.0f}"}))
    kept = [file.path.rpartition("/")[2] for file, each in zip(files, sent) if each.kept]
    if kept:
        parts.append(Phrase("there already: {names}", {"names": joined(kept)}))
    return joined(parts, SEMICOLON)


# The destination.


class _Receiving:
    """The destination's end: waits for the source, as often as it comes again, and puts the files in their places."""

    def __init__(
        self, context: StepContext, migration: Migration, facts: DomainFacts, files: Sequence[FileFacts],
    ) -> None:
        self._context = context
        self._migration = migration
        self._facts = facts
        self._files = files
        self._placement = migration.placement(facts)
        self._ledger = context.ledger(migration)
        self._patience = _Patience(context, migration, files)

    def run(self) -> StepReport:
        """Receive all files, then have the headers of the images name each other by their names here."""
        with Hypervisor.open(self._context.host) as hypervisor:
            owner = hypervisor.qemu_ids(self._facts.virtualization)
        paths = [self._placement.path(file.path) for file in self._files]
        # A name that can only be the job's, so that it can be written down before the file is made.
        ending = f".vmmigration-{self._migration.job_id}"
        incoming = [
            Incoming(path=path, owner=owner, mode=self._mode(file), ending=ending)
            for path, file in zip(paths, self._files)]
        # What an agent that was ended in the middle of this has left.
        try:
            self._ledger.remove([name for each in incoming for name in (each.path, each.part)])
        except OSError as error:
            facts = {"path": error.filename or Phrase("the ledger"), "reason": error.strerror or str(error)}
            raise MigrationError(ErrorCode.FILE_NOT_WRITTEN, facts) from error
        for path, file in zip(paths, self._files):
            self._take_place(path, file)
        for each in incoming:
            if not is_device(each.path):
                self._ledger.plan(MadeKind.IMAGE, each.part)
        sockets = JobSockets.of(self._migration)
        receiver = Receiver(incoming, self._context.host, self._made, self._patience.watch, sockets.staging)
        with staging_directory(sockets.staging, self._migration.user, self._context.host), \
                listen_on(sockets.files) as server:
            server.settimeout(_LOOK_SECONDS)
            while not self._serve(server, receiver):
                pass
        renamed = self._rename_backing(receiver)
        return StepReport(summary=_received(receiver, paths, renamed))

    @staticmethod
    def _mode(file: FileFacts) -> int:
        return file.mode & 0o644 | 0o600 if file.purpose in _READABLE else 0o600

    def _take_place(self, path: str, file: FileFacts) -> None:
        """Look at a path once more before anything is written there: CHECK_DESTINATION was another request."""
        if not is_device(path):
            refuse_system_directory(template("File path"), path, self._context.host)
            return
        problem = image.device_problem(path, file.length, self._context.host)
        if problem is not None:
            raise MigrationError(ErrorCode.DEVICE_UNFIT, {
                "host": self._context.host, "domain": self._migration.domain, "path": path, "target": file.target,
                "reason": problem, "length": str(file.length)})
        self._ledger.take(path)

    def _made(self, path: str, identity: FileIdentity) -> None:
        self._ledger.add(MadeKind.IMAGE, path, identity)

    def _serve(self, server: socket.socket, receiver: Receiver) -> bool:
        try:
            connection, _address = server.accept()
        except OSError:
            # Nobody has come yet. Python 3.9's time-out is no TimeoutError.
            self._patience.check()
            if self._patience.is_over() and receiver.complete:
                # Its last word was lost; the source has heard of every file, or would have come again.
                return True
            if self._patience.is_over():
                raise MigrationError(ErrorCode.TUNNEL_LOST, {
                    "host": self._migration.source, "destination": self._context.host,
                    "reason": Phrase("the source has not come back")}) from None
            return False
        return receiver.serve(connection)

    def _rename_backing(self, receiver: Receiver) -> int:
        """Images that were sent name the layer below as the source does; returns how many had to learn another."""
        count = 0
        new = set(receiver.received())
        for disk in self._facts.disks:
            for above, name, below, image_format in _links(disk):
                there = self._placement.path(above)
                wanted = self._placement.stored_name(above, below, name)
                if there in new and wanted != name:
                    image.rename_backing(there, wanted, image_format, self._context.host)
                    new.discard(there)
                    count += 1
        return count


def _received(receiver: Receiver, paths: Sequence[str], renamed: int) -> str:
    count, every = len(receiver.received()), len(paths)
    facts = {"count": str(count), "all": str(every), "kept": str(every - count), "renamed": str(renamed)}
    if not count:
        return Phrase(
            "nothing to receive, the file is there already" if every == 1 else
            "nothing to receive, {all} files are there already", facts)
    parts = [Phrase("{count} of {all} files received and verified", facts)]
    if renamed:
        parts.append(Phrase("{renamed} told the new name of the layer below", facts))
    if every > count:
        parts.append(Phrase("there already: {kept}", facts))
    return joined(parts)


def _links(disk: DiskFacts) -> Iterator[tuple[str, str, str, ImageFormat]]:
    """Each image of a chain that has another below: its path, how it names that, that one's path and format."""
    names = [(disk.path, disk.backing_name), *((layer.path, layer.backing_name) for layer in disk.layers)]
    for (above, name), layer in zip(names, disk.layers):
        if name is not None:
            yield above, name, layer.path, layer.format
