"""What docs/operations.md and docs/protocol.md tell an admin to write down works on real hosts: the restricted SSH
key, the packet filter, the program that watches, the smallest controller.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from . import Agent, Host, Lab
from .conftest import CONTROLLER, PYTHON, Admin, MakeGuest
from .hostfiles import QEMU_USER
from .state import CHECKOUT

OPERATIONS = (CHECKOUT / "docs" / "operations.md").read_text(encoding="utf-8")
PROTOCOL = (CHECKOUT / "docs" / "protocol.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```\w*\n(.*?)^```$", OPERATIONS, re.MULTILINE | re.DOTALL)
RESTRICTED_LINES = [block for block in BLOCKS if block.startswith("restrict,")]
AUTHORIZED_KEYS = "/home/kvm/.ssh/authorized_keys"
NO_SFTP = "the stream takes small files too"
# A file that goes by SFTP where that is to be had.
MEDIUM = "/var/lib/libvirt/images/small.iso"
DRIVE = f"""
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='{MEDIUM}'/><target dev='hdc' bus='ide'/><readonly/>
    </disk>
"""


def block(beginning: str) -> str:
    """The block of docs/operations.md that begins like this."""
    return next(each for each in BLOCKS if each.startswith(beginning))


def in_the_lab(text: str, lab: Lab) -> str:
    """The same with the lab's addresses in the place of the walk-through's."""
    node1, node2 = lab.nodes
    for theirs, ours in (("192.168.111.130", node1), ("192.168.111.132", node2), ("192.168.111.1", lab.host("boss"))):
        text = re.sub(rf"{re.escape(theirs)}(?!\d)", ours.address, text)
    return text


def ssh(lab: Lab, *words: str, last: tuple[str, ...] = ()) -> tuple[int, str]:
    """What comes of an ssh from node1 to kvm on node2."""
    node1, node2 = lab.nodes
    options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", *words]
    done = node1.run(["ssh", *options, f"kvm@{node2.address}", *last], check=False)
    return done.returncode, done.stdout


# Opens a tunnel as an agent does, and keeps it open until its input ends.
OPEN_A_TUNNEL = f"""
import sys
sys.path.insert(0, {str(CHECKOUT)!r})
from constant import LibvirtDaemon, Transport
from host.job_files import JobSockets
from host.kept_tunnels import KeptTunnels
from host.ssh import Login
sockets = JobSockets.named("5" * 32, "VM1")
forwards = sockets.forwards(LibvirtDaemon.LIBVIRTD, Transport.SSH)
with KeptTunnels().of(Login("node1", "kvm", sys.argv[1]), sockets, forwards, [{QEMU_USER!r}], keep=False):
    print(sockets.directory, flush=True)
    sys.stdin.read()
"""
# As who connects to a socket: prints "open" or what the kernel says.
CONNECT = """
import os, socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    print("open")
except OSError as error:
    print(error.strerror)
"""
# pidfd_getfd(2), which Python does not have; the number is the same on every machine.
_PIDFD_GETFD = 438


@contextmanager
def open_tunnel(lab: Lab) -> Iterator[Path]:
    """A tunnel from node1 to node2; the directory of its sockets."""
    node1, node2 = lab.nodes
    pipe = subprocess.PIPE
    with node1.popen([PYTHON, "-c", OPEN_A_TUNNEL, node2.address], stdin=pipe, stdout=pipe) as program:
        try:
            assert program.stdout is not None
            directory = program.stdout.readline().strip()
            assert directory
            yield node1.path(directory)
        finally:
            assert program.stdin is not None
            program.stdin.close()


def sshd_sends_at_once(host: Host) -> bool:
    """Whether the sshd of user kvm has TCP_NODELAY on: it does not wait until what it sent before is acknowledged."""
    inside = os.readlink(f"/proc/{host.init.pid}/ns/pid")
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if words.startswith(b"sshd: kvm") and b"[priv]" not in words and os.readlink(entry / "ns/pid") == inside:
                return any(map(_sends_at_once, _sockets(int(entry.name))))
    return False


def _sockets(pid: int) -> Iterator[socket.socket]:
    """A process's sockets, as copies of their descriptors."""
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(entry).startswith("socket:"):
                copied = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, int(entry.name), 0)
                assert copied >= 0, os.strerror(ctypes.get_errno())
                with socket.socket(fileno=copied) as found:
                    yield found
    finally:
        os.close(process)


def _sends_at_once(found: socket.socket) -> bool:
    return found.family is socket.AF_INET and bool(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@contextmanager
def rewritten(host: Host, path: str, text: str) -> Iterator[None]:
    """One of sshd's files with another text for the length of a `with`."""
    file = host.path(path)
    before = file.read_text()

    def put(content: str) -> None:
        # In place: the file keeps its owner and mode.
        file.write_text(content)
        host.run(["kill", host.path("/run/sshd.pid").read_text().strip()])
        host.wait_for("the end of sshd", lambda: not host.path("/run/sshd.pid").exists())
        host.start_sshd()

    try:
        put(text)
        yield
    finally:
        put(before)


@contextmanager
def filtered(lab: Lab) -> Iterator[None]:
    """The packet filter of the document on the nodes, and on the management host only its line for answers."""
    boss = lab.host("boss")
    if boss.run(["nft", "-f", "-"], input="table inet t { chain c { ct state new; }; }", check=False).returncode:
        reason = "the kernel here tracks no connections"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    rules = in_the_lab(block("table inet vmmigration"), lab)
    kept = ("type filter hook input", "ct state")
    lines = "\n".join(line for line in rules.splitlines() if line.strip().startswith(kept))
    answers = f"table inet t {{\nchain i {{\n{lines}\n}}\n}}\n"
    try:
        for host in lab.hosts.values():
            host.firewall(on=False)
            host.run(["nft", "-f", "-"], input=rules if host.is_node else answers)
        yield
    finally:
        for host in lab.hosts.values():
            host.firewall(on=False)
            host.firewall()


@pytest.mark.parametrize("line", RESTRICTED_LINES, ids=["no-command", "sftp"])
def test_a_vm_moves_by_a_restricted_key_through_the_packet_filter(
    admin: Admin, agents: dict[str, Agent], make_guest: MakeGuest, line: str,
) -> None:
    lab = admin.lab
    node2 = lab.host("node2")
    medium = bytes(range(256)) * 4096
    guest = make_guest(
        "restricted", extra_devices=DRIVE, prepare=lambda host: host.path(MEDIUM).write_bytes(medium))
    key = next(each for each in node2.path(AUTHORIZED_KEYS).read_text().splitlines() if "node1" in each)
    options = in_the_lab(line, lab).partition(" ssh-ed25519 ")[0]
    sshd = node2.path("/etc/ssh/sshd_config").read_text() + block("Match User kvm")
    logged = len(agents["node1"].log.read_text())
    with rewritten(node2, "/etc/ssh/sshd_config", sshd), rewritten(node2, AUTHORIZED_KEYS, f"{options} {key}\n"), \
            filtered(lab):
        assert ssh(lab, last=("echo", "a shell"))[0] not in (0, 255)
        assert "a shell" not in ssh(lab, last=("echo", "a shell"))[1]
        assert ssh(lab, "-N", "-o", "ExitOnForwardFailure=yes", "-R", "/home/kvm/back:/home/kvm/there")[0] == 255
        checked = admin.command("check", "kvm")
        assert checked.code == 0, checked.text
        run = admin.migrate(guest.name)
    assert run.code == 0, run.text
    guest.witness.wait_for_ticks(20)
    report = guest.witness.report()
    assert (report.sound, report.host, guest.state(node2)) == (True, "node2", "running"), report.to_text()
    assert node2.path(MEDIUM).read_bytes() == medium
    assert (NO_SFTP in agents["node1"].log.read_text()[logged:]) == ("/bin/false" in line)
    for node in lab.nodes:
        node.path(MEDIUM).unlink()


@pytest.mark.parametrize("line", [*RESTRICTED_LINES, ""], ids=["no-command", "sftp", "unrestricted"])
def test_sshd_answers_through_a_tunnel_without_waiting_for_acknowledgements(lab: Lab, line: str) -> None:
    node2 = lab.host("node2")
    key = next(each for each in node2.path(AUTHORIZED_KEYS).read_text().splitlines() if "node1" in each)
    options = in_the_lab(line, lab).partition("ssh-ed25519 ")[0]
    with rewritten(node2, AUTHORIZED_KEYS, f"{options}{key}\n"), open_tunnel(lab) as directory:
        node2.wait_for("the empty session", lambda: sshd_sends_at_once(node2))
    assert not directory.exists()


def test_qemus_user_gets_at_the_sockets_of_memory_and_disks_and_at_no_other(lab: Lab) -> None:
    node1 = lab.host("node1")
    said = {}
    with open_tunnel(lab) as directory:
        for path in directory.iterdir():
            inside = f"/run/libvirt/qemu/{directory.name}/{path.name}"
            said[path.name] = node1.run([PYTHON, "-c", CONNECT, inside], user=QEMU_USER).stdout.strip()
    for_qemu = {name: "open" for name in ("m.tunnelmigrate.dest.VM1", "d.tunnelmigrate.dest.VM1")}
    assert said == {**dict.fromkeys(("libvirt", "files", "probe", "control"), "Permission denied"), **for_qemu}


def test_a_key_for_another_address_is_refused_and_the_check_says_so(admin: Admin) -> None:
    node2 = admin.lab.host("node2")
    key = next(each for each in node2.path(AUTHORIZED_KEYS).read_text().splitlines() if "node1" in each)
    options = RESTRICTED_LINES[0].partition(" ssh-ed25519 ")[0]
    with rewritten(node2, AUTHORIZED_KEYS, f"{options} {key}\n"):
        checked = admin.command("check", "kvm")
    assert checked.code == 3, checked.text
    assert "with a key" in checked.stderr


@pytest.mark.parametrize("option", ["restrict", 'restrict,port-forwarding,permitopen="localhost:22"'])
def test_options_that_close_the_sockets_are_found_by_the_check(admin: Admin, option: str) -> None:
    node2 = admin.lab.host("node2")
    key = next(each for each in node2.path(AUTHORIZED_KEYS).read_text().splitlines() if "node1" in each)
    with rewritten(node2, AUTHORIZED_KEYS, f"{option} {key}\n"):
        checked = admin.command("check", "kvm")
    assert checked.code == 3, checked.text
    assert "does not serve kvm over SSH" in checked.stderr


def test_the_program_that_watches_is_silent_until_a_host_is(admin: Admin, agents: dict[str, Agent]) -> None:
    boss, node2 = admin.lab.host("boss"), admin.lab.host("node2")
    program = block("#!/usr/bin/python3").replace("/opt/vmmigration/vmmigration.py", CONTROLLER)
    boss.path("/home/watch").write_text(program)
    before = boss.run([PYTHON, "/home/watch"], check=False)
    # Other tests may have left a job that nobody wants any more.
    assert before.returncode == (1 if "waits for somebody" in before.stdout else 0), before.stdout + before.stderr
    agents["node2"].stop()
    try:
        silent = boss.run([PYTHON, "/home/watch"], check=False, timeout=90)
    finally:
        agents["node2"] = admin.lab.start_agent(node2)
    assert silent.returncode == 2, silent.stdout + silent.stderr
    assert f"No agent answered at {node2.address}" in silent.stdout


def test_the_smallest_controller_lists_what_the_real_one_does(admin: Admin, make_guest: MakeGuest) -> None:
    boss, node1 = admin.lab.host("boss"), admin.lab.host("node1")
    guest = make_guest("smallest")
    assert admin.migrate(guest.name).code == 0
    program = re.search(r"```python\n(.*?)```", PROTOCOL, re.DOTALL)
    assert program is not None
    boss.path("/home/smallest.py").write_text(program[1])
    told = boss.run([PYTHON, "/home/smallest.py", node1.address, "/etc/vmmigration/ControllerKey.txt"]).stdout
    greeting, *jobs = told.splitlines()
    assert greeting.startswith(f"{node1.full_name} runs version ")
    known = [job for job in admin.command("list", "--json").result()["jobs"] if node1.address in job["hosts"]]
    # Two that were begun in one second come in either order.
    assert len(jobs) == min(25, len(known))
    assert {job.split()[0] for job in jobs} <= {job["job_id"] for job in known}
    assert any(" smallest " in job and job.endswith("moved") for job in jobs)
