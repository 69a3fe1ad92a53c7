"""What the other VMs of this host use: the images that their definitions name, and all that lies below those. None of
it may be renamed or deleted with the copy of a VM that has moved, or because a move has failed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from constant import ImageFormat
from host.domain_xml import DiskElement
from host.file_identity import on_other_hosts
from host.hypervisor import Hypervisor, OtherDomain
from host.image import ImageQuestion, files_below
from wire.errors import MigrationError
from wire.situation import hidden_name


@dataclass(frozen=True)
class DisksOfOthers:
    """Files and block devices that other VMs use."""

    names: frozenset[str]
    things: frozenset[tuple[str, int, int]]
    """What lies at these names now, as the kernel tells one thing from another."""
    unknown: MigrationError | None = None
    """Why it is not known what one of these VMs uses besides: it might be anything."""

    @classmethod
    def of(cls, hypervisor: Hypervisor, domain: str, host: str) -> DisksOfOthers:
        """What any domain of this host but this one uses."""
        names: set[str] = set()
        unknown = None
        for other in hypervisor.others(domain):
            try:
                names.update(_used(hypervisor, other, host))
            except MigrationError as error:
                unknown = error
        things = map(_thing, names - on_other_hosts(names))
        return cls(frozenset(names), frozenset(filter(None, things)), unknown)

    def include(self, path: str) -> bool:
        """Whether what is to be found at the path is certainly another VM's as well."""
        return path in self.names or _thing(path) in self.things


def _used(hypervisor: Hypervisor, other: OtherDomain, host: str) -> Iterator[str]:
    """The paths of all that a domain uses. Raises MigrationError where something that is there cannot be read."""
    seen: set[str] = set()
    for description in (other.running, other.defined):
        if description is None:
            continue
        if description.nvram is not None:
            yield description.nvram.path
        for disk in description.disks:
            path = hypervisor.volume_path(*disk.volume) if disk.volume is not None else disk.path
            if path is None or path in seen:
                continue
            seen.add(path)
            if other.moved is not None and os.path.lexists(hidden_name(path, other.moved.job_id)):
                # Of its copy: what has got its name since is somebody else's.
                path = hidden_name(path, other.moved.job_id)
            yield path
            yield from (layer for layer, _format in disk.layers)
            # Of a running domain libvirt tells the whole chain.
            if description is not other.running and disk.format == ImageFormat.QCOW2.value:
                yield from _below(disk, path, other, host)


def _below(disk: DiskElement, path: str, other: OtherDomain, host: str) -> Iterator[str]:
    # qemu-img, unlike this thread, can be ended where a server does not answer.
    if on_other_hosts([path]) or os.path.exists(path):
        yield from files_below(
            ImageQuestion(disk.target, path, ImageFormat.QCOW2, dict(disk.layers), host, other.name))


def _thing(path: str) -> tuple[str, int, int] | None:
    """What lies there, links followed; None for nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if stat.S_ISBLK(status.st_mode):
        return "device", status.st_rdev, 0
    return "file", status.st_dev, status.st_ino
