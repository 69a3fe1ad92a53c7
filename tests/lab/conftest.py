"""The lab as pytest fixtures: three real hosts for the whole session, an admin at the boss, and fresh guests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import Agent, GuestSpec, Host, Lab, Witness, start_guest
from .state import CHECKOUT

if TYPE_CHECKING:
    from .obstacles import Scene

MEBIBYTE = 1024 * 1024
PYTHON = "/usr/bin/python3"
CONTROLLER = str(CHECKOUT / "vmmigration.py")
IMAGES = "/var/lib/libvirt/images"
# A cut link or a killed program must be over after 60 s (design.md, section 6); the rest is for slow machines.
RUN_SECONDS = 150.0


def why_no_lab() -> str | None:
    """Why the lab cannot be brought up on this machine; None if it can."""
    if os.geteuid() != 0:
        return "the lab needs root"
    namespaces = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "true"]
    if subprocess.run(namespaces, capture_output=True, check=False).returncode != 0:
        return "the lab needs namespaces, and this machine gives none"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the lab; the fixture decides whether it can run."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def lab_machine() -> None:
    """A machine on which a lab can be brought up. Skips elsewhere; under CI that is a failure."""
    reason = why_no_lab()
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(f"under CI the lab must run: {reason}")
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def lab(lab_machine: None) -> Iterator[Lab]:
    """Three hosts with keys, lists and only SSH and the two UDP ports open between them."""
    with Lab("tests") as hosts:
        hosts.down()
        hosts.up(firewall=True)
        hosts.provision()
        yield hosts


@pytest.fixture(scope="session")
def agents(lab: Lab) -> Iterator[dict[str, Agent]]:
    """Both agents, started as an admin does. A test that ends one puts another in its place."""
    running = {node.name: lab.start_agent(node) for node in lab.nodes}
    yield running
    for agent in running.values():
        agent.stop()


@dataclass(frozen=True)
class Run:
    """One run of the admin's command."""

    code: int
    stdout: str
    stderr: str

    @classmethod
    def of(cls, process: subprocess.Popen[str]) -> Run:
        """That of a command that was started before, once it has ended."""
        stdout, stderr = process.communicate(timeout=RUN_SECONDS)
        return cls(process.returncode, stdout, stderr)

    @property
    def text(self) -> str:
        """All that the admin read, for an assertion's message."""
        return f"exit {self.code}\n{self.stdout}\n{self.stderr}"

    def result(self) -> Any:
        """The JSON result."""
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Admin:
    """Types the command on the management host."""

    lab: Lab

    def words(self, domain: str, *options: str, back: bool = False) -> list[str]:
        """The command line for a move of `domain` from node1 to node2, or back."""
        source, destination = reversed(self.lab.nodes) if back else self.lab.nodes
        return [PYTHON, CONTROLLER, source.address, destination.address, "kvm", domain, *options]

    def run(self, words: list[str], env: Mapping[str, str] | None = None) -> Run:
        """Run a command line to its end, with `env` in its environment."""
        finished = self.lab.host("boss").run(words, check=False, timeout=RUN_SECONDS, env=env)
        return Run(finished.returncode, finished.stdout, finished.stderr)

    def migrate(self, domain: str, *options: str, back: bool = False) -> Run:
        """Move `domain` from node1 to node2, or back."""
        return self.run(self.words(domain, *options, back=back))

    def command(self, *words: str) -> Run:
        """Run one of the commands about jobs to its end."""
        return self.run([PYTHON, CONTROLLER, *words])

    def start(self, domain: str, *options: str) -> subprocess.Popen[str]:
        """Begin a move and return at once."""
        return self.lab.host("boss").popen(
            self.words(domain, *options), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True)


@pytest.fixture
def admin(lab: Lab, agents: dict[str, Agent]) -> Admin:
    """An admin at the management host, with both agents running."""
    return Admin(lab)


@dataclass(frozen=True)
class Guest:
    """A running guest and what its witness says."""

    lab: Lab
    name: str
    disk: str
    witness: Witness

    def on(self, host: Host, *arguments: str) -> str:
        """What a `virsh` subcommand prints on a host; the guest's name is put behind its first word."""
        return virsh(host, arguments[0], self.name, *arguments[1:])

    def state(self, host: Host) -> str:
        """What libvirt calls its state on a host, `absent` if it is not there."""
        listed = virsh(host, "list", "--all", "--name").split()
        return self.on(host, "domstate").strip() if self.name in listed else "absent"


def virsh(host: Host, *words: str) -> str:
    """What a virsh command prints on a host."""
    return host.run(["virsh", "-q", "-c", "qemu:///system", *words]).stdout


def stayed(host: Host, path: str) -> str:
    """The name of what stays on the source under that path's, once its VM has moved."""
    directory, _, name = path.rpartition("/")
    found = sorted(host.path(directory).glob(f"{name}.moved-*"))
    assert len(found) <= 1, found
    return f"{directory}/{found[0].name}" if found else path


MakeGuest = Callable[..., Guest]


@pytest.fixture
def make_guest(lab: Lab) -> Iterator[MakeGuest]:
    """Starts guests on node1, by name, and removes them from both nodes after the test."""
    made: list[Guest] = []

    def make(
        name: str, image_format: str = "qcow2", disk_mib: int = 512, data_mib: int = 128, **more: Any,
    ) -> Guest:
        spec = GuestSpec(
            name, image_format=image_format, disk_bytes=disk_mib * MEBIBYTE, data_bytes=data_mib * MEBIBYTE, **more)
        guest = Guest(
            lab, name, spec.image_path, start_guest(lab, lab.host("node1"), spec))
        made.append(guest)
        guest.witness.wait_for_ticks(20)
        return guest

    yield make
    for guest in made:
        for host in lab.nodes:
            for command in (["destroy", guest.name], ["undefine", guest.name, "--nvram", "--managed-save"]):
                host.run(["virsh", "-q", "-c", "qemu:///system", *command], check=False)
            images = host.path(guest.disk).parent
            # The copies that moves have left have more at the end of the name.
            for path in images.glob(f"{Path(guest.disk).name}*") if images.is_dir() else []:
                path.unlink()
        guest.witness.end()


def job_leftovers(host: Host) -> list[str]:
    """What a job made for itself and is still there: directories of sockets, ledgers, ssh children."""
    places = [Path("/run/libvirt/qemu"), Path("/var/lib/vmmigration/jobs")]
    files = [
        str(path) for place in places if host.path(place).is_dir()
        for path in host.path(place).iterdir() if "vmmigration-" in path.name or place.name == "jobs"]
    processes = host.run(["ps", "-eo", "args"]).stdout.splitlines()
    return files + [line for line in processes if "StreamLocalBindMask" in line]


def snapshot(host: Host) -> dict[str, str]:
    """What must not change on a host when a run is refused: files with sizes and modes, and libvirt's domains."""
    seen = {"domains": virsh(host, "list", "--all", "--uuid", "--name")}
    for place in (IMAGES, "/etc/libvirt", "/run/libvirt/qemu", "/var/lib/vmmigration", "/home", "/root/.ssh"):
        root = host.path(place)
        for path in sorted(root.rglob("*")) if root.exists() else []:
            status = path.lstat()
            # The running guest writes to its image, or to the layer that a snapshot has put on it, all the time.
            size = 0 if place == IMAGES or path.name == "journal" else status.st_size
            seen[f"{place}/{path.relative_to(root)}"] = f"{status.st_mode:o} {status.st_uid} {size}"
    return seen


@pytest.fixture(scope="module")
def scene(lab: Lab, agents: dict[str, Agent]) -> Iterator[Scene]:
    """One running guest for a whole module, with networks, a display and a CD-ROM drive."""
    from . import obstacles

    node1 = lab.host("node1")
    spec = GuestSpec(
        obstacles.NAME, disk_bytes=512 * MEBIBYTE, data_bytes=64 * MEBIBYTE, image=obstacles.IMAGE,
        extra_devices=obstacles.DEVICES)
    for node in lab.nodes:
        node.path(obstacles.DIRECTORY).mkdir(mode=0o711)
        obstacles.make_networks(node)
    witness = start_guest(lab, node1, spec)
    witness.wait_for_ticks(20)
    yield obstacles.Scene(lab, agents, Guest(lab, spec.name, spec.image_path, witness))
    for command in ("destroy", "undefine"):
        virsh(node1, command, spec.name)
    node1.path(spec.image_path).unlink()
    witness.end()
    for node in lab.nodes:
        obstacles.remove_networks(node)
        node.path(obstacles.DIRECTORY).rmdir()
