"""What an agent remembers of requests: bounded in bytes and in number, and complete enough to be written down and read
back.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import (
    CHALLENGE_SECONDS,
    IDS_KEPT_SECONDS,
    RESULTS_KEPT_SECONDS,
    UNJOURNALED_KEPT_SECONDS,
    Command,
    DomainState,
    MessageType,
)
from tests.unit.pair import WALL, Pair, answer, changed, done, refused, result_of, sealed, status_of
from tests.unit.samples import CONTROLLER, HOST_FACTS, SOURCE
from wire.errors import ErrorCode
from wire.memory import _OVERHEAD, Asker, Begun, Ended, Entry, Memory, Remembered, Seen
from wire.message import Reply, Request, encode
from wire.records import Obstacle, RollBackReport, StepReport

NOW = 1000.0


def name(number: int) -> str:
    """The id of the request with that number."""
    return f"{number:032x}"


def memory(entries: Iterable[Entry] = (), *, wall: float = WALL) -> Memory:
    """A memory at NOW with what a journal holds."""
    made = Memory(NOW, wall)
    made.restore(entries)
    return made


def remember(
    memory: Memory, number: int, *, command: Command = Command.FINISH, begun: bool = True, result: object = None,
    now: float = NOW,
) -> Remembered:
    """Put a request into it, with its result if there is one."""
    request = Remembered(
        request_id=name(number), digest=f"digest {number}", agent_ip=SOURCE, cmd=command, asked_by=CONTROLLER[0],
        changed=now, job_id="0badcafe", domain="VM1", begun=begun, asker=Asker(CONTROLLER, "0d55a2f7"))
    memory.add(request)
    if result is not None:
        memory.answered(request, Reply(
            msg_type=MessageType.RESPONSE, request_id=request.request_id, agent_ip=SOURCE, cmd=command, sequence=1,
            cmd_result=result), now)
    return request


def begun(number: int, at: float = WALL) -> Begun:
    """The entry of a request that was begun then."""
    return Begun(
        request_id=name(number), digest=f"digest {number}", agent_ip=SOURCE, cmd=Command.FINISH,
        asked_by=CONTROLLER[0], at=round(at), job_id="0badcafe", domain="VM1")


def ended(number: int, summary: str = "done", at: float = WALL) -> Ended:
    """The entry of its end."""
    return Ended(request_id=name(number), cmd=Command.FINISH, at=round(at), cmd_result=StepReport(summary=summary))


def known(memory: Memory, numbers: Iterable[int]) -> str:
    """For each request a letter: R for its result or state, s if only its id is known, - if nothing is."""
    return "".join(
        "R" if memory.find(name(number)) else "s" if memory.seen(name(number)) else "-" for number in numbers)


# How much.


def test_the_results_never_take_more_than_their_limit_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.memory.RESULTS_LIMIT", 50_000)
    kept = memory()
    for number in range(200):
        request = remember(kept, number, result=StepReport(summary="x" * 3000))
        assert request.reply is not None
        # 2000 for what stands around it.
        assert len(kept) <= 50_000 // (2000 + len(encode(request.reply)))
    assert known(kept, range(200)) == "s" * 191 + "R" * 9


def test_what_is_still_worked_on_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.memory.RESULTS_LIMIT", 10_000)
    kept = memory()
    remember(kept, 0)
    for number in range(1, 20):
        remember(kept, number, result=StepReport(summary="x"))
    kept.forget_old(NOW + 2 * IDS_KEPT_SECONDS)
    assert known(kept, range(20)) == "R" + "-" * 19


def test_no_more_ids_than_their_limit_are_remembered_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.memory.RESULTS_LIMIT", 5000)
    monkeypatch.setattr("wire.memory.IDS_LIMIT", 10)
    kept = memory()
    for number in range(50):
        remember(kept, number, result=StepReport(summary="x"))
        assert known(kept, range(50)).count("s") <= 10
    assert known(kept, range(50)) == "-" * 38 + "s" * 10 + "R" * 2
    again = memory(kept.entries())
    assert known(again, range(50)) == known(kept, range(50))


def test_a_result_that_is_larger_than_the_limit_is_told_once_and_then_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.memory.RESULTS_LIMIT", 3000)
    pair = Pair()
    pair.result_of = lambda _request: StepReport(summary="x" * 900)
    request = pair.request()
    assert done(pair, request) == StepReport(summary="x" * 900)
    pair.result_of = lambda _request: StepReport(summary="x" * 2000)
    longer = pair.request()
    exchange = pair.exchange(longer)
    pair.run(exchange)
    for each in (request, longer):
        assert refused(answer(pair, each)) is ErrorCode.REQUEST_EXPIRED
    assert set(pair.executed.values()) == {1}


def test_what_was_dropped_for_want_of_room_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.memory.RESULTS_LIMIT", 10_000)
    monkeypatch.setattr("wire.memory.IDS_LIMIT", 20)
    pair = Pair(work_seconds=1.0)
    requests = []
    for _each in range(60):
        requests.append(pair.request())
        done(pair, requests[-1])
    # By then nothing of what was dropped is fresh.
    pair.now += CHALLENGE_SECONDS + 1.0
    for _life in range(2):
        told = []
        for request in requests:
            pair.now += 0.1
            reply = answer(pair, request)
            told.append(refused(reply) if reply.error() else reply.cmd_result)
        assert told[-4:] == [result_of(request) for request in requests[-4:]]
        assert told[:-4] == [ErrorCode.REQUEST_STALE] * 36 + [ErrorCode.REQUEST_EXPIRED] * 20
        pair.restart_agent()
    assert set(pair.executed.values()) == {1}


def test_a_remembered_request_takes_no_more_memory_than_is_reckoned_for_it() -> None:
    pair = Pair()
    hello = pair.request(Command.HELLO)
    requests = [changed(hello, request_id=name(number)) for number in range(500)]
    datagrams = [sealed(request) for request in requests]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for datagram in datagrams:
            pair.now += 0.05
            pair.deliver(datagram)
        assert len(pair.executed) == 500
        # What only the pair keeps.
        pair.executed.clear()
        pair.answered.clear()
        pair.begun.clear()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    reply = Reply(
        msg_type=MessageType.RESPONSE, request_id=name(0), agent_ip=SOURCE, cmd=Command.HELLO, sequence=1,
        cmd_result=HOST_FACTS)
    assert taken < 500 * (_OVERHEAD + len(encode(reply)))


# How long.


@pytest.mark.parametrize(("command", "was_begun", "kept_for", "then"), [
    (Command.FINISH, True, RESULTS_KEPT_SECONDS, "s"),
    (Command.FINISH, False, UNJOURNALED_KEPT_SECONDS, "-"),
    (Command.HELLO, True, UNJOURNALED_KEPT_SECONDS, "-"),
])
def test_an_answer_is_kept_for_its_time_and_not_longer(
    command: Command, was_begun: bool, kept_for: float, then: str,
) -> None:
    kept = memory()
    result = HOST_FACTS if command is Command.HELLO else StepReport(summary="x")
    remember(kept, 0, command=command, begun=was_begun, result=result)
    kept.forget_old(NOW + kept_for)
    assert known(kept, [0]) == "R"
    kept.forget_old(NOW + kept_for + 0.001)
    assert known(kept, [0]) == then


def test_an_id_is_kept_for_its_time_after_the_end_of_its_request_and_not_longer() -> None:
    kept = memory()
    remember(kept, 0, result=StepReport(summary="x"), now=NOW + 100.0)
    kept.forget_old(NOW + 100.0 + IDS_KEPT_SECONDS)
    assert known(kept, [0]) == "s"
    assert kept.seen(name(0)) == "digest 0"
    kept.forget_old(NOW + 100.0 + IDS_KEPT_SECONDS + 0.001)
    assert known(kept, [0]) == "-"


@pytest.mark.parametrize(("command", "result", "expected"), [
    # Whoever goes on with a move of days has to know that the destination is prepared.
    (Command.EXTRACT_CONFIGURE_FILE, StepReport(summary="x"), "RR"),
    (Command.ROLL_BACK, RollBackReport(state=DomainState.ABSENT, removed=(), cleared=False), "RR"),
    # Of a job that has ended nothing stays longer than that, least of all its beginning alone.
    (Command.FINISH, StepReport(summary="x"), "ss"),
    (Command.ROLL_BACK, RollBackReport(state=DomainState.ABSENT, removed=(), cleared=True), "ss"),
])
def test_what_was_done_in_a_job_is_known_as_long_as_it_is_open(
    command: Command, result: object, expected: str,
) -> None:
    kept = memory()
    remember(kept, 0, command=Command.PREPARE_DESTINATION, result=StepReport(summary="x"))
    last = NOW + RESULTS_KEPT_SECONDS / 2
    remember(kept, 1, command=command, result=result, now=last)
    kept.forget_old(last + RESULTS_KEPT_SECONDS)
    assert known(kept, [0, 1]) == "RR"
    kept.forget_old(last + RESULTS_KEPT_SECONDS + 1.0)
    assert known(kept, [0, 1]) == expected
    kept.forget_old(last + IDS_KEPT_SECONDS + 1.0)
    assert known(kept, [0, 1]) == "--"


@pytest.mark.parametrize(("age", "expected"), [
    (0.0, "R"), (RESULTS_KEPT_SECONDS - 1.0, "R"), (RESULTS_KEPT_SECONDS + 1.0, "s"), (IDS_KEPT_SECONDS - 1.0, "s"),
    (IDS_KEPT_SECONDS + 1.0, "-"), (-1_000_000.0, "R"),
])
def test_time_goes_on_while_the_agent_is_down_but_never_back(age: float, expected: str) -> None:
    entries = (begun(0, WALL - age), ended(0, at=WALL - age), Seen(request_id=name(1), digest="d", at=int(WALL - age)))
    kept = memory(entries)
    assert known(kept, [0]) == expected
    assert known(kept, [1]) == ("-" if expected == "-" else "s")
    # What comes from the future, because the clock was put back, is as old as the agent's start, not younger.
    kept.forget_old(NOW + IDS_KEPT_SECONDS + 1.0)
    assert known(kept, [0, 1]) == "--"


# What is written down and read back.


def test_a_request_without_an_end_was_interrupted() -> None:
    kept = memory([begun(0), begun(1), ended(1)])
    one, other = kept.find(name(0)), kept.find(name(1))
    assert one is not None
    assert one.reply is not None
    assert one.reply.cmd_result == Obstacle(
        code=ErrorCode.REQUEST_INTERRUPTED, facts={"host": SOURCE, "command": "FINISH", "domain": "VM1"})
    assert other is not None
    assert other.reply is not None
    assert other.reply.cmd_result == StepReport(summary="done")


def test_work_that_was_interrupted_after_days_is_told_as_interrupted_too() -> None:
    kept = memory([begun(0, WALL - 2 * RESULTS_KEPT_SECONDS)])
    interrupted = kept.find(name(0))
    assert interrupted is not None
    assert interrupted.reply is not None
    error = interrupted.reply.error()
    assert error is not None
    assert error.code is ErrorCode.REQUEST_INTERRUPTED


def test_an_end_without_a_beginning_says_nothing() -> None:
    assert memory([ended(0)]).entries() == ()


def test_nothing_of_what_was_never_begun_or_never_work_is_written_down() -> None:
    kept = memory()
    remember(kept, 0, begun=False, result=StepReport(summary="x"))
    remember(kept, 1, command=Command.HELLO, result=HOST_FACTS)
    remember(kept, 2, begun=False)
    assert kept.entries() == ()


def test_what_is_written_down_is_all_that_was_known() -> None:
    entries = (
        Seen(request_id=name(0), digest="d", at=round(WALL) - 5), begun(1), ended(1, "one"), begun(2), ended(2, "two"))
    assert memory(entries).entries() == entries
    shuffled = (entries[3], entries[1], entries[4], entries[0], entries[2])
    assert set(map(str, memory(shuffled).entries())) == set(map(str, entries))


@given(st.lists(st.tuples(
    st.sampled_from(["begin", "end", "wait"]), st.integers(0, 9), st.integers(0, 20 * 24 * 3600)), max_size=30))
def test_a_journal_written_from_memory_makes_the_same_memory(story: list[tuple[str, int, int]]) -> None:
    kept, now = memory(), NOW
    for what, number, seconds in story:
        request = kept.find(name(number))
        if what == "wait":
            now += seconds
            kept.forget_old(now)
        elif what == "begin" and known(kept, [number]) == "-":
            remember(kept, number, now=now)
        elif what == "end" and request is not None and not request.ended:
            remember(kept, number, result=StepReport(summary=f"at {now}"), now=now)
    later = Memory(now, WALL + now - NOW)
    later.restore(kept.entries())
    for number in range(10):
        before, after = kept.find(name(number)), later.find(name(number))
        if before is None or before.ended:
            assert known(later, [number]) == known(kept, [number])
        if before is not None and before.ended:
            assert after is not None
            assert (after.digest, after.cmd, after.changed) == (before.digest, before.cmd, before.changed)
            assert after.reply is not None
            assert before.reply is not None
            assert after.reply.cmd_result == before.reply.cmd_result
    # Once more is no more.
    once_more = Memory(now, WALL + now - NOW)
    once_more.restore(later.entries())
    assert once_more.entries() == later.entries()


def test_the_state_of_a_request_that_is_dropped_can_no_longer_be_asked_for() -> None:
    pair = Pair()
    request: Request = pair.request(Command.CANCEL)
    pair.deliver(sealed(request))
    assert answer(pair, status_of(request)).msg_type is MessageType.RESPONSE
    pair.let_pass(2 * UNJOURNALED_KEPT_SECONDS)
    assert refused(answer(pair, status_of(request))) is ErrorCode.REQUEST_UNKNOWN
