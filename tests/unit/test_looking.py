"""What agents tell of their jobs: how the accounts of several hosts become one, and how one is followed to its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from constant import CHANGE_NOTHING, Command, Outcome
from control.conversation import Conversation
from control.looking import JobLook, JobsReport, follow, look_at_jobs, newest, recall
from tests.unit.samples import DESTINATION, MIGRATION, SOURCE
from tests.unit.scripted import (
    COPIED,
    FAILED,
    GREETED,
    LISTED,
    PREPARED,
    RECALLED,
    Call,
    InTurn,
    Notes,
    ScriptedAgents,
    Silence,
    controller_of,
    job,
    known,
    network_of,
    step,
)
from wire.errors import ErrorCode, MigrationError
from wire.history import JobDetails, JobList, JobsArguments
from wire.message import Request

JOB = MIGRATION.job_id
NOTHING = JobList(jobs=())
MIGRATING = step(Command.LIVE_MIGRATION, 3, ended=False)
RUNNING = known([*COPIED, MIGRATING], PREPARED)
BETWEEN = known(COPIED, PREPARED)
ENDED = known(COPIED, PREPARED, outcomes=(Outcome.MOVED, Outcome.MOVED))


def talk_with(script: Mapping[Call, object]) -> tuple[Conversation, ScriptedAgents, Notes]:
    """A conversation with agents that follow a script."""
    agents, notes = ScriptedAgents(script=script), Notes()
    return controller_of(agents, notes).conversation, agents, notes


def looked(script: Mapping[Call, object], wanted: str = "") -> tuple[JobsReport, ScriptedAgents]:
    """What comes of a look."""
    talk, agents, _notes = talk_with(script)
    return look_at_jobs(talk, wanted), agents


def listing(*jobs: object) -> dict[Call, object]:
    """Both hosts tell of the same jobs."""
    return {call: JobList(jobs=jobs) for call in LISTED}  # type: ignore[arg-type]


def in_turn(*scripts: Mapping[Call, object]) -> dict[Call, object]:
    """All say one thing after the other, and stay with the last."""
    return {call: InTurn(*(script[call] for script in scripts)) for call in scripts[0]}


# The jobs of all hosts.


def test_the_accounts_of_one_job_are_put_together_and_the_newest_job_is_first() -> None:
    old, new, middle = job(1), job(3), job(2, Outcome.MOVED)
    report, agents = looked({
        LISTED[0]: JobList(jobs=(middle, old)), LISTED[1]: JobList(jobs=(new, middle))})
    assert report == JobsReport((
        JobLook({DESTINATION: new}), JobLook({SOURCE: middle, DESTINATION: middle}), JobLook({SOURCE: old})))
    assert agents.calls() == GREETED + LISTED


def test_each_host_is_asked_until_it_has_told_of_all_its_jobs() -> None:
    one, two, three = (job(number) for number in (3, 2, 1))
    report, agents = looked({
        LISTED[0]: InTurn(
            JobList(jobs=(one,), more=True), JobList(jobs=(two,), more=True), JobList(jobs=(three,))),
        LISTED[1]: JobList(jobs=(two,))}, "VM1")
    assert [look.told.since for look in report.jobs] == [3, 2, 1]
    assert set(report.jobs[1].accounts) == {SOURCE, DESTINATION}
    asked = [(each.request.agent_ip, each.request.cmd_arguments) for each in agents.asked
             if each.request.cmd is Command.LIST]
    assert asked == [
        *((SOURCE, JobsArguments(wanted="VM1", skip=skip)) for skip in (0, 1, 2)),
        (DESTINATION, JobsArguments(wanted="VM1"))]


def test_of_what_two_hosts_tell_the_source_knows_best() -> None:
    counted, heard = job(1, bytes=7), job(1, bytes=0)
    assert JobLook({DESTINATION: heard, SOURCE: counted}).told is counted
    assert JobLook({DESTINATION: heard}).told is heard


@pytest.mark.parametrize(("source", "destination", "together"), [
    (None, None, None), (Outcome.MOVED, None, None), (None, Outcome.ROLLED_BACK, None),
    (Outcome.MOVED, Outcome.MOVED, Outcome.MOVED), (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK, Outcome.ROLLED_BACK),
    (Outcome.ROLLED_BACK, Outcome.MOVED, Outcome.MOVED), (Outcome.MOVED, Outcome.ROLLED_BACK, Outcome.MOVED),
])
def test_a_job_has_ended_when_it_has_on_every_host_that_took_part(
    source: Outcome | None, destination: Outcome | None, together: Outcome | None,
) -> None:
    here, there = job(1, source), dataclasses.replace(job(1, destination), ended=120 if destination else 0)
    look = JobLook({SOURCE: here, DESTINATION: there})
    assert (look.outcome, look.ended) == (together, 120 if together else 0)


def test_what_a_job_does_is_told_with_the_host() -> None:
    look = JobLook({
        SOURCE: job(1, None, Command.COPY_DISK_FILE), DESTINATION: job(1, None, Command.COPY_DISK_FILE),
        "192.0.2.13": job(1)})
    assert look.doing == [(Command.COPY_DISK_FILE, SOURCE), (Command.COPY_DISK_FILE, DESTINATION)]


@pytest.mark.parametrize("silent", [*GREETED, *LISTED])
def test_a_host_that_says_nothing_is_told_and_the_others_tell_of_their_jobs(silent: Call) -> None:
    report, _agents = looked({**listing(job(1)), silent: Silence()})
    assert [(error.code, error.facts["host"]) for error in report.errors] == [(ErrorCode.AGENT_SILENT, silent[1])]
    assert [set(look.accounts) for look in report.jobs] == [{SOURCE, DESTINATION} - {silent[1]}]


def test_an_error_of_a_host_is_told_like_its_silence() -> None:
    report, _agents = looked({**listing(job(1)), LISTED[1]: FAILED})
    assert [error.code for error in report.errors] == [ErrorCode.MIGRATION_FAILED]
    assert [set(look.accounts) for look in report.jobs] == [{SOURCE}]


def test_an_address_of_a_listed_network_that_has_no_agent_is_nothing_to_tell() -> None:
    agents = ScriptedAgents(script=listing(job(1)))
    report = look_at_jobs(controller_of(agents, Notes(), network_of(agents)).conversation)
    assert agents.count((Command.HELLO, "192.0.2.14")) == 1
    assert report.errors == ()
    assert [set(look.accounts) for look in report.jobs] == [{SOURCE, DESTINATION}]


# Nothing of it is shown.


@pytest.mark.parametrize("script", [listing(job(1)), {**listing(), LISTED[0]: Silence()}, {GREETED[0]: Silence(),
                                                                                         **listing()}])
def test_a_look_is_neither_shown_nor_a_step_of_the_run_and_what_follows_is(script: Mapping[Call, object]) -> None:
    talk, _agents, notes = talk_with(script)
    look_at_jobs(talk)
    assert (notes.told, talk.steps, talk.observer) == ([], [], notes)
    talk.greet([DESTINATION])
    assert notes.told == [f"HELLO {DESTINATION} began", f"HELLO {DESTINATION} ended"]
    assert [each.command for each in talk.steps] == [Command.HELLO]


def test_a_host_that_was_greeted_is_not_greeted_again() -> None:
    talk, agents, _notes = talk_with(listing())
    look_at_jobs(talk)
    look_at_jobs(talk)
    assert agents.calls() == GREETED + LISTED + LISTED


def test_what_is_known_of_a_job_is_asked_for_unseen_and_what_cannot_be_asked_is_told() -> None:
    talk, agents, notes = talk_with({**RUNNING, RECALLED[1]: Silence()})
    talk.greet([SOURCE, DESTINATION])
    notes.told.clear()
    found = recall(talk, JOB, [SOURCE, DESTINATION])
    assert (notes.told, agents.calls()) == ([], GREETED + RECALLED)
    assert [error.facts["host"] for error in found.errors] == [DESTINATION]
    assert found.running(SOURCE, Command.LIVE_MIGRATION) == MIGRATING
    assert list(found.unfinished(SOURCE)) == [MIGRATING]
    assert list(found.unfinished(DESTINATION)) == []
    assert found.done(SOURCE, Command.COPY_DISK_FILE)
    assert not found.done(SOURCE, Command.LIVE_MIGRATION)


# Which one is meant.


def test_an_id_means_the_job_of_that_id_and_a_name_the_newest_job_of_the_vm() -> None:
    new, old = JobLook({SOURCE: job(2)}), JobLook({SOURCE: job(1)})
    report = JobsReport((new, old))
    assert newest(report, old.told.job_id) is old
    assert newest(report, "VM1") is new
    assert newest(JobsReport(()), "VM1") is None


# Following.


def followed(*scripts: Mapping[Call, object], **more: object) -> tuple[JobLook, ScriptedAgents, Notes]:
    """A job that is followed from the first of these states on; each is told to one look."""
    talk, agents, notes = talk_with(in_turn(*scripts))
    agents.script = {**agents.script, **{(Command[name], SOURCE): line for name, line in more.items()}}
    look = newest(look_at_jobs(talk, JOB), JOB)
    assert look is not None
    began, asked = agents.clock.now, len(agents.asked)
    ended = follow(talk, look)
    # A second between two looks, besides what the answers take.
    answering = (len(agents.asked) - asked) * agents.step_seconds
    assert agents.clock.now - began - answering == agents.count(RECALLED[0]) * 1.0
    assert talk.changed is False
    return ended, agents, notes


def test_a_job_that_has_ended_is_not_followed() -> None:
    look, agents, notes = followed(ENDED)
    assert (look.outcome, agents.calls(), notes.told) == (Outcome.MOVED, GREETED + LISTED, [])


def test_a_running_step_is_shown_by_its_own_request_until_the_job_has_ended() -> None:
    look, agents, notes = followed(RUNNING, ENDED)
    assert look.outcome is Outcome.MOVED
    assert notes.told == [f"LIVE_MIGRATION {SOURCE} began", f"LIVE_MIGRATION {SOURCE} ended"]
    shown = [each.request for each in agents.asked if each.request.cmd is Command.LIVE_MIGRATION]
    assert [request.request_id for request in shown] == [MIGRATING.request_id]
    assert {each.request.cmd for each in agents.asked} - CHANGE_NOTHING == {Command.LIVE_MIGRATION}


def test_a_step_that_runs_is_only_asked_about_and_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    attached: list[tuple[Command, bool]] = []
    started = ScriptedAgents.start

    def start(agents: ScriptedAgents, request: Request, *given: object, **named: bool) -> object:
        attached.append((request.cmd, named.get("attached", False)))
        return started(agents, request, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(ScriptedAgents, "start", start)
    followed(RUNNING, ENDED)
    assert {command for command, only_asked in attached if only_asked} == {Command.LIVE_MIGRATION}
    assert (Command.LIVE_MIGRATION, False) not in attached


@pytest.mark.parametrize("end", [FAILED, Silence()])
def test_a_step_that_fails_or_falls_silent_does_not_end_the_following(end: object) -> None:
    look, _agents, notes = followed(RUNNING, ENDED, LIVE_MIGRATION=end)
    assert look.outcome is Outcome.MOVED
    assert notes.told[-1] == f"LIVE_MIGRATION {SOURCE} failed"


def test_a_job_of_which_nothing_runs_at_three_looks_is_driven_by_nobody() -> None:
    look, agents, notes = followed(BETWEEN)
    assert (look.outcome, notes.told) == (None, [])
    assert agents.calls() == GREETED + LISTED + (RECALLED + LISTED) * 3


def test_a_moment_between_two_steps_does_not_end_the_following() -> None:
    look, agents, notes = followed(BETWEEN, BETWEEN, RUNNING, BETWEEN, BETWEEN, ENDED)
    assert look.outcome is Outcome.MOVED
    # Two idle looks, a step, and two more: never three without one.
    assert agents.count(RECALLED[0]) == 5
    assert notes.told == [f"LIVE_MIGRATION {SOURCE} began", f"LIVE_MIGRATION {SOURCE} ended"]


def test_what_cannot_be_asked_any_more_ends_the_following_with_what_was_seen_last() -> None:
    silent: dict[Call, object] = dict.fromkeys([*LISTED, *RECALLED], Silence())
    look, _agents, _notes = followed(BETWEEN, silent)
    assert (look.outcome, set(look.accounts)) == (None, {SOURCE, DESTINATION})


def test_a_host_of_the_job_that_knows_nothing_of_it_does_not_keep_the_other_from_being_followed() -> None:
    look, _agents, notes = followed(known([MIGRATING], None), known([MIGRATING], None, outcomes=(Outcome.MOVED, None)))
    assert (look.outcome, len(notes.told)) == (Outcome.MOVED, 2)


def test_only_one_of_the_steps_that_run_is_shown_at_a_time() -> None:
    both = known([step(Command.COPY_DISK_FILE, 4, ended=False)], [step(Command.COPY_DISK_FILE, 5, ended=False)])
    _look, agents, notes = followed(both, ENDED)
    assert notes.told == [f"COPY_DISK_FILE {SOURCE} began", f"COPY_DISK_FILE {SOURCE} ended"]
    assert agents.count((Command.COPY_DISK_FILE, DESTINATION)) == 0


def test_a_details_record_is_only_taken_from_a_host_that_gave_one() -> None:
    talk, _agents, _notes = talk_with({**RUNNING, RECALLED[0]: MigrationError(ErrorCode.JOB_UNKNOWN, {"host": SOURCE})})
    talk.greet([SOURCE, DESTINATION])
    found = recall(talk, JOB, [SOURCE, DESTINATION])
    assert {host: type(details) for host, details in found.details.items()} == {DESTINATION: JobDetails}
    assert found.failed(SOURCE, Command.COPY_DISK_FILE) is None
