"""What the commands about jobs do: status, list, resume, cancel, restore-source, repair. Each returns its exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

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
    """Print how a run ended: the result on stdout, what went wrong on stderr. Returns its exit code."""
    return _show_run(options, report, int(report.exit_code))


def _show_run(options: argparse.Namespace, report: RunReport, exit_code: int) -> int:
    _tell(options, report.errors, result_text(report), {**result_json(report), "exit_code": exit_code})
    return exit_code


def _tell(
    options: argparse.Namespace, errors: Sequence[MigrationError], text: str, content: Mapping[str, object],
) -> None:
    """Print what came of a command. Ctrl-C ends the printing: what was done has its exit code all the same."""
    with contextlib.suppress(KeyboardInterrupt):
        show_errors(errors, sys.stderr)
        write(sys.stdout, (json.dumps(content, indent=2) if options.json else text) + "\n")


Action = Callable[[Controller], int]
"""What is left to do once the arguments have been understood: with a controller, to an exit code."""


def _list(options: argparse.Namespace) -> Action:
    wanted_of(options)
    return lambda controller: _show_jobs(options, look_at_jobs(controller.conversation))


def _status(options: argparse.Namespace) -> Action:
    wanted = wanted_of(options)
    return partial(_status_of, options, wanted) if wanted else partial(_under_way, options)


def _under_way(options: argparse.Namespace, controller: Controller) -> int:
    report = look_at_jobs(controller.conversation)
    unfinished = tuple(job for job in report.jobs if job.outcome is None)
    nothing = translate("The agents that answer have nothing under way." if report.errors else "Nothing is under way.")
    return _show_jobs(options, replace(report, jobs=unfinished), nothing)


def _status_of(options: argparse.Namespace, wanted: str, controller: Controller) -> int:
    report = look_at_jobs(controller.conversation, wanted)
    if not report.answered:
        return _show_jobs(options, report)
    job = newest(report, wanted)
    if job is None:
        show_errors(report.errors, sys.stderr)
        raise MigrationError(ErrorCode.JOB_UNKNOWN, {"job": wanted, "problem": Phrase(
            "No agent that answers knows of a job {wanted} or of a job for a VM {wanted}", {"wanted": wanted})})
    if not options.json:
        # Ctrl-C ends the looking; the job is somebody else's.
        with contextlib.suppress(KeyboardInterrupt):
            job = follow(controller.conversation, job)
    return _show_jobs(options, replace(report, jobs=(job,)))


def _show_jobs(options: argparse.Namespace, report: JobsReport, nothing: str = "") -> int:
    if not report.answered:
        nothing = translate("No agent answers.")
    elif report.errors and not nothing:
        nothing = translate("The agents that answer know of nothing.")
    text = nothing if nothing and not report.jobs else jobs_text(report)
    _tell(options, report.errors, text, jobs_json(report))
    return int(ExitCode.NO_CONTACT if report.errors and not report.jobs else ExitCode.MOVED)


def _resume(options: argparse.Namespace) -> Action:
    job = job_of(options)
    return lambda controller: show_run(options, controller.resume(job))


def _cancel(options: argparse.Namespace) -> Action:
    return partial(_cancel_job, options, job_of(options))


def _cancel_job(options: argparse.Namespace, job: str, controller: Controller) -> int:
    report = controller.cancel(job)
    return _show_run(
        options, report, int(ExitCode.MOVED if report.outcome is Outcome.ROLLED_BACK else report.exit_code))


def _restore_source(options: argparse.Namespace) -> Action:
    return partial(_restore_copy, options, job_of(options))


def _restore_copy(options: argparse.Namespace, job: str, controller: Controller) -> int:
    restored = restore_source(controller.conversation, job, without_destination=options.without_destination)
    errors = [*restored.warnings, *([restored.error] if restored.error is not None else [])]
    _tell(options, errors, restored_text(restored), restored_json(restored))
    return int(restored.exit_code)


def _repair(options: argparse.Namespace) -> Action:
    return partial(_repair_vm, options, repair_of(options))


def _repair_vm(options: argparse.Namespace, wanted: tuple[str, str, str], controller: Controller) -> int:
    report = repair(controller.conversation, controller.resume, *wanted)
    errors = [*report.errors, *(error for run in report.runs for error in run.errors)]
    _tell(options, errors, repair_text(report), repair_json(report))
    return int(report.exit_code)


JOB_COMMANDS: Mapping[str, Callable[[argparse.Namespace], Action]] = {
    "list": _list, "status": _status, "resume": _resume, "cancel": _cancel, "repair": _repair,
    "restore-source": _restore_source}
"""Each command. Raises MigrationError for arguments that it does not understand, before it needs a controller."""
