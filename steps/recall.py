"""RECALL: all that is known here of one job, for a controller that goes on with it. It changes nothing."""

from __future__ import annotations

from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.history import JobArguments, JobDetails
from wire.phrase import Phrase


def run(context: StepContext, arguments: JobArguments) -> JobDetails:
    """What is kept of the job, and its steps. Raises MigrationError JOB_UNKNOWN."""
    kept = context.history.get(arguments.job_id)
    if kept is None:
        facts = {"host": context.host, "job": arguments.job_id}
        raise MigrationError(ErrorCode.JOB_UNKNOWN, {**facts, "problem": Phrase("{host} knows of no job {job}", facts)})
    return JobDetails(record=kept, steps=context.asked)
