"""Copying whole files over a stream: what arrives, what stays as it was, and broken connections."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("paramiko", reason="paramiko is not installed (apt-get install python3-paramiko)")

from host import file_ranges
from host.copy_link import Watch
from host.file_sending import Sent
from tests.unit.copying import DESTINATION, FRAGMENTS, KIB, MIB, SOURCE, Pair, Relay, contents, make_pair, noise, ranges
from wire.errors import ErrorCode


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    return make_pair(tmp_path, monkeypatch)


# What arrives.


@pytest.mark.parametrize(("pieces", "length"), [
    pytest.param((), 0, id="empty"),
    pytest.param(((0, b"x"),), None, id="one byte"),
    pytest.param(((0, noise(4095)),), None, id="less than a page"),
    pytest.param(((0, noise(4097)),), None, id="more than a page"),
    pytest.param(((0, noise(2 * MIB + 12345)),), None, id="dense"),
    pytest.param((), 40 << 30, id="one hole"),
    pytest.param(((MIB, noise(5000)), (30 << 30, noise(MIB + 1))), 40 << 30, id="sparse"),
    pytest.param(((0, noise(4096)),), MIB + 1, id="hole at the end"),
    pytest.param(FRAGMENTS, None, id="fragmented"),
])
def test_a_file_arrives_with_its_bytes_its_length_and_its_holes(
        pair: Pair, pieces: Sequence[tuple[int, bytes]], length: int | None) -> None:
    path = pair.put("disk", *pieces, length=length)
    relay = Relay()
    copied = pair.copy("disk", relay=relay)
    data = sum(end - begin for begin, end in ranges(path))
    assert copied.served.result() is True
    assert copied.sent.result() == [Sent(str(path), path.stat().st_size, data, kept=False)]
    assert relay.carried <= 1.02 * data + 200
    arrived = pair.destination / "disk"
    assert arrived.stat().st_size == path.stat().st_size
    assert arrived.stat().st_mode & 0o7777 == 0o640
    assert arrived.stat().st_blocks <= path.stat().st_blocks + 16
    assert pair.names() == ["disk"]
    assert contents(arrived) == contents(path)
    assert ranges(arrived) == ranges(path)


def test_several_files_arrive_and_their_bytes_are_counted_together(pair: Pair) -> None:
    pair.put("a", (0, noise(MIB + 5)))
    pair.put("b", (0, noise(2 * MIB)))
    pair.put("c")
    sender, receiver = list[int](), list[int]()
    copied = pair.copy(
        "a", "b", "c", watch=Watch(sender.append, lambda: None),
        receiver=pair.receiver("a", "b", "c", watch=Watch(receiver.append, lambda: None)))
    assert [sent.length for sent in copied.sent.result()] == [MIB + 5, 2 * MIB, 0]
    assert pair.same("a", "b", "c")
    for told in (sender, receiver):
        assert told[-1] == 3 * MIB + 5
        assert told == sorted(set(told))
        assert len(told) <= 5


def test_where_the_file_system_tells_no_holes_they_are_found_by_reading(
        pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = (8192, noise(4096)), (2 * MIB - 4096, noise(8192)), (3 * MIB, b"\0" * MIB), (4 * MIB + 1, b"x")
    path = pair.put("disk", *pieces, length=5 * MIB + 7)
    monkeypatch.setattr(file_ranges, "_tells_holes", lambda *_: False)
    assert ranges(path) == [
        (8192, 12288), (2 * MIB - 4096, 2 * MIB), (2 * MIB, 2 * MIB + 4096), (4 * MIB, 4 * MIB + 4096)]
    assert pair.copy("disk").sent.result()[0].data == 16384
    assert pair.same("disk")


@pytest.mark.parametrize(("hole", "allocated", "tells"), [(4096, 0, True), (8192, 8192, True), (8192, 4096, False)])
def test_a_file_system_that_calls_all_data_is_believed_if_all_is_allocated(
        monkeypatch: pytest.MonkeyPatch, hole: int, allocated: int, tells: bool) -> None:
    monkeypatch.setattr(os, "lseek", lambda *_: hole)
    assert file_ranges._tells_holes(0, 8192, allocated) is tells


def test_a_file_system_without_these_questions_is_asked_only_once(
        pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seek = pair.put("disk", (0, noise(4096)), length=MIB), os.lseek

    def refuse(descriptor: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "Invalid argument")
        return seek(descriptor, offset, whence)

    monkeypatch.setattr(os, "lseek", refuse)
    assert ranges(path) == [(0, 4096)]
    assert pair.copy("disk").served.result()
    assert (pair.destination / "disk").read_bytes() == path.read_bytes()


# What is written down, and when.


def test_the_ledger_hears_of_each_name_before_it_can_be_lost(pair: Pair) -> None:
    pair.put("disk", (0, noise(5000)))
    seen = []

    def look(path: str) -> None:
        part = pair.destination / "disk.part"
        seen.append((pair.names(), part.stat().st_size, part.stat().st_mode & 0o777))

    pair.when_made = look
    pair.copy("disk").served.result()
    inode = (pair.destination / "disk").stat().st_ino
    assert pair.made == [("disk.part", inode), ("disk", inode)]
    assert seen == [(["disk.part"], 0, 0o600), (["disk.part"], 5000, 0o640)]


@pytest.mark.parametrize("name", ["disk.part", "disk"])
def test_what_cannot_be_written_down_is_not_made(pair: Pair, name: str) -> None:
    pair.put("disk", (0, b"x"))

    def fail(path: str) -> None:
        if Path(path).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", "/var/lib/ledger")

    pair.when_made = fail
    copied = pair.copy("disk")
    assert copied.codes == (ErrorCode.FILE_NOT_WRITTEN,) * 2
    assert copied.facts["path"] == "/var/lib/ledger"
    assert pair.names() == []


def test_it_is_on_disk_before_it_has_its_name(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.put("disk", (0, b"x"))
    synced: list[tuple[str, list[str]]] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, pair.names()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    pair.copy("disk").served.result()
    assert synced[0] == ("disk.part", ["disk.part"])
    assert synced[-1] == ("destination", ["disk"])


# Nothing is overwritten.


def test_the_same_file_at_the_destination_is_kept_and_not_sent(pair: Pair) -> None:
    path = pair.put("base", (MIB, noise(MIB)), length=3 * MIB)
    there = pair.destination / "base"
    there.write_bytes(path.read_bytes())
    there.chmod(0o444)
    before, relay = there.stat(), Relay()
    copied = pair.copy("base", relay=relay)
    assert copied.sent.result() == [Sent(str(path), 3 * MIB, 0, kept=True)]
    assert copied.served.result() is True
    assert relay.carried < 300
    after = there.stat()
    # Not the time of its reading.
    assert (after[:7], after.st_mtime_ns) == (before[:7], before.st_mtime_ns)
    assert pair.made == []


@pytest.mark.parametrize("content", [
    pytest.param(noise(MIB)[:-1] + b"?" + bytes(MIB), id="other data"),
    pytest.param(noise(MIB) + bytes(MIB - 1) + b"?", id="data in the source's hole"),
    pytest.param(noise(MIB) + bytes(MIB + 1), id="longer"),
    pytest.param(noise(MIB), id="shorter"),
])
def test_another_file_at_the_destination_stays_as_it_is(pair: Pair, content: bytes) -> None:
    pair.put("base", (0, noise(MIB)), length=2 * MIB)
    (pair.destination / "base").write_bytes(content)
    copied = pair.copy("base")
    assert copied.codes == (ErrorCode.PATH_TAKEN,) * 2
    assert copied.facts == {"path": str(pair.destination / "base"), "host": DESTINATION}
    assert (pair.destination / "base").read_bytes() == content
    assert pair.names() == ["base"]


@pytest.mark.parametrize("name", ["disk", "disk.part"])
def test_a_link_or_a_directory_in_the_way_is_an_obstacle(pair: Pair, name: str) -> None:
    pair.put("disk", (0, b"x"))
    victim = pair.source / "victim"
    victim.write_bytes(b"v")
    (pair.destination / name).symlink_to(victim)
    assert pair.copy("disk").codes == (ErrorCode.PATH_TAKEN,) * 2
    (pair.destination / name).unlink()
    (pair.destination / name).mkdir()
    assert pair.copy("disk").codes == (ErrorCode.PATH_TAKEN,) * 2
    assert victim.read_bytes() == b"v"
    assert pair.names() == [name]


def test_a_pipe_is_no_file_to_compare_with(pair: Pair) -> None:
    pair.put("disk")
    os.mkfifo(pair.destination / "disk")
    assert pair.copy("disk").codes == (ErrorCode.PATH_TAKEN,) * 2


def test_a_file_that_appears_at_the_name_meanwhile_is_not_replaced(pair: Pair) -> None:
    pair.put("disk", (0, noise(MIB)))

    def appear(path: str) -> None:
        if path.endswith("disk"):
            Path(path).write_bytes(b"mine")

    pair.when_made = appear
    assert pair.copy("disk").codes == (ErrorCode.PATH_TAKEN,) * 2
    assert (pair.destination / "disk").read_bytes() == b"mine"
    assert pair.names() == ["disk"]


def test_what_was_verified_gets_the_name_whatever_the_parts_name_is_now(pair: Pair) -> None:
    pair.put("disk", (0, noise(5000)))

    def swap(path: str) -> None:
        if path.endswith("disk"):
            (pair.destination / "disk.part").rename(pair.destination / "away")
            (pair.destination / "disk.part").write_bytes(b"mine")

    pair.when_made = swap
    assert pair.copy("disk").served.result() is True
    assert (pair.destination / "disk").read_bytes() == noise(5000)
    assert (pair.destination / "disk.part").read_bytes() == b"mine"


def test_a_missing_directory_is_told(pair: Pair) -> None:
    pair.put("disk", (0, b"x"))
    pair.destination.rmdir()
    copied = pair.copy("disk")
    assert copied.codes == (ErrorCode.DIRECTORY_MISSING,) * 2
    assert copied.facts["path"] == str(pair.destination)


# Broken connections.


def test_a_broken_connection_anywhere_costs_only_what_was_under_way(pair: Pair) -> None:
    pair.put("a", (0, noise(300 * KIB)), (MIB, noise(77777)), length=2 * MIB)
    pair.put("base", (0, noise(100 * KIB)))
    pair.put("b", *FRAGMENTS[:20])
    names = "a", "base", "b"
    (pair.destination / "base").write_bytes(noise(100 * KIB))
    total = Relay()
    pair.copy(*names, relay=total)
    cuts = [1, 21, 30, 42, 43, *range(1000, total.carried, 76543), total.carried - 60, total.carried - 21]
    relays = [Relay(cut=cut) for cut in cuts] + [Relay(cut_answers=cut) for cut in (1, 21, 42, 63, 84, 125)]
    for relay in relays:
        for path in pair.destination.iterdir():
            path.unlink()
        (pair.destination / "base").write_bytes(noise(100 * KIB))
        receiver = pair.receiver(*names)
        first = pair.copy(*names, receiver=receiver, relay=relay)
        assert isinstance(first.sent.exception(), ConnectionError), relay
        assert first.served.result() is False, relay
        again = Relay()
        second = pair.copy(*names, receiver=receiver, relay=again)
        assert second.served.result() is True, relay
        assert [sent.kept for sent in second.sent.result()] == [False, True, False]
        assert pair.same(*names), relay
        if relay.cut:
            # What went twice is what the receiver had not written: a piece of its buffer at most, and headers.
            assert again.carried + relay.cut <= total.carried + 257 * KIB, relay


def test_a_copying_goes_on_over_as_many_connections_as_it_takes(pair: Pair) -> None:
    names = "first", "disk"
    pair.put("first", (0, noise(5)))
    pair.put("disk", (0, noise(MIB)), (2 * MIB, noise(MIB)), length=4 * MIB)
    sender, receiver = list[int](), list[int]()
    watch = Watch(sender.append, lambda: None)
    end = pair.receiver(*names, watch=Watch(receiver.append, lambda: None))
    served = [pair.copy(*names, receiver=end, relay=Relay(cut=600 * KIB), watch=watch) for _ in range(3)]
    assert [copied.served.result() for copied in served] == [False] * 3
    assert not end.complete
    last = pair.copy(*names, receiver=end, watch=watch)
    assert [sent.data < MIB for sent in last.sent.result()] == [True, True]
    # What was there before counts as well.
    assert sender[-1] == receiver[-1] == 2 * MIB + 5
    assert pair.same(*names)
    assert end.complete


@pytest.mark.parametrize("relay", [Relay(cut=21 * 3 + 32 + 1 + 20), Relay(cut_answers=21 * 2), Relay(cut_answers=43)])
def test_a_connection_that_breaks_after_the_last_file_was_complete_is_no_failure(pair: Pair, relay: Relay) -> None:
    pair.put("disk", (0, b"x"))
    receiver = pair.receiver("disk")
    copied = pair.copy("disk", receiver=receiver, relay=relay)
    assert copied.sent.result()[0].data == 1
    assert receiver.complete
    assert pair.same("disk")


def test_a_file_that_changes_between_two_connections_is_told(pair: Pair) -> None:
    path = pair.put("disk", (0, noise(2 * MIB)))
    receiver = pair.receiver("disk")
    pair.copy("disk", receiver=receiver, relay=Relay(cut=MIB))
    os.utime(path, ns=(0, 0))
    copied = pair.copy("disk", receiver=receiver)
    assert copied.codes == (ErrorCode.FILE_CHANGED,) * 2
    assert copied.facts == {"path": str(path), "host": SOURCE}
    assert pair.names() == []


@pytest.mark.parametrize(("name", "code"), [
    ("disk", ErrorCode.PATH_TAKEN), ("disk.part", ErrorCode.FILE_NOT_WRITTEN)])
def test_what_somebody_put_there_between_two_connections_stays(pair: Pair, name: str, code: ErrorCode) -> None:
    pair.put("disk", (0, noise(2 * MIB)))
    receiver = pair.receiver("disk")
    pair.copy("disk", receiver=receiver, relay=Relay(cut=MIB))
    (pair.destination / "other").write_bytes(noise(2 * MIB))
    (pair.destination / "other").replace(pair.destination / name)
    assert pair.copy("disk", receiver=receiver).codes == (code,) * 2
    assert (pair.destination / name).read_bytes() == noise(2 * MIB)
    assert pair.names() == [name]


def test_what_was_written_before_a_break_is_read_back_as_well(pair: Pair) -> None:
    pair.put("disk", (0, noise(2 * MIB)))
    receiver = pair.receiver("disk")
    pair.copy("disk", receiver=receiver, relay=Relay(cut=MIB))
    with open(pair.destination / "disk.part", "r+b") as part:
        part.write(b"?")
    assert pair.copy("disk", receiver=receiver).codes == (ErrorCode.COPY_DAMAGED,) * 2
    assert pair.names() == []
