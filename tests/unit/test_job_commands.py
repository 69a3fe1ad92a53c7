"""`list`, `status`, `resume`, `cancel`, `repair` and `restore-source` as the admin and a program see them."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import pytest

from console.arguments import parse
from console.commands import JOB_COMMANDS
from console.result import result_json
from constant import Command, DomainState, ExitCode, Outcome
from control.report import RunReport
from tests.unit.samples import DESTINATION, MIGRATION, MOVED, SOURCE
from tests.unit.scripted import (
    BEFORE,
    BEGUN,
    COPIED,
    FAILED,
    LISTED,
    PREPARED,
    Call,
    Interrupt,
    InTurn,
    Notes,
    ScriptedAgents,
    Silence,
    cannot_send_to,
    controller_of,
    job,
    known,
    step,
)
from wire.errors import ErrorCode, MigrationError
from wire.history import JobList
from wire.records import StepReport
from wire.situation import DomainView

JOB = MIGRATION.job_id
RESTORING = (Command.RESTORE_SOURCE, SOURCE)
LOCATED = [(Command.LOCATE, SOURCE), (Command.LOCATE, DESTINATION)]
MIGRATING = (Command.LIVE_MIGRATION, SOURCE)
RUNS, ABSENT = DomainView(state=DomainState.RUNNING), DomainView(state=DomainState.ABSENT)
RUNNING = known([*COPIED, step(Command.LIVE_MIGRATION, 3, ended=False)], PREPARED)
ENDED = known(COPIED, PREPARED, outcomes=(Outcome.MOVED, Outcome.MOVED), moved=MOVED)
ROLLED_BACK = known(COPIED, PREPARED, outcomes=(Outcome.ROLLED_BACK, Outcome.ROLLED_BACK))
SILENT: Mapping[Call, object] = {(Command.HELLO, DESTINATION): Silence()}


class Ran:
    """A command that has been run: its exit code, what it printed, and what it asked of whom."""

    def __init__(self, code: int, out: str, err: str, agents: ScriptedAgents) -> None:
        self.code = code
        self.out = out
        self.err = err
        self.agents = agents

    @property
    def content(self) -> dict[str, Any]:
        """Its stdout as one JSON object."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def rows(self) -> list[list[str]]:
        """The rows of its table, without the heads."""
        return [re.split(r" {2,}", line) for line in self.out.splitlines()[1:]]


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with agents that follow scripts."""
    monkeypatch.setattr("time.localtime", time.gmtime)

    def run_command(command: str, *scripts: Mapping[Call, object], unusable: str = "") -> Ran:
        agents = ScriptedAgents(script={call: line for script in scripts for call, line in script.items()},
                                before=cannot_send_to(unusable))
        options = parse(command.split())
        code = JOB_COMMANDS[options.words[0]](options)(controller_of(agents, Notes()))
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err, agents)
    return run_command


def listing(*jobs: object) -> dict[Call, object]:
    """Both hosts tell of the same jobs."""
    return {call: JobList(jobs=jobs) for call in LISTED}  # type: ignore[arg-type]


# list


def test_the_jobs_are_a_table_with_the_newest_first_and_nothing_on_stderr(run: Run) -> None:
    ran = run("list", listing(
        job(100, Outcome.MOVED, bytes=3 << 30, downtime=87, ended=165, admin="root@admin"),
        job(10, None, Command.LIVE_MIGRATION)))
    assert (ran.code, ran.err) == (0, "")
    assert re.split(r" {2,}", ran.out.splitlines()[0]) == [
        "job", "VM", "from", "to", "asked for by", "since", "took", "data", "downtime", "outcome"]
    moved, doing = ran.rows
    assert moved == [
        "00000064", "VM1", SOURCE, DESTINATION, "root@admin", "1970-01-01 00:01:40", "1:05 min", "3.00 GiB", "87 ms",
        "moved"]
    # Without an admin it is told who sent it; what is not known is left out.
    assert doing == [
        "0000000a", "VM1", SOURCE, DESTINATION, BEGUN.asked_by, "1970-01-01 00:00:10",
        f"LIVE_MIGRATION on {SOURCE}, LIVE_MIGRATION on {DESTINATION}"]


def test_a_job_that_nobody_drives_says_so(run: Run) -> None:
    assert run("list", listing(job(1))).rows[0][-1] == "not finished: no step runs"
    assert run("list", listing(job(1, downtime=90))).rows[0][-1] == "has moved, not finished: no step runs"


def test_what_an_admin_is_called_steers_no_terminal(run: Run) -> None:
    assert "\x1b" not in run("list", listing(job(1, admin="\x1b[2Jroot"))).out


def test_where_there_is_no_job_that_is_said(run: Run) -> None:
    ran = run("list", listing())
    assert (ran.code, ran.out, ran.err) == (0, "No agent knows of a job.\n", "")


def test_an_agent_that_says_nothing_is_told_on_stderr_beside_what_the_others_say(run: Run) -> None:
    ran = run("list", listing(job(1)), SILENT)
    assert (ran.code, len(ran.rows)) == (0, 1)
    assert f"answered at {DESTINATION}" in ran.err


@pytest.mark.parametrize("command", ["list", "status"])
def test_an_agent_that_this_host_cannot_send_to_is_told_beside_what_the_others_say(run: Run, command: str) -> None:
    ran = run(command, listing(job(1)), unusable=DESTINATION)
    assert (ran.code, len(ran.rows)) == (0, 1)
    assert f"cannot send to {DESTINATION}: no IPv6 here" in ran.err


def test_where_no_agent_can_tell_of_a_job_the_exit_code_is_that_of_no_contact(run: Run) -> None:
    assert run("list", listing(), SILENT).code == ExitCode.NO_CONTACT


@pytest.mark.parametrize("command", ["list VM1", "status VM1 more", "status a/b", "resume", "resume VM1", "cancel",
                                     "repair VM1", "restore-source VM1"])
def test_a_command_with_other_words_is_refused_before_any_agent_is_asked(run: Run, command: str) -> None:
    with pytest.raises(MigrationError) as caught:
        run(command)
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.ARGUMENTS_INVALID, ExitCode.INPUT)


def test_the_list_for_programs_has_each_job_with_all_that_is_known_and_null_for_the_rest(run: Run) -> None:
    ran = run("--json list", listing(job(100, Outcome.MOVED, bytes=9, downtime=87), job(10, None, Command.FINISH)))
    moved, doing = ran.content["jobs"]
    assert moved == {
        "job_id": "00000064", "domain": "VM1", "source": SOURCE, "destination": DESTINATION, "admin": None,
        "asked_by": BEGUN.asked_by, "since": 100, "ended": 99, "outcome": "moved", "bytes": 9, "downtime_ms": 87,
        "doing": [], "hosts": [SOURCE, DESTINATION]}
    assert (doing["ended"], doing["outcome"], doing["downtime_ms"]) == (None, None, None)
    assert doing["doing"] == [{"command": "FINISH", "host": host} for host in (SOURCE, DESTINATION)]
    assert ran.content["errors"] == []


# status


def test_status_alone_tells_of_what_has_not_ended_and_follows_nothing(run: Run) -> None:
    ran = run("status", listing(job(3, Outcome.MOVED), job(2), job(1, Outcome.ROLLED_BACK)))
    assert [row[0] for row in ran.rows] == ["00000002"]
    assert {command for command, _host in ran.agents.calls()} == {Command.HELLO, Command.LIST}


def test_where_nothing_is_under_way_status_says_so_and_a_program_gets_an_empty_list(run: Run) -> None:
    ran = run("status", listing(job(3, Outcome.MOVED)))
    assert (ran.code, ran.out) == (0, "Nothing is under way.\n")
    assert run("--json status", listing(job(3, Outcome.MOVED))).content == {"jobs": [], "errors": []}


@pytest.mark.parametrize(("command", "said"), [
    ("status", "Nothing is under way.\n"), ("list", "No agent knows of a job.\n")])
def test_what_an_agent_that_was_not_heard_may_know_is_not_said_to_be_nothing(
    run: Run, command: str, said: str,
) -> None:
    assert run(command, listing(), SILENT).out != said


@pytest.mark.parametrize("command", ["list", "status", "status VM1", f"status {JOB}"])
def test_where_no_agent_answers_that_is_said_and_each_of_them_is_named(run: Run, command: str) -> None:
    silent = {(Command.HELLO, host): Silence() for host in (SOURCE, DESTINATION)}
    ran = run(command, silent)
    assert (ran.code, ran.out) == (ExitCode.NO_CONTACT, "No agent answers.\n")
    assert [f"answered at {host} " in ran.err for host in (SOURCE, DESTINATION)] == [True, True]
    assert len(run(f"--json {command}", silent).content["errors"]) == 2


def test_agents_that_know_of_jobs_that_have_ended_are_not_said_to_know_of_nothing(run: Run) -> None:
    assert run("status", listing(job(3, Outcome.MOVED)), SILENT).out == (
        "The agents that answer have nothing under way.\n")
    assert run("list", listing(), SILENT).out == "The agents that answer know of nothing.\n"


@pytest.mark.parametrize("wanted", [JOB, "VM1"])
def test_status_of_a_job_or_a_vm_follows_it_until_it_has_ended(run: Run, wanted: str) -> None:
    both = {call: InTurn(RUNNING[call], ENDED[call]) for call in RUNNING}
    ran = run(f"status {wanted}", both)
    assert (ran.code, ran.err) == (0, "")
    assert [(row[0], row[-1]) for row in ran.rows] == [(JOB, "moved")]
    assert ran.agents.count(MIGRATING) == 1


def test_a_program_gets_the_status_as_it_is_now(run: Run) -> None:
    ran = run(f"--json status {JOB}", RUNNING)
    assert [each["job_id"] for each in ran.content["jobs"]] == [JOB]
    assert {command for command, _host in ran.agents.calls()} == {Command.HELLO, Command.LIST}


def test_ctrl_c_ends_the_following_and_not_the_job(run: Run) -> None:
    ran = run(f"status {JOB}", {**RUNNING, MIGRATING: Interrupt(MOVED)})
    assert (ran.code, ran.rows[0][-1]) == (0, "not finished: no step runs")
    assert Command.CANCEL not in {command for command, _host in ran.agents.calls()}


def test_status_of_a_vm_tells_of_its_newest_job_alone(run: Run) -> None:
    assert [row[0] for row in run("status VM1", listing(job(2, Outcome.MOVED), job(1, Outcome.MOVED))).rows] == [
        "00000002"]


@pytest.mark.parametrize("mode", ["", "--json "])
@pytest.mark.parametrize(("more", "told"), [({}, ""), (SILENT, f"answered at {DESTINATION}")])
def test_what_no_agent_knows_has_no_status_and_one_that_could_not_be_asked_is_told_first(
    run: Run, capsys: pytest.CaptureFixture[str], mode: str, more: Mapping[Call, object], told: str,
) -> None:
    with pytest.raises(MigrationError) as caught:
        run(f"{mode}status VM7", listing(), more)
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.JOB_UNKNOWN, ExitCode.REFUSED)
    assert caught.value.message == "No agent that answers knows of a job VM7 or of a job for a VM VM7."
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (told in printed.err, bool(printed.err)) == (True, bool(told))


# resume and cancel


def test_a_job_that_is_gone_on_with_ends_like_a_migration(run: Run) -> None:
    ran = run(f"resume {JOB}", known([*COPIED, step(Command.LIVE_MIGRATION, 3)], PREPARED, moved=MOVED))
    assert (ran.code, ran.err) == (0, "")
    assert re.match(rf"VM1 runs on {DESTINATION} now\.\ntaken up [0-9.]+ s ago, moved .* in all \(", ran.out)


def test_a_job_that_is_gone_on_with_and_fails_has_the_exit_code_and_the_errors_of_that(run: Run) -> None:
    ran = run(f"resume {JOB}", known(COPIED, PREPARED), BEFORE, {MIGRATING: FAILED})
    assert ran.code == ExitCode.ROLLED_BACK
    assert ran.out.startswith(f"Rolled back: VM1 runs on {SOURCE} as before.\n")
    assert "no route" in ran.err


def test_ctrl_c_while_the_result_is_printed_makes_no_other_exit_code_of_it(
    run: Run, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pressed(_stream: TextIO, _text: str) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("console.commands.write", pressed)
    ran = run(f"resume {JOB}", known(COPIED, PREPARED), BEFORE, {MIGRATING: FAILED})
    assert ran.code == ExitCode.ROLLED_BACK


def test_a_cancel_that_rolled_back_has_done_what_it_was_to_do(run: Run) -> None:
    ran = run(f"cancel {JOB}", known(COPIED, PREPARED), BEFORE)
    assert ran.code == 0
    assert ran.out.startswith(f"Rolled back: VM1 runs on {SOURCE} as before.\n")
    ran = run(f"--json cancel {JOB}", known(COPIED, PREPARED), BEFORE)
    assert (ran.code, ran.content["outcome"], ran.content["exit_code"]) == (0, "rolled back", 0)


@pytest.mark.parametrize(("ended", "outcome", "has_it"), [
    (ENDED, "moved", LOCATED[1]), (ROLLED_BACK, "rolled back", LOCATED[0])])
def test_how_a_vm_is_that_could_not_be_asked_for_is_not_told(
    run: Run, ended: Mapping[Call, object], outcome: str, has_it: Call,
) -> None:
    ran = run(f"resume {JOB}", ended, {has_it: Silence()})
    assert ran.out == f"Job {JOB} has ended: {outcome}.\n"
    assert f"answered at {has_it[1]}" in ran.err
    content = run(f"--json resume {JOB}", ended, {has_it: Silence()}).content
    assert (content["outcome"], content["runs_on"]) == (outcome, None)


def test_a_cancel_that_does_not_know_what_became_of_the_vm_has_not_done_it(run: Run) -> None:
    ran = run(f"cancel {JOB}", RUNNING, {MIGRATING: Silence()})
    assert ran.code == ExitCode.UNKNOWN
    assert ran.out.startswith("STATE UNKNOWN")


@pytest.mark.parametrize("command", ["resume", "cancel"])
def test_what_goes_on_with_a_job_prints_the_object_of_a_migration(run: Run, command: str) -> None:
    content = run(f"--json {command} {JOB}", known(COPIED, PREPARED), BEFORE, {MIGRATING: FAILED}).content
    assert set(content) == set(result_json(RunReport(MIGRATION, Outcome.MOVED, DESTINATION, 1.0)))
    assert content["job_id"] == JOB


def test_a_cancel_that_comes_too_late_is_refused(run: Run) -> None:
    with pytest.raises(MigrationError) as caught:
        run(f"cancel {JOB}", ENDED)
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.TOO_LATE, ExitCode.REFUSED)


# repair


def test_repair_tells_where_the_vm_is_on_both_hosts_and_that_nothing_is_left_to_do(run: Run) -> None:
    ran = run(f"repair VM1 {SOURCE} {DESTINATION}", listing(), dict(zip(LOCATED, (ABSENT, RUNS))))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "VM1: runs on destination only.", f"  {SOURCE:<16} absent", f"  {DESTINATION:<16} running",
        "Nothing is left to do."]


def test_what_is_left_to_do_is_told_with_the_host_that_it_is_for_and_an_exit_code(run: Run) -> None:
    ran = run(f"repair VM1 {SOURCE} {DESTINATION} kvm", listing(), dict(zip(LOCATED, (RUNS, RUNS))))
    assert ran.code == ExitCode.UNKNOWN
    assert f"  on {SOURCE}:  virsh destroy VM1" in ran.out
    content = run(f"--json repair VM1 {SOURCE} {DESTINATION}", listing(), dict(zip(LOCATED, (RUNS, RUNS)))).content
    assert (content["situation"], content["exit_code"]) == ("runs on both", 7)
    assert [each["host"] for each in content["commands"]] == [SOURCE, DESTINATION]


def test_what_went_wrong_while_a_job_was_brought_to_its_end_is_told_on_stderr(run: Run) -> None:
    ran = run(f"repair VM1 {SOURCE} {DESTINATION}", known(COPIED, PREPARED), BEFORE, {MIGRATING: FAILED},
              dict(zip(LOCATED, (RUNS, ABSENT))))
    assert "no route" in ran.err
    assert f"Job {JOB} was brought to its end: rolled back." in ran.out


def test_a_job_that_repair_could_not_bring_to_its_end_is_told_as_left(run: Run) -> None:
    ran = run(f"repair VM1 {SOURCE} {DESTINATION}", known(COPIED, PREPARED), {MIGRATING: Silence()},
              dict(zip(LOCATED, (RUNS, ABSENT))))
    assert ran.code == ExitCode.UNKNOWN
    assert ran.out.splitlines()[-1] == f"Job {JOB} was not brought to its end: state unknown."


def test_a_host_that_cannot_be_asked_is_told_on_stderr(run: Run) -> None:
    ran = run(f"repair VM1 {SOURCE} {DESTINATION}", listing(), SILENT, {LOCATED[0]: RUNS})
    assert (ran.code, f"answered at {DESTINATION}" in ran.err) == (7, True)
    assert ran.out.startswith(
        f"VM1: not known.\n  {SOURCE:<16} running\n  {DESTINATION:<16} cannot be asked\n")


# restore-source


def restoring(**changes: Any) -> dict[Call, object]:
    """A job that has moved a VM which is nowhere now."""
    return {**known([], [], record=dataclasses.replace(BEGUN, **changes), outcomes=(Outcome.MOVED, Outcome.MOVED)),
            LOCATED[1]: ABSENT, RESTORING: StepReport(summary="shut off, as it was")}


def test_a_copy_that_was_brought_back_is_told_with_how_to_start_it_and_what_it_lacks(run: Run) -> None:
    ran = run(f"restore-source {JOB}", restoring())
    assert ran.code == 0
    assert ran.out.splitlines() == [f"VM1 on {SOURCE}: shut off, as it was.", f"  on {SOURCE}:  virsh start VM1"]
    assert f"is on {DESTINATION} alone" in ran.err


def test_a_program_gets_what_was_brought_back_and_the_warnings(run: Run) -> None:
    content = run(f"--json restore-source {JOB}", restoring()).content
    assert {name: content[name] for name in ("job_id", "domain", "source", "destination", "summary")} == {
        "job_id": JOB, "domain": "VM1", "source": SOURCE, "destination": DESTINATION,
        "summary": "shut off, as it was"}
    assert [each["code"] for each in content["warnings"]] == ["copy-outdated"]


def test_without_the_destination_is_an_option_of_its_own(run: Run) -> None:
    with pytest.raises(MigrationError) as caught:
        run(f"restore-source {JOB}", restoring(), SILENT)
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.AGENT_SILENT, ExitCode.NO_CONTACT)
    assert run(f"--without-destination restore-source {JOB}", restoring(), SILENT).code == 0


@pytest.mark.parametrize(("line", "code", "error"), [
    (Silence(), 7, "agent-silent"), (Interrupt(StepReport(summary="back")), 8, "detached")])
def test_what_is_not_known_of_a_copy_is_told_as_that(run: Run, line: object, code: int, error: str) -> None:
    ran = run(f"restore-source {JOB}", restoring(), {RESTORING: line})
    assert (ran.code, ran.out) == (code, f"It is not certain that the copy of VM1 on {SOURCE} is back.\n")
    assert f"restore-source {JOB}` may be repeated" in ran.err
    again = Interrupt(StepReport(summary="back")) if isinstance(line, Interrupt) else line
    content = run(f"--json restore-source {JOB}", restoring(), {RESTORING: again}).content
    assert (content["exit_code"], content["summary"]) == (code, None)
    assert [each["code"] for each in content["errors"]] == [error]
