"""What must hold whatever breaks (design.md, section 6), as pure rules over what was seen in a run.

Each violation is a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Optional

from constant import ExitCode
from tests.lab.witness import Tick, WitnessReport

UNLOCKED_SECONDS = 60.0
# Between two looks anything may happen; what was seen is no older than that.
BLIND_SECONDS = 2.0
SOURCE, DESTINATION = "node1", "node2"


@dataclass(frozen=True)
class Sample:
    """How libvirt on one host says the VM is: asked at `at`, answered at `until` (monotonic clock)."""

    at: float
    until: float
    host: str
    state: str
    locked: bool


@dataclass(frozen=True)
class RunRecord:
    """One run, for the table and for JSON."""

    seed: int
    fault: str
    moment: str
    delay: float = 0.0
    variant: str = ""
    reached: bool = False
    """Whether the step began and there was something to break, so that the fault happened."""
    exit_code: Optional[int] = None
    """Of the admin's first command; None if it was killed."""
    recovery: str = ""
    """How the job was brought to its end after that: nothing, `resume`, or `alone`."""
    final_exit_code: Optional[int] = None
    home: str = ""
    """The host that has the VM at the end."""
    stuck_seconds: float = 0.0
    """The longest time from the fault on for which the VM neither ran unlocked at the source nor at the destination."""
    longest_gap_ms: float = 0.0
    settled_seconds: float = 0.0
    """From the end of the command (and of the fault) until nothing of the job was left."""
    seconds: float = 0.0
    crashes: int = 0
    """How often the run was repeated because the emulator had crashed the guest's kernel."""
    violations: tuple[str, ...] = ()
    evidence: str = ""

    @property
    def outcome(self) -> str:
        """In a word or two, for the table."""
        words = "killed" if self.exit_code is None else f"exit {self.exit_code}"
        if self.recovery:
            words += f", {self.recovery} {self.final_exit_code if self.final_exit_code is not None else ''}".rstrip()
        return f"{words} -> {self.home or '?'}"

    def as_json(self) -> dict[str, object]:
        """For a file of results."""
        return {**asdict(self), "outcome": self.outcome}


# Ticks.


def crossings(ticks: Sequence[Tick]) -> list[str]:
    """The hosts in the order in which the guest ticked on them."""
    order: list[str] = []
    for tick in ticks:
        if not order or order[-1] != tick.host:
            order.append(tick.host)
    return order


def of_ticks(ticks: Sequence[Tick]) -> list[str]:
    """It may go from the source to the destination, once; and no number comes twice."""
    found = []
    order = crossings(ticks)
    if order not in ([], [SOURCE], [DESTINATION], [SOURCE, DESTINATION]):
        found.append(f"the guest ticked on {', then on '.join(order)}: two copies ran, or it went back")
    repeated = [after.number for before, after in zip(ticks, ticks[1:]) if after.number <= before.number]
    if repeated:
        found.append(f"{len(repeated)} tick(s) came again, the first is {repeated[0]}: two copies ran")
    return found


def of_witness(report: WitnessReport, *, disk_was_broken: bool) -> list[str]:
    """All that the guest's disk had acknowledged is on the disk of the host that has it."""
    found = []
    if report.missing_records:
        found.append(
            f"{report.missing_records} of {report.required_records} acknowledged records are not on {report.image}, "
            f"the first is {report.first_missing}")
    if report.failed_writes and not disk_was_broken:
        found.append(f"{report.failed_writes} writes failed in the guest")
    return found


# What libvirt said.


def longest_stuck(samples: Iterable[Sample], fault_at: float) -> float:
    """The longest time after the fault for which the VM neither ran unlocked at the source nor at the destination.

    A time that had begun before the fault counts from the fault on. One that lasts until the end counts to the last
    look.
    """
    ordered = sorted(samples, key=lambda sample: sample.until)
    latest: dict[str, Sample] = {}
    since: Optional[float] = None
    longest = 0.0
    for sample in ordered:
        latest[sample.host] = sample
        if is_well(latest):
            if since is not None:
                longest = max(longest, sample.until - max(since, fault_at))
            since = None
        elif since is None:
            since = sample.at
    if since is not None and ordered:
        longest = max(longest, ordered[-1].until - max(since, fault_at))
    return max(longest, 0.0)


def is_well(latest: Mapping[str, Sample]) -> bool:
    """Whether the VM runs and is not locked at the source, or runs at the destination."""
    here, there = latest.get(SOURCE), latest.get(DESTINATION)
    return (here is not None and here.state == "running" and not here.locked) or (
        there is not None and there.state == "running")


def of_samples(samples: Iterable[Sample]) -> list[str]:
    """Never were two copies seen to run: one seen before and after the other was counts, once looks overlap."""
    ordered = sorted(samples, key=lambda sample: sample.until)
    for host, other in ((SOURCE, DESTINATION), (DESTINATION, SOURCE)):
        mine = [sample for sample in ordered if sample.host == host]
        for before, after in zip(mine, mine[1:]):
            if before.state == after.state == "running" and any(
                    sample.host == other and sample.state == "running"
                    and before.until < sample.at and sample.until < after.at for sample in ordered):
                return [f"libvirt on {host} and on {other} both said that it runs"]
    return []


def of_stuck(seconds: float, *, judged: bool) -> list[str]:
    """Within a minute it is unlocked."""
    if judged and seconds > UNLOCKED_SECONDS:
        return [f"the VM was stuck for {seconds:.1f} s, more than {UNLOCKED_SECONDS:.0f} s"]
    return []


# What the tool said.


def of_exit(code: Optional[int], stderr: str) -> list[str]:
    """Some exits are never right."""
    if code == ExitCode.INTERNAL:
        return [f"the command ended with an unexpected error: {stderr[-300:]}"]
    if code is not None and code not in list(ExitCode):
        return [f"the command ended with {code}, which the README does not know"]
    if "Traceback" in stderr:
        return [f"the command ended in a traceback: {stderr[-300:]}"]
    return []


def of_claim(code: Optional[int], states: Mapping[str, str], said: str = "running") -> list[str]:
    """What an exit code says of the VM is true; `states` are those seen right after it, by host.

    Of one that has moved the result may have `said` that it is shut off since.
    """
    here, there = states.get(SOURCE, "unknown"), states.get(DESTINATION, "unknown")
    if code == ExitCode.MOVED:
        said = "running"
    if code in (ExitCode.MOVED, ExitCode.MOVED_INCOMPLETE) and there not in (said, "unknown"):
        return [f"exit {code} said that it is {said} at the destination, where it is {there} (at the source {here})"]
    if code in (ExitCode.INPUT, ExitCode.REFUSED, ExitCode.NO_CONTACT, ExitCode.ROLLED_BACK) and here not in (
            "running", "unknown"):
        return [f"exit {code} said that it runs at the source, where it is {here} (at the destination {there})"]
    return []


def of_recovery(recovery: str, code: Optional[int], *, healed: bool) -> list[str]:
    """Once all is healed, `resume` brings a job to an end that it knows."""
    if recovery == "resume" and healed and code not in (
            ExitCode.MOVED, ExitCode.MOVED_INCOMPLETE, ExitCode.ROLLED_BACK):
        return [f"all was healed and resume ended with {code}"]
    return []


def of_job(outcome: Optional[str], home: str, *, began: bool) -> list[str]:
    """What `list` says of the job at the end."""
    if not began:
        return []
    wanted = {SOURCE: ("rolled back", "nothing changed"), DESTINATION: ("moved", "moved, not finished")}.get(home, ())
    if outcome is None:
        return ["list says that the job has not ended, and nobody works on it"]
    if outcome not in wanted:
        return [f"list says that the job ended {outcome!r}, and the VM is on {home or 'neither host'}"]
    return []


def exactly_one(states: Mapping[str, str]) -> list[str]:
    """One host runs it, the other does not."""
    running = [host for host, state in states.items() if state == "running"]
    if len(running) == 2:
        return ["both hosts run it"]
    if not running:
        said = ", ".join(f"{host}: {state}" for host, state in sorted(states.items()))
        return [f"no host runs it ({said})"]
    other = next((state for host, state in states.items() if host not in running), "absent")
    if other == "paused":
        return [f"{running[0]} runs it, and the other host holds a paused copy"]
    return []


# What is left.


def of_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What was there before is as it was."""
    return [f"{path} was there before and {'has changed' if path in after else 'is gone'}"
            for path in sorted(before) if after.get(path) != before[path]]


def of_images(host: str, names: Iterable[str], guest: str, *, home: str) -> list[str]:
    """In the directory of images nothing but what was there and the VM's own, and that only where it may be."""
    found = []
    for name in sorted(names):
        if ".vmmigration-" in name or name.endswith((".part", ".new")):
            found.append(f"{host}: {name} is left")
        elif name.startswith(guest) and host == DESTINATION and home == SOURCE:
            found.append(f"{host}: {name} is left although the VM stayed")
        elif name.startswith(guest) and host == SOURCE and home == SOURCE and ".moved-" in name:
            found.append(f"{host}: {name} is called moved although the VM stayed")
        elif not name.startswith(guest):
            found.append(f"{host}: {name} is new")
    if home and host == home and not any(name.startswith(guest) for name in names):
        found.append(f"{host}: has the VM and no image of it")
    return found


def of_rules(host: str, before: str, after: str) -> list[str]:
    """The packet filter is as it was."""
    if before == after:
        return []
    added = [line.strip() for line in after.splitlines() if line not in before.splitlines()]
    return [f"{host}: the packet filter has changed: {'; '.join(added)[:300] or 'rules are gone'}"]


# The table.


def table(records: Sequence[RunRecord]) -> str:
    """fault x step -> outcomes, the longest time to unlocked, the guest's longest gap, violations."""
    rows = [("fault", "step", "runs", "outcomes", "unlocked s", "gap ms", "settled s", "violations")]
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.fault, record.moment), []).append(record)
    for (fault, moment), group in sorted(groups.items()):
        counted: dict[str, int] = {}
        for record in group:
            outcome = record.outcome if record.reached else f"no fault, {record.outcome}"
            counted[outcome] = counted.get(outcome, 0) + 1
        outcomes = "; ".join(f"{count} x {outcome}" for outcome, count in sorted(
            counted.items(), key=lambda item: (-item[1], item[0])))
        rows.append((
            fault, moment, str(len(group)), outcomes, _largest(record.stuck_seconds for record in group),
            _largest((record.longest_gap_ms for record in group), 0),
            _largest(record.settled_seconds for record in group),
            str(sum(bool(record.violations) for record in group) or "")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", summary(records)])


def _largest(values: Iterable[float], digits: int = 1) -> str:
    found = max(values, default=math.nan)
    return f"{found:.{digits}f}"


def summary(records: Sequence[RunRecord]) -> str:
    """The last lines: how many, and each violation with all that is needed to see it again."""
    bad = [record for record in records if record.violations]
    judged = [record for record in records if not record.fault.startswith("reboot")]
    lines = [
        f"{len(records)} runs, {sum(record.reached for record in records)} with their fault; "
        f"{sum(record.crashes for record in records)} repeated because the emulator crashed the guest's kernel",
        f"longest time to unlocked {_largest(record.stuck_seconds for record in judged)} s (reboots not judged), "
        f"guest's longest gap {_largest((record.longest_gap_ms for record in judged), 0)} ms",
        f"violations: {sum(len(record.violations) for record in bad)} in {len(bad)} runs"]
    for record in bad:
        lines.append(f"  seed {record.seed}: {record.fault} in {record.moment} after {record.delay:.2f} s "
                     f"[{record.variant}] {record.outcome}; {record.evidence}")
        lines += [f"    - {violation}" for violation in record.violations]
    return "\n".join(lines)
