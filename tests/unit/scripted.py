"""Agents that follow a script, for a Controller without a network: what each says to each command."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from constant import Command, DomainState, MessageType, MigrationError
from tests.unit.samples import DESTINATION, FACTS, HOST_FACTS, MOVED, SOURCE, FakeClock
from udpmodule import ControllerSocket, Exchange, GaveUp
from wire.access import Key
from wire.message import Reply, Request, to_wire
from wire.records import CheckReport, Obstacle, Progress, RollBackReport, StepReport


class Silence:
    """The agent says nothing until the controller gives up."""


class Overdue:
    """The agent goes on answering that it works, until the controller gives up."""


class InTurn:
    """The agent answers with one line after the other, and stays with the last."""

    def __init__(self, *lines: object) -> None:
        self._lines = list(lines)

    def next(self) -> object:
        """The next line."""
        return self._lines.pop(0) if len(self._lines) > 1 else self._lines[0]


class Interrupt:
    """The admin presses Ctrl-C while the controller waits for this answer, which comes all the same."""

    def __init__(self, then: object, times: int = 1) -> None:
        self.then = then
        self.left = times


@dataclass(frozen=True)
class Signalled:
    """The controller's process gets that signal while it waits for the answer, which is as usual."""

    name: str


@dataclass(frozen=True)
class WithProgress:
    """The agent reports progress before its answer."""

    reports: tuple[Progress, ...]
    then: object


@dataclass(frozen=True)
class Raw:
    """The agent's `cmd_result` as it is, whatever it is, in a reply of that type."""

    result: Mapping[str, object]
    msg_type: MessageType = MessageType.RESPONSE


Call = tuple[Command, str]

HAPPY: Mapping[Call, object] = {
    (Command.HELLO, SOURCE): HOST_FACTS,
    (Command.HELLO, DESTINATION): HOST_FACTS,
    (Command.CHECK_SOURCE, SOURCE): CheckReport(obstacles=(), facts=FACTS),
    (Command.CHECK_DESTINATION, DESTINATION): CheckReport(obstacles=()),
    (Command.PREPARE_DESTINATION, DESTINATION): StepReport("empty qcow2 of 8192 MiB"),
    (Command.COPY_DISK_FILE, SOURCE): StepReport("nothing to send beforehand"),
    (Command.LIVE_MIGRATION, SOURCE): MOVED,
    (Command.EXTRACT_CONFIGURE_FILE, DESTINATION): StepReport("/etc/libvirt/qemu/VM1.xml (libvirt's own)"),
    (Command.DEFINE_VIRTUAL_MACHINE, DESTINATION): StepReport("persistent, autostart on"),
    (Command.FINISH, DESTINATION): StepReport("running here"),
    (Command.FINISH, SOURCE): StepReport("shut off here, its disk kept"),
    (Command.CANCEL, SOURCE): {"known": True},
}
CHECKED = [
    (Command.HELLO, SOURCE), (Command.HELLO, DESTINATION), (Command.CHECK_SOURCE, SOURCE),
    (Command.CHECK_DESTINATION, DESTINATION),
]
MOVING = [
    (Command.PREPARE_DESTINATION, DESTINATION), (Command.COPY_DISK_FILE, SOURCE), (Command.LIVE_MIGRATION, SOURCE),
]
COMPLETING = [
    (Command.EXTRACT_CONFIGURE_FILE, DESTINATION), (Command.DEFINE_VIRTUAL_MACHINE, DESTINATION),
    (Command.FINISH, DESTINATION), (Command.FINISH, SOURCE),
]
ROLLING_BACK = [(Command.ROLL_BACK, SOURCE), (Command.ROLL_BACK, DESTINATION)]
# Steps that may not run twice: the agent is greeted right before each of them.
ONLY_ONCE = (Command.PREPARE_DESTINATION, Command.LIVE_MIGRATION, Command.EXTRACT_CONFIGURE_FILE)


def greeted(calls: Iterable[Call]) -> list[Call]:
    """The calls with the HELLOs that go before those that may not run twice."""
    found: list[Call] = []
    for command, host in calls:
        found += [(Command.HELLO, host), (command, host)] if command in ONLY_ONCE else [(command, host)]
    return found


def states(source: DomainState, destination: DomainState) -> dict[Call, object]:
    """What both agents say of the domain when they are asked to roll back."""
    return {
        (Command.ROLL_BACK, SOURCE): RollBackReport(source, ()),
        (Command.ROLL_BACK, DESTINATION): RollBackReport(destination, ("/var/lib/libvirt/images/node.qcow2",))}


@dataclass
class Asked:
    """One request as an agent got it."""

    request: Request
    keys: tuple[Key, ...]
    patience: float
    limit: float


@dataclass
class ScriptedAgents(ControllerSocket):
    """Both agents behind the interface of a ControllerSocket. Each step takes `step_seconds` on the clock."""

    script: Mapping[Call, object] = field(default_factory=dict)
    clock: FakeClock = field(default_factory=FakeClock)
    step_seconds: float = 0.5
    before: Callable[[Request], None] = lambda _request: None
    asked: list[Asked] = field(default_factory=list)
    closed: bool = False
    started_before_first_wait: int = 0

    def start(self, request: Request, keys: Sequence[Key], patience: float, limit: float = math.inf) -> Exchange:
        """Write the request down."""
        self.before(request)
        self.asked.append(Asked(request, tuple(keys), patience, limit))
        return Exchange(request, keys, self.clock.now, patience, lambda: 0.0, limit)

    def wait(self, exchange: Exchange, on_progress: Callable[[Progress], None]) -> Reply | GaveUp:
        """Answer as the script says."""
        self.started_before_first_wait = self.started_before_first_wait or len(self.asked)
        request = exchange.request
        line = {**HAPPY, **self.script}[(request.cmd, request.agent_ip)]
        if isinstance(line, Signalled):
            call = (request.cmd, request.agent_ip)
            self.script = {**self.script, call: HAPPY[call]}
            signal.raise_signal(signal.Signals[line.name])
            line = HAPPY[call]
        if isinstance(line, InTurn):
            line = line.next()
        if isinstance(line, Interrupt):
            if line.left > 0:
                line.left -= 1
                raise KeyboardInterrupt
            line = line.then
        if isinstance(line, WithProgress):
            for report in line.reports:
                self.clock.now += 1.0
                on_progress(report)
            line = line.then
        self.clock.now += self.step_seconds
        if isinstance(line, (Silence, Overdue)):
            return GaveUp(answered=isinstance(line, Overdue))
        return _reply(request, line)

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def calls(self) -> list[Call]:
        """Who was asked what, in order."""
        return [(each.request.cmd, each.request.agent_ip) for each in self.asked]

    def steps(self) -> list[Call]:
        """The same without the HELLOs that only fetch a fresh challenge."""
        return [(each.request.cmd, each.request.agent_ip) for each in self.asked[:2] + self.asked_for_steps()]

    def asked_for_steps(self) -> list[Asked]:
        """What was asked after the first two HELLOs, without any other."""
        return [each for each in self.asked[2:] if each.request.cmd is not Command.HELLO]

    def count(self, call: Call) -> int:
        """How often that was asked."""
        return self.calls().count(call)


def _reply(request: Request, line: object) -> Reply:
    kind = MessageType.RESPONSE
    result: Mapping[str, object]
    if isinstance(line, Raw):
        kind, result = line.msg_type, line.result
    elif isinstance(line, MigrationError):
        result = {"error": to_wire(Obstacle(line.code, line.facts))}
    else:
        result = {"value": to_wire(line)}
    return Reply(kind, request.request_id, request.agent_ip, request.cmd, result, 1)
