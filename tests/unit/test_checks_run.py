"""How a run looks before it moves anything: side by side, all obstacles at once, and nothing changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pytest

from constant import CHANGE_NOTHING, Command, ExitCode, Outcome, Severity, Transport, Verdict
from control.conversation import Contact, ControllerSettings, clock_skew
from control.report import RunReport
from controller import Controller
from tests.unit.samples import AGENTS, DESTINATION, FACTS, FINE, HOST_FACTS, MASTER, MIGRATION, SOURCE, obstacle
from tests.unit.scripted import (
    CHECKED,
    COMPLETING,
    COUNTING,
    GREETED,
    LOOKED,
    MOVING,
    Call,
    Interrupt,
    Notes,
    ScriptedAgents,
    Silence,
    codes,
    obstacle_codes,
    run,
)
from wire.access import Key
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange
from wire.findings import CHECKS, Check, CheckReport, Finding, not_fine, parse_skipped, skip, skippable
from wire.message import Request
from wire.records import LinkReport, Migration

SHORT = obstacle(ErrorCode.MEMORY_SHORT, Check.MEMORY, host=DESTINATION, domain="VM1", free="1", needed="2")
TAKEN = obstacle(ErrorCode.PATH_TAKEN, Check.TARGET_PATH, host=DESTINATION, path="/srv/x")
BUSY = obstacle(ErrorCode.DOMAIN_BUSY, Check.DOMAIN_JOB, host=SOURCE, domain="VM1")
NO_LOGIN = obstacle(
    ErrorCode.SSH_LOGIN_REFUSED, Check.SSH, host=SOURCE, destination=DESTINATION, user="kvm", reason="no")
WARNING = not_fine(Check.CPUS, Severity.WARNS, MigrationError(ErrorCode.CPUS_FEWER, {
    "host": DESTINATION, "domain": "VM1", "vcpus": "8", "cpus": "2"}))
MIB = 1 << 20


def look(
    script: Mapping[Call, object], *, dry_run: bool = True, skipped: frozenset[Check] = frozenset(),
    migration: Migration = MIGRATION,
) -> tuple[RunReport, ScriptedAgents, Notes]:
    """One run against agents that do as scripted, a dry one unless it says otherwise."""
    agents, notes = ScriptedAgents(script=script), Notes()
    settings = ControllerSettings(agents=AGENTS, keys=(MASTER,))
    controller = Controller(settings, agents, notes, agents.clock, skipped=skipped, dry_run=dry_run)
    return controller.migrate(migration), agents, notes


def found(*findings: Finding) -> CheckReport:
    """A report with these findings."""
    return CheckReport(findings=findings)


EACH_SIDE: Mapping[Call, object] = {
    (Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(BUSY, FINE), facts=FACTS),
    (Command.CHECK_LINK, SOURCE): found(NO_LOGIN),
    (Command.CHECK_DESTINATION, DESTINATION): found(SHORT, TAKEN, WARNING),
}


# A dry run.


def test_a_dry_run_asks_only_what_changes_nothing_and_ends_with_a_plan() -> None:
    report, agents, _notes = look({})
    assert agents.calls() == CHECKED
    assert {command for command, _host in agents.calls()} <= CHANGE_NOTHING
    assert (report.outcome, report.exit_code, report.would_start) == (Outcome.NOTHING_CHANGED, ExitCode.MOVED, True)
    assert report.exit_code == 0
    assert report.plan is not None
    assert report.plan.link_rate == 100 << 20
    assert report.dry_run


def test_a_real_run_asks_exactly_the_same_first() -> None:
    _report, dry, _notes = look({})
    report, real, _notes = look({}, dry_run=False)
    assert real.calls() == dry.calls() + MOVING + COMPLETING
    assert report.plan is not None
    assert not report.dry_run


def test_both_kinds_of_run_refuse_with_the_same_list() -> None:
    reports = [look(EACH_SIDE, dry_run=dry_run)[0] for dry_run in (True, False)]
    assert reports[0].findings == reports[1].findings
    assert {report.exit_code for report in reports} == {ExitCode.REFUSED}
    assert {report.would_start for report in reports} == {False}


def test_what_stands_in_the_way_on_both_hosts_and_between_them_comes_at_once() -> None:
    report, agents, _notes = look(EACH_SIDE)
    assert report.obstacles == (BUSY, SHORT, TAKEN, NO_LOGIN)
    assert report.warnings == (WARNING,)
    assert agents.calls() == LOOKED
    assert report.plan is None


def test_a_warning_keeps_no_run_from_starting() -> None:
    report, _agents, _notes = look({(Command.CHECK_DESTINATION, DESTINATION): found(WARNING)}, dry_run=False)
    assert (report.outcome, report.warnings) == (Outcome.MOVED, (WARNING,))


def test_the_way_is_tried_while_the_source_and_the_destination_are_looked_at() -> None:
    _report, _agents, notes = look({})
    order = {line: place for place, line in enumerate(notes.told)}
    assert order[f"CHECK_LINK {SOURCE} began"] < order[f"CHECK_SOURCE {SOURCE} ended"]
    assert order[f"CHECK_DESTINATION {DESTINATION} ended"] < order[f"CHECK_LINK {SOURCE} ended"]
    assert order[f"MEASURE_LINK {SOURCE} began"] < order[f"MEASURE_LINK {DESTINATION} ended"]
    assert order[f"MEASURE_LINK {DESTINATION} began"] < order[f"MEASURE_LINK {SOURCE} ended"]
    assert order[f"CHECK_LINK {SOURCE} ended"] < order[f"MEASURE_LINK {SOURCE} began"]


def test_the_findings_are_told_before_anything_moves() -> None:
    told: list[tuple[int, list[Check]]] = []
    agents = ScriptedAgents(script={(Command.CHECK_DESTINATION, DESTINATION): found(WARNING)})
    settings = ControllerSettings(agents=AGENTS, keys=(MASTER,))

    def on_checked(findings: Sequence[Finding]) -> None:
        told.append((len(agents.calls()), [each.check for each in findings if each.severity is Severity.WARNS]))

    Controller(settings, agents, Notes(), agents.clock, on_checked=on_checked).migrate(MIGRATION)
    assert told == [(len(CHECKED), [WARNING.check]), (len(CHECKED + MOVING), [])]


def test_what_the_guest_writes_is_waited_for_once_the_move_has_begun_and_told_then() -> None:
    told: list[list[Check]] = []
    agents = ScriptedAgents(script={
        (Command.MEASURE_LINK, DESTINATION): LinkReport(rate=10 * MIB),
        (Command.MEASURE_LINK, SOURCE): LinkReport(dirty_rate=900 * MIB, write_rate=0)})
    notes = Notes()
    settings = ControllerSettings(agents=AGENTS, keys=(MASTER,))
    report = Controller(
        settings, agents, notes, agents.clock,
        on_checked=lambda findings: told.append(
            [each.check for each in findings if each.severity is Severity.WARNS])).migrate(MIGRATION)
    assert (report.outcome, told) == (Outcome.MOVED, [[], [Check.DIRTY_RATE]])
    assert [finding.check for finding in report.warnings] == [Check.DIRTY_RATE]
    assert report.plan is not None
    assert report.plan.dirty_rate == 900 * MIB
    order = notes.told.index
    assert order(f"LIVE_MIGRATION {SOURCE} began") < order(f"MEASURE_LINK {SOURCE} ended") < order(
        f"LIVE_MIGRATION {SOURCE} ended")


class EarlyAgents(ScriptedAgents):
    """What the guest writes is counted within a moment, however long nobody looks at it."""

    def start(
        self, request: Request, keys: Sequence[Key], patience: float, limit: float = math.inf, *,
        attached: bool = False,
    ) -> Exchange:
        """Know already when it ends."""
        exchange = super().start(request, keys, patience, limit, attached=attached)
        if (request.cmd, request.agent_ip) == COUNTING:
            exchange.ended_at = self.clock.now + 0.2
        return exchange


def test_a_step_that_is_looked_at_late_took_as_long_as_it_took() -> None:
    report, _agents, _notes = run({}, EarlyAgents())
    (took,) = [step.seconds for step in report.steps if (step.command, step.host) == COUNTING]
    assert took == pytest.approx(0.2)


def test_ports_are_found_closed_before_anything_is_made() -> None:
    closed = MigrationError(ErrorCode.PORTS_CLOSED, {
        "host": SOURCE, "destination": DESTINATION, "port": "49152", "reason": "refused"})
    script = {(Command.MEASURE_LINK, SOURCE): closed, (Command.MEASURE_LINK, DESTINATION): LinkReport()}
    agents = ScriptedAgents(script=script)
    report = Controller(
        ControllerSettings(agents=AGENTS, keys=(MASTER,)), agents, Notes(), agents.clock,
    ).migrate(dataclasses.replace(MIGRATION, transport=Transport.TCP))
    assert (report.outcome, agents.calls()) == (Outcome.NOTHING_CHANGED, CHECKED)


@pytest.mark.parametrize(("silent", "asked"), [
    ((Command.HELLO, DESTINATION), LOOKED[:4]), ((Command.HELLO, SOURCE), GREETED),
    ((Command.CHECK_DESTINATION, DESTINATION), LOOKED), ((Command.CHECK_LINK, SOURCE), LOOKED),
    ((Command.CHECK_SOURCE, SOURCE), LOOKED[:4]),
])
def test_what_can_still_be_asked_is_asked_when_something_is_silent(silent: Call, asked: list[Call]) -> None:
    report, agents, _notes = look({silent: Silence()})
    assert agents.calls() == asked
    assert codes(report) == [ErrorCode.AGENT_SILENT]
    assert (report.exit_code, report.would_start) == (ExitCode.NO_CONTACT, False)


def test_ctrl_c_during_the_checks_changes_nothing_and_begins_nothing_more() -> None:
    report, agents, notes = look({(Command.CHECK_SOURCE, SOURCE): Interrupt(
        CheckReport(findings=(), facts=FACTS))}, dry_run=False)
    assert (report.outcome, codes(report)) == (Outcome.NOTHING_CHANGED, [ErrorCode.MIGRATION_CANCELLED])
    assert agents.calls() == LOOKED[:4]
    assert not [line for line in notes.told if "cancel" in line or "leaving" in line]


# Skipping.


def test_a_skipped_obstacle_is_told_and_stops_nothing() -> None:
    script = {(Command.CHECK_DESTINATION, DESTINATION): found(SHORT)}
    assert look(script)[0].exit_code is ExitCode.REFUSED
    report, _agents, _notes = look(script, skipped=frozenset({Check.MEMORY}), dry_run=False)
    assert report.outcome is Outcome.MOVED
    (finding,) = report.warnings
    assert (finding.check, finding.skipped, finding.code) == (Check.MEMORY, True, ErrorCode.MEMORY_SHORT)


def test_only_the_check_that_is_named_is_skipped() -> None:
    report, _agents, _notes = look(
        {(Command.CHECK_DESTINATION, DESTINATION): found(SHORT, TAKEN)}, skipped=frozenset({Check.MEMORY}))
    assert obstacle_codes(report) == [ErrorCode.PATH_TAKEN]


def test_what_is_fine_is_not_made_worse_by_skipping_it() -> None:
    assert skip([FINE, SHORT], frozenset(Check)) == (FINE, dataclasses.replace(
        SHORT, severity=Severity.WARNS, skipped=True))


@pytest.mark.parametrize("check", list(Check))
def test_a_check_can_be_named_to_be_skipped_if_it_is_one_that_can(check: Check) -> None:
    if CHECKS[check].skippable:
        assert parse_skipped(check.value) is check
        return
    with pytest.raises(MigrationError) as caught:
        parse_skipped(check.value)
    assert caught.value.code is ErrorCode.CHECK_NOT_SKIPPABLE
    assert all(name in caught.value.hint for name in skippable())


def test_an_unknown_check_cannot_be_skipped() -> None:
    with pytest.raises(MigrationError) as caught:
        parse_skipped("no-such-check")
    assert caught.value.code is ErrorCode.CHECK_UNKNOWN
    assert caught.value.exit_code is ExitCode.INPUT


# One cause, one obstacle.


MISSING = obstacle(ErrorCode.USER_MISSING, Check.SSH_USER, host=DESTINATION, user="kvm")
NOT_IN_GROUP = obstacle(
    ErrorCode.USER_NOT_IN_GROUP, Check.SSH_USER, host=DESTINATION, user="kvm", path="/run/x", group="libvirt")
NO_LIBVIRT = obstacle(ErrorCode.LIBVIRT_UNREACHABLE, Check.LIBVIRT, host=DESTINATION, reason="no")
NO_REMOTE = obstacle(ErrorCode.SSH_LIBVIRT_REFUSED, Check.REMOTE_LIBVIRT, host=SOURCE, destination=DESTINATION,
                     user="kvm", reason="no")
NO_KEY = obstacle(ErrorCode.SSH_HOST_KEY_UNKNOWN, Check.SSH, host=SOURCE, destination=DESTINATION, user="kvm")


@pytest.mark.parametrize(("there", "way", "left"), [
    (NO_LIBVIRT, NO_REMOTE, [NO_LIBVIRT]), (NOT_IN_GROUP, NO_REMOTE, [NOT_IN_GROUP]), (MISSING, NO_LOGIN, [MISSING]),
    (NOT_IN_GROUP, NO_LOGIN, [NOT_IN_GROUP, NO_LOGIN]), (MISSING, NO_KEY, [MISSING, NO_KEY]),
    (TAKEN, NO_REMOTE, [TAKEN, NO_REMOTE]), (FINE, NO_LOGIN, [NO_LOGIN]),
])
def test_what_only_follows_from_another_obstacle_is_not_told_beside_it(
    there: Finding, way: Finding, left: list[Finding],
) -> None:
    report, _agents, _notes = look({
        (Command.CHECK_DESTINATION, DESTINATION): found(there), (Command.CHECK_LINK, SOURCE): found(way)})
    assert list(report.obstacles) == left


def test_what_two_checks_have_met_is_told_once() -> None:
    missing = obstacle(ErrorCode.TOOL_MISSING, Check.TOOLS, host=SOURCE, tool="ssh", package="openssh-client")
    report, _agents, _notes = look({
        (Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(missing, FINE), facts=FACTS),
        (Command.CHECK_LINK, SOURCE): found(dataclasses.replace(missing))})
    assert report.obstacles == (missing,)


def test_what_follows_from_a_skipped_obstacle_still_stops() -> None:
    report, _agents, _notes = look({
        (Command.CHECK_DESTINATION, DESTINATION): found(NOT_IN_GROUP), (Command.CHECK_LINK, SOURCE): found(NO_REMOTE),
    }, skipped=frozenset({Check.SSH_USER}))
    assert report.obstacles == (NO_REMOTE,)


# A finding.


def test_a_finding_has_an_error_if_and_only_if_it_is_not_fine() -> None:
    with pytest.raises(ValueError, match="no error"):
        Finding(check=Check.CPU, severity=Severity.FINE, facts={}, code=ErrorCode.CPU_INCOMPATIBLE)
    with pytest.raises(ValueError, match="no error"):
        Finding(check=Check.CPU, severity=Severity.STOPS, facts={})
    with pytest.raises(ValueError, match="nothing"):
        FINE.error()
    assert (FINE.message, FINE.hint) == ("it has no snapshots", "")
    assert "2 MiB" in SHORT.message
    assert SHORT.hint


@pytest.mark.parametrize("check", list(Check))
def test_what_a_check_says_where_it_is_fine_is_a_phrase(check: Check) -> None:
    words = CHECKS[check].fine
    assert words
    assert not words.endswith(".")


# The clocks.


def contact(clock: float, at: float, until: float) -> Contact:
    """A host whose clock stood at `clock` some time between the two."""
    return Contact(dataclasses.replace(HOST_FACTS, clock=round(clock * 1000)), at, until)


@pytest.mark.parametrize(("one", "other", "skew"), [
    (contact(1000.0, 10.0, 10.0), contact(1000.0, 10.0, 10.0), 0.0),
    (contact(1005.0, 10.0, 10.0), contact(1000.0, 10.0, 10.0), 5.0),
    (contact(1000.0, 10.0, 10.0), contact(1005.0, 10.0, 10.0), 5.0),
    # The answer took four seconds: the clock may have been read at any time in between.
    (contact(1005.0, 10.0, 14.0), contact(1000.0, 10.0, 10.0), 1.0),
    (contact(1003.0, 10.0, 14.0), contact(1000.0, 10.0, 10.0), 0.0),
])
def test_two_clocks_are_as_far_apart_as_is_certain(one: Contact, other: Contact, skew: float) -> None:
    assert clock_skew(one, other) == pytest.approx(skew)


# Measuring.


def test_ports_that_are_closed_stop_a_move_over_tcp_unless_that_is_skipped() -> None:
    closed = MigrationError(ErrorCode.PORTS_CLOSED, {
        "host": SOURCE, "destination": DESTINATION, "port": "49152", "reason": "timed out"})
    script = {(Command.MEASURE_LINK, SOURCE): closed, (Command.MEASURE_LINK, DESTINATION): LinkReport()}
    over_tcp = dataclasses.replace(MIGRATION, transport=Transport.TCP)
    report, agents, _notes = look(script, migration=over_tcp, dry_run=False)
    assert (obstacle_codes(report), report.outcome) == ([ErrorCode.PORTS_CLOSED], Outcome.NOTHING_CHANGED)
    assert agents.calls() == CHECKED
    report, _agents, _notes = look(
        script, migration=over_tcp, dry_run=False, skipped=frozenset({Check.MIGRATION_PORTS}))
    assert report.outcome is Outcome.MOVED


@pytest.mark.parametrize("trouble", [Silence(), MigrationError(ErrorCode.SSH_FAILED, {"reason": "no"})])
@pytest.mark.parametrize("host", [SOURCE, DESTINATION])
def test_a_link_that_could_not_be_measured_is_a_warning_and_the_plan_has_no_times(host: str, trouble: object) -> None:
    script = {(Command.MEASURE_LINK, host): trouble}
    if host == SOURCE:
        script[(Command.MEASURE_LINK, DESTINATION)] = LinkReport()
    report, _agents, _notes = look(script)
    assert [finding.code for finding in report.warnings] == [ErrorCode.LINK_NOT_MEASURED]
    assert report.would_start
    assert report.plan is not None
    assert (report.plan.seconds, report.plan.verdict) == (None, Verdict.NOT_MEASURED)


@pytest.mark.parametrize(("dirty", "written", "checks"), [
    (0, 0, set()), (20, 0, {Check.DIRTY_RATE}), (0, 20, {Check.DISK_WRITE_RATE}),
    (20, 20, {Check.DIRTY_RATE, Check.DISK_WRITE_RATE}), (20, 1, {Check.DIRTY_RATE}),
])
def test_a_guest_that_writes_faster_than_the_link_is_a_warning_that_says_of_what(
    dirty: int, written: int, checks: set[Check],
) -> None:
    report, _agents, _notes = look({
        (Command.MEASURE_LINK, DESTINATION): LinkReport(rate=10 * MIB),
        (Command.MEASURE_LINK, SOURCE): LinkReport(dirty_rate=dirty * MIB, write_rate=written * MIB)})
    assert {finding.check for finding in report.warnings} == checks
    assert {finding.code for finding in report.warnings} <= {ErrorCode.NOT_CONVERGING}
    assert report.would_start
