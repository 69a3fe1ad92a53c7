"""The look at all agents of the list and at the ways between them, and what the admin sees of it."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from console.hosts import fleet_json, fleet_text
from constant import Command, ExitCode, LibvirtDaemon, Severity
from control.conversation import ControllerSettings, Conversation
from control.fleet import FleetReport, agents_without, look_at_fleet
from tests.unit.samples import FINE, HOST_FACTS, MASTER, obstacle
from tests.unit.scripted import HAPPY, Call, Notes, ScriptedAgents, Silence, cannot_send_to
from wire.access import AddressList, Key
from wire.errors import ErrorCode, MigrationError
from wire.findings import Check, CheckReport, Finding
from wire.records import LinkArguments

NODES = ("192.0.2.11", "192.0.2.12", "192.0.2.13")
WALL = 1_790_000_000.0
NEW = Key(bytes(range(1, 33)))
NO_LOGIN = obstacle(
    ErrorCode.SSH_LOGIN_REFUSED, Check.SSH, host=NODES[0], destination=NODES[1], user="kvm", reason="no")


def script_of(*changes: Mapping[Call, object]) -> dict[Call, object]:
    """All nodes answer, and each gets through to each, but for the changes."""
    facts = dataclasses.replace(
        HOST_FACTS, clock=round(WALL * 1000), qemu_version=7_002_022, free_slots=1, slots=2,
        space_path="/var/lib/libvirt/images", space_free=5 << 30)
    script: dict[Call, object] = {}
    for node in NODES:
        script[Command.HELLO, node] = facts
        script[Command.CHECK_LINK, node] = CheckReport(findings=(FINE,))
    for change in changes:
        script.update(change)
    return script


def look(
    script: Mapping[Call, object], *lines: str, unusable: str = "", taking: float = 0.0,
) -> tuple[FleetReport, ScriptedAgents]:
    """A look at what these lines of a list name; every address that the script does not know is silent.

    Each answer is `taking` so many seconds.
    """
    agents = ScriptedAgents(step_seconds=taking, tells_when=True, before=cannot_send_to(unusable))
    listed = AddressList(Path("AgentIPAddr.txt"), tuple(ipaddress.ip_network(line) for line in lines or NODES))
    addresses = [str(address) for network in listed.networks if network.num_addresses <= 1024
                 for address in network.hosts()]
    agents.script = {
        **{(Command.HELLO, address): Silence() for address in addresses if (Command.HELLO, address) not in HAPPY},
        **{(Command.HELLO, address): Silence() for address in addresses}, **script}
    talk = Conversation(ControllerSettings(listed, (MASTER,)), agents, Notes(), agents.clock)
    began = agents.clock.now
    return look_at_fleet(talk, "kvm", lambda: WALL + agents.clock.now - began), agents


def links(agents: ScriptedAgents) -> list[LinkArguments]:
    """The ways that were asked about, in order."""
    return [each.request.cmd_arguments for each in agents.asked
            if isinstance(each.request.cmd_arguments, LinkArguments)]


def test_all_hosts_answer_and_every_way_is_tried_in_both_directions() -> None:
    report, agents = look(script_of())
    assert report.exit_code is ExitCode.MOVED
    assert [host.address for host in report.hosts] == list(NODES)
    assert {(pair.source, pair.destination) for pair in report.pairs} == {
        (one, other) for one in NODES for other in NODES if one != other}
    assert not any(pair.errors for pair in report.pairs)
    assert {each.user for each in links(agents)} == {"kvm"}
    assert {each.domain for each in links(agents)} == {None}
    assert len({each.job_id for each in links(agents)}) == len(report.pairs)


def test_in_each_round_every_host_logs_in_once_and_is_logged_in_to_once() -> None:
    _report, agents = look(script_of())
    ways = [(each.source, each.destination) for each in links(agents)]
    for first in range(0, len(ways), len(NODES)):
        turn = ways[first:first + len(NODES)]
        assert sorted(source for source, _destination in turn) == list(NODES)
        assert sorted(destination for _source, destination in turn) == list(NODES)


def test_each_agent_is_asked_for_the_daemon_of_the_other() -> None:
    modular = dataclasses.replace(HOST_FACTS, daemon=LibvirtDaemon.VIRTQEMUD)
    _report, agents = look(script_of({(Command.HELLO, NODES[1]): modular}))
    assert {each.destination_daemon for each in links(agents) if each.destination == NODES[1]} == {
        LibvirtDaemon.VIRTQEMUD}


def test_an_agent_that_is_listed_by_its_address_and_silent_is_an_error() -> None:
    report, agents = look(script_of({(Command.HELLO, NODES[1]): Silence()}))
    assert report.exit_code is ExitCode.NO_CONTACT
    assert [host.address for host in report.hosts if host.error is not None] == [NODES[1]]
    assert {each.source for each in links(agents)} == {NODES[0], NODES[2]}


def test_an_address_that_this_host_cannot_send_to_keeps_no_other_from_being_looked_at() -> None:
    report, _agents = look(script_of(), *NODES, "2001:db8::1", unusable="2001:db8::1")
    assert [(host.address, host.error.code) for host in report.hosts if host.error is not None] == [
        ("2001:db8::1", ErrorCode.ADDRESS_UNUSABLE)]
    assert len(report.pairs) == 6
    assert report.exit_code is ExitCode.NO_CONTACT


def test_an_address_of_a_network_that_this_host_cannot_send_to_is_not_shown() -> None:
    report, _agents = look(script_of(), "2001:db8::/127", *NODES, unusable="2001:db8::1")
    assert [host.address for host in report.hosts] == list(NODES)


def test_of_a_network_only_those_that_answer_are_shown() -> None:
    report, agents = look(script_of(), "192.0.2.8/29", NODES[0])
    assert report.exit_code is ExitCode.MOVED
    assert [host.address for host in report.hosts] == list(NODES)
    asked = [each.request.agent_ip for each in agents.asked if each.request.cmd is Command.HELLO]
    assert sorted(asked) == [f"192.0.2.{number}" for number in (10, *range(11, 15), 9)]


def test_an_agent_in_a_network_that_answers_wrong_is_shown_all_the_same() -> None:
    other = dataclasses.replace(HOST_FACTS, version="0.0.1")
    report, _agents = look(script_of({(Command.HELLO, NODES[2]): other}), "192.0.2.8/29")
    assert [host.address for host in report.hosts if host.error is not None] == [NODES[2]]


def test_a_network_that_is_too_wide_is_not_asked() -> None:
    with pytest.raises(MigrationError) as caught:
        look({}, "10.0.0.0/16")
    assert caught.value.code is ErrorCode.LIST_TOO_LONG
    assert caught.value.facts["count"] == "65536"


@pytest.mark.parametrize("trouble", [
    CheckReport(findings=(FINE, NO_LOGIN)), MigrationError(ErrorCode.AGENT_BUSY, {"host": NODES[0], "count": "32"}),
    Silence(),
])
def test_a_way_that_is_closed_is_told_and_the_others_are_tried(trouble: object) -> None:
    report, _agents = look(script_of({(Command.CHECK_LINK, NODES[0]): trouble}))
    assert report.exit_code is ExitCode.REFUSED
    assert {pair.source for pair in report.pairs if pair.errors} == {NODES[0]}
    assert len(report.pairs) == 6


def test_a_clock_that_is_apart_is_told_once_whichever_way_it_is_off() -> None:
    for seconds in (-100, 100):
        ahead = dataclasses.replace(HOST_FACTS, clock=round((WALL + seconds) * 1000))
        report, _agents = look(script_of({(Command.HELLO, NODES[1]): ahead}))
        (warning,) = report.warnings
        assert warning.code is ErrorCode.CLOCK_SKEWED
        assert {warning.facts["source"], warning.facts["destination"]} > {NODES[1]}
        assert report.hosts[1].clock == pytest.approx(seconds)
        assert report.exit_code is ExitCode.MOVED


def test_an_answer_that_takes_long_makes_no_clock_wrong() -> None:
    for read in (0.0, 2.5):
        facts = dataclasses.replace(HOST_FACTS, clock=round((WALL + read) * 1000))
        report, _agents = look(script_of({(Command.HELLO, NODES[0]): facts}), NODES[0], taking=2.5)
        assert report.hosts[0].clock == 0.0
    behind = dataclasses.replace(HOST_FACTS, clock=round((WALL - 0.04) * 1000))
    report, _agents = look(script_of({(Command.HELLO, NODES[0]): behind}))
    assert report.hosts[0].clock == pytest.approx(-0.04)
    assert "-0.0" not in fleet_text(report)


def test_one_host_alone_has_no_ways_and_no_clock_to_compare() -> None:
    report, _agents = look(script_of(), NODES[0])
    assert (report.pairs, report.warnings, report.exit_code) == ((), (), ExitCode.MOVED)


@pytest.mark.parametrize("lines", [(NODES[0],), NODES])
def test_a_host_whose_libvirt_is_dead_is_told_once_also_if_it_is_the_only_one(lines: tuple[str, ...]) -> None:
    dead = dataclasses.replace(HOST_FACTS, libvirt_version=0)
    unreachable = MigrationError(ErrorCode.LIBVIRT_UNREACHABLE, {"host": NODES[0], "reason": "no such file"})
    finding = Finding(check=Check.LIBVIRT, severity=Severity.STOPS, facts=unreachable.facts, code=unreachable.code)
    report, _agents = look(script_of({
        (Command.HELLO, NODES[0]): dead, (Command.CHECK_LINK, NODES[0]): CheckReport(findings=(finding,))}), *lines)
    assert report.exit_code is ExitCode.REFUSED
    assert [(error.code, error.facts["host"]) for error in report.errors] == [
        (ErrorCode.LIBVIRT_UNREACHABLE, NODES[0])]


def lacking(*answers: Mapping[Key, object]) -> list[str]:
    """The agents that are said to lack the new key; each node answers to some keys, or to none."""
    listed = AddressList(Path("AgentIPAddr.txt"), tuple(ipaddress.ip_network(line) for line in NODES))

    def talk(key: Key) -> Conversation:
        agents = ScriptedAgents(step_seconds=0.0)
        agents.script = {(Command.HELLO, node): each.get(key, Silence()) for node, each in zip(NODES, answers)}
        return Conversation(ControllerSettings(listed, (key,)), agents, Notes(), agents.clock)

    return agents_without(NEW, talk, old=MASTER)


def test_an_agent_that_answers_to_the_old_key_alone_lacks_the_new_one_and_a_silent_one_is_not_told_of() -> None:
    both, old = {MASTER: HOST_FACTS, NEW: HOST_FACTS}, {MASTER: HOST_FACTS}
    assert lacking(both, both, both) == []
    assert lacking(both, old, {}) == [NODES[1]]
    assert lacking({NEW: HOST_FACTS}, old, old) == [NODES[1], NODES[2]]


# What the admin sees.


def test_the_hosts_and_ways_are_told_in_lines() -> None:
    silent = {(Command.HELLO, NODES[2]): Silence()}
    report, _agents = look(script_of(silent, {(Command.CHECK_LINK, NODES[0]): CheckReport(findings=(NO_LOGIN,))}))
    assert fleet_text(report).splitlines() == [
        "host        name          agent  libvirt  QEMU    clock   free jobs  free space",
        "192.0.2.11  node1         0.6.0  9.0.0    7.2.22  +0.0 s  1 of 2     5.00 GiB in /var/lib/libvirt/images",
        "192.0.2.12  node1         0.6.0  9.0.0    7.2.22  +0.0 s  1 of 2     5.00 GiB in /var/lib/libvirt/images",
        "192.0.2.13  agent-silent",
        "",
        "SSH and libvirt between them:",
        "  192.0.2.11 -> 192.0.2.12  FAILED",
        "  192.0.2.12 -> 192.0.2.11  ok",
    ]


def test_what_a_host_calls_itself_cannot_steer_the_terminal() -> None:
    evil = dataclasses.replace(HOST_FACTS, hostname="\x1b[2Jx\r\n")
    report, _agents = look(script_of({(Command.HELLO, NODES[0]): evil}))
    assert "\x1b" not in fleet_text(report)
    assert "\r" not in fleet_text(report)


def test_the_same_is_there_for_programs() -> None:
    report, _agents = look(script_of({(Command.CHECK_LINK, NODES[0]): CheckReport(findings=(NO_LOGIN,))}))
    told = json.loads(json.dumps(fleet_json(report)))
    assert told["exit_code"] == 3
    assert [host["address"] for host in told["hosts"]] == list(NODES)
    assert told["hosts"][0]["space_free_bytes"] == 5 << 30
    assert {(pair["source"], pair["works"]) for pair in told["pairs"]} == {
        (NODES[0], False), (NODES[1], True), (NODES[2], True)}
