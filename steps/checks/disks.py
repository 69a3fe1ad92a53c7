"""Checks on the source about the domain's disks: whether each can be mirrored, and what an image there must become."""

from __future__ import annotations

from collections.abc import Iterator

from constant import ImageFormat
from host import image
from host.domain_xml import DiskElement, DomainDescription, hard_disks
from host.hypervisor import Hypervisor, libvirt_errors
from steps.checks.domain import SourceView
from steps.checks.look import Looks, Saw, fine, stops, warns
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts
from wire.findings import Check

_FORMATS = frozenset(each.value for each in ImageFormat)


def disk_argument(view: SourceView) -> Iterator[Saw]:
    """The disk that the admin named is one of the domain's."""
    paths = [disk.path for disk in hard_disks(view.description) if disk.path]
    named = ", ".join(paths) or "none"
    if view.migration.disk is not None and view.migration.disk not in paths:
        yield stops(ErrorCode.DISK_NOT_OF_DOMAIN, path=view.migration.disk, disks=named)
    yield fine(disks=named)


def why_not(disk: DiskElement, count: int) -> str | None:
    """Why a disk cannot be moved, going by the XML alone; None if it can. `count` is how many the VM has."""
    reasons = (
        (disk.device != "disk", f"it is a {disk.device}"),
        (disk.kind != "file" or not disk.path, f"its type is {disk.kind}, not file"),
        (disk.format not in _FORMATS, f"its format is {disk.format}"),
        (disk.transient, "it is transient"),
        (disk.encrypted, "it is encrypted"),
        (disk.read_only, "it is read-only"),
        (disk.shareable, "it is shared with other VMs"),
        (bool(disk.layers), "it has a backing image"),
        (count > 1, f"the VM has {count} disks"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def disks(view: SourceView) -> Iterator[Saw]:
    """Each disk is of a kind that can be mirrored into a new image."""
    found = hard_disks(view.description)
    if not found:
        yield stops(ErrorCode.DISK_UNSUPPORTED, target="(none)", reason="the VM has no disk")
    for disk in found:
        reason = why_not(disk, len(found))
        examined = view.images.get(disk.target)
        if reason is not None:
            yield stops(ErrorCode.DISK_UNSUPPORTED, target=disk.target, reason=reason)
        elif isinstance(examined, MigrationError):
            yield stops(examined.code, **examined.facts)
    yield fine(disks=", ".join(disk.target for disk in found))


def examine_images(
    hypervisor: Hypervisor, description: DomainDescription, host: str, domain: str,
) -> dict[str, DiskFacts | MigrationError]:
    """Each disk's image, by target: what it is, or why it cannot be looked at.

    Also those that something else stands against: the destination is looked at as a whole, whatever has to be mended
    here.
    """
    found: dict[str, DiskFacts | MigrationError] = {}
    for disk in hard_disks(description):
        if disk.kind == "file" and disk.path and disk.format in _FORMATS:
            try:
                with libvirt_errors(host):
                    size = hypervisor.disk_size(domain, disk.target)
                found[disk.target] = image.examine(disk, ImageFormat(disk.format), size, host, domain)
            except MigrationError as error:
                found[disk.target] = error
    return found


def backing_chain(view: SourceView) -> Iterator[Saw]:
    """Every layer below a top image is there and can be read: a running QEMU would not notice that one is gone."""
    layers = [(disk.target, path) for disk in view.description.disks for path in disk.layers if path != "?"]
    for target, path in layers:
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            yield stops(ErrorCode.BACKING_UNREADABLE, target=target, path=path, reason=error.strerror or str(error))
    yield fine(layers=str(len(layers)))


def cache(view: SourceView) -> Iterator[Saw]:
    """With cache='unsafe' a flush is not one. Other modes are safe where QEMU itself mirrors the disk."""
    modes = {disk.target: disk.cache for disk in hard_disks(view.description)}
    for target, mode in modes.items():
        if mode == "unsafe":
            yield warns(ErrorCode.DISK_CACHE_UNSAFE, target=target)
    yield fine(modes=", ".join(dict.fromkeys(modes.values())) or "none")


LOOKS: Looks[SourceView] = {
    Check.DISK_ARGUMENT: disk_argument,
    Check.DISKS: disks,
    Check.BACKING_CHAIN: backing_chain,
    Check.DISK_CACHE: cache,
}
