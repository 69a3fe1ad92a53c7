"""Agents that follow a script, for a Controller without a network: what each says to each command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from constant import Command, DomainState, MessageType, MigrationError
from tests.unit.samples import DESTINATION, FACTS, HOST_FACTS, MOVED, SOURCE, FakeClock
from udpmodule import ControllerSocket, Exchange, GaveUp
from wire.access import Key
from wire.message import Reply, Request, to_wire
from wire.records import CheckReport, Obstacle, Progress, RollBackReport, StepReport


class Silence:
    """The agent says nothing until the controller gives up."""


class Interrupt:
    """The admin presses Ctrl-C while the controller waits for this answer, which comes all the same."""

    def __init__(self, then: object, times: int = 1) -> None:
        self.then = then
        self.left = times


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

    def start(self, request: Request, keys: Sequence[Key], patience: float) -> Exchange:
        """Write the request down."""
        self.before(request)
        self.asked.append(Asked(request, tuple(keys), patience))
        return Exchange(request, keys, self.clock.now, patience, lambda: 0.0)

    def wait(self, exchange: Exchange, on_progress: Callable[[Progress], None]) -> Reply | GaveUp:
        """Answer as the script says."""
        self.started_before_first_wait = self.started_before_first_wait or len(self.asked)
        request = exchange.request
        line = {**HAPPY, **self.script}[(request.cmd, request.agent_ip)]
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
        return GaveUp() if isinstance(line, Silence) else _reply(request, line)

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def calls(self) -> list[Call]:
        """Who was asked what, in order."""
        return [(each.request.cmd, each.request.agent_ip) for each in self.asked]

    def steps(self) -> list[Call]:
        """The same without the HELLOs that only fetch a fresh challenge."""
        calls = self.calls()
        return calls[:2] + [call for call in calls[2:] if call[0] is not Command.HELLO]


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
