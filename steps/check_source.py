"""CHECK_SOURCE: the domain and its disks as they are here, and everything on this host that stands in the way.

It changes nothing, and goes on after the first obstacle: the admin hears of all of them at once.
"""

from __future__ import annotations

import time

from constant import DomainState, Severity
from host.domain_files import FilesQuestion, files_of
from host.domain_xml import describe
from host.hypervisor import Hypervisor
from steps.checks import disks, domain
from steps.checks.basics import libvirt_answers, libvirt_fails, look_for_tools
from steps.checks.domain import SourceView
from steps.checks.look import look
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts
from wire.findings import Check, CheckReport, Finding, not_fine
from wire.records import Migration, StepArguments


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
    note = hypervisor.moved_note(migration.domain)
    if note is not None and state is DomainState.SHUT_OFF:
        # That its disks are not there follows from this.
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note.at))
        error = MigrationError(ErrorCode.STALE_COPY, {
            **known, "job": note.job_id, "destination": note.destination, "since": since})
        return [not_fine(Check.DOMAIN, Severity.STOPS, error)], None
    view = _view(context.host, hypervisor, migration, state)
    findings = [Finding(check=Check.DOMAIN, severity=Severity.FINE, facts=known)]
    findings += look({**domain.LOOKS, **disks.LOOKS}, view, known)
    return findings, view.facts()


def domain_facts(host: str, hypervisor: Hypervisor, migration: Migration) -> DomainFacts:
    """The domain as it is here now, for a step that must not take a request's word for it."""
    return _view(host, hypervisor, migration, hypervisor.state(migration.domain)).facts()


def _view(host: str, hypervisor: Hypervisor, migration: Migration, state: DomainState) -> SourceView:
    description = describe(hypervisor.document(migration.domain))
    lasting = (
        describe(hypervisor.document(migration.domain, inactive=True))
        if hypervisor.is_persistent(migration.domain) else None)
    found = disks.all_disks(description, lasting, eject=migration.eject_cdrom)
    images = disks.examine_images(found, description, state, host, flatten=migration.flatten)
    question = FilesQuestion(
        host, migration.domain, state, tuple(each for each in (description, lasting) if each is not None),
        flatten=migration.flatten, eject=migration.eject_cdrom)
    readable = [each for each in images.values() if isinstance(each, DiskFacts)]
    return SourceView(
        host, migration, hypervisor, description, lasting, state, found, images, tuple(files_of(question, readable)))
