"""What stands before authentication: how much one source may send, that memory stays bounded whoever sends, and what
the log says of it.
"""

from __future__ import annotations

import ipaddress
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import LOOK_AFTER_SECONDS, RATE_BURST, RATE_PER_SECOND, Command
from tests.unit.pair import Network, Pair, changed, responder, sealed
from tests.unit.samples import AGENT_KEY, CONTROLLER, CONTROLLERS, MASTER
from wire.access import AddressList, Key
from wire.admission import Counters, Gate, RateLimit
from wire.datagram import Dropped

EVERYBODY = AddressList(Path("ControllerIPAddr.txt"), (ipaddress.ip_network("10.0.0.0/8"),))
A, B = "192.0.2.1", "192.0.2.2"


def admitted(rate: RateLimit, source: str, count: int, now: float) -> int:
    """How many of so many datagrams at once from this source are looked at."""
    return sum(rate.admits(source, now) for _each in range(count))


def spoofed(count: int, start: int = 0) -> list[str]:
    """So many addresses, all different, in the network that is listed."""
    return [str(ipaddress.ip_address("10.0.0.0") + number) for number in range(start, start + count)]


# The rate of one source.


def test_a_source_may_send_a_burst_and_then_so_many_a_second() -> None:
    rate = RateLimit()
    assert (RATE_BURST, RATE_PER_SECOND) == (40, 20)
    assert admitted(rate, A, 100, 1000.0) == 40
    assert admitted(rate, A, 100, 1000.0 + 1 / 32) == 0
    assert admitted(rate, A, 100, 1000.0 + 2 / 32) == 1
    assert admitted(rate, A, 100, 1001.0 + 2 / 32) == 20
    assert admitted(rate, A, 100, 2000.0) == 40


def test_a_source_that_keeps_to_its_rate_is_always_looked_at() -> None:
    rate = RateLimit()
    assert all(rate.admits(A, 1000.0 + number / RATE_PER_SECOND) for number in range(1000))


def test_a_source_that_never_stops_gets_its_rate_and_no_more() -> None:
    rate = RateLimit()
    # 1000 a second for a minute.
    count = sum(rate.admits(A, 1000.0 + number / 1000) for number in range(60_000))
    assert RATE_BURST + 60 * RATE_PER_SECOND - 2 <= count <= RATE_BURST + 60 * RATE_PER_SECOND


def test_a_source_that_floods_does_not_stop_another() -> None:
    rate = RateLimit()
    for number in range(200):
        now = 1000.0 + number / RATE_PER_SECOND
        admitted(rate, A, 50, now)
        assert rate.admits(B, now)


def test_what_is_dropped_for_its_rate_is_not_looked_at_and_is_counted() -> None:
    pair = Pair()
    for _each in range(RATE_BURST):
        pair.deliver(b"noise")
    assert pair.deliver(sealed(pair.request())) == []
    assert pair.responder.gate.counters["dropped: rate"] == 1
    assert not pair.executed
    # Another port is no other source.
    assert pair.deliver(sealed(pair.request()), (CONTROLLER[0], 45678)) == []
    pair.now += 1.0
    assert len(pair.deliver(sealed(pair.request()))) == 1


# Bounded memory.


def test_buckets_that_are_full_again_make_room_for_others() -> None:
    rate = RateLimit(sources_limit=10)
    for source in spoofed(10):
        assert rate.admits(source, 1000.0)
    now = 1000.0 + RATE_BURST / RATE_PER_SECOND
    # Each has a bucket of its own.
    assert [admitted(rate, source, 100, now) for source in (A, B)] == [RATE_BURST, RATE_BURST]
    assert len(rate) == 2


def test_a_source_that_has_used_up_its_burst_is_not_forgotten_to_make_room() -> None:
    rate = RateLimit(sources_limit=10)
    admitted(rate, A, 100, 1000.0)
    for source in spoofed(100):
        rate.admits(source, 1000.5)
    assert admitted(rate, A, 100, 1001.0) == RATE_PER_SECOND


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), max_size=60), st.integers(1, 12))
def test_there_are_never_more_buckets_than_the_limit(arrivals: Sequence[tuple[int, float]], limit: int) -> None:
    rate, now = RateLimit(sources_limit=limit), 1000.0
    for source, later in arrivals:
        now += later
        rate.admits(str(source), now)
        assert len(rate) <= limit


def test_forged_addresses_of_a_listed_network_take_no_more_memory_than_the_limit() -> None:
    gate = Gate(EVERYBODY)
    sizes = []
    for number, source in enumerate(spoofed(20_000)):
        try:
            gate.pass_in(source, 1000.0 + number / 20_000)
        except Dropped as reason:
            gate.counters.drop(str(reason), source, 8001)
        if number % 1000 == 999:
            sizes.append(sys.getsizeof(gate._rate._buckets))
    assert set(gate.counters.counts) == {"dropped: rate"}
    # It stopped growing after the first few thousand.
    assert len(set(sizes[2:])) == 1
    assert sizes[-1] < 200_000


def test_a_source_that_has_been_heard_is_heard_on_while_others_forge_addresses() -> None:
    rate = RateLimit(sources_limit=100)
    assert rate.admits(A, 1000.0)
    forged = iter(spoofed(100_000))
    for second in range(1, 21):
        for _each in range(300):
            rate.admits(next(forged), 1000.0 + second - 0.5)
        assert rate.admits(A, 1000.0 + second)


def test_new_sources_beyond_the_limit_share_what_one_source_may_send() -> None:
    rate = RateLimit(sources_limit=10)
    for source in spoofed(10):
        rate.admits(source, 1000.0)
    assert sum(rate.admits(source, 1000.1) for source in spoofed(1000, start=10)) <= RATE_BURST


def test_the_list_comes_before_the_rate_so_that_strangers_take_no_memory_at_all() -> None:
    gate = Gate(CONTROLLERS)
    for source in spoofed(1000):
        with pytest.raises(Dropped, match="source"):
            gate.pass_in(source, 1000.0)
    assert len(gate._rate) == 0


# Counters.


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that the counters wrote."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("datagrams so far")]


def test_counters_are_logged_at_most_once_a_minute_and_only_with_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    agent = responder()
    now = 1000.0
    for _each in range(600):
        now += 0.5
        agent.receive_datagram(b"noise", CONTROLLER, now)
        agent.handle_timer(now)
    assert len(lines_of(caplog)) == 300 // LOOK_AFTER_SECONDS
    assert lines_of(caplog)[-1] == "datagrams so far: dropped: form 600, received 600"
    caplog.clear()
    for _minute in range(5):
        now += LOOK_AFTER_SECONDS
        agent.handle_timer(now)
    assert lines_of(caplog) == []


def test_ordinary_traffic_is_no_news_but_a_repeated_request_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pair = Pair()
    request = pair.request()
    pair.run(pair.exchange(request))
    pair.let_pass(LOOK_AFTER_SECONDS)
    assert lines_of(caplog) == []
    pair.deliver(sealed(request))
    pair.let_pass(LOOK_AFTER_SECONDS)
    assert lines_of(caplog) == ["datagrams so far: received 2, repeated 1"]


def test_only_the_first_datagram_dropped_for_each_reason_has_a_line_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counters = Counters()
    for reason in ("source", "mac"):
        for number in range(1000):
            counters.drop(reason, A, number)
    assert [record.getMessage() for record in caplog.records] == [
        f"dropped: source: a datagram from {A} port 0; more of them are counted",
        f"dropped: mac: a datagram from {A} port 0; more of them are counted"]
    assert counters["dropped: mac"] == 1000


def test_nothing_secret_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pair = Pair(Network(drop=0.2, duplicate=0.2, corrupt=0.2, truncate=0.1), seed=1)
    other = Key(b"x" * 32)
    for number in range(20):
        pair.journal.before_write = lambda _write, number=number: "full" if number % 5 == 4 else None  # type: ignore[misc]
        request = pair.request()
        pair.run(pair.exchange(request))
        pair.deliver(sealed(changed(request, cmd=Command.FINISH)))
        pair.deliver(sealed(changed(pair.request(), challenge=pair.responder.challenge(0.0))))
        pair.deliver(sealed(pair.request(), other))
        pair.let_pass(LOOK_AFTER_SECONDS)
    pair.responder.reconfigure(CONTROLLERS, (other,))
    assert caplog.text
    macs = {datagram.split()[2].decode() for datagram in (*pair.sent_to_agent, *pair.sent_to_controller)}
    secrets = {key.secret.hex() for key in (MASTER, AGENT_KEY, other)} | {repr(AGENT_KEY.secret), repr(other.secret)}
    for secret in (*secrets, *macs, pair.responder.challenge(1000.0).partition("-")[2]):
        assert secret not in caplog.text
