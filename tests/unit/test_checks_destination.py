"""Each check of the destination finds what it is for, and nothing on a host that has all that is needed."""

from __future__ import annotations

import dataclasses
import os
import pwd
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from constant import DomainState, FilePurpose, LibvirtDaemon, OnTimeout, Severity, Transport
from tests.unit.looking import CAPABILITIES, FINE, FakeHypervisor, facts, found, said, stopping, warning
from tests.unit.samples import DESTINATION, MIGRATION, QCOW2

# isort: split
from host.hypervisor import Network
from steps.checks import machine, neighbours, storage
from steps.checks.machine import DestinationView, has_nbd_fix
from steps.checks.storage import FilesView
from wire.errors import ErrorCode
from wire.facts import FileFacts, GraphicsFacts, InterfaceFacts, SerialFacts
from wire.findings import Check
from wire.records import Convergence

MAC = "52:54:00:00:00:01"
LOOKS = {**machine.LOOKS, **neighbours.LOOKS}
ORDINARY = {"emulator": "/bin/sh", "interfaces": (), "memory": 1 << 20}


@pytest.fixture(autouse=True)
def own_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The SSH user is whoever runs the tests, and libvirt's socket is theirs."""
    sock = tmp_path / "libvirt-sock"
    sock.touch()
    monkeypatch.setattr(neighbours, "LIBVIRT_SOCKETS", dict.fromkeys(LibvirtDaemon, str(sock)))


def view(
    libvirt: dict[str, Any] | None = None, migration: dict[str, Any] | None = None, **changes: Any,
) -> DestinationView:
    """A host on which all is in order, and the facts of a domain."""
    hypervisor = FakeHypervisor(**libvirt or {})
    user = {"user": pwd.getpwuid(os.getuid()).pw_name}
    return DestinationView(
        DESTINATION, dataclasses.replace(MIGRATION, **{**user, **(migration or {})}),
        facts(**{**ORDINARY, **changes}), hypervisor.hypervisor(), hypervisor.types)


@pytest.mark.parametrize("check", list(LOOKS))
def test_every_check_is_fine_on_a_host_that_has_all_that_is_needed(check: Check) -> None:
    assert said(LOOKS, view(), check) == FINE


# The machine.


@pytest.fixture
def userfaultfd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host whose files about userfaultfd are in this directory: forbidden to users, and without the device."""
    for name, file in (
        ("_USERFAULTFD_SYSCTL", "sysctl"), ("_USERFAULTFD", "device"), ("_QEMU_CONFIGURATION", "qemu.conf"),
    ):
        monkeypatch.setattr(machine, name, tmp_path / file)
    (tmp_path / "sysctl").write_text("0\n")
    (tmp_path / "qemu.conf").write_text("# clear_emulator_capabilities = 0\n#user = root\n")
    return tmp_path


def post_copy(**libvirt: Any) -> list[tuple[Severity, ErrorCode | None]]:
    """What the check says where post-copy is asked for."""
    wanted = {"convergence": Convergence(post_copy=True)}
    return said(LOOKS, view(libvirt, wanted), Check.POST_COPY)


NEW = {"libvirt": 10_001_000, "qemu": 8_001_000}


def test_post_copy_needs_userfaultfd_and_only_if_it_is_asked_for(userfaultfd: Path) -> None:
    stops = stopping(ErrorCode.POST_COPY_UNAVAILABLE)
    assert post_copy() == stops
    assert said(LOOKS, view(), Check.POST_COPY) == FINE
    late = {"convergence": Convergence(on_timeout=OnTimeout.POST_COPY), "timeout": 5}
    assert said(LOOKS, view({}, late), Check.POST_COPY) == stops
    (userfaultfd / "sysctl").write_text("1\n")
    assert post_copy() == FINE
    (userfaultfd / "sysctl").unlink()
    assert post_copy() == stops


@pytest.mark.parametrize(("versions", "expected"), [
    (NEW, FINE), ({**NEW, "libvirt": 10_000_000}, stopping(ErrorCode.POST_COPY_UNAVAILABLE)),
    ({**NEW, "qemu": 8_000_005}, stopping(ErrorCode.POST_COPY_UNAVAILABLE)),
])
def test_post_copy_goes_by_the_device_where_libvirt_and_qemu_know_it(
    userfaultfd: Path, versions: dict[str, Any], expected: list[tuple[Severity, ErrorCode | None]],
) -> None:
    assert post_copy(**versions) == stopping(ErrorCode.POST_COPY_UNAVAILABLE)
    (userfaultfd / "device").touch()
    assert post_copy(**versions) == expected


def test_post_copy_goes_where_qemu_is_root_and_keeps_its_capabilities(userfaultfd: Path) -> None:
    assert post_copy(ids=(0, 0)) == stopping(ErrorCode.POST_COPY_UNAVAILABLE)
    (userfaultfd / "qemu.conf").write_text("user = 'root'\n  clear_emulator_capabilities=0  # for post-copy\n")
    assert post_copy(ids=(0, 0)) == FINE
    assert post_copy() == stopping(ErrorCode.POST_COPY_UNAVAILABLE)
    (userfaultfd / "qemu.conf").unlink()
    assert post_copy(ids=(0, 0)) == stopping(ErrorCode.POST_COPY_UNAVAILABLE)


@pytest.mark.parametrize(("here", "there", "severities"), [
    ({"libvirt": 8_000_000}, {"libvirt_version": 9_000_000}, [ErrorCode.VERSION_OLDER]),
    ({"qemu": 6_002_000}, {"qemu_version": 7_002_000}, [ErrorCode.VERSION_OLDER]),
    ({"libvirt": 8_000_000, "qemu": 6_002_000}, {"libvirt_version": 9_000_000, "qemu_version": 7_002_000},
     [ErrorCode.VERSION_OLDER] * 2),
    ({"qemu": 7_002_001}, {"qemu_version": 7_002_022}, []),
    ({"qemu": 8_002_000}, {"qemu_version": 7_002_022}, []),
    ({}, {"libvirt_version": 0, "qemu_version": 0}, []),
])
def test_an_older_version_is_told_but_not_an_older_bug_fix(
    here: dict[str, Any], there: dict[str, Any], severities: list[ErrorCode],
) -> None:
    assert said(LOOKS, view(here, **there), Check.VERSIONS) == (warning(*severities) or FINE)


@pytest.mark.parametrize(("changes", "words"), [
    ({"virtualization": "xen"}, "offers qemu, kvm"), ({"architecture": "riscv64"}, "no emulator for that architecture"),
])
def test_a_type_of_vm_that_does_not_run_here_stops_the_move_once(changes: dict[str, Any], words: str) -> None:
    cannot = view(libvirt={"machine": "not supported"}, **changes)
    assert said(LOOKS, cannot, Check.VIRTUALIZATION) == stopping(ErrorCode.VIRTUALIZATION_MISSING)
    assert words in found(LOOKS, cannot, Check.VIRTUALIZATION)[0].message
    # What follows from it is not told once more.
    assert said(LOOKS, cannot, Check.MACHINE_TYPE) == FINE


def test_kvm_without_its_device_stops_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.checks.machine.os.path.exists", lambda path: path != "/dev/kvm")
    assert said(LOOKS, view(), Check.VIRTUALIZATION) == stopping(ErrorCode.VIRTUALIZATION_MISSING)
    assert said(LOOKS, view(virtualization="qemu"), Check.VIRTUALIZATION) == FINE


def test_an_unknown_machine_type_stops_the_move_in_libvirts_words() -> None:
    unknown = view(libvirt={"machine": "the machine 'pc-q35-99' is not supported"})
    assert said(LOOKS, unknown, Check.MACHINE_TYPE) == stopping(ErrorCode.MACHINE_UNSUPPORTED)
    assert "pc-q35-99" in found(LOOKS, unknown, Check.MACHINE_TYPE)[0].message


def test_an_emulator_that_is_missing_or_no_program_stops_the_move(tmp_path: Path) -> None:
    plain = tmp_path / "qemu"
    plain.touch(mode=0o644)
    for path in (str(plain), str(tmp_path / "none")):
        assert said(LOOKS, view(emulator=path), Check.EMULATOR) == stopping(ErrorCode.EMULATOR_MISSING)
    assert said(LOOKS, view(emulator=None), Check.EMULATOR) == FINE


def test_memory_must_be_there_for_all_that_the_guest_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: (1 << 30) + (64 << 20))
    assert said(LOOKS, view(memory=1 << 30), Check.MEMORY) == FINE
    assert said(LOOKS, view(memory=(1 << 30) + 1), Check.MEMORY) == stopping(ErrorCode.MEMORY_SHORT)
    assert said(LOOKS, view(memory=8 << 30, huge_page=2048), Check.MEMORY) == FINE


def test_the_available_memory_is_the_kernels_own_figure() -> None:
    assert 0 < machine.available_memory() < 1 << 50


def test_huge_pages_of_the_right_size_must_be_free() -> None:
    assert said(LOOKS, view(memory=1 << 40, huge_page=1048576), Check.HUGE_PAGES) == stopping(
        ErrorCode.HUGE_PAGES_SHORT)
    assert said(LOOKS, view(memory=1 << 40, huge_page=12345), Check.HUGE_PAGES) == stopping(ErrorCode.HUGE_PAGES_SHORT)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"last_cpu": 3}, FINE), ({"last_cpu": 4}, stopping(ErrorCode.CPU_PINNED_OUTSIDE)),
    ({"last_node": 0}, FINE), ({"last_node": 1}, stopping(ErrorCode.CPU_PINNED_OUTSIDE)),
    ({"last_cpu": 9, "last_node": 9}, stopping(*[ErrorCode.CPU_PINNED_OUTSIDE] * 2)),
    ({"vcpus": 4096}, warning(ErrorCode.CPUS_FEWER)),
])
def test_pins_must_fit_and_too_few_cpus_are_told(changes: dict[str, Any], expected: object) -> None:
    assert said(LOOKS, view(**changes), Check.CPUS) == expected


def test_a_confinement_that_is_not_at_work_here_stops_the_move() -> None:
    assert said(LOOKS, view(security_models=("apparmor",)), Check.SECURITY_MODEL) == FINE
    assert said(LOOKS, view(security_models=("selinux",)), Check.SECURITY_MODEL) == stopping(
        ErrorCode.SECURITY_MODEL_MISSING)


@pytest.mark.parametrize(("version", "fixed"), [
    (7_002_013, False), (7_002_014, True), (7_002_022, True), (8_000_005, False), (8_002_006, False), (8_002_007, True),
    (9_000_002, False), (9_000_003, True), (9_001_000, True), (10_000_000, True), (6_002_000, False), (0, False),
])
def test_a_qemu_has_the_fix_from_the_release_on_that_its_series_got_it_in(version: int, fixed: bool) -> None:
    assert has_nbd_fix(version) is fixed
    over_tcp = view({"qemu": version}, {"transport": Transport.TCP})
    assert said(LOOKS, over_tcp, Check.NBD_FLAW) == (FINE if fixed else warning(ErrorCode.QEMU_NBD_FLAW))
    assert said(LOOKS, view({"qemu": version}), Check.NBD_FLAW) == FINE


# What it will live among.


def interface(kind: str, source: str, portgroup: str | None = None) -> tuple[InterfaceFacts, ...]:
    """One interface."""
    return (InterfaceFacts(kind=kind, source=source, mac=MAC, portgroup=portgroup),)


@pytest.mark.parametrize(("interfaces", "expected"), [
    (interface("network", "lan", "blue"), FINE),
    (interface("network", "lan"), FINE),
    (interface("user", ""), FINE),
    (interface("network", "bridged"), FINE),
    (interface("network", "gone"), stopping(ErrorCode.NETWORK_MISSING)),
    (interface("bridge", "br0"), FINE),
    (interface("direct", "br0"), FINE),
    (interface("bridge", "down0"), warning(ErrorCode.NETWORK_DOWN)),
    (interface("bridge", "br1"), stopping(ErrorCode.NETWORK_MISSING)),
    (interface("direct", "eth9"), stopping(ErrorCode.NETWORK_MISSING)),
    (interface("bridge", "../net"), stopping(ErrorCode.NETWORK_MISSING)),
    (interface("bridge", ""), stopping(ErrorCode.NETWORK_MISSING)),
    (interface("network", "wan"), stopping(ErrorCode.NETWORK_MISSING)),
    (interface("network", "asleep"), stopping(ErrorCode.NETWORK_MISSING)),
    (interface("network", "lan", "red"), stopping(ErrorCode.NETWORK_MISSING)),
    ((*interface("bridge", "br1"), InterfaceFacts(kind="bridge", source="br1", mac="52:54:00:00:00:02")),
     stopping(ErrorCode.NETWORK_MISSING)),
    (interface("network", "wan") + interface("bridge", "br1"), stopping(*[ErrorCode.NETWORK_MISSING] * 2)),
])
def test_each_network_must_be_here_and_at_work(
    interfaces: tuple[InterfaceFacts, ...], expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, flags in (("br0", "0x1003"), ("down0", "0x1002")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags").write_text(f"{flags}\n")
    monkeypatch.setattr(neighbours, "_NETWORK_DEVICES", tmp_path)
    networks = {
        "lan": Network(True, ("blue",)), "asleep": Network(False), "bridged": Network(True, bridge="br0"),
        "gone": Network(True, bridge="br1")}
    assert said(LOOKS, view({"networks": networks}, interfaces=interfaces), Check.NETWORKS) == expected


def test_a_name_that_is_taken_stops_the_move_whatever_has_it() -> None:
    for state in (DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUT_OFF):
        taken = view({"states": {"VM1": state}})
        assert said(LOOKS, taken, Check.VM_NAME) == stopping(ErrorCode.DOMAIN_EXISTS)
        assert state.value in found(LOOKS, taken, Check.VM_NAME)[0].message


def test_a_file_that_libvirt_would_write_over_stops_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.checks.neighbours.os.path.lexists", lambda path: path == "/etc/libvirt/qemu/VM1.xml")
    assert said(LOOKS, view(), Check.VM_NAME) == stopping(ErrorCode.PATH_TAKEN)


def test_a_uuid_that_another_vm_has_stops_the_move() -> None:
    other = view({"same_uuid": "other", "states": {"other": DomainState.SHUT_OFF}})
    assert said(LOOKS, other, Check.VM_UUID) == stopping(ErrorCode.DOMAIN_EXISTS)
    assert said(LOOKS, view({"same_uuid": "VM1"}), Check.VM_UUID) == FINE


@pytest.mark.parametrize(("taken", "expected"), [
    ((MAC, "twin", DomainState.RUNNING), stopping(ErrorCode.MAC_TAKEN)),
    ((MAC, "twin", DomainState.PAUSED), stopping(ErrorCode.MAC_TAKEN)),
    ((MAC, "twin", DomainState.SHUT_OFF), warning(ErrorCode.MAC_TAKEN)),
    ((MAC, "VM1", DomainState.SHUT_OFF), FINE),
    (("52:54:00:00:00:02", "other", DomainState.RUNNING), FINE),
    (("", "without", DomainState.RUNNING), FINE),
])
def test_a_mac_address_that_another_vm_has_is_told(taken: tuple[str, str, DomainState], expected: object) -> None:
    shared = view({"taken_macs": [taken]}, interfaces=(*interface("bridge", "br0"), InterfaceFacts(
        kind="user", source="", mac="")))
    assert said(LOOKS, shared, Check.MAC_ADDRESSES) == expected


def test_a_fixed_port_that_is_listened_on_stops_the_move() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = view(graphics=(GraphicsFacts(kind="vnc", port=port),))
        assert said(LOOKS, taken, Check.GRAPHICS) == stopping(ErrorCode.GRAPHICS_PORT_TAKEN)
    assert said(LOOKS, taken, Check.GRAPHICS) == FINE
    assert said(LOOKS, view(graphics=(GraphicsFacts(kind="vnc", port=-1),)), Check.GRAPHICS) == FINE


@pytest.mark.parametrize(("address", "expected"), [
    ("127.0.0.1", FINE), ("0.0.0.0", FINE), ("a-name", FINE),  # noqa: S104 - where a display listens
    ("192.0.2.77", stopping(ErrorCode.GRAPHICS_ADDRESS_FOREIGN)),
    ("2001:db8::77", stopping(ErrorCode.GRAPHICS_ADDRESS_FOREIGN)),
])
def test_a_display_must_find_its_address_here(address: str, expected: object) -> None:
    display = (GraphicsFacts(kind="spice", port=-1, address=address),)
    assert said(LOOKS, view(graphics=display), Check.GRAPHICS) == expected


def test_each_secret_must_be_here() -> None:
    needed = ("usage ceph a", "2ec115d7-3a88-3ceb-bc12-0ac909a6fd87")
    assert said(LOOKS, view({"secrets": needed}, secrets=needed), Check.SECRETS) == FINE
    assert said(LOOKS, view({"secrets": needed[:1]}, secrets=needed), Check.SECRETS) == stopping(
        ErrorCode.SECRET_MISSING)


def test_a_pool_that_is_not_active_is_told_and_none_is_fine() -> None:
    assert said(LOOKS, view({"pools": [("images", True)]}), Check.STORAGE_POOL) == FINE
    assert said(LOOKS, view({"pools": [("images", False)]}), Check.STORAGE_POOL) == warning(ErrorCode.POOL_NOT_ACTIVE)


def test_the_user_must_exist_and_may_use_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(LOOKS, view(migration={"user": "no-such-user"}), Check.SSH_USER) == stopping(ErrorCode.USER_MISSING)
    monkeypatch.setattr("steps.checks.neighbours.pwd.getpwnam", lambda _name: SimpleNamespace(pw_uid=1234, pw_gid=1234))
    monkeypatch.setattr("steps.checks.neighbours.os.getgrouplist", lambda _name, _group: [1234])
    assert said(LOOKS, view(), Check.SSH_USER) == stopping(ErrorCode.USER_NOT_IN_GROUP)
    monkeypatch.setattr("steps.checks.neighbours.os.getgrouplist", lambda _name, _group: [1234, os.getgid()])
    assert said(LOOKS, view(), Check.SSH_USER) == FINE


def test_a_socket_that_is_open_to_all_is_left_to_polkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("steps.checks.neighbours.pwd.getpwnam", lambda _name: SimpleNamespace(pw_uid=1234, pw_gid=1234))
    monkeypatch.setattr("steps.checks.neighbours.os.getgrouplist", lambda _name, _group: [1234])
    (tmp_path / "libvirt-sock").chmod(0o666)
    assert said(LOOKS, view(), Check.SSH_USER) == FINE


# Files.


def files(directory: Path, migration: dict[str, Any] | None = None, **changes: Any) -> FilesView:
    """A domain whose one image goes into that directory."""
    disk = dataclasses.replace(QCOW2, path=str(directory / "vm.qcow2"), virtual_size=1 << 20, allocated=1 << 16)
    asked = dataclasses.replace(MIGRATION, **{"conf_file": None, **(migration or {})})
    return FilesView(DESTINATION, asked, facts(**{"disks": (disk,), **changes}))


@pytest.mark.parametrize("check", list(storage.LOOKS))
def test_every_check_of_files_is_fine_where_all_is_in_order(check: Check, tmp_path: Path) -> None:
    assert said(storage.LOOKS, files(tmp_path), check) == FINE


def test_whatever_is_at_the_target_path_stops_the_move(tmp_path: Path) -> None:
    (tmp_path / "vm.qcow2").symlink_to("/nowhere")
    assert said(storage.LOOKS, files(tmp_path), Check.TARGET_PATH) == stopping(ErrorCode.PATH_TAKEN)


@pytest.mark.parametrize(("directory", "code"), [
    ("/srv/no/such/directory", ErrorCode.DIRECTORY_MISSING), ("/etc", ErrorCode.PATH_NOT_ALLOWED),
    ("/root/.ssh", ErrorCode.PATH_NOT_ALLOWED),
])
def test_a_directory_that_is_missing_or_the_systems_own_stops_the_move(directory: str, code: ErrorCode) -> None:
    assert said(storage.LOOKS, files(Path(directory)), Check.TARGET_DIRECTORY) == stopping(code)


def test_a_directory_that_qemu_may_not_enter_stops_the_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def never(*arguments: object) -> bool:
        asked.append(arguments)
        return False

    monkeypatch.setattr(storage, "qemu_may_enter", never)
    closed = dataclasses.replace(files(tmp_path), qemu_ids=(64055, 108))
    assert said(storage.LOOKS, closed, Check.TARGET_DIRECTORY) == stopping(ErrorCode.DIRECTORY_MISSING)
    assert "QEMU's user (id 64055)" in found(storage.LOOKS, closed, Check.TARGET_DIRECTORY)[0].message
    assert asked[0] == (str(tmp_path), (64055, 108), DESTINATION)


def test_a_file_where_the_directory_should_be_stops_the_move(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert said(storage.LOOKS, files(tmp_path / "file"), Check.TARGET_DIRECTORY) == stopping(
        ErrorCode.DIRECTORY_MISSING)


def file_system(monkeypatch: pytest.MonkeyPatch, free: int, flags: int = 0) -> None:
    """Every file system has so many bytes free."""
    monkeypatch.setattr("steps.checks.storage.os.statvfs", lambda _path: SimpleNamespace(
        f_bavail=free, f_frsize=1, f_flag=flags))


def test_a_read_only_file_system_stops_the_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_system(monkeypatch, 1 << 40, os.ST_RDONLY)
    assert said(storage.LOOKS, files(tmp_path), Check.TARGET_DIRECTORY) == stopping(ErrorCode.DIRECTORY_MISSING)


@pytest.mark.parametrize(("free", "space", "size"), [
    ((1 << 16) - 1, stopping(ErrorCode.SPACE_SHORT), FINE),
    (1 << 16, FINE, warning(ErrorCode.SPACE_FOR_VIRTUAL_SIZE)),
    ((1 << 20) - 1, FINE, warning(ErrorCode.SPACE_FOR_VIRTUAL_SIZE)),
    (1 << 20, FINE, FINE),
])
def test_what_is_allocated_must_fit_and_what_may_be_written_should(
    free: int, space: object, size: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    file_system(monkeypatch, free)
    assert said(storage.LOOKS, files(tmp_path), Check.DISK_SPACE) == space
    assert said(storage.LOOKS, files(tmp_path), Check.VIRTUAL_SIZE) == size


def test_disks_on_one_file_system_must_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_system(monkeypatch, (1 << 16) + 100)
    one = files(tmp_path).facts.disks[0]
    both = files(tmp_path, disks=(one, dataclasses.replace(one, target="vdb", path=str(tmp_path / "b.qcow2"))))
    assert said(storage.LOOKS, both, Check.DISK_SPACE) == stopping(ErrorCode.SPACE_SHORT)


@pytest.mark.parametrize(("name", "codes"), [
    ("vm.xml", []), ("vm.txt", [ErrorCode.PATH_NOT_ALLOWED]), ("none/vm.xml", [ErrorCode.DIRECTORY_MISSING]),
    ("taken.xml", [ErrorCode.PATH_TAKEN]),
])
def test_a_conf_file_of_the_admins_choice_must_be_new_and_an_xml_file(
    name: str, codes: list[ErrorCode], tmp_path: Path,
) -> None:
    (tmp_path / "taken.xml").touch()
    asked = files(tmp_path, {"conf_file": str(tmp_path / name)})
    assert said(storage.LOOKS, asked, Check.CONF_FILE) == (stopping(*codes) or FINE)


def test_a_conf_file_among_libvirts_own_is_refused_unless_it_is_libvirts(tmp_path: Path) -> None:
    other = files(tmp_path, {"conf_file": "/etc/libvirt/qemu/other.xml"})
    assert (Severity.STOPS, ErrorCode.PATH_NOT_ALLOWED) in said(storage.LOOKS, other, Check.CONF_FILE)
    own = files(tmp_path, {"conf_file": "/etc/libvirt/qemu/VM1.xml"})
    assert said(storage.LOOKS, own, Check.CONF_FILE) == FINE


def boot(path: Path | str, purpose: FilePurpose, length: int = 3) -> FileFacts:
    """A file that the domain boots from, or has in a drive."""
    return FileFacts(path=str(path), purpose=purpose, length=length, allocated=length, mode=0o644, target="sda")


def test_a_kernel_that_is_not_here_is_sent_and_one_of_another_length_stops_the_move(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    booted = files(tmp_path, files=(boot(kernel, FilePurpose.KERNEL), boot(initrd, FilePurpose.INITRD)))
    assert said(storage.LOOKS, booted, Check.BOOT_FILES) == FINE
    kernel.write_text("abc")
    assert said(storage.LOOKS, booted, Check.BOOT_FILES) == FINE
    kernel.write_text("abcd")
    initrd.mkdir()
    assert said(storage.LOOKS, booted, Check.BOOT_FILES) == stopping(*[ErrorCode.PATH_TAKEN] * 2)


def test_a_kernel_among_the_systems_own_has_to_be_here(tmp_path: Path) -> None:
    booted = files(tmp_path, files=(boot("/boot/no-such-kernel", FilePurpose.KERNEL),))
    assert said(storage.LOOKS, booted, Check.BOOT_FILES) == stopping(ErrorCode.FILE_MISSING)


def test_firmware_has_to_be_here(tmp_path: Path) -> None:
    booted = files(tmp_path, firmware="/usr/share/OVMF/no-such.fd")
    assert said(storage.LOOKS, booted, Check.BOOT_FILES) == stopping(ErrorCode.FILE_MISSING)


def test_a_medium_that_is_not_here_is_sent_and_another_one_in_its_place_stops_the_move(tmp_path: Path) -> None:
    iso = tmp_path / "a.iso"
    inserted = files(tmp_path, files=(boot(iso, FilePurpose.MEDIUM),))
    assert said(storage.LOOKS, inserted, Check.REMOVABLE_MEDIA) == FINE
    iso.write_text("other")
    assert said(storage.LOOKS, inserted, Check.REMOVABLE_MEDIA) == stopping(ErrorCode.PATH_TAKEN)


@pytest.mark.parametrize(("path", "must_exist", "expected"), [
    ("there", True, FINE), ("gone", True, stopping(ErrorCode.SERIAL_MISSING)), ("gone", False, FINE),
    ("none/log", False, stopping(ErrorCode.DIRECTORY_MISSING)), ("none/tty", True, stopping(ErrorCode.SERIAL_MISSING)),
])
def test_what_a_serial_port_leads_to_must_be_here(
    path: str, must_exist: bool, expected: object, tmp_path: Path,
) -> None:
    (tmp_path / "there").touch()
    port = files(tmp_path, serial_ports=(SerialFacts(path=str(tmp_path / path), must_exist=must_exist),))
    assert said(storage.LOOKS, port, Check.SERIAL_PORTS) == expected


def test_the_fake_host_has_what_the_real_ones_capabilities_have() -> None:
    assert "<domain type='kvm'/>" in CAPABILITIES
