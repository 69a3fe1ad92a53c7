"""Two ends of the protocol in one process: a Requester and a Responder with a bad network and a clock of their own.

Everything is drawn from one seed: what is lost on which way, doubled, held back, overtaken, damaged and cut short.
The agent's journal is a list of entries, each of which can be made to fail, to take its time, or to be the last
before a crash.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from constant import AGENT_PORT, GIVE_UP_SECONDS, Command, DomainState, MessageType
from tests.unit.samples import (
    AGENT_KEY,
    ARGUMENTS_OF,
    CONTROLLER,
    CONTROLLERS,
    FACTS,
    HOST_FACTS,
    MIGRATION,
    MOVED,
    SOURCE,
)
from udpmodule import Responder, Stage, Write
from wire.access import AddressList, Key
from wire.admission import Gate
from wire.datagram import Direction, keyring, seal, unseal
from wire.errors import ErrorCode
from wire.exchange import Exchange, GaveUp, Requester
from wire.findings import CheckReport
from wire.memory import Address, Entry, Memory
from wire.message import Reply, Request, decode, encode
from wire.records import (
    CancelReport,
    LinkReport,
    Progress,
    RollBackReport,
    StatusArguments,
    StepArguments,
    StepReport,
)

# Longer than any retry, so that what is held back arrives after its successor.
_HELD_BACK_SECONDS = 8.0
_TRAVEL_SECONDS = 0.001
WALL = 1_790_000_000.0
EPOCH = "0123456789abcdef"


@dataclass(frozen=True)
class Network:
    """What happens to each datagram, as probabilities from 0 to 1; `lose_replies` is `drop` unless it is given."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    truncate: float = 0.0
    lose_replies: float | None = None
    delay: float = _TRAVEL_SECONDS
    """How long each datagram travels, in seconds."""


class CrashError(Exception):
    """The agent's process ends here and now."""


@dataclass
class FakeJournal:
    """Where the agent's entries go. A test that wants a write to fail, or the agent to die at it, sets a hook."""

    entries: list[Entry] = field(default_factory=list)
    epoch: str = EPOCH
    seconds: float = 0.0
    """How long the agent waits to hear that an entry is written."""
    before_write: Callable[[Write], str | None] = lambda _write: None
    """Returns the reason why it cannot be written; may raise CrashError."""
    after_write: Callable[[Write], None] = lambda _write: None

    def write(self, write: Write) -> str | None:
        """Write it, all or nothing; return why not."""
        problem = self.before_write(write)
        if problem is None:
            self.entries = [*([] if write.anew else self.entries), *write.entries]
            self.after_write(write)
        return problem


def responder(
    keys: Sequence[Key] = (AGENT_KEY,), *, controllers: AddressList = CONTROLLERS, entries: Sequence[Entry] = (),
    now: float = 1000.0, epoch: str = EPOCH, life: int = 1,
) -> Responder:
    """An agent's protocol as it is right after a start, with what its journal holds. `life` makes the secret."""
    memory = Memory(now, WALL + now)
    memory.restore(entries)
    return Responder(
        Gate(controllers), keys, memory, epoch, life.to_bytes(32, "big"), now, "/var/lib/vmmigration/journal")


class Pair:
    """A controller's requests and one agent, with the network between them.

    The agent accepts each request, works `work_seconds` on it with a progress report each second, and answers with
    what `result_of` says of the request; HELLO and CANCEL it answers at once. `executed` counts how often the work of
    each request id was begun, over all lives of the agent.
    """

    def __init__(
        self, network: Network = Network(), *, seed: int = 0,
        keys: Sequence[Key] = (AGENT_KEY,), work_seconds: float = 3.0, patience: float = GIVE_UP_SECONDS,
    ) -> None:
        self.network = network
        self.keys = keys
        self.now = 1000.0
        self.work_seconds = work_seconds
        self.patience = patience
        self.journal = FakeJournal()
        self.lives = 1
        self.responder = responder(keys)
        self.executed: Counter[str] = Counter()
        self.begun: list[Request] = []
        """The requests whose work was begun, in order."""
        self.result_of: Callable[[Request], object] = result_of
        self.answered: dict[str, object] = {}
        """What the agent's work on each request came to."""
        self.sent_to_agent: list[bytes] = []
        self.sent_to_controller: list[bytes] = []
        self.heard: list[tuple[float, bytes]] = []
        """What arrived at the controller, and when."""
        self.connected = True
        self._random = random.Random(seed)  # noqa: S311 - not for secrets: it must be repeatable
        self.requester = Requester(AGENT_PORT, self._random.random)
        self._ids = itertools.count()
        self._order = itertools.count()
        # When to do what; the number keeps what is due at the same time in its order.
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    # The controller.

    def request(self, command: Command = Command.PREPARE_DESTINATION) -> Request:
        """A new request as a controller would make it after a HELLO now; of a step without facts, in one datagram."""
        arguments, bare = ARGUMENTS_OF[command], StepArguments(migration=MIGRATION)
        return Request(
            request_id=f"{next(self._ids):032x}", agent_ip=SOURCE, cmd=command,
            cmd_arguments=bare if isinstance(arguments, StepArguments) else arguments, epoch=self.responder.epoch,
            challenge=self.responder.challenge(self.now))

    def exchange(self, request: Request, patience: float | None = None, limit: float = math.inf) -> Exchange:
        """An Exchange for it at the pair's time, with the pair's own random numbers."""
        return self.requester.start(
            request, self.keys, self.now, self.patience if patience is None else patience, limit)

    # Time.

    def run(self, exchange: Exchange, until: Callable[[], bool] = lambda: False) -> list[Reply | GaveUp]:
        """Let time pass until the exchange has ended, or `until()`; return its events."""
        events: list[Reply | GaveUp] = []
        for _turn in range(100_000):
            self.requester.handle_timer(self.now)
            for datagram, _agent in self.requester.datagrams_to_send(self.now):
                self.sent_to_agent.append(datagram)
                self._carry(datagram, self.network.drop, self._arrive_at_agent)
            while (event := self.requester.next_event(exchange)) is not None:
                events.append(event)
            if exchange.ended or until():
                return events
            due = self._due[0][0] if self._due else math.inf
            self.now = max(self.now, min(self.requester.get_timer(), self.responder.get_timer(), due))
            self._do_what_is_due()
        raise AssertionError("the exchange never ends")

    def let_pass(self, seconds: float) -> None:
        """Nobody asks anything for so long; the agent does what is left to do, and looks after itself at the end."""
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now = max(self.now, self._due[0][0])
            heapq.heappop(self._due)[2]()
        self.now = end
        self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        while self._due and self._due[0][0] <= self.now:
            heapq.heappop(self._due)[2]()
        if self.responder.get_timer() <= self.now:
            self._agent_does(lambda: self.responder.handle_timer(self.now))

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), action))

    # The network.

    def deliver(self, datagram: bytes, address: Address = CONTROLLER) -> list[tuple[bytes, Address]]:
        """Give the agent a datagram at once, whatever the network is like; return what it answers at once."""
        self.responder.receive_datagram(datagram, address, self.now)
        self.turn_agent()
        return self.responder.datagrams_to_send(self.now)

    def _carry(self, datagram: bytes, drop: float, arrive: Callable[[bytes], None]) -> None:
        """One datagram's way through the network."""
        chance = self._random.random
        if not self.connected or chance() < drop:
            return
        for _copy in range(2 if chance() < self.network.duplicate else 1):
            held_back = chance() * _HELD_BACK_SECONDS if chance() < self.network.reorder else 0.0
            carried = self._damaged(datagram) if chance() < self.network.corrupt else datagram
            carried = carried[:self._random.randrange(len(carried))] if chance() < self.network.truncate else carried
            self._later(self.network.delay + held_back, lambda carried=carried: arrive(carried))  # type: ignore[misc]

    def _damaged(self, datagram: bytes) -> bytes:
        place = self._random.randrange(len(datagram))
        return datagram[:place] + bytes([datagram[place] ^ 1 << self._random.randrange(8)]) + datagram[place + 1:]

    def _arrive_at_agent(self, datagram: bytes) -> None:
        self._agent_does(lambda: self.responder.receive_datagram(datagram, CONTROLLER, self.now))

    def _arrive_at_controller(self, datagram: bytes) -> None:
        self.heard.append((self.now, datagram))
        self.requester.receive_datagram(datagram, (SOURCE, AGENT_PORT), self.now)

    # The agent.

    def restart_agent(self, *, journal_lost: bool = False) -> None:
        """The agent's process is another one: its work is gone, and it knows what its journal holds."""
        self.lives += 1
        if journal_lost:
            self.journal = FakeJournal(epoch=f"{self.lives:016x}")
        self.responder = responder(
            self.keys, entries=self.journal.entries, now=self.now, epoch=self.journal.epoch, life=self.lives)

    def _agent_does(self, action: Callable[[], None]) -> None:
        """Have the agent do that and what follows from it; what it answers goes into the network."""
        try:
            action()
            self.turn_agent()
        except CrashError:
            self.restart_agent()
        drop = self.network.drop if self.network.lose_replies is None else self.network.lose_replies
        for datagram, _address in self.responder.datagrams_to_send(self.now):
            self.sent_to_controller.append(datagram)
            self._carry(datagram, drop, self._arrive_at_controller)

    def _agent_does_later(self, seconds: float, action: Callable[[], None]) -> None:
        """The same after a while, if the agent's process is still the same then."""
        life = self.responder
        self._later(seconds, lambda: self._agent_does(action) if self.responder is life else None)

    def turn_agent(self) -> None:
        """Do what the agent has to do: take requests, write its journal, begin work."""
        while True:
            event = self.responder.next_event()
            if event is not None and event.stage is Stage.BEGUN:
                self._begin_work(event.request)
            elif event is not None and event.stage is Stage.ARRIVED:
                self._take(event.request)
            elif event is None and not self._write_journal():
                return

    def _take(self, request: Request) -> None:
        if request.cmd is Command.CANCEL:
            self._note_begun(request)
            self._finish(request, CancelReport(known=False))
        else:
            self.responder.accept(request.request_id, self.now)

    def _write_journal(self) -> bool:
        writes = self.responder.entries_to_write()
        for write in writes:
            problem = self.journal.write(write)
            if self.journal.seconds:
                self._agent_does_later(self.journal.seconds, lambda write=write, problem=problem: (  # type: ignore[misc]
                    self.responder.entries_written(write, problem, self.now)))
            else:
                self.responder.entries_written(write, problem, self.now)
        return bool(writes)

    def _note_begun(self, request: Request) -> None:
        self.executed[request.request_id] += 1
        self.begun.append(request)

    def _begin_work(self, request: Request) -> None:
        self._note_begun(request)
        if request.cmd is Command.HELLO:
            challenge = self.responder.challenge(self.now)
            self._finish(request, dataclasses.replace(HOST_FACTS, epoch=self.responder.epoch, challenge=challenge))
            return
        for second in range(1, math.ceil(self.work_seconds)):
            report = Progress(phase="working", done=second, total=10)
            self._agent_does_later(second, lambda report=report: (  # type: ignore[misc]
                self.responder.progress(request.request_id, report, self.now)))
        self._agent_does_later(self.work_seconds, lambda: self._finish(request, self.result_of(request)))

    def _finish(self, request: Request, result: object) -> None:
        self.answered[request.request_id] = result
        self.responder.finish(request.request_id, result, self.now)


def result_of(request: Request) -> object:
    """What the pair's agent answers to a step."""
    if request.cmd in (Command.CHECK_SOURCE, Command.CHECK_LINK, Command.CHECK_DESTINATION):
        return CheckReport(findings=(), facts=FACTS)
    if request.cmd is Command.MEASURE_LINK:
        return LinkReport(rate=1)
    if request.cmd is Command.LIVE_MIGRATION:
        return MOVED
    if request.cmd is Command.ROLL_BACK:
        return RollBackReport(state=DomainState.RUNNING, removed=())
    return StepReport(summary=f"did {request.request_id}")


# What tests look at and change.


def sealed(request: Request, key: Key | None = AGENT_KEY) -> bytes:
    """A request as its datagram."""
    return seal(key, Direction.REQUEST, encode(request))


def opened(datagram: bytes, *keys: Key) -> Reply:
    """The reply in a datagram that the agent sent, under one of these keys or its own."""
    message = decode(unseal(datagram, keyring(keys or [AGENT_KEY]), Direction.REPLY)[1])
    assert isinstance(message, Reply)
    return message


def answer(pair: Pair, request: Request) -> Reply:
    """What the agent answers at once to a request; it must be one datagram."""
    ((datagram, address),) = pair.deliver(sealed(request))
    assert address == CONTROLLER
    return opened(datagram)


def done(pair: Pair, request: Request) -> object:
    """Have the request worked on to its end; return its result."""
    last = pair.run(pair.exchange(request))[-1]
    assert isinstance(last, Reply)
    assert last.msg_type is MessageType.RESPONSE
    assert last.error() is None
    return last.cmd_result


def refused(reply: Reply | GaveUp) -> ErrorCode:
    """The code with which a request was refused; it must have been."""
    assert isinstance(reply, Reply)
    assert reply.msg_type is MessageType.REFUSED
    return error_of(reply)


def error_of(reply: Reply | GaveUp) -> ErrorCode:
    """The code of the error in a reply."""
    assert isinstance(reply, Reply)
    error = reply.error()
    assert error is not None
    return error.code


def kinds(events: Sequence[Reply | GaveUp]) -> list[str]:
    """The events in words."""
    return ["gave up" if isinstance(event, GaveUp) else event.msg_type.value for event in events]


def changed(request: Request, **changes: Any) -> Request:
    """The request with some fields changed."""
    return dataclasses.replace(request, **changes)


def status_of(request: Request, page: int = 0) -> Request:
    """The STATUS that an Exchange asks about it: without epoch or challenge, and with an id of its own."""
    return Request(
        request_id=f"{int(request.request_id, 16) + (1 << 64):032x}", agent_ip=request.agent_ip, cmd=Command.STATUS,
        cmd_arguments=StatusArguments(of=request.request_id, page=page))
