"""A request longer than a datagram: it arrives whole over any network, is begun once, and takes bounded room."""

from __future__ import annotations

import dataclasses
import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constant import (
    CHALLENGE_SECONDS,
    DATAGRAM_LIMIT,
    RATE_BURST,
    REQUEST_PAGES_LIMIT,
    UNFINISHED_LIMIT,
    Command,
    MessageType,
)
from tests.unit.pair import Network, Pair, changed, done, opened, refused, responder, result_of, sealed
from tests.unit.samples import AGENT_KEY, CONTROLLER, FACTS, MIGRATION
from wire.assembly import Assembly
from wire.datagram import Direction, keyring, seal, seal_request, unseal
from wire.errors import ErrorCode, MigrationError
from wire.message import Request, decode, encode
from wire.records import Page, StepArguments

NOW = 1000.0


def long(request: Request, size: int = 5000) -> Request:
    """The same with arguments of about that many bytes."""
    texts = tuple("ü" * min(1000, left // 2) for left in range(size, 0, -2000))
    facts = dataclasses.replace(FACTS, secrets=texts)
    return changed(request, cmd_arguments=StepArguments(migration=MIGRATION, facts=facts))


def pages_of(request: Request) -> list[Request]:
    """The pages of a request as the agent reads them; each must fit a datagram."""
    found = []
    for datagram in seal_request(AGENT_KEY, request):
        assert len(datagram) <= DATAGRAM_LIMIT
        message = decode(unseal(datagram, keyring([AGENT_KEY]), Direction.REQUEST)[1])
        assert isinstance(message, Request)
        found.append(message)
    return found


def page_of(request: Request) -> Page:
    """The page in one of them."""
    assert isinstance(request.cmd_arguments, Page)
    return request.cmd_arguments


# Cutting and joining.


def test_a_request_that_fits_is_sent_as_it_always_was() -> None:
    request = Pair().request()
    assert seal_request(AGENT_KEY, request) == (sealed(request),)


@given(st.integers(1200, 24_000), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_a_long_request_is_put_together_in_whatever_order_its_pages_come(size: int, dice: random.Random) -> None:
    request = long(Pair().request(), size)
    pages = pages_of(request) * 2
    dice.shuffle(pages)
    assembly = Assembly()
    joined: list[Request] = []
    for page in pages:
        if not joined and (whole := assembly.add(page, page_of(page), "key", NOW)) is not None:
            joined.append(whole)
    assert joined == [request]


def test_a_request_of_more_pages_than_there_may_be_is_not_sent() -> None:
    request = Pair().request()
    assert REQUEST_PAGES_LIMIT - 3 <= len(seal_request(AGENT_KEY, long(request, 25_000))) <= REQUEST_PAGES_LIMIT
    with pytest.raises(MigrationError) as caught:
        seal_request(AGENT_KEY, long(request, 28_000))
    assert caught.value.code is ErrorCode.MESSAGE_TOO_LONG
    # Beside a greeting and a question or two, all its pages get in at once.
    assert REQUEST_PAGES_LIMIT + 8 <= RATE_BURST


# Over the network.


@pytest.mark.parametrize("network", [
    Network(), Network(delay=0.3), Network(drop=0.3), Network(duplicate=0.5, reorder=0.5),
    Network(drop=0.2, duplicate=0.3, reorder=0.3, corrupt=0.05, truncate=0.05, delay=0.1),
])
def test_a_long_request_is_begun_once_over_any_network_and_answered(network: Network) -> None:
    pair = Pair(network, seed=4)
    for size in (1000, 3000, 9000, 24_000):
        request = long(pair.request(), size)
        assert done(pair, request) == result_of(request)
        assert pair.executed[request.request_id] == 1
        assert pair.begun[-1] == request
    assert max(map(len, pair.sent_to_agent)) <= DATAGRAM_LIMIT


def test_the_longest_request_gets_past_what_an_agent_takes_from_one_source() -> None:
    pair = Pair(Network(drop=0.3), seed=5)
    began, request = pair.now, long(pair.request(), 25_000)
    assert len(seal_request(AGENT_KEY, request)) > REQUEST_PAGES_LIMIT - 4
    done(pair, request)
    assert pair.now - began < CHALLENGE_SECONDS


def test_nothing_is_answered_before_all_pages_are_there_and_then_once() -> None:
    pair = Pair()
    request = long(pair.request())
    *first, last = seal_request(AGENT_KEY, request)
    for datagram in first:
        assert pair.deliver(datagram) == []
    assert [opened(answer).msg_type for answer, _address in pair.deliver(last)] == [MessageType.ACCEPTED]


def test_a_repeated_request_gets_one_answer_for_all_its_pages_and_runs_no_second_time() -> None:
    pair = Pair()
    request = long(pair.request())
    result = done(pair, request)
    answers = [opened(answer) for datagram in seal_request(AGENT_KEY, request)
               for answer, _address in pair.deliver(datagram)]
    assert [answer.cmd_result for answer in answers] == [result]
    assert pair.executed[request.request_id] == 1


def test_the_same_id_with_other_content_is_a_conflict_whether_in_pages_or_not() -> None:
    pair = Pair()
    request = long(pair.request())
    done(pair, request)
    other = seal_request(AGENT_KEY, long(request, 9000))[0]
    ((answer, _address),) = pair.deliver(other)
    assert refused(opened(answer)) is ErrorCode.REQUEST_CONFLICT
    short = changed(request, cmd_arguments=StepArguments(migration=MIGRATION))
    ((answer, _address),) = pair.deliver(sealed(short))
    assert refused(opened(answer)) is ErrorCode.REQUEST_CONFLICT
    assert sum(pair.executed.values()) == 1


def test_a_long_request_survives_a_restart_as_a_short_one_does() -> None:
    pair = Pair()
    request = long(pair.request())
    result = done(pair, request)
    pair.restart_agent()
    first, *_rest = seal_request(AGENT_KEY, request)
    ((answer, _address),) = pair.deliver(first)
    assert opened(answer).cmd_result == result


def test_pages_that_were_held_back_are_stale_when_they_are_complete() -> None:
    pair = Pair()
    request = long(changed(pair.request(), challenge="1-0123456789abcdef"))
    answers = [answer for datagram in seal_request(AGENT_KEY, request) for answer, _address in pair.deliver(datagram)]
    assert [refused(opened(answer)) for answer in answers] == [ErrorCode.REQUEST_STALE]


# What does not belong together.


def test_pages_of_two_requests_are_never_mixed() -> None:
    one, other = (long(changed(Pair().request(), request_id=f"{number:032x}")) for number in (1, 2))
    assembly = Assembly()
    joined: list[Request] = []
    for pages in zip(pages_of(one), pages_of(other), strict=True):
        joined += [whole for page in pages if (whole := assembly.add(page, page_of(page), "key", NOW)) is not None]
    assert joined == [one, other]
    assert len(assembly) == 0


def test_a_page_under_another_key_does_not_complete_a_request() -> None:
    request = long(Pair().request())
    assembly = Assembly()
    *first, last = pages_of(request)
    for page in first:
        assert assembly.add(page, page_of(page), "key", NOW) is None
    assert assembly.add(last, page_of(last), "other", NOW) is None
    assert assembly.add(last, page_of(last), "key", NOW) == request


def test_a_page_that_says_another_digest_begins_the_request_anew() -> None:
    request = long(Pair().request())
    assembly = Assembly()
    pages = pages_of(request)
    for page in pages[:-1]:
        assembly.add(page, page_of(page), "key", NOW)
    assert assembly.add(pages[-1], dataclasses.replace(page_of(pages[-1]), digest="0" * 64), "key", NOW) is None
    for page in pages[:-1]:
        assert assembly.add(page, page_of(page), "key", NOW) is None
    assert assembly.add(pages[-1], page_of(pages[-1]), "key", NOW) == request


@pytest.mark.parametrize("inside", [
    "{", "[]", '{"msg_type":"accepted"}', "NaN", "[" * 3000,
    encode(Pair().request(Command.HELLO)).decode(), encode(Pair().request(Command.FINISH)).decode(),
    # The same id, and another command than that of the pages.
    encode(changed(Pair().request(Command.FINISH), request_id="e" * 32)).decode(),
    encode(changed(Pair().request(), request_id="e" * 32, agent_ip="192.0.2.12")).decode(),
])
def test_pages_that_do_not_make_their_own_request_are_dropped_and_counted_as_such(inside: str) -> None:
    agent = responder()
    envelope = changed(Pair().request(), request_id="e" * 32, epoch="", challenge="")
    digest = hashlib.sha256(inside.encode()).hexdigest()
    middle = len(inside) // 2
    for number, part in enumerate((inside[:middle], inside[middle:])):
        page = Page(page=number, pages=2, digest=digest, part=part[:900])
        datagram = seal(AGENT_KEY, Direction.REQUEST, encode(changed(envelope, cmd_arguments=page)))
        agent.receive_datagram(datagram, CONTROLLER, NOW)
    assert agent.datagrams_to_send(NOW) == []
    assert agent.next_event() is None
    if len(inside) < 1800:
        assert agent.gate.counters.counts["dropped: form"] == 1


def test_a_page_of_more_pages_than_a_request_has_is_refused() -> None:
    (first, *_rest) = pages_of(long(Pair().request()))
    page = dataclasses.replace(page_of(first), pages=REQUEST_PAGES_LIMIT + 1)
    with pytest.raises(ValueError, match="more pages"):
        Assembly().add(first, page, "key", NOW)


# Room and time.


def test_what_is_unfinished_is_bounded_and_the_oldest_goes_first() -> None:
    assembly = Assembly()
    requests = (changed(Pair().request(), request_id=f"{number:032x}") for number in range(UNFINISHED_LIMIT + 1))
    pages = [pages_of(long(request)) for request in requests]
    for each in pages:
        for page in each[:-1]:
            assembly.add(page, page_of(page), "key", NOW)
        assert len(assembly) <= UNFINISHED_LIMIT
    oldest, *_others, newest = pages
    assert assembly.add(newest[-1], page_of(newest[-1]), "key", NOW) is not None
    assert assembly.add(oldest[-1], page_of(oldest[-1]), "key", NOW) is None


def test_what_is_not_complete_within_a_challenges_life_is_forgotten() -> None:
    assembly = Assembly()
    *first, last = pages_of(long(Pair().request()))
    for page in first:
        assembly.add(page, page_of(page), "key", NOW)
    assert assembly.add(last, page_of(last), "key", NOW + CHALLENGE_SECONDS + 0.1) is None
    assert len(assembly) == 1


@given(st.data())
@settings(max_examples=60)
def test_no_page_whatever_it_holds_ends_an_agent(data: st.DataObject) -> None:
    agent = responder()
    envelope = changed(Pair().request(), epoch="", challenge="")
    for _each in range(data.draw(st.integers(1, 6))):
        pages = data.draw(st.integers(1, 40))
        digest = data.draw(st.sampled_from(["", "a", "0" * 64]))
        page = Page(
            page=data.draw(st.integers(0, pages - 1)), pages=pages, digest=digest,
            part=data.draw(st.text(max_size=50)))
        body = encode(changed(envelope, cmd_arguments=page))
        agent.receive_datagram(seal(AGENT_KEY, Direction.REQUEST, body), CONTROLLER, NOW)
    assert agent.next_event() is None
