"""Checks on the destination about files: the new images and the conf file, room for them, and what must be there.

They need no libvirt, so that they also run where that does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from host.image import qemu_may_enter
from host.job_files import refuse_system_directory
from steps.checks.look import Looks, Saw, fine, stops, warns
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.findings import Check
from wire.records import Migration, libvirt_conf_path

_MIB = 1024 * 1024


@dataclass(frozen=True)
class FilesView:
    """What the checks of the destination's files look at."""

    host: str
    migration: Migration
    facts: DomainFacts
    qemu_ids: tuple[int, int] = (0, 0)
    """As whom QEMU runs here; 0, 0 also if libvirt does not say."""

    def directories(self) -> list[str]:
        """Where the new images go."""
        return list(dict.fromkeys(os.path.dirname(disk.path) for disk in self.facts.disks))


def target_path(view: FilesView) -> Iterator[Saw]:
    """Nothing is overwritten."""
    for disk in view.facts.disks:
        if os.path.lexists(disk.path):
            yield stops(ErrorCode.PATH_TAKEN, path=disk.path)
    yield fine(paths=_named([disk.path for disk in view.facts.disks]))


def target_directory(view: FilesView) -> Iterator[Saw]:
    """The directories of the new images are there, are meant for images, can be written, and QEMU may enter them."""
    for path in dict.fromkeys(disk.path for disk in view.facts.disks):
        yield from _directory(view.host, "Disk path", path)
    for directory in view.directories():
        if os.path.isdir(directory) and not qemu_may_enter(directory, view.qemu_ids, view.host):
            reason = f"QEMU's user (id {view.qemu_ids[0]}) may not enter it, or one above it"
            yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason=reason)
    yield fine(paths=_named(view.directories()))


def _directory(host: str, what: str, path: str) -> Iterator[Saw]:
    """What is against a new file at this path because of its directory."""
    try:
        refuse_system_directory(what, path, host)
    except MigrationError as error:
        yield stops(error.code, **error.facts)
        return
    directory = os.path.dirname(path)
    if not os.path.lexists(directory):
        yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason="it does not exist")
    elif not os.path.isdir(directory):
        yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason="it is not a directory")
    elif os.statvfs(directory).f_flag & os.ST_RDONLY:
        yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason="it is on a read-only file system")
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason="it cannot be written")


def _named(paths: list[str]) -> str:
    return ", ".join(paths) or "no path"


def _spaces(view: FilesView) -> Iterator[tuple[str, int, int, int]]:
    """For each file system that images go to: a directory on it, free bytes, bytes to be written, bytes at most."""
    shares: dict[int, tuple[str, int, int]] = {}
    for disk in view.facts.disks:
        directory = os.path.dirname(disk.path)
        if os.path.isdir(directory):
            device = os.stat(directory).st_dev
            first, written, most = shares.get(device, (directory, 0, 0))
            shares[device] = first, written + disk.allocated, most + disk.virtual_size
    for directory, written, most in shares.values():
        file_system = os.statvfs(directory)
        yield directory, file_system.f_bavail * file_system.f_frsize, written, most


def disk_space(view: FilesView) -> Iterator[Saw]:
    """What is allocated on the source fits, on each file system together."""
    # Where a directory is missing, its own check says so.
    yield fine(free="unknown", needed="0")
    for directory, free, written, _most in _spaces(view):
        seen = {"free": str(free // _MIB), "needed": str(-(-written // _MIB))}
        yield stops(ErrorCode.SPACE_SHORT, path=directory, **seen) if free < written else fine(**seen)


def virtual_size(view: FilesView) -> Iterator[Saw]:
    """The disks could grow to their full size."""
    for directory, free, written, most in _spaces(view):
        if written <= free < most:
            yield warns(ErrorCode.SPACE_FOR_VIRTUAL_SIZE, path=directory, free=str(free // _MIB),
                        needed=str(-(-most // _MIB)))


def conf_file(view: FilesView) -> Iterator[Saw]:
    """The domain's XML can be put where it was asked for."""
    path, domain = view.migration.conf_path(), view.migration.domain
    own = libvirt_conf_path(domain)
    if path != own:
        reasons = (
            (not path.endswith(".xml"), "its name must end in .xml"),
            (os.path.dirname(path) == os.path.dirname(own),
             f"in that directory libvirt keeps this VM as {domain}.xml"),
        )
        for applies, reason in reasons:
            if applies:
                yield stops(ErrorCode.PATH_NOT_ALLOWED, what="Conf file path", path=path, reason=reason)
        yield from _directory(view.host, "Conf file path", path)
        if os.path.lexists(path):
            yield stops(ErrorCode.PATH_TAKEN, path=path)
    yield fine(path=path)


def boot_files(view: FilesView) -> Iterator[Saw]:
    """A kernel that is booted directly, and its initrd, are here under the same paths."""
    for what, path in (("kernel", view.facts.kernel), ("initrd", view.facts.initrd)):
        if path is not None and not os.path.isfile(path):
            yield stops(ErrorCode.FILE_MISSING, path=path, what=what)


def removable_media(view: FilesView) -> Iterator[Saw]:
    """An image in a CD-ROM or floppy drive is here under the same path: it is not mirrored."""
    for medium in view.facts.media:
        if not os.path.exists(medium.path):
            device = "CD-ROM" if medium.device == "cdrom" else medium.device
            yield stops(ErrorCode.MEDIUM_MISSING, device=device, target=medium.target, path=medium.path)


def serial_ports(view: FilesView) -> Iterator[Saw]:
    """What a serial port leads to is here."""
    for port in view.facts.serial_ports:
        directory = os.path.dirname(port.path)
        if port.must_exist and not os.path.exists(port.path):
            yield stops(ErrorCode.SERIAL_MISSING, path=port.path)
        elif not os.path.isdir(directory):
            yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason="a serial port writes into it")


LOOKS: Looks[FilesView] = {
    Check.TARGET_PATH: target_path,
    Check.TARGET_DIRECTORY: target_directory,
    Check.DISK_SPACE: disk_space,
    Check.VIRTUAL_SIZE: virtual_size,
    Check.CONF_FILE: conf_file,
    Check.BOOT_FILES: boot_files,
    Check.REMOVABLE_MEDIA: removable_media,
    Check.SERIAL_PORTS: serial_ports,
}
