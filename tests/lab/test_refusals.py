"""What stands in the way: one clear sentence that names host, thing and remedy, and nothing changed on either host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from . import Agent, Lab, hostfiles
from .conftest import CONTROLLER, PYTHON, Admin, MakeGuest, Run, snapshot, virsh
from .obstacles import replaced

REFUSED, NO_CONTACT, INPUT = 3, 4, 2


@contextmanager
def unchanged(lab: Lab) -> Iterator[None]:
    """Both hosts are after the `with` as they were before it."""
    before = [snapshot(node) for node in lab.nodes]
    yield
    assert [snapshot(node) for node in lab.nodes] == before


def assert_refused(run: Run, code: int, *sentences: str) -> None:
    """Exit code, the sentences, and no traceback."""
    assert run.code == code, run.text
    for sentence in sentences:
        assert sentence in run.stderr, run.text
    assert "Traceback" not in run.stderr + run.stdout


def test_a_vm_that_does_not_exist(admin: Admin) -> None:
    with unchanged(admin.lab):
        run = admin.migrate("nobody")
    assert_refused(run, REFUSED, f"There is no VM nobody on {admin.lab.host('node1').address}", "virsh list --all")
    assert run.stdout == "Nothing was changed on either host.\n"


def test_all_obstacles_of_both_hosts_are_named_at_once(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("many")
    node1, node2 = admin.lab.nodes
    node2.path(guest.disk).write_text("somebody's")
    guest.on(node1, "snapshot-create-as", "--disk-only", "--no-metadata", "--atomic", "--diskspec", "vda")
    with unchanged(admin.lab):
        run = admin.migrate("many", "/var/lib/libvirt/images/other.qcow2", "/etc/cron.d/many")
    assert_refused(
        run, REFUSED, "/var/lib/libvirt/images/other.qcow2 is not a disk of VM many",
        f"{guest.disk} exists already on {node2.address}",
        "Conf file path /etc/cron.d/many cannot be used on", "its name must end in .xml",
        "its directory is one of the system's own", "BLOCKED")


def test_an_existing_file_at_the_destination_is_an_obstacle_not_a_target(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = make_guest("taken")
    node2 = admin.lab.host("node2")
    node2.path(guest.disk).write_text("somebody's")
    with unchanged(admin.lab):
        run = admin.migrate("taken")
    assert_refused(run, REFUSED, f"{guest.disk} exists already on {node2.address}", "Nothing is overwritten")
    assert node2.path(guest.disk).read_text() == "somebody's"


def test_a_name_that_is_taken_at_the_destination(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("twin")
    node1, node2 = admin.lab.nodes
    document = virsh(node1, "dumpxml", guest.name)
    other = re.sub(r"<uuid>.*</uuid>", "", document)
    node2.run(["virsh", "-q", "-c", "qemu:///system", "define", "/dev/stdin"], input=other)
    with unchanged(admin.lab):
        run = admin.migrate("twin")
    assert_refused(run, REFUSED, f"{node2.address} has a VM with the same name already: twin (shut off)")


def test_an_agent_that_does_not_answer(admin: Admin, agents: dict[str, Agent]) -> None:
    node2 = admin.lab.host("node2")
    assert agents["node2"].stop() == 0
    try:
        with unchanged(admin.lab):
            run = admin.migrate("any")
    finally:
        agents["node2"] = admin.lab.start_agent(node2)
    assert_refused(run, NO_CONTACT, f"No agent answered at {node2.address} UDP port 8002", "AgentKey.txt")


def test_a_wrong_key(admin: Admin) -> None:
    with replaced(admin.lab.host("boss").path("/etc/vmmigration/ControllerKey.txt"), "ab" * 32 + "\n"), \
            unchanged(admin.lab):
        run = admin.migrate("any")
    assert_refused(run, NO_CONTACT, "No agent answered at", "vmmigration.py agent-key")


def test_a_controller_that_is_not_on_the_agents_list(admin: Admin, agents: dict[str, Agent]) -> None:
    node1 = admin.lab.host("node1")
    agents["node1"].stop()
    with replaced(node1.path("/etc/vmmigration/ControllerIPAddr.txt"), "10.255.0.1\n"):
        agents["node1"] = admin.lab.start_agent(node1)
        run = admin.migrate("any")
        agents["node1"].stop()
    agents["node1"] = admin.lab.start_agent(node1)
    assert_refused(run, NO_CONTACT, f"No agent answered at {node1.address}", "ControllerIPAddr.txt")


def test_a_destination_that_the_source_agent_does_not_allow(
    admin: Admin, agents: dict[str, Agent], make_guest: MakeGuest,
) -> None:
    make_guest("allow")
    node1, node2 = admin.lab.nodes
    agents["node1"].stop()
    with replaced(node1.path("/etc/vmmigration/AgentIPAddr.txt"), "10.255.0.1\n"):
        agents["node1"] = admin.lab.start_agent(node1)
        with unchanged(admin.lab):
            run = admin.migrate("allow")
        agents["node1"].stop()
    agents["node1"] = admin.lab.start_agent(node1)
    assert_refused(run, REFUSED, f"{node1.address} may not migrate to {node2.address}")


@pytest.mark.parametrize(("file", "sentence", "remedy"), [
    ("/root/.ssh/known_hosts", "does not know the SSH host key of", "compare the fingerprint"),
    ("/home/kvm/.ssh/authorized_keys", "does not let root of", "ssh-copy-id kvm@"),
])
def test_ssh_that_would_ask_something(
    admin: Admin, make_guest: MakeGuest, file: str, sentence: str, remedy: str,
) -> None:
    make_guest("ssh")
    node1, node2 = admin.lab.nodes
    host = node1 if "known_hosts" in file else node2
    with replaced(host.path(file), ""), unchanged(admin.lab):
        run = admin.migrate("ssh")
    assert_refused(run, REFUSED, sentence, remedy, node2.address)


def test_a_user_that_is_not_in_the_group_libvirt(admin: Admin, make_guest: MakeGuest) -> None:
    make_guest("group")
    node2 = admin.lab.host("node2")
    groups = node2.path("/etc/group").read_text()
    without = "\n".join(
        line.replace("kvm", "").rstrip(",") if line.startswith("libvirt:") else line for line in groups.splitlines())
    with replaced(node2.path("/etc/group"), without + "\n"), unchanged(admin.lab):
        run = admin.migrate("group")
    assert_refused(run, REFUSED, f"kvm on {node2.address} may not use libvirt", "adduser kvm libvirt")


def test_a_user_that_does_not_exist(admin: Admin, make_guest: MakeGuest) -> None:
    make_guest("user")
    source, destination = (node.address for node in admin.lab.nodes)
    with unchanged(admin.lab):
        run = admin.run([PYTHON, CONTROLLER, source, destination, "nobody-here", "user"])
    assert_refused(run, REFUSED, f"{destination} has no user nobody-here")


def test_an_unlisted_host(admin: Admin) -> None:
    run = admin.run([PYTHON, CONTROLLER, "10.255.0.1", admin.lab.host("node2").address, "kvm", "any"])
    assert_refused(run, INPUT, "10.255.0.1 is not in /etc/vmmigration/AgentIPAddr.txt")


def test_an_agent_with_a_readable_key_or_without_one_does_not_start(lab: Lab) -> None:
    node = lab.host("node1")
    directory = "/tmp/other-config"  # noqa: S108 - a private /tmp of the lab's host
    node.path(directory).mkdir(exist_ok=True)
    for name in ("ControllerIPAddr.txt", "AgentIPAddr.txt"):
        hostfiles.write_text(node.path(f"{directory}/{name}"), "10.0.0.1\n")
    command = [PYTHON, CONTROLLER.replace("vmmigration.py", "vmmigration-agent.py"), "--config-dir", directory]
    missing = node.run([*command, "--listen", "127.0.0.1:9002"], check=False)
    assert missing.returncode == 2
    assert "vmmigration.py new-key" in missing.stderr
    assert "vmmigration.py agent-key IP" in missing.stderr
    hostfiles.write_text(node.path(f"{directory}/AgentKey.txt"), "ab" * 32 + "\n", 0o644)
    readable = node.run([*command, "--listen", "127.0.0.1:9002"], check=False)
    assert readable.returncode == 2
    assert f"chmod 600 {directory}/AgentKey.txt" in readable.stderr


def test_the_agent_answers_nobody_without_the_key(admin: Admin) -> None:
    node2 = admin.lab.host("node2")
    program = (
        "import socket, sys\n"
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.settimeout(1)\n"
        "for data in (b'', b'x', b'VMM1 - -\\n{}', b'VMM1 00000000 ' + b'0' * 64 + b'\\n{}', b'\\xff' * 9000):\n"
        "    udp.sendto(data, (sys.argv[1], 8002))\n"
        "try:\n"
        "    print('answered', udp.recvfrom(65535))\n"
        "except TimeoutError:\n"
        "    print('silence')\n")
    said = admin.lab.host("boss").run([PYTHON, "-c", program, node2.address])
    assert said.stdout == "silence\n"
    assert admin.migrate("nobody").code == REFUSED
