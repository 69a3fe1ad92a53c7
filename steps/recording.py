"""Writes down what becomes of a job on this host: before its first step changes anything, and as its steps end."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from constant import OPEN_JOB, Command
from host.job_history import JobHistory
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.history import JobRecord, outcome_of
from wire.phrase import Phrase
from wire.records import MigrationReport, StepArguments, StepReport

log = logging.getLogger(__name__)


def recall(state_directory: Path, job_id: str) -> JobRecord | None:
    """What is written down of a job; None if nothing is."""
    return JobHistory(state_directory).get(job_id)


def open_jobs(state_directory: Path) -> list[str]:
    """The jobs that have not ended here, as far as that is written down: also those that a journal has forgotten."""
    return [kept.job_id for kept in JobHistory(state_directory).all() if kept.outcome is None]


def begin(context: StepContext, command: Command, arguments: StepArguments, asked_by: str, at: int) -> None:
    """Write the job down if this is its first step here. `at` is the time since 1970.

    Raises MigrationError FILE_NOT_WRITTEN; then nothing is to be changed.
    """
    if command not in OPEN_JOB or context.history.get(arguments.migration.job_id) is not None:
        return
    try:
        context.history.put(JobRecord(arguments=arguments, asked_by=asked_by, since=at))
    except OSError as error:
        facts = {"path": Phrase("the history of jobs on {host}", {"host": context.host}),
                 "reason": error.strerror or str(error)}
        raise MigrationError(ErrorCode.FILE_NOT_WRITTEN, facts) from error


def end(context: StepContext, command: Command, arguments: StepArguments, outcome: object, at: int) -> bool:
    """Write down how a step ended; whether nothing of the job is left to be done here."""
    kept = context.history.get(arguments.migration.job_id)
    settled = outcome_of(command, outcome)
    if kept is None:
        return settled is not None
    changed = kept
    if isinstance(outcome, StepReport) and outcome.bytes:
        changed = replace(changed, sent=outcome.bytes)
    if isinstance(outcome, MigrationReport):
        changed = replace(changed, moved=outcome)
    if settled is not None and changed.outcome is None:
        changed = changed.ending(settled, at)
        context.history.forget_old(at)
    if changed != kept:
        put(context, changed)
    return settled is not None


def put(context: StepContext, kept: JobRecord) -> None:
    """Write it down if that is possible: the step has been done, whatever becomes of the record."""
    try:
        context.history.put(kept)
    except OSError as error:
        log.error("job %s cannot be written down: %s", kept.job_id, error)
