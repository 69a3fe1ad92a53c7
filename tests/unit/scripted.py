"""Agents that follow a script, for a Controller without a network: what each says to each command."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from constant import CHALLENGE_SECONDS, Command, DomainState, MessageType
from control.conversation import ControllerSettings, StepResult
from controller import Controller, RunReport
from tests.unit.samples import (
    AGENTS,
    DESTINATION,
    FACTS,
    HOST_FACTS,
    MASTER,
    MIGRATION,
    MOVED,
    SOURCE,
    FakeClock,
)
from udpmodule import ControllerSocket
from wire.access import Key
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange, GaveUp
from wire.findings import CheckReport
from wire.message import Reply, Request, decode
from wire.records import CancelReport, LinkReport, Obstacle, Progress, RollBackReport, StepReport


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


def error_of(code: ErrorCode, msg_type: MessageType = MessageType.REFUSED) -> Raw:
    """The agent refuses, or ends, the request with that error."""
    return Raw({"error": {"code": code.value, "facts": {"host": "the agent"}}}, msg_type)


Call = tuple[Command, str]

HAPPY: Mapping[Call, object] = {
    (Command.HELLO, SOURCE): HOST_FACTS,
    (Command.HELLO, DESTINATION): HOST_FACTS,
    (Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(), facts=FACTS),
    (Command.CHECK_LINK, SOURCE): CheckReport(findings=()),
    (Command.CHECK_DESTINATION, DESTINATION): CheckReport(findings=()),
    (Command.MEASURE_LINK, DESTINATION): LinkReport(rate=100 << 20),
    (Command.MEASURE_LINK, SOURCE): LinkReport(dirty_rate=0, write_rate=0),
    (Command.PREPARE_DESTINATION, DESTINATION): StepReport(summary="empty qcow2 of 8192 MiB"),
    (Command.COPY_DISK_FILE, SOURCE): StepReport(summary="nothing to send beforehand"),
    (Command.LIVE_MIGRATION, SOURCE): MOVED,
    (Command.EXTRACT_CONFIGURE_FILE, DESTINATION): StepReport(summary="/etc/libvirt/qemu/VM1.xml (libvirt's own)"),
    (Command.DEFINE_VIRTUAL_MACHINE, DESTINATION): StepReport(summary="persistent, autostart on"),
    (Command.FINISH, DESTINATION): StepReport(summary="running here"),
    (Command.FINISH, SOURCE): StepReport(summary="shut off here, its disk kept"),
    (Command.CANCEL, SOURCE): CancelReport(known=True),
}
GREETED = [(Command.HELLO, SOURCE), (Command.HELLO, DESTINATION)]
# In the order in which they are asked for, side by side.
LOOKED = [
    *GREETED, (Command.CHECK_SOURCE, SOURCE), (Command.CHECK_LINK, SOURCE), (Command.CHECK_DESTINATION, DESTINATION),
]
CHECKED = [*LOOKED, (Command.MEASURE_LINK, DESTINATION), (Command.MEASURE_LINK, SOURCE)]
# In the order in which they are waited for.
CHECKED_IN_TURN = [
    *GREETED, (Command.CHECK_SOURCE, SOURCE), (Command.CHECK_DESTINATION, DESTINATION), (Command.CHECK_LINK, SOURCE),
    (Command.MEASURE_LINK, SOURCE), (Command.MEASURE_LINK, DESTINATION),
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
        (Command.ROLL_BACK, SOURCE): RollBackReport(state=source, removed=()),
        (Command.ROLL_BACK, DESTINATION): RollBackReport(
            state=destination, removed=("/var/lib/libvirt/images/node.qcow2",))}


# The VM runs where it was, and where it was to go.
BEFORE = states(DomainState.RUNNING, DomainState.ABSENT)
AFTER = states(DomainState.SHUT_OFF, DomainState.RUNNING)


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
    tells_when: bool = False
    """Whether the controller has the same clock, so that it can be told when an answer came."""
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
            if isinstance(line, Interrupt):
                # It was shown what was reported, and asks for the rest now.
                self.script = {**self.script, (request.cmd, request.agent_ip): line.then}
                raise KeyboardInterrupt
        self.clock.now += self.step_seconds
        if self.tells_when:
            exchange.ended_at = self.clock.now
        if isinstance(line, (Silence, Overdue)):
            return GaveUp(answered=isinstance(line, Overdue))
        return _reply(request, line)

    def drop(self, exchange: Exchange) -> Reply | GaveUp | None:
        """Answer what was asked without waiting for it."""
        return _reply(exchange.request, {**HAPPY, **self.script}[(exchange.request.cmd, exchange.request.agent_ip)])

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
    if isinstance(line, Raw):
        reply = decode(json.dumps({
            "msg_type": line.msg_type.value, "request_id": request.request_id, "agent_ip": request.agent_ip,
            "cmd": request.cmd.value, "sequence": 1, "cmd_result": line.result}).encode())
        assert isinstance(reply, Reply)
        return reply
    result = Obstacle.of(line) if isinstance(line, MigrationError) else line
    return Reply(
        msg_type=MessageType.RESPONSE, request_id=request.request_id, agent_ip=request.agent_ip, cmd=request.cmd,
        sequence=1, cmd_result=result)


class Notes:
    """An Observer that writes everything down."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def step_began(self, command: Command, host: str) -> None:
        """Write it down."""
        self.told.append(f"{command.value} {host} began")

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        """Write it down."""
        self.told.append(f"{command.value} {host} {progress.done}/{progress.total}")

    def step_ended(self, step: StepResult) -> None:
        """Write it down."""
        self.told.append(f"{step.command.value} {step.host} {'failed' if step.error else 'ended'}")

    def cancelling(self, *, possible: bool) -> None:
        """Write it down."""
        self.told.append("cancelling" if possible else "too late to cancel")


def run(script: Mapping[Call, object], agents: ScriptedAgents | None = None) -> tuple[RunReport, ScriptedAgents, Notes]:
    """One run of a controller against agents that do as scripted."""
    agents = agents or ScriptedAgents()
    agents.script = script
    notes = Notes()
    settings = ControllerSettings(agents=AGENTS, keys=(MASTER,))
    report = Controller(settings, agents, notes, agents.clock).migrate(MIGRATION)
    return report, agents, notes


def slow_at(call: Call) -> ScriptedAgents:
    """Agents of which that step takes so long that the challenges are old afterwards."""
    agents = ScriptedAgents()

    def take_long(request: Request) -> None:
        if (request.cmd, request.agent_ip) == call:
            agents.clock.now += CHALLENGE_SECONDS

    agents.before = take_long
    return agents


def obstacle_codes(report: RunReport) -> list[ErrorCode]:
    """The codes of what the checks found to stand in the way."""
    return [finding.error().code for finding in report.obstacles]


def codes(report: RunReport) -> list[ErrorCode]:
    """The codes of a report's errors."""
    return [error.code for error in report.errors]
