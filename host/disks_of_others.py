"""What the other VMs of this host use: the images that their definitions name, and all that lies below those. None of
it may be renamed or deleted with the copy of a VM that has moved, or because a move has failed.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from constant import ImageFormat
from host.hypervisor import Hypervisor, OtherDomain
from host.image import files_below
from host.mounts import on_other_hosts
from wire.errors import MigrationError
from wire.situation import hidden_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DisksOfOthers:
    """Files and block devices that other VMs use, by their names and as the kernel tells one thing from another."""

    named: frozenset[str]
    """What their definitions name."""
    below: frozenset[str]
    """What that stands on."""
    things: frozenset[tuple[str, int, int]]

    @classmethod
    def of(cls, hypervisor: Hypervisor, domain: str, host: str) -> DisksOfOthers:
        """What any domain of this host but this one uses."""
        named: set[str] = set()
        below: set[str] = set()
        for other in hypervisor.others(domain):
            for path, layers in _images(hypervisor, other, host):
                named.add(path)
                below.update(layers)
        names = named | below
        things = map(_thing, names - on_other_hosts(names))
        return cls(frozenset(named), frozenset(below), frozenset(filter(None, things)))

    def include(self, path: str) -> bool:
        """Whether what is to be found at the path is another VM's as well."""
        return path in self.named or path in self.below or _thing(path) in self.things


def _images(hypervisor: Hypervisor, other: OtherDomain, host: str) -> Iterator[tuple[str, list[str]]]:
    """What a domain's definitions name, each with what it stands on."""
    seen: set[str] = set()
    for description in (other.running, other.defined):
        if description is None:
            continue
        if description.nvram is not None:
            yield description.nvram.path, []
        for disk in description.disks:
            path = hypervisor.volume_path(*disk.volume) if disk.volume is not None else disk.path
            if path is None or path in seen:
                continue
            seen.add(path)
            if other.moved is not None and os.path.lexists(hidden := hidden_name(path, other.moved.job_id)):
                # Of its copy: what has got its name since is somebody else's.
                path = hidden
            layers = [layer for layer, _format in disk.layers]
            # Of a running domain libvirt tells the whole chain.
            if description is not other.running and disk.format == ImageFormat.QCOW2.value:
                layers += _below(path, other.name, host)
            yield path, layers


def _below(path: str, domain: str, host: str) -> list[str]:
    if on_other_hosts([path]) or not os.path.exists(path):
        return []
    try:
        return list(files_below(path, host))
    except (MigrationError, ValueError) as error:
        # Nor could QEMU read it, and what lies below it is of no use to that VM as it is.
        log.warning("VM %s: %s cannot be read: %s", domain, path, error)
        return []


def _thing(path: str) -> tuple[str, int, int] | None:
    """What lies there, links followed; None for nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if stat.S_ISBLK(status.st_mode):
        return "device", status.st_rdev, 0
    return "file", status.st_dev, status.st_ino
