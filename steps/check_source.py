"""CHECK_SOURCE: the domain and its disks as they are here, and everything on this host that stands in the way.

It changes nothing, and goes on after the first obstacle: the admin hears of all of them at once.
"""

from __future__ import annotations

from constant import DomainState, Severity
from host.domain_xml import DomainDescription, describe, inserted_media
from host.hypervisor import Hypervisor
from steps.checks import disks, domain
from steps.checks.basics import libvirt_answers, libvirt_fails, look_for_tools
from steps.checks.domain import SourceView
from steps.checks.look import look
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts, MediumFacts
from wire.findings import Check, CheckReport, Finding, not_fine
from wire.records import StepArguments


def run(context: StepContext, arguments: StepArguments) -> CheckReport:
    """Look at everything on this host, and tell the facts of the domain if it is here."""
    findings = look_for_tools(context.host, "qemu-img", "setfacl", "ssh")
    facts = None
    try:
        with Hypervisor.open(context.host) as hypervisor:
            findings.append(libvirt_answers(context.host, hypervisor))
            found, facts = _examine(context, hypervisor, arguments)
            findings += found
    except MigrationError as error:
        findings.append(libvirt_fails(error))
    return CheckReport(findings=tuple(findings), facts=facts)


def _examine(
    context: StepContext, hypervisor: Hypervisor, arguments: StepArguments,
) -> tuple[list[Finding], DomainFacts | None]:
    """All checks of the domain, and its facts."""
    migration = arguments.migration
    known = {"host": context.host, "domain": migration.domain}
    state = hypervisor.state(migration.domain)
    if state is DomainState.ABSENT:
        error = MigrationError(ErrorCode.DOMAIN_MISSING, known)
        return [not_fine(Check.DOMAIN, Severity.STOPS, error)], None
    description = describe(hypervisor.document(migration.domain))
    images = disks.examine_images(hypervisor, description, context.host, migration.domain)
    view = SourceView(context.host, migration, hypervisor, description, state, images)
    findings = [Finding(check=Check.DOMAIN, severity=Severity.FINE, facts=known)]
    findings += look({**domain.LOOKS, **disks.LOOKS}, view, known)
    return findings, _facts(hypervisor, view, description)


def _facts(hypervisor: Hypervisor, view: SourceView, description: DomainDescription) -> DomainFacts:
    return DomainFacts(
        uuid=description.uuid, virtualization=description.virtualization, architecture=description.architecture,
        machine=description.machine, memory=description.memory, resident=hypervisor.resident_memory(view.domain),
        autostart=hypervisor.autostart(view.domain),
        disks=tuple(each for each in view.images.values() if isinstance(each, DiskFacts)),
        emulator=description.emulator, kernel=description.kernel, initrd=description.initrd,
        vcpus=description.vcpus, last_cpu=description.last_cpu, last_node=description.last_node,
        huge_page=description.huge_page, interfaces=description.interfaces,
        graphics=describe(hypervisor.migratable_document(view.domain)).graphics,
        media=tuple(
            MediumFacts(target=disk.target, device=disk.device, path=disk.path)
            for disk in inserted_media(description) if disk.path is not None),
        serial_ports=description.serial_ports, secrets=description.secrets,
        security_models=description.security_models, libvirt_version=hypervisor.version(),
        qemu_version=hypervisor.qemu_version())
