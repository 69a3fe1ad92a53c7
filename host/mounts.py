"""Where file systems are mounted on this host, and which of them another host serves."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
# path_resolution(7): the kernel follows so many.
_LINKS_LIMIT = 40
_OF_OTHER_HOSTS = frozenset({
    "9p", "afs", "autofs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "nfs", "nfs4", "smb3"})


def mount_point(path: str) -> str:
    """The directory at which the file system of the path, which need not exist, is mounted."""
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def on_other_hosts(paths: Collection[str]) -> set[str]:
    """Those of the paths, which are absolute, that lead to a file system of another host: whoever so much as looks at
    what lies there may wait for ever. No more than the links on this host are looked at.
    """
    mounts = []
    # Not every name is UTF-8, and only a line feed ends a line.
    for line in _MOUNTS.read_text(errors="surrogateescape").rstrip("\n").split("\n"):
        # proc_pid_mountinfo(5): the kind of file system is the first word after the dash; blanks are written in octal.
        words, _dash, kind = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words.split()[4])
        mounts.append((place.rstrip("/") + "/", kind.split()[0]))

    def is_remote(path: str) -> bool:
        # Of mounts at one place the last one lies on top.
        above = [(len(place), number, kind) for number, (place, kind) in enumerate(mounts)
                 if f"{path}/".startswith(place)]
        return max(above, default=(0, 0, ""))[2] in _OF_OTHER_HOSTS

    return {path for path in paths if _leaves(path, is_remote)}


def _leaves(path: str, is_remote: Callable[[str], bool]) -> bool:
    """Whether the way to what lies at the path, links followed, comes to a place that is remote."""
    done, parts, links = "", path.split("/"), 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = os.path.dirname(done).rstrip("/")
            continue
        done = f"{done}/{part}"
        if is_remote(done):
            return True
        if links < _LINKS_LIMIT and os.path.islink(done):
            links += 1
            target = os.readlink(done)
            done = "" if target.startswith("/") else os.path.dirname(done).rstrip("/")
            parts[:0] = target.split("/")
    return False
