"""One host of the lab as a test uses it: runs commands in it, finds its files, pulls its cable, starts its daemons."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Union

from .hostfiles import PRIVATE_DIRECTORIES, TMPFS_DIRECTORIES, HostIdentity
from .state import CHECKOUT, MARKER, LabError, ProcessIdentity, link_name, state_directory

LAUNCHER = Path(__file__).with_name("namespaces.py")
#: What a login would give; nothing else of the caller's environment reaches a host.
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
#: A daemon that does not come up in this many seconds has failed. QEMU's first probe takes the most.
DAEMON_TIMEOUT = 60.0
INTERFACE = "eth0"
#: States in /proc/net/tcp and /proc/net/udp.
TCP_LISTENING = "0A"
UDP_BOUND = "07"

FIREWALL = """\
flush ruleset
table inet lab {
    chain incoming {
        type filter hook input priority 0; policy drop;
        iif "lo" accept
%s
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport 22 accept
        udp dport { 8001, 8002 } accept
    }
}
"""
STATEFUL = "        ct state established,related accept"
# Where the kernel tracks no connections: replies are told by the port that they come from.
STATELESS = "        tcp sport 22 accept\n        udp sport { 8001, 8002 } accept"

Stream = Union[int, IO[Any], None]


class HostCommandError(LabError):
    """A command in a host failed; the text holds what it wrote to stderr."""

    def __init__(self, host: str, result: subprocess.CompletedProcess[str]) -> None:
        """Keep the result, whose `returncode`, `stdout` and `stderr` a test may want to look at."""
        self.result = result
        command = " ".join(str(part) for part in result.args)
        said = (result.stderr or result.stdout or "").strip()
        super().__init__(f"{host}: `{command}` ended with {result.returncode}: {said}")


@dataclass(frozen=True)
class Host:
    """One host. It need not be up for the object to exist."""

    identity: HostIdentity

    @property
    def name(self) -> str:
        """The short name: boss, node1 or node2."""
        return self.identity.name

    @property
    def full_name(self) -> str:
        """The host's own host name: <prefix>-<name>."""
        return self.identity.full_name

    @property
    def address(self) -> str:
        """The host's IPv4 address in the lab's network."""
        return self.identity.address

    @property
    def is_node(self) -> bool:
        """Whether the host runs VMs (libvirtd, sshd)."""
        return self.identity.is_node

    @property
    def directory(self) -> Path:
        """Where the host's own files lie outside."""
        return state_directory(self.identity.prefix) / self.name

    @property
    def init(self) -> ProcessIdentity:
        """The host's PID 1, as seen from outside; raises LabError if the host is not up."""
        identity = ProcessIdentity.load(self.directory / "init.pid")
        if identity is None or not identity.alive():
            raise LabError(f"{self.full_name} is not up")
        return identity

    def path(self, path: str | os.PathLike[str]) -> Path:
        """Return where an absolute path of the host lies as seen from outside.

        Symbolic links in it are not followed, but for /var/run. Raises LabError for a path on memory (/run) of a
        host that is not up.
        """
        inside = os.path.normpath(os.fspath(path))
        if not inside.startswith("/"):
            raise LabError(f"{inside!r} is not an absolute path")
        if inside == str(CHECKOUT) or inside.startswith(f"{CHECKOUT}/"):
            return Path(inside)
        for link, target in (("/var/run", "/run"), ("/var/lock", "/run/lock")):
            if inside == link or inside.startswith(link + "/"):
                inside = target + inside[len(link) :]
        for directory in TMPFS_DIRECTORIES:
            if inside == directory or inside.startswith(directory + "/"):
                return Path(f"/proc/{self.init.pid}/root{inside}")
        for directory in PRIVATE_DIRECTORIES:
            if inside == directory or inside.startswith(directory + "/"):
                return self.directory / "fs" / inside.lstrip("/")
        return Path(inside)

    def launch(
        self, argv: Sequence[str | os.PathLike[str]], user: str, env: Mapping[str, str], cwd: str | os.PathLike[str]
    ) -> tuple[list[str], dict[str, str]]:
        """Return command line and environment of the launcher that runs a command in the host (see popen())."""
        environment = {**BASE_ENVIRONMENT, MARKER: self.identity.prefix, **env}
        launcher = [sys.executable, "-I", "-S", str(LAUNCHER), "enter", str(self.init.pid), user, os.fspath(cwd)]
        return [*launcher, *(os.fspath(part) for part in argv)], environment

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        start_new_session: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a command in all namespaces of the host, as root or another of its users.

        The Popen is that of a launcher outside, which behaves as the command itself would: send_signal(),
        terminate() and kill() reach the command, and `returncode` is the command's. The command starts with a
        login's environment plus `env`; it ends when the launcher does. real_pid() tells the command's own number.
        """
        command, environment = self.launch(argv, user or "root", env or {}, cwd)
        return subprocess.Popen(
            command,
            env=environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=start_new_session,
        )

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        user: str | None = None,
        check: bool = True,
        timeout: float = 60.0,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host to its end, with stdout and stderr captured.

        Raises HostCommandError if it fails and `check` is set, subprocess.TimeoutExpired after `timeout` seconds,
        having killed the command then.
        """
        pipe = subprocess.PIPE
        stdin = subprocess.DEVNULL if input is None else pipe
        with self.popen(argv, user=user, env=env, cwd=cwd, stdin=stdin, stdout=pipe, stderr=pipe) as process:
            try:
                stdout, stderr = process.communicate(input, timeout=timeout)
            except BaseException:
                process.kill()
                raise
        arguments = [os.fspath(part) for part in argv]
        result = subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)
        if check and result.returncode != 0:
            raise HostCommandError(self.full_name, result)
        return result

    def real_pid(self, process: subprocess.Popen[str], timeout: float = 5.0) -> int:
        """Return the number, outside, of the command that popen() started; raises LabError if it has ended."""
        deadline = time.monotonic() + timeout
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                numbers = children.read_text().split()
                if numbers:
                    return int(numbers[0])
            time.sleep(0.005)
        raise LabError(f"{self.full_name}: the command of launcher {process.pid} has ended")

    def inner_pids(self) -> Iterator[tuple[int, str]]:
        """Yield number and command line of each process in the host, numbered as the host numbers them."""
        for entry in self._processes_directory().iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    yield int(entry.name), text.strip()

    def _processes_directory(self) -> Path:
        """Return the host's own /proc as seen from outside."""
        return Path(f"/proc/{self.init.pid}/root/proc")

    def listens_on_udp(self, port: int) -> bool:
        """Say whether something in the host receives datagrams on that port, from anywhere."""
        tables = [self._processes_directory() / "1/net" / name for name in ("udp", "udp6")]
        return any(_has_socket(table, port, UDP_BOUND) for table in tables)

    # --- network -----------------------------------------------------------------------------------------------

    def connect(self, switch_pid: int) -> None:
        """Lay the cable to the lab's switch and give the host its address."""
        port = link_name(self.identity.prefix, self.name)
        commands = [
            f"link add {port} type veth peer name {INTERFACE} netns {self.init.pid}",
            f"link set {port} master switch",
            f"link set {port} up",
        ]
        _network(switch_pid, commands)
        own = [
            "link set lo up",
            f"address add {self.address}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
        ]
        _network(self.init.pid, own)

    def link(self, up: bool) -> None:
        """Pull the host's cable at the switch, or plug it in again."""
        port = link_name(self.identity.prefix, self.name)
        _network(self._switch_pid(), [f"link set {port} {'up' if up else 'down'}"])

    def rate(self, mbit: float | None) -> None:
        """Limit what the host sends, and what is sent to it, to `mbit` megabits per second; None lifts it."""
        port = link_name(self.identity.prefix, self.name)
        for pid, interface in ((self.init.pid, INTERFACE), (self._switch_pid(), port)):
            if mbit is None:
                _network(pid, [f"qdisc del dev {interface} root"], program="tc", check=False)
                continue
            # A burst of 10 ms, but not less than a few full packets: offloaded ones are 64 KiB.
            burst = max(int(mbit * 1e6 / 8 / 100), 256 * 1024)
            limit = f"rate {mbit}mbit burst {burst} latency 50ms"
            _network(pid, [f"qdisc replace dev {interface} root tbf {limit}"], program="tc")

    def _switch_pid(self) -> int:
        """Return the process that keeps the namespace of the lab's switch."""
        identity = ProcessIdentity.load(state_directory(self.identity.prefix) / "switch" / "init.pid")
        if identity is None or not identity.alive():
            raise LabError(f"the switch of lab {self.identity.prefix!r} is not up")
        return identity.pid

    def firewall(self, on: bool = True) -> None:
        """Let nothing in but replies, SSH, the two UDP ports of VMMigration and ICMP; off lets all in again."""
        if not on:
            self.run(["nft", "flush", "ruleset"])
            return
        result = self.run(["nft", "-f", "-"], input=FIREWALL % STATEFUL, check=False)
        if result.returncode != 0:
            self.run(["nft", "-f", "-"], input=FIREWALL % STATELESS)

    # --- daemons -----------------------------------------------------------------------------------------------

    def start_sshd(self) -> None:
        """Start sshd and wait until it listens."""
        self.path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.run(["/usr/sbin/sshd", "-E", "/var/log/sshd.log"])
        table = self._processes_directory() / "1/net/tcp"
        self.wait_for("sshd", lambda: _has_socket(table, 22, TCP_LISTENING))

    def start_libvirt(self) -> None:
        """Start virtlogd and libvirtd and wait until libvirt answers; raises LabError with libvirtd's log."""
        if not self.path("/run/virtlogd.pid").exists():
            self.run(["virtlogd", "--daemon"])
        self.run(["libvirtd", "--daemon"], timeout=DAEMON_TIMEOUT)
        # `version` waits for the QEMU driver, and with it for the probe of what QEMU can do.
        result = self.run(["virsh", "-c", "qemu:///system", "version"], check=False, timeout=DAEMON_TIMEOUT)
        if result.returncode != 0:
            log = self.path("/var/log/libvirt/libvirtd.log")
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"
            raise LabError(f"{self.full_name}: libvirt does not answer: {result.stderr.strip()}\n{tail}")

    def stop_libvirt(self, number: int = 15) -> None:
        """End libvirtd with a signal (9 as a crash would) and wait until it is gone; VMs stay as they are."""
        pid_file = self.path("/run/libvirtd.pid")
        pid = pid_file.read_text().strip()
        self.run(["kill", f"-{number}", pid])
        self.wait_for("the end of libvirtd", lambda: not (self._processes_directory() / pid).exists())

    def wait_for(self, what: str, condition: Callable[[], bool], timeout: float = DAEMON_TIMEOUT) -> None:
        """Wait until a condition holds; raises LabError naming `what` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"{self.full_name}: no {what} after {timeout:.0f} s")
            time.sleep(0.02)


def make_switch(pid: int) -> None:
    """Make the bridge that joins the hosts, in the network namespace of process `pid`."""
    _network(pid, ["link set lo up", "link add switch type bridge", "link set switch up"])


def _network(pid: int, commands: Sequence[str], program: str = "ip", check: bool = True) -> None:
    """Run a batch of ip or tc commands in the network namespace of a process; raises LabError if one fails."""
    argv = ["nsenter", f"--net=/proc/{pid}/ns/net", program, "-batch", "-"]
    text = "\n".join(commands) + "\n"
    result = subprocess.run(argv, input=text, text=True, capture_output=True)
    if check and result.returncode != 0:
        raise LabError(f"{program}: {result.stderr.strip()} (of: {'; '.join(commands)})")


def _has_socket(table: Path, port: int, wanted_state: str) -> bool:
    """Say whether a table like /proc/net/tcp has a socket on that local port and in that state."""
    with contextlib.suppress(OSError):
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == wanted_state and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False
