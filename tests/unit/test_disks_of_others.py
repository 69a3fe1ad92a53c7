"""What other VMs of a host use: by any name, below any image, and what cannot be seen of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.libvirtd import RUNS, Libvirtd, document, error
from tests.unit.one_domain import put_clock
from tests.unit.samples import NOTE

# isort: split
import libvirt

from host.disks_of_others import DisksOfOthers
from host.file_identity import is_open_elsewhere
from host.hypervisor import Hypervisor
from host.job_files import Made, MadeKind
from host.mounts import on_other_hosts

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def make(path: Path, below: Path | str | None = None, *, apart: Path | None = None) -> Path:
    """A qcow2 image, on top of another one or with its data in another file."""
    more = ["-u", "-b", str(below), "-F", "qcow2"] if below is not None else []
    more += ["-o", f"data_file={apart}"] if apart is not None else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, str(path), "1M"], check=True)  # noqa: S607
    return path


def seen(libvirtd: Libvirtd) -> DisksOfOthers:
    """What is seen by the job of VM1."""
    return DisksOfOthers.of(Hypervisor(libvirtd, "here"), "VM1", "here")


def other(*disks: object, nvram: str = "") -> str:
    """The document of another VM."""
    return document(*map(str, disks), name="other", uuid="1" * 32, nvram=nvram)


def test_all_images_below_those_of_a_vm_that_is_shut_off_are_used(tmp_path: Path) -> None:
    base = make(tmp_path / "base.qcow2")
    middle = make(tmp_path / "middle.qcow2", "base.qcow2")
    libvirtd = Libvirtd()
    libvirtd.add(other(make(tmp_path / "top.qcow2", middle)))
    found = seen(libvirtd)
    assert found.include(str(base))
    assert found.include(str(middle))
    assert not found.include(str(tmp_path / "another.qcow2"))


def test_of_a_vm_that_runs_libvirt_tells_the_chain_and_no_image_is_read(tmp_path: Path) -> None:
    torn = tmp_path / "top.qcow2"
    torn.write_text("not read")
    text = other(torn).replace("</disk>", "<backingStore type='file'><format type='qcow2'/>"
                               f"<source file='{tmp_path}/base.qcow2'/><backingStore/></backingStore></disk>")
    libvirtd = Libvirtd()
    libvirtd.add(text, RUNS)
    found = seen(libvirtd)
    assert found.include(f"{tmp_path}/base.qcow2")


def test_an_image_is_known_by_each_of_its_names(tmp_path: Path) -> None:
    image = make(tmp_path / "a.qcow2")
    (tmp_path / "link").symlink_to(image)
    os.link(image, tmp_path / "second-name")
    libvirtd = Libvirtd()
    libvirtd.add(other(tmp_path / "link"), RUNS)
    assert seen(libvirtd).include(str(image))
    assert seen(libvirtd).include(str(tmp_path / "second-name"))
    assert not seen(libvirtd).include(str(make(tmp_path / "b.qcow2")))


def test_nvram_volumes_and_data_kept_apart_are_used_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apart, volume = tmp_path / "data.raw", make(tmp_path / "volume.qcow2")
    disk = make(tmp_path / "a.qcow2", apart=apart)
    text = other(disk, "/a", nvram="/srv/VARS.fd").replace(
        "type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a'/>",
        "type='volume' device='disk'><source pool='default' volume='volume.qcow2'/>")
    libvirtd = Libvirtd()
    libvirtd.add(text)
    monkeypatch.setattr(Hypervisor, "volume_path", lambda _self, pool, name: f"{tmp_path}/{name}")
    found = seen(libvirtd)
    assert all(map(found.include, ["/srv/VARS.fd", str(apart), str(volume), str(disk)]))


def test_what_a_copy_that_has_moved_away_stands_on_is_used(tmp_path: Path) -> None:
    base = make(tmp_path / "base.qcow2")
    top = make(tmp_path / "top.qcow2", base)
    top.rename(f"{top}.moved-{NOTE.job_id}")
    libvirtd = Libvirtd()
    libvirtd.add(other(top), note=NOTE)
    assert seen(libvirtd).include(str(base))


def test_the_name_that_a_copy_had_before_it_moved_away_is_free_for_another(tmp_path: Path) -> None:
    top = make(tmp_path / "top.qcow2")
    top.rename(f"{top}.moved-{NOTE.job_id}")
    make(top)
    libvirtd = Libvirtd()
    libvirtd.add(other(top), note=NOTE)
    assert not seen(libvirtd).include(str(top))
    assert seen(libvirtd).include(f"{top}.moved-{NOTE.job_id}")


MOUNTS = r"""22 1 8:1 / / rw - ext4 /dev/sda1 rw
31 22 0:44 / /mnt/nfs\040store rw,relatime shared:1 - nfs4 192.0.2.9:/store rw,hard
32 31 8:2 / /mnt/nfs\040store/local rw - xfs /dev/sdb1 rw
33 22 0:45 / /mnt/both rw - nfs 192.0.2.9:/old rw
34 33 8:3 / /mnt/both rw - ext4 /dev/sdc1 rw
"""


def test_what_lies_on_another_host_is_not_looked_at_by_a_thread_that_nobody_can_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Only a line feed ends a line, and not all names are UTF-8.
    odd = "20 1 8:9 / /odd\u2028name rw - ext4 /dev/sdz rw\n".encode() + b"21 1 8:8 / /\xff rw - ext4 /dev/sdy rw\n"
    (tmp_path / "mountinfo").write_bytes(MOUNTS.encode() + odd)
    monkeypatch.setattr("host.mounts._MOUNTS", tmp_path / "mountinfo")
    remote, looked_at = "/mnt/nfs store/a", list[str]()
    others = {"/srv/a", "/mnt/both/a", "/mnt/nfs store2"}
    # The way to what is mounted in there goes through it.
    within = "/mnt/nfs store/local/a"
    assert on_other_hosts({remote, within, *others}) == {remote, within}
    for name, target in (("images", "/mnt/nfs store/images"), ("near", "images/../images"), ("local", "/srv"),
                         ("around", "around")):
        (tmp_path / name).symlink_to(target)
    links = {f"{tmp_path}/{name}/disk" for name in ("images", "near", "local", "around", "near/../x")}
    assert on_other_hosts(links) == {f"{tmp_path}/{name}/disk" for name in ("images", "near", "near/../x")}
    monkeypatch.setattr("host.disks_of_others._thing", looked_at.append)
    libvirtd = Libvirtd()
    libvirtd.add(other(remote, *sorted(others)), RUNS)
    found = seen(libvirtd)
    assert set(looked_at) == others
    assert remote in found.named


@pytest.mark.parametrize(("below", "found"), [
    ("gone.qcow2", {"gone.qcow2"}), ("nbd://192.0.2.9/base", set()), ("file:base.qcow2", {"base.qcow2", "lowest.img"}),
    ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/srv/base.qcow2"}}', {"/srv/base.qcow2"}),
    ('json:{"file.driver":"nbd","file.server.host":"192.0.2.9","file.filename":"/srv/a"}', {"/srv/a"}),
    ('json:{"driver":"nbd","server":{"type":"inet","host":"192.0.2.9"}}', set())])
def test_a_chain_is_followed_as_far_as_it_is_on_this_host_and_said_to_be_of_images(
    tmp_path: Path, below: str, found: set[str],
) -> None:
    make(tmp_path / "base.qcow2", "lowest.img")
    libvirtd = Libvirtd()
    libvirtd.add(other(make(tmp_path / "top.qcow2", below), tmp_path / "gone as well.qcow2"))
    assert seen(libvirtd).below == {os.path.join(tmp_path, name) for name in found}


def test_an_image_of_another_vm_that_cannot_be_read_is_used_and_no_more_is_known_of_it(tmp_path: Path) -> None:
    torn = tmp_path / "torn.qcow2"
    torn.write_text("no image")
    libvirtd = Libvirtd()
    libvirtd.add(other(torn))
    libvirtd.add(document("/srv/b", name="second", uuid="2" * 32))
    assert seen(libvirtd).named == {str(torn), "/srv/b"}
    assert not seen(libvirtd).below


@dataclass
class Pool:
    """A storage pool of libvirt's."""

    text: str

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        """Its definition."""
        return self.text

    def storageVolLookupByName(self, _name: str) -> None:  # noqa: N802 - libvirt's name
        """It is not started."""
        raise error(libvirt.VIR_ERR_OPERATION_INVALID, "storage pool is not active")


@pytest.mark.parametrize(("pool", "path"), [
    (Pool("<pool type='dir'><target><path>/srv/pool</path></target></pool>"), "/srv/pool/v"),
    (Pool("<pool type='logical'/>"), None), (None, None)])
def test_a_volume_lies_where_its_pool_says_if_that_can_be_told(
    monkeypatch: pytest.MonkeyPatch, pool: Pool | None, path: str | None,
) -> None:
    def look_up(_name: str) -> Pool:
        if pool is None:
            raise error(libvirt.VIR_ERR_NO_STORAGE_POOL, "pool not found")
        return pool

    libvirtd = Libvirtd()
    monkeypatch.setattr(libvirtd, "storagePoolLookupByName", look_up, raising=False)
    libvirtd.add(other("/a").replace(
        "type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a'/>",
        "type='volume' device='disk'><source pool='default' volume='v'/>"))
    assert seen(libvirtd).named == ({path} if path else set())


def test_whether_a_device_is_open_elsewhere_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every machine has such devices, of characters.
    monkeypatch.setattr("stat.S_ISBLK", lambda _mode: True)
    with open("/dev/full", "wb", buffering=0) as full, open("/dev/null", "wb", buffering=0) as null:
        assert not is_open_elsewhere(full.fileno())
        with subprocess.Popen(["sleep", "60"], stdin=null) as process:  # noqa: S607
            seen_now = is_open_elsewhere(null.fileno())
            process.kill()
        assert seen_now


@pytest.mark.parametrize(("busy", "blanked"), [(3, True), (1000, False)])
def test_a_device_is_made_blank_as_soon_as_nothing_looks_at_it_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busy: int, blanked: bool,
) -> None:
    clock, left = put_clock(monkeypatch), iter(range(busy, -1, -1))
    began = clock.now
    monkeypatch.setattr("host.job_files.is_open_elsewhere", lambda _descriptor: next(left) > 0)
    device = tmp_path / "device"
    device.write_bytes(b"what was written" + bytes(2 << 20))
    made = Made(MadeKind.DEVICE, str(device), 0, 0)
    if blanked:
        made.remove()
    else:
        with pytest.raises(OSError, match="busy"):
            made.remove()
    assert device.read_bytes().startswith(b"what was written") is not blanked
    assert clock.now - began < 6.0
