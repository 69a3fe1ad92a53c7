"""Reads meters of two lab hosts while something runs: bytes on the wire, processor time and memory of processes.

A thread of its own looks at the wire and at what the command has said every few milliseconds, and at the processes some
times a second. From that, pure functions tell when bytes began to flow and which program took how much.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import Host

_WIRE_SECONDS = 0.005
_PROCESSES_SECONDS = 0.1
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
#: What tells a program by its command line where its name does not, as with two that Python runs.
_BY_WORDS = (
    ("vmmigration-agent.py", "agent"), ("vmmigration.py", "controller"), ("virt-ssh-helper", "virt-ssh-helper"))
_BY_NAME = ("qemu-system", "qemu-img", "libvirtd", "virtlogd", "virsh", "sshd", "ssh", "scp", "rsync")


# The wire.


def wire_bytes(table: str, interface: str = "eth0") -> int:
    """Bytes that an interface has received and sent, out of /proc/net/dev."""
    for line in table.splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == interface:
            fields = counts.split()
            return int(fields[0]) + int(fields[8])
    raise ValueError(f"no interface {interface}")


@dataclass(frozen=True)
class Mark:
    """When how many bytes had crossed. Seconds of the monotonic clock."""

    time: float
    bytes: int


def flowing_since(marks: Sequence[Mark], after: float, least: int) -> float | None:
    """The moment by which so many bytes had crossed since `after`; None if there never were."""
    base = None
    for mark in marks:
        if mark.time <= after or base is None:
            base = mark.bytes
        elif mark.bytes - base >= least:
            return mark.time
    return None


# Processes.


@dataclass(frozen=True)
class Usage:
    """What a process has used up to now: seconds of processor time, those of its children that have ended, bytes."""

    cpu: float
    children: float = 0.0
    peak: int = 0


def usage(stat: str, status: str = "") -> Usage:
    """Out of /proc/PID/stat and /proc/PID/status (VmHWM)."""
    fields = stat.rpartition(")")[2].split()
    user, system, children_user, children_system = (int(fields[place]) for place in (11, 12, 13, 14))
    peak = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    return Usage((user + system) / _TICKS_PER_SECOND, (children_user + children_system) / _TICKS_PER_SECOND, peak)


def program(name: str, words: str) -> str:
    """Which program a process is, by its name and its command line; `other` for what is not told apart."""
    for word, found in _BY_WORDS:
        if word in words:
            return found
    return next((known for known in _BY_NAME if name.startswith(known)), "other")


@dataclass
class Process:
    """One process that was seen: its first and its last usage, and whether it was there from the beginning."""

    program: str
    first: Usage
    last: Usage
    from_beginning: bool

    @property
    def cpu(self) -> float:
        """Seconds that it took meanwhile."""
        return self.last.cpu - (self.first.cpu if self.from_beginning else 0.0)

    @property
    def children(self) -> float:
        """The same of its children that have ended meanwhile."""
        return self.last.children - (self.first.children if self.from_beginning else 0.0)


@dataclass(frozen=True)
class Account:
    """What a program took on one host: processor time of its own and of its ended children, and its largest peak."""

    cpu: float
    children: float
    peak: int


def accounts(processes: Iterable[Process]) -> dict[str, Account]:
    """The sum for each program."""
    found: dict[str, Account] = {}
    for each in processes:
        sum_ = found.get(each.program, Account(0.0, 0.0, 0))
        found[each.program] = Account(
            sum_.cpu + each.cpu, sum_.children + each.children, max(sum_.peak, each.last.peak))
    return found


class ProcessTable:
    """The processes of one host, looked at again and again."""

    def __init__(self, host: Host) -> None:
        self._directory = Path(f"/proc/{host.init.pid}/root/proc")
        self.seen: dict[tuple[int, str], Process] = {}
        self._looked = False

    def reset_peaks(self) -> None:
        """Have the kernel forget the peaks of memory so far (5 in clear_refs, proc(5))."""
        for pid in self._pids():
            with contextlib.suppress(OSError):
                (self._directory / str(pid) / "clear_refs").write_text("5")

    def look(self) -> None:
        """Note what each process has used up to now."""
        for pid in self._pids():
            place = self._directory / str(pid)
            with contextlib.suppress(OSError):
                stat = (place / "stat").read_text()
                # A number may be used again by a process that began later.
                key = pid, stat.rpartition(")")[2].split()[19]
                now = usage(stat, (place / "status").read_text())
                known = self.seen.get(key)
                name = stat.partition("(")[2].rpartition(")")[0]
                if known is None or known.program == "other":
                    # It may have been seen between fork() and exec().
                    words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    kind = program(name, words)
                    known = known or Process(kind, now, now, not self._looked)
                    known.program = kind
                    self.seen[key] = known
                known.last = now
        self._looked = True

    def _pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self._directory) if name.isdigit()]


@dataclass(frozen=True)
class Said:
    """A line that the command wrote to its standard error, and when that was seen."""

    time: float
    text: str


@dataclass
class Meter:
    """Reads all that for the length of a `with`."""

    hosts: Sequence[Host]
    wire_host: Host
    """The one whose cable everything crosses."""
    errors: Path
    """The standard error of our command."""
    marks: list[Mark] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    tables: Mapping[str, ProcessTable] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _rest: str = ""
    _read_to: int = 0

    def __enter__(self) -> Meter:
        self.tables = {host.name: ProcessTable(host) for host in self.hosts}
        self._wire = Path(f"/proc/{self.wire_host.init.pid}/net/dev")
        for table in self.tables.values():
            table.reset_peaks()
            table.look()
        self._read_wire()
        # What an earlier command has said is not this one's.
        self.errors.write_text("")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_what: object) -> None:
        self._ended.set()
        self._thread.join()
        self._read_wire()
        self._read_errors()
        for table in self.tables.values():
            table.look()

    def _read(self) -> None:
        processes_at = time.monotonic() + _PROCESSES_SECONDS
        while not self._ended.wait(_WIRE_SECONDS):
            self._read_wire()
            self._read_errors()
            if time.monotonic() >= processes_at:
                for table in self.tables.values():
                    table.look()
                processes_at = time.monotonic() + _PROCESSES_SECONDS

    def _read_wire(self) -> None:
        self.marks.append(Mark(time.monotonic(), wire_bytes(self._wire.read_text())))

    def _read_errors(self) -> None:
        with contextlib.suppress(OSError), self.errors.open(encoding="utf-8", errors="replace") as stream:
            stream.seek(self._read_to)
            text = stream.read()
            self._read_to = stream.tell()
            *whole, self._rest = (self._rest + text).split("\n")
            self.said += [Said(time.monotonic(), line) for line in whole]
