"""The plan and the findings of the checks, as a person reads them and as JSON (docs/json.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from console.arguments import PROGRAM
from console.figures import duration, size
from console.terminal import printable, write
from constant import Severity
from control.plan import Plan
from control.report import RunReport
from wire.findings import CHECKS, Finding


def finding_json(finding: Finding) -> dict[str, object]:
    """One finding for programs."""
    return {
        "check": finding.check.value,
        "severity": finding.severity.value,
        "host": finding.facts.get("host"),
        "message": finding.message,
        "hint": finding.hint,
        "code": finding.code.value if finding.code is not None else None,
        "facts": dict(finding.facts),
        "skippable": CHECKS[finding.check].skippable,
        "skipped": finding.skipped,
    }


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan for programs. Bytes, bytes per second, seconds."""
    return {
        "steps": [{"command": step.command.value, "host": step.host, "does": list(step.does)} for step in plan.steps],
        "disk_bytes": plan.disk_bytes,
        "memory_bytes": plan.memory_bytes,
        "link_bytes_per_second": plan.link_rate,
        "dirty_bytes_per_second": plan.dirty_rate,
        "disk_write_bytes_per_second": plan.write_rate,
        "seconds": [round(each, 1) for each in plan.seconds] if plan.seconds is not None else None,
        "verdict": plan.verdict.value,
    }


def plan_text(report: RunReport) -> str:
    """The plan in lines, and whether a real run would start."""
    lines = []
    plan, migration = report.plan, report.migration
    if plan is not None:
        lines.append(f"Plan for moving {migration.domain} from {migration.source} to {migration.destination}:")
        for number, step in enumerate(plan.steps, start=1):
            first = f"{number:>3} {step.command.value:<23} {step.host:<16} "
            lines += [f"{first if not place else ' ' * len(first)}{words}" for place, words in enumerate(step.does)]
        lines += _figures(plan)
    count = len(report.obstacles) + len(report.errors)
    lines.append(
        "A real run would start." if report.would_start else
        f"A real run would not start: {count} thing{'s' if count != 1 else ''} in the way.")
    return printable_lines(lines)


def printable_lines(lines: Iterable[str]) -> str:
    """Lines without what would steer the terminal."""
    return "\n".join(map(printable, lines))


def _figures(plan: Plan) -> list[str]:
    rate = f"{size(plan.link_rate)}/s" if plan.link_rate is not None else "not measured"
    written = [
        f"{size(written)}/s of {what}" for written, what in ((plan.dirty_rate, "memory"), (plan.write_rate, "disk"))
        if written is not None]
    lines = [
        f"to send   {size(plan.disk_bytes)} of disk (what is allocated), up to {size(plan.memory_bytes)} of memory",
        f"link      {rate}" + (f"; the guest writes {' and '.join(written)}" if written else ""),
    ]
    if plan.seconds is not None:
        lines.append(f"expected  {duration(plan.seconds[0])} to {duration(plan.seconds[1] + 1)}")
    lines.append(f"verdict   {plan.verdict.value}")
    return lines


def show_findings(findings: Sequence[Finding], stream: TextIO, *, warnings: bool, fine: bool) -> None:
    """What stands in the way, with the remedies; `warnings`, and what is `fine`, if wanted."""
    shown = {Severity.STOPS: True, Severity.WARNS: warnings, Severity.FINE: fine}
    # The worst last, next to the result.
    for severity in (Severity.FINE, Severity.WARNS, Severity.STOPS):
        for finding in findings:
            if finding.severity is severity and shown[severity]:
                write(stream, _finding_text(finding))


def _finding_text(finding: Finding) -> str:
    name = finding.check.value
    if finding.severity is Severity.FINE:
        return f"{PROGRAM}: {name}: {printable(finding.message)}\n"
    if finding.skipped:
        return f"{PROGRAM}: skipped {name}: {printable(finding.message)}\n"
    words = f"{printable(finding.message)}\n  {printable(finding.hint)}\n"
    if finding.severity is Severity.WARNS:
        return f"{PROGRAM}: warning: {words}"
    skippable = f"  To go on all the same: --skip-check {name}\n" if CHECKS[finding.check].skippable else ""
    return f"{PROGRAM}: {words}{skippable}"
