"""kill -9 of the agent around every write to its journal, and what the controller that goes on is told."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from constant import Command, MessageType, Outcome
from tests.loopback.kill_point import AFTER, BEFORE, WITHIN
from tests.loopback.site import Node, Site, assert_journal_agrees, many_at_once, wait_until
from wire.errors import ErrorCode

COMMANDS = (Command.EXTRACT_CONFIGURE_FILE, Command.PREPARE_DESTINATION, Command.LIVE_MIGRATION, Command.FINISH)
# Of these nothing is left to be done, so that after a day their ids alone are known.
ENDED_JOBS = (Command.EXTRACT_CONFIGURE_FILE, Command.DEFINE_VIRTUAL_MACHINE, Command.FINISH)
# The agent writes the head of its journal, and then a line as each request begins and one as it ends: not of checks.
HEAD = 1
ON_SOURCE = (Command.COPY_DISK_FILE, Command.LIVE_MIGRATION, Command.FINISH)
ON_DESTINATION = (
    Command.PREPARE_DESTINATION, Command.EXTRACT_CONFIGURE_FILE, Command.DEFINE_VIRTUAL_MACHINE, Command.FINISH)
# What must not run twice.
ONLY_ONCE = (Command.PREPARE_DESTINATION, Command.LIVE_MIGRATION)


def writes(commands: tuple[Command, ...]) -> range:
    """The numbers of the writes to the journal that these requests come to."""
    return range(HEAD, HEAD + 2 * len(commands) + 1)


def interrupted(commands: tuple[Command, ...], write: int, when: str) -> Command | None:
    """The command whose beginning the journal holds, and not its end, if the agent is killed at that write."""
    which, is_end = divmod(write - HEAD - 1, 2)
    if write == HEAD or (when == AFTER) is bool(is_end):
        return None
    return commands[which]


def outcome(lost: Command | None, when: str) -> Outcome:
    """How a migration ends in which that step was begun and never ended.

    A migration that libvirt has begun goes on without the agent, which finds out how it ended when it comes back.
    """
    never_began = lost is Command.LIVE_MIGRATION and when == AFTER
    return Outcome.ROLLED_BACK if lost is Command.PREPARE_DESTINATION or never_began else Outcome.MOVED


def start_again_when_killed(node: Node) -> None:
    """Wait until the agent has died of its own hand, then start it as it should be."""
    wait_until("killed", lambda: not node.running.runs)
    assert node.running.killed, node.running.log.read_text()
    node.start()


@pytest.mark.parametrize("when", [BEFORE, WITHIN, AFTER])
def test_an_agent_killed_at_any_write_of_its_journal_executes_nothing_twice_and_tells_the_truth(
    tmp_path: Path, when: str,
) -> None:
    def killed_at(write: int) -> None:
        with Site(tmp_path / str(write)) as site:
            node = site.node()
            node.start("--kill-at", write, when, wait=write != HEAD)
            run = site.ask(node, COMMANDS)
            start_again_when_killed(node)
            results = run.finish().results()
            assert_journal_agrees(node, results)
            ends = [
                (Command(result.cmd), result.error) for result in results
                if result.msg_type == MessageType.RESPONSE.value and result.cmd != Command.HELLO.value]
            lost = interrupted(COMMANDS, write, when)
            never_ran = lost is not None and when == AFTER
            found_out = lost is Command.LIVE_MIGRATION and not never_ran
            assert ends == [
                (command, ErrorCode.REQUEST_INTERRUPTED.value if command is lost and not found_out else None)
                for command in COMMANDS]
            assert node.executed().total() == len(COMMANDS) - never_ran

    many_at_once(killed_at, writes(COMMANDS))


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize("victim", [ON_SOURCE, ON_DESTINATION], ids=["source", "destination"])
def test_a_migration_one_of_whose_agents_is_killed_at_any_write_ends_as_it_says(
    tmp_path: Path, victim: tuple[Command, ...], when: str,
) -> None:
    def killed_at(write: int) -> None:
        with Site(tmp_path / str(write)) as site:
            source, destination = site.node(), site.node()
            killed, spared = (source, destination) if victim is ON_SOURCE else (destination, source)
            spared.start()
            killed.start("--kill-at", write, when, wait=write != HEAD)
            run = site.migrate(source, destination)
            start_again_when_killed(killed)
            run.finish()
            for node in (source, destination):
                assert_journal_agrees(node, run.results())
            lost = interrupted(victim, write, when)
            assert run.outcome is outcome(lost, when)
            moved = [each for each in site.executions() if (each.event, each.cmd) == ("done", "LIVE_MIGRATION")]
            if run.runs_on is not None:
                assert run.runs_on == (destination.address if moved else source.address)
            begun = Counter(
                (Command(each.cmd), each.agent_ip) for each in site.executions() if each.event == "begun")
            assert not [what for what, times in begun.items() if times > 1 and what[0] in ONLY_ONCE]

    many_at_once(killed_at, writes(victim))


@pytest.mark.parametrize("when", [BEFORE, WITHIN, AFTER])
def test_an_agent_killed_while_it_makes_its_journal_shorter_still_knows_all_ids(site: Site, when: str) -> None:
    node = site.node().start()
    asked = site.ask(node, ENDED_JOBS).finish()
    node.running.end(signal.SIGTERM)
    begun = node.begun()
    node.pass_time(25 * 3600)
    node.start("--kill-at", 1, when, wait=False)
    start_again_when_killed(node)
    assert node.seen() == begun
    site.ask(node, COMMANDS).finish()
    assert node.executed().keys() > {result.request_id for result in asked.results()[1:]}
    assert set(node.executed().values()) == {1}


@pytest.mark.parametrize("when", [BEFORE, WITHIN, AFTER])
def test_an_agent_killed_again_while_it_writes_down_what_was_interrupted_tells_it_in_its_third_life(
    site: Site, when: str,
) -> None:
    node = site.node().start("--kill-at", HEAD + 2, BEFORE)
    run = site.ask(node, COMMANDS)
    wait_until("killed", lambda: node.running.killed)
    node.start("--kill-at", 1, when, wait=False)
    start_again_when_killed(node)
    results = run.finish().results()
    assert_journal_agrees(node, results)
    assert [result.error for result in results if result.cmd == COMMANDS[0].value] == [
        ErrorCode.REQUEST_INTERRUPTED.value]
    assert node.executed().total() == len(COMMANDS)
