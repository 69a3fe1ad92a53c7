"""The copy that stays behind: what of it gets another name, how it gets its own again, and what is left alone."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.libvirtd import RUNS, Domain, Libvirtd, document
from tests.unit.samples import FACTS, MIGRATION, NOTE

# isort: split
from host.hypervisor import Hypervisor
from host.stale_copy import StaleCopy, leftovers, mark
from wire.errors import ErrorCode, MigrationError

JOB = MIGRATION.job_id
DEVICE = "/dev/vg/vm1"
HIDDEN = f".moved-{JOB}"


@dataclass
class Site:
    """A host with a VM that has a disk in a file, one on a device, an NVRAM and a TPM."""

    directory: Path
    libvirtd: Libvirtd
    vm: Domain
    connection: Hypervisor

    @property
    def disk(self) -> Path:
        """Its disk."""
        return self.directory / "node.qcow2"

    @property
    def nvram(self) -> Path:
        """Its NVRAM."""
        return self.directory / "VM1_VARS.fd"

    @property
    def tpm(self) -> Path:
        """Where its TPM keeps its state."""
        return self.directory / "swtpm" / FACTS.uuid

    def copy(self, job: str = JOB) -> StaleCopy:
        """The copy of it that a job leaves behind."""
        return StaleCopy.of(self.connection, "VM1", job, "here")

    def hide(self) -> list[str]:
        """Have it not start here any more."""
        mark(self.connection, "VM1", NOTE)
        return self.copy().hide(self.connection, "VM1")

    def bring_back(self) -> list[str]:
        """Undo that."""
        return self.copy().bring_back(self.connection, "VM1")

    def names(self) -> set[str]:
        """The names of all that belongs to it."""
        return {path.name for path in (*self.directory.iterdir(), *self.tpm.parent.iterdir())} - {"swtpm"}


OWN = {"node.qcow2", "VM1_VARS.fd", FACTS.uuid}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The host before the copy is hidden."""
    monkeypatch.setattr("host.stale_copy.TPM_DIRECTORY", str(tmp_path / "swtpm"))
    libvirtd = Libvirtd()
    text = document(str(tmp_path / "node.qcow2"), DEVICE, nvram=str(tmp_path / "VM1_VARS.fd"), tpm=True)
    made = Site(tmp_path, libvirtd, libvirtd.add(text), Hypervisor(libvirtd, "here"))
    made.vm.starts = True
    made.disk.write_text("disk")
    made.nvram.write_text("variables")
    (made.tpm / "tpm2").mkdir(parents=True)
    (made.tpm / "tpm2" / "state").write_text("keys")
    return made


# What belongs to it.


def test_it_is_what_the_definition_names_as_files_and_devices_apart(site: Site) -> None:
    copy = site.copy()
    assert copy.files == (str(site.disk), str(site.nvram), str(site.tpm))
    assert copy.devices == (DEVICE,)
    assert copy.shared == ()


def test_a_vm_that_is_not_there_has_no_copy(site: Site) -> None:
    with pytest.raises(MigrationError) as caught:
        StaleCopy.of(site.connection, "VM7", JOB, "here")
    assert caught.value.code is ErrorCode.DOMAIN_MISSING


def test_what_another_vm_names_as_well_is_shared_and_left_alone(site: Site) -> None:
    site.libvirtd.add(document(str(site.disk), DEVICE, name="other", uuid="1" * 32), RUNS)
    copy = site.copy()
    assert copy.shared == (str(site.disk), DEVICE)
    assert copy.devices == ()
    for _twice in range(2):
        assert site.hide() == []
        assert site.disk.read_text() == "disk"
        # All the same it does not start.
        for path in (site.disk, DEVICE):
            assert f"'{path}{HIDDEN}'" in site.vm.text.replace('"', "'")


def test_what_another_vm_stands_on_comes_back_under_its_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = site.copy()
    monkeypatch.setattr("host.disks_of_others.DisksOfOthers.include", lambda _others, path: path == str(site.disk))
    site.hide()
    assert site.copy().shared == (str(site.disk),)
    assert site.copy().taken == ()
    assert site.bring_back() == []
    monkeypatch.undo()
    assert f"'{site.disk}'" in site.vm.text.replace('"', "'")
    assert site.connection.moved_note("VM1") is None
    assert before.files[0] == str(site.disk)


def test_an_nvram_that_another_vm_uses_as_well_is_left_alone_and_comes_back_in_the_definition(site: Site) -> None:
    site.libvirtd.add(document("/srv/other", nvram=str(site.nvram), name="other", uuid="1" * 32), RUNS)
    for _twice in range(2):
        assert site.hide() == []
        assert site.copy().shared == (str(site.nvram),)
        assert site.copy().lacking() == []
        assert site.nvram.read_text() == "variables"
    assert f"{site.nvram}{HIDDEN}" in site.vm.text
    assert site.copy().taken == (str(site.nvram),)
    assert site.bring_back() == []
    assert f"{site.nvram}{HIDDEN}" not in site.vm.text


def test_a_device_that_another_vm_has_been_given_since_is_taken(site: Site) -> None:
    site.hide()
    assert site.copy().taken == ()
    site.libvirtd.add(document(DEVICE, name="other", uuid="1" * 32))
    assert site.copy().taken == (DEVICE,)


def test_media_and_disks_for_several_vms_are_left_alone(site: Site) -> None:
    plain = document(str(site.disk))
    for text in (plain.replace("device='disk'", "device='cdrom'"),
                 plain.replace("<target dev='vda'/>", "<target dev='vda'/><shareable/>")):
        site.vm.text = text
        copy = site.copy()
        assert (copy.files, copy.devices, copy.shared) == ((), (), ())


# Hiding it.


def test_a_hidden_copy_has_other_names_says_why_and_does_not_start_with_its_host(site: Site) -> None:
    assert site.hide() == []
    assert site.names() == {name + HIDDEN for name in OWN}
    assert Path(f"{site.tpm}{HIDDEN}", "tpm2", "state").read_text() == "keys"
    assert site.connection.moved_note("VM1") == NOTE
    assert not site.vm.starts
    assert site.libvirtd.names() == ["VM1"]


def test_a_device_gets_another_name_in_the_definition_alone(site: Site) -> None:
    site.hide()
    text = site.vm.text.replace('"', "'")
    assert f"dev='{DEVICE}{HIDDEN}'" in text
    # The files keep their names there: they are not found any more.
    assert f"file='{site.disk}'" in text


def test_hiding_it_again_changes_nothing(site: Site) -> None:
    site.hide()
    text, names = site.vm.text, site.names()
    assert site.hide() == []
    assert (site.vm.text, site.names()) == (text, names)
    assert site.copy().devices == (DEVICE,)


def test_hiding_puts_nothing_in_the_place_of_another_file_and_hides_the_rest(site: Site) -> None:
    Path(f"{site.disk}{HIDDEN}").write_text("somebody's")
    (problem,) = site.hide()
    assert problem == f"cannot rename {site.disk}: {site.disk}{HIDDEN} exists already"
    assert site.disk.read_text() == "disk"
    assert not site.nvram.exists()


# Bringing it back.


def test_what_was_hidden_comes_back_as_it_was_but_for_autostart(site: Site) -> None:
    before = site.copy()
    site.hide()
    assert site.bring_back() == []
    assert site.names() == OWN
    assert (site.disk.read_text(), Path(site.tpm, "tpm2", "state").read_text()) == ("disk", "keys")
    assert site.copy() == before
    assert "moved" not in site.vm.text
    assert site.connection.moved_note("VM1") is None
    assert not site.vm.starts


def test_bringing_it_back_again_changes_nothing(site: Site) -> None:
    site.hide()
    site.bring_back()
    text = site.vm.text
    assert site.bring_back() == []
    assert (site.vm.text, site.names()) == (text, OWN)


def test_what_cannot_be_brought_back_leaves_the_note_and_the_device_so_that_the_vm_does_not_start(site: Site) -> None:
    site.hide()
    site.disk.write_text("somebody's")
    (problem,) = site.bring_back()
    assert problem == f"cannot rename {site.disk}{HIDDEN}: {site.disk} exists already"
    assert site.disk.read_text() == "somebody's"
    assert Path(f"{site.disk}{HIDDEN}").read_text() == "disk"
    assert site.connection.moved_note("VM1") == NOTE
    assert f"{DEVICE}{HIDDEN}" in site.vm.text


def test_the_copy_of_another_job_is_not_taken_for_this_ones(site: Site) -> None:
    site.hide()
    other = site.copy("12345678")
    assert other.devices == (f"{DEVICE}{HIDDEN}",)
    assert other.hidden(str(site.disk)) == f"{site.disk}.moved-12345678"
    assert other.lacking() == [str(site.disk), str(site.nvram), str(site.tpm)]


# What is missing.


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("which", ["disk", "nvram", "tpm"])
def test_what_is_under_neither_name_is_lacking(site: Site, which: str, hidden: bool) -> None:
    assert site.copy().lacking() == []
    if hidden:
        site.hide()
        assert site.copy().lacking() == []
    own: Path = getattr(site, which)
    path = Path(f"{own}{HIDDEN}") if hidden else own
    path.rename(site.directory / "elsewhere")
    assert site.copy().lacking() == [str(own)]


def test_a_link_that_leads_nowhere_is_there(site: Site) -> None:
    site.disk.unlink()
    site.disk.symlink_to(site.directory / "nowhere")
    assert site.copy().lacking() == []


# Deleting it.


def test_only_what_was_hidden_is_deleted(site: Site) -> None:
    site.hide()
    site.disk.write_text("of a VM that has come back")
    copy = site.copy()
    assert copy.delete() == []
    assert site.names() == {"node.qcow2"}
    assert copy.delete() == []


def test_a_directory_behind_a_link_is_not_deleted(site: Site) -> None:
    site.hide()
    elsewhere, hidden = site.directory / "elsewhere", Path(f"{site.tpm}{HIDDEN}")
    hidden.rename(elsewhere)
    hidden.symlink_to(elsewhere)
    assert site.copy().delete() == []
    assert not hidden.is_symlink()
    assert (elsewhere / "tpm2" / "state").read_text() == "keys"


def refusing(ending: str, module: str, name: str) -> Callable[..., None]:
    """That function of a module, which fails for what ends so."""
    real: Callable[..., None] = getattr({"os": os, "shutil": shutil}[module], name)

    def call(path: str, **how: Any) -> None:
        if path.endswith(ending):
            raise OSError(16, "Device or resource busy", path)
        real(path, **how)
    return call


@pytest.mark.parametrize("name", ["node.qcow2", FACTS.uuid])
def test_what_cannot_be_deleted_is_told_and_the_rest_goes(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:
    site.hide()
    for call in ("os.unlink", "shutil.rmtree"):
        monkeypatch.setattr(f"host.stale_copy.{call}", refusing(f"/{name}{HIDDEN}", *call.split(".")))
    (problem,) = site.copy().delete()
    assert problem.endswith(f"/{name}{HIDDEN}: Device or resource busy")
    assert site.names() == {name + HIDDEN}


# What earlier moves have left.


def test_the_leftovers_of_all_earlier_moves_are_found_beside_the_disks(tmp_path: Path) -> None:
    disk = tmp_path / "node.qcow2"
    for name in ("node.qcow2", "node.qcow2.moved-2", "node.qcow2.moved-1", "node.qcow2.bak", "other.qcow2.moved-1"):
        (tmp_path / name).touch()
    assert leftovers([str(disk), "/nowhere/at/all"]) == [f"{disk}.moved-1", f"{disk}.moved-2"]
    assert leftovers([]) == []


def test_a_copys_files_keep_their_owner_and_mode(site: Site) -> None:
    site.disk.chmod(0o640)
    site.hide()
    site.bring_back()
    assert stat.S_IMODE(site.disk.stat().st_mode) == 0o640
