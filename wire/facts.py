"""What a host tells of itself and of a domain: the facts that the other host, and the plan, are made from.

Their type hints are read at run time to check what comes in, so they must be such as Python 3.9 can evaluate.
"""

from __future__ import annotations

import re
from typing import Optional

from constant import IN_POOL, LAYERS_LIMIT, NVRAM_LIMIT, DomainState, FilePurpose, ImageFormat, LibvirtDaemon
from wire.forms import check_path, check_tokens
from wire.phrase import Phrase, template
from wire.schema import record


@record
class LayerFacts:
    """An image below the top one of a disk: read-only, and so sent as a file. Sizes in bytes."""

    path: str
    format: ImageFormat
    virtual_size: int
    backing_name: Optional[str] = None
    """How its header names the next layer."""
    allocated: int = 0

    def __post_init__(self) -> None:
        check_path(template("Layer path"), self.path)
        if self.virtual_size <= 0 or self.allocated < 0:
            raise ValueError("layer sizes out of range")


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
    extended_l2: bool = False
    lazy_refcounts: bool = False
    refcount_bits: int = 16
    compression: str = "zlib"
    """These four only mean something for qcow2."""
    backing_name: Optional[str] = None
    """How its header names the next layer."""
    layers: tuple[LayerFacts, ...] = ()
    """The images below it, the nearest first."""
    sent: bool = False
    """Whether it is sent as a file, because QEMU does not mirror it."""
    preallocated: bool = False
    """Whether much of a qcow2 image lies in holes of its file, which QEMU mirrors as zeros."""
    content: int = 0
    """How much data QEMU mirrors of it: more than `allocated` where clusters are compressed. 0 if not measured."""

    def __post_init__(self) -> None:
        check_path(template("Disk path"), self.path)
        if self.virtual_size <= 0 or min(self.allocated, self.content) < 0:
            raise ValueError("disk sizes out of range")
        if not re.fullmatch(r"[a-z][a-z0-9]{1,15}", self.target):
            raise ValueError("disk target out of range")
        if self.format is ImageFormat.QCOW2:
            power_of_two = self.cluster_size & (self.cluster_size - 1) == 0
            if not (512 <= self.cluster_size <= 2 * 1024 * 1024 and power_of_two and self.compat in ("1.1", "0.10")):
                raise ValueError("no such qcow2 image")
            if self.refcount_bits not in (1, 2, 4, 8, 16, 32, 64) or self.compression not in ("zlib", "zstd"):
                raise ValueError("no such qcow2 image")
        elif self.cluster_size or self.compat or self.layers or self.preallocated:
            raise ValueError("a raw image has neither clusters, a version nor layers")
        if len(self.layers) > LAYERS_LIMIT or (self.backing_name is not None) is not bool(self.layers):
            raise ValueError("a chain that is too long, or broken")

    @property
    def copied(self) -> int:
        """What crosses of it, and what the copy then takes of the other host's disk."""
        return max(self.allocated, self.content)


@record
class FileFacts:
    """A file that is not mirrored but sent over SSH, if the destination lacks it. Sizes in bytes."""

    path: str
    purpose: FilePurpose
    length: int
    allocated: int
    mode: int
    """Its permission bits."""
    target: str = ""
    """The drive or disk that it is in."""

    def __post_init__(self) -> None:
        check_path(template("File path"), self.path)
        if min(self.length, self.allocated) < 0 or not 0 <= self.mode <= 0o777:
            raise ValueError("a size or mode out of range")

    @property
    def pooled(self) -> bool:
        """Whether it belongs where the images are."""
        return self.purpose in IN_POOL


@record
class NvramFacts:
    """The file with the variables of UEFI firmware. Sizes in bytes."""

    path: str
    format: ImageFormat
    length: int

    def __post_init__(self) -> None:
        check_path(template("NVRAM path"), self.path)
        if not 0 < self.length <= NVRAM_LIMIT:
            raise ValueError("no NVRAM is so long")


def version_text(number: int) -> str:
    """libvirt's way of counting versions, the usual way; 0 is that of one that does not answer."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" if number else Phrase("not answering")


@record
class InterfaceFacts:
    """One network interface of the domain, and what it is connected to on the host."""

    kind: str
    """The interface's type: network, bridge, direct (macvtap), user ..."""
    source: str
    """The name of the network, bridge or host device; empty where the type has none."""
    mac: str
    portgroup: Optional[str] = None


@record
class GraphicsFacts:
    """One display that listens. Port -1 is one that libvirt chooses, as it does again on the other host."""

    kind: str
    port: int
    address: Optional[str] = None


@record
class SerialFacts:
    """What a serial port leads to on the host: a path that must exist, or a file that QEMU makes in its directory."""

    path: str
    must_exist: bool

    def __post_init__(self) -> None:
        check_path(template("Serial port's path"), self.path)


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
    resident: int = 0
    """How much of the memory QEMU holds on the host: about what has to cross."""
    state: DomainState = DomainState.RUNNING
    persistent: bool = True
    files: tuple[FileFacts, ...] = ()
    """What is not mirrored and has to be there: layers, media, boot files; of a VM that is shut off, everything."""
    nvram: Optional[NvramFacts] = None
    firmware: Optional[str] = None
    """The program of its firmware, which comes with the host's own packages."""
    has_tpm: bool = False
    emulator: Optional[str] = None
    vcpus: int = 1
    last_cpu: int = -1
    """The highest number of a host CPU that it is pinned to; -1 if it is not."""
    last_node: int = -1
    """The highest number of a NUMA node that its memory is bound to; -1 if it is not."""
    huge_page: int = 0
    """The size of its huge pages in KiB; 0 for ordinary memory."""
    interfaces: tuple[InterfaceFacts, ...] = ()
    graphics: tuple[GraphicsFacts, ...] = ()
    serial_ports: tuple[SerialFacts, ...] = ()
    secrets: tuple[str, ...] = ()
    """The libvirt secrets it needs, each a UUID or `usage TYPE NAME`."""
    security_models: tuple[str, ...] = ()
    """What confines it besides file ownership: apparmor, selinux."""
    libvirt_version: int = 0
    qemu_version: int = 0
    """The source's, as libvirt counts; 0 if it is not known."""

    @property
    def mirrored(self) -> tuple[DiskFacts, ...]:
        """The disks that QEMU itself copies."""
        return tuple(disk for disk in self.disks if not disk.sent)

    @property
    def memory_to_move(self) -> int:
        """How many bytes of memory have to cross, as far as is known: no more than QEMU holds of it."""
        if self.state is DomainState.SHUT_OFF:
            return 0
        return min(self.resident or self.memory, self.memory)

    def __post_init__(self) -> None:
        for path in (self.emulator, self.firmware):
            if path is not None:
                check_path(template("Path"), path)
        if self.state is DomainState.ABSENT:
            raise ValueError("the facts of a VM that is not there")
        if min(self.memory, self.resident, self.huge_page, self.vcpus - 1) < 0:
            raise ValueError("a size is negative")


@record
class HostFacts:
    """What HELLO tells of a host. Times in milliseconds since 1970, sizes in bytes.

    `epoch` is new when the agent started without the journal of its requests; `challenge` lives CHALLENGE_SECONDS.
    """

    version: str
    hostname: str
    libvirt_version: int
    """As libvirt counts: major * 1,000,000 + minor * 1,000 + release; 0 if it does not answer."""
    daemon: LibvirtDaemon
    epoch: str
    challenge: str
    qemu_version: int = 0
    """In the same way."""
    clock: int = 0
    """The host's own time when it answered."""
    free_slots: int = 0
    slots: int = 0
    """How many more jobs it takes now, and how many altogether."""
    space_path: str = ""
    space_free: int = 0
    """The directory of libvirt's images, and what is free there."""

    def __post_init__(self) -> None:
        check_tokens(self.epoch, self.challenge)
