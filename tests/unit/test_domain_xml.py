"""What host/domain_xml reads out of domains as virt-install makes them for Debian, RHEL and Windows guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.domain_xml import DiskElement, DomainDescription, dac_ids, describe, host_uuid, parse_dac_label

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
    assert (domain.kernel, domain.initrd) == (None, None)
    assert domain.unsupported == ()
    assert domain.dac_label == "+64055:+64055"


def test_a_disk_with_an_empty_backing_store_is_the_whole_chain() -> None:
    disk, cdrom = described("debian").disks
    assert disk == DiskElement(
        target="vda", device="disk", kind="file", path="/var/lib/libvirt/images/debian12.qcow2", format="qcow2",
        backed=False, encrypted=False, read_only=False, shareable=False)
    assert cdrom.target == "sda"


def test_an_empty_cd_drive_has_no_path_whether_its_source_is_missing_or_empty() -> None:
    for name, target in (("debian", "sda"), ("windows", "sdb")):
        drive = described(name).disks[1]
        assert (drive.target, drive.device, drive.path, drive.read_only) == (target, "cdrom", None, True)


def test_a_cd_with_a_medium_in_it_has_its_path() -> None:
    drive = described("rhel").disks[3]
    assert (drive.device, drive.path, drive.read_only) == ("cdrom", "/var/lib/libvirt/images/rhel9.iso", True)


def test_interfaces_are_told_by_the_bridge_or_network_they_are_connected_to() -> None:
    assert described("debian").networks == ("network:default", "bridge:br0")
    assert described("windows").networks == ("network:lan",)
    assert described("rhel").networks == ()


def test_a_network_interface_of_a_running_guest_is_not_taken_for_its_bridge() -> None:
    assert "bridge:virbr0" not in described("debian").networks


def test_a_disk_with_a_backing_image_is_told_as_such() -> None:
    disk = described("rhel").disks[0]
    assert disk.backed
    assert disk.path == "/srv/vm/rhel9.snap1"
    assert disk.format == "qcow2"


def test_a_block_device_has_its_path_and_its_flags() -> None:
    disk = described("rhel").disks[1]
    assert (disk.kind, disk.path, disk.encrypted, disk.shareable) == ("block", "/dev/vg0/rhel9-data", True, True)
    assert not disk.backed


def test_a_network_disk_and_a_volume_have_no_path_here() -> None:
    assert [(disk.kind, disk.path) for disk in (described("rhel").disks[2], described("direct-kernel").disks[0])] == [
        ("network", None), ("volume", None)]


def test_everything_that_cannot_be_moved_yet_is_named_at_once() -> None:
    assert set(described("rhel").unsupported) == {
        "a host device (passthrough)", "a shared folder", "UEFI firmware"}
    assert set(described("windows").unsupported) == {"a TPM", "UEFI firmware"}


@pytest.mark.parametrize(("inside", "words"), [
    ("<hostdev mode='subsystem' type='usb'/>", "a host device (passthrough)"), ("<tpm model='tpm-tis'/>", "a TPM"),
    ("<filesystem type='mount'/>", "a shared folder"), ("<shmem name='s'/>", "shared memory with the host"),
])
def test_each_device_that_cannot_be_moved_yet_is_named(inside: str, words: str) -> None:
    assert minimal(inside).unsupported == (words,)
    assert minimal("<rng model='virtio'/>").unsupported == ()


def test_a_directly_booted_guest_names_its_kernel_and_initrd() -> None:
    domain = described("direct-kernel")
    assert (domain.kernel, domain.initrd) == ("/var/lib/libvirt/boot/vmlinuz", "/var/lib/libvirt/boot/initrd.img")
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
    ("<backingStore type='file'/>", "backed"),
])
def test_each_flag_of_a_disk_is_seen_alone(inside: str, flag: str) -> None:
    plain, flagged = only_disk("<source file='/a/b'/>"), only_disk(f"<source file='/a/b'/>{inside}")
    flags = ("read_only", "shareable", "encrypted", "backed")
    assert not any(getattr(plain, each) for each in flags)
    assert [each for each in flags if getattr(flagged, each)] == [flag]


def test_a_guest_without_devices_is_read_without_any() -> None:
    domain = describe("<domain type='kvm'><name>x</name></domain>")
    assert (domain.disks, domain.networks, domain.unsupported, domain.uuid, domain.machine) == ((), (), (), "", "")


# Capabilities.


def test_the_ids_of_qemu_are_those_of_the_guests_virtualization() -> None:
    assert dac_ids(text("capabilities"), "kvm") == (64055, 108)
    assert dac_ids(text("capabilities"), "qemu") == (64056, 109)


def test_capabilities_that_do_not_say_mean_root() -> None:
    assert dac_ids(text("capabilities"), "xen") == (0, 0)
    assert dac_ids("<capabilities><host/></capabilities>", "kvm") == (0, 0)


@pytest.mark.parametrize(("label", "ids"), [
    ("+64055:+108", (64055, 108)), ("0:0", (0, 0)), ("107:36", (107, 36)), ("qemu:kvm", (0, 0)), ("", (0, 0)),
    ("+1", (0, 0)), ("+1:", (0, 0)), (":+1", (0, 0)), ("-1:-1", (0, 0)),
])
def test_a_label_is_two_numbers_or_means_root(label: str, ids: tuple[int, int]) -> None:
    assert parse_dac_label(label) == ids


def test_the_uuid_of_the_host_is_read() -> None:
    assert host_uuid(text("capabilities")) == "4c4c4544-0051-3610-8052-b4c04f4e3132"
    assert host_uuid("<capabilities/>") == ""
