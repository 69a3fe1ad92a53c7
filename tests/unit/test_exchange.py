"""Exchange and Responder together on a bad network: every request runs at most once and its result arrives.

The clock and the network are the pair's own; nothing here opens a socket or waits.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constant import (
    ANSWERED_AT_ONCE,
    CHALLENGE_SECONDS,
    DATAGRAM_LIMIT,
    GIVE_UP_SECONDS,
    START_NOTHING,
    Command,
    ErrorCode,
    MessageType,
    MigrationError,
)
from tests.unit.pair import Network, Pair, result_of
from tests.unit.samples import AGENT_KEY, CONTROLLER, CONTROLLERS, DESTINATION, MASTER, SOURCE
from udpmodule import Direction, Exchange, GaveUp, Responder, seal, unseal
from wire.access import Key
from wire.message import Reply, Request, decode, encode, to_wire
from wire.records import Progress, StepReport


@pytest.fixture
def pair() -> Pair:
    """A pair on a perfect network."""
    return Pair()


def opened(datagram: bytes) -> Reply:
    """The reply in a datagram that the agent sent."""
    message = decode(unseal(datagram, {AGENT_KEY.id: AGENT_KEY}, Direction.REPLY)[1])
    assert isinstance(message, Reply)
    return message


def sealed(request: Request) -> bytes:
    """A request as its datagram."""
    return seal(AGENT_KEY, Direction.REQUEST, encode(request))


def answer(pair: Pair, request: Request) -> Reply:
    """What the agent answers at once to a request; it must be one datagram."""
    ((datagram, address),) = pair.deliver(sealed(request))
    assert address == CONTROLLER
    return opened(datagram)


def error_of(reply: Reply) -> ErrorCode:
    """The code of the error in a reply."""
    error = reply.error()
    assert error is not None
    return error.code


def kinds(events: list[Reply | GaveUp]) -> list[str]:
    """The events in words."""
    return ["gave up" if isinstance(event, GaveUp) else event.msg_type.value for event in events]


def changed(request: Request, **changes: Any) -> Request:
    """The request with some fields changed."""
    return dataclasses.replace(request, **changes)


# At most once, and to its end.


@pytest.mark.parametrize("drop", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("duplicate", [0.0, 0.5])
@pytest.mark.parametrize("reorder", [0.0, 0.5])
def test_a_request_runs_at_most_once_and_its_result_arrives(
    drop: float, duplicate: float, reorder: float,
) -> None:
    pair = Pair(Network(drop=drop, duplicate=duplicate, reorder=reorder), seed=2)
    for _each in range(40):
        request = pair.request()
        began = pair.now
        events = pair.run(pair.exchange(request))
        last = events[-1]
        assert pair.executed[request.request_id] <= 1
        if isinstance(last, GaveUp):
            assert pair.now - began >= GIVE_UP_SECONDS
        elif last.msg_type is MessageType.REFUSED:
            # The challenge ran out while nothing got through: then it has not run, nor ever will.
            assert error_of(last) is ErrorCode.REQUEST_STALE
            assert pair.executed[request.request_id] == 0
            assert pair.now - began >= CHALLENGE_SECONDS
        else:
            assert last.cmd_result == {"value": to_wire(result_of(request))}
            assert pair.executed[request.request_id] == 1
        if drop == 0.0:
            assert isinstance(last, Reply)
            assert last.msg_type is MessageType.RESPONSE
    assert sum(pair.executed.values()) >= 38


def test_a_damaged_datagram_is_as_good_as_a_lost_one() -> None:
    pair = Pair(Network(corrupt=0.5, duplicate=0.3), seed=5)
    for _each in range(40):
        request = pair.request()
        last = pair.run(pair.exchange(request))[-1]
        assert isinstance(last, Reply)
        assert last.cmd_result == {"value": to_wire(result_of(request))}
    assert set(pair.executed.values()) == {1}
    dropped = {name for name in pair.responder.counters if name.startswith("dropped")}
    assert "dropped: mac" in dropped


@settings(max_examples=40, deadline=None)
@given(st.integers(), st.floats(0, 0.6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.4), st.floats(1, 120))
def test_no_network_makes_a_request_run_twice_or_end_with_another_ones_result(
    seed: int, drop: float, duplicate: float, reorder: float, corrupt: float, work_seconds: float,
) -> None:
    pair = Pair(Network(drop, duplicate, reorder, corrupt), seed=seed, work_seconds=work_seconds)
    for _each in range(3):
        request = pair.request()
        last = pair.run(pair.exchange(request))[-1]
        assert pair.executed[request.request_id] <= 1
        if isinstance(last, Reply) and last.msg_type is MessageType.RESPONSE:
            assert last.cmd_result == {"value": to_wire(result_of(request))}


def test_a_quiet_network_needs_one_datagram_for_the_request_and_one_for_each_answer(pair: Pair) -> None:
    events = pair.run(pair.exchange(pair.request()))
    assert kinds(events) == ["accepted", "progress", "progress", "response"]
    assert len(pair.sent_to_agent) == 1
    assert len(pair.sent_to_controller) == 4


def test_the_result_is_asked_for_when_the_agents_own_message_was_lost(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: bool(pair.executed))
    pair.connected = False
    pair.run(exchange, until=lambda: len(pair.sent_to_controller) >= 4)
    pair.connected = True
    last = pair.run(exchange)[-1]
    assert isinstance(last, Reply)
    assert last.msg_type is MessageType.RESPONSE
    assert len(pair.executed) == 1


# Giving up.


def test_an_agent_that_never_answers_is_given_up_after_the_patience_and_not_before(pair: Pair) -> None:
    pair.connected = False
    began = pair.now
    assert kinds(pair.run(pair.exchange(pair.request()))) == ["gave up"]
    assert pair.now == began + GIVE_UP_SECONDS


def test_a_shorter_patience_is_kept_too(pair: Pair) -> None:
    pair.connected = False
    began = pair.now
    assert kinds(pair.run(pair.exchange(pair.request(Command.HELLO), patience=10.0))) == ["gave up"]
    assert pair.now == began + 10.0


def test_patience_counts_from_the_last_word_of_the_agent() -> None:
    pair = Pair(work_seconds=300.0)
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: pair.now >= 1200.0)
    pair.connected = False
    cut = pair.now
    assert kinds(pair.run(exchange))[-1] == "gave up"
    assert GIVE_UP_SECONDS - 1.0 <= pair.now - cut <= GIVE_UP_SECONDS + 0.1


def test_work_that_takes_longer_than_the_patience_is_waited_for() -> None:
    pair = Pair(work_seconds=600.0)
    assert kinds(pair.run(pair.exchange(pair.request())))[-1] == "response"


def gave_up(events: list[Reply | GaveUp]) -> GaveUp:
    """The last event, which must be that."""
    assert isinstance(events[-1], GaveUp)
    return events[-1]


def test_silence_from_the_start_and_silence_after_a_word_are_both_told_as_silence() -> None:
    pair = Pair(work_seconds=300.0)
    pair.connected = False
    assert not gave_up(pair.run(pair.exchange(pair.request()))).answered
    pair.connected = True
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: pair.now >= 1200.0)
    pair.connected = False
    assert not gave_up(pair.run(exchange)).answered


def test_work_without_an_end_is_given_up_at_its_limit_although_the_agent_answers() -> None:
    pair = Pair(work_seconds=600.0)
    began = pair.now
    events = pair.run(pair.exchange(pair.request(), limit=45.0))
    assert gave_up(events).answered
    assert pair.now == began + 45.0


def test_a_silent_agent_at_the_limit_is_told_as_silent() -> None:
    pair = Pair(work_seconds=600.0)
    pair.connected = False
    began = pair.now
    assert not gave_up(pair.run(pair.exchange(pair.request(), limit=45.0))).answered
    assert pair.now == began + 45.0


def test_the_patience_ends_before_a_limit_that_is_longer(pair: Pair) -> None:
    pair.connected = False
    began = pair.now
    assert not gave_up(pair.run(pair.exchange(pair.request(), patience=10.0, limit=45.0))).answered
    assert pair.now == began + 10.0


def test_work_that_ends_before_its_limit_is_not_given_up() -> None:
    pair = Pair(work_seconds=44.0)
    assert kinds(pair.run(pair.exchange(pair.request(), limit=45.0)))[-1] == "response"


def test_nothing_is_sent_after_the_end(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    pair.run(exchange)
    assert exchange.ended
    assert exchange.datagrams_to_send(pair.now + 1000.0) == []
    exchange.handle_timer(pair.now + 1000.0)
    assert exchange.next_event() is None


# Freshness.


def test_a_request_with_a_challenge_of_thirty_seconds_runs(pair: Pair) -> None:
    request = pair.request()
    pair.now += CHALLENGE_SECONDS
    assert answer(pair, request).msg_type is MessageType.ACCEPTED
    assert pair.executed[request.request_id] == 1


def test_a_request_with_a_challenge_of_thirty_one_seconds_never_runs(pair: Pair) -> None:
    request = pair.request()
    pair.now += 31.0
    reply = answer(pair, request)
    assert (reply.msg_type, error_of(reply)) == (MessageType.REFUSED, ErrorCode.REQUEST_STALE)
    assert not pair.executed


def test_a_challenge_from_the_future_is_refused(pair: Pair) -> None:
    request = changed(pair.request(), challenge=pair.responder.challenge(pair.now + 5.0))
    assert error_of(answer(pair, request)) is ErrorCode.REQUEST_STALE


@pytest.mark.parametrize("challenge", [
    "", "-", "x", "1000", "1000-", "1000-0123456789abcdef", "-1-0", "1e3-0", " 1000-0", "99999999999999999999-0", "²-0",
    "٣-0", "\x00", "1000-0123456789abcdef0123456789abcdef",
])
def test_an_invented_challenge_is_refused(pair: Pair, challenge: str) -> None:
    assert error_of(answer(pair, changed(pair.request(), challenge=challenge))) is ErrorCode.REQUEST_STALE
    assert not pair.executed


def test_the_time_in_a_challenge_cannot_be_changed(pair: Pair) -> None:
    second, _, mark = pair.responder.challenge(pair.now).partition("-")
    pair.now += 100.0
    later = f"{int(second) + 100}-{mark}"
    assert error_of(answer(pair, changed(pair.request(), challenge=later))) is ErrorCode.REQUEST_STALE


def test_a_request_from_before_a_restart_of_the_agent_never_runs(pair: Pair) -> None:
    request = pair.request()
    pair.restart_agent()
    assert error_of(answer(pair, request)) is ErrorCode.REQUEST_STALE
    fresh_challenge = changed(request, challenge=pair.responder.challenge(pair.now))
    assert error_of(answer(pair, fresh_challenge)) is ErrorCode.REQUEST_STALE
    fresh_epoch = changed(request, epoch=pair.responder.epoch)
    assert error_of(answer(pair, fresh_epoch)) is ErrorCode.REQUEST_STALE
    assert not pair.executed


def test_each_start_of_an_agent_has_an_epoch_of_its_own() -> None:
    assert len({Responder(CONTROLLERS, (AGENT_KEY,)).epoch for _start in range(20)}) == 20


@pytest.mark.parametrize("command", sorted(set(Command) - {Command.STATUS}))
def test_only_what_starts_nothing_needs_no_challenge(pair: Pair, command: Command) -> None:
    request = changed(pair.request(command), epoch="", challenge="")
    reply = answer(pair, request)
    assert (reply.msg_type is MessageType.ACCEPTED) == (command in START_NOTHING)
    assert (request.request_id in pair.executed) == (command is Command.HELLO)


def test_a_recorded_request_does_not_run_again_even_when_its_result_is_forgotten(pair: Pair) -> None:
    request = pair.request()
    pair.run(pair.exchange(request))
    pair.now += 25 * 3600.0
    pair.run(pair.exchange(pair.request(Command.HELLO)))
    assert error_of(answer(pair, request)) is ErrorCode.REQUEST_STALE
    assert pair.executed[request.request_id] == 1


# The same id again.


def test_the_same_request_again_gets_the_stored_result_and_does_not_run_again(pair: Pair) -> None:
    request = pair.request()
    pair.run(pair.exchange(request))
    again = [answer(pair, request) for _time in range(3)]
    assert all(reply.msg_type is MessageType.RESPONSE for reply in again)
    assert all(reply.cmd_result == {"value": to_wire(result_of(request))} for reply in again)
    assert pair.executed[request.request_id] == 1
    assert pair.responder.counters["repeated"] == 3


def test_a_result_is_kept_for_a_day(pair: Pair) -> None:
    request = pair.request()
    pair.run(pair.exchange(request))
    pair.now += 23 * 3600.0
    pair.run(pair.exchange(pair.request(Command.HELLO)))
    assert answer(pair, request).cmd_result == {"value": to_wire(result_of(request))}


def test_the_same_id_with_other_content_is_refused_and_changes_nothing(pair: Pair) -> None:
    request = pair.request()
    pair.run(pair.exchange(request))
    for other in (changed(request, cmd_arguments={"n": 2}), changed(request, cmd=Command.ROLL_BACK)):
        assert error_of(answer(pair, other)) is ErrorCode.REQUEST_CONFLICT
    assert pair.executed[request.request_id] == 1
    assert answer(pair, request).msg_type is MessageType.RESPONSE


def test_an_answer_goes_to_where_the_question_came_from_last(pair: Pair) -> None:
    request = pair.request()
    pair.deliver(sealed(request))
    moved = (CONTROLLER[0], 45678)
    ((_, address),) = pair.deliver(sealed(request), moved)
    assert address == moved
    pair.responder.finish(request.request_id, result_of(request), pair.now)
    ((_, address),) = pair.responder.datagrams_to_send()
    assert address == moved


def test_every_datagram_of_a_request_has_a_number_of_its_own(pair: Pair) -> None:
    pair.run(pair.exchange(pair.request()))
    assert [opened(datagram).sequence for datagram in pair.sent_to_controller] == [0, 1, 2, 3]


# What the controller makes of late, foreign and impossible answers.


def replies(pair: Pair, request: Request) -> dict[str, bytes]:
    """Each reply of a finished request, sealed, by what it says."""
    responder = pair.responder
    responder.receive_datagram(sealed(request), CONTROLLER, pair.now)
    assert responder.next_event() is not None
    responder.accept(request.request_id, pair.now)
    for done in (1, 2):
        pair.now += 2.0
        responder.progress(request.request_id, Progress("working", done, 2), pair.now)
    responder.finish(request.request_id, result_of(request), pair.now)
    datagrams = [datagram for datagram, _address in responder.datagrams_to_send()]
    return dict(zip(("accepted", "progress 1", "progress 2", "response"), datagrams, strict=True))


def test_progress_that_was_overtaken_is_ignored(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("accepted", "progress 2", "progress 1", "accepted", "progress 2"):
        exchange.receive_datagram(said[name], pair.now)
    seen = []
    while isinstance(event := exchange.next_event(), Reply):
        seen.append(event.cmd_result.get("done"))
    assert seen == [None, 2]


def test_nothing_that_comes_after_the_result_changes_it(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("response", "accepted", "progress 1", "response", "progress 2"):
        exchange.receive_datagram(said[name], pair.now)
    event = exchange.next_event()
    assert isinstance(event, Reply)
    assert event.msg_type is MessageType.RESPONSE
    assert exchange.next_event() is None


def test_the_result_ends_a_request_whose_acceptance_was_lost(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    assert exchange.receive_datagram(replies(pair, exchange.request)["response"], pair.now)
    assert exchange.ended


def test_a_reply_to_another_request_is_left_alone(pair: Pair) -> None:
    first, second = pair.exchange(pair.request()), pair.exchange(pair.request())
    said = replies(pair, first.request)
    assert not second.receive_datagram(said["response"], pair.now)
    assert second.next_event() is None
    assert not second.ended


def test_a_stranger_cannot_keep_a_controller_waiting_or_tell_it_anything(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    body = unseal(said["response"], {AGENT_KEY.id: AGENT_KEY}, Direction.REPLY)[1]
    forged = [
        seal(None, Direction.REPLY, body), seal(MASTER, Direction.REPLY, body),
        seal(MASTER.for_agent(DESTINATION), Direction.REPLY, body), seal(AGENT_KEY, Direction.REQUEST, body),
        seal(AGENT_KEY, Direction.REPLY, b"nonsense"), said["response"][:-1], b"", b"\xff" * 1300,
        sealed(exchange.request),
    ]
    timer = exchange.get_timer()
    for datagram in forged:
        assert not exchange.receive_datagram(datagram, pair.now + 0.5)
    assert exchange.next_event() is None
    assert exchange.get_timer() == timer
    exchange.handle_timer(1000.0 + GIVE_UP_SECONDS)
    assert isinstance(exchange.next_event(), GaveUp)


def test_a_refusal_ends_a_request_with_its_error(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    pair.restart_agent()
    (refusal,) = pair.run(exchange)
    assert isinstance(refusal, Reply)
    assert error_of(refusal) is ErrorCode.REQUEST_STALE


# An agent that was restarted in the middle.


@pytest.mark.parametrize("seconds", [0.5, 10.0])
def test_an_agent_that_was_restarted_in_the_middle_of_the_work_ends_the_request(seconds: float) -> None:
    pair = Pair(work_seconds=300.0)
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: bool(exchange.datagrams_to_send(0.0)) or pair.now >= 1000.0 + seconds)
    assert pair.executed[exchange.request.request_id] == 1
    pair.restart_agent()
    restarted = pair.now
    events = pair.run(exchange)
    assert isinstance(events[-1], Reply)
    assert (events[-1].msg_type, error_of(events[-1])) == (MessageType.REFUSED, ErrorCode.REQUEST_UNKNOWN)
    assert exchange.ended
    assert pair.now - restarted < 10.0
    assert pair.executed[exchange.request.request_id] == 1


def refusal(request: Request, code: ErrorCode, sequence: int = 0) -> bytes:
    """A refusal of the request with that code, as an agent would send it."""
    error = {"error": {"code": code.value, "facts": {"host": SOURCE}}}
    reply = Reply(MessageType.REFUSED, request.request_id, request.agent_ip, request.cmd, error, sequence)
    return seal(AGENT_KEY, Direction.REPLY, encode(reply))


@pytest.mark.parametrize("before", [["accepted"], ["accepted", "progress 1"], ["accepted", "progress 2"]])
def test_only_unknown_ends_a_request_that_was_accepted(pair: Pair, before: list[str]) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in before:
        exchange.receive_datagram(said[name], pair.now)
    for code in (ErrorCode.REQUEST_STALE, ErrorCode.AGENT_STOPPING, ErrorCode.REQUEST_CONFLICT):
        exchange.receive_datagram(refusal(exchange.request, code), pair.now)
        assert not exchange.ended
    exchange.receive_datagram(refusal(exchange.request, ErrorCode.REQUEST_UNKNOWN), pair.now)
    assert exchange.ended
    events = []
    while (event := exchange.next_event()) is not None:
        events.append(event)
    assert kinds(events)[-1] == "refused"
    assert exchange.datagrams_to_send(pair.now + 100.0) == []


def test_unknown_after_the_result_changes_nothing(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    exchange.receive_datagram(replies(pair, exchange.request)["response"], pair.now)
    exchange.receive_datagram(refusal(exchange.request, ErrorCode.REQUEST_UNKNOWN, 9), pair.now)
    event = exchange.next_event()
    assert isinstance(event, Reply)
    assert event.msg_type is MessageType.RESPONSE
    assert exchange.next_event() is None


def test_an_agent_whose_acceptance_was_lost_is_heard_by_its_progress(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("progress 1", "progress 2"):
        pair.now += GIVE_UP_SECONDS - 1.0
        exchange.receive_datagram(said[name], pair.now)
        exchange.handle_timer(pair.now)
    assert not exchange.ended


def test_an_old_reply_that_was_overtaken_does_not_count_as_being_heard(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("accepted", "progress 2"):
        exchange.receive_datagram(said[name], pair.now)
    pair.now += GIVE_UP_SECONDS - 1.0
    for name in ("accepted", "progress 1"):
        assert exchange.receive_datagram(said[name], pair.now)
    exchange.handle_timer(pair.now + 1.0)
    events = []
    while (event := exchange.next_event()) is not None:
        events.append(event)
    assert kinds(events) == ["accepted", "progress", "gave up"]
    assert not gave_up(events).answered


def test_the_same_reply_again_counts_as_being_heard(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("accepted", "progress 2"):
        exchange.receive_datagram(said[name], pair.now)
    pair.now += GIVE_UP_SECONDS - 1.0
    assert exchange.receive_datagram(said["progress 2"], pair.now)
    exchange.handle_timer(pair.now + 1.0)
    assert not exchange.ended


# STATUS.


def status(pair: Pair, of: object) -> Request:
    """A STATUS as an Exchange asks it: without epoch or challenge."""
    return changed(pair.request(Command.STATUS), cmd_arguments={"of": of}, epoch="", challenge="")


def test_status_tells_what_the_request_was_answered_last(pair: Pair) -> None:
    request = pair.request()
    assert answer(pair, request).msg_type is MessageType.ACCEPTED
    reply = answer(pair, status(pair, request.request_id))
    assert (reply.request_id, reply.msg_type) == (request.request_id, MessageType.ACCEPTED)
    pair.responder.finish(request.request_id, result_of(request), pair.now)
    pair.responder.datagrams_to_send()
    reply = answer(pair, status(pair, request.request_id))
    assert (reply.request_id, reply.msg_type) == (request.request_id, MessageType.RESPONSE)
    assert pair.executed[request.request_id] == 1


@pytest.mark.parametrize("of", ["f" * 32, "", None, 7, ["x"], {"a": "b"}, "x" * 600])
def test_status_of_an_unknown_request_says_that_it_is_unknown(pair: Pair, of: object) -> None:
    reply = answer(pair, status(pair, of))
    assert (reply.msg_type, error_of(reply)) == (MessageType.REFUSED, ErrorCode.REQUEST_UNKNOWN)
    assert reply.request_id == str(of)[:64]
    assert not pair.executed


def test_after_a_request_was_accepted_only_its_status_is_asked() -> None:
    pair = Pair(work_seconds=30.0)
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: bool(pair.executed))
    pair.run(exchange, until=lambda: pair.now > 1000.5)
    exchange.receive_datagram(pair.sent_to_controller[0], pair.now)
    for seconds in (10.0, 20.0, 30.0):
        (datagram,) = exchange.datagrams_to_send(pair.now + seconds)
        asked = decode(unseal(datagram, {AGENT_KEY.id: AGENT_KEY}, Direction.REQUEST)[1])
        assert isinstance(asked, Request)
        assert asked.cmd is Command.STATUS
        assert asked.cmd_arguments == {"of": exchange.request.request_id}
        assert asked.request_id != exchange.request.request_id


# Timers.


def intervals(random: float, count: int) -> list[float]:
    """The seconds between the first sends of an Exchange whose random numbers are all the same."""
    request = Request(request_id="r", agent_ip=SOURCE, cmd=Command.HELLO, cmd_arguments={})
    exchange = Exchange(request, (AGENT_KEY,), 0.0, 1000.0, lambda: random)
    times: list[float] = []
    while len(times) < count + 1:
        now = exchange.get_timer()
        times.append(now)
        assert exchange.datagrams_to_send(now - 0.001) == []
        assert len(exchange.datagrams_to_send(now)) == 1
        assert exchange.datagrams_to_send(now) == []
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


def test_repeats_come_after_1_2_4_and_then_every_5_seconds() -> None:
    assert intervals(0.0, 6) == pytest.approx([1.0, 2.0, 4.0, 5.0, 5.0, 5.0])


def test_each_repeat_is_stretched_by_up_to_half() -> None:
    assert intervals(1.0, 6) == pytest.approx([1.5, 3.0, 6.0, 7.5, 7.5, 7.5])
    assert intervals(0.5, 3) == pytest.approx([1.25, 2.5, 5.0])


def test_the_first_datagram_goes_at_once_and_each_repeat_is_the_same(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    sent = {datagram for now in (0.0, 2.0, 6.0, 12.0) for datagram in exchange.datagrams_to_send(pair.now + now)}
    assert sent == {sealed(exchange.request)}


def test_an_answer_makes_the_next_question_come_soon_again(pair: Pair) -> None:
    exchange = Exchange(pair.request(), (AGENT_KEY,), pair.now, GIVE_UP_SECONDS, lambda: 0.0)
    for now in (0.0, 1.0, 3.0, 7.0, 12.0):
        assert exchange.datagrams_to_send(pair.now + now)
    request = exchange.request
    responder = Responder(CONTROLLERS, (AGENT_KEY,))
    responder.receive_datagram(
        sealed(changed(request, epoch=responder.epoch, challenge=responder.challenge(pair.now))), CONTROLLER, pair.now)
    responder.accept(request.request_id, pair.now)
    ((accepted, _address),) = responder.datagrams_to_send()
    exchange.receive_datagram(accepted, pair.now + 12.5)
    assert exchange.get_timer() == pytest.approx(pair.now + 13.5)


# Who is heard at all.


@given(st.binary(max_size=1300))
def test_no_bytes_without_a_seal_get_an_answer(datagram: bytes) -> None:
    responder = Responder(CONTROLLERS, (AGENT_KEY,))
    responder.receive_datagram(datagram, CONTROLLER, 1000.0)
    assert responder.datagrams_to_send() == []
    assert responder.next_event() is None
    assert responder.counters["received"] == 1
    assert sum(count for name, count in responder.counters.items() if name.startswith("dropped: ")) == 1


@pytest.mark.parametrize("place", ["request_id", "agent_ip", "cmd", "epoch", "challenge", "argument", "argument name"])
def test_a_request_with_a_lone_surrogate_anywhere_is_dropped_and_never_raises(pair: Pair, place: str) -> None:
    for command, arguments in ((Command.FINISH, {"n": 1}), (Command.STATUS, {"of": "x"}), (Command.HELLO, {})):
        request = changed(pair.request(command), cmd_arguments=arguments)
        fields = json.loads(encode(request))
        if place == "argument":
            fields["cmd_arguments"] = {"of": ["\ud800"]}
        elif place == "argument name":
            fields["cmd_arguments"] = {"\udfff": "x"}
        else:
            fields[place] += "\ud800"
        body = json.dumps(fields).encode("ascii")
        assert pair.deliver(seal(AGENT_KEY, Direction.REQUEST, body)) == []
    assert pair.responder.counters["dropped: form"] == 3
    assert not pair.executed


def test_a_result_with_bytes_that_are_no_text_still_arrives(pair: Pair) -> None:
    request = pair.request()
    answer(pair, request)
    reason = "/srv/" + bytes([0xff]).decode("utf-8", "surrogateescape")
    pair.responder.finish(request.request_id, MigrationError(ErrorCode.INTERNAL, {"reason": reason}), pair.now)
    ((datagram, _address),) = pair.responder.datagrams_to_send()
    assert error_of(opened(datagram)) is ErrorCode.INTERNAL


@given(st.binary(max_size=1000))
def test_no_bytes_below_a_right_seal_raise_or_run(body: bytes) -> None:
    responder = Responder(CONTROLLERS, (AGENT_KEY,))
    responder.receive_datagram(seal(AGENT_KEY, Direction.REQUEST, body), CONTROLLER, 1000.0)
    assert responder.datagrams_to_send() == []
    assert responder.next_event() is None
    assert responder.counters["dropped: form"] == 1


@given(st.ip_addresses().map(str).filter(lambda address: address != CONTROLLER[0]), st.sampled_from(Command))
def test_an_address_that_is_not_listed_gets_no_answer_even_with_the_key(address: str, command: Command) -> None:
    responder = Responder(CONTROLLERS, (AGENT_KEY,))
    request = Request(
        request_id="r", agent_ip=SOURCE, cmd=command, cmd_arguments={"of": "r"}, epoch=responder.epoch,
        challenge=responder.challenge(1000.0))
    responder.receive_datagram(sealed(request), (address, 8001), 1000.0)
    assert responder.datagrams_to_send() == []
    assert responder.next_event() is None
    assert responder.counters["dropped: source"] == 1


@pytest.mark.parametrize(("reason", "datagram"), [
    ("size", b"VMM1 - -\n" + b" " * DATAGRAM_LIMIT),
    ("form", b"GET / HTTP/1.1\r\n\r\n"),
    ("key", seal(None, Direction.REQUEST, b"{}")),
    ("key", seal(Key(bytes(32)), Direction.REQUEST, b"{}")),
    ("mac", seal(AGENT_KEY, Direction.REPLY, b"{}")),
    ("form", seal(AGENT_KEY, Direction.REQUEST, b"{}")),
    ("form", seal(AGENT_KEY, Direction.REQUEST, b'{"cmd": NaN}')),
    ("form", seal(AGENT_KEY, Direction.REQUEST, encode(
        Reply(MessageType.RESPONSE, "r", SOURCE, Command.HELLO, {}, 0)))),
])
def test_what_is_dropped_is_counted_under_its_reason(pair: Pair, reason: str, datagram: bytes) -> None:
    assert pair.deliver(datagram) == []
    assert pair.responder.counters == {"received": 1, f"dropped: {reason}": 1}


def test_a_sender_whose_address_is_none_is_dropped(pair: Pair) -> None:
    assert pair.deliver(sealed(pair.request()), ("", 0)) == []
    assert not pair.executed


def test_with_insecure_the_list_alone_decides() -> None:
    pair = Pair(keys=())
    request = pair.request()
    assert kinds(pair.run(pair.exchange(request)))[-1] == "response"
    assert pair.deliver(sealed(pair.request())) == []
    assert pair.deliver(seal(None, Direction.REQUEST, encode(pair.request())), ("192.0.2.99", 8001)) == []
    assert len(pair.executed) == 1


def test_a_controller_with_the_old_of_two_keys_is_answered_under_that_key() -> None:
    old, new = Key(b"o" * 32), Key(b"n" * 32)
    pair = Pair(keys=(new, old))
    request = pair.request()
    ((datagram, _),) = pair.deliver(seal(old, Direction.REQUEST, encode(request)))
    assert unseal(datagram, {old.id: old}, Direction.REPLY)[0] == old.id


# Sizes.


def test_a_request_too_long_for_a_datagram_is_an_error_before_anything_is_sent(pair: Pair) -> None:
    with pytest.raises(MigrationError) as caught:
        pair.exchange(changed(pair.request(), cmd_arguments={"disk": "/" + "x" * 1200}))
    assert caught.value.code is ErrorCode.MESSAGE_TOO_LONG
    assert caught.value.facts["host"] == SOURCE
    assert int(caught.value.facts["size"]) > DATAGRAM_LIMIT


@pytest.mark.parametrize("length", [1, 700, 2000, 100_000])
def test_an_answer_too_long_for_a_datagram_says_so_in_one_that_fits(pair: Pair, length: int) -> None:
    request = pair.request()
    answer(pair, request)
    pair.responder.finish(request.request_id, StepReport("x" * length), pair.now)
    ((datagram, _address),) = pair.responder.datagrams_to_send()
    assert len(datagram) <= DATAGRAM_LIMIT
    reply = opened(datagram)
    assert reply.msg_type is MessageType.RESPONSE
    assert (reply.error() is None) == (length < 1000)
    if length >= 1000:
        assert error_of(reply) is ErrorCode.MESSAGE_TOO_LONG


@pytest.mark.parametrize("reason", ["x" * 5000, "ü" * 400, "\\\n\"" * 150])
def test_an_error_with_a_long_reason_still_fits_a_datagram(pair: Pair, reason: str) -> None:
    request = pair.request()
    answer(pair, request)
    error = MigrationError(ErrorCode.MIGRATION_FAILED, {"domain": "VM1", "host": SOURCE, "reason": reason})
    pair.responder.finish(request.request_id, error, pair.now)
    ((datagram, _address),) = pair.responder.datagrams_to_send()
    assert len(datagram) <= DATAGRAM_LIMIT
    arrived = opened(datagram).error()
    assert arrived is not None
    assert arrived.code is ErrorCode.MIGRATION_FAILED
    assert reason.startswith(arrived.facts["reason"].rstrip("…"))


def test_no_answer_is_much_longer_than_what_it_answers(pair: Pair) -> None:
    hello = sealed(pair.request(Command.HELLO))
    for datagram in (hello, sealed(status(pair, "f" * 32)), sealed(changed(pair.request(), challenge="x"))):
        assert sum(len(reply) for reply, _address in pair.deliver(datagram)) < 2 * len(datagram)


# Progress.


def test_progress_is_sent_once_a_second_but_a_new_phase_at_once(pair: Pair) -> None:
    request = pair.request()
    answer(pair, request)
    sent = []
    for now, phase in ((0.0, "a"), (0.5, "a"), (0.9, "a"), (1.0, "a"), (1.1, "b"), (1.2, "b"), (2.2, "b")):
        pair.responder.progress(request.request_id, Progress(phase, 1, 2), pair.now + now)
        sent.append(len(pair.responder.datagrams_to_send()))
    assert sent == [1, 0, 0, 1, 1, 0, 1]


def test_what_an_agent_answers_at_once_starts_no_work() -> None:
    assert ANSWERED_AT_ONCE.isdisjoint(set(Command) - {Command.STATUS, Command.CANCEL})
    assert json.loads(encode(Request("r", SOURCE, Command.CANCEL, {})))["cmd"] == "CANCEL"
