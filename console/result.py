"""How a run ended: in a few lines for a person, as JSON for a program, and the errors with their remedies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from console.figures import size
from console.language import translate
from console.plan import finding_json, plan_json, plan_text, printable_lines
from console.program import PROGRAM, with_program_name
from console.terminal import printable, write
from constant import DomainState, Outcome
from control.report import RunReport
from wire.errors import MigrationError
from wire.phrase import Phrase, joined, template

_IS_SO = {
    DomainState.RUNNING: Phrase("runs"), DomainState.PAUSED: Phrase("is paused"),
    DomainState.SHUT_OFF: Phrase("is shut off"), DomainState.ABSENT: Phrase("is absent")}

# By whether an earlier command had begun it, and whether anything has crossed.
_AMOUNTS = {
    (False, True): template("total {seconds} s, moved {size} ({parts})"),
    (False, False): template("total {seconds} s, moved {size}"),
    (True, True): template("taken up {seconds} s ago, moved {size} in all ({parts})"),
    (True, False): template("taken up {seconds} s ago, moved {size} in all"),
}


def result_text(report: RunReport) -> str:
    """The result in a few lines."""
    if report.dry_run:
        return plan_text(report)
    return printable_lines(map(translate, [_where(report), *_figures(report)]))


def _where(report: RunReport) -> Phrase:
    """Where the VM is, and how."""
    migration = report.migration
    if report.before:
        told = template("Job {job} has ended: {outcome}.") if report.runs_on is None else template(
            "Job {job} has ended: {outcome}. {name} {is_so} on {host} now.")
        return Phrase(told, {
            "job": migration.job_id, "outcome": Phrase(report.outcome.value), "is_so": _IS_SO[report.state],
            "name": migration.name_on(report.runs_on or migration.destination), "host": report.runs_on or "?"})
    words = {
        Outcome.NOTHING_CHANGED: template("Nothing was changed on either host."),
        Outcome.MOVED: template("{there} {is_so} on {host} now."),
        Outcome.MOVED_INCOMPLETE: template("{there} {is_so} on {host} now, but not all went well."),
        Outcome.ROLLED_BACK: template("Rolled back: {vm} {is_so} on {host} as before.") if report.as_before else
        template("Rolled back: {vm} {is_so} on {host}."),
        Outcome.UNKNOWN: template("STATE UNKNOWN: look for {vm} on both hosts before you do anything."),
        Outcome.DETACHED: template("Left: job {job} of {vm} goes on with its step."),
    }
    return Phrase(words[report.outcome], {
        "vm": migration.domain, "there": migration.name_there, "is_so": _IS_SO[report.state],
        "host": report.runs_on or "?", "job": migration.job_id})


def _figures(report: RunReport) -> list[str]:
    """How long it took, how much has crossed and for how long the guest stood still; nothing of one that stayed."""
    moved = report.moved
    if moved is None:
        return []
    amounts = (
        (template("files {size}"), report.sent), (template("disk {size}"), moved.disk_bytes),
        (template("memory {size}"), moved.memory_bytes))
    parts = [Phrase(words, {"size": size(amount)}) for words, amount in amounts if amount]
    told = [Phrase(_AMOUNTS[report.resumed, bool(parts)], {
        "seconds": f"{report.seconds:.1f}", "size": size(moved.disk_bytes + moved.memory_bytes + report.sent),
        "parts": joined(parts)})]
    if report.state is not DomainState.SHUT_OFF:
        told.append(Phrase("downtime {milliseconds} ms", {"milliseconds": str(moved.downtime)})
                    if moved.downtime >= 0 else Phrase("downtime not told by libvirt"))
    return [joined(told)]


def result_json(report: RunReport) -> dict[str, object]:
    """The result for programs. Bytes, seconds, milliseconds."""
    moved = report.moved
    return {
        "outcome": report.outcome.value,
        "exit_code": int(report.exit_code),
        "job_id": report.migration.job_id,
        "domain": report.migration.domain,
        "source": report.migration.source,
        "destination": report.migration.destination,
        "runs_on": report.runs_on,
        "seconds": round(report.seconds, 3),
        "state": report.state.value,
        "sent_bytes": report.sent,
        "disk_bytes": moved.disk_bytes if moved else None,
        "memory_bytes": moved.memory_bytes if moved else None,
        "downtime_ms": moved.downtime if moved and moved.downtime >= 0 else None,
        "downtime_limit_ms": (moved.downtime_limit or None) if moved else None,
        "memory_passes": (moved.passes or None) if moved else None,
        "post_copy": moved.post_copy if moved else None,
        "steps": [
            {"command": step.command.value, "host": step.host, "seconds": round(step.seconds, 3),
             "summary": step.summary, "obstacles": step.obstacles,
             "error": step.error.code.value if step.error else None}
            for step in report.steps
        ],
        "errors": [
            *(error_json(finding.error()) for finding in report.obstacles),
            *(error_json(error) for error in report.errors),
        ],
        "dry_run": report.dry_run,
        "would_start": report.would_start,
        "findings": [finding_json(finding) for finding in report.findings],
        "plan": plan_json(report.plan) if report.plan is not None else None,
    }


def error_json(error: MigrationError) -> dict[str, object]:
    """An error for programs."""
    return {"code": error.code.value, "message": error.message, "hint": with_program_name(error.hint),
            "facts": dict(error.facts)}


def show_errors(errors: Sequence[MigrationError], stream: TextIO) -> None:
    """Each error and its remedy."""
    for error in errors:
        # What is not the console's own words may name the command as well.
        hint = with_program_name(translate(error.hint))
        write(stream, f"{PROGRAM}: {printable(translate(error.message))} [{error.code.value}]\n  {printable(hint)}\n")
