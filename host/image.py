"""Disk images on this host: what one is, with all its layers, and making an empty one. Formats are always given."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from constant import LAYERS_LIMIT, ImageFormat
from host.file_identity import FileIdentity, remove_if_same
from host.mounts import on_other_hosts
from host.process import run_tool
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, LayerFacts
from wire.phrase import Phrase, joined, template
from wire.placement import here_relative

log = logging.getLogger(__name__)

_TABLE_CLUSTERS = 16
# The destination's image may take so much more than the source's.
_THIN_SHARE = 0.05
_MISSING_FORMAT = template(
    "its header does not say which format the image below it has (mend it shut off: "
    "`qemu-img rebase -u -f qcow2 -b {name} -F FORMAT {path}`)")


@dataclass(frozen=True)
class Size:
    """Sizes of a file or block device, in bytes: from its first to its last byte, and what it takes of the disk."""

    length: int
    allocated: int


def size_of(path: str) -> Size:
    """The sizes of a file or block device. Raises OSError."""
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        with open(path, "rb") as device:
            length = device.seek(0, os.SEEK_END)
        return Size(length, length)
    # stat(2): blocks are of 512 bytes, whatever those of the file system are.
    return Size(status.st_size, status.st_blocks * 512)


@dataclass(frozen=True)
class ImageQuestion:
    """Which image is asked about: a disk's path, its format, and what the XML says of the layers' formats."""

    target: str
    path: str
    format: ImageFormat
    formats: Mapping[str, str | None]
    host: str
    domain: str

    def refuse(self, reason: str) -> MigrationError:
        """The error for an image that cannot be moved."""
        return MigrationError(ErrorCode.DISK_UNSUPPORTED, {
            "host": self.host, "domain": self.domain, "target": self.target, "reason": reason})

    def unreadable(self, path: str, reason: str) -> MigrationError:
        """The error for a layer that cannot be used."""
        return MigrationError(ErrorCode.BACKING_UNREADABLE, {
            "host": self.host, "domain": self.domain, "target": self.target, "path": path, "reason": reason})


def examine(question: ImageQuestion, *, sent: bool, flatten: bool = False) -> DiskFacts:
    """The facts of a disk's image and of the layers below it, which may be in use.

    Unless it is to be sent as a file, QEMU copies its content into an empty image, with `flatten` that of its layers
    too: what that would lose is refused.
    Raises MigrationError TOOL_MISSING or TOOL_FAILED, DISK_UNSUPPORTED, BACKING_UNREADABLE.
    """
    try:
        size = size_of(question.path)
    except OSError as error:
        raise question.refuse(Phrase("{path} cannot be read: {reason}", {
            "path": question.path, "reason": error.strerror or str(error)})) from error
    if question.format is ImageFormat.RAW:
        return DiskFacts(
            target=question.target, path=question.path, format=ImageFormat.RAW, virtual_size=size.length,
            allocated=size.allocated, cluster_size=0, compat="", sent=sent)
    information = _information(question.path, question.format, question.host)
    special = information["format-specific"]["data"]
    reason = _what_is_lost(information, sent)
    if reason is not None:
        raise question.refuse(reason)
    layers = tuple(_layers(question, information))
    disk = DiskFacts(
        target=question.target, path=question.path, format=question.format,
        virtual_size=int(information["virtual-size"]), allocated=size.allocated,
        cluster_size=int(information["cluster-size"]), compat=str(special["compat"]),
        extended_l2=bool(special.get("extended-l2")), lazy_refcounts=bool(special.get("lazy-refcounts")),
        refcount_bits=int(special.get("refcount-bits", 16)),
        compression=str(special.get("compression-type", "zlib")),
        backing_name=information.get("backing-filename"), layers=layers, sent=sent,
        preallocated=_is_preallocated(size, int(information["cluster-size"])))
    return disk if sent else replace(disk, content=_content(disk, layers if flatten else (), question.host))


def _content(disk: DiskFacts, layers: Sequence[LayerFacts], host: str) -> int:
    """How many bytes of data a qcow2 image holds, and those of these layers that it lets through; 0 if unknown."""
    node: dict[str, Any] | None = None
    try:
        for layer in reversed(layers):
            node = _node(layer.path, layer.format, node)
        node = _node(disk.path, disk.format, node)
        # What takes as much where nothing is compressed. A running VM goes on writing, as with `info`.
        measured = json.loads(run_tool(
            ["qemu-img", "measure", "-U", "-O", ImageFormat.QCOW2.value, "-o", f"cluster_size={disk.cluster_size}",
             "--output=json", f"json:{json.dumps(node)}"], host))
    except (MigrationError, OSError) as error:
        log.warning("what %s holds is not measured: %s", disk.path, error)
        return 0
    # Less the tables, which are counted for the full size.
    full = -(-disk.virtual_size // disk.cluster_size) * disk.cluster_size
    return max(0, int(measured["required"]) - (int(measured["fully-allocated"]) - full))


def _node(path: str, image_format: ImageFormat, below: dict[str, Any] | None) -> dict[str, Any]:
    """An image as QEMU opens it without a look at what its header says of the image below it."""
    driver = "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    node: dict[str, Any] = {"driver": image_format.value, "file": {"driver": driver, "filename": path}}
    return node if image_format is ImageFormat.RAW else {**node, "backing": below}


def files_below(path: str, host: str) -> Iterator[str]:
    """The paths of what a qcow2 image that is there needs besides itself, going by the headers, the nearest first.

    A chain is followed up to what is not there, is not said to be qcow2, or lies on another host. Raises MigrationError
    TOOL_MISSING or TOOL_FAILED.
    """
    for _depth in range(LAYERS_LIMIT + 1):
        information = _information(path, ImageFormat.QCOW2, host)
        yield from _files_named(information["format-specific"]["data"].get("data-file"), path)
        below = _files_named(information.get("backing-filename"), path)
        yield from below
        is_image = information.get("backing-filename-format") == ImageFormat.QCOW2.value
        if not is_image or len(below) != 1 or on_other_hosts(below) or not os.path.exists(below[0]):
            return
        path = below[0]


def _files_named(name: str | None, above: str) -> list[str]:
    """The files of this host that the header of an image means by that name."""
    if name is None:
        return []
    if name.startswith("json:"):
        return sorted(_file_names(json.loads(name.removeprefix("json:"))))
    name = name.removeprefix("file:")
    if ":" in name.partition("/")[0]:
        return []
    return [os.path.normpath(name) if name.startswith("/") else here_relative(name, above)]


def _file_names(options: Any) -> set[str]:
    """All files in QEMU's options of a block device, and of those below it."""
    if not isinstance(options, dict):
        return set()
    found = {str(name) for key, name in options.items() if key.rpartition(".")[2] == "filename"}
    return {name for name in found if name.startswith("/")}.union(*map(_file_names, options.values()))


def _is_preallocated(size: Size, cluster_size: int) -> bool:
    """Whether a qcow2 image has room on the disk for less of its clusters than it has (`preallocation=metadata`)."""
    # The file of any small image is a bit longer than what it takes: its tables do not fill their clusters.
    return size.length - size.allocated > max(_TABLE_CLUSTERS * cluster_size, size.allocated * _THIN_SHARE)


def _information(path: str, image_format: ImageFormat, host: str) -> dict[str, Any]:
    """What qemu-img tells of one image, without a look at those below it."""
    # -U reads without QEMU's lock, which a running VM holds: the header does not change under it.
    found: dict[str, Any] = json.loads(run_tool(
        ["qemu-img", "info", "-U", "-f", image_format.value, "--output=json", path], host))
    return found


def _what_is_lost(information: dict[str, Any], sent: bool) -> Phrase | None:
    """Why an image cannot be moved; None if it can."""
    special = information["format-specific"]["data"]
    reasons = (
        (not sent and bool(information.get("snapshots")),
         Phrase("its image holds internal snapshots, which only a move of the VM shut off takes along (`qemu-img "
                "snapshot -l` lists them)")),
        ("data-file" in special, Phrase("its image keeps its data in another file")),
        (bool(information.get("encrypted")), Phrase("its image is encrypted")),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _layers(question: ImageQuestion, top: dict[str, Any]) -> Iterator[LayerFacts]:
    """The images below the top one, the nearest first."""
    above, information = question.path, top
    for _depth in range(LAYERS_LIMIT + 1):
        name = information.get("backing-filename")
        if name is None:
            return
        path = _layer_path(question, above, str(name))
        found = information.get("backing-filename-format") or question.formats.get(path)
        if found not in (ImageFormat.QCOW2.value, ImageFormat.RAW.value):
            reason = Phrase("its format is {format}", {"format": str(found)})
            if found is None:
                reason = Phrase(_MISSING_FORMAT, {"name": str(name), "path": above})
            raise question.unreadable(above if found is None else path, reason)
        layer = ImageFormat(found)
        try:
            with open(path, "rb"):
                size = size_of(path)
        except OSError as error:
            raise question.unreadable(path, error.strerror or str(error)) from error
        information = {} if layer is ImageFormat.RAW else _information(path, layer, question.host)
        yield LayerFacts(
            path=path, format=layer, virtual_size=int(information.get("virtual-size", size.length)),
            backing_name=information.get("backing-filename"), allocated=size.allocated)
        above = path
    raise question.refuse(Phrase("its chain has more than {limit} layers", {"limit": str(LAYERS_LIMIT)}))


def _layer_path(question: ImageQuestion, above: str, name: str) -> str:
    """The path of the layer that an image's header names so."""
    if ":" in name.partition("/")[0]:
        # json:{...}, nbd://..., file:...: not the name of a file.
        raise question.unreadable(name, Phrase("it is not named as a file of this host"))
    return os.path.normpath(name) if name.startswith("/") else here_relative(name, above)


def qemu_may_enter(directory: str, ids: tuple[int, int], host: str) -> bool:
    """Whether QEMU, which runs with these user and group ids, may use files in that directory."""
    if ids[0] == 0:
        return True
    as_qemu = ["setpriv", f"--reuid={ids[0]}", f"--regid={ids[1]}", "--init-groups"]
    try:
        run_tool([*as_qemu, "test", "-x", directory], host)
    except MigrationError as error:
        # Anything else, such as a user without a name, says nothing about the directory.
        return error.facts.get("reason") != "exit code 1"
    return True


def create_empty(disk: DiskFacts, owner: tuple[int, int], host: str) -> FileIdentity:
    """Make an empty image of the disk's format and size at its path, which must not exist, for QEMU's user alone.

    The layers of the disk need not be there yet. Returns which file it is. Raises MigrationError PATH_TAKEN,
    TOOL_FAILED, DIRECTORY_MISSING.
    """
    try:
        descriptor = os.open(disk.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise MigrationError(ErrorCode.PATH_TAKEN, {"path": disk.path, "host": host}) from error
    except OSError as error:
        facts = {"path": os.path.dirname(disk.path), "host": host, "reason": error.strerror or str(error)}
        raise MigrationError(ErrorCode.DIRECTORY_MISSING, facts) from error
    identity = FileIdentity.of(descriptor)
    try:
        os.fchown(descriptor, *owner)
        if disk.format is ImageFormat.RAW:
            os.ftruncate(descriptor, disk.virtual_size)
        else:
            # By its descriptor: whoever may write in that directory could put a link in place of the name.
            run_tool(["qemu-img", "create", "-q", "-f", disk.format.value, "-o", _options(disk), *_below(disk),
                      f"/proc/self/fd/{descriptor}", str(disk.virtual_size)], host, keep_open=(descriptor,))
    except BaseException:
        remove_if_same(disk.path, identity)
        raise
    finally:
        os.close(descriptor)
    return identity


def _options(disk: DiskFacts) -> str:
    """The options of qcow2 that make the new image like the old one."""
    options = {"compat": disk.compat, "cluster_size": str(disk.cluster_size)}
    if disk.compat != "0.10":
        # The first version of the format has none of these.
        options["refcount_bits"] = str(disk.refcount_bits)
        for name, wanted in (("lazy_refcounts", disk.lazy_refcounts), ("extended_l2", disk.extended_l2)):
            if wanted:
                options[name] = "on"
        if disk.compression != "zlib":
            options["compression_type"] = disk.compression
    return ",".join(f"{name}={value}" for name, value in options.items())


def _below(disk: DiskFacts) -> list[str]:
    """The layer below, named as the header is to name it; -u does not look for it."""
    if disk.backing_name is None:
        return []
    return ["-u", "-b", disk.backing_name, "-F", disk.layers[0].format.value]


def rename_backing(path: str, name: str, below: ImageFormat, host: str) -> None:
    """Write another name of the layer below into the header of a qcow2 image; its content stays.

    Raises MigrationError TOOL_MISSING or TOOL_FAILED.
    """
    run_tool(["qemu-img", "rebase", "-q", "-u", "-f", ImageFormat.QCOW2.value, "-b", name, "-F", below.value, path],
             host)


def flattened(disk: DiskFacts) -> DiskFacts:
    """The same disk as one image without layers, which takes at most what all of them take together."""
    together = disk.allocated + sum(layer.allocated for layer in disk.layers)
    return replace(disk, backing_name=None, layers=(), allocated=max(disk.allocated, min(together, disk.virtual_size)))


def device_problem(path: str, length: int, host: str) -> str | None:
    """Why a block device cannot take a disk of so many bytes; None if it can: it has just that size, and is blank.

    Raises MigrationError TOOL_MISSING.
    """
    try:
        if not stat.S_ISBLK(os.stat(path).st_mode):
            return Phrase("it is not a block device")
        found = size_of(path).length
        # Exclusively: refused while it is mounted, part of a volume group, or opened so by somebody else.
        os.close(os.open(path, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        return error.strerror or str(error)
    if found != length:
        return Phrase("it has {found} bytes, the disk has {length}", {"found": str(found), "length": str(length)})
    return _signature(path, host)


def _signature(path: str, host: str) -> str | None:
    """What the device says of its content in the places where file systems and partition tables sign."""
    try:
        found = run_tool(["wipefs", "--noheadings", "--output", "TYPE", path], host).split()
    except MigrationError as error:
        if error.code is ErrorCode.TOOL_MISSING:
            raise
        return error.facts.get("reason", Phrase("it cannot be looked at"))
    if found:
        return Phrase("it holds {content}; `wipefs --all {path}` there says that this may go", {
            "content": joined(dict.fromkeys(found)), "path": path})
    with open(path, "rb") as device:
        blank = not device.read(1024 * 1024).strip(b"\0")
    if blank:
        return None
    return Phrase("it does not begin with zeros; `blkdiscard -z {path}` there says that its data may go", {
        "path": path})


