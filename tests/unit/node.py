"""An agent with steps of a test's own: over real sockets on the loopback in a thread, or moved by hand without any."""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from agent import Agent, AgentSettings, Alone, Step, open_responder
from constant import JOBS_LIMIT, Command, MessageType
from steps.context import StepContext
from tests.unit.pair import responder as fresh_responder
from tests.unit.samples import (
    AGENT_KEY,
    AGENTS,
    CONTROLLER,
    CONTROLLERS,
    FACTS,
    HOST_FACTS,
    MIGRATION,
    SOURCE,
    write_key,
)
from udpmodule import AgentSocket, Write
from wire.access import Key
from wire.datagram import Direction, keyring, seal, unseal
from wire.errors import ErrorCode, MigrationError
from wire.facts import HostFacts
from wire.journal import Journal, JournalWriter
from wire.memory import Address
from wire.message import Reply, Request, decode, encode
from wire.records import HelloArguments, StepArguments, StepReport

WAIT_SECONDS = 5.0
ARGUMENTS = StepArguments(migration=MIGRATION, facts=FACTS)
_ids = itertools.count(1)


def hello(context: StepContext) -> HostFacts:
    """A HELLO that touches no libvirt."""
    return HostFacts(
        version=HOST_FACTS.version, hostname="node1", libvirt_version=0, daemon=HOST_FACTS.daemon,
        epoch=context.epoch, challenge=context.challenge)


def done(_context: StepContext, _arguments: StepArguments) -> StepReport:
    """A step that has nothing to do."""
    return StepReport(summary="done")


class Blocking:
    """A step that goes on until the test lets it, or until it is cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()
        self.was_cancelled = False
        self.ran = 0

    def __call__(self, context: StepContext, arguments: StepArguments) -> StepReport:
        """Run, until the test says so."""
        self.ran += 1
        self.begun.set()
        while not self.released.wait(0.002):
            reason = context.cancellation.reason
            if reason is not None:
                self.was_cancelled = True
                raise MigrationError(
                    ErrorCode.MIGRATION_CANCELLED, {"domain": arguments.migration.domain, "reason": reason})
        return StepReport(summary="released")


def job(number: int, domain: str = "VM1") -> StepArguments:
    """The arguments of a step of the job with that number."""
    return StepArguments(migration=replace(MIGRATION, job_id=f"{number:08x}", domain=domain), facts=FACTS)


def migration_to(address: str) -> StepArguments:
    """The arguments of a step in which the host at that address takes part."""
    return StepArguments(migration=replace(MIGRATION, destination=address), facts=FACTS)


def code_of(reply: Reply) -> ErrorCode:
    """The code of the error in a reply."""
    error = reply.error()
    assert error is not None, reply
    return error.code


# Over real sockets.


def configured(directory: Path, *controllers: str, keys: Sequence[Key] = (AGENT_KEY,)) -> Path:
    """A directory with all that an agent reads."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ControllerIPAddr.txt").write_text("".join(f"{each}\n" for each in controllers))
    (directory / "AgentIPAddr.txt").write_text("192.0.2.12\n")
    write_key(directory / "AgentKey.txt", *keys)
    return directory


class Node:
    """An agent that runs in a thread, with its configuration and its state below `directory`."""

    def __init__(self, directory: Path, steps: Mapping[Command, Step], addresses: Sequence[Address]) -> None:
        self.state_directory = directory / "state"
        self.config_directory = configured(directory / "config", "127.0.0.1", "::1")
        settings = self.load()
        journal = Journal(self.state_directory, lambda: secrets.token_hex(8))
        self.writer = JournalWriter(journal)
        responder = open_responder(settings, journal)
        self.udp = AgentSocket(responder, addresses, self.writer)
        self.agent = Agent(settings, self.udp, hello, steps, state_directory=self.state_directory)
        self.thread = threading.Thread(target=self.agent.run, daemon=True)
        self.thread.start()
        self.ended = False
        self._clients: list[Client] = []

    def load(self) -> AgentSettings:
        """Read lists and key, as the agent does at its start and when it gets SIGHUP."""
        return AgentSettings.load(self.config_directory, insecure=False)

    def addresses(self) -> list[Address]:
        """Where it listens."""
        parts = [text.partition(" port ") for text in self.udp.addresses().split(" and ")]
        return [(address, int(port)) for address, _, port in parts]

    def client(self, bind: str = "127.0.0.1", key: Key = AGENT_KEY) -> Client:
        """A client of it at that address of the loopback."""
        (address,) = [each for each in self.addresses() if (":" in each[0]) == (":" in bind)]
        self._clients.append(Client(address, bind, key))
        return self._clients[-1]

    def do(self, action: Callable[[], None]) -> None:
        """Do something in the receive loop's thread, and wait for its end."""
        ended = threading.Event()
        self.udp.post(action)
        self.udp.post(ended.set)
        assert ended.wait(WAIT_SECONDS), "the receive loop does not turn"

    def end(self) -> None:
        """Stop the agent and wait for its end."""
        if self.ended:
            return
        self.ended = True
        self.udp.post(self.agent.stop)
        self.thread.join(WAIT_SECONDS)
        for client in self._clients:
            client.close()
        assert not self.thread.is_alive(), "the agent did not end when it was stopped"
        self.udp.close()
        self.writer.close()


Start = Callable[..., Node]


@contextmanager
def starting(directory: Path) -> Iterator[Start]:
    """A function that starts a Node with the steps it is given; each is ended at the end, and lingers for nobody."""
    nodes: list[Node] = []

    def start(
        steps: Mapping[Command, Step], addresses: Sequence[Address] = (("127.0.0.1", 0),), below: Path = directory,
    ) -> Node:
        nodes.append(Node(below, steps, addresses))
        return nodes[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent._LINGER_SECONDS", 0.0)
        yield start
        for node in nodes:
            node.end()


class Client:
    """A controller's bare socket: nothing is repeated, and whatever comes is handed out."""

    def __init__(self, agent: Address, bind: str = "127.0.0.1", key: Key = AGENT_KEY) -> None:
        self.agent = agent
        self._key = key
        self.facts = HOST_FACTS
        self.socket = socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((bind, 0))
        self.socket.settimeout(WAIT_SECONDS)

    def greet(self) -> Client:
        """Fetch a challenge, for the requests that need one."""
        facts = self.ask(Command.HELLO, HelloArguments()).cmd_result
        assert isinstance(facts, HostFacts)
        self.facts = facts
        return self

    def request(self, command: Command, arguments: object = ARGUMENTS, agent_ip: str = SOURCE) -> Request:
        """A new request."""
        return Request(
            request_id=f"{next(_ids):032x}", agent_ip=agent_ip, cmd=command, cmd_arguments=arguments,
            epoch=self.facts.epoch, challenge=self.facts.challenge)

    def send(self, request: Request, raw_arguments: object = None) -> str:
        """Send a request, with that for arguments if it is given, whatever it is; return its id."""
        body = encode(request)
        if raw_arguments is not None:
            body = json.dumps({**json.loads(body), "cmd_arguments": raw_arguments}).encode()
        self.send_bytes(seal(self._key, Direction.REQUEST, body))
        return request.request_id

    def send_bytes(self, datagram: bytes) -> None:
        """Send a datagram."""
        self.socket.sendto(datagram, self.agent)

    def receive(self) -> Reply:
        """The next reply."""
        return opened(self.socket.recv(65535), self._key)

    def result(self, request_id: str) -> Reply:
        """The reply that ends a request."""
        while True:
            reply = self.receive()
            if reply.request_id == request_id and reply.msg_type in (MessageType.RESPONSE, MessageType.REFUSED):
                return reply

    def ask(self, command: Command, arguments: object = ARGUMENTS, agent_ip: str = SOURCE) -> Reply:
        """Send a request and return what ends it."""
        return self.result(self.send(self.request(command, arguments, agent_ip)))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def heard_nothing(self) -> bool:
        """Whether no reply has come. What was sent before is answered before: on the loopback nothing overtakes."""
        self.socket.setblocking(False)
        try:
            self.socket.recv(65535)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(WAIT_SECONDS)
        return False


def opened(datagram: bytes, key: Key = AGENT_KEY) -> Reply:
    """The reply in a datagram."""
    reply = decode(unseal(datagram, keyring([key]), Direction.REPLY)[1])
    assert isinstance(reply, Reply)
    return reply


# Moved by hand.


@dataclass
class _Later:
    """Stands for a thread of the agent's: its work is put off until the test says so."""

    begun: list[Callable[[], None]]
    target: Callable[..., None]
    args: tuple[object, ...]
    name: str
    daemon: bool

    def start(self) -> None:
        """Put it off."""
        # A thread has a context of its own, where the log finds its job.
        self.begun.append(lambda: copy_context().run(self.target, *self.args))


class StillAgent(AgentSocket):
    """An agent without socket and threads: its journal and its work go on when the test says so."""

    def __init__(
        self, steps: Mapping[Command, Step], *, jobs_limit: int = JOBS_LIMIT, alone: Alone | None = None,
    ) -> None:
        self.responder = fresh_responder(now=time.monotonic())
        self.state_directory = Path(tempfile.mkdtemp(prefix="still-agent-"))
        weakref.finalize(self, shutil.rmtree, self.state_directory, ignore_errors=True)
        self.agent = Agent(
            AgentSettings(CONTROLLERS, AGENTS, (AGENT_KEY,)), self, hello, steps, state_directory=self.state_directory,
            jobs_limit=jobs_limit, alone=alone)
        self.waiting: list[Write] = []
        """What the disk has not taken yet."""
        self.begun: list[Callable[[], None]] = []
        """The work that has begun, and not gone on yet."""

    def post(self, action: Callable[[], None]) -> None:
        """At once: there is only one thread."""
        action()

    def send(self, command: Command, arguments: object = ARGUMENTS, agent_ip: str = SOURCE) -> list[Reply]:
        """Send it a new, fresh request; return what it answers at once."""
        now = time.monotonic()
        request = Request(
            request_id=f"{next(_ids):032x}", agent_ip=agent_ip, cmd=command, cmd_arguments=arguments,
            epoch=self.responder.epoch, challenge=self.responder.challenge(now))
        self.responder.receive_datagram(seal(AGENT_KEY, Direction.REQUEST, encode(request)), CONTROLLER, now)
        return self.turn()

    def turn(self) -> list[Reply]:
        """Let it do what it can without its disk; return what it says."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.threading.Thread", partial(_Later, self.begun))
            while (event := self.responder.next_event()) is not None:
                self.agent.take(event)
        self.waiting += self.responder.entries_to_write()
        return [opened(datagram) for datagram, _address in self.responder.datagrams_to_send(time.monotonic())]

    def write(self, problem: str | None = None) -> list[Reply]:
        """Let the disk take what waits for it, or fail at it; return what the agent says then."""
        waiting, self.waiting = self.waiting, []
        for write in waiting:
            self.responder.entries_written(write, problem, time.monotonic())
        return self.turn()

    def work(self) -> list[Reply]:
        """Let all work that has begun come to its end; return what the agent says then, without its disk."""
        begun, self.begun = self.begun, []
        for work in begun:
            work()
        return self.turn()

    def ask(self, command: Command, arguments: object = ARGUMENTS, agent_ip: str = SOURCE) -> Reply:
        """Send a request; return its last answer."""
        return [*self.send(command, arguments, agent_ip), *self.write(), *self.work(), *self.write()][-1]

    def close(self) -> None:
        """There is nothing to close."""
