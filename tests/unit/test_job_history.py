"""What a host keeps of each job: when it is written down, what becomes of it, and what LIST and RECALL tell of it."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from constant import IDS_KEPT_SECONDS, OPEN_JOB, PAGES_LIMIT, REPEATABLE, Command, DomainState, MessageType, Outcome
from host.job_history import JobHistory
from steps import list as listing
from steps import recall, recording
from steps.context import Cancellation, StepContext
from tests.unit.pair import opened
from tests.unit.samples import (
    AGENT_KEY,
    AGENTS,
    CONTROLLER,
    FACTS,
    KEPT,
    MIGRATION,
    MOVED,
    SOURCE,
    STEP_STATE,
    a_reply,
)
from wire.datagram import seal_reply
from wire.errors import ErrorCode, MigrationError
from wire.history import LIST_LIMIT, JobArguments, JobRecord, JobsArguments, JobSummary, outcome_of
from wire.records import Obstacle, Page, RollBackReport, StepArguments, StepReport

ARGUMENTS = StepArguments(migration=MIGRATION, facts=FACTS)
BEGUN = JobRecord(arguments=ARGUMENTS, asked_by=CONTROLLER[0], since=1_790_000_000)
DID = StepReport(summary="did it")
CLEARED = RollBackReport(state=DomainState.RUNNING, removed=(), cleared=True)


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    """What a step on the source is given."""
    return StepContext(
        host=SOURCE, epoch="", challenge="", destinations=AGENTS, state_directory=tmp_path,
        cancellation=Cancellation(), progress=lambda _progress: None)


def job(number: int, domain: str = "VM1", since: int = 1) -> JobRecord:
    """The record of the job with that number."""
    migration = dataclasses.replace(MIGRATION, job_id=f"{number:08x}", domain=domain)
    return JobRecord(arguments=StepArguments(migration=migration, facts=FACTS), asked_by=CONTROLLER[0], since=since)


# How it ended.


@pytest.mark.parametrize(("command", "result", "outcome"), [
    (Command.FINISH, DID, Outcome.MOVED), (Command.ROLL_BACK, CLEARED, Outcome.ROLLED_BACK),
    (Command.ROLL_BACK, dataclasses.replace(CLEARED, cleared=False), None),
    (Command.FINISH, Obstacle(code=ErrorCode.INTERNAL, facts={}), None),
    (Command.FINISH, MigrationError(ErrorCode.INTERNAL, {}), None),
    (Command.ROLL_BACK, MigrationError(ErrorCode.INTERNAL, {}), None),
    (Command.LIVE_MIGRATION, MOVED, None), (Command.DEFINE_VIRTUAL_MACHINE, DID, None), (Command.FINISH, None, None),
])
def test_a_job_has_ended_here_when_all_is_done_or_nothing_of_it_is_left(
    command: Command, result: object, outcome: Outcome | None,
) -> None:
    assert outcome_of(command, result) is outcome


def test_a_record_that_ends_says_how_and_when_and_is_otherwise_the_same() -> None:
    ended = BEGUN.ending(Outcome.ROLLED_BACK, 1_790_000_007)
    assert (ended.outcome, ended.ended) == (Outcome.ROLLED_BACK, 1_790_000_007)
    assert dataclasses.replace(ended, outcome=None, ended=0) == BEGUN


def test_in_short_a_job_is_all_the_bytes_that_crossed_and_how_long_the_guest_stood_still() -> None:
    told = JobSummary.of(dataclasses.replace(KEPT, sent=5), (Command.FINISH,))
    assert (told.job_id, told.domain, told.name_there) == (MIGRATION.job_id, "VM1", "VM1")
    assert told.bytes == 5 + MOVED.disk_bytes + MOVED.memory_bytes
    assert (told.downtime, told.doing, told.outcome) == (MOVED.downtime, (Command.FINISH,), Outcome.MOVED)
    told = JobSummary.of(BEGUN, ())
    assert (told.bytes, told.downtime, told.outcome, told.ended) == (0, -1, None, 0)


@pytest.mark.parametrize("wanted", ["../x", "a/b", "-v", "x" * 300, "a\nb"])
def test_nothing_but_a_job_or_a_vm_can_be_asked_for(wanted: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        JobsArguments(wanted=wanted)
    with pytest.raises(ValueError, match="job"):
        JobArguments(job_id=wanted)


# The files.


def test_what_is_written_down_is_read_again_by_a_later_life(tmp_path: Path) -> None:
    JobHistory(tmp_path).put(KEPT)
    assert JobHistory(tmp_path).get(MIGRATION.job_id) == KEPT
    JobHistory(tmp_path).put(BEGUN)
    assert JobHistory(tmp_path).all() == [BEGUN]


def test_a_job_that_is_not_written_down_is_none(tmp_path: Path) -> None:
    assert JobHistory(tmp_path).get("ffffffff") is None
    assert JobHistory(tmp_path / "nowhere").all() == []


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b'{"since": 1}', b"null", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_told_and_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes,
) -> None:
    history = JobHistory(tmp_path)
    history.put(KEPT)
    (tmp_path / "history" / "ffffffff.json").write_bytes(content)
    (tmp_path / "history" / "0badcafe.part").write_bytes(content)
    assert history.all() == [KEPT]
    assert "ffffffff.json cannot be read" in caplog.text


def test_jobs_are_told_the_newest_first(tmp_path: Path) -> None:
    history = JobHistory(tmp_path)
    for number, since in ((1, 20), (2, 30), (3, 10)):
        history.put(job(number, since=since))
    assert [kept.job_id for kept in history.all()] == ["00000002", "00000001", "00000003"]


def test_only_what_ended_long_ago_is_forgotten(tmp_path: Path) -> None:
    history = JobHistory(tmp_path)
    history.put(job(1).ending(Outcome.MOVED, 1000))
    history.put(job(2).ending(Outcome.MOVED, 1001))
    history.put(job(3))
    history.forget_old(1000 + IDS_KEPT_SECONDS)
    assert len(history.all()) == 3
    history.forget_old(1000.5 + IDS_KEPT_SECONDS)
    assert {kept.job_id for kept in history.all()} == {"00000002", "00000003"}


# Writing it down.


@pytest.mark.parametrize("command", sorted(OPEN_JOB))
def test_a_job_is_written_down_before_its_first_step_changes_anything_and_only_then(
    context: StepContext, command: Command,
) -> None:
    recording.begin(context, command, ARGUMENTS, CONTROLLER[0], 1_790_000_000)
    assert context.history.get(MIGRATION.job_id) == BEGUN
    recording.begin(context, command, ARGUMENTS, "192.0.2.99", 1_790_000_099)
    assert context.history.get(MIGRATION.job_id) == BEGUN


@pytest.mark.parametrize("command", sorted(set(Command) - OPEN_JOB))
def test_a_step_that_opens_no_job_writes_none_down(context: StepContext, command: Command) -> None:
    recording.begin(context, command, ARGUMENTS, CONTROLLER[0], 1)
    assert context.history.all() == []


def test_a_job_that_cannot_be_written_down_is_not_begun(context: StepContext) -> None:
    (context.state_directory / "history").write_text("in the way")
    with pytest.raises(MigrationError) as caught:
        recording.begin(context, Command.LIVE_MIGRATION, ARGUMENTS, CONTROLLER[0], 1)
    assert caught.value.code is ErrorCode.FILE_NOT_WRITTEN
    assert SOURCE in caught.value.message


def test_what_was_sent_and_what_moved_is_kept(context: StepContext) -> None:
    context.history.put(BEGUN)
    assert not recording.end(context, Command.COPY_DISK_FILE, ARGUMENTS, StepReport(summary="sent", bytes=7), 1)
    assert not recording.end(context, Command.LIVE_MIGRATION, ARGUMENTS, MOVED, 2)
    assert not recording.end(context, Command.DEFINE_VIRTUAL_MACHINE, ARGUMENTS, DID, 3)
    kept = context.history.get(MIGRATION.job_id)
    assert kept == dataclasses.replace(BEGUN, sent=7, moved=MOVED)
    assert recording.end(context, Command.FINISH, ARGUMENTS, DID, 4)
    assert context.history.get(MIGRATION.job_id) == kept.ending(Outcome.MOVED, 4)


def test_how_a_job_ended_first_is_how_it_ended(context: StepContext) -> None:
    context.history.put(BEGUN.ending(Outcome.MOVED, 4))
    assert recording.end(context, Command.ROLL_BACK, ARGUMENTS, CLEARED, 5)
    assert context.history.get(MIGRATION.job_id) == BEGUN.ending(Outcome.MOVED, 4)


@pytest.mark.parametrize("command", sorted(REPEATABLE - {Command.HELLO}))
def test_a_step_that_fails_ends_no_job(context: StepContext, command: Command) -> None:
    context.history.put(BEGUN)
    assert not recording.end(context, command, ARGUMENTS, MigrationError(ErrorCode.INTERNAL, {}), 4)
    assert context.history.get(MIGRATION.job_id) == BEGUN


def test_a_job_that_is_not_known_here_is_settled_all_the_same(context: StepContext) -> None:
    assert recording.end(context, Command.ROLL_BACK, ARGUMENTS, CLEARED, 4)
    assert not recording.end(context, Command.DEFINE_VIRTUAL_MACHINE, ARGUMENTS, DID, 4)
    assert context.history.all() == []


def test_a_step_that_was_done_is_done_although_its_record_cannot_be_written(
    context: StepContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_history: JobHistory, _kept: JobRecord) -> None:
        raise OSError(28, "No space left on device")

    context.history.put(BEGUN)
    monkeypatch.setattr(JobHistory, "put", full)
    with caplog.at_level(logging.ERROR):
        assert recording.end(context, Command.FINISH, ARGUMENTS, DID, 4)
    assert "job 0badcafe cannot be written down" in caplog.text


# LIST and RECALL.


def test_jobs_are_listed_by_id_and_by_the_vms_name_here_or_there(context: StepContext) -> None:
    context.history.put(job(1, "VM1"))
    context.history.put(job(2, "VM2"))
    renamed = dataclasses.replace(MIGRATION, job_id="00000003", domain="old", new_name="VM1")
    context.history.put(JobRecord(arguments=StepArguments(migration=renamed), asked_by="x", since=2))
    for wanted, jobs in (
            ("", {"00000001", "00000002", "00000003"}), ("00000002", {"00000002"}), ("VM2", {"00000002"}),
            ("VM1", {"00000001", "00000003"}), ("old", {"00000003"}), ("nobody", set())):
        told = listing.run(context, JobsArguments(wanted=wanted)).jobs
        assert {each.job_id for each in told} == jobs


def test_what_a_job_does_here_now_is_listed(context: StepContext) -> None:
    context.history.put(job(1))
    context.history.put(job(2))
    doing = dataclasses.replace(context, doing={"00000002": (Command.LIVE_MIGRATION,), "00000009": (Command.FINISH,)})
    told = {each.job_id: each.doing for each in listing.run(doing, JobsArguments()).jobs}
    assert told == {"00000001": (), "00000002": (Command.LIVE_MIGRATION,)}


@pytest.mark.parametrize(("name", "admin"), [
    ("accounting-db-replica-02.example.com", "some.body@management-host-01.example.com"),
    ("ü" * 255, "ä" * 200),
])
def test_the_longest_list_crosses(context: StepContext, name: str, admin: str) -> None:
    longest = dataclasses.replace(
        MIGRATION, domain=name, new_name=name, source="2001:db8:1111:2222:3333:4444:5555:6666",
        destination="2001:db8:1111:2222:3333:4444:5555:7777", admin=admin)
    for number in range(LIST_LIMIT + 3):
        migration = dataclasses.replace(longest, job_id=f"{number:08x}")
        context.history.put(dataclasses.replace(
            KEPT, arguments=StepArguments(migration=migration), asked_by=longest.source, since=number))
    told = listing.run(context, JobsArguments())
    assert (len(told.jobs), told.more) == (LIST_LIMIT, True)
    assert told.jobs[0].since == LIST_LIMIT + 2
    rest = listing.run(context, JobsArguments(skip=LIST_LIMIT))
    assert ([each.since for each in rest.jobs], rest.more) == ([2, 1, 0], False)
    first = opened(seal_reply(AGENT_KEY, a_reply(Command.LIST, MessageType.RESPONSE, told))).cmd_result
    assert isinstance(first, Page)
    assert first.pages < PAGES_LIMIT


def test_all_that_is_known_of_a_job_is_told(context: StepContext) -> None:
    context.history.put(KEPT)
    asked = dataclasses.replace(context, asked=(STEP_STATE,))
    told = recall.run(asked, JobArguments(job_id=MIGRATION.job_id))
    assert (told.record, told.steps) == (KEPT, (STEP_STATE,))
    with pytest.raises(MigrationError) as caught:
        recall.run(asked, JobArguments(job_id="ffffffff"))
    assert caught.value.code is ErrorCode.JOB_UNKNOWN
    assert "ffffffff" in caught.value.message
