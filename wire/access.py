"""Who may talk to whom: the configuration directory, the two address lists and the keys in it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from constant import SYSTEM_CONFIG_DIRECTORY
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
# Where pip, and Debian's tools for Python, put modules: nobody looks there for keys.
_INSTALLED = ("site-packages", "dist-packages")


def config_directory(given: str | None, script: str) -> Path:
    """Where lists and keys are: as given, else /etc/vmmigration, else the folder of `script` if it is a checkout's."""
    if given is not None:
        return Path(given)
    system, folder = Path(SYSTEM_CONFIG_DIRECTORY), Path(script).resolve().parent
    return system if system.is_dir() or folder.name in _INSTALLED else folder


def _read(path: Path, what: str = "") -> str:
    """The text of a list of `what`, a template, or of a file of keys. Raises MigrationError FILE_UNREADABLE."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error, what) from error


def _unreadable(path: Path, error: OSError | UnicodeDecodeError, what: str = "") -> MigrationError:
    reason = error.strerror or str(error) if isinstance(error, OSError) else Phrase("it is not UTF-8 text")
    facts = {"path": str(path), "reason": reason}
    if isinstance(error, PermissionError):
        facts["hint"] = Phrase("Repeat the command as root or as the owner of that file.")
    elif what:
        facts["hint"] = Phrase(
            "Create it, with one address a line: that of each {what}." if isinstance(error, FileNotFoundError) else
            "It has one address a line: that of each {what}.", {"what": Phrase(what)})
    return MigrationError(ErrorCode.FILE_UNREADABLE, facts)


def _entries(text: str) -> list[tuple[int, str]]:
    """The numbered lines that say something, without comments."""
    lines = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in lines if line]


def _unmapped(network: Network) -> Network:
    """The IPv4 network that an IPv6 one such as ::ffff:192.0.2.0/120 stands for, or the network itself."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None:
        return network
    return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")


@dataclass(frozen=True)
class AddressList:
    """The addresses and networks of one of the two list files."""

    path: Path
    networks: tuple[Network, ...]

    @classmethod
    def load(cls, path: Path, what: str) -> AddressList:
        """Read the file; `what`, a template, says what its entries are.

        Raises MigrationError FILE_UNREADABLE, LIST_LINE_INVALID (with the line's number) or LIST_EMPTY.
        """
        networks = []
        for number, entry in _entries(_read(path, what)):
            try:
                networks.append(_unmapped(ipaddress.ip_network(entry)))
            except ValueError as error:
                facts = {"path": str(path), "line": str(number), "text": entry}
                raise MigrationError(ErrorCode.LIST_LINE_INVALID, facts) from error
        if not networks:
            raise MigrationError(ErrorCode.LIST_EMPTY, {"path": str(path), "what": Phrase(what)})
        return cls(path, tuple(networks))

    def __contains__(self, address: str) -> bool:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(mapped in network for network in self.networks)


@dataclass(frozen=True, repr=False)
class Key:
    """256 random bits, or what is derived from them for one agent. Never printed but by the commands that make one."""

    secret: bytes

    @property
    def id(self) -> str:
        """What the header line names the key by; says nothing about the key."""
        return hashlib.sha256(b"VMMigration key id" + self.secret).hexdigest()[:8]

    def for_agent(self, address: str) -> Key:
        """The key of the agent at `address`. It cannot be turned back into this one, nor into another agent's."""
        packed = ipaddress.ip_address(address).packed
        return Key(hmac.digest(self.secret, b"VMMigration agent key" + packed, "sha256"))


def load_keys(path: Path) -> tuple[Key, ...]:
    """The keys in a file, one a line; the first one is used to send.

    Raises MigrationError KEY_MISSING, FILE_NOT_PRIVATE (others may read it) or KEY_INVALID.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError as error:
        raise MigrationError(ErrorCode.KEY_MISSING, {"path": str(path)}) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    # Windows has no such bits: there the directory's own access list protects the file.
    if os.name == "posix" and mode & 0o077:
        raise MigrationError(ErrorCode.FILE_NOT_PRIVATE, {"path": str(path)})
    keys = []
    for number, entry in _entries(_read(path)):
        try:
            secret = bytes.fromhex(entry)
        except ValueError:
            secret = b""
        if len(secret) != 32:
            raise MigrationError(ErrorCode.KEY_INVALID, {"path": str(path), "line": str(number)})
        keys.append(Key(secret))
    if not keys:
        raise MigrationError(ErrorCode.KEY_MISSING, {"path": str(path)})
    return tuple(keys)


def write_new_key(path: Path) -> None:
    """Make a master key in a new file with mode 0600. Raises MigrationError KEY_EXISTS or FILE_NOT_WRITTEN."""
    try:
        _write_private(path, _new_line())
    except FileExistsError as error:
        raise MigrationError(ErrorCode.KEY_EXISTS, {"path": str(path)}) from error
    except OSError as error:
        raise _not_written(path, error) from error


def begin_key_change(path: Path) -> None:
    """Put a new key behind the one that is used: agents that are given both hear both.

    Raises MigrationError as load_keys() does, KEY_CHANGE_BEGUN or FILE_NOT_WRITTEN.
    """
    if len(load_keys(path)) > 1:
        raise MigrationError(ErrorCode.KEY_CHANGE_BEGUN, {"path": str(path)})
    text = _read(path)
    _replace(path, text + ("" if text.endswith("\n") else "\n") + _new_line())


def finish_key_change(path: Path) -> None:
    """Take the old key away, so that the new one is used.

    Raises MigrationError as load_keys() does, KEY_CHANGE_NOT_BEGUN or FILE_NOT_WRITTEN.
    """
    if len(load_keys(path)) < 2:
        raise MigrationError(ErrorCode.KEY_CHANGE_NOT_BEGUN, {"path": str(path)})
    lines = _read(path).splitlines()
    number, _ = _entries("\n".join(lines))[0]
    _replace(path, "".join(f"{line}\n" for line in lines[:number - 1] + lines[number:]))


def _new_line() -> str:
    return secrets.token_hex(32) + "\n"


def _replace(path: Path, text: str) -> None:
    """Put a new file in the place of a key file, whole or not at all. Raises MigrationError FILE_NOT_WRITTEN."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        _write_private(beside, text)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise _not_written(path, error) from error


def _write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # An empty file would be taken for a key that is there.
        path.unlink(missing_ok=True)
        raise


def _not_written(path: Path, error: OSError) -> MigrationError:
    """The error of a file of keys, which need not be where they are by default."""
    hint = Phrase("Make room there, or choose another directory with `--config-dir`.")
    if isinstance(error, PermissionError):
        hint = Phrase("Repeat the command as root, or choose another directory with `--config-dir`.")
    elif isinstance(error, FileNotFoundError):
        hint = Phrase("Make the directory first: `install -d -m 755 {directory}`; `--config-dir` chooses another.", {
            "directory": str(path.parent)})
    return MigrationError(ErrorCode.FILE_NOT_WRITTEN, {
        "path": str(path), "reason": error.strerror or str(error), "hint": hint})
