"""CHECK_DESTINATION: given what CHECK_SOURCE found, everything that stands in the way on this host.

It changes nothing, and goes on after the first obstacle: the admin hears of all of them at once.
"""

from __future__ import annotations

from host.hypervisor import Hypervisor
from steps.checks import machine, neighbours, storage
from steps.checks.basics import libvirt_answers, libvirt_fails, look_for_tools
from steps.checks.look import look
from steps.checks.machine import DestinationView
from steps.checks.storage import FilesView
from steps.context import StepContext
from wire.errors import MigrationError
from wire.findings import CheckReport
from wire.records import StepArguments


def run(context: StepContext, arguments: StepArguments) -> CheckReport:
    """Look at everything on this host."""
    migration, facts = arguments.migration, arguments.known_facts()
    known = {"host": context.host, "domain": migration.domain}
    findings = look_for_tools(context.host, "qemu-img", "setfacl")
    files, directory = FilesView(context.host, migration, facts), None
    try:
        with Hypervisor.open(context.host) as hypervisor:
            findings.append(libvirt_answers(context.host, hypervisor))
            if migration.pool is not None and hypervisor.pool(migration.pool) is not None:
                directory = hypervisor.pool(migration.pool)
                migration = migration.into_directory(directory)
            files = FilesView(context.host, migration, facts, hypervisor.qemu_ids(facts.virtualization))
            view = DestinationView(context.host, migration, facts, hypervisor, hypervisor.host_capabilities())
            findings += look({**machine.LOOKS, **neighbours.LOOKS}, view, known)
    except MigrationError as error:
        findings.append(libvirt_fails(error))
    findings += look(storage.LOOKS, files, known)
    return CheckReport(findings=tuple(findings), directory=directory)
