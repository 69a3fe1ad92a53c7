"""The few libvirt calls that a migration needs, behind one narrow class, with libvirt's errors as MigrationErrors."""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ElementTree  # the documents are libvirt's own, never out of a datagram
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from constant import DomainState, LibvirtDaemon, Pause
from host import capabilities
from host.bindings import libvirt
from host.domain_xml import DomainDescription, describe, mac_addresses
from host.job_statistics import JobStatistics
from host.migration_target import MigrationTarget
from host.qemu_process import last_end
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase
from wire.records import DiskProgress, MigrationReport
from wire.situation import DomainView, MovedNote

SYSTEM_URI = "qemu:///system"
# For so long a libvirtd that has died may take until its init system has it back and it knows its domains again.
RESTART_SECONDS = 45.0
_AGAIN_SECONDS = 0.3

# The element in a domain's metadata that says that it has moved away; libvirt wants such a name to be a URI.
_NOTE_KEY, _NOTE_URI = "vmmigration", "urn:vmmigration:moved"
_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.SHUT_OFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.SHUT_OFF,
}


# Reasons for a pause that pass by themselves, or that somebody has to see to.
_PAUSE_PROBLEMS = {
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: Phrase("paused by a migration"),
    libvirt.VIR_DOMAIN_PAUSED_SAVE: Phrase("paused by a save"),
    libvirt.VIR_DOMAIN_PAUSED_DUMP: Phrase("paused by a dump"),
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: Phrase("paused by an I/O error of a disk"),
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: Phrase("shutting down"),
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: Phrase("paused by a snapshot"),
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: Phrase("crashed"),
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: Phrase("starting up"),
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: Phrase("paused by a migration"),
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: Phrase("left over from a migration that failed"),
}
_PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_USER: Pause.SOMEBODY,
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: Pause.MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: Pause.MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: Pause.MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: Pause.POST_COPY_FAILED,
}
# Of both hosts in post-copy. The last one is libvirt 8.5's, and may come from there through older bindings.
_SPLIT = frozenset({
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY),
    (libvirt.VIR_DOMAIN_RUNNING, getattr(libvirt, "VIR_DOMAIN_RUNNING_POSTCOPY_FAILED", 11)),
})
_SECRET_TYPES = {
    libvirt.VIR_SECRET_USAGE_TYPE_VOLUME: "volume",
    libvirt.VIR_SECRET_USAGE_TYPE_CEPH: "ceph",
    libvirt.VIR_SECRET_USAGE_TYPE_ISCSI: "iscsi",
    libvirt.VIR_SECRET_USAGE_TYPE_TLS: "tls",
    libvirt.VIR_SECRET_USAGE_TYPE_VTPM: "vtpm",
}


@dataclass(frozen=True)
class Network:
    """A libvirt network: whether it is started, its port groups, and the host's own bridge that it is a name for."""

    active: bool
    port_groups: tuple[str, ...] = ()
    bridge: str | None = None


@dataclass(frozen=True)
class OtherDomain:
    """A domain of this host that a job is not about: as it runs, as it is defined, and whether it has moved away."""

    name: str
    running: DomainDescription | None
    defined: DomainDescription | None
    moved: MovedNote | None


def _silent(_context: object, _error: object) -> None:
    """libvirt would print each error on stderr as well as raise it."""


libvirt.registerErrorHandler(_silent, None)


@contextmanager
def libvirt_errors(host: str) -> Iterator[None]:
    """Have an error of libvirt's in the `with` come as a MigrationError LIBVIRT_ERROR."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise MigrationError(ErrorCode.LIBVIRT_ERROR, {"host": host, "reason": _reason(error)}) from error


class Hypervisor:
    """A connection to one host's libvirt. `host` is that host's name in error messages."""

    def __init__(self, connection: Any, host: str) -> None:
        self._connection = connection
        self._host = host

    @classmethod
    @contextmanager
    def open(cls, host: str, uri: str = SYSTEM_URI, patience: float = 0.0) -> Iterator[Hypervisor]:
        """Connect for the length of a `with`, trying for `patience` seconds: a libvirtd that has died comes back.

        Raises MigrationError LIBVIRT_UNREACHABLE.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                connection = libvirt.open(uri)
                break
            except libvirt.libvirtError as error:
                if time.monotonic() >= deadline:
                    facts = {"host": host, "reason": _reason(error)}
                    raise MigrationError(ErrorCode.LIBVIRT_UNREACHABLE, facts) from error
            time.sleep(_AGAIN_SECONDS)
        try:
            with libvirt_errors(host):
                yield cls(connection, host)
        finally:
            connection.close()

    def version(self) -> int:
        """libvirt's version: major * 1,000,000 + minor * 1,000 + release."""
        return int(self._connection.getLibVersion())

    def qemu_version(self) -> int:
        """QEMU's version, counted in the same way."""
        return int(self._connection.getVersion())

    def host_capabilities(self) -> str:
        """What the host can do, as libvirt's XML; host/capabilities.py reads it."""
        return str(self._connection.getCapabilities())

    def host_uuid(self) -> str:
        """libvirt's UUID of the host: two hosts with the same one cannot migrate to each other."""
        return capabilities.host_uuid(self._connection.getCapabilities())

    def qemu_ids(self, virtualization: str) -> tuple[int, int]:
        """The user and group ids as which QEMU runs here."""
        return capabilities.dac_ids(self._connection.getCapabilities(), virtualization)

    def _find(self, domain: str) -> Any:
        try:
            return self._connection.lookupByName(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            raise MigrationError(ErrorCode.DOMAIN_MISSING, {"domain": domain, "host": self._host}) from error

    def state(self, domain: str) -> DomainState:
        """How the domain is on this host, ABSENT if there is none."""
        try:
            return _STATES.get(self._find(domain).state()[0], DomainState.PAUSED)
        except MigrationError:
            return DomainState.ABSENT

    def view(self, domain: str) -> DomainView:
        """How the domain is on this host, with all that tells whether it may be left to itself."""
        try:
            found = self._find(domain)
        except MigrationError:
            return DomainView(state=DomainState.ABSENT)
        number, reason = found.state()
        state, persistent = _STATES.get(number, DomainState.PAUSED), bool(found.isPersistent())
        return DomainView(
            state=state, pause=_PAUSES.get(reason, Pause.OTHER) if state is DomainState.PAUSED else Pause.NONE,
            busy=self.busy(domain), migrated=_has_migrated(domain, number, reason), persistent=persistent,
            autostart=bool(persistent and found.autostart()), moved=self.moved_note(domain),
            split=(number, reason) in _SPLIT)

    def moved_note(self, domain: str) -> MovedNote | None:
        """What the domain's definition says of having moved away; None if it says nothing that can be read."""
        try:
            text = self._find(domain).metadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT, _NOTE_URI, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
            words = ElementTree.fromstring(text)  # noqa: S314 - from our own libvirt
            return MovedNote(job_id=words.get("job", ""), destination=words.get("to", ""), at=int(words.get("at", "")))
        except (libvirt.libvirtError, MigrationError, ValueError, ElementTree.ParseError):
            return None

    def set_moved_note(self, domain: str, note: MovedNote | None) -> None:
        """Write into the domain's definition that it has moved away, or take that out again."""
        text = None
        if note is not None:
            text = ElementTree.tostring(
                ElementTree.Element("moved", job=note.job_id, to=note.destination, at=str(note.at)), "unicode")
        self._find(domain).setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, _NOTE_KEY, _NOTE_URI, libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def pause_problem(self, domain: str) -> str | None:
        """Why a domain that does not run is not simply paused; None if somebody paused it."""
        state, reason = self._find(domain).state()
        if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
            return Phrase("asleep")
        return _PAUSE_PROBLEMS.get(reason) if state == libvirt.VIR_DOMAIN_PAUSED else None

    def has_arrived(self, domain: str) -> bool:
        """Whether a domain that was migrated here to be held has all of its memory: it is paused, by nothing else."""
        return tuple(self._find(domain).state()) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)

    def has_managed_save(self, domain: str) -> bool:
        """Whether the memory of the domain lies in a file, to go on from at its next start."""
        return bool(self._find(domain).hasManagedSaveImage(0))

    def name_of(self, uuid: str) -> str | None:
        """The name of the domain with that UUID, if there is one."""
        try:
            return str(self._connection.lookupByUUIDString(uuid).name())
        except libvirt.libvirtError:
            return None

    def migratable_document(self, domain: str) -> str:
        """The domain's XML as it goes to another host: without what it only has from this host's own configuration."""
        return str(self._find(domain).XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE))

    def document(self, domain: str, *, inactive: bool = False) -> str:
        """The domain's XML: of the running domain, or of its persistent definition with nothing left out."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE if inactive else 0
        return str(self._find(domain).XMLDesc(flags))

    def macs(self) -> list[tuple[str, str, DomainState]]:
        """The MAC addresses of all domains here, each with the domain's name and state."""
        found = []
        for domain in self._connection.listAllDomains(0):
            state = _STATES.get(domain.state()[0], DomainState.PAUSED)
            found += [(mac, str(domain.name()), state) for mac in mac_addresses(domain.XMLDesc(0))]
        return found

    def checkpoints(self, domain: str) -> int:
        """How many checkpoints of incremental backups libvirt keeps for the domain."""
        try:
            return len(self._find(domain).listAllCheckpoints(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
            return 0

    def resident_memory(self, domain: str) -> int:
        """How many bytes of the host's memory the domain's QEMU holds; 0 if it does not run."""
        try:
            return int(self._find(domain).memoryStats().get("rss", 0)) * 1024
        except libvirt.libvirtError:
            return 0

    def snapshots(self, domain: str) -> int:
        """How many snapshots libvirt keeps for the domain."""
        return int(self._find(domain).snapshotNum())

    def busy(self, domain: str) -> bool:
        """Whether a job (a migration, a save, a dump) or a block job runs on the domain."""
        found = self._find(domain)
        try:
            if found.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
                return True
            disks = [disk.target for disk in describe(found.XMLDesc(0)).disks if disk.path]
            return any(found.blockJobInfo(target, 0) for target in disks)
        except libvirt.libvirtError as error:
            return _is_busy(error)

    def end_mirrors(self, domain: str) -> bool:
        """Ask QEMU to end the domain's mirrors, which a libvirtd that died may have left; whether there was any.

        No other block job: a backup or a commit that somebody began is none of ours.
        """
        ended = False
        try:
            found = self._find(domain)
            for disk in describe(found.XMLDesc(0)).disks:
                job = found.blockJobInfo(disk.target, 0) if disk.path else None
                if job and job["type"] == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY:
                    ended = True
                    found.blockJobAbort(disk.target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC)
        except (libvirt.libvirtError, MigrationError):
            return True
        return ended

    def machine_problem(self, virtualization: str, architecture: str, machine: str) -> str | None:
        """Why this host cannot run such a machine; None if it can."""
        try:
            self._connection.getDomainCapabilities(None, architecture, machine, virtualization)
        except libvirt.libvirtError as error:
            return _reason(error)
        return None

    def host_model(self, domain: DomainDescription) -> str | None:
        """The CPU that QEMU here would give such a domain at best, as a `<cpu>` element."""
        return capabilities.host_model(self._connection.getDomainCapabilities(
            None, domain.architecture, None, domain.virtualization))

    def cpu_problem(self, domain: DomainDescription, cpu: str) -> str | None:
        """Why this host cannot run such a domain with that CPU, a `<cpu>` element; None if it can."""
        try:
            # Whatever the machine type: that it is missing is another obstacle.
            self._connection.compareHypervisorCPU(
                None, domain.architecture, None, domain.virtualization, cpu,
                libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
                return _reason(error)
            # On architectures without named models there is nothing to compare.
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        return None

    def network(self, name: str) -> Network | None:
        """The libvirt network of that name; None if there is none."""
        try:
            found = self._connection.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                raise
            return None
        document = found.XMLDesc(0)
        return Network(
            bool(found.isActive()), capabilities.port_groups(document), capabilities.foreign_bridge(document))

    def pool(self, name: str) -> str | None:
        """The directory of the active storage pool of that name; None if there is none that has one."""
        for found in self._connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            if found.name() == name:
                return capabilities.pool_directory(found.XMLDesc(0))
        return None

    def pools_on(self, directory: str) -> list[tuple[str, bool]]:
        """The storage pools on a directory, each with whether it is active."""
        pools = self._connection.listAllStoragePools(0)
        return [(str(pool.name()), bool(pool.isActive())) for pool in pools
                if capabilities.pool_directory(pool.XMLDesc(0)) == directory]

    def volume_path(self, pool: str, volume: str) -> str | None:
        """Where a volume of a storage pool lies, as far as libvirt knows; a pool of files need not be active."""
        try:
            found = self._connection.storagePoolLookupByName(pool)
            directory = capabilities.pool_directory(found.XMLDesc(0))
            return f"{directory}/{volume}" if directory else str(found.storageVolLookupByName(volume).path())
        except libvirt.libvirtError:
            return None

    def has_secret(self, secret: str) -> bool:
        """Whether libvirt here has that secret: a UUID or `usage TYPE NAME`."""
        if not secret.startswith("usage "):
            return any(each.UUIDString() == secret for each in self._connection.listAllSecrets(0))
        return any(
            secret == f"usage {_SECRET_TYPES.get(each.usageType(), '')} {each.usageID()}"
            for each in self._connection.listAllSecrets(0))

    def start_dirty_rate(self, domain: str, seconds: int) -> bool:
        """Have QEMU count for so long how much memory the guest writes; False if this libvirt or QEMU cannot."""
        try:
            self._find(domain).startDirtyRateCalc(seconds, 0)
        except (AttributeError, libvirt.libvirtError):
            return False
        return True

    def dirty_rate(self, domain: str) -> int | None:
        """What was counted, in bytes per second; None while it is not done."""
        found = self._statistics(domain, libvirt.VIR_DOMAIN_STATS_DIRTYRATE)
        if found.get("dirtyrate.calc_status") != libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED:
            return None
        return int(found.get("dirtyrate.megabytes_per_second", 0)) * 1024 * 1024

    def written_bytes(self, domain: str) -> int:
        """How much the guest has written to its disks since it was started."""
        found = self._statistics(domain, libvirt.VIR_DOMAIN_STATS_BLOCK)
        return sum(int(value) for name, value in found.items() if name.endswith(".wr.bytes"))

    def _statistics(self, domain: str, kind: int) -> dict[str, Any]:
        found: dict[str, Any] = self._connection.domainListGetStats([self._find(domain)], kind)[0][1]
        return found

    def trim(self, domain: str) -> None:
        """Have the guest's agent tell the disks which blocks its file systems do not use. Raises MigrationError."""
        try:
            self._find(domain).fSTrim(None, 0)
        except libvirt.libvirtError as error:
            facts = {"host": self._host, "domain": domain, "reason": _reason(error)}
            raise MigrationError(ErrorCode.TRIM_FAILED, facts) from error

    def set_clock(self, domain: str) -> None:
        """Have the guest's agent set the guest's time by its hardware clock, which goes on while a guest stands still.

        Raises MigrationError.
        """
        try:
            self._find(domain).setTime({"seconds": 0, "nseconds": 0}, libvirt.VIR_DOMAIN_TIME_SYNC)
        except libvirt.libvirtError as error:
            raise MigrationError(ErrorCode.LIBVIRT_ERROR, {"host": self._host, "reason": _reason(error)}) from error

    def agent_problem(self, domain: str) -> str | None:
        """Why the guest's agent cannot be asked for anything; None if it answers."""
        try:
            self._find(domain).getTime()
        except libvirt.libvirtError as error:
            return _reason(error)
        return None

    def is_persistent(self, domain: str) -> bool:
        """Whether the domain stays defined when it is shut off."""
        return bool(self._find(domain).isPersistent())

    def define(self, document: str) -> None:
        """Make the domain in `document`, which came from libvirt, persistent."""
        self._connection.defineXML(document)

    def autostart(self, domain: str) -> bool:
        """Whether the domain starts with the host."""
        found = self._find(domain)
        return bool(found.isPersistent() and found.autostart())

    def set_autostart(self, domain: str, enabled: bool) -> None:
        """Have the domain start with the host, or not."""
        self._find(domain).setAutostart(int(enabled))

    def migrate(self, domain: str, target: MigrationTarget) -> None:
        """Move the running domain; returns when it runs over there. Raises MigrationError MIGRATION_FAILED."""
        try:
            self._find(domain).migrateToURI3(target.connection, target.parameters(), target.flags())
        except libvirt.libvirtError as error:
            facts = {"domain": domain, "host": self._host, "reason": _reason(error)}
            raise MigrationError(ErrorCode.MIGRATION_FAILED, facts) from error

    def job_statistics(self, domain: str) -> JobStatistics | None:
        """How far the domain's migration is; None while libvirt has nothing to tell."""
        try:
            values = self._find(domain).jobStats()
        except (libvirt.libvirtError, MigrationError):
            return None
        # libvirt says "no job" too, not only nothing.
        return JobStatistics.of(values) if values.get("type") != libvirt.VIR_DOMAIN_JOB_NONE else None

    def mirrors(self, domain: str, targets: tuple[str, ...]) -> tuple[DiskProgress, ...]:
        """How far the mirror of each of these disks is; without those that have none now."""
        found = []
        try:
            for target in targets:
                job = self._find(domain).blockJobInfo(target, 0)
                if job:
                    found.append(DiskProgress(target, int(job["cur"]), int(job["end"])))
        except (libvirt.libvirtError, MigrationError):
            return ()
        return tuple(found)

    def set_downtime_limit(self, domain: str, milliseconds: int) -> None:
        """Have a running migration switch over once the rest crosses in so long."""
        with libvirt_errors(self._host):
            self._find(domain).migrateSetMaxDowntime(milliseconds)

    def start_post_copy(self, domain: str) -> None:
        """Switch a migration that copies memory to post-copy. From then on nothing can be taken back."""
        with libvirt_errors(self._host):
            self._find(domain).migrateStartPostCopy()

    def is_split(self, domain: str) -> bool | None:
        """Whether a part of the domain's memory is on the other host, as in post-copy; None if that cannot be told."""
        try:
            return tuple(self._find(domain).state()) in _SPLIT
        except (libvirt.libvirtError, MigrationError):
            return None

    def is_whole(self, domain: str) -> bool:
        """Whether the domain certainly has all of its memory here, and no migration holds it paused."""
        try:
            view = self.view(domain)
        except (libvirt.libvirtError, MigrationError):
            return False
        return view.has_it and not view.half

    def suspend(self, domain: str) -> None:
        """Pause the guest. If it is being migrated, libvirt lets it go on where it ends up, here or there."""
        with libvirt_errors(self._host):
            self._find(domain).suspend()

    def resume_if_suspended(self, domain: str) -> None:
        """Let the guest go on if it was paused by suspend() alone, not by a migration."""
        try:
            found = self._find(domain)
            if tuple(found.state()) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER):
                found.resume()
        except (libvirt.libvirtError, MigrationError):
            return

    def resume(self, domain: str) -> None:
        """Let a paused domain go on. Raises MigrationError LIBVIRT_ERROR or DOMAIN_MISSING."""
        with libvirt_errors(self._host):
            self._find(domain).resume()

    def resumption(self, domain: str) -> Callable[[], None]:
        """Look the domain up now; what is returned does as resume(), with a single question to libvirt."""
        with libvirt_errors(self._host):
            found = self._find(domain)

        def resume() -> None:
            with libvirt_errors(self._host):
                found.resume()

        return resume

    def drop(self, domain: str) -> None:
        """End a domain that never ran here, with its definition if that came with it.

        Its NVRAM stays: whoever made it removes it. Raises MigrationError LIBVIRT_ERROR or DOMAIN_MISSING.
        """
        with libvirt_errors(self._host):
            found = self._find(domain)
            if found.isActive():
                found.destroy()
            if self._is_defined(domain):
                found.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)

    def undefine(self, domain: str) -> None:
        """Forget the definition of a domain that does not run. Its NVRAM and its TPM's state stay."""
        flags = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | getattr(libvirt, "VIR_DOMAIN_UNDEFINE_KEEP_TPM", 0)
        self._find(domain).undefineFlags(flags)

    def others(self, domain: str) -> list[OtherDomain]:
        """All domains here but this one."""
        found = []
        for other in self._connection.listAllDomains(0):
            try:
                running = describe(other.XMLDesc(0)) if other.isActive() else None
                defined = describe(other.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if other.isPersistent() else None
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
                continue
            found.append(OtherDomain(str(other.name()), running, defined, self.moved_note(other.name())))
        return [each for each in found if each.name != domain]

    def _is_defined(self, domain: str) -> bool:
        try:
            return bool(self._find(domain).isPersistent())
        except MigrationError:
            return False

    def has_job(self, domain: str) -> bool:
        """Whether libvirt runs a job, such as a migration, on the domain; its block jobs aside."""
        try:
            return bool(self._find(domain).jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
        except libvirt.libvirtError as error:
            return _is_busy(error)
        except MigrationError:
            return False

    def has_foreign_job(self, domain: str) -> bool:
        """Whether libvirt's job on the domain is certainly no migration: a backup, say, that somebody has begun."""
        try:
            values = self._find(domain).jobStats()
        except (libvirt.libvirtError, MigrationError):
            return False
        migrations = (libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, libvirt.VIR_DOMAIN_JOB_OPERATION_UNKNOWN)
        return (values.get("type") != libvirt.VIR_DOMAIN_JOB_NONE
                and values.get("operation", libvirt.VIR_DOMAIN_JOB_OPERATION_UNKNOWN) not in migrations)

    def abort_job(self, domain: str) -> None:
        """Ask libvirt to end the domain's job; after switchover, or without a job, nothing happens."""
        try:
            self._find(domain).abortJob()
        except (libvirt.libvirtError, MigrationError):
            return

    def finished_job(self, domain: str) -> MigrationReport:
        """What libvirt counted in the migration that ended last; it keeps the figures for `virsh domjobinfo`."""
        flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
        values = self._find(domain).jobStats(flags)
        return MigrationReport(
            disk_bytes=int(values.get("disk_processed", 0)), memory_bytes=int(values.get("memory_processed", 0)),
            downtime=int(values.get("downtime", -1)))


def _reason(error: Any) -> str:
    """libvirt's message, without the full stop that a sentence around it would double."""
    return str(error.get_error_message() or error).rstrip(".")


def _has_migrated(domain: str, number: int, reason: int) -> bool:
    """Whether a domain is shut off because it was migrated away; a libvirtd that was started anew has it in a log."""
    return number == libvirt.VIR_DOMAIN_SHUTOFF and (
        reason == libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED
        or (reason == libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN and last_end(domain) == "migrated"))


def _is_busy(error: Any) -> bool:
    """What an error says to the question for jobs: a domain that does not run has none. Raises any other."""
    if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
        return False
    # A job that does not let even a question through, and one that arrives: its statistics are the source's alone.
    if error.get_error_code() in (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
        return True
    raise error


def libvirt_daemon(sockets: dict[LibvirtDaemon, bool]) -> LibvirtDaemon:
    """Which daemon serves qemu:///system, given which sockets exist: the monolithic one where both do."""
    return LibvirtDaemon.VIRTQEMUD if sockets == {
        LibvirtDaemon.LIBVIRTD: False, LibvirtDaemon.VIRTQEMUD: True} else LibvirtDaemon.LIBVIRTD


class MigrationThread(threading.Thread):
    """One migration in a thread, and on a connection, of its own.

    libvirt-python blocks in it without holding the interpreter's lock. Two threads that share a connection now and
    then wait for each other until the migration ends (seen with libvirt 9.0, in 3 of 30 runs), and then nobody
    could cancel it.
    """

    def __init__(self, host: str, domain: str, target: MigrationTarget) -> None:
        super().__init__(name=f"migrate-{domain}", daemon=True)
        self._host = host
        self._domain = domain
        self._target = target
        self.error: Exception | None = None

    def run(self) -> None:
        """Migrate, and keep the error if one came."""
        try:
            with Hypervisor.open(self._host) as hypervisor:
                hypervisor.migrate(self._domain, self._target)
        except Exception as error:
            self.error = error
