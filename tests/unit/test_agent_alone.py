"""What an agent does without being asked: it goes on with the jobs of an earlier life, and settles those left to it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent import Alone, adoptable
from constant import GIVE_UP_SECONDS, Command, MessageType, Outcome
from host.job_history import JobHistory
from steps.context import StepContext
from tests.unit.node import StillAgent, _Later, code_of, done, job
from tests.unit.samples import CONTROLLER, DESTINATION, MOVED, SOURCE
from wire.errors import ErrorCode, MigrationError
from wire.history import JobRecord
from wire.memory import Begun, Ended, Entry
from wire.records import CancelArguments, CancelReport, StatusArguments, StepArguments, StepReport

STEPS = {Command.PREPARE_DESTINATION: done, Command.COPY_DISK_FILE: done, Command.LIVE_MIGRATION: done}


@dataclass
class Hosts:
    """What the host comes to for a job, and what it was asked."""

    outcomes: list[Outcome | Exception | None] = field(default_factory=lambda: [None])
    asked: list[tuple[str, str, bool]] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    error: MigrationError | None = None
    meanwhile: Callable[[], None] = lambda: None
    spared: list[str] | None = None
    """The jobs whose directories were not cleared up."""

    def clear(self, job_ids: Collection[str]) -> None:
        """Clear up all directories but those of these jobs."""
        self.spared = list(job_ids)

    def settle(self, context: StepContext, arguments: StepArguments, *, alone: bool) -> Outcome | None:
        """The next outcome; the last one stays."""
        self.asked.append((context.host, arguments.migration.job_id, alone))
        self.meanwhile()
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def adopt(self, _context: StepContext, arguments: StepArguments) -> object:
        """The end of a migration that was begun before."""
        self.adopted.append(arguments.migration.job_id)
        if self.error is not None:
            raise self.error
        return MOVED


class LonelyAgent(StillAgent):
    """An agent whose clock is put on by hand, and whose threads run when the test says so."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(STEPS, alone=Alone(hosts.adopt, hosts.settle, hosts.clear))
        self.hosts = hosts

    def look(self, patch: pytest.MonkeyPatch, after: float = 3.0) -> None:
        """Let so much time pass, then one turn of the receive loop; what begins is done at once."""
        now = time.monotonic() + after
        with patch.context() as inner:
            inner.setattr("agent.time.monotonic", lambda: now)
            inner.setattr("agent.threading.Thread", partial(_Later, self.begun))
            self.agent._see_to_jobs()
            begun, self.begun = self.begun, []
            for work in begun:
                work()

    def job_ids(self) -> list[str]:
        """The jobs that it knows."""
        return [each.job_id for each in self.agent.jobs.open()]


@pytest.fixture
def hosts() -> Hosts:
    """A host on which nothing can be told."""
    return Hosts()


@pytest.fixture
def agent(hosts: Hosts) -> LonelyAgent:
    """An agent with one job, of which it is the destination."""
    agent = LonelyAgent(hosts)
    agent.ask(Command.PREPARE_DESTINATION, job(1), DESTINATION)
    return agent


LATE = GIVE_UP_SECONDS + 1


# Settling.


def test_a_job_of_which_nothing_was_heard_for_long_is_the_agents_own(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent.look(monkeypatch, 3.0)
    agent.look(monkeypatch, LATE)
    assert agent.hosts.asked == [(DESTINATION, "00000001", False), (DESTINATION, "00000001", True)]
    assert agent.job_ids() == ["00000001"]


def test_a_job_that_could_not_be_cleared_up_when_it_was_to_end_is_the_agents_own_at_once(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent.agent.jobs.enter(Command.ROLL_BACK, DESTINATION, job(1).migration, CONTROLLER[0], 0.0)
    agent.agent.jobs.leave(Command.ROLL_BACK, job(1).migration, time.monotonic(), settled=False)
    agent.look(monkeypatch, 3.0)
    assert agent.hosts.asked == [(DESTINATION, "00000001", True)]


@pytest.mark.parametrize(("command", "host"), [
    (Command.PREPARE_DESTINATION, DESTINATION), (Command.COPY_DISK_FILE, SOURCE), (Command.LIVE_MIGRATION, SOURCE)])
def test_the_host_that_it_is_to_a_job_follows_from_its_first_step(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, command: Command, host: str,
) -> None:
    agent = LonelyAgent(hosts)
    agent.ask(command, job(1), host)
    agent.look(monkeypatch, LATE)
    assert hosts.asked == [(host, "00000001", True)]


@pytest.mark.parametrize("outcome", [Outcome.MOVED, Outcome.ROLLED_BACK])
def test_a_job_that_was_settled_is_over_and_written_down(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, caplog: pytest.LogCaptureFixture,
) -> None:
    agent.hosts.outcomes = [outcome]
    agent.look(monkeypatch, LATE)
    assert agent.job_ids() == []
    kept = JobHistory(agent.state_directory).get("00000001")
    assert kept is not None
    assert (kept.outcome, kept.ended > 0) == (outcome, True)
    assert f"the job was settled here, {outcome.value}" in caplog.text
    assert agent.ask(Command.PREPARE_DESTINATION, job(2), DESTINATION).error() is None


def test_a_job_that_cannot_be_settled_is_looked_at_more_and_more_rarely(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    for second in range(0, 1200, 2):
        agent.look(monkeypatch, LATE + second)
        if len(agent.hosts.asked) > len(looks):
            looks.append(second)
    waits = [later - earlier for earlier, later in zip(looks, looks[1:], strict=False)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (4, 120)


@pytest.mark.parametrize("error", [
    MigrationError(ErrorCode.LIBVIRT_UNREACHABLE, {"host": SOURCE, "reason": "gone"}), ZeroDivisionError("by nought")])
def test_what_goes_wrong_is_told_and_tried_again(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception,
) -> None:
    agent.hosts.outcomes = [error, Outcome.MOVED]
    agent.look(monkeypatch, LATE)
    assert "the job cannot be settled yet" in caplog.text
    assert agent.job_ids() == ["00000001"]
    agent.look(monkeypatch, LATE + 60)
    assert agent.job_ids() == []


def test_a_job_that_works_or_is_looked_at_already_is_not_looked_at(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent.send(Command.COPY_DISK_FILE, job(1), DESTINATION)
    agent.look(monkeypatch, LATE)
    assert agent.hosts.asked == []
    agent.write()
    agent.work()
    def look_again() -> None:
        agent.agent._look_at = 0.0
        agent.agent._see_to_jobs()
        assert agent.begun == []

    agent.hosts.meanwhile = look_again
    agent.look(monkeypatch, LATE + 10)
    assert len(agent.hosts.asked) == 1


def test_a_controller_that_comes_back_meanwhile_keeps_its_job(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def come_back() -> None:
        agent.agent.jobs.enter(Command.COPY_DISK_FILE, DESTINATION, job(1).migration, CONTROLLER[0], time.monotonic())

    agent.hosts.outcomes, agent.hosts.meanwhile = [Outcome.ROLLED_BACK], come_back
    agent.look(monkeypatch, LATE)
    assert agent.job_ids() == ["00000001"]


def test_nothing_is_looked_at_by_an_agent_that_is_being_stopped(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent.agent.stop()
    agent.look(monkeypatch, LATE)
    assert agent.hosts.asked == []


def test_a_job_of_which_nothing_is_written_down_has_done_nothing_here_and_one_that_has_ended_is_over(
    agent: LonelyAgent, monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = JobHistory(agent.state_directory).get("00000001")
    assert kept is not None
    (agent.state_directory / "history" / "00000001.json").unlink()
    agent.look(monkeypatch, 3.0)
    assert (agent.hosts.asked, agent.job_ids()) == ([], ["00000001"])
    agent.look(monkeypatch, LATE)
    assert (agent.hosts.asked, agent.job_ids()) == ([], [])
    other = LonelyAgent(agent.hosts)
    other.ask(Command.PREPARE_DESTINATION, job(2), DESTINATION)
    JobHistory(other.state_directory).put(
        dataclasses.replace(kept, arguments=job(2)).ending(Outcome.MOVED, 7))
    other.look(monkeypatch, 3.0)
    assert (other.hosts.asked, other.job_ids()) == ([], [])


def test_a_job_is_done_one_thing_to_at_a_time(agent: LonelyAgent) -> None:
    lock = agent.agent._job_locks["00000001"]
    with lock:
        worker = threading.Thread(target=agent.agent._settled, args=(
            agent.agent.jobs.open()[0], agent.hosts.settle, True))
        worker.start()
        worker.join(0.05)
        assert agent.hosts.asked == []
    worker.join(5.0)
    assert len(agent.hosts.asked) == 1


# An earlier life.


def begun(number: int, command: Command = Command.LIVE_MIGRATION, request: int = 1) -> Begun:
    """The journal's entry about a step of a job."""
    return Begun(
        request_id=f"{request:032x}", digest="0" * 64, agent_ip=SOURCE, cmd=command, asked_by=CONTROLLER[0],
        at=1_790_000_000, job_id=f"{number:08x}", domain="VM1")


def ended(command: Command, result: object, request: int = 1) -> Ended:
    """The journal's entry about its end."""
    return Ended(request_id=f"{request:032x}", cmd=command, at=1_790_000_001, cmd_result=result)


def kept_of(number: int) -> JobRecord:
    """What is written down of that job."""
    return JobRecord(arguments=job(number), asked_by=CONTROLLER[0], since=1)


def test_a_migration_that_was_begun_and_has_not_ended_goes_on(tmp_path: Path) -> None:
    JobHistory(tmp_path).put(kept_of(1))
    (request,) = adoptable([begun(1)], tmp_path).values()
    assert (request.request_id, request.agent_ip, request.cmd) == (f"{1:032x}", SOURCE, Command.LIVE_MIGRATION)
    assert request.cmd_arguments == job(1)


@pytest.mark.parametrize("entries", [
    [], [begun(1), ended(Command.LIVE_MIGRATION, MOVED)], [begun(2)],
    *([begun(1, command)] for command in (Command.COPY_DISK_FILE, Command.PREPARE_DESTINATION, Command.FINISH)),
])
def test_nothing_else_goes_on(tmp_path: Path, entries: list[Entry]) -> None:
    JobHistory(tmp_path).put(kept_of(1))
    assert adoptable(entries, tmp_path) == {}
    JobHistory(tmp_path).put(kept_of(1).ending(Outcome.ROLLED_BACK, 5))
    assert adoptable([begun(1)], tmp_path) == {}


def second_life(hosts: Hosts, *entries: Entry, admin: str = "") -> LonelyAgent:
    """An agent that is started again, with the journal of its earlier life and what was written down of job 1."""
    agent = LonelyAgent(hosts)
    kept = kept_of(1)
    migration = dataclasses.replace(kept.arguments.migration, admin=admin)
    JobHistory(agent.state_directory).put(
        dataclasses.replace(kept, arguments=dataclasses.replace(kept.arguments, migration=migration)))
    adopted = adoptable(entries, agent.state_directory)
    agent.responder._memory.restore(entries, frozenset(adopted))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.threading.Thread", partial(_Later, agent.begun))
        agent.agent.go_on(entries, adopted)
    return agent


def answer_to_status(agent: LonelyAgent) -> Any:
    """What it says of the migration when it is asked."""
    (reply,) = agent.send(Command.STATUS, StatusArguments(of=f"{1:032x}"), SOURCE)
    return reply


def test_a_controller_that_asks_meanwhile_hears_that_its_migration_goes_on_and_then_how_it_ended(hosts: Hosts) -> None:
    agent = second_life(hosts, begun(1))
    assert answer_to_status(agent).msg_type is MessageType.ACCEPTED
    assert agent.job_ids() == ["00000001"]
    agent.work()
    agent.write()
    assert hosts.adopted == ["00000001"]
    reply = answer_to_status(agent)
    assert (reply.msg_type, reply.cmd_result) == (MessageType.RESPONSE, MOVED)
    kept = JobHistory(agent.state_directory).get("00000001")
    assert kept is not None
    assert kept.moved == MOVED


def test_a_migration_that_goes_on_and_fails_is_told_as_that(hosts: Hosts) -> None:
    hosts.error = MigrationError(ErrorCode.MIGRATION_INTERRUPTED, {"domain": "VM1", "host": SOURCE})
    agent = second_life(hosts, begun(1))
    agent.work()
    agent.write()
    reply = answer_to_status(agent)
    assert (reply.msg_type, code_of(reply)) == (MessageType.RESPONSE, ErrorCode.MIGRATION_INTERRUPTED)


def test_a_migration_that_goes_on_can_be_cancelled_and_keeps_its_place(hosts: Hosts) -> None:
    agent = second_life(hosts, begun(1))
    (refused,) = agent.send(Command.PREPARE_DESTINATION, job(2))
    assert code_of(refused) is ErrorCode.DOMAIN_LOCKED
    (cancelled,) = agent.send(Command.CANCEL, CancelArguments(job_id="00000001"))
    assert cancelled.cmd_result == CancelReport(known=True)


def test_whoever_is_refused_after_a_restart_is_told_which_admin_is_at_it(hosts: Hosts) -> None:
    agent = second_life(hosts, begun(1), admin="ann@desk")
    (refused,) = agent.send(Command.PREPARE_DESTINATION, job(2))
    error = refused.error()
    assert error is not None
    assert f"ann@desk ({CONTROLLER[0]})" in error.message


def test_a_step_that_does_not_go_on_was_interrupted_and_its_job_is_seen_to(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = second_life(hosts, begun(1, Command.COPY_DISK_FILE))
    assert code_of(answer_to_status(agent)) is ErrorCode.REQUEST_INTERRUPTED
    assert (agent.begun, hosts.spared) == ([], ["00000001"])
    agent.look(monkeypatch, LATE)
    assert hosts.asked == [(SOURCE, "00000001", True)]


def test_a_job_that_had_ended_is_not_seen_to(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    did = StepReport(summary="did it")
    agent = second_life(
        hosts, begun(1), ended(Command.LIVE_MIGRATION, MOVED), begun(1, Command.FINISH, 2),
        ended(Command.FINISH, did, 2))
    agent.look(monkeypatch, LATE)
    assert (agent.job_ids(), hosts.asked, hosts.adopted) == ([], [], [])


def test_the_directory_of_a_job_that_the_journal_has_forgotten_and_that_has_not_ended_is_left(hosts: Hosts) -> None:
    second_life(hosts)
    assert hosts.spared == ["00000001"]
