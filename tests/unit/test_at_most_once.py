"""Requests over a bad network, to an agent whose journal fails and whose process dies: each of them runs at most once,
and what the controller is told of it is true.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constant import CHALLENGE_SECONDS, GIVE_UP_SECONDS, Command
from tests.unit.pair import CrashError, Network, Pair, answer, changed, error_of, opened, refused, status_of
from udpmodule import Write
from wire.datagram import Dropped
from wire.errors import ErrorCode
from wire.exchange import GaveUp
from wire.facts import HostFacts
from wire.memory import Begun, Ended
from wire.message import Reply, Request

LOSSES = (0.0, 0.05, 0.2, 0.3, 0.5)
CELLS = list(itertools.product(LOSSES, LOSSES, (0.0, 0.1, 0.5), (0.0, 0.25)))
COMMANDS = 200
# As many as controller.py makes.
ATTEMPTS = 3


@dataclass(frozen=True)
class Asked:
    """One request and how it ended for the controller."""

    request: Request
    end: Reply | GaveUp


def ask(pair: Pair, command: Command = Command.PREPARE_DESTINATION) -> list[Asked]:
    """Ask as controller.py does: what was refused as stale is asked for anew, with another HELLO's challenge."""
    asked: list[Asked] = []
    request = pair.request(command)
    for _attempt in range(ATTEMPTS):
        asked.append(follow(pair, request))
        if not is_stale(asked[-1].end):
            break
        greeting = follow(pair, pair.request(Command.HELLO))
        if isinstance(greeting.end, GaveUp):
            break
        facts = greeting.end.cmd_result
        assert isinstance(facts, HostFacts)
        # The agent still has its journal, so the refusal is to be believed.
        assert facts.epoch == request.epoch
        request = changed(pair.request(command), epoch=facts.epoch, challenge=facts.challenge)
    return asked


def follow(pair: Pair, request: Request) -> Asked:
    """One request to its end. The controller gives up after GIVE_UP_SECONDS of silence, not before."""
    began, already_heard = pair.now, len(pair.heard)
    end = pair.run(pair.exchange(request))[-1]
    if isinstance(end, GaveUp):
        last_word, sequence, answered = began, -1, {""}
        for at, datagram in pair.heard[already_heard:]:
            try:
                reply = opened(datagram)
            except (Dropped, ValueError):
                continue
            # A reply that was overtaken, or comes a second time, is no word of how the agent is now.
            news = reply.sequence > sequence or reply.asked not in answered
            if reply.request_id == request.request_id and reply.sequence >= sequence and news:
                last_word, sequence = at, reply.sequence
                answered.add(reply.asked)
        assert pair.now >= last_word + GIVE_UP_SECONDS
    return Asked(request, end)


def is_stale(end: Reply | GaveUp) -> bool:
    """Whether it was refused because its challenge is not fresh."""
    return isinstance(end, Reply) and end.error() is not None and error_of(end) is ErrorCode.REQUEST_STALE


def results_among(pair: Pair, asked: list[Asked], *refusals: ErrorCode) -> int:
    """How many were answered with their result. The rest may have ended in silence, as stale, or in `refusals`; each
    of those must be true, also of what happened after it was said.
    """
    results = 0
    for each in asked:
        request_id, runs = each.request.request_id, pair.executed[each.request.request_id]
        assert runs <= 1
        if isinstance(each.end, GaveUp):
            continue
        if each.end.error() is None:
            assert each.end.cmd_result == pair.answered[request_id]
            assert runs == 1
            results += 1
            continue
        code = error_of(each.end)
        assert code in (ErrorCode.REQUEST_STALE, *refusals)
        journaled = [entry for entry in pair.journal.entries if entry.request_id == request_id]
        if code is ErrorCode.REQUEST_INTERRUPTED:
            assert isinstance(journaled[0], Begun)
            # If anything is written of its end, it is that.
            assert all(isinstance(end, Ended) and end.cmd_result == each.end.cmd_result for end in journaled[1:])
        else:
            assert (runs, journaled) == (0, [])
    return results


# Any network.


@pytest.mark.parametrize(("lose_requests", "lose_replies", "duplicate", "reorder"), CELLS)
def test_on_no_network_does_a_request_run_twice_or_end_with_another_result_than_the_agents(
    lose_requests: float, lose_replies: float, duplicate: float, reorder: float,
) -> None:
    network = Network(drop=lose_requests, lose_replies=lose_replies, duplicate=duplicate, reorder=reorder)
    seed = CELLS.index((lose_requests, lose_replies, duplicate, reorder))
    # With a report on the way where reports can be overtaken.
    pair = Pair(network, seed=seed, work_seconds=2.0 if reorder else 1.0)
    asked = [each for _command in range(COMMANDS) for each in ask(pair)]
    results = results_among(pair, asked)
    if max(lose_requests, lose_replies) <= 0.2:
        assert results == COMMANDS
    else:
        assert results >= 0.9 * COMMANDS


def test_a_request_that_never_got_through_in_time_is_asked_for_anew_and_then_runs() -> None:
    pair = Pair()
    pair.connected = False
    late = pair.request()
    exchange = pair.exchange(late)
    pair.run(exchange, until=lambda: pair.now > 1000.0 + CHALLENGE_SECONDS)
    pair.connected = True
    assert refused(pair.run(exchange)[-1]) is ErrorCode.REQUEST_STALE
    (again,) = ask(pair)
    assert again.request.epoch == late.epoch
    assert again.request.request_id != late.request_id
    assert results_among(pair, [again]) == 1
    assert pair.executed[late.request_id] == 0


@pytest.mark.parametrize("network", [
    Network(drop=0.1, delay=0.4),
    Network(drop=0.1, duplicate=0.3, reorder=0.25, delay=3.0),
    Network(delay=10.0),
    Network(corrupt=0.3, duplicate=0.3),
    Network(truncate=0.3),
    Network(drop=0.2, duplicate=0.3, reorder=0.25, corrupt=0.1, truncate=0.1, delay=0.7),
])
def test_a_slow_path_and_one_that_damages_datagrams_are_no_worse_than_one_that_loses_them(network: Network) -> None:
    pair = Pair(network, seed=7)
    asked = [each for _command in range(COMMANDS) for each in ask(pair)]
    assert results_among(pair, asked) >= 0.95 * COMMANDS
    counts = pair.responder.gate.counters
    assert (counts["dropped: mac"] > 0) == bool(network.corrupt or network.truncate)


def test_over_a_path_that_is_slower_than_a_challenge_lives_nothing_ever_runs() -> None:
    pair = Pair(Network(delay=CHALLENGE_SECONDS + 1.0), patience=3 * GIVE_UP_SECONDS)
    asked = ask(pair)
    assert [refused(each.end) for each in asked] == [ErrorCode.REQUEST_STALE] * ATTEMPTS
    assert not any(pair.executed[each.request.request_id] for each in asked)


@settings(max_examples=40)
@given(
    st.integers(), st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.4),
    st.floats(0, 0.4), st.floats(0, 20), st.floats(1, 120), st.floats(0, 2))
def test_no_network_and_no_slow_disk_makes_a_request_run_twice(
    seed: int, lose_requests: float, lose_replies: float, duplicate: float, reorder: float, corrupt: float,
    truncate: float, delay: float, work_seconds: float, journal_seconds: float,
) -> None:
    network = Network(lose_requests, duplicate, reorder, corrupt, truncate, lose_replies, delay)
    pair = Pair(network, seed=seed, work_seconds=work_seconds)
    pair.journal.seconds = journal_seconds
    asked = [each for _command in range(3) for each in ask(pair)]
    pair.let_pass(200.0)
    assert max(pair.executed.values(), default=0) <= 1
    for each in asked:
        if isinstance(each.end, Reply) and each.end.error() is None:
            assert each.end.cmd_result == pair.answered[each.request.request_id]


# An agent that dies, and one whose disk is full.


@pytest.mark.parametrize(("kind", "moment", "runs", "told"), [
    (Begun, "before", 0, ErrorCode.REQUEST_STALE),
    (Begun, "after", 0, ErrorCode.REQUEST_INTERRUPTED),
    (Ended, "before", 1, ErrorCode.REQUEST_INTERRUPTED),
    (Ended, "after", 1, None),
])
def test_whatever_write_the_agent_dies_at_the_controller_is_told_the_truth(
    kind: type, moment: str, runs: int, told: ErrorCode | None,
) -> None:
    pair = Pair()

    def die(write: Write) -> None:
        if isinstance(write.entries[0], kind) and pair.lives == 1:
            raise CrashError

    setattr(pair.journal, f"{moment}_write", die)
    first = follow(pair, pair.request())
    assert pair.lives == 2
    assert pair.executed[first.request.request_id] == runs
    if told is None:
        assert results_among(pair, [first]) == 1
    else:
        assert error_of(first.end) is told
        assert results_among(pair, [first], told) == 0
        # The agent is there again.
        assert results_among(pair, ask(pair)) == 1


def test_an_agent_that_dies_while_it_works_says_that_the_work_was_interrupted() -> None:
    pair = Pair(work_seconds=30.0)
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: pair.now > 1010.0)
    pair.restart_agent()
    asked = Asked(exchange.request, pair.run(exchange)[-1])
    assert error_of(asked.end) is ErrorCode.REQUEST_INTERRUPTED
    assert results_among(pair, [asked], ErrorCode.REQUEST_INTERRUPTED) == 0
    assert pair.executed[exchange.request.request_id] == 1


@pytest.mark.parametrize("journal_seconds", [0.0, 0.4])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_neither_a_journal_that_fails_nor_an_agent_that_dies_again_and_again_makes_anybody_lie(
    monkeypatch: pytest.MonkeyPatch, loss: float, journal_seconds: float,
) -> None:
    # Now and then the whole journal is written anew, too.
    monkeypatch.setattr("udpmodule.JOURNAL_ENTRIES_LIMIT", 5)
    pair = Pair(Network(drop=loss, duplicate=0.1, reorder=0.25), seed=3, work_seconds=2.0)
    dice = random.Random(4)  # noqa: S311 - not for secrets: it must be repeatable
    written_anew = 0

    def before(_write: Write) -> str | None:
        if dice.random() < 0.02:
            raise CrashError
        return "No space left on device" if dice.random() < 0.1 else None

    def after(write: Write) -> None:
        nonlocal written_anew
        written_anew += write.anew
        if dice.random() < 0.02:
            raise CrashError

    pair.journal.seconds = journal_seconds
    pair.journal.before_write, pair.journal.after_write = before, after
    asked = [each for _command in range(COMMANDS) for each in ask(pair)]
    results = results_among(pair, asked, ErrorCode.REQUEST_INTERRUPTED, ErrorCode.JOURNAL_NOT_WRITTEN)
    assert results >= 0.6 * COMMANDS
    assert pair.lives > 10
    assert written_anew
    told = {error_of(each.end) for each in asked if isinstance(each.end, Reply) and each.end.error() is not None}
    assert told == {ErrorCode.REQUEST_STALE, ErrorCode.REQUEST_INTERRUPTED, ErrorCode.JOURNAL_NOT_WRITTEN}


def test_a_result_that_was_written_is_still_told_after_the_agent_died_and_its_journal_was_written_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("udpmodule.JOURNAL_ENTRIES_LIMIT", 5)
    pair = Pair(work_seconds=1.0)
    asked = [each for _command in range(30) for each in ask(pair)]
    for life in range(2, 5):
        pair.let_pass(60.0)
        pair.restart_agent()
        assert pair.lives == life
        for each in asked:
            # The agent does not look at so many datagrams at once.
            pair.now += 1.0
            assert answer(pair, status_of(each.request)).cmd_result == pair.answered[each.request.request_id]
