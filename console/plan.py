"""The plan and the findings of the checks, as a person reads them and as JSON (docs/json.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from console.columns import pad
from console.figures import duration, size
from console.language import translate
from console.program import PROGRAM, with_program_name
from console.terminal import printable, write
from constant import Severity
from control.plan import Plan
from control.report import RunReport
from wire.findings import CHECKS, Finding
from wire.phrase import Phrase, joined, template

_AND = template(" and ")
# As wide as the widest heading of the figures, and two blanks.
_HEADING_COLUMNS = 10


def finding_json(finding: Finding) -> dict[str, object]:
    """One finding for programs."""
    return {
        "check": finding.check.value,
        "severity": finding.severity.value,
        "host": finding.facts.get("host"),
        "message": finding.message,
        "hint": with_program_name(finding.hint),
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
        lines.append(translate("Plan for moving {vm} from {source} to {destination}:").format(
            vm=migration.domain, source=migration.source, destination=migration.destination))
        for number, step in enumerate(plan.steps, start=1):
            first = f"{number:>3} {step.command.value:<23} {step.host:<16} "
            lines += [f"{first if not place else ' ' * len(first)}{translate(words)}"
                      for place, words in enumerate(step.does)]
        lines += _figures(plan)
    count = len(report.obstacles) + len(report.errors)
    lines.append(translate(Phrase(
        "A real run would start." if report.would_start else
        "A real run would not start: 1 thing in the way." if count == 1 else
        "A real run would not start: {count} things in the way.", {"count": str(count)})))
    return printable_lines(lines)


def printable_lines(lines: Iterable[str]) -> str:
    """Lines without what would steer the terminal."""
    return "\n".join(map(printable, lines))


def _figures(plan: Plan) -> list[str]:
    """What there is to send and how long that takes, each under its heading."""
    rate = Phrase("{rate}/s", {"rate": size(plan.link_rate)}) if plan.link_rate is not None else Phrase("not measured")
    written = [
        Phrase(words, {"rate": size(written)}) for words, written in (
            (template("{rate}/s of memory"), plan.dirty_rate), (template("{rate}/s of disk"), plan.write_rate))
        if written is not None]
    if written:
        rate = Phrase("{rate}; the guest writes {written}", {"rate": rate, "written": joined(written, _AND)})
    rows = [
        (Phrase("to send"), Phrase("{disk} of disk (what is allocated), up to {memory} of memory", {
            "disk": size(plan.disk_bytes), "memory": size(plan.memory_bytes)})),
        (Phrase("link"), rate),
    ]
    if plan.seconds is not None:
        rows.append((Phrase("expected"), Phrase("{least} to {most}", {
            "least": duration(plan.seconds[0]), "most": duration(plan.seconds[1] + 1)})))
    rows.append((Phrase("verdict"), Phrase(plan.verdict.value)))
    return [f"{pad(translate(heading), _HEADING_COLUMNS)}{translate(words)}" for heading, words in rows]


def show_findings(findings: Sequence[Finding], stream: TextIO, *, warnings: bool, fine: bool) -> None:
    """What stands in the way, with the remedies; `warnings`, and what is `fine`, if wanted."""
    shown = {Severity.STOPS: True, Severity.WARNS: warnings, Severity.FINE: fine}
    # The worst last, next to the result.
    for severity in (Severity.FINE, Severity.WARNS, Severity.STOPS):
        for finding in findings:
            if finding.severity is severity and shown[severity]:
                write(stream, _finding_text(finding))


def _finding_text(finding: Finding) -> str:
    name, message = finding.check.value, printable(translate(finding.message))
    if finding.severity is Severity.FINE:
        return f"{PROGRAM}: {name}: {message}\n"
    if finding.skipped:
        skipped = translate("skipped {check}: {message}").format(check=name, message=message)
        return f"{PROGRAM}: {skipped}\n"
    hint, code = printable(translate(finding.hint)), finding.error().code.value
    if finding.severity is Severity.WARNS:
        warning = translate("warning: {message}").format(message=message)
        return f"{PROGRAM}: {warning} [{code}]\n  {hint}\n"
    skippable = ""
    if CHECKS[finding.check].skippable:
        skippable = "  " + translate("To go on all the same: --skip-check {check}").format(check=name) + "\n"
    return f"{PROGRAM}: {message} [{code}]\n  {hint}\n{skippable}"
