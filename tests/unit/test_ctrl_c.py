"""Ctrl-C: once leaves the move to itself, twice cancels it; before anything was changed it ends the run at once."""

from __future__ import annotations

import pytest

from constant import Command, ExitCode, Outcome
from tests.unit.samples import DESTINATION, HOST_FACTS, MIGRATION, MOVED, SOURCE
from tests.unit.scripted import (
    BEFORE,
    CANCELLING,
    CHECKED,
    CHECKED_IN_TURN,
    COMPLETING,
    COUNTING,
    FAILED,
    HAPPY,
    MOVING,
    ROLLING_BACK,
    Call,
    Interrupt,
    InTurn,
    ScriptedAgents,
    Silence,
    codes,
    run,
    slow_at,
)
from wire.errors import ErrorCode, MigrationError
from wire.message import Request
from wire.records import CancelArguments


@pytest.mark.parametrize("call", MOVING + COMPLETING)
def test_ctrl_c_leaves_what_runs_to_itself_and_asks_for_nothing_more(call: Call) -> None:
    report, agents, notes = run({call: Interrupt(HAPPY[call])})
    every = CHECKED + MOVING + COMPLETING
    assert agents.calls() == every[:every.index(call) + 1]
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.DETACHED, ExitCode.DETACHED, None)
    assert report.exit_code == 8
    assert codes(report) == [ErrorCode.DETACHED]
    assert "?" not in report.errors[0].message + report.errors[0].hint
    for command in ("resume", "status", "cancel"):
        assert f"{command} {MIGRATION.job_id}" in report.errors[0].hint
    assert notes.told[-1] == "leaving in 2 s"


@pytest.mark.parametrize("call", ROLLING_BACK)
def test_ctrl_c_while_it_is_rolled_back_leaves_that_to_the_agents(call: Call) -> None:
    report, agents, _notes = run({**BEFORE, (Command.LIVE_MIGRATION, SOURCE): FAILED, call: Interrupt(BEFORE[call])})
    assert agents.calls()[-1] == call
    assert report.outcome is Outcome.DETACHED


def test_two_ctrl_c_in_the_move_cancel_once_on_both_hosts_and_roll_back() -> None:
    cancelled = MigrationError(ErrorCode.MIGRATION_CANCELLED, {"domain": "VM1"})
    report, agents, notes = run({**BEFORE, (Command.LIVE_MIGRATION, SOURCE): Interrupt(cancelled, 2)})
    assert agents.calls() == CHECKED + MOVING + CANCELLING + ROLLING_BACK
    for cancel in (asked.request for asked in agents.asked if asked.request.cmd is Command.CANCEL):
        assert cancel.cmd_arguments == CancelArguments(job_id=MIGRATION.job_id)
    assert notes.told.count("cancelling") == 1
    assert (report.outcome, report.exit_code) == (Outcome.ROLLED_BACK, ExitCode.ROLLED_BACK)
    assert codes(report) == [ErrorCode.MIGRATION_CANCELLED]


def test_a_cancel_that_comes_too_late_completes_the_move() -> None:
    report, agents, _notes = run({(Command.LIVE_MIGRATION, SOURCE): Interrupt(MOVED, 2)})
    assert agents.calls() == CHECKED + MOVING + CANCELLING + COMPLETING
    assert report.outcome is Outcome.MOVED


def test_ctrl_c_while_it_is_still_counted_what_the_guest_writes_leaves_the_move_to_itself() -> None:
    report, agents, _notes = run({COUNTING: Interrupt(HAPPY[COUNTING])})
    assert report.outcome is Outcome.DETACHED
    assert agents.calls() == CHECKED + MOVING


@pytest.mark.parametrize("call", CHECKED_IN_TURN[2:])
def test_ctrl_c_in_a_check_ends_the_run_before_anything_is_made(call: Call) -> None:
    report, agents, _notes = run({call: Interrupt(HAPPY[call]), **BEFORE})
    assert not set(MOVING) & set(agents.calls()[:-1])
    assert codes(report) == [ErrorCode.MIGRATION_CANCELLED]
    assert not set(ROLLING_BACK) & set(agents.calls())
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING_CHANGED, ExitCode.REFUSED)


def test_a_cancel_while_the_destination_is_prepared_rolls_back_without_moving() -> None:
    report, agents, _notes = run({**BEFORE, MOVING[0]: Interrupt(HAPPY[MOVING[0]], 2)})
    assert (Command.LIVE_MIGRATION, SOURCE) not in agents.calls()
    assert agents.calls()[-2:] == ROLLING_BACK
    assert report.outcome is Outcome.ROLLED_BACK


def test_ctrl_c_after_the_cancel_leaves_at_once_with_the_state_unknown() -> None:
    report, agents, notes = run({(Command.LIVE_MIGRATION, SOURCE): Interrupt(MOVED, times=3)})
    assert agents.calls() == CHECKED + MOVING + CANCELLING
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)
    assert codes(report) == [ErrorCode.STATE_UNKNOWN]
    assert "Ctrl-C ended this command before" in report.errors[0].message
    assert notes.told.count("cancelling") == 1


@pytest.mark.parametrize("host", [SOURCE, DESTINATION])
def test_ctrl_c_at_hello_has_changed_nothing(host: str) -> None:
    report, agents, _notes = run({(Command.HELLO, host): Interrupt(HOST_FACTS)})
    assert (report.outcome, report.exit_code) == (Outcome.NOTHING_CHANGED, ExitCode.REFUSED)
    assert codes(report) == [ErrorCode.MIGRATION_CANCELLED]
    assert agents.calls() == CHECKED[:2]


@pytest.mark.parametrize("call", [CHECKED[0], CHECKED_IN_TURN[2]])
def test_one_ctrl_c_is_not_told_as_two(call: Call) -> None:
    report, _agents, _notes = run({call: Interrupt(HAPPY[call])})
    assert "twice" not in report.errors[0].message
    assert report.errors[0].facts["reason"] == "the command was interrupted"


def test_ctrl_c_in_the_hello_before_the_first_change_has_changed_nothing() -> None:
    report, agents, notes = run(
        {(Command.HELLO, DESTINATION): InTurn(HOST_FACTS, Interrupt(HOST_FACTS))}, slow_at(CHECKED[-1]))
    assert not set(MOVING) & set(agents.calls())
    assert not [line for line in notes.told if "cancel" in line or "leaving" in line]
    assert (report.outcome, codes(report)) == (Outcome.NOTHING_CHANGED, [ErrorCode.MIGRATION_CANCELLED])


def test_a_cancel_in_the_hello_before_the_move_rolls_back() -> None:
    report, agents, _notes = run(
        {**BEFORE, (Command.HELLO, SOURCE): InTurn(HOST_FACTS, Interrupt(HOST_FACTS, 2))}, slow_at(MOVING[1]))
    assert (Command.LIVE_MIGRATION, SOURCE) not in agents.calls()
    assert agents.steps()[-2:] == ROLLING_BACK
    assert report.outcome is Outcome.ROLLED_BACK


def test_a_destination_that_is_gone_before_it_was_asked_to_change_anything_leaves_nothing_changed() -> None:
    report, agents, _notes = run(
        {(Command.HELLO, DESTINATION): InTurn(HOST_FACTS, Silence())}, slow_at(CHECKED[-1]))
    assert not set(MOVING + ROLLING_BACK) & set(agents.calls())
    assert (report.outcome, codes(report)) == (Outcome.NOTHING_CHANGED, [ErrorCode.AGENT_SILENT])


@pytest.mark.parametrize("call", COMPLETING)
def test_a_cancel_after_the_move_comes_too_late_and_says_so(call: Call) -> None:
    report, agents, notes = run({call: Interrupt(HAPPY[call], 2)})
    assert agents.steps() == CHECKED + MOVING + COMPLETING
    assert [line for line in notes.told if "cancel" in line] == ["too late to cancel"]
    assert report.outcome is Outcome.MOVED


@pytest.mark.parametrize("call", ROLLING_BACK)
def test_a_cancel_while_it_is_rolled_back_does_not_keep_it_from_being_rolled_back(call: Call) -> None:
    report, agents, notes = run({
        **BEFORE, (Command.LIVE_MIGRATION, SOURCE): FAILED, call: Interrupt(BEFORE[call], 2)})
    assert agents.steps() == CHECKED + MOVING + ROLLING_BACK
    assert [line for line in notes.told if "cancel" in line] == ["too late to cancel"]
    assert report.outcome is Outcome.ROLLED_BACK


def test_a_cancel_that_the_agent_cannot_be_asked_for_still_waits_for_the_truth() -> None:
    agents = ScriptedAgents()

    def cut(request: Request) -> None:
        if request.cmd is Command.LIVE_MIGRATION:
            agents.clock.now += 20.0
            agents.script = {**agents.script, (Command.HELLO, SOURCE): Silence()}

    agents.before = cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents, "step_seconds", 0.0)
        report, _agents, notes = run({(Command.LIVE_MIGRATION, SOURCE): Interrupt(MOVED, 2)}, agents)
    assert "cancelling" in notes.told
    assert report.runs_on == DESTINATION
