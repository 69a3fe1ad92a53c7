"""`restore-source`: who has to say that the VM is not there, before the copy that stayed behind is brought back."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest

from constant import CHALLENGE_SECONDS, Command, DomainState, ExitCode, MessageType, Outcome, Pause
from control.restoring import Restored, restore_source
from tests.unit.samples import AGENTS, DESTINATION, HOST_FACTS, MIGRATION, SOURCE
from tests.unit.scripted import (
    BEGUN,
    GREETED,
    LISTED,
    RECALLED,
    Call,
    Interrupt,
    InTurn,
    Notes,
    ScriptedAgents,
    Silence,
    controller_of,
    error_of,
    job,
    known,
    network_of,
)
from wire.access import AddressList
from wire.errors import ERRORS, ErrorCode, MigrationError
from wire.history import JobDetails, JobList
from wire.message import Request
from wire.records import StepArguments, StepReport
from wire.situation import DomainArguments, DomainView, MovedNote

JOB = MIGRATION.job_id
THIRD = "192.0.2.13"
RESTORING = (Command.RESTORE_SOURCE, SOURCE)
LOCATING = (Command.LOCATE, DESTINATION)
ABSENT = DomainView(state=DomainState.ABSENT)
RUNS = DomainView(state=DomainState.RUNNING)
MOVED_ON = DomainView(
    state=DomainState.SHUT_OFF, moved=MovedNote(job_id="12345678", destination=THIRD, at=1_790_000_000))
BACK = StepReport(summary="shut off, as it was when it moved")
HAS_MOVED = known([], [], outcomes=(Outcome.MOVED, Outcome.MOVED))
SILENT: Mapping[Call, object] = {(Command.HELLO, DESTINATION): Silence()}
DEAD = error_of(ErrorCode.LIBVIRT_UNREACHABLE)


def agents_with(*scripts: Mapping[Call, object]) -> ScriptedAgents:
    """Agents of a job that has moved its VM, which is nowhere now, unless they are to say otherwise."""
    script: dict[Call, object] = {**HAS_MOVED, LOCATING: ABSENT, RESTORING: BACK}
    return ScriptedAgents(script={**script, **{call: line for each in scripts for call, line in each.items()}})


def restored(
    agents: ScriptedAgents, *, without_destination: bool = False, listed: AddressList = AGENTS, job: str = JOB,
) -> Restored:
    """What comes of it, for an admin with these agents."""
    talk = controller_of(agents, Notes(), listed).conversation
    return restore_source(talk, job, without_destination=without_destination)


def refused(
    agents: ScriptedAgents, *, without_destination: bool = False, listed: AddressList = AGENTS, job: str = JOB,
) -> MigrationError:
    """Why the copy is not brought back; the source was not asked to."""
    with pytest.raises(MigrationError) as caught:
        restored(agents, without_destination=without_destination, listed=listed, job=job)
    assert agents.count(RESTORING) == 0
    return caught.value


def three(view: object) -> tuple[ScriptedAgents, AddressList]:
    """The agents and one more, which says that of the VM and knows of no job."""
    agents = agents_with({
        (Command.HELLO, THIRD): HOST_FACTS, (Command.LIST, THIRD): JobList(jobs=()), (Command.LOCATE, THIRD): view})
    return agents, dataclasses.replace(AGENTS, networks=(*AGENTS.networks, ipaddress.ip_network(THIRD)))


def test_the_source_brings_its_copy_back_once_all_others_say_that_the_vm_is_not_there() -> None:
    agents = agents_with()
    result = restored(agents)
    assert agents.calls() == [*GREETED, *LISTED, *LISTED, LOCATING, RECALLED[0], RESTORING]
    assert (result.migration, result.summary) == (MIGRATION, BACK.summary)
    assert agents.asked[-1].request.cmd_arguments == StepArguments(migration=MIGRATION)


def test_what_the_copy_lacks_is_always_told() -> None:
    (warning,) = restored(agents_with()).warnings
    assert warning.code is ErrorCode.COPY_OUTDATED
    assert f"on {DESTINATION} alone" in warning.message
    assert "?" not in warning.message + warning.hint


@pytest.mark.parametrize("view", [
    RUNS, DomainView(state=DomainState.PAUSED, pause=Pause.SOMEBODY),
    DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION),
])
@pytest.mark.parametrize("without_destination", [False, True])
def test_it_is_refused_while_the_destination_has_the_vm_whatever_the_admin_says(
    view: DomainView, without_destination: bool,
) -> None:
    error = refused(agents_with({LOCATING: view}), without_destination=without_destination)
    assert (error.code, error.exit_code) == (ErrorCode.RUNS_ELSEWHERE, ExitCode.REFUSED)
    assert f"is {view.state.value} on {DESTINATION}" in error.message
    assert "?" not in error.message + error.hint


@pytest.mark.parametrize("view", [ABSENT, MOVED_ON, DomainView(state=DomainState.SHUT_OFF)])
def test_a_vm_that_is_not_started_over_there_is_no_reason_to_refuse(view: DomainView) -> None:
    assert restored(agents_with({LOCATING: view})).summary == BACK.summary


def test_it_is_refused_while_any_other_host_runs_the_vm_since_it_may_have_moved_on() -> None:
    agents, listed = three(RUNS)
    error = refused(agents, listed=listed, without_destination=True)
    assert (error.code, error.facts["host"]) == (ErrorCode.RUNS_ELSEWHERE, THIRD)
    agents, listed = three(ABSENT)
    assert restored(agents, listed=listed).summary == BACK.summary


def test_a_third_host_whose_libvirt_is_dead_is_told_and_no_reason_to_refuse() -> None:
    agents, listed = three(DEAD)
    result = restored(agents, listed=listed)
    assert [warning.code for warning in result.warnings] == [
        ErrorCode.LIBVIRT_UNREACHABLE, ErrorCode.COPY_OUTDATED]
    assert result.summary == BACK.summary


def test_a_vm_that_got_another_name_is_looked_for_under_both() -> None:
    renamed = dataclasses.replace(MIGRATION, new_name="web")
    record = dataclasses.replace(BEGUN, arguments=StepArguments(migration=renamed))
    agents = agents_with(known([], [], record=record, outcomes=(Outcome.MOVED, Outcome.MOVED)))
    restored(agents)
    asked = [each.request.cmd_arguments for each in agents.asked if each.request.cmd is Command.LOCATE]
    assert asked == [DomainArguments(domain="VM1"), DomainArguments(domain="web")]


def test_it_is_refused_while_another_host_runs_the_vm_under_the_name_that_a_later_job_gave_it() -> None:
    agents, listed = three(ABSENT)
    called = dataclasses.replace(MIGRATION, new_name="web")
    record = dataclasses.replace(BEGUN, arguments=StepArguments(migration=called))
    agents.script = {**agents.script, **known([], [], record=record, outcomes=(Outcome.MOVED, Outcome.MOVED))}

    def look(request: Request) -> None:
        if (request.cmd, request.agent_ip) == (Command.LOCATE, THIRD):
            there = request.cmd_arguments == DomainArguments(domain="VM1")
            agents.script = {**agents.script, (Command.LOCATE, THIRD): RUNS if there else ABSENT}

    agents.before = look
    assert refused(agents, listed=listed).code is ErrorCode.RUNS_ELSEWHERE


# Hosts that say nothing.


def test_a_destination_that_says_nothing_may_run_the_vm() -> None:
    for silent in (SILENT, {LISTED[1]: Silence()}, {LOCATING: Silence()}, {LOCATING: DEAD}):
        error = refused(agents_with(silent))
        assert error.code in (ErrorCode.AGENT_SILENT, ErrorCode.LIBVIRT_UNREACHABLE)


def test_an_admin_who_knows_better_goes_without_the_destination_and_is_told_that_it_was_not_asked() -> None:
    agents = agents_with(SILENT)
    result = restored(agents, without_destination=True)
    assert LOCATING not in agents.calls()
    assert [warning.code for warning in result.warnings] == [ErrorCode.AGENT_SILENT, ErrorCode.COPY_OUTDATED]
    assert result.warnings[0].facts["host"] == DESTINATION


@pytest.mark.parametrize("without_destination", [False, True])
@pytest.mark.parametrize("call", [(Command.HELLO, SOURCE), (Command.LIST, SOURCE), (Command.RECALL, SOURCE)])
def test_a_source_that_says_nothing_cannot_be_asked(call: Call, without_destination: bool) -> None:
    error = refused(agents_with({call: Silence()}), without_destination=without_destination)
    assert (error.code, error.facts["host"]) == (ErrorCode.AGENT_SILENT, SOURCE)


def test_all_silent_hosts_that_have_a_say_are_named() -> None:
    agents, listed = three(ABSENT)
    agents.script = {
        **agents.script, (Command.LIST, THIRD): JobList(jobs=(job(1, Outcome.MOVED),)),
        **{(Command.HELLO, host): Silence() for host in (SOURCE, DESTINATION)}}
    error = refused(agents, listed=listed, job=job(1).job_id)
    assert [each.facts["host"] for each in (error, *error.others)] == [SOURCE, DESTINATION]


@pytest.mark.parametrize(("line", "code"), [
    (Silence(), ErrorCode.AGENT_SILENT),
    *[(error_of(code, MessageType.RESPONSE), code) for code in (
        ErrorCode.NOT_AS_EXPECTED, ErrorCode.LIBVIRT_ERROR, ErrorCode.LIBVIRT_UNREACHABLE)]])
def test_once_the_source_may_have_begun_what_goes_wrong_leaves_it_unknown_and_may_be_repeated(
    line: object, code: ErrorCode,
) -> None:
    result = restored(agents_with({RESTORING: line}))
    assert (result.exit_code, result.summary) == (ExitCode.UNKNOWN, "")
    assert result.error is not None
    assert result.error.code is code
    assert f"restore-source {JOB}` may be repeated" in result.error.hint
    assert ERRORS[code].hint.split("{", maxsplit=1)[0] in result.error.hint
    assert [warning.code for warning in result.warnings] == [ErrorCode.COPY_OUTDATED]


@pytest.mark.parametrize("code", [ErrorCode.LIBVIRT_ERROR, ErrorCode.AGENT_BUSY])
def test_what_the_source_refuses_has_changed_nothing(code: ErrorCode) -> None:
    with pytest.raises(MigrationError) as caught:
        restored(agents_with({RESTORING: error_of(code)}))
    assert caught.value.code is code


# Ctrl-C.


def test_ctrl_c_leaves_the_source_to_it_and_says_that_it_may_be_repeated() -> None:
    agents, notes = agents_with({RESTORING: Interrupt(BACK)}), Notes()
    result = restore_source(controller_of(agents, notes).conversation, JOB, without_destination=False)
    assert (result.exit_code, int(result.exit_code), result.summary) == (ExitCode.DETACHED, 8, "")
    assert result.error is not None
    assert f"restore-source {JOB}` may be repeated" in result.error.hint
    assert "?" not in result.error.message + result.error.hint
    assert agents.calls()[-1] == RESTORING
    assert notes.told[-1] == "leaving in 2 s"


@pytest.mark.parametrize("without_destination", [False, True])
def test_a_second_ctrl_c_is_too_late_and_waits_for_the_source(without_destination: bool) -> None:
    agents, notes = agents_with(SILENT if without_destination else {}, {RESTORING: Interrupt(BACK, 2)}), Notes()
    result = restore_source(
        controller_of(agents, notes).conversation, JOB, without_destination=without_destination)
    assert (result.exit_code, result.summary) == (ExitCode.MOVED, BACK.summary)
    assert "too late to cancel" in notes.told
    assert Command.CANCEL not in {command for command, _host in agents.calls()}


def test_a_third_ctrl_c_leaves_at_once() -> None:
    result = restored(agents_with({RESTORING: Interrupt(BACK, 3)}))
    assert (result.exit_code, result.summary) == (ExitCode.DETACHED, "")


def test_ctrl_c_before_the_source_was_asked_ends_the_command() -> None:
    agents = agents_with()
    agents.script = {**agents.script, (Command.HELLO, SOURCE): InTurn(HOST_FACTS, Interrupt(HOST_FACTS))}

    def take_long(request: Request) -> None:
        if request.cmd is Command.RECALL:
            agents.clock.now += CHALLENGE_SECONDS

    agents.before = take_long
    with pytest.raises(KeyboardInterrupt):
        restored(agents)
    assert agents.count(RESTORING) == 0


def test_only_hosts_that_have_been_greeted_are_asked_to_cancel() -> None:
    agents = agents_with()
    talk = controller_of(agents, Notes()).conversation
    talk.greet([SOURCE])
    talk.migration = MIGRATION
    talk.cancel()
    assert [(each.request.cmd, each.request.agent_ip) for each in agents.asked] == [
        (Command.HELLO, SOURCE), (Command.CANCEL, SOURCE)]


def test_a_third_host_that_says_nothing_is_told_and_no_reason_to_refuse() -> None:
    agents, listed = three(ABSENT)
    agents.script = {**agents.script, (Command.HELLO, THIRD): Silence()}
    result = restored(agents, listed=listed)
    assert [warning.facts["host"] for warning in result.warnings] == [THIRD, SOURCE]


def test_a_destination_that_says_nothing_may_run_the_vm_also_where_the_list_only_names_its_network() -> None:
    agents = agents_with()
    assert refused(agents, listed=network_of(agents, DESTINATION)).code is ErrorCode.AGENT_SILENT


def test_a_source_that_says_nothing_is_told_also_where_the_list_only_names_its_network() -> None:
    agents = agents_with()
    assert refused(agents, listed=network_of(agents, SOURCE)).code is ErrorCode.AGENT_SILENT


def test_an_admin_who_knows_better_goes_without_a_destination_whose_libvirt_is_dead() -> None:
    assert restored(agents_with({LOCATING: DEAD}), without_destination=True).summary == BACK.summary


@pytest.mark.parametrize("changes", [
    {"domain": "VM2"}, {"destination": THIRD}, {"job_id": "87654321"}, {"new_name": "web"}])
def test_a_source_that_knows_the_job_as_another_than_it_listed_is_not_asked(changes: Mapping[str, Any]) -> None:
    record = dataclasses.replace(BEGUN, arguments=StepArguments(migration=dataclasses.replace(MIGRATION, **changes)))
    error = refused(agents_with({RECALLED[0]: JobDetails(record=record, steps=())}))
    assert (error.code, error.facts["host"]) == (ErrorCode.MESSAGE_INVALID, SOURCE)
    assert "?" not in error.message + error.hint


# What there is to bring back.


def test_while_the_job_still_moves_the_vm_nothing_is_brought_back() -> None:
    agents = agents_with({call: JobList(jobs=(job(1, None, Command.LIVE_MIGRATION),)) for call in LISTED})
    error = refused(agents, job=job(1).job_id)
    assert error.code is ErrorCode.JOB_RUNS
    assert f"LIVE_MIGRATION on {SOURCE}" in error.message


def test_while_another_job_brings_the_vm_somewhere_it_is_told_of_that_and_not_of_a_second_vm() -> None:
    own = agents_with().script[LISTED[1]]
    assert isinstance(own, JobList)
    other = dataclasses.replace(job(7, None, Command.LIVE_MIGRATION), domain=MIGRATION.domain)
    half = DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION)
    error = refused(agents_with({LISTED[1]: JobList(jobs=(*own.jobs, other)), LOCATING: half}))
    assert error.code is ErrorCode.JOB_RUNS
    assert f"job {other.job_id} now" in error.message


def test_a_job_that_nobody_knows_is_told() -> None:
    error = refused(agents_with(known(None, None)))
    assert (error.code, error.exit_code) == (ErrorCode.JOB_UNKNOWN, ExitCode.REFUSED)
    assert JOB in error.message


def test_a_silent_host_is_the_reason_why_a_job_is_not_known() -> None:
    assert refused(agents_with(known(None, None), SILENT)).code is ErrorCode.AGENT_SILENT


def test_a_vms_name_is_not_taken_for_a_job() -> None:
    assert refused(agents_with(), job="VM1").code is ErrorCode.JOB_UNKNOWN


def test_a_source_that_has_no_such_copy_says_so() -> None:
    with pytest.raises(MigrationError) as caught:
        restored(agents_with({RESTORING: error_of(ErrorCode.NO_STALE_COPY)}))
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.NO_STALE_COPY, ExitCode.REFUSED)


def test_only_the_restoring_itself_is_shown() -> None:
    agents, notes = agents_with(), Notes()
    restore_source(controller_of(agents, notes).conversation, JOB, without_destination=False)
    assert notes.told == [f"RESTORE_SOURCE {SOURCE} began", f"RESTORE_SOURCE {SOURCE} ended"]
