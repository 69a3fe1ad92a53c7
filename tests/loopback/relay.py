"""A bad network between real sockets: a relay that loses, doubles, holds back, delays and damages from one seed.

It stands at an agent's address, as the controllers know it, and carries everything to where the agent really is and
back to the controller that it is for. tests/unit/pair.py does the same in memory, with a clock of its own.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from tests.loopback.site import fresh_address
from tests.unit.pair import Network
from wire.datagram import Direction
from wire.memory import Address

PERFECT = Network()


@dataclass(frozen=True)
class Recorded:
    """One datagram that came to the relay, whatever became of it, and the controller that sent it or was to get it."""

    direction: Direction
    datagram: bytes
    controller: Address


@dataclass(order=True)
class _Due:
    at: float
    order: int
    send: Callable[[], object] = field(compare=False)


class _Fate:
    """What happens to the datagrams of one direction. That of the Nth depends on the seed and on nothing else."""

    def __init__(self, seed: str, held_back_seconds: float) -> None:
        self._random = random.Random(seed)  # noqa: S311 - not for secrets: it must be repeatable
        self._held_back_seconds = held_back_seconds

    def copies(self, datagram: bytes, network: Network, drop: float) -> list[tuple[float, bytes]]:
        """What arrives of it, and after how many seconds. Draws the same number of times whatever happens."""
        lost, doubled, *rest = (self._random.random() for _each in range(2 + 2 * 6))
        if lost < drop:
            return []
        count = 2 if doubled < network.duplicate else 1
        return [self._copy(datagram, network, rest[6 * copy:6 * copy + 6]) for copy in range(count)]

    def _copy(self, datagram: bytes, network: Network, chances: list[float]) -> tuple[float, bytes]:
        reordered, how_long, corrupted, which_bit, cut, where = chances
        delay = network.delay + (how_long * self._held_back_seconds if reordered < network.reorder else 0.0)
        if corrupted < network.corrupt:
            byte, bit = divmod(int(which_bit * len(datagram) * 8), 8)
            datagram = datagram[:byte] + bytes([datagram[byte] ^ 1 << bit]) + datagram[byte + 1:]
        return delay, datagram[:int(where * len(datagram))] if cut < network.truncate else datagram


class Relay:
    """Carries datagrams between the controllers that send to `front` and the agent at `agent`, in a thread.

    `network` and `withhold`, which says what is not to arrive at all, may be changed at any time. `recorded` holds all
    that came, also what was lost. The agent sees each controller at an address of its own.
    """

    def __init__(
        self, front: Address, agent: Address, network: Network = PERFECT, *, seed: int = 0,
        held_back_seconds: float = 0.5,
    ) -> None:
        self.network = network
        self.withhold: Callable[[bytes], bool] = lambda _datagram: False
        self.recorded: list[Recorded] = []
        self._agent = agent
        self._family = socket.AF_INET6 if ":" in agent[0] else socket.AF_INET
        self._fates = {direction: _Fate(f"{seed} {direction.name}", held_back_seconds) for direction in Direction}
        self._front = self._open(front)
        # One socket for each controller, so that the agent's answer finds back to the right one.
        self._sides: dict[Address, socket.socket] = {}
        self._controllers: dict[socket.socket, Address] = {}
        self._due: list[_Due] = []
        self._order = itertools.count()
        self._end_here, self._end_there = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"relay {front[0]}", daemon=True)

    def _open(self, address: Address) -> socket.socket:
        udp = socket.socket(self._family, socket.SOCK_DGRAM)
        udp.bind(address)
        udp.setblocking(False)
        return udp

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None,
    ) -> None:
        self._end_there.send(b"e")
        self._thread.join()
        for each in (self._front, *self._sides.values(), self._end_here, self._end_there):
            each.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is held back."""
        return not self._due

    def requests(self) -> list[bytes]:
        """What the controllers sent, in order, without repeats."""
        return self._of(Direction.REQUEST)

    def replies(self) -> list[bytes]:
        """What the agent sent, in order, without repeats."""
        return self._of(Direction.REPLY)

    def _of(self, direction: Direction) -> list[bytes]:
        return list(dict.fromkeys(each.datagram for each in self.recorded if each.direction is direction))

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            while self._due and self._due[0].at <= now:
                # A network says nothing of an agent that is not there.
                with contextlib.suppress(OSError):
                    heapq.heappop(self._due).send()
            patience = self._due[0].at - now if self._due else None
            readable, _, _ = select.select(
                [self._front, *self._sides.values(), self._end_here], [], [], patience)
            if self._end_here in readable:
                return
            for udp in readable:
                self._take_all(udp)

    def _take_all(self, udp: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                datagram, sender = udp.recvfrom(65535)
                if udp is self._front:
                    self._to_agent(datagram, (sender[0], sender[1]))
                else:
                    self._to_controller(datagram, self._controllers[udp])

    def _to_agent(self, datagram: bytes, controller: Address) -> None:
        if controller not in self._sides:
            source = "::1" if self._family == socket.AF_INET6 else fresh_address()
            side = self._sides[controller] = self._open((source, 0))
            self._controllers[side] = controller
        self._carry(Direction.REQUEST, datagram, controller, self._sides[controller], self._agent)

    def _to_controller(self, datagram: bytes, controller: Address) -> None:
        self._carry(Direction.REPLY, datagram, controller, self._front, controller)

    def _carry(
        self, direction: Direction, datagram: bytes, controller: Address, by: socket.socket, to: Address,
    ) -> None:
        self.recorded.append(Recorded(direction, datagram, controller))
        if self.withhold(datagram):
            return
        network = self.network
        replies_lost = network.drop if network.lose_replies is None else network.lose_replies
        drop = network.drop if direction is Direction.REQUEST else replies_lost
        for delay, copy in self._fates[direction].copies(datagram, network, drop):
            self._later(delay, lambda copy=copy: by.sendto(copy, to))  # type: ignore[misc]

    def _later(self, seconds: float, send: Callable[[], object]) -> None:
        heapq.heappush(self._due, _Due(time.monotonic() + seconds, next(self._order), send))
