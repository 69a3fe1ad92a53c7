"""RECALL: all that is known here of one job, for a controller that goes on with it. It changes nothing."""

from __future__ import annotations

from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.history import JobArguments, JobDetails


def run(context: StepContext, arguments: JobArguments) -> JobDetails:
    """What is kept of the job, and its steps. Raises MigrationError JOB_UNKNOWN."""
    kept = context.history.get(arguments.job_id)
    if kept is None:
        raise MigrationError(ErrorCode.JOB_UNKNOWN, {"host": context.host, "job": arguments.job_id})
    return JobDetails(record=kept, steps=context.asked)
