"""What an agent is set up with: where it listens, whom it hears, under which key; and real controllers to talk to."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

import agent as agent_module
import udpmodule
from agent import Agent, AgentSettings, listen_addresses, main, parse_listen
from constant import CONTROLLER_PORT, GIVE_UP_SECONDS, JOBS_LIMIT, STATE_DIRECTORY, Command, ExitCode, MessageType
from steps.context import StepContext
from tests.unit.node import (
    WAIT_SECONDS,
    Blocking,
    Client,
    Node,
    Start,
    code_of,
    configured,
    done,
    hello,
    job,
    migration_to,
    starting,
)
from tests.unit.samples import AGENT_KEY, DESTINATION, FACTS, HOST_FACTS, MASTER, SOURCE, obstacle
from udpmodule import AgentSocket, ControllerSocket
from wire.access import Key
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange
from wire.facts import HostFacts
from wire.findings import CheckReport
from wire.memory import Address
from wire.message import Reply, Request
from wire.records import HelloArguments, Progress, StatusArguments, StepArguments, StepReport

LOOPBACK = ("127.0.0.1", "::1")
NEW_KEY = MASTER.for_agent(DESTINATION)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an agent with these steps; it is ended after the test."""
    with starting(tmp_path) as start_node:
        yield start_node


# Lists and keys that are read again.


def test_who_is_heard_follows_the_list_when_it_is_read_again(start: Start) -> None:
    node = start({})
    old, new = node.client().greet(), node.client("127.0.0.2")
    new.send(new.request(Command.HELLO, HelloArguments()))
    old.ask(Command.HELLO, HelloArguments())
    assert new.heard_nothing()
    configured(node.config_directory, "127.0.0.2")
    node.do(lambda: node.agent.configure(node.load))
    old.send(old.request(Command.HELLO, HelloArguments()))
    new.greet()
    assert old.heard_nothing()


def test_where_an_agent_may_migrate_to_follows_the_list_when_it_is_read_again(start: Start) -> None:
    seen: list[bool] = []

    def step(context: StepContext, _arguments: StepArguments) -> StepReport:
        seen.append("192.0.2.99" in context.destinations)
        return StepReport(summary="done")

    node = start({Command.FINISH: step})
    client = node.client().greet()
    client.ask(Command.FINISH)
    (node.config_directory / "AgentIPAddr.txt").write_text("192.0.2.99\n")
    node.do(lambda: node.agent.configure(node.load))
    client.ask(Command.FINISH)
    assert seen == [False, True]


def test_keys_change_without_a_stop(start: Start) -> None:
    node = start({})
    old, new = node.client(), node.client(key=NEW_KEY)

    def read(*keys: Key) -> None:
        configured(node.config_directory, "127.0.0.1", keys=keys)
        node.do(lambda: node.agent.configure(node.load))

    new.send(new.request(Command.HELLO, HelloArguments()))
    old.greet()
    assert new.heard_nothing()
    read(AGENT_KEY, NEW_KEY)
    old.greet()
    new.greet()
    read(NEW_KEY)
    old.send(old.request(Command.HELLO, HelloArguments()))
    new.greet()
    assert old.heard_nothing()


def test_work_that_was_begun_under_the_old_key_is_asked_for_under_the_new_one(start: Start) -> None:
    step = Blocking()
    node = start({Command.FINISH: step})
    old, new = node.client().greet(), node.client(key=NEW_KEY)
    running = old.send(old.request(Command.FINISH))
    assert old.receive().msg_type is MessageType.ACCEPTED
    configured(node.config_directory, "127.0.0.1", keys=[NEW_KEY])
    node.do(lambda: node.agent.configure(node.load))
    step.released.set()
    new.send(new.request(Command.STATUS, StatusArguments(of=running)))
    assert new.result(running).cmd_result == StepReport(summary="released")
    assert old.heard_nothing()


@pytest.mark.parametrize(("name", "content", "said"), [
    ("ControllerIPAddr.txt", "127.0.0.2\nnode2\n", "ControllerIPAddr.txt, line 2: 'node2'"),
    ("AgentIPAddr.txt", "# nodes\n\n192.0.2.0/33\n", "AgentIPAddr.txt, line 3: '192.0.2.0/33'"),
    ("ControllerIPAddr.txt", "# nobody\n", "ControllerIPAddr.txt names no address"),
    ("AgentKey.txt", f"{NEW_KEY.secret.hex()}\nsecret\n", "AgentKey.txt, line 2: not a key"),
    ("AgentKey.txt", "", "There is no key on this host"),
])
def test_what_cannot_be_read_again_leaves_all_as_it_was_and_is_logged_with_its_line(
    start: Start, caplog: pytest.LogCaptureFixture, name: str, content: str, said: str,
) -> None:
    node = start({})
    client, stranger, other = node.client(), node.client("127.0.0.2"), node.client(key=NEW_KEY)
    configured(node.config_directory, "127.0.0.2", keys=[NEW_KEY])
    (node.config_directory / name).write_text(content)
    node.do(lambda: node.agent.configure(node.load))
    for each in (stranger, other):
        each.send(each.request(Command.HELLO, HelloArguments()))
    client.greet()
    assert stranger.heard_nothing()
    assert other.heard_nothing()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert said in record.getMessage()
    assert "stay as they were" in record.getMessage()


# Where it listens.


def test_an_agent_bound_to_one_address_does_not_answer_on_another(start: Start) -> None:
    node = start({})
    ((address, port),) = node.addresses()
    assert address == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(WAIT_SECONDS)
        client.connect(("127.0.0.2", port))
        client.send(b"anything")
        # Nobody listens there: the kernel says so at once.
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
    node.client().greet()


def test_an_agent_serves_one_address_of_each_family(start: Start) -> None:
    node = start({}, listen_addresses(["[::1]:0", "127.0.0.1:0"]))
    assert sorted(address for address, _port in node.addresses()) == ["127.0.0.1", "::1"]
    for address in LOOPBACK:
        node.client(address).greet()


@pytest.mark.parametrize("texts", [
    ["127.0.0.1", "127.0.0.2"], ["127.0.0.1:8002", "127.0.0.1:8003"], ["::1", "::"], ["127.0.0.1", "::1", "127.0.0.2"],
])
def test_two_addresses_of_one_family_are_refused(texts: list[str]) -> None:
    with pytest.raises(MigrationError) as caught:
        listen_addresses(texts)
    assert caught.value.code is ErrorCode.ARGUMENTS_INVALID
    assert "--listen" in caught.value.message


def test_a_port_that_is_taken_is_told_with_its_reason(start: Start) -> None:
    node = start({})
    with pytest.raises(MigrationError) as caught:
        AgentSocket(node.udp.responder, node.addresses(), node.writer)
    assert (caught.value.code, caught.value.exit_code) == (ErrorCode.LISTEN_FAILED, ExitCode.REFUSED)
    assert "in use" in caught.value.message


def test_a_second_address_that_cannot_be_had_leaves_the_first_one_free(start: Start) -> None:
    node = start({})
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as holder:
        holder.bind(("::1", 0))
        taken = ("::1", holder.getsockname()[1])
        # Kept, because with an error goes what its frames still hold open.
        errors = []
        for _each in range(2):
            with pytest.raises(MigrationError) as caught:
                AgentSocket(node.udp.responder, [("127.0.0.3", taken[1]), taken], node.writer)
            errors.append(caught)
        assert ["::1" in error.value.message for error in errors] == [True, True]


def test_a_host_without_ipv6_is_served_over_ipv4(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    node = start({})
    # An address that no host has stands for a family that this one lacks.
    monkeypatch.setattr(agent_module, "_EVERYWHERE", (("127.0.0.1", 0), ("2001:db8::1", 0)))
    with caplog.at_level(logging.INFO):
        udp = agent_module._open_socket(node.udp.responder, None, node.writer)
    assert udp.addresses().startswith("127.0.0.1 port ")
    assert " and " not in udp.addresses()
    udp.close()
    assert "IPv6 is not served" in caplog.text


# Real controllers.


@contextmanager
def controllers(port: int, count: int = 1) -> Iterator[list[ControllerSocket]]:
    """So many sockets of controllers at once, that talk to agents at this port."""
    sockets = [ControllerSocket(port) for _each in range(count)]
    yield sockets
    for udp in sockets:
        udp.close()


class Run:
    """A controller that asks one agent for one thing after the other."""

    def __init__(self, udp: ControllerSocket, address: str) -> None:
        self._udp = udp
        self._address = address
        self.progress: list[Progress] = []
        self._facts = HOST_FACTS

    def start(self, command: Command, arguments: object) -> Exchange:
        """Begin a request."""
        request = Request(
            request_id=secrets.token_hex(16), agent_ip=self._address, cmd=command, cmd_arguments=arguments,
            epoch=self._facts.epoch, challenge=self._facts.challenge)
        return self._udp.start(request, (AGENT_KEY,), GIVE_UP_SECONDS, limit=WAIT_SECONDS)

    def wait(self, exchange: Exchange) -> object:
        """Follow it to its result."""
        reply = self._udp.wait(exchange, self.progress.append)
        assert isinstance(reply, Reply)
        return reply.cmd_result

    def greet(self) -> Run:
        """Fetch a challenge."""
        facts = self.wait(self.start(Command.HELLO, HelloArguments()))
        assert isinstance(facts, HostFacts)
        self._facts = facts
        return self

    def ask(self, command: Command) -> object:
        """The result of a step in which that agent takes part."""
        return self.wait(self.start(command, migration_to(self._address)))


def port_of(node: Node) -> int:
    """Where a node with one address listens."""
    ((_address, port),) = node.addresses()
    return port


def test_a_controller_and_an_agent_talk_over_ipv6(start: Start) -> None:
    progress = Progress(phase="removing", done=1, total=2)

    def step(context: StepContext, arguments: StepArguments) -> StepReport:
        context.progress(progress)
        return StepReport(summary=f"{context.host} of {arguments.migration.destination}")

    node = start({Command.FINISH: step}, [("::1", 0)])
    with controllers(port_of(node)) as (udp,):
        run = Run(udp, "::1").greet()
        assert run.ask(Command.FINISH) == StepReport(summary="::1 of ::1")
        assert run.progress == [progress]


def test_one_controller_talks_to_agents_of_both_families_at_once(start: Start, tmp_path: Path) -> None:
    step = Blocking()
    port = port_of(start({Command.FINISH: step}, [("::1", 0)]))
    start({Command.FINISH: done}, [("127.0.0.1", port)], below=tmp_path / "other")
    with controllers(port) as (udp,):
        slow, fast = Run(udp, "::1").greet(), Run(udp, "127.0.0.1").greet()
        waiting = slow.start(Command.FINISH, migration_to("::1"))
        assert fast.ask(Command.FINISH) == StepReport(summary="done")
        step.released.set()
        assert slow.wait(waiting) == StepReport(summary="released")


def test_forty_obstacles_and_the_facts_come_whole_in_pages(start: Start) -> None:
    found = CheckReport(facts=FACTS, findings=tuple(
        obstacle(ErrorCode.PATH_TAKEN, host=SOURCE, path=f"/srv/büro/{number}") for number in range(40)))
    node = start({Command.CHECK_DESTINATION: lambda _context, _arguments: found})
    with controllers(port_of(node)) as (udp,):
        assert Run(udp, "127.0.0.1").greet().ask(Command.CHECK_DESTINATION) == found


def test_two_controllers_on_one_host_are_answered_each_on_a_port_of_its_own(
    start: Start, monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = start({Command.CHECK_DESTINATION: lambda _context, arguments: CheckReport(findings=(
        obstacle(ErrorCode.DOMAIN_BUSY, domain=arguments.migration.domain),))})
    came_from: list[int] = []
    receive = node.udp.responder.receive_datagram

    def watch(datagram: bytes, address: Address, now: float) -> None:
        came_from.append(address[1])
        receive(datagram, address, now)

    monkeypatch.setattr(node.udp.responder, "receive_datagram", watch)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        # Stands for 8001, which some other run may hold.
        free.bind(("0.0.0.0", 0))  # noqa: S104
        port = free.getsockname()[1]
    monkeypatch.setattr(udpmodule, "CONTROLLER_PORT", port)
    with controllers(port_of(node), 2) as both:
        first, second = (Run(udp, "127.0.0.1").greet() for udp in both)
        begun = [(run, run.start(Command.CHECK_DESTINATION, migration_to("127.0.0.1"))) for run in (first, second)]
        for run, exchange in reversed(begun):
            assert isinstance(run.wait(exchange), CheckReport)
    assert came_from[0] == port
    assert len(set(came_from)) == 2


def test_a_controller_runs_though_another_run_holds_its_port(start: Start) -> None:
    node = start({})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        # If it is taken already, so much the better.
        with suppress(OSError):
            holder.bind(("0.0.0.0", CONTROLLER_PORT))  # noqa: S104
        with controllers(port_of(node), 2) as both:
            for udp in both:
                Run(udp, "127.0.0.1").greet()


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
    "", ":", ":8002", "node1", "node1:8002", "node1:65536", "[::1", "::1]", "[]", "192.0.2.300",
])
def test_what_is_no_address_is_no_place_to_listen(text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        parse_listen(text)
    assert caught.value.code is ErrorCode.ADDRESS_INVALID
    assert caught.value.facts["address"] == text


@pytest.mark.parametrize("text", [
    "192.0.2.11:", "192.0.2.11:x", "192.0.2.11:65536", "192.0.2.11:-1", "192.0.2.11:+1", "192.0.2.11:²", "[::1]:",
    "[::1]:99999",
])
def test_a_port_that_is_none_is_told_as_a_port_and_not_as_an_address(text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        parse_listen(text)
    assert caught.value.code is ErrorCode.ARGUMENTS_INVALID
    assert caught.value.message == f"--listen {text!r} does not end in a port, a whole number up to 65535."


def test_an_agent_reads_both_lists_and_its_key(tmp_path: Path) -> None:
    settings = AgentSettings.load(configured(tmp_path, "192.0.2.1"), insecure=False)
    assert "192.0.2.1" in settings.controllers
    assert "192.0.2.1" not in settings.destinations
    assert "192.0.2.12" in settings.destinations
    assert settings.keys == (AGENT_KEY,)


def test_without_a_key_an_agent_does_not_start_unless_told_to(tmp_path: Path) -> None:
    (configured(tmp_path, "192.0.2.1") / "AgentKey.txt").unlink()
    with pytest.raises(MigrationError) as caught:
        AgentSettings.load(tmp_path, insecure=False)
    assert caught.value.code is ErrorCode.KEY_MISSING
    assert AgentSettings.load(tmp_path, insecure=True).keys == ()


@pytest.mark.parametrize("missing", ["ControllerIPAddr.txt", "AgentIPAddr.txt"])
def test_an_agent_does_not_start_without_both_lists_even_when_insecure(tmp_path: Path, missing: str) -> None:
    (configured(tmp_path, "192.0.2.1") / missing).unlink()
    with pytest.raises(MigrationError) as caught:
        AgentSettings.load(tmp_path, insecure=True)
    assert caught.value.code is ErrorCode.FILE_UNREADABLE


def test_an_error_at_the_start_is_told_on_stderr_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_what: object) -> None:
        raise MigrationError(ErrorCode.LIST_EMPTY, {"path": "/etc/vmmigration/AgentIPAddr.txt", "what": "node"})

    monkeypatch.setattr(agent_module, "_serve", fail)
    monkeypatch.setattr(agent_module, "configure_logging", lambda *, verbose: None)
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vmmigration-agent: /etc/vmmigration/AgentIPAddr.txt names no address.\n  ")


@pytest.mark.parametrize("number", ["0", "-1", "33", "x", "", "1.5", "²"])
def test_a_number_of_jobs_that_is_none_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--jobs={number}"]) == 2
    assert capsys.readouterr().err == (
        f"vmmigration-agent: argument --jobs: {number!r} is not a whole number from 1 to 32.\n"
        "  See `vmmigration-agent.py --help`.\n")


@pytest.mark.parametrize(("arguments", "problem"), [
    (["foo"], "unrecognized arguments: foo"), (["--state-dir"], "argument --state-dir: expected one argument"),
])
def test_what_an_agent_does_not_understand_is_told_in_one_sentence_with_a_remedy(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"vmmigration-agent: {problem}.\n  See `vmmigration-agent.py --help`.\n"


Outside = Callable[[Client], None]


def not_taken(number: int, _frame: object) -> None:
    """What a signal does that the agent has not taken for itself."""
    raise AssertionError(f"{signal.Signals(number).name} was not taken")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run the agent's command in this thread, and meanwhile in another what happens outside; give its exit code."""
    configured(tmp_path / "config", "127.0.0.1")
    table = types.ModuleType("steps.table")
    table.__dict__.update(
        HELLO=hello, STEPS={Command.PREPARE_DESTINATION: done, Command.CHECK_DESTINATION: done}, ADOPT=done,
        SETTLE=lambda _context, _arguments, *, alone: None, CLEAR=lambda _job_ids: None)
    monkeypatch.setitem(sys.modules, "steps.table", table)
    monkeypatch.setattr("agent.os.geteuid", lambda: 0)
    monkeypatch.setattr(agent_module, "configure_logging", lambda *, verbose: None)
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    # A signal that the agent does not take for itself fails this test, and is not the end of all tests.
    kept = [signal.signal(number, not_taken) for number in signals]

    run = agent_module.Agent.run

    def run_command(outside: Outside, *options: str, ending: signal.Signals = signal.SIGTERM) -> int:
        serving: queue.SimpleQueue[str] = queue.SimpleQueue()

        def watched(agent: Agent) -> None:
            serving.put(agent._udp.addresses())
            run(agent)

        def meanwhile() -> None:
            address, _, port = serving.get(timeout=WAIT_SECONDS).partition(" port ")
            try:
                with closing(Client((address, int(port)))) as client:
                    outside(client.greet())
            finally:
                signal.pthread_kill(main_thread, ending)

        monkeypatch.setattr(agent_module.Agent, "run", watched)
        main_thread = threading.get_ident()
        with ThreadPoolExecutor(1) as others:
            happening = others.submit(meanwhile)
            code = main(["--config-dir", str(tmp_path / "config"), "--state-dir", str(tmp_path / "state"),
                         "--listen", "127.0.0.1:0", *options])
            happening.result()
        return code

    yield run_command
    for number, handler in zip(signals, kept, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_serves_until_it_is_told_to_end(command: Callable[..., int], ending: signal.Signals) -> None:
    greeted: list[Client] = []
    assert command(greeted.append, ending=ending) == 0
    assert len(greeted) == 1


def test_sighup_has_an_agent_read_its_lists_and_its_key_again(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_again = threading.Event()
    configure = agent_module.Agent.configure

    def watched(agent: Agent, load: Callable[[], AgentSettings]) -> None:
        configure(agent, load)
        read_again.set()

    monkeypatch.setattr(agent_module.Agent, "configure", watched)
    main_thread = threading.get_ident()

    def outside(old: Client) -> None:
        configured(tmp_path / "config", "127.0.0.2", keys=[NEW_KEY])
        signal.pthread_kill(main_thread, signal.SIGHUP)
        assert read_again.wait(WAIT_SECONDS)
        old.send(old.request(Command.HELLO, HelloArguments()))
        with closing(Client(old.agent, "127.0.0.2", NEW_KEY)) as new:
            new.greet()
        assert old.heard_nothing()

    assert command(outside) == 0


@pytest.mark.parametrize(("options", "limit"), [([], JOBS_LIMIT), (["--jobs", "1"], 1), (["--jobs", "3"], 3)])
def test_the_limit_of_jobs_is_the_one_of_the_command_line(
    command: Callable[..., int], options: list[str], limit: int,
) -> None:
    def outside(client: Client) -> None:
        replies = [client.ask(Command.PREPARE_DESTINATION, job(number, f"VM{number}")) for number in range(limit + 1)]
        assert [reply.msg_type for reply in replies] == [MessageType.RESPONSE] * limit + [MessageType.REFUSED]
        assert code_of(replies[-1]) is ErrorCode.JOBS_LIMIT_REACHED

    assert command(outside, *options) == 0


def test_the_journal_is_where_the_command_line_says(command: Callable[..., int], tmp_path: Path) -> None:
    epochs = []
    for _each in range(2):
        assert command(lambda client: epochs.append(client.facts.epoch)) == 0
    assert epochs[0] == epochs[1]
    assert epochs[0] in (tmp_path / "state" / "journal").read_text()
    assert agent_module._arguments([]).state_dir == STATE_DIRECTORY


def test_directories_that_are_given_by_a_relative_path_are_those_below_the_directory_of_the_start(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "agent")
    monkeypatch.chdir(tmp_path)

    def outside(_client: Client) -> None:
        (tmp_path / "elsewhere").mkdir()
        os.chdir(tmp_path / "elsewhere")
        signal.pthread_kill(main_thread, signal.SIGHUP)

    main_thread = threading.get_ident()
    assert command(outside, "--config-dir", "config", "--state-dir", "relative") == 0
    assert f"configured in {tmp_path / 'config'}, journal in {tmp_path / 'relative'}" in caplog.text
    assert "lists and keys were read again" in caplog.text
    assert (tmp_path / "relative" / "journal").exists()


def test_an_agent_that_is_not_root_does_not_start(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:
    monkeypatch.setattr("agent.os.geteuid", lambda: 1000)
    monkeypatch.setattr(agent_module.Agent, "run", lambda _agent: None)
    assert main(["--config-dir", str(tmp_path / "config"), "--state-dir", str(tmp_path / "state")]) == 2
    assert "must run as root" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()
