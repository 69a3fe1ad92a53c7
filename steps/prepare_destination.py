"""PREPARE_DESTINATION: the empty images, the NVRAM and the directory of sockets, each written down as it is made."""

from __future__ import annotations

import os
from dataclasses import replace

from constant import DomainState, FilePurpose, ImageFormat, Transport
from host import image
from host.file_identity import remove_if_same
from host.hypervisor import Hypervisor
from host.job_files import (
    JobSockets,
    Ledger,
    MadeKind,
    make_directory,
    make_socket_directory,
    missing_directories,
    refuse_system_directory,
    sync_directory,
)
from host.set_aside import set_aside
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts
from wire.phrase import Phrase, joined, template
from wire.placement import Placement, is_device
from wire.records import Migration, StepArguments, StepReport

_MIB = 1024 * 1024


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Make what the domain needs here. Raises MigrationError; what was made until then stays in the ledger."""
    migration, facts = arguments.migration, arguments.known_facts()
    ledger = context.ledger(migration)
    with Hypervisor.open(context.host) as hypervisor:
        owner = hypervisor.qemu_ids(facts.virtualization)
        view = hypervisor.view(migration.name_there)
        if view.state is not DomainState.ABSENT:
            if not view.gone or hypervisor.name_of(facts.uuid) != migration.name_there:
                raise MigrationError(ErrorCode.DOMAIN_EXISTS, {
                    "host": context.host, "domain": migration.name_there, "what": Phrase("name"),
                    "state": Phrase(view.state.value)})
            set_aside(hypervisor, migration.name_there, ledger, context.aside(migration))
    maker = _Maker(context.host, migration, ledger, migration.placement(facts), owner)
    made = [maker.image(disk) for disk in facts.mirrored]
    made += maker.nvram(facts)
    maker.directories(facts)
    if migration.transport is Transport.SSH or facts.files:
        directory = JobSockets.of(migration).directory
        ledger.plan(MadeKind.SOCKET_DIRECTORY, directory)
        identity = make_socket_directory(directory, owner, [migration.user], context.host)
        ledger.add(MadeKind.SOCKET_DIRECTORY, directory, identity)
    return StepReport(summary=joined(made or [Phrase("the directory for what is sent")]))


def over_there(disk: DiskFacts, placement: Placement) -> DiskFacts:
    """The disk as it has to be made: at its path there, with the layers named as they will be there."""
    if disk.backing_name is None:
        return replace(disk, path=placement.path(disk.path))
    return replace(
        disk, path=placement.path(disk.path),
        backing_name=placement.stored_name(disk.path, disk.layers[0].path, disk.backing_name))


class _Maker:
    """Makes files, and writes each of them down before anything else happens."""

    def __init__(
        self, host: str, migration: Migration, ledger: Ledger, placement: Placement, owner: tuple[int, int],
    ) -> None:
        self._host = host
        self._domain = migration.domain
        self._job_id = migration.job_id
        self._ledger = ledger
        self._placement = placement
        self._owner = owner

    def image(self, disk: DiskFacts) -> Phrase:
        """Make the image that QEMU will fill, or take the block device. Returns what was done, for the admin."""
        new = over_there(disk, self._placement)
        if is_device(new.path):
            problem = image.device_problem(new.path, new.virtual_size, self._host)
            if problem is not None:
                raise MigrationError(ErrorCode.DEVICE_UNFIT, {
                    "host": self._host, "domain": self._domain, "path": new.path, "target": disk.target,
                    "reason": problem, "length": str(new.virtual_size)})
            self._ledger.take(new.path)
            return Phrase("{path} taken", {"path": new.path})
        self._make(new)
        facts = {"format": new.format.value, "size": str(new.virtual_size // _MIB), "path": new.path}
        if new.backing_name is None:
            return Phrase("empty {format} of {size} MiB at {path}", facts)
        return Phrase("empty {format} of {size} MiB at {path} on {below}", {**facts, "below": new.backing_name})

    def _make(self, new: DiskFacts) -> None:
        # Checked before, and again here: the two requests need not have come from one careful controller.
        refuse_system_directory(template("Disk path"), new.path, self._host)
        # Under a name that can only be the job's until it is written down: an agent may be killed at any moment.
        part = f"{new.path}.vmmigration-{self._job_id}"
        try:
            self._ledger.plan(MadeKind.IMAGE, part)
            identity = image.create_empty(replace(new, path=part), self._owner, self._host)
            try:
                self._ledger.add(MadeKind.IMAGE, new.path, identity)
                os.link(part, new.path)
            finally:
                remove_if_same(part, identity)
                # Or the name might be back after a crash, when the ledger has forgotten it.
                sync_directory(os.path.dirname(part))
        except FileExistsError as error:
            raise MigrationError(ErrorCode.PATH_TAKEN, {"path": new.path, "host": self._host}) from error
        except OSError as error:
            facts = {"path": error.filename or Phrase("the ledger"), "reason": error.strerror or str(error)}
            raise MigrationError(ErrorCode.FILE_NOT_WRITTEN, facts) from error

    def nvram(self, facts: DomainFacts) -> list[Phrase]:
        """Make the file that QEMU will write the firmware's variables to. libvirt would make one and not tell us."""
        if facts.nvram is None:
            return []
        path = self._placement.path(facts.nvram.path)
        # Whatever its content is, QEMU writes all of it at the switchover.
        cluster, compat = (65536, "1.1") if facts.nvram.format is ImageFormat.QCOW2 else (0, "")
        self._make(DiskFacts(
            target="nvram", path=path, format=facts.nvram.format, virtual_size=facts.nvram.length, allocated=0,
            cluster_size=cluster, compat=compat))
        return [Phrase("NVRAM at {path}", {"path": path})]

    def directories(self, facts: DomainFacts) -> None:
        """Make the directories that libvirt makes for each domain."""
        for file in facts.files:
            if file.purpose is FilePurpose.TPM:
                refuse_system_directory(template("TPM path"), self._placement.path(file.path), self._host)
                for path in missing_directories(os.path.dirname(self._placement.path(file.path))):
                    self._ledger.plan(MadeKind.DIRECTORY, path)
                    self._ledger.add(MadeKind.DIRECTORY, path, make_directory(path, self._host))
