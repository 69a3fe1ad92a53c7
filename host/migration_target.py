"""Where a domain goes, and how, as libvirt's call for a migration wants to be told: flags and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from constant import CopyStorage
from host.bindings import libvirt

_COPY_FLAGS = {
    CopyStorage.ALL: libvirt.VIR_MIGRATE_NON_SHARED_DISK,
    CopyStorage.INC: libvirt.VIR_MIGRATE_NON_SHARED_INC,
    # The job made the image itself, empty: leaving out the zeroing copies the same bytes (design.md, section 3).
    CopyStorage.AUTO: libvirt.VIR_MIGRATE_NON_SHARED_INC,
}
_LIVE_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_CHANGE_PROTECTION
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)
_OFFLINE_FLAGS = libvirt.VIR_MIGRATE_OFFLINE | libvirt.VIR_MIGRATE_PEER2PEER
# libvirt has it from 8.0 on.
_SYNCHRONOUS_WRITES = "VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES"


@dataclass(frozen=True)
class MigrationTarget:
    """Where a domain goes, and how: URIs for the peer libvirtd, for memory and for the disks; limits in MiB/s."""

    connection: str
    memory: str
    disks: str
    listen_address: str | None
    copy_storage: CopyStorage
    bandwidth: int
    mirrored: tuple[str, ...]
    offline: bool = False
    """Whether the domain is shut off: then only its definition is sent."""
    persistent: bool = True
    held: bool = False
    """Whether the guest stays paused over there until it is handed over."""
    name: str | None = None
    """What it is called over there, if otherwise than here."""
    document: str | None = None
    lasting: str | None = None
    """Its XML over there, of the running domain and of its definition; None as it is here."""
    auto_converge: bool = False
    post_copy: bool = False
    synchronous_writes: bool = False

    def flags(self) -> int:
        """libvirt's VIR_MIGRATE_* for all that. One that this libvirt lacks is refused by CHECK_SOURCE."""
        flags: int = _OFFLINE_FLAGS if self.offline else _LIVE_FLAGS
        wanted = {
            "VIR_MIGRATE_PERSIST_DEST": self.persistent,
            "VIR_MIGRATE_AUTO_CONVERGE": self.auto_converge and not self.offline,
            "VIR_MIGRATE_POSTCOPY": self.post_copy and not self.offline,
            "VIR_MIGRATE_PAUSED": self.held and not self.offline,
            _SYNCHRONOUS_WRITES: self.synchronous_writes and self.mirrored and not self.offline}
        for name, is_wanted in wanted.items():
            flags |= getattr(libvirt, name) if is_wanted else 0
        if self.mirrored and not self.offline:
            flags |= _COPY_FLAGS[self.copy_storage]
        return flags

    def parameters(self) -> dict[str, Any]:
        """libvirt's VIR_MIGRATE_PARAM_* for it, those that mean something."""
        live = {
            libvirt.VIR_MIGRATE_PARAM_URI: self.memory,
            libvirt.VIR_MIGRATE_PARAM_DISKS_URI: self.disks if self.mirrored else None,
            libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS: list(self.mirrored) or None,
            libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: self.listen_address,
            libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: self.bandwidth or None,
            libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY: self.bandwidth or None if self.post_copy else None,
        }
        always = {
            libvirt.VIR_MIGRATE_PARAM_DEST_NAME: self.name,
            libvirt.VIR_MIGRATE_PARAM_DEST_XML: self.document,
            libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: self.lasting,
        }
        given = always if self.offline else {**live, **always}
        return {name: value for name, value in given.items() if value is not None}


def has_synchronous_writes() -> bool:
    """Whether libvirt can have the guest's writes wait for the destination."""
    return hasattr(libvirt, _SYNCHRONOUS_WRITES)
