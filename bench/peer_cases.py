"""What is measured: guests, links, the ways of moving them, and how often. Data alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.peer_commands import Way

_VIRSH = (Way.VIRSH_FILE, Way.VIRSH_POOL)


@dataclass(frozen=True)
class Disk:
    """A qcow2 disk: how large the guest sees it, in GiB, and how much data is in it, in MiB."""

    size_gib: int
    data_mib: int


@dataclass(frozen=True)
class Machine:
    """A VM. Of its disk and of its memory a writer in it rewrites so many MiB in a circle, without a pause."""

    name: str
    what: str
    disks: tuple[Disk, ...]
    running: bool = True
    disk_writer_mib: int = 0
    memory_writer_mib: int = 0


@dataclass(frozen=True)
class Case:
    """A VM on a link, in Mbit/s (None: as fast as the machine), and the ways of moving it, ours first.

    `most_pairs` is how often each way is measured at most: what takes minutes is not repeated as often. `once` are the
    ways that are measured one time.
    """

    machine: Machine
    link_mbit: int | None
    ways: tuple[Way, ...]
    most_pairs: int = 9
    once: tuple[Way, ...] = ()

    @property
    def name(self) -> str:
        """What it is called on the command line and in the results."""
        return f"{self.machine.name}-{link_name(self.link_mbit)}"


def link_name(mbit: int | None) -> str:
    """A link in a word: full, 1000, 100."""
    return "full" if mbit is None else str(mbit)


PLAIN = Machine("plain", "8 GiB disk with 2 GiB of data, idle", (Disk(8, 2048),))
LARGE = Machine("large", "40 GiB disk with 1 GiB of data, idle", (Disk(40, 1024),))
TWO = Machine("two", "two disks, 8 GiB with 1 GiB and 4 GiB with 512 MiB of data, idle", (Disk(8, 1024), Disk(4, 512)))
WRITING = Machine(
    "writing", "8 GiB disk with 2 GiB of data; the guest rewrites 64 MiB of disk and 16 MiB of memory",
    (Disk(8, 2048),), disk_writer_mib=64, memory_writer_mib=16)
OFF = Machine("off", "8 GiB disk with 2 GiB of data, shut off", (Disk(8, 2048),), running=False)
# 640 MiB and the memory take a minute at 100 Mbit/s: long enough to see what is added in percent.
MINUTE = Machine("minute", "8 GiB disk with 640 MiB of data, idle", (Disk(8, 640),))
#: Moved once before anything is measured, so that both libvirts and both agents have done it before.
WARM_UP = Machine("warm", "1 GiB disk with 64 MiB of data", (Disk(1, 64),))

CASES: Sequence[Case] = (
    Case(PLAIN, None, (Way.OURS, *_VIRSH, Way.SCP)),
    Case(PLAIN, 1000, (Way.OURS, *_VIRSH, Way.SCP), once=(Way.SCP,)),
    Case(LARGE, None, (Way.OURS, *_VIRSH)),
    Case(LARGE, 1000, (Way.OURS, *_VIRSH)),
    Case(TWO, None, (Way.OURS, *_VIRSH)),
    Case(TWO, 1000, (Way.OURS, *_VIRSH)),
    Case(WRITING, None, (Way.OURS, *_VIRSH)),
    Case(WRITING, 1000, (Way.OURS, *_VIRSH)),
    Case(OFF, None, (Way.OURS, Way.RSYNC)),
    Case(OFF, 1000, (Way.OURS, Way.RSYNC)),
    Case(MINUTE, 100, (Way.OURS, *_VIRSH), most_pairs=1),
)


def chosen(names: Sequence[str], *, quick: bool) -> list[Case]:
    """The cases of these names, or of VMs of these names; all if there is none. A quick round leaves out the slow one.

    Raises ValueError, naming those that there are.
    """
    known = {name for case in CASES for name in (case.name, case.machine.name)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no case {', '.join(unknown)}: {', '.join(sorted(known))}")
    return [
        case for case in CASES
        if (not names and not (quick and case.most_pairs == 1)) or case.name in names or case.machine.name in names]


def order(case: Case, pairs: int) -> list[tuple[int, Way]]:
    """The runs of a case, each way in turn: A B A B. Pairs are numbered from 1."""
    return [
        (pair, way) for pair in range(1, min(pairs, case.most_pairs) + 1) for way in case.ways
        if pair == 1 or way not in case.once]
