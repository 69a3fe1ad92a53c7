"""The faults, and the moments at which they come: each a row of a table, done to a Ground."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from tests.faults.ground import RULES, Ground
from tests.lab import Host

SOURCE, DESTINATION = "node1", "node2"
TWO_HOURS = 7200
_DROP = """\
table inet {table} {{
    chain incoming {{ type filter hook input priority -10; policy accept; {incoming} drop; }}
    chain outgoing {{ type filter hook output priority -10; policy accept; {outgoing} drop; }}
}}
"""


@dataclass(frozen=True)
class Moment:
    """A step that a fault comes in: from its `step-began` on, within its usual seconds."""

    name: str
    command: str
    host: str
    usual_seconds: float
    """How long it usually takes, on a machine like those of design.md."""


_MOMENTS = (
    Moment("HELLO", "HELLO", SOURCE, 0.3),
    Moment("CHECK_SOURCE", "CHECK_SOURCE", SOURCE, 1.2),
    Moment("CHECK_DESTINATION", "CHECK_DESTINATION", DESTINATION, 0.5),
    Moment("CHECK_LINK", "CHECK_LINK", SOURCE, 0.8),
    Moment("MEASURE_LINK", "MEASURE_LINK", SOURCE, 1.5),
    Moment("PREPARE_DESTINATION", "PREPARE_DESTINATION", DESTINATION, 0.3),
    Moment("COPY_DISK_FILE", "COPY_DISK_FILE", SOURCE, 3.0),
    Moment("LIVE_MIGRATION", "LIVE_MIGRATION", SOURCE, 6.5),
    Moment("SWITCHOVER", "LIVE_MIGRATION", SOURCE, 0.8),
    Moment("EXTRACT_CONFIGURE_FILE", "EXTRACT_CONFIGURE_FILE", DESTINATION, 0.15),
    Moment("DEFINE_VIRTUAL_MACHINE", "DEFINE_VIRTUAL_MACHINE", DESTINATION, 0.2),
    Moment("FINISH_DESTINATION", "FINISH", DESTINATION, 0.2),
    Moment("FINISH_SOURCE", "FINISH", SOURCE, 0.3),
    Moment("ROLL_BACK", "ROLL_BACK", SOURCE, 1.0),
)
# SWITCHOVER begins when the guest stands still; ROLL_BACK when the admin has cancelled.
MOMENTS = MappingProxyType({moment.name: moment for moment in _MOMENTS})
_EVERY = frozenset(MOMENTS)
# While there is an image at the destination, and a QEMU there.
_WITH_IMAGE = frozenset({
    "PREPARE_DESTINATION", "COPY_DISK_FILE", "LIVE_MIGRATION", "SWITCHOVER", "EXTRACT_CONFIGURE_FILE",
    "DEFINE_VIRTUAL_MACHINE", "FINISH_DESTINATION", "FINISH_SOURCE"})
_WITH_QEMU = frozenset({
    "LIVE_MIGRATION", "SWITCHOVER", "EXTRACT_CONFIGURE_FILE", "DEFINE_VIRTUAL_MACHINE", "FINISH_DESTINATION",
    "FINISH_SOURCE"})
_WITH_SSH = frozenset({"CHECK_LINK", "MEASURE_LINK", "COPY_DISK_FILE", "LIVE_MIGRATION", "SWITCHOVER"})


def _nothing(_ground: Ground) -> None:
    """Nothing to heal."""


@dataclass(frozen=True)
class Fault:
    """What breaks, how it is healed, and when: after `seconds`, at once after the command (infinity), or never."""

    name: str
    inject: Callable[[Ground], None]
    heal: Callable[[Ground], None] = _nothing
    seconds: float = 0.0
    moments: frozenset[str] = _EVERY
    small_disk: bool = False
    """Whether the destination's images are to be on a file system of their own."""
    fake_clock: bool = False
    """Whether the agents are to see a clock that can be set."""
    ends: str = ""
    """The host whose VMs this ends."""
    breaks_disk: bool = False
    """Whether a guest that runs at the destination sees its writes fail."""
    long: bool = False
    """Whether a run takes minutes."""


# The network.


def _between_nodes(ground: Ground) -> None:
    rules = _DROP.format(table=RULES, incoming=f"ip saddr {ground.source.address}",
                         outgoing=f"ip daddr {ground.source.address}")
    ground.destination.run(["nft", "-f", "-"], input=rules)


def _free(*hosts: str) -> Callable[[Ground], None]:
    """Takes the rules of a fault away."""
    def heal(ground: Ground) -> None:
        for name in hosts:
            ground.lab.host(name).run(["nft", "delete", "table", "inet", RULES], check=False)
    return heal


def _lossy(name: str) -> Callable[[Ground], None]:
    """Drops three of ten packets that a host sends, and of those that it gets."""
    def inject(ground: Ground) -> None:
        chance = "numgen random mod 100 < 30"
        rules = _DROP.format(table=RULES, incoming=f'iif != "lo" {chance}', outgoing=f'oif != "lo" {chance}')
        ground.lab.host(name).run(["nft", "-f", "-"], input=rules)
    return inject


def _cable(name: str, *, up: bool) -> Callable[[Ground], None]:
    """Pulls the cable of a host, or plugs it in."""
    return lambda ground: ground.lab.host(name).link(up=up)


# Processes.


def _kill_controller(ground: Ground) -> None:
    if ground.controller is not None:
        ground.controller.kill()


def _is_tunnel(words: str) -> bool:
    return words.partition(" ")[0].endswith("ssh") and "vmmigration-" in words


def _kill_tunnel(ground: Ground) -> None:
    ground.kill_processes(ground.source, "ssh", _is_tunnel)


def _kill_sshd_children(ground: Ground) -> None:
    """The other end of the tunnel."""
    ground.kill_processes(
        ground.destination, "sshd", lambda words: words.startswith("sshd: ") and "[listener]" not in words)


def _signal_qemu(number: int) -> Callable[[Ground], None]:
    def inject(ground: Ground) -> None:
        ground.kill_processes(
            ground.destination, "QEMU", lambda words: "qemu-system" in words and f"guest={ground.guest}," in words,
            number)
    return inject


def _signal_libvirtd(number: int) -> Callable[[Ground], None]:
    return lambda ground: ground.signal_libvirtd(ground.destination, number)


def _stop_agent(name: str) -> Callable[[Ground], None]:
    return lambda ground: os.kill(ground.agent_pid(ground.lab.host(name)), signal.SIGSTOP)


def _continue_agent(name: str) -> Callable[[Ground], None]:
    # Its launcher has stopped with it, and passes this on.
    return lambda ground: ground.agents[name].process.send_signal(signal.SIGCONT)


# Clocks.


def _turn_clock(name: str) -> Callable[[Ground], None]:
    return lambda ground: ground.set_clock(ground.lab.host(name), ground.rng.choice((TWO_HOURS, -TWO_HOURS)))


def _turn_back(name: str) -> Callable[[Ground], None]:
    return lambda ground: ground.set_clock(ground.lab.host(name), 0)


# Whole hosts.


def _reboot(name: str) -> Callable[[Ground], None]:
    def inject(ground: Ground) -> None:
        node: Host = ground.lab.host(name)
        ground.power_off(node)
        ground.later(ground.rng.uniform(4.0, 25.0), f"{name} comes up", lambda: ground.boot(node))
    return inject


def _kill_agent(name: str) -> Callable[[Ground], None]:
    return lambda ground: ground.kill_agent(ground.lab.host(name))


def _kill_libvirtd(name: str) -> Callable[[Ground], None]:
    return lambda ground: ground.kill_libvirtd(ground.lab.host(name))


def _down(name: str, host: str, seconds: float, *, long: bool = False) -> Fault:
    return Fault(name, _cable(host, up=False), _cable(host, up=True), seconds, long=long)


_FAULTS = (
    *(Fault(f"link-{seconds}", _between_nodes, _free(DESTINATION), seconds, long=seconds > 30)
      for seconds in (5, 20, 70)),
    Fault("link-forever", _between_nodes, _free(DESTINATION), math.inf, long=True),
    _down("cable-destination-5", DESTINATION, 5),
    _down("cable-destination-20", DESTINATION, 20),
    _down("cable-destination-70", DESTINATION, 70, long=True),
    _down("cable-destination-forever", DESTINATION, math.inf, long=True),
    _down("cable-source-20", SOURCE, 20),
    _down("cable-source-70", SOURCE, 70, long=True),
    _down("management-5", "boss", 5),
    _down("management-20", "boss", 20),
    _down("management-70", "boss", 70, long=True),
    _down("management-forever", "boss", math.inf, long=True),
    Fault("loss-destination", _lossy(DESTINATION), _free(DESTINATION), 40.0),
    Fault("loss-source", _lossy(SOURCE), _free(SOURCE), 40.0),
    Fault("loss-management", _lossy("boss"), _free("boss"), 40.0),
    Fault("kill-controller", _kill_controller),
    Fault("kill-source-agent", _kill_agent(SOURCE)),
    Fault("kill-destination-agent", _kill_agent(DESTINATION)),
    Fault("kill-tunnel", _kill_tunnel, moments=_WITH_SSH),
    Fault("kill-destination-sshd", _kill_sshd_children, moments=_WITH_SSH),
    Fault("kill-source-libvirtd", _kill_libvirtd(SOURCE)),
    Fault("kill-destination-libvirtd", _kill_libvirtd(DESTINATION)),
    Fault("kill-destination-qemu", _signal_qemu(signal.SIGKILL), moments=_WITH_QEMU, ends=DESTINATION),
    Fault("disk-full", Ground.fill_disk, Ground.empty_disk, math.inf, _WITH_IMAGE, small_disk=True, breaks_disk=True),
    Fault("read-only", Ground.break_disk, Ground.mend_disk, math.inf, _WITH_IMAGE, small_disk=True, breaks_disk=True),
    Fault("stop-source-agent", _stop_agent(SOURCE), _continue_agent(SOURCE), 60.0, long=True),
    Fault("stop-destination-agent", _stop_agent(DESTINATION), _continue_agent(DESTINATION), 60.0, long=True),
    # They hang, and do not end: nobody is told by a connection that closes.
    Fault("stop-destination-libvirtd", _signal_libvirtd(signal.SIGSTOP), _signal_libvirtd(signal.SIGCONT), 60.0,
          long=True),
    Fault("stop-destination-qemu", _signal_qemu(signal.SIGSTOP), _signal_qemu(signal.SIGCONT), 60.0,
          frozenset({"LIVE_MIGRATION", "SWITCHOVER"}), long=True),
    Fault("clock-source", _turn_clock(SOURCE), _turn_back(SOURCE), math.inf, fake_clock=True),
    Fault("clock-destination", _turn_clock(DESTINATION), _turn_back(DESTINATION), math.inf, fake_clock=True),
    Fault("reboot-source", _reboot(SOURCE), ends=SOURCE),
    Fault("reboot-destination", _reboot(DESTINATION), ends=DESTINATION),
)
FAULTS = MappingProxyType({fault.name: fault for fault in _FAULTS})
