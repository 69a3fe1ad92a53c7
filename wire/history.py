"""What an agent keeps of each job, and tells of it: what was asked for, which steps it took, and how it ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from constant import Command, Outcome
from wire.errors import ErrorCode
from wire.forms import DOMAIN_PATTERN, check_job_id, check_request_id
from wire.records import MigrationReport, RollBackReport, StepArguments, StepReport
from wire.schema import record

# So many jobs one LIST tells of: with the longest names there may be they fit into PAGES_LIMIT pages of a result.
LIST_LIMIT = 25


@record
class JobRecord:
    """A job on one host, on disk from its first step that changes something on. Times are seconds since 1970."""

    arguments: StepArguments
    asked_by: str
    since: int
    ended: int = 0
    """0 while it has not."""
    outcome: Optional[Outcome] = None
    moved: Optional[MigrationReport] = None
    sent: int = 0
    """Bytes of files, from the source."""

    @property
    def job_id(self) -> str:
        """The job's."""
        return self.arguments.migration.job_id

    def ending(self, outcome: Outcome, at: int) -> JobRecord:
        """The same, ended."""
        return replace(self, outcome=outcome, ended=at)


@record
class JobsArguments:
    """The argument of LIST: a job's id or a VM's name; empty for all jobs."""

    wanted: str = ""
    skip: int = 0
    """How many of the newest are known already."""

    def __post_init__(self) -> None:
        if not DOMAIN_PATTERN.fullmatch(self.wanted or "all") or self.skip < 0:
            raise ValueError("neither a job's id nor a VM's name")


@record
class JobArguments:
    """The argument of RECALL."""

    job_id: str

    def __post_init__(self) -> None:
        check_job_id(self.job_id)


@record
class StepState:
    """A step of a job on one host: which request it was, and how far it is."""

    command: Command
    request_id: str
    ended: bool
    error: Optional[ErrorCode] = None

    def __post_init__(self) -> None:
        check_request_id(self.request_id)


@record
class JobSummary:
    """A job as LIST tells of it. Seconds since 1970, bytes, milliseconds."""

    job_id: str
    domain: str
    name_there: str
    source: str
    destination: str
    admin: str
    asked_by: str
    since: int
    ended: int
    outcome: Optional[Outcome]
    bytes: int
    downtime: int
    doing: tuple[Command, ...] = ()
    """What it does on that host now."""

    @classmethod
    def of(cls, kept: JobRecord, doing: tuple[Command, ...]) -> JobSummary:
        """A record in short."""
        migration, moved = kept.arguments.migration, kept.moved
        return cls(
            job_id=migration.job_id, domain=migration.domain, name_there=migration.name_there,
            source=migration.source, destination=migration.destination, admin=migration.admin,
            asked_by=kept.asked_by, since=kept.since, ended=kept.ended, outcome=kept.outcome, doing=doing,
            bytes=kept.sent + (moved.disk_bytes + moved.memory_bytes if moved is not None else 0),
            downtime=moved.downtime if moved is not None else -1)


@record
class JobList:
    """The result of LIST, the newest job first."""

    jobs: tuple[JobSummary, ...]
    more: bool = False
    """Whether there are older ones."""


@record
class JobDetails:
    """The result of RECALL: all that is needed to go on with a job."""

    record: JobRecord
    steps: tuple[StepState, ...]
    """In the order in which they were begun on this host."""


def outcome_of(command: Command, result: object) -> Optional[Outcome]:
    """How a job ended on a host with a step that came to this; None if something of it is left there."""
    if command is Command.FINISH and isinstance(result, StepReport):
        return Outcome.MOVED
    if isinstance(result, RollBackReport) and result.cleared:
        return Outcome.ROLLED_BACK
    return None
