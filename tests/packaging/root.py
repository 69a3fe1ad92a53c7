"""The file systems that the machines boot from: made once, of a distribution's packages alone, and kept."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lab.kernel import cache_directory, cache_lock
from tests.packaging.machine import needed
from tests.unit.samples import ROOT

# What makes of a minimal Debian a machine that boots and can be looked at, and of a machine a node.
_MACHINE = ("apt", "systemd-sysv", "dbus", "iproute2")
_NODE = ("openssh-server", "libvirt-clients", "qemu-system-x86")
_CONTROL = ROOT / "packaging" / "debian" / "control"
_UBUNTU_KEYS = "usr/share/keyrings/ubuntu-archive-keyring.gpg"


@dataclass(frozen=True)
class Release:
    """A release of a distribution: its code name, where its packages come from, and which parts of it are used."""

    name: str
    mirror: str
    parts: str


TRIXIE = Release("trixie", "http://deb.debian.org/debian", "main")
NOBLE = Release("noble", "http://archive.ubuntu.com/ubuntu", "main,universe")


def own_release() -> Release:
    """That of this machine, from where its own packages come from."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    name = release["VERSION_CODENAME"]
    told = subprocess.run(
        [needed("apt-get"), "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages",
         f"Codename: {name}"], capture_output=True, text=True, check=True)
    assert told.stdout, f"apt knows no packages of {name}"
    sources = [line.split() for line in told.stdout.splitlines()]
    return Release(name, sources[0][0], ",".join(sorted({part for _address, part in sources})))


def node_root(packages: Path, release: Release) -> Path:
    """A node on which both packages of that directory were installed and purged again: what they need has stayed.

    It is made anew if they need something else: what they do not ask for is not there then.
    """
    recipe = repr((release, _MACHINE, _NODE, _CONTROL.read_text()))
    root = cache_directory() / f"node-{release.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    keys = _ubuntu_keys(packages) if release == NOBLE else None
    with cache_lock(f"node-{release.name}"):
        if not root.exists():
            for old in cache_directory().glob(f"node-{release.name}-*"):
                shutil.rmtree(old)
            draft = root.with_name(f"{root.name}.new")
            _make(draft, release, packages, keys)
            draft.rename(root)
    return root


def _ubuntu_keys(packages: Path) -> Path:
    """The keys of Ubuntu's packages: this machine's own, or those that Debian has, which its apt has verified."""
    own = Path("/", _UBUNTU_KEYS)
    return own if own.exists() else node_root(packages, TRIXIE) / _UBUNTU_KEYS


def _make(root: Path, release: Release, packages: Path, keys: Path | None) -> None:
    install = "apt-get --quiet --yes --no-install-recommends install"
    more = (*_NODE, "ubuntu-keyring") if release == TRIXIE else _NODE
    hooks = [
        'mkdir "$1/packages"', f'cp "{packages}"/*.deb "$1/packages"',
        # First by themselves: what they depend on has to be enough.
        f'chroot "$1" sh -c "{install} /packages/*.deb"',
        'chroot "$1" vmmigration-agent --version',
        'chroot "$1" apt-get --quiet --yes purge vmmigration vmmigration-agent',
        f'chroot "$1" {install} {" ".join(more)}',
        'rm -r "$1/packages"']
    made = subprocess.run(
        [needed("mmdebstrap"), "--mode=root", "--variant=minbase", f"--components={release.parts}",
         f"--include={','.join(_MACHINE)}", "--dpkgopt=force-unsafe-io", "--skip=cleanup/apt/lists",
         *([f"--keyring={keys}"] if keys is not None else []),
         *(f"--customize-hook={hook}" for hook in hooks), release.name, str(root), release.mirror],
        capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-4000:]
