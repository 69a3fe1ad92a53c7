"""The witness outside the guest: notes when each of its ticks arrives at which host, and checks its records on disk.

A collector process per guest polls the serial logs of all nodes; the report is made from what it has noted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .guest import FILE_SYSTEM_BYTES, MEBIBYTE, RECORD_BYTES, RECORDS_FILE, RING_RECORDS, serial_log
from .hosts import Host
from .lab import Lab
from .state import MARKER, LabError, ProcessIdentity

#: How each report of a Linux kernel about itself goes on after the registers.
KERNEL_TRACE = "</TASK>"
#: How often the collector looks for new ticks; the report's times are this exact.
POLL_SECONDS = 0.002
#: A kernel that is sound halts now and then within this many looks, so many seconds apart, and has a timer set then.
_HANG_LOOKS, _HANG_SECONDS = 20, 0.1
#: The part of the time that a processor works at least which goes round in a loop, on a machine with two.
_BUSY = 0.25
_HALTED = re.compile(r"\bHLT=(\d)")
_TIMER = re.compile(r"\bcurrent_count = (\d+)")
_PROCESSOR_TIME = re.compile(r"\bvcpu\.0\.time=(\d+)")
_TICK = re.compile(rb"t (\d{10})\r?")
_FAILED_WRITE = re.compile(rb"e (\d{10})\r?")


@dataclass(frozen=True)
class Tick:
    """One number on a serial port: when it was seen (host's monotonic clock, seconds), where, and which."""

    seconds: float
    host: str
    number: int


@dataclass(frozen=True)
class WitnessReport:
    """What the witness has to say.

    `gap_at_seconds` counts from the first tick. `repeated_ticks` are those whose number is not above the one before:
    the sign of two running copies. `missing_records` and `first_missing` are None if no disk was read.
    """

    name: str
    ticks: int
    first_tick: int
    last_tick: int
    last_tick_age_ms: float
    host: str
    median_interval_ms: float
    longest_gap_ms: float
    gap_before_tick: int
    gap_after_tick: int
    gap_from_host: str
    gap_to_host: str
    gap_at_seconds: float
    repeated_ticks: int
    failed_writes: int
    image: str | None
    required_records: int
    missing_records: int | None
    first_missing: int | None

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, nothing failed and never two copies ticked."""
        return not (self.missing_records or self.failed_writes or self.repeated_ticks)

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """Return the report for a person."""
        where = (
            f"on {self.gap_from_host}"
            if self.gap_from_host == self.gap_to_host
            else f"from {self.gap_from_host} to {self.gap_to_host}"
        )
        lines = [
            f"witness {self.name}: {self.ticks} ticks ({self.first_tick} to {self.last_tick}), "
            f"usually {self.median_interval_ms:.1f} ms apart",
            f"longest gap: {self.longest_gap_ms:.0f} ms, between ticks {self.gap_after_tick} and "
            f"{self.gap_before_tick}, {where}, {self.gap_at_seconds:.1f} s after the first tick",
            f"last tick: {self.last_tick} on {self.host}, {self.last_tick_age_ms:.0f} ms ago",
        ]
        if self.failed_writes:
            lines.append(f"writes that failed in the guest: {self.failed_writes}")
        if self.repeated_ticks:
            lines.append(f"ticks whose number had been there BEFORE (two running copies?): {self.repeated_ticks}")
        if self.missing_records is None:
            lines.append("records on disk: not looked at")
        elif self.missing_records == 0:
            lines.append(f"records on disk: all {self.required_records} that were acknowledged ({self.image})")
        else:
            lines.append(
                f"records on disk: {self.missing_records} of {self.required_records} acknowledged ones are MISSING, "
                f"the first is {self.first_missing} ({self.image})"
            )
        return "\n".join(lines)


class GuestKernelCrashError(LabError):
    """The guest's own kernel crashed or hangs, which the emulator now and then does to a guest that is migrated.

    Without KVM, QEMU before 9.0 misses pages that the guest has written between two passes, whoever asked for the
    migration (GuestSpec.domain_xml tells why, and what makes it rare). A test that this happens to is run once more;
    see script/test.
    """


class Witness:
    """The account of one guest in a lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        """Name the guest; its collector need not run yet."""
        self.lab = lab
        self.name = name
        self._directory = lab.directory / "witness"
        self._notes = self._directory / f"{name}.ticks"
        self._pid_file = self._directory / f"{name}.pid"
        self._seen: list[Tick] = []
        self._failed_writes = 0
        self._read_to = 0

    def start(self) -> None:
        """Start the collector, which ends with the lab; does nothing if it runs."""
        identity = ProcessIdentity.load(self._pid_file)
        if identity is not None and identity.alive():
            return
        self._directory.mkdir(exist_ok=True)
        logs = [f"{host.name}={host.path(serial_log(self.name))}" for host in self.lab.nodes]
        command = [sys.executable, "-m", "tests.lab.witness", "--notes", str(self._notes), *logs]
        root = Path(__file__).resolve().parents[2]
        environment = {"PATH": "/usr/bin:/bin", MARKER: self.lab.prefix, "PYTHONDONTWRITEBYTECODE": "1"}
        with (self._directory / f"{self.name}.log").open("a") as errors:
            process = subprocess.Popen(
                command,
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        ProcessIdentity.of(process.pid).save(self._pid_file)
        # It is to outlive this process, which is not going to wait for it.
        process.returncode = 0

    def end(self) -> None:
        """End the collector, and take all that it noted and the guest printed away: a next guest may have its name.

        One that is left costs some percent of a processor until the lab ends.
        """
        identity = ProcessIdentity.load(self._pid_file)
        if identity is not None and identity.send(signal.SIGKILL):
            identity.wait_for_end()
        for path in [self._pid_file, self._notes, *(host.path(serial_log(self.name)) for host in self.lab.nodes)]:
            path.unlink(missing_ok=True)

    def ticks(self) -> list[Tick]:
        """Return what the collector has noted, in order of arrival; failed writes are left out."""
        with contextlib.suppress(FileNotFoundError), self._notes.open("rb") as stream:
            stream.seek(self._read_to)
            # The last line may be half written: it is read the next time.
            complete, newline, _ = stream.read().rpartition(b"\n")
            self._read_to += len(complete) + len(newline)
            for line in complete.decode().splitlines():
                nanoseconds, host, number, kind = line.split()
                if kind == "t":
                    self._seen.append(Tick(int(nanoseconds) / 1e9, host, int(number)))
                else:
                    self._failed_writes += 1
        return list(self._seen)

    def wait_for_ticks(self, count: int, timeout: float = 60.0) -> int:
        """Wait until `count` more ticks have come than there are now; returns the last one's number.

        Raises LabError, with the end of the guest's serial output, after `timeout` seconds; GuestKernelCrashError
        if the guest's kernel has printed a trace, or is broken otherwise (_hangs_on).
        """
        deadline = time.monotonic() + timeout
        wanted = len(self.ticks()) + count
        while True:
            seen = self.ticks()
            if len(seen) >= wanted:
                return seen[-1].number
            if time.monotonic() > deadline:
                output = self._output()
                crashed = KERNEL_TRACE in output or any(self._hangs_on(host) for host in self.lab.nodes)
                error = GuestKernelCrashError if crashed else LabError
                raise error(f"{self.name}: {len(seen)} ticks after {timeout:.0f} s, not {wanted}\n{output}\n"
                            + "\n".join(self._looked_at(host) for host in self.lab.nodes))
            time.sleep(0.05)

    def ticking(self, seconds: float = 0.5) -> bool:
        """Say whether a tick arrives within that time."""
        try:
            self.wait_for_ticks(1, seconds)
        except LabError:
            return False
        return True

    def _hangs_on(self, host: Host) -> bool:
        """Whether the guest's kernel is broken there: it goes round in a loop, or waits with no timer that would end.

        QEMU without KVM loses what a guest writes in the moment of a pass over its memory (mended in QEMU 9.0,
        "physmem: Fix migration dirty bitmap coherency with TCG memory access"; seen here with virsh alone, in one of
        three moves with a second pass): the timers' own queue, most often. A guest that waits for a disk has its
        timers, and one that waits for a page of its memory takes no processor's time.
        """
        if self._virsh(host, "domstate", self.name, check=False).strip() != "running":
            return False
        began, used_before = time.monotonic(), self._processor_seconds(host)
        looks = set()
        for _look in range(_HANG_LOOKS):
            registers = _HALTED.search(self._monitor(host, "info registers"))
            timer = _TIMER.search(self._monitor(host, "info lapic"))
            if registers is None or timer is None:
                return False
            looks.add((registers.group(1), timer.group(1) == "0"))
            time.sleep(_HANG_SECONDS)
        busy = self._processor_seconds(host) - used_before > (time.monotonic() - began) * _BUSY
        return (busy and not any(halted == "1" for halted, _without in looks)) or looks == {("1", True)}

    def _processor_seconds(self, host: Host) -> float:
        """How long the guest's processor has worked there."""
        found = _PROCESSOR_TIME.search(self._virsh(host, "domstats", "--vcpu", self.name, check=False))
        return int(found.group(1)) / 1e9 if found is not None else 0.0

    def _monitor(self, host: Host, command: str) -> str:
        return self._virsh(host, "qemu-monitor-command", self.name, "--hmp", command, check=False)

    def _looked_at(self, host: Host) -> str:
        """What libvirt and QEMU say of the guest there, to tell why it is silent."""
        state = self._virsh(host, "domstate", "--reason", self.name, check=False).strip()
        looks = [self._monitor(host, command) for command in (
            "info registers", "info registers", "info lapic", "info block", "info status")]
        return f"--- {host.name}: {state}\n" + "".join(looks)

    @staticmethod
    def _virsh(host: Host, *words: str, check: bool = True) -> str:
        return host.run(["virsh", "-q", "-c", "qemu:///system", *words], check=check).stdout

    def _output(self) -> str:
        """Return the end of what the guest has printed on each node."""
        parts = []
        for host in self.lab.nodes:
            log = host.path(serial_log(self.name))
            if log.exists():
                parts.append(f"--- {host.name}: {log.read_text(errors='replace')[-1000:]}")
        return "\n".join(parts) or "(no serial output at all)"

    def report(self, *, image: str | None = None, host: Host | None = None, disk: bool = True) -> WitnessReport:
        """Return the account so far.

        With `disk` the records are looked for in the disk image: `image` (a path in `host`), or what the domain has
        as vda on the host that ticked last. A running guest's image is read as it is: of it those records are
        required that were acknowledged before the reading began. Raises LabError if there was no tick.
        """
        seen = self.ticks()
        if not seen:
            raise LabError(f"{self.name}: the witness has not seen a tick\n{self._output()}")
        now = time.monotonic()
        ticking_host = self.lab.host(seen[-1].host)
        missing: list[int] | None = None
        if disk or image:
            host = host or ticking_host
            image = image or self._disk_of_domain(host)
            missing = missing_records(host.path(image), [tick.number for tick in seen])
        return self._summary(seen, now, f"{host.name}:{image}" if host and image else None, missing)

    def _summary(self, seen: list[Tick], now: float, image: str | None, missing: list[int] | None) -> WitnessReport:
        """Put the report together."""
        gaps = [after.seconds - before.seconds for before, after in zip(seen, seen[1:])] or [0.0]
        index = max(range(len(gaps)), key=gaps.__getitem__)
        before, after = seen[index], seen[min(index + 1, len(seen) - 1)]
        repeated = sum(1 for before, after in zip(seen, seen[1:]) if after.number <= before.number)
        return WitnessReport(
            name=self.name,
            ticks=len(seen),
            first_tick=seen[0].number,
            last_tick=seen[-1].number,
            last_tick_age_ms=(now - seen[-1].seconds) * 1000,
            host=seen[-1].host,
            median_interval_ms=sorted(gaps)[len(gaps) // 2] * 1000,
            longest_gap_ms=gaps[index] * 1000,
            gap_before_tick=after.number,
            gap_after_tick=before.number,
            gap_from_host=before.host,
            gap_to_host=after.host,
            gap_at_seconds=before.seconds - seen[0].seconds,
            repeated_ticks=repeated,
            failed_writes=self._failed_writes,
            image=image,
            required_records=len(seen),
            missing_records=None if missing is None else len(missing),
            first_missing=missing[0] if missing else None,
        )

    def _disk_of_domain(self, host: Host) -> str:
        """Return the source of the domain's disk vda as a host knows it."""
        for line in self._virsh(host, "domblklist", self.name).splitlines():
            target, _, source = line.strip().partition(" ")
            if target == "vda":
                return source.strip()
        raise LabError(f"{host.full_name}: {self.name} has no disk vda")


# --- the records on disk -------------------------------------------------------------------------------------------


def missing_records(image: Path, acknowledged: Sequence[int]) -> list[int]:
    """Return those of the acknowledged records that an image (of any format, in use or not) does not hold.

    A record that the ring has overwritten counts as there if its place holds a later one. Raises LabError if the
    image or its file system cannot be read.
    """
    records = _read_ring(image)
    missing = []
    for number in acknowledged:
        place = ((number - 1) % RING_RECORDS) * RECORD_BYTES
        record = records[place : place + RECORD_BYTES]
        found = _record_number(record)
        if found != number and (found < number or (found - number) % RING_RECORDS):
            missing.append(number)
    return missing


def _record_number(record: bytes) -> int:
    """Return the number of a whole record, -1 for anything else."""
    match = re.fullmatch(rb"(\d{10}) (\d{20})\n", record)
    return int(match.group(1)) if match and int(match.group(1)) == int(match.group(2)) else -1


def _read_ring(image: Path) -> bytes:
    """Return the ring of records from an image's file system."""
    with tempfile.TemporaryDirectory(prefix="vmmigration-lab-") as name:
        front, ring = Path(name) / "front.raw", Path(name) / RECORDS_FILE
        # The front of the disk only: the rest may be many GiB. -U: the guest may be running.
        count = FILE_SYSTEM_BYTES // MEBIBYTE
        _tool(["qemu-img", "dd", "-U", "-O", "raw", "bs=1M", f"count={count}", f"if={image}", f"of={front}"])
        _tool(["debugfs", "-R", f"dump /{RECORDS_FILE} {ring}", str(front)])
        if not ring.exists():
            raise LabError(f"{image}: the witness's file system cannot be read")
        return ring.read_bytes()


def _tool(argv: list[str]) -> None:
    """Run a tool that reads images; raises LabError with what it said."""
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    result = subprocess.run(argv, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {result.stderr.strip()}")


# --- the collector -------------------------------------------------------------------------------------------------


class SerialLog:
    """A node's serial log of the guest, followed as it grows, also when it appears later or is begun anew."""

    def __init__(self, host: str, path: Path) -> None:
        """Name the log."""
        self._host = host
        self._path = path
        self._descriptor = -1
        self._identity = (0, 0)
        self._rest = b""
        self._next_look = 0.0

    def poll(self, now_ns: int) -> list[str]:
        """Return a note for each line that came since the last call."""
        if self._descriptor < 0 and not self._open():
            return []
        data = os.read(self._descriptor, 65536)
        if not data:
            self._follow_replacement(now_ns / 1e9)
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        notes = []
        for line in lines:
            for pattern, kind in ((_TICK, "t"), (_FAILED_WRITE, "e")):
                match = pattern.fullmatch(line)
                if match:
                    notes.append(f"{now_ns} {self._host} {int(match.group(1))} {kind}\n")
        return notes

    def _open(self) -> bool:
        """Open the log if it is there."""
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        except OSError:
            return False
        status = os.fstat(self._descriptor)
        self._identity = (status.st_dev, status.st_ino)
        self._rest = b""
        return True

    def _follow_replacement(self, now: float) -> None:
        """Reopen the log if another file stands in its place or it was cut; looks at most every 0.2 s."""
        if now < self._next_look:
            return
        self._next_look = now + 0.2
        with contextlib.suppress(OSError):
            status = os.stat(self._path)
            position = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            if (status.st_dev, status.st_ino) != self._identity or status.st_size < position:
                os.close(self._descriptor)
                self._descriptor = -1


def collect(notes: Path, logs: Sequence[SerialLog]) -> None:
    """Note each tick as it arrives, until the process is ended."""
    with notes.open("a", buffering=1) as stream:
        while True:
            now_ns = time.monotonic_ns()
            lines = [line for log in logs for line in log.poll(now_ns)]
            if lines:
                stream.write("".join(lines))
            time.sleep(POLL_SECONDS)


def main() -> None:
    """Collect: `witness --notes FILE HOST=LOG...`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("logs", nargs="+", metavar="HOST=LOG")
    arguments = parser.parse_args()
    pairs = [text.partition("=") for text in arguments.logs]
    collect(arguments.notes, [SerialLog(host, Path(path)) for host, _, path in pairs])


if __name__ == "__main__":
    main()
