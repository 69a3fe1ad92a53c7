"""How a domain is on one host, as libvirt and its log tell: whether it has left, whether it is only a copy, whether the
source certainly has all of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.libvirtd import PAUSED, RUNS, Domain, Libvirtd, document, error, libvirt
from tests.unit.samples import NOTE

# isort: split
from constant import DomainState, Pause
from host import qemu_process
from host.hypervisor import Hypervisor
from host.qemu_process import last_end
from wire.errors import MigrationError
from wire.situation import DomainView, Situation, has_whole, situation

SHUTOFF = libvirt.VIR_DOMAIN_SHUTOFF
MIGRATED = (SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)
FORGOTTEN = (SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN)
STARTED = "2026-11-28 02:00:00.000+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.22\nLC_ALL=C \\\n"
WORDS = "2026-11-28T02:10:00Z qemu-system-x86_64: terminating on signal 15 from pid 99\n"
Log = Callable[[str], None]


def ended(reason: str) -> str:
    """What libvirt writes when a QEMU has ended."""
    return f"2026-11-28 02:10:00.000+0000: shutting down, reason={reason}\n"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """libvirt's log of VM1."""
    monkeypatch.setattr(qemu_process, "_LOG_DIRECTORY", str(tmp_path))

    def write(text: str) -> None:
        (tmp_path / "VM1.log").write_text(text)

    return write


@pytest.fixture
def vm(log: Log) -> Domain:
    """A VM that is shut off, and of which the log says nothing."""
    return Libvirtd().add(document("/srv/x.qcow2"))


def seen(vm: Domain) -> DomainView:
    """How libvirt tells it."""
    return Hypervisor(vm.site, "here").view("VM1")


# The log.


@pytest.mark.parametrize(("text", "reason"), [
    (STARTED + ended("migrated"), "migrated"), (STARTED + ended("shutdown"), "shutdown"),
    (STARTED + WORDS + ended("destroyed"), "destroyed"), (STARTED, None), ("", None), (WORDS, None),
    (STARTED + ended("migrated") + STARTED, None), (ended("migrated") + WORDS, "migrated"),
    (STARTED + ended("migrated") + STARTED + ended("crashed"), "crashed"),
])
def test_the_last_end_of_a_qemu_is_read_from_libvirts_log(log: Log, text: str, reason: str | None) -> None:
    log(text)
    assert last_end("VM1") == reason


def test_where_there_is_no_log_nothing_is_said(log: Log) -> None:
    assert last_end("VM1") is None


def test_of_a_long_log_the_end_is_read_whatever_bytes_are_in_it(log: Log, tmp_path: Path) -> None:
    old = (ended("crashed") * 5000).encode() + b"\xff\xfe\0" * 50_000
    (tmp_path / "VM1.log").write_bytes(old)
    assert last_end("VM1") is None
    (tmp_path / "VM1.log").write_bytes(old + STARTED.encode() + b"\xff" + ended("migrated").encode())
    assert last_end("VM1") == "migrated"


# Whether it has left.


def test_a_vm_that_was_shut_off_by_its_migration_has_left(vm: Domain) -> None:
    vm.now = MIGRATED
    assert seen(vm).migrated


def test_a_libvirt_that_was_started_anew_has_it_from_its_log(vm: Domain, log: Log) -> None:
    vm.now = FORGOTTEN
    assert not seen(vm).migrated
    log(STARTED + ended("migrated"))
    assert seen(vm).migrated
    log(STARTED + ended("migrated") + STARTED)
    assert not seen(vm).migrated
    log(STARTED + ended("destroyed"))
    assert not seen(vm).migrated


@pytest.mark.parametrize("now", [
    each for each in itertools.product((RUNS[0], PAUSED[0], SHUTOFF), range(libvirt.VIR_DOMAIN_SHUTOFF_DAEMON + 1))
    if each not in (MIGRATED, FORGOTTEN)
])
def test_what_libvirt_knows_otherwise_counts_more_than_its_log(vm: Domain, log: Log, now: tuple[int, int]) -> None:
    vm.now = now
    log(STARTED + ended("migrated"))
    assert not seen(vm).migrated


# Whether it is only a copy.


def test_a_note_in_the_definition_is_read_as_it_was_written_and_can_be_taken_out(vm: Domain) -> None:
    hypervisor = Hypervisor(vm.site, "here")
    assert hypervisor.moved_note("VM1") is None
    hypervisor.set_moved_note("VM1", NOTE)
    assert hypervisor.moved_note("VM1") == NOTE
    assert seen(vm) == DomainView(state=DomainState.SHUT_OFF, persistent=True, moved=NOTE)
    assert seen(vm).gone
    hypervisor.set_moved_note("VM1", None)
    assert hypervisor.moved_note("VM1") is None
    assert not seen(vm).gone


@pytest.mark.parametrize(("name", "value"), [("job", "../../x"), ("to", "somewhere"), ("at", "yesterday"), ("at", "")])
def test_a_note_that_cannot_be_read_says_nothing_so_that_the_vm_is_no_copy(vm: Domain, name: str, value: str) -> None:
    words = {"job": NOTE.job_id, "to": NOTE.destination, "at": str(NOTE.at), name: value}
    said = "<moved " + " ".join(f"{key}='{word}'" for key, word in words.items()) + "/>"
    vm.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, said, "vmmigration", "urn:vmmigration:moved",
        libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert seen(vm).moved is None
    assert not seen(vm).gone


def test_a_vm_that_is_not_there_has_no_note(vm: Domain) -> None:
    assert Hypervisor(vm.site, "here").moved_note("VM7") is None


def test_a_copy_that_runs_is_a_vm(vm: Domain) -> None:
    Hypervisor(vm.site, "here").set_moved_note("VM1", NOTE)
    for now in (RUNS, PAUSED):
        vm.now = now
        view = seen(vm)
        assert (view.moved, view.gone, view.has_it) == (NOTE, False, True)


COPY = DomainView(state=DomainState.SHUT_OFF, moved=NOTE)
VIEWS = {state: DomainView(state=state) for state in DomainState}


@pytest.mark.parametrize("state", list(DomainState))
def test_a_copy_counts_as_nothing_where_the_vm_is_looked_for(state: DomainState) -> None:
    nothing, other = VIEWS[DomainState.ABSENT], VIEWS[state]
    assert situation(COPY, other) is situation(nothing, other)
    assert situation(other, COPY) is situation(other, nothing)
    assert situation(COPY, COPY) is Situation.NOWHERE


# libvirt's own part in it.


def test_a_definition_is_forgotten_without_what_belongs_to_it(vm: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(vm.__class__, "undefineFlags", lambda _vm, flags: asked.append(flags))
    Hypervisor(vm.site, "here").undefine("VM1")
    monkeypatch.setattr(libvirt, "VIR_DOMAIN_UNDEFINE_KEEP_TPM", 64, raising=False)
    Hypervisor(vm.site, "here").undefine("VM1")
    # An older libvirt does not know the second flag, and does not remove a TPM's state either.
    assert [each & libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM for each in asked] == [
        libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM] * 2
    assert asked[1] & 64
    with pytest.raises(MigrationError):
        Hypervisor(vm.site, "here").undefine("VM7")


def test_all_other_vms_are_told_as_they_run_and_as_they_are_defined(vm: Domain) -> None:
    vm.site.add(document("/srv/a", name="off", uuid="1" * 32), note=NOTE)
    vm.site.add(document("/srv/b", name="transient", uuid="2" * 32), RUNS).persistent = False
    vm.site.add(document("/srv/c", name="on", uuid="3" * 32), RUNS)
    told = {each.name: each for each in Hypervisor(vm.site, "here").others("VM1")}
    assert {name: (each.running is not None, each.defined is not None, each.moved) for name, each in told.items()} == {
        "off": (False, True, NOTE), "transient": (True, False, None), "on": (True, True, None)}
    assert "on" not in {each.name for each in Hypervisor(vm.site, "here").others("on")}
    assert told["on"].running is not None
    assert told["on"].running.disks[0].path == "/srv/c"


def test_a_vm_that_goes_while_the_others_are_asked_for_is_none_of_them(
    vm: Domain, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(_flags: int) -> str:
        raise error(code, "Domain not found")

    monkeypatch.setattr(vm.site.add(document("/srv/a", name="goes", uuid="1" * 32)), "XMLDesc", gone)
    code = libvirt.VIR_ERR_NO_DOMAIN
    assert Hypervisor(vm.site, "here").others("VM1") == []
    code = libvirt.VIR_ERR_INTERNAL_ERROR
    with pytest.raises(libvirt.libvirtError):
        Hypervisor(vm.site, "here").others("VM1")


# Whether the source has all of it.


@pytest.mark.parametrize("post_copy", [False, True])
@pytest.mark.parametrize("state", sorted(set(DomainState) - {DomainState.ABSENT}))
def test_a_source_on_which_the_vm_is_as_it_was_has_all_of_it(state: DomainState, post_copy: bool) -> None:
    assert has_whole(VIEWS[state], state, post_copy=post_copy)


@pytest.mark.parametrize("post_copy", [False, True])
@pytest.mark.parametrize(("view", "began"), [
    (VIEWS[DomainState.SHUT_OFF], DomainState.RUNNING), (VIEWS[DomainState.SHUT_OFF], DomainState.PAUSED),
    (COPY, DomainState.SHUT_OFF), (COPY, DomainState.RUNNING), (VIEWS[DomainState.ABSENT], DomainState.ABSENT),
    *itertools.product([VIEWS[DomainState.ABSENT]], sorted(set(DomainState) - {DomainState.ABSENT})),
])
def test_one_that_is_shut_off_otherwise_a_copy_or_gone_may_have_moved(
    view: DomainView, began: DomainState, post_copy: bool,
) -> None:
    assert not has_whole(view, began, post_copy=post_copy)


@pytest.mark.parametrize(("began", "view"), [
    (DomainState.RUNNING, VIEWS[DomainState.PAUSED]), (DomainState.PAUSED, VIEWS[DomainState.RUNNING]),
    (DomainState.RUNNING, DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION)),
])
def test_one_that_is_held_in_another_state_is_whole_unless_it_may_have_gone_on_over_there(
    began: DomainState, view: DomainView,
) -> None:
    assert has_whole(view, began, post_copy=False)
    assert not has_whole(view, began, post_copy=True)


@pytest.mark.parametrize(("now", "split"), [
    ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY), True),
    ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED), True),
    ((libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY), True),
    # As libvirt 8.5 and later number it, whatever the bindings know.
    ((libvirt.VIR_DOMAIN_RUNNING, 11), True),
    ((libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_MIGRATED), False),
    ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION), False),
])
def test_a_vm_in_post_copy_or_of_which_that_broke_off_is_split(vm: Domain, now: tuple[int, int], split: bool) -> None:
    vm.now = now
    assert (Hypervisor(vm.site, "here").is_split("VM1"), seen(vm).split) == (split, split)
    assert seen(vm).runs_whole is (now[0] == libvirt.VIR_DOMAIN_RUNNING and not split)


def test_of_a_vm_that_libvirt_does_not_know_is_not_said_whether_it_is_split(vm: Domain) -> None:
    assert Hypervisor(vm.site, "here").is_split("other") is None


def test_one_of_which_post_copy_broke_off_is_not_whole() -> None:
    broken = DomainView(state=DomainState.PAUSED, pause=Pause.POST_COPY_FAILED, split=True)
    assert not has_whole(broken, DomainState.PAUSED, post_copy=True)
    assert not has_whole(broken, DomainState.RUNNING, post_copy=True)
