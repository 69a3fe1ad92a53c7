"""A machine that becomes a node: the packages, lists, keys and logins, as README.md tells an admin to make them."""

from __future__ import annotations

from pathlib import Path

from tests.packaging.machine import Machine

AGENT = "vmmigration-agent"
_PACKAGES = "/packages"


def install(machine: Machine, packages: Path) -> str:
    """Install both packages; returns what apt said."""
    for package in packages.glob("*.deb"):
        machine.copy(package, f"{_PACKAGES}/{package.name}")
    said = machine.run("sh", "-c", f"apt-get --quiet --yes install {_PACKAGES}/*.deb").stdout
    machine.run("rm", "-r", _PACKAGES)
    return said


def configure(boss: Machine, nodes: dict[str, Machine], boss_address: str) -> None:
    """Lists and keys for these nodes by their addresses; the management host is `boss`, which may be one of them."""
    for machine in nodes.values():
        machine.write("/etc/vmmigration/AgentIPAddr.txt", "".join(f"{address}\n" for address in nodes))
        machine.write("/etc/vmmigration/ControllerIPAddr.txt", f"{boss_address}\n")
    boss.run("vmmigration", "new-key")
    for address, machine in nodes.items():
        machine.write("/etc/vmmigration/AgentKey.txt", boss.run("vmmigration", "agent-key", address).stdout, 0o600)


def let_in(source: Machine, destination: Machine, address: str) -> None:
    """Let root of one node log in as kvm on another, at that address; makes user and key if they are not there."""
    source.run("sh", "-c", "test -e /root/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    destination.run("sh", "-c", "id kvm >/dev/null 2>&1 || adduser --disabled-password --gecos '' --ingroup users kvm")
    destination.run("adduser", "kvm", "libvirt")
    destination.run(
        "sh", "-c", "umask 077; mkdir -p /home/kvm/.ssh; cat >>/home/kvm/.ssh/authorized_keys; chown -R kvm: "
        "/home/kvm/.ssh", stdin=source.run("cat", "/root/.ssh/id_ed25519.pub").stdout)
    key = destination.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout
    source.run("sh", "-c", "cat >>/root/.ssh/known_hosts", stdin=f"{address} {key}")
