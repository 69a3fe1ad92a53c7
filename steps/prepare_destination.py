"""PREPARE_DESTINATION: the empty images and the directory of sockets, each written down as it is made."""

from __future__ import annotations

from constant import Transport
from host import image
from host.hypervisor import Hypervisor
from host.job_files import JobSockets, MadeKind, make_socket_directory, refuse_system_directory, remove_if_same
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.records import StepArguments, StepReport

_MIB = 1024 * 1024


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Make what the domain needs here. Raises MigrationError; what was made until then stays in the ledger."""
    migration, facts = arguments.migration, arguments.known_facts()
    ledger = context.ledger(migration)
    with Hypervisor.open(context.host) as hypervisor:
        owner = hypervisor.qemu_ids(facts.virtualization)
    made = []
    for disk in facts.disks:
        # Checked before, and again here: the two requests need not have come from one careful controller.
        refuse_system_directory("Disk path", disk.path, context.host)
        status = image.create_empty(disk, owner, context.host)
        try:
            ledger.add(MadeKind.IMAGE, disk.path, status)
        except OSError as error:
            remove_if_same(disk.path, status)
            facts_of_error = {"path": error.filename or "the ledger", "reason": error.strerror or str(error)}
            raise MigrationError(ErrorCode.FILE_NOT_WRITTEN, facts_of_error) from error
        made.append(f"empty {disk.format.value} of {disk.virtual_size // _MIB} MiB at {disk.path}")
    if migration.transport is Transport.SSH:
        directory = JobSockets.of(migration).directory
        status = make_socket_directory(directory, owner, [migration.user], context.host)
        ledger.add(MadeKind.SOCKET_DIRECTORY, directory, status)
    return StepReport(summary=", ".join(made))
