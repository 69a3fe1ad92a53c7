"""Many exchanges at once behind one socket: each hears what its own agent says to it, and none is forgotten."""

from __future__ import annotations

import math

import pytest

from constant import AGENT_PORT, GIVE_UP_SECONDS, Command, MessageType
from tests.unit.pair import Pair, kinds, result_of, sealed
from tests.unit.samples import AGENT_KEY, DESTINATION, HOST_FACTS, MASTER, SOURCE
from wire.access import Key
from wire.datagram import Direction, keyring, seal, unseal
from wire.exchange import Exchange, GaveUp, Requester
from wire.memory import Address
from wire.message import Reply, Request, decode, encode
from wire.records import HelloArguments, Progress

NOW = 1000.0


def hello(number: int, agent: str = SOURCE) -> Request:
    """A HELLO to that agent."""
    return Request(request_id=f"{number:032x}", agent_ip=agent, cmd=Command.HELLO, cmd_arguments=HelloArguments())


def reply_to(request: Request, sequence: int = 1, *, progress: int | None = None) -> Reply:
    """Its result, or how far it is."""
    return Reply(
        msg_type=MessageType.RESPONSE if progress is None else MessageType.PROGRESS, request_id=request.request_id,
        agent_ip=request.agent_ip, cmd=request.cmd, sequence=sequence,
        cmd_result=HOST_FACTS if progress is None else Progress(phase="x", done=progress, total=100))


def said(reply: Reply, key: Key | None) -> bytes:
    """A reply as its datagram."""
    return seal(key, Direction.REPLY, encode(reply))


def requester() -> Requester:
    """One whose waits are not stretched."""
    return Requester(AGENT_PORT, lambda: 0.0)


def sent_at(requester: Requester, now: float) -> list[tuple[bytes, Address]]:
    """All that it sends now, in as many turns as that takes."""
    sent: list[tuple[bytes, Address]] = []
    requester.handle_timer(now)
    while found := requester.datagrams_to_send(now):
        sent += found
        requester.handle_timer(now)
    return sent


# Whose reply it is.


def test_a_reply_under_the_key_of_one_agent_cannot_answer_the_request_to_another() -> None:
    asking = requester()
    keys = {address: MASTER.for_agent(address) for address in (SOURCE, DESTINATION)}
    exchanges = {
        address: asking.start(hello(number, address), [key], NOW, GIVE_UP_SECONDS)
        for number, (address, key) in enumerate(keys.items())}
    for address, other in ((SOURCE, DESTINATION), (DESTINATION, SOURCE)):
        reply = reply_to(exchanges[address].request)
        asking.receive_datagram(said(reply, keys[other]), (other, AGENT_PORT), NOW)
        # From wherever it comes: an address can be forged, the key cannot.
        asking.receive_datagram(said(reply, keys[other]), (address, AGENT_PORT), NOW)
        assert exchanges[address].next_event() is None
    for address, key in keys.items():
        asking.receive_datagram(said(reply_to(exchanges[address].request), key), (address, AGENT_PORT), NOW)
        assert exchanges[address].ended


def test_either_of_two_keys_of_an_agent_answers_and_no_other() -> None:
    asking = requester()
    old, new = Key(b"o" * 32), Key(b"n" * 32)
    first, second = (asking.start(hello(number), [new, old], NOW, GIVE_UP_SECONDS) for number in (1, 2))
    assert unseal(sent_at(asking, NOW)[0][0], keyring([new]), Direction.REQUEST)
    for key in (AGENT_KEY, MASTER, None):
        asking.receive_datagram(said(reply_to(first.request), key), (SOURCE, AGENT_PORT), NOW)
    assert not first.ended
    asking.receive_datagram(said(reply_to(first.request), old), (SOURCE, AGENT_PORT), NOW)
    asking.receive_datagram(said(reply_to(second.request), new), (SOURCE, AGENT_PORT), NOW)
    assert first.ended
    assert second.ended


def test_an_unsealed_reply_is_heard_only_by_what_was_asked_without_a_key() -> None:
    asking = requester()
    sealed_one = asking.start(hello(1), [AGENT_KEY], NOW, GIVE_UP_SECONDS)
    open_one = asking.start(hello(2, DESTINATION), [], NOW, GIVE_UP_SECONDS)
    for exchange in (sealed_one, open_one):
        asking.receive_datagram(
            said(reply_to(exchange.request), None), (exchange.request.agent_ip, AGENT_PORT), NOW)
    assert not sealed_one.ended
    assert open_one.ended


@pytest.mark.parametrize("datagram", [
    b"", b"\xff" * 1300, b"VMM1 - -\n{}", sealed(hello(1)), said(reply_to(hello(2)), AGENT_KEY),
    seal(AGENT_KEY, Direction.REPLY, b"nonsense"), seal(AGENT_KEY, Direction.REPLY, b"{}"),
    seal(AGENT_KEY, Direction.REPLY, encode(hello(1))), said(reply_to(hello(1)), AGENT_KEY)[:-1],
])
def test_what_answers_nothing_is_left_alone(datagram: bytes) -> None:
    asking = requester()
    exchange = asking.start(hello(1), [AGENT_KEY], NOW, GIVE_UP_SECONDS)
    sent_at(asking, NOW)
    timer = asking.get_timer()
    asking.receive_datagram(datagram, (SOURCE, AGENT_PORT), NOW + 0.5)
    assert exchange.next_event() is None
    assert not exchange.ended
    assert asking.get_timer() == timer


def test_a_late_reply_after_the_end_is_left_alone() -> None:
    pair = Pair()
    exchange = pair.exchange(pair.request())
    events = pair.run(exchange)
    pair.requester.end(exchange)
    for datagram in pair.sent_to_controller:
        pair.requester.receive_datagram(datagram, (SOURCE, AGENT_PORT), pair.now)
    assert kinds(events) == ["accepted", "progress", "progress", "response"]
    assert exchange.next_event() is None
    assert sent_at(pair.requester, pair.now + 1000.0) == []
    assert pair.requester.get_timer() == math.inf


def test_an_exchange_that_is_ended_before_its_answer_sends_no_more_and_hears_no_more() -> None:
    asking = requester()
    exchange = asking.start(hello(1), [AGENT_KEY], NOW, GIVE_UP_SECONDS)
    assert len(sent_at(asking, NOW)) == 1
    asking.end(exchange)
    asking.end(exchange)
    assert sent_at(asking, NOW + 100.0) == []
    asking.receive_datagram(said(reply_to(exchange.request), AGENT_KEY), (SOURCE, AGENT_PORT), NOW)
    assert exchange.next_event() is None
    assert asking.get_timer() == math.inf


# Many at once.


def test_a_thousand_exchanges_at_once_are_all_served() -> None:
    asking = requester()
    addresses = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(1000)]
    keys = {address: MASTER.for_agent(address) for address in addresses}
    exchanges = [
        asking.start(hello(number, address), [keys[address]], NOW, GIVE_UP_SECONDS)
        for number, address in enumerate(addresses)]
    served: dict[str, int] = dict.fromkeys(addresses, 0)
    now, turns = NOW, 0
    while not all(exchange.ended for exchange in exchanges):
        now = max(now, asking.get_timer())
        asking.handle_timer(now)
        sent = asking.datagrams_to_send(now)
        # Never so many that their answers would not fit a socket's buffer.
        assert len(sent) <= 32
        for number, (datagram, (address, port)) in enumerate(sent):
            served[address] += 1
            assert port == AGENT_PORT
            request = decode(unseal(datagram, keyring([keys[address]]), Direction.REQUEST)[1])
            assert isinstance(request, Request)
            assert request.agent_ip == address
            # Every fifth is lost the first time.
            if number % 5 or served[address] > 1:
                asking.receive_datagram(said(reply_to(request), keys[address]), (address, port), now)
        turns += 1
    assert now == NOW + 1.0
    assert set(served.values()) == {1, 2}
    assert turns < 50
    for exchange in exchanges:
        assert kinds(events_of(exchange)) == ["response"]
        asking.end(exchange)
    asking.handle_timer(now + 1000.0)
    assert asking.get_timer() == math.inf


def events_of(exchange: Exchange) -> list[Reply | GaveUp]:
    """What has happened to it."""
    events: list[Reply | GaveUp] = []
    while (event := exchange.next_event()) is not None:
        events.append(event)
    return events


def test_each_exchange_gives_up_on_its_own_and_only_after_its_own_patience() -> None:
    asking = requester()
    patience = {number: 10.0 + number for number in range(20)}
    exchanges = {number: asking.start(hello(number), [AGENT_KEY], NOW, patience[number]) for number in patience}
    now = NOW
    while not all(exchange.ended for exchange in exchanges.values()):
        now = max(now, asking.get_timer())
        sent_at(asking, now)
        for number, exchange in exchanges.items():
            assert exchange.ended == (now >= NOW + patience[number])
    assert {type(exchange.outcome) for exchange in exchanges.values()} == {GaveUp}


def test_one_that_is_answered_again_and_again_does_not_hold_up_another() -> None:
    asking = requester()
    busy, silent = (asking.start(hello(number), [AGENT_KEY], NOW, GIVE_UP_SECONDS) for number in (1, 2))
    sent_at(asking, NOW)
    times = []
    for tenth in range(1, 200):
        now = NOW + tenth / 10
        asking.receive_datagram(
            said(reply_to(busy.request, tenth, progress=tenth), AGENT_KEY), (SOURCE, AGENT_PORT), now)
        times += [now for datagram, _address in sent_at(asking, now) if datagram == sealed(silent.request)]
    assert times == pytest.approx([NOW + seconds for seconds in (1, 3, 7, 12, 17)])
    assert len(asking._timers) < 20


def test_no_exchange_is_lost_when_ctrl_c_comes_while_it_sends() -> None:
    waits = iter([0.0] * 10)

    def interrupted_at_the_eleventh() -> float:
        try:
            return next(waits)
        except StopIteration:
            raise KeyboardInterrupt from None

    asking = Requester(AGENT_PORT, interrupted_at_the_eleventh)
    exchanges = [asking.start(hello(number), [AGENT_KEY], NOW, GIVE_UP_SECONDS) for number in range(100)]
    with pytest.raises(KeyboardInterrupt):
        sent_at(asking, NOW)
    asking.set_timers_anew()
    waits = iter([0.0] * 1000)
    # What was about to be sent counts as lost; nobody is forgotten, and nobody asks twice as often.
    assert len(sent_at(asking, NOW)) == 90
    assert asking.get_timer() == NOW + 1.0
    again = [datagram for datagram, _address in sent_at(asking, NOW + 1.0)]
    assert sorted(again) == sorted(sealed(exchange.request) for exchange in exchanges)
    assert len(asking._timers) == 100


def test_timers_that_are_set_anew_between_two_turns_are_what_they_were() -> None:
    asking = requester()
    for number in range(100):
        asking.start(hello(number), [AGENT_KEY], NOW, GIVE_UP_SECONDS)
    asking.handle_timer(NOW)
    assert len(asking.datagrams_to_send(NOW)) == 32
    asking.set_timers_anew()
    assert len(sent_at(asking, NOW)) == 68
    asking.set_timers_anew()
    assert sent_at(asking, NOW) == []
    assert asking.get_timer() == NOW + 1.0


def test_an_exchange_goes_on_after_its_timers_were_set_anew_in_the_middle_of_the_work() -> None:
    pair = Pair(work_seconds=20.0)
    exchange = pair.exchange(pair.request())
    for second in range(1, 20):
        pair.run(exchange, until=lambda second=second: pair.now >= NOW + second)  # type: ignore[misc]
        pair.requester.set_timers_anew()
    last = pair.run(exchange)[-1]
    assert isinstance(last, Reply)
    assert last.cmd_result == result_of(exchange.request)
