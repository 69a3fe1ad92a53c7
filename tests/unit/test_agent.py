"""The Agent with steps of a test's own, over a real socket on the loopback: accept, cancel, errors, stopping."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agent as agent_module
from agent import Agent, AgentSettings, JobFilter, Step, fitting, main, parse_listen
from constant import DATAGRAM_LIMIT, Command, ErrorCode, MessageType, MigrationError
from steps.context import StepContext, noting
from tests.unit.samples import (
    AGENTS,
    CONTROLLER,
    CONTROLLERS,
    FACTS,
    HOST_FACTS,
    MASTER,
    MIGRATION,
    SOURCE,
    address_list,
    write_key,
)
from udpmodule import AgentSocket, Direction, Responder, seal, unseal
from wire.message import Reply, Request, decode, encode, from_wire, to_wire
from wire.records import CancelArguments, CheckReport, HostFacts, Obstacle, Progress, StepArguments, StepReport

KEY = MASTER.for_agent(SOURCE)
WAIT_SECONDS = 5.0
ARGUMENTS = to_wire(StepArguments(MIGRATION, FACTS))


def hello(context: StepContext) -> HostFacts:
    """A HELLO that touches no libvirt."""
    return HostFacts(
        version=HOST_FACTS.version, hostname="node1", libvirt_version=0, daemon=HOST_FACTS.daemon,
        epoch=context.epoch, challenge=context.challenge)


class Node:
    """An agent that runs in a thread, and a socket that talks to it."""

    def __init__(self, directory: Path, steps: Mapping[Command, Step]) -> None:
        controllers = address_list(directory, "127.0.0.1")
        self.udp = AgentSocket(Responder(controllers, (KEY,)), "127.0.0.1", 0)
        self.address = self.udp._udp.getsockname()
        self.agent = Agent(AgentSettings(controllers, AGENTS, (KEY,)), self.udp, hello, steps)
        self.thread = threading.Thread(target=self.agent.run, daemon=True)
        self.thread.start()
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.bind(("127.0.0.1", 0))
        self.client.settimeout(WAIT_SECONDS)
        self._count = 0
        self.facts = from_wire(HostFacts, self.ask(Command.HELLO, {}).cmd_result["value"])

    def send(self, command: Command, arguments: Mapping[str, object], agent_ip: str = SOURCE) -> str:
        """Send a fresh request; return its id."""
        self._count += 1
        facts = getattr(self, "facts", None)
        request = Request(
            request_id=f"{self._count:032x}", agent_ip=agent_ip, cmd=command, cmd_arguments=arguments,
            epoch=facts.epoch if facts else "", challenge=facts.challenge if facts else "")
        self.client.sendto(seal(KEY, Direction.REQUEST, encode(request)), self.address)
        return request.request_id

    def receive(self) -> tuple[Reply, bytes]:
        """The next reply, and its bytes."""
        datagram = self.client.recv(65535)
        reply = decode(unseal(datagram, {KEY.id: KEY}, Direction.REPLY)[1])
        assert isinstance(reply, Reply)
        return reply, datagram

    def result(self, request_id: str) -> Reply:
        """The reply that ends a request."""
        while True:
            reply, _datagram = self.receive()
            if reply.request_id == request_id and reply.msg_type in (MessageType.RESPONSE, MessageType.REFUSED):
                return reply

    def ask(self, command: Command, arguments: Mapping[str, object], agent_ip: str = SOURCE) -> Reply:
        """Send a request and return what ends it."""
        return self.result(self.send(command, arguments, agent_ip))

    def end(self) -> None:
        """Stop the agent and wait for its end."""
        self.udp.post(self.agent.stop)
        self.thread.join(WAIT_SECONDS)
        self.client.close()
        assert not self.thread.is_alive(), "the agent did not end when it was stopped"
        self.udp.close()


Start = Callable[[Mapping[Command, Step]], Node]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start an agent with these steps; it is ended after the test."""
    monkeypatch.setattr(agent_module, "_LINGER_SECONDS", 0.0)
    nodes: list[Node] = []

    def start_node(steps: Mapping[Command, Step]) -> Node:
        nodes.append(Node(tmp_path, steps))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.end()


def code_of(reply: Reply) -> ErrorCode:
    """The code of the error in a reply."""
    error = reply.error()
    assert error is not None
    return error.code


class Blocking:
    """A step that goes on until the test lets it, or until it is cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()
        self.was_cancelled = False
        self.ran = 0

    def __call__(self, context: StepContext, arguments: StepArguments) -> StepReport:
        self.ran += 1
        self.begun.set()
        while not self.released.wait(0.002):
            reason = context.cancellation.reason
            if reason is not None:
                self.was_cancelled = True
                raise MigrationError(
                    ErrorCode.MIGRATION_CANCELLED, {"domain": arguments.migration.domain, "reason": reason})
        return StepReport("released")


# Steps and their results.


def test_a_step_gets_its_arguments_and_its_result_comes_back(start: Start) -> None:
    seen: list[tuple[StepContext, StepArguments]] = []

    def step(context: StepContext, arguments: StepArguments) -> StepReport:
        seen.append((context, arguments))
        return StepReport("done")

    node = start({Command.FINISH: step})
    reply = node.ask(Command.FINISH, ARGUMENTS)
    assert reply.cmd_result == {"value": {"summary": "done"}}
    ((context, arguments),) = seen
    assert arguments == StepArguments(MIGRATION, FACTS)
    assert context.host == SOURCE
    assert "192.0.2.12" in context.destinations
    assert context.cancellation.reason is None


def test_a_request_is_accepted_before_its_result(start: Start) -> None:
    node = start({Command.FINISH: lambda _context, _arguments: StepReport("done")})
    node.send(Command.FINISH, ARGUMENTS)
    kinds = [node.receive()[0].msg_type for _each in range(2)]
    assert kinds == [MessageType.ACCEPTED, MessageType.RESPONSE]


def test_progress_of_a_step_comes_between(start: Start) -> None:
    def step(context: StepContext, _arguments: StepArguments) -> StepReport:
        context.progress(Progress("copying the disk", 1, 2))
        return StepReport("done")

    node = start({Command.FINISH: step})
    node.send(Command.FINISH, ARGUMENTS)
    replies = [node.receive()[0] for _each in range(3)]
    assert [reply.msg_type.value for reply in replies] == ["accepted", "progress", "response"]
    assert replies[1].cmd_result == {"phase": "copying the disk", "done": 1, "total": 2}


def test_an_error_of_a_step_comes_back_as_code_and_facts(start: Start) -> None:
    def step(_context: StepContext, _arguments: StepArguments) -> StepReport:
        raise MigrationError(ErrorCode.PATH_TAKEN, {"path": "/srv/x", "host": SOURCE})

    error = start({Command.PREPARE_DESTINATION: step}).ask(Command.PREPARE_DESTINATION, ARGUMENTS).error()
    assert error is not None
    assert (error.code, dict(error.facts)) == (ErrorCode.PATH_TAKEN, {"path": "/srv/x", "host": SOURCE})


def test_an_unexpected_error_is_told_by_its_kind_and_its_traceback_stays_here(
    start: Start, caplog: pytest.LogCaptureFixture,
) -> None:
    def step(_context: StepContext, _arguments: StepArguments) -> StepReport:
        raise ZeroDivisionError("by nought")

    node = start({Command.FINISH: step})
    node.send(Command.FINISH, ARGUMENTS)
    node.receive()
    reply, datagram = node.receive()
    assert code_of(reply) is ErrorCode.INTERNAL
    assert b"ZeroDivisionError" in datagram
    for word in (b"Traceback", b"File ", b".py", b"line "):
        assert word not in datagram
    assert "Traceback" in caplog.text
    assert node.ask(Command.HELLO, {}).error() is None


@pytest.mark.parametrize("arguments", [
    {}, {"migration": {}}, {"migration": []}, {**ARGUMENTS, "more": 1},
    {**ARGUMENTS, "migration": {**ARGUMENTS["migration"], "transport": "pigeon"}},
])
def test_arguments_that_are_none_are_refused_and_nothing_runs(start: Start, arguments: Mapping[str, object]) -> None:
    step = Blocking()
    reply = start({Command.FINISH: step}).ask(Command.FINISH, arguments)
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.MESSAGE_INVALID)
    assert step.ran == 0


def test_arguments_that_name_the_admins_mistake_are_refused_with_it(start: Start) -> None:
    changed = {**ARGUMENTS, "migration": {**ARGUMENTS["migration"], "user": "-oProxyCommand=x"}}
    reply = start({Command.FINISH: Blocking()}).ask(Command.FINISH, changed)
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.ARGUMENTS_INVALID)


def test_a_host_that_is_no_part_of_the_migration_runs_nothing_of_it(start: Start) -> None:
    step = Blocking()
    reply = start({Command.FINISH: step}).ask(Command.FINISH, ARGUMENTS, agent_ip="192.0.2.77")
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.MESSAGE_INVALID)
    assert step.ran == 0


@pytest.mark.parametrize("arguments", [{"n": 1}, {"migration": {}}, ARGUMENTS])
def test_hello_needs_no_arguments_and_is_answered_whatever_they_are(
    start: Start, arguments: Mapping[str, object],
) -> None:
    reply = start({}).ask(Command.HELLO, arguments)
    assert (reply.msg_type, reply.error()) == (MessageType.RESPONSE, None)
    assert from_wire(HostFacts, reply.cmd_result["value"]).hostname == "node1"


# More obstacles than a datagram holds.


def obstacles(count: int) -> tuple[Obstacle, ...]:
    """That many obstacles, told apart by their path, with letters that JSON could escape."""
    return tuple(
        Obstacle(ErrorCode.PATH_TAKEN, {"host": SOURCE, "path": f"/srv/büro/{number}"}) for number in range(count))


def test_a_check_with_forty_obstacles_tells_the_first_of_them_and_counts_the_rest(start: Start) -> None:
    found = obstacles(40)
    for facts in (None, FACTS):
        report = fitting(CheckReport(found, facts))
        assert isinstance(report, CheckReport)
        assert 0 < len(report.obstacles) < 40
        assert report.obstacles == found[:len(report.obstacles)]
        assert len(report.obstacles) + report.omitted == 40
        assert report.facts == facts
    node = start({Command.CHECK_SOURCE: lambda _context, _arguments: CheckReport(found, FACTS)})
    reply = node.ask(Command.CHECK_SOURCE, ARGUMENTS)
    assert reply.error() is None
    told = from_wire(CheckReport, reply.cmd_result["value"])
    assert told == fitting(CheckReport(found, FACTS))


@settings(max_examples=40)
@given(st.lists(st.text(max_size=200), max_size=30))
def test_no_obstacles_make_an_answer_that_does_not_fit_a_datagram(texts: list[str]) -> None:
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    report = CheckReport(tuple(Obstacle(ErrorCode.SSH_FAILED, {"host": address, "reason": text}) for text in texts))
    cut = fitting(report)
    assert isinstance(cut, CheckReport)
    assert len(cut.obstacles) + cut.omitted == len(texts)
    reply = Reply(
        MessageType.RESPONSE, "f" * 32, address, Command.CHECK_DESTINATION, {"value": to_wire(cut)}, 1_000_000)
    assert len(seal(KEY, Direction.REPLY, encode(reply))) <= DATAGRAM_LIMIT


def test_what_fits_is_left_as_it_is() -> None:
    for outcome in (CheckReport(obstacles(2), FACTS), StepReport("done"), MigrationError(ErrorCode.INTERNAL, {})):
        assert fitting(outcome) is outcome


# While a step runs.


def test_the_agent_answers_others_while_a_step_blocks(start: Start) -> None:
    step = Blocking()
    node = start({Command.LIVE_MIGRATION: step})
    running = node.send(Command.LIVE_MIGRATION, ARGUMENTS)
    assert step.begun.wait(WAIT_SECONDS)
    for _each in range(3):
        assert node.ask(Command.HELLO, {}).error() is None
    node.send(Command.STATUS, {"of": running})
    assert node.receive()[0].msg_type is MessageType.ACCEPTED
    step.released.set()
    assert node.result(running).cmd_result == {"value": {"summary": "released"}}


def test_cancel_ends_the_running_step_of_that_job_and_no_other(start: Start) -> None:
    step = Blocking()
    node = start({Command.LIVE_MIGRATION: step})
    running = node.send(Command.LIVE_MIGRATION, ARGUMENTS)
    assert step.begun.wait(WAIT_SECONDS)
    assert node.ask(Command.CANCEL, to_wire(CancelArguments("ffffffff"))).cmd_result == {"value": {"known": False}}
    assert not step.was_cancelled
    cancel = node.send(Command.CANCEL, to_wire(CancelArguments(MIGRATION.job_id)))
    ended: dict[str, Reply] = {}
    while len(ended) < 2:
        reply, _datagram = node.receive()
        if reply.msg_type is MessageType.RESPONSE:
            ended[reply.request_id] = reply
    assert ended[cancel].cmd_result == {"value": {"known": True}}
    assert code_of(ended[running]) is ErrorCode.MIGRATION_CANCELLED
    assert step.was_cancelled


class StillSocket(AgentSocket):
    """An AgentSocket whose loop turns only when the test says so, without a socket."""

    def __init__(self, responder: Responder) -> None:
        self.responder = responder

    def post(self, action: Callable[[], None]) -> None:
        """At once: there is only one thread."""
        action()


class StillThread(threading.Thread):
    """A thread that begins its work when the test says so."""

    made: ClassVar[list[StillThread]] = []

    def start(self) -> None:
        """Wait for run()."""
        self.made.append(self)


def test_a_cancel_between_the_acceptance_of_a_step_and_its_begin_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StillThread, "made", [])
    monkeypatch.setattr("agent.threading.Thread", StillThread)
    responder = Responder(CONTROLLERS, (KEY,))
    step = Blocking()
    agent = Agent(
        AgentSettings(CONTROLLERS, AGENTS, (KEY,)), StillSocket(responder), hello, {Command.LIVE_MIGRATION: step})

    def answers(command: Command, arguments: Mapping[str, object]) -> list[Reply]:
        now = time.monotonic()
        request = Request(command.value, SOURCE, command, arguments, responder.epoch, responder.challenge(now))
        responder.receive_datagram(seal(KEY, Direction.REQUEST, encode(request)), CONTROLLER, now)
        while (taken := responder.next_event()) is not None:
            agent.take(taken)
        return said()

    def said() -> list[Reply]:
        bodies = [unseal(datagram, {KEY.id: KEY}, Direction.REPLY)[1] for datagram, _ in responder.datagrams_to_send()]
        return [reply for reply in map(decode, bodies) if isinstance(reply, Reply)]

    (accepted,) = answers(Command.LIVE_MIGRATION, ARGUMENTS)
    assert accepted.msg_type is MessageType.ACCEPTED
    (cancelled,) = answers(Command.CANCEL, to_wire(CancelArguments(MIGRATION.job_id)))
    assert cancelled.cmd_result == {"value": {"known": True}}
    (worker,) = StillThread.made
    worker.run()
    (ended,) = said()
    assert code_of(ended) is ErrorCode.MIGRATION_CANCELLED
    assert step.was_cancelled


@pytest.mark.parametrize("arguments", [{}, {"job_id": 1}, {"job_id": "x", "more": 1}])
def test_a_cancel_of_nothing_that_can_be_is_refused(start: Start, arguments: Mapping[str, object]) -> None:
    reply = start({}).ask(Command.CANCEL, arguments)
    assert (reply.msg_type, code_of(reply)) == (MessageType.REFUSED, ErrorCode.MESSAGE_INVALID)


def test_a_job_that_has_ended_cannot_be_cancelled(start: Start) -> None:
    node = start({Command.FINISH: lambda _context, _arguments: StepReport("done")})
    node.ask(Command.FINISH, ARGUMENTS)
    reply = node.ask(Command.CANCEL, to_wire(CancelArguments(MIGRATION.job_id)))
    assert reply.cmd_result == {"value": {"known": False}}


def test_a_stopped_agent_cancels_its_work_tells_its_end_and_leaves(start: Start) -> None:
    step = Blocking()
    node = start({Command.LIVE_MIGRATION: step})
    running = node.send(Command.LIVE_MIGRATION, ARGUMENTS)
    assert step.begun.wait(WAIT_SECONDS)
    node.udp.post(node.agent.stop)
    assert code_of(node.result(running)) is ErrorCode.MIGRATION_CANCELLED
    node.thread.join(WAIT_SECONDS)
    assert not node.thread.is_alive()


def test_an_agent_that_is_being_stopped_takes_no_new_work(start: Start) -> None:
    released = threading.Event()

    def stubborn(_context: StepContext, _arguments: StepArguments) -> StepReport:
        released.wait(WAIT_SECONDS)
        return StepReport("done")

    step = Blocking()
    node = start({Command.LIVE_MIGRATION: stubborn, Command.PREPARE_DESTINATION: step})
    running = node.send(Command.LIVE_MIGRATION, ARGUMENTS)
    node.receive()
    node.udp.post(node.agent.stop)
    refusal = node.ask(Command.PREPARE_DESTINATION, ARGUMENTS)
    assert (refusal.msg_type, code_of(refusal)) == (MessageType.REFUSED, ErrorCode.AGENT_STOPPING)
    assert step.ran == 0
    assert node.thread.is_alive()
    released.set()
    assert node.result(running).error() is None
    node.thread.join(WAIT_SECONDS)
    assert not node.thread.is_alive()


def test_a_stopped_agent_stays_to_tell_how_the_vm_is(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Blocking()
    node = start({
        Command.LIVE_MIGRATION: step, Command.ROLL_BACK: lambda _context, _arguments: StepReport("running here")})
    running = node.send(Command.LIVE_MIGRATION, ARGUMENTS)
    assert step.begun.wait(WAIT_SECONDS)
    monkeypatch.setattr(agent_module, "_LINGER_SECONDS", 3600.0)
    node.udp.post(node.agent.stop)
    error = node.result(running).error()
    assert error is not None
    assert "stopped" in error.message
    assert node.ask(Command.ROLL_BACK, ARGUMENTS).cmd_result == {"value": {"summary": "running here"}}
    assert code_of(node.ask(Command.LIVE_MIGRATION, ARGUMENTS)) is ErrorCode.AGENT_STOPPING
    node.agent._linger_until = 0.0


def test_an_idle_agent_ends_at_once(start: Start) -> None:
    node = start({})
    node.udp.post(node.agent.stop)
    node.thread.join(WAIT_SECONDS)
    assert not node.thread.is_alive()


def test_stray_datagrams_do_not_end_the_receive_loop(start: Start) -> None:
    node = start({})
    for datagram in (b"", b"\xff" * 2000, b"VMM1 - -\n{}", seal(KEY, Direction.REQUEST, b"[" * 1000), b"quit\n"):
        node.client.sendto(datagram, node.address)
    assert node.ask(Command.HELLO, {}).error() is None
    dropped = {name: count for name, count in node.udp.responder.counters.items() if name.startswith("dropped")}
    assert sum(dropped.values()) == 5


# Log lines.


def test_log_lines_of_a_step_carry_its_job_and_domain_and_others_do_not(
    start: Start, caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.handler.addFilter(JobFilter())
    with caplog.at_level(logging.INFO):
        def step(_context: StepContext, _arguments: StepArguments) -> StepReport:
            logging.getLogger("steps.test").info("inside")
            return StepReport("done")

        node = start({Command.FINISH: step})
        node.ask(Command.FINISH, ARGUMENTS)
    found = {record.getMessage(): (record.job, record.domain) for record in caplog.records}  # type: ignore[attr-defined]
    assert found["inside"] == (MIGRATION.job_id, "VM1")
    assert found["FINISH asked for by 127.0.0.1"] == (MIGRATION.job_id, "VM1")
    assert found["HELLO asked for by 127.0.0.1"] == ("-", "-")


# The command.


@pytest.mark.parametrize(("text", "address", "port"), [
    ("192.0.2.11", "192.0.2.11", 8002), ("192.0.2.11:9000", "192.0.2.11", 9000),
    ("::", "::", 8002), ("[::]", "::", 8002), ("[::]:9000", "::", 9000), ("::1", "::1", 8002),
    ("2001:db8::11", "2001:db8::11", 8002), ("[2001:DB8::11]:0", "2001:db8::11", 0),
    ("[fe80::1%eth0]:9000", "fe80::1%eth0", 9000),
])
def test_where_to_listen_is_read_in_every_usual_form(text: str, address: str, port: int) -> None:
    assert parse_listen(text) == (address, port)


@pytest.mark.parametrize("text", [
    "", ":", ":8002", "node1", "node1:8002", "192.0.2.11:", "192.0.2.11:x", "192.0.2.11:65536", "192.0.2.11:-1",
    "[::1", "::1]", "[::1]:", "[]", "192.0.2.300",
])
def test_what_is_no_address_is_no_place_to_listen(text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        parse_listen(text)
    assert caught.value.code is ErrorCode.ADDRESS_INVALID
    assert caught.value.facts["address"] == text


def configured(directory: Path) -> Path:
    """A directory with all that an agent reads."""
    (directory / "ControllerIPAddr.txt").write_text("192.0.2.1\n")
    (directory / "AgentIPAddr.txt").write_text("192.0.2.12\n")
    write_key(directory / "AgentKey.txt", KEY)
    return directory


def test_an_agent_reads_both_lists_and_its_key(tmp_path: Path) -> None:
    settings = AgentSettings.load(configured(tmp_path), insecure=False)
    assert "192.0.2.1" in settings.controllers
    assert "192.0.2.1" not in settings.destinations
    assert "192.0.2.12" in settings.destinations
    assert settings.keys == (KEY,)


def test_without_a_key_an_agent_does_not_start_unless_told_to(tmp_path: Path) -> None:
    (configured(tmp_path) / "AgentKey.txt").unlink()
    with pytest.raises(MigrationError) as caught:
        AgentSettings.load(tmp_path, insecure=False)
    assert caught.value.code is ErrorCode.KEY_MISSING
    assert AgentSettings.load(tmp_path, insecure=True).keys == ()


@pytest.mark.parametrize("missing", ["ControllerIPAddr.txt", "AgentIPAddr.txt"])
def test_an_agent_does_not_start_without_both_lists_even_when_insecure(tmp_path: Path, missing: str) -> None:
    (configured(tmp_path) / missing).unlink()
    with pytest.raises(MigrationError) as caught:
        AgentSettings.load(tmp_path, insecure=True)
    assert caught.value.code is ErrorCode.FILE_UNREADABLE


def test_a_port_that_is_taken_is_told_with_its_reason(start: Start) -> None:
    node = start({})
    with pytest.raises(MigrationError) as caught:
        AgentSocket(node.udp.responder, "127.0.0.1", node.address[1])
    assert caught.value.code is ErrorCode.LISTEN_FAILED
    assert "in use" in caught.value.message


def test_an_error_at_the_start_is_told_on_stderr_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_options: object) -> None:
        raise MigrationError(ErrorCode.LIST_EMPTY, {"path": "/etc/vmmigration/AgentIPAddr.txt", "what": "node"})

    monkeypatch.setattr(agent_module, "_serve", fail)
    monkeypatch.setattr(agent_module, "configure_logging", lambda *, verbose: None)
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vmmigration-agent: /etc/vmmigration/AgentIPAddr.txt names no address.\n  ")


# What steps are given.


def test_an_error_becomes_one_more_obstacle_and_the_checks_go_on() -> None:
    obstacles: list[Obstacle] = []
    for code in (ErrorCode.PATH_TAKEN, ErrorCode.DOMAIN_BUSY):
        with noting(obstacles):
            raise MigrationError(code, {"host": SOURCE})
    assert [obstacle.code for obstacle in obstacles] == [ErrorCode.PATH_TAKEN, ErrorCode.DOMAIN_BUSY]
    with pytest.raises(ZeroDivisionError), noting(obstacles):
        raise ZeroDivisionError
