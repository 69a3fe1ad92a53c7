"""Two fresh machines with the packages, the agents as services, and a VM that moves: with what the service may do."""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.kernel import guest_boot
from tests.packaging import rare_work
from tests.packaging.machine import Machine, booted, connect, needed, wait_until
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


@pytest.fixture(scope="module")
def pair(root: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The nodes, set up as README.md tells it, with the VM running on the first."""
    boot, files = guest_boot(), tmp_path_factory.mktemp("devices")
    with booted(root, "node1") as source, booted(root, "node2") as destination:
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


def test_all_is_well_between_the_two(pair: Pair) -> None:
    checked = pair.source.run("vmmigration", "check", "kvm").stdout
    assert checked.count("  ok") == 2


def test_a_move_survives_the_restart_of_both_agents(pair: Pair) -> None:
    move = pair.source.start(*pair.command("--bandwidth", "12"))
    wait_until("the memory is on its way", lambda: "Migrate" in _job(pair.source) or move.poll() is not None)
    assert move.poll() is None, move.communicate()
    tunnel = pair.source.says("pgrep", "-x", "ssh")
    assert pair.source.unit(AGENT, "StatusText") == "1 job"
    for machine in (pair.source, pair.destination):
        machine.run("systemctl", "restart", AGENT)
    assert pair.source.says("pgrep", "-x", "ssh") == tunnel
    output, errors = move.communicate(timeout=120)
    assert move.returncode == 0, f"{output}{errors}\n{pair.source.journal(AGENT)}"
    assert "VM1 runs on 192.0.2.12 now." in output
    assert "leaving 1 job step(s)" in pair.source.journal(AGENT)
    assert pair.destination.says("virsh", "domstate", "VM1") == "running"
    assert pair.source.says("virsh", "domstate", "VM1") == "shut off"


def test_all_that_belongs_to_the_vm_has_arrived(pair: Pair) -> None:
    source, destination = pair.source, pair.destination
    for path in (f"{BOOT}/vmlinuz", f"{BOOT}/initrd"):
        assert source.says("sha256sum", path) == destination.says("sha256sum", path) != ""
    disks = destination.says("virsh", "domblklist", "VM1")
    for path in (IMAGE, SCRATCH, DEVICE):
        assert path in disks
    moved = source.says("sh", "-c", f"ls {SCRATCH}.moved-*")
    assert source.says("sha256sum", moved)[:64] == destination.says("sha256sum", SCRATCH)[:64]
    assert "<name>VM1</name>" in destination.says("cat", CONFIGURATION)


def test_what_was_refused_to_the_service_was_nothing_that_it_needed(pair: Pair) -> None:
    for machine in (pair.source, pair.destination):
        log = machine.journal(AGENT)
        for word in ("Traceback", "Permission denied", "Operation not permitted", "Read-only"):
            assert word not in log, log
        wait_until("its job has ended", functools.partial(_is_idle, machine))


def test_what_the_agent_rarely_does_is_within_the_rights_of_the_service(pair: Pair) -> None:
    machine = pair.destination
    machine.copy(Path(rare_work.__file__), "/srv/rare_work.py")
    # The agent's own unit file, with another program in it.
    machine.run("cp", f"/lib/systemd/system/{AGENT}.service", "/etc/systemd/system/rare.service")
    qemu, user = machine.says("cat", "/run/libvirt/qemu/VM1.pid"), machine.says("id", "--user", "libvirt-qemu")
    machine.write("/etc/systemd/system/rare.service.d/program.conf", f"""\
[Service]
Type=oneshot
ExecStart=
ExecStart=/usr/bin/python3 /srv/rare_work.py {qemu} {user}
ExecReload=
Environment=PYTHONPATH=/usr/share/vmmigration
WatchdogSec=0
Restart=no
StandardOutput=file:/srv/said
""")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "rare", check=False)
    assert machine.says("cat", "/srv/said").splitlines() == [
        "QEMU's sockets can be told: True", "connections that were found: 1", "it was cut",
        "QEMU may enter: ['/srv']", "a program of its user's was ended", "answers come first",
        "a directory has mode 711"], machine.journal("rare")


def _is_idle(machine: Machine) -> bool:
    return machine.unit(AGENT, "StatusText") == "no jobs"


def _job(machine: Machine) -> str:
    """What libvirt's job on the VM is doing."""
    time.sleep(0.1)
    jobs = machine.says("virsh", "domjobinfo", "VM1")
    return "Migrate" if "Outgoing migration" in jobs and "Memory processed" in jobs else jobs
