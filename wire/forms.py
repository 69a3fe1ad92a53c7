"""The forms of ids, addresses, paths and names: what comes from the command line or a datagram has one of them or is
refused.
"""

from __future__ import annotations

import functools
import ipaddress
import re

from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

_REQUEST_ID_PATTERN = re.compile(r"[0-9a-f]{32}")
JOB_ID_PATTERN = re.compile(r"[0-9a-f]{8}")
JOB_ID_FORM = Phrase("A job id has 8 hexadecimal digits.")
# useradd(8), and the capitals and dots of directory services; it must never look like an option or a path.
USER_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")
USER_FORM = Phrase("A user name is a letter or _, and up to 63 more of letters, digits, `.`, `-` and `_`.")
# libvirt forbids a slash and control characters in a name; a leading dash would be taken for an option by virsh.
# Those from 0x80 to 0x9f steer a terminal as well. A lone surrogate stands for a byte that is not UTF-8.
DOMAIN_PATTERN = re.compile(r"[^-/\x00-\x1f\x7f-\x9f\ud800-\udfff][^/\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,254}")
NAME_FORM = Phrase("A name has 1 to 255 signs, no `/` and no control character, and does not begin with `-`.")


def check_request_id(request_id: str) -> None:
    """Raise ValueError for what cannot be the id of a request: 128 random bits as hexadecimal digits."""
    if not _REQUEST_ID_PATTERN.fullmatch(request_id):
        raise ValueError("no request id")


def check_job_id(job_id: str) -> None:
    """Raise ValueError for what cannot be the id of a job: 32 random bits as hexadecimal digits."""
    if not JOB_ID_PATTERN.fullmatch(job_id):
        raise ValueError("no job id")


def check_tokens(epoch: str, challenge: str) -> None:
    """Raise ValueError for what no agent gives out as epoch (16 digits) and challenge (about 30 signs)."""
    if max(len(epoch), len(challenge)) > 64:
        raise ValueError("no epoch or challenge")


@functools.lru_cache(maxsize=4096)
def check_address(address: str) -> str:
    """Return `address` if it is an IP address in its shortest form, without a scope, which means something on one
    host only. Raises ValueError.
    """
    if "%" in address or address != str(ipaddress.ip_address(address)):
        raise ValueError(f"{address!r} is not a canonical address")
    return address


def check_path(what: str, path: str) -> str:
    """Return `path` if it is a plain absolute path of at most 512 characters to a file. `what` is a template.

    Raises MigrationError PATH_INVALID. Every path from the command line or a datagram comes through here.
    """
    parts = path.split("/")
    plain = (
        path.startswith("/") and len(path) <= 512 and len(parts) > 2 and path.isprintable()
        and not any(part in ("", ".", "..") for part in parts[1:])
    )
    if not plain:
        raise MigrationError(ErrorCode.PATH_INVALID, {"what": Phrase(what), "path": path})
    return path


def check_directory(what: str, path: str) -> str:
    """Return `path` if it is a plain absolute path to which the name of a file can be added. `what` is a template.

    Raises MigrationError PATH_INVALID.
    """
    if path.endswith("/") or len(path) > 500:
        raise MigrationError(ErrorCode.PATH_INVALID, {"what": Phrase(what), "path": path})
    try:
        check_path(what, f"{path}/file")
    except MigrationError as error:
        raise MigrationError(ErrorCode.PATH_INVALID, {"what": Phrase(what), "path": path}) from error
    return path
