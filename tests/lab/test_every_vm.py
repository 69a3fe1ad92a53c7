"""VMs as admins really have them, end to end on real hosts: each arrives whole, with its disks, names and networks."""

from __future__ import annotations

import hashlib
import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import Host, Lab
from .conftest import IMAGES, Admin, Guest, MakeGuest, job_leftovers, stayed, virsh
from .guest import AGENT_DEVICES, BOOT_DIRECTORY, serial_log
from .lab import AGENT_LOG
from .obstacles import BRIDGE, NETWORK, make_bridge, make_networks, remove_networks
from .test_refusals import assert_refused, unchanged

DATA = "/var/lib/libvirt/lab-data"
THERE = "/var/lib/libvirt/lab-there"
FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
FIRMWARE_VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"


@pytest.fixture(autouse=True)
def directories(lab: Lab) -> Iterator[None]:
    """A directory for images on the source and another one on the destination, empty before and gone after a test."""
    for host, path in zip(lab.nodes, (DATA, THERE)):
        host.run(["install", "-d", "-m", "711", path, f"{path}/layers"])
    yield
    for host, path in zip(lab.nodes, (DATA, THERE)):
        host.run(["rm", "-rf", path])


def shell(host: Host, *lines: str) -> str:
    """Run lines of a shell in a host."""
    return host.run(["sh", "-ec", "\n".join(lines)]).stdout


def information(host: Host, path: str, image_format: str = "qcow2") -> dict[str, Any]:
    """What qemu-img says of an image, as far as it has to be the same on both hosts."""
    said = json.loads(host.run(["qemu-img", "info", "-U", "-f", image_format, "--output=json", path]).stdout)
    data = dict(said.get("format-specific", {}).get("data", {}))
    return {"size": said["virtual-size"], "clusters": said.get("cluster-size"), "data": data,
            "snapshots": [each["name"] for each in said.get("snapshots", [])]}


def digest(path: Path) -> str:
    """A file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def chain(host: Host, path: str) -> list[tuple[str, str | None]]:
    """The images of a chain: how each is named by the one above, and in which format."""
    found: list[tuple[str, str | None]] = []
    name: str | None = path
    image_format: str | None = "qcow2"
    while name is not None:
        found.append((name, image_format))
        if image_format != "qcow2":
            break
        place = name if name.startswith("/") else f"{path.rpartition('/')[0]}/{name}"
        said = json.loads(host.run(
            ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", place]).stdout)
        path, name, image_format = place, said.get("backing-filename"), said.get("backing-filename-format")
    return found


def assert_same_content(lab: Lab, here: str, there: str, image_format: str = "qcow2") -> None:
    """Both hosts' disks hold the same; no VM may write to them now."""
    node1, node2 = lab.nodes
    flat = [f"{IMAGES}/compare-{number}.raw" for number in (1, 2)]
    for host, path, raw in ((node1, here, flat[0]), (node2, there, flat[1])):
        host.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, raw])
    try:
        assert digest(node1.path(flat[0])) == digest(node2.path(flat[1]))
    finally:
        node1.path(flat[0]).unlink()
        node2.path(flat[1]).unlink()


def assert_records(guest: Guest, host: Host, disk: str, image_format: str = "qcow2") -> None:
    """Every record is there that the guest, which does not run now, has had acknowledged; it was in one place."""
    flat = f"{IMAGES}/records.raw"
    host.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", disk, flat])
    try:
        report = guest.witness.report(image=flat, host=host)
    finally:
        host.path(flat).unlink()
    assert report.sound, report.to_text()


def document(host: Host, name: str, *options: str) -> ElementTree.Element:
    """The domain's XML on a host."""
    return ElementTree.fromstring(virsh(host, "dumpxml", name, *options))  # noqa: S314 - from our own libvirt


RICH_DEVICES = f"""
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
      <source file='{DATA}/second.qcow2'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
      <source file='{DATA}/reading.img'/><target dev='vdc' bus='virtio'/><readonly/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
      <source file='{DATA}/seed.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='file' device='floppy'><driver name='qemu' type='raw'/>
      <source file='{DATA}/floppy.img'/><target dev='fda' bus='fdc'/></disk>
    <interface type='bridge'><source bridge='{BRIDGE}'/><model type='virtio'/></interface>
"""


def prepare_rich(host: Host) -> None:
    """A chain of three layers, absolute and relative names, raw at its end; other disks and media."""
    shell(
        host, f"cd {DATA}", f"qemu-img convert -f qcow2 -O raw {IMAGES}/rich.qcow2 layers/base.img",
        "qemu-img create -q -f qcow2 -o compat=0.10 -b layers/base.img -F raw middle.qcow2",
        "qemu-io -f qcow2 -c 'write -P 5 400M 8M' middle.qcow2",
        f"qemu-img create -q -f qcow2 -o cluster_size=32k,lazy_refcounts=on -b {DATA}/middle.qcow2 -F qcow2 rich.qcow2",
        "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k second.qcow2 1000001K",
        "qemu-io -f qcow2 -c 'write -P 7 10M 40M' second.qcow2",
        "head -c 5000001 /dev/urandom > reading.img", "head -c 300000 /dev/urandom > seed.iso",
        "head -c 1474560 /dev/urandom > floppy.img")


def rewrite_rich(domain: str) -> str:
    """With metadata, a title, and its first disk on the chain."""
    metadata = ("<title>Rich &amp; strange</title><metadata><own:note xmlns:own='urn:x-own' kind=\"a'b\">"
                "kept <own:deep/></own:note></metadata><memory")
    return domain.replace("<memory", metadata, 1).replace(f"{IMAGES}/rich.qcow2", f"{DATA}/rich.qcow2")


def test_a_vm_with_a_chain_four_disks_media_and_a_bridge_arrives_elsewhere_under_another_name(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    node1, node2 = admin.lab.nodes
    for node in admin.lab.nodes:
        make_networks(node)
    try:
        guest = make_guest(
            "rich", extra_devices=RICH_DEVICES, prepare=prepare_rich, rewrite=rewrite_rich, disk_mib=512, data_mib=32)
        virsh(node1, "desc", "rich", "--config", "--live", "--title", "Rich & strange")
        run = admin.migrate(
            "rich", "--rename", "poor", "--disk-map", f"{DATA}={THERE}", "--disk-map", f"vda={THERE}/first.qcow2",
            "--network-map", f"bridge:{BRIDGE}=network:{NETWORK}")
        assert run.code == 0, run.text
        assert "poor runs on" in run.stdout
        guest.witness.wait_for_ticks(20)
        for options in ([], ["--inactive"]):
            arrived = document(node2, "poor", *options)
            paths = [source.get("file") for source in arrived.findall("devices/disk/source")]
            names = ("first.qcow2", "second.qcow2", "reading.img", "seed.iso", "floppy.img")
            assert sorted(map(str, paths)) == sorted(f"{THERE}/{name}" for name in names)
            interface = arrived.find("devices/interface/source")
            assert interface is not None
            assert interface.get("network") == NETWORK
            assert arrived.findtext("title") == "Rich & strange"
            note = arrived.find("metadata/{urn:x-own}note")
            assert note is not None
            assert note.get("kind") == "a'b"
        virsh(node2, "destroy", "poor")
        assert chain(node2, f"{THERE}/first.qcow2") == [
            (f"{THERE}/first.qcow2", "qcow2"), (f"{THERE}/middle.qcow2", "qcow2"), ("layers/base.img", "raw")]
        for name, there in (("rich.qcow2", "first.qcow2"), ("middle.qcow2", "middle.qcow2"),
                            ("second.qcow2", "second.qcow2")):
            stays = stayed(node1, f"{DATA}/{name}")
            assert information(node1, stays) == information(node2, f"{THERE}/{there}")
            here, copied = node1.path(stays).stat(), node2.path(f"{THERE}/{there}").stat()
            assert copied.st_blocks <= here.st_blocks * 1.05 + 1024
        for name in ("layers/base.img", "reading.img", "seed.iso", "floppy.img"):
            stays = stayed(node1, f"{DATA}/{name}")
            assert digest(node1.path(stays)) == digest(node2.path(f"{THERE}/{name}"))
        base = [host.path(f"{path}/layers/base.img").stat().st_blocks
                for host, path in zip(admin.lab.nodes, (DATA, THERE))]
        assert base[1] <= base[0] * 1.05
        assert_same_content(admin.lab, stayed(node1, f"{DATA}/second.qcow2"), f"{THERE}/second.qcow2")
        assert_records(guest, node2, f"{THERE}/first.qcow2")
        assert job_leftovers(node1) == job_leftovers(node2) == []
        assert not list(node2.path(THERE).rglob("*.vmmigration-*"))
    finally:
        node2.run(["virsh", "-q", "destroy", "poor"], check=False)
        node2.run(["virsh", "-q", "undefine", "poor"], check=False)
        virsh(node1, "undefine", "rich")
        for node in admin.lab.nodes:
            remove_networks(node)


DEEP_DEVICES = f"""
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
      <source file='{DATA}/thin.qcow2'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
      <source file='{DATA}/thick.qcow2'/><target dev='vdc' bus='virtio'/></disk>
    <interface type='bridge'><source bridge='{BRIDGE}'/><model type='virtio'/></interface>
"""
DEEP_LAYERS = ("layers/two", "three", "four", "deep")


def prepare_deep(host: Host) -> None:
    """A chain of five layers, names absolute and relative in turn, preallocated disks, and a kernel of the VM's own."""
    shell(
        host, f"cd {DATA}", "install -d -m 711 boot", f"cp {BOOT_DIRECTORY}/vmlinuz {BOOT_DIRECTORY}/initrd boot/",
        f"qemu-img convert -f qcow2 -O raw {IMAGES}/deep.qcow2 layers/one.img",
        "qemu-img create -q -f qcow2 -o compat=0.10 -b one.img -F raw layers/two.qcow2",
        f"qemu-img create -q -f qcow2 -o cluster_size=1M -b {DATA}/layers/two.qcow2 -F qcow2 three.qcow2",
        "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k -b three.qcow2 -F qcow2 four.qcow2",
        f"qemu-img create -q -f qcow2 -o lazy_refcounts=on,cluster_size=256k -b {DATA}/four.qcow2 -F qcow2 deep.qcow2",
        *(f"qemu-io -f qcow2 -c 'write -P {number} {300 + 10 * number}M 15M' {name}.qcow2"
          for number, name in enumerate(DEEP_LAYERS)),
        "qemu-img create -q -f qcow2 -o preallocation=metadata,cluster_size=512k thin.qcow2 300M",
        "qemu-io -f qcow2 -c 'write -P 6 10M 20M' thin.qcow2",
        "qemu-img create -q -f qcow2 -o preallocation=falloc,refcount_bits=8 thick.qcow2 40M")


def test_five_layers_a_kernel_that_is_not_there_and_preallocated_disks_cross_with_a_paused_vm(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    node1, node2 = admin.lab.nodes
    make_bridge(node1, BRIDGE)
    make_bridge(node2, "br-other")
    try:
        guest = make_guest(
            "deep", data_mib=32, prepare=prepare_deep, extra_devices=DEEP_DEVICES,
            rewrite=lambda domain: domain.replace(BOOT_DIRECTORY, f"{DATA}/boot").replace(IMAGES, DATA))
        node2.run(["install", "-d", "-m", "711", f"{THERE}/boot"])
        virsh(node1, "suspend", "deep")
        run = admin.migrate("deep", "--disk-map", f"{DATA}={THERE}", "--network-map", f"{BRIDGE}=br-other")
        assert run.code == 0, run.text
        assert guest.state(node2) == "paused"
        assert chain(node2, f"{THERE}/deep.qcow2") == [
            (f"{THERE}/deep.qcow2", "qcow2"), (f"{THERE}/four.qcow2", "qcow2"), ("three.qcow2", "qcow2"),
            (f"{THERE}/layers/two.qcow2", "qcow2"), ("one.img", "raw")]
        for options, detected in (([], "on"), (["--inactive"], None)):
            arrived = document(node2, "deep", *options)
            assert arrived.findtext("os/kernel") == f"{THERE}/boot/vmlinuz"
            assert [source.get("bridge") for source in arrived.findall("devices/interface/source")] == ["br-other"]
            assert [driver.get("detect_zeroes") for driver in arrived.findall("devices/disk/driver")] == [
                None, detected, None]
        for name in (*DEEP_LAYERS, "thin", "thick"):
            here, there = stayed(node1, f"{DATA}/{name}.qcow2"), f"{THERE}/{name}.qcow2"
            assert information(node1, here) == information(node2, there)
            assert node2.path(there).stat().st_blocks <= node1.path(here).stat().st_blocks * 1.05
            # The guest is paused on both sides: not even the last layers may differ.
            assert_same_content(admin.lab, here, there)
        for name in ("boot/vmlinuz", "boot/initrd", "layers/one.img"):
            assert digest(node1.path(f"{DATA}/{name}")) == digest(node2.path(f"{THERE}/{name}"))
        virsh(node2, "resume", "deep")
        guest.witness.wait_for_ticks(20)
        virsh(node2, "destroy", "deep")
        assert_records(guest, node2, f"{THERE}/deep.qcow2")
        ticks = len(guest.witness.ticks())
        virsh(node2, "start", "deep")
        guest.witness.wait_for_ticks(ticks + 20)
    finally:
        for node, name in ((node1, BRIDGE), (node2, "br-other")):
            node.run(["ip", "link", "delete", name])


def received(host: Host) -> int:
    """Bytes that have come to a host over the network."""
    return max(map(int, shell(host, "cat /sys/class/net/*/statistics/rx_bytes").split()))


@pytest.mark.parametrize("state", ["suspend", "destroy"])
def test_hardly_more_crosses_than_a_sparse_image_takes(admin: Admin, make_guest: MakeGuest, state: str) -> None:
    node1, node2 = admin.lab.nodes
    guest = make_guest("sparse", disk_mib=20480, data_mib=512)
    virsh(node1, state, "sparse")
    before = received(node2)
    run = admin.migrate("sparse", "--json")
    crossed = received(node2) - before
    assert run.code == 0, run.text
    source = node1.path(stayed(node1, guest.disk))
    allocated = source.stat().st_blocks * 512
    assert crossed - run.result()["memory_bytes"] <= 1.05 * allocated
    assert node2.path(guest.disk).stat().st_blocks * 512 <= 1.05 * allocated
    # Both hosts' files lie on this machine.
    images = [str(source), str(node2.path(guest.disk))]
    compared = subprocess.run(
        ["qemu-img", "compare", "-U", "-s", "-f", "qcow2", "-F", "qcow2", *images],  # noqa: S607
        capture_output=True, text=True, check=False)
    assert "Images are identical." in compared.stdout, compared.stdout + compared.stderr


def with_firmware(domain: str) -> str:
    """With UEFI, its NVRAM, and a TPM."""
    firmware = (f"<loader readonly='yes' type='pflash'>{FIRMWARE}</loader>"
                f"<nvram template='{FIRMWARE_VARIABLES}'>/var/lib/libvirt/qemu/nvram/firm_VARS.fd</nvram>")
    return domain.replace("hvm</type>", f"hvm</type>{firmware}").replace(
        "</devices>", "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>")


def test_firmware_and_tpm_go_along_running_and_shut_off(admin: Admin, make_guest: MakeGuest) -> None:
    node1, node2 = admin.lab.nodes
    guest = make_guest("firm", data_mib=16, machine="q35", rewrite=with_firmware)
    variables = "/var/lib/libvirt/qemu/nvram/firm_VARS.fd"
    run = admin.migrate("firm")
    assert run.code == 0, run.text
    guest.witness.wait_for_ticks(20)
    assert guest.witness.report().sound
    stays = node1.path(stayed(node1, variables))
    assert digest(stays) == digest(node2.path(variables))
    assert stays.stat().st_size == node2.path(variables).stat().st_size
    # And back, shut off, over the copy that stayed.
    virsh(node2, "destroy", "firm")
    uuid = guest.on(node2, "domuuid").strip()
    state = f"/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall"
    run = admin.migrate("firm", back=True)
    assert run.code == 0, run.text
    assert f"firm is shut off on {node1.address} now." in run.stdout
    tpm = f"/var/lib/libvirt/swtpm/{uuid}"
    for path, stays in ((variables, node2.path(stayed(node2, variables))),
                        (guest.disk, node2.path(stayed(node2, guest.disk))),
                        (state, node2.path(f"{stayed(node2, tpm)}/tpm2/tpm2-00.permall"))):
        assert digest(node1.path(path)) == digest(stays)
    # The small ones went that way.
    assert "Opened sftp connection" in node2.path(AGENT_LOG).read_text()
    ticks = len(guest.witness.ticks())
    virsh(node1, "start", "firm")
    guest.witness.wait_for_ticks(ticks + 20)
    assert guest.state(node1) == "running"
    for host in (node1, node2):
        host.run(["virsh", "-q", "destroy", "firm"], check=False)
        host.run(["virsh", "-q", "undefine", "firm", "--nvram"], check=False)
        shell(host, f"rm -rf {tpm}* {variables}*")


# OVMF's own for trying: firmware that lets only what is signed with this key start.
SECURE_FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
SECURE_VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"
SIGNING_KEY = "/usr/share/ovmf/PkKek-1-snakeoil"


def with_secure_boot(domain: str) -> str:
    """With firmware that has secure boot on, in a machine that it can run in, and a kernel of its own."""
    firmware = (f"<loader readonly='yes' secure='yes' type='pflash'>{SECURE_FIRMWARE}</loader>"
                f"<nvram template='{SECURE_VARIABLES}'>/var/lib/libvirt/qemu/nvram/safe_VARS.fd</nvram>")
    for old, new in (("hvm</type>", f"hvm</type>{firmware}"), ("<acpi/>", "<acpi/><smm state='on'/>"),
                     ("qemu64", "Westmere"), (f"{BOOT_DIRECTORY}/vmlinuz", f"{DATA}/vmlinuz"),
                     ("quiet loglevel=3", "loglevel=7")):
        domain = domain.replace(old, new)
    return domain


def sign_kernel(host: Host) -> None:
    """Sign the guest's kernel with OVMF's key."""
    shell(host, f"openssl rsa -in {SIGNING_KEY}.key -passin pass:snakeoil -out {DATA}/key",
          f"sbsign --key {DATA}/key --cert {SIGNING_KEY}.pem --output {DATA}/vmlinuz {BOOT_DIRECTORY}/vmlinuz")


def test_a_vm_with_secure_boot_boots_securely_where_it_has_arrived(admin: Admin, make_guest: MakeGuest) -> None:
    node1, node2 = admin.lab.nodes
    variables = "/var/lib/libvirt/qemu/nvram/safe_VARS.fd"
    guest = make_guest(
        "safe", data_mib=16, memory_mib=512, machine="q35", rewrite=with_secure_boot, prepare=sign_kernel)
    run = admin.migrate("safe", "--disk-map", f"{DATA}={THERE}")
    assert run.code == 0, run.text
    assert "sent vmlinuz" in run.stderr
    guest.witness.wait_for_ticks(20)
    assert guest.witness.report().sound
    assert digest(node1.path(stayed(node1, variables))) == digest(node2.path(variables))
    virsh(node2, "destroy", "safe")
    ticks = len(guest.witness.ticks())
    virsh(node2, "start", "safe")
    guest.witness.wait_for_ticks(ticks + 20)
    for host in admin.lab.nodes:
        assert host.path(serial_log("safe")).read_text().count("Secure boot enabled") == 1


def test_a_transient_vm_that_is_paused_arrives_transient_and_paused(admin: Admin, make_guest: MakeGuest) -> None:
    node1, node2 = admin.lab.nodes
    guest = make_guest("brief", data_mib=16)
    virsh(node1, "undefine", "brief")
    virsh(node1, "suspend", "brief")
    run = admin.migrate("brief")
    assert run.code == 0, run.text
    assert f"brief is paused on {node2.address} now." in run.stdout
    assert (guest.state(node1), guest.state(node2)) == ("absent", "paused")
    assert "Persistent:     no" in guest.on(node2, "dominfo")
    ticks = len(guest.witness.ticks())
    virsh(node2, "resume", "brief")
    guest.witness.wait_for_ticks(ticks + 20)
    assert guest.witness.report().sound


def test_a_vm_that_is_shut_off_goes_into_a_pool_with_its_snapshots_inside(admin: Admin, make_guest: MakeGuest) -> None:
    node1, node2 = admin.lab.nodes
    guest = make_guest("off")
    # The power button, not the plug: what the guest has written and not yet flushed is nobody's promise.
    virsh(node1, "shutdown", "off")
    node1.wait_for("the end of the guest", lambda: guest.state(node1) == "shut off")
    shell(node1, f"qemu-img snapshot -c before {guest.disk}")
    virsh(node1, "autostart", "off")
    virsh(node2, "pool-create-as", "lab-pool", "dir", "--target", THERE)
    try:
        run = admin.migrate("off", "--pool", "lab-pool")
        assert run.code == 0, run.text
        assert "its disks cross as files" in run.stderr
        stays = stayed(node1, guest.disk)
        assert information(node1, stays) == information(node2, f"{THERE}/off.qcow2")
        assert information(node2, f"{THERE}/off.qcow2")["snapshots"] == ["before"]
        assert digest(node1.path(stays)) == digest(node2.path(f"{THERE}/off.qcow2"))
        assert virsh(node2, "list", "--autostart", "--all", "--name").split() == ["off"]
        assert virsh(node1, "list", "--autostart", "--all", "--name").split() == []
        ticks = len(guest.witness.ticks())
        virsh(node2, "start", "off")
        guest.witness.wait_for_ticks(ticks + 20)
        virsh(node2, "destroy", "off")
        assert_records(guest, node2, f"{THERE}/off.qcow2")
    finally:
        virsh(node2, "pool-destroy", "lab-pool")


def test_a_copy_goes_on_after_the_link_was_down_and_the_vm_cannot_be_started_meanwhile(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    node1, node2 = admin.lab.nodes
    guest = make_guest("resumed", data_mib=128)
    virsh(node1, "destroy", "resumed")
    running = admin.start("resumed", "--bandwidth", "6")
    images = node2.path(guest.disk).parent
    parts = list[Path]()

    def begun() -> bool:
        parts[:] = [path for path in images.glob("resumed.*.vmmigration-*") if path.stat().st_blocks > 4096]
        return bool(parts)

    node2.wait_for("the first MiB", begun)
    part = parts[0]
    started = node1.run(["virsh", "-q", "start", "resumed"], check=False)
    assert started.returncode != 0
    assert 'Failed to get "write" lock' in started.stderr
    before = part.stat().st_ino
    node2.link(up=False)
    running.poll()
    node2.run(["sleep", "20"])
    node2.link(up=True)
    stdout, stderr = running.communicate(timeout=150)
    assert running.returncode == 0, stdout + stderr
    assert node2.path(guest.disk).stat().st_ino == before
    assert not part.exists()
    assert digest(node1.path(stayed(node1, guest.disk))) == digest(node2.path(guest.disk))


def layer_below(name: str) -> Callable[[Host], None]:
    """A layer below the disk of a VM of that name."""
    def prepare(host: Host) -> None:
        shell(host, f"mv {IMAGES}/{name}.qcow2 {DATA}/{name}-base.qcow2",
              f"qemu-img create -q -f qcow2 -b {DATA}/{name}-base.qcow2 -F qcow2 {IMAGES}/{name}.qcow2")

    return prepare


FLAT_DEVICES = f"""
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
      <source file='{DATA}/seed.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
"""


def test_a_chain_becomes_one_image_and_the_drive_empty_if_that_is_asked_for(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    node1, node2 = admin.lab.nodes
    node1.path(f"{DATA}/seed.iso").write_bytes(b"seed" * 1000)
    guest = make_guest("flat", prepare=layer_below("flat"), extra_devices=FLAT_DEVICES)
    run = admin.migrate("flat", "--flatten", "--eject-cdrom")
    assert run.code == 0, run.text
    guest.witness.wait_for_ticks(20)
    assert chain(node2, guest.disk) == [(guest.disk, "qcow2")]
    assert not node2.path(DATA).exists()
    for options in ([], ["--inactive"]):
        assert [source.get("file") for source in document(node2, "flat", *options).findall("devices/disk/source")] == [
            guest.disk]
    assert document(node1, "flat").find("devices/disk[@device='cdrom']/source") is not None
    assert guest.witness.report().sound


def test_a_layer_that_is_there_is_used_if_it_is_the_same_and_in_the_way_if_not(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    node1, node2 = admin.lab.nodes
    guest = make_guest("same", prepare=layer_below("same"))
    node2.run(["install", "-d", "-m", "711", DATA])
    layer = node2.path(f"{DATA}/same-base.qcow2")
    try:
        content = node1.path(f"{DATA}/same-base.qcow2").read_bytes()
        layer.write_bytes(content[:-1] + b"\1")
        different = admin.migrate("same")
        assert different.code == 5, different.text
        assert f"{DATA}/same-base.qcow2 exists already" in different.stderr
        assert layer.read_bytes() == content[:-1] + b"\1"
        assert (guest.state(node1), guest.state(node2)) == ("running", "absent")
        assert not node2.path(guest.disk).exists()
        layer.write_bytes(content)
        status = layer.stat()
        again = admin.migrate("same")
        assert again.code == 0, again.text
        assert "there already: same-base.qcow2" in again.stderr
        assert layer.stat().st_ino == status.st_ino
    finally:
        node2.run(["rm", "-rf", DATA])


def test_what_cannot_be_moved_is_named_with_its_remedy(admin: Admin, make_guest: MakeGuest) -> None:
    node1 = admin.lab.host("node1")
    guest = make_guest("odd", data_mib=16)
    with unchanged(admin.lab):
        assert_refused(admin.migrate("odd", "--disk-map", "vdz=/srv/x.img"), 3, "Nothing of VM odd",
                       "`--disk-map vdz=/srv/x.img` names", guest.disk)
        assert_refused(admin.migrate("odd", "--pool", "none"), 3, "has no storage pool none")
        assert_refused(admin.migrate("odd", "--trim"), 3, "The guest agent of VM odd", "leave `--trim` out")
        assert_refused(admin.migrate("odd", "--disk-map", "vda=/dev/null"), 3, "The block device /dev/null",
                       "it is not a block device")
        assert_refused(admin.migrate("odd", "--disk-map", f"{IMAGES}=/no/such"), 3, "has no usable directory /no/such")
    virsh(node1, "managedsave", "odd")
    with unchanged(admin.lab):
        assert_refused(admin.migrate("odd"), 3, "VM odd on", "is saved", "virsh managedsave-remove odd")


def test_a_disk_that_waits_for_the_next_start_goes_along_and_only_the_definition_has_it(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    node1, node2 = admin.lab.nodes
    guest = make_guest("later", data_mib=16)
    waiting = f"{DATA}/waiting.qcow2"
    shell(node1, f"qemu-img create -q -f qcow2 {waiting} 64M", f"qemu-io -f qcow2 -c 'write -P 9 1M 1M' {waiting}")
    virsh(node1, "attach-disk", "later", waiting, "vdb", "--subdriver", "qcow2", "--config")
    run = admin.migrate("later", "--disk-map", f"{DATA}={THERE}")
    assert run.code == 0, run.text
    assert digest(node1.path(stayed(node1, waiting))) == digest(node2.path(f"{THERE}/waiting.qcow2"))
    targets = [
        [target.get("dev") for target in document(node2, "later", *options).findall("devices/disk/target")]
        for options in ([], ["--inactive"])]
    assert targets == [["vda"], ["vda", "vdb"]]
    virsh(node2, "destroy", "later")
    ticks = len(guest.witness.ticks())
    virsh(node2, "start", "later")
    guest.witness.wait_for_ticks(ticks + 20)


def test_the_guest_agent_trims_the_file_systems_after_the_arrival(admin: Admin, make_guest: MakeGuest) -> None:
    node1, node2 = admin.lab.nodes
    guest = make_guest("trim", data_mib=16, extra_devices=AGENT_DEVICES)
    node1.wait_for("the guest agent", lambda: "connected" in virsh(node1, "dumpxml", "trim"))
    run = admin.migrate("trim", "--trim")
    assert run.code == 0, run.text
    assert "running here, its file systems trimmed" in run.stderr
    assert "agent fstrim" in node2.path(serial_log("trim")).read_text()
    assert "agent fstrim" not in node1.path(serial_log("trim")).read_text()
    guest.witness.wait_for_ticks(20)
    assert guest.witness.report().sound


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[list[str]]:
    """Two block devices of 256 MiB; all hosts see the machine's."""
    found = []
    for name in ("here", "there"):
        image = tmp_path / name
        with image.open("wb") as file:
            file.truncate(256 << 20)
        found.append(subprocess.run(
            ["losetup", "--find", "--show", str(image)],  # noqa: S607
            capture_output=True, text=True, check=True).stdout.strip())
    yield found
    for device in found:
        subprocess.run(["losetup", "--detach", device], check=True)  # noqa: S607


def test_a_block_device_goes_to_another_one_that_is_blank_and_has_its_size(
    admin: Admin, make_guest: MakeGuest, devices: list[str],
) -> None:
    node1, node2 = admin.lab.nodes
    here, there = devices

    def onto_device(domain: str) -> str:
        return domain.replace("<disk type='file' device='disk'>", "<disk type='block' device='disk'>").replace(
            f"file=\"{IMAGES}/block.img\"", f"dev='{here}'")

    def fill(host: Host) -> None:
        shell(host, f"dd if={IMAGES}/block.img of={here} bs=1M conv=fsync status=none")

    guest = make_guest("block", image_format="raw", disk_mib=256, data_mib=16, rewrite=onto_device, prepare=fill)
    Path(there).write_bytes(b"somebody's")
    with unchanged(admin.lab):
        refused = admin.migrate("block", "--disk-map", f"vda={there}")
    assert_refused(refused, 3, f"The block device {there} on {node2.address} cannot take disk vda of VM block",
                   "does not begin with zeros", "blkdiscard -z")
    shell(node2, f"blkdiscard -z {there}")
    run = admin.migrate("block", "--disk-map", f"vda={there}")
    assert run.code == 0, run.text
    guest.witness.wait_for_ticks(20)
    for options in ([], ["--inactive"]):
        disk = document(node2, "block", *options).find("devices/disk")
        assert disk is not None
        source = disk.find("source")
        assert source is not None
        assert (disk.get("type"), source.get("dev")) == ("block", there)
    virsh(node2, "destroy", "block")
    assert_records(guest, node2, there, "raw")
    # The device keeps its name, so the definition has another one for it.
    assert "No such file or directory" in node1.run(["virsh", "-q", "start", "block"], check=False).stderr
    # And, shut off, into a file of another name: the size stays exact to the byte.
    run = admin.migrate("block", "--disk-map", f"{there}={DATA}/from-device.img", back=True)
    assert run.code == 0, run.text
    copied = node1.path(f"{DATA}/from-device.img")
    assert copied.stat().st_size == 256 << 20
    assert copied.stat().st_blocks * 512 < 128 << 20
    assert digest(copied) == digest(Path(there))


def test_the_device_of_a_move_that_fails_is_blank_again_but_not_while_something_has_it_open(
    admin: Admin, make_guest: MakeGuest, devices: list[str],
) -> None:
    node1, node2 = admin.lab.nodes
    there = devices[1]
    guest = make_guest("vain", image_format="raw", disk_mib=256, data_mib=64)
    options = ("--disk-map", f"vda={there}", "--bandwidth", "10", "--timeout", "2")
    failed = admin.migrate("vain", *options)
    assert failed.code == 5, failed.text
    assert not Path(there).read_bytes()[:1 << 20].strip(b"\0")
    log = node2.path(AGENT_LOG).read_text()
    holder = node2.popen(["sh", "-c", f"exec sleep 600 <{there}"])
    try:
        failed = admin.migrate("vain", *options)
        assert failed.code == 5, failed.text
        assert f"cannot remove {there}: Device or resource busy" in failed.text
    finally:
        holder.kill()
        holder.wait()
    # It is still written down, and goes as soon as it can: the agent, which looks every few seconds, may be the first.
    ended = admin.command("repair", "vain", node1.address, node2.address)
    assert ended.code == 0, ended.text
    settled = "the job was settled here, rolled back" in node2.path(AGENT_LOG).read_text()[len(log):]
    assert f"removed {there}" in ended.text or settled, ended.text
    assert not Path(there).read_bytes()[:1 << 20].strip(b"\0")
    assert job_leftovers(node1) == job_leftovers(node2) == []
    assert guest.witness.report().sound
