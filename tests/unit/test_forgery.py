"""What a stranger can send, with and without datagrams that he has recorded: nothing of it runs, and what has no valid
MAC gets no answer.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import (
    AGENT_PORT,
    DATAGRAM_LIMIT,
    IDS_KEPT_SECONDS,
    RATE_PER_SECOND,
    RESULTS_KEPT_SECONDS,
    Command,
    MessageType,
)
from tests.unit.pair import Pair, answer, changed, opened, refused, responder, result_of, sealed
from tests.unit.samples import AGENT_KEY, CONTROLLER, DESTINATION, MASTER, MIGRATION, SOURCE
from udpmodule import Responder
from wire.access import Key
from wire.datagram import Direction, keyring, seal, unseal
from wire.errors import ErrorCode
from wire.exchange import Requester
from wire.message import Reply, Request, decode, encode
from wire.schema import to_wire

# Every kind of request that a controller makes.
COMMANDS = (Command.HELLO, Command.CHECK_SOURCE, Command.PREPARE_DESTINATION, Command.LIVE_MIGRATION, Command.CANCEL)


@pytest.fixture
def pair() -> Pair:
    """A pair on a perfect network."""
    return Pair()


def recorded(pair: Pair) -> list[bytes]:
    """What a listener has of a run: a HELLO, some steps and a CANCEL, and the STATUS in between."""
    for command in COMMANDS:
        exchange = pair.exchange(pair.request(command))
        pair.run(exchange, until=lambda exchange=exchange: exchange.request.request_id in pair.executed)  # type: ignore[misc]
        # So that the result has to be asked for.
        pair.connected = False
        pair.let_pass(5.0)
        pair.connected = True
        pair.run(exchange)
    return list(pair.sent_to_agent)


def steps_run_by(pair: Pair, datagrams: Sequence[bytes]) -> list[Request]:
    """Give the agent these datagrams; return what it then begins to work on. A greeting is no work."""
    already_begun = len(pair.begun)
    for datagram in datagrams:
        # As slowly as it takes for every one of them to be looked at.
        pair.now += 1.0 / RATE_PER_SECOND
        pair.deliver(datagram)
    assert pair.responder.gate.counters["dropped: rate"] == 0
    return [request for request in pair.begun[already_begun:] if request.cmd is not Command.HELLO]


# Datagrams that were recorded.


def test_recorded_datagrams_start_nothing_whenever_they_come(pair: Pair) -> None:
    datagrams = recorded(pair)
    assert steps_run_by(pair, datagrams) == []
    pair.let_pass(31.0)
    assert steps_run_by(pair, datagrams) == []
    pair.restart_agent()
    assert steps_run_by(pair, datagrams) == []
    pair.let_pass(RESULTS_KEPT_SECONDS)
    assert steps_run_by(pair, datagrams) == []
    pair.restart_agent()
    assert steps_run_by(pair, datagrams) == []
    pair.let_pass(IDS_KEPT_SECONDS)
    assert steps_run_by(pair, datagrams) == []
    pair.restart_agent()
    assert steps_run_by(pair, datagrams) == []
    pair.restart_agent(journal_lost=True)
    assert steps_run_by(pair, datagrams) == []


@pytest.mark.parametrize("meanwhile", ["31 s", "a restart", "a lost journal"])
def test_a_datagram_that_was_held_back_starts_nothing_when_it_is_released(pair: Pair, meanwhile: str) -> None:
    pair.connected = False
    requests = [pair.request(command) for command in COMMANDS]
    if meanwhile == "31 s":
        pair.let_pass(31.0)
    else:
        pair.restart_agent(journal_lost=meanwhile == "a lost journal")
    assert steps_run_by(pair, [sealed(request) for request in requests]) == []
    assert len(pair.executed) == 1
    assert pair.journal.entries == []


def test_datagrams_for_one_agent_are_not_heard_by_another_one(pair: Pair) -> None:
    datagrams = recorded(pair)
    other = Pair(keys=(MASTER.for_agent(DESTINATION),))
    other.restart_agent(journal_lost=True)
    for datagram in (*datagrams, *pair.sent_to_controller):
        other.now += 0.1
        assert other.deliver(datagram) == []
    assert not other.executed
    assert other.responder.gate.counters["dropped: key"] == len(datagrams) + len(pair.sent_to_controller)


def test_without_keys_datagrams_for_one_agent_start_nothing_on_another_one() -> None:
    pair, other = Pair(keys=()), Pair(keys=())
    datagrams = recorded(pair)
    fresh = [sealed(pair.request(command), None) for command in COMMANDS]
    other.restart_agent(journal_lost=True)
    other.now = pair.now
    assert steps_run_by(other, [*datagrams, *fresh]) == []
    for datagram in pair.sent_to_controller:
        other.now += 0.1
        assert other.deliver(datagram) == []
    assert other.journal.entries == []


@pytest.mark.parametrize("keys", [(AGENT_KEY,), ()])
def test_datagrams_that_are_sent_back_to_where_they_came_from_are_not_heard(keys: tuple[Key, ...]) -> None:
    pair = Pair(keys=keys)
    recorded(pair)
    exchange = pair.exchange(pair.request())
    (request,) = exchange.datagrams_to_send(pair.now)
    timer = exchange.get_timer()
    for datagram in (*pair.sent_to_agent, request):
        pair.requester.receive_datagram(datagram, (SOURCE, AGENT_PORT), pair.now)
    assert exchange.next_event() is None
    assert exchange.get_timer() == timer
    for datagram in pair.sent_to_controller:
        pair.now += 0.1
        assert pair.deliver(datagram) == []
    counts = pair.responder.gate.counters
    assert counts["dropped: mac"] + counts["dropped: form"] == len(pair.sent_to_controller)


def test_with_insecure_the_list_alone_decides() -> None:
    pair = Pair(keys=())
    request = pair.request()
    pair.run(pair.exchange(request))
    assert pair.deliver(sealed(pair.request(), AGENT_KEY)) == []
    assert pair.deliver(sealed(pair.request(), None), ("192.0.2.99", 8001)) == []
    assert pair.executed == {request.request_id: 1}


# A bit of a recorded datagram turned over.


def flips(datagram: bytes) -> Iterator[bytes]:
    """The datagram with each single bit turned over in turn."""
    changing = bytearray(datagram)
    for place, bit in itertools.product(range(len(datagram)), range(8)):
        changing[place] ^= 1 << bit
        yield bytes(changing)
        changing[place] ^= 1 << bit


@pytest.fixture(scope="module")
def hundred() -> tuple[list[bytes], list[bytes]]:
    """A hundred datagrams out of real runs, of every kind: fifty requests and fifty replies."""
    pair = Pair(work_seconds=2.0)
    while min(len(pair.sent_to_agent), len(pair.sent_to_controller)) < 50:
        recorded(pair)
    return pair.sent_to_agent[:50], pair.sent_to_controller[:50]


def test_no_bit_of_a_recorded_request_can_be_turned_over(hundred: tuple[list[bytes], list[bytes]]) -> None:
    requests, _replies = hundred
    # An agent that has not seen them.
    agent = responder()
    now, count = 1000.0, 0
    for datagram in requests:
        for flipped in flips(datagram):
            # Within the rate at which an agent looks at datagrams at all.
            now += 1.0 / RATE_PER_SECOND
            agent.receive_datagram(flipped, CONTROLLER, now)
            count += 1
    assert count == 8 * sum(len(datagram) for datagram in requests)
    assert agent.datagrams_to_send(now) == []
    assert agent.next_event() is None
    counts = agent.gate.counters
    assert counts["dropped: form"] + counts["dropped: key"] + counts["dropped: mac"] == counts["received"] == count
    # As they are they would have been answered, or begun.
    for datagram in requests:
        agent.receive_datagram(datagram, CONTROLLER, now)
        assert agent.datagrams_to_send(now) or agent.next_event()
        now += 1.0 / RATE_PER_SECOND


def test_no_bit_of_a_recorded_reply_can_be_turned_over(hundred: tuple[list[bytes], list[bytes]]) -> None:
    requests, replies = hundred
    requester = Requester(AGENT_PORT, lambda: 0.5)
    exchanges = {}
    for datagram in requests:
        request = decode(unseal(datagram, keyring([AGENT_KEY]), Direction.REQUEST)[1])
        assert isinstance(request, Request)
        exchanges[request.request_id] = requester.start(request, [AGENT_KEY], 1000.0, 90.0)
    timers = [exchange.get_timer() for exchange in exchanges.values()]
    for datagram in replies:
        for flipped in flips(datagram):
            requester.receive_datagram(flipped, (SOURCE, AGENT_PORT), 1001.0)
    assert [exchange.next_event() for exchange in exchanges.values()] == [None] * len(exchanges)
    assert [exchange.get_timer() for exchange in exchanges.values()] == timers
    # As they are each exchange hears those that are for it.
    for datagram in replies:
        requester.receive_datagram(datagram, (SOURCE, AGENT_PORT), 1001.0)
    answered = {opened(datagram).request_id for datagram in replies}
    assert {name for name, exchange in exchanges.items() if exchange.next_event()} == answered


# Anything else that somebody may send.

HEADERS = st.builds(
    lambda magic, key_id, mac: b" ".join((magic, key_id, mac)),
    st.sampled_from([b"VMM1", b"VMM2", b""]), st.sampled_from([AGENT_KEY.id.encode(), b"-", b"0" * 8]),
    st.binary(max_size=70) | st.just(b"-") | st.text("0123456789abcdef", min_size=64, max_size=64).map(str.encode))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12)
FIELDS = st.sampled_from([
    "msg_type", "request_id", "agent_ip", "cmd", "cmd_arguments", "cmd_result", "sequence", "epoch", "challenge", "x"])


def fresh(agent: Responder, command: Command = Command.PREPARE_DESTINATION) -> Request:
    """A request that the agent would begin at 1000.0."""
    pair = Pair()
    return changed(pair.request(command), epoch=agent.epoch, challenge=agent.challenge(1000.0))


def noticed(agent: Responder, datagram: bytes) -> bool:
    """Whether the agent answers this datagram or begins anything because of it; if not, it must have been counted."""
    agent.receive_datagram(datagram, CONTROLLER, 1000.0)
    dropped = sum(count for name, count in agent.gate.counters.counts.items() if name.startswith("dropped: "))
    something = bool(agent.datagrams_to_send(1000.0) or agent.next_event() or agent.entries_to_write())
    assert something or dropped == 1
    return something


@given(st.binary(max_size=1300))
def test_no_bytes_without_a_seal_get_an_answer(datagram: bytes) -> None:
    assert not noticed(responder(), datagram)


@given(HEADERS, st.booleans(), st.binary(max_size=1300))
def test_no_header_that_somebody_makes_up_gets_an_answer(header: bytes, real: bool, body: bytes) -> None:
    agent = responder()
    assert not noticed(agent, header + b"\n" + (encode(fresh(agent)) if real else body))


@given(st.data())
def test_no_part_of_a_datagram_can_be_put_in_the_place_of_another(data: st.DataObject) -> None:
    agent = responder()
    datagrams = [sealed(fresh(agent, command)) for command in COMMANDS]
    one, other = data.draw(st.sampled_from(datagrams)), data.draw(st.sampled_from(datagrams))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(one))] * 2)))
    spliced = one[:start] + data.draw(st.just(other[start:end]) | st.binary(max_size=end - start + 5)) + one[end:]
    assert noticed(agent, spliced) == (spliced in datagrams)


@given(st.binary(max_size=1000) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_nothing_below_a_right_seal_but_a_request_gets_an_answer(body: bytes) -> None:
    agent = responder()
    assert not noticed(agent, seal(AGENT_KEY, Direction.REQUEST, body))
    assert agent.gate.counters["dropped: form"] == 1


@given(st.sampled_from(COMMANDS), st.dictionaries(FIELDS, JSON_VALUES, max_size=3))
def test_a_request_with_random_fields_is_dropped_or_refused_or_is_exactly_what_then_runs(
    command: Command, changes: dict[str, object],
) -> None:
    agent = responder()
    body = json.dumps({**json.loads(encode(fresh(agent, command))), **changes}).encode()
    datagram = seal(AGENT_KEY, Direction.REQUEST, body)
    agent.receive_datagram(datagram, CONTROLLER, 1000.0)
    replies = [opened(reply) for reply, _address in agent.datagrams_to_send(1000.0)]
    event = agent.next_event()
    assert all(reply.msg_type is MessageType.REFUSED for reply in replies)
    assert len(replies) + (event is not None) + agent.gate.counters["dropped: form"] + (
        agent.gate.counters["dropped: size"]) == 1
    if event is not None:
        assert event.request == decode(body)


MIGRATION_ON_THE_WIRE = to_wire(MIGRATION)


@pytest.mark.parametrize(("command", "arguments", "code"), [
    (Command.PREPARE_DESTINATION, arguments, code) for arguments, code in (
        ({}, ErrorCode.MESSAGE_INVALID), ([], ErrorCode.MESSAGE_INVALID), (None, ErrorCode.MESSAGE_INVALID),
        ("x", ErrorCode.MESSAGE_INVALID), (1.5, ErrorCode.MESSAGE_INVALID),
        ({"migration": {}}, ErrorCode.MESSAGE_INVALID),
        ({"migration": MIGRATION_ON_THE_WIRE, "shell": "id"}, ErrorCode.MESSAGE_INVALID),
        ({"migration": {**MIGRATION_ON_THE_WIRE, "shell": "id"}}, ErrorCode.MESSAGE_INVALID),
        ({"migration": {**MIGRATION_ON_THE_WIRE, "source": "node1"}}, ErrorCode.MESSAGE_INVALID),
        ({"migration": MIGRATION_ON_THE_WIRE, "source_keeps": 1}, ErrorCode.MESSAGE_INVALID),
        ({"migration": MIGRATION_ON_THE_WIRE, "facts": None}, ErrorCode.MESSAGE_INVALID),
        ({"migration": {**MIGRATION_ON_THE_WIRE, "domain": "\ud800"}}, ErrorCode.MESSAGE_INVALID),
        ({"\udfff": MIGRATION_ON_THE_WIRE}, ErrorCode.MESSAGE_INVALID),
        # Where a record names the mistake in the admin's words, those are told.
        ({"migration": {**MIGRATION_ON_THE_WIRE, "user": "-oProxyCommand=id"}}, ErrorCode.ARGUMENTS_INVALID),
        ({"migration": {**MIGRATION_ON_THE_WIRE, "disk": "/etc/../x"}}, ErrorCode.PATH_INVALID),
    )
] + [
    (command, arguments, ErrorCode.MESSAGE_INVALID) for command, arguments in (
        (Command.HELLO, {"x": 1}), (Command.HELLO, []), (Command.CANCEL, {}), (Command.CANCEL, {"job_id": 1}),
        (Command.STATUS, {}), (Command.STATUS, {"of": ""}), (Command.STATUS, {"of": None}),
        (Command.STATUS, {"of": "x" * 32}), (Command.STATUS, {"of": ["f" * 32]}),
        (Command.STATUS, {"of": "f" * 32, "page": -1}), (Command.STATUS, {"of": "f" * 32, "page": True}),
    )
])
def test_a_request_whose_arguments_are_wrong_is_refused_with_what_is_wrong_and_nothing_runs(
    pair: Pair, command: Command, arguments: object, code: ErrorCode,
) -> None:
    request = pair.request(command)
    body = json.dumps({**json.loads(encode(request)), "cmd_arguments": arguments}).encode("ascii")
    ((datagram, address),) = pair.deliver(seal(AGENT_KEY, Direction.REQUEST, body))
    reply = opened(datagram)
    assert refused(reply) is code
    assert (reply.request_id, reply.cmd, address) == (request.request_id, command, CONTROLLER)
    assert len(datagram) < len(sealed(request)) + 200
    assert not pair.executed
    assert pair.journal.entries == []


def test_wrong_arguments_under_the_id_of_a_request_that_runs_change_nothing(pair: Pair) -> None:
    request = pair.request()
    answer(pair, request)
    body = json.dumps({**json.loads(encode(request)), "cmd_arguments": {}}).encode()
    pair.deliver(seal(AGENT_KEY, Direction.REQUEST, body))
    pair.let_pass(10.0)
    assert answer(pair, request).cmd_result == result_of(request)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["request_id", "agent_ip", "cmd", "epoch", "challenge"])
def test_a_lone_surrogate_outside_the_arguments_is_dropped(pair: Pair, command: Command, place: str) -> None:
    fields = json.loads(encode(pair.request(command)))
    fields[place] += "\ud800"
    assert pair.deliver(seal(AGENT_KEY, Direction.REQUEST, json.dumps(fields).encode("ascii"))) == []
    assert pair.responder.gate.counters["dropped: form"] == 1
    assert not pair.executed


@given(st.ip_addresses().map(str).filter(lambda address: address != CONTROLLER[0]), st.sampled_from(COMMANDS))
def test_an_address_that_is_not_listed_gets_no_answer_even_with_the_key(address: str, command: Command) -> None:
    agent = responder()
    agent.receive_datagram(sealed(fresh(agent, command)), (address, 8001), 1000.0)
    assert agent.datagrams_to_send(1000.0) == []
    assert agent.next_event() is None
    assert agent.gate.counters.counts == {"received": 1, "dropped: source": 1}


@pytest.mark.parametrize("source", ["", "localhost", "192.0.2.1\n", "192.0.2", "::1%", "\x00"])
def test_a_sender_whose_address_is_none_is_dropped(pair: Pair, source: str) -> None:
    assert pair.deliver(sealed(pair.request()), (source, 0)) == []
    assert pair.responder.gate.counters["dropped: source"] == 1
    assert not pair.executed


@pytest.mark.parametrize(("reason", "datagram"), [
    ("size", b"VMM1 - -\n" + b" " * DATAGRAM_LIMIT),
    ("form", b"GET / HTTP/1.1\r\n\r\n"),
    ("form", b""),
    ("key", seal(None, Direction.REQUEST, b"{}")),
    ("key", seal(Key(bytes(32)), Direction.REQUEST, b"{}")),
    ("mac", seal(AGENT_KEY, Direction.REPLY, b"{}")),
    ("form", seal(AGENT_KEY, Direction.REQUEST, b"{}")),
    ("form", seal(AGENT_KEY, Direction.REQUEST, b'{"cmd": NaN}')),
    ("form", seal(AGENT_KEY, Direction.REQUEST, b"[" * 1000)),
    ("form", seal(AGENT_KEY, Direction.REQUEST, b"1" * 1000)),
    ("form", seal(AGENT_KEY, Direction.REQUEST, encode(Reply(
        msg_type=MessageType.ACCEPTED, request_id="0" * 32, agent_ip=SOURCE, cmd=Command.HELLO, sequence=0)))),
])
def test_what_is_dropped_is_counted_under_its_reason(pair: Pair, reason: str, datagram: bytes) -> None:
    assert pair.deliver(datagram) == []
    assert pair.responder.gate.counters.counts == {"received": 1, f"dropped: {reason}": 1}
