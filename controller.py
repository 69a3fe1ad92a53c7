"""The Controller: plans a migration, drives its steps on both agents and follows each of them to its end.

It prints nothing: an Observer is told what happens, and a RunReport says how it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Protocol, TypeVar

from constant import (
    AGENT_LIST_FILE,
    AGENT_PORT,
    CHALLENGE_SECONDS,
    CHANGE_NOTHING,
    CHECK_LIMIT_SECONDS,
    CLEARING,
    CONTROLLER_KEY_FILE,
    GIVE_UP_SECONDS,
    HELLO_GIVE_UP_SECONDS,
    REPEATABLE,
    VERSION,
    Command,
    DomainState,
    ExitCode,
    MessageType,
    Outcome,
)
from udpmodule import ControllerSocket
from wire.access import AddressList, Key, load_keys
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange, GaveUp
from wire.message import Reply, Request
from wire.records import (
    CancelArguments,
    CheckReport,
    DomainFacts,
    HelloArguments,
    HostFacts,
    Migration,
    MigrationReport,
    Progress,
    RollBackReport,
    StepArguments,
    StepReport,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_OUTCOME_EXIT_CODES: Mapping[Outcome, ExitCode] = {
    Outcome.MOVED: ExitCode.MOVED,
    Outcome.MOVED_INCOMPLETE: ExitCode.MOVED_INCOMPLETE,
    Outcome.ROLLED_BACK: ExitCode.ROLLED_BACK,
    Outcome.UNKNOWN: ExitCode.UNKNOWN,
}
# Answers that do not tell whether the request was begun, and what is said of it where that is not known.
_ASK_AGAIN: Mapping[ErrorCode, ErrorCode] = {
    ErrorCode.REQUEST_STALE: ErrorCode.REQUEST_UNKNOWN,
    ErrorCode.REQUEST_UNKNOWN: ErrorCode.REQUEST_UNKNOWN,
    ErrorCode.REQUEST_EXPIRED: ErrorCode.REQUEST_UNKNOWN,
    ErrorCode.REQUEST_INTERRUPTED: ErrorCode.REQUEST_INTERRUPTED,
}
# While the challenge of the last time is alive, and some times before an agent gives up a job it hears nothing of.
_KEEP_SECONDS = CHALLENGE_SECONDS * 2 / 3
# An agent that is restarted more often than that during one step is not running.
_ATTEMPTS = 3


@dataclass(frozen=True)
class ControllerSettings:
    """What a controller reads at its start. No keys means --insecure."""

    agents: AddressList
    keys: tuple[Key, ...]

    @classmethod
    def load(cls, directory: Path, *, insecure: bool) -> ControllerSettings:
        """Read the list of agents and the master key. Raises MigrationError."""
        return cls(
            agents=AddressList.load(directory / AGENT_LIST_FILE, "node that this controller may talk to"),
            keys=() if insecure else load_keys(directory / CONTROLLER_KEY_FILE))

    def agent_keys(self, address: str) -> tuple[Key, ...]:
        """The keys for the agent at that address. Raises MigrationError AGENT_NOT_LISTED."""
        if address not in self.agents:
            raise MigrationError(
                ErrorCode.AGENT_NOT_LISTED, {"address": address, "path": str(self.agents.path)})
        return tuple(key.for_agent(address) for key in self.keys)


class Observer(Protocol):
    """Who is told about a run while it goes on."""

    def step_began(self, command: Command, host: str) -> None:
        """An agent is being asked to run a step."""

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        """The step told how far it is."""

    def step_ended(self, step: StepResult) -> None:
        """The step has ended, well or not."""

    def cancelling(self, *, possible: bool) -> None:
        """The admin asked to stop; the running step is being ended, unless it is too late for that."""


@dataclass(frozen=True)
class StepResult:
    """One step as the admin sees it."""

    command: Command
    host: str
    seconds: float
    summary: str
    error: Optional[MigrationError] = None
    obstacles: int = 0


@dataclass(frozen=True)
class RunReport:
    """How a run ended. `runs_on` is the address of the host that has the VM now, None if that is not known."""

    migration: Migration
    outcome: Outcome
    runs_on: Optional[str]
    seconds: float
    errors: tuple[MigrationError, ...] = ()
    steps: tuple[StepResult, ...] = ()
    moved: Optional[MigrationReport] = None

    @property
    def exit_code(self) -> ExitCode:
        """The exit code for this outcome; where nothing changed, the first error's own."""
        if self.outcome is Outcome.NOTHING_CHANGED:
            # Nothing was changed, whatever the code says of an error in the middle of a migration.
            first = self.errors[0] if self.errors else None
            kind = first.exit_code if first is not None else ExitCode.REFUSED
            return kind if kind in (ExitCode.INPUT, ExitCode.NO_CONTACT, ExitCode.INTERNAL) else ExitCode.REFUSED
        return _OUTCOME_EXIT_CODES[self.outcome]


class _Silence(Exception):  # noqa: N818 - what the agent did, not what went wrong
    """The agent may have begun the step and cannot tell how it went: it is silent, or was started anew."""

    def __init__(self, error: MigrationError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass
class _Contact:
    """The last HELLO of an agent. Its challenge is no older than `at`, when the HELLO was sent first."""

    facts: HostFacts
    at: float


@dataclass
class Controller:
    """One controller run: its agents, and what it has seen so far."""

    settings: ControllerSettings
    udp: ControllerSocket
    observer: Observer
    clock: Callable[[], float] = time.monotonic
    _contacts: dict[str, _Contact] = field(default_factory=dict)
    _steps: list[StepResult] = field(default_factory=list)
    _keeping: Optional[Exchange] = None
    _keep_at: float = 0.0
    _cancelled: bool = False
    _changed: bool = False
    """Whether a step that changes a host has been sent."""
    _may_have_moved: bool = False
    """Whether LIVE_MIGRATION has been sent."""
    _moved: bool = False
    """Whether the VM is known to run on the destination."""

    def migrate(self, migration: Migration) -> RunReport:
        """Move the VM, or leave it as it was. Raises MigrationError for what is wrong before any agent is asked."""
        began = self.clock()
        for address in (migration.source, migration.destination):
            self.settings.agent_keys(address)
        try:
            report = self._run(migration)
        except KeyboardInterrupt:
            report = self._left(migration, _cancelled_by_admin(migration))
        except Exception as error:
            log.debug("unexpected", exc_info=True)
            report = self._left(
                migration, MigrationError(ErrorCode.INTERNAL, {"host": "this host", "reason": repr(error)}))
        return dataclasses.replace(report, seconds=self.clock() - began, steps=tuple(self._steps))

    def _run(self, migration: Migration) -> RunReport:
        try:
            migration, facts = self._check(migration)
        except _Obstacles as obstacles:
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=obstacles.errors)
        arguments = StepArguments(migration=migration, facts=facts)
        try:
            for command, host in (
                (Command.PREPARE_DESTINATION, migration.destination), (Command.COPY_DISK_FILE, migration.source),
            ):
                self._step(command, host, arguments, StepReport, _summary)
            moved = self._step(Command.LIVE_MIGRATION, migration.source, arguments, MigrationReport, _moved)
        except MigrationError as error:
            return self._after_failure(migration, facts, error)
        except _Silence as silence:
            if self._may_have_moved:
                # libvirt may still be at it: nothing is undone under a migration that goes on.
                return self._unknown(migration, facts, silence.error.message)
            return self._after_failure(migration, facts, silence.error)
        return self._complete(migration, facts, moved, ())

    # Steps 1 to 3: nothing is changed.

    def _check(self, migration: Migration) -> tuple[Migration, DomainFacts]:
        """HELLO and both checks. Raises _Obstacles with everything that stands in the way."""
        obstacles: list[MigrationError] = []
        try:
            self._greet((migration.source, migration.destination))
            migration = migration.to_daemon(self._contacts[migration.destination].facts.daemon)
            source = self._step(
                Command.CHECK_SOURCE, migration.source, StepArguments(migration=migration), CheckReport, _checked)
            obstacles.extend(obstacle.error() for obstacle in source.obstacles)
            facts = source.facts
            if facts is not None:
                destination = self._step(
                    Command.CHECK_DESTINATION, migration.destination, StepArguments(migration=migration, facts=facts),
                    CheckReport, _checked)
                obstacles.extend(obstacle.error() for obstacle in destination.obstacles)
        except MigrationError as error:
            raise _Obstacles((*obstacles, error)) from error
        except _Silence as silence:
            raise _Obstacles((*obstacles, silence.error)) from silence
        if obstacles or facts is None:
            raise _Obstacles(tuple(obstacles))
        return migration, facts

    def _greet(self, hosts: tuple[str, ...]) -> None:
        """HELLO to all hosts at once, each a step of its own. Raises _Obstacles with all that did not go well."""
        began = self.clock()
        errors = []
        exchanges = {host: self._start_hello(host, HELLO_GIVE_UP_SECONDS) for host in hosts}
        for host, exchange in exchanges.items():
            self.observer.step_began(Command.HELLO, host)
            try:
                reply = self.udp.wait(exchange, lambda _progress: None)
                facts = self._end_hello(host, reply, began, HELLO_GIVE_UP_SECONDS)
            except MigrationError as error:
                errors.append(error)
                self._ended(StepResult(Command.HELLO, host, self.clock() - began, "", error))
                continue
            summary = f"{facts.hostname}, libvirt {_version(facts.libvirt_version)}"
            self._ended(StepResult(Command.HELLO, host, self.clock() - began, summary))
        if errors:
            raise _Obstacles(tuple(errors))

    def _start_hello(self, host: str, patience: float) -> Exchange:
        request = Request(
            request_id=secrets.token_hex(16), agent_ip=host, cmd=Command.HELLO, cmd_arguments=HelloArguments())
        return self.udp.start(
            request, self.settings.agent_keys(host), patience, max(patience, CHECK_LIMIT_SECONDS))

    def _end_hello(self, host: str, reply: Reply | GaveUp, began: float, patience: float) -> HostFacts:
        """Keep what HELLO told. Raises MigrationError AGENT_SILENT, STEP_OVERDUE or AGENT_OTHER_VERSION."""
        if isinstance(reply, GaveUp):
            raise _given_up(reply, host, Command.HELLO, patience)
        error = reply.error()
        if error is not None:
            raise error
        facts = _value(HostFacts, reply)
        if facts.version != VERSION:
            raise MigrationError(
                ErrorCode.AGENT_OTHER_VERSION, {"host": host, "theirs": facts.version, "ours": VERSION})
        self._contacts[host] = _Contact(facts, began)
        return facts

    def _greet_again(self, host: str, command: Command, migration: Migration) -> None:
        """A fresh challenge for `command`, in the middle of a run and with the patience that a run deserves."""
        began = self.clock()
        exchange = self._start_hello(host, GIVE_UP_SECONDS)
        self._end_hello(host, self._wait(exchange, command, migration), began, GIVE_UP_SECONDS)

    # One step.

    def _step(
        self, command: Command, host: str, arguments: StepArguments, kind: type[T], summarise: Callable[[T], str],
    ) -> T:
        """Run one step on one agent and tell the observer. Raises MigrationError or _Silence."""
        began = self.clock()
        self.observer.step_began(command, host)
        try:
            value = self._ask(command, host, arguments, kind)
        except MigrationError as error:
            self._ended(StepResult(command, host, self.clock() - began, "", error))
            raise
        except _Silence as silence:
            self._ended(StepResult(command, host, self.clock() - began, "", silence.error))
            raise
        obstacles = len(value.obstacles) if isinstance(value, CheckReport) else 0
        self._ended(StepResult(command, host, self.clock() - began, summarise(value), obstacles=obstacles))
        return value

    def _ended(self, step: StepResult) -> None:
        self._steps.append(step)
        self.observer.step_ended(step)

    def _ask(self, command: Command, host: str, arguments: StepArguments, kind: type[T]) -> T:
        """Ask until there is an answer, again where that cannot make a step run twice.

        An agent that refuses a request as stale has not begun it, as long as it still has its journal, which the epoch
        tells. What an agent was ended in the middle of is asked for again only if it may run twice.
        """
        migration = arguments.migration
        failure: Exception | None = None
        for _attempt in range(_ATTEMPTS):
            before = self._changed, self._may_have_moved
            request = self._fresh_request(command, host, arguments, migration)
            reply = self._follow(request, arguments)
            error = reply.error()
            if error is None:
                return _value(kind, reply)
            if error.code not in _ASK_AGAIN:
                if reply.msg_type is MessageType.REFUSED:
                    self._changed, self._may_have_moved = before
                raise error
            failure = _Silence(MigrationError(
                _ASK_AGAIN[error.code], {"host": host, "domain": migration.domain, "command": command.value}))
            if error.code is not ErrorCode.REQUEST_STALE and command not in REPEATABLE:
                raise failure
            try:
                self._greet_again(host, command, migration)
            except MigrationError as silent:
                raise _Silence(silent) from silent
            if error.code is ErrorCode.REQUEST_STALE and self._contacts[host].facts.epoch == request.epoch:
                # Not begun, for certain: if it comes to that, an ordinary refusal.
                self._changed, self._may_have_moved = before
                failure = error
            elif command not in REPEATABLE:
                raise failure
        raise failure or AssertionError("asked at least once")

    def _follow(self, request: Request, arguments: StepArguments) -> Reply:
        """One request to its end. Raises MigrationError MIGRATION_CANCELLED instead of sending what is not wanted."""
        command, host = request.cmd, request.agent_ip
        if self._cancelled and command not in CLEARING:
            raise _cancelled_by_admin(arguments.migration)
        self._changed = self._changed or command not in CHANGE_NOTHING
        self._may_have_moved = self._may_have_moved or command is Command.LIVE_MIGRATION
        limit = CHECK_LIMIT_SECONDS if command in CHANGE_NOTHING else math.inf
        exchange = self.udp.start(request, self.settings.agent_keys(host), GIVE_UP_SECONDS, limit)
        reply = self._wait(exchange, command, arguments.migration)
        if isinstance(reply, GaveUp):
            raise _Silence(_given_up(reply, host, command, GIVE_UP_SECONDS))
        return reply

    def _wait(self, exchange: Exchange, command: Command, migration: Migration) -> Reply | GaveUp:
        """Wait for an answer. The first Ctrl-C cancels the job and the waiting goes on, the second one passes."""
        host = exchange.request.agent_ip
        self._keep_at = self.clock() + _KEEP_SECONDS

        def on_progress(progress: Progress) -> None:
            self.observer.step_progress(command, host, progress)
            if command is Command.LIVE_MIGRATION:
                self._keep_place(migration)

        while True:
            try:
                return self.udp.wait(exchange, on_progress)
            except KeyboardInterrupt:
                if self._cancelled:
                    raise
                self._cancelled = True
                self.observer.cancelling(possible=command not in CLEARING)
                if self._changed and command not in CLEARING:
                    self._cancel(migration)

    def _keep_place(self, migration: Migration) -> None:
        """Have the destination, which hears nothing of a long move, keep the job's place. Asks and does not wait."""
        now, host = self.clock(), migration.destination
        if now < self._keep_at:
            return
        if self._keeping is not None and isinstance(reply := self.udp.drop(self._keeping), Reply):
            with contextlib.suppress(MigrationError):
                self._end_hello(host, reply, self._keep_at - _KEEP_SECONDS, _KEEP_SECONDS)
        self._keep_at = now + _KEEP_SECONDS
        # With the challenge of the last time: a recorded greeting keeps no place.
        facts = self._contacts[host].facts
        request = Request(
            request_id=secrets.token_hex(16), agent_ip=host, cmd=Command.HELLO,
            cmd_arguments=HelloArguments(job_id=migration.job_id), epoch=facts.epoch, challenge=facts.challenge)
        self._keeping = self.udp.start(request, self.settings.agent_keys(host), _KEEP_SECONDS)

    def _fresh_request(
        self, command: Command, host: str, arguments: StepArguments | CancelArguments, migration: Migration,
    ) -> Request:
        """A request with a challenge that has not run out; half its life is left for repeats on a lossy path."""
        if self.clock() - self._contacts[host].at > CHALLENGE_SECONDS / 2:
            self._greet_again(host, command, migration)
        facts = self._contacts[host].facts
        return Request(
            request_id=secrets.token_hex(16), agent_ip=host, cmd=command, cmd_arguments=arguments, epoch=facts.epoch,
            challenge=facts.challenge)

    def _cancel(self, migration: Migration) -> None:
        """Ask the source's agent to end what it does for this job; the running step then ends with an error."""
        try:
            request = self._fresh_request(
                Command.CANCEL, migration.source, CancelArguments(job_id=migration.job_id), migration)
        except MigrationError as error:
            log.warning("cannot cancel: %s", error)
            return
        exchange = self.udp.start(request, self.settings.agent_keys(migration.source), GIVE_UP_SECONDS)
        outcome = self.udp.wait(exchange, lambda _progress: None)
        failure = outcome.error() if isinstance(outcome, Reply) else _given_up(
            outcome, migration.source, Command.CANCEL, GIVE_UP_SECONDS)
        if failure is not None:
            log.warning("the step that runs may not have been cancelled: %s", failure)

    # How it ends.

    def _complete(
        self, migration: Migration, facts: DomainFacts, moved: MigrationReport | None,
        errors: tuple[MigrationError, ...],
    ) -> RunReport:
        """The steps after switchover. Each is tried, whatever became of the one before: the VM has moved."""
        self._moved = True
        found = list(errors)
        for command, host in (
            (Command.EXTRACT_CONFIGURE_FILE, migration.destination),
            (Command.DEFINE_VIRTUAL_MACHINE, migration.destination),
            (Command.FINISH, migration.destination),
            (Command.FINISH, migration.source),
        ):
            try:
                self._step(command, host, StepArguments(migration=migration, facts=facts), StepReport, _summary)
            except MigrationError as error:
                found.append(error)
            except _Silence as silence:
                found.append(silence.error)
        outcome = Outcome.MOVED_INCOMPLETE if found else Outcome.MOVED
        return RunReport(migration, outcome, migration.destination, 0.0, errors=tuple(found), moved=moved)

    def _after_failure(self, migration: Migration, facts: DomainFacts, error: MigrationError) -> RunReport:
        """Undo on both hosts, and conclude from what each says of the VM, not from what should be."""
        if not self._changed:
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=(error,))
        states: dict[str, DomainState] = {}
        silent = []
        for host in (migration.source, migration.destination):
            # The destination removes the images only if the VM is known to run where it was.
            arguments = StepArguments(
                migration=migration, facts=facts, source_runs=states.get(migration.source) is DomainState.RUNNING)
            try:
                states[host] = self._step(Command.ROLL_BACK, host, arguments, RollBackReport, _rolled_back).state
            except MigrationError as undo_error:
                silent.append(undo_error.message)
            except _Silence as silence:
                silent.append(silence.error.message)
        here, there = states.get(migration.source), states.get(migration.destination)
        if here is DomainState.RUNNING and there is DomainState.ABSENT:
            return RunReport(migration, Outcome.ROLLED_BACK, migration.source, 0.0, errors=(error,))
        if here in (DomainState.SHUT_OFF, DomainState.ABSENT) and there is DomainState.RUNNING:
            return self._complete(migration, facts, None, (error,))
        found = [f"It is {state.value} on {host}." for host, state in states.items()]
        return self._unknown(migration, facts, " ".join([error.message, *silent, *found]))

    @staticmethod
    def _unknown(migration: Migration, facts: DomainFacts, reason: str) -> RunReport:
        state = _state_unknown(migration, reason)
        left = MigrationError(ErrorCode.LEFT_BEHIND, {
            "host": migration.destination, "domain": migration.domain,
            "paths": ", ".join(disk.path for disk in facts.disks)})
        return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(state, left))

    def _left(self, migration: Migration, error: MigrationError) -> RunReport:
        """The report of a run that was not followed to its end."""
        if not self._changed:
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=(error,))
        if self._moved:
            return RunReport(migration, Outcome.MOVED_INCOMPLETE, migration.destination, 0.0, errors=(error,))
        reason = f"{error.message} What had been begun was not followed to its end"
        return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(_state_unknown(migration, reason),))


class _Obstacles(Exception):  # noqa: N818 - not an error of the program: what stands in the way
    """What stands in the way, before anything was changed."""

    def __init__(self, errors: tuple[MigrationError, ...]) -> None:
        super().__init__(f"{len(errors)} obstacle(s)")
        self.errors = errors


def _given_up(gave_up: GaveUp, host: str, command: Command, patience: float) -> MigrationError:
    """The error for an agent that said nothing for too long, or that did not come to an end."""
    if gave_up.answered:
        facts = {"host": host, "command": command.value, "seconds": f"{CHECK_LIMIT_SECONDS:.0f}"}
        return MigrationError(ErrorCode.STEP_OVERDUE, facts)
    return MigrationError(
        ErrorCode.AGENT_SILENT, {"host": host, "port": str(AGENT_PORT), "seconds": f"{patience:.0f}"})


def _cancelled_by_admin(migration: Migration) -> MigrationError:
    facts = {"domain": migration.domain, "reason": "somebody pressed Ctrl-C"}
    return MigrationError(ErrorCode.MIGRATION_CANCELLED, facts)


def _state_unknown(migration: Migration, reason: str) -> MigrationError:
    return MigrationError(ErrorCode.STATE_UNKNOWN, {
        "domain": migration.domain, "reason": reason.rstrip("."), "source": migration.source,
        "destination": migration.destination})


def _value(kind: type[T], reply: Reply) -> T:
    if not isinstance(reply.cmd_result, kind):
        facts = {"host": reply.agent_ip, "problem": f"it answers {reply.msg_type.value} without a {kind.__name__}"}
        raise MigrationError(ErrorCode.MESSAGE_INVALID, facts)
    return reply.cmd_result


def _version(number: int) -> str:
    """libvirt's way of counting, the usual way."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" if number else "not answering"


def _summary(report: StepReport) -> str:
    return report.summary


def _checked(report: CheckReport) -> str:
    count = len(report.obstacles)
    return f"{count} obstacle{'s' if count != 1 else ''}" if count else "nothing in the way"


def _moved(report: MigrationReport) -> str:
    return f"downtime {report.downtime} ms" if report.downtime >= 0 else "done"


def _rolled_back(report: RollBackReport) -> str:
    removed = f", removed {', '.join(report.removed)}" if report.removed else ""
    return f"VM {report.state.value} here{removed}"
