"""A management host and its nodes, all on the loopback: starts the processes, ends them, and reads what they wrote."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from constant import (
    AGENT_KEY_FILE,
    AGENT_LIST_FILE,
    CONTROLLER_KEY_FILE,
    CONTROLLER_LIST_FILE,
    NOT_JOURNALED,
    Command,
    MessageType,
    Outcome,
)
from tests.unit.samples import MASTER, ROOT, write_key
from wire.access import Key
from wire.errors import ErrorCode
from wire.journal import JOURNAL_FILE, Contents, read_lines
from wire.memory import Address, Begun, Ended, Seen
from wire.message import result_to_wire

Case = TypeVar("Case")

# Far longer than anything here takes: a test that comes to it has found a hang.
PATIENCE_SECONDS = 60.0
_AT_ONCE = 8
# The addresses that a list names here. UNLISTED is a loopback address as well, but none of these.
LISTED = ("127.0.0.0/9", "127.128.0.0/10", "::1")
UNLISTED = "127.250.0.1"
_numbers = itertools.count(1)


def fresh_address() -> str:
    """A loopback address that nothing else in this run of the tests uses."""
    high, low = divmod(next(_numbers), 250)
    return f"127.{64 + os.getpid() % 128}.{high}.{low + 1}"


def _free_port() -> int:
    """A port that is free on all addresses, and stays so: it is none that is given to sockets that ask for any."""
    for port in range(20_000 + os.getpid() % 5000, 32_000):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as v4, socket.socket(
                socket.AF_INET6, socket.SOCK_DGRAM) as v6:
            v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                v4.bind(("", port))
                v6.bind(("::", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


PORT = _free_port()


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    """Look until it holds; fail if it never does."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < until, f"after {PATIENCE_SECONDS:.0f} s still not: {what}"
        time.sleep(0.01)


def lines(path: Path) -> list[Any]:
    """What a process wrote with write_line(); it may have been killed while it did."""
    content = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in content if line.endswith("\n")]


@dataclass(frozen=True)
class Execution:
    """One line of the executions file."""

    event: str
    cmd: str
    domain: str
    job_id: str
    request_id: str
    agent_ip: str
    pid: int


def executions(path: Path) -> list[Execution]:
    """What was run, in order."""
    return [Execution(*line) for line in lines(path)]


@dataclass(frozen=True)
class Result:
    """How one request ended for the controller."""

    request_id: str
    agent_ip: str
    cmd: str
    msg_type: str
    result: Any

    @property
    def error(self) -> str | None:
        """The code of the error in it."""
        code = (self.result or {}).get("error", {}).get("code")
        return None if code is None else str(code)


class _Process:
    """A program of this package that was started, with its log."""

    def __init__(self, module: str, log: Path, options: Sequence[object]) -> None:
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", f"tests.loopback.{module}", *map(str, options)], cwd=ROOT, stdout=output,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    @property
    def killed(self) -> bool:
        """Whether it has ended by SIGKILL."""
        return self._popen.poll() == -signal.SIGKILL

    def tell(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it with a signal and wait for it."""
        self._popen.send_signal(number)
        self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self._popen.wait(PATIENCE_SECONDS)


class ControllerRun(_Process):
    """A controller_process."""

    def __init__(self, results: Path, options: Sequence[object]) -> None:
        super().__init__("controller_process", results.with_suffix(".log"), options)
        self.path = results

    def finish(self) -> ControllerRun:
        """Wait for its end, which must be a good one."""
        assert self.wait() == 0, self.log.read_text()
        return self

    def results(self) -> list[Result]:
        """How each request ended that it waited for."""
        return [Result(**line) for line in lines(self.path) if "request_id" in line]

    def _said(self, name: str) -> list[Any]:
        return [line for line in lines(self.path) if name in line]

    @property
    def outcome(self) -> Outcome:
        """How the migration ended, says the controller."""
        return Outcome(self._said("outcome")[-1]["outcome"])

    @property
    def runs_on(self) -> str | None:
        """Where the VM runs, says the controller."""
        address: str | None = self._said("outcome")[-1]["runs_on"]
        return address

    @property
    def errors(self) -> list[str]:
        """The codes of the migration's errors."""
        return list(self._said("outcome")[-1]["errors"])

    @property
    def ports(self) -> list[int]:
        """The ports that its sockets had."""
        return [line["port"] for line in self._said("port")]

    @property
    def sent(self) -> int:
        """How many datagrams it sent in all."""
        return int(self._said("sent")[-1]["sent"])


@dataclass
class Node:
    """A node with its configuration, its state directory, and the agent that runs on it at the moment."""

    directory: Path
    address: str
    executions_path: Path
    listen: Address
    agent: _Process | None = None
    lives: int = 0

    @property
    def state_directory(self) -> Path:
        """Where its journal is."""
        return self.directory / "state"

    @property
    def clock(self) -> Path:
        """The file that says by how many seconds its clock is put on."""
        return self.directory / "clock"

    def configure(self, keys: Iterable[Key], controllers: Sequence[str] = LISTED) -> None:
        """Write its lists and its key file."""
        self.directory.mkdir(exist_ok=True)
        write_key(self.directory / AGENT_KEY_FILE, *keys)
        for name, entries in ((CONTROLLER_LIST_FILE, controllers), (AGENT_LIST_FILE, LISTED)):
            (self.directory / name).write_text("".join(f"{entry}\n" for entry in entries))

    def start(self, *options: object, wait: bool = True) -> Node:
        """Start its agent, and wait until it serves."""
        self.lives += 1
        if not self.clock.exists():
            self.pass_time(0)
        listen = [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address, port in [self.listen]]
        self.agent = _Process("agent_process", self.directory / f"agent-{self.lives}.log", [
            "--config-dir", self.directory, "--state-dir", self.state_directory, "--jobs", "32", "--clock", self.clock,
            "--executions", self.executions_path, *(f"--listen={each}" for each in listen), *options])
        if wait:
            self.wait_for_log(" serves ")
        return self

    @property
    def running(self) -> _Process:
        """Its agent, which has been started."""
        assert self.agent is not None
        return self.agent

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until its agent has logged that."""
        agent = self.running

        def logged() -> bool:
            log = agent.log.read_text()
            assert agent.runs, f"the agent has ended: {log}"
            return log.count(text) >= times

        wait_until(f"logged {text!r}", logged)

    def pass_time(self, seconds: float) -> None:
        """Put the agent's clock that much on, compared to the start of the test."""
        new = self.clock.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.clock)

    def key(self) -> Key:
        """The key that its controllers know it by."""
        return MASTER.for_agent(self.address)

    def journal(self) -> Contents:
        """What its journal holds now."""
        return read_lines((self.state_directory / JOURNAL_FILE).read_bytes())

    def begun(self) -> list[str]:
        """The ids of the requests that the journal says were begun."""
        return [entry.request_id for entry in self.journal().entries if isinstance(entry, Begun)]

    def seen(self) -> list[str]:
        """The ids of older requests, of which the journal holds no more than that."""
        return [entry.request_id for entry in self.journal().entries if isinstance(entry, Seen)]

    def ended(self) -> dict[str, Any]:
        """What the journal says of how they ended, as JSON."""
        return {
            entry.request_id: result_to_wire(entry.cmd, entry.cmd_result)
            for entry in self.journal().entries if isinstance(entry, Ended)}

    def executed(self, *, journaled: bool = False) -> Counter[str]:
        """How often the work on each request was begun here; only that of which the journal has to know, or all."""
        return Counter(
            each.request_id for each in executions(self.executions_path)
            if each.event == "begun" and each.agent_ip == self.address
            and not (journaled and Command(each.cmd) in NOT_JOURNALED))


@dataclass
class Site:
    """A management host with its key, and nodes. Whatever was started here is ended with it."""

    directory: Path
    nodes: list[Node] = field(default_factory=list)
    runs: list[ControllerRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        write_key(self.directory / CONTROLLER_KEY_FILE, MASTER)
        (self.directory / AGENT_LIST_FILE).write_text("".join(f"{entry}\n" for entry in LISTED))
        self.executions_path.touch()

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None,
    ) -> None:
        for process in (*self.runs, *(node.agent for node in self.nodes)):
            if process is not None and process.runs:
                process.end()

    @property
    def executions_path(self) -> Path:
        """Where all its nodes write what they execute."""
        return self.directory / "executions"

    def executions(self) -> list[Execution]:
        """What was run on all nodes, in order."""
        return executions(self.executions_path)

    def node(
        self, *, address: str | None = None, listen: str | None = None, controllers: Sequence[str] = LISTED,
    ) -> Node:
        """A node, configured but not started. Controllers know it by `address`; its agent is at `listen`."""
        address = address or fresh_address()
        node = Node(
            self.directory / f"node-{len(self.nodes)}", address, self.executions_path, (listen or address, PORT))
        node.configure([node.key()], controllers)
        self.nodes.append(node)
        return node

    def _run(self, options: Sequence[object], mode: Sequence[object]) -> ControllerRun:
        results = self.directory / f"controller-{len(self.runs)}.results"
        run = ControllerRun(results, [
            "--config-dir", self.directory, "--port", PORT, "--results", results, *options, *mode])
        self.runs.append(run)
        return run

    def migrate(
        self, source: Node, destination: Node, *options: object, job_id: str = "0badcafe", domain: str = "VM1",
    ) -> ControllerRun:
        """Start a controller that moves a VM."""
        return self._run(options, [
            "migrate", source.address, destination.address, "--job-id", job_id, "--domain", domain])

    def ask(
        self, node: Node, commands: Sequence[Command], *options: object, until: Path | None = None,
        patience: float = 90.0, longer: int = 0, job_id: str = "",
    ) -> ControllerRun:
        """Start a controller that asks a node for one command after the other, each of a job of its own or of that."""
        forever = ["--until", until] if until is not None else []
        return self._run(options, [
            "ask", node.address, ",".join(command.value for command in commands), "--patience", patience,
            "--longer", longer, "--job-id", job_id, *forever])


# What must hold of every run, whatever was done to it.


def assert_journal_agrees(node: Node, results: Iterable[Result], without: Iterable[str] = ()) -> None:
    """At most one execution for each id, none without the journal, and what controllers heard is what it says.

    `without` are the ids of those that were begun although they could not be journaled.
    """
    journal, ended, executed = node.journal(), node.ended(), node.executed()
    to_journal = node.executed(journaled=True).keys()
    begun = set(node.begun())
    assert not journal.damaged
    assert len(begun) == len(node.begun()), "a request was begun twice, says the journal"
    assert not [request_id for request_id, times in executed.items() if times > 1], "executed more than once"
    assert to_journal <= begun.union(node.seen(), without), "executed, and the journal does not have it"
    assert ended.keys() <= begun.union(without), "ended without having begun"
    for result in results:
        if result.agent_ip != node.address or Command(result.cmd) in NOT_JOURNALED:
            continue
        if result.msg_type == MessageType.REFUSED.value:
            assert result.request_id not in begun, f"refused and begun: {result}"
            assert result.request_id not in executed, f"refused and executed: {result}"
        else:
            assert result.msg_type == MessageType.RESPONSE.value, result
            assert result.request_id in begun, result
            if result.request_id in ended:
                assert result.result == ended[result.request_id]
            else:
                assert result.error == ErrorCode.REQUEST_INTERRUPTED.value


def many_at_once(case: Callable[[Case], object], cases: Iterable[Case]) -> None:
    """Check all cases: they mostly wait, so several at a time."""
    def run(each: Case) -> None:
        try:
            case(each)
        except Exception as error:
            raise AssertionError(f"in case {each}: {error}") from error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(run, cases))
