"""What an admin types to move a VM: our command, and the ways without it. Names in, lines of a shell out.

Every line is typed into a shell that is open on its host already, so that no login of the admin's is counted.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

IMAGES = "/var/lib/libvirt/images"
#: Where the scene has put a key of the source's root, and who libvirt and our command log in as.
ADMIN, USER = "root", "kvm"
#: What the snapshot's layer has at the end of its name while the image below it is copied.
LAYER = "copied-layer"


class Way(enum.Enum):
    """A way of moving a VM."""

    OURS = "ours"
    VIRSH_FILE = "virsh, file made beforehand"
    VIRSH_POOL = "virsh, file made by libvirt"
    SCP = "scp, then virsh"
    RSYNC = "rsync -S, then define"


@dataclass(frozen=True)
class Image:
    """One disk's image: its path on both hosts, the disk's name in the guest, its size in bytes as that sees it."""

    path: str
    target: str
    size: int


@dataclass(frozen=True)
class Names:
    """What the lines are about. Hosts are addresses; `program` is where our command lies."""

    domain: str
    source: str
    destination: str
    images: Sequence[Image]
    program: str = "vmmigration.py"


@dataclass(frozen=True)
class Line:
    """One line and the host that it is typed on. `moves` marks the one that starts to move disk and memory."""

    host: str
    text: str
    moves: bool = False


def _virsh(*words: str) -> str:
    return shlex.join(["virsh", "-q", "-c", "qemu:///system", *words])


def _migrate(names: Names, storage: str) -> str:
    """As an admin has it: libvirt's control through SSH, memory and disks over QEMU's own TCP, not encrypted.

    Without `--persistent` the VM would be gone over there when it is shut down; ours keeps it too.
    """
    return _virsh(
        "migrate", "--live", "--p2p", "--persistent", storage, names.domain,
        f"qemu+ssh://{USER}@{names.destination}/system")


def _create(image: Image) -> str:
    return shlex.join(["qemu-img", "create", "-q", "-f", "qcow2", image.path, str(image.size)])


def _create_layer(image: Image) -> str:
    return shlex.join(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image.path, _layer(image.path)])


def _ours(names: Names) -> tuple[Line, ...]:
    """One line on the management host. Its figures are asked for as JSON, which is written at the end."""
    words = ["/usr/bin/python3", names.program, "--json", "--progress", "json", names.source, names.destination, USER,
             names.domain]
    return (Line("boss", shlex.join(words), moves=True),)


def _virsh_file(names: Names) -> tuple[Line, ...]:
    return (
        *(Line("node2", _create(image)) for image in names.images),
        Line("node1", _migrate(names, "--copy-storage-all"), moves=True))


def _virsh_pool(names: Names) -> tuple[Line, ...]:
    """A storage pool is on the destination's directory, so libvirt makes the files itself."""
    return (Line("node1", _migrate(names, "--copy-storage-all"), moves=True),)


def _scp(names: Names) -> tuple[Line, ...]:
    """The original tool's way, made safe.

    The original copies the image of the running VM and starts that copy: torn, and with qcow2 its tables as well, so
    that no mirror over it can mend it. Safe is to freeze the image under a snapshot first, copy what is frozen, have
    libvirt carry what was written since, and join the two again.
    """
    freeze = ["snapshot-create-as", names.domain, "--disk-only", "--atomic", "--no-metadata"]
    for image in names.images:
        freeze += ["--diskspec", f"{image.target},file={_layer(image.path)}"]
    lines = [Line("node1", _virsh(*freeze))]
    for image in names.images:
        to = f"{ADMIN}@{names.destination}:{image.path}"
        lines.append(Line("node1", shlex.join(["scp", "-q", image.path, to]), moves=image is names.images[0]))
    lines += [Line("node2", _create_layer(image)) for image in names.images]
    lines.append(Line("node1", _migrate(names, "--copy-storage-inc")))
    for image in names.images:
        lines.append(Line("node2", _virsh("blockcommit", names.domain, image.target, "--active", "--pivot")))
        lines.append(Line("node2", shlex.join(["rm", _layer(image.path)])))
    return tuple(lines)


def _layer(path: str) -> str:
    return f"{path}.{LAYER}"


def _rsync(names: Names) -> tuple[Line, ...]:
    """For a VM that is shut off: its images with their holes, then its definition."""
    paths = [image.path for image in names.images]
    define = shlex.join(["ssh", f"{USER}@{names.destination}", _virsh("define", "/dev/stdin")])
    return (
        Line("node1", shlex.join(["rsync", "-S", *paths, f"{ADMIN}@{names.destination}:{IMAGES}/"]), moves=True),
        Line("node1", f"{_virsh('dumpxml', '--inactive', '--security-info', names.domain)} | {define}"))


_LINES: Mapping[Way, Callable[[Names], tuple[Line, ...]]] = {
    Way.OURS: _ours, Way.VIRSH_FILE: _virsh_file, Way.VIRSH_POOL: _virsh_pool, Way.SCP: _scp, Way.RSYNC: _rsync}


def lines(way: Way, names: Names) -> tuple[Line, ...]:
    """What is typed, in its order."""
    return _LINES[way](names)
