"""Real processes with a bad network between them: whatever it loses, each command ends with what its agent says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from constant import Command, MessageType, Outcome
from tests.loopback.probe import Probe
from tests.loopback.relay import Relay
from tests.loopback.site import (
    PORT,
    Node,
    Site,
    assert_journal_agrees,
    fresh_address,
    many_at_once,
    wait_until,
)
from tests.unit.pair import Network

# None of them begins a job, of which an agent takes only so many.
COMMANDS = (
    Command.CHECK_SOURCE, Command.CHECK_DESTINATION, Command.EXTRACT_CONFIGURE_FILE, Command.DEFINE_VIRTUAL_MACHINE,
    Command.FINISH, Command.ROLL_BACK)
# Where half of all is lost each way, three of four questions go unanswered: with the real timers a command would take
# half a minute.
HURRY = ("--hurry", 20)
# At that loss 90 s of the real timers can pass without a word, one time in a hundred: here nobody gives up.
PATIENCE = 60.0
CONTROLLERS = 5


@contextmanager
def behind_relays(site: Site, network: Network, count: int, seed: int = 7) -> Iterator[list[tuple[Node, Relay]]]:
    """Nodes whose agents are reached through a relay each."""
    with ExitStack() as relays:
        found = []
        for number in range(count):
            node = site.node(listen=fresh_address())
            relay = Relay((node.address, PORT), node.listen, network, seed=seed + number)
            found.append((node, relays.enter_context(relay)))
        yield found


@pytest.mark.parametrize("loss", [0.2, 0.3, 0.5])
def test_every_command_ends_with_the_agents_result_whatever_is_lost_doubled_overtaken_and_damaged(
    tmp_path: Path, loss: float,
) -> None:
    def doubled(duplicate: float) -> None:
        network = Network(drop=loss, duplicate=duplicate, reorder=0.25, corrupt=0.05, truncate=0.05)
        with Site(tmp_path / str(duplicate)) as site, behind_relays(site, network, 1, round(100 * loss)) as [
                (node, relay)]:
            node.start()
            runs = [site.ask(node, COMMANDS, *HURRY, patience=PATIENCE) for _controller in range(CONTROLLERS)]
            results = [result for run in runs for result in run.finish().results()]
            assert_journal_agrees(node, results)
            answered = [result for result in results if result.cmd != Command.HELLO.value]
            assert Counter(result.cmd for result in answered) == {command.value: CONTROLLERS for command in COMMANDS}
            assert all(result.msg_type == MessageType.RESPONSE.value and result.error is None for result in answered)
            assert node.executed().total() == len(answered)
            assert len(relay.recorded) > 2 * len(results), "the relay did nothing"

    many_at_once(doubled, [0.0, 0.1, 0.5])


@pytest.mark.parametrize("loss", [0.2, 0.3])
def test_a_migration_through_a_lossy_network_runs_each_step_once(site: Site, loss: float) -> None:
    network = Network(drop=loss, duplicate=0.25, reorder=0.25)
    with behind_relays(site, network, 2) as [(source, _), (destination, _)]:
        source.start()
        destination.start()
        run = site.migrate(source, destination, "--hurry", 10).finish()
        assert (run.outcome, run.errors) == (Outcome.MOVED, [])
        for node in (source, destination):
            assert_journal_agrees(node, run.results())
        assert len([each for each in site.executions() if each.event == "begun"]) == 12


def test_requests_of_several_datagrams_are_begun_once_whatever_is_lost_doubled_overtaken_and_damaged(
    site: Site,
) -> None:
    network = Network(drop=0.3, duplicate=0.1, reorder=0.25, corrupt=0.05, truncate=0.05)
    with behind_relays(site, network, 1) as [(node, relay)]:
        node.start()
        results = site.ask(node, COMMANDS, *HURRY, patience=PATIENCE, longer=3000).finish().results()
        assert_journal_agrees(node, results)
        answered = [result for result in results if result.cmd != Command.HELLO.value]
        assert [result.cmd for result in answered] == [command.value for command in COMMANDS]
        assert all(result.msg_type == MessageType.RESPONSE.value and result.error is None for result in answered)
        assert node.executed().total() == len(COMMANDS)
        assert sum(b'"part":' in request for request in relay.requests()) >= 4 * len(COMMANDS)


def test_an_agent_that_is_cut_off_for_a_while_is_followed_to_the_end_of_its_work(site: Site) -> None:
    with behind_relays(site, Network(), 1) as [(node, relay)]:
        node.start("--work", "LIVE_MIGRATION=2")
        run = site.ask(node, [Command.LIVE_MIGRATION], *HURRY)
        while not any(each.cmd == Command.LIVE_MIGRATION.value for each in site.executions()):
            assert run.runs
        relay.network = Network(drop=1.0)
        while not any(each.event == "done" for each in site.executions()):
            assert run.runs
        relay.network = Network()
        assert_journal_agrees(node, run.finish().results())
        assert node.executed().total() == 1


def test_what_a_relay_does_depends_on_nothing_but_its_seed(tmp_path: Path) -> None:
    network = Network(drop=0.3, duplicate=0.3, reorder=0.3, corrupt=0.3, truncate=0.3)

    def arrived(seed: int) -> Counter[bytes]:
        with Site(tmp_path) as site:
            sink = Probe(site.node())
            front = (fresh_address(), PORT)
            with Relay(front, sink.address, network, seed=seed, held_back_seconds=0.05) as relay:
                source = Probe(site.node())
                source.send_to(front, [b"datagram %03d" % number for number in range(150)])
                wait_until("all have come", lambda: len(relay.recorded) == 150 and relay.idle)
            return Counter(sink.received())

    assert arrived(1) == arrived(1)
    assert arrived(1) != arrived(2)
