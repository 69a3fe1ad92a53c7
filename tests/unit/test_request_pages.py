"""Requests that do not fit one datagram: they are begun once, as they were sent, or not at all; what is not complete is
never put together with anything else, and does not stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constant import (
    CHALLENGE_SECONDS,
    DATAGRAM_LIMIT,
    PAGES_LIMIT,
    RATE_BURST,
    REQUEST_PAGES_LIMIT,
    RESULTS_KEPT_SECONDS,
    UNFINISHED_LIMIT,
    Command,
    MessageType,
)
from tests.unit.pair import Network, Pair, changed, done, opened, refused, responder, result_of, sealed
from tests.unit.samples import (
    AGENT_KEY,
    CONTROLLER,
    DESTINATION,
    EVERY_REQUEST,
    FACTS,
    MASTER,
    MIGRATION,
    REQUEST_ID,
    SOURCE,
    FakeClock,
)
from udpmodule import Responder
from wire.access import Key
from wire.assembly import Assembly
from wire.datagram import Direction, keyring, seal, seal_request, unseal
from wire.errors import ErrorCode, MigrationError
from wire.memory import Begun
from wire.message import Reply, Request, decode, encode
from wire.records import Page, StatusArguments, StepArguments

OTHER_KEY = Key(bytes(range(32, 64))).for_agent(SOURCE)
TEXTS = st.builds(
    lambda text, times: (text * times)[:2000],
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\n\x00ü…😀'), max_size=30),
    st.integers(1, 200))


@pytest.fixture
def pair() -> Pair:
    """A pair on a perfect network."""
    return Pair()


def arguments(*texts: str) -> StepArguments:
    """A step's arguments that hold these texts."""
    return StepArguments(migration=MIGRATION, facts=dataclasses.replace(FACTS, secrets=texts))


def long(request: Request, size: int, sign: str = "x") -> Request:
    """The same request with so many more signs in its arguments."""
    texts = [sign * 1000] * (size // 1000)
    return changed(request, cmd_arguments=arguments(*texts, sign * (size % 1000)))


FINISH = changed(EVERY_REQUEST[0], cmd=Command.FINISH, cmd_arguments=arguments())


def longest(request: Request) -> Request:
    """The same request with as much in its arguments as there may be."""
    size = 1000 * REQUEST_PAGES_LIMIT
    while True:
        with_more = long(request, size)
        try:
            assert len(seal_request(AGENT_KEY, with_more)) == REQUEST_PAGES_LIMIT
        except MigrationError:
            size -= 100
        else:
            return with_more


def page_of(datagram: bytes, key: Key = AGENT_KEY) -> tuple[Request, Page]:
    """The envelope of a page, and the page; the datagram must fit."""
    assert len(datagram) <= DATAGRAM_LIMIT
    request = decode(unseal(datagram, keyring([key]), Direction.REQUEST)[1])
    assert isinstance(request, Request)
    assert isinstance(request.cmd_arguments, Page)
    return request, request.cmd_arguments


def joined(assembly: Assembly, datagrams: Iterable[bytes], now: float = 0.0) -> list[Request]:
    """What comes out of these pages, in order."""
    found = (assembly.add(*page_of(each), AGENT_KEY.id, now) for each in datagrams)
    return [each for each in found if each is not None]


def answers(pair: Pair, datagrams: Iterable[bytes]) -> list[Reply]:
    """What the agent says to these at once."""
    return [opened(answer) for each in datagrams for answer, _address in pair.deliver(each)]


def forged(text: str, envelope: Request, digest: str | None = None, key: Key = AGENT_KEY) -> list[bytes]:
    """Pages of a request of that content, whatever it is, sealed as they should be."""
    size = max(1, min(500, -(-len(text) // 2)))
    parts = [text[start:start + size] for start in range(0, len(text), size)]
    digest = hashlib.sha256(text.encode()).hexdigest() if digest is None else digest
    return [sealed(page(envelope, number, len(parts), digest, part), key) for number, part in enumerate(parts)]


def page(envelope: Request, number: int, pages: int, digest: str = "0" * 64, part: str = "x") -> Request:
    """A page of a request with that envelope."""
    return changed(
        envelope, epoch="", challenge="", cmd_arguments=Page(page=number, pages=pages, digest=digest, part=part))


# One datagram or many.


@pytest.mark.parametrize("request_", EVERY_REQUEST, ids=lambda request: request.cmd.value)
@pytest.mark.parametrize("key", [AGENT_KEY, None])
def test_a_short_request_is_sent_byte_for_byte_as_before_and_a_longer_one_in_pages(
    request_: Request, key: Key | None,
) -> None:
    datagrams = seal_request(key, request_)
    if len(sealed(request_, key)) <= DATAGRAM_LIMIT:
        assert datagrams == (sealed(request_, key),)
    else:
        assert len(datagrams) > 1
        assert max(map(len, datagrams)) <= DATAGRAM_LIMIT


def test_the_last_request_that_fits_is_one_datagram_and_the_next_is_two_pages(pair: Pair) -> None:
    short = changed(pair.request(), cmd_arguments=arguments("x"))
    # The field and its quotation marks come with the first letter.
    room = DATAGRAM_LIMIT - len(sealed(short)) + 1
    last = changed(short, cmd_arguments=arguments("x" * room))
    assert seal_request(AGENT_KEY, last) == (sealed(last),)
    assert len(sealed(last)) == DATAGRAM_LIMIT
    following = changed(short, cmd_arguments=arguments("x" * (room + 1)))
    pages = seal_request(AGENT_KEY, following)
    assert len(pages) == 2
    assert joined(Assembly(), pages) == [following]


@given(st.lists(TEXTS, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_any_request_comes_out_as_it_was_sent_in_whatever_order_its_pages_come(
    texts: list[str], dice: random.Random,
) -> None:
    request = changed(FINISH, cmd_arguments=arguments("x" * 1000, *texts))
    pages = [*seal_request(AGENT_KEY, request)]
    assert len({page_of(each)[1].digest for each in pages}) == 1
    assert page_of(pages[0])[1].digest == hashlib.sha256(encode(request)).hexdigest()
    dice.shuffle(pages)
    assembly = Assembly()
    assert joined(assembly, pages[:-1]) == []
    assert joined(assembly, pages[-1:]) == [request]
    assert len(assembly) == 0


# Over the network.


@pytest.mark.parametrize("network", [
    Network(), Network(delay=0.3), Network(drop=0.3), Network(duplicate=0.5, reorder=0.5),
    Network(drop=0.2, duplicate=0.3, reorder=0.3, corrupt=0.05, truncate=0.05, delay=0.1),
])
def test_a_long_request_arrives_whole_over_any_network_is_begun_once_and_its_result_comes_back(
    network: Network,
) -> None:
    pair = Pair(network, seed=9)
    for size in (0, 1000, 3000, 6000, 10_000, 20_000):
        request = long(pair.request(), size)
        assert done(pair, request) == result_of(request)
        assert pair.executed[request.request_id] == 1
        assert pair.begun[-1] == request
        pair.let_pass(60.0)
    assert max(map(len, (*pair.sent_to_agent, *pair.sent_to_controller))) <= DATAGRAM_LIMIT


def test_where_nothing_is_lost_each_page_is_sent_once(pair: Pair) -> None:
    request = long(pair.request(), 10_000)
    began = pair.now
    done(pair, request)
    assert pair.sent_to_agent[:len(seal_request(AGENT_KEY, request))] == [*seal_request(AGENT_KEY, request)]
    assert not set(pair.sent_to_agent[len(seal_request(AGENT_KEY, request)):]) & {*seal_request(AGENT_KEY, request)}
    assert pair.now - began < pair.work_seconds + 0.1


@pytest.mark.parametrize("seed", range(8))
def test_an_agents_rate_limit_lets_the_longest_request_through_even_if_a_third_is_lost(seed: int) -> None:
    pair = Pair(Network(drop=0.3), seed=seed, work_seconds=1.0)
    request = longest(pair.request())
    assert len(seal_request(AGENT_KEY, request)) == REQUEST_PAGES_LIMIT
    assert done(pair, request) == result_of(request)
    assert pair.executed == {request.request_id: 1}


def test_the_longest_request_passes_the_rate_limit_in_one_burst_beside_a_few_others(pair: Pair) -> None:
    pages = seal_request(AGENT_KEY, longest(pair.request()))
    others = [sealed(pair.request(Command.CANCEL)) for _each in range(RATE_BURST - REQUEST_PAGES_LIMIT)]
    replies = answers(pair, [*others, *pages])
    assert [reply.msg_type for reply in replies] == [MessageType.RESPONSE] * len(others) + [MessageType.ACCEPTED]
    assert pair.responder.gate.counters["dropped: rate"] == 0


def test_the_journal_has_the_digest_of_the_whole_request(pair: Pair) -> None:
    request = long(pair.request(), 5000)
    assert [reply.msg_type for reply in answers(pair, seal_request(AGENT_KEY, request))] == [MessageType.ACCEPTED]
    (begun,) = pair.journal.entries
    assert isinstance(begun, Begun)
    assert (begun.request_id, begun.digest) == (request.request_id, hashlib.sha256(encode(request)).hexdigest())
    assert (begun.job_id, begun.domain) == (MIGRATION.job_id, MIGRATION.domain)


# What was taken before, and what is not taken.


def test_a_request_that_was_taken_before_is_answered_once_for_all_its_pages(pair: Pair) -> None:
    request = long(pair.request(Command.FINISH), 5000)
    pages = seal_request(AGENT_KEY, request)
    first = answers(pair, pages)
    assert [reply.msg_type for reply in first] == [MessageType.ACCEPTED]
    for burst in range(1, 4):
        assert answers(pair, pages) == first
        assert pair.responder.gate.counters["repeated"] == burst
    pair.let_pass(10.0)
    (ended,) = answers(pair, pages)
    assert (ended.msg_type, ended.cmd_result) == (MessageType.RESPONSE, result_of(request))
    pair.restart_agent()
    assert [reply.cmd_result for reply in answers(pair, reversed(pages))] == [ended.cmd_result]
    assert pair.executed == {request.request_id: 1}
    pair.let_pass(2 * RESULTS_KEPT_SECONDS)
    assert [refused(reply) for reply in answers(pair, pages)] == [ErrorCode.REQUEST_EXPIRED]
    assert pair.executed == {request.request_id: 1}


def test_another_request_under_the_same_id_is_a_conflict_long_or_short(pair: Pair) -> None:
    request = long(pair.request(), 5000)
    answers(pair, seal_request(AGENT_KEY, request))
    for other in (long(request, 5001), long(request, 5000, "y"), long(request, 0), changed(request, epoch="0" * 16)):
        assert [refused(reply) for reply in answers(pair, seal_request(AGENT_KEY, other))] == [
            ErrorCode.REQUEST_CONFLICT]
    short = pair.request()
    answers(pair, [sealed(short)])
    assert [refused(reply) for reply in answers(pair, seal_request(AGENT_KEY, long(short, 5000)))] == [
        ErrorCode.REQUEST_CONFLICT]
    assert pair.executed == {request.request_id: 1, short.request_id: 1}


@pytest.mark.parametrize("wrong", [{"epoch": "0" * 16}, {"challenge": "1000-0123456789abcdef"}, {"challenge": ""}])
def test_a_long_request_that_is_not_fresh_is_stale(pair: Pair, wrong: dict[str, str]) -> None:
    pages = seal_request(AGENT_KEY, changed(long(pair.request(), 5000), **wrong))
    for _burst in range(2):
        assert [refused(reply) for reply in answers(pair, pages)] == [ErrorCode.REQUEST_STALE]
    assert not pair.executed


def test_a_long_request_whose_last_page_comes_after_its_challenge_has_run_out_is_not_begun(pair: Pair) -> None:
    pages = seal_request(AGENT_KEY, long(pair.request(), 5000))
    pair.let_pass(CHALLENGE_SECONDS - 1.0)
    assert answers(pair, pages[:-1]) == []
    pair.let_pass(2.0)
    assert [refused(reply) for reply in answers(pair, pages[-1:])] == [ErrorCode.REQUEST_STALE]
    assert not pair.executed


def test_arguments_of_a_long_request_that_are_none_are_refused_in_one_datagram(pair: Pair) -> None:
    request = long(pair.request(), 3000)
    content = json.loads(encode(request))
    content["cmd_arguments"]["migration"]["user"] = "-oProxyCommand=x"
    (reply,) = answers(pair, forged(json.dumps(content), request))
    assert refused(reply) is ErrorCode.ARGUMENTS_INVALID
    assert not pair.executed


# Nothing is put together of what does not belong together.


def test_pages_of_several_requests_that_come_mixed_make_each_of_them(pair: Pair) -> None:
    requests = [long(pair.request(), size, sign) for size, sign in ((3000, "x"), (5000, "y"), (5000, "z"))]
    pages = [each for request in requests for each in seal_request(AGENT_KEY, request)]
    random.Random(1).shuffle(pages)  # noqa: S311 - not for secrets: it must be repeatable
    replies = answers(pair, pages)
    assert {reply.request_id: reply.msg_type for reply in replies} == {
        request.request_id: MessageType.ACCEPTED for request in requests}
    assert len(replies) == len(pair.begun) == 3
    assert all(request in pair.begun for request in requests)


@settings(max_examples=100)
@given(st.data())
def test_whatever_order_the_pages_of_requests_of_one_id_come_in_none_is_put_together_of_two(
    data: st.DataObject,
) -> None:
    requests = [long(FINISH, size, sign) for size, sign in ((1500, "x"), (1500, "y"), (1501, "y"))]
    pages = [each for request in requests for each in seal_request(AGENT_KEY, request)]
    for found in joined(Assembly(), data.draw(st.lists(st.sampled_from(pages), max_size=60))):
        assert found in requests


def test_the_same_request_cut_at_another_place_is_not_taken_until_its_pages_fit(pair: Pair) -> None:
    request = long(pair.request(), 1000)
    text = encode(request).decode()
    digest = hashlib.sha256(text.encode()).hexdigest()
    first, *rest = forged(text, request)
    other = sealed(page(request, 0, 1 + len(rest), digest, text[:600]))
    assert answers(pair, [other, *rest]) == []
    assert [reply.msg_type for reply in answers(pair, [first, *rest])] == [MessageType.ACCEPTED]


def test_a_page_under_another_key_of_the_keyring_completes_nothing() -> None:
    pair = Pair(keys=(AGENT_KEY, OTHER_KEY))
    request = long(pair.request(), 3000)
    pages = seal_request(AGENT_KEY, request)
    others = seal_request(OTHER_KEY, request)
    assert len(pages) == len(others)
    assert pair.deliver(others[0]) == []
    for each in pages[1:]:
        assert pair.deliver(each) == []
    assert not pair.begun
    assert [reply.msg_type for reply in answers(pair, pages[:1])] == [MessageType.ACCEPTED]
    # It is answered under the key that completed it; the pages that are left of the other lead to nothing.
    assert [pair.deliver(each) for each in others[1:]] == [[]] * (len(others) - 1)
    assert pair.executed == {request.request_id: 1}


def test_a_page_that_nobody_sealed_does_not_count(pair: Pair) -> None:
    request = long(pair.request(), 3000)
    *pages, last = seal_request(AGENT_KEY, request)
    assert answers(pair, pages) == []
    for key in (None, MASTER, OTHER_KEY):
        assert pair.deliver(seal_request(key, request)[-1]) == []
    assert pair.deliver(seal(AGENT_KEY, Direction.REPLY, last.partition(b"\n")[2])) == []
    assert [reply.msg_type for reply in answers(pair, [last])] == [MessageType.ACCEPTED]


# What is not complete: bounded, and forgotten.


def test_of_more_unfinished_requests_than_there_may_be_the_oldest_is_dropped(pair: Pair) -> None:
    assembly = Assembly()
    requests = [long(pair.request(), 1000) for _each in range(UNFINISHED_LIMIT + 1)]
    pages = [seal_request(AGENT_KEY, request) for request in requests]
    for number, (first, *_rest) in enumerate(pages, 1):
        assert joined(assembly, [first]) == []
        assert len(assembly) == min(number, UNFINISHED_LIMIT)
    assert joined(assembly, pages[1][1:]) == requests[1:2]
    assert joined(assembly, pages[-1][1:]) == requests[-1:]
    # That of the first is gone; all of it is needed again.
    assert joined(assembly, pages[0][1:]) == []
    assert joined(assembly, pages[0][:1]) == requests[:1]


def test_what_is_not_complete_is_forgotten_with_its_challenge(pair: Pair) -> None:
    request = long(pair.request(), 3000)
    *pages, last = seal_request(AGENT_KEY, request)
    clock, assembly = FakeClock(), Assembly()
    assert joined(assembly, pages, clock.now) == []
    clock.now += CHALLENGE_SECONDS
    # Pages that go on coming do not make it live longer.
    assert joined(assembly, pages, clock.now) == []
    assert len(assembly) == 1
    clock.now += 1.0
    assert joined(assembly, [last], clock.now) == []
    assert len(assembly) == 1
    assert joined(assembly, pages, clock.now) == [request]
    assert len(assembly) == 0


# What its pages do not come to.


@pytest.mark.parametrize("text", [
    "{", "[]", "null", "NaN", "{}", '{"a":1,"a":2}', "[" * 900, "\x00\x01", "ü" * 400,
    encode(page(FINISH, 0, 1)).decode(),
    encode(Reply(msg_type=MessageType.ACCEPTED, request_id=REQUEST_ID, agent_ip=SOURCE, cmd=Command.FINISH,
                 sequence=0)).decode(),
])
def test_what_is_no_request_is_dropped_and_counted_and_nothing_is_said(text: str) -> None:
    assert_dropped_as_form(responder(), forged(text, FINISH))


def assert_dropped_as_form(agent: Responder, pages: Iterable[bytes], times: int = 1) -> None:
    """Give them to the agent: it takes none for a request, and says nothing."""
    before = agent.gate.counters["dropped: form"]
    for each in pages:
        agent.receive_datagram(each, CONTROLLER, 1000.0)
    assert agent.gate.counters["dropped: form"] == before + times
    assert agent.next_event() is None
    assert agent.datagrams_to_send(1000.0) == []


@pytest.mark.parametrize("change", [
    {"request_id": "e" * 32}, {"agent_ip": DESTINATION}, {"cmd": Command.ROLL_BACK},
    {"cmd": Command.STATUS, "cmd_arguments": StatusArguments(of="0" * 32)},
], ids=lambda change: next(iter(change)))
def test_another_request_than_its_envelope_says_is_dropped_and_counted(pair: Pair, change: dict[str, object]) -> None:
    envelope = changed(pair.request(Command.FINISH), cmd_arguments=arguments())
    other = changed(envelope, **change)
    assert_dropped_as_form(pair.responder, forged(encode(other).decode(), envelope))
    # Also if its arguments are wrong, for which the right one would be refused.
    content = {**json.loads(encode(other)), "cmd_arguments": {"x": "y"}}
    assert_dropped_as_form(pair.responder, forged(json.dumps(content), envelope))
    # The id is free for the right one.
    assert [reply.msg_type for reply in answers(pair, [sealed(envelope)])] == [MessageType.ACCEPTED]


@pytest.mark.parametrize("digest", ["", "0" * 64, "ü" * 100])
def test_pages_that_do_not_have_their_digest_come_to_nothing(pair: Pair, digest: str) -> None:
    request = long(pair.request(), 1000)
    for _burst in range(3):
        assert answers(pair, forged(encode(request).decode(), request, digest)) == []
    assert not pair.executed
    assert [reply.msg_type for reply in answers(pair, seal_request(AGENT_KEY, request))] == [MessageType.ACCEPTED]


def test_any_pages_at_all_never_raise() -> None:
    agent = responder()
    dice = random.Random(5)  # noqa: S311 - not for secrets: it must be repeatable
    text = encode(FINISH).decode()
    for number in range(3000):
        envelope = changed(dice.choice(EVERY_REQUEST), request_id=f"{number % 50:032x}")
        pages = dice.choice((1, 2, 3, REQUEST_PAGES_LIMIT, REQUEST_PAGES_LIMIT + 1, PAGES_LIMIT))
        part = dice.choice(("", "{", text[:100], text[100:], text[:500]))
        digest = hashlib.sha256(dice.choice((part, part + part, text)).encode()).hexdigest()
        datagram = sealed(page(envelope, dice.randrange(pages), pages, digest, part))
        agent.receive_datagram(datagram, CONTROLLER, 1000.0 + number)
    assert agent.gate.counters["dropped: form"] > 100
    assert agent.next_event() is None


# The limit.


def test_a_request_of_more_pages_than_there_may_be_is_an_error_at_the_controller(pair: Pair) -> None:
    request = longest(pair.request())
    size = len(encode(request))
    with pytest.raises(MigrationError) as caught:
        seal_request(AGENT_KEY, long(request, size + 1000))
    facts = caught.value.facts
    assert caught.value.code is ErrorCode.MESSAGE_TOO_LONG
    assert (facts["what"], facts["host"]) == (request.cmd.value, SOURCE)
    assert size <= int(facts["limit"]) < int(facts["size"])
    with pytest.raises(MigrationError):
        pair.exchange(long(request, size + 1000))
    assert pair.sent_to_agent == []


@pytest.mark.parametrize("pages", [REQUEST_PAGES_LIMIT + 1, PAGES_LIMIT])
def test_a_page_of_a_request_of_more_pages_than_there_may_be_is_dropped_by_the_agent(pair: Pair, pages: int) -> None:
    datagrams = [sealed(page(pair.request(), number, pages)) for number in (0, pages - 1)]
    assert_dropped_as_form(pair.responder, datagrams, times=2)
