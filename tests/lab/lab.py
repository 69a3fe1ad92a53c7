"""A whole lab: three hosts at a switch, brought up side by side and taken down without a trace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import hostfiles, state
from .hostfiles import HostIdentity
from .hosts import LAUNCHER, Host, make_switch
from .state import CHECKOUT, MARKER, LabError, ProcessIdentity

CONFIGURATION = Path("/etc/vmmigration")
AGENT_LOG = "/var/log/vmmigration-agent.log"
#: Last byte of each host's address, and whether it runs VMs.
HOSTS = {"boss": (10, False), "node1": (11, True), "node2": (12, True)}
SWITCH = "switch"
START_TIMEOUT = 30.0


@dataclass(frozen=True)
class Agent:
    """An agent that runs in a host; `log` is its stderr and stdout as seen from outside."""

    process: subprocess.Popen[str]
    log: Path

    def stop(self, timeout: float = 10.0) -> int:
        """End the agent by SIGTERM and return its exit code; raises subprocess.TimeoutExpired."""
        self.process.terminate()
        return self.process.wait(timeout)


class Lab:
    """Three hosts in namespaces: `boss` (management), `node1` and `node2` (KVM)."""

    def __init__(self, prefix: str = "lab", *, qemu_user: str = hostfiles.QEMU_USER) -> None:
        """Name a lab, which need not be up. `qemu_user` (libvirt-qemu or root) is what up() lets QEMU run as."""
        self.prefix = state.check_prefix(prefix)
        self.qemu_user = qemu_user
        self.directory = state.state_directory(prefix)
        subnet = state.Subnet(prefix)
        self.hosts: Mapping[str, Host] = {
            name: Host(HostIdentity(prefix, name, subnet.address(last), is_node))
            for name, (last, is_node) in HOSTS.items()
        }

    def __enter__(self) -> Lab:
        """Return the lab: `with Lab("x") as lab: lab.up()` takes it down whatever happens."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the lab down."""
        self.down()

    @property
    def nodes(self) -> list[Host]:
        """The hosts that run VMs."""
        return [host for host in self.hosts.values() if host.is_node]

    def host(self, name: str) -> Host:
        """Return a host by its short name; raises LabError naming those that there are."""
        if name not in self.hosts:
            raise LabError(f"there is no host {name!r}: {', '.join(self.hosts)}")
        return self.hosts[name]

    # --- up ----------------------------------------------------------------------------------------------------

    def up(self, firewall: bool = False) -> None:
        """Bring all hosts up and wait until they answer; raises LabError, having taken everything down again."""
        with state.lock(f"lab/{self.prefix}"):
            if self.directory.exists():
                raise LabError(f"lab {self.prefix!r} is up already, or a part of it is left: take it down first")
            try:
                self._make_directory()
                self._make_hosts()
                self._connect()
                self._start_daemons(firewall)
            except BaseException:
                self._remove()
                raise

    def _make_directory(self) -> None:
        """Write down that there is a lab before anything else of it exists."""
        with state.lock("all"):
            self.directory.mkdir(parents=True)
            record = {"prefix": self.prefix, "checkout": str(CHECKOUT), "qemu_user": self.qemu_user}
            (self.directory / "lab.json").write_text(json.dumps(record))
            state.make_mount_points([Path(path) for path in hostfiles.PRIVATE_DIRECTORIES])

    def _make_hosts(self) -> None:
        """Write each host's files and start its PID 1, all side by side."""
        identities = [host.identity for host in self.hosts.values()]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda identity: self._make_files(identity, identities), identities))
        for host in self.nodes:
            for other in self.nodes:
                if other is not host:
                    hostfiles.trust(host.directory / "fs", other.directory / "fs", other.identity)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start_init, [*self.hosts, SWITCH]))

    def _make_files(self, identity: HostIdentity, everyone: list[HostIdentity]) -> None:
        """Write one host's files."""
        hostfiles.make_host_files(self.directory / identity.name / "fs", identity, everyone, self.qemu_user)

    def _start_init(self, name: str) -> None:
        """Start the PID 1 of a host, or of the switch (which has no files of its own)."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        private = hostfiles.PRIVATE_DIRECTORIES if name != SWITCH else {}
        binds = {path: str(directory / "fs" / path.lstrip("/")) for path in private}
        device = directory / "fs" / hostfiles.KVM_DEVICE.lstrip("/")
        if device.exists():
            binds[hostfiles.KVM_DEVICE] = str(device)
        tini = shutil.which("tini-static") or shutil.which("tini")
        if tini is None:
            raise LabError("there is no tini: apt-get install tini")
        specification = {
            "name": f"{self.prefix}-{name}",
            "pid_file": str(directory / "init.pid"),
            "binds": binds,
            "tmpfs": list(hostfiles.TMPFS_DIRECTORIES) if private else [],
            "shared": [str(CHECKOUT)] if private else [],
            # PID 1 must reap: libvirtd waits 40 s for each dead QEMU that it probed, otherwise.
            "init": [tini, "--", "/bin/sleep", "infinity"],
        }
        file = directory / "host.json"
        file.write_text(json.dumps(specification))
        command = [sys.executable, "-I", "-S", str(LAUNCHER), "new", str(file)]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", MARKER: self.prefix}
        result = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_TIMEOUT
        )
        if "ready" not in result.stdout:
            raise LabError(f"{name}: cannot make its namespaces: {result.stderr.strip()[-1500:]}")

    def _connect(self) -> None:
        """Join the hosts by a bridge that lives in a network namespace of its own."""
        identity = ProcessIdentity.load(self.directory / SWITCH / "init.pid")
        if identity is None:
            raise LabError("the switch did not come up")
        make_switch(identity.pid)
        for host in self.hosts.values():
            host.connect(identity.pid)

    def _start_daemons(self, firewall: bool) -> None:
        """Start the nodes' daemons side by side, and the firewalls if asked for."""
        with ThreadPoolExecutor() as pool:
            tasks = [pool.submit(host.start_libvirt) for host in self.nodes]
            tasks += [pool.submit(host.start_sshd) for host in self.nodes]
            if firewall:
                tasks += [pool.submit(host.firewall) for host in self.hosts.values()]
            for task in tasks:
                task.result()

    # --- down --------------------------------------------------------------------------------------------------

    def down(self) -> None:
        """End everything of the lab and remove it; does nothing if there is nothing."""
        with state.lock(f"lab/{self.prefix}"):
            self._remove()

    def _remove(self) -> None:
        """Remove processes (mounts, namespaces and links go with them), then files."""
        recorded = [ProcessIdentity.load(file) for file in sorted(self.directory.glob("*/*.pid"))]
        state.end_processes(self.prefix, [identity for identity in recorded if identity is not None])
        with state.lock("all"):
            _remove_tree(self.directory)
            state.remove_last_traces()

    def leftovers(self) -> list[str]:
        """Return a line for each thing of the lab that is still there."""
        return state.leftovers(self.prefix)

    # --- VMMigration -------------------------------------------------------------------------------------------

    def provision(self, checkout: Path = CHECKOUT) -> None:
        """Write keys and allow-lists into each host's /etc/vmmigration, with the checkout's own commands."""
        boss = self.hosts["boss"]
        for host in self.hosts.values():
            hostfiles.make_directory(host.path(CONFIGURATION), 0o755)
            agents = "".join(f"{node.address}\n" for node in self.nodes)
            hostfiles.write_text(host.path(CONFIGURATION / "AgentIPAddr.txt"), agents)
            hostfiles.write_text(host.path(CONFIGURATION / "ControllerIPAddr.txt"), f"{boss.address}\n")
        controller = ["/usr/bin/python3", str(checkout / "vmmigration.py"), "--config-dir", str(CONFIGURATION)]
        boss.run([*controller, "new-key"])
        boss.path(CONFIGURATION / "ControllerKey.txt").chmod(0o600)
        for node in self.nodes:
            key = boss.run([*controller, "agent-key", node.address]).stdout
            hostfiles.write_text(node.path(CONFIGURATION / "AgentKey.txt"), key, 0o600)

    def start_agent(
        self, host: Host, *options: str, checkout: Path = CHECKOUT, wait: float = 10.0,
        env: Mapping[str, str] | None = None,
    ) -> Agent:
        """Start the agent in a host and wait until it listens on UDP 8002; raises LabError with its log."""
        log = host.path(AGENT_LOG)
        with log.open("a") as stream:
            process = host.popen(
                ["/usr/bin/python3", str(checkout / "vmmigration-agent.py"), *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=env,
            )
        deadline = time.monotonic() + wait
        while not host.listens_on_udp(8002):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise LabError(f"{host.full_name}: the agent does not listen:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        return Agent(process, log)


def _remove_tree(directory: Path) -> None:
    """Remove a directory tree, which may just be growing: its last writers were killed a moment ago."""
    for attempt in range(5):
        shutil.rmtree(directory, ignore_errors=attempt < 4)
        if not directory.exists():
            return
        time.sleep(0.1)
