"""Two fresh machines with the packages, the agents as services, and a VM that moves: with what the service may do."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging import rare_work
from tests.packaging.machine import Machine, wait_until
from tests.packaging.node import AGENT
from tests.packaging.pair import BOOT, CONFIGURATION, DEVICE, IMAGE, SCRATCH, Pair, nodes


@pytest.fixture(scope="module")
def pair(root: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both with this machine's release."""
    with nodes((root, root), packages, tmp_path_factory.mktemp("devices")) as made:
        yield made


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
    assert pair.states() == ("shut off", "running")


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
