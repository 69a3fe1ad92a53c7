"""Measures our command beside what an admin types instead: virsh, scp, rsync. `script/bench peers`, as root.

Real hosts, real guests and real moves in the lab, the ways in turn (A B A B) in one run. Prints a line for each run,
keeps the figures as JSON, and writes docs/performance.md from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import performance_page
from bench.life_events import LifeEvents, switchover
from bench.meter import Meter, accounts, flowing_since
from bench.peer_cases import CASES, WARM_UP, Case, Machine, chosen, order
from bench.peer_commands import Way, lines
from bench.peer_figures import FLOWING_BYTES, Results, Run, job_figures, longest_gap
from bench.peer_scene import GuestLostError, Scenery, Subject, scenery
from bench.terminal import Typed
from tests.lab.state import CHECKOUT

_RUN_SECONDS = 1200.0
_ATTEMPTS = 3
#: Until the guest has ticked on for a moment a gap may not have come to its end.
_AFTER_SECONDS = 0.3
_COLUMNS = "{:<13} {:<26} {:>4} {:>8} {:>8} {:>7} {:>8} {:>6} {:>6} {:>7} {:>8} {:>7} {:>5}"
_HEAD = _COLUMNS.format("case", "way", "pair", "total s", "libvirt", "outside", "1st byte", "wire", "alloc", "gap ms",
                        "agents s", "ssh s", "load")


def measure(scene: Scenery, case: Case, pairs: int) -> list[Run]:
    """All runs of a case."""
    subject = Subject(scene, case.machine)
    runs = []
    try:
        subject.make()
        scene.link(case.link_mbit)
        for pair, way in order(case, pairs):
            runs.append(_run_until_sound(subject, case.name, way, pair))
            print(line(runs[-1]), flush=True)
    finally:
        scene.link(None)
        subject.remove()
    return runs


def warm_up(scene: Scenery, machine: Machine) -> None:
    """Move a small VM each way that most cases go, and count nothing."""
    subject = Subject(scene, machine)
    subject.make()
    for way in (Way.OURS, Way.VIRSH_POOL):
        _run_until_sound(subject, "warm-up", way, 0)
    subject.remove()


def _run_until_sound(subject: Subject, case: str, way: Way, pair: int) -> Run:
    """A run whose guest lives: QEMU without KVM now and then loses a page, whichever way the guest is moved."""
    for attempt in range(_ATTEMPTS):
        try:
            return _run(subject, case, way, pair, attempt)
        except GuestLostError as error:
            print(f"{case} {way.value}: the guest did not go on, once more ({str(error)[:100]})", file=sys.stderr)
        finally:
            subject.clear()
    raise RuntimeError(f"{case} {way.value}: no guest went on in {_ATTEMPTS} runs")


def _run(subject: Subject, case: str, way: Way, pair: int, repeated: int) -> Run:
    scene = subject.scenery
    subject.put_on_source()
    load, at = os.getloadavg()[0], datetime.now(timezone.utc)
    source_allocated, _ = subject.allocated("node1")
    hosts = list(scene.lab.hosts.values())
    to_type = lines(way, subject.names)
    typed: list[Typed] = []
    with LifeEvents(scene.lab.nodes, subject.machine.name) as events, Meter(
            hosts, scene.lab.host("node1"), scene.terminals["boss"].errors) as meter:
        for each in to_type:
            typed.append(scene.terminals[each.host].type(each.text, _RUN_SECONDS))
        allocated, length = subject.allocated("node2")
    subject.check_arrival()
    moving_from = next(shown.began for each, shown in zip(to_type, typed) if each.moves)
    began, ended = typed[0].began, typed[-1].ended
    steps = _steps(meter, began) if way is Way.OURS else []
    moving = [began + step["began"] for step in steps if step["command"] == (
        "LIVE_MIGRATION" if subject.machine.running else "COPY_DISK_FILE")]
    flowing = flowing_since(meter.marks, min(moving, default=moving_from), FLOWING_BYTES)
    gaps: tuple[float | None, float | None, float | None] = (None, None, None)
    job: dict[str, float] = {}
    waited: dict[str, float] = {}
    libvirt_seconds = None
    if subject.machine.running:
        ticks = [(tick.seconds, tick.host) for tick in subject.witness.ticks()]
        gaps = longest_gap(ticks, began, ended + _AFTER_SECONDS)
        job = job_figures(scene.lab.host("node1").run(
            ["virsh", "-q", "-c", "qemu:///system", "domjobinfo", "--completed", subject.machine.name]).stdout)
        switched = switchover(events.seen, "node1", "node2")
        waited = switched.parts(next(seconds for seconds, host in ticks if host == "node2"))
        libvirt_seconds = round(job["Time elapsed"] + switched.done - switched.arrived, 3)
    longest, between, usual = (None if gap is None else round(gap * 1000, 1) for gap in gaps)
    return Run(
        case=case, way=way.name, pair=pair, at=at.isoformat(timespec="seconds"), load=round(load, 2),
        seconds=round(sum(shown.ended - shown.began for shown in typed), 3),
        lines=[{"host": each.host, "text": each.text, "seconds": round(shown.ended - shown.began, 3)}
               for each, shown in zip(to_type, typed)],
        wire_bytes=meter.marks[-1].bytes - meter.marks[0].bytes, source_allocated=source_allocated,
        destination_allocated=allocated, destination_length=length,
        first_byte_seconds=None if flowing is None else round(flowing - began, 3),
        libvirt_seconds=libvirt_seconds, memory_bytes=round(job.get("Memory processed", 0)),
        gap_ms=longest, switch_gap_ms=between, usual_gap_ms=usual, switchover=waited, programs=_programs(meter),
        steps=steps, repeated=repeated)


def _steps(meter: Meter, began: float) -> list[dict[str, Any]]:
    """The steps of our command with their beginnings, seconds since Enter."""
    begun: dict[tuple[str, str], float] = {}
    steps = []
    for said in meter.said:
        event = json.loads(said.text) if said.text.startswith("{") else {"event": ""}
        if event["event"] == "step-began":
            begun[event["command"], event["host"]] = said.time - began
        elif event["event"] == "step-ended":
            steps.append({
                "command": event["command"], "host": event["host"], "seconds": event["seconds"],
                "began": round(begun[event["command"], event["host"]], 3), "ended": round(said.time - began, 3)})
    return steps


def _programs(meter: Meter) -> dict[str, dict[str, dict[str, float]]]:
    """What each program took on each host; those that took nothing are left out."""
    return {
        host: {
            name: {"cpu": round(account.cpu, 2), "children": round(account.children, 2), "peak": account.peak}
            for name, account in sorted(accounts(table.seen.values()).items())
            if account.cpu >= 0.01 or name == "agent"}
        for host, table in meter.tables.items()}


def line(run: Run) -> str:
    """The line of the table that is printed meanwhile."""
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return _COLUMNS.format(
        run.case, Way[run.way].value, run.pair, f"{run.seconds:.2f}", shown(run.libvirt_seconds, ".2f"),
        shown(run.outside, ".2f"), shown(run.first_byte_seconds, ".2f"), f"{run.wire_ratio:.3f}",
        f"{run.allocated_ratio:.3f}", shown(run.gap_ms, ".0f"), f"{run.cpu('agent', 'controller'):.2f}",
        f"{run.cpu('ssh', 'sshd', 'scp', 'rsync'):.2f}", f"{run.load:.2f}")


def machine() -> dict[str, str]:
    """What it was measured on."""
    def said(*words: str) -> str:
        result = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603 - fixed words
        return (result.stdout or result.stderr).splitlines()[0].strip()

    model = next(text.partition(":")[2].strip() for text in Path("/proc/cpuinfo").read_text().splitlines()
                 if text.startswith("model name"))
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // (1024 * 1024)
    distribution = next(text.partition("=")[2].strip('"') for text in Path("/etc/os-release").read_text().splitlines()
                        if text.startswith("PRETTY_NAME="))
    return {
        "processor": f"{os.cpu_count()} x {model}", "memory": f"{memory} GiB", "system": distribution,
        "kernel": platform.release(), "libvirt": said("virsh", "--version"), "QEMU": said("qemu-img", "--version"),
        "OpenSSH": said("ssh", "-V"), "rsync": said("rsync", "--version"), "Python": platform.python_version(),
        "guest": "QEMU without KVM (TCG), 192 MiB of memory",
        "commit": said("git", "-C", str(CHECKOUT), "describe", "--always", "--dirty")}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="script/bench peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one pair of each case, and nothing at 100 Mbit/s")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help=(
        f"only this one, or all of this VM; may be given several times: {', '.join(case.name for case in CASES)}"))
    parser.add_argument("--pairs", type=int, default=3, help="runs of each way in each case (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help=(
        "where the figures go (default: bench/results/peers.json, from which docs/performance.md is written then; with "
        "--quick or --case nowhere)"))
    options = parser.parse_args(words)
    try:
        cases = chosen(options.case, quick=options.quick)
    except ValueError as error:
        parser.error(str(error))
    whole = not options.quick and not options.case
    file = options.json or (performance_page.FIGURES if whole else None)
    runs: list[Run] = []
    at = datetime.now(timezone.utc).isoformat(timespec="minutes")
    head = (machine(), at, " ".join(["script/bench peers", *words]))
    began = time.monotonic()
    with scenery() as scene:
        warm_up(scene, WARM_UP)
        print(_HEAD, flush=True)
        for case in cases:
            runs += measure(scene, case, 1 if options.quick else options.pairs)
            if file is not None:
                Results(*head, tuple(runs)).save(file)
    results = Results(*head, tuple(runs))
    print(performance_page.verdict_lines(results))
    print(f"{len(runs)} runs in {(time.monotonic() - began) / 60:.0f} min")
    return performance_page.main([]) if whole and options.json is None else 0


if __name__ == "__main__":
    sys.exit(main())
