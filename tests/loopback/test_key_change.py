"""New keys and new lists while controllers are at work: nothing is stopped, and no request fails."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from constant import CONTROLLER_KEY_FILE, Command
from tests.loopback.site import UNLISTED, ControllerRun, Node, Site, assert_journal_agrees, wait_until
from tests.unit.samples import MASTER, write_key
from wire.access import Key

NEW_MASTER = Key(bytes(range(32, 64)))
COMMANDS = (Command.DEFINE_VIRTUAL_MACHINE, Command.EXTRACT_CONFIGURE_FILE, Command.FINISH)


def read_again(node: Node, times: int) -> None:
    """Have the agent read its configuration, for the so-manieth time."""
    node.running.tell(signal.SIGHUP)
    node.wait_for_log("were read again", times)


def next_rounds(run: ControllerRun) -> None:
    """Wait until the controller has read its key anew, and has had answers under it."""
    count = len(run.results())
    wait_until("the controller goes on", lambda: len(run.results()) >= count + 2 * (1 + len(COMMANDS)))


def test_keys_are_changed_without_a_stop_and_without_a_failed_request(site: Site) -> None:
    node = site.node().start()
    old, new = node.key(), NEW_MASTER.for_agent(node.address)
    stop = site.directory / "stop"
    run = site.ask(node, COMMANDS, until=stop)

    def controller_has(*keys: Key) -> None:
        changed = write_key(site.directory / "new-key", *keys)
        changed.replace(site.directory / CONTROLLER_KEY_FILE)

    next_rounds(run)
    node.configure([old, new])
    read_again(node, 1)
    next_rounds(run)
    controller_has(NEW_MASTER, MASTER)
    next_rounds(run)
    controller_has(NEW_MASTER)
    next_rounds(run)
    node.configure([new])
    read_again(node, 2)
    next_rounds(run)
    stop.touch()
    results = run.finish().results()
    assert [result for result in results if result.msg_type != "response" or result.error] == []
    assert_journal_agrees(node, results)
    assert node.executed().total() == len([result for result in results if result.cmd != Command.HELLO.value])
    # The old key is worth nothing any more.
    write_key(site.directory / CONTROLLER_KEY_FILE, MASTER)
    refused = site.ask(node, COMMANDS, "--hurry", 20, patience=1.0)
    assert refused.wait() != 0
    assert [result.msg_type for result in refused.results()] == ["gave up"]


def test_a_step_that_was_asked_for_under_the_old_key_is_followed_under_the_new_one(site: Site) -> None:
    node = site.node()
    node.configure([MASTER.for_agent(node.address), NEW_MASTER.for_agent(node.address)])
    node.start("--work", "LIVE_MIGRATION=1.5")
    # Such a controller sends under the old key as long as it runs: the agent must have both until then.
    write_key(site.directory / CONTROLLER_KEY_FILE, MASTER, NEW_MASTER)
    run = site.ask(node, [Command.LIVE_MIGRATION], "--hurry", 10)
    wait_until("it migrates", lambda: bool(site.executions()))
    node.configure([NEW_MASTER.for_agent(node.address), MASTER.for_agent(node.address)])
    read_again(node, 1)
    results = run.finish().results()
    assert [result.error for result in results] == [None, None]
    assert_journal_agrees(node, results)


@pytest.mark.parametrize("spoil", [
    lambda node: node.configure([node.key()], ["127.0.0.1", "nonsense"]),
    lambda node: (node.directory / "AgentKey.txt").chmod(0o644),
    lambda node: (node.directory / "AgentIPAddr.txt").unlink(),
], ids=["bad line", "open key file", "no list"])
def test_an_agent_that_cannot_read_its_configuration_again_goes_on_with_what_it_had(
    site: Site, spoil: Callable[[Node], object],
) -> None:
    node = site.node().start()
    spoil(node)
    node.running.tell(signal.SIGHUP)
    node.wait_for_log("stay as they were")
    results = site.ask(node, COMMANDS).finish().results()
    assert [result.error for result in results] == [None] * (1 + len(COMMANDS))


def test_a_controller_that_is_taken_off_the_list_is_not_heard_any_more(site: Site) -> None:
    node = site.node().start()
    site.ask(node, COMMANDS).finish()
    node.configure([node.key()], [UNLISTED])
    read_again(node, 1)
    run = site.ask(node, COMMANDS, "--hurry", 20, patience=1.0)
    assert run.wait() != 0
    assert [result.msg_type for result in run.results()] == ["gave up"]
    assert node.executed().total() == len(COMMANDS)
