"""Checks on the destination about files: what is made or sent there, the conf file, room for them, what must be there.

They need no libvirt, so that they also run where that does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from constant import FilePurpose
from host.image import device_problem, qemu_may_enter, size_of
from host.job_files import in_system_directory, refuse_system_directory
from host.process import tool_path
from steps.checks.look import Looks, Saw, fine, stops, warns
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts, FileFacts
from wire.findings import Check
from wire.phrase import Phrase, joined, template
from wire.placement import Placement, is_device
from wire.records import Migration, libvirt_conf_path

_MIB = 1024 * 1024
_BOOT = frozenset({FilePurpose.KERNEL, FilePurpose.INITRD, FilePurpose.DEVICE_TREE})
# Each kind of file belongs to one check.
_IMAGES = frozenset({FilePurpose.LAYER, FilePurpose.DISK, FilePurpose.NVRAM, FilePurpose.TPM})


@dataclass(frozen=True)
class FilesView:
    """What the checks of the destination's files look at."""

    host: str
    migration: Migration
    facts: DomainFacts
    qemu_ids: tuple[int, int] = (0, 0)
    """As whom QEMU runs here; 0, 0 also if libvirt does not say."""

    @cached_property
    def placement(self) -> Placement:
        """Where everything goes."""
        return self.migration.placement(self.facts)

    def made(self) -> list[str]:
        """The paths of the new images that QEMU will fill, and of the NVRAM."""
        paths = [self.placement.path(disk.path) for disk in self.facts.mirrored]
        nvram = self.facts.nvram
        return [path for path in paths if not is_device(path)] + (
            [self.placement.path(nvram.path)] if nvram is not None else [])

    def sent(self, purposes: frozenset[FilePurpose]) -> Iterator[tuple[FileFacts, str]]:
        """The files of these purposes that may have to be sent, each with its path here."""
        for file in self.facts.files:
            if file.purpose in purposes:
                yield file, self.placement.path(file.path)

    def devices(self) -> Iterator[tuple[DiskFacts, str]]:
        """The disks that go to a block device here."""
        for disk in self.facts.disks:
            path = self.placement.path(disk.path)
            if is_device(path):
                yield disk, path

    def new_paths(self) -> list[str]:
        """All files that the job would make."""
        lacking = [
            path for file, path in self.sent(frozenset(FilePurpose))
            if not is_device(path) and file.purpose is not FilePurpose.TPM and not os.path.lexists(path)
            and not (file.purpose in _BOOT and in_system_directory(path))]
        return [*self.made(), *lacking]

    def directories(self) -> list[str]:
        """Where new files go."""
        return list(dict.fromkeys(os.path.dirname(path) for path in self.new_paths()))


def target_path(view: FilesView) -> Iterator[Saw]:
    """Nothing is overwritten; what is there already and may be the same is left as it is."""
    for path in view.made():
        if os.path.lexists(path):
            yield stops(ErrorCode.PATH_TAKEN, path=path)
    yield from _other_files(view, _IMAGES)
    for path in view.placement.collisions():
        yield stops(ErrorCode.PATHS_COLLIDE, path=path)
    for disk, path in view.devices():
        length = disk.virtual_size if not disk.sent else _length(view, disk)
        problem = device_problem(path, length, view.host)
        if problem is not None:
            yield stops(
                ErrorCode.DEVICE_UNFIT, path=path, target=disk.target, reason=problem, length=str(length))
    yield fine(paths=_named([view.placement.path(disk.path) for disk in view.facts.disks]))


def _length(view: FilesView, disk: DiskFacts) -> int:
    return next((file.length for file in view.facts.files if file.path == disk.path), disk.virtual_size)


def _other_files(view: FilesView, purposes: frozenset[FilePurpose]) -> Iterator[Saw]:
    """What is at the place of a file that is to be sent and cannot be the same. Its content is compared later."""
    for file, path in view.sent(purposes):
        if is_device(path) or not os.path.lexists(path):
            continue
        if file.purpose in (FilePurpose.DISK, FilePurpose.NVRAM, FilePurpose.TPM):
            # Somebody's own, whatever it holds: a disk is not shared with another VM.
            yield stops(ErrorCode.PATH_TAKEN, path=path)
        elif not os.path.isfile(path) or size_of(path).length != file.length:
            yield stops(ErrorCode.PATH_TAKEN, path=path)


def target_directory(view: FilesView) -> Iterator[Saw]:
    """The directories of the new files are there, are meant for such, can be written, and QEMU may enter them."""
    for path in view.new_paths():
        yield from _directory(view.host, template("Disk path"), path)
    for directory in view.directories():
        if os.path.isdir(directory) and not qemu_may_enter(directory, view.qemu_ids, view.host):
            reason = Phrase("QEMU's user (id {id}) may not enter it, or one above it", {"id": str(view.qemu_ids[0])})
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
        yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason=Phrase("it does not exist"))
    elif not os.path.isdir(directory):
        yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason=Phrase("it is not a directory"))
    elif os.statvfs(directory).f_flag & os.ST_RDONLY:
        yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason=Phrase("it is on a read-only file system"))
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason=Phrase("it cannot be written"))


def _named(paths: list[str]) -> str:
    return joined(paths) or Phrase("no path")


def _shares(view: FilesView) -> Iterator[tuple[str, int, int]]:
    """For each new file: its path, bytes to be written, bytes at most."""
    for disk in view.facts.mirrored:
        path = view.placement.path(disk.path)
        if not is_device(path):
            yield path, disk.copied, disk.virtual_size
    sizes = {disk.path: disk.virtual_size for disk in view.facts.disks}
    for file, path in view.sent(frozenset(FilePurpose)):
        if not is_device(path) and not os.path.lexists(path):
            yield path, file.allocated, sizes.get(file.path, file.length)


def _spaces(view: FilesView) -> Iterator[tuple[str, int, int, int]]:
    """For each file system that files go to: a directory on it, free bytes, bytes to be written, bytes at most."""
    shares: dict[int, tuple[str, int, int]] = {}
    for path, allocated, largest in _shares(view):
        directory = os.path.dirname(path)
        if os.path.isdir(directory):
            device = os.stat(directory).st_dev
            first, written, most = shares.get(device, (directory, 0, 0))
            shares[device] = first, written + allocated, most + largest
    for directory, written, most in shares.values():
        file_system = os.statvfs(directory)
        yield directory, file_system.f_bavail * file_system.f_frsize, written, most


def disk_space(view: FilesView) -> Iterator[Saw]:
    """What crosses fits, on each file system together."""
    # Where a directory is missing, its own check says so.
    yield fine(free=Phrase("unknown"), needed="0")
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
    path, domain = view.migration.conf_path(), view.migration.name_there
    own = libvirt_conf_path(domain)
    if path != own:
        reasons = (
            (not path.endswith(".xml"), Phrase("its name must end in .xml")),
            (os.path.dirname(path) == os.path.dirname(own),
             Phrase("in that directory libvirt keeps this VM as {domain}.xml", {"domain": domain})),
        )
        for applies, reason in reasons:
            if applies:
                yield stops(ErrorCode.PATH_NOT_ALLOWED, what=Phrase("Conf file path"), path=path, reason=reason)
        yield from _directory(view.host, template("Conf file path"), path)
        if os.path.lexists(path):
            yield stops(ErrorCode.PATH_TAKEN, path=path)
    yield fine(path=path)


def boot_files(view: FilesView) -> Iterator[Saw]:
    """Firmware comes with the host's packages. A kernel is sent, unless its place is among the system's own."""
    firmware = view.facts.firmware
    if firmware is not None and not os.path.isfile(firmware):
        yield stops(ErrorCode.FILE_MISSING, path=firmware, what=Phrase("firmware"))
    for file, path in view.sent(_BOOT):
        if in_system_directory(path) and not os.path.isfile(path):
            yield stops(ErrorCode.FILE_MISSING, path=path, what=Phrase(file.purpose.value))
    yield from _other_files(view, _BOOT)


def removable_media(view: FilesView) -> Iterator[Saw]:
    """An image in a CD-ROM or floppy drive is sent, unless another is in its place."""
    yield from _other_files(view, frozenset({FilePurpose.MEDIUM}))


def tpm_emulator(view: FilesView) -> Iterator[Saw]:
    """The program that emulates a TPM is here."""
    if view.facts.has_tpm:
        tool_path("swtpm", view.host)
    yield fine()


def serial_ports(view: FilesView) -> Iterator[Saw]:
    """What a serial port leads to is here."""
    for port in view.facts.serial_ports:
        directory = os.path.dirname(port.path)
        if port.must_exist and not os.path.exists(port.path):
            yield stops(ErrorCode.SERIAL_MISSING, path=port.path)
        elif not os.path.isdir(directory):
            yield stops(ErrorCode.DIRECTORY_MISSING, path=directory, reason=Phrase("a serial port writes into it"))


LOOKS: Looks[FilesView] = {
    Check.TARGET_PATH: target_path,
    Check.TARGET_DIRECTORY: target_directory,
    Check.DISK_SPACE: disk_space,
    Check.VIRTUAL_SIZE: virtual_size,
    Check.CONF_FILE: conf_file,
    Check.BOOT_FILES: boot_files,
    Check.REMOVABLE_MEDIA: removable_media,
    Check.TPM_EMULATOR: tpm_emulator,
    Check.SERIAL_PORTS: serial_ports,
}
