"""The Controller against scripted agents: which host is asked what, in which order, and what it concludes."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from constant import (
    CHECK_LIMIT_SECONDS,
    GIVE_UP_SECONDS,
    HELLO_GIVE_UP_SECONDS,
    Command,
    DomainState,
    ExitCode,
    LibvirtDaemon,
    Outcome,
)
from control.checks import link_arguments
from control.conversation import ControllerSettings
from control.plan import planned_bytes
from control.report import RunReport
from controller import Controller
from tests.unit.samples import (
    AGENTS,
    DESTINATION,
    FACTS,
    HOST_FACTS,
    MASTER,
    MIGRATION,
    MOVED,
    SOURCE,
    obstacle,
    write_key,
)
from tests.unit.scripted import (
    BEFORE,
    CHECKED,
    CHECKED_IN_TURN,
    COMPLETING,
    FAILED,
    FORGOTTEN,
    GREETED,
    HANDING,
    HELD,
    LOOKED,
    MOVING,
    MOVING_IN_TURN,
    ROLLING_BACK,
    Call,
    InTurn,
    Notes,
    Overdue,
    Raw,
    ScriptedAgents,
    Silence,
    WithProgress,
    codes,
    controller_of,
    obstacle_codes,
    run,
    slow_at,
)
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange, GaveUp
from wire.facts import DomainFacts
from wire.findings import CheckReport
from wire.message import Reply, Request
from wire.records import HelloArguments, MigrationReport, Progress, StepArguments


def found(*obstacles: ErrorCode, facts: DomainFacts | None = None) -> CheckReport:
    """A check that found these obstacles."""
    return CheckReport(
        findings=tuple(obstacle(code, domain="VM1") for code in obstacles), facts=facts)


# The way it should go.


def test_a_run_without_trouble_asks_each_host_for_its_steps_in_order() -> None:
    report, agents, _notes = run({})
    assert agents.calls() == CHECKED + MOVING + COMPLETING
    assert (report.outcome, report.exit_code, report.errors) == (Outcome.MOVED, ExitCode.MOVED, ())
    assert report.runs_on == DESTINATION
    assert report.moved == MOVED


def test_a_report_holds_every_step_with_its_seconds() -> None:
    report, agents, _notes = run({})
    assert [(step.command, step.host) for step in report.steps] == CHECKED_IN_TURN + MOVING_IN_TURN + COMPLETING
    assert all(step.summary and step.error is None for step in report.steps)
    moving = [step for step in report.steps if (step.command, step.host) in [*MOVING[:2], *COMPLETING]]
    assert [step.seconds for step in moving] == pytest.approx([0.5] * len(moving))
    assert report.seconds == pytest.approx(0.5 * len(agents.asked))


def test_the_observer_hears_of_each_step_as_it_begins_and_ends() -> None:
    progress = (
        Progress(phase="copying the disk", done=1, total=4), Progress(phase="copying memory", done=3, total=4))
    _report, _agents, notes = run({(Command.LIVE_MIGRATION, SOURCE): WithProgress(progress, MOVED)})
    expected = []
    for command, host in MOVING + COMPLETING:
        expected.append(f"{command.value} {host} began")
        if command is Command.LIVE_MIGRATION:
            expected += [f"MEASURE_LINK {SOURCE} ended"]
            expected += [f"LIVE_MIGRATION {SOURCE} 1/4", f"LIVE_MIGRATION {SOURCE} 3/4"]
        expected.append(f"{command.value} {host} ended")
        if command is Command.PREPARE_DESTINATION:
            expected += [f"MEASURE_LINK {DESTINATION} ended"]
    assert notes.told[-len(expected):] == expected
    checks = notes.told[:-len(expected)]
    measured = [f"MEASURE_LINK {host} ended" for host in (SOURCE, DESTINATION)]
    assert sorted([*checks, *measured]) == sorted(
        f"{command.value} {host} {word}" for command, host in CHECKED for word in ("began", "ended"))
    assert all(checks.index(line.replace("ended", "began")) < checks.index(line) for line in checks if "ended" in line)


def test_the_destination_is_told_of_a_long_move_so_that_it_keeps_its_place() -> None:
    # A report each second of the scripted agents' clock.
    progress = tuple(Progress(phase="copying the disk", done=second, total=300) for second in range(200))
    report, agents, _notes = run({(Command.LIVE_MIGRATION, SOURCE): WithProgress(progress, MOVED)})
    assert report.outcome is Outcome.MOVED
    kept = [
        each for each in agents.asked if each.request.cmd_arguments == HelloArguments(job_id=MIGRATION.job_id)]
    assert all(each.request.challenge == HOST_FACTS.challenge for each in kept)
    assert {asked.request.agent_ip for asked in kept} == {DESTINATION}
    assert len(kept) > 200 / GIVE_UP_SECONDS


def test_each_step_gets_the_whole_migration_and_what_the_check_of_the_source_found() -> None:
    _report, agents, _notes = run({})
    link = {Command.CHECK_LINK: link_arguments(MIGRATION, keep=True),
            Command.MEASURE_LINK: link_arguments(
                MIGRATION, milliseconds=500, at_most=round(sum(planned_bytes(FACTS)) / 192), keep=True)}
    for asked in agents.asked_for_steps()[:-1]:
        if asked.request.cmd in link:
            assert asked.request.cmd_arguments == link[asked.request.cmd]
            continue
        facts = None if asked.request.cmd is Command.CHECK_SOURCE else FACTS
        stood_still = MOVED.downtime if asked.request.cmd is Command.FINISH else 0
        last = (asked.request.cmd, asked.request.agent_ip) == COMPLETING[-1]
        moved = (asked.request.cmd, asked.request.agent_ip) in COMPLETING
        assert asked.request.cmd_arguments == StepArguments(
            migration=MIGRATION, facts=facts, stood_still=stood_still, destination_verified=last,
            source_gave_up=moved)


def test_each_agent_is_asked_with_its_own_key_a_fresh_id_and_its_own_challenge() -> None:
    there = dataclasses.replace(HOST_FACTS, epoch="other", challenge="34-fedcba")
    _report, agents, _notes = run({(Command.HELLO, DESTINATION): there})
    for asked in agents.asked:
        assert asked.keys == (MASTER.for_agent(asked.request.agent_ip),)
    for asked in agents.asked_for_steps():
        facts = there if asked.request.agent_ip == DESTINATION else HOST_FACTS
        assert (asked.request.epoch, asked.request.challenge) == (facts.epoch, facts.challenge)
    ids = [asked.request.request_id for asked in agents.asked]
    assert len(set(ids)) == len(ids)
    assert all(len(bytes.fromhex(request_id)) == 16 for request_id in ids)


def test_hello_is_given_up_sooner_than_a_step_that_may_have_begun() -> None:
    _report, agents, _notes = run({})
    assert {asked.patience for asked in agents.asked[:2]} == {HELLO_GIVE_UP_SECONDS}
    assert {asked.patience for asked in agents.asked[2:]} == {GIVE_UP_SECONDS}


def test_only_what_changes_nothing_is_given_up_while_the_agent_still_answers() -> None:
    _report, agents, _notes = run({})
    assert {asked.limit for asked in agents.asked if asked.request.cmd in {call[0] for call in CHECKED}} == {
        CHECK_LIMIT_SECONDS}
    assert {asked.limit for asked in agents.asked if (asked.request.cmd, asked.request.agent_ip) in
            MOVING + COMPLETING} == {math.inf}


@pytest.mark.parametrize("call", LOOKED)
def test_a_check_that_hangs_under_an_agent_that_answers_is_told_as_overdue(call: Call) -> None:
    report, _agents, _notes = run({call: Overdue()})
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING_CHANGED, ExitCode.NO_CONTACT)
    assert codes(report) == [ErrorCode.STEP_OVERDUE]
    assert report.errors[0].message == (
        f"The agent on {call[1]} answers, but has not finished {call[0].value} after 45 s.")


def test_a_greeting_in_the_middle_of_a_run_that_hangs_is_told_with_the_time_that_it_was_given() -> None:
    agents = slow_at(CHECKED[-1])
    report, _agents, _notes = run({(Command.HELLO, DESTINATION): InTurn(HOST_FACTS, Overdue())}, agents)
    (error,) = report.errors
    given = [each.limit for each in agents.asked if each.request.cmd is Command.HELLO][-1]
    assert (error.code, error.facts["seconds"]) == (ErrorCode.STEP_OVERDUE, f"{given:.0f}") == (error.code, "90")


def test_an_error_that_nobody_expected_where_it_came_is_told_as_what_it_is() -> None:
    def fail(_findings: object) -> None:
        raise MigrationError(ErrorCode.ADDRESS_UNUSABLE, {"host": SOURCE, "reason": "no IPv6 here"})

    controller = controller_of(ScriptedAgents(), Notes())
    controller.on_checked = fail
    report = controller.migrate(MIGRATION)
    assert (report.outcome, codes(report)) == (Outcome.NOTHING_CHANGED, [ErrorCode.ADDRESS_UNUSABLE])


@pytest.mark.parametrize("trouble", [
    Silence(), FAILED, Raw({"other": 1}), MigrationError(ErrorCode.AGENT_STOPPING, {"host": DESTINATION}),
])
def test_what_was_found_on_the_source_is_told_even_if_the_check_of_the_destination_fails(trouble: object) -> None:
    report, agents, _notes = run({
        (Command.CHECK_SOURCE, SOURCE): found(ErrorCode.DOMAIN_BUSY, facts=FACTS),
        (Command.CHECK_DESTINATION, DESTINATION): trouble})
    assert obstacle_codes(report) == [ErrorCode.DOMAIN_BUSY]
    assert len(report.errors) == 1
    assert report.outcome is Outcome.NOTHING_CHANGED
    assert agents.calls() == LOOKED


class SourceIsSlow(ScriptedAgents):
    """The source's HELLO takes 10 s, for which the destination's answer lies there."""

    def wait(self, exchange: Exchange, on_progress: Callable[[Progress], None]) -> Reply | GaveUp:
        """Answer as the script says, at those times."""
        answer = super().wait(exchange, on_progress)
        if exchange.request.cmd is Command.HELLO and exchange.request.agent_ip == SOURCE:
            self.clock.now += 10.0 - self.step_seconds
        late = exchange.request.cmd is Command.HELLO and exchange.request.agent_ip == DESTINATION
        exchange.ended_at = self.clock.now - (10.0 if late else 0.0)
        return answer


def test_a_greeting_takes_as_long_as_its_own_host_takes() -> None:
    report, _agents, _notes = run({}, SourceIsSlow())
    assert [step.seconds for step in report.steps[:2]] == [pytest.approx(10.0), pytest.approx(0.5)]


def test_a_challenge_that_grows_old_is_fetched_anew_before_the_next_step() -> None:
    agents = ScriptedAgents(step_seconds=20.0)
    report, _agents, notes = run({}, agents)
    assert report.outcome is Outcome.MOVED
    for earlier, later in zip(agents.calls()[2:], agents.calls()[3:], strict=False):
        assert earlier[0] is Command.HELLO or later[0] is Command.HELLO
        assert earlier[0] is not Command.HELLO or later[1] == earlier[1]
    assert agents.steps() == CHECKED + MOVING + COMPLETING
    assert len([line for line in notes.told if "HELLO" in line]) == 4


def test_the_daemon_of_the_destination_is_told_to_the_source() -> None:
    modular = dataclasses.replace(HOST_FACTS, daemon=LibvirtDaemon.VIRTQEMUD)
    _report, agents, _notes = run({(Command.HELLO, DESTINATION): modular})
    arguments = agents.asked[2].request.cmd_arguments
    assert isinstance(arguments, StepArguments)
    assert arguments.migration.destination_daemon is LibvirtDaemon.VIRTQEMUD


# What stands in the way, before anything is changed.


def test_the_obstacles_of_both_hosts_come_in_one_report_and_nothing_is_asked_afterwards() -> None:
    here = (ErrorCode.DOMAIN_HAS_SNAPSHOTS, ErrorCode.DOMAIN_BUSY)
    there = (ErrorCode.PATH_TAKEN, ErrorCode.SPACE_SHORT)
    report, agents, _notes = run({
        (Command.CHECK_SOURCE, SOURCE): found(*here, facts=FACTS),
        (Command.CHECK_DESTINATION, DESTINATION): found(*there)})
    assert obstacle_codes(report) == [*here, *there]
    assert agents.calls() == LOOKED
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING_CHANGED, ExitCode.REFUSED)
    assert [step.summary for step in report.steps[2:4]] == ["1 check: 2 obstacles"] * 2


@pytest.mark.parametrize("call", [(Command.CHECK_SOURCE, SOURCE), (Command.CHECK_DESTINATION, DESTINATION)])
def test_one_obstacle_on_either_host_is_enough_to_change_nothing(call: Call) -> None:
    facts = FACTS if call[0] is Command.CHECK_SOURCE else None
    report, agents, _notes = run({call: found(ErrorCode.PATH_TAKEN, facts=facts)})
    assert obstacle_codes(report) == [ErrorCode.PATH_TAKEN]
    assert agents.calls() == LOOKED
    assert report.outcome is Outcome.NOTHING_CHANGED


def test_the_destination_is_not_asked_about_a_domain_that_the_source_does_not_have() -> None:
    report, agents, _notes = run({(Command.CHECK_SOURCE, SOURCE): found(ErrorCode.DOMAIN_MISSING)})
    assert obstacle_codes(report) == [ErrorCode.DOMAIN_MISSING]
    assert agents.calls() == LOOKED[:4]


@pytest.mark.parametrize("host", [SOURCE, DESTINATION])
def test_an_agent_that_is_silent_at_hello_is_no_contact_and_nothing_changed(host: str) -> None:
    report, agents, notes = run({(Command.HELLO, host): Silence()})
    assert codes(report) == [ErrorCode.AGENT_SILENT]
    assert host in report.errors[0].message
    assert "10 s" in report.errors[0].message
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING_CHANGED, ExitCode.NO_CONTACT)
    # What the other one can tell is told all the same.
    assert agents.calls() == (GREETED if host == SOURCE else LOOKED[:4])
    assert f"HELLO {host} failed" in notes.told


def test_both_agents_are_greeted_at_once_and_both_silences_are_told() -> None:
    agents = ScriptedAgents()
    report, _agents, _notes = run({(Command.HELLO, SOURCE): Silence(), (Command.HELLO, DESTINATION): Silence()}, agents)
    assert [error.facts["host"] for error in report.errors] == [SOURCE, DESTINATION]
    assert codes(report) == [ErrorCode.AGENT_SILENT] * 2
    assert agents.started_before_first_wait == 2


@pytest.mark.parametrize("call", [(Command.CHECK_SOURCE, SOURCE), (Command.CHECK_DESTINATION, DESTINATION)])
def test_an_agent_that_falls_silent_during_a_check_has_changed_nothing(call: Call) -> None:
    report, agents, _notes = run({call: Silence()})
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING_CHANGED, ExitCode.NO_CONTACT)
    assert codes(report) == [ErrorCode.AGENT_SILENT]
    assert agents.calls() == (LOOKED[:4] if call[1] == SOURCE else LOOKED)


@pytest.mark.parametrize(("dry_run", "script"), [
    (False, {(Command.CHECK_DESTINATION, DESTINATION): found(ErrorCode.PATH_TAKEN)}), (True, {})])
def test_a_source_whose_tunnel_waits_is_told_if_nothing_is_moved(dry_run: bool, script: Mapping[Call, object]) -> None:
    agents = ScriptedAgents(script=script)
    Controller(ControllerSettings(agents=AGENTS, keys=(MASTER,)), agents, Notes(), agents.clock,
               dry_run=dry_run).migrate(MIGRATION)
    asked = agents.asked[-1].request
    assert (asked.cmd, asked.agent_ip) == (Command.CANCEL, SOURCE)


def test_an_agent_of_another_version_is_named_with_both_versions() -> None:
    other = dataclasses.replace(HOST_FACTS, version="0.0.1")
    report, agents, _notes = run({(Command.HELLO, DESTINATION): other})
    assert codes(report) == [ErrorCode.AGENT_OTHER_VERSION]
    assert report.errors[0].facts["theirs"] == "0.0.1"
    assert report.exit_code is ExitCode.NO_CONTACT
    assert agents.calls() == LOOKED[:4]


def test_an_agent_that_refuses_a_check_stops_the_run_with_its_own_error() -> None:
    stopping = MigrationError(ErrorCode.AGENT_STOPPING, {"host": DESTINATION})
    report, _agents, _notes = run({(Command.CHECK_DESTINATION, DESTINATION): stopping})
    assert codes(report) == [ErrorCode.AGENT_STOPPING]
    assert report.exit_code is ExitCode.REFUSED


@pytest.mark.parametrize("value", [
    {}, {"value": None}, {"value": {}}, {"value": {"findings": [], "more": 1}}, {"value": {"findings": [{}]}},
    {"other": 1},
])
def test_an_answer_that_is_no_report_is_an_error_of_that_host(value: Mapping[str, object]) -> None:
    report, agents, _notes = run({(Command.CHECK_SOURCE, SOURCE): Raw(value)})
    assert codes(report) == [ErrorCode.MESSAGE_INVALID]
    assert SOURCE in report.errors[0].message
    assert agents.calls() == LOOKED[:4]


@pytest.mark.parametrize("missing", [SOURCE, DESTINATION])
def test_a_host_that_is_not_listed_is_not_talked_to_nor_is_the_other_one(missing: str) -> None:
    kept = dataclasses.replace(AGENTS, networks=tuple(each for each in AGENTS.networks if missing not in str(each)))
    agents = ScriptedAgents()
    with pytest.raises(MigrationError) as caught:
        Controller(ControllerSettings(kept, (MASTER,)), agents, Notes()).migrate(MIGRATION)
    assert caught.value.code is ErrorCode.AGENT_NOT_LISTED
    assert caught.value.facts["address"] == missing
    assert agents.calls() == []


# What fails while something is being made.


@pytest.mark.parametrize("call", MOVING)
def test_a_step_that_fails_before_the_switchover_is_rolled_back_on_both_hosts(call: Call) -> None:
    report, agents, _notes = run({**BEFORE, call: FAILED})
    assert agents.calls() == CHECKED + MOVING[:MOVING.index(call) + 1] + ROLLING_BACK
    assert (report.outcome, report.exit_code) == (Outcome.ROLLED_BACK, ExitCode.ROLLED_BACK)
    assert report.exit_code == 5
    assert report.runs_on == SOURCE
    assert codes(report) == [ErrorCode.MIGRATION_FAILED]


def test_what_was_rolled_back_is_told_with_the_paths_that_were_removed() -> None:
    report, _agents, _notes = run({**BEFORE, (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert [step.summary for step in report.steps[-2:]] == [
        "VM running here", "VM absent here, removed /var/lib/libvirt/images/node.qcow2"]


@pytest.mark.parametrize(("call", "trouble"), [
    (MOVING[0], Silence()), (MOVING[0], FORGOTTEN), (MOVING[1], Silence()),
])
def test_an_agent_that_cannot_tell_how_a_step_before_the_move_went_is_rolled_back(call: Call, trouble: object) -> None:
    report, agents, _notes = run({**BEFORE, call: trouble})
    assert (report.outcome, report.exit_code, report.runs_on) == (
        Outcome.ROLLED_BACK, ExitCode.ROLLED_BACK, SOURCE)
    assert agents.calls() == CHECKED + MOVING[:MOVING.index(call) + 1] + ROLLING_BACK
    assert len(report.errors) == 1
    assert call[1] in report.errors[0].message


@pytest.mark.parametrize("trouble", [Silence(), FORGOTTEN])
def test_nothing_is_rolled_back_under_a_move_that_may_still_go_on(trouble: object) -> None:
    report, agents, _notes = run({**BEFORE, (Command.LIVE_MIGRATION, SOURCE): trouble})
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)
    assert agents.calls() == CHECKED + MOVING
    assert codes(report) == [ErrorCode.STATE_UNKNOWN, ErrorCode.LEFT_BEHIND]
    assert SOURCE in report.errors[0].hint
    assert DESTINATION in report.errors[0].hint
    assert f"on {DESTINATION} may still be there: {FACTS.disks[0].path}." in report.errors[1].message


def test_an_agent_that_is_silent_right_before_the_move_has_not_begun_it_and_is_rolled_back() -> None:
    report, agents, _notes = run(
        {**BEFORE, (Command.HELLO, SOURCE): InTurn(HOST_FACTS, Silence(), HOST_FACTS)}, slow_at(MOVING[1]))
    assert report.outcome is Outcome.ROLLED_BACK
    assert codes(report) == [ErrorCode.AGENT_SILENT]
    assert agents.steps() == CHECKED + MOVING[:2] + ROLLING_BACK


def test_the_destination_is_told_how_long_the_guest_stood_still() -> None:
    moved = MigrationReport(disk_bytes=1, memory_bytes=1, downtime=4_080)
    for report, expected in ((moved, 4_080), (MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1), 0)):
        _report, agents, _notes = run({(Command.LIVE_MIGRATION, SOURCE): report})
        told = [
            asked.request.cmd_arguments.stood_still for asked in agents.asked_for_steps()
            if isinstance(asked.request.cmd_arguments, StepArguments) and asked.request.cmd is Command.FINISH]
        assert told == [expected] * 2


# What fails after the VM has moved.


@pytest.mark.parametrize("call", [HANDING, *COMPLETING])
@pytest.mark.parametrize("trouble", [
    Silence(), MigrationError(ErrorCode.NOT_AS_EXPECTED, {"host": DESTINATION, "problem": "x", "domain": "VM1"}),
])
def test_an_error_after_the_move_does_not_keep_the_other_steps_from_running(call: Call, trouble: object) -> None:
    moved = HELD if call == HANDING else MOVED
    report, agents, _notes = run({call: trouble, (Command.LIVE_MIGRATION, SOURCE): moved})
    assert agents.steps() == CHECKED + MOVING + ([HANDING] if call == HANDING else []) + COMPLETING
    assert (report.outcome, report.exit_code) == (Outcome.MOVED_INCOMPLETE, ExitCode.MOVED_INCOMPLETE)
    assert report.runs_on == DESTINATION
    assert report.moved == moved
    assert len(report.errors) == 1
    assert [step.command for step in report.steps if step.error is not None] == [call[0]]


def test_all_errors_after_the_move_are_told() -> None:
    script = {call: MigrationError(ErrorCode.NOT_AS_EXPECTED, {"host": call[1]}) for call in COMPLETING}
    report, _agents, _notes = run(script)
    assert [error.facts["host"] for error in report.errors] == [host for _command, host in COMPLETING]


# What nobody expected.


def failing_at(call: Call) -> ScriptedAgents:
    """Agents with a bug in the way when that is asked."""
    def fail(request: Request) -> None:
        if (request.cmd, request.agent_ip) == call:
            raise ZeroDivisionError("by nought")
    return ScriptedAgents(before=fail)


@pytest.mark.parametrize("call", CHECKED)
def test_an_unexpected_error_before_anything_was_made_has_changed_nothing(call: Call) -> None:
    report, _agents, _notes = run({}, failing_at(call))
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING_CHANGED, ExitCode.INTERNAL)
    assert codes(report) == [ErrorCode.INTERNAL]
    assert "ZeroDivisionError" in report.errors[0].message


@pytest.mark.parametrize("call", MOVING)
def test_an_unexpected_error_after_something_was_made_leaves_the_state_unknown(
    call: Call, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        report, _agents, _notes = run({}, failing_at(call))
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)
    assert codes(report) == [ErrorCode.STATE_UNKNOWN]
    assert "ZeroDivisionError" in report.errors[0].message
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("state", [DomainState.PAUSED, DomainState.SHUT_OFF])
def test_an_unexpected_error_after_the_move_does_not_say_that_a_vm_runs_that_did_not(state: DomainState) -> None:
    facts = dataclasses.replace(FACTS, state=state)
    report, _agents, _notes = run(
        {(Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(), facts=facts)}, failing_at(COMPLETING[-1]))
    assert (report.outcome, report.runs_on, report.state) == (Outcome.MOVED_INCOMPLETE, DESTINATION, state)


@pytest.mark.parametrize("call", COMPLETING)
def test_an_unexpected_error_after_the_move_still_says_where_the_vm_is(call: Call) -> None:
    report, _agents, _notes = run({}, failing_at(call))
    assert (report.outcome, report.runs_on) == (Outcome.MOVED_INCOMPLETE, DESTINATION)
    assert codes(report) == [ErrorCode.INTERNAL]


# Settings.


def test_a_controller_reads_its_list_and_its_key(tmp_path: Path) -> None:
    (tmp_path / "AgentIPAddr.txt").write_text(f"{SOURCE}\n")
    write_key(tmp_path / "ControllerKey.txt", MASTER)
    settings = ControllerSettings.load(tmp_path, insecure=False)
    assert settings.agent_keys(SOURCE) == (MASTER.for_agent(SOURCE),)
    with pytest.raises(MigrationError) as caught:
        settings.agent_keys(DESTINATION)
    assert str(tmp_path / "AgentIPAddr.txt") in caught.value.message


def test_a_controller_without_a_key_does_not_start_unless_told_to(tmp_path: Path) -> None:
    (tmp_path / "AgentIPAddr.txt").write_text(f"{SOURCE}\n")
    with pytest.raises(MigrationError) as caught:
        ControllerSettings.load(tmp_path, insecure=False)
    assert caught.value.code is ErrorCode.KEY_MISSING
    assert ControllerSettings.load(tmp_path, insecure=True).agent_keys(SOURCE) == ()


@pytest.mark.parametrize("code", list(ErrorCode))
def test_no_error_before_a_change_is_told_as_a_change(code: ErrorCode) -> None:
    report = RunReport(MIGRATION, Outcome.NOTHING_CHANGED, None, 0.0, errors=(MigrationError(code, {}),))
    assert report.exit_code in (ExitCode.INPUT, ExitCode.REFUSED, ExitCode.NO_CONTACT, ExitCode.INTERNAL)
