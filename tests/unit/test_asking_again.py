"""What a Controller does when an agent does not know a request, or was ended in the middle of it: ask again, or not."""

from __future__ import annotations

import dataclasses

import pytest

from constant import Command, ExitCode, MessageType, Outcome
from tests.unit.samples import DESTINATION, HOST_FACTS, SOURCE
from tests.unit.scripted import (
    BEFORE,
    CHECKED,
    COMPLETING,
    HAPPY,
    LOOKED,
    MOVING,
    ROLLING_BACK,
    Call,
    Interrupt,
    InTurn,
    Raw,
    ScriptedAgents,
    Silence,
    codes,
    error_of,
    run,
)
from wire.errors import ErrorCode
from wire.message import Request

PREPARING, COPYING, MIGRATING = MOVING
ONLY_ONCE = [PREPARING, MIGRATING]
AGAIN = [call for call in CHECKED[2:] + MOVING + COMPLETING if call not in ONLY_ONCE]

STALE = error_of(ErrorCode.REQUEST_STALE)
INTERRUPTED = error_of(ErrorCode.REQUEST_INTERRUPTED, MessageType.RESPONSE)
# The agent accepted the request, and knows nothing of it when it is asked how it goes.
FORGOTTEN = [error_of(ErrorCode.REQUEST_UNKNOWN), error_of(ErrorCode.REQUEST_EXPIRED)]
# The same agent after a restart on which it kept its journal, and on which it lost it.
RESTARTED = dataclasses.replace(HOST_FACTS, challenge="90-fedcba9876543210")
ANEW = dataclasses.replace(RESTARTED, epoch="fedcba9876543210")


def requests(agents: ScriptedAgents, call: Call) -> list[Request]:
    """All requests for that call, in order."""
    return [each.request for each in agents.asked if (each.request.cmd, each.request.agent_ip) == call]


def greetings(agents: ScriptedAgents, call: Call) -> int:
    """How often that agent was greeted from the first request for the call to the last."""
    calls = agents.calls()
    first, last = calls.index(call), len(calls) - 1 - calls[::-1].index(call)
    return calls[first:last].count((Command.HELLO, call[1]))


# Stale, and the agent still has its journal: the request was not begun.


@pytest.mark.parametrize("call", CHECKED[2:] + MOVING + COMPLETING)
def test_any_stale_step_is_asked_for_again_after_a_hello_if_the_agent_has_its_journal(call: Call) -> None:
    hello = (Command.HELLO, call[1])
    report, agents, _notes = run({call: InTurn(STALE, HAPPY[call]), hello: InTurn(HOST_FACTS, RESTARTED)})
    assert (report.outcome, report.errors) == (Outcome.MOVED, ())
    assert agents.count(call) == 2
    assert list(dict.fromkeys(agents.steps())) == CHECKED + MOVING + COMPLETING
    assert greetings(agents, call) == 1
    first, second = requests(agents, call)
    assert (second.epoch, second.challenge) == (RESTARTED.epoch, RESTARTED.challenge)
    assert second.cmd_arguments == first.cmd_arguments
    assert second.request_id != first.request_id


@pytest.mark.parametrize("call", ROLLING_BACK)
def test_a_stale_roll_back_is_asked_for_again(call: Call) -> None:
    report, agents, _notes = run({**BEFORE, call: InTurn(STALE, BEFORE[call]), PREPARING: Silence()})
    assert report.outcome is Outcome.ROLLED_BACK
    assert agents.count(call) == 2


@pytest.mark.parametrize(("call", "outcome"), [
    *[(call, Outcome.NOTHING_CHANGED) for call in LOOKED[2:]],
    *[(call, Outcome.ROLLED_BACK) for call in (COPYING, MIGRATING)],
    *[(call, Outcome.MOVED_INCOMPLETE) for call in COMPLETING],
])
def test_a_step_that_is_still_stale_at_the_third_attempt_is_a_refusal(call: Call, outcome: Outcome) -> None:
    report, agents, _notes = run({**BEFORE, call: STALE})
    assert agents.count(call) == 3
    assert (report.outcome, codes(report)) == (outcome, [ErrorCode.REQUEST_STALE])


def test_a_check_that_stays_stale_has_the_exit_code_of_a_refusal() -> None:
    report, _agents, _notes = run({CHECKED[2]: STALE})
    assert report.exit_code is ExitCode.REFUSED


def test_a_cancelled_move_is_not_asked_for_again() -> None:
    report, agents, _notes = run({**BEFORE, MIGRATING: Interrupt(STALE, 2)})
    assert agents.count(MIGRATING) == 1
    assert (report.outcome, codes(report)) == (Outcome.ROLLED_BACK, [ErrorCode.MIGRATION_CANCELLED])


# The agent has lost its journal, so nobody knows what it had begun.


@pytest.mark.parametrize("trouble", [STALE, *FORGOTTEN])
@pytest.mark.parametrize("call", AGAIN)
def test_a_step_that_may_run_twice_is_asked_for_again_after_a_lost_journal(call: Call, trouble: Raw) -> None:
    report, agents, _notes = run({
        call: InTurn(trouble, HAPPY[call]), (Command.HELLO, call[1]): InTurn(HOST_FACTS, ANEW)})
    assert report.outcome is Outcome.MOVED
    _first, second = requests(agents, call)
    assert (second.epoch, second.challenge) == (ANEW.epoch, ANEW.challenge)


@pytest.mark.parametrize("trouble", [STALE, *FORGOTTEN])
def test_a_move_that_may_have_begun_before_the_journal_was_lost_is_never_asked_for_again(trouble: Raw) -> None:
    report, agents, _notes = run({
        **BEFORE, MIGRATING: trouble, (Command.HELLO, SOURCE): InTurn(HOST_FACTS, ANEW)})
    assert agents.steps() == CHECKED + MOVING
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)
    assert codes(report) == [ErrorCode.STATE_UNKNOWN, ErrorCode.LEFT_BEHIND]
    assert "no longer knows what it was asked" in report.errors[0].message


@pytest.mark.parametrize("trouble", [STALE, *FORGOTTEN])
def test_a_preparation_that_may_have_begun_before_the_journal_was_lost_is_rolled_back(trouble: Raw) -> None:
    report, agents, _notes = run({
        **BEFORE, PREPARING: trouble, (Command.HELLO, DESTINATION): InTurn(HOST_FACTS, ANEW)})
    assert agents.steps() == [*CHECKED, PREPARING, *ROLLING_BACK]
    assert (report.outcome, report.runs_on) == (Outcome.ROLLED_BACK, SOURCE)
    assert codes(report) == [ErrorCode.REQUEST_UNKNOWN]


def test_a_move_is_not_asked_for_again_once_the_journal_was_lost_between_two_attempts() -> None:
    report, agents, _notes = run({
        **BEFORE, MIGRATING: STALE, (Command.HELLO, SOURCE): InTurn(HOST_FACTS, RESTARTED, ANEW)})
    assert agents.count(MIGRATING) == 2
    assert report.outcome is Outcome.UNKNOWN


def test_a_stale_move_of_an_agent_that_then_falls_silent_may_have_begun() -> None:
    report, agents, _notes = run({
        **BEFORE, MIGRATING: STALE, (Command.HELLO, SOURCE): InTurn(HOST_FACTS, Silence())})
    assert not set(ROLLING_BACK) & set(agents.calls())
    assert (report.outcome, report.exit_code) == (Outcome.UNKNOWN, ExitCode.UNKNOWN)


# The agent was ended in the middle of the step, and its journal tells.


@pytest.mark.parametrize("call", AGAIN)
def test_an_interrupted_step_that_may_run_twice_is_asked_for_again_after_a_hello(call: Call) -> None:
    report, agents, _notes = run({
        call: InTurn(INTERRUPTED, HAPPY[call]), (Command.HELLO, call[1]): InTurn(HOST_FACTS, RESTARTED)})
    assert report.outcome is Outcome.MOVED
    assert agents.count(call) == 2
    assert greetings(agents, call) == 1
    assert requests(agents, call)[1].challenge == RESTARTED.challenge


@pytest.mark.parametrize(("call", "outcome"), [
    *[(call, Outcome.NOTHING_CHANGED) for call in LOOKED[2:]], (COPYING, Outcome.ROLLED_BACK),
    *[(call, Outcome.MOVED_INCOMPLETE) for call in COMPLETING],
])
def test_an_agent_that_is_ended_in_every_attempt_is_not_asked_for_ever(call: Call, outcome: Outcome) -> None:
    report, agents, _notes = run({**BEFORE, call: INTERRUPTED})
    assert agents.count(call) == 3
    assert (report.outcome, codes(report)) == (outcome, [ErrorCode.REQUEST_INTERRUPTED])
    assert call[1] in report.errors[0].message
    assert call[0].value in report.errors[0].message


def test_an_interrupted_move_ends_as_a_silence_would_with_the_state_unknown() -> None:
    report, agents, _notes = run({**BEFORE, MIGRATING: INTERRUPTED})
    assert agents.calls() == CHECKED + MOVING
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)
    assert report.exit_code == 7
    assert codes(report) == [ErrorCode.STATE_UNKNOWN, ErrorCode.LEFT_BEHIND]
    assert "was ended while it worked on LIVE_MIGRATION" in report.errors[0].message


def test_an_interrupted_preparation_is_rolled_back() -> None:
    report, agents, _notes = run({**BEFORE, PREPARING: INTERRUPTED})
    assert agents.calls() == [*CHECKED, PREPARING, *ROLLING_BACK]
    assert (report.outcome, report.exit_code) == (Outcome.ROLLED_BACK, ExitCode.ROLLED_BACK)
    assert codes(report) == [ErrorCode.REQUEST_INTERRUPTED]


# Refusals that mean what they say.


REFUSALS = [
    ErrorCode.DOMAIN_LOCKED, ErrorCode.JOBS_LIMIT_REACHED, ErrorCode.AGENT_BUSY, ErrorCode.AGENT_STOPPING,
    ErrorCode.JOURNAL_NOT_WRITTEN, ErrorCode.REQUEST_CONFLICT, ErrorCode.MESSAGE_INVALID]


@pytest.mark.parametrize("code", REFUSALS)
def test_any_other_refusal_is_not_asked_again(code: ErrorCode) -> None:
    report, agents, _notes = run({CHECKED[2]: error_of(code)})
    assert agents.calls() == LOOKED[:4]
    assert (report.outcome, report.exit_code, codes(report)) == (Outcome.NOTHING_CHANGED, ExitCode.REFUSED, [code])
    report, agents, _notes = run({**BEFORE, MIGRATING: error_of(code)})
    assert agents.calls() == CHECKED + MOVING + ROLLING_BACK
    assert (report.outcome, codes(report)) == (Outcome.ROLLED_BACK, [code])


@pytest.mark.parametrize("code", [*REFUSALS, ErrorCode.REQUEST_STALE])
def test_a_preparation_that_was_refused_has_changed_nothing_and_leaves_nothing_to_roll_back(code: ErrorCode) -> None:
    report, agents, _notes = run({**BEFORE, PREPARING: error_of(code)})
    assert agents.count(PREPARING) == (3 if code is ErrorCode.REQUEST_STALE else 1)
    assert not set(ROLLING_BACK) & set(agents.calls())
    assert (report.outcome, report.exit_code, codes(report)) == (Outcome.NOTHING_CHANGED, ExitCode.REFUSED, [code])
