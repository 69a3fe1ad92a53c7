"""What a Controller concludes when a move has failed: from what both hosts say of the VM, not from what should be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from constant import Command, DomainState, ExitCode, Outcome, Pause
from tests.unit.samples import DESTINATION, FACTS, MIGRATION, SOURCE
from tests.unit.scripted import (
    AFTER,
    BEFORE,
    CHECKED,
    COMPLETING,
    FAILED,
    FORGOTTEN,
    HANDING,
    HELD,
    MOVING,
    ROLLING_BACK,
    Call,
    Notes,
    Raw,
    ScriptedAgents,
    Silence,
    codes,
    controller_of,
    run,
    states,
)
from wire.errors import ErrorCode, MigrationError
from wire.findings import CheckReport
from wire.message import Request
from wire.records import Convergence, RollBackReport, StepArguments, StepReport
from wire.situation import DomainView


def test_a_migration_that_failed_after_the_switchover_is_gone_on_with_and_told_as_incomplete() -> None:
    report, agents, _notes = run({**AFTER, (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert agents.calls() == CHECKED + MOVING + ROLLING_BACK + COMPLETING
    assert (report.outcome, report.exit_code) == (Outcome.MOVED_INCOMPLETE, ExitCode.MOVED_INCOMPLETE)
    assert report.runs_on == DESTINATION
    assert codes(report) == [ErrorCode.MIGRATION_FAILED]


def test_a_source_that_has_no_domain_any_more_has_let_it_go() -> None:
    report, _agents, _notes = run({
        **states(DomainState.ABSENT, DomainState.RUNNING), (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert report.outcome is Outcome.MOVED_INCOMPLETE


KEPT = [state for state in DomainState if state is not DomainState.ABSENT]


@pytest.mark.parametrize("here", KEPT)
def test_a_vm_that_its_source_never_gave_up_is_rolled_back_however_it_is_there_now(here: DomainState) -> None:
    report, agents, _notes = run({
        **states(here, DomainState.ABSENT), (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert (report.outcome, report.runs_on, report.state) == (Outcome.ROLLED_BACK, SOURCE, here)
    assert codes(report) == [ErrorCode.MIGRATION_FAILED]
    assert report.as_before is (here is DomainState.RUNNING)
    # One that was shut off with its host ends its job once the destination has said that nothing is there.
    again = [(Command.ROLL_BACK, SOURCE)] if here is DomainState.SHUT_OFF else []
    assert agents.calls() == CHECKED + MOVING + ROLLING_BACK + again


def test_the_copy_of_an_earlier_move_that_is_back_is_not_told_as_absent() -> None:
    back = RollBackReport(state=DomainState.ABSENT, removed=("/x",), cleared=True, older_copy=True)
    report, _agents, _notes = run({
        **states(DomainState.RUNNING, DomainState.ABSENT), (Command.ROLL_BACK, DESTINATION): back,
        (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert report.outcome is Outcome.ROLLED_BACK
    (told,) = [step.summary for step in report.steps
               if (step.command, step.host) == (Command.ROLL_BACK, DESTINATION)]
    assert told == "only the copy of an earlier move here, as it was; removed /x"


UNCLEAR = [
    *[(here, there, None) for here in DomainState for there in DomainState
      if (here, there) not in [
          *((state, DomainState.ABSENT) for state in KEPT), (DomainState.SHUT_OFF, DomainState.RUNNING),
          (DomainState.ABSENT, DomainState.RUNNING)]],
    (DomainState.SHUT_OFF, DomainState.ABSENT, True), (DomainState.SHUT_OFF, DomainState.PAUSED, False),
]


@pytest.mark.parametrize(("here", "there", "gave_up"), UNCLEAR)
def test_any_other_state_of_the_two_hosts_is_told_as_unknown(
    here: DomainState, there: DomainState, gave_up: bool | None,
) -> None:
    report, agents, _notes = run({
        **states(here, there, gave_up=gave_up), (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)
    assert codes(report) == [ErrorCode.STATE_UNKNOWN, ErrorCode.LEFT_BEHIND]
    assert f"{here.value} on {SOURCE}" in report.errors[0].message
    assert f"{there.value} on {DESTINATION}" in report.errors[0].message
    assert "no route" in report.errors[0].message
    assert agents.calls() == CHECKED + MOVING + ROLLING_BACK


# Rolling back.


@pytest.mark.parametrize(("source", "source_keeps"), [
    (RollBackReport(state=DomainState.RUNNING, removed=()), True),
    (RollBackReport(state=DomainState.PAUSED, removed=()), True),
    # It may have been shut off because it has moved.
    (RollBackReport(state=DomainState.SHUT_OFF, removed=()), False),
    (RollBackReport(state=DomainState.ABSENT, removed=()), False),
    *[(RollBackReport(state=state, removed=(), gave_up=True), False) for state in DomainState],
    (Silence(), False), (FORGOTTEN, False), (FAILED, False), (Raw({}), False),
])
def test_the_destination_is_told_that_the_source_keeps_the_vm_only_if_the_source_has_said_so(
    source: object, source_keeps: bool,
) -> None:
    _report, agents, _notes = run({
        **BEFORE, (Command.ROLL_BACK, SOURCE): source, (Command.LIVE_MIGRATION, SOURCE): FAILED})
    told = {
        (asked.request.cmd, asked.request.agent_ip): asked.request.cmd_arguments.source_keeps
        for asked in reversed(agents.asked_for_steps()) if isinstance(asked.request.cmd_arguments, StepArguments)}
    assert told.pop((Command.ROLL_BACK, DESTINATION)) is source_keeps
    assert not any(told.values())


UNDO_FAILS = [Silence(), MigrationError(ErrorCode.LIBVIRT_UNREACHABLE, {"host": DESTINATION, "reason": "gone"})]


@pytest.mark.parametrize("undo", UNDO_FAILS)
def test_a_roll_back_that_fails_on_the_source_leaves_the_state_unknown(undo: object) -> None:
    report, _agents, _notes = run({
        **BEFORE, (Command.ROLL_BACK, SOURCE): undo, (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)
    assert "no route" in report.errors[0].message


@pytest.mark.parametrize("undo", UNDO_FAILS)
def test_a_vm_that_its_source_has_is_rolled_back_whatever_the_destination_can_tell(undo: object) -> None:
    report, _agents, _notes = run({
        **BEFORE, (Command.ROLL_BACK, DESTINATION): undo, (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.ROLLED_BACK, ExitCode.ROLLED_BACK, SOURCE)
    assert codes(report)[0] is ErrorCode.MIGRATION_FAILED
    # What is left over there is told too.
    assert [error.facts["host"] for error in report.errors[1:]] == [DESTINATION] * 2
    assert codes(report)[-1] is ErrorCode.LEFT_BEHIND


@pytest.mark.parametrize("undo", UNDO_FAILS)
@pytest.mark.parametrize(("changes", "state"), [
    ({"convergence": Convergence(post_copy=True)}, DomainState.RUNNING), ({}, DomainState.PAUSED),
    ({}, DomainState.SHUT_OFF)])
def test_a_vm_that_is_not_held_may_be_over_there_if_the_destination_cannot_tell(
    undo: object, changes: dict[str, Any], state: DomainState,
) -> None:
    facts = dataclasses.replace(FACTS, state=state)
    agents, notes = ScriptedAgents(), Notes()
    agents.script = {
        **states(state, DomainState.ABSENT), (Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(), facts=facts),
        (Command.ROLL_BACK, DESTINATION): undo, (Command.LIVE_MIGRATION, SOURCE): FAILED}
    report = controller_of(agents, notes).migrate(dataclasses.replace(MIGRATION, **changes))
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)


def test_a_destination_that_falls_silent_before_a_roll_back_is_told_and_the_vm_is_on_its_source() -> None:
    agents = ScriptedAgents()

    def cut(request: Request) -> None:
        if request.cmd is Command.LIVE_MIGRATION:
            agents.clock.now += 60.0
            agents.script = {**agents.script, (Command.HELLO, DESTINATION): Silence()}

    agents.before = cut
    report, _agents, _notes = run({**BEFORE, (Command.LIVE_MIGRATION, SOURCE): FAILED}, agents)
    assert (report.outcome, report.runs_on) == (Outcome.ROLLED_BACK, SOURCE)
    assert codes(report) == [ErrorCode.MIGRATION_FAILED, ErrorCode.AGENT_SILENT, ErrorCode.LEFT_BEHIND]
    assert DESTINATION in report.errors[1].message


# The last look.


@pytest.mark.parametrize("state", [DomainState.ABSENT, DomainState.PAUSED])
def test_a_vm_that_is_gone_by_the_time_it_is_told_of_is_not_said_to_run(state: DomainState) -> None:
    report, _agents, _notes = run({(Command.LOCATE, DESTINATION): DomainView(state=state)})
    assert (report.outcome, report.runs_on, report.exit_code) == (Outcome.UNKNOWN, None, ExitCode.UNKNOWN)
    assert f"it is {state.value} on {DESTINATION}" in report.errors[-1].message


@pytest.mark.parametrize("seen_by", [Command.FINISH, Command.LOCATE])
def test_a_vm_that_was_shut_off_after_its_move_has_moved_and_is_not_said_to_run(seen_by: Command) -> None:
    off = DomainView(state=DomainState.SHUT_OFF)
    finished = StepReport(summary="shut off here", ended=seen_by is Command.FINISH)
    report, agents, _notes = run({(Command.LOCATE, DESTINATION): off, (Command.FINISH, DESTINATION): finished})
    assert (report.outcome, report.runs_on, report.state) == (
        Outcome.MOVED_INCOMPLETE, DESTINATION, DomainState.SHUT_OFF)
    assert codes(report) == [ErrorCode.ENDED_SINCE]
    (told,) = [asked.request.cmd_arguments for asked in agents.asked
               if (asked.request.cmd, asked.request.agent_ip) == (Command.FINISH, SOURCE)]
    assert isinstance(told, StepArguments)
    # The copy is all the same to be kept unless the VM was seen to be well.
    assert told.destination_verified is (seen_by is Command.LOCATE)


@pytest.mark.parametrize(("looked", "state", "words"), [
    (Silence(), DomainState.SHUT_OFF, "`virsh start VM1` there."),
    (DomainView(state=DomainState.SHUT_OFF), DomainState.SHUT_OFF, "`virsh start VM1` there."),
    (DomainView(state=DomainState.RUNNING), DomainState.RUNNING, "It was started since."),
])
def test_of_a_vm_that_ended_after_its_move_is_told_how_it_is_now(
    looked: object, state: DomainState, words: str,
) -> None:
    report, _agents, _notes = run({
        (Command.LOCATE, DESTINATION): looked,
        (Command.FINISH, DESTINATION): StepReport(summary="shut off here", ended=True)})
    assert (report.outcome, report.runs_on, report.state) == (Outcome.MOVED_INCOMPLETE, DESTINATION, state)
    (error,) = report.errors
    assert (error.code, f"it is {state.value} now" in error.message) == (ErrorCode.ENDED_SINCE, True)
    assert words in error.hint


def test_a_transient_vm_that_ended_after_its_move_is_gone_and_not_unknown() -> None:
    transient = dataclasses.replace(FACTS, persistent=False)
    missing = MigrationError(ErrorCode.DOMAIN_MISSING, {"domain": "VM1", "host": DESTINATION})
    report, _agents, _notes = run({
        (Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(), facts=transient),
        (Command.LOCATE, DESTINATION): DomainView(state=DomainState.ABSENT),
        (Command.EXTRACT_CONFIGURE_FILE, DESTINATION): missing,
        (Command.FINISH, DESTINATION): StepReport(summary="absent here", ended=True)})
    assert (report.outcome, codes(report)) == (Outcome.MOVED_INCOMPLETE, [ErrorCode.ENDED_SINCE])
    assert "virsh start" not in report.errors[0].hint


def test_a_vm_that_was_handed_over_and_cannot_be_looked_for_again_runs_there_whatever_else_failed() -> None:
    for refused, outcome in (
            (Command.EXTRACT_CONFIGURE_FILE, Outcome.MOVED_INCOMPLETE), (Command.HAND_OVER, Outcome.MOVED_INCOMPLETE)):
        report, _agents, _notes = run({
            (Command.LIVE_MIGRATION, SOURCE): HELD, (Command.LOCATE, DESTINATION): Silence(),
            (refused, DESTINATION): FAILED})
        assert (report.outcome, codes(report)) == (outcome, [ErrorCode.MIGRATION_FAILED])
    report, _agents, _notes = run({
        (Command.LIVE_MIGRATION, SOURCE): HELD, (Command.LOCATE, DESTINATION): Silence(),
        (Command.HAND_OVER, DESTINATION): FAILED, (Command.FINISH, DESTINATION): FAILED})
    assert (report.outcome, report.runs_on) == (Outcome.UNKNOWN, None)


def test_a_vm_that_was_paused_is_over_there_only_if_it_is_not_paused_by_its_arriving() -> None:
    paused = dataclasses.replace(FACTS, state=DomainState.PAUSED)
    for arrived, outcome in ((True, Outcome.MOVED_INCOMPLETE), (False, Outcome.UNKNOWN)):
        report, _agents, _notes = run({
            (Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(), facts=paused),
            **states(DomainState.SHUT_OFF, DomainState.PAUSED, arrived=arrived),
            (Command.LIVE_MIGRATION, SOURCE): FAILED,
            (Command.LOCATE, DESTINATION): DomainView(state=DomainState.PAUSED, pause=Pause.SOMEBODY)})
        assert report.outcome is outcome


def test_a_vm_that_its_source_gave_up_and_that_is_shut_off_over_there_has_moved() -> None:
    report, agents, _notes = run({
        **states(DomainState.SHUT_OFF, DomainState.SHUT_OFF, gave_up=True), (Command.LIVE_MIGRATION, SOURCE): FAILED,
        (Command.FINISH, DESTINATION): StepReport(summary="shut off here", ended=True),
        (Command.LOCATE, DESTINATION): DomainView(state=DomainState.SHUT_OFF)})
    assert agents.calls() == CHECKED + MOVING + ROLLING_BACK + COMPLETING
    assert (report.outcome, report.state) == (Outcome.MOVED_INCOMPLETE, DomainState.SHUT_OFF)
    assert codes(report) == [ErrorCode.MIGRATION_FAILED, ErrorCode.ENDED_SINCE]


def test_a_vm_that_cannot_be_looked_for_once_more_runs_where_it_was_seen_to() -> None:
    report, _agents, _notes = run({(Command.LOCATE, DESTINATION): Silence()})
    assert (report.outcome, report.runs_on) == (Outcome.MOVED, DESTINATION)


# Handing over.


def given_up(agents: ScriptedAgents, call: Call) -> list[bool]:
    """Whether the agent was told that the source has given the VM up, in each request for that."""
    return [asked.request.cmd_arguments.source_gave_up for asked in agents.asked
            if (asked.request.cmd, asked.request.agent_ip) == call
            and isinstance(asked.request.cmd_arguments, StepArguments)]


def test_a_vm_that_still_waits_after_its_move_is_handed_over_first() -> None:
    report, agents, _notes = run({(Command.LIVE_MIGRATION, SOURCE): HELD})
    assert agents.calls() == [*CHECKED, *MOVING, HANDING, *COMPLETING]
    assert given_up(agents, HANDING) == [True]
    assert not any(flag for call in MOVING for flag in given_up(agents, call))
    assert (report.outcome, report.runs_on, report.moved) == (Outcome.MOVED, DESTINATION, HELD)


def test_a_vm_that_waits_over_there_after_a_failure_is_handed_over_if_its_source_gave_it_up() -> None:
    for here in (DomainState.SHUT_OFF, DomainState.ABSENT):
        report, agents, _notes = run({
            **states(here, DomainState.PAUSED, gave_up=True, arrived=True), (Command.LIVE_MIGRATION, SOURCE): FAILED})
        assert agents.calls() == [*CHECKED, *MOVING, *ROLLING_BACK, HANDING, *COMPLETING]
        assert given_up(agents, HANDING) == [True]
        assert (report.outcome, codes(report)) == (Outcome.MOVED_INCOMPLETE, [ErrorCode.MIGRATION_FAILED])


@pytest.mark.parametrize("here", KEPT)
def test_a_vm_that_waits_over_there_is_not_handed_over_if_its_source_did_not_give_it_up(here: DomainState) -> None:
    report, agents, _notes = run({
        **states(here, DomainState.PAUSED, gave_up=False, arrived=True), (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert HANDING not in agents.calls()
    assert report.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("silent", UNDO_FAILS)
def test_a_vm_that_waits_over_there_is_not_handed_over_if_its_source_cannot_be_asked(silent: object) -> None:
    report, agents, _notes = run({
        **states(DomainState.SHUT_OFF, DomainState.PAUSED, gave_up=True, arrived=True),
        (Command.ROLL_BACK, SOURCE): silent, (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert HANDING not in agents.calls()
    assert report.outcome is Outcome.UNKNOWN


def test_a_vm_that_runs_over_there_is_not_handed_over_again() -> None:
    report, agents, _notes = run({**AFTER, (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert HANDING not in agents.calls()
    assert report.outcome is Outcome.MOVED_INCOMPLETE


def test_a_held_vm_that_runs_over_there_has_moved_although_its_source_cannot_be_asked() -> None:
    report, _agents, _notes = run({
        **AFTER, (Command.ROLL_BACK, SOURCE): Silence(), (Command.LIVE_MIGRATION, SOURCE): FAILED})
    assert (report.outcome, report.runs_on) == (Outcome.MOVED_INCOMPLETE, DESTINATION)
