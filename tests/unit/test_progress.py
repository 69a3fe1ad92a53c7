"""What a Progress may hold: each disk and each pass of a large VM, and still one datagram."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import DATAGRAM_LIMIT, Command, MessageType
from tests.unit.catalogue import names, sentences
from tests.unit.samples import MASTER, REQUEST_ID
from wire.datagram import Direction, seal
from wire.message import Reply, decode, encode
from wire.phrase import Phrase
from wire.records import PHASE_BYTES, DiskProgress, MemoryProgress, Progress, fitting
from wire.schema import from_wire, to_wire

TERABYTE = 10**12
# Its quotes count.
LONGEST = "x" * (PHASE_BYTES - 2)
COUNTS = st.integers(0, 2**63 - 1)
DISKS = st.builds(DiskProgress, st.from_regex(r"[a-z][a-z0-9]{1,15}", fullmatch=True), COUNTS, COUNTS)


def sealed(progress: Progress) -> bytes:
    """The datagram that tells it, with everything else as long as it can be."""
    reply = Reply(
        msg_type=MessageType.PROGRESS, request_id=REQUEST_ID, agent_ip="2001:db8:1111:2222:3333:4444:5555:6666",
        cmd=Command.DEFINE_VIRTUAL_MACHINE, sequence=10**9, asked="f" * 32, cmd_result=progress)
    assert decode(encode(reply)) == reply
    return seal(MASTER, Direction.REPLY, encode(reply))


def sixteen(size: int) -> tuple[DiskProgress, ...]:
    """As many disks of that size, in bytes, of which a tenth is left."""
    return tuple(DiskProgress(f"vd{letter}", size - size // 10, size) for letter in "abcdefghijklmnop")


@pytest.mark.parametrize("size", [0, 1, 40 << 30, 10 * TERABYTE])
def test_sixteen_disks_fit_into_one_datagram_with_the_longest_of_phases(size: int) -> None:
    disks = sixteen(size)
    assert fitting(disks) == disks
    progress = Progress(phase=LONGEST, done=2**63 - 1, total=2**63 - 1, disks=disks)
    assert len(sealed(progress)) <= DATAGRAM_LIMIT


@pytest.mark.parametrize("words", [
    text for text, places in sentences().items()
    if {"steps/convergence.py", "steps/live_migration.py", "steps/copy_disk_file.py"} & set(places)])
def test_each_phase_fits_with_its_facts_and_sixteen_disks(words: str) -> None:
    phase = Phrase(words, {name.strip("{}"): "12345 MiB/s" for name in names(words)})
    progress = Progress(phase=phase, done=2**63 - 1, total=2**63 - 1, disks=sixteen(10 * TERABYTE))
    assert len(sealed(progress)) <= DATAGRAM_LIMIT


@given(st.lists(DISKS, max_size=40).map(tuple))
def test_as_many_disks_are_told_as_fit_from_the_first(disks: tuple[DiskProgress, ...]) -> None:
    shown = fitting(disks)
    assert shown == disks[:len(shown)]
    progress = Progress(phase=LONGEST, done=2**63 - 1, total=2**63 - 1, disks=shown)
    assert len(sealed(progress)) <= DATAGRAM_LIMIT
    if shown != disks:
        with pytest.raises(ValueError, match="more than a datagram"):
            dataclasses.replace(progress, disks=disks)


def test_what_just_fits_is_told_and_is_less_than_a_datagram() -> None:
    room = next(length for length in range(2000) if not fitting((DiskProgress("x" * length, 1, 1),)))
    fits = (DiskProgress("x" * (room - 1), 1, 1),)
    progress = Progress(phase=LONGEST, done=2**63 - 1, total=2**63 - 1, disks=fits)
    assert DATAGRAM_LIMIT - 20 <= len(sealed(progress)) <= DATAGRAM_LIMIT


def test_the_figures_of_a_pass_fit_too_and_never_come_with_disks() -> None:
    most = 2**63 - 1
    largest = MemoryProgress(passes=most, left=most, rate=most, dirty_rate=most, downtime_limit=most, post_copy=False)
    progress = Progress(phase=LONGEST, done=2**63 - 1, total=2**63 - 1, memory=largest)
    assert len(sealed(progress)) <= DATAGRAM_LIMIT
    with pytest.raises(ValueError, match="more than a datagram"):
        dataclasses.replace(progress, disks=sixteen(1))


def test_a_disk_is_a_list_on_the_wire() -> None:
    progress = Progress(phase="x", done=1, total=2, disks=(DiskProgress("vda", 1, 2),))
    assert to_wire(progress) == {"phase": "x", "done": 1, "total": 2, "disks": [["vda", 1, 2]]}
    assert "disks" not in to_wire(Progress(phase="x", done=1, total=2))


@pytest.mark.parametrize("disk", [
    [], ["vda"], ["vda", 1], ["vda", 1, 2, 3], ["vda", "1", 2], [1, 1, 2], ["vda", 1.0, 2], ["vda", 1, True],
    {"target": "vda", "done": 1, "total": 2}, "vda", None, ["vda", 1, 2**63],
])
def test_what_is_no_disk_is_refused(disk: Any) -> None:
    with pytest.raises(ValueError, match="disks"):
        from_wire(Progress, {"phase": "x", "done": 1, "total": 2, "disks": [disk]})


@pytest.mark.parametrize("disk", [("vda", 1, 2), DiskProgress("vda", -1, 2), DiskProgress("vda", 1, -2)])
def test_no_progress_is_made_with_what_is_no_disk_or_counts_below_nought(disk: Any) -> None:
    with pytest.raises(ValueError, match=r"wrong type|negative"):
        Progress(phase="x", done=1, total=2, disks=(disk,))
