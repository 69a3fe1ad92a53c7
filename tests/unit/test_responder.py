"""The agent's side of the protocol: what is fresh, what the same id again is answered, and what a change of keys does
to work that is under way. What its journal has to do with it is in test_responder_journal.py.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

import pytest

from constant import CHALLENGE_SECONDS, RESULTS_KEPT_SECONDS, START_NOTHING, Command, MessageType
from tests.unit.pair import (
    EPOCH,
    Pair,
    answer,
    changed,
    done,
    error_of,
    kinds,
    opened,
    refused,
    result_of,
    sealed,
    status_of,
)
from tests.unit.samples import AGENT_KEY, CONTROLLER, CONTROLLERS, MIGRATION, SOURCE
from wire.access import AddressList, Key
from wire.datagram import Dropped
from wire.errors import ErrorCode, MigrationError
from wire.facts import HostFacts
from wire.message import Reply
from wire.records import CancelReport, Progress, StepArguments, StepReport

OLD, NEW = Key(b"o" * 32), Key(b"n" * 32)


@pytest.fixture
def pair() -> Pair:
    """A pair on a perfect network."""
    return Pair()


# The same id again.


def test_the_same_request_again_gets_the_stored_result_and_does_not_run_again(pair: Pair) -> None:
    request = pair.request()
    done(pair, request)
    for times in (1, 2, 3):
        reply = answer(pair, request)
        assert (reply.msg_type, reply.cmd_result) == (MessageType.RESPONSE, result_of(request))
        assert pair.responder.gate.counters["repeated"] == times
    assert pair.executed[request.request_id] == 1


def test_the_same_id_with_other_content_is_refused_whenever_it_comes_and_changes_nothing(pair: Pair) -> None:
    request = pair.request()
    others = [
        changed(request, cmd_arguments=StepArguments(migration=dataclasses.replace(MIGRATION, domain="VM2"))),
        changed(request, cmd=Command.ROLL_BACK),
        changed(request, agent_ip=MIGRATION.destination),
        changed(request, challenge=pair.responder.challenge(pair.now + 1.0)),
    ]

    def check() -> None:
        for other in others:
            assert refused(answer(pair, other)) is ErrorCode.REQUEST_CONFLICT

    answer(pair, request)
    check()
    pair.let_pass(10.0)
    check()
    assert answer(pair, request).cmd_result == result_of(request)
    pair.restart_agent()
    check()
    assert answer(pair, request).cmd_result == result_of(request)
    pair.let_pass(RESULTS_KEPT_SECONDS)
    check()
    pair.restart_agent()
    check()
    assert pair.executed == {request.request_id: 1}


def test_an_answer_goes_to_where_the_question_came_from_last(pair: Pair) -> None:
    request = pair.request()
    pair.deliver(sealed(request))
    moved = (CONTROLLER[0], 45678)
    ((_datagram, address),) = pair.deliver(sealed(request), moved)
    assert address == moved
    pair.responder.finish(request.request_id, result_of(request), pair.now)
    pair.turn_agent()
    ((_datagram, address),) = pair.responder.datagrams_to_send(pair.now)
    assert address == moved


def test_every_datagram_of_a_request_has_a_number_of_its_own(pair: Pair) -> None:
    pair.run(pair.exchange(pair.request()))
    assert [opened(datagram).sequence for datagram in pair.sent_to_controller] == [0, 1, 2, 3]


# Freshness.


def test_a_request_with_a_challenge_of_thirty_seconds_runs(pair: Pair) -> None:
    request = pair.request()
    pair.now += CHALLENGE_SECONDS
    assert answer(pair, request).msg_type is MessageType.ACCEPTED
    assert pair.executed[request.request_id] == 1


def test_a_request_with_a_challenge_of_thirty_one_seconds_never_runs(pair: Pair) -> None:
    request = pair.request()
    pair.now += 31.0
    assert refused(answer(pair, request)) is ErrorCode.REQUEST_STALE
    assert not pair.executed
    assert pair.journal.entries == []


def test_a_challenge_from_the_future_is_refused(pair: Pair) -> None:
    request = changed(pair.request(), challenge=pair.responder.challenge(pair.now + 5.0))
    assert refused(answer(pair, request)) is ErrorCode.REQUEST_STALE


@pytest.mark.parametrize("challenge", [
    "", "-", "x", "1000", "1000-", "1000-0123456789abcdef", "-1-0", "1e3-0", " 1000-0", "99999999999999999999-0", "²-0",
    "٣-0", "\x00", "1000-0123456789abcdef0123456789abcdef",
])
def test_an_invented_challenge_is_refused(pair: Pair, challenge: str) -> None:
    assert refused(answer(pair, changed(pair.request(), challenge=challenge))) is ErrorCode.REQUEST_STALE
    assert not pair.executed


def test_the_time_in_a_challenge_cannot_be_changed(pair: Pair) -> None:
    second, _, mark = pair.responder.challenge(pair.now).partition("-")
    pair.now += 100.0
    later = f"{int(second) + 100}-{mark}"
    assert refused(answer(pair, changed(pair.request(), challenge=later))) is ErrorCode.REQUEST_STALE


@pytest.mark.parametrize("command", sorted(set(Command) - {Command.STATUS}))
def test_only_what_starts_nothing_needs_no_challenge(pair: Pair, command: Command) -> None:
    request = changed(pair.request(command), epoch="", challenge="")
    first = opened(pair.deliver(sealed(request))[0][0])
    assert (first.msg_type is MessageType.ACCEPTED) == (command in START_NOTHING)
    assert set(pair.executed) == ({request.request_id} if command is Command.HELLO else set())


@pytest.mark.parametrize("journal_lost", [False, True])
def test_a_challenge_of_an_earlier_life_of_the_agent_is_stale(pair: Pair, journal_lost: bool) -> None:
    request = pair.request()
    pair.restart_agent(journal_lost=journal_lost)
    for each in (request, changed(request, epoch=pair.responder.epoch)):
        assert refused(answer(pair, each)) is ErrorCode.REQUEST_STALE
    assert not pair.executed


@pytest.mark.parametrize("journal_lost", [False, True])
def test_a_request_made_for_a_journal_that_was_lost_is_not_begun(pair: Pair, journal_lost: bool) -> None:
    request = pair.request()
    pair.restart_agent(journal_lost=journal_lost)
    reply = answer(pair, changed(request, challenge=pair.responder.challenge(pair.now)))
    assert (reply.msg_type is MessageType.REFUSED) == journal_lost
    assert (request.request_id in pair.executed) == (not journal_lost)


def test_hello_tells_the_epoch_of_the_journal_and_a_challenge_that_is_good_now(pair: Pair) -> None:
    facts = done(pair, pair.request(Command.HELLO))
    assert isinstance(facts, HostFacts)
    assert facts.epoch == EPOCH
    pair.now += CHALLENGE_SECONDS - 1.0
    request = changed(pair.request(), epoch=facts.epoch, challenge=facts.challenge)
    assert answer(pair, request).msg_type is MessageType.ACCEPTED


# STATUS.


def test_status_tells_what_the_request_was_answered_last(pair: Pair) -> None:
    request = pair.request()
    assert answer(pair, request).msg_type is MessageType.ACCEPTED
    for seconds, expected in ((0.5, MessageType.ACCEPTED), (1.0, MessageType.PROGRESS), (2.0, MessageType.RESPONSE)):
        pair.let_pass(seconds)
        reply = answer(pair, status_of(request))
        assert (reply.request_id, reply.cmd, reply.msg_type) == (request.request_id, request.cmd, expected)
    assert pair.executed == {request.request_id: 1}


def test_status_of_an_unknown_request_says_that_it_is_unknown(pair: Pair) -> None:
    request = pair.request()
    reply = answer(pair, status_of(request))
    assert refused(reply) is ErrorCode.REQUEST_UNKNOWN
    assert reply.request_id == request.request_id
    assert not pair.executed


def test_a_status_is_never_a_request_that_others_can_ask_for(pair: Pair) -> None:
    asking = pair.request(Command.STATUS)
    answer(pair, asking)
    assert refused(answer(pair, status_of(asking))) is ErrorCode.REQUEST_UNKNOWN


def test_no_answer_is_much_longer_than_what_it_answers(pair: Pair) -> None:
    stale = changed(pair.request(), challenge="x")
    for request in (pair.request(Command.HELLO), status_of(pair.request()), stale, pair.request(Command.CANCEL)):
        replies = pair.deliver(sealed(request))
        assert sum(len(reply) for reply, _address in replies) < 3 * len(sealed(request))


# Progress and ends.


def test_progress_is_sent_once_a_second_but_a_new_phase_at_once(pair: Pair) -> None:
    request = pair.request()
    answer(pair, request)
    counts = []
    for now, phase in ((0.0, "a"), (0.5, "a"), (0.9, "a"), (1.0, "a"), (1.1, "b"), (1.2, "b"), (2.2, "b")):
        pair.responder.progress(request.request_id, Progress(phase=phase, done=1, total=2), pair.now + now)
        counts.append(len(pair.responder.datagrams_to_send(pair.now)))
    assert counts == [1, 0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("result", [None, "text", CancelReport(known=True), Progress(phase="x", done=1, total=2)])
def test_a_result_that_is_none_of_the_command_is_an_internal_error(pair: Pair, result: object) -> None:
    pair.result_of = lambda _request: result
    last = pair.run(pair.exchange(pair.request()))[-1]
    assert kinds([last]) == ["response"]
    assert error_of(last) is ErrorCode.INTERNAL


def test_nothing_can_be_said_of_a_request_after_its_end(pair: Pair) -> None:
    request = pair.request()
    done(pair, request)
    with pytest.raises(ValueError, match="cannot follow"):
        pair.responder.progress(request.request_id, Progress(phase="x", done=1, total=2), pair.now)
    with pytest.raises(ValueError, match="cannot follow"):
        pair.responder.refuse(request.request_id, MigrationError(ErrorCode.AGENT_STOPPING, {"host": SOURCE}), pair.now)
    assert answer(pair, request).cmd_result == result_of(request)


def test_a_result_with_bytes_that_are_no_text_still_arrives(pair: Pair) -> None:
    reason = "/srv/" + bytes([0xff]).decode("utf-8", "surrogateescape")
    for result in (StepReport(summary=reason), MigrationError(ErrorCode.INTERNAL, {"reason": reason, "host": SOURCE})):
        pair.result_of = lambda _request, result=result: result  # type: ignore[misc]
        last = pair.run(pair.exchange(pair.request()))[-1]
        assert kinds([last]) == ["response"]
        assert "/srv/?" in str(last)


# Keys and lists that change while it runs.


def test_a_controller_is_answered_under_whichever_of_two_keys_it_uses() -> None:
    pair = Pair(keys=(NEW, OLD))
    for key, other in ((OLD, NEW), (NEW, OLD)):
        ((datagram, _address),) = pair.deliver(sealed(pair.request(), key))
        assert opened(datagram, key).msg_type is MessageType.ACCEPTED
        with pytest.raises(Dropped, match="key"):
            opened(datagram, other)


def test_keys_can_be_changed_without_a_stop() -> None:
    pair = Pair(keys=(OLD,), work_seconds=10.0)
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: pair.now > 1004.0)
    pair.responder.reconfigure(CONTROLLERS, (NEW, OLD))
    last = pair.run(exchange)[-1]
    assert isinstance(last, Reply)
    assert last.cmd_result == result_of(exchange.request)
    pair.responder.reconfigure(CONTROLLERS, (NEW,))
    pair.keys = (NEW,)
    request = pair.request()
    assert done(pair, request) == result_of(request)


def test_a_key_that_was_taken_away_is_not_heard_and_gets_no_word_more_but_the_result_is_there_under_a_new_one() -> None:
    pair = Pair(keys=(OLD,), work_seconds=10.0)
    request = pair.request()
    ((datagram, _address),) = pair.deliver(sealed(request, OLD))
    assert opened(datagram, OLD).msg_type is MessageType.ACCEPTED
    pair.let_pass(3.5)
    assert len(pair.sent_to_controller) == 3
    pair.responder.reconfigure(CONTROLLERS, (NEW,))
    for unheard in (sealed(request, OLD), sealed(status_of(request), OLD), sealed(pair.request(), OLD)):
        assert pair.deliver(unheard) == []
    assert pair.responder.gate.counters["dropped: key"] == 3
    pair.let_pass(10.0)
    assert len(pair.sent_to_controller) == 3
    for asked in (status_of(request), request):
        ((datagram, _address),) = pair.deliver(sealed(asked, NEW))
        assert opened(datagram, NEW).cmd_result == result_of(request)
    assert pair.executed == {request.request_id: 1}


def test_work_goes_on_under_a_new_key_as_soon_as_it_was_asked_for_under_it() -> None:
    pair = Pair(keys=(OLD,), work_seconds=10.0)
    request = pair.request()
    pair.deliver(sealed(request, OLD))
    pair.responder.reconfigure(CONTROLLERS, (NEW,))
    pair.deliver(sealed(status_of(request), NEW))
    pair.let_pass(10.0)
    assert opened(pair.sent_to_controller[-1], NEW).cmd_result == result_of(request)


def test_a_list_that_was_read_again_decides_who_is_heard_from_then_on(pair: Pair) -> None:
    other = ("192.0.2.77", 8001)
    assert pair.deliver(sealed(pair.request()), other) == []
    pair.responder.reconfigure(AddressList(Path("x"), (ipaddress.ip_network(other[0]),)), (AGENT_KEY,))
    assert len(pair.deliver(sealed(pair.request()), other)) == 1
    assert pair.deliver(sealed(pair.request()), CONTROLLER) == []
    assert pair.responder.gate.counters["dropped: source"] == 2
    assert len(pair.executed) == 1
