"""The files of a domain on this host that are not mirrored: layers, media, boot files, NVRAM, the TPM's state."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from constant import DomainState, FilePurpose, ImageFormat
from host.domain_xml import DomainDescription, NvramElement, inserted_media
from host.image import size_of
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, FileFacts, NvramFacts
from wire.phrase import Phrase

# Where libvirt has swtpm keep its state (libvirt's qemu_tpm.c, swtpmStorageDir).
TPM_DIRECTORY = "/var/lib/libvirt/swtpm"


@dataclass(frozen=True)
class FilesQuestion:
    """Whose files are asked about."""

    host: str
    domain: str
    state: DomainState
    descriptions: tuple[DomainDescription, ...]
    """The domain as it runs and as it is defined."""
    flatten: bool
    eject: bool


def files_of(question: FilesQuestion, disks: Sequence[DiskFacts]) -> Iterator[FileFacts | MigrationError]:
    """Each file once, or why it cannot be sent."""
    seen = set()
    for path, purpose, target in _named(question, disks):
        if path not in seen:
            seen.add(path)
            try:
                yield _file(path, purpose, target)
            except OSError as error:
                yield MigrationError(ErrorCode.FILE_NOT_SENT, {
                    "host": question.host, "domain": question.domain, "what": Phrase(purpose.value), "path": path,
                    "reason": error.strerror or str(error)})


def _file(path: str, purpose: FilePurpose, target: str) -> FileFacts:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not (stat.S_ISBLK(status.st_mode) and purpose is FilePurpose.DISK):
        raise OSError(0, "it is no ordinary file")
    with open(path, "rb"):
        size = size_of(path)
    return FileFacts(
        path=path, purpose=purpose, target=target, length=size.length, allocated=size.allocated,
        mode=stat.S_IMODE(status.st_mode) & 0o777)


def _named(question: FilesQuestion, disks: Sequence[DiskFacts]) -> Iterator[tuple[str, FilePurpose, str]]:
    own = {disk.path for disk in disks}
    for disk in disks:
        if disk.sent:
            yield disk.path, FilePurpose.DISK, disk.target
        if not question.flatten:
            yield from ((layer.path, FilePurpose.LAYER, "") for layer in disk.layers)
    for description in question.descriptions:
        yield from ((path, purpose, "") for purpose, path in description.boot_files)
        if not question.eject:
            yield from (
                (medium.path, FilePurpose.MEDIUM, medium.target) for medium in inserted_media(description)
                if medium.path is not None and medium.path not in own)
    if question.state is DomainState.SHUT_OFF:
        # Of a running domain, QEMU itself carries both.
        for description in question.descriptions:
            if description.nvram is not None and os.path.exists(description.nvram.path):
                yield description.nvram.path, FilePurpose.NVRAM, ""
            if description.has_tpm:
                yield from ((path, FilePurpose.TPM, "") for path in _tpm_files(description.uuid))


def _tpm_files(uuid: str) -> Iterator[str]:
    for directory, _directories, names in sorted(os.walk(os.path.join(TPM_DIRECTORY, uuid))):
        # A lock is of the program that holds it.
        yield from (os.path.join(directory, name) for name in sorted(names) if not name.endswith(".lock"))


def nvram_facts(nvram: NvramElement | None) -> NvramFacts | None:
    """The file of the firmware's variables, as far as it is there. Raises OSError, ValueError."""
    if nvram is None:
        return None
    return NvramFacts(path=nvram.path, format=ImageFormat(nvram.format), length=size_of(nvram.path).length)
