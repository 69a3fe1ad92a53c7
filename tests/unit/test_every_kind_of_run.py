"""Runs of VMs that are not simply running with one disk: what is asked of whom, and how the run concludes."""

from __future__ import annotations

import dataclasses

import pytest

from console.result import result_json, result_text
from constant import Command, DomainState, ExitCode, MessageType, Outcome
from control.report import RunReport
from tests.unit.samples import DESTINATION, FACTS, ISO, MIGRATION, SOURCE
from tests.unit.scripted import CHECKED, COMPLETING, ROLLING_BACK, ScriptedAgents, Silence, error_of, run, states
from wire.errors import ErrorCode
from wire.findings import CheckReport
from wire.records import MigrationReport, StepReport
from wire.situation import DomainView

SENT = StepReport(summary="sent a.iso: 4 MiB of data", bytes=4 << 20)
RECEIVED = StepReport(summary="1 of 1 files received and verified")
MOVING = [
    (Command.PREPARE_DESTINATION, DESTINATION), (Command.COPY_DISK_FILE, DESTINATION), (Command.COPY_DISK_FILE, SOURCE),
    (Command.LIVE_MIGRATION, SOURCE)]


def run_of(
    state: DomainState = DomainState.RUNNING, **lines: object,
) -> tuple[RunReport, ScriptedAgents]:
    """A run of a VM with a file to send; `source`, `destination` and `migration` say what becomes of these steps."""
    facts = dataclasses.replace(FACTS, state=state, files=(ISO,))
    script: dict[object, object] = {
        (Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(), facts=facts),
        (Command.CHECK_DESTINATION, DESTINATION): CheckReport(findings=(), directory="/srv/pool"),
        (Command.COPY_DISK_FILE, SOURCE): lines.get("source", SENT),
        (Command.COPY_DISK_FILE, DESTINATION): lines.get("destination", RECEIVED),
        (Command.LOCATE, DESTINATION): DomainView(state=state)}
    if "migration" in lines:
        script[Command.LIVE_MIGRATION, SOURCE] = lines["migration"]
    if "states" in lines:
        script.update(lines["states"])  # type: ignore[call-overload]
    report, agents, _notes = run(script)  # type: ignore[arg-type]
    return report, agents


def failed(code: ErrorCode) -> object:
    """The step ends with that error."""
    return error_of(code, MessageType.RESPONSE)


def test_files_are_received_while_they_are_sent_and_counted() -> None:
    report, agents = run_of()
    assert agents.calls() == CHECKED + MOVING + COMPLETING
    assert (report.outcome, report.sent) == (Outcome.MOVED, 4 << 20)
    assert "files 4 MiB" in result_text(report)
    assert result_json(report)["sent_bytes"] == 4 << 20


def test_the_directory_of_the_pool_reaches_every_step_after_the_check() -> None:
    _report, agents = run_of()
    told = {
        asked.request.cmd: asked.request.cmd_arguments.migration.directory  # type: ignore[attr-defined]
        for asked in agents.asked if asked.request.cmd in (Command.PREPARE_DESTINATION, Command.LIVE_MIGRATION)}
    assert set(told.values()) == {"/srv/pool"}


@pytest.mark.parametrize(("source", "destination", "told"), [
    (ErrorCode.PATH_TAKEN, ErrorCode.PATH_TAKEN, ErrorCode.PATH_TAKEN),
    (ErrorCode.TUNNEL_LOST, ErrorCode.PATH_NOT_ALLOWED, ErrorCode.PATH_NOT_ALLOWED),
    (ErrorCode.TUNNEL_LOST, None, ErrorCode.TUNNEL_LOST),
    (ErrorCode.FILE_CHANGED, ErrorCode.TUNNEL_LOST, ErrorCode.FILE_CHANGED),
    (None, ErrorCode.FILE_NOT_WRITTEN, ErrorCode.FILE_NOT_WRITTEN),
])
def test_a_copy_that_fails_is_rolled_back_with_the_error_that_says_why(
    source: ErrorCode | None, destination: ErrorCode | None, told: ErrorCode,
) -> None:
    report, agents = run_of(
        source=SENT if source is None else failed(source),
        destination=RECEIVED if destination is None else failed(destination),
        states=states(DomainState.RUNNING, DomainState.ABSENT))
    assert (report.outcome, [error.code for error in report.errors]) == (Outcome.ROLLED_BACK, [told])
    told_to_end = [] if source is None else [(Command.CANCEL, DESTINATION)]
    assert agents.calls() == CHECKED + MOVING[:3] + told_to_end + ROLLING_BACK


def test_that_the_receiving_end_was_told_to_end_does_not_hide_why() -> None:
    report, _agents = run_of(
        source=failed(ErrorCode.TUNNEL_LOST), destination=failed(ErrorCode.MIGRATION_CANCELLED),
        states=states(DomainState.RUNNING, DomainState.ABSENT))
    assert [error.code for error in report.errors] == [ErrorCode.TUNNEL_LOST]


def test_a_receiving_end_that_falls_silent_does_not_hide_why_the_sending_one_failed() -> None:
    report, _agents = run_of(
        source=failed(ErrorCode.FILE_CHANGED), destination=Silence(),
        states=states(DomainState.RUNNING, DomainState.ABSENT))
    assert [error.code for error in report.errors] == [ErrorCode.FILE_CHANGED]


@pytest.mark.parametrize(("state", "words"), [
    (DomainState.PAUSED, "VM1 is paused on 192.0.2.12 now."),
    (DomainState.SHUT_OFF, "VM1 is shut off on 192.0.2.12 now."),
])
def test_what_is_said_at_the_end_is_how_the_vm_is(state: DomainState, words: str) -> None:
    nothing = MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1)
    report, _agents = run_of(state, migration=nothing)
    text = result_text(report)
    assert words in text
    assert ("downtime" in text) is (state is not DomainState.SHUT_OFF)
    assert result_json(report)["state"] == state.value


@pytest.mark.parametrize(("state", "here", "there", "outcome"), [
    (DomainState.PAUSED, DomainState.PAUSED, DomainState.ABSENT, Outcome.ROLLED_BACK),
    (DomainState.PAUSED, DomainState.SHUT_OFF, DomainState.PAUSED, Outcome.MOVED_INCOMPLETE),
    (DomainState.SHUT_OFF, DomainState.SHUT_OFF, DomainState.ABSENT, Outcome.ROLLED_BACK),
    (DomainState.SHUT_OFF, DomainState.SHUT_OFF, DomainState.SHUT_OFF, Outcome.MOVED_INCOMPLETE),
    (DomainState.RUNNING, DomainState.PAUSED, DomainState.ABSENT, Outcome.ROLLED_BACK),
    (DomainState.SHUT_OFF, DomainState.RUNNING, DomainState.ABSENT, Outcome.ROLLED_BACK),
    (DomainState.PAUSED, DomainState.SHUT_OFF, DomainState.RUNNING, Outcome.UNKNOWN),
    (DomainState.SHUT_OFF, DomainState.RUNNING, DomainState.SHUT_OFF, Outcome.UNKNOWN),
])
def test_after_a_failure_the_two_states_say_how_it_ended(
    state: DomainState, here: DomainState, there: DomainState, outcome: Outcome,
) -> None:
    report, agents = run_of(
        state, migration=failed(ErrorCode.MIGRATION_FAILED), states=states(here, there, arrived=True))
    assert report.outcome is outcome
    assert report.exit_code in (ExitCode.ROLLED_BACK, ExitCode.MOVED_INCOMPLETE, ExitCode.UNKNOWN)
    told = next(asked.request.cmd_arguments for asked in agents.asked
                if (asked.request.cmd, asked.request.agent_ip) == (Command.ROLL_BACK, DESTINATION))
    # Where the source has given it up, there is one over there.
    gave_up = here is DomainState.SHUT_OFF and there in (DomainState.RUNNING, DomainState.PAUSED)
    assert told.source_keeps is not gave_up  # type: ignore[attr-defined]


def test_a_new_name_is_said_where_the_vm_is_and_the_old_one_where_it_was() -> None:
    renamed = dataclasses.replace(MIGRATION, new_name="new")
    done = RunReport(renamed, Outcome.MOVED, DESTINATION, 1.0)
    assert result_text(done) == "new runs on 192.0.2.12 now."
    back = RunReport(renamed, Outcome.ROLLED_BACK, SOURCE, 1.0)
    assert result_text(back) == "Rolled back: VM1 runs on 192.0.2.11 as before."
