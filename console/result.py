"""How a run ended: in a few lines for a person, as JSON for a program, and the errors with their remedies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from console.arguments import PROGRAM
from console.figures import size
from console.plan import finding_json, plan_json, plan_text
from console.terminal import printable, write
from constant import DomainState, Outcome
from control.report import RunReport
from wire.errors import MigrationError

_STATES = {
    DomainState.RUNNING: "runs", DomainState.PAUSED: "is paused", DomainState.SHUT_OFF: "is shut off",
    DomainState.ABSENT: "is absent"}


def result_text(report: RunReport) -> str:
    """The result in a few lines."""
    migration = report.migration
    if report.dry_run:
        return plan_text(report)
    is_so = _STATES[report.state]
    where = {
        Outcome.NOTHING_CHANGED: "Nothing was changed on either host.",
        Outcome.MOVED: f"{migration.name_there} {is_so} on {report.runs_on} now.",
        Outcome.MOVED_INCOMPLETE: f"{migration.name_there} {is_so} on {report.runs_on} now, but not all went well.",
        Outcome.ROLLED_BACK: f"Rolled back: {migration.domain} {is_so} on {report.runs_on}"
                             f"{' as before' if report.as_before else ''}.",
        Outcome.UNKNOWN: f"STATE UNKNOWN: look for {migration.domain} on both hosts before you do anything.",
        Outcome.DETACHED: f"Left: job {migration.job_id} of {migration.domain} goes on.",
    }
    lines = [where[report.outcome]]
    if report.moved is not None:
        downtime = f"{report.moved.downtime} ms" if report.moved.downtime >= 0 else "not told by libvirt"
        total = report.moved.disk_bytes + report.moved.memory_bytes + report.sent
        parts = [
            f"{what} {size(amount)}" for what, amount in (
                ("files", report.sent), ("disk", report.moved.disk_bytes), ("memory", report.moved.memory_bytes))
            if amount]
        live = report.state is not DomainState.SHUT_OFF
        lines.append(
            f"total {report.seconds:.1f} s, moved {size(total)}" + (f" ({', '.join(parts)})" if parts else "")
            + (f", downtime {downtime}" if live else ""))
    return "\n".join(lines)


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
    return {"code": error.code.value, "message": error.message, "hint": error.hint, "facts": dict(error.facts)}


def show_errors(errors: Sequence[MigrationError], stream: TextIO) -> None:
    """Each error and its remedy."""
    for error in errors:
        write(stream, f"{PROGRAM}: {printable(error.message)}\n  {printable(error.hint)}\n")
