"""The records that cross the wire, inside requests and replies. None of them can be constructed wrong.

Their type hints are read at run time to check what comes in, so they must be such as Python 3.9 can evaluate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Optional

from constant import (
    DOWNTIME_CAP,
    DOWNTIME_LARGEST,
    PAGES_LIMIT,
    CopyStorage,
    DomainState,
    LibvirtDaemon,
    OnTimeout,
    SourceAfter,
    Transport,
)
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.forms import (
    DOMAIN_PATTERN,
    JOB_ID_FORM,
    JOB_ID_PATTERN,
    NAME_FORM,
    USER_FORM,
    USER_PATTERN,
    check_address,
    check_directory,
    check_job_id,
    check_path,
    check_request_id,
)
from wire.phrase import Phrase, Text, template
from wire.placement import DiskMap, NetworkMap, Placement
from wire.schema import LONGEST_TEXT, record, to_wire


@record
class Convergence:
    """What may be done to a guest that writes faster than it can be copied, so that its migration ends."""

    auto_converge: bool = False
    """Slow the guest's CPUs down."""
    max_downtime: int = DOWNTIME_CAP
    """How long the guest may stand still at the switchover, in milliseconds."""
    post_copy: bool = False
    """Let it go on at the destination once one pass over its memory was not enough."""
    on_timeout: OnTimeout = OnTimeout.ABORT
    synchronous_writes: bool = False
    """Have each write of the guest wait until the destination has it too."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_downtime <= DOWNTIME_LARGEST:
            raise ValueError("downtime out of range")

    @property
    def may_post_copy(self) -> bool:
        """Whether the guest may come to run at the destination before all of its memory is there."""
        return self.post_copy or self.on_timeout is OnTimeout.POST_COPY


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
    """The limit for each disk and for the memory, in MiB/s; 0 is no limit."""
    timeout: int
    """The longest that the live migration may take, in seconds; 0 is no limit."""
    destination_daemon: LibvirtDaemon = LibvirtDaemon.LIBVIRTD
    new_name: Optional[str] = None
    """What the domain is called over there; None if as here."""
    disk_maps: tuple[DiskMap, ...] = ()
    pool: Optional[str] = None
    """The storage pool of the destination that takes the images."""
    directory: Optional[str] = None
    """That pool's directory, once the destination has told it."""
    network_maps: tuple[NetworkMap, ...] = ()
    flatten: bool = False
    """Whether a chain of images becomes one image."""
    eject_cdrom: bool = False
    """Whether drives are empty over there."""
    trim: bool = False
    """Whether the guest's file systems are trimmed after the arrival."""
    convergence: Convergence = Convergence()
    source_daemon: LibvirtDaemon = LibvirtDaemon.LIBVIRTD
    source_after: SourceAfter = SourceAfter.KEEP
    admin: str = ""
    """Who typed the command, on which host; for whoever meets the job, not for any decision."""

    def __post_init__(self) -> None:
        for words, pattern, form, value in (
            (template("{name!r} is not a job id"), JOB_ID_PATTERN, JOB_ID_FORM, self.job_id),
            (template("{name!r} is not a user name"), USER_PATTERN, USER_FORM, self.user),
            (template("{name!r} is not a VM name"), DOMAIN_PATTERN, NAME_FORM, self.domain),
            (template("{name!r} is not a VM name"), DOMAIN_PATTERN, NAME_FORM,
             self.domain if self.new_name is None else self.new_name),
            (template("{name!r} is not a pool name"), DOMAIN_PATTERN, NAME_FORM, self.pool or "none"),
        ):
            if not pattern.fullmatch(value):
                raise MigrationError(ErrorCode.ARGUMENTS_INVALID, {
                    "problem": Phrase(words, {"name": value}), "program": "vmmigration.py", "hint": form})
        for address in (self.source, self.destination):
            check_address(address)
        for what, path in (
                (template("Disk path"), self.disk), (template("Conf file path"), self.conf_file)):
            if path is not None:
                check_path(what, path)
        if self.directory is not None:
            check_directory(template("Pool directory"), self.directory)
        if len(self.admin) > 200:
            raise ValueError("nobody is called that")
        if self.bandwidth < 0 or self.timeout < 0:
            raise ValueError("bandwidth and timeout must not be negative")
        if self.convergence.on_timeout is not OnTimeout.ABORT and not self.timeout:
            raise ValueError("there is no time-out at which anything could be done")

    @property
    def name_there(self) -> str:
        """The domain's name on the destination."""
        return self.new_name or self.domain

    def name_on(self, host: str) -> str:
        """The domain's name on one of the two hosts."""
        return self.name_there if host == self.destination else self.domain

    def placement(self, facts: DomainFacts) -> Placement:
        """Where its files go."""
        return Placement(facts, self.disk_maps, self.directory, self.domain, self.new_name)

    def into_directory(self, directory: str | None) -> Migration:
        """The same migration, once it is known where the pool's images lie."""
        return replace(self, directory=directory)

    def with_daemons(self, source: LibvirtDaemon, destination: LibvirtDaemon) -> Migration:
        """The same migration, between hosts on which these daemons serve libvirt."""
        return replace(self, source_daemon=source, destination_daemon=destination)

    def conf_path(self) -> str:
        """Where the destination's domain XML goes: as asked for, or where libvirt itself keeps it."""
        return self.conf_file or libvirt_conf_path(self.name_there)


def libvirt_conf_path(domain: str) -> str:
    """The file in which libvirt keeps the persistent XML of a system domain (libvirt's drvqemu.rst)."""
    return f"/etc/libvirt/qemu/{domain}.xml"


@record
class StepArguments:
    """The arguments of a step: what the admin asked for, and what CHECK_SOURCE found."""

    migration: Migration
    facts: Optional[DomainFacts] = None
    source_keeps: bool = False
    """For ROLL_BACK: the source has said that the VM is there as it was, so what was made for it elsewhere may go."""
    source_is_off: bool = False
    """For ROLL_BACK: the VM is shut off on the source, which does not say why: what never arrived here may go."""
    source_gave_up: bool = False
    """For the steps after the switchover: libvirt at the source has ended its copy, so one that is held here may go on,
    and one that is shut off here has ended since."""
    stood_still: int = 0
    """For FINISH: for how long the guest did on its way, in milliseconds."""
    destination_verified: bool = False
    """For FINISH on the source: the destination has said that the VM is there, so the copy here may go."""

    def __post_init__(self) -> None:
        if self.stood_still < 0:
            raise ValueError("stood_still out of range")

    def known_facts(self) -> DomainFacts:
        """The facts, for a step that cannot do without. Raises MigrationError MESSAGE_INVALID."""
        if self.facts is None:
            raise MigrationError(ErrorCode.MESSAGE_INVALID, {
                "host": self.migration.destination, "problem": Phrase("the facts are missing")})
        return self.facts


@record
class LinkArguments:
    """The arguments of CHECK_LINK and MEASURE_LINK: the way from one host to another, and the VM that is to take it."""

    job_id: str
    source: str
    destination: str
    user: str
    transport: Transport
    destination_daemon: LibvirtDaemon
    domain: Optional[str] = None
    """None where only the hosts are looked at."""
    name_there: Optional[str] = None
    """The name that it will have over there, if it has another one then."""
    milliseconds: int = 0
    """For MEASURE_LINK: how long to send; 0 only tries whether the way is open."""
    bandwidth: int = 0
    """For MEASURE_LINK: the limit that the migration will have, in MiB/s; 0 is none."""
    at_most: int = 0
    """For MEASURE_LINK: how many bytes to send at most; 0 is no limit."""
    keep: bool = False
    """Whether the source's tunnel is to wait a moment for the next step that goes through it."""

    def __post_init__(self) -> None:
        check_job_id(self.job_id)
        for address in (self.source, self.destination):
            check_address(address)
        names = (self.domain or "none", self.name_there or "none")
        if not USER_PATTERN.fullmatch(self.user) or not all(map(DOMAIN_PATTERN.fullmatch, names)):
            raise ValueError("no such user or domain name")
        if not 0 <= self.milliseconds <= 10_000 or min(self.bandwidth, self.at_most) < 0:
            raise ValueError("time, bandwidth or bytes out of range")


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


def post_copy_failed(migration: Migration, reason: str) -> MigrationError:
    """The error of a VM that is on each host in part."""
    return MigrationError(ErrorCode.POST_COPY_FAILED, {
        "domain": migration.domain, "host": migration.source, "destination": migration.destination,
        "there": migration.name_there, "named": f" --dname {migration.new_name}" if migration.new_name else "",
        "user": migration.user, "job": migration.job_id, "reason": reason})


@record
class Obstacle:
    """One thing that stands in the way, as an error's code and facts."""

    code: ErrorCode
    facts: Mapping[str, Text]

    @classmethod
    def of(cls, error: MigrationError, longest: int = LONGEST_TEXT) -> Obstacle:
        """The error as it crosses; what libvirt or a tool said at great length is cut, the essential stands first."""
        return cls(code=error.code, facts={name: _cut(fact, longest) for name, fact in error.facts.items()})

    def error(self) -> MigrationError:
        """The same as an exception, for its words."""
        return MigrationError(self.code, self.facts)


def _cut(fact: str, longest: int) -> str:
    if isinstance(fact, Phrase) and _bytes(fact) <= longest:
        return fact
    return str(fact) if len(fact) <= longest else fact[:longest - 1] + "…"


@record
class StepReport:
    """The result of a step that has little more to tell than what it did, in a few words for the admin."""

    summary: Text
    bytes: int = 0
    """From COPY_DISK_FILE of the source: how much data it sent."""
    ended: bool = False
    """From FINISH of the destination: whether the VM has moved there and is shut off since."""


@record
class LinkReport:
    """The result of MEASURE_LINK, in bytes per second; None where this host did not, or could not, measure it."""

    rate: Optional[int] = None
    dirty_rate: Optional[int] = None
    """Memory that the guest writes: from the source."""
    write_rate: Optional[int] = None
    """What the guest writes to its disks: from the source."""


@record
class MigrationReport:
    """The result of LIVE_MIGRATION, from libvirt's statistics of the finished job. Bytes, and milliseconds."""

    disk_bytes: int
    memory_bytes: int
    downtime: int
    """With the time for which the guest was paused before; -1 if libvirt did not say."""
    downtime_limit: int = 0
    """What was allowed in the end; 0 if nobody looked."""
    passes: int = 0
    """How often the memory was gone over; 0 if that is not known."""
    post_copy: bool = False
    """Whether the guest ran on the destination before all of its memory was there."""
    held: bool = False
    """Whether it still waits at the destination to be handed over."""


@record
class RollBackReport:
    """The result of ROLL_BACK: how the domain is on this host now, and which paths of the job were removed."""

    state: DomainState
    removed: tuple[str, ...]
    cleared: bool = False
    """Whether nothing of the job is left here."""
    arrived: bool = False
    """On the destination: whether it is held here, all of it, for its source to give it up."""
    gave_up: bool = False
    """On the source: whether libvirt here has ended its copy because it was migrated away."""
    split: bool = False
    """Whether a part of its memory is on the other host: it is in post-copy, or that broke off."""
    spared: tuple[str, ...] = ()
    """What the job made or took that another VM uses meanwhile: it is that VM's now."""
    older_copy: bool = False
    """On the destination: whether the copy is there, as it was, that an earlier move of the VM has left."""


@record
class CancelReport:
    """The result of CANCEL: whether a step of that job was running here."""

    known: bool


class DiskProgress(NamedTuple):
    """How far the mirror of one disk is, in bytes; what the guest writes meanwhile is added to the total."""

    target: str
    done: int
    total: int


# Progress has to fit a datagram of 1200 bytes: 402 are the header and the reply's other fields at their longest, 200
# the phase with its facts. 16 disks of 10 TB with targets such as vda take 592.
PHASE_BYTES = 200
_DISKS_BYTES = 597


def fitting(disks: tuple[DiskProgress, ...]) -> tuple[DiskProgress, ...]:
    """As many of the disks, from the first, as one Progress holds."""
    shown = disks
    while _length(shown) > _DISKS_BYTES:
        shown = shown[:-1]
    return shown


def _length(disks: tuple[DiskProgress, ...]) -> int:
    """How many bytes they take as JSON: `["vda",1,2],` each."""
    return sum(len(disk.target) + len(f"{disk.done}{disk.total}") + 7 for disk in disks)


def _bytes(words: str) -> int:
    """How many bytes a text, or a Phrase with its facts, takes as JSON."""
    return len(json.dumps(to_wire(words), ensure_ascii=False, separators=(",", ":")).encode(errors="replace"))


@record
class MemoryProgress:
    """How the copying of memory goes. Bytes, bytes per second, milliseconds."""

    passes: int
    left: int
    """Of this pass."""
    rate: Optional[int]
    dirty_rate: Optional[int]
    """What the guest writes."""
    downtime_limit: int
    """How long the guest may stand still at the switchover, as of now."""
    post_copy: bool = False
    """Whether it runs on the destination already, so that there is no way back."""


@record
class Progress:
    """How far a step is: cumulative, so that any of them may be lost. Bytes; `total` 0 while it is not known."""

    phase: Text
    """What goes on, in PHASE_BYTES of JSON at most."""
    done: int
    total: int
    disks: tuple[DiskProgress, ...] = ()
    """While disks are mirrored: each of them."""
    memory: Optional[MemoryProgress] = None

    def __post_init__(self) -> None:
        # It has to fit a datagram, whatever a step calls what it does. The quotes count, and the facts.
        counts = [self.done, self.total, *(count for disk in self.disks for count in disk[1:])]
        if _bytes(self.phase) > PHASE_BYTES or min(counts) < 0:
            raise ValueError("the phase is too long, or a count negative")
        if fitting(self.disks) != self.disks or (self.disks and self.memory):
            raise ValueError("more than a datagram holds")


@record
class Page:
    """A part of a result, or of a request, that one datagram does not hold; the digest is that of the whole."""

    page: int
    pages: int
    digest: str
    part: str

    def __post_init__(self) -> None:
        if not 0 <= self.page < self.pages <= PAGES_LIMIT:
            raise ValueError("no such page")
