"""`script/soak N`: faults for as long as wanted, in several labs side by side, and a table of what came of them."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, Optional

from tests.faults.faults import FAULTS, MOMENTS
from tests.faults.ground import Ground, ground
from tests.faults.invariants import RunRecord, summary, table
from tests.faults.scenario import Plan, plan, run
from tests.lab import LabError

EXIT_VIOLATIONS = 3
# A lab that fails so often in a row is no lab.
_LAB_FAILURES = 3


@dataclass(frozen=True)
class Order:
    """One run that is wanted."""

    seed: int
    fault: Optional[str] = None
    moment: Optional[str] = None
    keep: bool = False
    """Whether its evidence is kept though nothing was violated."""

    def plan(self) -> Plan:
        """What its seed decides."""
        return plan(self.seed, self.fault, self.moment)


class FreshGround:
    """A lab for one run after another, made anew after one that went wrong."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._stack = contextlib.ExitStack()
        self._ground: Optional[Ground] = None

    def __enter__(self) -> FreshGround:
        return self

    def __exit__(self, *_what: object) -> None:
        self._stack.close()

    def run(self, order: Order) -> RunRecord:
        """Do one run. What goes wrong with the lab itself is its violation: nothing is passed over in silence."""
        chosen = order.plan()
        try:
            if self._ground is None:
                self._ground = self._stack.enter_context(ground(self._prefix))
            record = run(self._ground, chosen, keep=order.keep)
        except Exception as error:
            record = RunRecord(
                chosen.seed, chosen.fault.name, chosen.moment.name, delay=chosen.delay, variant=chosen.variant,
                violations=(f"the run itself failed: {type(error).__name__}: {error}",),
                evidence=traceback.format_exc()[-1500:])
        if record.violations:
            self._ground = None
            with contextlib.suppress(LabError, OSError):
                self._stack.close()
            self._stack = contextlib.ExitStack()
        return record


def orders(
    count: int, seed: int, fault: Optional[str], moment: Optional[str], *, keep: bool = False,
) -> Iterator[Order]:
    """The runs that are wanted: each fault in turn, those that last for minutes in every fourth turn only."""
    names = [name for name in sorted(FAULTS) if moment is None or moment in FAULTS[name].moments]
    quick = [name for name in names if not FAULTS[name].long] or names
    turns = itertools.chain.from_iterable(itertools.cycle((names, quick, quick, quick)))
    for number, name in zip(range(seed, seed + count), turns):
        yield Order(number, fault or name, moment, keep)


def _work(prefix: str, wanted: Any, results: Any) -> None:
    """In a process of its own: a lab, and runs until there are no more orders."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with FreshGround(prefix) as fresh:
        while True:
            order = wanted.get()
            if order is None:
                return
            results.put(fresh.run(order))


def run_all(wanted: Sequence[Order], labs: int, prefix: str) -> Iterator[RunRecord]:
    """Do these runs in so many labs side by side; yields each result as it comes."""
    context = multiprocessing.get_context("spawn")
    queue, results = context.Queue(), context.Queue()
    for order in [*wanted, *[None] * labs]:
        queue.put(order)
    workers = [context.Process(target=_work, args=(f"{prefix}-{index + 1}", queue, results)) for index in range(labs)]
    for worker in workers:
        worker.start()
    left = len(wanted)
    try:
        while left:
            try:
                yield results.get(timeout=5)
                left -= 1
            except Empty:
                if not any(worker.is_alive() for worker in workers):
                    return
    finally:
        for worker in workers:
            if left:
                worker.terminate()
            worker.join(120)


def _line(record: RunRecord) -> str:
    """One run, as soon as it is over."""
    return "\n    ".join([
        f"seed {record.seed} {record.fault} in {record.moment}: {record.outcome}, stuck {record.stuck_seconds:.1f} s, "
        f"{record.seconds:.0f} s",
        *(f"VIOLATION {text}" for text in record.violations), *([record.evidence] if record.violations else [])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="script/soak", description=__doc__)
    parser.add_argument("count", type=int, metavar="N", help="how many runs")
    parser.add_argument("--seed", type=int, default=1, help="of the first run; the others count on (default: 1)")
    parser.add_argument("--labs", type=int, default=2, metavar="J", help="labs side by side (default: 2)")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="this fault alone")
    parser.add_argument("--step", choices=sorted(MOMENTS), help="in this step alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each run as a line of JSON")
    parser.add_argument("--keep", action="store_true", help="keep the evidence of every run, not only of violations")
    parser.add_argument("--prefix", default="soak", help="of the labs' names (default: soak)")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command. Returns its exit code: 3 if something was violated."""
    options = _parser().parse_args(argv)
    wanted = list(orders(options.count, options.seed, options.fault, options.step, keep=options.keep))
    began = time.monotonic()
    records: list[RunRecord] = []
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(options.json.open("a")) if options.json is not None else None
        try:
            for record in run_all(wanted, options.labs, options.prefix):
                records.append(record)
                if stream is not None:
                    stream.write(json.dumps(record.as_json()) + "\n")
                    stream.flush()
                print(f"{len(records)}/{len(wanted)} {time.monotonic() - began:6.0f} s  {_line(record)}", flush=True)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
    print(table(records) if records else summary(records))
    return EXIT_VIOLATIONS if any(record.violations for record in records) or len(records) < len(wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
