"""An agent whose journal cannot be written because the disk is full: it begins no new work, says so, and recovers."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from constant import Command, ExitCode
from tests.loopback.probe import Probe, open_reply
from tests.loopback.site import Node, Site, assert_journal_agrees, wait_until
from wire.errors import ErrorCode
from wire.journal import JOURNAL_FILE
from wire.message import Request
from wire.records import StatusArguments

Full = Callable[[], AbstractContextManager[None]]

# What clears up is begun also on a full disk, on which it makes room, and may run twice.
CLEARING_UP = (Command.DEFINE_VIRTUAL_MACHINE, Command.FINISH, Command.ROLL_BACK)
# More than fit into what is left of the last page of the journal. All are of one job, about which a file of its own is
# written when it begins: not one that begins on a full disk.
COMMANDS = (*[Command.COPY_DISK_FILE] * 12, *CLEARING_UP, Command.COPY_DISK_FILE)
JOB = "0badcafe"
# Less than any entry takes, so that one is written in part.
A_LITTLE_ROOM = 100
ROOT = os.geteuid() == 0


@contextmanager
def files_cannot_grow(node: Node) -> Iterator[None]:
    """Writing past the journal's present size fails with EFBIG, as it does with ENOSPC on a full disk."""
    size = (node.state_directory / JOURNAL_FILE).stat().st_size
    _, hard = resource.prlimit(node.running.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.running.pid, resource.RLIMIT_FSIZE, (size + A_LITTLE_ROOM, hard))
    try:
        yield
    finally:
        resource.prlimit(node.running.pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def file_system_is_full(node: Node) -> Iterator[None]:
    """There is no block left where the journal is."""
    filler = node.state_directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            pass
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def small_file_system(node: Node) -> Iterator[None]:
    """A file system of 64 KiB for the node's state directory."""
    node.state_directory.mkdir(parents=True)
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", node.state_directory], check=True)
    try:
        yield
    finally:
        if node.agent is not None and node.agent.runs:
            node.agent.end()
        subprocess.run(["/bin/umount", node.state_directory], check=True)


@pytest.fixture
def node(site: Site) -> Node:
    """A node that is not started yet."""
    return site.node()


@pytest.fixture(params=["limit", "file system"] if ROOT else ["limit"])
def full(request: pytest.FixtureRequest, node: Node) -> Iterator[Full]:
    """In whose `with` the disk of the node's journal is full: really so for root, a limit of the agent otherwise."""
    if request.param == "limit":
        yield lambda: files_cannot_grow(node)
        return
    with small_file_system(node):
        yield lambda: file_system_is_full(node)


def test_what_cannot_be_journaled_is_refused_and_not_executed_until_there_is_room(
    site: Site, node: Node, full: Full,
) -> None:
    node.start()
    # So the executions file stays shorter than the journal, and below the limit.
    site.ask(node, COMMANDS, job_id=JOB).finish()
    with full():
        results = site.ask(node, COMMANDS, job_id=JOB).finish().results()[1:]
        refused = [result for result in results if result.msg_type == "refused"]
        assert {result.error for result in refused} == {ErrorCode.JOURNAL_NOT_WRITTEN.value}
        assert {result.error for result in results if result not in refused} == {None}
        assert results[-1] in refused
        assert not {result.cmd for result in refused} & {command.value for command in CLEARING_UP}
        assert not {result.request_id for result in refused} & {*node.executed(), *node.begun()}
    cleared_up = [result.request_id for result in results if Command(result.cmd) in CLEARING_UP]
    for _life in range(2):
        results = site.ask(node, COMMANDS, job_id=JOB).finish().results()
        assert [result.error for result in results] == [None] * len(results)
        assert_journal_agrees(node, results, without=cleared_up)
        node.running.end(signal.SIGTERM)
        node.start()


def test_a_result_that_cannot_be_journaled_is_told_and_after_a_restart_the_agent_does_not_pretend_to_know_it(
    site: Site, node: Node, full: Full,
) -> None:
    node.start("--work", "ROLL_BACK=2")
    short = [Command.COPY_DISK_FILE] * 16
    site.ask(node, short, job_id=JOB).finish()
    run = site.ask(node, [Command.ROLL_BACK])
    wait_until("it works", lambda: site.executions()[-1].cmd == Command.ROLL_BACK.value)
    with full():
        # Where no beginning fits into the journal's last page any more, this end, which is longer, does not either.
        refused = site.ask(node, short, job_id=JOB).finish().results()[-1]
        assert refused.error == ErrorCode.JOURNAL_NOT_WRITTEN.value
        result = run.finish().results()[-1]
        assert (result.msg_type, result.error) == ("response", None)
        assert result.request_id in node.begun()
        assert result.request_id not in node.ended()
    node.running.end(signal.SIGTERM)
    node.start()
    status = Request(
        request_id=secrets.token_hex(16), agent_ip=node.address, cmd=Command.STATUS,
        cmd_arguments=StatusArguments(of=result.request_id))
    with contextlib.closing(Probe(node)) as probe:
        reply = open_reply(node, probe.ask(status))
    error = reply.error() if reply is not None else None
    assert error is not None
    assert error.code is ErrorCode.REQUEST_INTERRUPTED


@pytest.mark.parametrize("had_journal", [False, True] if ROOT else [])
def test_an_agent_that_is_started_on_a_full_disk_needs_no_room_for_a_journal_that_is_there(
    site: Site, node: Node, had_journal: bool,
) -> None:
    with small_file_system(node):
        if had_journal:
            node.start()
            site.ask(node, COMMANDS, job_id=JOB).finish()
            node.running.end(signal.SIGTERM)
        with file_system_is_full(node):
            node.start(wait=False)
            if had_journal:
                node.wait_for_log(" serves ")
                refused = site.ask(node, COMMANDS, job_id=JOB).finish().results()[-1]
                assert refused.error == ErrorCode.JOURNAL_NOT_WRITTEN.value
            else:
                assert node.running.wait() == ExitCode.REFUSED
                assert "cannot keep its journal" in node.running.log.read_text()
        if had_journal:
            results = site.ask(node, COMMANDS, job_id=JOB).finish().results()
            assert [result.error for result in results] == [None] * len(results)
