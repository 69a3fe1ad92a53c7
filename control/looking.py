"""The jobs that agents tell of: which there are, how they ended, and all that is needed to go on with one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from constant import Command, Outcome
from control.conversation import Conversation, SilenceError, reason_of
from control.fleet import NOT_TOLD, addresses_of
from wire.errors import ErrorCode, MigrationError, first_of
from wire.history import JobArguments, JobDetails, JobList, JobsArguments, JobSummary, StepState
from wire.message import RESULTS
from wire.phrase import Phrase, joined
from wire.records import Migration

# Between two steps nothing runs for a moment; so often nothing means that nobody drives the job.
_IDLE_LOOKS = 3
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class JobLook:
    """One job, as the hosts that took part in it tell: each host's own account by its address."""

    accounts: Mapping[str, JobSummary]

    @property
    def told(self) -> JobSummary:
        """The account that knows most: the source's, which has sent and counted."""
        summaries = list(self.accounts.values())
        return self.accounts.get(summaries[0].source, summaries[0])

    @property
    def outcome(self) -> Optional[Outcome]:
        """How it ended; None while it has not on every host that took part."""
        outcomes = [each.outcome for each in self.accounts.values()]
        if None in outcomes:
            return None
        return Outcome.MOVED if Outcome.MOVED in outcomes else Outcome.ROLLED_BACK

    @property
    def ended(self) -> int:
        """When, in seconds since 1970; 0 while it has not."""
        return max(each.ended for each in self.accounts.values()) if self.outcome is not None else 0

    @property
    def doing(self) -> list[tuple[Command, str]]:
        """What it does, and on which host."""
        return [(command, host) for host, each in self.accounts.items() for command in each.doing]


@dataclass(frozen=True)
class JobsReport:
    """The jobs, the newest first, and what kept agents from telling of theirs."""

    jobs: tuple[JobLook, ...]
    errors: tuple[MigrationError, ...] = ()
    answered: bool = True
    """Whether any agent has told of its own."""


def look_at_jobs(talk: Conversation, wanted: str = "") -> JobsReport:
    """Ask all agents of the list for their jobs: all, or that of an id, or those of a VM."""
    with talk.unseen():
        return _look_at_jobs(talk, wanted)


def _look_at_jobs(talk: Conversation, wanted: str) -> JobsReport:
    named, addresses = addresses_of(talk.settings.agents)
    greeted = talk.greet([address for address in addresses if address not in talk.contacts])
    errors = [error for error in greeted
              if error.facts.get("host") in named or error.code not in NOT_TOLD]
    if not talk.contacts and not errors:
        # Where there is none at all, one of them says what to look at.
        errors = greeted[:1]
    accounts: dict[str, dict[str, JobSummary]] = {}
    answered = False
    for host in addresses:
        if host not in talk.contacts:
            continue
        try:
            for summary in _jobs_of(talk, host, wanted):
                accounts.setdefault(summary.job_id, {})[host] = summary
            answered = True
        except (MigrationError, SilenceError) as error:
            errors.append(reason_of(error))
    jobs = sorted((JobLook(each) for each in accounts.values()), key=lambda job: job.told.since, reverse=True)
    return JobsReport(tuple(jobs), tuple(errors), answered)


def find_job(talk: Conversation, job_id: str) -> tuple[JobLook, JobsReport]:
    """The job of that id. Raises MigrationError: what kept agents from telling of it, or else JOB_UNKNOWN."""
    report = look_at_jobs(talk, job_id)
    look = next((job for job in report.jobs if job.told.job_id == job_id), None)
    if look is not None:
        return look, report
    if report.errors:
        raise first_of(report.errors)
    raise job_unknown(job_id)


def moving_now(talk: Conversation, domains: Iterable[str]) -> Optional[JobLook]:
    """A job that does something now with a VM of one of these names, as far as the agents that have greeted tell."""
    with talk.unseen():
        for domain in domains:
            for host in sorted(talk.contacts):
                # One that cannot tell of its jobs cannot tell where the VM is either, which is asked next.
                with contextlib.suppress(MigrationError, SilenceError):
                    for summary in _jobs_of(talk, host, domain):
                        if summary.outcome is None and summary.doing:
                            return JobLook({host: summary})
    return None


def job_unknown(job_id: str) -> MigrationError:
    """The error of a job that none of the agents tells of."""
    return MigrationError(ErrorCode.JOB_UNKNOWN, {
        "job": job_id, "problem": Phrase("No agent knows of a job {job}", {"job": job_id})})


def job_runs(look: JobLook) -> MigrationError:
    """The error where a job that does something now is in the way."""
    doing = joined(Phrase("{command} on {host}", {"command": command.value, "host": host})
                   for command, host in look.doing)
    return MigrationError(
        ErrorCode.JOB_RUNS, {"domain": look.told.domain, "job": look.told.job_id, "doing": doing})


def unreached(talk: Conversation, report: JobsReport, hosts: Sequence[str]) -> dict[str, MigrationError]:
    """Why those of the hosts cannot be asked that cannot, also where the list only names their network."""
    told = {str(error.facts.get("host")): error for error in report.errors}
    strangers = [host for host in hosts if host not in talk.contacts and host not in told]
    with talk.unseen():
        told.update((str(error.facts.get("host")), error) for error in talk.greet(strangers))
    return {host: told[host] for host in hosts if host in told}


def _jobs_of(talk: Conversation, host: str, wanted: str) -> list[JobSummary]:
    found: list[JobSummary] = []
    more = True
    while more:
        told = talk.step(
            Command.LIST, host, JobsArguments(wanted=wanted, skip=len(found)), JobList, lambda _told: "")
        found += told.jobs
        more = told.more
    return found


@dataclass(frozen=True)
class Recalled:
    """All that is known of one job, by host."""

    details: Mapping[str, JobDetails] = field(default_factory=dict)
    errors: tuple[MigrationError, ...] = ()

    def steps(self, host: str, command: Command) -> Sequence[StepState]:
        """How often the step was begun on that host, and how each ended."""
        details = self.details.get(host)
        return [step for step in details.steps if step.command is command] if details is not None else []

    def unfinished(self, host: str) -> Sequence[StepState]:
        """What runs there."""
        details = self.details.get(host)
        return [step for step in details.steps if not step.ended] if details is not None else []

    def running(self, host: str, command: Command) -> Optional[StepState]:
        """The step, if it runs there."""
        return next((step for step in self.steps(host, command) if not step.ended), None)

    def done(self, host: str, command: Command) -> bool:
        """Whether the step has ended well there."""
        return any(step.ended and step.error is None for step in self.steps(host, command))

    def failed(self, host: str, command: Command) -> Optional[ErrorCode]:
        """How it failed there, if it did and was not done later."""
        steps = self.steps(host, command)
        return steps[-1].error if steps else None


def recall(talk: Conversation, job_id: str, hosts: Sequence[str]) -> Recalled:
    """Ask these hosts, which have been greeted, for all that they know of a job."""
    details, errors = {}, []
    for host in hosts:
        try:
            with talk.unseen():
                details[host] = talk.step(
                    Command.RECALL, host, JobArguments(job_id=job_id), JobDetails, lambda told: told.record.job_id)
        except (MigrationError, SilenceError) as error:
            errors.append(reason_of(error))
    return Recalled(details, tuple(errors))


def recalled_migration(look: JobLook, known: Recalled) -> Optional[Migration]:
    """The migration that a job is, from the hosts that could recall it; None if none could.

    Raises MigrationError MESSAGE_INVALID unless each of them recalls what the agents were heard to list, and the same:
    no host alone says on whom, or with what, a job goes on.
    """
    told, agreed = look.told, None
    for host, details in known.details.items():
        migration = details.record.arguments.migration
        fits = (migration.job_id, migration.source, migration.destination, migration.domain, migration.name_there) == (
            told.job_id, told.source, told.destination, told.domain, told.name_there)
        if not fits or migration != (agreed or migration):
            raise MigrationError(ErrorCode.MESSAGE_INVALID, {
                "host": host, "domain": told.domain,
                "problem": Phrase("what it knows of job {job} is not what else was told of it", {"job": told.job_id}),
                "hint": Phrase("Look where {domain} runs with `virsh list --all` on both hosts.", {
                    "domain": told.domain})})
        agreed = migration
    return agreed


def newest(report: JobsReport, wanted: str) -> Optional[JobLook]:
    """The job of that id, or else the newest one of the VM of that name."""
    exact = [job for job in report.jobs if job.told.job_id == wanted]
    return next(iter([*exact, *report.jobs]), None)


def follow(talk: Conversation, job: JobLook) -> JobLook:
    """Show the running steps of a job until nothing of it runs any more, or it has ended; nothing is asked for."""
    idle = 0
    while job.outcome is None and idle < _IDLE_LOOKS:
        known = recall(talk, job.told.job_id, sorted(job.accounts))
        running = [(host, step) for host in job.accounts for step in known.unfinished(host)]
        for host, step in running[:1]:
            details = known.details[host]
            asked = talk.attach(step.command, host, step.request_id, details.record.arguments, watching=True)
            with contextlib.suppress(MigrationError, SilenceError):
                talk.end(asked, RESULTS[step.command], lambda _result: "")
        idle = 0 if running else idle + 1
        talk.sleep(_LOOK_SECONDS)
        looked = newest(look_at_jobs(talk, job.told.job_id), job.told.job_id)
        job = looked if looked is not None else job
    return job
