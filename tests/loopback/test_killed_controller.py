"""kill -9 of the controller at every datagram that it sends, and what the next run of it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from constant import GIVE_UP_SECONDS, Command, Outcome
from tests.loopback.kill_point import AFTER, BEFORE
from tests.loopback.site import Node, Site, assert_journal_agrees, many_at_once, wait_until
from wire.errors import ErrorCode

# So long that the controller asks for it with STATUS, twice: its agent says how far it is only in the middle.
WORK = ("--work", "LIVE_MIGRATION=0.8")
HURRY = ("--hurry", 4)
# HELLO to both, twelve steps and two STATUS. A slow machine makes it more of the last.
DATAGRAMS = 16


def at_rest(site: Site, nodes: tuple[Node, Node]) -> bool:
    """Whether all that was begun has ended, and the journals have it."""
    return all(node.executed(journaled=True).keys() == set(node.begun()) == node.ended().keys() for node in nodes)


@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_a_controller_killed_at_any_datagram_leaves_agents_that_agree_with_their_journals_and_take_new_runs(
    tmp_path: Path, when: str,
) -> None:
    killed: list[int] = []

    def killed_at(datagram: int) -> None:
        with Site(tmp_path / str(datagram)) as site:
            source, destination = nodes = site.node(), site.node()
            source.start(*WORK)
            destination.start()
            first = site.migrate(source, destination, *HURRY, "--kill-at", datagram, when)
            first.wait()
            if first.killed:
                killed.append(datagram)
            # Another VM need not wait for what the killed run has left.
            other = site.migrate(source, destination, job_id="00000001", domain="VM2").finish()
            assert other.outcome is Outcome.MOVED
            wait_until("at rest", lambda: at_rest(site, nodes))
            # The same VM: as the same job at once, as another one when the first is given up.
            if when == BEFORE:
                again = site.migrate(source, destination).finish()
            else:
                locked = site.migrate(source, destination, job_id="00000002").finish()
                assert locked.outcome is Outcome.MOVED or locked.errors == [ErrorCode.DOMAIN_LOCKED.value]
                for node in nodes:
                    node.pass_time(GIVE_UP_SECONDS + 1)
                again = site.migrate(source, destination, job_id="00000003").finish()
            assert again.outcome is Outcome.MOVED
            wait_until("at rest", lambda: at_rest(site, nodes))
            results = [result for run in site.runs for result in run.results()]
            for node in nodes:
                assert_journal_agrees(node, results)

    many_at_once(killed_at, range(1, DATAGRAMS + 1))
    # The last ones may not have come, in a run whose STATUS was not needed.
    assert set(range(1, DATAGRAMS - 1)) <= set(killed)


def test_a_step_goes_on_to_its_end_without_the_controller_that_asked_for_it(site: Site) -> None:
    source, destination = site.node().start("--work", "LIVE_MIGRATION=1"), site.node().start()
    run = site.migrate(source, destination)
    wait_until("it migrates", lambda: any(each.cmd == Command.LIVE_MIGRATION.value for each in site.executions()))
    run.end()
    wait_until("it has migrated", lambda: any(
        (each.event, each.cmd) == ("done", Command.LIVE_MIGRATION.value) for each in site.executions()))
    wait_until("the journal has it", lambda: at_rest(site, (source, destination)))
