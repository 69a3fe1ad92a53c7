"""Which files of a VM are sent besides what QEMU mirrors, and that nobody writes to an image meanwhile."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from constant import DomainState, FilePurpose, ImageFormat
from host import domain_files
from host.domain_files import FilesQuestion, files_of, nvram_facts
from host.domain_xml import DomainDescription, NvramElement, describe
from host.image_lock import image_locks
from tests.unit.samples import QCOW2, SOURCE
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, FileFacts, LayerFacts


def domain(directory: Path) -> DomainDescription:
    """A VM that boots a kernel, has a medium, a floppy that it may write to, NVRAM and a TPM."""
    return describe(f"""<domain><name>VM1</name><uuid>2f1d</uuid><os><kernel>{directory}/vmlinuz</kernel>
<nvram>{directory}/VARS.fd</nvram></os><devices>
<disk type='file' device='disk'><source file='{directory}/top.qcow2'/><target dev='vda'/></disk>
<disk type='file' device='cdrom'><source file='{directory}/a.iso'/><target dev='sda'/><readonly/></disk>
<disk type='file' device='floppy'><source file='{directory}/floppy.img'/><target dev='fda'/></disk>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>""")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of that VM's files."""
    for name in ("vmlinuz", "VARS.fd", "top.qcow2", "base.img", "a.iso", "floppy.img"):
        (tmp_path / name).write_text(name)
    state = tmp_path / "swtpm" / "2f1d" / "tpm2"
    state.mkdir(parents=True)
    for name in ("tpm2-00.permall", ".lock"):
        (state / name).write_text(name)
    monkeypatch.setattr(domain_files, "TPM_DIRECTORY", str(tmp_path / "swtpm"))
    return tmp_path


def disks(directory: Path, *, sent: bool) -> list[DiskFacts]:
    """Its disk, on one layer, and the floppy."""
    layer = LayerFacts(path=f"{directory}/base.img", format=ImageFormat.RAW, virtual_size=1024)
    top = dataclasses.replace(
        QCOW2, path=f"{directory}/top.qcow2", backing_name="base.img", layers=(layer,), sent=sent)
    floppy = dataclasses.replace(QCOW2, target="fda", path=f"{directory}/floppy.img", sent=sent)
    return [top, floppy]


def sent(
    directory: Path, state: DomainState, *, flatten: bool = False, eject: bool = False,
) -> list[tuple[str, FilePurpose]]:
    """What is sent, by name."""
    question = FilesQuestion(SOURCE, "VM1", state, (domain(directory), domain(directory)), flatten, eject)
    found = list(files_of(question, disks(directory, sent=state is DomainState.SHUT_OFF)))
    assert all(isinstance(each, FileFacts) for each in found)
    return [(os.path.basename(each.path), each.purpose) for each in found if isinstance(each, FileFacts)]


def test_of_a_running_vm_layers_boot_files_and_media_are_sent_each_once(directory: Path) -> None:
    assert sent(directory, DomainState.RUNNING) == [
        ("base.img", FilePurpose.LAYER), ("vmlinuz", FilePurpose.KERNEL), ("a.iso", FilePurpose.MEDIUM)]


def test_of_a_vm_that_is_shut_off_everything_is_sent_but_the_lock_of_its_tpm(directory: Path) -> None:
    assert sent(directory, DomainState.SHUT_OFF) == [
        ("top.qcow2", FilePurpose.DISK), ("base.img", FilePurpose.LAYER), ("floppy.img", FilePurpose.DISK),
        ("vmlinuz", FilePurpose.KERNEL), ("a.iso", FilePurpose.MEDIUM), ("VARS.fd", FilePurpose.NVRAM),
        ("tpm2-00.permall", FilePurpose.TPM)]


def test_layers_that_are_merged_and_media_that_are_ejected_are_not_sent(directory: Path) -> None:
    assert sent(directory, DomainState.RUNNING, flatten=True, eject=True) == [("vmlinuz", FilePurpose.KERNEL)]


def test_a_file_is_told_with_its_length_mode_and_drive(directory: Path) -> None:
    (directory / "a.iso").chmod(0o4755)
    question = FilesQuestion(SOURCE, "VM1", DomainState.RUNNING, (domain(directory),), True, False)
    iso = next(each for each in files_of(question, []) if isinstance(each, FileFacts) and each.target == "sda")
    assert (iso.length, iso.mode, iso.purpose) == (5, 0o755, FilePurpose.MEDIUM)


def test_a_file_that_is_gone_or_is_none_is_told_and_the_others_are_sent(directory: Path) -> None:
    (directory / "a.iso").unlink()
    (directory / "vmlinuz").unlink()
    (directory / "vmlinuz").mkdir()
    question = FilesQuestion(SOURCE, "VM1", DomainState.RUNNING, (domain(directory),), False, False)
    found = list(files_of(question, disks(directory, sent=False)))
    errors = [each for each in found if isinstance(each, MigrationError)]
    assert [each.code for each in errors] == [ErrorCode.FILE_NOT_SENT] * 2
    assert "it is no ordinary file" in errors[0].message
    assert len(found) == 3


def test_nvram_is_told_with_its_length(tmp_path: Path) -> None:
    (tmp_path / "VARS.fd").write_bytes(bytes(540672))
    facts = nvram_facts(NvramElement(str(tmp_path / "VARS.fd"), "raw"))
    assert facts is not None
    assert facts.length == 540672
    assert nvram_facts(None) is None
    with pytest.raises(OSError, match="No such file"):
        nvram_facts(NvramElement(str(tmp_path / "gone"), "raw"))


# The locks.


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed")
def test_qemu_cannot_write_to_an_image_that_is_locked_and_can_again_afterwards(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))

    def write() -> int:
        return subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 4k", str(image)],  # noqa: S607
            capture_output=True, check=False).returncode

    with image_locks([str(image)], SOURCE):
        assert write() != 0
    assert write() == 0


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed")
def test_an_image_that_qemu_has_open_for_writing_is_not_locked_but_told(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    writer = subprocess.Popen(
        ["qemu-io", "-f", "raw", str(image)],  # noqa: S607
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdin is not None
    assert writer.stdout is not None
    try:
        writer.stdin.write(b"write 0 4k\n")
        writer.stdin.flush()
        # It answers when it has the image open and has written.
        assert b"wrote" in writer.stdout.readline() + writer.stdout.readline()
        with pytest.raises(MigrationError) as caught, image_locks([str(image)], SOURCE):
            pass
        assert caught.value.code is ErrorCode.FILE_CHANGED
    finally:
        writer.communicate(b"quit\n")
