"""One exchange as the controller sees it: when it repeats, when it gives up, and what it makes of late, foreign and
impossible answers.

The clock and the network are the pair's own; nothing here opens a socket or waits.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from constant import DATAGRAM_LIMIT, GIVE_UP_SECONDS, REPLY_TRANSITIONS, Command, MessageType
from tests.unit.pair import Pair, changed, error_of, kinds, opened, refused, result_of, sealed
from tests.unit.samples import AGENT_KEY, CONTROLLER, DESTINATION, FACTS, MASTER, MIGRATION, SOURCE
from wire.datagram import Direction, keyring, seal, unseal
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange, GaveUp
from wire.message import Reply, Request, decode, encode
from wire.records import HelloArguments, Obstacle, Page, Progress, StatusArguments, StepArguments


@pytest.fixture
def pair() -> Pair:
    """A pair on a perfect network."""
    return Pair()


def gave_up(events: list[Reply | GaveUp]) -> GaveUp:
    """The last event, which must be that."""
    assert isinstance(events[-1], GaveUp)
    return events[-1]


def events_of(exchange: Exchange) -> list[Reply | GaveUp]:
    """What has happened to it and was not looked at yet."""
    events = []
    while (event := exchange.next_event()) is not None:
        events.append(event)
    return events


def replies(pair: Pair, request: Request) -> dict[str, bytes]:
    """Each reply of a finished request, sealed, by what it says. The pair's clock goes on by four seconds."""
    responder = pair.responder
    ((accepted, _address),) = pair.deliver(sealed(request))
    said = {"accepted": accepted}
    for done in (1, 2):
        pair.now += 2.0
        responder.progress(request.request_id, Progress(phase="working", done=done, total=2), pair.now)
        ((said[f"progress {done}"], _address),) = responder.datagrams_to_send(pair.now)
    responder.finish(request.request_id, result_of(request), pair.now)
    pair.turn_agent()
    ((said["response"], _address),) = responder.datagrams_to_send(pair.now)
    return said


def refusal(request: Request, code: ErrorCode) -> bytes:
    """A refusal of the request with that code, as an agent would send it."""
    reply = Reply(
        msg_type=MessageType.REFUSED, request_id=request.request_id, agent_ip=request.agent_ip, cmd=request.cmd,
        sequence=0, cmd_result=Obstacle(code=code, facts={"host": SOURCE}))
    return seal(AGENT_KEY, Direction.REPLY, encode(reply))


# To its end.


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
    assert last.cmd_result == result_of(exchange.request)
    assert len(pair.executed) == 1


def test_the_outcome_of_an_exchange_is_its_last_event(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    assert exchange.outcome is None
    assert pair.run(exchange)[-1] is exchange.outcome
    pair.connected = False
    silent = pair.exchange(pair.request())
    assert pair.run(silent)[-1] is silent.outcome


def test_nothing_is_sent_after_the_end(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    pair.run(exchange)
    assert exchange.ended
    assert exchange.datagrams_to_send(pair.now + 1000.0) == []
    exchange.handle_timer(pair.now + 1000.0)
    assert exchange.next_event() is None


def test_after_a_request_was_accepted_only_its_status_is_asked() -> None:
    pair = Pair(work_seconds=30.0)
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: bool(pair.heard))
    asked_by = set()
    for seconds in (10.0, 20.0, 30.0):
        (datagram,) = exchange.datagrams_to_send(pair.now + seconds)
        asked = decode(unseal(datagram, keyring([AGENT_KEY]), Direction.REQUEST)[1])
        assert isinstance(asked, Request)
        assert asked.cmd is Command.STATUS
        assert asked.cmd_arguments == StatusArguments(of=exchange.request.request_id)
        asked_by.add(asked.request_id)
    assert len(asked_by - {exchange.request.request_id}) == 3


def test_a_request_too_long_even_for_pages_is_an_error_before_anything_is_sent(pair: Pair) -> None:
    facts = dataclasses.replace(FACTS, secrets=("ü" * 4096,) * 10)
    with pytest.raises(MigrationError) as caught:
        pair.exchange(changed(pair.request(), cmd_arguments=StepArguments(migration=MIGRATION, facts=facts)))
    assert caught.value.code is ErrorCode.MESSAGE_TOO_LONG
    assert caught.value.facts["host"] == SOURCE
    assert int(caught.value.facts["size"]) > int(caught.value.facts["limit"]) > DATAGRAM_LIMIT
    assert pair.requester.get_timer() == math.inf


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
    assert kinds(pair.run(exchange))[-1] == "gave up"
    assert pair.now == pair.heard[-1][0] + GIVE_UP_SECONDS


def test_work_that_takes_longer_than_the_patience_is_waited_for() -> None:
    pair = Pair(work_seconds=600.0)
    assert kinds(pair.run(pair.exchange(pair.request())))[-1] == "response"


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
    assert gave_up(pair.run(pair.exchange(pair.request(), limit=45.0))).answered
    assert pair.now == began + 45.0


def test_a_silent_agent_at_the_limit_is_told_as_silent(pair: Pair) -> None:
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
    let_pass(exchange, pair.now, pair.now + GIVE_UP_SECONDS - 1.0)
    for name in ("accepted", "progress 1"):
        assert exchange.receive_datagram(said[name], pair.now + GIVE_UP_SECONDS - 1.0)
    let_pass(exchange, pair.now, pair.now + GIVE_UP_SECONDS)
    events = events_of(exchange)
    assert kinds(events) == ["accepted", "progress", "gave up"]
    assert not gave_up(events).answered


def test_the_same_word_again_counts_as_being_heard_once_and_only_as_the_answer_to_a_question(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("accepted", "progress 2"):
        exchange.receive_datagram(said[name], pair.now)
    (question,) = exchange.datagrams_to_send(exchange.get_timer())
    asking = decode(unseal(question, keyring([AGENT_KEY]), Direction.REQUEST)[1])
    word = opened(said["progress 2"])
    answer_to_it = dataclasses.replace(word, asked=asking.request_id)
    for again, until in ((word, False), (answer_to_it, True), (answer_to_it, False)):
        timer = exchange.get_timer()
        exchange.receive_reply(again, pair.now + 2.0)
        assert (exchange.get_timer() != timer) is until


def test_a_recorded_answer_keeps_no_controller_waiting_for_an_agent_that_is_gone(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("accepted", "progress 2"):
        exchange.receive_datagram(said[name], pair.now)
    statuses = 0
    for tenth in range(10 * 91):
        now = pair.now + tenth / 10
        exchange.handle_timer(now)
        statuses += len(exchange.datagrams_to_send(now))
        exchange.receive_datagram(said["progress 2"], now)
    assert exchange.ended
    assert statuses > 10


def test_a_controller_that_was_stopped_for_a_while_asks_again_before_it_gives_up(pair: Pair) -> None:
    exchange = pair.exchange(pair.request(), limit=200.0)
    exchange.receive_datagram(replies(pair, exchange.request)["accepted"], pair.now)
    late = pair.now + 3600.0
    exchange.handle_timer(late)
    assert not exchange.ended
    assert exchange.datagrams_to_send(late)
    let_pass(exchange, late, late + GIVE_UP_SECONDS)
    assert exchange.ended


def let_pass(exchange: Exchange, now: float, until: float) -> None:
    """Look at the exchange whenever it wants to be, as a driver does; what it sends is lost."""
    while (now := max(now, exchange.get_timer())) <= until and not exchange.ended:
        exchange.handle_timer(now)
        exchange.datagrams_to_send(now)


def first_page(request: Request) -> Reply:
    """The first of three pages of the request's result."""
    return Reply(
        msg_type=MessageType.RESPONSE, request_id=request.request_id, agent_ip=SOURCE, cmd=request.cmd, sequence=1,
        cmd_result=Page(page=0, pages=3, digest="0" * 16, part="{"))


def test_a_page_counts_as_being_heard(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    let_pass(exchange, pair.now, pair.now + 70.0)
    exchange.receive_reply(first_page(exchange.request), pair.now + 70.0)
    let_pass(exchange, pair.now + 70.0, pair.now + 70.0 + GIVE_UP_SECONDS - 1.0)
    assert not exchange.ended
    let_pass(exchange, pair.now + 70.0, pair.now + 70.0 + GIVE_UP_SECONDS)
    assert kinds(events_of(exchange)) == ["gave up"]


def test_an_agent_that_has_sent_a_page_at_the_limit_is_not_told_as_silent(pair: Pair) -> None:
    exchange = pair.exchange(pair.request(), limit=45.0)
    exchange.receive_reply(first_page(exchange.request), pair.now + 1.0)
    let_pass(exchange, pair.now + 1.0, pair.now + 45.0)
    assert gave_up(events_of(exchange)).answered


# Late, foreign and impossible answers.


def test_progress_that_was_overtaken_is_ignored(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("accepted", "progress 2", "progress 1", "accepted", "progress 2"):
        exchange.receive_datagram(said[name], pair.now)
    accepted, progress = events_of(exchange)
    assert isinstance(accepted, Reply)
    assert accepted.cmd_result is None
    assert isinstance(progress, Reply)
    assert progress.cmd_result == Progress(phase="working", done=2, total=2)


def test_nothing_that_comes_after_the_result_changes_it(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in ("response", "accepted", "progress 1", "response", "progress 2"):
        exchange.receive_datagram(said[name], pair.now)
    assert kinds(events_of(exchange)) == ["response"]


def test_the_result_ends_a_request_whose_acceptance_was_lost(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    assert exchange.receive_datagram(replies(pair, exchange.request)["response"], pair.now)
    assert exchange.ended


def test_an_end_with_a_lower_number_than_the_progress_before_it_is_the_end_all_the_same(pair: Pair) -> None:
    # The agent was started anew since, and counts from 0 again.
    exchange = pair.exchange(pair.request())
    exchange.receive_datagram(replies(pair, exchange.request)["progress 2"], pair.now)
    pair.restart_agent()
    reply = opened(pair.deliver(sealed(exchange.request))[0][0])
    assert reply.sequence == 0
    exchange.receive_reply(reply, pair.now)
    assert exchange.outcome == reply


def test_every_type_of_reply_is_taken_only_where_it_can_follow(pair: Pair) -> None:
    request = pair.request()
    contents = {
        MessageType.ACCEPTED: None, MessageType.PROGRESS: Progress(phase="x", done=1, total=2),
        MessageType.RESPONSE: result_of(request),
        MessageType.REFUSED: Obstacle(code=ErrorCode.AGENT_BUSY, facts={"host": SOURCE, "count": "32"})}
    for before, after in itertools.product((MessageType.REQUEST, *contents), contents):
        exchange = Exchange(request, (AGENT_KEY,), pair.now, GIVE_UP_SECONDS, lambda: 0.0)
        expected = [each for each in (before,) if each in contents]
        for sequence, msg_type in enumerate((*expected, after)):
            exchange.receive_reply(Reply(
                msg_type=msg_type, request_id=request.request_id, agent_ip=SOURCE, cmd=request.cmd,
                sequence=sequence, cmd_result=contents[msg_type]), pair.now)
        expected += [after] if after in REPLY_TRANSITIONS[before] else []
        assert kinds(events_of(exchange)) == [each.value for each in expected]


def test_a_reply_to_another_request_is_left_alone(pair: Pair) -> None:
    first, second = pair.exchange(pair.request()), pair.exchange(pair.request())
    said = replies(pair, first.request)
    assert not second.receive_datagram(said["response"], pair.now)
    assert second.next_event() is None
    assert not second.ended


def test_a_stranger_cannot_keep_a_controller_waiting_or_tell_it_anything(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    began = pair.now
    said = replies(pair, exchange.request)
    body = unseal(said["response"], keyring([AGENT_KEY]), Direction.REPLY)[1]
    forged = [
        seal(None, Direction.REPLY, body), seal(MASTER, Direction.REPLY, body),
        seal(MASTER.for_agent(DESTINATION), Direction.REPLY, body), seal(AGENT_KEY, Direction.REQUEST, body),
        seal(AGENT_KEY, Direction.REPLY, b"nonsense"), said["response"][:-1], b"", b"\xff" * 1300,
        sealed(exchange.request),
    ]
    timer = exchange.get_timer()
    for datagram in forged:
        assert not exchange.receive_datagram(datagram, pair.now + 0.5)
        pair.requester.receive_datagram(datagram, (SOURCE, CONTROLLER[1]), pair.now + 0.5)
    assert exchange.next_event() is None
    assert exchange.get_timer() == timer
    let_pass(exchange, began, began + GIVE_UP_SECONDS)
    assert kinds(events_of(exchange)) == ["gave up"]


def test_a_refusal_ends_a_request_with_its_error(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    pair.restart_agent()
    (reply,) = pair.run(exchange)
    assert refused(reply) is ErrorCode.REQUEST_STALE


# An agent that was started anew in the middle.


@pytest.mark.parametrize("seconds", [0.5, 10.0])
@pytest.mark.parametrize(("journal_lost", "told"), [
    (False, ErrorCode.REQUEST_INTERRUPTED), (True, ErrorCode.REQUEST_UNKNOWN),
])
def test_a_request_whose_agent_was_restarted_in_the_middle_of_the_work_ends(
    seconds: float, journal_lost: bool, told: ErrorCode,
) -> None:
    pair = Pair(work_seconds=300.0)
    exchange = pair.exchange(pair.request())
    pair.run(exchange, until=lambda: pair.now >= 1000.0 + seconds)
    assert pair.executed[exchange.request.request_id] == 1
    pair.restart_agent(journal_lost=journal_lost)
    restarted = pair.now
    assert error_of(pair.run(exchange)[-1]) is told
    assert exchange.ended
    assert pair.now - restarted < 10.0
    assert pair.executed[exchange.request.request_id] == 1


@pytest.mark.parametrize("code", [ErrorCode.REQUEST_UNKNOWN, ErrorCode.REQUEST_EXPIRED])
@pytest.mark.parametrize("before", [["accepted"], ["accepted", "progress 1"], ["progress 2"]])
def test_no_refusal_but_that_it_is_not_known_any_more_ends_a_request_that_was_accepted(
    pair: Pair, before: list[str], code: ErrorCode,
) -> None:
    exchange = pair.exchange(pair.request())
    said = replies(pair, exchange.request)
    for name in before:
        exchange.receive_datagram(said[name], pair.now)
    for other in set(ErrorCode) - {ErrorCode.REQUEST_UNKNOWN, ErrorCode.REQUEST_EXPIRED}:
        exchange.receive_datagram(refusal(exchange.request, other), pair.now)
        assert not exchange.ended
    exchange.receive_datagram(refusal(exchange.request, code), pair.now)
    assert exchange.ended
    assert refused(events_of(exchange)[-1]) is code
    assert exchange.datagrams_to_send(pair.now + 100.0) == []


def test_unknown_after_the_result_changes_nothing(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    exchange.receive_datagram(replies(pair, exchange.request)["response"], pair.now)
    exchange.receive_datagram(refusal(exchange.request, ErrorCode.REQUEST_UNKNOWN), pair.now)
    assert kinds(events_of(exchange)) == ["response"]


# Timers.


def intervals(random: float, count: int) -> list[float]:
    """The seconds between the first sends of an Exchange whose random numbers are all the same."""
    request = Request(request_id="0" * 32, agent_ip=SOURCE, cmd=Command.HELLO, cmd_arguments=HelloArguments())
    exchange = Exchange(request, (AGENT_KEY,), 0.0, 1000.0, lambda: random)
    times: list[float] = []
    while len(times) < count + 1:
        now = exchange.get_timer()
        times.append(now)
        assert exchange.datagrams_to_send(now - 0.001) == []
        assert len(exchange.datagrams_to_send(now)) == 1
        assert exchange.datagrams_to_send(now) == []
    return [later - earlier for earlier, later in zip(times, times[1:])]


def test_repeats_come_after_1_2_4_and_then_every_5_seconds() -> None:
    assert intervals(0.0, 6) == pytest.approx([1.0, 2.0, 4.0, 5.0, 5.0, 5.0])


def test_each_repeat_is_stretched_by_up_to_half() -> None:
    assert intervals(1.0, 6) == pytest.approx([1.5, 3.0, 6.0, 7.5, 7.5, 7.5])
    assert intervals(0.5, 3) == pytest.approx([1.25, 2.5, 5.0])


def test_the_first_datagram_goes_at_once_and_each_repeat_is_the_same(pair: Pair) -> None:
    exchange = pair.exchange(pair.request())
    sent = [datagram for now in (0.0, 2.0, 6.0, 12.0) for datagram in exchange.datagrams_to_send(pair.now + now)]
    assert sent == [sealed(exchange.request)] * 4


def test_an_answer_makes_the_next_question_come_soon_again(pair: Pair) -> None:
    exchange = Exchange(pair.request(), (AGENT_KEY,), pair.now, GIVE_UP_SECONDS, lambda: 0.0)
    for now in (0.0, 1.0, 3.0, 7.0, 12.0):
        assert exchange.datagrams_to_send(pair.now + now)
    ((accepted, _address),) = pair.deliver(sealed(exchange.request))
    exchange.receive_datagram(accepted, pair.now + 12.5)
    assert exchange.get_timer() == pytest.approx(pair.now + 13.5)
