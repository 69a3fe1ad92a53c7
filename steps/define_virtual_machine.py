"""DEFINE_VIRTUAL_MACHINE: the domain is persistent here, both its XMLs name the disks here, autostart as it was."""

from __future__ import annotations

from host.domain_xml import describe
from host.hypervisor import Hypervisor
from host.job_files import MadeKind
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.records import StepArguments, StepReport


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Define it if the migration has not, then look at what libvirt holds. Raises MigrationError NOT_AS_EXPECTED."""
    migration, facts = arguments.migration, arguments.known_facts()
    with Hypervisor.open(context.host) as hypervisor:
        if not hypervisor.is_persistent(migration.domain):
            hypervisor.define(hypervisor.document(migration.domain, inactive=True))
        for kind, inactive in (("active", False), ("inactive", True)):
            paths = {disk.path for disk in describe(hypervisor.document(migration.domain, inactive=inactive)).disks}
            missing = [disk.path for disk in facts.disks if disk.path not in paths]
            if missing:
                problem = f"the {kind} XML of VM {migration.domain} does not name {', '.join(missing)}"
                raise MigrationError(
                    ErrorCode.NOT_AS_EXPECTED,
                    {"host": context.host, "problem": problem, "domain": migration.domain})
        hypervisor.set_autostart(migration.domain, facts.autostart)
    context.ledger(migration).keep(MadeKind.IMAGE)
    return StepReport(summary=f"persistent, autostart {'on' if facts.autostart else 'off'}")
