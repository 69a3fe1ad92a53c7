"""The file systems that the machines boot from: made once, of the distribution's packages alone, and kept."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from tests.lab.kernel import cache_directory, cache_lock
from tests.packaging.machine import needed
from tests.unit.samples import ROOT

# What makes of a minimal Debian a machine that boots and can be looked at, and of a machine a node.
_MACHINE = ("systemd-sysv", "dbus", "iproute2")
_NODE = ("openssh-server", "libvirt-clients", "qemu-system-x86")
_CONTROL = ROOT / "packaging" / "debian" / "control"


def _distribution() -> tuple[str, str, str]:
    """The code name of this machine's distribution, the address that its packages come from, and which parts it has."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    name = release["VERSION_CODENAME"]
    told = subprocess.run(
        [needed("apt-get"), "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages",
         f"Codename: {name}"], capture_output=True, text=True, check=True)
    assert told.stdout, f"apt knows no packages of {name}"
    sources = [line.split() for line in told.stdout.splitlines()]
    return name, sources[0][0], ",".join(sorted({part for _address, part in sources}))


def node_root(packages: Path) -> Path:
    """A node on which both packages of that directory were installed and purged again: what they need has stayed.

    It is made anew if they need something else: what they do not ask for is not there then.
    """
    name, mirror, parts = _distribution()
    recipe = repr((name, mirror, parts, _MACHINE, _NODE, _CONTROL.read_text()))
    root = cache_directory() / f"node-{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with cache_lock("node"):
        if not root.exists():
            for old in cache_directory().glob("node-*-*"):
                shutil.rmtree(old)
            draft = root.with_name(f"{root.name}.new")
            _make(draft, name, mirror, parts, packages)
            draft.rename(root)
    return root


def _make(root: Path, name: str, mirror: str, parts: str, packages: Path) -> None:
    install = "apt-get --quiet --yes --no-install-recommends install"
    hooks = [
        'mkdir "$1/packages"', f'cp "{packages}"/*.deb "$1/packages"',
        # First by themselves: what they depend on has to be enough.
        f'chroot "$1" sh -c "{install} /packages/*.deb"',
        'chroot "$1" vmmigration-agent --version',
        'chroot "$1" apt-get --quiet --yes purge vmmigration vmmigration-agent',
        f'chroot "$1" {install} {" ".join(_NODE)}',
        'rm -r "$1/packages"']
    made = subprocess.run(
        [needed("mmdebstrap"), "--mode=root", "--variant=minbase", f"--components={parts}",
         f"--include={','.join(_MACHINE)}", "--dpkgopt=force-unsafe-io", "--skip=cleanup/apt/lists",
         *(f"--customize-hook={hook}" for hook in hooks), name, str(root), mirror],
        capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-4000:]
