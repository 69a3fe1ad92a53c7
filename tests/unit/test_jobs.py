"""The jobs of an agent: one for a domain, no more than the limit, and none that holds its place for ever."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import Step
from constant import (
    CHANGE_NOTHING,
    CLEARING,
    CLOSE_JOB,
    GIVE_UP_SECONDS,
    JOBS_LIMIT,
    OPEN_JOB,
    WORK_LIMIT,
    Command,
    DomainState,
    MessageType,
)
from steps.context import StepContext
from tests.unit.node import StillAgent, code_of, done, job
from tests.unit.samples import AGENT_KEY, CONTROLLER, DESTINATION, FACTS, LINK, RESULT_OF, SOURCE
from wire.datagram import Direction, seal
from wire.errors import ErrorCode, MigrationError
from wire.findings import CheckReport
from wire.jobs import Jobs
from wire.memory import Begun, Ended
from wire.message import Request, encode
from wire.records import (
    CancelArguments,
    CancelReport,
    HelloArguments,
    Obstacle,
    RollBackReport,
    StatusArguments,
    StepArguments,
    StepReport,
)

NOW = 1000.0
CHECKS = sorted(CHANGE_NOTHING - {Command.HELLO})
OPENING = sorted(OPEN_JOB)


class Host(Jobs):
    """Jobs at a time and asked by somebody that do not matter; a step's job is named by a number."""

    def enter_job(self, command: Command, number: int, domain: str = "VM1", now: float = NOW) -> None:
        """Begin a step."""
        self.enter(command, SOURCE, job(number, domain).migration, CONTROLLER[0], now)

    def leave_job(self, command: Command, number: int, domain: str = "VM1", now: float = NOW) -> None:
        """End a step."""
        self.leave(command, job(number, domain).migration, now)

    def do(self, command: Command, number: int, domain: str = "VM1", now: float = NOW) -> None:
        """Begin and end a step."""
        self.enter_job(command, number, domain, now)
        self.leave_job(command, number, domain, now)

    def refuses(self, command: Command, number: int, domain: str = "VM1", now: float = NOW) -> ErrorCode | None:
        """Why a step is not taken; if it is, it begins."""
        try:
            self.enter_job(command, number, domain, now)
        except MigrationError as error:
            return error.code
        return None


# One job for a domain.


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("opened", OPENING)
@pytest.mark.parametrize("command", CHECKS + OPENING)
def test_a_second_job_for_a_domain_is_refused_from_its_first_check_on(
    opened: Command, command: Command, running: bool,
) -> None:
    host = Host(JOBS_LIMIT)
    host.enter_job(opened, 1)
    if not running:
        host.leave_job(opened, 1)
    with pytest.raises(MigrationError) as caught:
        host.enter_job(command, 2)
    facts = caught.value.facts
    assert caught.value.code is ErrorCode.DOMAIN_LOCKED
    assert (facts["host"], facts["domain"], facts["job"], facts["asked_by"]) == (
        SOURCE, "VM1", "00000001", CONTROLLER[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", facts["since"])
    assert "?" not in str(caught.value)
    assert host.refuses(command, 2, "VM2") is None


@pytest.mark.parametrize("command", CHECKS + OPENING)
def test_a_job_the_other_way_round_is_a_second_job_for_the_domain(command: Command) -> None:
    host = Host(JOBS_LIMIT)
    host.do(Command.PREPARE_DESTINATION, 1)
    back = replace(job(2).migration, source=DESTINATION, destination=SOURCE)
    with pytest.raises(MigrationError) as caught:
        host.enter(command, SOURCE, back, CONTROLLER[0], NOW)
    assert caught.value.code is ErrorCode.DOMAIN_LOCKED


@pytest.mark.parametrize(("first", "second"), list(itertools.product(OPENING, OPENING)))
def test_a_job_runs_its_opening_steps_one_after_the_other(first: Command, second: Command) -> None:
    host = Host(JOBS_LIMIT)
    host.enter_job(first, 1)
    assert host.refuses(second, 1) is ErrorCode.DOMAIN_LOCKED
    host.leave_job(first, 1)
    assert host.refuses(second, 1) is None


@pytest.mark.parametrize("first", [*CHECKS, *sorted(CLEARING)])
def test_a_step_from_before_the_job_began_ends_without_ending_what_the_job_runs(first: Command) -> None:
    host = Host(JOBS_LIMIT)
    host.enter_job(first, 1)
    host.enter_job(Command.PREPARE_DESTINATION, 1)
    host.leave_job(first, 1)
    assert host.refuses(Command.PREPARE_DESTINATION, 1) is ErrorCode.DOMAIN_LOCKED
    assert host.refuses(Command.CHECK_SOURCE, 2) is ErrorCode.DOMAIN_LOCKED


# The limit.


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("command", CHECKS + OPENING)
def test_a_job_too_many_is_refused_with_the_domains_that_are_under_way(limit: int, command: Command) -> None:
    host = Host(limit)
    for number in range(limit):
        host.do(Command.PREPARE_DESTINATION, number, f"VM{number}")
    with pytest.raises(MigrationError) as caught:
        host.enter_job(command, limit, "another")
    facts = caught.value.facts
    assert caught.value.code is ErrorCode.JOBS_LIMIT_REACHED
    assert (facts["host"], facts["count"], facts["limit"]) == (SOURCE, str(limit), str(limit))
    assert facts["domains"] == ", ".join(f"VM{number}" for number in range(limit))


def test_a_job_has_one_place_however_many_steps_it_takes() -> None:
    host = Host(2)
    for command in (*CHECKS, *OPENING):
        host.do(command, 1)
    assert host.refuses(Command.PREPARE_DESTINATION, 2, "VM2") is None
    assert host.refuses(Command.LIVE_MIGRATION, 1) is None


@pytest.mark.parametrize("command", CHECKS)
def test_checks_reserve_nothing(command: Command) -> None:
    host = Host(1)
    for number in range(5):
        host.enter_job(command, number)
    for number in range(5):
        host.leave_job(command, number)
    assert host.refuses(Command.PREPARE_DESTINATION, 9) is None


# Clearing steps, and the end of a job.


@pytest.mark.parametrize("command", sorted(CLEARING))
def test_a_clearing_step_is_taken_whoever_has_the_domain_and_the_places(command: Command) -> None:
    host = Host(1)
    host.enter_job(Command.LIVE_MIGRATION, 1)
    for number, domain in ((2, "VM1"), (3, "VM3")):
        assert host.refuses(command, number, domain) is None
    for number, domain in ((2, "VM1"), (3, "VM3")):
        host.leave_job(command, number, domain)
    assert host.refuses(Command.CHECK_SOURCE, 4) is ErrorCode.DOMAIN_LOCKED


@pytest.mark.parametrize("command", sorted(CLEARING))
def test_a_job_is_not_cleared_up_beside_its_own_running_step(command: Command) -> None:
    host = Host(1)
    host.enter_job(Command.PREPARE_DESTINATION, 1)
    assert host.refuses(command, 1) is ErrorCode.DOMAIN_LOCKED
    host.leave_job(Command.PREPARE_DESTINATION, 1)
    assert host.refuses(command, 1) is None


@pytest.mark.parametrize("command", sorted(CLEARING))
def test_a_clearing_step_of_a_job_that_is_not_known_reserves_nothing(command: Command) -> None:
    host = Host(1)
    host.enter_job(command, 1)
    assert host.refuses(Command.PREPARE_DESTINATION, 2) is None


@pytest.mark.parametrize("command", [*CHECKS, *OPENING, *sorted(CLEARING)])
def test_only_the_last_step_of_a_job_frees_its_place(command: Command) -> None:
    host = Host(1)
    host.do(Command.PREPARE_DESTINATION, 1)
    host.do(command, 1)
    assert host.refuses(Command.PREPARE_DESTINATION, 2) is (
        None if command in CLOSE_JOB else ErrorCode.DOMAIN_LOCKED)


@pytest.mark.parametrize("command", sorted(CLOSE_JOB))
def test_a_job_keeps_its_place_while_a_step_of_it_still_runs(command: Command) -> None:
    host = Host(1)
    host.do(Command.PREPARE_DESTINATION, 1)
    host.enter_job(Command.DEFINE_VIRTUAL_MACHINE, 1)
    host.do(command, 1)
    assert host.refuses(Command.CHECK_SOURCE, 2) is ErrorCode.DOMAIN_LOCKED


# An agent that was started again.


def begun(number: int, command: Command, request: int, domain: str = "VM1") -> Begun:
    """A journal's entry about a step of a job."""
    return Begun(
        request_id=f"{request:032x}", digest="0" * 64, agent_ip=SOURCE, cmd=command, asked_by=CONTROLLER[0],
        at=1_790_000_000, job_id=f"{number:08x}", domain=domain)


def ended(command: Command, request: int) -> Ended:
    """A journal's entry about the end of that step."""
    return Ended(request_id=f"{request:032x}", cmd=command, at=1_790_000_001, cmd_result=RESULT_OF[command])


def test_an_agent_that_is_started_again_knows_from_its_journal_which_jobs_have_not_ended() -> None:
    host = Host(2)
    host.restore([
        begun(1, Command.PREPARE_DESTINATION, 1), ended(Command.PREPARE_DESTINATION, 1),
        begun(2, Command.LIVE_MIGRATION, 2, "VM2"), begun(3, Command.COPY_DISK_FILE, 3, "VM3"),
        begun(3, Command.FINISH, 4, "VM3"), ended(Command.FINISH, 4), begun(4, Command.CHECK_SOURCE, 5, "VM4"),
    ], NOW)
    assert host.refuses(Command.CHECK_DESTINATION, 9, "VM1") is ErrorCode.DOMAIN_LOCKED
    assert host.refuses(Command.CHECK_SOURCE, 9, "VM2") is ErrorCode.DOMAIN_LOCKED
    assert host.refuses(Command.CHECK_SOURCE, 9, "VM3") is ErrorCode.JOBS_LIMIT_REACHED
    host.do(Command.FINISH, 1)
    assert host.refuses(Command.PREPARE_DESTINATION, 9, "VM3") is None
    assert host.refuses(Command.CHECK_SOURCE, 8, "VM2", now=NOW + GIVE_UP_SECONDS + 1) is None


@pytest.mark.parametrize(("command", "result"), [
    (Command.FINISH, Obstacle(code=ErrorCode.NOT_AS_EXPECTED, facts={})),
    (Command.ROLL_BACK, Obstacle(code=ErrorCode.NOT_AS_EXPECTED, facts={})),
    (Command.ROLL_BACK, RollBackReport(state=DomainState.PAUSED, removed=()))])
def test_a_job_of_which_something_was_left_has_not_ended_for_a_later_life(command: Command, result: object) -> None:
    host = Host(2)
    host.restore([
        begun(1, Command.PREPARE_DESTINATION, 1), ended(Command.PREPARE_DESTINATION, 1), begun(1, command, 2),
        dataclasses.replace(ended(command, 2), cmd_result=result)], NOW)
    assert [each.job_id for each in host.unattended(NOW)] == ["00000001"]


# A controller that has gone.


def test_a_job_is_given_up_some_time_after_its_last_step(caplog: pytest.LogCaptureFixture) -> None:
    host = Host(1)
    host.do(Command.PREPARE_DESTINATION, 1, now=NOW)
    host.do(Command.COPY_DISK_FILE, 1, now=NOW + 60)
    assert host.refuses(Command.CHECK_SOURCE, 2, now=NOW + 60 + GIVE_UP_SECONDS) is ErrorCode.DOMAIN_LOCKED
    assert host.refuses(Command.CHECK_SOURCE, 3, "VM3", NOW + 60 + GIVE_UP_SECONDS) is ErrorCode.JOBS_LIMIT_REACHED
    with caplog.at_level(logging.WARNING):
        assert host.refuses(Command.PREPARE_DESTINATION, 2, now=NOW + 60 + GIVE_UP_SECONDS + 1) is None
    assert "job 00000001 of VM VM1 is given up" in caplog.text


def test_a_job_that_its_controller_speaks_of_keeps_its_place_although_it_has_nothing_to_do() -> None:
    host = Host(1)
    host.do(Command.PREPARE_DESTINATION, 1)
    late = NOW
    for _time in range(10):
        late += GIVE_UP_SECONDS
        host.keep("00000001", late)
        host.keep("0000ffff", late)
        assert host.refuses(Command.CHECK_SOURCE, 2, now=late) is ErrorCode.DOMAIN_LOCKED
    assert host.refuses(Command.CHECK_SOURCE, 2, now=late + GIVE_UP_SECONDS + 1) is None


def test_a_job_that_was_given_up_has_its_place_again_as_soon_as_its_controller_speaks_of_it() -> None:
    host = Host(1)
    host.do(Command.PREPARE_DESTINATION, 1)
    late = NOW + GIVE_UP_SECONDS + 1
    host.do(Command.CHECK_SOURCE, 2, "VM2", now=late)
    assert host.free() == 1
    host.keep("00000001", late)
    assert (host.free(), host.refuses(Command.CHECK_SOURCE, 2, now=late)) == (0, ErrorCode.DOMAIN_LOCKED)


def test_a_job_is_about_one_vm() -> None:
    host = Host(2)
    host.do(Command.PREPARE_DESTINATION, 1, "VM1")
    assert host.refuses(Command.LIVE_MIGRATION, 1, "VM2") is ErrorCode.MESSAGE_INVALID
    assert host.refuses(Command.LIVE_MIGRATION, 1, "VM1") is None


def test_a_job_is_not_given_up_while_a_step_runs_however_long() -> None:
    host = Host(1)
    host.enter_job(Command.LIVE_MIGRATION, 1, now=NOW)
    late = NOW + 100 * GIVE_UP_SECONDS
    assert host.refuses(Command.CHECK_SOURCE, 2, now=late) is ErrorCode.DOMAIN_LOCKED
    host.leave_job(Command.LIVE_MIGRATION, 1, now=late)
    assert host.refuses(Command.CHECK_SOURCE, 2, now=late + GIVE_UP_SECONDS) is ErrorCode.DOMAIN_LOCKED
    assert host.refuses(Command.CHECK_SOURCE, 2, now=late + GIVE_UP_SECONDS + 1) is None


def test_a_controller_that_comes_back_after_its_job_was_given_up_goes_on_if_the_domain_is_free() -> None:
    host = Host(1)
    host.do(Command.PREPARE_DESTINATION, 1, now=NOW)
    late = NOW + GIVE_UP_SECONDS + 1
    assert host.refuses(Command.LIVE_MIGRATION, 1, now=late) is None
    assert host.refuses(Command.CHECK_SOURCE, 2, now=late) is ErrorCode.DOMAIN_LOCKED


def test_a_controller_that_comes_back_after_another_got_the_domain_is_refused_and_can_clear_up() -> None:
    host = Host(1)
    host.do(Command.PREPARE_DESTINATION, 1, now=NOW)
    late = NOW + GIVE_UP_SECONDS + 1
    host.enter_job(Command.PREPARE_DESTINATION, 2, now=late)
    assert host.refuses(Command.LIVE_MIGRATION, 1, now=late) is ErrorCode.DOMAIN_LOCKED
    host.do(Command.ROLL_BACK, 1, now=late)
    assert host.refuses(Command.CHECK_SOURCE, 3, now=late) is ErrorCode.DOMAIN_LOCKED


@given(st.lists(st.tuples(
    st.sampled_from([*CHECKS, *OPENING, *sorted(CLEARING)]), st.integers(0, 3), st.booleans()), max_size=40))
def test_whatever_is_asked_a_domain_has_one_opening_step_at_once_and_the_limit_is_kept(
    asked: list[tuple[Command, int, bool]],
) -> None:
    host, running = Host(2), list[tuple[Command, int]]()
    # Jobs 0 and 3 are for the same domain.
    for command, number, leaves in asked:
        if leaves and running:
            ended = running.pop(number % len(running))
            host.leave_job(ended[0], ended[1], f"VM{ended[1] % 3}")
        elif host.refuses(command, number, f"VM{number % 3}") is None:
            running.append((command, number))
        domains = [number % 3 for command, number in running if command in OPEN_JOB]
        assert len(domains) == len(set(domains)) <= 2


# As the agent says it.


def check(_context: StepContext, _arguments: StepArguments) -> CheckReport:
    """A check that finds nothing in the way."""
    return CheckReport(findings=(), facts=FACTS)


def fail(_context: StepContext, _arguments: StepArguments) -> StepReport:
    """A step that fails."""
    raise MigrationError(ErrorCode.TOOL_FAILED, {"tool": "qemu-img", "host": SOURCE, "reason": "no"})


def rolled_back(*, cleared: bool) -> Step:
    """A ROLL_BACK after which there is nothing left to clear, or something."""
    return lambda _context, _arguments: RollBackReport(state=DomainState.ABSENT, removed=(), cleared=cleared)


STEPS = {
    Command.CHECK_SOURCE: check, Command.CHECK_DESTINATION: check, Command.PREPARE_DESTINATION: done,
    Command.COPY_DISK_FILE: done, Command.FINISH: done, Command.ROLL_BACK: fail}


def test_a_controller_is_told_at_its_check_who_has_the_domain() -> None:
    agent = StillAgent(STEPS)
    agent.ask(Command.PREPARE_DESTINATION, job(1))
    (refused,) = agent.send(Command.CHECK_SOURCE, job(2))
    assert (refused.msg_type, code_of(refused)) == (MessageType.REFUSED, ErrorCode.DOMAIN_LOCKED)
    assert f"job 00000001, asked for by {CONTROLLER[0]} since " in str(refused.error())
    assert agent.begun == []
    assert agent.waiting == []


def test_whoever_meets_a_locked_domain_is_told_who_typed_the_command_and_where() -> None:
    agent = StillAgent(STEPS)
    begun = job(1)
    agent.ask(Command.PREPARE_DESTINATION, dataclasses.replace(
        begun, migration=dataclasses.replace(begun.migration, admin="ann@boss")))
    (refused,) = agent.send(Command.CHECK_SOURCE, job(2))
    assert f"asked for by ann@boss ({CONTROLLER[0]}) since " in str(refused.error())


@pytest.mark.parametrize(("command", "step"), [
    (Command.FINISH, done), (Command.ROLL_BACK, rolled_back(cleared=True))])
def test_the_next_job_can_begin_once_a_closing_step_has_ended_well(command: Command, step: Step) -> None:
    agent = StillAgent({**STEPS, command: step}, jobs_limit=1)
    agent.ask(Command.PREPARE_DESTINATION, job(1))
    agent.send(command, job(1))
    agent.write()
    (refused,) = agent.send(Command.CHECK_SOURCE, job(2))
    assert code_of(refused) is ErrorCode.DOMAIN_LOCKED
    agent.work()
    agent.write()
    assert agent.ask(Command.PREPARE_DESTINATION, job(2)).error() is None


@pytest.mark.parametrize(("command", "step"), [
    (Command.FINISH, fail), (Command.ROLL_BACK, fail), (Command.ROLL_BACK, rolled_back(cleared=False))])
def test_a_job_of_which_something_is_left_keeps_its_vm_until_it_is_given_up(command: Command, step: Step) -> None:
    agent = StillAgent({**STEPS, command: step})
    agent.ask(Command.PREPARE_DESTINATION, job(1))
    agent.ask(command, job(1))
    assert code_of(agent.ask(Command.PREPARE_DESTINATION, job(2))) is ErrorCode.DOMAIN_LOCKED
    late = time.monotonic() + GIVE_UP_SECONDS + 1
    agent.agent.jobs.enter(Command.PREPARE_DESTINATION, SOURCE, job(2).migration, CONTROLLER[0], late)
    # It is not forgotten: the agent goes on to see to it.
    assert [each.job_id for each in agent.agent.jobs.unattended(late)] == ["00000001"]


def test_a_job_that_did_not_begin_because_the_disk_is_full_leaves_its_place_to_the_next() -> None:
    agent = StillAgent(STEPS, jobs_limit=1)
    agent.send(Command.PREPARE_DESTINATION, job(1))
    (refused,) = agent.write("No space left on device")
    assert (refused.msg_type, code_of(refused)) == (MessageType.REFUSED, ErrorCode.JOURNAL_NOT_WRITTEN)
    assert agent.begun == []
    assert agent.ask(Command.PREPARE_DESTINATION, job(2)).cmd_result == StepReport(summary="done")


def test_a_full_disk_does_not_take_the_place_of_a_job_that_has_begun() -> None:
    agent = StillAgent(STEPS)
    agent.ask(Command.PREPARE_DESTINATION, job(1))
    agent.send(Command.COPY_DISK_FILE, job(1))
    (refused,) = agent.write("No space left on device")
    assert code_of(refused) is ErrorCode.JOURNAL_NOT_WRITTEN
    assert code_of(agent.ask(Command.CHECK_SOURCE, job(2))) is ErrorCode.DOMAIN_LOCKED
    assert agent.ask(Command.COPY_DISK_FILE, job(1)).error() is None


@pytest.mark.parametrize("command", [Command.CHECK_LINK, Command.MEASURE_LINK])
def test_a_host_tries_no_way_that_it_is_no_end_of_and_none_takes_a_jobs_place(command: Command) -> None:
    agent = StillAgent({**STEPS, command: lambda _context, _arguments: CheckReport(findings=())})
    elsewhere = dataclasses.replace(LINK, source="192.0.2.77", destination="192.0.2.78")
    (refused,) = agent.send(command, elsewhere)
    assert (refused.msg_type, code_of(refused)) == (MessageType.REFUSED, ErrorCode.MESSAGE_INVALID)
    assert agent.begun == []
    (accepted,) = agent.send(command, LINK)
    assert accepted.msg_type is MessageType.ACCEPTED
    assert agent.agent.jobs.free() == agent.agent.jobs.limit


def busy_agent() -> StillAgent:
    """An agent that works on as many requests as it takes at once, all of them such as clear up."""
    agent = StillAgent(STEPS)
    for number in range(WORK_LIMIT):
        agent.send(Command.FINISH, job(number, f"VM{number}"))
    return agent


def test_an_agent_with_too_much_to_do_says_so_and_still_answers_what_is_no_work() -> None:
    agent = busy_agent()
    for command, arguments in ((Command.CHECK_SOURCE, job(99)), (Command.PREPARE_DESTINATION, job(99))):
        (refused,) = agent.send(command, arguments)
        assert (refused.msg_type, code_of(refused)) == (MessageType.REFUSED, ErrorCode.AGENT_BUSY)
        assert f"works on {WORK_LIMIT} requests already" in str(refused.error())
    running = agent.write()[0]
    (status,) = agent.send(Command.STATUS, StatusArguments(of=running.request_id))
    assert (status.request_id, status.msg_type) == (running.request_id, MessageType.ACCEPTED)
    (cancelled,) = agent.send(Command.CANCEL, CancelArguments(job_id="00000000"))
    assert cancelled.cmd_result == CancelReport(known=True)
    agent.work()
    agent.write()
    assert agent.ask(Command.HELLO, HelloArguments()).error() is None


@pytest.mark.parametrize("command", [Command.FINISH, Command.ROLL_BACK])
def test_a_clearing_step_is_taken_however_much_there_is_to_do(command: Command) -> None:
    agent = busy_agent()
    assert agent.send(command, job(99)) == []
    assert [reply.msg_type for reply in agent.write()] == [MessageType.ACCEPTED] * (WORK_LIMIT + 1)


def test_a_step_that_arrives_after_the_cancel_of_its_job_is_not_begun_but_the_job_is_cleared_up() -> None:
    agent = StillAgent(STEPS)
    cancel = agent.ask(Command.CANCEL, CancelArguments(job_id=job(1).migration.job_id))
    assert cancel.cmd_result == CancelReport(known=False)
    (refused,) = agent.send(Command.COPY_DISK_FILE, job(1))
    assert (refused.msg_type, code_of(refused)) == (MessageType.REFUSED, ErrorCode.MIGRATION_CANCELLED)
    assert agent.ask(Command.FINISH, job(1)).error() is None
    assert agent.ask(Command.COPY_DISK_FILE, job(2)).error() is None


def test_only_a_fresh_greeting_keeps_a_jobs_place(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = StillAgent(STEPS)
    agent.ask(Command.PREPARE_DESTINATION, job(1))
    kept: list[str] = []
    monkeypatch.setattr(agent.agent.jobs, "keep", lambda job_id, _now: kept.append(job_id))
    greeting = Request(
        request_id="e" * 32, agent_ip=SOURCE, cmd=Command.HELLO, cmd_arguments=HelloArguments(job_id="00000001"),
        epoch=agent.responder.epoch, challenge="1-0123456789abcdef")
    agent.responder.receive_datagram(
        seal(AGENT_KEY, Direction.REQUEST, encode(greeting)), CONTROLLER, time.monotonic())
    agent.turn()
    assert kept == []
    agent.send(Command.HELLO, HelloArguments(job_id="00000001"))
    assert kept == ["00000001"]
