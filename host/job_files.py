"""What a job makes for itself on a host: its directory of sockets, and the ledger of what it made and may remove."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType

from constant import LIBVIRT_SOCKETS, SOCKET_PATH_LIMIT, LibvirtDaemon, Transport
from host.file_identity import FileIdentity, is_open_elsewhere
from host.mounts import mount_point
from host.process import run_tool
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase
from wire.records import Migration

_SOCKET_ROOT = "/run/libvirt/qemu"
_PART = ".part"
_BUSY_SECONDS = 5.0
_AGAIN_SECONDS = 0.1
_STAGING = "staging"
# What may stand in the name of a socket: ssh reads `:` `%` `$` and a backslash in a forward as its own.
_FIT_NAME = re.compile(r"[\w.+@=,~ -]+")
# Images and conf files never go here, nor into a hidden directory such as .ssh, whoever asks: what lies there is
# read, or run, by other programs.
_SYSTEM_DIRECTORIES = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/run",
    "/var/spool/cron",
)


def in_system_directory(path: str) -> bool:
    """Whether a file at this path would land among the system's own or a program's, links followed."""
    directory = os.path.realpath(os.path.dirname(path))
    return directory == "/" or "/." in directory or any(
        directory == system or directory.startswith(system + "/") for system in _SYSTEM_DIRECTORIES)


def refuse_system_directory(what: str, path: str, host: str) -> None:
    """Raise MigrationError PATH_NOT_ALLOWED if a new file at this path would land among the system's own.

    `what` is a template.
    """
    if in_system_directory(path):
        reason = Phrase("its directory is one of the system's own")
        raise MigrationError(
            ErrorCode.PATH_NOT_ALLOWED, {"host": host, "what": Phrase(what), "path": path, "reason": reason})


@dataclass(frozen=True)
class JobSockets:
    """The paths of a job's sockets, the same on both hosts.

    Their names end as libvirt's AppArmor profile of the VM at the destination allows, where QEMU makes them
    (virt-aa-helper: `*.tunnelmigrate.dest.NAME rw` below /run/libvirt). At the source libvirt connects to the one and
    adds the other to the VM's profile (qemuMigrationSrcStart(), qemuMigrationSrcNBDStorageCopy()).
    """

    directory: str
    memory: str
    disks: str
    libvirt: str
    probe: str
    """For MEASURE_LINK, at the source."""
    probed: str
    """And at the destination: in a directory of its own, as the job's is made there meanwhile."""
    files: str
    """For COPY_DISK_FILE."""
    control: str
    """By which ssh is told more while the tunnel is open, at the source."""
    staging: str
    """No socket but a directory of the destination, to which the source uploads small files by SFTP."""

    @classmethod
    def of(cls, migration: Migration) -> JobSockets:
        """The paths for this migration."""
        return cls.named(migration.job_id, migration.name_there)

    @classmethod
    def named(cls, job_id: str, domain: str = "", *, beside: str = "") -> JobSockets:
        """The paths for a job; those of memory and disks only mean something with a domain's name over there.

        What goes on `beside` the steps of the job has a directory of its own.
        """
        directory = f"{_SOCKET_ROOT}/vmmigration-{job_id}" + (f"-{beside}" if beside else "")
        ending = f"tunnelmigrate.dest.{domain}"
        return cls(
            directory, f"{directory}/m.{ending}", f"{directory}/d.{ending}", f"{directory}/libvirt",
            f"{directory}/probe", f"{directory}-probe/probe", f"{directory}/files", f"{directory}/control",
            f"{directory}/{_STAGING}")

    def forwards(self, daemon: LibvirtDaemon, transport: Transport) -> dict[str, str]:
        """What the job's tunnel forwards: each local socket and the one over there."""
        over_ssh = {self.memory: self.memory, self.disks: self.disks, self.probe: self.probed}
        return {self.libvirt: LIBVIRT_SOCKETS[daemon], self.files: self.files,
                **(over_ssh if transport is Transport.SSH else {})}

    def of_root(self, forwards: Iterable[str]) -> list[str]:
        """Those of these local sockets that QEMU's user has no business with: libvirt over there obeys whoever asks."""
        return [path for path in forwards if path not in (self.memory, self.disks)]

    def fit(self, domain: str) -> bool:
        """Whether the kernel and ssh take such paths."""
        return len(self.memory.encode()) <= SOCKET_PATH_LIMIT and bool(_FIT_NAME.fullmatch(domain))


def socket_directories() -> list[str]:
    """The directories of sockets that there are, of whatever job."""
    try:
        names = sorted(os.listdir(_SOCKET_ROOT))
    except FileNotFoundError:
        return []
    return [f"{_SOCKET_ROOT}/{name}" for name in names if name.startswith("vmmigration-")]


def make_socket_directory(path: str, owner: tuple[int, int], others: list[str], host: str) -> FileIdentity:
    """Make a directory that only `owner` may enter, and `others` (user names or ids) who may use sockets in it.

    Raises MigrationError PATH_TAKEN, TOOL_MISSING or TOOL_FAILED.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError as error:
        raise MigrationError(ErrorCode.PATH_TAKEN, {"path": path, "host": host}) from error
    try:
        os.chown(path, *owner)
        for user in others:
            run_tool(["setfacl", "-m", f"u:{user}:x", "-d", "-m", f"u:{user}:rw", path], host)
    except BaseException:
        os.rmdir(path)
        raise
    return FileIdentity.at(path)


def remove_socket_directory(path: str) -> None:
    """Remove the directory with the sockets and the staging directory in it.

    Anything else in it stays, and so does the directory then.
    """
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                os.unlink(entry.path)
            elif entry.name == _STAGING:
                _remove_staging(entry.path)
        os.rmdir(path)


def _remove_staging(path: str) -> None:
    # By its descriptor: QEMU's user may put a link in its place.
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for name in os.listdir(directory):
            os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)
    os.rmdir(path)


@contextmanager
def staging_directory(path: str, user: str, host: str) -> Iterator[None]:
    """A directory to which this user (a name or an id) may upload files, for the length of a `with`.

    Raises OSError, MigrationError TOOL_MISSING or TOOL_FAILED.
    """
    with contextlib.suppress(FileNotFoundError):
        # What an agent that was ended in the middle of this has left.
        _remove_staging(path)
    os.mkdir(path, 0o700)
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            run_tool(["setfacl", "-m", f"u:{user}:rwx", f"/proc/self/fd/{directory}"], host, (directory,))
        finally:
            os.close(directory)
        yield
    finally:
        _remove_staging(path)


@contextmanager
def socket_directory(path: str, owner: tuple[int, int], others: list[str], host: str) -> Iterator[None]:
    """Such a directory for the length of a `with`."""
    make_socket_directory(path, owner, others, host)
    remove = functools.partial(remove_socket_directory, path)
    # Also when the agent has to leave before this thread gets to its end.
    atexit.register(remove)
    try:
        yield
    finally:
        remove()
        atexit.unregister(remove)


class MadeKind(str, Enum):
    """What kind of thing a job made, or in the case of a block device writes to."""

    IMAGE = "image"
    DIRECTORY = "directory"
    DEVICE = "device"
    SOCKET_DIRECTORY = "socket directory"
    DEFINITION = "definition"
    """The file with the definition of the copy that was here before: see host/set_aside.py."""


# What served the job alone, and goes whatever becomes of it.
OF_JOB = frozenset({MadeKind.SOCKET_DIRECTORY, MadeKind.DEFINITION})
# What outlives the host's next start.
_ON_DISK = frozenset({MadeKind.IMAGE, MadeKind.DIRECTORY, MadeKind.DEFINITION})
# What becomes the domain's own.
OF_DOMAIN = frozenset({MadeKind.IMAGE, MadeKind.DIRECTORY, MadeKind.DEVICE})


@dataclass(frozen=True)
class Made:
    """One thing that a job made on this host. Its numbers tell it from another thing put at the same path."""

    kind: MadeKind
    path: str
    device: int
    inode: int
    generation: int | None = None
    mount: str = ""
    """Where the file system that it is on was mounted."""

    def still_there(self) -> bool:
        """Whether what is at the path now is what the job made."""
        if self.inode == 0:
            # Only planned: the name says whose it is.
            return os.path.lexists(self.path)
        identity = FileIdentity(self.device, self.inode, self.generation)
        # A volume group's devices are links to those of the kernel.
        return identity.is_at(self.path, follow=self.kind is MadeKind.DEVICE)

    def hidden(self) -> bool:
        """Whether it cannot be told, because the file system that it is on is not mounted now."""
        if self.kind not in _ON_DISK or not self.mount or os.path.lexists(self.path):
            return False
        return mount_point(os.path.dirname(self.path)) != self.mount

    def remove(self) -> None:
        """Remove it; a block device is made blank again, as it was when the job took it."""
        _REMOVERS[self.kind](self.path)


def missing_directories(path: str) -> list[str]:
    """The directory and those above it that are not there, the topmost first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing[::-1]


def make_directory(path: str, host: str) -> FileIdentity:
    """Make a directory, as libvirt would for what it gives to the right user when that is started.

    Raises MigrationError DIRECTORY_MISSING.
    """
    try:
        os.mkdir(path, 0o711)
        # Whatever umask the agent was started with.
        os.chmod(path, 0o711)  # noqa: S103 - others may only pass through
    except OSError as error:
        facts = {"path": path, "host": host, "reason": error.strerror or str(error)}
        raise MigrationError(ErrorCode.DIRECTORY_MISSING, facts) from error
    return FileIdentity.at(path)


def _remove_directory(path: str) -> None:
    # Whatever somebody else has put there is theirs.
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _blank(path: str) -> None:
    """Take away from a block device what says that it holds something: its first MiB was zeros, and is again.

    Raises OSError if anything on this host has it open for longer than udev, which looks at a device after each writer.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            _blank_now(path)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise
        time.sleep(_AGAIN_SECONDS)


def _blank_now(path: str) -> None:
    # Exclusively: refused while it is mounted or part of a volume group. Of QEMU only its descriptor tells.
    descriptor = os.open(path, os.O_WRONLY | os.O_EXCL)
    try:
        if is_open_elsewhere(descriptor):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        os.pwrite(descriptor, bytes(1024 * 1024), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_REMOVERS: Mapping[MadeKind, Callable[[str], None]] = MappingProxyType({
    MadeKind.IMAGE: os.unlink,
    MadeKind.DIRECTORY: _remove_directory,
    MadeKind.DEVICE: _blank,
    MadeKind.SOCKET_DIRECTORY: remove_socket_directory,
    MadeKind.DEFINITION: os.unlink,
})


def sync_directory(path: str) -> None:
    """Have the disk know the names in a directory as they are now. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_synced(path: Path, content: bytes) -> None:
    """Put a file with that content in place of whatever is there, on disk before it returns. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(_PART)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_directory(str(path.parent))


class Ledger:
    """What one job made on this host, written down so that a later step, or a later agent, can remove just that."""

    def __init__(self, job_id: str, directory: Path) -> None:
        self._path = directory / f"{job_id}.json"

    def entries(self) -> list[Made]:
        """What was made, in the order it was made; empty if there is no such job."""
        try:
            records = json.loads(self._path.read_text())
        except FileNotFoundError:
            return []
        return [Made(**{**record, "kind": MadeKind(record["kind"])}) for record in records]

    def plan(self, kind: MadeKind, path: str) -> None:
        """Write down that the job is about to make this, under a name that has the job's id in it, so that whatever
        lies there is the job's. Of a directory only an empty one is ever removed."""
        if kind is not MadeKind.DIRECTORY and self._path.stem not in os.path.basename(path):
            raise ValueError(f"{path} might be somebody else's")
        self._write([*self.entries(), Made(kind, path, 0, 0, mount=mount_point(os.path.dirname(path)))])

    def add(self, kind: MadeKind, path: str, identity: FileIdentity) -> None:
        """Write down that the job made this, on disk before it returns."""
        mount = mount_point(os.path.dirname(path))
        self._write([*self.entries(), Made(kind, path, **asdict(identity), mount=mount)])

    def take(self, path: str) -> None:
        """Write down that the job writes to this block device. Raises OSError."""
        self.add(MadeKind.DEVICE, path, FileIdentity.at(path, follow=True))

    def _write(self, entries: list[Made]) -> None:
        write_synced(self._path, json.dumps([asdict(made) for made in entries]).encode())

    def keep(self, kinds: frozenset[MadeKind]) -> None:
        """Forget what is of these kinds: it is the domain's now, and never to be removed by this job."""
        if self._path.exists():
            self._write([made for made in self.entries() if made.kind not in kinds])

    def spare(self, is_in_use: Callable[[str], bool]) -> tuple[str, ...]:
        """Forget what would be the domain's own but is another's meanwhile. Returns the paths."""
        entries = self.entries()
        found = [made for made in entries if made.kind in OF_DOMAIN - {MadeKind.DIRECTORY}
                 and made.still_there() and is_in_use(made.path)]
        if found:
            self._write([made for made in entries if made not in found])
        return tuple(made.path for made in found)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove those of the paths that are still what the job made, and forget them. Raises OSError."""
        entries = self.entries()
        for made in entries:
            if made.path in paths and made.still_there():
                made.remove()
        if any(made.path in paths for made in entries):
            self._write([made for made in entries if made.path not in paths])

    def close(self, kinds: frozenset[MadeKind]) -> tuple[list[str], list[str]]:
        """Remove what is of these kinds and still what the job made, newest first, then forget the job.

        Returns the paths that were removed, and what could not be: that is told, stays written down, and does not keep
        the rest from being removed.
        """
        removed: list[str] = []
        problems: list[str] = []
        kept: list[Made] = []
        entries = self.entries()
        while entries:
            made = entries.pop()
            try:
                if made.kind in kinds and made.hidden():
                    raise OSError(0, Phrase("its file system is not mounted"), made.path)
                if made.kind in kinds and made.still_there():
                    made.remove()
                    removed.append(made.path)
                self._write([*entries, *reversed(kept)])
            except OSError as error:
                problems.append(Phrase("{path}: {reason}", {
                    "path": error.filename or made.path, "reason": error.strerror or str(error)}))
                kept.append(made)
        if not kept:
            self._path.unlink(missing_ok=True)
            # What an agent has left that was killed while it wrote.
            self._path.with_suffix(_PART).unlink(missing_ok=True)
        return removed, problems
