"""A recorded run, sent again to live agents: nothing is executed, and nobody without the key is answered."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from constant import CHALLENGE_SECONDS, GIVE_UP_SECONDS, Command, Outcome
from tests.loopback.probe import answers_to, open_reply
from tests.loopback.relay import Relay
from tests.loopback.site import PORT, UNLISTED, Node, Site, assert_journal_agrees, executions, fresh_address
from wire.datagram import Direction, seal, unseal
from wire.errors import ErrorCode

# Past the life of a challenge, of a result, and of the memory of an id.
LATER = (CHALLENGE_SECONDS + 1, 25 * 3600.0, 31 * 24 * 3600.0)
HURRY = ("--hurry", 20)


@dataclass
class Captured:
    """A whole migration, as somebody on the network saw it."""

    site: Site
    nodes: tuple[Node, Node]
    relays: tuple[Relay, Relay]

    def requests(self, node: Node) -> list[bytes]:
        """What its agent was sent."""
        return self.relays[self.nodes.index(node)].requests()

    def replies(self, node: Node) -> list[bytes]:
        """What its agent sent."""
        return self.relays[self.nodes.index(node)].replies()


@pytest.fixture
def captured(site: Site) -> Iterator[Captured]:
    """Both agents are still there, and have served a migration."""
    nodes = site.node(listen=fresh_address()), site.node(listen=fresh_address())
    with ExitStack() as stack:
        relays = tuple(stack.enter_context(Relay((node.address, PORT), node.listen)) for node in nodes)
        for node in nodes:
            # Long enough that there is a STATUS in what is recorded.
            node.start("--work", "LIVE_MIGRATION=0.4")
        run = site.migrate(*nodes, *HURRY).finish()
        assert run.outcome is Outcome.MOVED
        captured = Captured(site, nodes, (relays[0], relays[1]))
        commands = [command.encode() for command in ("HELLO", "STATUS", "LIVE_MIGRATION", "FINISH")]
        assert all(any(command in request for request in captured.requests(nodes[0])) for command in commands)
        yield captured
        for node in nodes:
            assert node.running.runs, "the agent has ended"


def assert_nothing_is_executed(captured: Captured, do: Callable[[Node], object]) -> None:
    """Do it to each node; both agents still work after it."""
    for node in captured.nodes:
        before = executions(node.executions_path)
        do(node)
        # What was to be begun would be in the journal before this.
        run = captured.site.ask(node, [Command.EXTRACT_CONFIGURE_FILE], *HURRY).finish()
        new = executions(node.executions_path)[len(before):]
        assert {each.request_id for each in new} == {run.results()[-1].request_id}
        assert set(node.executed().values()) == {1}


def replay(captured: Captured, node: Node) -> None:
    """Send its agent all that it was ever sent, three times and in another order."""
    recorded = captured.requests(node) * 3
    random.Random(3).shuffle(recorded)  # noqa: S311 - not for secrets: it must be repeatable
    answers = answers_to(node, recorded)
    # They are sealed by the controller, so they are answered, and to nobody's surprise.
    assert answers
    assert all(open_reply(node, answer) for answer in answers)


def test_a_run_replayed_right_away_executes_nothing(captured: Captured) -> None:
    assert_nothing_is_executed(captured, lambda node: replay(captured, node))


def test_a_run_replayed_later_executes_nothing(captured: Captured) -> None:
    def replay_later(node: Node) -> None:
        for seconds in LATER:
            node.pass_time(seconds)
            replay(captured, node)

    assert_nothing_is_executed(captured, replay_later)


@pytest.mark.parametrize("journal_lost", [False, True])
def test_a_run_replayed_to_an_agent_that_was_started_again_executes_nothing(
    captured: Captured, journal_lost: bool,
) -> None:
    def restart_and_replay(node: Node) -> None:
        for seconds in (0.0, *LATER):
            node.running.end()
            if journal_lost:
                shutil.rmtree(node.state_directory)
            node.pass_time(seconds)
            node.start()
            replay(captured, node)

    assert_nothing_is_executed(captured, restart_and_replay)


def test_replies_reflected_to_the_agent_that_sent_them_are_not_answered(captured: Captured) -> None:
    def reflect(node: Node) -> None:
        assert captured.replies(node)
        assert not answers_to(node, captured.replies(node))

    assert_nothing_is_executed(captured, reflect)


def test_a_run_redirected_to_another_agent_is_not_answered(captured: Captured) -> None:
    def redirect(node: Node) -> None:
        other = next(each for each in captured.nodes if each is not node)
        assert not answers_to(node, captured.requests(other))
        assert not answers_to(node, captured.replies(other))

    assert_nothing_is_executed(captured, redirect)


def test_a_run_replayed_from_an_address_that_is_not_listed_is_not_answered(captured: Captured) -> None:
    def replay_from_elsewhere(node: Node) -> None:
        requests = captured.requests(node)
        assert not answers_to(node, requests, [UNLISTED] * len(requests))

    assert_nothing_is_executed(captured, replay_from_elsewhere)


def test_a_recorded_request_under_any_other_seal_is_not_answered(captured: Captured) -> None:
    def seal_otherwise(node: Node) -> None:
        for request in captured.requests(node):
            header, _, body = request.partition(b"\n")
            other = next(each for each in captured.nodes if each is not node).key()
            magic, key_id, mac = header.split(b" ")
            for changed in (
                seal(None, Direction.REQUEST, body), seal(other, Direction.REQUEST, body),
                seal(node.key(), Direction.REPLY, body), b"%b %b %b\n%b" % (magic, other.id.encode(), mac, body),
                b"%b %b -\n%b" % (magic, key_id, body), b"%b %b \n%b" % (magic, key_id, body), body, header + b"\n",
                request + b"\n", request + b" ", b" " + request, request[:-1], request.replace(b"VMM1", b"VMM2"),
                request.upper(), header + b"\r\n" + body,
            ):
                assert not answers_to(node, [changed]), changed
        assert unseal(captured.requests(node)[0], {node.key().id: node.key()}, Direction.REQUEST)

    assert_nothing_is_executed(captured, seal_otherwise)


@pytest.mark.parametrize(("seconds", "restarted", "runs"), [
    (0.0, False, 1), (CHALLENGE_SECONDS + 1, False, 0), (GIVE_UP_SECONDS, False, 0), (0.0, True, 0),
])
def test_a_request_that_was_held_back_on_its_way_runs_only_while_it_is_fresh(
    site: Site, seconds: float, restarted: bool, runs: int,
) -> None:
    node = site.node(listen=fresh_address()).start()
    with Relay((node.address, PORT), node.listen) as relay:
        relay.withhold = lambda datagram: b'"PREPARE_DESTINATION"' in datagram
        run = site.ask(node, [Command.PREPARE_DESTINATION], *HURRY, patience=0.5).finish()
        assert run.results()[-1].msg_type == "gave up"
        held_back = [request for request in relay.requests() if relay.withhold(request)]
        if restarted:
            node.running.end()
            node.start()
        node.pass_time(seconds)
        replies = [open_reply(node, answer) for answer in answers_to(node, held_back * 2)]
        codes = {error.code for reply in replies if reply is not None and (error := reply.error()) is not None}
        assert codes == (set() if runs else {ErrorCode.REQUEST_STALE})
        site.ask(node, [Command.EXTRACT_CONFIGURE_FILE], *HURRY).finish()
        assert node.executed()[held_back_id(node, held_back[0])] == runs
        assert_journal_agrees(node, [])


def held_back_id(node: Node, datagram: bytes) -> str:
    """The id of the request in a datagram."""
    body = unseal(datagram, {node.key().id: node.key()}, Direction.REQUEST)[1]
    return body.partition(b'"request_id":"')[2][:32].decode()
