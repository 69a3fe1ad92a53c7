"""Obstacles in the way of a migration: each is put in place for the length of a `with`, and taken away again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import Agent, Host, Lab
from .conftest import CONTROLLER, IMAGES, PYTHON, Admin, Guest, Run, virsh
from .hostfiles import SSH_USER

NAME = "checks"
#: A directory of its own, so that it can be taken away without the rest of libvirt's.
DIRECTORY = f"{IMAGES}/checks"
IMAGE = f"{DIRECTORY}/checks.qcow2"
ISO = f"{DIRECTORY}/medium.iso"
BRIDGE, NETWORK, NETWORK_BRIDGE = "br-lab", "lab-net", "br-net"
NETWORK_XML = f"<network><name>{NETWORK}</name><forward mode='bridge'/><bridge name='{NETWORK_BRIDGE}'/></network>"
VNC_PORT = 5999
MAC = "52:54:00:ab:cd:01"
DEVICES = f"""\
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='user'><mac address='{MAC}'/><model type='virtio'/></interface>
    <interface type='bridge'><source bridge='{BRIDGE}'/><model type='virtio'/></interface>
    <interface type='network'><source network='{NETWORK}'/><model type='virtio'/></interface>
    <graphics type='vnc' port='{VNC_PORT}' autoport='no' listen='127.0.0.1'/>
"""
KNOWN_HOSTS, AUTHORIZED_KEYS = "/root/.ssh/known_hosts", f"/home/{SSH_USER}/.ssh/authorized_keys"
AGENT_LIST = "/etc/vmmigration/AgentIPAddr.txt"
LISTENER = """\
import socket, time
server = socket.create_server(("127.0.0.1", %d))
print("listens", flush=True)
time.sleep(600)
"""
RELOAD_TIMEOUT = 5.0


@dataclass(frozen=True)
class DryRun:
    """What a run with --json said."""

    run: Run
    result: Any

    def wrong(self) -> set[tuple[str, str]]:
        """Check and severity of each finding that is not fine."""
        return {(each["check"], each["severity"]) for each in self.result["findings"] if each["severity"] != "fine"}

    def obstacles(self) -> list[tuple[str, str, str]]:
        """What stops it: check, code and sentence."""
        return sorted(
            (each["check"], each["code"], each["message"]) for each in self.result["findings"]
            if each["severity"] == "stops")


@dataclass(frozen=True)
class Scene:
    """The lab with one running guest that has a bit of everything."""

    lab: Lab
    agents: dict[str, Agent]
    guest: Guest

    @property
    def source(self) -> Host:
        """Where the guest runs."""
        return self.lab.host("node1")

    @property
    def target(self) -> Host:
        """Where it is to go."""
        return self.lab.host("node2")

    def words(self, *options: str, user: str = SSH_USER, domain: str = NAME) -> list[str]:
        """The command line for a move of the guest."""
        return [PYTHON, CONTROLLER, self.source.address, self.target.address, user, domain, *options]

    def run(self, words: list[str]) -> DryRun:
        """Run a command line with --json; the text for a person is on stderr all the same."""
        run = Admin(self.lab).run([*words, "--json"])
        return DryRun(run, run.result())

    def dry_run(self, *options: str, user: str = SSH_USER, domain: str = NAME) -> DryRun:
        """Run the command with --dry-run."""
        return self.run(self.words("--dry-run", *options, user=user, domain=domain))


Place = Callable[[Scene], Iterator[None]]


@dataclass(frozen=True)
class Obstacle:
    """What is put in the way, and all that must be found then: nothing less and nothing else."""

    name: str
    place: Place
    stops: tuple[str, ...] = ()
    warns: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    """What the admin reads: the thing, the remedy. {source} and {target} stand for the nodes' addresses."""
    options: tuple[str, ...] = ()
    user: str = SSH_USER
    domain: str = NAME
    perhaps: tuple[str, ...] = ()
    """Warnings that depend on what the guest is doing at that moment."""

    @property
    def wrong(self) -> set[tuple[str, str]]:
        """Check and severity of all that must be found."""
        return {(check, "stops") for check in self.stops} | {(check, "warns") for check in self.warns}


@contextmanager
def placed(place: Place, scene: Scene) -> Iterator[None]:
    """What `place` puts there is there for the length of a `with`; it is taken away also when a test fails."""
    steps = place(scene)
    next(steps)
    try:
        yield
    finally:
        # Not thrown into: no place needs a `finally` of its own.
        next(steps, None)


@contextmanager
def replaced(file: Path, text: str) -> Iterator[None]:
    """A file with other content for the length of a `with`."""
    before = file.read_bytes()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_bytes(before)


# What the guest needs, on both nodes.


def make_networks(host: Host) -> None:
    """A bridge, and a libvirt network on another bridge."""
    for bridge in (BRIDGE, NETWORK_BRIDGE):
        make_bridge(host, bridge)
    define(host, NETWORK_XML, "net-define")
    virsh(host, "net-start", NETWORK)


def make_bridge(host: Host, name: str) -> None:
    """A bridge that is up."""
    host.run(["ip", "link", "add", name, "type", "bridge"])
    host.run(["ip", "link", "set", name, "up"])


def remove_networks(host: Host) -> None:
    """What make_networks() made."""
    for words in (["net-destroy", NETWORK], ["net-undefine", NETWORK]):
        host.run(["virsh", "-q", "-c", "qemu:///system", *words], check=False)
    for bridge in (BRIDGE, NETWORK_BRIDGE):
        host.run(["ip", "link", "delete", bridge], check=False)


def define(host: Host, document: str, command: str = "define") -> None:
    """Hand libvirt a document."""
    host.run(["virsh", "-q", "-c", "qemu:///system", *command.split(), "/dev/stdin"], input=document)


def domain_xml(name: str, *, identity: str = "", memory: str = "16", vcpus: int = 1, extra: str = "",
               devices: str = "") -> str:
    """A domain that need not boot."""
    return (
        f"<domain type='qemu'><name>{name}</name>{identity}<memory unit='MiB'>{memory}</memory><vcpu>{vcpus}</vcpu>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type></os>{extra}<devices>{devices}</devices></domain>")


# The obstacles. Files and directories on the destination.


def nothing(scene: Scene) -> Iterator[None]:
    """It is the command line that is wrong."""
    yield


def file_there(path: str) -> Place:
    """A file on the destination."""
    def place(scene: Scene) -> Iterator[None]:
        file = scene.target.path(path)
        file.write_text("somebody's")
        yield
        assert file.read_text() == "somebody's"
        file.unlink()

    return place


def moved_away(path: str) -> Place:
    """A file or directory that the destination lacks."""
    def place(scene: Scene) -> Iterator[None]:
        there = scene.target.path(path)
        away = there.rename(there.with_name(f"{there.name}.away"))
        yield
        away.rename(there)

    return place


def mounted(*commands: str) -> Place:
    """Something mounted on the images' directory of the destination."""
    def place(scene: Scene) -> Iterator[None]:
        for command in commands:
            scene.target.run([*command.split(), DIRECTORY])
        yield
        scene.target.run(["umount", DIRECTORY])

    return place


def inactive_pool(scene: Scene) -> Iterator[None]:
    """A storage pool on the images' directory that is not started."""
    define(scene.target, f"<pool type='dir'><name>images</name><target><path>{DIRECTORY}</path></target></pool>",
           "pool-define")
    yield
    virsh(scene.target, "pool-undefine", "images")


# Its neighbours on the destination.


def domain_there(document: str, name: str) -> Place:
    """A domain on the destination that is shut off."""
    def place(scene: Scene) -> Iterator[None]:
        uuid = scene.guest.on(scene.source, "domuuid").strip()
        define(scene.target, document.replace("{uuid}", uuid))
        yield
        virsh(scene.target, "undefine", name)

    return place


def running_neighbour(scene: Scene) -> Iterator[None]:
    """A VM on the destination, paused so that it costs nothing, with a MAC address of the guest."""
    devices = f"<interface type='user'><mac address='{MAC}'/></interface>"
    define(scene.target, domain_xml("other", devices=devices), "create --paused")
    yield
    virsh(scene.target, "destroy", "other")


def bridge_missing(scene: Scene) -> Iterator[None]:
    """The bridge is gone."""
    scene.target.run(["ip", "link", "delete", BRIDGE])
    yield
    make_bridge(scene.target, BRIDGE)


def bridge_down(scene: Scene) -> Iterator[None]:
    """The bridge is there, but switched off."""
    scene.target.run(["ip", "link", "set", BRIDGE, "down"])
    yield
    scene.target.run(["ip", "link", "set", BRIDGE, "up"])


def network_inactive(scene: Scene) -> Iterator[None]:
    """The libvirt network is defined, but not started."""
    virsh(scene.target, "net-destroy", NETWORK)
    yield
    virsh(scene.target, "net-start", NETWORK)


def network_missing(scene: Scene) -> Iterator[None]:
    """There is no such libvirt network."""
    virsh(scene.target, "net-destroy", NETWORK)
    virsh(scene.target, "net-undefine", NETWORK)
    yield
    define(scene.target, NETWORK_XML, "net-define")
    virsh(scene.target, "net-start", NETWORK)


def port_taken(scene: Scene) -> Iterator[None]:
    """Something listens on the display's port."""
    listener = scene.target.popen([PYTHON, "-c", LISTENER % VNC_PORT], stdout=subprocess.PIPE)
    with listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listens\n"
        yield
        listener.kill()


# The way there.


def known_hosts(scene: Scene) -> Iterator[None]:
    """The source's root has never seen the destination."""
    with replaced(scene.source.path(KNOWN_HOSTS), ""):
        yield


def other_host_key(scene: Scene) -> Iterator[None]:
    """The source's root knows the destination with another key: here, its own."""
    kind, key = scene.source.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
    with replaced(scene.source.path(KNOWN_HOSTS), f"{scene.target.address} {kind} {key}\n"):
        yield


def key_removed(scene: Scene) -> Iterator[None]:
    """The destination's user does not let the source's root in."""
    with replaced(scene.target.path(AUTHORIZED_KEYS), ""):
        yield


def not_in_group(scene: Scene) -> Iterator[None]:
    """The user may log in, but not use libvirt."""
    groups = scene.target.path("/etc/group")
    lines = [
        line.replace(SSH_USER, "").rstrip(",") if line.startswith("libvirt:") else line
        for line in groups.read_text().splitlines()]
    with replaced(groups, "\n".join(lines) + "\n"):
        yield


def sshd_stopped(scene: Scene) -> Iterator[None]:
    """No sshd on the destination."""
    pid = scene.target.path("/run/sshd.pid").read_text().strip()
    scene.target.run(["kill", pid])
    scene.target.wait_for("the end of sshd", lambda: int(pid) not in dict(scene.target.inner_pids()))
    yield
    scene.target.start_sshd()


def libvirtd_stopped(scene: Scene) -> Iterator[None]:
    """No libvirtd on the destination."""
    scene.target.stop_libvirt()
    yield
    scene.target.start_libvirt()


def not_allowed(scene: Scene) -> Iterator[None]:
    """The source's agent may not migrate there."""
    agent = scene.agents["node1"]
    with replaced(scene.source.path(AGENT_LIST), "10.255.0.1\n"):
        reload_lists(agent)
        yield
    reload_lists(agent)


def reload_lists(agent: Agent) -> None:
    """Have an agent read its lists anew, and wait until it has."""
    before = agent.log.stat().st_size
    agent.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + RELOAD_TIMEOUT
    while agent.log.stat().st_size == before:
        assert time.monotonic() < deadline, agent.log.read_text()[-2000:]
        time.sleep(0.02)


def slow_link(scene: Scene) -> Iterator[None]:
    """A link that carries less than the guest writes."""
    scene.target.rate(1)
    yield
    scene.target.rate(None)


# The guest itself.


def paused(scene: Scene) -> Iterator[None]:
    """Somebody has suspended it."""
    scene.guest.on(scene.source, "suspend")
    yield
    scene.guest.on(scene.source, "resume")


def snapshot_there(scene: Scene) -> Iterator[None]:
    """A snapshot that libvirt remembers; its disk is left alone."""
    document = scene.guest.on(scene.source, "dumpxml")
    head = "<domainsnapshot><name>one</name><state>running</state><creationTime>1700000000</creationTime>"
    scene.source.run(
        ["virsh", "-q", "-c", "qemu:///system", "snapshot-create", NAME, "/dev/stdin", "--redefine"],
        input=f"{head}<memory snapshot='no'/>{document}</domainsnapshot>")
    yield
    scene.guest.on(scene.source, "snapshot-delete", "one", "--metadata")


def block_job(scene: Scene) -> Iterator[None]:
    """Somebody copies its disk."""
    copy = f"{IMAGES}/copy.qcow2"
    scene.guest.on(scene.source, "blockcopy", "vda", copy, "--transient-job", "--bandwidth", "1")
    yield
    scene.guest.on(scene.source, "blockjob", "vda", "--abort")
    scene.source.path(copy).unlink()


def medium_inserted(scene: Scene) -> Iterator[None]:
    """An ISO image in its CD-ROM drive that lies on the source alone."""
    iso = scene.source.path(ISO)
    iso.write_bytes(bytes(1 << 20))
    scene.guest.on(scene.source, "change-media", "sda", ISO, "--insert", "--live")
    yield
    scene.guest.on(scene.source, "change-media", "sda", "--eject", "--live", "--force")
    iso.unlink()


def paper_domain(document: str) -> Place:
    """A domain `paper` on the source that is only defined, with an image of its own."""
    def place(scene: Scene) -> Iterator[None]:
        image = f"{DIRECTORY}/paper.qcow2"
        scene.source.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"])
        define(scene.source, document)
        yield
        virsh(scene.source, "undefine", "paper")
        scene.source.path(image).unlink()

    return place


def together(*places: Place) -> Place:
    """Several at once."""
    def place(scene: Scene) -> Iterator[None]:
        with ExitStack() as stack:
            for each in places:
                stack.enter_context(placed(each, scene))
            yield

    return place


def to_json(dry_run: DryRun) -> str:
    """All that is not fine, for an assertion's message."""
    wrong = [each for each in dry_run.result["findings"] if each["severity"] != "fine"]
    return json.dumps(wrong, indent=2) + dry_run.run.stderr
