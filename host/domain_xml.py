"""Reads a libvirt domain's XML: pure functions from a document to what a migration has to know of it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree  # the documents are libvirt's own, never out of a datagram
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from constant import FilePurpose
from wire.facts import GraphicsFacts, InterfaceFacts, SerialFacts
from wire.findings import Check
from wire.phrase import Phrase, template


@dataclass(frozen=True)
class DiskElement:
    """One `<disk>`: where its data is and how it is used."""

    target: str
    device: str
    kind: str
    """The disk's type: file, block, network, volume ..."""
    path: str | None
    format: str | None
    encrypted: bool
    read_only: bool
    shareable: bool
    transient: bool = False
    cache: str = "default"
    layers: tuple[tuple[str, str | None], ...] = ()
    """Path and format of the images below the top one, as far as the XML names them; a remote one is `?`."""
    volume: tuple[str, str] | None = None
    """The storage pool and the volume in it, of a disk that is named by these."""

    @property
    def mirrored(self) -> bool:
        """Whether QEMU mirrors it while the domain runs: what nobody writes to is sent as a file instead."""
        return self.path is not None and self.device != "cdrom" and not self.read_only


@dataclass(frozen=True)
class NvramElement:
    """The file that keeps the variables of UEFI firmware."""

    path: str
    format: str


@dataclass(frozen=True)
class DeviceElement:
    """A device that stays behind, or that QEMU does not move: which check is about it, its name and the remedy."""

    check: Check
    name: str
    remedy: str


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
    huge_page: int
    """In KiB; 0 for ordinary memory."""
    vcpus: int
    last_cpu: int
    last_node: int
    boot_files: tuple[tuple[FilePurpose, str], ...]
    """Kernel, initrd and device tree of one that boots them directly."""
    firmware: str | None
    """The program of its firmware, if the XML names one."""
    nvram: NvramElement | None
    has_tpm: bool
    """Whether it has a TPM that a program of the host emulates."""
    cpu: str | None
    """The `<cpu>` element, None if there is none."""
    cpu_mode: str
    cpu_features: tuple[str, ...]
    """The features that are required or forced."""
    cpu_migratable: bool
    """False for a CPU that is the host's with what QEMU does not migrate."""
    tsc_frequency_given: bool
    disks: tuple[DiskElement, ...]
    interfaces: tuple[InterfaceFacts, ...]
    graphics: tuple[GraphicsFacts, ...]
    serial_ports: tuple[SerialFacts, ...]
    secrets: tuple[str, ...]
    security_models: tuple[str, ...]
    """What confines it besides file ownership."""
    devices: tuple[DeviceElement, ...]
    has_own_arguments: bool
    """Whether it hands QEMU arguments past libvirt."""
    dac_label: str | None
    """The `+uid:+gid` as which its QEMU runs, if the XML says so."""


_DETACH = template(
    "Detach it (`virsh detach-device {domain} FILE --live`), or take it out in `virsh edit` and restart the VM")
_TAKE_OUT = template("Take it out in `virsh edit` and restart the VM")
_UNMOUNT = template("Unmount it in the guest, then take it out in `virsh edit` and restart the VM")
_INPUT_DEVICE = template("an input device of the host")
_NVRAM_FILE = template("Shut it down, copy its NVRAM into a file and name that in `virsh edit`")
_BOOT_FILES = ((FilePurpose.KERNEL, "kernel"), (FilePurpose.INITRD, "initrd"), (FilePurpose.DEVICE_TREE, "dtb"))
# libvirt's units of memory (formatdomain.rst, memory); it writes KiB itself.
_UNITS = {
    "b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 1000**2, "M": 1024**2, "MiB": 1024**2,
    "GB": 1000**3, "G": 1024**3, "GiB": 1024**3, "TB": 1000**4, "T": 1024**4, "TiB": 1024**4,
}
_DEFAULT_HUGE_PAGE = 2048
_QEMU_NAMESPACE = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_INTERFACE_SOURCES = {"network": "network", "bridge": "bridge", "direct": "dev", "vdpa": "dev"}
_DRIVES = ("cdrom", "floppy")


def describe(document: str) -> DomainDescription:
    """What the XML of one domain says."""
    domain = ElementTree.fromstring(document)  # noqa: S314 - from the host's own libvirt
    kind = domain.find("os/type")
    cpu = domain.find("cpu")
    pins = [domain.find("vcpu"), *domain.findall("cputune/*[@cpuset]")]
    seclabel = domain.find("seclabel[@model='dac']/label")
    return DomainDescription(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", ""),
        virtualization=domain.get("type", ""),
        architecture=kind.get("arch", "") if kind is not None else "",
        machine=kind.get("machine", "") if kind is not None else "",
        emulator=domain.findtext("devices/emulator"),
        memory=_bytes(domain.find("memory")),
        huge_page=_huge_page(domain),
        vcpus=int(domain.findtext("vcpu", "1")),
        last_cpu=_highest(pin.get("cpuset", "") for pin in pins if pin is not None),
        last_node=_highest(each.get("nodeset", "") for each in domain.findall("numatune/*")),
        boot_files=tuple(
            (purpose, path) for purpose, name in _BOOT_FILES if (path := domain.findtext(f"os/{name}"))),
        firmware=domain.findtext("os/loader") or None,
        nvram=_nvram(domain),
        has_tpm=domain.find("devices/tpm/backend[@type='emulator']") is not None,
        cpu=ElementTree.tostring(cpu, encoding="unicode").strip() if cpu is not None else None,
        cpu_mode=cpu.get("mode", "custom") if cpu is not None else "",
        cpu_features=tuple(
            each.get("name", "") for each in domain.findall("cpu/feature")
            if each.get("policy", "require") in ("require", "force")),
        cpu_migratable=cpu is None or cpu.get("migratable") != "off",
        tsc_frequency_given=domain.find("clock/timer[@name='tsc'][@frequency]") is not None,
        disks=tuple(_disk(element) for element in domain.findall("devices/disk")),
        interfaces=tuple(_interface(element) for element in domain.findall("devices/interface")),
        graphics=tuple(each for each in map(_graphics, domain.findall("devices/graphics")) if each is not None),
        serial_ports=tuple(_serial_ports(domain)),
        secrets=tuple(dict.fromkeys(_secrets(domain))),
        security_models=tuple(dict.fromkeys(
            each.get("model", "") for each in domain.findall("seclabel")
            if each.get("model", "none") not in ("dac", "none") and each.get("type") != "none")),
        devices=tuple(_devices(domain)),
        has_own_arguments=domain.find(f"{_QEMU_NAMESPACE}commandline") is not None,
        dac_label=seclabel.text if seclabel is not None else None,
    )


def _bytes(element: ElementTree.Element | None) -> int:
    if element is None:
        return 0
    return int(element.text or "0") * _UNITS.get(element.get("unit", "KiB"), 1024)


def _huge_page(domain: ElementTree.Element) -> int:
    if domain.find("memoryBacking/hugepages") is None:
        return 0
    page = domain.find("memoryBacking/hugepages/page")
    if page is None:
        return _DEFAULT_HUGE_PAGE
    return int(page.get("size", "0")) * _UNITS.get(page.get("unit", "KiB"), 1024) // 1024


def _highest(sets: Iterable[str]) -> int:
    """The highest number in sets such as `0-3,^2,8`; -1 in none."""
    numbers = [
        int(part.rpartition("-")[2]) for each in sets for part in each.split(",")
        if part.rpartition("-")[2].isdigit()]
    return max(numbers, default=-1)


def _disk(element: ElementTree.Element) -> DiskElement:
    source, driver, target = element.find("source"), element.find("driver"), element.find("target")
    return DiskElement(
        target=target.get("dev", "") if target is not None else "",
        device=element.get("device", "disk"),
        kind=element.get("type", ""),
        path=_source_path(source),
        format=driver.get("type") if driver is not None else None,
        encrypted=element.find(".//encryption") is not None,
        read_only=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        cache=driver.get("cache", "default") if driver is not None else "default",
        layers=tuple(_layers(element)),
        volume=_volume(source),
    )


def _volume(source: ElementTree.Element | None) -> tuple[str, str] | None:
    pool, volume = (source.get("pool"), source.get("volume")) if source is not None else (None, None)
    return (pool, volume) if pool and volume else None


def _source_path(source: ElementTree.Element | None) -> str | None:
    return None if source is None else source.get("file") or source.get("dev")


def _layers(disk: ElementTree.Element) -> Iterator[tuple[str, str | None]]:
    """The chain below the top image. An empty <backingStore/> ends it; one with a type goes on."""
    backing = disk.find("backingStore")
    while backing is not None and backing.get("type") is not None:
        named = backing.find("format")
        yield _source_path(backing.find("source")) or "?", named.get("type") if named is not None else None
        backing = backing.find("backingStore")


def _nvram(domain: ElementTree.Element) -> NvramElement | None:
    """The file, as libvirt 9 names it or, with a <source>, as later ones may."""
    element = domain.find("os/nvram")
    if element is None:
        return None
    source = element.find("source")
    path = (source.get("file") if source is not None else element.text) or ""
    return NvramElement(path.strip(), element.get("format", "raw")) if path.strip() else None


def _interface(element: ElementTree.Element) -> InterfaceFacts:
    source, mac = element.find("source"), element.find("mac")
    kind = element.get("type", "")
    if kind in ("bridge", "direct") and source is not None and source.get("network") is not None:
        # So libvirt tells, while the domain runs, of a network that hands its guests to a bridge or card of the host.
        kind = "network"
    name = source.get(_INTERFACE_SOURCES.get(kind, kind), "") if source is not None else ""
    return InterfaceFacts(
        kind=kind, source=name, mac=mac.get("address", "").lower() if mac is not None else "",
        portgroup=source.get("portgroup") if source is not None else None)


def _graphics(element: ElementTree.Element) -> GraphicsFacts | None:
    """A display that listens on an address; None for one on a socket or none at all."""
    listen = element.find("listen")
    kind = listen.get("type", "address") if listen is not None else "address"
    if kind not in ("address", "network") or element.get("type") not in ("vnc", "spice", "rdp"):
        return None
    fixed = element.get("autoport") != "yes" and (element.get("port") or "-1").isdigit()
    address = listen.get("address") if listen is not None else element.get("listen")
    return GraphicsFacts(
        kind=element.get("type", ""), port=int(element.get("port", "-1")) if fixed else -1,
        address=address if kind == "address" else None)


def _serial_ports(domain: ElementTree.Element) -> Iterator[SerialFacts]:
    """The ports that lead to something on the host that has to be there before QEMU starts."""
    # The first console is the first serial port once more.
    consoles = [each for each in domain.findall("devices/console") if each.find("target[@type='virtio']") is not None]
    for port in (*domain.findall("devices/serial"), *domain.findall("devices/parallel"), *consoles):
        source = port.find("source")
        path = source.get("path") if source is not None else None
        kind = port.get("type", "")
        if path and (kind in ("file", "dev", "pipe") or (kind == "unix" and source is not None)):
            connects = kind in ("dev", "pipe") or (source is not None and source.get("mode") == "connect")
            yield SerialFacts(path=path, must_exist=connects)


def _secrets(domain: ElementTree.Element) -> Iterator[str]:
    for secret in domain.findall(".//secret"):
        # The passphrase of an image is looked for among the secrets of volumes (qemuDomainSecretInfoSetup...()).
        kind = "volume" if secret.get("type") == "passphrase" else secret.get("type", "")
        yield secret.get("uuid") or f"usage {kind} {secret.get('usage', '')}"
    for encryption in domain.findall("devices/tpm/backend/encryption[@secret]"):
        yield encryption.get("secret", "")


# What cannot go with the domain.


def _host_device(element: ElementTree.Element) -> Phrase:
    address, vendor = element.find("source/address"), element.find("source/vendor")
    kind = element.get("type", "")
    if kind == "pci" and address is not None:
        parts = [int(address.get(name, "0"), 0) for name in ("domain", "bus", "slot", "function")]
        return Phrase("the host's PCI device {address}", {"address": "{:04x}:{:02x}:{:02x}.{:x}".format(*parts)})
    if kind == "usb":
        product = element.find("source/product")
        if vendor is None or product is None:
            return Phrase("the host's USB device")
        return Phrase("the host's USB device {id}", {"id": f"{vendor.get('id', '')}:{product.get('id', '')}"})
    if kind == "mdev":
        return Phrase("the mediated device {id}", {"id": address.get("uuid", "?") if address is not None else "?"})
    return Phrase("a device of the host ({type})", {"type": kind or element.get("mode", "")})


def _memory_device(element: ElementTree.Element) -> Phrase:
    path = element.findtext("source/path")
    if path is None:
        return Phrase("persistent memory in a file of the host")
    return Phrase("persistent memory in {path} of the host", {"path": path})


def _words(words: str) -> Callable[[ElementTree.Element], Phrase]:
    return lambda _element: Phrase(words)


def _attribute(words: str, path: str, name: str) -> Callable[[ElementTree.Element], Phrase]:
    """Words with one attribute of the element, or of one below it, as the fact `name`."""
    def name_of(element: ElementTree.Element) -> Phrase:
        found = element if path == "." else element.find(path)
        return Phrase(words, {"name": found.get(name, "?") if found is not None else "?"})

    return name_of


# Where in the XML, which check, what it is called and what can be done. libvirt's qemuMigrationSrcIsAllowed() refuses
# most of them; the others would leave behind something that the guest uses.
_DEVICES: tuple[tuple[Check, str, Callable[[ElementTree.Element], Phrase], str], ...] = (
    (Check.HOST_DEVICES, "devices/hostdev", _host_device, _DETACH),
    (Check.HOST_DEVICES, "devices/interface[@type='hostdev']",
     _attribute(template("a network card of the host passed through ({name})"), "mac", "address"), _DETACH),
    (Check.HOST_DEVICES, "devices/interface[@type='vdpa']",
     _attribute(template("the vDPA device {name}"), "source", "dev"), _DETACH),
    (Check.HOST_DEVICES, "devices/input[@type='passthrough']", _words(_INPUT_DEVICE), _DETACH),
    (Check.HOST_DEVICES, "devices/input[@type='evdev']", _words(_INPUT_DEVICE), _DETACH),
    (Check.SHARED_FOLDERS, "devices/filesystem",
     _attribute(template("the shared folder {name}"), "source", "dir"), _UNMOUNT),
    (Check.TPM, "devices/tpm/backend[@type='passthrough']", _words(template("the host's own TPM")), _TAKE_OUT),
    # libvirt 10.10: neither it nor its copy is where all others are.
    (Check.TPM, "devices/tpm/backend[@type='emulator']/source",
     _words(template("a TPM whose state is in a place of its own")), _TAKE_OUT),
    (Check.TPM, "devices/tpm/backend[@type='external']",
     _words(template("a TPM that another program emulates")), _TAKE_OUT),
    (Check.FIRMWARE, "os/nvram[@type='block']", _words(template("an NVRAM on a block device")), _NVRAM_FILE),
    (Check.FIRMWARE, "os/nvram[@type='network']", _words(template("an NVRAM on another machine")), _NVRAM_FILE),
    (Check.SPECIAL_DEVICES, "devices/shmem",
     _attribute(template("memory shared with the host ({name})"), ".", "name"), _TAKE_OUT),
    (Check.SPECIAL_DEVICES, "devices/memory[@model='nvdimm']", _memory_device, _TAKE_OUT),
    (Check.SPECIAL_DEVICES, "devices/memory[@model='virtio-pmem']", _memory_device, _TAKE_OUT),
    (Check.SPECIAL_DEVICES, "devices/memory[@model='sgx-epc']",
     _words(template("memory of an SGX enclave")), _TAKE_OUT),
    (Check.SPECIAL_DEVICES, "devices/video/model/acceleration[@accel3d='yes']",
     _words(template("a video card with 3D acceleration")), _TAKE_OUT),
    (Check.SPECIAL_DEVICES, "devices/interface[@type='vhostuser']",
     _attribute(template("a vhost-user interface ({name})"), "source", "path"), _DETACH),
    (Check.SPECIAL_DEVICES, "launchSecurity",
     _attribute(template("encrypted memory ({name})"), ".", "type"), _TAKE_OUT),
)


def _devices(domain: ElementTree.Element) -> Iterator[DeviceElement]:
    seen = set()
    for check, path, name_of, remedy in _DEVICES:
        for element in domain.findall(path):
            # libvirt takes it off for the move and QEMU puts another in its place.
            if element.find("teaming[@type='transient']") is not None:
                continue
            device = DeviceElement(check, name_of(element), remedy)
            if device not in seen:
                seen.add(device)
                yield device


def mac_addresses(document: str) -> list[str]:
    """Those of a domain's interfaces, whatever else is in the document."""
    domain = ElementTree.fromstring(document)  # noqa: S314 - from the host's own libvirt
    return [mac.get("address", "").lower() for mac in domain.findall("devices/interface/mac")]


def inserted_media(description: DomainDescription) -> list[DiskElement]:
    """The CD-ROM and floppy drives with an image in them."""
    return [disk for disk in description.disks if disk.device in _DRIVES and disk.path is not None]


def hard_disks(description: DomainDescription) -> list[DiskElement]:
    """All disks that are not drives for media."""
    return [disk for disk in description.disks if disk.device not in _DRIVES]
