"""Going on with what another controller has begun, and cancelling it: what is looked at first, and asked for then."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from constant import Command, DomainState, ExitCode, Outcome, Pause
from control.report import RunReport
from tests.unit.samples import DESTINATION, FACTS, ISO, KEPT, MIGRATION, MOVED, NOTE, SOURCE
from tests.unit.scripted import (
    BEFORE,
    BEGUN,
    CANCELLING,
    COMPLETING,
    COPIED,
    FAILED,
    GREETED,
    HANDING,
    HAPPY,
    HELD,
    LISTED,
    MOVING,
    PREPARED,
    RECALLED,
    ROLLING_BACK,
    Call,
    Interrupt,
    Notes,
    ScriptedAgents,
    Silence,
    codes,
    controller_of,
    known,
    network_of,
    step,
)
from wire.errors import ErrorCode, MigrationError
from wire.history import JobDetails, StepState
from wire.records import MigrationReport, StepArguments
from wire.situation import DomainView

JOB = MIGRATION.job_id
PREPARING, COPYING, MIGRATING = MOVING
LOOKED = GREETED + LISTED + RECALLED


def resumed(*scripts: Mapping[Call, object], cancel: bool = False) -> tuple[RunReport, ScriptedAgents, Notes]:
    """The job gone on with, or cancelled, by a controller that has not begun it."""
    agents, notes = ScriptedAgents(), Notes()
    agents.script = {call: line for script in scripts for call, line in script.items()}
    controller = controller_of(agents, notes)
    return controller.cancel(JOB) if cancel else controller.resume(JOB), agents, notes


def refused(*scripts: Mapping[Call, object], cancel: bool = False) -> MigrationError:
    """Why it is not gone on with, or not cancelled."""
    with pytest.raises(MigrationError) as caught:
        resumed(*scripts, cancel=cancel)
    return caught.value


def ids_of(agents: ScriptedAgents, call: Call) -> list[str]:
    """The ids of the requests for that call."""
    return [each.request.request_id for each in agents.asked if (each.request.cmd, each.request.agent_ip) == call]




@pytest.mark.parametrize(("source", "destination", "asked"), [
    ([], PREPARED, MOVING[1:] + COMPLETING), (COPIED, PREPARED, MOVING[2:] + COMPLETING),
    (COPIED, [step(Command.PREPARE_DESTINATION, ended=False)], [PREPARING, MIGRATING, *COMPLETING]),
    ([step(Command.COPY_DISK_FILE, 2, ended=False)], PREPARED, MOVING[1:] + COMPLETING),
    ([*COPIED, step(Command.LIVE_MIGRATION, 3, ended=False)], PREPARED, MOVING[2:] + COMPLETING),
])
def test_a_job_is_gone_on_with_from_the_step_that_it_is_at(
    source: Sequence[StepState], destination: Sequence[StepState], asked: Sequence[Call],
) -> None:
    report, agents, _notes = resumed(known(source, destination))
    assert agents.calls() == [*LOOKED, *asked]
    assert (report.outcome, report.runs_on, report.migration) == (Outcome.MOVED, DESTINATION, MIGRATION)


@pytest.mark.parametrize(("call", "source", "destination"), [
    (PREPARING, COPIED, [step(Command.PREPARE_DESTINATION, 7, ended=False)]),
    (COPYING, [step(Command.COPY_DISK_FILE, 7, ended=False)], PREPARED),
    (MIGRATING, [*COPIED, step(Command.LIVE_MIGRATION, 7, ended=False)], PREPARED),
])
def test_a_step_that_runs_is_followed_and_not_asked_for_again(
    call: Call, source: Sequence[StepState], destination: Sequence[StepState],
) -> None:
    _report, agents, _notes = resumed(known(source, destination))
    assert ids_of(agents, call) == [f"{7:032x}"]


@pytest.mark.parametrize(("moved", "asked"), [(MOVED, COMPLETING), (HELD, [HANDING, *COMPLETING]), (None, COMPLETING)])
def test_a_vm_that_has_moved_is_finished_and_handed_over_if_it_still_waits(
    moved: MigrationReport | None, asked: Sequence[Call],
) -> None:
    report, agents, _notes = resumed(
        known([*COPIED, step(Command.LIVE_MIGRATION, 3)], PREPARED, moved=moved))
    assert agents.calls() == [*LOOKED, *asked]
    assert (report.outcome, report.runs_on, report.moved) == (Outcome.MOVED, DESTINATION, moved)


def test_a_vm_that_has_moved_is_not_moved_again_because_the_journal_of_its_source_is_lost() -> None:
    _report, agents, _notes = resumed(known([], PREPARED, moved=MOVED))
    assert agents.calls() == LOOKED + COMPLETING


FAILURES = [
    ([], [step(Command.PREPARE_DESTINATION, error=ErrorCode.PATH_TAKEN)]),
    ([step(Command.COPY_DISK_FILE, error=ErrorCode.TUNNEL_LOST)], PREPARED),
    ([*COPIED, step(Command.LIVE_MIGRATION, error=ErrorCode.MIGRATION_INTERRUPTED)], PREPARED),
    ([*COPIED, step(Command.ROLL_BACK)], PREPARED), (COPIED, [*PREPARED, step(Command.ROLL_BACK)]), (COPIED, None),
]


@pytest.mark.parametrize(("source", "destination"), FAILURES)
def test_a_job_of_which_a_step_has_failed_or_that_was_being_undone_is_undone(
    source: Sequence[StepState], destination: Sequence[StepState] | None,
) -> None:
    report, agents, _notes = resumed(known(source, destination), BEFORE)
    assert agents.calls() == LOOKED + ROLLING_BACK
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.ROLLED_BACK, ExitCode.ROLLED_BACK, SOURCE)
    assert codes(report) == [ErrorCode.MIGRATION_CANCELLED]


def test_a_step_that_failed_and_was_done_later_has_been_done() -> None:
    again = [step(Command.COPY_DISK_FILE, 2, ErrorCode.REQUEST_INTERRUPTED), step(Command.COPY_DISK_FILE, 3)]
    report, agents, _notes = resumed(known(again, PREPARED))
    assert agents.calls() == [*LOOKED, MIGRATING, *COMPLETING]
    assert report.outcome is Outcome.MOVED


def test_a_followed_migration_that_fails_is_rolled_back() -> None:
    report, agents, _notes = resumed(
        known([*COPIED, step(Command.LIVE_MIGRATION, 3, ended=False)], PREPARED), BEFORE, {MIGRATING: FAILED})
    assert agents.calls() == [*LOOKED, MIGRATING, *ROLLING_BACK]
    assert (report.outcome, codes(report)) == (Outcome.ROLLED_BACK, [ErrorCode.MIGRATION_FAILED])


@pytest.mark.parametrize(("outcomes", "outcome", "runs_on"), [
    ((Outcome.MOVED, Outcome.MOVED), Outcome.MOVED, DESTINATION),
    ((Outcome.ROLLED_BACK, Outcome.ROLLED_BACK), Outcome.ROLLED_BACK, SOURCE),
])
def test_a_job_that_has_ended_is_told_with_how_the_vm_is_now_and_nothing_is_asked_for(
    outcomes: tuple[Outcome, Outcome], outcome: Outcome, runs_on: str,
) -> None:
    looking = (Command.LOCATE, runs_on)
    report, agents, _notes = resumed(known([], [], outcomes=outcomes), {looking: DomainView(state=DomainState.RUNNING)})
    assert agents.calls() == [*LOOKED, looking]
    assert (report.outcome, report.runs_on, report.state) == (outcome, runs_on, DomainState.RUNNING)
    assert (report.before, report.errors) == (True, ())
    report, _agents, _notes = resumed(known([], [], outcomes=outcomes), {looking: Silence()})
    assert (report.outcome, report.runs_on, report.before) == (outcome, None, True)
    assert codes(report) == [ErrorCode.AGENT_SILENT]


@pytest.mark.parametrize("view", [
    DomainView(state=DomainState.ABSENT), DomainView(state=DomainState.SHUT_OFF, moved=NOTE),
    DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION)])
@pytest.mark.parametrize(("there", "runs_on"), [
    (DomainView(state=DomainState.RUNNING), SOURCE),
    (DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION), DESTINATION),
    (DomainView(state=DomainState.SHUT_OFF), DESTINATION),
])
def test_a_vm_that_another_move_took_elsewhere_is_told_of_where_it_is(
    view: DomainView, there: DomainView, runs_on: str,
) -> None:
    report, _agents, _notes = resumed(known([], [], outcomes=(Outcome.MOVED, Outcome.MOVED)), {
        (Command.LOCATE, DESTINATION): view, (Command.LOCATE, SOURCE): there})
    assert (report.outcome, report.runs_on) == (Outcome.MOVED, runs_on)
    assert report.state is (there if runs_on == SOURCE else view).state


def test_a_job_that_has_ended_on_one_host_only_is_gone_on_with() -> None:
    report, agents, _notes = resumed(known(
        [*COPIED, step(Command.LIVE_MIGRATION, 3), step(Command.FINISH, 4)], PREPARED, moved=MOVED,
        outcomes=(Outcome.MOVED, None)))
    assert agents.calls() == LOOKED + COMPLETING
    assert report.outcome is Outcome.MOVED


def test_ctrl_c_leaves_a_job_that_is_gone_on_with() -> None:
    report, agents, _notes = resumed(
        known([*COPIED, step(Command.LIVE_MIGRATION, 3, ended=False)], PREPARED), {MIGRATING: Interrupt(MOVED)})
    assert report.outcome is Outcome.DETACHED
    assert agents.calls()[-1] == MIGRATING


def test_files_that_are_on_their_way_are_followed_at_both_ends() -> None:
    facts = dataclasses.replace(FACTS, files=(ISO,))
    record = dataclasses.replace(BEGUN, arguments=StepArguments(migration=MIGRATION, facts=facts))
    receiving = (Command.COPY_DISK_FILE, DESTINATION)
    report, agents, _notes = resumed(known(
        [step(Command.COPY_DISK_FILE, 5, ended=False)], [*PREPARED, step(Command.COPY_DISK_FILE, 6, ended=False)],
        record=record), {receiving: HAPPY[COPYING]})
    assert agents.calls() == [*LOOKED, receiving, COPYING, MIGRATING, *COMPLETING]
    assert (ids_of(agents, COPYING), ids_of(agents, receiving)) == ([f"{5:032x}"], [f"{6:032x}"])
    assert report.outcome is Outcome.MOVED


# Where not all is known.


@pytest.mark.parametrize("cancel", [False, True])
def test_a_job_that_nobody_knows_is_told(cancel: bool) -> None:
    error = refused(known(None, None), cancel=cancel)
    assert (error.code, error.exit_code) == (ErrorCode.JOB_UNKNOWN, ExitCode.REFUSED)
    assert JOB in error.message


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("host", [SOURCE, DESTINATION])
@pytest.mark.parametrize("command", [Command.HELLO, Command.LIST, Command.RECALL])
def test_nothing_is_begun_while_one_of_its_hosts_cannot_be_asked(host: str, command: Command, cancel: bool) -> None:
    agents = ScriptedAgents(script={**known(COPIED, PREPARED), (command, host): Silence()})
    controller = controller_of(agents, Notes())
    ask = controller.cancel if cancel else controller.resume
    with pytest.raises(MigrationError) as caught:
        ask(JOB)
    assert caught.value.facts["host"] == host
    assert set(agents.calls()) <= set(LOOKED)


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("host", [SOURCE, DESTINATION])
def test_nothing_is_begun_while_a_host_says_nothing_also_where_the_list_only_names_its_network(
    host: str, cancel: bool,
) -> None:
    agents = ScriptedAgents(script=known(COPIED, PREPARED))
    controller = controller_of(agents, Notes(), network_of(agents, host))
    ask = controller.cancel if cancel else controller.resume
    with pytest.raises(MigrationError) as caught:
        ask(JOB)
    assert (caught.value.code, caught.value.facts["host"]) == (ErrorCode.AGENT_SILENT, host)


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("call", RECALLED)
@pytest.mark.parametrize("changes", [
    {"job_id": "87654321"}, {"domain": "VM2"}, {"new_name": "web"}, {"bandwidth": 5},
    {"source": DESTINATION, "destination": SOURCE}])
def test_nothing_is_begun_where_a_host_knows_the_job_as_another(
    changes: Mapping[str, Any], call: Call, cancel: bool,
) -> None:
    other = dataclasses.replace(MIGRATION, **changes)
    record = dataclasses.replace(BEGUN, arguments=StepArguments(migration=other, facts=FACTS))
    agents = ScriptedAgents(script={**known(COPIED, PREPARED), call: JobDetails(record=record, steps=())})
    controller = controller_of(agents, Notes())
    with pytest.raises(MigrationError) as caught:
        (controller.cancel if cancel else controller.resume)(JOB)
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.MESSAGE_INVALID, ExitCode.REFUSED)
    assert "?" not in caught.value.message + caught.value.hint
    assert agents.calls() == LOOKED


def test_a_job_is_gone_on_with_as_if_no_other_had_been_before_it() -> None:
    agents = ScriptedAgents(script={
        **known(COPIED, PREPARED), **BEFORE, MIGRATING: Interrupt(FAILED, 2)})
    controller = controller_of(agents, Notes())
    first = controller.resume(JOB)
    agents.script = known(COPIED, PREPARED)
    second = controller.resume(JOB)
    assert (first.outcome, second.outcome) == (Outcome.ROLLED_BACK, Outcome.MOVED)
    assert [each.command for each in second.steps] == [command for command, _host in MOVING[2:] + COMPLETING]


def test_one_who_leaves_after_another_job_has_moved_its_vm_is_not_told_that_this_one_has() -> None:
    agents = ScriptedAgents(script=known([*COPIED, step(Command.LIVE_MIGRATION, 3)], PREPARED, moved=MOVED))
    controller = controller_of(agents, Notes())
    assert controller.resume(JOB).outcome is Outcome.MOVED
    agents.script = {**known(COPIED, PREPARED), MIGRATING: Interrupt(MOVED, 3)}
    assert controller.resume(JOB).outcome is Outcome.UNKNOWN


def test_a_silent_host_is_the_reason_why_a_job_is_not_known() -> None:
    error = refused(known(None, None), {(Command.HELLO, SOURCE): Silence()})
    assert error.code is ErrorCode.AGENT_SILENT


# Cancelling.


def test_a_move_is_cancelled_on_both_hosts_followed_to_its_end_and_undone() -> None:
    cancelled = MigrationError(ErrorCode.MIGRATION_CANCELLED, {"domain": "VM1", "reason": "x"})
    report, agents, notes = resumed(
        known([*COPIED, step(Command.LIVE_MIGRATION, 3, ended=False)], PREPARED), BEFORE, {MIGRATING: cancelled},
        cancel=True)
    assert agents.calls() == [*LOOKED, *CANCELLING, MIGRATING, *ROLLING_BACK]
    assert ids_of(agents, MIGRATING) == [f"{3:032x}"]
    assert (report.outcome, report.runs_on, codes(report)) == (
        Outcome.ROLLED_BACK, SOURCE, [ErrorCode.MIGRATION_CANCELLED])
    assert "cancelling, not by Ctrl-C" in notes.told


@pytest.mark.parametrize("call", CANCELLING)
def test_ctrl_c_while_it_is_cancelled_leaves_it_unknown(call: Call) -> None:
    report, agents, _notes = resumed(
        known([*COPIED, step(Command.LIVE_MIGRATION, 3, ended=False)], PREPARED), {call: Interrupt(HAPPY[call])},
        cancel=True)
    assert agents.calls() == [*LOOKED, *CANCELLING]
    assert (report.outcome, codes(report)) == (Outcome.UNKNOWN, [ErrorCode.STATE_UNKNOWN])


def test_files_that_are_on_their_way_are_cancelled_at_both_ends() -> None:
    receiving = (Command.COPY_DISK_FILE, DESTINATION)
    sends, receives = (step(Command.COPY_DISK_FILE, number, ended=False) for number in (5, 6))
    report, agents, _notes = resumed(
        known([sends], [*PREPARED, receives]), BEFORE, {COPYING: FAILED, receiving: FAILED}, cancel=True)
    assert agents.calls() == [*LOOKED, *CANCELLING, COPYING, receiving, *ROLLING_BACK]
    assert report.outcome is Outcome.ROLLED_BACK


def test_what_is_being_made_at_the_destination_is_waited_for_before_it_is_removed() -> None:
    makes = step(Command.PREPARE_DESTINATION, 7, ended=False)
    report, agents, _notes = resumed(known(None, [makes]), BEFORE, cancel=True)
    assert agents.calls() == [*LOOKED, *CANCELLING, PREPARING, *ROLLING_BACK]
    assert ids_of(agents, PREPARING) == [f"{7:032x}"]
    assert report.outcome is Outcome.ROLLED_BACK


def test_a_job_of_which_nothing_runs_is_undone() -> None:
    report, agents, _notes = resumed(known(COPIED, PREPARED), BEFORE, cancel=True)
    assert agents.calls() == LOOKED + CANCELLING + ROLLING_BACK
    assert report.outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize(("moved", "asked"), [(MOVED, COMPLETING), (HELD, [HANDING, *COMPLETING])])
def test_a_move_that_succeeds_in_spite_of_the_cancel_is_finished(
    moved: MigrationReport, asked: Sequence[Call],
) -> None:
    report, agents, _notes = resumed(
        known([*COPIED, step(Command.LIVE_MIGRATION, 3, ended=False)], PREPARED), {MIGRATING: moved}, cancel=True)
    assert agents.calls() == [*LOOKED, *CANCELLING, MIGRATING, *asked]
    assert (report.outcome, report.runs_on) == (Outcome.MOVED, DESTINATION)


def test_nothing_is_undone_under_a_move_that_may_go_on() -> None:
    report, agents, _notes = resumed(
        known([*COPIED, step(Command.LIVE_MIGRATION, 3, ended=False)], PREPARED), {MIGRATING: Silence()}, cancel=True)
    assert not set(ROLLING_BACK) & set(agents.calls())
    assert (report.outcome, report.exit_code) == (Outcome.UNKNOWN, ExitCode.UNKNOWN)


@pytest.mark.parametrize(("script", "reason"), [
    (known([*COPIED, step(Command.LIVE_MIGRATION, 3)], PREPARED, moved=MOVED), f"has moved to {DESTINATION}"),
    (known([], [], outcomes=(Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)), "it has ended, rolled back"),
    (known([], [], outcomes=(Outcome.MOVED, Outcome.MOVED)), "it has ended, moved"),
])
def test_what_has_moved_or_ended_is_not_cancelled(script: Mapping[Call, object], reason: str) -> None:
    error = refused(script, cancel=True)
    assert (error.code, error.exit_code) == (ErrorCode.TOO_LATE, ExitCode.REFUSED)
    assert reason in error.message
    assert "?" not in error.message + error.hint


def test_a_vm_that_was_not_running_is_told_as_it_was() -> None:
    facts = dataclasses.replace(FACTS, state=DomainState.SHUT_OFF)
    record = dataclasses.replace(KEPT, arguments=StepArguments(migration=MIGRATION, facts=facts))
    report, _agents, _notes = resumed(known([], [], record=record, outcomes=(Outcome.MOVED, Outcome.MOVED)), {
        (Command.LOCATE, DESTINATION): DomainView(state=DomainState.SHUT_OFF),
        (Command.LOCATE, SOURCE): DomainView(state=DomainState.ABSENT)})
    assert report.state is DomainState.SHUT_OFF
