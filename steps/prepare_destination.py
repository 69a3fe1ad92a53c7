"""PREPARE_DESTINATION: the empty images and the directory of sockets, each written down as it is made."""

from __future__ import annotations

from constant import ErrorCode, MigrationError, Transport
from host import image
from host.hypervisor import Hypervisor
from host.job_files import JobSockets, MadeKind, in_system_directory, make_socket_directory
from steps.context import StepContext
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
        if in_system_directory(disk.path):
            reason = ": its directory is one of the system's own"
            raise MigrationError(ErrorCode.PATH_INVALID, {"what": "Disk path", "path": disk.path, "reason": reason})
        ledger.add(MadeKind.IMAGE, disk.path, image.create_empty(disk, owner, context.host))
        made.append(f"empty {disk.format.value} of {disk.virtual_size // _MIB} MiB at {disk.path}")
    if migration.transport is Transport.SSH:
        directory = JobSockets.of(migration).directory
        status = make_socket_directory(directory, owner, [migration.user], context.host)
        ledger.add(MadeKind.SOCKET_DIRECTORY, directory, status)
    return StepReport(summary=", ".join(made))
