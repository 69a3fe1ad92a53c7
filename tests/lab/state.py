"""What is known of a lab outside it: its names, addresses and files, and the processes that are its own.

Everything derives from the lab's prefix, so that several labs run side by side, and everything that has to be
removed later is found again from the outside even if the command that made it was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Parent of each lab's state directory.
STATE_ROOT = Path("/var/lib/vmmigration-lab")
#: Environment variable that marks each process of a lab; its value is the prefix.
MARKER = "VMMIGRATION_LAB"
#: Directories that had to be made outside as mount points, and go with the last lab.
MOUNT_POINTS_FILE = "mount-points.json"
CHECKOUT = Path(__file__).resolve().parents[2]

_PREFIX_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,19}")


class LabError(Exception):
    """Something about the lab itself failed; the text says what and, where known, what to do."""


@dataclass(frozen=True)
class Subnet:
    """The addresses of one lab: 10.x.y.0/24, derived from its prefix."""

    prefix: str

    def address(self, last: int) -> str:
        """Return the address that ends in `last`."""
        digest = hashlib.sha256(self.prefix.encode()).digest()
        # 10.64.0.0 and above: clear of the low ranges that machines usually have themselves.
        return f"10.{64 + digest[0] % 128}.{digest[1]}.{last}"


def check_prefix(prefix: str) -> str:
    """Return the prefix if host names, paths and links can be made of it; raises LabError otherwise."""
    if not _PREFIX_PATTERN.fullmatch(prefix):
        raise LabError(f"{prefix!r} is no prefix: a letter, then up to 19 of a-z, 0-9 and '-'")
    return prefix


def host_uuid(prefix: str, name: str) -> str:
    """Return the libvirt host UUID of a lab's host: the same each time, another for each host."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{prefix}.vmmigration-lab"))


def state_directory(prefix: str) -> Path:
    """Return the directory that holds everything a lab has on the outer file system."""
    return STATE_ROOT / prefix


@contextlib.contextmanager
def lock(name: str, timeout: float = 120.0) -> Iterator[None]:
    """Hold a lock of that name among all processes of this machine; raises LabError after `timeout` seconds.

    An abstract socket is the lock: it leaves no file and goes with its holder, however that ends.
    """
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    deadline = time.monotonic() + timeout
    with holder:
        while True:
            try:
                holder.bind(f"\0vmmigration-lab/{name}")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise LabError(f"another command has held the lab's lock {name!r} for {timeout:.0f} s") from None
                time.sleep(0.05)
        yield


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, told apart from a later one with the same number by its start time in clock ticks."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Return the identity of a running process; raises LabError if there is none."""
        start = _start_time(pid)
        if start is None:
            raise LabError(f"there is no process {pid}")
        return cls(pid, start)

    @classmethod
    def load(cls, file: Path) -> ProcessIdentity | None:
        """Return the identity that a file records, or None if there is no such (whole) file."""
        try:
            record = json.loads(file.read_text())
            return cls(int(record["pid"]), int(record["start"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, file: Path) -> None:
        """Record the identity; a reader never sees half of it."""
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps({"pid": self.pid, "start": self.start}))
        draft.rename(file)

    def alive(self) -> bool:
        """Say whether that very process still runs (a zombie does not)."""
        return _start_time(self.pid) == self.start

    def send(self, number: int) -> bool:
        """Send a signal to that very process and to no other; False if it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            # Asked again now that the descriptor pins the process: the number cannot be another's any more.
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait_for_end(self, timeout: float = 10.0) -> None:
        """Return when that very process has ended; raises LabError if it has not after `timeout` seconds."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            # A pidfd can be read once its process has ended (pidfd_open(2)).
            if self.alive() and not select.select([descriptor], [], [], timeout)[0]:
                raise LabError(f"process {self.pid} does not end")
        finally:
            os.close(descriptor)


def _start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot, or None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _processes() -> Iterator[int]:
    """Yield the number of each process but this one."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            yield int(entry)


def marked_processes(prefix: str) -> list[ProcessIdentity]:
    """Return the processes that carry the lab's marker in their environment or live on its mounts."""
    marker = f"{MARKER}={prefix}".encode()
    # Not the whole path: mountinfo counts from the root of the file system that holds it.
    mounted = f"/{STATE_ROOT.name}/{prefix}/".encode()
    found = []
    for pid in _processes():
        start = _start_time(pid)
        if start is None:
            continue
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if marker in environment or mounted in Path(f"/proc/{pid}/mountinfo").read_bytes():
                found.append(ProcessIdentity(pid, start))
    return found


def end_processes(prefix: str, recorded: list[ProcessIdentity], timeout: float = 20.0) -> None:
    """End all processes of a lab: first the recorded PID 1s (the kernel ends the rest), then what is marked.

    Raises LabError if some are still there after `timeout` seconds.
    """
    for identity in recorded:
        identity.send(signal.SIGKILL)
    deadline = time.monotonic() + timeout
    clean_rounds = 0
    # Two rounds without any: a process that was just being started by a killed `up` shows in the second.
    while clean_rounds < 2:
        remaining = marked_processes(prefix)
        clean_rounds = 0 if remaining else clean_rounds + 1
        for identity in remaining:
            identity.send(signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"processes of lab {prefix!r} do not end: {[item.pid for item in remaining]}")
        time.sleep(0.03)


def make_mount_points(directories: list[Path]) -> None:
    """Make those of the directories that the outer system lacks, remembering it first. Needs the lock "all"."""
    record = STATE_ROOT / MOUNT_POINTS_FILE
    made: list[str] = json.loads(record.read_text()) if record.exists() else []
    missing = [str(directory) for directory in directories if not directory.exists()]
    if not missing:
        return
    draft = record.with_suffix(".new")
    draft.write_text(json.dumps(made + missing))
    draft.rename(record)
    for directory in missing:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)


def remove_last_traces() -> None:
    """Remove what all labs share, if this was the last one. Needs the lock "all".

    Not earlier: removing a directory that is a mount point in another namespace takes that mount away.
    """
    if not STATE_ROOT.exists() or any(entry.is_dir() for entry in STATE_ROOT.iterdir()):
        return
    record = STATE_ROOT / MOUNT_POINTS_FILE
    if record.exists():
        for directory in reversed(json.loads(record.read_text())):
            # Somebody may have begun to use it: only an empty one is ours.
            with contextlib.suppress(OSError):
                os.rmdir(directory)
    for entry in STATE_ROOT.iterdir():
        entry.unlink()
    STATE_ROOT.rmdir()


def leftovers(prefix: str) -> list[str]:
    """Return a line for each process, mount, link and file of a lab that is still there (all, while it is up)."""
    found = [f"process {item.pid}: {_command_line(item.pid)}" for item in marked_processes(prefix)]
    directory = state_directory(prefix)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f"/{STATE_ROOT.name}/{prefix}/" in line:
            found.append(f"mount {line}")
    # The lab's links live in namespaces of its own; none may ever show up in this one.
    found.extend(f"link {name}" for _, name in socket.if_nameindex() if name.startswith(link_name(prefix, "")))
    if directory.exists():
        found.append(f"file {directory}")
    if STATE_ROOT.exists() and not any(entry.is_dir() for entry in STATE_ROOT.iterdir()):
        found.append(f"file {STATE_ROOT}")
    return found


def link_name(prefix: str, host: str) -> str:
    """Return the name of a host's port at the lab's switch (at most 15 characters)."""
    return f"v{hashlib.sha256(prefix.encode()).hexdigest()[:6]}-{host}"


def _command_line(pid: int) -> str:
    """Return a process's command line for a person to read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(ended meanwhile)"
