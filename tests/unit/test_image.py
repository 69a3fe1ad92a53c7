"""What host/image makes of real images: the facts of a disk with all its layers, and an empty one like it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from constant import ImageFormat
from host import image
from host.image import ImageQuestion
from host.process import run_tool
from tests.unit.samples import QCOW2
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts

HOST = "192.0.2.12"
ME = (os.getuid(), os.getgid())
pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*arguments: str, cwd: Path) -> None:
    """Run qemu-img."""
    subprocess.run(["qemu-img", *arguments], cwd=cwd, capture_output=True, check=True)  # noqa: S607


def fill(path: Path, *areas: str) -> None:
    """Write to an image: "4M 1M" is one MiB behind the first four."""
    commands = [word for area in areas for word in ("-c", f"write -P 7 {area}")]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, path], capture_output=True, check=True)  # noqa: S607 - by PATH


def ask(path: Path, image_format: ImageFormat = ImageFormat.QCOW2, **formats: str) -> ImageQuestion:
    """What examine() is asked about an image."""
    return ImageQuestion("vda", str(path), image_format, formats, HOST, "VM1")


def examined(
    path: Path, image_format: ImageFormat = ImageFormat.QCOW2, *, sent: bool = False, flatten: bool = False,
) -> DiskFacts:
    """What examine() says."""
    return image.examine(ask(path, image_format), sent=sent, flatten=flatten)


def refused(path: Path) -> MigrationError:
    """Why examine() refuses an image."""
    with pytest.raises(MigrationError) as caught:
        examined(path)
    assert (caught.value.facts["target"], caught.value.facts["host"]) == ("vda", HOST)
    assert "?" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("changes", [
    {"cluster_size": 65536, "compat": "1.1"}, {"cluster_size": 65536, "compat": "0.10"}, {"cluster_size": 512},
    {"cluster_size": 2 << 20}, {"extended_l2": True, "cluster_size": 131072}, {"lazy_refcounts": True},
    {"refcount_bits": 1}, {"refcount_bits": 64}, {"compression": "zstd"},
])
def test_an_empty_image_has_all_options_of_the_sources(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "image"
    disk = dataclasses.replace(QCOW2, path=str(path), virtual_size=10 << 20, **changes)  # type: ignore[arg-type]
    image.create_empty(disk, ME, HOST)
    found = examined(path)
    assert dataclasses.replace(found, allocated=disk.allocated) == disk
    assert found.allocated < 10 << 20


def test_a_raw_image_is_as_long_as_its_file_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(1_000_001)
    facts = examined(path, ImageFormat.RAW)
    assert (facts.virtual_size, facts.allocated, facts.cluster_size, facts.compat) == (1_000_001, 0, 0, "")


@pytest.mark.parametrize(("options", "preallocated"), [
    ("preallocation=metadata", True), ("preallocation=falloc", False), ("preallocation=off", False)])
def test_an_image_whose_clusters_lie_in_holes_of_its_file_is_known(
        tmp_path: Path, options: str, preallocated: bool) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", "-o", options, "image", "40M", cwd=tmp_path)
    fill(path, "1M 4M")
    assert examined(path).preallocated is preallocated


def compress(path: Path, *options: str) -> None:
    """Have an image hold the same in compressed clusters."""
    qemu_img("convert", "-c", "-O", "qcow2", *options, path.name, "compressed", cwd=path.parent)
    (path.parent / "compressed").rename(path)


@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=4k", "cluster_size=2M"])
def test_of_compressed_clusters_it_is_known_what_they_hold(tmp_path: Path, options: str) -> None:
    path = tmp_path / "image"
    # A size that is no multiple of the clusters.
    qemu_img("create", "-f", "qcow2", "-o", options, "image", str((40 << 20) + 512), cwd=tmp_path)
    fill(path, "0 6M", "20M 2M")
    plain = examined(path)
    assert (plain.content, plain.copied) == (8 << 20, plain.allocated)
    compress(path, "-o", options)
    packed = examined(path)
    assert packed.allocated < plain.allocated
    assert (packed.content, packed.copied) == (8 << 20, max(8 << 20, packed.allocated))
    # What is sent as a file stays compressed.
    assert examined(path, sent=True).copied == packed.allocated


def test_of_a_chain_that_is_flattened_all_that_shows_through_counts(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-f", "qcow2", "base", "40M", cwd=tmp_path)
    fill(base, "0 6M")
    compress(base)
    qemu_img("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", cwd=tmp_path)
    fill(top, "4M 4M")
    assert examined(top).content == 4 << 20
    flat = image.flattened(examined(top, flatten=True))
    assert (flat.content, flat.copied) == (8 << 20, 8 << 20)


def test_what_cannot_be_measured_counts_as_it_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    qemu_img("create", "-f", "qcow2", "image", "40M", cwd=tmp_path)

    def broken(arguments: list[str], host: str) -> str:
        if "measure" in arguments:
            raise MigrationError(ErrorCode.TOOL_FAILED, {"tool": "qemu-img", "host": host, "reason": "no"})
        return run_tool(arguments, host)

    monkeypatch.setattr("host.image.run_tool", broken)
    found = examined(tmp_path / "image")
    assert (found.content, found.copied) == (0, found.allocated)
    assert "is not measured" in caplog.text


def test_a_chain_is_followed_by_what_the_headers_say_relative_names_and_absolute_ones(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    qemu_img("create", "-f", "raw", "base/base.img", "10M", cwd=tmp_path)
    qemu_img("create", "-f", "qcow2", "-b", "base/base.img", "-F", "raw", "middle.qcow2", "12M", cwd=tmp_path)
    qemu_img("create", "-f", "qcow2", "-b", str(tmp_path / "middle.qcow2"), "-F", "qcow2", "top.qcow2", cwd=tmp_path)
    top = examined(tmp_path / "top.qcow2")
    assert top.backing_name == str(tmp_path / "middle.qcow2")
    assert [(layer.path, layer.format.value, layer.backing_name, layer.virtual_size) for layer in top.layers] == [
        (str(tmp_path / "middle.qcow2"), "qcow2", "base/base.img", 12 << 20),
        (str(tmp_path / "base" / "base.img"), "raw", None, 10 << 20)]


def test_an_empty_image_is_put_on_a_layer_that_is_not_there_yet(tmp_path: Path) -> None:
    qemu_img("create", "-f", "raw", "base.img", "10M", cwd=tmp_path)
    qemu_img("create", "-f", "qcow2", "-b", "base.img", "-F", "raw", "top.qcow2", cwd=tmp_path)
    top = examined(tmp_path / "top.qcow2")
    there = tmp_path / "there"
    there.mkdir()
    image.create_empty(dataclasses.replace(top, path=str(there / "top.qcow2")), ME, HOST)
    shutil.copy(tmp_path / "base.img", there / "base.img")
    found = examined(there / "top.qcow2")
    assert (found.backing_name, found.layers[0].path) == ("base.img", str(there / "base.img"))


def test_a_header_can_learn_another_name_of_the_layer_below(tmp_path: Path) -> None:
    qemu_img("create", "-f", "raw", "base.img", "10M", cwd=tmp_path)
    qemu_img("create", "-f", "qcow2", "-b", "base.img", "-F", "raw", "top.qcow2", cwd=tmp_path)
    (tmp_path / "base.img").rename(tmp_path / "other.img")
    image.rename_backing(str(tmp_path / "top.qcow2"), "other.img", ImageFormat.RAW, HOST)
    assert examined(tmp_path / "top.qcow2").layers[0].path == str(tmp_path / "other.img")


def test_a_layer_that_is_gone_is_told_as_such(tmp_path: Path) -> None:
    qemu_img("create", "-f", "raw", "base.img", "10M", cwd=tmp_path)
    qemu_img("create", "-f", "qcow2", "-b", "base.img", "-F", "raw", "top.qcow2", cwd=tmp_path)
    (tmp_path / "base.img").unlink()
    error = refused(tmp_path / "top.qcow2")
    assert (error.code, error.facts["path"]) == (ErrorCode.BACKING_UNREADABLE, str(tmp_path / "base.img"))


def test_the_format_of_a_layer_is_never_probed_but_may_be_in_the_xml(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "base.qcow2", "10M", cwd=tmp_path)
    # An older qemu-img left the format out.
    qemu_img("create", "-u", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "10M", cwd=tmp_path)
    header = (tmp_path / "top.qcow2").read_bytes()
    extension = bytes.fromhex("e2792aca") + (5).to_bytes(4, "big") + b"qcow2"
    assert header.count(extension) == 1
    # A header extension that nobody knows is passed over (docs/interop/qcow2.txt in QEMU).
    (tmp_path / "top.qcow2").write_bytes(header.replace(extension, b"none" + extension[4:]))
    assert "does not say which format" in refused(tmp_path / "top.qcow2").message
    question = ImageQuestion(
        "vda", str(tmp_path / "top.qcow2"), ImageFormat.QCOW2, {str(tmp_path / "base.qcow2"): "qcow2"}, HOST, "VM1")
    assert image.examine(question, sent=False).layers[0].format is ImageFormat.QCOW2


def test_a_layer_that_is_no_file_of_the_host_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-u", "-f", "qcow2", "-b", "nbd://192.0.2.1/x", "-F", "raw", "top.qcow2", "1M", cwd=tmp_path)
    assert refused(tmp_path / "top.qcow2").code is ErrorCode.BACKING_UNREADABLE


def test_a_chain_without_an_end_is_refused(tmp_path: Path) -> None:
    for name, below in (("top.qcow2", "other.qcow2"), ("other.qcow2", "top.qcow2")):
        qemu_img("create", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", name, "1M", cwd=tmp_path)
    assert "more than 32 layers" in refused(tmp_path / "top.qcow2").message


@pytest.mark.parametrize(("commands", "reason"), [
    ([["create", "-f", "qcow2", "image", "10M"], ["snapshot", "-c", "before", "image"]], "internal snapshots"),
    ([["create", "-f", "qcow2", "-o", "data_file=image.raw", "image", "10M"]], "keeps its data in another file"),
])
def test_an_image_of_which_a_mirror_would_lose_something_is_refused(
    tmp_path: Path, commands: list[list[str]], reason: str,
) -> None:
    for command in commands:
        qemu_img(*command, cwd=tmp_path)
    error = refused(tmp_path / "image")
    assert error.code is ErrorCode.DISK_UNSUPPORTED
    assert reason in error.facts["reason"]


def test_internal_snapshots_go_along_where_the_whole_file_is_sent(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "image", "10M", cwd=tmp_path)
    qemu_img("snapshot", "-c", "before", "image", cwd=tmp_path)
    assert examined(tmp_path / "image", sent=True).sent


def test_an_image_that_is_gone_is_refused_with_its_path(tmp_path: Path) -> None:
    assert str(tmp_path / "gone") in refused(tmp_path / "gone").message


def test_what_is_no_block_device_takes_no_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    assert image.device_problem(str(tmp_path / "file"), 4096, HOST) == "it is not a block device"
    assert image.device_problem(str(tmp_path / "none"), 4096, HOST) == "No such file or directory"
