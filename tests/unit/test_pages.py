"""Results that do not fit one datagram: they come back as they were sent, whatever is lost on the way, and pages of two
results are never put together.
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

from constant import DATAGRAM_LIMIT, GIVE_UP_SECONDS, PAGES_LIMIT, Command, DomainState, MessageType
from tests.unit.pair import Network, Pair, answer, done, error_of, opened, refused, sealed, status_of
from tests.unit.samples import AGENT_KEY, FACTS, MIGRATION, SOURCE, obstacle
from wire.access import Key
from wire.datagram import Direction, Pages, keyring, seal, seal_reply, unseal
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange, GaveUp
from wire.findings import CheckReport
from wire.message import Reply, Request, decode, encode
from wire.records import Obstacle, Page, RollBackReport, StatusArguments, StepReport
from wire.schema import LONGEST_TEXT, to_wire

# Signs of one to four bytes, and those that JSON escapes, some of them twice.
SIGNS = ("x", '"', "\\", "/", "\n", "\x00", "\x1f", "\x7f", "ü", "…", "\u2028", "\ue000", "\U0001f600")
TEXTS = st.builds(
    lambda text, times: (text * times)[:LONGEST_TEXT],
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(SIGNS), max_size=30), st.integers(1, 300))


def reply_with(result: object, command: Command = Command.CHECK_SOURCE, sequence: int = 3) -> Reply:
    """The end of a request with that result."""
    return Reply(
        msg_type=MessageType.RESPONSE, request_id="0" * 31 + "1", agent_ip=SOURCE, cmd=command, sequence=sequence,
        cmd_result=result)


def report(*texts: str) -> CheckReport:
    """A result that holds these texts."""
    return CheckReport(facts=FACTS, findings=tuple(
        obstacle(ErrorCode.INTERNAL, host=SOURCE, reason=text) for text in texts))


def report_of(size: int) -> CheckReport:
    """A result with so many letters in its texts."""
    return report(*["x" * LONGEST_TEXT] * (size // LONGEST_TEXT), "x" * (size % LONGEST_TEXT))


def pages_of(reply: Reply, key: Key | None = AGENT_KEY) -> list[Reply]:
    """All datagrams that carry a reply, opened; each must fit."""
    first = _opened(seal_reply(key, reply), key)
    if not isinstance(first.cmd_result, Page):
        return [first]
    return [first, *(_opened(seal_reply(key, reply, page), key) for page in range(1, first.cmd_result.pages))]


def _opened(datagram: bytes, key: Key | None) -> Reply:
    assert len(datagram) <= DATAGRAM_LIMIT
    message = decode(unseal(datagram, keyring([key] if key else []), Direction.REPLY)[1])
    assert isinstance(message, Reply)
    return message


def joined(replies: Iterable[Reply]) -> Reply | None:
    """What Pages make of these, None if something is missing."""
    pages, last = Pages(), None
    for last in replies:
        if not isinstance(last.cmd_result, Page):
            return last
        pages.add(last.cmd_result)
    return None if last is None or pages.missing() else pages.joined(last)


# Back as it was sent.


@given(st.lists(TEXTS, max_size=6), st.sampled_from([AGENT_KEY, None]), st.randoms(use_true_random=False))
def test_any_result_comes_back_as_it_was_sent(texts: list[str], key: Key | None, dice: random.Random) -> None:
    reply = reply_with(report(*texts))
    pages = pages_of(reply, key)
    dice.shuffle(pages)
    assert joined(pages) == reply


@pytest.mark.parametrize("sign", SIGNS)
def test_a_result_of_any_sign_comes_back_as_it_was_sent(sign: str) -> None:
    for length in (*range(150, 160), 1000, LONGEST_TEXT):
        reply = reply_with(StepReport(summary=sign * length), Command.FINISH)
        assert joined(pages_of(reply)) == reply


def test_a_result_around_the_length_of_a_datagram_comes_back_as_it_was_sent() -> None:
    counts = []
    for length in range(800, 1000):
        reply = reply_with(StepReport(summary="x" * length), Command.FINISH)
        pages = pages_of(reply)
        counts.append(len(pages))
        assert joined(pages) == reply
    assert sorted(counts) == counts
    assert set(counts) == {1, 2}


def test_a_page_is_as_full_as_a_datagram_allows() -> None:
    reply = reply_with(report_of(20_000))
    *full, _last = (len(seal_reply(AGENT_KEY, reply, page)) for page in range(len(pages_of(reply))))
    # Room is kept for longer numbers, and for the question that it answers.
    assert min(full) >= DATAGRAM_LIMIT - 55


@pytest.mark.parametrize("msg_type", [MessageType.RESPONSE, MessageType.REFUSED])
def test_an_error_can_be_as_long_as_a_result(msg_type: MessageType) -> None:
    for reason in ("x" * LONGEST_TEXT, "ü" * 400, "\\\n\"" * 1000):
        error = Obstacle(code=ErrorCode.MIGRATION_FAILED, facts={"domain": "VM1", "host": SOURCE, "reason": reason})
        reply = dataclasses.replace(reply_with(error), msg_type=msg_type)
        assert joined(pages_of(reply)) == reply


def test_an_error_of_any_length_arrives_with_its_beginning() -> None:
    pair = Pair()
    reason = "ü" * 100_000
    pair.result_of = lambda _request: MigrationError(ErrorCode.INTERNAL, {"host": SOURCE, "reason": reason})
    last = pair.run(pair.exchange(pair.request()))[-1]
    assert error_of(last) is ErrorCode.INTERNAL
    assert isinstance(last, Reply)
    assert isinstance(last.cmd_result, Obstacle)
    told = last.cmd_result.facts["reason"]
    assert len(told) == LONGEST_TEXT
    assert reason.startswith(told[:-1])
    assert told.endswith("…")


def test_a_refusal_of_what_is_not_remembered_fits_one_datagram_because_nobody_could_ask_for_its_second_page() -> None:
    pair = Pair()
    request = pair.request()
    # Two bytes each, which an error message shows as four letters and JSON as five.
    arguments = {"migration": {**to_wire(MIGRATION), "user": "\x80" * 300}}
    body = json.dumps({**json.loads(encode(request)), "cmd_arguments": arguments}, ensure_ascii=False,
                      separators=(",", ":")).encode()
    ((datagram, _address),) = pair.deliver(seal(AGENT_KEY, Direction.REQUEST, body))
    assert refused(opened(datagram)) is ErrorCode.ARGUMENTS_INVALID


# The limit.


def test_a_result_of_as_many_pages_as_there_may_be_comes_back_and_a_longer_one_is_an_error() -> None:
    size, longest = 44_000, pages_of(reply_with(report()))
    while len(pages := pages_of(reply_with(report_of(size)))) > 1:
        longest, size = pages, size + 200
    assert len(longest) == PAGES_LIMIT
    assert joined(longest) == reply_with(report_of(size - 200))
    (error,) = pages
    assert error_of(error) is ErrorCode.MESSAGE_TOO_LONG
    assert isinstance(error.cmd_result, Obstacle)
    facts = error.cmd_result.facts
    assert facts["host"] == SOURCE
    assert "CHECK_SOURCE" in facts["what"]
    assert int(facts["limit"]) < int(facts["size"]) < int(facts["limit"]) + 2000


def test_a_result_that_is_too_long_ends_the_request_with_that_error() -> None:
    pair = Pair()
    pair.result_of = lambda _request: report_of(1_000_000)
    last = pair.run(pair.exchange(pair.request(Command.CHECK_SOURCE)))[-1]
    assert error_of(last) is ErrorCode.MESSAGE_TOO_LONG
    assert max(map(len, pair.sent_to_controller)) <= DATAGRAM_LIMIT


def test_a_page_that_there_is_not_is_taken_for_the_first() -> None:
    long, short = reply_with(report_of(5000)), reply_with(report())
    for page in (64, 2**63 - 1):
        assert seal_reply(AGENT_KEY, long, page) == seal_reply(AGENT_KEY, long, 0)
        assert seal_reply(AGENT_KEY, short, page) == seal_reply(AGENT_KEY, short, 0)


# Over the network.


def asked_pages(pair: Pair) -> list[int]:
    """The page of each STATUS that was sent, in order."""
    requests = (decode(unseal(each, keyring([AGENT_KEY]), Direction.REQUEST)[1]) for each in pair.sent_to_agent)
    return [
        request.cmd_arguments.page for request in requests
        if isinstance(request, Request) and isinstance(request.cmd_arguments, StatusArguments)]


@pytest.mark.parametrize("network", [
    Network(), Network(delay=0.3), Network(drop=0.3), Network(duplicate=0.5, reorder=0.5),
    Network(drop=0.2, duplicate=0.3, reorder=0.3, corrupt=0.05, truncate=0.05, delay=0.1),
])
def test_a_long_result_arrives_whole_over_any_network(network: Network) -> None:
    pair = Pair(network, seed=9)
    for size in (0, 1000, 3000, 10_000, 20_000, 45_000):
        pair.result_of = lambda _request, size=size: report_of(size)  # type: ignore[misc]
        request = pair.request(Command.CHECK_SOURCE)
        assert done(pair, request) == report_of(size)
        assert pair.executed[request.request_id] == 1
    assert max(map(len, (*pair.sent_to_agent, *pair.sent_to_controller))) <= DATAGRAM_LIMIT


def test_each_page_is_asked_for_once_where_nothing_is_lost_and_without_waiting() -> None:
    pair = Pair(work_seconds=1.0)
    pair.result_of = lambda _request: report_of(25_000)
    began = pair.now
    done(pair, pair.request(Command.CHECK_SOURCE))
    asked = asked_pages(pair)
    assert asked == list(range(1, len(asked) + 1))
    assert len(asked) > 25
    assert pair.now - began < 1.1


def test_the_longest_result_is_not_held_up_much_by_what_an_agent_takes_from_one_source() -> None:
    pair = Pair(work_seconds=1.0)
    pair.result_of = lambda _request: report_of(47_000)
    began = pair.now
    done(pair, pair.request(Command.CHECK_SOURCE))
    assert pair.now - began < 10.0


def test_no_more_than_eight_pages_are_asked_for_at_once_and_only_those_that_are_missing() -> None:
    pair = Pair()
    request = pair.request(Command.CHECK_SOURCE)
    pair.result_of = lambda _request: report_of(20_000)
    pair.deliver(sealed(request))
    pair.let_pass(10.0)
    exchange = pair.exchange(request)
    pages = [answer(pair, status_of(request, page)) for page in range(24)]
    for page in (pages[0], pages[2], pages[5]):
        exchange.receive_reply(page, pair.now)
    count = len(exchange.datagrams_to_send(pair.now))
    assert count == 8
    for number in (1, 3, 4, 6, 7, 8, 9):
        exchange.receive_reply(pages[number], pair.now)
        assert exchange.datagrams_to_send(pair.now) == []
    exchange.receive_reply(pages[10], pair.now)
    asked = [decode(unseal(each, keyring([AGENT_KEY]), Direction.REQUEST)[1])
             for each in exchange.datagrams_to_send(pair.now)]
    assert [each.cmd_arguments for each in asked if isinstance(each, Request)] == [
        StatusArguments(of=request.request_id, page=page) for page in range(11, 19)]


def test_a_result_of_many_pages_survives_a_restart_in_the_middle() -> None:
    pair = Pair()
    # The result of a check would not survive it: it is not in the journal.
    removed = RollBackReport(state=DomainState.RUNNING, removed=("/srv/" + "x" * 2000,) * 15)
    pair.result_of = lambda _request: removed
    exchange = pair.exchange(pair.request(Command.ROLL_BACK))
    pair.run(exchange, until=lambda: len(asked_pages(pair)) > 10)
    assert not exchange.ended
    pair.restart_agent()
    last = pair.run(exchange)[-1]
    assert isinstance(last, Reply)
    assert last.cmd_result == removed


# Pages of two results.


def an_exchange() -> Exchange:
    """An exchange for the request whose replies reply_with() makes."""
    request = Pair().request(Command.CHECK_SOURCE)
    return Exchange(
        dataclasses.replace(request, request_id="0" * 31 + "1"), (AGENT_KEY,), 0.0, GIVE_UP_SECONDS, lambda: 0.5)


def test_a_result_that_changes_between_two_pages_is_never_mixed_with_the_one_before() -> None:
    before, after = reply_with(report("x" * 2800)), reply_with(report("y" * 2800), sequence=0)
    old, new = pages_of(before), pages_of(after)
    assert len(old) == len(new) == 5
    exchange = an_exchange()
    for page in (old[0], old[1], old[2], old[3], new[4]):
        exchange.receive_reply(page, 1.0)
        assert not exchange.ended
    # It begins anew with the later one.
    for page in (new[2], new[0], new[3], new[1]):
        assert not exchange.ended
        exchange.receive_reply(page, 1.0)
    assert exchange.outcome == after


@settings(max_examples=50)
@given(st.data())
def test_whatever_order_the_pages_of_several_results_come_in_none_is_put_together_of_two(data: st.DataObject) -> None:
    replies = [reply_with(report(sign * length)) for sign, length in (("x", 2000), ("y", 2000), ("y", 2001))]
    pages = [page for reply in replies for page in pages_of(reply)]
    exchange = an_exchange()
    for page in data.draw(st.lists(st.sampled_from(pages), max_size=60)):
        exchange.receive_reply(page, 1.0)
    assert exchange.outcome is None or exchange.outcome in replies


def test_a_short_end_between_two_pages_is_the_end() -> None:
    # The agent was started anew, and the journal did not have the result.
    first, *_rest = pages_of(reply_with(report_of(5000)))
    interrupted = reply_with(Obstacle(code=ErrorCode.REQUEST_INTERRUPTED, facts={"host": SOURCE}), sequence=0)
    exchange = an_exchange()
    exchange.receive_reply(first, 1.0)
    exchange.receive_reply(interrupted, 1.0)
    assert exchange.outcome == interrupted


def test_pages_that_do_not_fit_each_other_are_all_asked_for_again() -> None:
    # The same result, cut at another place: it has the same digest and as many pages.
    pages = [page.cmd_result for page in pages_of(reply_with(report("x" * 700)))]
    assert len(pages) == 2
    first, second = pages
    assert isinstance(first, Page)
    assert isinstance(second, Page)
    exchange = an_exchange()
    exchange.receive_reply(reply_with(dataclasses.replace(first, part=first.part + "xx")), 1.0)
    exchange.receive_reply(reply_with(second), 1.0)
    assert not exchange.ended
    for page in pages:
        exchange.receive_reply(reply_with(page), 2.0)
    assert exchange.outcome == reply_with(report("x" * 700))


def test_pages_that_do_not_come_to_a_result_are_an_error_and_no_crash() -> None:
    for text in ("{", "[]", "null", '{"value":{}}', '{"value":1}', '{"page":{}}', "NaN", '{"a":1,"a":2}', "[" * 900):
        exchange = an_exchange()
        for number in (0, 1):
            exchange.receive_reply(reply_with(Page(
                page=number, pages=2, digest=hashlib.sha256(text.encode()).hexdigest(),
                part=text if number else "")), 1.0)
        assert exchange.outcome is not None
        assert not isinstance(exchange.outcome, GaveUp)
        assert error_of(exchange.outcome) is ErrorCode.MESSAGE_INVALID
