"""IPv4 and IPv6, agents bound to one address, and several controllers and runs at once."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections import Counter

import pytest

from constant import CONTROLLER_PORT, Command, Outcome
from tests.loopback.probe import Probe
from tests.loopback.relay import Relay
from tests.loopback.site import PORT, Site, assert_journal_agrees, fresh_address
from tests.unit.pair import Network
from wire.datagram import Direction, seal
from wire.errors import ErrorCode
from wire.message import Request, encode
from wire.records import HelloArguments

COMMANDS = (Command.EXTRACT_CONFIGURE_FILE, Command.PREPARE_DESTINATION, Command.ROLL_BACK)
RUNS = 8


def test_an_agent_on_ipv6_is_asked_like_any_other(site: Site) -> None:
    node = site.node(address="::1").start()
    results = site.ask(node, COMMANDS).finish().results()
    assert [result.error for result in results] == [None] * (1 + len(COMMANDS))
    assert_journal_agrees(node, results)


def test_a_migration_goes_between_an_ipv6_and_an_ipv4_agent_through_a_lossy_network(site: Site) -> None:
    source, destination = site.node(address="::1", listen=fresh_address()), site.node()
    source.listen = ("::1", PORT + 1)
    with Relay(("::1", PORT), source.listen, Network(drop=0.2, duplicate=0.2, reorder=0.2), seed=6):
        run = site.migrate(source.start(), destination.start(), "--hurry", 10).finish()
    assert (run.outcome, run.errors) == (Outcome.MOVED, [])
    assert len(run.ports) == 2, "one socket for each family"
    for node in (source, destination):
        assert_journal_agrees(node, run.results())


def test_one_agent_serves_an_ipv4_and_an_ipv6_address(site: Site) -> None:
    node, same = site.node(), site.node(address="::1")
    # Controllers derive a key from the address that they know the agent by.
    node.configure([node.key(), same.key()])
    node.start(f"--listen=[::1]:{PORT}")
    for address in (node, same):
        run = site.ask(address, COMMANDS).finish()
        assert [result.error for result in run.results()] == [None] * (1 + len(COMMANDS))
    assert len(node.begun()) == 2 * len(COMMANDS)


def test_an_agent_that_is_bound_to_one_address_hears_nothing_at_another_and_answers_from_its_own(site: Site) -> None:
    node = site.node().start()
    hello = seal(node.key(), Direction.REQUEST, encode(Request(
        request_id=secrets.token_hex(16), agent_ip=node.address, cmd=Command.HELLO, cmd_arguments=HelloArguments())))
    with contextlib.closing(Probe(node)) as probe, contextlib.closing(Probe(node)) as other:
        other.send_to((fresh_address(), PORT), [hello])
        probe.wait_for_agent()
        assert not other.received()
        # Takes answers from the agent's own address only.
        other.connect()
        other.wait_for_agent()


def test_eight_controllers_at_once_move_a_vm_each_and_one_of_them_has_the_controllers_port(site: Site) -> None:
    # A controller of somebody else's on this machine may hold it.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.bind(("", CONTROLLER_PORT))
        except OSError:
            free = False
        else:
            free = True
    source, destination = site.node().start("--work", "LIVE_MIGRATION=0.3"), site.node().start()
    go = site.directory / "go"
    runs = [
        site.migrate(source, destination, "--go", go, job_id=f"{number:08x}", domain=f"VM{number}")
        for number in range(RUNS)]
    go.touch()
    results = []
    for run in runs:
        assert (run.finish().outcome, run.errors) == (Outcome.MOVED, [])
        results += run.results()
    for node in (source, destination):
        assert_journal_agrees(node, results)
    times = Counter((each.job_id, each.cmd, each.agent_ip) for each in site.executions() if each.event == "begun")
    assert len(times) == 12 * RUNS
    assert set(times.values()) == {1}
    ports = [port for run in runs for port in run.ports]
    assert len(ports) == RUNS
    assert not free or CONTROLLER_PORT in ports


@pytest.mark.parametrize("controllers", [4])
def test_of_several_controllers_that_want_the_same_vm_at_once_only_one_at_a_time_has_it(
    site: Site, controllers: int,
) -> None:
    source, destination = site.node().start("--work", "LIVE_MIGRATION=1"), site.node().start()
    go = site.directory / "go"
    runs = [site.migrate(source, destination, "--go", go, job_id=f"{number:08x}") for number in range(controllers)]
    go.touch()
    moved = 0
    for run in runs:
        run.finish()
        moved += run.outcome is Outcome.MOVED
        assert run.outcome is Outcome.MOVED or run.errors == [ErrorCode.DOMAIN_LOCKED.value], run.errors
    live = [each for each in site.executions() if each.cmd == Command.LIVE_MIGRATION.value]
    assert moved >= 1
    assert [each.event for each in live] == ["begun", "done"] * moved
    assert all(begun.job_id == done.job_id for begun, done in zip(live[::2], live[1::2]))
