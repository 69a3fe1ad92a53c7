"""Measures the datagram layer: sealing, an agent's answers while a job runs, and very many agents at once.

Prints a table with the goal beside each figure: the best and the median of several runs, because whatever else the
machine does makes them only worse. The median decides. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.latency import accepted_after, agent_and_client, append_seconds, job_running, load, percentile
from bench.processes import started
from bench.samples import MASTER, request_of_size
from constant import VERSION
from wire.datagram import Direction, keyring, seal, unseal
from wire.message import decode, encode

_PERCENTILES = (("p50", 50.0), ("p99", 99.0), ("longest", 100.0))
_COLUMNS = "{:52} {:>11} {:>11} {:>11}  {}"


@dataclass(frozen=True)
class Figure:
    """One line of the table: what came out of each run. With a goal, less than that is wanted."""

    what: str
    unit: str
    runs: tuple[float, ...]
    goal: float | None = None
    more_is_better: bool = False

    @property
    def best(self) -> float:
        """The run that was disturbed least."""
        return max(self.runs) if self.more_is_better else min(self.runs)

    @property
    def median(self) -> float:
        """The run in the middle."""
        return statistics.median(self.runs)

    @property
    def missed(self) -> bool:
        """Whether there is a goal, and it is not reached."""
        return self.goal is not None and self.median >= self.goal

    def line(self) -> str:
        """The line."""
        goal = "" if self.goal is None else f"< {_number(self.goal)} {self.unit}"
        figures = (f"{_number(figure)} {self.unit}" for figure in (self.best, self.median))
        return _COLUMNS.format(self.what, goal, *figures, self._verdict()).rstrip()

    def _verdict(self) -> str:
        if self.goal is None:
            return ""
        if not self.missed:
            return "met"
        return "MISSED" if self.best >= self.goal else "MISSED, but for the best run"


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 or figure == int(figure) else f"{figure:.3g}"


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    sealing_runs: int
    sealed_a_run: int
    latency_runs: int
    requests_a_run: int
    appends_a_run: int
    fleet_runs: int
    fleet: int = 1000


_FULL = Effort(
    sealing_runs=9, sealed_a_run=5000, latency_runs=5, requests_a_run=500, appends_a_run=500, fleet_runs=5)
# For a look within ten seconds: too few requests for a p99 to lean on.
_QUICK = Effort(
    sealing_runs=5, sealed_a_run=500, latency_runs=1, requests_a_run=50, appends_a_run=50, fleet_runs=1)


# 1. Sealing.


def sealing(effort: Effort) -> Iterator[Figure]:
    """What one datagram of 1 KiB costs: the processor's time, so that others who use it do not count."""
    request = request_of_size(1024)
    body = encode(request)
    keys = keyring((MASTER,))

    def seal_and_open() -> object:
        return unseal(seal(MASTER, Direction.REQUEST, body), keys, Direction.REQUEST)

    def whole_way() -> object:
        return decode(unseal(seal(MASTER, Direction.REQUEST, encode(request)), keys, Direction.REQUEST)[1])

    for what, action in (("seal + open", seal_and_open), ("encode + seal + open + decode", whole_way)):
        runs = _microseconds(action, effort)
        yield Figure(f"{what}, 1 KiB request", "µs", runs, goal=60.0)
        yield Figure(f"{what}, per second", "", tuple(1e6 / each for each in runs), more_is_better=True)


def _microseconds(action: Callable[[], object], effort: Effort) -> tuple[float, ...]:
    seconds = timeit.repeat(action, timer=time.process_time, repeat=effort.sealing_runs, number=effort.sealed_a_run)
    return tuple(each / effort.sealed_a_run * 1e6 for each in seconds)


# 2. How soon a request is accepted.


def latency(effort: Effort, directory: Path, raw: dict[str, list[list[float]]]) -> Iterator[Figure]:
    """From a request to `accepted`, over loopback and with a journal in `directory`; each time goes to `raw`."""
    appends = "journal's append, synced"
    raw[f"{appends}, idle"] = [append_seconds(_new(directory), effort.appends_a_run)]
    with load(_new(directory)):
        raw[f"{appends}, a job's load"] = [append_seconds(_new(directory), effort.appends_a_run)]
    for name in ("accepted, idle agent", "accepted, a job runs"):
        raw[name] = []
    others = []
    for run in range(effort.latency_runs):
        began, elsewhere = time.monotonic(), _used_by_others()
        with agent_and_client(_new(directory)) as client:
            raw["accepted, idle agent"].append(accepted_after(client, effort.requests_a_run, run))
            with job_running(client, _new(directory)):
                raw["accepted, a job runs"].append(accepted_after(client, effort.requests_a_run, run))
        others.append((_used_by_others() - elsewhere) / (time.monotonic() - began))
    for name, runs in raw.items():
        for label, percent in _PERCENTILES:
            milliseconds = tuple(percentile(run, percent) * 1e3 for run in runs)
            goal = 20.0 if (name, label) == ("accepted, a job runs", "p99") else None
            yield Figure(f"{name}: {label}", "ms", milliseconds, goal)
    # What tells a slow agent from a busy machine.
    yield Figure("processors that others used meanwhile", "", tuple(others))


def _used_by_others() -> float:
    """The processors' seconds since boot that went neither to this process nor to those that it has seen end."""
    user, nice, system = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=4)[1:4]
    own = os.times()
    used = sum(map(int, (user, nice, system))) / os.sysconf("SC_CLK_TCK")
    return used - own.user - own.system - own.children_user - own.children_system


def _new(directory: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=directory))


# 3. Very many agents.


def fleet(effort: Effort) -> Iterator[Figure]:
    """One controller that greets very many agents at once."""
    seconds, memory, asked, answered = [], [], [], []
    for _ in range(effort.fleet_runs):
        with started("bench.fleet", "agents", effort.fleet) as agents:
            port = agents.line()["port"]
            with started("bench.fleet", "controller", port, effort.fleet) as controller:
                found = controller.line()
            agents.end()
            counts = agents.line()
        if found["answered"] != effort.fleet:
            raise RuntimeError(f"only {found['answered']} of {effort.fleet} agents answered")
        seconds.append(found["seconds"])
        memory.append(found["peak_memory"] / 1e6)
        asked.append(counts["received"])
        answered.append(counts["sent"])
    what = f"HELLO to {effort.fleet:,} agents"
    yield Figure(what, "s", tuple(seconds), goal=5.0)
    yield Figure(f"{what}: controller's peak memory", "MB", tuple(memory), goal=60.0)
    yield Figure(f"{what}: datagrams to the agents", "", tuple(asked))
    yield Figure(f"{what}: datagrams from the agents", "", tuple(answered))


# The command.


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="script/bench", description="Measures the datagram layer. Exit code 1 if a goal is missed.")
    parser.add_argument("--quick", action="store_true", help="a look within ten seconds")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the raw figures there")
    parser.add_argument("--directory", metavar="DIR", type=Path, default=Path("/var/tmp"),  # noqa: S108 - only its disk
                        help="a directory on the disk that an agent's journal would be on (default: %(default)s)")
    options = parser.parse_args(argv)
    effort = _QUICK if options.quick else _FULL
    figures = []
    raw: dict[str, list[list[float]]] = {}
    before = os.getloadavg()
    print(_COLUMNS.format("", "goal", "best", "median", ""))
    with tempfile.TemporaryDirectory(prefix="vmmigration-bench-", dir=options.directory) as directory:
        for measured in (sealing(effort), fleet(effort), latency(effort, Path(directory), raw)):
            for figure in measured:
                figures.append(figure)
                print(figure.line(), flush=True)
    if options.json:
        options.json.write_text(json.dumps({
            "version": VERSION, "python": platform.python_version(), "kernel": platform.release(),
            "processors": os.cpu_count(), "load_before": before, "load_after": os.getloadavg(),
            "figures": [{"what": figure.what, "unit": figure.unit, "goal": figure.goal, "best": figure.best,
                         "median": figure.median, "missed": figure.missed, "runs": figure.runs}
                        for figure in figures],
            "seconds": raw,
        }, indent=1) + "\n", encoding="utf-8")
    return int(any(figure.missed for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
