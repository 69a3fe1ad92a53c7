"""A machine of its own: a Debian in namespaces, with systemd, and a network that leads nowhere but to others."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_SECONDS = 90.0
_BOOT = Path(__file__).with_name("boot.sh")
_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
                "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def wait_until(what: str, holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Look until it holds; fail if it never does."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"after {seconds:.0f} s still not: {what}"
        time.sleep(0.1)


def _cgroups() -> Path:
    """Where the hierarchy of cgroup v2 is mounted, beside one of v1 or alone."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _source, target, kind, *_rest = line.split()
        if kind == "cgroup2":
            return Path(target)
    raise AssertionError("no cgroup2 file system is mounted here, and systemd needs one")


class Machine:
    """A machine that runs."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        """Of its first process."""

    def start(self, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """A command in it, as root, that goes on."""
        enter = ["nsenter", "--target", str(self.pid), *_NAMESPACES, "--root", "--wdns=/", "--"]
        return subprocess.Popen(
            [*enter, *command], env=_ENVIRONMENT, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True)

    def run(self, *command: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command in it, as root, to its end; fails unless that is 0 or `check` is off."""
        process = self.start(*command, stdin=subprocess.PIPE)
        try:
            output, errors = process.communicate(stdin, timeout=10 * PATIENCE_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
        words = shlex.join(command)
        assert not check or process.returncode == 0, f"{self.name}: {words}: {process.returncode}\n{output}{errors}"
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def says(self, *command: str) -> str:
        """What a command in it prints, whatever its exit code, without the white space around."""
        return self.run(*command, check=False).stdout.strip()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file there."""
        self.run("sh", "-c", 'umask 077; mkdir -p -m 755 "$(dirname "$1")"; cat >"$1"; chmod "$2" "$1"', "sh", path,
                 f"{mode:o}", stdin=text)

    def copy(self, source: Path, path: str) -> None:
        """Put a copy of a file of this machine there."""
        with source.open("rb") as stream:
            process = self.start("sh", "-c", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "sh", path, stdin=stream.fileno())
            _output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, errors

    def unit(self, name: str, field: str) -> str:
        """What systemd says of a unit: a property of it."""
        return self.says("systemctl", "show", "--property", field, "--value", name)

    def journal(self, unit: str) -> str:
        """What a unit has logged."""
        return self.says("journalctl", "--quiet", "--no-pager", "--output=cat", "--unit", unit)


@contextmanager
def booted(root: Path, name: str) -> Iterator[Machine]:
    """A machine that has booted from what is in `root`, for the length of a `with`. It may write anywhere."""
    cgroup = _cgroups() / f"vmmigration-{name}-{os.getpid()}"
    cgroup.mkdir()
    with tempfile.TemporaryDirectory(prefix="vmmigration-machine-") as work:
        boot = ["sh", str(_BOOT), str(root), work, name, str(uuid.uuid4())]
        # It goes with whoever runs the test, however that ends.
        unshare = ["setpriv", "--pdeathsig=KILL", "unshare", *_NAMESPACES, "--fork", "--kill-child", *boot]
        enter = ["sh", "-c", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "sh", str(cgroup), *unshare]
        with open(Path(work) / "console", "wb") as console:
            process = subprocess.Popen(enter, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            yield _started(name, process, Path(work) / "console")
        finally:
            process.kill()
            process.wait()
            wait_until("the machine's processes have ended", lambda: _removed(cgroup))


def _started(name: str, process: subprocess.Popen[bytes], console: Path) -> Machine:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def runs() -> bool:
        assert process.poll() is None, f"{name} does not boot: {console.read_text()}"
        with contextlib.suppress(OSError, ValueError):
            machine = Machine(name, int(children.read_text()))
            # "degraded": of what a container has not, such as a udev, some units complain.
            return machine.says("systemctl", "is-system-running") in ("running", "degraded")
        return False

    wait_until(f"{name} has booted", runs)
    return Machine(name, int(children.read_text()))


def _removed(cgroup: Path) -> bool:
    """Whether the cgroup and those below it are gone."""
    for directory in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            directory.rmdir()
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


def connect(first: tuple[Machine, str], second: tuple[Machine, str]) -> None:
    """A cable between two machines, with an address of IPv4 for the end of each."""
    ends = [(machine, address, f"vmm{os.getpid()}{letter}") for (machine, address), letter in
            zip((first, second), "ab")]
    subprocess.run([needed("ip"), "link", "add", ends[0][2], "type", "veth", "peer", "name", ends[1][2]], check=True)
    for machine, address, device in ends:
        subprocess.run([needed("ip"), "link", "set", device, "netns", str(machine.pid)], check=True)
        machine.run("ip", "link", "set", device, "name", "cable", "up")
        machine.run("ip", "address", "add", f"{address}/24", "dev", "cable")


def needed(tool: str) -> str:
    """The path of a tool of script/packages; fails if it is not there."""
    path = shutil.which(tool, path=_ENVIRONMENT["PATH"])
    assert path is not None, f"{tool} is missing: script/test installs it, see script/packages"
    return path
