"""What the commands about jobs do: status, list, resume, cancel, restore-source, repair. Each returns its exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping

from console.arguments import job_of, repair_of, wanted_of
from console.jobs import jobs_json, jobs_text, repair_json, repair_text, restored_json, restored_text
from console.language import translate
from console.result import result_json, result_text, show_errors
from console.terminal import write
from constant import ExitCode, Outcome
from control.looking import JobsReport, follow, look_at_jobs, newest
from control.repairing import repair
from control.report import RunReport
from control.restoring import restore_source
from controller import Controller
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase


def show_run(options: argparse.Namespace, report: RunReport) -> int:
    """Print how a run ended: the result on stdout, what went wrong on stderr."""
    show_errors(report.errors, sys.stderr)
    _print(options, result_text(report), result_json(report))
    return int(report.exit_code)


def _print(options: argparse.Namespace, text: str, content: Mapping[str, object]) -> None:
    write(sys.stdout, (json.dumps(content, indent=2) if options.json else text) + "\n")


def _list(options: argparse.Namespace, controller: Controller) -> int:
    wanted_of(options)
    return _show_jobs(options, look_at_jobs(controller.conversation))


def _status(options: argparse.Namespace, controller: Controller) -> int:
    wanted = wanted_of(options)
    report = look_at_jobs(controller.conversation, wanted)
    if not wanted:
        unfinished = tuple(job for job in report.jobs if job.outcome is None)
        return _show_jobs(options, JobsReport(unfinished, report.errors), translate("Nothing is under way."))
    job = newest(report, wanted)
    if job is None:
        show_errors(report.errors, sys.stderr)
        raise MigrationError(ErrorCode.JOB_UNKNOWN, {"host": Phrase("Any agent"), "job": wanted})
    if not options.json:
        # Ctrl-C ends the looking; the job is somebody else's.
        with contextlib.suppress(KeyboardInterrupt):
            job = follow(controller.conversation, job)
    return _show_jobs(options, JobsReport((job,), report.errors))


def _show_jobs(options: argparse.Namespace, report: JobsReport, nothing: str = "") -> int:
    show_errors(report.errors, sys.stderr)
    if not report.jobs and report.errors:
        nothing = translate("The agents that answer know of nothing.")
    _print(options, nothing if nothing and not report.jobs else jobs_text(report), jobs_json(report))
    return int(ExitCode.NO_CONTACT if report.errors and not report.jobs else ExitCode.MOVED)


def _resume(options: argparse.Namespace, controller: Controller) -> int:
    return show_run(options, controller.resume(job_of(options)))


def _cancel(options: argparse.Namespace, controller: Controller) -> int:
    report = controller.cancel(job_of(options))
    show_run(options, report)
    return int(ExitCode.MOVED if report.outcome is Outcome.ROLLED_BACK else report.exit_code)


def _restore_source(options: argparse.Namespace, controller: Controller) -> int:
    restored = restore_source(
        controller.conversation, job_of(options), without_destination=options.without_destination)
    show_errors(restored.warnings, sys.stderr)
    _print(options, restored_text(restored), restored_json(restored))
    return int(ExitCode.MOVED)


def _repair(options: argparse.Namespace, controller: Controller) -> int:
    report = repair(controller.conversation, controller.resume, *repair_of(options))
    show_errors([*report.errors, *(error for run in report.runs for error in run.errors)], sys.stderr)
    _print(options, repair_text(report), repair_json(report))
    return int(report.exit_code)


JOB_COMMANDS: Mapping[str, Callable[[argparse.Namespace, Controller], int]] = {
    "list": _list, "status": _status, "resume": _resume, "cancel": _cancel, "repair": _repair,
    "restore-source": _restore_source}
