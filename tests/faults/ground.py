"""The ground that a fault acts on: a lab with its agents, what is to be done to them later, and where to look.

It does what an init system does on a real host: what has died is started again a moment later.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import Agent, Host, Lab, Witness
from tests.lab.conftest import CONTROLLER, IMAGES, PYTHON, virsh
from tests.lab.state import LabError

# A rebooted agent that finds a migration to go on with takes a moment more; a busy machine too.
AGENT_SECONDS = 30.0
CLOCK_FILE = "/tmp/clock-offset"  # noqa: S108 - the host's own /tmp
CLOCK_DIRECTORY = Path(__file__).with_name("clock")
# The table of a fault's rules: the firewall's own stays as it is.
RULES = "faults"
SMALL_DISK = "small.ext4"
SMALL_DISK_BYTES = 640 * 1024 * 1024
FILLER = f"{IMAGES}/filler"
# What a full disk still has: some for ext4 itself, none for an image.
_LEFT_FREE = 2 * 1024 * 1024
_FILLING_TRIES = 10
CANARY = "canary"
CANARY_IMAGE = f"{IMAGES}/{CANARY}.raw"
_CANARY_XML = f"""\
<domain type='qemu'>
  <name>{CANARY}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{CANARY_IMAGE}'/><target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


@dataclass(frozen=True)
class Due:
    """Something that is to be done at a time of the monotonic clock."""

    at: float
    what: str
    action: Callable[[], None]


@dataclass
class Ground:
    """A lab that is up, for one run after another. Used by one thread."""

    lab: Lab
    agents: dict[str, Agent] = field(default_factory=dict)
    rng: random.Random = field(default_factory=random.Random)
    guest: str = ""
    controller: subprocess.Popen[str] | None = None
    notes: list[str] = field(default_factory=list)
    missed: bool = False
    """Whether a fault found nothing to break."""
    began: float = field(default_factory=time.monotonic)
    _due: list[Due] = field(default_factory=list)
    _agent_environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def boss(self) -> Host:
        """The management host."""
        return self.lab.host("boss")

    @property
    def source(self) -> Host:
        """The host that the VM is on at the beginning."""
        return self.lab.host("node1")

    @property
    def destination(self) -> Host:
        """The host that it moves to."""
        return self.lab.host("node2")

    def note(self, text: str) -> None:
        """Write down what happened, for whoever reads the evidence."""
        self.notes.append(f"{time.monotonic() - self.began:8.2f} {time.strftime('%H:%M:%S')} {text}")

    # What is to be done later.

    def later(self, seconds: float, what: str, action: Callable[[], None]) -> None:
        """Have something done in so many seconds, by do_what_is_due()."""
        self._due.append(Due(time.monotonic() + seconds, what, action))

    def do_what_is_due(self, *, everything: bool = False) -> None:
        """Do what was to be done by now, or all that is still to be done, in order of time."""
        while True:
            self._due.sort(key=lambda due: due.at)
            if not self._due or (not everything and self._due[0].at > time.monotonic()):
                return
            due = self._due.pop(0)
            if everything:
                time.sleep(max(0.0, due.at - time.monotonic()))
            self.note(due.what)
            due.action()

    @property
    def something_is_due(self) -> bool:
        """Whether something is still to be done."""
        return bool(self._due)

    def soon(self) -> float:
        """How long an init system takes to start again what has died."""
        return self.rng.uniform(1.0, 3.0)

    # Agents.

    def start_agents(self, *, fake_clock: bool = False) -> None:
        """Start both agents anew, with a clock that can be set or without."""
        wanted: Mapping[str, str] = {
            "PYTHONPATH": str(CLOCK_DIRECTORY), "VMMIGRATION_LAB_CLOCK": CLOCK_FILE} if fake_clock else {}
        for node in self.lab.nodes:
            self.set_clock(node, 0)
        if wanted == self._agent_environment and len(self.agents) == len(self.lab.nodes):
            return
        self.stop_agents()
        self._agent_environment = wanted
        for node in self.lab.nodes:
            self.start_agent(node)

    def start_agent(self, node: Host) -> None:
        """Start the agent of a node."""
        self.agents[node.name] = self.lab.start_agent(node, wait=AGENT_SECONDS, env=self._agent_environment)

    def stop_agents(self) -> None:
        """End both agents as `systemctl stop` does."""
        for agent in self.agents.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.stop(40)
        self.agents.clear()

    def agent_pid(self, node: Host) -> int:
        """The number, outside, of a node's agent."""
        return node.real_pid(self.agents[node.name].process)

    def kill_agent(self, node: Host) -> None:
        """kill -9, and what an init system does then."""
        os.kill(self.agent_pid(node), signal.SIGKILL)
        self.agents[node.name].process.wait(10)
        self.later(self.soon(), f"agent on {node.name} starts again", lambda: self.start_agent(node))

    def set_clock(self, node: Host, seconds: int) -> None:
        """How far the clock that the node's agent sees is off."""
        draft = node.path(f"{CLOCK_FILE}.new")
        draft.write_text(f"{seconds:+d}\n")
        # At once: the agent reads the file all the time.
        draft.rename(node.path(CLOCK_FILE))

    # Processes.

    def kill_processes(self, node: Host, what: str, wanted: Callable[[str], bool], number: int = 9) -> int:
        """Send a signal to the processes of a host whose command line is wanted; how many there were."""
        pids = [str(pid) for pid, words in node.inner_pids() if wanted(words)]
        if pids:
            node.run(["kill", f"-{number}", *pids], check=False)
        if number != signal.SIGCONT:
            # Those that stood still may have been ended by then.
            self.missed = self.missed or not pids
        self.note(f"{what} on {node.name}: {len(pids)} process(es) got signal {number}")
        return len(pids)

    def signal_libvirtd(self, node: Host, number: int) -> None:
        """Send a signal to a host's libvirtd."""
        self.kill_processes(node, "libvirtd", lambda words: words.startswith("libvirtd"), number)

    def kill_libvirtd(self, node: Host) -> None:
        """kill -9, and what an init system does then."""
        self.signal_libvirtd(node, signal.SIGKILL)
        self.later(self.soon(), f"libvirtd on {node.name} starts again", node.start_libvirt)

    # Reboot.

    def power_off(self, node: Host) -> None:
        """The plug is pulled: all processes end, and nobody on the network is told."""
        node.link(up=False)
        for _ in range(20):
            # All but PID 1 and the process that it waits for: with that, the host itself would end.
            pids = [str(pid) for pid, words in node.inner_pids()
                    if pid != 1 and words and not words.endswith("sleep infinity")]
            if not pids:
                break
            node.run(["kill", "-9", *pids], check=False)
            time.sleep(0.05)
        agent = self.agents.pop(node.name, None)
        if agent is not None:
            agent.process.wait(10)
        node.run(["ss", "-K", "state", "all"], check=False)
        node.run(["sh", "-c", "umount -l /run/user/* 2>/dev/null; find /run -mindepth 1 -delete"], check=False)
        node.run(["install", "-d", "-m", "1777", "/run/lock"])

    def boot(self, node: Host) -> None:
        """The host comes up again: network, firewall, then its services."""
        node.run(["nft", "flush", "ruleset"])
        node.firewall()
        node.link(up=True)
        node.start_sshd()
        node.start_libvirt()
        self.start_agent(node)

    # The destination's disk.

    def mount_small_disk(self) -> None:
        """Give the destination's images a file system of their own that can be filled and can break."""
        node = self.destination
        image = node.directory / SMALL_DISK
        with image.open("wb") as stream:
            stream.truncate(SMALL_DISK_BYTES)
        node.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)])
        self._mount(str(image), "loop,")
        node.run(["sh", "-c", f"rmdir {IMAGES}/lost+found; chmod 711 {IMAGES}"])

    def _mount(self, what: str, how: str = "") -> None:
        self.destination.run(["mount", "-o", f"{how}errors=remount-ro", what, IMAGES])

    def has_small_disk(self) -> bool:
        """Whether the destination's images are on it."""
        return self.destination.run(["mountpoint", "-q", IMAGES], check=False).returncode == 0

    def unmount_small_disk(self) -> None:
        """Take it away with all that is on it."""
        if self.has_small_disk():
            self.destination.run(["umount", IMAGES])
        (self.destination.directory / SMALL_DISK).unlink(missing_ok=True)

    def fill_disk(self) -> None:
        """Take what is free on the small disk."""
        for _again in range(_FILLING_TRIES):
            status = os.statvfs(self.through(self.destination, IMAGES))
            length = max(status.f_bavail * status.f_frsize - _LEFT_FREE, 4096)
            # What arrives meanwhile may have taken some of it.
            if self.destination.run(["fallocate", "-l", str(length), FILLER], check=False).returncode == 0:
                return
        raise LabError(f"{IMAGES} of {self.destination.full_name} cannot be filled")

    def empty_disk(self) -> None:
        """Give it back."""
        self.destination.run(["rm", "-f", FILLER])

    def break_disk(self) -> None:
        """The file system finds itself damaged and is read-only from now on, whatever is open."""
        self.destination.run(["mount", "-o", "remount,abort", IMAGES], check=False)

    def mend_disk(self) -> None:
        """What an admin does: nothing may use it, it is checked and mounted again."""
        node = self.destination
        if virsh(node, "list", "--name").split():
            # It moved before the disk broke. Its own writes were refused by then.
            virsh(node, "destroy", self.guest)
        # Another device's number, as a disk may have after a reboot.
        device = node.run(["losetup", "--find", "--show", str(node.directory / SMALL_DISK)]).stdout.strip()
        node.run(["umount", IMAGES])
        node.run(["e2fsck", "-p", "-f", device], check=False)
        self._mount(device)
        # It stays until it is unmounted.
        node.run(["losetup", "--detach", device])

    # Looking.

    @staticmethod
    def through(host: Host, path: str) -> Path:
        """A path of the host as the host itself sees it now, with what is mounted there."""
        return Path(f"/proc/{host.init.pid}/root{path}")

    def command(self, *words: str) -> list[str]:
        """The admin's command line."""
        return [PYTHON, CONTROLLER, *words]

    def make_canaries(self) -> None:
        """What was there before on both nodes and must stay as it is."""
        for node in self.lab.nodes:
            image = self.through(node, CANARY_IMAGE)
            if not image.exists():
                image.write_bytes(bytes(range(256)) * 4096)
            if CANARY not in virsh(node, "list", "--all", "--name").split():
                node.path("/tmp/canary.xml").write_text(_CANARY_XML)  # noqa: S108 - the host's own /tmp
                virsh(node, "define", "/tmp/canary.xml")  # noqa: S108
                node.path("/tmp/canary.xml").unlink()  # noqa: S108
            # What a file system that breaks has not written yet was never there.
            node.run(["sync", "-f", IMAGES])

    def remove_guest(self) -> None:
        """Take the guest of a run away from both nodes, whatever is left of it."""
        for node in self.lab.nodes:
            for command in (["destroy", self.guest], ["undefine", self.guest, "--nvram", "--managed-save"]):
                node.run(["virsh", "-q", "-c", "qemu:///system", *command], check=False)
            for path in self.through(node, IMAGES).glob(f"{self.guest}*"):
                node.run(["rm", "-f", f"{IMAGES}/{path.name}"], check=False)
        Witness(self.lab, self.guest).end()


@contextlib.contextmanager
def ground(prefix: str) -> Iterator[Ground]:
    """A fresh lab with keys, lists, firewalls and agents, taken down at the end."""
    with Lab(prefix) as lab:
        lab.down()
        lab.up(firewall=True)
        lab.provision()
        made = Ground(lab)
        try:
            made.start_agents()
            made.make_canaries()
            yield made
        finally:
            for agent in made.agents.values():
                agent.process.kill()

