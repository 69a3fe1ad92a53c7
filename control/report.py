"""How a run ended: what a Controller reports, and the exit code that this comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from constant import DomainState, ExitCode, Outcome, Severity
from control.conversation import StepResult
from control.plan import Plan
from wire.errors import MigrationError
from wire.findings import Finding
from wire.records import Migration, MigrationReport

_OUTCOME_EXIT_CODES: Mapping[Outcome, ExitCode] = {
    Outcome.MOVED: ExitCode.MOVED,
    Outcome.MOVED_INCOMPLETE: ExitCode.MOVED_INCOMPLETE,
    Outcome.ROLLED_BACK: ExitCode.ROLLED_BACK,
    Outcome.UNKNOWN: ExitCode.UNKNOWN,
    Outcome.DETACHED: ExitCode.DETACHED,
}


def nothing_changed_code(error: MigrationError) -> ExitCode:
    """The exit code where nothing was changed, whatever the code says of an error in the middle of a migration."""
    kind = error.exit_code
    return kind if kind in (ExitCode.INPUT, ExitCode.NO_CONTACT, ExitCode.INTERNAL) else ExitCode.REFUSED


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
    """How the VM is on `runs_on`; where that is not known, how it was when it began."""
    as_before: bool = True
    """After a roll-back: whether it is as it was, and not shut off because its host was, for example."""
    before: bool = False
    """Whether the job had ended before this command looked at it; `state` and `runs_on` are of now."""
    resumed: bool = False
    """Whether an earlier command had begun the job; `seconds` and `steps` are of this one alone."""
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
            return nothing_changed_code(self.errors[0]) if self.errors else ExitCode.REFUSED
        return _OUTCOME_EXIT_CODES[self.outcome]
