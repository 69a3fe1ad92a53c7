"""Disk images on this host: what one is, and making an empty one. Formats are always given, never probed."""

from __future__ import annotations

import json
import os
from typing import Any

from constant import ImageFormat
from host.domain_xml import DiskElement
from host.job_files import remove_if_same
from host.process import run_tool
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts


def examine(disk: DiskElement, image_format: ImageFormat, size: tuple[int, int], host: str, domain: str) -> DiskFacts:
    """The facts of a disk's image, which may be in use. `size` is what libvirt says: virtual, allocated, in bytes.

    Raises MigrationError TOOL_MISSING or TOOL_FAILED, DISK_UNSUPPORTED.
    """
    assert disk.path is not None, "only a disk with an image is examined"  # noqa: S101 - for the type checker
    cluster_size, compat = 0, ""
    if image_format is ImageFormat.QCOW2:
        # -U reads without QEMU's lock, which the running VM holds: the header does not change under it.
        information = json.loads(run_tool(
            ["qemu-img", "info", "-U", "-f", image_format.value, "--output=json", disk.path], host))
        _refuse_special(information, disk.target, host, domain)
        cluster_size = int(information["cluster-size"])
        compat = str(information["format-specific"]["data"]["compat"])
    return DiskFacts(
        target=disk.target, path=disk.path, format=image_format, virtual_size=size[0], allocated=size[1],
        cluster_size=cluster_size, compat=compat)


def _refuse_special(information: dict[str, Any], target: str, host: str, domain: str) -> None:
    """Raise MigrationError DISK_UNSUPPORTED for what a mirror into a plain empty image would lose."""
    special = information["format-specific"]["data"]
    reasons = (
        (bool(information.get("snapshots")), "its image holds internal snapshots, see `qemu-img snapshot -l`"),
        ("data-file" in special, "its image keeps its data in another file"),
        (bool(special.get("extended-l2")), "its image has extended L2 entries"),
    )
    for applies, reason in reasons:
        if applies:
            raise MigrationError(
                ErrorCode.DISK_UNSUPPORTED, {"host": host, "domain": domain, "target": target, "reason": reason})


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


def create_empty(disk: DiskFacts, owner: tuple[int, int], host: str) -> os.stat_result:
    """Make an empty image of the disk's format and size at its path, which must not exist, for QEMU's user alone.

    Returns the new file's status. Raises MigrationError PATH_TAKEN, TOOL_FAILED, DIRECTORY_MISSING.
    """
    try:
        descriptor = os.open(disk.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise MigrationError(ErrorCode.PATH_TAKEN, {"path": disk.path, "host": host}) from error
    except OSError as error:
        facts = {"path": os.path.dirname(disk.path), "host": host, "reason": error.strerror or str(error)}
        raise MigrationError(ErrorCode.DIRECTORY_MISSING, facts) from error
    status = os.fstat(descriptor)
    try:
        os.fchown(descriptor, *owner)
        if disk.format is ImageFormat.RAW:
            os.ftruncate(descriptor, disk.virtual_size)
        else:
            options = f"compat={disk.compat},cluster_size={disk.cluster_size}"
            # By its descriptor: whoever may write in that directory could put a link in place of the name.
            run_tool(["qemu-img", "create", "-q", "-f", disk.format.value, "-o", options,
                      f"/proc/self/fd/{descriptor}", str(disk.virtual_size)], host, keep_open=(descriptor,))
    except BaseException:
        remove_if_same(disk.path, status)
        raise
    finally:
        os.close(descriptor)
    return status
