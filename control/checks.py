"""Everything that is looked at before anything moves: both hosts, the way between them, and what the guest writes.

Side by side where they can be; nothing is changed, and all that stands in the way is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Optional

from constant import Command, LibvirtDaemon, Severity, Transport, Verdict
from control.conversation import Asked, Conversation, SilenceError, clock_skew, reason_of
from control.plan import Plan, make_plan, planned_bytes
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts, HostFacts
from wire.findings import Check, CheckReport, Finding, not_fine, skip
from wire.phrase import Phrase, joined
from wire.records import LinkArguments, LinkReport, Migration, StepArguments

_MIB = 1024 * 1024
# What the probe sends for: with the login and libvirt's second of counting it stays under two seconds, but on a link
# that carries so little that it takes longer to tell (host/link_rate.py).
_MEASURE_MILLISECONDS = 500
# And how much: little of what is to be moved, but enough to tell a rate from.
_MEASURE_SHARE = 1 / 192
_MEASURE_LEAST = 12 * _MIB
# From there on a guest's clock can be seen to jump, and Kerberos and TLS are only a little more patient.
SKEW_SECONDS = 2.0


# What there is against too much writing, for the admin who reads that it is too much.
_HELPS = {
    Check.DIRTY_RATE: Phrase(
        "`--auto-converge` slows the guest down, `--post-copy` lets it go on at the destination before its memory is "
        "there, `--max-downtime` allows a longer pause, `--timeout S --on-timeout suspend` pauses it after that time"),
    Check.DISK_WRITE_RATE: Phrase(
        "`--synchronous-writes` has its writes wait for the destination, `--timeout S --on-timeout suspend` pauses it "
        "after that time"),
}


@dataclass
class Measuring:
    """MEASURE_LINK on both hosts at once: the source sends, the destination counts."""

    asked: dict[str, Asked] = field(default_factory=dict)
    reports: dict[str, LinkReport] = field(default_factory=dict)
    errors: list[MigrationError] = field(default_factory=list)

    @classmethod
    def begin(cls, talk: Conversation, migration: Migration, facts: DomainFacts) -> Measuring:
        """Ask for it, on the way that the migration will take."""
        at_most = max(_MEASURE_LEAST, round(sum(planned_bytes(facts)) * _MEASURE_SHARE))
        arguments = link_arguments(migration, milliseconds=_MEASURE_MILLISECONDS, at_most=at_most, keep=True)
        measuring = cls()
        for host in (migration.destination, migration.source):
            try:
                measuring.asked[host] = talk.begin(Command.MEASURE_LINK, host, arguments)
            except (MigrationError, SilenceError) as error:
                measuring.errors.append(reason_of(error))
        return measuring

    def end(self, talk: Conversation, host: str, told: Callable[[LinkReport], str]) -> LinkReport:
        """What that host has measured, as far as it could."""
        asked = self.asked.pop(host, None)
        if asked is not None:
            try:
                self.reports[host] = talk.end(asked, LinkReport, told)
            except (MigrationError, SilenceError) as error:
                self.errors.append(reason_of(error))
        return self.reports.get(host, LinkReport())


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
    measuring: Optional[Measuring] = None
    """What is still being measured."""

    @property
    def may_start(self) -> bool:
        """Whether nothing stands in the way."""
        return self.facts is not None and not self.errors and not any(
            finding.severity is Severity.STOPS for finding in self.findings)


def check(talk: Conversation, migration: Migration, *, whole: bool = True) -> Checked:
    """Look at everything. What cannot be asked any more is left out, what can be is asked all the same.

    Unless `whole`, the link may still be measured when it returns, until link_is_free(), and what the guest writes
    still be counted: that stands in nobody's way, and takes libvirt a second. measured() waits for it.
    """
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
        checked.measuring = Measuring.begin(talk, checked.migration, checked.facts)
        if whole or migration.transport is Transport.TCP:
            # Closed ports are found out about by this.
            measured(talk, checked)
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


def link_arguments(
    migration: Migration, *, milliseconds: int = 0, at_most: int = 0, keep: bool = False,
) -> LinkArguments:
    """The way that the migration will take, as CHECK_LINK and MEASURE_LINK are asked for it."""
    return LinkArguments(
        job_id=migration.job_id, source=migration.source, destination=migration.destination, user=migration.user,
        transport=migration.transport, destination_daemon=migration.destination_daemon, domain=migration.domain,
        name_there=migration.new_name, milliseconds=milliseconds, bandwidth=migration.bandwidth, at_most=at_most,
        keep=keep)


def _reports(talk: Conversation, checked: Checked) -> Iterator[tuple[Command, CheckReport]]:
    """The three checks: the way is tried while the source is looked at, and while the destination is."""
    migration, hosts = checked.migration, checked.hosts
    if migration.source not in hosts:
        return
    source = _begin(talk, checked, Command.CHECK_SOURCE, migration.source, StepArguments(migration=migration))
    way = _begin(talk, checked, Command.CHECK_LINK, migration.source, link_arguments(migration, keep=True))
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
    checked.errors = (*checked.errors, reason_of(error))


def summarise(report: CheckReport) -> Phrase:
    """A report in a few words."""
    counts = {severity: sum(finding.severity is severity for finding in report.findings) for severity in Severity}
    stops, warnings = counts[Severity.STOPS], counts[Severity.WARNS]
    checks = str(len({finding.check for finding in report.findings}))
    found = []
    if stops:
        found.append(Phrase("{count} obstacle" if stops == 1 else "{count} obstacles", {"count": str(stops)}))
    if warnings:
        found.append(Phrase("{count} warning" if warnings == 1 else "{count} warnings", {"count": str(warnings)}))
    if not found:
        return Phrase("{count} checks, nothing in the way", {"count": checks})
    return Phrase("{count} checks: {found}" if checks != "1" else "{count} check: {found}", {
        "count": checks, "found": joined(found)})


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


def link_is_free(talk: Conversation, checked: Checked) -> None:
    """Wait until nothing is sent any more to measure the link: nothing else is to go through it meanwhile."""
    if checked.measuring is not None:
        checked.measuring.end(talk, checked.migration.destination, _counted)


def measured(talk: Conversation, checked: Checked) -> tuple[Finding, ...]:
    """Wait for what is still being measured, and make the plan from it; returns what was found out by that."""
    measuring, facts = checked.measuring, checked.facts
    if measuring is None or facts is None:
        return ()
    checked.measuring = None
    found: list[Finding] = []
    link = _measured(talk, checked.migration, measuring, found)
    news = skip(found, talk.skipped)
    checked.findings += news
    if checked.may_start:
        checked.plan = make_plan(checked.migration, facts, link)
        writing = skip(_convergence(checked.migration, checked.plan), talk.skipped)
        checked.findings += writing
        news += writing
    return news


def _measured(talk: Conversation, migration: Migration, measuring: Measuring, found: list[Finding]) -> LinkReport:
    """The rate of the link, and what the guest writes meanwhile."""
    names = {"host": migration.source, "destination": migration.destination}
    rate = measuring.end(talk, migration.destination, _counted).rate
    source = measuring.end(talk, migration.source, _sent)
    for failure in measuring.errors:
        if failure.code is ErrorCode.PORTS_CLOSED:
            found.append(not_fine(Check.MIGRATION_PORTS, Severity.STOPS, failure))
        elif rate is None:
            facts = {**names, "reason": failure.facts.get("reason", failure.message)}
            found.append(not_fine(
                Check.LINK_RATE, Severity.WARNS, MigrationError(ErrorCode.LINK_NOT_MEASURED, facts)))
    if rate is not None:
        shown = {**names, "rate": f"{rate / _MIB:.1f}"}
        found.append(Finding(check=Check.LINK_RATE, severity=Severity.FINE, facts=shown))
    return LinkReport(rate=rate, dirty_rate=source.dirty_rate, write_rate=source.write_rate)


def _counted(report: LinkReport) -> Phrase:
    if report.rate is None:
        return Phrase("nothing arrived that was counted")
    return Phrase("{rate} MiB/s arrive", {"rate": f"{report.rate / _MIB:.1f}"})


def _sent(report: LinkReport) -> Phrase:
    written = report.dirty_rate
    if written is None:
        return Phrase("sent")
    return Phrase("sent; the guest writes {written} MiB/s of memory meanwhile", {"written": f"{written / _MIB:.0f}"})


def _convergence(migration: Migration, plan: Plan) -> Iterator[Finding]:
    """Whether copying catches up with the guest's writing."""
    rate = plan.link_rate
    for check, written, what in (
        (Check.DIRTY_RATE, plan.dirty_rate, Phrase("memory")),
        (Check.DISK_WRITE_RATE, plan.write_rate, Phrase("disk")),
    ):
        if written is None:
            continue
        facts = {"host": migration.source, "domain": migration.domain, "destination": migration.destination,
                 "written": f"{written / _MIB:.1f}", "what": what, "rate": f"{(rate or 0) / _MIB:.1f}",
                 "verdict": Phrase(plan.verdict.value), "helps": _HELPS[check]}
        bad = plan.verdict in (Verdict.NEEDS_THROTTLING, Verdict.WILL_NOT_CONVERGE) and written * 2 >= (rate or 0)
        if bad:
            yield not_fine(check, Severity.WARNS, MigrationError(ErrorCode.NOT_CONVERGING, facts))
        else:
            yield Finding(check=check, severity=Severity.FINE, facts=facts)
