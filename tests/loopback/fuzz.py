"""A fuzzer for the agent's protocol in one process: `python -m tests.loopback.fuzz [--seed N] [--datagrams N]`.

Strangers of all kinds send to a Responder that has served a few requests: it must not raise, not grow, not run anything
and not answer who has no key. Prints what was seen as one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from constant import NOT_JOURNALED, Command, DomainState
from tests.unit.pair import responder
from tests.unit.samples import AGENT_KEY, ARGUMENTS_OF, FACTS, HOST_FACTS, MASTER, MIGRATION, MOVED, SOURCE
from udpmodule import Stage
from wire.access import AddressList
from wire.datagram import Direction, seal, seal_request
from wire.findings import CheckReport
from wire.message import Request, encode
from wire.records import (
    CancelReport,
    HelloArguments,
    LinkReport,
    RollBackReport,
    StatusArguments,
    StepArguments,
    StepReport,
)

# Some who keep to the limit of datagrams, one who does not, and a network that is listed as a whole.
HONEST = [f"192.0.2.{number}" for number in range(1, 31)]
FLOODING = "192.0.2.66"
LISTED_NETWORK = "198.18.0.0/16"
CONTROLLERS = AddressList(
    Path("ControllerIPAddr.txt"), tuple(ipaddress.ip_network(each) for each in ("192.0.2.0/24", LISTED_NETWORK)))
OTHER_KEY = MASTER.for_agent("192.0.2.200")
# Of so many datagrams a second the honest send half, which is within their limit, and one sender alone a fifth.
_STEP_SECONDS = 1 / 400
# Longer than a challenge lives: what the mutations leave of a request is not fresh.
_SETTLED_SECONDS = 60.0


def bodies(agent_ip: str, epoch: str, challenge: str) -> list[bytes]:
    """A request of each kind, or its pages where it is long, as a controller makes it and before it is sealed."""
    found = []
    for number, command in enumerate(Command):
        arguments = ARGUMENTS_OF[command]
        if command is Command.PREPARE_DESTINATION:
            arguments = StepArguments(migration=MIGRATION, facts=replace(FACTS, secrets=("x" * 2000,)))
        elif command is Command.STATUS:
            arguments = StatusArguments(of=f"{3:032x}")
        request = Request(
            request_id=f"{number:032x}", agent_ip=agent_ip, cmd=command, cmd_arguments=arguments, epoch=epoch,
            challenge=challenge)
        found += [datagram.partition(b"\n")[2] for datagram in seal_request(MASTER, request)]
    return found


class Mutator:
    """Makes other bytes out of bytes, from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - not for secrets: it must be repeatable
        self.chance = self._random.random

    def one_of(self, choices: list[bytes]) -> bytes:
        """Any of them."""
        return choices[int(self.chance() * len(choices))]

    def new_id(self) -> str:
        """The id of a request."""
        return f"{self._random.getrandbits(128):032x}"

    def garbage(self) -> bytes:
        """Bytes of any length that one datagram can have, most of them short."""
        return self._random.randbytes(int(1500 * self.chance() ** 3))

    def mutated(self, content: bytes) -> bytes:
        """The same with one or a few changes."""
        changed = bytearray(content)
        for _change in range(1 + int(3 * self.chance() ** 4)):
            self._change(changed)
        return bytes(changed)

    def _change(self, content: bytearray) -> None:
        place = int(self.chance() * len(content))
        kind = self.chance()
        if kind < 0.5 and content:
            content[place] ^= 1 << int(8 * self.chance())
        elif kind < 0.7:
            content[place:place + int(8 * self.chance())] = self.one_of(_FRAGMENTS)
        elif kind < 0.8:
            del content[place:]
        elif kind < 0.9:
            content[place:place] = self._random.randbytes(int(40 * self.chance()))
        else:
            other = int(self.chance() * len(content))
            content[place:place] = content[other:other + int(200 * self.chance())]


_FRAGMENTS = [
    b"", b"null", b"NaN", b"1e999", b"-1", b"9" * 30, b'"', b"{", b"}", b"[" * 60, b'{"a":' * 60, b"\\ud800", b"\xff",
    b"\x00", b"\xc3\xa9", b',"cmd":"STATUS"', b'"HELLO"', b'"STATUS"', b'"CANCEL"', b'"part"', b"true", b"[]", b"{}",
    b"\n", b" ", b"0" * 32, b"::1", b"%n%s", b"../..", b"- -", b"VMM1"]
# Deeper than Python's JSON reader can follow.
_NESTED = [
    b"[" * 1100, b'{"msg_type":"request","cmd_arguments":' + b"[" * 1050, b'{"a":' * 220, b"[" * 550 + b"]" * 550]


@dataclass
class Fuzzer:
    """A Responder with a little agent around it, and all who send to it."""

    seed: int

    def __post_init__(self) -> None:
        self.now = 1000.0
        self.mutator = Mutator(self.seed)
        self.responder = responder([AGENT_KEY], controllers=CONTROLLERS, now=self.now)
        self.executions = 0
        self.replies = 0
        self.bodies = bodies(SOURCE, self.responder.epoch, self.responder.challenge(self.now))
        self.sealed = [seal(AGENT_KEY, Direction.REQUEST, body) for body in self.bodies]
        for datagram in self.sealed:
            self._deliver(datagram, HONEST[0], may_answer=True)
        self.now += _SETTLED_SECONDS
        self.served = self.executions
        self._kinds: list[tuple[float, Callable[[], None]]] = [
            (0.20, self._from_unlisted), (0.20, self._from_flooding), (0.10, self._from_listed_network),
            (0.12, self._garbage), (0.18, self._wrong_mac), (0.11, self._sealed_garbage), (0.07, self._replay),
            (0.02, self._greet)]

    def run(self, datagrams: int) -> None:
        """So many more of them."""
        for _datagram in range(datagrams):
            chance = self.mutator.chance()
            for share, send in self._kinds:
                chance -= share
                if chance < 0:
                    send()
                    break
            self.now += _STEP_SECONDS
            if self.now >= self.responder.get_timer():
                self.responder.handle_timer(self.now)

    def _honest(self) -> str:
        return HONEST[int(self.mutator.chance() * len(HONEST))]

    def _from_unlisted(self) -> None:
        number = int(self.mutator.chance() * 2**32)
        source = str(ipaddress.IPv4Address(number))
        if source not in CONTROLLERS:
            self._deliver(self.mutator.one_of(self.sealed), source)

    def _from_flooding(self) -> None:
        # Now and then one gets through, which is a replay then.
        self._deliver(self.mutator.one_of(self.sealed), FLOODING, may_answer=True)

    def _from_listed_network(self) -> None:
        number = int(self.mutator.chance() * 2**16)
        self._deliver(self.mutator.garbage(), f"198.18.{number >> 8}.{number & 255}")

    def _garbage(self) -> None:
        self._deliver(self.mutator.garbage(), self._honest())

    def _wrong_mac(self) -> None:
        if self.mutator.chance() < 0.2:
            key = OTHER_KEY if self.mutator.chance() < 0.5 else None
            self._deliver(seal(key, Direction.REQUEST, self.mutator.one_of(self.bodies)), self._honest())
        elif (changed := self.mutator.mutated(self.mutator.one_of(self.sealed))) not in self.sealed:
            self._deliver(changed, self._honest())

    def _sealed_garbage(self) -> None:
        body = self.mutator.one_of(_NESTED)
        if self.mutator.chance() < 0.95:
            body = self.mutator.mutated(self.mutator.one_of(self.bodies))
        self._deliver(seal(AGENT_KEY, Direction.REQUEST, body), self._honest(), may_answer=True)

    def _replay(self) -> None:
        self._deliver(self.mutator.one_of(self.sealed), self._honest(), may_answer=True)

    def _greet(self) -> None:
        # A controller with the key, which asks for nothing but a challenge, and again and again.
        request = Request(
            request_id=self.mutator.new_id(), agent_ip=SOURCE, cmd=Command.HELLO, cmd_arguments=HelloArguments())
        self._deliver(seal(AGENT_KEY, Direction.REQUEST, encode(request)), self._honest(), may_answer=True)

    def _deliver(self, datagram: bytes, source: str, *, may_answer: bool = False) -> None:
        agent = self.responder
        agent.receive_datagram(datagram, (source, 8001), self.now)
        while (event := agent.next_event()) is not None:
            request = event.request
            if event.stage is Stage.ARRIVED and request.cmd is not Command.CANCEL:
                agent.accept(request.request_id, self.now)
            elif event.stage in (Stage.ARRIVED, Stage.BEGUN):
                self.executions += request.cmd not in NOT_JOURNALED
                agent.finish(request.request_id, result_of(request), self.now)
            for write in agent.entries_to_write():
                agent.entries_written(write, None, self.now)
        answers = agent.datagrams_to_send(self.now)
        self.replies += len(answers)
        if answers and not may_answer:
            raise AssertionError(f"answered {datagram!r} from {source}")


def result_of(request: Request) -> object:
    """What the little agents of the fuzzers answer."""
    return {
        Command.HELLO: HOST_FACTS, Command.CANCEL: CancelReport(known=False), Command.LIVE_MIGRATION: MOVED,
        Command.CHECK_SOURCE: CheckReport(findings=(), facts=FACTS),
        Command.CHECK_LINK: CheckReport(findings=()), Command.CHECK_DESTINATION: CheckReport(findings=()),
        Command.MEASURE_LINK: LinkReport(),
        Command.ROLL_BACK: RollBackReport(state=DomainState.RUNNING, removed=()),
    }.get(request.cmd, StepReport(summary="done"))


def memory_in_use() -> tuple[int, int]:
    """This process's bytes in memory, and the objects that the garbage collector knows."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(gc.get_objects())


def main(argv: list[str]) -> None:
    """Send a tenth of the datagrams, look, send the rest, look again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--datagrams", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    began = time.monotonic()
    fuzzer = Fuzzer(options.seed)
    fuzzer.run(options.datagrams // 10)
    first = memory_in_use()
    fuzzer.run(options.datagrams - options.datagrams // 10)
    last = memory_in_use()
    print(json.dumps({
        "seconds": round(time.monotonic() - began, 1), "bytes": [first[0], last[0]], "objects": [first[1], last[1]],
        "served": fuzzer.served, "executions": fuzzer.executions, "replies": fuzzer.replies,
        "counts": fuzzer.responder.gate.counters.counts}))


if __name__ == "__main__":
    main(sys.argv[1:])
