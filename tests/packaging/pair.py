"""Two machines that become nodes, with a VM that runs on the first: what a test of a move begins with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.kernel import guest_boot
from tests.packaging.machine import Machine, booted, connect, needed
from tests.packaging.node import AGENT, configure, install, let_in

SOURCE, DESTINATION = "192.0.2.11", "192.0.2.12"
MEBIBYTE = 1024 * 1024
# Where an admin may keep what belongs to a VM, and where a service is easily kept from.
BOOT, IMAGE, SCRATCH, DEVICE = "/home/boot", "/home/vms/VM1.qcow2", "/var/tmp/VM1.raw", "/dev/vm1-data"  # noqa: S108 - a place like others
CONFIGURATION = "/home/vms/VM1.xml"
# Guests of the lab's kernel need no more.
DOMAIN = f"""\
<domain type='qemu'>
  <name>VM1</name>
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{BOOT}/vmlinuz</kernel>
    <initrd>{BOOT}/initrd</initrd>
    <cmdline>console=ttyS0</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{IMAGE}'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{SCRATCH}'/><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/><source dev='{DEVICE}'/><target dev='vdc' bus='virtio'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""


@dataclass
class Pair:
    """Two nodes with a cable between them; the source is the management host as well."""

    source: Machine
    destination: Machine

    def command(self, *options: str) -> list[str]:
        """The command that moves the VM."""
        return ["vmmigration", *options, SOURCE, DESTINATION, "kvm", "VM1", IMAGE, CONFIGURATION]

    def states(self) -> tuple[str, str]:
        """How libvirt on each says that the VM is."""
        return self.source.says("virsh", "domstate", "VM1"), self.destination.says("virsh", "domstate", "VM1")


@contextmanager
def block_device(machine: Machine, file: Path) -> Iterator[None]:
    """A block device of a few MiB, in that machine, for the length of a `with`."""
    with file.open("wb") as stream:
        stream.truncate(8 * MEBIBYTE)
    attached = subprocess.run(
        [needed("losetup"), "--find", "--show", file], capture_output=True, text=True, check=True).stdout.strip()
    try:
        number = Path(attached).stat().st_rdev
        machine.run("mknod", DEVICE, "b", str(number >> 8), str(number & 0xFF))
        yield
    finally:
        subprocess.run([needed("losetup"), "--detach", attached], check=True)


@contextmanager
def nodes(roots: tuple[Path, Path], packages: Path, files: Path) -> Iterator[Pair]:
    """The nodes, set up as README.md tells it, with the VM running on the first. `files` is for their block devices."""
    boot = guest_boot()
    with booted(roots[0], "node1") as source, booted(roots[1], "node2") as destination:
        connect((source, SOURCE), (destination, DESTINATION))
        for machine in (source, destination):
            # Namespaces of one machine show libvirt the same mainboard.
            machine.run("sh", "-c", "echo 'host_uuid_source = \"machine-id\"' >>/etc/libvirt/libvirtd.conf")
            machine.run("systemctl", "restart", "libvirtd")
            install(machine, packages)
            machine.run("mkdir", "/home/vms", BOOT)
        let_in(source, destination, DESTINATION)
        let_in(destination, source, SOURCE)
        configure(source, {SOURCE: source, DESTINATION: destination}, SOURCE)
        for machine in (source, destination):
            machine.run("systemctl", "start", AGENT)
        source.copy(boot.kernel, f"{BOOT}/vmlinuz")
        source.copy(boot.initrd, f"{BOOT}/initrd")
        source.run("qemu-img", "create", "-q", "-f", "qcow2", IMAGE, "64M")
        source.run("dd", "if=/dev/urandom", f"of={SCRATCH}", "bs=1M", "count=4")
        source.write("/root/VM1.xml", DOMAIN)
        with block_device(source, files / "source"), block_device(destination, files / "destination"):
            source.run("virsh", "define", "/root/VM1.xml")
            source.run("virsh", "start", "VM1")
            yield Pair(source, destination)
            for machine in (source, destination):
                machine.run("virsh", "destroy", "VM1", check=False)
