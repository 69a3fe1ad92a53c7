"""`repair`: each way in which two hosts can have a VM, what is done about it, and what is said to be left to do."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from console.jobs import repair_json, repair_text
from constant import Command, DomainState, ExitCode, Outcome, Pause
from control.conversation import SilenceError
from control.repairing import RepairReport, repair
from control.report import RunReport
from tests.unit.samples import DESTINATION, MIGRATION, SOURCE
from tests.unit.scripted import (
    BEFORE,
    COPIED,
    FAILED,
    GREETED,
    LISTED,
    PREPARED,
    Call,
    Interrupt,
    Notes,
    ScriptedAgents,
    Silence,
    controller_of,
    job,
    known,
)
from wire.errors import ErrorCode, MigrationError
from wire.history import JobList, JobSummary
from wire.situation import DomainView, Situation, situation

RUNS = DomainView(state=DomainState.RUNNING)
PAUSED = DomainView(state=DomainState.PAUSED, pause=Pause.SOMEBODY)
OFF = DomainView(state=DomainState.SHUT_OFF)
NONE = DomainView(state=DomainState.ABSENT)
BROKEN_OFF = DomainView(state=DomainState.PAUSED, pause=Pause.POST_COPY_FAILED, busy=True, split=True)
SILENCE = MigrationError(ErrorCode.AGENT_SILENT, {"host": SOURCE, "port": "8002", "seconds": "90"})
LOCATED = [(Command.LOCATE, SOURCE), (Command.LOCATE, DESTINATION)]


def views(source: object, destination: object, *jobs: JobSummary) -> dict[Call, object]:
    """What both hosts say."""
    return {
        (Command.LOCATE, SOURCE): source, (Command.LOCATE, DESTINATION): destination,
        **{call: JobList(jobs=jobs) for call in LISTED}}


class Resuming:
    """Stands for Controller.resume."""

    def __init__(self, *ends: Outcome | BaseException) -> None:
        self.asked: list[str] = []
        self._ends = list(ends)

    def __call__(self, job_id: str) -> RunReport:
        self.asked.append(job_id)
        end = self._ends.pop(0) if self._ends else Outcome.ROLLED_BACK
        if isinstance(end, BaseException):
            raise end
        return RunReport(MIGRATION, end, SOURCE, 1.0)


def repaired(script: Mapping[Call, object], resume: Resuming | None = None) -> tuple[RepairReport, ScriptedAgents]:
    """The report, and the agents that were asked."""
    agents = ScriptedAgents(script=script)
    talk = controller_of(agents, Notes()).conversation
    return repair(talk, resume or Resuming(), "VM1", SOURCE, DESTINATION), agents


ADVICE: Mapping[Situation, tuple[DomainView, DomainView, list[tuple[str, str]]]] = {
    Situation.ON_SOURCE: (RUNS, NONE, []),
    Situation.ON_SOURCE_PAUSED: (PAUSED, OFF, []),
    Situation.ON_DESTINATION: (OFF, RUNS, []),
    Situation.ON_DESTINATION_PAUSED: (NONE, PAUSED, []),
    Situation.SHUT_OFF_ON_SOURCE: (OFF, NONE, []),
    Situation.SHUT_OFF_ON_DESTINATION: (NONE, OFF, []),
    Situation.ARRIVING: (RUNS, PAUSED, [(DESTINATION, "virsh destroy VM1")]),
    Situation.LEAVING: (PAUSED, RUNS, [(SOURCE, "virsh destroy VM1")]),
    Situation.SPLIT: (BROKEN_OFF, DomainView(state=DomainState.RUNNING, busy=True, split=True), [
        (SOURCE, "virsh migrate --live --p2p --persistent --postcopy --postcopy-resume VM1 "
         f"qemu+ssh://USER@{DESTINATION}/system")]),
    Situation.BETWEEN: (PAUSED, PAUSED, [(DESTINATION, "virsh destroy VM1"), (SOURCE, "virsh resume VM1")]),
    Situation.BOTH: (RUNS, RUNS, [
        (SOURCE, f"virsh destroy VM1   # if {DESTINATION} is to keep it"),
        (DESTINATION, f"virsh destroy VM1   # if {SOURCE} is to keep it")]),
    Situation.SHUT_OFF_ON_BOTH: (OFF, OFF, [
        (DESTINATION, "virsh start VM1   # if it was moved there last"),
        (SOURCE, "virsh start VM1   # if it never left")]),
    Situation.NOWHERE: (NONE, NONE, [
        (SOURCE, "ls -l /var/lib/libvirt/images"), (DESTINATION, "ls -l /var/lib/libvirt/images")]),
}


def test_there_is_advice_for_every_situation() -> None:
    assert set(ADVICE) == set(Situation) - {Situation.NOT_KNOWN}
    for named, (source, destination, _commands) in ADVICE.items():
        assert situation(source, destination) is named


@pytest.mark.parametrize("named", sorted(ADVICE))
def test_each_situation_is_told_with_what_is_left_to_do_and_why(named: Situation) -> None:
    source, destination, commands = ADVICE[named]
    ended = (job(7, Outcome.MOVED),) if named is Situation.NOWHERE else ()
    report, agents = repaired(views(source, destination, *ended))
    assert agents.calls() == GREETED + LISTED + LOCATED
    assert (report.found.situation, list(report.commands)) == (named, commands)
    assert report.exit_code is (ExitCode.UNKNOWN if commands else ExitCode.MOVED)
    assert bool(report.why) is bool(commands)
    assert "{" not in report.why
    text = repair_text(report)
    assert text.startswith(f"VM1: {named.value}.\n")
    for host, command in commands:
        assert f"  on {host}:  {command}" in text
    assert ("Nothing is left to do." in text) is not bool(commands)
    found = repair_json(report)
    assert (found["situation"], found["exit_code"]) == (named.value, int(report.exit_code))
    assert found["commands"] == [{"host": host, "command": command} for host, command in commands]


def test_a_name_that_nobody_has_heard_of_is_refused() -> None:
    with pytest.raises(MigrationError) as caught:
        repaired(views(NONE, NONE))
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.JOB_UNKNOWN, ExitCode.REFUSED)
    assert all(word in caught.value.message for word in ("VM1", SOURCE, DESTINATION))
    assert "list" in caught.value.hint


@pytest.mark.parametrize("silent", [*GREETED, *LOCATED])
def test_nothing_is_certain_while_a_host_cannot_be_asked(silent: Call) -> None:
    report, agents = repaired({**views(RUNS, NONE), silent: Silence()})
    assert (report.found.situation, report.exit_code) == (Situation.NOT_KNOWN, ExitCode.UNKNOWN)
    assert [error.facts["host"] for error in report.errors] == [silent[1]]
    assert report.commands == ()
    assert f"  {silent[1]:<16} cannot be asked" in repair_text(report)
    assert "Nothing is left to do" not in repair_text(report)
    # What the other one says is told all the same.
    other, state = (DESTINATION, "absent") if silent[1] == SOURCE else (SOURCE, "running")
    assert f"  {other:<16} {state}" in repair_text(report)
    if silent in GREETED:
        assert [call for call in agents.calls() if call in LOCATED] == [(Command.LOCATE, other)]


@pytest.mark.parametrize("view", [
    DomainView(state=DomainState.RUNNING, busy=True),
    DomainView(state=DomainState.PAUSED, pause=Pause.OTHER, busy=True),
    DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION), OFF, NONE])
@pytest.mark.parametrize("silent", GREETED)
def test_nothing_is_advised_of_a_vm_that_the_silent_host_may_have(silent: Call, view: DomainView) -> None:
    report, _agents = repaired({**views(view, view), silent: Silence()})
    assert (report.commands, report.exit_code) == ((), ExitCode.UNKNOWN)


def test_a_job_is_not_touched_while_a_host_cannot_be_asked() -> None:
    resume = Resuming()
    repaired({**views(RUNS, NONE, job(1)), (Command.HELLO, DESTINATION): Silence()}, resume)
    assert resume.asked == []


def test_the_jobs_that_are_left_are_brought_to_their_end_before_it_is_looked_the_oldest_first() -> None:
    resume = Resuming()
    report, agents = repaired(views(RUNS, NONE, job(1), job(2), job(3, Outcome.MOVED), job(4)), resume)
    assert resume.asked == ["00000001", "00000002", "00000004"]
    assert [run.outcome for run in report.runs] == [Outcome.ROLLED_BACK] * 3
    assert agents.calls()[-2:] == LOCATED
    assert f"Job {MIGRATION.job_id} was brought to its end: rolled back." in repair_text(report)


@pytest.mark.parametrize("outcome", [
    Outcome.MOVED_INCOMPLETE, Outcome.UNKNOWN, Outcome.DETACHED, Outcome.NOTHING_CHANGED])
def test_something_is_left_to_do_of_a_job_that_did_not_come_to_its_end(outcome: Outcome) -> None:
    report, _agents = repaired(views(RUNS, NONE, job(1)), Resuming(outcome))
    assert (report.exit_code, repair_json(report)["exit_code"]) == (ExitCode.UNKNOWN, 7)
    text = repair_text(report)
    assert "Nothing is left" not in text
    assert f"Job {MIGRATION.job_id} was not brought to its end: {outcome.value}." in text


def test_an_admin_who_leaves_one_job_is_not_held_up_by_the_next() -> None:
    resume = Resuming(Outcome.DETACHED)
    repaired(views(RUNS, NONE, job(1), job(2)), resume)
    assert resume.asked == ["00000001"]


@pytest.mark.parametrize("end", [
    KeyboardInterrupt(), MigrationError(ErrorCode.MESSAGE_INVALID, {}), SilenceError(SILENCE)])
def test_what_comes_in_between_two_jobs_is_told_with_how_the_first_one_ended(end: BaseException) -> None:
    report, _agents = repaired(views(RUNS, NONE, job(1), job(2), job(3)), Resuming(Outcome.MOVED, end))
    assert ([run.outcome for run in report.runs], len(report.errors)) == ([Outcome.MOVED], 1)
    assert report.exit_code is ExitCode.UNKNOWN
    with pytest.raises(type(end)):
        repaired(views(RUNS, NONE, job(1)), Resuming(end))


def test_ctrl_c_while_it_is_looked_where_the_vm_is_leaves_what_was_done_told() -> None:
    pressed = {LOCATED[0]: Interrupt(RUNS)}
    report, _agents = repaired({**views(RUNS, NONE, job(1)), **pressed})
    assert [run.outcome for run in report.runs] == [Outcome.ROLLED_BACK]
    assert [error.code for error in report.errors] == [ErrorCode.MIGRATION_CANCELLED]
    assert report.exit_code is ExitCode.UNKNOWN
    with pytest.raises(KeyboardInterrupt):
        repaired({**views(RUNS, NONE), LOCATED[0]: Interrupt(RUNS)})


def test_a_look_after_a_job_is_no_part_of_it_and_ctrl_c_just_ends_it() -> None:
    agents, notes = ScriptedAgents(), Notes()
    agents.script = {
        **known(COPIED, PREPARED), **BEFORE, LOCATED[0]: Interrupt(RUNS), LOCATED[1]: NONE,
        (Command.LIVE_MIGRATION, SOURCE): FAILED}
    controller = controller_of(agents, notes)
    report = repair(controller.conversation, controller.resume, "VM1", SOURCE, DESTINATION)
    assert [run.outcome for run in report.runs] == [Outcome.ROLLED_BACK]
    assert [line for line in notes.told if "leaving" in line] == []


def test_a_job_the_other_way_round_is_one_of_these_hosts_and_one_with_another_is_not() -> None:
    resume = Resuming()
    back, elsewhere = job(1, source=DESTINATION, destination=SOURCE), job(2, destination="192.0.2.77")
    repaired(views(RUNS, NONE, back, elsewhere), resume)
    assert resume.asked == ["00000001"]


def test_a_job_that_still_does_something_is_left_alone_and_told() -> None:
    agents = ScriptedAgents(script=views(RUNS, NONE, job(1, None, Command.LIVE_MIGRATION)))
    talk, resume = controller_of(agents, Notes()).conversation, Resuming()
    with pytest.raises(MigrationError) as caught:
        repair(talk, resume, "VM1", SOURCE, DESTINATION)
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.JOB_RUNS, ExitCode.REFUSED)
    assert f"LIVE_MIGRATION on {SOURCE}" in caught.value.message
    assert resume.asked == []


def test_a_vm_that_got_another_name_is_looked_for_under_it() -> None:
    _report, agents = repaired(views(OFF, RUNS, job(1, Outcome.MOVED, name_there="web")))
    asked = {each.request.agent_ip: getattr(each.request.cmd_arguments, "domain", None) for each in agents.asked
             if each.request.cmd is Command.LOCATE}
    assert asked == {SOURCE: "VM1", DESTINATION: "web"}


def test_what_is_left_to_do_over_there_names_the_vm_as_it_is_called_there() -> None:
    report, _agents = repaired(views(RUNS, PAUSED, job(1, Outcome.MOVED, name_there="web")))
    assert report.commands == ((DESTINATION, "virsh destroy web"),)


@pytest.mark.parametrize(("view", "command"), [
    (DomainView(state=DomainState.RUNNING, busy=True), "virsh domjobinfo VM1; virsh domjobabort VM1"),
    (BROKEN_OFF, "virsh destroy VM1"),
    (DomainView(state=DomainState.RUNNING, busy=True, split=True), "virsh destroy VM1"),
    (DomainView(state=DomainState.PAUSED, pause=Pause.OTHER), "virsh domstate --reason VM1; virsh resume VM1"),
])
@pytest.mark.parametrize("host", [SOURCE, DESTINATION])
def test_what_keeps_a_vm_from_running_on_a_host_is_told_with_what_helps(
    host: str, view: DomainView, command: str,
) -> None:
    report, _agents = repaired(views(view, NONE) if host == SOURCE else views(NONE, view))
    assert [(each, text) for each, text in report.commands if text.startswith(command)] == [
        (host, report.commands[0][1])]
    assert report.exit_code is ExitCode.UNKNOWN
    assert host in report.why


def test_the_source_of_a_vm_in_post_copy_is_not_to_be_destroyed() -> None:
    leaving = DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION, busy=True, split=True)
    report, _agents = repaired(views(leaving, DomainView(state=DomainState.RUNNING, busy=True, split=True)))
    assert report.commands == ((SOURCE, "virsh domjobinfo VM1"),)
    assert "End nothing" in report.why


def test_where_the_destination_is_whole_only_what_is_left_on_the_source_is_to_be_ended() -> None:
    report, _agents = repaired(views(BROKEN_OFF, RUNS))
    assert (report.found.situation, report.commands) == (Situation.LEAVING, ((SOURCE, "virsh destroy VM1"),))
    assert "only a part" not in report.why


def test_the_command_for_a_vm_that_gets_another_name_says_it() -> None:
    half = DomainView(state=DomainState.RUNNING, busy=True, split=True)
    report, _agents = repaired(views(BROKEN_OFF, half, job(1, Outcome.MOVED, name_there="web")))
    ((host, command),) = report.commands
    assert (host, command.endswith(f"VM1 qemu+ssh://USER@{DESTINATION}/system --dname web")) == (SOURCE, True)
    assert f"End web on {DESTINATION} and VM1 on {SOURCE}" in report.why


@pytest.mark.parametrize("half", [BROKEN_OFF, DomainView(state=DomainState.RUNNING, busy=True, split=True)])
def test_no_half_of_a_vm_is_to_be_destroyed_while_the_other_may_be_there(half: DomainView) -> None:
    whole = DomainView(state=DomainState.RUNNING, split=True)
    silent = {**views(half, NONE), (Command.LOCATE, DESTINATION): Silence()}
    for script in (silent, views(half, BROKEN_OFF), views(whole, BROKEN_OFF)):
        report, _agents = repaired(script)
        assert not [command for _host, command in report.commands if "destroy" in command], report.commands


def test_a_host_that_is_not_listed_is_not_asked() -> None:
    agents = ScriptedAgents()
    talk = controller_of(agents, Notes()).conversation
    with pytest.raises(MigrationError) as caught:
        repair(talk, Resuming(), "VM1", SOURCE, "192.0.2.77")
    assert caught.value.code is ErrorCode.AGENT_NOT_LISTED
    assert agents.calls() == []
