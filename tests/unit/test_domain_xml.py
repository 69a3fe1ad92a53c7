"""What host/domain_xml reads out of domains as virt-install makes them for Debian, RHEL and Windows guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from constant import FilePurpose
from host.domain_xml import DiskElement, DomainDescription, NvramElement, describe, mac_addresses
from wire.findings import Check

DOCUMENTS = Path(__file__).parent / "documents"


def text(name: str) -> str:
    """A stored document."""
    return (DOCUMENTS / f"{name}.xml").read_text(encoding="utf-8")


def described(name: str) -> DomainDescription:
    """What a stored document says."""
    return describe(text(name))


def minimal(inside: str, *, os: str = "", memory: str = "<memory unit='KiB'>1</memory>") -> DomainDescription:
    """What a domain with just this among its devices says."""
    return describe(
        f"<domain type='kvm'><name>x</name><uuid>u</uuid>{memory}<os><type arch='x86_64' machine='q35'>hvm</type>{os}"
        f"</os><devices>{inside}</devices></domain>")


def only_disk(inside: str, attributes: str = "type='file' device='disk'") -> DiskElement:
    """The one disk of a domain that has it alone."""
    (disk,) = minimal(f"<disk {attributes}>{inside}<target dev='vda'/></disk>").disks
    return disk


def test_an_ordinary_debian_guest_is_read_in_full() -> None:
    domain = described("debian")
    assert (domain.name, domain.uuid) == ("debian12", "5f0c3c57-97a5-4e1e-9a0a-0b6c7a1f2d11")
    assert (domain.virtualization, domain.architecture, domain.machine) == ("kvm", "x86_64", "pc-q35-7.2")
    assert domain.emulator == "/usr/bin/qemu-system-x86_64"
    assert domain.memory == 2 << 30
    assert domain.boot_files == ()
    assert domain.devices == ()
    assert domain.dac_label == "+64055:+64055"


def test_a_disk_with_an_empty_backing_store_is_the_whole_chain() -> None:
    disk, cdrom = described("debian").disks
    assert disk == DiskElement(
        target="vda", device="disk", kind="file", path="/var/lib/libvirt/images/debian12.qcow2", format="qcow2",
        encrypted=False, read_only=False, shareable=False, cache=disk.cache)
    assert cdrom.target == "sda"


def test_an_empty_cd_drive_has_no_path_whether_its_source_is_missing_or_empty() -> None:
    for name, target in (("debian", "sda"), ("windows", "sdb")):
        drive = described(name).disks[1]
        assert (drive.target, drive.device, drive.path, drive.read_only) == (target, "cdrom", None, True)


def test_a_cd_with_a_medium_in_it_has_its_path() -> None:
    drive = described("rhel").disks[3]
    assert (drive.device, drive.path, drive.read_only) == ("cdrom", "/var/lib/libvirt/images/rhel9.iso", True)


def connections(name: str) -> list[str]:
    """What the interfaces of a document are connected to."""
    return [f"{each.kind} {each.source}" for each in described(name).interfaces]


def test_interfaces_are_told_by_the_bridge_or_network_they_are_connected_to() -> None:
    assert connections("debian") == ["network default", "bridge br0", "user "]
    assert connections("windows") == ["network lan"]
    assert not {"network", "bridge"} & {each.kind for each in described("rhel").interfaces}


def test_a_network_interface_of_a_running_guest_is_not_taken_for_its_bridge() -> None:
    assert "bridge virbr0" not in connections("debian")


@pytest.mark.parametrize("kind", ["bridge", "direct", "network"])
def test_a_running_guest_of_a_network_that_is_a_name_for_a_bridge_is_told_by_the_network(kind: str) -> None:
    (interface,) = minimal(
        f"<interface type='{kind}'><mac address='52:54:00:AA:00:01'/>"
        "<source network='lan' portgroup='blue' bridge='br0' dev='eth0'/></interface>").interfaces
    assert (interface.kind, interface.source, interface.portgroup) == ("network", "lan", "blue")
    assert interface.mac == "52:54:00:aa:00:01"


@pytest.mark.parametrize(("inside", "secret"), [
    ("<disk><source><auth><secret type='ceph' usage='a'/></auth></source></disk>", "usage ceph a"),
    ("<disk><encryption><secret type='passphrase' usage='/x'/></encryption></disk>", "usage volume /x"),
    ("<disk><source><encryption><secret type='passphrase' uuid='u'/></encryption></source></disk>", "u"),
    ("<tpm><backend type='emulator'><encryption secret='u'/></backend></tpm>", "u"),
])
def test_a_secret_is_told_as_libvirt_keeps_it(inside: str, secret: str) -> None:
    assert minimal(inside).secrets == (secret,)


def test_a_disk_with_a_backing_image_is_told_as_such() -> None:
    disk = described("rhel").disks[0]
    assert disk.layers
    assert disk.path == "/srv/vm/rhel9.snap1"
    assert disk.format == "qcow2"


def test_a_block_device_has_its_path_and_its_flags() -> None:
    disk = described("rhel").disks[1]
    assert (disk.kind, disk.path, disk.encrypted, disk.shareable) == ("block", "/dev/vg0/rhel9-data", True, True)
    assert not disk.layers


def test_a_network_disk_and_a_volume_have_no_path_here() -> None:
    assert [(disk.kind, disk.path) for disk in (described("rhel").disks[2], described("direct-kernel").disks[0])] == [
        ("network", None), ("volume", None)]


def test_everything_that_cannot_be_moved_yet_is_named_at_once() -> None:
    assert {device.check for device in described("rhel").devices} == {
        Check.HOST_DEVICES, Check.SHARED_FOLDERS}


def test_firmware_with_nvram_and_an_emulated_tpm_are_no_obstacles_but_things_to_carry() -> None:
    windows = described("windows")
    assert windows.devices == ()
    assert windows.has_tpm
    assert windows.nvram is not None
    assert windows.nvram.path.startswith("/var/lib/libvirt/qemu/nvram/")


@pytest.mark.parametrize(("nvram", "found"), [
    ("<nvram>/a_VARS.fd</nvram>", NvramElement("/a_VARS.fd", "raw")),
    ("<nvram format='qcow2' template='/t'>/a.qcow2</nvram>", NvramElement("/a.qcow2", "qcow2")),
    ("<nvram type='file'><source file='/a.fd'/></nvram>", NvramElement("/a.fd", "raw")),
    ("<nvram template='/t'/>", None),
])
def test_nvram_is_read_in_the_form_of_libvirt_9_and_in_the_newer_one(nvram: str, found: NvramElement | None) -> None:
    assert describe(f"<domain><os>{nvram}</os></domain>").nvram == found


@pytest.mark.parametrize(("inside", "name"), [
    ("<hostdev mode='subsystem' type='usb'/>", "the host's USB device"),
    ("<hostdev type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>",
     "the host's USB device 0x1:0x2"),
    ("<hostdev type='pci'><source><address domain='0x0000' bus='0x3' slot='0x1f' function='0x2'/></source></hostdev>",
     "the host's PCI device 0000:03:1f.2"),
    ("<hostdev type='mdev'><source><address uuid='u'/></source></hostdev>", "the mediated device u"),
    ("<hostdev type='scsi'/>", "a device of the host (scsi)"),
    ("<interface type='hostdev'><mac address='52:54:00:1:2:3'/></interface>",
     "a network card of the host passed through (52:54:00:1:2:3)"),
    ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", "the vDPA device /dev/vhost-vdpa-0"),
    ("<interface type='vhostuser'><source path='/run/ovs'/></interface>", "a vhost-user interface (/run/ovs)"),
    ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", "the host's own TPM"),
    ("<tpm><backend type='external'/></tpm>", "a TPM that another program emulates"),
    ("<tpm><backend type='emulator'><source type='dir' path='/srv/tpm'/></backend></tpm>",
     "a TPM whose state is in a place of its own"),
    ("<filesystem type='mount'><source dir='/srv'/></filesystem>", "the shared folder /srv"),
    ("<shmem name='s'/>", "memory shared with the host (s)"),
    ("<memory model='nvdimm'><source><path>/nv</path></source></memory>", "persistent memory in /nv of the host"),
    ("<input type='evdev'/>", "an input device of the host"),
    ("<memory model='virtio-pmem'><source><path>/nv</path></source></memory>", "persistent memory in /nv of the host"),
    ("<memory model='sgx-epc'/>", "memory of an SGX enclave"),
    ("<video><model type='virtio'><acceleration accel3d='yes'/></model></video>", "a video card with 3D acceleration"),
])
def test_each_device_that_cannot_be_moved_is_named(inside: str, name: str) -> None:
    assert [device.name for device in minimal(inside).devices] == [name]
    assert minimal("<rng model='virtio'/>").devices == ()


def test_a_device_that_libvirt_takes_off_for_the_move_is_none_that_cannot_be_moved() -> None:
    assert minimal("<hostdev type='pci'><teaming type='transient' persistent='ua-x'/></hostdev>").devices == ()


def test_a_virtio_console_leads_somewhere_and_the_first_console_is_the_first_serial_port() -> None:
    ports = minimal(
        "<serial type='file'><source path='/var/log/a'/></serial>"
        "<console type='file'><source path='/var/log/a'/><target type='serial'/></console>"
        "<console type='dev'><source path='/dev/ttyS1'/><target type='virtio'/></console>").serial_ports
    assert [(port.path, port.must_exist) for port in ports] == [("/var/log/a", False), ("/dev/ttyS1", True)]


def test_addresses_are_read_whatever_else_a_document_holds() -> None:
    document = "<domain><devices><interface><mac address='52:54:00:AA:00:01'/></interface>"
    assert mac_addresses(document + "<serial type='dev'><source path='..'/></serial></devices></domain>") == [
        "52:54:00:aa:00:01"]


def test_a_directly_booted_guest_names_its_kernel_and_initrd() -> None:
    domain = described("direct-kernel")
    assert domain.boot_files == (
        (FilePurpose.KERNEL, "/var/lib/libvirt/boot/vmlinuz"),
        (FilePurpose.INITRD, "/var/lib/libvirt/boot/initrd.img"))
    assert domain.virtualization == "qemu"
    assert domain.emulator is None


def test_a_security_label_counts_only_if_it_names_one() -> None:
    assert described("direct-kernel").dac_label is None
    assert described("windows").dac_label is None
    assert described("rhel").dac_label == "+107:+107"


@pytest.mark.parametrize(("memory", "size"), [
    ("<memory>1024</memory>", 1 << 20), ("<memory unit='KiB'>1024</memory>", 1 << 20),
    ("<memory unit='MiB'>192</memory>", 192 << 20), ("<memory unit='GiB'>4</memory>", 4 << 30),
    ("<memory unit='b'>512</memory>", 512), ("<memory unit='bytes'>512</memory>", 512),
    ("<memory unit='k'>1</memory>", 1024), ("<memory unit='M'>1</memory>", 1 << 20), ("<memory/>", 0), ("", 0),
])
def test_memory_is_read_in_every_unit_as_bytes(memory: str, size: int) -> None:
    assert minimal("", memory=memory).memory == size


def test_a_disk_without_a_driver_has_no_format_and_none_is_guessed() -> None:
    assert only_disk("<source file='/a/b.qcow2'/>").format is None


def test_a_disk_without_a_device_attribute_is_a_disk() -> None:
    assert only_disk("<source file='/a/b'/>", "type='file'").device == "disk"


@pytest.mark.parametrize(("inside", "flag"), [
    ("<readonly/>", "read_only"), ("<shareable/>", "shareable"), ("<encryption format='luks'/>", "encrypted"),
    ("<transient/>", "transient"), ("<backingStore type='file'/>", "layers"),
])
def test_each_flag_of_a_disk_is_seen_alone(inside: str, flag: str) -> None:
    plain, flagged = only_disk("<source file='/a/b'/>"), only_disk(f"<source file='/a/b'/>{inside}")
    flags = ("read_only", "shareable", "encrypted", "transient", "layers")
    assert not any(getattr(plain, each) for each in flags)
    assert [each for each in flags if getattr(flagged, each)] == [flag]


def test_a_guest_without_devices_is_read_without_any() -> None:
    domain = describe("<domain type='kvm'><name>x</name></domain>")
    assert (domain.disks, domain.interfaces, domain.devices, domain.uuid, domain.machine) == ((), (), (), "", "")
