"""After post-copy has begun there is no way back: what the controller does then, and what it tells the admin."""

from __future__ import annotations

import dataclasses

import pytest

from constant import Command, DomainState, ExitCode, Outcome
from controller import Controller
from tests.unit.samples import DESTINATION, FACTS, MIGRATION, PASS, SOURCE
from tests.unit.scripted import (
    AFTER,
    CHECKED,
    HAPPY,
    MOVING,
    ROLLING_BACK,
    Interrupt,
    WithProgress,
    codes,
    run,
    states,
)
from wire.errors import ErrorCode, MigrationError
from wire.records import Convergence, Progress, RollBackReport, StepArguments, post_copy_failed

BROKEN = post_copy_failed(MIGRATION, "the tunnel ended.")


@pytest.mark.parametrize(("here", "there"), [
    (DomainState.PAUSED, DomainState.RUNNING), (DomainState.PAUSED, DomainState.PAUSED),
    (DomainState.PAUSED, DomainState.ABSENT), (DomainState.SHUT_OFF, DomainState.ABSENT)])
def test_a_post_copy_that_broke_off_is_unknown_with_its_own_hint_and_no_advice_to_remove_anything(
    here: DomainState, there: DomainState,
) -> None:
    report, agents, _notes = run({**states(here, there), (Command.LIVE_MIGRATION, SOURCE): BROKEN})
    assert (report.outcome, report.exit_code, report.runs_on) == (Outcome.UNKNOWN, ExitCode.UNKNOWN, None)
    assert codes(report) == [ErrorCode.POST_COPY_FAILED, ErrorCode.STATE_UNKNOWN]
    assert "remove no image" in report.errors[0].hint
    assert f"{here.value} on {SOURCE}" in report.errors[1].message
    assert agents.calls() == CHECKED + MOVING + ROLLING_BACK


@pytest.mark.parametrize("here", [DomainState.PAUSED, DomainState.SHUT_OFF])
def test_what_was_written_over_there_in_post_copy_is_not_removed_because_the_source_has_what_is_left(
    here: DomainState,
) -> None:
    _report, agents, _notes = run({**states(here, DomainState.ABSENT), (Command.LIVE_MIGRATION, SOURCE): BROKEN})
    (told,) = [asked.request.cmd_arguments for asked in agents.asked
               if (asked.request.cmd, asked.request.agent_ip) == (Command.ROLL_BACK, DESTINATION)]
    assert isinstance(told, StepArguments)
    assert told.source_keeps is False


def test_a_post_copy_that_broke_off_after_all_was_across_is_a_move() -> None:
    report, _agents, _notes = run({**AFTER, (Command.LIVE_MIGRATION, SOURCE): BROKEN})
    assert (report.outcome, report.runs_on, report.errors) == (Outcome.MOVED, DESTINATION, ())


def test_one_that_runs_without_all_of_its_memory_has_not_moved_and_whoever_asks_later_reads_the_same_hint() -> None:
    off, half = RollBackReport(state=DomainState.SHUT_OFF, removed=()), RollBackReport(
        state=DomainState.RUNNING, removed=(), split=True)
    interrupted = MigrationError(ErrorCode.MIGRATION_CANCELLED, {"domain": "VM1", "reason": "x"})
    for here in (off, RollBackReport(state=DomainState.PAUSED, removed=(), split=True)):
        for error in (BROKEN, interrupted):
            report, _agents, _notes = run({
                (Command.ROLL_BACK, SOURCE): here, (Command.ROLL_BACK, DESTINATION): half,
                (Command.LIVE_MIGRATION, SOURCE): error})
            assert report.outcome is Outcome.UNKNOWN
            assert codes(report) == [ErrorCode.POST_COPY_FAILED, ErrorCode.STATE_UNKNOWN]
            assert "?" not in report.errors[0].message + report.errors[0].hint


def test_of_a_vm_that_gets_another_name_each_command_names_it_as_its_host_does() -> None:
    plain, renamed = BROKEN, post_copy_failed(dataclasses.replace(MIGRATION, new_name="web"), "x")
    assert f"`virsh destroy VM1` on {DESTINATION}" in plain.hint
    assert f"qemu+ssh://kvm@{DESTINATION}/system`" in plain.hint
    for command in (
            f"`virsh domstate --reason web` on {DESTINATION}", f"`virsh destroy web` on {DESTINATION}",
            f"`virsh destroy VM1` on {SOURCE}", f"`virsh start web` on {DESTINATION}",
            f"qemu+ssh://kvm@{DESTINATION}/system --dname web`"):
        assert command in renamed.hint
    assert "?" not in renamed.message + renamed.hint + plain.message + plain.hint


@pytest.mark.parametrize(("post_copy", "said", "cancelled"), [
    (False, "cancelling", 1), (True, "too late to cancel", 0)])
def test_a_cancel_in_post_copy_comes_too_late_and_says_so(post_copy: bool, said: str, cancelled: int) -> None:
    shown = Progress(phase="x", done=1, total=2, memory=dataclasses.replace(PASS, post_copy=post_copy))
    report, agents, notes = run({
        (Command.LIVE_MIGRATION, SOURCE): WithProgress((shown,), Interrupt(HAPPY[Command.LIVE_MIGRATION, SOURCE], 2))})
    assert said in notes.told
    assert agents.count((Command.CANCEL, SOURCE)) == cancelled
    assert report.outcome is Outcome.MOVED


def test_where_post_copy_may_have_begun_nobody_is_told_to_remove_the_image_on_the_destination() -> None:
    wanted = dataclasses.replace(MIGRATION, convergence=Convergence(post_copy=True))
    report = Controller._unknown(wanted, FACTS, "the agent is silent")
    assert codes(report) == [ErrorCode.STATE_UNKNOWN]
    assert codes(Controller._unknown(MIGRATION, FACTS, "x")) == [ErrorCode.STATE_UNKNOWN, ErrorCode.LEFT_BEHIND]
