"""Bytes from fuzzers: a million datagrams to the protocol in memory, and a flood of them to a real agent."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from constant import LOOK_AFTER_SECONDS, RATE_BURST, Command
from tests.loopback.fuzz import OTHER_KEY, Mutator, bodies
from tests.loopback.probe import answers_to
from tests.loopback.site import UNLISTED, Node, Site, fresh_address
from tests.unit.samples import ROOT
from wire.datagram import Direction, seal

DATAGRAMS = 1_000_000
FLOOD = 20_000
MEBIBYTE = 1 << 20
# What is remembered of greetings for a while, which is cleared up once a minute, goes up and down by that.
FEW_OBJECTS = 5000


def test_a_million_datagrams_of_strangers_run_nothing_and_leave_nothing_in_memory() -> None:
    # In a process of its own, whose memory is nobody else's. It ends with an error if a stranger gets an answer.
    fuzzer = subprocess.run(
        [sys.executable, "-m", "tests.loopback.fuzz", "--seed", "3", "--datagrams", str(DATAGRAMS)], cwd=ROOT,
        capture_output=True, text=True, check=False)
    assert fuzzer.returncode == 0, fuzzer.stderr
    seen = json.loads(fuzzer.stdout)
    assert seen["executions"] == seen["served"] > 0
    first, last = seen["bytes"]
    assert last - first < MEBIBYTE
    first, last = seen["objects"]
    assert last - first < FEW_OBJECTS
    # Each kind of stranger was there, again and again.
    counts = seen["counts"]
    assert counts["received"] > 0.99 * DATAGRAMS
    for reason in ("source", "rate", "size", "form", "key", "mac"):
        assert counts[f"dropped: {reason}"] > DATAGRAMS / 100
    assert counts["repeated"] > DATAGRAMS / 100


def strange_datagrams(node: Node) -> Iterator[bytes]:
    """For ever: none of them is sealed for this agent."""
    mutator = Mutator(3)
    recorded = [
        seal(node.key(), Direction.REQUEST, body) for body in bodies(node.address, "0123456789abcdef", "12-0123")]
    while True:
        yield mutator.garbage()
        yield seal(OTHER_KEY, Direction.REQUEST, mutator.one_of(recorded).partition(b"\n")[2])
        changed = mutator.mutated(mutator.one_of(recorded))
        if changed not in recorded:
            yield changed


def strange_sources() -> Iterator[str]:
    """For ever: some are let in, some send too much, some are not listed."""
    known = fresh_address()
    while True:
        yield from (fresh_address(), known, UNLISTED)


def memory_of(node: Node) -> int:
    """How many bytes of the agent are in memory."""
    status = Path(f"/proc/{node.running.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def test_an_agent_that_was_flooded_has_answered_nobody_has_not_grown_and_serves_on(site: Site) -> None:
    node = site.node().start()
    datagrams, sources = strange_datagrams(node), strange_sources()
    assert answers_to(node, itertools.islice(datagrams, FLOOD // 10), sources) == []
    first = memory_of(node)
    assert answers_to(node, itertools.islice(datagrams, FLOOD - FLOOD // 10), sources) == []
    assert memory_of(node) - first < 2 * MEBIBYTE
    results = site.ask(node, [Command.CHECK_SOURCE]).finish().results()
    assert [result.error for result in results] == [None, None]
    assert node.executed().total() == 1
    # All of the flood has come to it, says its own count, and that of how it asked whether the agent was done with it.
    node.pass_time(LOOK_AFTER_SECONDS + 1)
    node.wait_for_log("datagrams so far")
    counted = re.search(r"received (\d+)", node.running.log.read_text())
    assert counted is not None
    assert int(counted[1]) >= FLOOD + FLOOD // RATE_BURST


def test_atheris_finds_nothing_in_50_000_runs(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python: see tests/requirements.txt")
    fuzzer = subprocess.run(
        [sys.executable, "-m", "tests.loopback.fuzz_atheris", tmp_path / "corpus", "-runs=50000", "-seed=3",
         f"-artifact_prefix={tmp_path}/"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert fuzzer.returncode == 0, fuzzer.stderr[-4000:]
