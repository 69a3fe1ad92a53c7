"""The Agent with steps of a test's own: requests, cancels, stops, a disk that is full, restarts."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import JobFilter
from constant import Command, DomainState, MessageType
from steps.context import StepContext
from tests.unit.node import (
    WAIT_SECONDS,
    Blocking,
    Start,
    StillAgent,
    code_of,
    done,
    starting,
)
from tests.unit.samples import AGENT_KEY, FACTS, MIGRATION, SOURCE
from wire.datagram import Direction, seal
from wire.errors import ErrorCode, MigrationError
from wire.findings import CheckReport
from wire.journal import read_lines
from wire.memory import Begun, Ended, Entry
from wire.message import Reply, encode
from wire.records import (
    CancelArguments,
    CancelReport,
    HelloArguments,
    Progress,
    RollBackReport,
    StatusArguments,
    StepArguments,
    StepReport,
)
from wire.schema import to_wire

WIRE = to_wire(StepArguments(migration=MIGRATION))
CANCEL = CancelArguments(job_id=MIGRATION.job_id)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an agent with these steps; it is ended after the test."""
    with starting(tmp_path) as start_node:
        yield start_node


# Steps and their results.


def test_a_step_gets_its_arguments_and_its_result_comes_back(start: Start) -> None:
    seen: list[tuple[StepContext, StepArguments]] = []

    def step(context: StepContext, arguments: StepArguments) -> StepReport:
        seen.append((context, arguments))
        return StepReport(summary="done")

    node = start({Command.FINISH: step})
    assert node.client().greet().ask(Command.FINISH).cmd_result == StepReport(summary="done")
    ((context, arguments),) = seen
    assert arguments == StepArguments(migration=MIGRATION, facts=FACTS)
    assert context.host == SOURCE
    assert "192.0.2.12" in context.destinations
    assert context.cancellation.reason is None
    assert context.state_directory == node.state_directory


def test_a_request_is_accepted_before_its_result(start: Start) -> None:
    client = start({Command.FINISH: done}).client().greet()
    client.send(client.request(Command.FINISH))
    assert [client.receive().msg_type for _each in range(2)] == [MessageType.ACCEPTED, MessageType.RESPONSE]


def test_progress_of_a_step_comes_between(start: Start) -> None:
    progress = Progress(phase="copying the disk", done=1, total=2)

    def step(context: StepContext, _arguments: StepArguments) -> StepReport:
        context.progress(progress)
        return StepReport(summary="done")

    client = start({Command.FINISH: step}).client().greet()
    client.send(client.request(Command.FINISH))
    replies = [client.receive() for _each in range(3)]
    assert [reply.msg_type.value for reply in replies] == ["accepted", "progress", "response"]
    assert replies[1].cmd_result == progress


def test_an_error_of_a_step_comes_back_as_code_and_facts(start: Start) -> None:
    def step(_context: StepContext, _arguments: StepArguments) -> StepReport:
        raise MigrationError(ErrorCode.PATH_TAKEN, {"path": "/srv/x", "host": SOURCE})

    error = start({Command.PREPARE_DESTINATION: step}).client().greet().ask(Command.PREPARE_DESTINATION).error()
    assert error is not None
    assert (error.code, dict(error.facts)) == (ErrorCode.PATH_TAKEN, {"path": "/srv/x", "host": SOURCE})


def test_an_unexpected_error_is_told_by_its_kind_and_its_traceback_stays_here(
    start: Start, caplog: pytest.LogCaptureFixture,
) -> None:
    def step(_context: StepContext, _arguments: StepArguments) -> StepReport:
        raise ZeroDivisionError("by nought")

    client = start({Command.FINISH: step}).client().greet()
    reply = client.ask(Command.FINISH)
    assert code_of(reply) is ErrorCode.INTERNAL
    told = encode(reply)
    assert b"ZeroDivisionError" in told
    for word in (b"Traceback", b"File ", b".py", b"line "):
        assert word not in told
    assert "Traceback" in caplog.text
    assert client.ask(Command.HELLO, HelloArguments()).error() is None


@pytest.mark.parametrize("result", [
    None, 7, {"summary": "done"}, CheckReport(findings=()), Progress(phase="x", done=1, total=1), HelloArguments(),
])
def test_a_step_whose_result_is_none_of_its_command_is_told_as_an_error_and_not_by_silence(
    start: Start, result: object,
) -> None:
    client = start({Command.FINISH: lambda _context, _arguments: result}).client().greet()
    reply = client.ask(Command.FINISH)
    assert (reply.msg_type, code_of(reply)) == (MessageType.RESPONSE, ErrorCode.INTERNAL)
    assert type(result).__name__ in str(reply.error())
    assert client.ask(Command.HELLO, HelloArguments()).error() is None


@pytest.mark.parametrize("arguments", [
    {}, {"migration": {}}, {"migration": []}, {**WIRE, "more": 1},
    {**WIRE, "migration": {**WIRE["migration"], "transport": "pigeon"}},
])
def test_arguments_that_are_none_are_refused_and_nothing_runs(start: Start, arguments: object) -> None:
    step = Blocking()
    client = start({Command.FINISH: step}).client().greet()
    reply = client.result(client.send(client.request(Command.FINISH), arguments))
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.MESSAGE_INVALID)
    assert step.ran == 0


def test_arguments_that_name_the_admins_mistake_are_refused_with_it(start: Start) -> None:
    changed = {**WIRE, "migration": {**WIRE["migration"], "user": "-oProxyCommand=x"}}
    client = start({Command.FINISH: Blocking()}).client().greet()
    reply = client.result(client.send(client.request(Command.FINISH), changed))
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.ARGUMENTS_INVALID)


def test_a_host_that_is_no_part_of_the_migration_runs_nothing_of_it(start: Start) -> None:
    step = Blocking()
    reply = start({Command.FINISH: step}).client().greet().ask(Command.FINISH, agent_ip="192.0.2.77")
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.MESSAGE_INVALID)
    assert step.ran == 0


# While a step runs.


def test_the_agent_answers_others_while_a_step_blocks(start: Start) -> None:
    step = Blocking()
    client = start({Command.COPY_DISK_FILE: step}).client().greet()
    running = client.send(client.request(Command.COPY_DISK_FILE))
    assert step.begun.wait(WAIT_SECONDS)
    for _each in range(3):
        assert client.ask(Command.HELLO, HelloArguments()).error() is None
    client.send(client.request(Command.STATUS, StatusArguments(of=running)))
    assert client.receive().msg_type is MessageType.ACCEPTED
    step.released.set()
    assert client.result(running).cmd_result == StepReport(summary="released")


def test_cancel_ends_the_running_step_of_that_job_and_no_other(start: Start) -> None:
    step = Blocking()
    client = start({Command.LIVE_MIGRATION: step}).client().greet()
    running = client.send(client.request(Command.LIVE_MIGRATION))
    assert step.begun.wait(WAIT_SECONDS)
    assert client.ask(Command.CANCEL, CancelArguments(job_id="ffffffff")).cmd_result == CancelReport(known=False)
    assert not step.was_cancelled
    cancel = client.send(client.request(Command.CANCEL, CANCEL))
    ended: dict[str, Reply] = {}
    while len(ended) < 2:
        reply = client.receive()
        if reply.msg_type is MessageType.RESPONSE:
            ended[reply.request_id] = reply
    assert ended[cancel].cmd_result == CancelReport(known=True)
    assert code_of(ended[running]) is ErrorCode.MIGRATION_CANCELLED
    assert step.was_cancelled


@pytest.mark.parametrize("written_first", [True, False])
def test_a_cancel_between_the_arrival_of_a_step_and_its_begin_is_not_lost(written_first: bool) -> None:
    step = Blocking()
    agent = StillAgent({Command.LIVE_MIGRATION: step})
    agent.send(Command.LIVE_MIGRATION)
    if written_first:
        agent.write()
    (cancelled,) = agent.send(Command.CANCEL, CANCEL)
    assert cancelled.cmd_result == CancelReport(known=True)
    agent.write()
    agent.work()
    (ended,) = agent.write()
    assert code_of(ended) is ErrorCode.MIGRATION_CANCELLED
    assert step.was_cancelled


@pytest.mark.parametrize("arguments", [{}, {"job_id": 1}, {"job_id": "x", "more": 1}])
def test_a_cancel_of_nothing_that_can_be_is_refused(start: Start, arguments: object) -> None:
    client = start({}).client().greet()
    reply = client.result(client.send(client.request(Command.CANCEL, CANCEL), arguments))
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.MESSAGE_INVALID)


def test_a_job_that_has_ended_cannot_be_cancelled(start: Start) -> None:
    client = start({Command.FINISH: done}).client().greet()
    client.ask(Command.FINISH)
    assert client.ask(Command.CANCEL, CANCEL).cmd_result == CancelReport(known=False)


# When it is stopped.


def test_a_stopped_agent_cancels_its_work_tells_its_end_and_leaves(start: Start) -> None:
    step = Blocking()
    node = start({Command.LIVE_MIGRATION: step})
    client = node.client().greet()
    running = client.send(client.request(Command.LIVE_MIGRATION))
    assert step.begun.wait(WAIT_SECONDS)
    node.udp.post(node.agent.stop)
    assert code_of(client.result(running)) is ErrorCode.MIGRATION_CANCELLED
    node.thread.join(WAIT_SECONDS)
    assert not node.thread.is_alive()


def test_a_step_that_was_accepted_when_the_agent_was_stopped_still_begins_and_is_told_to_end() -> None:
    step = Blocking()
    agent = StillAgent({Command.LIVE_MIGRATION: step})
    agent.send(Command.LIVE_MIGRATION)
    agent.agent.stop()
    (accepted,) = agent.write()
    agent.work()
    (ended,) = agent.write()
    assert accepted.msg_type is MessageType.ACCEPTED
    assert code_of(ended) is ErrorCode.MIGRATION_CANCELLED
    assert step.was_cancelled


def test_an_agent_that_is_being_stopped_takes_no_new_work(start: Start) -> None:
    released = threading.Event()

    def stubborn(_context: StepContext, _arguments: StepArguments) -> StepReport:
        released.wait(WAIT_SECONDS)
        return StepReport(summary="done")

    step = Blocking()
    node = start({Command.FINISH: stubborn, Command.PREPARE_DESTINATION: step})
    client = node.client().greet()
    running = client.send(client.request(Command.FINISH))
    client.receive()
    node.udp.post(node.agent.stop)
    refusal = client.ask(Command.PREPARE_DESTINATION)
    assert (refusal.msg_type, code_of(refusal)) == (MessageType.REFUSED, ErrorCode.AGENT_STOPPING)
    assert step.ran == 0
    assert node.thread.is_alive()
    released.set()
    assert client.result(running).error() is None
    node.thread.join(WAIT_SECONDS)
    assert not node.thread.is_alive()


def test_a_stopped_agent_stays_to_tell_how_the_vm_is(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Blocking()
    here = RollBackReport(state=DomainState.RUNNING, removed=())
    node = start({Command.LIVE_MIGRATION: step, Command.ROLL_BACK: lambda _context, _arguments: here})
    client = node.client().greet()
    running = client.send(client.request(Command.LIVE_MIGRATION))
    assert step.begun.wait(WAIT_SECONDS)
    monkeypatch.setattr("agent._LINGER_SECONDS", 3600.0)
    node.udp.post(node.agent.stop)
    error = client.result(running).error()
    assert error is not None
    assert "stopped" in error.message
    assert client.ask(Command.ROLL_BACK).cmd_result == here
    assert code_of(client.ask(Command.LIVE_MIGRATION)) is ErrorCode.AGENT_STOPPING
    node.agent._linger_until = 0.0


def test_an_idle_agent_ends_at_once(start: Start) -> None:
    node = start({})
    node.udp.post(node.agent.stop)
    node.thread.join(WAIT_SECONDS)
    assert not node.thread.is_alive()


def test_stray_datagrams_do_not_end_the_receive_loop(start: Start) -> None:
    node = start({})
    client = node.client()
    for datagram in (b"", b"\xff" * 2000, b"VMM1 - -\n{}", seal(AGENT_KEY, Direction.REQUEST, b"[" * 1000), b"quit\n"):
        client.send_bytes(datagram)
    assert client.ask(Command.HELLO, HelloArguments()).error() is None
    counts = node.udp.responder.gate.counters.counts
    assert sum(count for name, count in counts.items() if name.startswith("dropped")) == 5


def test_a_bug_in_the_receive_loop_is_logged_and_ends_only_what_it_came_with(
    start: Start, caplog: pytest.LogCaptureFixture,
) -> None:
    node = start({})
    met = threading.Event()

    def bug(*_arguments: object) -> None:
        met.set()
        raise ZeroDivisionError("by nought")

    node.udp.post(bug)
    client = node.client().greet()
    assert met.is_set()
    met.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node.agent, "_take_new", bug)
        client.send(client.request(Command.FINISH))
        assert met.wait(WAIT_SECONDS)
    client.greet()
    assert caplog.text.count("ZeroDivisionError: by nought") == 2


def test_a_step_for_which_there_is_no_thread_ends_with_an_error(
    start: Start, monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "PREPARE_DESTINATION":
            raise RuntimeError("can't start new thread")
        begin(thread)

    client = start({Command.PREPARE_DESTINATION: done}).client().greet()
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        assert code_of(client.ask(Command.PREPARE_DESTINATION)) is ErrorCode.INTERNAL
    assert client.ask(Command.PREPARE_DESTINATION).error() is None


# Its journal.


def test_a_step_begins_only_after_its_entry_is_on_disk() -> None:
    agent = StillAgent({Command.PREPARE_DESTINATION: done})
    assert agent.send(Command.PREPARE_DESTINATION) == []
    assert agent.begun == []
    ((entry,),) = [write.entries for write in agent.waiting]
    assert isinstance(entry, Begun)
    (accepted,) = agent.write()
    assert (accepted.request_id, accepted.msg_type) == (entry.request_id, MessageType.ACCEPTED)
    assert len(agent.begun) == 1


def test_a_running_step_finds_its_own_begin_in_the_file_and_no_end(start: Start) -> None:
    found: list[tuple[Entry, ...]] = []

    def step(context: StepContext, _arguments: StepArguments) -> StepReport:
        found.append(read_lines((context.state_directory / "journal").read_bytes()).entries)
        return StepReport(summary="done")

    client = start({Command.PREPARE_DESTINATION: step}).client().greet()
    request = client.request(Command.PREPARE_DESTINATION)
    client.result(client.send(request))
    (((begun,)),) = found
    assert isinstance(begun, Begun)
    assert (begun.request_id, begun.cmd, begun.job_id, begun.domain, begun.asked_by) == (
        request.request_id, Command.PREPARE_DESTINATION, MIGRATION.job_id, "VM1", "127.0.0.1")


def test_a_result_is_on_disk_before_it_is_told() -> None:
    agent = StillAgent({Command.PREPARE_DESTINATION: done})
    agent.send(Command.PREPARE_DESTINATION)
    agent.write()
    assert agent.work() == []
    ((entry,),) = [write.entries for write in agent.waiting]
    assert isinstance(entry, Ended)
    assert entry.cmd_result == StepReport(summary="done")
    (told,) = agent.write()
    assert told.cmd_result == StepReport(summary="done")


def full(_file: int) -> None:
    """A disk without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_refuses_a_step_and_the_next_one_runs_once_there_is_room(
    start: Start, monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Blocking()
    step.released.set()
    node = start({Command.PREPARE_DESTINATION: step})
    client = node.client().greet()
    with monkeypatch.context() as patch:
        patch.setattr("wire.journal.os.fdatasync", full)
        reply = client.ask(Command.PREPARE_DESTINATION)
        assert client.ask(Command.HELLO, HelloArguments()).error() is None
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.JOURNAL_NOT_WRITTEN)
    error = reply.error()
    assert error is not None
    assert error.message == (
        f"{SOURCE} cannot write {node.state_directory / 'journal'}, so it did not begin PREPARE_DESTINATION: "
        "No space left on device.")
    assert step.ran == 0
    assert client.ask(Command.PREPARE_DESTINATION).cmd_result == StepReport(summary="released")
    assert step.ran == 1


def test_a_result_that_the_disk_does_not_take_is_told_all_the_same() -> None:
    agent = StillAgent({Command.PREPARE_DESTINATION: done})
    agent.send(Command.PREPARE_DESTINATION)
    agent.write()
    agent.work()
    (told,) = agent.write("No space left on device")
    assert told.cmd_result == StepReport(summary="done")


# When it is started again.


def test_results_survive_a_restart_on_the_same_state_directory(start: Start) -> None:
    node = start({Command.PREPARE_DESTINATION: done})
    client = node.client().greet()
    request = client.request(Command.PREPARE_DESTINATION)
    result = client.result(client.send(request)).cmd_result
    node.end()
    step = Blocking()
    again = start({Command.PREPARE_DESTINATION: step}).client().greet()
    assert again.facts.epoch == client.facts.epoch
    assert again.result(again.send(request)).cmd_result == result
    again.send(again.request(Command.STATUS, StatusArguments(of=request.request_id)))
    assert again.result(request.request_id).cmd_result == result
    assert step.ran == 0


def test_a_request_made_before_a_restart_does_not_begin_after_it(start: Start) -> None:
    node = start({})
    client = node.client().greet()
    held_back = client.request(Command.PREPARE_DESTINATION)
    node.end()
    step = Blocking()
    again = start({Command.PREPARE_DESTINATION: step}).client()
    assert code_of(again.result(again.send(held_back))) is ErrorCode.REQUEST_STALE
    assert step.ran == 0


def test_an_agent_that_crashed_in_a_step_tells_so_and_does_not_run_it_again(start: Start, tmp_path: Path) -> None:
    step = Blocking()
    client = start({Command.PREPARE_DESTINATION: step}).client().greet()
    request = client.request(Command.PREPARE_DESTINATION)
    client.send(request)
    assert step.begun.wait(WAIT_SECONDS)
    # What a crash right now would leave on the disk.
    shutil.copytree(tmp_path / "state", tmp_path / "crashed" / "state")
    other = Blocking()
    again = start({Command.PREPARE_DESTINATION: other}, below=tmp_path / "crashed").client().greet()
    assert again.facts.epoch == client.facts.epoch
    for _each in range(2):
        assert code_of(again.result(again.send(request))) is ErrorCode.REQUEST_INTERRUPTED
    assert other.ran == 0


def test_an_agent_whose_journal_was_lost_has_another_epoch(start: Start) -> None:
    node = start({})
    epoch = node.client().greet().facts.epoch
    node.end()
    shutil.rmtree(node.state_directory)
    assert start({}).client().greet().facts.epoch != epoch


# Log lines.


def test_log_lines_of_a_step_carry_its_job_and_domain_and_others_do_not(
    start: Start, caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.handler.addFilter(JobFilter())
    with caplog.at_level(logging.INFO):
        def step(_context: StepContext, _arguments: StepArguments) -> StepReport:
            logging.getLogger("steps.test").info("inside")
            return StepReport(summary="done")

        start({Command.FINISH: step}).client().greet().ask(Command.FINISH)
    found = {record.getMessage(): (record.job, record.domain) for record in caplog.records}  # type: ignore[attr-defined]
    assert found["inside"] == (MIGRATION.job_id, "VM1")
    assert found["FINISH asked for by 127.0.0.1"] == (MIGRATION.job_id, "VM1")
    assert found["HELLO asked for by 127.0.0.1"] == ("-", "-")


# What steps are given.
