"""Records, keys and files that the unit tests start from; each test changes just what it is about."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from constant import (
    VERSION,
    CopyStorage,
    DomainState,
    ErrorCode,
    ImageFormat,
    LibvirtDaemon,
    Transport,
)
from wire.access import AddressList, Key
from wire.records import (
    CancelArguments,
    CheckReport,
    DiskFacts,
    DomainFacts,
    HostFacts,
    Migration,
    MigrationReport,
    Obstacle,
    Progress,
    RollBackReport,
    StepArguments,
    StepReport,
)

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "192.0.2.11"
DESTINATION = "192.0.2.12"
CONTROLLER = ("192.0.2.1", 8001)
CONTROLLERS = AddressList(Path("ControllerIPAddr.txt"), (ipaddress.ip_network(CONTROLLER[0]),))
AGENTS = AddressList(Path("AgentIPAddr.txt"), (ipaddress.ip_network(SOURCE), ipaddress.ip_network(DESTINATION)))
MASTER = Key(bytes(range(32)))
AGENT_KEY = MASTER.for_agent(SOURCE)

MIGRATION = Migration(
    job_id="0badcafe", domain="VM1", source=SOURCE, destination=DESTINATION, user="kvm",
    disk="/var/lib/libvirt/images/node.qcow2", conf_file="/etc/libvirt/qemu/VM1.xml", transport=Transport.SSH,
    copy_storage=CopyStorage.AUTO, bandwidth=0, timeout=0)
QCOW2 = DiskFacts(
    target="vda", path="/var/lib/libvirt/images/node.qcow2", format=ImageFormat.QCOW2, virtual_size=8 << 30,
    allocated=2 << 30, cluster_size=65536, compat="1.1")
RAW = DiskFacts(
    target="vda", path="/srv/vm/node.img", format=ImageFormat.RAW, virtual_size=1 << 30, allocated=0, cluster_size=0,
    compat="")
FACTS = DomainFacts(
    uuid="2f1d0b6e-7d1c-4a8f-9a55-0c1d2e3f4a5b", virtualization="kvm", architecture="x86_64",
    machine="pc-q35-7.2", memory=2 << 30, autostart=True, disks=(QCOW2,), networks=("bridge:br0",))
HOST_FACTS = HostFacts(
    version=VERSION, hostname="node1", libvirt_version=9_000_000, daemon=LibvirtDaemon.LIBVIRTD,
    epoch="0123456789abcdef", challenge="12-0123456789abcdef")
MOVED = MigrationReport(disk_bytes=2 << 30, memory_bytes=300 << 20, downtime=87)

# One of every record that crosses the wire, with every optional field once there and once not.
EVERY_RECORD: tuple[object, ...] = (
    MIGRATION,
    Migration(
        job_id="00000001", domain="win 11 (prod)", source="2001:db8::1", destination="2001:db8::2", user="_vm-mover",
        disk=None, conf_file=None, transport=Transport.TCP, copy_storage=CopyStorage.ALL, bandwidth=100,
        timeout=3600, destination_daemon=LibvirtDaemon.VIRTQEMUD),
    QCOW2,
    RAW,
    FACTS,
    DomainFacts(
        uuid="u", virtualization="qemu", architecture="aarch64", machine="virt-7.2", memory=1, autostart=False,
        disks=(), kernel="/boot/vmlinuz", initrd="/boot/initrd.img", networks=()),
    StepArguments(MIGRATION),
    StepArguments(MIGRATION, FACTS),
    CancelArguments("0badcafe"),
    Obstacle(ErrorCode.PATH_TAKEN, {"path": "/srv/vm/node.img", "host": SOURCE}),
    HOST_FACTS,
    CheckReport(obstacles=()),
    CheckReport(obstacles=(Obstacle(ErrorCode.DOMAIN_BUSY, {}), Obstacle(ErrorCode.INTERNAL, {"reason": "ü…"})),
                facts=FACTS),
    StepReport("empty qcow2 of 8192 MiB"),
    MOVED,
    MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1),
    RollBackReport(state=DomainState.SHUT_OFF, removed=("/a/b", "/c/d")),
    Progress(phase="copying the disk", done=1, total=0),
)


@dataclass
class FakeClock:
    """A clock that only moves when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def address_list(directory: Path, *lines: str) -> AddressList:
    """A list file with these lines, read."""
    path = directory / "list.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return AddressList.load(path, "node")


def write_key(path: Path, *keys: Key, mode: int = 0o600) -> Path:
    """A key file as the commands make it, with the mode given."""
    path.write_text("".join(f"{key.secret.hex()}\n" for key in keys), encoding="ascii")
    os.chmod(path, mode)
    return path
