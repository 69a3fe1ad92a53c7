"""`restore-source`: brings back the copy that a move has left behind, once the VM is certain to run nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from constant import Command
from control.conversation import Conversation, SilenceError
from control.looking import find_job, job_runs, recall, unreached
from control.whereabouts import locate
from wire.errors import ErrorCode, MigrationError, first_of
from wire.phrase import Phrase
from wire.records import Migration, StepArguments, StepReport


@dataclass(frozen=True)
class Restored:
    """What was brought back: in the agent's words, and what the admin has to know about it."""

    migration: Migration
    summary: str
    warnings: tuple[MigrationError, ...]


def restore_source(talk: Conversation, job_id: str, *, without_destination: bool) -> Restored:
    """Have the source bring its copy back; nothing is started.

    Raises MigrationError JOB_UNKNOWN, JOB_RUNS, RUNS_ELSEWHERE, NO_STALE_COPY, or what keeps a host from being asked:
    the one that the VM moved to has to say that it does not run there, unless the admin goes `without_destination`.
    """
    look, report = find_job(talk, job_id)
    source, destination = look.told.source, look.told.destination
    if look.outcome is None and look.doing:
        raise job_runs(look)
    warnings = list(report.errors)
    silent = unreached(talk, report, (source, destination))
    if without_destination:
        silent.pop(destination, None)
    if silent:
        raise first_of(tuple(silent.values()))
    # It may have moved on since, and have its old name again.
    for host in sorted(talk.contacts.keys() - {source}):
        try:
            for name in sorted({look.told.name_there, look.told.domain}):
                _refuse_if_there(talk, host, name)
        except MigrationError as error:
            if error.code is ErrorCode.RUNS_ELSEWHERE or host != destination or not without_destination:
                raise
            warnings.append(error)
    known = recall(talk, job_id, [source])
    for reason in known.errors:
        raise reason
    arguments = StepArguments(migration=known.details[source].record.arguments.migration)
    migration = talk.migration = arguments.migration
    try:
        restored = talk.step(Command.RESTORE_SOURCE, source, arguments, StepReport, lambda told: told.summary)
    except SilenceError as silence:
        raise silence.error from silence
    warnings.append(MigrationError(ErrorCode.COPY_OUTDATED, {
        "domain": migration.domain, "host": source, "destination": destination}))
    return Restored(migration, restored.summary, tuple(warnings))


def _refuse_if_there(talk: Conversation, host: str, domain: str) -> None:
    try:
        view = locate(talk, host, domain)
    except SilenceError as silence:
        raise silence.error from silence
    if view.has_it:
        raise MigrationError(
            ErrorCode.RUNS_ELSEWHERE, {"host": host, "domain": domain, "state": Phrase(view.state.value)})
