"""Python interpreters of other versions, from Debian's releases and from this machine, and a copy of the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.lab.kernel import cache_directory, cache_lock
from tests.packaging.machine import needed
from tests.unit.samples import ROOT

#: The releases of Debian that have them: the oldest version that is promised, and the newest.
RELEASES: Mapping[str, str] = MappingProxyType({"3.9": "bullseye", "3.13": "trixie"})
#: What the command consists of.
COMMAND = ("vmmigration.py", "controller.py", "udpmodule.py", "constant.py", "console", "control", "wire")
_MIRROR = "http://deb.debian.org/debian"
_SAYS_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


@dataclass(frozen=True)
class Interpreter:
    """An interpreter, and where a copy of the command is for it."""

    words: tuple[str, ...]
    """What it is started with."""
    outside: Path
    """The directory of the copy, as this machine sees it."""
    inside: str
    """The same, as the interpreter sees it."""

    def run(self, *arguments: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run it to its end, in the directory of the copy; `before` is what the whole is started with."""
        return subprocess.run(
            [*before, *self.words, *arguments], cwd=self.outside, capture_output=True, text=True, check=False,
            timeout=120, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"})

    def vmmigration(self, *arguments: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        return self.run(f"{self.inside}/vmmigration.py", *arguments, before=before)


def interpreter(version: str, work: Path) -> Interpreter | None:
    """One of that version; None if there is none. `work` is for the copy."""
    release = RELEASES.get(version)
    root = _unpacked(release, version) if release is not None and os.geteuid() == 0 else None
    if root is not None:
        inside = "/srv/vmmigration"
        _copy(root / inside[1:])
        return Interpreter((needed("chroot"), str(root), f"/usr/bin/python{version}"), root / inside[1:], inside)
    for path in _on_this_machine(version):
        _copy(work)
        return Interpreter((path,), work, str(work))
    return None


def _copy(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in COMMAND:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)


def _unpacked(release: str, version: str) -> Path | None:
    """A directory with the interpreter of that release of Debian; None if it cannot be had (any more)."""
    root = cache_directory() / f"python{version}-{release}"
    with cache_lock(root.name):
        draft = root.with_name(f"{root.name}.new")
        if not root.exists():
            shutil.rmtree(draft, ignore_errors=True)
            made = subprocess.run(
                [needed("mmdebstrap"), "--mode=root", "--variant=extract", f"--include=base-files,python{version}",
                 release, draft, _MIRROR], capture_output=True, text=True, check=False)
            if made.returncode != 0:
                sys.stderr.write(made.stderr)
                return None
            draft.rename(root)
    return root


def _on_this_machine(version: str) -> Iterator[str]:
    """Those on the PATH, and pyenv's."""
    directories = [*map(Path, os.get_exec_path()), *Path.home().glob(f".pyenv/versions/{version}.*/bin")]
    for path in (directory / f"python{version}" for directory in directories):
        if os.access(path, os.X_OK):
            # pyenv puts a script of each name on the PATH, whether there is such a version or not.
            told = subprocess.run([path, "-c", _SAYS_VERSION], capture_output=True, text=True, check=False)
            if told.stdout.strip() == version:
                yield str(path)
