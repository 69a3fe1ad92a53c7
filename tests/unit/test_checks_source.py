"""Each check of the source finds what it is for, and nothing on a domain that has nothing."""

from __future__ import annotations

import dataclasses

import pytest

from constant import DomainState, Severity, Transport
from tests.unit.looking import FINE, FakeHypervisor, found, said, stopping, warning
from tests.unit.samples import ISO, LAYERED, MIGRATION, QCOW2, ROOT, SOURCE

# isort: split
from host.domain_xml import describe
from host.image import flattened
from steps.checks import disks, domain
from steps.checks.domain import SourceView
from steps.checks.look import Saw, fine, look, stops, warns
from wire.errors import ErrorCode, MigrationError
from wire.findings import Check
from wire.placement import Connection, DiskMap, NetworkMap
from wire.records import Convergence

PLAIN = (ROOT / "tests" / "unit" / "domains" / "debian-12.xml").read_text(encoding="utf-8")
LOOKS = {**domain.LOOKS, **disks.LOOKS}


def view(document: str = PLAIN, **changes: object) -> SourceView:
    """A running domain with that document, and the images of its disks in order."""
    description = describe(document)
    hypervisor = FakeHypervisor({False: document}, **changes.pop("libvirt", {}))  # type: ignore[arg-type]
    found = disks.all_disks(description, description)
    made = SourceView(
        SOURCE, dataclasses.replace(MIGRATION, disk=None), hypervisor.hypervisor(), description, description,
        DomainState.RUNNING, found,
        {disks.key(disk): dataclasses.replace(QCOW2, target=disk.target, path=disk.path or QCOW2.path)
         for disk in found})
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def document(name: str) -> str:
    """One of the stored documents."""
    return (ROOT / "tests" / "unit" / "domains" / f"{name}.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize("check", list(LOOKS))
def test_every_check_of_the_source_is_fine_with_an_ordinary_running_vm(check: Check) -> None:
    assert said(LOOKS, view(), check) == FINE


def test_a_vm_that_somebody_has_paused_is_moved() -> None:
    assert said(LOOKS, view(state=DomainState.PAUSED), Check.DOMAIN_STATE) == FINE


def test_a_pause_that_passes_or_has_to_be_mended_stops_the_move() -> None:
    broken = view(state=DomainState.PAUSED, libvirt={"paused_by": "paused by an I/O error of a disk"})
    assert said(LOOKS, broken, Check.DOMAIN_STATE) == stopping(ErrorCode.DOMAIN_NOT_RUNNING)
    assert "I/O error" in found(LOOKS, broken, Check.DOMAIN_STATE)[0].message


def test_of_a_vm_that_is_shut_off_it_is_told_that_it_may_be_a_stale_copy() -> None:
    assert said(LOOKS, view(state=DomainState.SHUT_OFF), Check.DOMAIN_STATE) == warning(ErrorCode.DOMAIN_SHUT_OFF)


def test_a_vm_whose_memory_lies_in_a_file_is_not_moved() -> None:
    saved = view(state=DomainState.SHUT_OFF, libvirt={"saved": True})
    assert (Severity.STOPS, ErrorCode.DOMAIN_SAVED) in said(LOOKS, saved, Check.DOMAIN_STATE)


def test_the_guest_agent_has_to_answer_only_where_it_is_needed() -> None:
    mute = {"agent": "no agent"}
    assert said(LOOKS, view(libvirt=mute), Check.GUEST_AGENT) == FINE
    trim = dataclasses.replace(MIGRATION, disk=None, trim=True)
    assert said(LOOKS, view(migration=trim, libvirt=mute), Check.GUEST_AGENT) == stopping(
        ErrorCode.GUEST_AGENT_SILENT)
    assert said(LOOKS, view(migration=trim), Check.GUEST_AGENT) == FINE


def test_a_vm_that_another_job_works_on_is_not_moved() -> None:
    assert said(LOOKS, view(libvirt={"jobs": True}), Check.DOMAIN_JOB) == stopping(ErrorCode.DOMAIN_BUSY)


def test_of_a_vm_that_is_shut_off_no_job_is_asked_for() -> None:
    shut_off = view(state=DomainState.SHUT_OFF, libvirt={"jobs": True})
    assert said(LOOKS, shut_off, Check.DOMAIN_JOB) == FINE


def test_a_name_that_does_not_fit_a_socket_stops_only_the_move_through_ssh() -> None:
    long = dataclasses.replace(MIGRATION, domain="x" * 80, disk=None)
    assert said(LOOKS, view(migration=long), Check.DOMAIN_NAME) == stopping(ErrorCode.DOMAIN_NAME_UNFIT)
    renamed = dataclasses.replace(long, new_name="web")
    assert said(LOOKS, view(migration=renamed), Check.DOMAIN_NAME) == FINE
    over_tcp = dataclasses.replace(long, transport=Transport.TCP)
    assert said(LOOKS, view(migration=over_tcp), Check.DOMAIN_NAME) == FINE


def test_snapshots_and_checkpoints_stop_the_move() -> None:
    held = view(libvirt={"snapshot_count": 2, "checkpoint_count": 1})
    assert said(LOOKS, held, Check.SNAPSHOTS) == stopping(ErrorCode.DOMAIN_HAS_SNAPSHOTS)
    assert said(LOOKS, held, Check.CHECKPOINTS) == stopping(ErrorCode.DOMAIN_HAS_CHECKPOINTS)
    assert found(LOOKS, held, Check.SNAPSHOTS)[0].facts["count"] == "2"


@pytest.mark.parametrize(("wanted", "has_it", "stopped"), [
    (True, False, True), (True, True, False), (False, False, False)])
def test_synchronous_writes_stop_the_move_only_where_libvirt_lacks_them(
    monkeypatch: pytest.MonkeyPatch, wanted: bool, has_it: bool, stopped: bool,
) -> None:
    monkeypatch.setattr(domain, "has_synchronous_writes", lambda: has_it)
    asked = dataclasses.replace(MIGRATION, disk=None, convergence=Convergence(synchronous_writes=wanted))
    expected = stopping(ErrorCode.SYNCHRONOUS_WRITES_UNAVAILABLE) if stopped else FINE
    assert said(LOOKS, view(migration=asked), Check.SYNCHRONOUS_WRITES) == expected


@pytest.mark.parametrize(("name", "check"), [
    ("pci-passthrough", Check.HOST_DEVICES), ("usb-passthrough", Check.HOST_DEVICES),
    ("mediated-device", Check.HOST_DEVICES), ("network-passthrough", Check.HOST_DEVICES),
    ("shared-folder-9p", Check.SHARED_FOLDERS), ("shared-folder-virtiofs", Check.SHARED_FOLDERS),
    ("shmem", Check.SPECIAL_DEVICES),
    ("vhost-user", Check.SPECIAL_DEVICES), ("sev", Check.SPECIAL_DEVICES),
    ("persistent-memory", Check.SPECIAL_DEVICES),
])
def test_a_device_that_stays_behind_stops_the_move_with_its_name_and_a_remedy(name: str, check: Check) -> None:
    findings = found(LOOKS, view(document(name)), check)
    assert {(each.severity, each.code) for each in findings} == {(Severity.STOPS, ErrorCode.DEVICE_UNSUPPORTED)}
    assert all("{" not in each.hint and each.facts["device"] in each.message for each in findings)


def test_arguments_handed_to_qemu_are_told_and_stop_nothing() -> None:
    handed = view(document("qemu-command-line"))
    assert said(LOOKS, handed, Check.SPECIAL_DEVICES) == warning(ErrorCode.OWN_ARGUMENTS)


def test_an_invariant_clock_stops_the_move_unless_its_frequency_is_given() -> None:
    plain = document("invariant-tsc")
    assert said(LOOKS, view(plain), Check.INVARIANT_TSC) == stopping(ErrorCode.INVARIANT_TSC)
    clock = "<clock offset='utc'><timer name='tsc' frequency='2000000000'/></clock>"
    given = plain.replace("<devices>", f"{clock}<devices>", 1)
    assert said(LOOKS, view(given), Check.INVARIANT_TSC) == FINE


def test_a_cpu_that_was_made_not_to_migrate_stops_the_move() -> None:
    fixed = PLAIN.replace("mode='host-passthrough'", "mode='host-passthrough' migratable='off'").replace(
        'mode="host-passthrough"', 'mode="host-passthrough" migratable="off"')
    assert fixed != PLAIN
    fixed = fixed.replace("migratable='on'", "").replace('migratable="on"', "")
    assert said(LOOKS, view(fixed), Check.INVARIANT_TSC) == stopping(ErrorCode.INVARIANT_TSC)


def test_a_cpu_made_for_nested_vms_is_told_where_the_definition_asks_for_it() -> None:
    assert said(LOOKS, view(document("nested-vmx")), Check.NESTED_VIRTUALIZATION) == warning(ErrorCode.NESTED_GUESTS)


def test_a_running_cpu_that_has_the_feature_only_because_the_host_has_it_is_no_warning() -> None:
    running = view(document("nested-vmx"))
    lasting = dataclasses.replace(running, lasting=describe(PLAIN))
    assert said(LOOKS, lasting, Check.NESTED_VIRTUALIZATION) == FINE


def test_a_disk_argument_that_is_not_the_vms_stops_the_move_and_names_those_that_are() -> None:
    wrong = view(migration=dataclasses.replace(MIGRATION, disk="/srv/other.qcow2"))
    assert said(LOOKS, wrong, Check.DISK_ARGUMENT) == stopping(ErrorCode.DISK_NOT_OF_DOMAIN)
    own = str(describe(PLAIN).disks[0].path)
    assert own in found(LOOKS, wrong, Check.DISK_ARGUMENT)[0].message
    right = view(migration=dataclasses.replace(MIGRATION, disk=own))
    assert said(LOOKS, right, Check.DISK_ARGUMENT) == FINE


def test_a_medium_in_a_drive_is_no_disk_that_could_be_named() -> None:
    iso = str(describe(document("windows-server-2022")).disks[1].path)
    named = view(document("windows-server-2022"), migration=dataclasses.replace(MIGRATION, disk=iso))
    assert said(LOOKS, named, Check.DISK_ARGUMENT) == stopping(ErrorCode.DISK_NOT_OF_DOMAIN)


@pytest.mark.parametrize(("name", "count"), [
    ("network-disk-rbd", 1), ("encrypted-disk-luks", 2), ("shareable-disk", 1), ("transient-disk", 1),
])
def test_each_disk_that_cannot_be_moved_stops_the_move(name: str, count: int) -> None:
    assert said(LOOKS, view(document(name)), Check.DISKS) == stopping(*[ErrorCode.DISK_UNSUPPORTED] * count)


@pytest.mark.parametrize("name", ["two-disks", "raw-on-block-device", "ubuntu-24-04-cloud-image",
                                  "running-with-chain", "windows-server-2022", "rhel-9-uefi"])
def test_several_disks_chains_block_devices_firmware_and_tpm_are_moved(name: str) -> None:
    for check in (Check.DISKS, Check.BACKING_CHAIN, Check.TPM):
        assert said(LOOKS, view(document(name)), check) == FINE


def image_of(document: str, what: object) -> dict[tuple[str, str], object]:
    """What was found out of the first disk."""
    first = disks.all_disks(describe(document), None)[0]
    return {disks.key(first): what}


def test_an_image_that_cannot_be_looked_at_stops_the_move_with_its_own_error() -> None:
    error = MigrationError(ErrorCode.TOOL_FAILED, {"tool": "qemu-img", "host": SOURCE, "reason": "no"})
    assert said(LOOKS, view(images=image_of(PLAIN, error)), Check.DISKS) == stopping(ErrorCode.TOOL_FAILED)


def test_a_vm_without_a_disk_is_not_moved() -> None:
    bare = "<domain type='kvm'><name>x</name></domain>"
    assert said(LOOKS, view(bare), Check.DISKS) == stopping(ErrorCode.DISK_UNSUPPORTED)


def test_a_layer_that_is_gone_below_a_running_vm_is_told_as_such() -> None:
    gone = MigrationError(ErrorCode.BACKING_UNREADABLE, {
        "host": SOURCE, "domain": "VM1", "target": "vda", "path": "/srv/gone.qcow2", "reason": "not there"})
    broken = view(images=image_of(PLAIN, gone))
    assert said(LOOKS, broken, Check.BACKING_CHAIN) == stopping(ErrorCode.BACKING_UNREADABLE)
    assert said(LOOKS, broken, Check.DISKS) == FINE
    assert "/srv/gone.qcow2" in found(LOOKS, broken, Check.BACKING_CHAIN)[0].message


def test_a_chain_is_made_one_image_only_on_the_way_of_a_running_vm() -> None:
    flat = dataclasses.replace(MIGRATION, disk=None, flatten=True)
    running = view(migration=flat, images=image_of(PLAIN, LAYERED))
    assert said(LOOKS, running, Check.BACKING_CHAIN) == FINE
    shut_off = dataclasses.replace(running, state=DomainState.SHUT_OFF)
    assert said(LOOKS, shut_off, Check.BACKING_CHAIN) == stopping(ErrorCode.FLATTEN_NEEDS_RUNNING)
    assert running.facts().disks[0].layers == ()
    # What has to fit over there is all that lies in the chain, but not more than its top image can hold.
    for below, together in ((LAYERED.virtual_size // 4, LAYERED.allocated + LAYERED.virtual_size // 4),
                            (LAYERED.virtual_size * 2, LAYERED.virtual_size)):
        layer = dataclasses.replace(LAYERED.layers[0], allocated=below)
        filled = dataclasses.replace(LAYERED, layers=(layer,))
        assert flattened(filled).allocated == together


def test_a_map_that_fits_nothing_of_the_vm_stops_the_move() -> None:
    wrong = dataclasses.replace(MIGRATION, disk=None, disk_maps=(
        DiskMap(what="vdz", path="/srv/x"), DiskMap(what="/no/such", path="/srv/y")), network_maps=(
        NetworkMap(here=Connection(kind="bridge", name="nobr"), there=Connection(kind="bridge", name="br1")),))
    assert said(LOOKS, view(migration=wrong), Check.MAPS) == stopping(*[ErrorCode.MAP_UNUSED] * 3)
    network = describe(PLAIN).interfaces[0]
    own = str(describe(PLAIN).disks[0].path)
    right = dataclasses.replace(MIGRATION, disk=None, disk_maps=(
        DiskMap(what="vda", path="/srv/x"), DiskMap(what=own.rpartition("/")[0], path="/srv/y")), network_maps=(
        NetworkMap(here=Connection(kind=network.kind, name=network.source),
                   there=Connection(kind="bridge", name="br1")),))
    assert said(LOOKS, view(migration=right), Check.MAPS) == FINE


def test_a_file_that_cannot_be_sent_stops_the_move() -> None:
    lost = MigrationError(ErrorCode.FILE_NOT_SENT, {
        "host": SOURCE, "domain": "VM1", "what": "medium", "path": "/srv/a.iso", "reason": "not there"})
    assert said(LOOKS, view(files=(lost,)), Check.FILES_TO_SEND) == stopping(ErrorCode.FILE_NOT_SENT)
    assert said(LOOKS, view(files=(ISO,)), Check.FILES_TO_SEND) == FINE


def test_an_unsafe_cache_is_told_and_stops_nothing() -> None:
    assert said(LOOKS, view(document("cache-unsafe")), Check.DISK_CACHE) == warning(ErrorCode.DISK_CACHE_UNSAFE)


# The loop.


def test_a_check_that_fails_stops_the_move_and_the_others_are_made_all_the_same() -> None:
    def refuses(_view: object) -> list[Saw]:
        raise MigrationError(ErrorCode.TOOL_MISSING, {"host": SOURCE, "tool": "ssh", "package": "openssh-client"})

    def breaks(_view: object) -> list[Saw]:
        raise ZeroDivisionError("oh")

    def sees_both(_view: object) -> list[Saw]:
        return [fine(), warns(ErrorCode.OWN_ARGUMENTS), fine()]

    findings = look({
        Check.SSH: refuses, Check.CPU: breaks, Check.DISKS: sees_both, Check.TPM: lambda _view: [],
        Check.CLOCK: lambda _view: [stops(ErrorCode.DOMAIN_BUSY), stops(ErrorCode.PATH_TAKEN, path="/x")],
    }, None, {"host": SOURCE, "domain": "VM1"})
    assert [(each.check, each.severity, each.code) for each in findings] == [
        (Check.SSH, Severity.STOPS, ErrorCode.TOOL_MISSING), (Check.CPU, Severity.STOPS, ErrorCode.CHECK_FAILED),
        (Check.DISKS, Severity.WARNS, ErrorCode.OWN_ARGUMENTS), (Check.TPM, Severity.FINE, None),
        (Check.CLOCK, Severity.STOPS, ErrorCode.DOMAIN_BUSY), (Check.CLOCK, Severity.STOPS, ErrorCode.PATH_TAKEN)]
    assert all(each.facts["host"] == SOURCE for each in findings)
    assert "oh" in findings[1].message
