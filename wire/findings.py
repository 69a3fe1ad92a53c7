"""What a check is called, whether it can be skipped, and what one found: the vocabulary of CHECK on both hosts."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Optional

from constant import Severity
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.forms import check_directory
from wire.phrase import Phrase, Text, joined, template
from wire.records import Obstacle
from wire.schema import record


class Check(str, Enum):
    """The stable name of a check, the same on the wire, in JSON output and for --skip-check."""

    TOOLS = "tools"
    LIBVIRT = "libvirt"
    # On the source.
    DOMAIN = "domain"
    DOMAIN_STATE = "domain-state"
    DOMAIN_JOB = "domain-job"
    DOMAIN_NAME = "domain-name"
    SNAPSHOTS = "snapshots"
    CHECKPOINTS = "checkpoints"
    DISK_ARGUMENT = "disk-argument"
    MAPS = "maps"
    DISKS = "disks"
    BACKING_CHAIN = "backing-chain"
    DISK_CACHE = "disk-cache"
    HOST_DEVICES = "host-devices"
    SHARED_FOLDERS = "shared-folders"
    TPM = "tpm"
    FIRMWARE = "firmware"
    FILES_TO_SEND = "files-to-send"
    SPECIAL_DEVICES = "special-devices"
    INVARIANT_TSC = "invariant-tsc"
    NESTED_VIRTUALIZATION = "nested-virtualization"
    GUEST_AGENT = "guest-agent"
    SYNCHRONOUS_WRITES = "synchronous-writes"
    # From the source to the destination.
    ALLOWED_DESTINATION = "allowed-destination"
    SSH = "ssh"
    REMOTE_LIBVIRT = "remote-libvirt"
    HOST_UUID = "host-uuid"
    CPU = "cpu"
    WAY_BACK = "way-back"
    MIGRATION_PORTS = "migration-ports"
    # On the destination.
    VERSIONS = "versions"
    VIRTUALIZATION = "virtualization"
    MACHINE_TYPE = "machine-type"
    EMULATOR = "emulator"
    MEMORY = "memory"
    HUGE_PAGES = "huge-pages"
    CPUS = "cpus"
    DISK_SPACE = "disk-space"
    VIRTUAL_SIZE = "virtual-size"
    TARGET_PATH = "target-path"
    TARGET_DIRECTORY = "target-directory"
    STORAGE_POOL = "storage-pool"
    CONF_FILE = "conf-file"
    BOOT_FILES = "boot-files"
    REMOVABLE_MEDIA = "removable-media"
    TPM_EMULATOR = "tpm-emulator"
    SERIAL_PORTS = "serial-ports"
    NETWORKS = "networks"
    VM_NAME = "vm-name"
    VM_UUID = "vm-uuid"
    MAC_ADDRESSES = "mac-addresses"
    GRAPHICS = "graphics"
    SECRETS = "secrets"
    SECURITY_MODEL = "security-model"
    SSH_USER = "ssh-user"
    NBD_FLAW = "nbd-flaw"
    POST_COPY = "post-copy"
    # In the controller, from what both hosts told.
    CLOCK = "clock"
    LINK_RATE = "link-rate"
    DIRTY_RATE = "dirty-rate"
    DISK_WRITE_RATE = "disk-write-rate"


@dataclass(frozen=True)
class CheckText:
    """What a check says where nothing is wrong; `{names}` are filled from the facts that it saw."""

    fine: str
    skippable: bool = False
    """Whether somebody who knows better may go on: then the migration at worst fails and is rolled back."""


CHECKS: Mapping[Check, CheckText] = MappingProxyType({
    Check.TOOLS: CheckText("{host} has {tools}"),
    Check.LIBVIRT: CheckText("libvirt {version} on {host} answers"),
    Check.DOMAIN: CheckText("VM {domain} is on {host}"),
    Check.DOMAIN_STATE: CheckText("it is {state}"),
    Check.DOMAIN_JOB: CheckText("no other job is at work on it"),
    Check.DOMAIN_NAME: CheckText("its name fits the socket paths"),
    Check.SNAPSHOTS: CheckText("it has no snapshots"),
    Check.CHECKPOINTS: CheckText("it has no checkpoints", skippable=True),
    Check.DISK_ARGUMENT: CheckText("its disks are {disks}"),
    Check.MAPS: CheckText("maps of disks and networks: {maps}"),
    Check.DISKS: CheckText("{disks} can be moved"),
    Check.BACKING_CHAIN: CheckText("every layer of its disks can be read ({layers} below the top)"),
    Check.DISK_CACHE: CheckText("its disks are cached as {modes}"),
    Check.HOST_DEVICES: CheckText("it holds no device of {host}"),
    Check.SHARED_FOLDERS: CheckText("it shares no folder with {host}"),
    Check.TPM: CheckText("it has no TPM, or one whose state goes along"),
    Check.FIRMWARE: CheckText("it has no NVRAM, or one that goes along"),
    Check.FILES_TO_SEND: CheckText("files that have to be there besides what is mirrored: {count}"),
    Check.SPECIAL_DEVICES: CheckText("it has no device that QEMU cannot move"),
    Check.INVARIANT_TSC: CheckText("its CPU has no invariant TSC"),
    Check.NESTED_VIRTUALIZATION: CheckText("it was not made to run VMs of its own"),
    Check.GUEST_AGENT: CheckText("its guest agent answers, or is not needed", skippable=True),
    Check.SYNCHRONOUS_WRITES: CheckText("its writes are not to be synchronous, or can be"),
    Check.ALLOWED_DESTINATION: CheckText("{host} may migrate to {destination}"),
    Check.SSH: CheckText("root on {host} logs in as {user}@{destination}, whose host key is known"),
    Check.REMOTE_LIBVIRT: CheckText("libvirt {version} on {destination} serves {user}"),
    Check.HOST_UUID: CheckText("the hosts have different UUIDs for libvirt"),
    Check.CPU: CheckText("the CPU of {destination} can run it ({cpu})", skippable=True),
    Check.WAY_BACK: CheckText("it can come back from {destination}", skippable=True),
    Check.MIGRATION_PORTS: CheckText("{host} reaches TCP port {port} on {destination}", skippable=True),
    Check.VERSIONS: CheckText("libvirt {libvirt} and QEMU {qemu} are no older than the source's", skippable=True),
    Check.VIRTUALIZATION: CheckText("{host} runs VMs of type {type} for {architecture}"),
    Check.MACHINE_TYPE: CheckText("QEMU there has the machine type {machine}"),
    Check.EMULATOR: CheckText("{path} is there"),
    Check.MEMORY: CheckText("{free} MiB of memory available, {needed} MiB needed", skippable=True),
    Check.HUGE_PAGES: CheckText("it needs no huge pages, or they are free"),
    Check.CPUS: CheckText("virtual CPUs: {vcpus}, CPUs there: {cpus}", skippable=True),
    Check.DISK_SPACE: CheckText("{free} MiB free, {needed} MiB to be written", skippable=True),
    Check.VIRTUAL_SIZE: CheckText("its disks have room to grow to their full size", skippable=True),
    Check.TARGET_PATH: CheckText("{paths} is free there"),
    Check.TARGET_DIRECTORY: CheckText("{paths} is there and can be written"),
    Check.STORAGE_POOL: CheckText("storage pool there: {pools}", skippable=True),
    Check.CONF_FILE: CheckText("{path} can take its XML"),
    Check.BOOT_FILES: CheckText("it names no kernel or firmware of the host's, or that is there or is sent"),
    Check.REMOVABLE_MEDIA: CheckText("its drives are empty, or the images in them are sent or the same there"),
    Check.TPM_EMULATOR: CheckText("it needs no swtpm, or that is there"),
    Check.SERIAL_PORTS: CheckText("what its serial ports lead to is there"),
    Check.NETWORKS: CheckText("its networks there: {networks}"),
    Check.VM_NAME: CheckText("its name is free there"),
    Check.VM_UUID: CheckText("its UUID is free there"),
    Check.MAC_ADDRESSES: CheckText("nobody there has its MAC addresses", skippable=True),
    Check.GRAPHICS: CheckText("its display finds its port and address there"),
    Check.SECRETS: CheckText("the secrets that it needs are there"),
    Check.SECURITY_MODEL: CheckText("confinement there: {models}"),
    Check.SSH_USER: CheckText("{user} may use libvirt there", skippable=True),
    Check.NBD_FLAW: CheckText("QEMU {version} there: {why}", skippable=True),
    Check.POST_COPY: CheckText("post-copy: {why}", skippable=True),
    Check.CLOCK: CheckText("the clocks are less than {seconds} s apart", skippable=True),
    Check.LINK_RATE: CheckText("the link carries {rate} MiB/s", skippable=True),
    Check.DIRTY_RATE: CheckText("the guest writes {written} MiB/s of memory", skippable=True),
    Check.DISK_WRITE_RATE: CheckText("the guest writes {written} MiB/s to its disks", skippable=True),
})


@record
class Finding:
    """What one check saw: the facts, and the code of the error where they are not fine."""

    check: Check
    severity: Severity
    facts: Mapping[str, Text]
    code: Optional[ErrorCode] = None
    skipped: bool = False
    """Whether the admin has asked not to mind it: then it stops nothing."""

    def __post_init__(self) -> None:
        if (self.code is None) is not (self.severity is Severity.FINE):
            raise ValueError("a finding that is fine has no error, any other has one")

    def error(self) -> MigrationError:
        """What stands in the way, as an exception for its words. Only where it is not fine."""
        if self.code is None:
            raise ValueError("nothing stands in the way")
        return MigrationError(self.code, self.facts)

    @property
    def message(self) -> Phrase:
        """One sentence, or where it is fine a phrase: what was seen."""
        return Phrase(CHECKS[self.check].fine, self.facts) if self.code is None else self.error().message

    @property
    def hint(self) -> str:
        """What to do about it, empty where it is fine."""
        return "" if self.code is None else self.error().hint


@record
class CheckReport:
    """The result of CHECK_SOURCE, CHECK_LINK and CHECK_DESTINATION; only the source's has facts of the domain."""

    findings: tuple[Finding, ...]
    facts: Optional[DomainFacts] = None
    directory: Optional[str] = None
    """From the destination: the directory of the storage pool that the admin named."""

    def __post_init__(self) -> None:
        if self.directory is not None:
            check_directory(template("Pool directory"), self.directory)


def not_fine(check: Check, severity: Severity, error: MigrationError) -> Finding:
    """The finding that such an error is; what libvirt said at great length is cut."""
    obstacle = Obstacle.of(error)
    return Finding(check=check, severity=severity, facts=obstacle.facts, code=obstacle.code)


def skip(findings: Iterable[Finding], skipped: Container[Check]) -> tuple[Finding, ...]:
    """The same findings; what would stop the migration, or warn, is only told where that check is to be skipped."""
    return tuple(
        replace(finding, severity=Severity.WARNS, skipped=True)
        if finding.severity is not Severity.FINE and finding.check in skipped else finding for finding in findings)


def skippable() -> list[str]:
    """The names that --skip-check takes."""
    return [check.value for check, text in CHECKS.items() if text.skippable]


def parse_skipped(name: str) -> Check:
    """The check of that name. Raises MigrationError CHECK_UNKNOWN or CHECK_NOT_SKIPPABLE."""
    known = {check.value: check for check in Check}
    facts = {"name": name, "names": joined(skippable())}
    if name not in known:
        raise MigrationError(ErrorCode.CHECK_UNKNOWN, facts)
    if not CHECKS[known[name]].skippable:
        raise MigrationError(ErrorCode.CHECK_NOT_SKIPPABLE, facts)
    return known[name]
