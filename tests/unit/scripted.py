"""Agents that follow a script, for a Controller without a network: what each says to each command."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from constant import CHALLENGE_SECONDS, Command, DomainState, MessageType, Outcome
from control.conversation import ControllerSettings, StepResult
from control.report import RunReport
from controller import Controller
from tests.unit.samples import (
    AGENTS,
    CONTROLLER,
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
from wire.access import AddressList, Key
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange, GaveUp
from wire.findings import CheckReport
from wire.history import JobDetails, JobList, JobRecord, JobSummary, StepState
from wire.message import Reply, Request, decode
from wire.phrase import Phrase
from wire.records import (
    CancelReport,
    LinkReport,
    MigrationReport,
    Obstacle,
    Progress,
    RollBackReport,
    StepArguments,
    StepReport,
)
from wire.situation import DomainView

Call = tuple[Command, str]


def _but_for_the_last(calls: list[Call]) -> list[Call]:
    """What was asked before the last look at whether the VM is where it is going to be said to be, or, after a refusal,
    before the source is told that its tunnel is not needed."""
    looked = calls[-2:] == [(Command.FINISH, SOURCE), (Command.LOCATE, DESTINATION)]
    return calls[:-1] if looked or calls[-1:] == LETTING_GO else calls


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
    """The admin presses Ctrl-C so many times, one right after the other, while the controller waits for this answer,
    which comes all the same.
    """

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


HAPPY: Mapping[Call, object] = {
    (Command.HELLO, SOURCE): HOST_FACTS,
    (Command.HELLO, DESTINATION): HOST_FACTS,
    (Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(), facts=FACTS),
    (Command.CHECK_LINK, SOURCE): CheckReport(findings=()),
    (Command.CHECK_DESTINATION, DESTINATION): CheckReport(findings=()),
    (Command.MEASURE_LINK, DESTINATION): LinkReport(rate=100 << 20),
    (Command.MEASURE_LINK, SOURCE): LinkReport(dirty_rate=0, write_rate=0),
    (Command.PREPARE_DESTINATION, DESTINATION): StepReport(summary=Phrase("empty {format} of {size} MiB at {path}", {
        "format": "qcow2", "size": "8192", "path": FACTS.disks[0].path})),
    (Command.COPY_DISK_FILE, SOURCE): StepReport(summary=Phrase(
        "nothing to send beforehand, {names} crosses in the live migration", {"names": "node.qcow2"})),
    (Command.LIVE_MIGRATION, SOURCE): MOVED,
    (Command.HAND_OVER, DESTINATION): StepReport(summary=Phrase("it goes on here")),
    (Command.EXTRACT_CONFIGURE_FILE, DESTINATION): StepReport(summary=Phrase(
        "{path} (libvirt's own)", {"path": "/etc/libvirt/qemu/VM1.xml"})),
    (Command.DEFINE_VIRTUAL_MACHINE, DESTINATION): StepReport(summary=Phrase("persistent, autostart on")),
    (Command.FINISH, DESTINATION): StepReport(summary=Phrase("{state} here", {
        "state": Phrase("running")})),
    (Command.FINISH, SOURCE): StepReport(summary=Phrase("shut off here, cannot be started")),
    # Asked for before it is said that the VM is there.
    (Command.LOCATE, DESTINATION): DomainView(state=DomainState.RUNNING),
    (Command.CANCEL, SOURCE): CancelReport(known=True),
    (Command.CANCEL, DESTINATION): CancelReport(known=False),
}
GREETED = [(Command.HELLO, SOURCE), (Command.HELLO, DESTINATION)]
# In the order in which they are asked for, side by side.
LOOKED = [
    *GREETED, (Command.CHECK_SOURCE, SOURCE), (Command.CHECK_LINK, SOURCE), (Command.CHECK_DESTINATION, DESTINATION),
]
CHECKED = [*LOOKED, (Command.MEASURE_LINK, DESTINATION), (Command.MEASURE_LINK, SOURCE)]
# In the order in which they are waited for. The link is measured while the destination is prepared, and what the guest
# writes is waited for once the move has begun.
CHECKED_IN_TURN = [
    *GREETED, (Command.CHECK_SOURCE, SOURCE), (Command.CHECK_DESTINATION, DESTINATION), (Command.CHECK_LINK, SOURCE),
]
MEASURING, COUNTING = (Command.MEASURE_LINK, DESTINATION), (Command.MEASURE_LINK, SOURCE)
LETTING_GO = [(Command.CANCEL, SOURCE)]
MOVING = [
    (Command.PREPARE_DESTINATION, DESTINATION), (Command.COPY_DISK_FILE, SOURCE), (Command.LIVE_MIGRATION, SOURCE),
]
MOVING_IN_TURN = [MOVING[0], MEASURING, MOVING[1], COUNTING, MOVING[2]]
COMPLETING = [
    (Command.EXTRACT_CONFIGURE_FILE, DESTINATION), (Command.DEFINE_VIRTUAL_MACHINE, DESTINATION),
    (Command.FINISH, DESTINATION), (Command.FINISH, SOURCE),
]
CANCELLING = [(Command.CANCEL, SOURCE), (Command.CANCEL, DESTINATION)]
ROLLING_BACK = [(Command.ROLL_BACK, SOURCE), (Command.ROLL_BACK, DESTINATION)]


def states(
    source: DomainState, destination: DomainState, *, gave_up: bool | None = None, arrived: bool = False,
) -> dict[Call, object]:
    """What both agents say of the domain when they are asked to roll back.

    Unless it is said, the source has given it up where it has none, or none that runs while the destination has one.
    """
    if gave_up is None:
        there = destination in (DomainState.RUNNING, DomainState.PAUSED)
        gave_up = source is DomainState.ABSENT or (source is DomainState.SHUT_OFF and there)
    return {
        (Command.ROLL_BACK, SOURCE): RollBackReport(state=source, removed=(), cleared=not gave_up, gave_up=gave_up),
        (Command.ROLL_BACK, DESTINATION): RollBackReport(
            state=destination, removed=("/var/lib/libvirt/images/node.qcow2",), arrived=arrived,
            cleared=destination is DomainState.ABSENT)}


HANDING = (Command.HAND_OVER, DESTINATION)
# The VM has arrived, and waits there.
HELD = dataclasses.replace(MOVED, held=True)
FAILED = MigrationError(ErrorCode.MIGRATION_FAILED, {"domain": "VM1", "host": SOURCE, "reason": "no route"})
FORGOTTEN = error_of(ErrorCode.REQUEST_UNKNOWN)
# The VM runs where it was, and where it was to go.
BEFORE = states(DomainState.RUNNING, DomainState.ABSENT)
AFTER = states(DomainState.SHUT_OFF, DomainState.RUNNING)


LISTED = [(Command.LIST, SOURCE), (Command.LIST, DESTINATION)]
RECALLED = [(Command.RECALL, SOURCE), (Command.RECALL, DESTINATION)]
# A job as a host knows it that is not through with it.
BEGUN = JobRecord(arguments=StepArguments(migration=MIGRATION, facts=FACTS), asked_by=CONTROLLER[0], since=1)
_UNKNOWN = MigrationError(ErrorCode.JOB_UNKNOWN, {"host": DESTINATION, "job": MIGRATION.job_id})


def step(command: Command, number: int = 1, error: ErrorCode | None = None, *, ended: bool = True) -> StepState:
    """A step that has ended well, unless it says otherwise."""
    return StepState(command=command, request_id=f"{number:032x}", ended=ended, error=error)


def known(
    source: Sequence[StepState] | None, destination: Sequence[StepState] | None, *, record: JobRecord = BEGUN,
    outcomes: tuple[Outcome | None, Outcome | None] = (None, None), moved: MigrationReport | None = None,
) -> dict[Call, object]:
    """What both hosts know of the job; None for one that does not know it."""
    told: dict[Call, object] = {}
    for host, steps, outcome in ((SOURCE, source, outcomes[0]), (DESTINATION, destination, outcomes[1])):
        kept = record.ending(outcome, 9) if outcome is not None else record
        kept = dataclasses.replace(kept, moved=moved if host == SOURCE else None)
        told[Command.LIST, host] = JobList(jobs=()) if steps is None else JobList(jobs=(JobSummary.of(kept, ()),))
        told[Command.RECALL, host] = _UNKNOWN if steps is None else JobDetails(record=kept, steps=tuple(steps))
    return told


PREPARED = [step(Command.PREPARE_DESTINATION)]
COPIED = [step(Command.COPY_DISK_FILE, 2)]


def job(number: int, outcome: Outcome | None = None, *doing: Command, **changes: Any) -> JobSummary:
    """A job of the VM as a host tells of it, begun at that time and with that in its id."""
    record = dataclasses.replace(BEGUN, since=number)
    told = dict(vars(JobSummary.of(record if outcome is None else record.ending(outcome, 99), doing)))
    return JobSummary(**{**told, "job_id": f"{number:08x}", **changes})


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
    pressing: Interrupt | None = None
    """The Ctrl-C that was pressed last."""

    def start(
        self, request: Request, keys: Sequence[Key], patience: float, limit: float = math.inf, *,
        attached: bool = False,
    ) -> Exchange:
        """Write the request down."""
        self.before(request)
        self.asked.append(Asked(request, tuple(keys), patience, limit))
        return Exchange(request, keys, self.clock.now, patience, lambda: 0.0, limit, attached=attached)

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
            self._press(line)
            line = line.then
        if isinstance(line, WithProgress):
            for report in line.reports:
                self.clock.now += 1.0
                on_progress(report)
            line = line.then
            if isinstance(line, Interrupt):
                # It was shown what was reported, and asks for the rest now.
                self.script = {**self.script, (request.cmd, request.agent_ip): line.then}
                self._press(line)
        self.clock.now += self.step_seconds
        if self.tells_when:
            exchange.ended_at = self.clock.now
        if isinstance(line, (Silence, Overdue)):
            return GaveUp(answered=isinstance(line, Overdue))
        return _reply(request, line)

    def _press(self, line: Interrupt) -> None:
        if line.left > 0:
            line.left -= 1
            self.pressing = line
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Time passes, unless the admin presses Ctrl-C again."""
        self.clock.sleep(seconds)
        if self.pressing is not None:
            self._press(self.pressing)

    def drop(self, exchange: Exchange) -> Reply | GaveUp | None:
        """Answer what was asked without waiting for it."""
        return _reply(exchange.request, {**HAPPY, **self.script}[(exchange.request.cmd, exchange.request.agent_ip)])

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def calls(self) -> list[Call]:
        """Who was asked what, in order, but for the last look at where the VM is, or the end of the tunnel."""
        return _but_for_the_last([(each.request.cmd, each.request.agent_ip) for each in self.asked])

    def steps(self) -> list[Call]:
        """The same without the HELLOs that only fetch a fresh challenge."""
        return _but_for_the_last([
            (each.request.cmd, each.request.agent_ip) for each in self.asked[:2] + self.asked_for_steps()])

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


def network_of(agents: ScriptedAgents, *silent: str) -> AddressList:
    """A list of agents that names a network and no address, with the silence of all of it that is not scripted."""
    network = ipaddress.ip_network("192.0.2.8/29")
    every = {(Command.HELLO, str(address)): Silence() for address in network.hosts()}
    agents.script = {**every, **{call: HAPPY[call] for call in GREETED if call[1] not in silent}, **agents.script}
    return AddressList(AGENTS.path, (network,))


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

    def leaving(self, seconds: float) -> None:
        """Write it down."""
        self.told.append(f"leaving in {seconds:.0f} s")

    def cancelling(self, *, possible: bool, pressed: bool = True) -> None:
        """Write it down."""
        told = "cancelling" if possible else "too late to cancel"
        self.told.append(told if pressed else f"{told}, not by Ctrl-C")


def run(script: Mapping[Call, object], agents: ScriptedAgents | None = None) -> tuple[RunReport, ScriptedAgents, Notes]:
    """One run of a controller against agents that do as scripted."""
    agents = agents or ScriptedAgents()
    agents.script = script
    notes = Notes()
    return controller_of(agents, notes).migrate(MIGRATION), agents, notes


def sleeping_with(agents: ScriptedAgents) -> Callable[[Controller], None]:
    """For Controller.__post_init__: a controller that is made somewhere else then waits by their clock."""
    made = Controller.__post_init__

    def made_to_sleep(controller: Controller) -> None:
        made(controller)
        controller.conversation.sleep = agents.sleep

    return made_to_sleep


def controller_of(agents: ScriptedAgents, notes: Notes, listed: AddressList = AGENTS) -> Controller:
    """A controller that talks to these agents, by their clock."""
    controller = Controller(ControllerSettings(agents=listed, keys=(MASTER,)), agents, notes, agents.clock)
    controller.conversation.sleep = agents.sleep
    return controller


def cannot_send_to(host: str) -> Callable[[Request], None]:
    """For ScriptedAgents.before: this host has no address of the kind of that one."""
    def refuse(request: Request) -> None:
        if request.agent_ip == host:
            raise MigrationError(ErrorCode.ADDRESS_UNUSABLE, {"host": host, "reason": "no IPv6 here"})

    return refuse


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
