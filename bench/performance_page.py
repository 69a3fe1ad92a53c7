"""Writes docs/performance.md from the figures that `script/bench peers` has kept: `python -m bench.performance_page`.

Why a goal is missed stands in bench/results/reasons.txt, by case, goal and way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.peer_cases import CASES, Case
from bench.peer_commands import Way
from bench.peer_figures import Results, Run, Verdict, median, ratio, verdicts
from tests.lab.state import CHECKOUT

PAGE = CHECKOUT / "docs/performance.md"
FIGURES = CHECKOUT / "bench/results/peers.json"
REASONS = CHECKOUT / "bench/results/reasons.txt"
_MIB = 1024 * 1024

Reasons = Mapping[tuple[str, str, str], str]
Figure = Callable[[Run], "float | None"]

#: A goal, in words, and in which form its figure is printed.
_GOALS: Mapping[str, tuple[str, str]] = {
    "total": ("the whole run, from Enter to the prompt, beside the other way", "{:.2f} x"),
    "gap": ("the guest's longest gap, beside virsh", "{:.2f} x"),
    "outside": ("time outside libvirt's own migration", "{:.2f} s"),
    "share": ("the same, as a share of a run of a minute", "{:.1%}"),
    "wire": ("bytes on the wire, of what is allocated and the memory", "{:.3f} x"),
}
_LIMITS: Mapping[str, str] = {
    "total": "{:.1f} x", "gap": "{:.1f} x", "outside": "{:.1f} s", "share": "{:.0%}", "wire": "{:.2f} x"}

_HEAD = """\
# Performance

How long a move takes beside what an admin types instead, measured side by side in one run on one machine. Written by
`{command}` from [bench/results/{file}](../bench/results/{file}); do not edit.

{machine}

- Two nodes and a management host in namespaces of one machine, joined by a bridge. "full" is that bridge without a
  limit; the others are limited by tbf. QEMU, libvirt and SSH of both nodes share its processors.
- The ways take turns (A B A B), each with the same VM, started anew on the source, and nothing left to be written to
  disk. Figures are medians, those in brackets the least and the most. A small VM is moved beforehand and not counted.
- **total** is from Enter to the prompt, of all lines that are typed ([below](#what-is-typed)), each in a shell that is
  open already; typing and thinking take no time. Ours includes all checks, the encryption of disk and memory, and the
  steps after the move. virsh's disk and memory cross unencrypted: that is how it works out of the box.
- **libvirt** is what libvirt's migration took: `virsh domjobinfo --completed` up to the end at the destination, and
  what the source's libvirt does then. **outside** is the rest of the total.
- **first byte**: from Enter until {flowing} KiB have crossed since the moving began; what ours sends to measure the
  link is not counted.
- **wire**: all bytes on the source's cable, both directions, headers included, by what is allocated in the source's
  images plus the memory that crossed. **allocated**: what the images take at the destination by what they take at the
  source.
- **gap**: the longest time without a tick of a witness in the guest, which writes a synced record to its disk and
  prints its number every 5 ms.
"""

_SCP_NOTE = """\
"scp, then virsh" is the original tool's way, made safe. The original copies the image of the running VM and starts that
copy: torn, and with qcow2 its tables too, so that not even a mirror over it makes it whole. Safe is: freeze the image
under a snapshot, copy it, have libvirt carry what was written since (`--copy-storage-inc`), join the two at the
destination.
"""


# Reasons.


def read_reasons(text: str) -> Reasons:
    """The reasons by case, goal and way. Raises ValueError for a line that is none."""
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words, colon, reason = line.partition(":")
        parts = words.split()
        if not colon or len(parts) != 3:
            raise ValueError(f"not `case goal way: reason`: {line}")
        found[parts[0], parts[1], parts[2]] = reason.strip()
    return found


def key_of(verdict: Verdict) -> tuple[str, str, str]:
    """Where the reason for a missed goal is looked for."""
    return verdict.case, verdict.goal, verdict.way.name if verdict.way is not None else "-"


# Tables.


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _spread(runs: Sequence[Run], figure: Figure, form: str = "{:.1f}") -> str:
    """The median, and between which values it lies if there are several."""
    known = [value for run in runs if (value := figure(run)) is not None]
    middle = median(runs, figure)
    if middle is None:
        return ""
    text = form.format(middle)
    return text if len(known) < 2 else f"{text} ({form.format(min(known))} to {form.format(max(known))})"


def _middle(runs: Sequence[Run], figure: Figure, form: str) -> str:
    value = median(runs, figure)
    return "" if value is None else form.format(value)


def _times(ours: Sequence[Run], theirs: Sequence[Run], figure: Figure) -> str:
    value = ratio(ours, theirs, figure)
    return "" if value is None else f"{value:.2f}"


def case_table(results: Results, case: Case) -> str:
    """All ways of a case."""
    ours = results.of(case.name, Way.OURS)
    rows = []
    for way in case.ways:
        runs = results.of(case.name, way)
        if not runs:
            continue
        rows.append([
            way.value, str(len(runs)), _spread(runs, lambda run: run.seconds),
            "" if way is Way.OURS else _times(ours, runs, lambda run: run.seconds),
            _middle(runs, lambda run: run.libvirt_seconds, "{:.1f}"), _middle(runs, lambda run: run.outside, "{:.2f}"),
            _middle(runs, lambda run: run.first_byte_seconds, "{:.2f}"),
            _middle(runs, lambda run: run.wire_ratio, "{:.3f}"),
            _middle(runs, lambda run: run.allocated_ratio, "{:.3f}"),
            _spread(runs, lambda run: run.gap_ms, "{:.0f}")])
    return table(
        ["way", "runs", "total s", "ours / it", "libvirt s", "outside s", "first byte s", "wire", "allocated",
         "gap ms"], rows)


def goals_table(found: Sequence[Verdict]) -> str:
    """Each goal: in how many cases it is met, and the worst figure."""
    rows = []
    for goal, (what, form) in _GOALS.items():
        these = [verdict for verdict in found if verdict.goal == goal]
        for limit in sorted({verdict.limit for verdict in these}, reverse=True):
            same = [verdict for verdict in these if verdict.limit == limit]
            worst = max(same, key=lambda verdict: verdict.value)
            where = worst.case + (f", {worst.way.value}" if worst.way else "")
            rows.append([
                what, _LIMITS[goal].format(limit), f"{sum(verdict.met for verdict in same)} of {len(same)}",
                f"{form.format(worst.value)} ({where})"])
    return table(["goal", "at most", "met", "the worst"], rows)


def missed_list(found: Sequence[Verdict], reasons: Reasons) -> str:
    """Each goal that is missed, and why. Raises ValueError for a reason of a goal that is not missed."""
    missed = [verdict for verdict in found if not verdict.met]
    stray = set(reasons) - {key_of(verdict) for verdict in missed}
    if stray:
        raise ValueError(f"reasons of goals that are not missed: {sorted(stray)}")
    lines = []
    for verdict in missed:
        what, form = _GOALS[verdict.goal]
        beside = f" ({verdict.way.value})" if verdict.way else ""
        reason = reasons.get(key_of(verdict), "The reason is not known yet.")
        lines.append(
            f"- **{verdict.case}**, {what}{beside}: {form.format(verdict.value)}, at most "
            f"{_LIMITS[verdict.goal].format(verdict.limit)}. {reason}")
    return "\n".join(lines) or "None."


def steps_table(results: Results, cases: Sequence[Case]) -> str:
    """How long each step of ours takes, and what comes before the first and after the last one."""
    columns = [case for case in cases if results.of(case.name, Way.OURS)]
    steps = list(dict.fromkeys(
        (step["command"], step["host"]) for case in columns for run in results.of(case.name, Way.OURS)
        for step in run.steps))
    source = {case.name: _address(results.of(case.name, Way.OURS)[0], "HELLO") for case in columns}
    figures: list[tuple[str, Figure]] = [("before the first step", before_steps)]
    for command, host in steps:
        where = "source" if host in source.values() else "destination"
        figures.append((f"{command}, {where}", _step_figure(command, host)))
    figures += [("LIVE_MIGRATION beyond libvirt's own", beyond_libvirt), ("after the last step", after_steps)]
    rows = [
        [name, *(_middle(results.of(case.name, Way.OURS), figure, "{:.2f}") for case in columns)]
        for name, figure in figures]
    return table(["step", *(case.name for case in columns)], rows)


def _address(run: Run, command: str) -> str:
    return next((str(step["host"]) for step in run.steps if step["command"] == command), "")


def _step_figure(command: str, host: str) -> Figure:
    return lambda run: next(
        (float(step["seconds"]) for step in run.steps if (step["command"], step["host"]) == (command, host)), None)


def before_steps(run: Run) -> float | None:
    """Seconds until the first step begins."""
    return min((float(step["began"]) for step in run.steps), default=None)


def after_steps(run: Run) -> float | None:
    """Seconds from the end of the last step to the prompt."""
    return run.seconds - max(float(step["ended"]) for step in run.steps) if run.steps else None


def beyond_libvirt(run: Run) -> float | None:
    """Seconds of LIVE_MIGRATION that libvirt does not count."""
    took = next((float(step["seconds"]) for step in run.steps if step["command"] == "LIVE_MIGRATION"), None)
    return None if took is None or run.libvirt_seconds is None else took - run.libvirt_seconds


def waiting_table(results: Results, cases: Sequence[Case]) -> str:
    """For what the guest waits at the switchover."""
    parts = list(dict.fromkeys(part for run in results.runs for part in run.switchover))
    rows = [
        [case.name, way.value, *(_spread(results.of(case.name, way), _waited(part), "{:.0f}") for part in parts)]
        for case in cases for way in case.ways if any(run.switchover for run in results.of(case.name, way))]
    return table(["case", "way", *parts], rows)


def _waited(part: str) -> Figure:
    return lambda run: run.switchover.get(part)


def costs_table(results: Results, cases: Sequence[Case]) -> str:
    """Processor time and memory of what is ours, and processor time of SSH and of libvirt's part."""
    rows = []
    for case in cases:
        for way in case.ways:
            runs = results.of(case.name, way)
            if runs:
                rows.append([
                    case.name, way.value, _middle(runs, lambda run: run.cpu("agent"), "{:.2f}"),
                    _middle(runs, lambda run: run.peak("agent") / _MIB or None, "{:.0f}"),
                    _middle(runs, lambda run: run.cpu("controller"), "{:.2f}"),
                    _middle(runs, lambda run: run.cpu("ssh", "sshd", "scp", "rsync"), "{:.2f}"),
                    _middle(runs, lambda run: run.peak("ssh") / _MIB or None, "{:.0f}"),
                    _middle(runs, lambda run: run.cpu("libvirtd", "virsh", "virt-ssh-helper", "qemu-img"), "{:.2f}"),
                    _middle(runs, lambda run: run.cpu("qemu-system"), "{:.1f}")])
    return table(
        ["case", "way", "agents s", "largest agent MiB", "controller s", "SSH s", "largest ssh MiB", "libvirt s",
         "QEMU s"], rows)


def typed_list(results: Results, cases: Sequence[Case]) -> str:
    """What is typed for each way, as in the first case that has it."""
    parts = []
    for way in Way:
        case = next((case for case in cases if results.of(case.name, way)), None)
        if case is not None:
            lines = results.of(case.name, way)[0].lines
            typed = "\n".join(f"    {line['host']}# {line['text']}" for line in lines)
            parts.append(f"{way.value}:\n\n{typed}")
    return "\n\n".join(parts)


# The page.


def page(results: Results, reasons: Reasons, file: str = FIGURES.name) -> str:
    """The whole page."""
    cases = [case for case in CASES if any(run.case == case.name for run in results.runs)]
    found = verdicts(results)
    machine = table(["", ""], [["measured", results.at], *([name, value] for name, value in results.machine.items())])
    load = [run.load for run in results.runs]
    parts = [
        _HEAD.format(command=results.command, file=file, machine=machine, flowing=512),
        f"The load average before a run was {min(load):.1f} to {max(load):.1f}. "
        f"{sum(run.repeated for run in results.runs)} runs were repeated because the emulator had broken their guest.",
        "## Goals", goals_table(found), "### Missed", missed_list(found, reasons), "## The cases"]
    for case in cases:
        link = "as fast as the machine" if case.link_mbit is None else f"{case.link_mbit} Mbit/s"
        parts += [f"### {case.name}: {case.machine.what}; link {link}", case_table(results, case)]
    parts += [
        _SCP_NOTE.rstrip(), "## Where our time goes",
        "Seconds, medians. CHECK_LINK runs beside the other two checks, and steps on both hosts beside each other.",
        steps_table(results, cases), "## What the guest waits for",
        "Milliseconds, from its stop at the source on, by libvirt's events: for what is left of memory and devices to "
        "arrive, for being let go on there (ours: once the source has given its copy up), and for its next tick.",
        waiting_table(results, cases), "## What it costs",
        "Processor seconds of both nodes and the management host together, and the largest memory of one process.",
        costs_table(results, cases), "## What is typed", typed_list(results, cases)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def verdict_lines(results: Results) -> str:
    """The goals as lines for a terminal."""
    lines = []
    for verdict in verdicts(results):
        _, form = _GOALS[verdict.goal]
        beside = verdict.way.value if verdict.way else ""
        lines.append(
            f"{'met   ' if verdict.met else 'MISSED'} {verdict.case:<13} {verdict.goal:<8} "
            f"{form.format(verdict.value):>8} at most {_LIMITS[verdict.goal].format(verdict.limit):<6} "
            f"{beside}".rstrip())
    return "\n".join(lines)


def write(figures: Path, destination: Path = PAGE) -> None:
    """Write the page from a file of figures."""
    reasons = read_reasons(REASONS.read_text(encoding="utf-8"))
    destination.write_text(page(Results.load(figures), reasons, figures.name), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="script/bench page", description=__doc__)
    parser.add_argument("figures", nargs="?", type=Path, default=FIGURES, help="default: bench/results/peers.json")
    options = parser.parse_args(argv)
    try:
        write(options.figures)
    except ValueError as error:
        file = REASONS.relative_to(CHECKOUT)
        print(f"script/bench: {error}. The page is as it was: mend {file}, then run script/bench page", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
