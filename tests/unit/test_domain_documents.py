"""What host/domain_xml reads out of the documents in tests/unit/domains: VMs as admins really have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from constant import FilePurpose
from host.domain_xml import DomainDescription, NvramElement, describe, hard_disks, inserted_media
from tests.unit.samples import ROOT
from wire.facts import GraphicsFacts, SerialFacts
from wire.findings import Check

DOCUMENTS = sorted((ROOT / "tests" / "unit" / "domains").glob("*.xml"))


def nvram(name: str) -> NvramElement:
    """The file that libvirt gives a domain of that name."""
    return NvramElement(f"/var/lib/libvirt/qemu/nvram/{name}_VARS.fd", "raw")


# By document, the checks that its devices are about; all others have none that stays behind.
HELD_BACK: Mapping[str, list[Check]] = {
    "mediated-device": [Check.HOST_DEVICES],
    "network-passthrough": [Check.HOST_DEVICES],
    "pci-passthrough": [Check.HOST_DEVICES, Check.HOST_DEVICES],
    "persistent-memory": [Check.SPECIAL_DEVICES],
    "sev": [Check.SPECIAL_DEVICES],
    "shared-folder-9p": [Check.SHARED_FOLDERS],
    "shared-folder-virtiofs": [Check.SHARED_FOLDERS],
    "shmem": [Check.SPECIAL_DEVICES],
    "usb-passthrough": [Check.HOST_DEVICES, Check.HOST_DEVICES],
    "vhost-user": [Check.SPECIAL_DEVICES],
}
# By document, what else is not as in an ordinary VM. Each field of an ordinary one is in ORDINARY.
ORDINARY = {
    "graphics": (), "serial_ports": (), "secrets": (), "security_models": (), "huge_page": 0, "last_cpu": -1,
    "last_node": -1, "cpu_features": (), "tsc_frequency_given": False, "has_own_arguments": False, "boot_files": (),
    "firmware": None, "nvram": None, "has_tpm": False,
}
SPECIAL: Mapping[str, Mapping[str, object]] = {
    "arm-virt": {"firmware": "/usr/share/AAVMF/AAVMF_CODE.fd", "nvram": nvram("arm-virt")},
    "debian-12": {"graphics": (GraphicsFacts(kind="vnc", port=-1),)},
    "debian-12-direct-kernel": {"boot_files": (
        (FilePurpose.KERNEL, "/var/lib/libvirt/boot/vmlinuz-6.1.0-18-amd64"),
        (FilePurpose.INITRD, "/var/lib/libvirt/boot/initrd.img-6.1.0-18-amd64"))},
    "encrypted-disk-luks": {
        "secrets": ("f981dd17-143f-45bc-88e6-ed1fe20ce9da", "8b6e9ae0-3c0e-4d5b-8a17-6a1bd0f0e2c4")},
    "fixed-graphics-port": {"graphics": (GraphicsFacts(kind="vnc", port=5910, address="192.0.2.10"),)},
    "hugepages": {"huge_page": 1048576},
    "invariant-tsc": {"cpu_features": ("invtsc",)},
    "nested-vmx": {"cpu_features": ("vmx",)},
    "network-disk-rbd": {"secrets": ("2ec115d7-3a88-3ceb-bc12-0ac909a6fd87",)},
    "pinned": {"last_cpu": 7, "last_node": 1},
    "qemu-command-line": {"has_own_arguments": True},
    "rhel-9-uefi": {"graphics": (GraphicsFacts(kind="spice", port=-1),), "nvram": nvram("rhel-9-uefi")},
    "running-debian-12": {
        "graphics": (GraphicsFacts(kind="vnc", port=-1, address="127.0.0.1"),), "security_models": ("apparmor",)},
    "running-with-chain": {"security_models": ("apparmor",)},
    "sev": {"firmware": "/usr/share/OVMF/OVMF_CODE_4M.fd"},
    "serial-to-device": {"serial_ports": (SerialFacts(path="/dev/ttyS0", must_exist=True),)},
    "serial-to-file": {"serial_ports": (
        SerialFacts(path="/var/log/libvirt/qemu/serial-to-file-console.log", must_exist=False),)},
    "static-selinux-label": {"security_models": ("selinux",)},
    "windows-10-legacy-bios": {"graphics": (GraphicsFacts(kind="vnc", port=-1),)},
    "windows-server-2022": {
        "graphics": (GraphicsFacts(kind="vnc", port=-1),), "has_tpm": True, "nvram": nvram("windows-server-2022")},
}
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)


def described(name: str) -> DomainDescription:
    """What one of the documents says."""
    return describe((ROOT / "tests" / "unit" / "domains" / f"{name}.xml").read_text(encoding="utf-8"))


def test_there_are_the_documents_that_the_tables_speak_of() -> None:
    names = {path.stem for path in DOCUMENTS}
    assert len(names) >= 40
    assert HELD_BACK.keys() | SPECIAL.keys() <= names


@every_document
def test_every_vm_is_read_with_its_name_uuid_and_machine(path: Path) -> None:
    domain = described(path.stem)
    assert domain.name
    assert len(domain.uuid) == 36
    assert domain.machine
    assert domain.memory >= 256 << 20
    assert domain.emulator is not None
    assert hard_disks(domain)


@every_document
def test_what_stays_behind_is_seen_and_nothing_is_invented(path: Path) -> None:
    devices = described(path.stem).devices
    assert [device.check for device in devices] == HELD_BACK.get(path.stem, [])
    assert all("{" not in device.name and "?" not in device.name for device in devices)


@every_document
def test_what_is_special_about_a_vm_is_seen_and_nothing_is_invented(path: Path) -> None:
    found = dataclasses.asdict(described(path.stem))
    expected = {**ORDINARY, **SPECIAL.get(path.stem, {})}
    seen = {name: getattr(described(path.stem), name) for name in expected}
    assert seen == expected
    assert found["vcpus"] >= 2


@pytest.mark.parametrize(("name", "connections"), [
    ("debian-12", [("network", "default", None)]),
    ("ubuntu-24-04-cloud-image", [("bridge", "br0", None)]),
    ("macvtap", [("direct", "enp3s0", None)]),
    ("open-vswitch", [("bridge", "ovsbr0", None)]),
    ("network-portgroup", [("network", "ovs-net", "vlan-100"), ("network", "ovs-net", "vlan-200")]),
    ("running-debian-12", [("network", "default", None)]),
])
def test_interfaces_are_read_with_what_they_are_connected_to(
    name: str, connections: list[tuple[str, str, str | None]],
) -> None:
    interfaces = described(name).interfaces
    assert [(each.kind, each.source, each.portgroup) for each in interfaces] == connections
    assert all(len(each.mac) == 17 and each.mac == each.mac.lower() for each in interfaces)


@pytest.mark.parametrize(("name", "layers"), [
    ("debian-12", ()),
    ("running-debian-12", ()),
    ("ubuntu-24-04-cloud-image", ("/var/lib/libvirt/images/noble-server-cloudimg-amd64.img",)),
    ("running-with-chain", (
        "/var/lib/libvirt/images/running-with-chain.before-upgrade",
        "/var/lib/libvirt/images/running-with-chain.qcow2",
        "/var/lib/libvirt/images/debian-12-genericcloud-amd64.qcow2")),
])
def test_the_backing_chain_is_read_from_below_the_top_to_its_end(name: str, layers: tuple[str, ...]) -> None:
    assert tuple(path for path, _format in described(name).disks[0].layers) == layers


@pytest.mark.parametrize(("name", "media"), [
    ("ubuntu-24-04-cloud-image", ["sda"]), ("windows-server-2022", ["sdb", "fda"]), ("windows-10-legacy-bios", []),
    ("running-debian-12", []), ("debian-12", []),
])
def test_drives_with_a_medium_are_told_from_empty_ones_and_from_disks(name: str, media: list[str]) -> None:
    domain = described(name)
    assert [disk.target for disk in inserted_media(domain)] == media
    assert not {disk.device for disk in hard_disks(domain)} & {"cdrom", "floppy"}


@pytest.mark.parametrize(("name", "field", "value"), [
    ("cache-unsafe", "cache", "unsafe"), ("transient-disk", "transient", True),
    ("raw-on-block-device", "kind", "block"), ("network-disk-rbd", "kind", "network"),
    ("network-disk-rbd", "path", None), ("shareable-disk", "shareable", False),
])
def test_the_first_disk_is_read_as_what_it_is(name: str, field: str, value: object) -> None:
    assert getattr(described(name).disks[0], field) == value


def test_the_flags_of_a_second_disk_are_its_own() -> None:
    assert described("shareable-disk").disks[1].shareable
    assert any(disk.encrypted for disk in described("encrypted-disk-luks").disks)
    assert len(described("two-disks").disks) == 2
