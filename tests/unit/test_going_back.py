"""A VM that goes back to a host that still has its copy: RESTORE_SOURCE brings that back, PREPARE_DESTINATION sets its
definition aside, and ROLL_BACK puts it back.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.libvirtd import OFF, PAUSED, RUNS, Libvirtd, document
from tests.unit.samples import DESTINATION, FACTS, MIGRATION, NOTE, QCOW2, SOURCE, STEP

# isort: split
from constant import Command, DomainState, Severity, Transport
from host.file_identity import FileIdentity
from host.hypervisor import Hypervisor
from host.job_files import Ledger, Made, MadeKind
from host.set_aside import put_back, set_aside
from host.stale_copy import StaleCopy, mark
from steps import (
    check_source,
    define_virtual_machine,
    extract_configure_file,
    finish,
    prepare_destination,
    restore_source,
    roll_back,
)
from steps.checks.machine import DestinationView
from steps.checks.neighbours import LOOKS
from steps.context import StepContext
from steps.table import STEPS
from tests.unit.looking import CAPABILITIES, FINE, FakeHypervisor, found, said, stopping
from tests.unit.one_domain import context_on, put_clock
from wire.errors import ErrorCode, MigrationError
from wire.findings import Check
from wire.records import Migration, StepArguments, StepReport
from wire.situation import DomainView, MovedNote

JOB = MIGRATION.job_id
HIDDEN = f".moved-{JOB}"
# The job that brings the VM back: it arrives where an earlier job, that of NOTE, has left its copy.
EARLIER = dataclasses.replace(NOTE, job_id="11111111", destination=SOURCE)
OTHER_VM = "99999999-7d1c-4a8f-9a55-0c1d2e3f4a5b"


@pytest.fixture
def libvirtd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Libvirtd:
    """This host's libvirt."""
    put_clock(monkeypatch)
    monkeypatch.setattr("host.stale_copy.TPM_DIRECTORY", str(tmp_path / "swtpm"))
    monkeypatch.setattr("host.orphans.find", lambda _directory: [])
    monkeypatch.setattr("host.job_files._SOCKET_ROOT", str(tmp_path / "run"))
    return Libvirtd().put(monkeypatch)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The VM's image here, as it was when the VM moved."""
    path = tmp_path / "node.qcow2"
    path.write_text("as it was")
    return path


def refused(action: Callable[[], object]) -> MigrationError:
    """Why it is not done."""
    with pytest.raises(MigrationError) as caught:
        action()
    assert "?" not in caught.value.message + caught.value.hint
    return caught.value


# RESTORE_SOURCE.


def restored(directory: Path) -> StepReport:
    """RESTORE_SOURCE on this host."""
    return restore_source.run(context_on(SOURCE, directory), STEP)


def hide(libvirtd: Libvirtd, *disks: Path | str) -> None:
    """Leave the copy of a VM with these disks behind, as FINISH does."""
    libvirtd.add(document(*map(str, disks)))
    with Hypervisor.open(SOURCE) as hypervisor:
        mark(hypervisor, "VM1", NOTE)
        assert StaleCopy.of(hypervisor, "VM1", JOB, "here").hide(hypervisor, "VM1") == []


def test_the_copy_is_brought_back_and_not_started(libvirtd: Libvirtd, disk: Path, tmp_path: Path) -> None:
    hide(libvirtd, disk, "/dev/vg/vm1")
    assert not disk.exists()
    summary = restored(tmp_path).summary
    assert summary.startswith("shut off, as it was when it moved at 20")
    assert summary.endswith("; autostart stays off")
    assert disk.read_text() == "as it was"
    vm = libvirtd.lookupByName("VM1")
    assert (tuple(vm.now), vm.starts) == (OFF, False)
    assert "moved" not in vm.text
    assert STEPS[Command.RESTORE_SOURCE] is restore_source.run


@pytest.mark.parametrize("now", [RUNS, PAUSED])
def test_a_copy_that_somebody_has_started_all_the_same_is_not_touched(
    libvirtd: Libvirtd, disk: Path, tmp_path: Path, now: tuple[int, int],
) -> None:
    hide(libvirtd, disk)
    libvirtd.domains[0].now = now
    error = refused(lambda: restored(tmp_path))
    assert error.code is ErrorCode.NO_STALE_COPY
    assert not disk.exists()


def test_a_vm_that_is_no_copy_or_the_copy_of_another_job_or_is_not_there_is_no_stale_copy(
    libvirtd: Libvirtd, disk: Path, tmp_path: Path,
) -> None:
    assert refused(lambda: restored(tmp_path)).code is ErrorCode.NO_STALE_COPY
    vm = libvirtd.add(document(str(disk)))
    assert refused(lambda: restored(tmp_path)).code is ErrorCode.NO_STALE_COPY
    libvirtd.domains.remove(vm)
    vm = libvirtd.add(document(str(disk)), note=EARLIER)
    before = vm.text
    error = refused(lambda: restored(tmp_path))
    assert (error.code, error.facts["state"], vm.text) == (ErrorCode.NO_STALE_COPY, "shut off", before)


def test_a_copy_of_which_a_file_is_gone_is_not_brought_back_at_all(
    libvirtd: Libvirtd, disk: Path, tmp_path: Path,
) -> None:
    second = tmp_path / "data.qcow2"
    second.touch()
    hide(libvirtd, disk, second)
    Path(f"{second}{HIDDEN}").unlink()
    error = refused(lambda: restored(tmp_path))
    assert error.code is ErrorCode.NOT_AS_EXPECTED
    assert f"{second} is not there any more" in error.message
    assert not disk.exists()
    assert libvirtd.domains[0].text.count("moved") > 0


def test_a_file_that_has_taken_the_name_meanwhile_is_told_and_stays(
    libvirtd: Libvirtd, disk: Path, tmp_path: Path,
) -> None:
    hide(libvirtd, disk)
    disk.write_text("somebody's")
    error = refused(lambda: restored(tmp_path))
    assert error.code is ErrorCode.NOT_AS_EXPECTED
    assert "exists already" in error.message
    assert disk.read_text() == "somebody's"
    with Hypervisor.open(SOURCE) as hypervisor:
        assert hypervisor.view("VM1").gone


@pytest.mark.parametrize("made", [False, True], ids=["not made yet", "made"])
def test_a_copy_whose_disk_another_vm_has_taken_the_name_of_is_not_brought_back(
    libvirtd: Libvirtd, disk: Path, tmp_path: Path, made: bool,
) -> None:
    hide(libvirtd, disk)
    libvirtd.add(document(str(disk), name="newer", uuid=OTHER_VM))
    if made:
        disk.write_text("the newer VM's")
    error = refused(lambda: restored(tmp_path))
    assert error.code is ErrorCode.NOT_AS_EXPECTED


# Setting a definition aside.


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """What the job has made here: nothing yet."""
    return Ledger(JOB, tmp_path / "jobs")


def test_a_definition_is_kept_in_a_file_for_root_alone_before_libvirt_forgets_it_and_comes_back_word_for_word(
    libvirtd: Libvirtd, ledger: Ledger, tmp_path: Path,
) -> None:
    vm = libvirtd.add(document("/srv/x.qcow2"), note=EARLIER)
    before, path = vm.text, tmp_path / "jobs" / f"{JOB}.xml"
    with Hypervisor.open(DESTINATION) as hypervisor:
        set_aside(hypervisor, "VM1", ledger, path)
        assert libvirtd.names() == []
        assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (before, 0o600)
        assert [(made.kind, made.path, made.still_there()) for made in ledger.entries()] == [
            (MadeKind.DEFINITION, str(path), True)] * 2
        put_back(hypervisor, "VM1", ledger)
        assert libvirtd.lookupByName("VM1").text == before
        assert hypervisor.moved_note("VM1") == EARLIER


def test_a_definition_that_could_not_be_written_down_stays_defined(
    libvirtd: Libvirtd, ledger: Ledger, tmp_path: Path,
) -> None:
    libvirtd.add(document("/srv/x.qcow2"), note=EARLIER)
    (tmp_path / "file").touch()
    with Hypervisor.open(DESTINATION) as hypervisor, pytest.raises(OSError, match="file"):
        set_aside(hypervisor, "VM1", ledger, tmp_path / "file" / f"{JOB}.xml")
    assert libvirtd.names() == ["VM1"]


def test_nothing_is_put_back_over_a_vm_that_is_here_nor_from_a_file_that_is_another(
    libvirtd: Libvirtd, ledger: Ledger, tmp_path: Path,
) -> None:
    path = tmp_path / "jobs" / f"{JOB}.xml"
    libvirtd.add(document("/srv/x.qcow2"), note=EARLIER)
    with Hypervisor.open(DESTINATION) as hypervisor:
        set_aside(hypervisor, "VM1", ledger, path)
        arrived = libvirtd.add(document("/srv/new.qcow2"), RUNS)
        put_back(hypervisor, "VM1", ledger)
        assert "/srv/new.qcow2" in libvirtd.lookupByName("VM1").text
        libvirtd.domains.remove(arrived)
        path.rename(path.with_suffix(".old"))
        path.write_text("<domain type='kvm'><name>VM1</name></domain>")
        put_back(hypervisor, "VM1", ledger)
    assert libvirtd.names() == []


# PREPARE_DESTINATION and ROLL_BACK with a kept copy.


@pytest.fixture
def migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepArguments:
    """A VM that comes back: its disk goes where it was before the earlier move."""
    monkeypatch.setattr("host.image.run_tool", lambda *_arguments, **_more: "")
    # As an ordinary user: nothing is given away.
    monkeypatch.setattr("os.fchown", lambda *_arguments: None)
    path = str(tmp_path / "images" / "node.qcow2")
    (tmp_path / "images").mkdir()
    moving: Migration = dataclasses.replace(MIGRATION, transport=Transport.TCP, disk=path)
    return StepArguments(migration=moving, facts=dataclasses.replace(
        FACTS, disks=(dataclasses.replace(QCOW2, path=path),)), source_keeps=True)


def prepared(directory: Path, arguments: StepArguments) -> StepContext:
    """PREPARE_DESTINATION on this host."""
    context = context_on(DESTINATION, directory)
    prepare_destination.run(context, arguments)
    return context


def test_a_kept_copy_is_set_aside_for_the_vm_that_comes_back_and_put_back_if_it_does_not_come(
    libvirtd: Libvirtd, migration: StepArguments, tmp_path: Path,
) -> None:
    vm = libvirtd.add(document(str(tmp_path / "images" / "node.qcow2")), note=EARLIER)
    before = vm.text
    old = tmp_path / "images" / "node.qcow2.moved-11111111"
    old.write_text("the old disk")
    context = prepared(tmp_path, migration)
    assert libvirtd.names() == []
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"node.qcow2", old.name}
    report = roll_back.run(context, migration)
    assert (report.state, report.cleared, report.arrived) == (DomainState.ABSENT, True, False)
    assert report.older_copy is True
    assert libvirtd.lookupByName("VM1").text == before
    assert {path.name for path in (tmp_path / "images").iterdir()} == {old.name}
    assert old.read_text() == "the old disk"
    assert list((tmp_path / "jobs").iterdir()) == []


def test_rolling_back_twice_puts_it_back_once(libvirtd: Libvirtd, migration: StepArguments, tmp_path: Path) -> None:
    libvirtd.add(document("/srv/x.qcow2"), note=EARLIER)
    context = prepared(tmp_path, migration)
    for _twice in range(2):
        assert roll_back.run(context, migration).cleared
        assert libvirtd.names() == ["VM1"]


def test_it_is_not_put_back_while_the_source_may_have_given_the_vm_up(
    libvirtd: Libvirtd, migration: StepArguments, tmp_path: Path,
) -> None:
    libvirtd.add(document("/srv/x.qcow2"), note=EARLIER)
    context = prepared(tmp_path, migration)
    assert not roll_back.run(context, dataclasses.replace(migration, source_keeps=False)).cleared
    assert libvirtd.names() == []
    assert context.aside(migration.migration).exists()


def test_a_kept_copy_that_was_not_set_aside_yet_is_as_good_as_nothing_and_stays(
    libvirtd: Libvirtd, migration: StepArguments, tmp_path: Path,
) -> None:
    vm = libvirtd.add(document("/srv/x.qcow2"), note=EARLIER)
    before = vm.text
    report = roll_back.run(context_on(DESTINATION, tmp_path), migration)
    assert (report.state, report.removed, report.cleared) == (DomainState.ABSENT, (), True)
    assert [each.text for each in libvirtd.domains] == [before]


@pytest.mark.parametrize(("now", "note"), [(OFF, None), (RUNS, None), (RUNS, EARLIER), (PAUSED, EARLIER)])
def test_a_vm_of_that_name_that_is_no_copy_or_runs_stops_it_before_anything_is_made(
    libvirtd: Libvirtd, migration: StepArguments, tmp_path: Path, now: tuple[int, int], note: MovedNote | None,
) -> None:
    libvirtd.add(document("/srv/x.qcow2"), now, note=note)
    error = refused(lambda: prepared(tmp_path, migration))
    assert (error.code, error.facts["what"]) == (ErrorCode.DOMAIN_EXISTS, "name")
    assert libvirtd.names() == ["VM1"]
    assert list((tmp_path / "images").iterdir()) == []
    assert not (tmp_path / "jobs").exists()


def test_the_kept_copy_of_another_vm_stops_it_too(
    libvirtd: Libvirtd, migration: StepArguments, tmp_path: Path,
) -> None:
    libvirtd.add(document("/srv/x.qcow2", uuid=OTHER_VM), note=EARLIER)
    assert refused(lambda: prepared(tmp_path, migration)).code is ErrorCode.DOMAIN_EXISTS


# The checks.


def view(**libvirt: object) -> DestinationView:
    """A destination whose libvirt says this."""
    return DestinationView(
        DESTINATION, MIGRATION, FACTS, FakeHypervisor(**libvirt).hypervisor(), CAPABILITIES)  # type: ignore[arg-type]


def test_a_kept_copy_of_the_same_vm_is_replaced_and_its_old_disks_are_told_wherever_the_new_ones_go(
    libvirtd: Libvirtd, disk: Path,
) -> None:
    libvirtd.add(document(str(disk)), note=EARLIER)
    disk.rename(f"{disk}.moved-{EARLIER.job_id}")
    with Hypervisor.open(DESTINATION) as hypervisor:
        kept = DestinationView(DESTINATION, MIGRATION, FACTS, hypervisor, CAPABILITIES)
        assert str(disk) not in {each.path for each in FACTS.disks}
        (finding,) = found(LOOKS, kept, Check.VM_NAME)
        assert said(LOOKS, kept, Check.VM_UUID) == FINE
    assert (finding.severity, finding.code) == (Severity.WARNS, ErrorCode.STALE_COPY_REPLACED)
    assert finding.facts["paths"] == f"{disk}.moved-{EARLIER.job_id}"
    assert f"job {EARLIER.job_id}" in finding.message


@pytest.mark.parametrize("libvirt", [
    {"moved": EARLIER, "same_uuid": None}, {"moved": EARLIER, "same_uuid": "other"}, {"same_uuid": "VM1"}])
def test_a_copy_of_another_vm_or_one_that_is_none_stops_the_move(libvirt: dict[str, object]) -> None:
    there = view(states={"VM1": DomainState.SHUT_OFF}, **libvirt)
    assert said(LOOKS, there, Check.VM_NAME) == stopping(ErrorCode.DOMAIN_EXISTS)


def test_a_copy_that_somebody_has_started_stops_the_move() -> None:
    there = view(states={"VM1": DomainState.RUNNING}, moved=EARLIER, same_uuid="VM1")
    assert said(LOOKS, there, Check.VM_NAME) == stopping(ErrorCode.DOMAIN_EXISTS)


def test_of_a_kept_copy_on_the_source_it_is_told_that_and_nothing_that_follows_from_it(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    monkeypatch.setattr(check_source, "look_for_tools", lambda *_tools: [])
    libvirtd.add(document("/nowhere/x.qcow2"), note=EARLIER)
    report = check_source.run(context_on(SOURCE, tmp_path), StepArguments(migration=MIGRATION))
    told = [(each.severity, each.code) for each in report.findings if each.severity is not Severity.FINE]
    assert told == [(Severity.STOPS, ErrorCode.STALE_COPY)]
    assert report.facts is None
    error = next(each for each in report.findings if each.code is ErrorCode.STALE_COPY).error()
    assert f"job {EARLIER.job_id} moved it to {SOURCE} at 20" in error.message
    assert "?" not in error.message + error.hint


@pytest.mark.parametrize(("now", "note"), [(RUNS, EARLIER), (PAUSED, EARLIER), (OFF, None)])
def test_a_copy_that_was_started_all_the_same_is_examined_like_any_other_vm(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, now: tuple[int, int], note: MovedNote | None,
) -> None:
    def examined(*_what: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(check_source, "look_for_tools", lambda *_tools: [])
    monkeypatch.setattr(check_source, "_view", examined)
    libvirtd.add(document("/nowhere/x.qcow2"), now, note=note)
    with pytest.raises(InterruptedError):
        check_source.run(context_on(SOURCE, tmp_path), StepArguments(migration=MIGRATION))


# DEFINE_VIRTUAL_MACHINE.


@pytest.mark.parametrize("note", [None, EARLIER])
def test_a_vm_that_has_arrived_says_no_more_that_it_has_moved_away(
    libvirtd: Libvirtd, tmp_path: Path, note: MovedNote | None,
) -> None:
    vm = libvirtd.add(document(QCOW2.path), RUNS, note=note)
    report = define_virtual_machine.run(context_on(DESTINATION, tmp_path), STEP)
    assert report.summary == "persistent, autostart on"
    assert "moved" not in vm.text
    assert vm.starts


def test_one_that_was_shut_off_since_is_not_asked_for_a_disk_that_only_its_running_self_had(
    libvirtd: Libvirtd, tmp_path: Path,
) -> None:
    vm = libvirtd.add(document(), RUNS)
    with pytest.raises(MigrationError, match="active XML"):
        define_virtual_machine.run(context_on(DESTINATION, tmp_path), STEP)
    vm.now = OFF
    assert define_virtual_machine.run(context_on(DESTINATION, tmp_path), STEP).summary.startswith("persistent")


def test_nor_does_the_configure_file_that_was_asked_for(libvirtd: Libvirtd, tmp_path: Path) -> None:
    libvirtd.add(document(QCOW2.path), RUNS, note=EARLIER)
    context, file = context_on(DESTINATION, tmp_path), tmp_path / "VM1.xml"
    arguments = dataclasses.replace(STEP, migration=dataclasses.replace(MIGRATION, conf_file=str(file)))
    extract_configure_file.run(context, arguments)
    define_virtual_machine.run(context, arguments)
    assert "moved" not in file.read_text()


@pytest.mark.parametrize("name", ["taken.xml", "none/VM1.xml"])
def test_a_configure_file_that_cannot_be_written_is_left_to_be_written_by_hand(
    name: str, libvirtd: Libvirtd, tmp_path: Path,
) -> None:
    libvirtd.add(document(QCOW2.path), RUNS)
    (tmp_path / "taken.xml").touch()
    arguments = dataclasses.replace(STEP, migration=dataclasses.replace(MIGRATION, conf_file=str(tmp_path / name)))
    with pytest.raises(MigrationError) as caught:
        extract_configure_file.run(context_on(DESTINATION, tmp_path), arguments)
    assert "`virsh dumpxml --inactive --security-info VM1 > FILE`" in caught.value.hint


def test_no_configure_file_is_written_among_the_systems_own_whoever_asks(
    libvirtd: Libvirtd, tmp_path: Path,
) -> None:
    libvirtd.add(document(QCOW2.path), RUNS)
    arguments = dataclasses.replace(
        STEP, migration=dataclasses.replace(MIGRATION, conf_file="/etc/cron.d/vmmigration-test"))
    with pytest.raises(MigrationError) as caught:
        extract_configure_file.run(context_on(DESTINATION, tmp_path), arguments)
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
    assert not Path("/etc/cron.d/vmmigration-test").exists()


def test_the_images_are_the_vms_own_once_it_is_defined_and_the_definition_that_was_set_aside_is_still_the_jobs(
    libvirtd: Libvirtd, tmp_path: Path,
) -> None:
    libvirtd.add(document(QCOW2.path), RUNS)
    context = context_on(DESTINATION, tmp_path)
    ledger, file = context.ledger(MIGRATION), tmp_path / "x"
    file.touch()
    for kind in (MadeKind.IMAGE, MadeKind.DEFINITION):
        ledger.add(kind, str(file), FileIdentity.at(str(file)))
    define_virtual_machine.run(context, STEP)
    assert [made.kind for made in ledger.entries()] == [MadeKind.DEFINITION]


def test_a_full_disk_is_told_as_that_once_the_vm_is_defined(
    libvirtd: Libvirtd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_ledger: Ledger, _kinds: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    vm = libvirtd.add(document(QCOW2.path), RUNS)
    monkeypatch.setattr(Ledger, "keep", full)
    with pytest.raises(MigrationError, match="No space left on device") as caught:
        define_virtual_machine.run(context_on(DESTINATION, tmp_path), STEP)
    assert caught.value.code is ErrorCode.FILE_NOT_WRITTEN
    assert str(tmp_path) in caught.value.message
    assert vm.starts


def test_the_definition_that_was_set_aside_is_not_needed_any_more_once_the_vm_is_there(
    libvirtd: Libvirtd, migration: StepArguments, tmp_path: Path,
) -> None:
    libvirtd.add(document("/srv/x.qcow2"), note=EARLIER)
    context = prepared(tmp_path, migration)
    libvirtd.add(document("/srv/x.qcow2"), RUNS)
    assert finish.run(context, migration).summary == "running here"
    assert list((tmp_path / "jobs").iterdir()) == []
    assert (tmp_path / "images" / "node.qcow2").exists()


def test_a_definition_that_is_aside_is_this_jobs_own_file(tmp_path: Path) -> None:
    context = context_on(DESTINATION, tmp_path)
    assert context.aside(MIGRATION) == tmp_path / "jobs" / f"{JOB}.xml"
    assert not Made(MadeKind.DEFINITION, str(context.aside(MIGRATION)), 1, 1).still_there()


def test_a_view_is_gone_only_if_it_is_a_copy_at_rest() -> None:
    for state in DomainState:
        for note in (None, NOTE):
            expected = state is DomainState.ABSENT or (state is DomainState.SHUT_OFF and note is not None)
            assert DomainView(state=state, moved=note).gone is expected
