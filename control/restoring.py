"""`restore-source`: brings back the copy that a move has left behind, once the VM is certain to run nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from constant import GIVE_UP_SECONDS, Command, ExitCode
from control.conversation import Conversation, DetachedError, SilenceError, reason_of
from control.looking import find_job, job_runs, job_unknown, moving_now, recall, recalled_migration, unreached
from control.whereabouts import locate
from wire.errors import ErrorCode, MigrationError, first_of
from wire.phrase import Phrase, joined
from wire.records import Migration, StepArguments, StepReport


@dataclass(frozen=True)
class Restored:
    """What was brought back: in the agent's words, and what the admin has to know about it."""

    migration: Migration
    summary: str
    """Empty if it is not known whether anything was."""
    warnings: tuple[MigrationError, ...]
    error: Optional[MigrationError] = None
    """What kept it from being known, or from being done to its end."""

    @property
    def exit_code(self) -> ExitCode:
        """Whether it is done, not known, or goes on without this command."""
        if self.error is None:
            return ExitCode.MOVED
        return ExitCode.DETACHED if self.error.code is ErrorCode.DETACHED else ExitCode.UNKNOWN


def restore_source(talk: Conversation, job_id: str, *, without_destination: bool) -> Restored:
    """Have the source bring its copy back; nothing is started.

    Raises MigrationError JOB_UNKNOWN, JOB_RUNS, RUNS_ELSEWHERE, NO_STALE_COPY, or what keeps a host from being asked:
    the one that the VM moved to has to say that it does not run there, unless the admin goes `without_destination`.
    What goes wrong once the source may have begun is not raised, but in the report.
    """
    look, report = find_job(talk, job_id)
    source, destination = look.told.source, look.told.destination
    names = sorted({look.told.name_there, look.told.domain})
    # What another move brings to a host is no second VM that an admin might end.
    moving = look if look.outcome is None and look.doing else moving_now(talk, names)
    if moving is not None:
        raise job_runs(moving)
    warnings = list(report.errors)
    silent = unreached(talk, report, (source, destination))
    if without_destination:
        silent.pop(destination, None)
    if silent:
        raise first_of(tuple(silent.values()))
    # It may have moved on since, and have its old name again.
    for host in sorted(talk.contacts.keys() - {source}):
        try:
            for name in names:
                _refuse_if_there(talk, host, name)
        except MigrationError as error:
            # A host that neither is nor was the VM's must not stand in the way because its libvirt is dead.
            if error.code is ErrorCode.RUNS_ELSEWHERE or (host == destination and not without_destination):
                raise
            warnings.append(error)
    known = recall(talk, job_id, [source])
    for reason in known.errors:
        raise reason
    migration = recalled_migration(look, known)
    if migration is None:
        raise job_unknown(job_id)
    talk.migration = migration
    warnings.append(MigrationError(ErrorCode.COPY_OUTDATED, {
        "domain": migration.domain, "host": source, "destination": destination}))
    return _bring_back(talk, migration, tuple(warnings))


def _bring_back(talk: Conversation, migration: Migration, warnings: tuple[MigrationError, ...]) -> Restored:
    """The one step that changes something. Raises MigrationError if it was not begun, for certain."""
    again = Phrase("`vmmigration.py restore-source {job}` may be repeated: it brings back what is not back yet.", {
        "job": migration.job_id})
    try:
        restored = talk.step(
            Command.RESTORE_SOURCE, migration.source, StepArguments(migration=migration), StepReport,
            lambda told: told.summary)
    except (MigrationError, SilenceError) as failure:
        error = reason_of(failure)
        if _nothing_was_begun(talk, failure):
            raise error from failure
        hint = joined([error.hint, again], " ")
        return Restored(migration, "", warnings, MigrationError(error.code, {**error.facts, "hint": hint}))
    except (DetachedError, KeyboardInterrupt):
        if not talk.changed:
            raise
        return Restored(migration, "", warnings, MigrationError(ErrorCode.DETACHED, {
            "job": migration.job_id, "domain": migration.domain, "seconds": f"{GIVE_UP_SECONDS:.0f}", "hint": again}))
    return Restored(migration, restored.summary, warnings)


def _nothing_was_begun(talk: Conversation, failure: MigrationError | SilenceError) -> bool:
    """Whether the copy is certain to be as it was."""
    return isinstance(failure, MigrationError) and (not talk.changed or failure.code is ErrorCode.NO_STALE_COPY)


def _refuse_if_there(talk: Conversation, host: str, domain: str) -> None:
    try:
        view = locate(talk, host, domain)
    except SilenceError as silence:
        raise silence.error from silence
    if view.has_it:
        raise MigrationError(
            ErrorCode.RUNS_ELSEWHERE, {"host": host, "domain": domain, "state": Phrase(view.state.value)})
