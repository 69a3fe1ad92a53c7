"""What one run says to its agents: HELLO, steps that are asked until they are answered, and Ctrl-C in between.

It prints nothing: an Observer is told what happens.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional, Protocol, TypeVar, Union

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
    MessageType,
    Severity,
)
from udpmodule import ControllerSocket
from wire.access import AddressList, Key, load_keys
from wire.errors import ErrorCode, MigrationError
from wire.exchange import Exchange, GaveUp
from wire.facts import HostFacts, version_text
from wire.findings import Check, CheckReport, skip
from wire.history import JobArguments, JobsArguments
from wire.message import Reply, Request
from wire.phrase import Phrase, template
from wire.records import CancelArguments, HelloArguments, LinkArguments, Migration, Progress, StepArguments
from wire.situation import DomainArguments

log = logging.getLogger(__name__)

T = TypeVar("T")
Arguments = Union[StepArguments, LinkArguments, DomainArguments, JobsArguments, JobArguments]

# Answers that do not tell whether the request was begun, and what is said of it where that is not known.
_ASK_AGAIN: Mapping[ErrorCode, ErrorCode] = {
    ErrorCode.REQUEST_STALE: ErrorCode.REQUEST_UNKNOWN,
    ErrorCode.REQUEST_UNKNOWN: ErrorCode.REQUEST_UNKNOWN,
    ErrorCode.REQUEST_EXPIRED: ErrorCode.REQUEST_UNKNOWN,
    ErrorCode.REQUEST_INTERRUPTED: ErrorCode.REQUEST_INTERRUPTED,
}
# While the challenge of the last time is alive, and some times before an agent gives up a job it hears nothing of.
_KEEP_SECONDS = CHALLENGE_SECONDS * 2 / 3
# How long a second Ctrl-C may take to come.
LEAVING_SECONDS = 2.0
# True of one Ctrl-C, of two, and of a terminal or a service that has ended.
_INTERRUPTED = Phrase("the command was interrupted")
# What CANCEL does not end, besides what clears up: too short for that, and whole or to be repeated.
_NOT_CANCELLED = CLEARING | {Command.RESTORE_SOURCE}
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
            agents=AddressList.load(directory / AGENT_LIST_FILE, template("node that this controller may talk to")),
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

    def leaving(self, seconds: float) -> None:
        """The admin pressed Ctrl-C; once more within so many seconds cancels, otherwise the job is left to itself."""

    def cancelling(self, *, possible: bool, pressed: bool = True) -> None:
        """The admin asked to stop; the running step is being ended, unless it is too late for that.

        `pressed` says whether that was asked by Ctrl-C.
        """


class Nobody:
    """An Observer of what is only asked to find out: there is nothing to show of it."""

    def step_began(self, command: Command, host: str) -> None:
        """Not shown."""

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        """Not shown."""

    def step_ended(self, step: StepResult) -> None:
        """Not shown."""

    def leaving(self, seconds: float) -> None:
        """Not shown."""

    def cancelling(self, *, possible: bool, pressed: bool = True) -> None:
        """Not shown."""


@dataclass(frozen=True)
class StepResult:
    """One step as the admin sees it."""

    command: Command
    host: str
    seconds: float
    summary: str
    error: Optional[MigrationError] = None
    obstacles: int = 0


class SilenceError(Exception):
    """The agent may have begun the step and cannot tell how it went: it is silent, or was started anew."""

    def __init__(self, error: MigrationError) -> None:
        super().__init__(error.message)
        self.error = error


def reason_of(error: MigrationError | SilenceError) -> MigrationError:
    """What is told of either."""
    return error.error if isinstance(error, SilenceError) else error


class DetachedError(Exception):
    """The admin has left; what runs goes on."""


@dataclass
class Contact:
    """The last HELLO of an agent. Its challenge is no older than `at`, when the HELLO was sent first."""

    facts: HostFacts
    at: float
    until: float
    """When its answer was here: it read its clock in between."""

    def clock_offset(self) -> tuple[float, float]:
        """The least and the most that the agent's clock, in seconds since 1970, is ahead of ours, which is another."""
        return self.facts.clock / 1000 - self.until, self.facts.clock / 1000 - self.at

    def ahead(self, wall_offset: float) -> float:
        """How many seconds it is ahead for certain of this host's wall clock, which is so far ahead of ours."""
        least, most = self.clock_offset()
        return max(least - wall_offset, min(most - wall_offset, 0.0))


def clock_skew(one: Contact, other: Contact) -> float:
    """How many seconds the clocks of two agents are apart at least, however long the answers took."""
    (least, most), (other_least, other_most) = one.clock_offset(), other.clock_offset()
    return max(0.0, least - other_most, other_least - most)


@dataclass(frozen=True)
class Asked:
    """A step that an agent was asked for and whose answer is not known yet."""

    command: Command
    host: str
    arguments: Arguments
    began: float
    request: Request
    exchange: Exchange
    before: tuple[bool, bool]
    """What was changed, and may have moved, before it was asked for."""


@dataclass
class Conversation:
    """One run's talk with its agents. `migration` is what the run is about, None where it only looks at hosts."""

    settings: ControllerSettings
    udp: ControllerSocket
    observer: Observer
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    migration: Optional[Migration] = None
    skipped: frozenset[Check] = frozenset()
    """Checks that are not to stop the run, whatever they find."""
    contacts: dict[str, Contact] = field(default_factory=dict)
    steps: list[StepResult] = field(default_factory=list)
    cancelled: bool = False
    changed: bool = False
    """Whether a step that changes a host has been sent."""
    may_have_moved: bool = False
    """Whether LIVE_MIGRATION has been sent."""
    _keeping: Optional[Exchange] = None
    _keep_at: float = 0.0

    def forget(self) -> None:
        """Begin with another job, or with a look at hosts: what the last one did is not this one's."""
        self.migration = None
        self.steps = []
        self.cancelled = self.changed = self.may_have_moved = False
        self._keeping = None

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """For the length of a `with`, what is asked is neither shown nor among the run's steps."""
        observer, steps = self.observer, self.steps
        self.observer, self.steps = Nobody(), []
        try:
            yield
        finally:
            self.observer, self.steps = observer, steps

    # HELLO.

    def greet(self, hosts: Sequence[str]) -> list[MigrationError]:
        """HELLO to all hosts at once, each a step of its own. Returns what did not go well."""
        began = self.clock()
        errors = []
        exchanges = {host: self._try_hello(host) for host in hosts}
        for host, exchange in exchanges.items():
            self.observer.step_began(Command.HELLO, host)
            try:
                facts = self._hello_of(host, exchange, began)
            except MigrationError as error:
                errors.append(error)
                self._ended(StepResult(Command.HELLO, host, self.clock() - began, "", error))
                continue
            summary = Phrase("{host}, libvirt {version}", {
                "host": facts.hostname, "version": version_text(facts.libvirt_version)})
            # Another one may have been waited for since.
            self._ended(StepResult(
                Command.HELLO, host, min(self.clock(), self.contacts[host].until) - began, summary))
        return errors

    def _try_hello(self, host: str) -> Exchange | MigrationError:
        """Greet it; an address that this host cannot send to is that host's error and keeps no other from being asked.

        Raises MigrationError for an agent that is not listed.
        """
        try:
            return self._start_hello(host, HELLO_GIVE_UP_SECONDS)
        except MigrationError as error:
            if error.code is not ErrorCode.ADDRESS_UNUSABLE:
                raise
            return error

    def _hello_of(self, host: str, exchange: Exchange | MigrationError, began: float) -> HostFacts:
        """What a host told that was greeted. Raises as _end_hello() does, or what kept it from being greeted."""
        if isinstance(exchange, MigrationError):
            raise exchange
        reply = self.udp.wait(exchange, lambda _progress: None)
        return self._end_hello(host, reply, began, HELLO_GIVE_UP_SECONDS, exchange.ended_at)

    def _start_hello(self, host: str, patience: float) -> Exchange:
        request = Request(
            request_id=secrets.token_hex(16), agent_ip=host, cmd=Command.HELLO, cmd_arguments=HelloArguments())
        return self.udp.start(
            request, self.settings.agent_keys(host), patience, _hello_limit(patience))

    def _end_hello(
        self, host: str, reply: Reply | GaveUp, began: float, patience: float, ended: float,
    ) -> HostFacts:
        """Keep what HELLO told. Raises MigrationError AGENT_SILENT, STEP_OVERDUE or AGENT_OTHER_VERSION."""
        if isinstance(reply, GaveUp):
            raise given_up(reply, host, Command.HELLO, patience, _hello_limit(patience))
        error = reply.error()
        if error is not None:
            raise error
        facts = _value(HostFacts, reply)
        if facts.version != VERSION:
            raise MigrationError(
                ErrorCode.AGENT_OTHER_VERSION, {"host": host, "theirs": facts.version, "ours": VERSION})
        self.contacts[host] = Contact(facts, began, ended)
        return facts

    def _greet_again(self, host: str, command: Command) -> None:
        """A fresh challenge for `command`, in the middle of a run and with the patience that a run deserves."""
        began = self.clock()
        exchange = self._start_hello(host, GIVE_UP_SECONDS)
        self._end_hello(host, self._wait(exchange, command), began, GIVE_UP_SECONDS, exchange.ended_at)

    # Steps.

    def step(
        self, command: Command, host: str, arguments: Arguments, kind: type[T], summarise: Callable[[T], str],
    ) -> T:
        """Run one step on one agent and tell the observer. Raises MigrationError or SilenceError."""
        return self.end(self.begin(command, host, arguments), kind, summarise)

    def begin(self, command: Command, host: str, arguments: Arguments) -> Asked:
        """Ask for a step; end() waits for it, and others can be asked for meanwhile. Raises as step() does."""
        began = self.clock()
        self.observer.step_began(command, host)
        try:
            return self._ask(command, host, arguments, began)
        except (MigrationError, SilenceError) as error:
            self._failed(command, host, began, error)
            raise

    def end(self, asked: Asked, kind: type[T], summarise: Callable[[T], str]) -> T:
        """The result of a step that was asked for."""
        try:
            value, ended = self._answer(asked, kind)
        except (MigrationError, SilenceError) as error:
            self._failed(asked.command, asked.host, asked.began, error)
            raise
        obstacles = 0
        if isinstance(value, CheckReport):
            value = replace(value, findings=skip(value.findings, self.skipped))
            obstacles = sum(finding.severity is Severity.STOPS for finding in value.findings)
        self._ended(StepResult(
            asked.command, asked.host, min(self.clock(), ended) - asked.began, summarise(value), obstacles=obstacles))
        return value

    def _failed(self, command: Command, host: str, began: float, error: MigrationError | SilenceError) -> None:
        self._ended(StepResult(command, host, self.clock() - began, "", reason_of(error)))

    def _ended(self, step: StepResult) -> None:
        self.steps.append(step)
        self.observer.step_ended(step)

    def _domain(self) -> str:
        return self.migration.domain if self.migration is not None else "?"

    def _answer(self, asked: Asked, kind: type[T]) -> tuple[T, float]:
        """The answer, and when it came: perhaps long before it is looked at. Asks again where that runs nothing twice.

        An agent that refuses a request as stale has not begun it, as long as it still has its journal, which the epoch
        tells. What an agent was ended in the middle of is asked for again only if it may run twice.
        """
        command, host = asked.command, asked.host
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                asked = self._ask(command, host, asked.arguments, asked.began)
            reply = self._wait(asked.exchange, command)
            if isinstance(reply, GaveUp):
                raise SilenceError(given_up(reply, host, command, GIVE_UP_SECONDS))
            error = reply.error()
            if error is None:
                return _value(kind, reply), asked.exchange.ended_at
            if error.code not in _ASK_AGAIN:
                if reply.msg_type is MessageType.REFUSED:
                    self.changed, self.may_have_moved = asked.before
                raise error
            failure = SilenceError(MigrationError(
                _ASK_AGAIN[error.code], {"host": host, "domain": self._domain(), "command": command.value}))
            if error.code is not ErrorCode.REQUEST_STALE and command not in REPEATABLE:
                raise failure
            try:
                self._greet_again(host, command)
            except MigrationError as silent:
                raise SilenceError(silent) from silent
            if error.code is ErrorCode.REQUEST_STALE and self.contacts[host].facts.epoch == asked.request.epoch:
                # Not begun, for certain: if it comes to that, an ordinary refusal.
                self.changed, self.may_have_moved = asked.before
                failure = error
            elif command not in REPEATABLE:
                raise failure
        raise failure or AssertionError("asked at least once")

    def _ask(self, command: Command, host: str, arguments: Arguments, began: float) -> Asked:
        """Send it. Raises MigrationError MIGRATION_CANCELLED instead of sending what is not wanted any more."""
        before = self.changed, self.may_have_moved
        request = self._fresh_request(command, host, arguments)
        if self.cancelled and command not in _NOT_CANCELLED:
            raise cancelled_by_admin(self._domain())
        self.changed = self.changed or command not in CHANGE_NOTHING
        self.may_have_moved = self.may_have_moved or command is Command.LIVE_MIGRATION
        limit = CHECK_LIMIT_SECONDS if command in CHANGE_NOTHING else math.inf
        exchange = self.udp.start(request, self.settings.agent_keys(host), GIVE_UP_SECONDS, limit)
        return Asked(command, host, arguments, began, request, exchange, before)

    def attach(
        self, command: Command, host: str, request_id: str, arguments: StepArguments, *, watching: bool = False,
    ) -> Asked:
        """Follow a step that another controller has asked for; end() waits for it. `watching`, Ctrl-C just ends it."""
        began = self.clock()
        self.observer.step_began(command, host)
        before = self.changed, self.may_have_moved
        if not watching:
            self.changed = True
            self.may_have_moved = self.may_have_moved or command is Command.LIVE_MIGRATION
        request = Request(request_id=request_id, agent_ip=host, cmd=command, cmd_arguments=arguments)
        exchange = self.udp.start(request, self.settings.agent_keys(host), GIVE_UP_SECONDS, attached=True)
        return Asked(command, host, arguments, began, request, exchange, before)

    def _wait(self, exchange: Exchange, command: Command) -> Reply | GaveUp:
        """Wait for an answer. Ctrl-C leaves (DetachedError), twice in a short time cancels and waits for the end."""
        host = exchange.request.agent_ip
        self._keep_at = self.clock() + _KEEP_SECONDS
        no_way_back = command in _NOT_CANCELLED

        def on_progress(progress: Progress) -> None:
            nonlocal no_way_back
            no_way_back = no_way_back or (progress.memory is not None and progress.memory.post_copy)
            self.observer.step_progress(command, host, progress)
            if command is Command.LIVE_MIGRATION:
                self._keep_place()

        while True:
            try:
                return self.udp.wait(exchange, on_progress)
            except KeyboardInterrupt:
                if self.cancelled or not self.changed:
                    raise
                if not self._pressed_again():
                    raise DetachedError from None
                self.cancelled = True
                self.observer.cancelling(possible=not no_way_back)
                if not no_way_back:
                    self.cancel()

    def _pressed_again(self) -> bool:
        """Whether a second Ctrl-C comes in time."""
        self.observer.leaving(LEAVING_SECONDS)
        try:
            self.sleep(LEAVING_SECONDS)
        except KeyboardInterrupt:
            return True
        return False

    def _keep_place(self) -> None:
        """Have the destination, which hears nothing of a long move, keep the job's place. Asks and does not wait."""
        now = self.clock()
        if now < self._keep_at or self.migration is None:
            return
        host = self.migration.destination
        kept = self._keeping
        if kept is not None and isinstance(reply := self.udp.drop(kept), Reply):
            with contextlib.suppress(MigrationError):
                self._end_hello(host, reply, self._keep_at - _KEEP_SECONDS, _KEEP_SECONDS, kept.ended_at)
        self._keep_at = now + _KEEP_SECONDS
        # With the challenge of the last time: a recorded greeting keeps no place.
        facts = self.contacts[host].facts
        request = Request(
            request_id=secrets.token_hex(16), agent_ip=host, cmd=Command.HELLO,
            cmd_arguments=HelloArguments(job_id=self.migration.job_id), epoch=facts.epoch, challenge=facts.challenge)
        self._keeping = self.udp.start(request, self.settings.agent_keys(host), _KEEP_SECONDS)

    def _fresh_request(self, command: Command, host: str, arguments: Arguments | CancelArguments) -> Request:
        """A request with a challenge that has not run out; half its life is left for repeats on a lossy path."""
        if self.clock() - self.contacts[host].at > CHALLENGE_SECONDS / 2:
            self._greet_again(host, command)
        facts = self.contacts[host].facts
        return Request(
            request_id=secrets.token_hex(16), agent_ip=host, cmd=command, cmd_arguments=arguments, epoch=facts.epoch,
            challenge=facts.challenge)

    def cancel(self, *hosts: str) -> None:
        """Ask both agents, or those of these hosts, to end what they do for this job: their step fails then."""
        if self.migration is not None:
            self._cancel(
                self.migration.job_id, hosts or (self.migration.source, self.migration.destination), logging.WARNING)

    def let_go(self) -> None:
        """Tell the source, whose tunnel waits for the move, that there will be none."""
        if self.migration is not None and self.migration.source in self.contacts:
            # Nothing runs that could go on: the tunnel ends by itself.
            self._cancel(self.migration.job_id, (self.migration.source,), logging.DEBUG)

    def _cancel(self, job_id: str, hosts: Sequence[str], level: int) -> None:
        """Ask those of them that have been greeted, and log at that level what comes in between."""
        exchanges = {}
        for host in hosts:
            if host not in self.contacts:
                continue
            try:
                request = self._fresh_request(
                    Command.CANCEL, host, CancelArguments(job_id=job_id))
                exchanges[host] = self.udp.start(request, self.settings.agent_keys(host), HELLO_GIVE_UP_SECONDS)
            except MigrationError as error:
                log.log(level, "cannot cancel: %s", error)
        for host, exchange in exchanges.items():
            outcome = self.udp.wait(exchange, lambda _progress: None)
            failure = outcome.error() if isinstance(outcome, Reply) else given_up(
                outcome, host, Command.CANCEL, HELLO_GIVE_UP_SECONDS)
            if failure is not None:
                log.log(level, "the step that runs may not have been cancelled: %s", failure)


def _hello_limit(patience: float) -> float:
    """How long an agent may take over HELLO that says that it is at it."""
    return max(patience, CHECK_LIMIT_SECONDS)


def given_up(
    gave_up: GaveUp, host: str, command: Command, patience: float, limit: float = CHECK_LIMIT_SECONDS,
) -> MigrationError:
    """The error for an agent that said nothing for too long, or that did not come to an end within the limit."""
    if gave_up.answered:
        facts = {"host": host, "command": command.value, "seconds": f"{limit:.0f}"}
        return MigrationError(ErrorCode.STEP_OVERDUE, facts)
    return MigrationError(
        ErrorCode.AGENT_SILENT, {"host": host, "port": str(AGENT_PORT), "seconds": f"{patience:.0f}"})


def cancelled_by_admin(domain: str, how: Phrase = _INTERRUPTED) -> MigrationError:
    """The error of a run that was ended on purpose."""
    facts = {"domain": domain, "reason": how}
    return MigrationError(ErrorCode.MIGRATION_CANCELLED, facts)


def _value(kind: type[T], reply: Reply) -> T:
    if not isinstance(reply.cmd_result, kind):
        facts = {"host": reply.agent_ip, "problem": f"it answers {reply.msg_type.value} without a {kind.__name__}"}
        raise MigrationError(ErrorCode.MESSAGE_INVALID, facts)
    return reply.cmd_result
