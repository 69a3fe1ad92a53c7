"""How far a running migration is, as libvirt counts it: what virDomainGetJobStats tells, with units that are said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# virDomainGetJobStats tells the size of a page itself from libvirt 3.9 on.
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class JobStatistics:
    """How far a running migration is, in bytes. What libvirt or QEMU does not tell is None."""

    disk_done: int
    disk_total: int
    memory_done: int
    memory_total: int
    """0 until the disks are across: QEMU begins with the memory then."""
    passes: int = 0
    """The pass over the memory that is going on, from 1; 0 before the first one, or if it is not told."""
    memory_left: int = 0
    """Of this pass."""
    rate: int | None = None
    """Bytes of memory per second that cross."""
    dirty_rate: int | None = None
    """Bytes of memory per second that the guest writes; QEMU counts it once a pass."""
    downtime: int | None = None
    """Milliseconds that the guest would stand still if what this pass began with crossed in one go."""
    throttle: int = 0
    """By how many percent auto-converge slows the guest down."""

    @classmethod
    def of(cls, values: Mapping[str, int]) -> JobStatistics:
        """The statistics out of libvirt's own, by the names of its VIR_DOMAIN_JOB_* parameters."""
        pages = values.get("memory_dirty_rate")
        return cls(
            disk_done=int(values.get("disk_processed", 0)), disk_total=int(values.get("disk_total", 0)),
            memory_done=int(values.get("memory_processed", 0)), memory_total=int(values.get("memory_total", 0)),
            passes=int(values.get("memory_iteration", 0)), memory_left=int(values.get("memory_remaining", 0)),
            rate=values.get("memory_bps") or None,
            dirty_rate=pages * values.get("memory_page_size", _PAGE_BYTES) if pages is not None else None,
            downtime=values.get("downtime"), throttle=int(values.get("auto_converge_throttle", 0)))

    @property
    def disk_left(self) -> int:
        """Bytes of the disks that have not crossed yet."""
        return self.disk_total - self.disk_done

    @property
    def mirroring(self) -> bool:
        """Whether the disks are crossing and the memory has not begun."""
        return self.disk_total > 0 and self.memory_total == 0
