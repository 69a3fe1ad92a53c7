"""Two ends of the protocol in one process: an Exchange and a Responder with a bad network and a clock of their own.

Everything is drawn from one seed: what is lost, doubled, held back, overtaken and damaged.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from constant import GIVE_UP_SECONDS, Command
from tests.unit.samples import AGENT_KEY, CONTROLLER, CONTROLLERS, SOURCE
from udpmodule import Address, Exchange, GaveUp, Responder
from wire.access import Key
from wire.message import Reply, Request
from wire.records import Progress, StepReport

# Longer than any retry, so that what is held back arrives after its successor.
_HELD_BACK_SECONDS = 8.0
_TRAVEL_SECONDS = 0.001


@dataclass(frozen=True)
class Network:
    """What happens to each datagram, as probabilities from 0 to 1."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0


@dataclass(order=True)
class _Due:
    at: float
    order: int
    action: Callable[[], None] = field(compare=False)


class Pair:
    """A controller's requests and one agent, with the network between them.

    The agent accepts each request, works `work_seconds` on it with a progress report each second, and answers with
    what `result` says of the request. `executed` counts how often the work of each request id was begun.
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
        self.responder = Responder(CONTROLLERS, keys)
        self.executed: Counter[str] = Counter()
        self.sent_to_agent: list[bytes] = []
        self.sent_to_controller: list[bytes] = []
        self.connected = True
        self._random = random.Random(seed)  # noqa: S311 - not for secrets: it must be repeatable
        self._ids = itertools.count()
        self._order = itertools.count()
        self._due: list[_Due] = []
        self._exchange: Exchange | None = None

    def request(self, command: Command = Command.PREPARE_DESTINATION) -> Request:
        """A new request as a controller would make it after a HELLO now."""
        return Request(
            request_id=f"{next(self._ids):032x}", agent_ip=SOURCE, cmd=command, cmd_arguments={"n": 1},
            epoch=self.responder.epoch, challenge=self.responder.challenge(self.now))

    def exchange(self, request: Request, patience: float | None = None, limit: float = math.inf) -> Exchange:
        """An Exchange for it at the pair's time, with the pair's own random numbers."""
        return Exchange(
            request, self.keys, self.now, self.patience if patience is None else patience, self._random.random, limit)

    def restart_agent(self) -> None:
        """The agent's process is another one: it has forgotten everything, and its work is gone."""
        self.responder = Responder(CONTROLLERS, self.keys)

    def run(self, exchange: Exchange, until: Callable[[], bool] = lambda: False) -> list[Reply | GaveUp]:
        """Let time pass until the exchange has ended, or `until()`; return its events."""
        self._exchange = exchange
        events: list[Reply | GaveUp] = []
        for _turn in range(100_000):
            for datagram in exchange.datagrams_to_send(self.now):
                self.sent_to_agent.append(datagram)
                self._carry(datagram, self._arrive_at_agent)
            while (event := exchange.next_event()) is not None:
                events.append(event)
            if exchange.ended or until():
                return events
            self.now = max(self.now, min([exchange.get_timer(), *(due.at for due in self._due[:1])]))
            while self._due and self._due[0].at <= self.now:
                heapq.heappop(self._due).action()
            exchange.handle_timer(self.now)
        raise AssertionError("the exchange never ends")

    def deliver(self, datagram: bytes, address: Address = CONTROLLER) -> list[tuple[bytes, Address]]:
        """Give the agent a datagram at once, whatever the network is like; return what it answers at once."""
        self.responder.receive_datagram(datagram, address, self.now)
        self._begin_work()
        return self.responder.datagrams_to_send()

    def _carry(self, datagram: bytes, arrive: Callable[[bytes], None]) -> None:
        """One datagram's way through the network."""
        chance = self._random.random
        if not self.connected or chance() < self.network.drop:
            return
        for _copy in range(2 if chance() < self.network.duplicate else 1):
            held_back = chance() * _HELD_BACK_SECONDS if chance() < self.network.reorder else 0.0
            carried = self._damaged(datagram) if chance() < self.network.corrupt else datagram
            self._later(_TRAVEL_SECONDS + held_back, lambda carried=carried: arrive(carried))  # type: ignore[misc]

    def _damaged(self, datagram: bytes) -> bytes:
        place = self._random.randrange(len(datagram))
        return datagram[:place] + bytes([datagram[place] ^ 1 << self._random.randrange(8)]) + datagram[place + 1:]

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, _Due(self.now + seconds, next(self._order), action))

    def _arrive_at_agent(self, datagram: bytes) -> None:
        self.responder.receive_datagram(datagram, CONTROLLER, self.now)
        self._begin_work()
        self._send_replies()

    def _arrive_at_controller(self, datagram: bytes) -> None:
        if self._exchange is not None:
            self._exchange.receive_datagram(datagram, self.now)

    def _begin_work(self) -> None:
        while (request := self.responder.next_event()) is not None:
            self.executed[request.request_id] += 1
            self.responder.accept(request.request_id, self.now)
            for second in range(1, int(self.work_seconds)):
                self._later(second, self._progress_of(self.responder, request, second))
            self._later(self.work_seconds, self._end_of(self.responder, request))

    def _progress_of(self, responder: Responder, request: Request, second: int) -> Callable[[], None]:
        def report() -> None:
            if responder is self.responder:
                responder.progress(request.request_id, Progress("working", second, 10), self.now)
                self._send_replies()
        return report

    def _end_of(self, responder: Responder, request: Request) -> Callable[[], None]:
        def finish() -> None:
            if responder is self.responder:
                responder.finish(request.request_id, result_of(request), self.now)
                self._send_replies()
        return finish

    def _send_replies(self) -> None:
        for datagram, _address in self.responder.datagrams_to_send():
            self.sent_to_controller.append(datagram)
            self._carry(datagram, self._arrive_at_controller)


def result_of(request: Request) -> StepReport:
    """What the pair's agent answers to a request."""
    return StepReport(f"did {request.request_id}")
