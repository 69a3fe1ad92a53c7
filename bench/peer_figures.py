"""What one run came to, as it is kept in a JSON file, and what is made of several: medians, ratios, and goals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.peer_commands import Way

#: As much as libvirt's own talk over the link never is: what goes beyond it is disk or memory.
FLOWING_BYTES = 512 * 1024
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True)
class Run:
    """One run. Seconds, bytes, milliseconds; None is what there is not of this way or this VM.

    `seconds` is from Enter to the prompt, of all lines that are typed. `libvirt_seconds` is what libvirt's migration
    took, with what its source does once the destination has finished it. `wire_bytes` crossed the source's cable, both
    directions together; `memory_bytes` of them was memory, as libvirt counts it. `first_byte_seconds` is from Enter
    until disk or memory crossed. `programs` is per host and program: processor seconds, those of its ended children,
    and the peak of its memory. `switchover` is for how many milliseconds the guest waited for what.
    """

    case: str
    way: str
    pair: int
    at: str
    load: float
    seconds: float
    lines: list[dict[str, Any]]
    wire_bytes: int
    source_allocated: int
    destination_allocated: int
    destination_length: int
    first_byte_seconds: float | None = None
    libvirt_seconds: float | None = None
    memory_bytes: int = 0
    gap_ms: float | None = None
    switch_gap_ms: float | None = None
    usual_gap_ms: float | None = None
    switchover: dict[str, float] = field(default_factory=dict)
    programs: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    repeated: int = 0

    @property
    def outside(self) -> float | None:
        """Seconds outside libvirt's own migration."""
        return None if self.libvirt_seconds is None else self.seconds - self.libvirt_seconds

    @property
    def wire_ratio(self) -> float:
        """What crossed, of what had to: the allocated part of the disks and the memory."""
        return self.wire_bytes / (self.source_allocated + self.memory_bytes)

    @property
    def allocated_ratio(self) -> float:
        """How much room the disks take at the destination, of what they take at the source."""
        return self.destination_allocated / self.source_allocated

    def cpu(self, *programs: str) -> float:
        """Processor seconds of these programs on all hosts."""
        return sum(found.get(name, {}).get("cpu", 0.0) for found in self.programs.values() for name in programs)

    def peak(self, *programs: str) -> int:
        """The largest memory that one of these programs had."""
        peaks = [found.get(name, {}).get("peak", 0) for found in self.programs.values() for name in programs]
        return int(max(peaks, default=0))


def job_figures(text: str) -> dict[str, float]:
    """What `virsh domjobinfo --completed` prints, in seconds and bytes, by the names that it gives."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "ms":
            found[name.strip()] = float(words[0]) / 1000
        elif len(words) == 2 and words[1] in _UNITS:
            found[name.strip()] = float(words[0]) * _UNITS[words[1]]
    return found


def longest_gap(ticks: Sequence[tuple[float, str]], began: float, ended: float) -> tuple[float, float | None, float]:
    """Seconds without a tick between two moments: the longest, the one between the two hosts, and the usual one.

    A tick is when, and on which host. Raises ValueError if there are none.
    """
    gaps = [
        (after[0] - before[0], before[1] != after[1]) for before, after in zip(ticks, ticks[1:])
        if after[0] >= began and before[0] <= ended]
    if not gaps:
        raise ValueError("no ticks in that time")
    return (
        max(seconds for seconds, _ in gaps), next((seconds for seconds, between in gaps if between), None),
        statistics.median(seconds for seconds, _ in gaps))


# Several runs.


@dataclass(frozen=True)
class Results:
    """All that a measurement keeps: on what, when, by which command, and its runs."""

    machine: dict[str, str]
    at: str
    command: str
    runs: tuple[Run, ...]

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read the file."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        return cls(kept["machine"], kept["at"], kept["command"], tuple(Run(**run) for run in kept["runs"]))

    def save(self, path: Path) -> None:
        """Write the file, a run a line, so that it is small and a change can be read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        runs = ",\n".join(json.dumps(asdict(run)) for run in self.runs)
        head = json.dumps({"machine": self.machine, "at": self.at, "command": self.command}, indent=1)[:-2]
        path.write_text(f'{head},\n "runs": [\n{runs}\n]}}\n', encoding="utf-8")

    def of(self, case: str, way: Way) -> list[Run]:
        """The runs of a case that went this way."""
        return [run for run in self.runs if run.case == case and run.way == way.name]


def median(runs: Iterable[Run], value: Callable[[Run], float | None]) -> float | None:
    """The median of what is known of a figure."""
    known = [found for run in runs if (found := value(run)) is not None]
    return statistics.median(known) if known else None


def ratio(ours: Sequence[Run], theirs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    """Our median by theirs."""
    here, there = median(ours, value), median(theirs, value)
    return here / there if here is not None and there else None


# Goals.


@dataclass(frozen=True)
class Verdict:
    """What a goal came to in a case, beside one way if it is about that: the figure, and the most that it may be."""

    goal: str
    case: str
    way: Way | None
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the goal is met, by the figure as it is printed: two decimals."""
        return round(self.value, 2) <= self.limit


_TOTAL_LIMIT = 1.0
#: The sparse disk: neither are its holes written nor, where libvirt makes the file, is all of it zeroed first.
_TOTAL_LIMITS: Mapping[tuple[str, Way], float] = {("large", Way.VIRSH_FILE): 0.6, ("large", Way.VIRSH_POOL): 0.4}
_OUTSIDE_SECONDS = 0.7
_OUTSIDE_SHARE = 0.02
_MINUTE = 55.0
_WIRE_LIMIT = 1.03
_GAP_LIMIT = 1.0
_VIRSH = (Way.VIRSH_FILE, Way.VIRSH_POOL)


def verdicts(results: Results) -> list[Verdict]:
    """Each goal in each case that was measured."""
    found: list[Verdict] = []
    for case in dict.fromkeys(run.case for run in results.runs):
        ours = results.of(case, Way.OURS)
        if not ours:
            continue
        found += _beside(results, case, ours)
        found += _alone(case, ours)
    return found


def _beside(results: Results, case: str, ours: Sequence[Run]) -> list[Verdict]:
    machine = case.partition("-")[0]
    found = []
    for way in Way:
        theirs = results.of(case, way)
        if way is Way.OURS or not theirs:
            continue
        total = _median_seconds(ours) / _median_seconds(theirs)
        found.append(Verdict("total", case, way, total, _TOTAL_LIMITS.get((machine, way), _TOTAL_LIMIT)))
        gap = ratio(ours, theirs, lambda run: run.gap_ms) if way in _VIRSH else None
        if gap is not None:
            found.append(Verdict("gap", case, way, gap, _GAP_LIMIT))
    return found


def _median_seconds(runs: Sequence[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def _alone(case: str, ours: Sequence[Run]) -> list[Verdict]:
    found = []
    outside, seconds = median(ours, lambda run: run.outside), _median_seconds(ours)
    wire = statistics.median(run.wire_ratio for run in ours)
    if outside is not None:
        found.append(Verdict("outside", case, None, outside, _OUTSIDE_SECONDS))
        if seconds >= _MINUTE:
            found.append(Verdict("share", case, None, outside / seconds, _OUTSIDE_SHARE))
    found.append(Verdict("wire", case, None, wire, _WIRE_LIMIT))
    return found
