"""The Controller: plans a migration, drives its steps on both agents and follows each of them to its end.

It prints nothing: an Observer is told what happens, and a RunReport says how it ended.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from constant import DOWNTIME_FIRST, Command, DomainState, ExitCode, Outcome, Severity
from control.checks import Checked, check
from control.conversation import (
    Asked,
    ControllerSettings,
    Conversation,
    Observer,
    SilenceError,
    StepResult,
    cancelled_by_admin,
)
from control.plan import Plan
from udpmodule import ControllerSocket
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.findings import Check, Finding
from wire.records import Migration, MigrationReport, RollBackReport, StepArguments, StepReport

log = logging.getLogger(__name__)

_OUTCOME_EXIT_CODES: Mapping[Outcome, ExitCode] = {
    Outcome.MOVED: ExitCode.MOVED,
    Outcome.MOVED_INCOMPLETE: ExitCode.MOVED_INCOMPLETE,
    Outcome.ROLLED_BACK: ExitCode.ROLLED_BACK,
    Outcome.UNKNOWN: ExitCode.UNKNOWN,
}


@dataclass(frozen=True)
class RunReport:
    """How a run ended. `runs_on` is the address of the host that has the VM now, None if that is not known."""

    migration: Migration
    outcome: Outcome
    runs_on: Optional[str]
    seconds: float
    errors: tuple[MigrationError, ...] = ()
    """What went wrong besides what the checks found."""
    steps: tuple[StepResult, ...] = ()
    moved: Optional[MigrationReport] = None
    findings: tuple[Finding, ...] = ()
    plan: Optional[Plan] = None
    dry_run: bool = False
    state: DomainState = DomainState.RUNNING
    """How the VM was when it began, and is to be at the end."""
    sent: int = 0
    """Bytes of data that crossed as files, besides what QEMU copied."""

    @property
    def obstacles(self) -> tuple[Finding, ...]:
        """What the checks found to stand in the way."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.STOPS)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What the admin should know, and what they asked to skip."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNS)

    @property
    def would_start(self) -> bool:
        """Whether a real run would begin to move the VM."""
        return not self.errors and not self.obstacles

    @property
    def exit_code(self) -> ExitCode:
        """The exit code for this outcome; where nothing changed, the first error's own."""
        if self.outcome is Outcome.NOTHING_CHANGED:
            if self.dry_run and self.would_start:
                return ExitCode.MOVED
            # Nothing was changed, whatever the code says of an error in the middle of a migration.
            first = self.errors[0] if self.errors else None
            kind = first.exit_code if first is not None else ExitCode.REFUSED
            return kind if kind in (ExitCode.INPUT, ExitCode.NO_CONTACT, ExitCode.INTERNAL) else ExitCode.REFUSED
        return _OUTCOME_EXIT_CODES[self.outcome]


@dataclass
class Controller:
    """One controller run."""

    settings: ControllerSettings
    udp: ControllerSocket
    observer: Observer
    clock: Callable[[], float] = time.monotonic
    skipped: frozenset[Check] = frozenset()
    dry_run: bool = False
    on_checked: Callable[[Sequence[Finding]], None] = lambda _findings: None
    """Called with what the checks have found, before anything moves."""
    _talk: Conversation = field(init=False)
    _checked: Optional[Checked] = None
    _moved: bool = False
    """Whether the VM is known to be on the destination."""
    _sent: int = 0

    def __post_init__(self) -> None:
        self._talk = Conversation(self.settings, self.udp, self.observer, self.clock, skipped=self.skipped)

    def migrate(self, migration: Migration) -> RunReport:
        """Move the VM, or leave it as it was. Raises MigrationError for what is wrong before any agent is asked."""
        began = self.clock()
        self._talk.migration = migration
        for address in (migration.source, migration.destination):
            self.settings.agent_keys(address)
        try:
            report = self._run(migration)
        except KeyboardInterrupt:
            report = self._left(migration, cancelled_by_admin(migration.domain))
        except Exception as error:
            log.debug("unexpected", exc_info=True)
            report = self._left(
                migration, MigrationError(ErrorCode.INTERNAL, {"host": "this host", "reason": repr(error)}))
        checked = self._checked
        return dataclasses.replace(
            report, seconds=self.clock() - began, steps=tuple(self._talk.steps), dry_run=self.dry_run,
            findings=checked.findings if checked is not None else (),
            sent=self._sent,
            state=checked.facts.state if checked is not None and checked.facts is not None else DomainState.RUNNING,
            plan=checked.plan if checked is not None else None)

    def _run(self, migration: Migration) -> RunReport:
        self._checked = checked = check(self._talk, migration)
        self.on_checked(checked.findings)
        migration, facts = checked.migration, checked.facts
        if self.dry_run or not checked.may_start or facts is None:
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=checked.errors)
        arguments = StepArguments(migration=migration, facts=facts)
        try:
            self._talk.step(
                Command.PREPARE_DESTINATION, migration.destination, arguments, StepReport, _summary)
            self._copy_files(migration, arguments, both=bool(facts.files))
            moved = self._talk.step(Command.LIVE_MIGRATION, migration.source, arguments, MigrationReport, _moved)
        except MigrationError as error:
            return self._after_failure(migration, facts, error)
        except SilenceError as silence:
            if self._talk.may_have_moved:
                # libvirt may still be at it: nothing is undone under a migration that goes on.
                return self._unknown(migration, facts, silence.error.message)
            return self._after_failure(migration, facts, silence.error)
        return self._complete(migration, facts, moved, ())

    def _copy_files(self, migration: Migration, arguments: StepArguments, *, both: bool) -> None:
        """The source sends and the destination receives, if there is anything. Raises what went wrong first."""
        receiving = None
        if both:
            receiving = self._talk.begin(Command.COPY_DISK_FILE, migration.destination, arguments)
        try:
            sent = self._talk.step(Command.COPY_DISK_FILE, migration.source, arguments, StepReport, _summary)
        except (MigrationError, SilenceError) as error:
            if receiving is not None:
                self._prefer_cause(receiving, error)
            raise
        self._sent = sent.bytes
        if receiving is not None:
            self._talk.end(receiving, StepReport, _summary)

    def _prefer_cause(self, receiving: Asked, error: MigrationError | SilenceError) -> None:
        """Wait for the receiving end too; raises its error where the sending end only saw nobody there."""
        try:
            self._talk.end(receiving, StepReport, _summary)
        except SilenceError:
            return
        except MigrationError as cause:
            if isinstance(error, MigrationError) and error.code is ErrorCode.TUNNEL_LOST:
                raise cause from error

    # How it ends.

    def _complete(
        self, migration: Migration, facts: DomainFacts, moved: MigrationReport | None,
        errors: tuple[MigrationError, ...],
    ) -> RunReport:
        """The steps after switchover. Each is tried, whatever became of the one before: the VM has moved."""
        self._moved = True
        found = list(errors)
        arguments = StepArguments(migration=migration, facts=facts)
        stood_still = max(moved.downtime, 0) if moved is not None else 0
        finishing = dataclasses.replace(arguments, stood_still=stood_still)
        for command, host, given in (
            (Command.EXTRACT_CONFIGURE_FILE, migration.destination, arguments),
            (Command.DEFINE_VIRTUAL_MACHINE, migration.destination, arguments),
            (Command.FINISH, migration.destination, finishing),
            (Command.FINISH, migration.source, finishing),
        ):
            try:
                self._talk.step(command, host, given, StepReport, _summary)
            except MigrationError as error:
                found.append(error)
            except SilenceError as silence:
                found.append(silence.error)
        outcome = Outcome.MOVED_INCOMPLETE if found else Outcome.MOVED
        return RunReport(migration, outcome, migration.destination, 0.0, errors=tuple(found), moved=moved)

    def _after_failure(self, migration: Migration, facts: DomainFacts, error: MigrationError) -> RunReport:
        """Undo on both hosts, and conclude from what each says of the VM, not from what should be."""
        if not self._talk.changed:
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=(error,))
        states: dict[str, DomainState] = {}
        silent = []
        for host in (migration.source, migration.destination):
            # The destination removes the images only if the VM is known to run where it was.
            arguments = StepArguments(
                migration=migration, facts=facts, source_keeps=states.get(migration.source) is facts.state)
            try:
                states[host] = self._talk.step(Command.ROLL_BACK, host, arguments, RollBackReport, _rolled_back).state
            except MigrationError as undo_error:
                silent.append(undo_error.message)
            except SilenceError as silence:
                silent.append(silence.error.message)
        here, there = states.get(migration.source), states.get(migration.destination)
        if here is facts.state and there is DomainState.ABSENT:
            return RunReport(migration, Outcome.ROLLED_BACK, migration.source, 0.0, errors=(error,))
        if here in (DomainState.SHUT_OFF, DomainState.ABSENT) and there is facts.state:
            return self._complete(migration, facts, None, (error,))
        found = [f"It is {state.value} on {host}." for host, state in states.items()]
        if error.code is ErrorCode.POST_COPY_FAILED:
            # Its own hint is the one to go by.
            state = _state_unknown(migration, " ".join([*silent, *found]) or error.message)
            return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(error, state))
        return self._unknown(migration, facts, " ".join([error.message, *silent, *found]))

    @staticmethod
    def _unknown(migration: Migration, facts: DomainFacts, reason: str) -> RunReport:
        state = _state_unknown(migration, reason)
        if migration.convergence.may_post_copy:
            # The guest may have run there: its image is not to be removed, even if it is seen there no more.
            return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(state,))
        left = MigrationError(ErrorCode.LEFT_BEHIND, {
            "host": migration.destination, "domain": migration.domain,
            "paths": ", ".join(migration.placement(facts).paths.values())})
        return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(state, left))

    def _left(self, migration: Migration, error: MigrationError) -> RunReport:
        """The report of a run that was not followed to its end."""
        if not self._talk.changed:
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=(error,))
        if self._moved:
            return RunReport(migration, Outcome.MOVED_INCOMPLETE, migration.destination, 0.0, errors=(error,))
        reason = f"{error.message} What had been begun was not followed to its end"
        return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(_state_unknown(migration, reason),))


def _state_unknown(migration: Migration, reason: str) -> MigrationError:
    return MigrationError(ErrorCode.STATE_UNKNOWN, {
        "domain": migration.domain, "reason": reason.rstrip("."), "source": migration.source,
        "destination": migration.destination})


def _summary(report: StepReport) -> str:
    return report.summary


def _moved(report: MigrationReport) -> str:
    words = [f"downtime {report.downtime} ms"] if report.downtime >= 0 else []
    if report.downtime_limit > DOWNTIME_FIRST:
        words.append(f"{report.downtime_limit} ms allowed")
    if report.passes > 2:
        words.append(f"{report.passes} passes over the memory")
    if report.post_copy:
        words.append("post-copy")
    return ", ".join(words) or "done"


def _rolled_back(report: RollBackReport) -> str:
    removed = f", removed {', '.join(report.removed)}" if report.removed else ""
    return f"VM {report.state.value} here{removed}"
