"""The lab as the measurement needs it: nodes with agents, a storage pool and a login for scp, and one VM that is on the
first node, as it was, before each run.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from bench.peer_cases import Disk, Machine
from bench.peer_commands import IMAGES, LAYER, Image, Names
from bench.terminal import Terminal
from tests.lab import Agent, GuestSpec, Host, Lab, LabError, Witness, start_guest
from tests.lab.guest import BOOT_DIRECTORY, install_boot_files, make_image
from tests.lab.hostfiles import write_text
from tests.lab.state import CHECKOUT

_MIB = 1024 * 1024
_POOL = "default"
# The lab's guests boot a kernel that is a file of their host. Among the system's own it is neither sent nor compared:
# the move is that of an ordinary VM, which boots from its disk.
_KERNELS = "/etc/bench-boot"
_MOVED = re.compile(r"(.+)\.moved-[0-9a-f]{8}")
_TICKS = 40
_GOES_ON_SECONDS = 30.0
_START_SECONDS = 60.0


class GuestLostError(Exception):
    """The guest does not go on after its move: the emulator's fault, see GuestSpec.domain_xml. The run is repeated."""


@contextlib.contextmanager
def scenery() -> Iterator[Scenery]:
    """A lab that is up, with agents, for the length of a `with`."""
    with Lab("bench") as lab:
        lab.down()
        lab.up()
        lab.provision()
        install_boot_files(lab.nodes)
        for node in lab.nodes:
            shutil.copytree(node.path(BOOT_DIRECTORY), node.path(_KERNELS))
            _make_pool(node)
        _let_admin_in(*lab.nodes)
        agents = {node.name: lab.start_agent(node) for node in lab.nodes}
        terminals = {name: Terminal(host) for name, host in lab.hosts.items()}
        try:
            yield Scenery(lab, agents, terminals)
        finally:
            for terminal in terminals.values():
                terminal.close()
            for agent in agents.values():
                agent.stop()


def _make_pool(node: Host) -> None:
    """The pool that libvirt has on most hosts: a directory, in which it can make files by itself."""
    _virsh(node, "pool-define-as", _POOL, "dir", "--target", IMAGES)
    _virsh(node, "pool-start", _POOL)


def _let_admin_in(source: Host, destination: Host) -> None:
    """Root of the source may log in as root of the destination: scp and rsync write into libvirt's directory."""
    key = source.path("/root/.ssh/id_ed25519.pub").read_text()
    write_text(destination.path("/root/.ssh/authorized_keys"), key, 0o600)


def _virsh(host: Host, *words: str, check: bool = True) -> str:
    return host.run(["virsh", "-q", "-c", "qemu:///system", *words], check=check).stdout


@dataclass(frozen=True)
class Scenery:
    """The hosts, what runs on them, and a shell that is open on each."""

    lab: Lab
    agents: dict[str, Agent]
    terminals: dict[str, Terminal]

    def link(self, mbit: int | None) -> None:
        """Have the destination's cable carry so many Mbit/s; None for all that the machine can."""
        self.lab.host("node2").rate(mbit)


def image_name(machine: Machine, place: int) -> str:
    """The path of a disk's image, the first one being 0."""
    return f"{IMAGES}/{machine.name}.qcow2" if place == 0 else f"{IMAGES}/{machine.name}-{place}.qcow2"


def target_name(place: int) -> str:
    """What the guest calls it."""
    return f"vd{'abcd'[place]}"


def with_disks(document: str, paths: Sequence[str]) -> str:
    """A domain's XML with more disks like its first one, for the images at these paths."""
    root = ElementTree.fromstring(document)  # noqa: S314 - from the lab itself
    first = root.findall("devices/disk")[0]
    for place, path in enumerate(paths, 1):
        more = copy.deepcopy(first)
        more.findall("source")[0].set("file", path)
        more.findall("target")[0].set("dev", target_name(place))
        root.findall("devices")[0].append(more)
    return ElementTree.tostring(root, encoding="unicode")


@dataclass
class Subject:
    """The VM that is moved."""

    scenery: Scenery
    machine: Machine
    witness: Witness = field(init=False)
    _document: str = ""

    def __post_init__(self) -> None:
        self.witness = Witness(self.scenery.lab, self.machine.name)

    @property
    def images(self) -> list[Image]:
        """Its disks' images."""
        return [
            Image(image_name(self.machine, place), target_name(place), disk.size_gib * 1024 * _MIB)
            for place, disk in enumerate(self.machine.disks)]

    @property
    def names(self) -> Names:
        """What the admin's lines are about."""
        source, destination = self.scenery.lab.nodes
        return Names(
            self.machine.name, source.address, destination.address, self.images, str(CHECKOUT / "vmmigration.py"))

    def make(self) -> None:
        """Make its images on node1 and define it there; leaves it shut off."""
        lab, node1 = self.scenery.lab, self.scenery.lab.host("node1")
        more = [image.path for image in self.images[1:]]
        for place, disk in list(enumerate(self.machine.disks))[1:]:
            make_image(node1, self._spec(disk, image_name(self.machine, place)))
        spec = self._spec(self.machine.disks[0], image_name(self.machine, 0), more)
        self.witness = start_guest(lab, node1, spec)
        self._document = _virsh(node1, "dumpxml", "--inactive", "--security-info", self.machine.name)
        self.clear()

    def _spec(self, disk: Disk, path: str, more: Sequence[str] = ()) -> GuestSpec:
        return GuestSpec(
            self.machine.name, disk_bytes=disk.size_gib * 1024 * _MIB, data_bytes=disk.data_mib * _MIB, image=path,
            writer_mib=self.machine.disk_writer_mib, memory_writer_mib=self.machine.memory_writer_mib,
            rewrite=lambda document: with_disks(document.replace(BOOT_DIRECTORY, _KERNELS), more))

    def put_on_source(self) -> None:
        """Define it on node1, and start it and wait until it ticks if it is to run. Nothing is left to be written."""
        node1 = self.scenery.lab.host("node1")
        file = node1.path("/tmp/subject.xml")  # noqa: S108 - the host's own /tmp
        file.write_text(self._document)
        _virsh(node1, "define", "/tmp/subject.xml")  # noqa: S108 - see above
        _virsh(self.scenery.lab.host("node2"), "pool-refresh", _POOL)
        if self.machine.running:
            self.witness.start()
            _virsh(node1, "start", self.machine.name)
            self.witness.wait_for_ticks(_TICKS, _START_SECONDS)
        os.sync()

    def check_arrival(self) -> None:
        """See that it is on node2 as it was on node1. Raises LabError, GuestLostError if it does not go on there."""
        node2 = self.scenery.lab.host("node2")
        wanted = "running" if self.machine.running else "shut off"
        state = _virsh(node2, "domstate", self.machine.name).strip()
        if state != wanted:
            raise LabError(f"{self.machine.name} is {state} on {node2.full_name}, not {wanted}")
        if not self.machine.running:
            return
        try:
            self.witness.wait_for_ticks(_TICKS, _GOES_ON_SECONDS)
        except LabError as error:
            raise GuestLostError(str(error)) from error
        host = self.witness.ticks()[-1].host
        if host != node2.name:
            raise LabError(f"{self.machine.name} ticks on {host}")

    def allocated(self, host: str) -> tuple[int, int]:
        """What its images take on a host and how long their files are, bytes."""
        stats = [self.scenery.lab.host(host).path(image.path).stat() for image in self.images]
        return sum(each.st_blocks * 512 for each in stats), sum(each.st_size for each in stats)

    def clear(self) -> None:
        """End it on both nodes, and leave nothing but its images on node1, under their names."""
        for node in self.scenery.lab.nodes:
            for command in ("destroy", "undefine"):
                _virsh(node, command, self.machine.name, check=False)
        self.witness.end()
        self.witness = Witness(self.scenery.lab, self.machine.name)
        node1, node2 = self.scenery.lab.nodes
        for path in _files(node1, self.machine):
            moved = _MOVED.fullmatch(path.name)
            if moved is not None:
                path.rename(path.with_name(moved.group(1)))
            elif path.name.endswith(LAYER):
                path.unlink()
        for path in _files(node2, self.machine):
            path.unlink()

    def remove(self) -> None:
        """Remove its images too."""
        self.clear()
        for path in _files(self.scenery.lab.host("node1"), self.machine):
            path.unlink()


def _files(host: Host, machine: Machine) -> list[Path]:
    directory = host.path(IMAGES)
    return sorted({*directory.glob(f"{machine.name}.qcow2*"), *directory.glob(f"{machine.name}-*.qcow2*")})
