"""Reads a libvirt domain's XML: pure functions from a document to what a migration has to know of it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree  # the documents are libvirt's own, never out of a datagram
from dataclasses import dataclass


@dataclass(frozen=True)
class DiskElement:
    """One `<disk>`: where its data is and how it is used."""

    target: str
    device: str
    kind: str
    """The disk's type: file, block, network, volume ..."""
    path: str | None
    format: str | None
    backed: bool
    encrypted: bool
    read_only: bool
    shareable: bool


@dataclass(frozen=True)
class DomainDescription:
    """What a domain's XML says that matters to a migration. Memory in bytes."""

    name: str
    uuid: str
    virtualization: str
    architecture: str
    machine: str
    emulator: str | None
    memory: int
    kernel: str | None
    initrd: str | None
    disks: tuple[DiskElement, ...]
    networks: tuple[str, ...]
    unsupported: tuple[str, ...]
    """What it has that cannot be moved yet, in words."""
    dac_label: str | None
    """The `+uid:+gid` as which its QEMU runs, if the XML says so."""


# Elements whose presence stops a migration for now, by path, with the words for the admin.
_UNSUPPORTED = (
    ("devices/hostdev", "a host device (passthrough)"),
    ("devices/interface[@type='hostdev']", "a host device (network passthrough)"),
    ("devices/filesystem", "a shared folder"),
    ("devices/tpm", "a TPM"),
    ("os/loader", "UEFI firmware"),
    ("os[@firmware='efi']", "UEFI firmware"),
    ("devices/shmem", "shared memory with the host"),
)
# libvirt's units of memory (formatdomain.rst, memory); it writes KiB itself.
_UNITS = {
    "b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 1000**2, "M": 1024**2, "MiB": 1024**2,
    "GB": 1000**3, "G": 1024**3, "GiB": 1024**3, "TB": 1000**4, "T": 1024**4, "TiB": 1024**4,
}


def describe(document: str) -> DomainDescription:
    """What the XML of one domain says."""
    domain = ElementTree.fromstring(document)  # noqa: S314 - from the host's own libvirt
    memory = domain.find("memory")
    kind = domain.find("os/type")
    seclabel = domain.find("seclabel[@model='dac']/label")
    return DomainDescription(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", ""),
        virtualization=domain.get("type", ""),
        architecture=kind.get("arch", "") if kind is not None else "",
        machine=kind.get("machine", "") if kind is not None else "",
        emulator=domain.findtext("devices/emulator"),
        memory=_bytes(memory) if memory is not None else 0,
        kernel=domain.findtext("os/kernel"),
        initrd=domain.findtext("os/initrd"),
        disks=tuple(_disk(element) for element in domain.findall("devices/disk")),
        networks=tuple(
            name for name in (_network(element) for element in domain.findall("devices/interface")) if name),
        unsupported=tuple(dict.fromkeys(words for path, words in _UNSUPPORTED if domain.find(path) is not None)),
        dac_label=seclabel.text if seclabel is not None else None,
    )


def _bytes(element: ElementTree.Element) -> int:
    return int(element.text or "0") * _UNITS.get(element.get("unit", "KiB"), 1024)


def _disk(element: ElementTree.Element) -> DiskElement:
    source, driver, target = element.find("source"), element.find("driver"), element.find("target")
    backing = element.find("backingStore")
    return DiskElement(
        target=target.get("dev", "") if target is not None else "",
        device=element.get("device", "disk"),
        kind=element.get("type", ""),
        path=None if source is None else source.get("file") or source.get("dev"),
        format=driver.get("type") if driver is not None else None,
        # An empty <backingStore/> ends the chain; one with a type goes on.
        backed=backing is not None and backing.get("type") is not None,
        encrypted=element.find(".//encryption") is not None,
        read_only=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
    )


def _network(element: ElementTree.Element) -> str | None:
    """`bridge:NAME` or `network:NAME` for an interface that is connected to one."""
    source = element.find("source")
    kind = element.get("type", "")
    name = source.get(kind) if source is not None and kind in ("bridge", "network") else None
    return f"{kind}:{name}" if name else None


def dac_ids(capabilities: str, virtualization: str) -> tuple[int, int]:
    """The user and group ids as which libvirt runs QEMU, from the host's capabilities; 0, 0 if they do not say."""
    root = ElementTree.fromstring(capabilities)  # noqa: S314 - from the host's own libvirt
    for model in root.findall("host/secmodel"):
        if model.findtext("model") == "dac":
            labels = {label.get("type"): label.text or "" for label in model.findall("baselabel")}
            return parse_dac_label(labels.get(virtualization, ""))
    return 0, 0


def parse_dac_label(label: str) -> tuple[int, int]:
    """The ids in a label such as `+64055:+64055`; 0, 0 for one that names no numbers."""
    user, _, group = label.partition(":")
    if user.lstrip("+").isdigit() and group.lstrip("+").isdigit():
        return int(user.lstrip("+")), int(group.lstrip("+"))
    return 0, 0


def host_uuid(capabilities: str) -> str:
    """libvirt's UUID of the host."""
    return ElementTree.fromstring(capabilities).findtext("host/uuid", "")  # noqa: S314 - from libvirt
