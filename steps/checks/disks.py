"""Checks on the source about the domain's disks: whether each can be moved, and what an image there must become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from constant import DomainState, ImageFormat
from host.domain_xml import DiskElement, DomainDescription
from host.image import ImageQuestion, examine
from steps.checks.domain import SourceView
from steps.checks.look import Looks, Saw, fine, stops, warns
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts
from wire.findings import Check
from wire.phrase import Phrase, joined

_FORMATS = frozenset(each.value for each in ImageFormat)
_KINDS = ("file", "block")
# What other than a hard disk may be written to, and is mirrored then.
_DEVICES = ("disk", "floppy")


def disk_argument(view: SourceView) -> Iterator[Saw]:
    """The disk that the admin named is one of the domain's, and so is what the maps name."""
    paths = [disk.path for disk in view.disks if disk.path]
    named = joined(paths) or Phrase("none")
    if view.migration.disk is not None and view.migration.disk not in paths:
        yield stops(ErrorCode.DISK_NOT_OF_DOMAIN, path=view.migration.disk, disks=named)
    yield fine(disks=named)


def maps(view: SourceView) -> Iterator[Saw]:
    """Each map of the admin's fits something of the domain: one that does not was meant otherwise."""
    migration = view.migration
    placement = migration.placement(view.facts())
    has = joined(placement.paths)
    for each in placement.idle_maps():
        yield stops(ErrorCode.MAP_UNUSED, option="--disk-map", map=each.text, has=has)
    described = [each for each in (view.description, view.lasting) if each is not None]
    connected = {(each.kind, each.source) for description in described for each in description.interfaces}
    for known in migration.network_maps:
        if (known.here.kind, known.here.name) not in connected:
            named = joined(f"{kind}:{name}" for kind, name in sorted(connected)) or Phrase(
                "no network")
            yield stops(ErrorCode.MAP_UNUSED, option="--network-map", map=known.text, has=named)
    given = [*(each.text for each in migration.disk_maps), *(each.text for each in migration.network_maps)]
    yield fine(maps=joined(given) or Phrase("none"))


def why_not(disk: DiskElement) -> Phrase | None:
    """Why a disk cannot be moved, going by the XML alone; None if it can."""
    reasons = (
        (disk.device not in _DEVICES, Phrase("it is a {device}", {"device": disk.device})),
        (disk.kind not in _KINDS or not disk.path,
         Phrase("its type is {type}, not file or block", {"type": disk.kind})),
        (disk.format not in _FORMATS, Phrase("its format is {format}", {"format": str(disk.format)})),
        (disk.transient, Phrase("it is transient")),
        (disk.encrypted, Phrase("it is encrypted")),
        (disk.shareable and not disk.read_only,
         Phrase("other VMs may write to it at the same time (<shareable/>)")),
        (any(path == "?" for path, _format in disk.layers), Phrase("an image below it is not a file of this host")),
    )
    return next((reason for applies, reason in reasons if applies), None)


def disks(view: SourceView) -> Iterator[Saw]:
    """Each disk is of a kind that can be moved."""
    if not view.disks:
        yield stops(ErrorCode.DISK_UNSUPPORTED, target="(none)", reason=Phrase("the VM has no disk"))
    for disk in view.disks:
        reason = why_not(disk)
        examined = view.images.get(key(disk))
        if reason is not None:
            yield stops(ErrorCode.DISK_UNSUPPORTED, target=disk.target, reason=reason)
        elif isinstance(examined, MigrationError) and examined.code is not ErrorCode.BACKING_UNREADABLE:
            yield stops(examined.code, **examined.facts)
    yield fine(disks=joined(disk.target for disk in view.disks))


def key(disk: DiskElement) -> tuple[str, str]:
    """What tells one disk from another: the running domain and its definition may have two in one place."""
    return disk.target, disk.path or ""


def all_disks(
    description: DomainDescription, lasting: DomainDescription | None, *, eject: bool = False,
) -> tuple[DiskElement, ...]:
    """The disks of the domain, those that only its definition has after those that it has now.

    A floppy that the guest may write to is one as well, unless drives are to be empty over there.
    """
    def is_disk(disk: DiskElement) -> bool:
        return disk.device not in ("cdrom", "floppy") or (disk.mirrored and not eject)

    here = [disk for disk in description.disks if is_disk(disk)]
    paths = {disk.path for disk in description.disks}
    waiting = [disk for disk in lasting.disks if is_disk(disk) and disk.path not in paths] if lasting else []
    return (*here, *waiting)


def is_sent(disk: DiskElement, state: DomainState, description: DomainDescription) -> bool:
    """Whether the disk crosses as a file: QEMU mirrors what it has open for writing, and nothing else."""
    return state is DomainState.SHUT_OFF or not disk.mirrored or disk not in description.disks


def examine_images(
    found: tuple[DiskElement, ...], description: DomainDescription, state: DomainState, host: str, *, flatten: bool,
) -> Mapping[tuple[str, str], DiskFacts | MigrationError]:
    """Each disk's image: what it is, or why it cannot be looked at.

    Also those that something else stands against: the destination is looked at as a whole, whatever has to be mended
    here.
    """
    images: dict[tuple[str, str], DiskFacts | MigrationError] = {}
    for disk in found:
        if disk.kind in _KINDS and disk.path and disk.format in _FORMATS:
            sent = is_sent(disk, state, description)
            question = ImageQuestion(
                disk.target, disk.path, ImageFormat(disk.format), dict(disk.layers), host, description.name)
            try:
                images[key(disk)] = examine(question, sent=sent, flatten=flatten)
            except MigrationError as error:
                images[key(disk)] = error
    return images


def backing_chain(view: SourceView) -> Iterator[Saw]:
    """Every layer below a top image is there and can be read: a running QEMU would not notice that one is gone."""
    for examined in view.images.values():
        if isinstance(examined, MigrationError) and examined.code is ErrorCode.BACKING_UNREADABLE:
            yield stops(examined.code, **examined.facts)
    layers = sum(len(each.layers) for each in view.images.values() if isinstance(each, DiskFacts))
    if layers and view.migration.flatten and view.state is DomainState.SHUT_OFF:
        yield stops(ErrorCode.FLATTEN_NEEDS_RUNNING)
    yield fine(layers=str(layers))


def cache(view: SourceView) -> Iterator[Saw]:
    """With cache='unsafe' a flush is not one. Other modes are safe where QEMU itself mirrors the disk."""
    modes = {disk.target: disk.cache for disk in view.disks}
    for target, mode in modes.items():
        if mode == "unsafe":
            yield warns(ErrorCode.DISK_CACHE_UNSAFE, target=target)
    yield fine(modes=joined(dict.fromkeys(modes.values())) or Phrase("none"))


LOOKS: Looks[SourceView] = {
    Check.DISK_ARGUMENT: disk_argument,
    Check.MAPS: maps,
    Check.DISKS: disks,
    Check.BACKING_CHAIN: backing_chain,
    Check.DISK_CACHE: cache,
}
