"""The records that cross the wire, inside requests and replies. None of them can be constructed wrong.

Their type hints are read at run time to check what comes in, so they must be such as Python 3.9 can evaluate.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Optional

from constant import PAGES_LIMIT, CopyStorage, DomainState, ImageFormat, LibvirtDaemon, Transport
from wire.errors import ErrorCode, MigrationError
from wire.schema import LONGEST_TEXT, record

_REQUEST_ID_PATTERN = re.compile(r"[0-9a-f]{32}")
JOB_ID_PATTERN = re.compile(r"[0-9a-f]{8}")
# useradd(8), and the capitals and dots of directory services; it must never look like an option or a path.
USER_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")
# libvirt forbids a slash and control characters in a name; a leading dash would be taken for an option by virsh.
# A lone surrogate stands for a byte that is not UTF-8.
DOMAIN_PATTERN = re.compile(r"[^-/\x00-\x1f\x7f\ud800-\udfff][^/\x00-\x1f\x7f\ud800-\udfff]{0,254}")


def check_request_id(request_id: str) -> None:
    """Raise ValueError for what cannot be the id of a request: 128 random bits as hexadecimal digits."""
    if not _REQUEST_ID_PATTERN.fullmatch(request_id):
        raise ValueError("no request id")


def check_job_id(job_id: str) -> None:
    """Raise ValueError for what cannot be the id of a job: 32 random bits as hexadecimal digits."""
    if not JOB_ID_PATTERN.fullmatch(job_id):
        raise ValueError("no job id")


def check_tokens(epoch: str, challenge: str) -> None:
    """Raise ValueError for what no agent gives out as epoch (16 digits) and challenge (about 30 signs)."""
    if max(len(epoch), len(challenge)) > 64:
        raise ValueError("no epoch or challenge")


@functools.lru_cache(maxsize=4096)
def check_address(address: str) -> str:
    """Return `address` if it is an IP address in its shortest form, without a scope, which means something on one
    host only. Raises ValueError.
    """
    if "%" in address or address != str(ipaddress.ip_address(address)):
        raise ValueError(f"{address!r} is not a canonical address")
    return address


def check_path(what: str, path: str) -> str:
    """Return `path` if it is a plain absolute path of at most 512 characters to a file.

    Raises MigrationError PATH_INVALID. Every path from the command line or a datagram comes through here.
    """
    parts = path.split("/")
    plain = (
        path.startswith("/") and len(path) <= 512 and len(parts) > 2 and path.isprintable()
        and not any(part in ("", ".", "..") for part in parts[1:])
    )
    if not plain:
        raise MigrationError(ErrorCode.PATH_INVALID, {"what": what, "path": path})
    return path


@record
class Migration:
    """What the admin asked for. It goes with every step, so that each request can be understood alone."""

    job_id: str
    domain: str
    source: str
    destination: str
    user: str
    disk: Optional[str]
    conf_file: Optional[str]
    transport: Transport
    copy_storage: CopyStorage
    bandwidth: int
    """The limit for disk and for memory, each, in MiB/s; 0 is no limit."""
    timeout: int
    """The longest that the live migration may take, in seconds; 0 is no limit."""
    destination_daemon: LibvirtDaemon = LibvirtDaemon.LIBVIRTD

    def __post_init__(self) -> None:
        for what, pattern, value in (
            ("job id", JOB_ID_PATTERN, self.job_id),
            ("user name", USER_PATTERN, self.user),
            ("VM name", DOMAIN_PATTERN, self.domain),
        ):
            if not pattern.fullmatch(value):
                problem = f"{value!r} is not a {what}"
                raise MigrationError(ErrorCode.ARGUMENTS_INVALID, {"problem": problem, "program": "vmmigration.py"})
        for address in (self.source, self.destination):
            check_address(address)
        for what, path in (("Disk path", self.disk), ("Conf file path", self.conf_file)):
            if path is not None:
                check_path(what, path)
        if self.bandwidth < 0 or self.timeout < 0:
            raise ValueError("bandwidth and timeout must not be negative")

    def to_daemon(self, daemon: LibvirtDaemon) -> Migration:
        """The same migration, to a destination on which `daemon` serves libvirt."""
        return replace(self, destination_daemon=daemon)

    def conf_path(self) -> str:
        """Where the destination's domain XML goes: as asked for, or where libvirt itself keeps it."""
        return self.conf_file or libvirt_conf_path(self.domain)


def libvirt_conf_path(domain: str) -> str:
    """The file in which libvirt keeps the persistent XML of a system domain (libvirt's drvqemu.rst)."""
    return f"/etc/libvirt/qemu/{domain}.xml"


@record
class DiskFacts:
    """One disk of the domain as the source sees it. Sizes in bytes."""

    target: str
    path: str
    format: ImageFormat
    virtual_size: int
    allocated: int
    cluster_size: int
    """0 for raw."""
    compat: str
    """qcow2's version as qemu-img names it, "1.1" or "0.10"; empty for raw."""

    def __post_init__(self) -> None:
        check_path("Disk path", self.path)
        if self.virtual_size <= 0 or self.allocated < 0 or not re.fullmatch(r"[a-z][a-z0-9]{1,15}", self.target):
            raise ValueError("disk sizes or target out of range")
        if self.format is ImageFormat.QCOW2:
            power_of_two = self.cluster_size & (self.cluster_size - 1) == 0
            if not (512 <= self.cluster_size <= 2 * 1024 * 1024 and power_of_two and self.compat in ("1.1", "0.10")):
                raise ValueError("no such qcow2 image")
        elif self.cluster_size or self.compat:
            raise ValueError("a raw image has neither clusters nor a version")


@record
class DomainFacts:
    """What the destination must know about the domain to judge whether it can run there. Memory in bytes."""

    uuid: str
    virtualization: str
    architecture: str
    machine: str
    memory: int
    autostart: bool
    disks: tuple[DiskFacts, ...]
    kernel: Optional[str] = None
    initrd: Optional[str] = None
    networks: tuple[str, ...] = ()
    """What its interfaces are connected to, each as `bridge:NAME` or `network:NAME`."""

    def __post_init__(self) -> None:
        for path in (self.kernel, self.initrd):
            if path is not None:
                check_path("Kernel path", path)


@record
class StepArguments:
    """The arguments of a step: what the admin asked for, and what CHECK_SOURCE found."""

    migration: Migration
    facts: Optional[DomainFacts] = None
    source_runs: bool = False
    """For ROLL_BACK: the source has said that the VM runs there, so what was made for it elsewhere may go."""

    def known_facts(self) -> DomainFacts:
        """The facts, for a step that cannot do without. Raises MigrationError MESSAGE_INVALID."""
        if self.facts is None:
            raise MigrationError(
                ErrorCode.MESSAGE_INVALID, {"host": self.migration.destination, "problem": "the facts are missing"})
        return self.facts


@record
class HelloArguments:
    """The argument of HELLO: a job that keeps its place on a host although it has nothing to do there now."""

    job_id: Optional[str] = None

    def __post_init__(self) -> None:
        if self.job_id is not None:
            check_job_id(self.job_id)


@record
class StatusArguments:
    """The arguments of STATUS: which request is meant, and which page of its result."""

    of: str
    page: int = 0

    def __post_init__(self) -> None:
        check_request_id(self.of)
        if self.page < 0:
            raise ValueError("no such page")


@record
class CancelArguments:
    """The argument of CANCEL."""

    job_id: str

    def __post_init__(self) -> None:
        check_job_id(self.job_id)


@record
class Obstacle:
    """One thing that stands in the way, as an error's code and facts."""

    code: ErrorCode
    facts: Mapping[str, str]

    @classmethod
    def of(cls, error: MigrationError, longest: int = LONGEST_TEXT) -> Obstacle:
        """The error as it crosses; what libvirt or a tool said at great length is cut, the essential stands first."""
        return cls(code=error.code, facts={
            name: fact if len(fact) <= longest else fact[:longest - 1] + "…" for name, fact in error.facts.items()})

    def error(self) -> MigrationError:
        """The same as an exception, for its words."""
        return MigrationError(self.code, self.facts)


@record
class HostFacts:
    """What HELLO tells of a host.

    `epoch` is new when the agent started without the journal of its requests; `challenge` lives CHALLENGE_SECONDS.
    """

    version: str
    hostname: str
    libvirt_version: int
    """As libvirt counts: major * 1,000,000 + minor * 1,000 + release; 0 if it does not answer."""
    daemon: LibvirtDaemon
    epoch: str
    challenge: str

    def __post_init__(self) -> None:
        check_tokens(self.epoch, self.challenge)


@record
class CheckReport:
    """The result of CHECK_SOURCE and CHECK_DESTINATION; only the source's has facts."""

    obstacles: tuple[Obstacle, ...]
    facts: Optional[DomainFacts] = None


@record
class StepReport:
    """The result of a step that has nothing more to tell than what it did, in a few words for the admin."""

    summary: str


@record
class MigrationReport:
    """The result of LIVE_MIGRATION, from libvirt's statistics of the finished job. Bytes, and milliseconds."""

    disk_bytes: int
    memory_bytes: int
    downtime: int
    """-1 if libvirt did not say."""


@record
class RollBackReport:
    """The result of ROLL_BACK: how the domain is on this host now, and which paths of the job were removed."""

    state: DomainState
    removed: tuple[str, ...]


@record
class CancelReport:
    """The result of CANCEL: whether a step of that job was running here."""

    known: bool


@record
class Progress:
    """How far a step is: cumulative, so that any of them may be lost. Bytes; `total` 0 while it is not known."""

    phase: str
    done: int
    total: int

    def __post_init__(self) -> None:
        # It has to fit a datagram, whatever a step calls what it does.
        if len(self.phase) > 100 or self.done < 0 or self.total < 0:
            raise ValueError("the phase is too long, or a count negative")


@record
class Page:
    """A part of a result that one datagram does not hold; all pages of one result have the same digest."""

    page: int
    pages: int
    digest: str
    part: str

    def __post_init__(self) -> None:
        if not 0 <= self.page < self.pages <= PAGES_LIMIT:
            raise ValueError("no such page")
