"""LIST: the jobs that this host has taken part in, and what they do here now. It changes nothing."""

from __future__ import annotations

from steps.context import StepContext
from wire.history import LIST_LIMIT, JobList, JobsArguments, JobSummary


def run(context: StepContext, arguments: JobsArguments) -> JobList:
    """The jobs that are wanted, by id or by the VM's name, the newest first."""
    wanted = [
        kept for kept in context.history.all() if arguments.wanted in (
            "", kept.job_id, kept.arguments.migration.domain, kept.arguments.migration.name_there)][arguments.skip:]
    return JobList(
        jobs=tuple(JobSummary.of(kept, context.doing.get(kept.job_id, ())) for kept in wanted[:LIST_LIMIT]),
        more=len(wanted) > LIST_LIMIT)
