"""What the measurements are made with: a key, a migration, and a request of the size that is asked for."""

from __future__ import annotations

import dataclasses
import ipaddress
import secrets
from pathlib import Path

from constant import VERSION, Command, CopyStorage, ImageFormat, LibvirtDaemon, Transport
from wire.access import AddressList, Key
from wire.datagram import Direction, seal
from wire.facts import DiskFacts, DomainFacts, HostFacts, InterfaceFacts
from wire.message import Request, encode
from wire.records import Migration, StepArguments

MASTER = Key(bytes(range(32)))
AGENT = "127.0.0.1"
# Every source and every simulated agent has an address of its own in it.
LOOPBACK = AddressList(Path("127.0.0.0/8"), (ipaddress.ip_network("127.0.0.0/8"),))

MIGRATION = Migration(
    job_id="0badcafe", domain="VM1", source=AGENT, destination="192.0.2.12", user="kvm",
    disk="/var/lib/libvirt/images/VM1/node.qcow2", conf_file="/etc/libvirt/qemu/VM1.xml", transport=Transport.SSH,
    copy_storage=CopyStorage.AUTO, bandwidth=0, timeout=0)
# Of a VM other than the one that is being migrated, which is locked.
OTHER_MIGRATION = dataclasses.replace(MIGRATION, job_id="00c0ffee", domain="VM2")
FACTS = DomainFacts(
    uuid="2f1d0b6e-7d1c-4a8f-9a55-0c1d2e3f4a5b", virtualization="kvm", architecture="x86_64", machine="pc-q35-7.2",
    memory=2 << 30, autostart=True, interfaces=(InterfaceFacts(kind="bridge", source="br0", mac="52:54:00:00:00:01"),),
    disks=(DiskFacts(
        target="vda", path="/var/lib/libvirt/images/VM1/node.qcow2", format=ImageFormat.QCOW2, virtual_size=8 << 30,
        allocated=2 << 30, cluster_size=65536, compat="1.1"),))


def host_facts(epoch: str, challenge: str) -> HostFacts:
    """What an agent answers to HELLO."""
    return HostFacts(
        version=VERSION, hostname="node1", libvirt_version=9_000_000, daemon=LibvirtDaemon.LIBVIRTD, epoch=epoch,
        challenge=challenge)


def request(command: Command, arguments: object, epoch: str = "", challenge: str = "") -> Request:
    """A new request to the agent at AGENT."""
    return Request(
        request_id=secrets.token_hex(16), agent_ip=AGENT, cmd=command, cmd_arguments=arguments, epoch=epoch,
        challenge=challenge)


def request_of_size(size: int) -> Request:
    """A request whose datagram is that long: a LIVE_MIGRATION with all that goes with it, and a longer path."""
    arguments = StepArguments(migration=MIGRATION, facts=FACTS)
    made = request(Command.LIVE_MIGRATION, arguments, secrets.token_hex(8), f"12345-{secrets.token_hex(8)}")
    short = size - len(seal(MASTER, Direction.REQUEST, encode(made)))
    longer = dataclasses.replace(MIGRATION, conf_file=f"/etc/libvirt/qemu/{'x' * short}VM1.xml")
    return dataclasses.replace(made, cmd_arguments=dataclasses.replace(arguments, migration=longer))
