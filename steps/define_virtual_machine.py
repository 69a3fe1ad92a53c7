"""DEFINE_VIRTUAL_MACHINE: the domain is as lasting here as it was, names the disks here, and starts as it did."""

from __future__ import annotations

from collections.abc import Iterator

from constant import DomainState
from host.domain_xml import describe
from host.hypervisor import RESTART_SECONDS, Hypervisor
from host.job_files import OF_DOMAIN
from host.stale_copy import take_note_off
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.phrase import Phrase, joined
from wire.records import Migration, StepArguments, StepReport


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Define it if the migration has not, then look at what libvirt holds.

    Raises MigrationError NOT_AS_EXPECTED, or FILE_NOT_WRITTEN where all is well but for what the job writes down here.
    """
    migration, facts = arguments.migration, arguments.known_facts()
    domain = migration.name_there
    with Hypervisor.open(context.host, patience=RESTART_SECONDS) as hypervisor:
        if facts.persistent and not hypervisor.is_persistent(domain):
            hypervisor.define(hypervisor.document(domain, inactive=True))
        for problem in _problems(hypervisor, migration, facts):
            raise MigrationError(
                ErrorCode.NOT_AS_EXPECTED, {"host": context.host, "problem": problem, "domain": domain})
        if facts.persistent:
            take_note_off(hypervisor, domain)
            hypervisor.set_autostart(domain, facts.autostart)
    try:
        context.ledger(migration).keep(OF_DOMAIN)
    except OSError as error:
        raise MigrationError(ErrorCode.FILE_NOT_WRITTEN, {
            "path": f"{context.host}:{context.state_directory}", "reason": error.strerror or str(error)}) from error
    if not facts.persistent:
        return StepReport(summary=Phrase("transient, as it was"))
    return StepReport(summary=Phrase("persistent, autostart on" if facts.autostart else "persistent, autostart off"))


def _problems(hypervisor: Hypervisor, migration: Migration, facts: DomainFacts) -> Iterator[Phrase]:
    """What the domain's XMLs say of disks that is not so."""
    domain, placement = migration.name_there, migration.placement(facts)
    if hypervisor.state(domain) in (DomainState.RUNNING, DomainState.PAUSED):
        named = {disk.path for disk in describe(hypervisor.document(domain)).disks}
        missing = [path for disk in facts.mirrored if (path := placement.path(disk.path)) not in named]
        if missing:
            yield Phrase("the active XML of VM {domain} does not name {paths}", {
                "domain": domain, "paths": joined(missing)})
    if facts.persistent:
        # It may lack a disk that the running one has, or have one more; all that it names has to be here.
        lasting = describe(hypervisor.document(domain, inactive=True))
        here = set(placement.paths.values())
        strange = [disk.path for disk in lasting.disks if disk.path is not None and disk.path not in here]
        if strange:
            yield Phrase("the inactive XML of VM {domain} names {paths}, which was not moved", {
                "domain": domain, "paths": joined(strange)})
