"""How long an agent takes from a request to `accepted`, as a controller sees it, and how much of that is the disk.

The requests come when they are due, whether or not the ones before have been answered: an agent that is held up is
seen to be held up for all that come meanwhile.
"""

from __future__ import annotations

import math
import random
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.processes import Running, started
from bench.samples import AGENT, MASTER, MIGRATION, OTHER_MIGRATION, request
from constant import Command, MessageType
from wire.access import Key
from wire.datagram import Direction, keyring, seal, unseal
from wire.facts import HostFacts
from wire.journal import Journal
from wire.memory import Begun
from wire.message import Reply, Request, decode, encode
from wire.records import CancelArguments, HelloArguments, StepArguments

# Each far below what one source may send (constant.RATE_PER_SECOND), together more than any controller would.
_SOURCES = tuple(f"127.0.0.{number}" for number in range(2, 8))
_REQUESTS_PER_SECOND = 50.0
_ANSWER_SECONDS = 5.0
# socket(7); Python has no name for it.
_SO_TIMESTAMPNS = 35


class Client:
    """A controller without its patience: it sends each request once, and notes when the answers come."""

    def __init__(self, port: int, key: Key) -> None:
        self._agent = (AGENT, port)
        self._key = key
        self._keys = keyring((key,))
        self._sockets = [self._bound(source) for source in _SOURCES]
        self._sent: dict[str, float] = {}

    @staticmethod
    def _bound(source: str) -> socket.socket:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        udp.bind((source, 0))
        return udp

    def close(self) -> None:
        """Close the sockets."""
        for udp in self._sockets:
            udp.close()

    def send(self, asked: Request, source: int = 0) -> None:
        """Send it from one of the addresses."""
        datagram = seal(self._key, Direction.REQUEST, encode(asked))
        self._sent[asked.request_id] = time.time()
        self._sockets[source % len(self._sockets)].sendto(datagram, self._agent)

    def replies(self, until: float) -> Iterator[tuple[Reply, float]]:
        """What comes until then, each with the seconds since its request."""
        while True:
            readable, _, _ = select.select(self._sockets, [], [], max(0.0, until - time.perf_counter()))
            if not readable:
                return
            for udp in readable:
                # When it arrived: the controller is on another host, this client has to wait for a busy processor.
                datagram, ((_level, _kind, stamp),), _flags, _address = udp.recvmsg(65535, 64)
                seconds, nanoseconds = struct.unpack("ll", stamp)
                now = seconds + nanoseconds / 1e9
                reply = decode(unseal(datagram, self._keys, Direction.REPLY)[1])
                if isinstance(reply, Reply):
                    yield reply, now - self._sent[reply.request_id]

    def ask(self, asked: Request, answer: MessageType) -> Reply:
        """Send it and wait for that answer. Raises RuntimeError if another comes, or none."""
        self.send(asked)
        for reply, _ in self.replies(time.perf_counter() + _ANSWER_SECONDS):
            if reply.request_id == asked.request_id and reply.msg_type is answer:
                return reply
            if reply.msg_type is MessageType.REFUSED:
                raise RuntimeError(f"refused: {reply.error()}")
        raise RuntimeError(f"{asked.cmd.value} was not answered")

    def greet(self) -> HostFacts:
        """HELLO."""
        facts = self.ask(request(Command.HELLO, HelloArguments()), MessageType.RESPONSE).cmd_result
        if not isinstance(facts, HostFacts):
            raise RuntimeError("no facts")
        return facts


def accepted_after(client: Client, count: int, seed: int) -> list[float]:
    """The seconds to `accepted` of that many harmless requests that are journaled, infinity for those that were not."""
    facts = client.greet()
    pause = random.Random(seed)  # noqa: S311 - so that they do not fall into step with the job
    asked = [
        request(Command.EXTRACT_CONFIGURE_FILE, StepArguments(migration=OTHER_MIGRATION), facts.epoch, facts.challenge)
        for _ in range(count)]
    seconds = {each.request_id: math.inf for each in asked}

    def take(until: float) -> None:
        for reply, passed in client.replies(until):
            if reply.msg_type is MessageType.ACCEPTED and reply.request_id in seconds:
                seconds[reply.request_id] = passed

    due = time.perf_counter()
    for number, each in enumerate(asked):
        due += pause.uniform(0.5, 1.5) / _REQUESTS_PER_SECOND
        take(due)
        client.send(each, number)
    give_up = time.perf_counter() + _ANSWER_SECONDS
    while math.inf in seconds.values() and time.perf_counter() < give_up:
        take(time.perf_counter() + 0.1)
    return list(seconds.values())


@contextmanager
def agent_and_client(directory: Path) -> Iterator[Client]:
    """An agent in a process of its own, with its journal in that directory, and one who asks it."""
    with started("bench.node", "agent", directory, log=directory / "log") as node:
        client = Client(node.line()["port"], MASTER.for_agent(AGENT))
        try:
            yield client
        finally:
            client.close()


@contextmanager
def job_running(client: Client, directory: Path) -> Iterator[None]:
    """A migration as the agent's host has it: a step in the agent, and a processor and the disk busy beside it."""
    with load(directory):
        facts = client.greet()
        client.ask(request(
            Command.LIVE_MIGRATION, StepArguments(migration=MIGRATION), facts.epoch, facts.challenge,
        ), MessageType.ACCEPTED)
        yield
        facts = client.greet()
        client.ask(request(
            Command.CANCEL, CancelArguments(job_id=MIGRATION.job_id), facts.epoch, facts.challenge,
        ), MessageType.RESPONSE)


@contextmanager
def load(directory: Path) -> Iterator[Running]:
    """A processor and the disk of that directory busy, as QEMU and SSH keep them during a migration."""
    with started("bench.node", "load", directory) as process:
        process.line()
        yield process


def append_seconds(directory: Path, count: int) -> list[float]:
    """How long the journal takes to have one entry on disk."""
    entry = Begun(
        request_id="0" * 32, digest="0" * 64, agent_ip=AGENT, cmd=Command.LIVE_MIGRATION, asked_by=AGENT,
        at=round(time.time()), job_id=MIGRATION.job_id, domain=MIGRATION.domain)
    seconds = []
    with ExitStack() as stack:
        journal = Journal(directory, lambda: "0" * 16)
        stack.callback(journal.close)
        for _ in range(count):
            began = time.perf_counter()
            journal.append([entry])
            seconds.append(time.perf_counter() - began)
            # An agent is not asked without pause, and a disk that has rested answers otherwise.
            time.sleep(0.005)
    return seconds


def percentile(seconds: Sequence[float], percent: float) -> float:
    """The smallest of the figures that so many percent of them do not exceed."""
    return sorted(seconds)[math.ceil(len(seconds) * percent / 100) - 1]
