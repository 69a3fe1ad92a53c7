"""Jobs as an admin sees them: the list, one job's state, and what `repair` found; in lines and as JSON."""

from __future__ import annotations

import time

from console.columns import table
from console.figures import duration, size
from console.language import translate
from console.plan import printable_lines
from console.result import error_json, result_json
from control.looking import JobLook, JobsReport
from control.repairing import RepairReport, came_to_its_end
from control.report import RunReport
from control.restoring import Restored
from control.whereabouts import describe
from wire.phrase import Phrase, joined

_HEADS = (
    Phrase("job"), Phrase("VM"), Phrase("from"), Phrase("to"), Phrase("asked for by"), Phrase("since"), Phrase("took"),
    Phrase("data"), Phrase("downtime"), Phrase("outcome"))


def jobs_text(report: JobsReport) -> str:
    """The jobs as a table, the newest first."""
    if not report.jobs:
        return translate("No agent knows of a job.")
    return printable_lines(table([tuple(map(translate, _HEADS)), *(_row(job) for job in report.jobs)]))


def _row(job: JobLook) -> tuple[str, ...]:
    told = job.told
    return (
        told.job_id, told.domain, told.source, told.destination, told.admin or told.asked_by,
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.since)),
        duration(job.ended - told.since) if job.ended else "", size(told.bytes) if told.bytes else "",
        f"{told.downtime} ms" if told.downtime >= 0 else "", _state(job))


def _state(job: JobLook) -> str:
    if job.outcome is not None:
        return translate(job.outcome.value)
    doing = [Phrase("{command} on {host}", {"command": command.value, "host": host}) for command, host in job.doing]
    idle = (Phrase("has moved, not finished: no step runs") if job.told.downtime >= 0 else
            Phrase("not finished: no step runs"))
    return translate(joined(doing or [idle]))


def jobs_json(report: JobsReport) -> dict[str, object]:
    """The same for programs. Seconds since 1970, bytes, milliseconds."""
    return {
        "jobs": [_job_json(job) for job in report.jobs],
        "errors": [error_json(error) for error in report.errors],
    }


def _job_json(job: JobLook) -> dict[str, object]:
    told = job.told
    return {
        "job_id": told.job_id, "domain": told.domain, "source": told.source, "destination": told.destination,
        "admin": told.admin or None, "asked_by": told.asked_by, "since": told.since, "ended": job.ended or None,
        "outcome": job.outcome.value if job.outcome is not None else None, "bytes": told.bytes,
        "downtime_ms": told.downtime if told.downtime >= 0 else None,
        "doing": [{"command": command.value, "host": host} for command, host in job.doing],
        "hosts": sorted(job.accounts),
    }


def repair_text(report: RepairReport) -> str:
    """Where the VM is, what was done, and what is left to do."""
    lines = [translate("{vm}: {situation}.").format(
        vm=report.domain, situation=translate(report.found.situation.value))]
    for host, view in ((report.source, report.found.source), (report.destination, report.found.destination)):
        lines.append(f"  {host:<16} {translate(describe(view)) if view is not None else translate('cannot be asked')}")
    lines += [_how_it_went(run) for run in report.runs]
    if report.why:
        lines.append(translate(report.why))
    lines += [_command(host, command) for host, command in report.commands]
    if report.all_done:
        lines.append(translate("Nothing is left to do."))
    return printable_lines(lines)


def _how_it_went(run: RunReport) -> str:
    """What became of a job that was resumed."""
    words = (translate("Job {job} was brought to its end: {outcome}.") if came_to_its_end(run)
             else translate("Job {job} was not brought to its end: {outcome}."))
    return words.format(job=run.migration.job_id, outcome=translate(run.outcome.value))


def _command(host: str, command: str) -> str:
    """What an admin is to type on that host."""
    return "  " + translate("on {host}:").format(host=host) + f"  {translate(command)}"


def repair_json(report: RepairReport) -> dict[str, object]:
    """The same for programs."""
    return {
        "situation": report.found.situation.value, "exit_code": int(report.exit_code), "domain": report.domain,
        "source": report.source, "destination": report.destination, "why": report.why,
        "commands": [{"host": host, "command": command} for host, command in report.commands],
        "jobs": [result_json(run) for run in report.runs], "errors": [error_json(error) for error in report.errors],
    }


def restored_text(restored: Restored) -> str:
    """What was brought back, and how to start it; or that it is not known."""
    migration = restored.migration
    if restored.error is not None:
        return translate("It is not certain that the copy of {vm} on {host} is back.").format(
            vm=migration.domain, host=migration.source)
    return printable_lines([
        translate("{vm} on {host}: {summary}.").format(
            vm=migration.domain, host=migration.source, summary=translate(restored.summary)),
        _command(migration.source, f"virsh start {migration.domain}")])


def restored_json(restored: Restored) -> dict[str, object]:
    """The same for programs."""
    migration = restored.migration
    return {
        "job_id": migration.job_id, "domain": migration.domain, "source": migration.source,
        "destination": migration.destination, "summary": restored.summary or None,
        "exit_code": int(restored.exit_code),
        "errors": [error_json(restored.error)] if restored.error is not None else [],
        "warnings": [error_json(error) for error in restored.warnings],
    }
