"""Everything that is looked at before anything moves: both hosts, the way between them, and what the guest writes.

Side by side where they can be; nothing is changed, and all that stands in the way is told at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Optional

from constant import Command, LibvirtDaemon, Severity, Verdict
from control.conversation import Asked, Conversation, SilenceError, clock_skew
from control.plan import Plan, make_plan, planned_bytes
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts, HostFacts
from wire.findings import Check, CheckReport, Finding, not_fine, skip
from wire.records import LinkArguments, LinkReport, Migration, StepArguments

_MIB = 1024 * 1024
# What the probe sends for: with the login and libvirt's second of counting it stays under two seconds.
_MEASURE_MILLISECONDS = 800
# And how much: little of what is to be moved, but enough to tell a rate from.
_MEASURE_SHARE = 1 / 48
_MEASURE_LEAST = 12 * _MIB
# From there on a guest's clock can be seen to jump, and Kerberos and TLS are only a little more patient.
SKEW_SECONDS = 2.0


# What there is against too much writing, for the admin who reads that it is too much.
_HELPS = {
    Check.DIRTY_RATE:
        "`--auto-converge` slows the guest down, `--post-copy` lets it go on at the destination before its memory is "
        "there, `--max-downtime` allows a longer pause, `--timeout S --on-timeout suspend` pauses it after that time",
    Check.DISK_WRITE_RATE:
        "`--synchronous-writes` has its writes wait for the destination, `--timeout S --on-timeout suspend` pauses it "
        "after that time",
}


@dataclass
class Checked:
    """What was found out about a migration before it began."""

    migration: Migration
    facts: Optional[DomainFacts] = None
    findings: tuple[Finding, ...] = ()
    errors: tuple[MigrationError, ...] = ()
    """What went wrong with asking: a silent agent, a refusal."""
    plan: Optional[Plan] = None
    hosts: Mapping[str, HostFacts] = field(default_factory=dict)

    @property
    def may_start(self) -> bool:
        """Whether nothing stands in the way."""
        return self.facts is not None and not self.errors and not any(
            finding.severity is Severity.STOPS for finding in self.findings)


def check(talk: Conversation, migration: Migration) -> Checked:
    """Look at everything. What cannot be asked any more is left out, what can be is asked all the same."""
    errors = talk.greet((migration.source, migration.destination))
    hosts = {host: contact.facts for host, contact in talk.contacts.items()}
    daemons = [hosts[host].daemon if host in hosts else LibvirtDaemon.LIBVIRTD
               for host in (migration.source, migration.destination)]
    migration = migration.with_daemons(*daemons)
    checked = Checked(migration, errors=tuple(errors), hosts=hosts)
    found: list[Finding] = [*_clock(talk, migration)]
    for command, report in _reports(talk, checked):
        found += report.findings
        if command is Command.CHECK_SOURCE:
            checked.facts = report.facts
        elif command is Command.CHECK_DESTINATION:
            checked.migration = migration = migration.into_directory(report.directory)
    checked.findings = _causes(migration, skip(found, talk.skipped))
    if checked.may_start and checked.facts is not None:
        _measure(talk, checked, checked.facts)
    return checked


def _causes(migration: Migration, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings without those that only follow from another one: that has the remedy, and comes once."""
    stopping = [finding for finding in findings if finding.severity is Severity.STOPS]
    user_missing = any(finding.code is ErrorCode.USER_MISSING for finding in stopping)
    no_libvirt = any(
        finding.check is Check.SSH_USER or (
            finding.check is Check.LIBVIRT and finding.facts.get("host") == migration.destination)
        for finding in stopping)

    def follows(finding: Finding) -> bool:
        if finding.check is Check.SSH:
            return user_missing and finding.code is ErrorCode.SSH_LOGIN_REFUSED
        return no_libvirt and finding.code is ErrorCode.SSH_LIBVIRT_REFUSED

    # Two checks on one host may meet the same: a tool that is missing, a libvirt that does not answer.
    once = {(finding.check, finding.severity, finding.message): finding for finding in reversed(findings)}
    kept = [id(finding) for finding in once.values()]
    return tuple(finding for finding in findings if id(finding) in kept and not follows(finding))


def link_arguments(migration: Migration, *, milliseconds: int = 0, at_most: int = 0) -> LinkArguments:
    """The way that the migration will take, as CHECK_LINK and MEASURE_LINK are asked for it."""
    return LinkArguments(
        job_id=migration.job_id, source=migration.source, destination=migration.destination, user=migration.user,
        transport=migration.transport, destination_daemon=migration.destination_daemon, domain=migration.domain,
        milliseconds=milliseconds, bandwidth=migration.bandwidth, at_most=at_most)


def _reports(talk: Conversation, checked: Checked) -> Iterator[tuple[Command, CheckReport]]:
    """The three checks: the way is tried while the source is looked at, and while the destination is."""
    migration, hosts = checked.migration, checked.hosts
    if migration.source not in hosts:
        return
    source = _begin(talk, checked, Command.CHECK_SOURCE, migration.source, StepArguments(migration=migration))
    way = _begin(talk, checked, Command.CHECK_LINK, migration.source, link_arguments(migration))
    report = _end(talk, checked, source)
    if report is not None:
        yield Command.CHECK_SOURCE, report
        if report.facts is not None and migration.destination in hosts:
            destination = _begin(
                talk, checked, Command.CHECK_DESTINATION, migration.destination,
                StepArguments(migration=migration, facts=report.facts))
            report = _end(talk, checked, destination)
            if report is not None:
                yield Command.CHECK_DESTINATION, report
    report = _end(talk, checked, way)
    if report is not None:
        yield Command.CHECK_LINK, report


def _begin(
    talk: Conversation, checked: Checked, command: Command, host: str, arguments: StepArguments | LinkArguments,
) -> Asked | None:
    try:
        return talk.begin(command, host, arguments)
    except (MigrationError, SilenceError) as error:
        _note(checked, error)
        return None


def _end(talk: Conversation, checked: Checked, asked: Asked | None) -> CheckReport | None:
    if asked is None:
        return None
    try:
        return talk.end(asked, CheckReport, summarise)
    except (MigrationError, SilenceError) as error:
        _note(checked, error)
        return None


def _note(checked: Checked, error: MigrationError | SilenceError) -> None:
    checked.errors = (*checked.errors, error.error if isinstance(error, SilenceError) else error)


def summarise(report: CheckReport) -> str:
    """A report in a few words."""
    counts = {severity: sum(finding.severity is severity for finding in report.findings) for severity in Severity}
    stops, warnings = counts[Severity.STOPS], counts[Severity.WARNS]
    parts = [f"{len({finding.check for finding in report.findings})} checks"]
    if stops:
        parts.append(f"{stops} obstacle{'s' if stops != 1 else ''}")
    if warnings:
        parts.append(f"{warnings} warning{'s' if warnings != 1 else ''}")
    return f"{parts[0]}: {', '.join(parts[1:])}" if len(parts) > 1 else f"{parts[0]}, nothing in the way"


def _clock(talk: Conversation, migration: Migration) -> Iterator[Finding]:
    """The two clocks, as HELLO told them."""
    contacts = [talk.contacts.get(host) for host in (migration.source, migration.destination)]
    if contacts[0] is None or contacts[1] is None:
        return
    skew = clock_skew(contacts[0], contacts[1])
    facts = {"host": migration.destination, "source": migration.source, "destination": migration.destination}
    if skew < SKEW_SECONDS:
        yield Finding(
            check=Check.CLOCK, severity=Severity.FINE, facts={**facts, "seconds": f"{SKEW_SECONDS:.0f}"})
    else:
        error = MigrationError(ErrorCode.CLOCK_SKEWED, {**facts, "seconds": f"{skew:.0f}"})
        yield not_fine(Check.CLOCK, Severity.WARNS, error)


# What takes time.


def _measure(talk: Conversation, checked: Checked, facts: DomainFacts) -> None:
    """The rate of the link, what the guest writes meanwhile, and the plan from all that."""
    found: list[Finding] = []
    at_most = max(_MEASURE_LEAST, round(sum(planned_bytes(facts)) * _MEASURE_SHARE))
    link = _measured(talk, checked.migration, at_most, found)
    checked.findings = (*checked.findings, *skip(found, talk.skipped))
    if checked.may_start:
        checked.plan = make_plan(checked.migration, facts, link)
        checked.findings = (
            *checked.findings, *skip(_convergence(checked.migration, checked.plan), talk.skipped))


def _measured(talk: Conversation, migration: Migration, at_most: int, found: list[Finding]) -> LinkReport:
    """Both ends at once: the source sends, at most so many bytes, the destination counts."""
    arguments = link_arguments(migration, milliseconds=_MEASURE_MILLISECONDS, at_most=at_most)
    names = {"host": migration.source, "destination": migration.destination}
    asked: list[Asked] = []
    reports: dict[str, LinkReport] = {}
    errors: list[MigrationError] = []
    for host in (migration.destination, migration.source):
        try:
            asked.append(talk.begin(Command.MEASURE_LINK, host, arguments))
        except (MigrationError, SilenceError) as error:
            errors.append(error.error if isinstance(error, SilenceError) else error)
    for each in reversed(asked):
        try:
            told = _counted if each.host == migration.destination else _sent
            reports[each.host] = talk.end(each, LinkReport, told)
        except (MigrationError, SilenceError) as error:
            errors.append(error.error if isinstance(error, SilenceError) else error)
    source = reports.get(migration.source, LinkReport())
    rate = reports[migration.destination].rate if migration.destination in reports else None
    for failure in errors:
        if failure.code is ErrorCode.PORTS_CLOSED:
            found.append(not_fine(Check.MIGRATION_PORTS, Severity.STOPS, failure))
        elif rate is None:
            facts = {**names, "reason": failure.facts.get("reason", failure.message.rstrip("."))}
            found.append(not_fine(
                Check.LINK_RATE, Severity.WARNS, MigrationError(ErrorCode.LINK_NOT_MEASURED, facts)))
    if rate is not None:
        shown = {**names, "rate": f"{rate / _MIB:.1f}"}
        found.append(Finding(check=Check.LINK_RATE, severity=Severity.FINE, facts=shown))
    return LinkReport(rate=rate, dirty_rate=source.dirty_rate, write_rate=source.write_rate)


def _counted(report: LinkReport) -> str:
    return f"{report.rate / _MIB:.1f} MiB/s arrive" if report.rate is not None else "nothing arrived that was counted"


def _sent(report: LinkReport) -> str:
    written = report.dirty_rate
    return "sent" if written is None else f"sent; the guest writes {written / _MIB:.0f} MiB/s of memory meanwhile"


def _convergence(migration: Migration, plan: Plan) -> Iterator[Finding]:
    """Whether copying catches up with the guest's writing."""
    rate = plan.link_rate
    for check, written, what in (
        (Check.DIRTY_RATE, plan.dirty_rate, "memory"), (Check.DISK_WRITE_RATE, plan.write_rate, "disk"),
    ):
        if written is None:
            continue
        facts = {"host": migration.source, "domain": migration.domain, "destination": migration.destination,
                 "written": f"{written / _MIB:.1f}", "what": what, "rate": f"{(rate or 0) / _MIB:.1f}",
                 "verdict": plan.verdict.value, "helps": _HELPS[check]}
        bad = plan.verdict in (Verdict.NEEDS_THROTTLING, Verdict.WILL_NOT_CONVERGE) and written * 2 >= (rate or 0)
        if bad:
            yield not_fine(check, Severity.WARNS, MigrationError(ErrorCode.NOT_CONVERGING, facts))
        else:
            yield Finding(check=check, severity=Severity.FINE, facts=facts)
