"""Copying whole files over a stream: failures, stopping, the rate, malformed frames, and block devices."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("paramiko", reason="paramiko is not installed (apt-get install python3-paramiko)")

from host import copy_link, file_receiving
from host.copy_link import Watch
from host.file_sending import Outgoing, send_files
from tests.unit.copying import (
    CANCELLED,
    COMPLETE,
    DATA,
    DESTINATION,
    DONE,
    END,
    ERROR,
    GOODBYE,
    HEADER,
    KIB,
    KNOWN,
    MIB,
    NOTHING,
    OFFER,
    PART,
    QUIET,
    SOURCE,
    STANDING,
    Pair,
    Relay,
    make_pair,
    noise,
)
from tests.unit.samples import FakeClock
from wire.errors import ErrorCode, MigrationError


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    return make_pair(tmp_path, monkeypatch)


# What goes wrong.


@pytest.mark.parametrize("flip", [
    pytest.param(20, id="in the file's length"),
    pytest.param(21 + 10, id="in the first range's offset"),
    pytest.param(21 * 2 + 1, id="in the first range"),
    pytest.param(21 * 4 + 4096 + 10, id="in the digest"),
])
def test_a_byte_that_changes_on_the_way_is_found(pair: Pair, flip: int) -> None:
    pair.put("disk", (0, noise(4096)), length=2 * MIB)
    copied = pair.copy("disk", relay=Relay(flip=flip))
    assert copied.codes == (ErrorCode.COPY_DAMAGED,) * 2
    assert copied.facts == {"path": str(pair.destination / "disk"), "host": DESTINATION}
    assert pair.names() == []


@pytest.mark.parametrize("wrong", [
    pytest.param(lambda content, offset: (content[:-1] + b"?", offset), id="another byte"),
    pytest.param(lambda content, offset: (content, offset + 4096), id="another place"),
])
def test_what_the_disk_holds_is_compared_and_not_what_arrived(
        pair: Pair, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[bytes, int], tuple[bytes, int]]) -> None:
    pair.put("disk", (0, noise(4096)), length=3 * MIB)
    write = os.pwrite

    def write_wrong(descriptor: int, content: memoryview, offset: int) -> int:
        other, place = wrong(bytes(content), offset)
        write(descriptor, content, offset)
        return write(descriptor, other, place)

    monkeypatch.setattr(os, "pwrite", write_wrong)
    assert pair.copy("disk").codes == (ErrorCode.COPY_DAMAGED,) * 2
    assert pair.names() == []


def test_a_full_disk_is_told_at_both_ends_and_freed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.put("small", (0, b"x"))
    pair.put("disk", (0, noise(4 * MIB)))
    write = os.pwrite

    def fill(descriptor: int, content: memoryview, offset: int) -> int:
        if offset > MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:100 * KIB], offset)

    monkeypatch.setattr(os, "pwrite", fill)
    copied = pair.copy("small", "disk")
    assert copied.codes == (ErrorCode.FILE_NOT_WRITTEN,) * 2
    assert copied.facts == {
        "path": str(pair.destination / "disk"), "reason": f"No space left on device (on {DESTINATION})"}
    assert pair.names() == ["small"]


def test_a_disk_that_takes_only_a_little_at_once_gets_it_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pair.put("disk", (0, noise(300 * KIB)))
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: write(descriptor, content[:5000], offset))
    pair.copy("disk").served.result()
    assert (pair.destination / "disk").read_bytes() == path.read_bytes()


def test_a_length_that_the_file_system_cannot_have_is_told(pair: Pair) -> None:
    pair.put("disk", length=1 << 40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, limits[1]))
    try:
        copied = pair.copy("disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert copied.codes == (ErrorCode.FILE_NOT_WRITTEN,) * 2
    assert "File too large" in copied.facts["reason"]
    assert pair.names() == []


@pytest.mark.parametrize("call", ["fsync", "preadv"])
def test_a_disk_that_fails_as_it_is_flushed_or_read_back_is_told(
        pair: Pair, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    pair.put("disk", (0, b"x"))
    original: Callable[..., int] = getattr(os, call)

    def fail(descriptor: int, *more: object) -> int:
        if path_of(descriptor).startswith(str(pair.destination)):
            raise OSError(errno.EIO, "Input/output error")
        return original(descriptor, *more)

    monkeypatch.setattr(os, call, fail)
    copied = pair.copy("disk")
    assert copied.codes == (ErrorCode.FILE_NOT_WRITTEN,) * 2
    assert "Input/output error" in copied.facts["reason"]
    assert pair.names() == []


def path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


@pytest.mark.parametrize("prepare", [
    pytest.param(lambda path: None, id="missing"),
    pytest.param(os.mkdir, id="directory"),
    pytest.param(os.mkfifo, id="pipe"),
])
def test_a_source_that_cannot_be_read_is_told_at_both_ends(pair: Pair, prepare: Callable[[str], None]) -> None:
    prepare(str(pair.source / "disk"))
    copied = pair.copy("disk")
    assert copied.codes == (ErrorCode.FILE_UNREADABLE,) * 2
    assert copied.facts["path"] == str(pair.source / "disk")
    assert SOURCE in copied.facts["reason"]
    assert pair.names() == []


def test_a_source_that_fails_in_the_middle_of_a_block_is_told_at_both_ends(
        pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.put("disk", (0, noise(2 * MIB)))
    sendfile = os.sendfile

    def fail(out: int, descriptor: int, offset: int, count: int) -> int:
        if offset:
            raise OSError(errno.EIO, "Input/output error")
        return sendfile(out, descriptor, offset, 5000)

    monkeypatch.setattr(os, "sendfile", fail)
    assert pair.copy("disk").codes == (ErrorCode.FILE_UNREADABLE,) * 2
    assert pair.names() == []


@pytest.mark.parametrize("change", [
    pytest.param(lambda path: os.utime(path, ns=(0, 0)), id="written to"),
    pytest.param(lambda path: os.truncate(path, 3 * MIB + 5), id="longer"),
    pytest.param(lambda path: os.truncate(path, 100), id="shorter"),
])
def test_a_file_that_changes_while_it_is_copied_is_told(pair: Pair, change: Callable[[Path], None]) -> None:
    path = pair.put("disk", (0, noise(3 * MIB)))
    changed: list[int] = []

    def moved(done: int) -> None:
        if not changed:
            changed.append(done)
            change(path)

    copied = pair.copy("disk", watch=Watch(moved, lambda: None))
    assert copied.codes == (ErrorCode.FILE_CHANGED,) * 2
    assert copied.facts == {"path": str(path), "host": SOURCE}
    assert pair.names() == []


def test_a_file_that_is_cut_short_behind_the_copying_is_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pair.put("disk", (0, noise(MIB)))
    read = os.preadv

    def cut(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if path_of(descriptor) == str(path):
            os.truncate(path, 5)
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", cut)
    assert pair.copy("disk").codes == (ErrorCode.FILE_CHANGED,) * 2


# Stopping, and not too fast.


def stop_after(asked: int) -> Watch:
    """A watch that has a reason to stop when it is asked for that time."""
    answers = [None] * asked + [CANCELLED] * 99
    return Watch(lambda done: None, lambda: answers.pop(0))


def told(peer: socket.socket) -> list[tuple[int, int, int, int]]:
    """The frames that came from the end under test, those of data and errors with their bodies left out."""
    peer.setblocking(False)
    received, frames = b"", []
    with contextlib.suppress(BlockingIOError, ConnectionError):
        while data := peer.recv(MIB):
            received += data
    while len(received) >= HEADER.size:
        frames.append(HEADER.unpack(received[:HEADER.size]))
        kind, _, _, length = frames[-1]
        received = received[HEADER.size + (length if kind in (DATA, END, ERROR) else 0):]
    return frames


@pytest.mark.parametrize(("answer", "heard"), [
    pytest.param(b"", [OFFER, ERROR], id="before its first word"),
    pytest.param(HEADER.pack(STANDING, 0, 0, NOTHING), [OFFER, DATA], id="in the middle of a block"),
    pytest.param(HEADER.pack(STANDING, 0, MIB, PART), [OFFER, KNOWN, END, ERROR], id="at the end"),
])
def test_a_sender_stops_although_the_receiver_is_silent(pair: Pair, answer: bytes, heard: list[int]) -> None:
    path = pair.put("disk", (0, noise(MIB)))
    sending, peer = socket.socketpair()
    peer.sendall(answer)
    with peer:
        with pytest.raises(MigrationError) as caught:
            send_files(sending, [Outgoing(str(path))], SOURCE, stop_after(3))
        assert [kind for kind, *_ in told(peer)] == heard
    assert caught.value is CANCELLED
    assert sending.fileno() == -1


@pytest.mark.parametrize("sent", [
    pytest.param(b"", id="before its first word"),
    pytest.param(HEADER.pack(OFFER, 0, 0, MIB), id="after a file's name"),
    pytest.param(HEADER.pack(OFFER, 0, 0, MIB) + HEADER.pack(DATA, 0, 0, MIB) + bytes(5000), id="in a block"),
])
def test_a_receiver_stops_although_the_sender_is_silent(pair: Pair, sent: bytes) -> None:
    receiving, peer = socket.socketpair()
    peer.sendall(sent)
    with peer:
        with pytest.raises(MigrationError) as caught:
            pair.receiver("disk", watch=stop_after(3)).serve(receiving)
        assert told(peer)[-1][0] == ERROR
    assert caught.value is CANCELLED
    assert pair.names() == []


def test_a_receiver_looks_whether_to_stop_although_it_never_has_to_wait(pair: Pair) -> None:
    receiving, peer = socket.socketpair()
    ticks, asked = iter(range(1 << 30)), list[None]()
    watch = Watch(lambda done: None, lambda: asked.append(None), lambda: float(next(ticks)))
    with peer:
        peer.sendall(HEADER.pack(OFFER, 0, 0, MIB))
        for offset in range(30):
            peer.sendall(HEADER.pack(DATA, 0, offset, 1) + b"x")
        peer.shutdown(socket.SHUT_WR)
        assert pair.receiver("disk", watch=watch).serve(receiving) is False
    assert len(asked) >= 30


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_whoever_stops_in_the_middle_says_so_to_the_other(pair: Pair, end: str) -> None:
    pair.put("disk", (0, noise(4 * MIB)))
    moved: list[int] = []
    # A clock by which every look is due.
    ticks = iter(range(1 << 30))
    watch = Watch(moved.append, lambda: CANCELLED if moved else None, lambda: float(next(ticks)))
    copied = pair.copy(
        "disk", watch=watch if end == "sender" else QUIET,
        receiver=pair.receiver("disk", watch=watch if end == "receiver" else QUIET))
    assert copied.codes == (ErrorCode.MIGRATION_CANCELLED,) * 2
    assert copied.facts == dict(CANCELLED.facts)
    assert max(moved) < 4 * MIB
    assert pair.names() == []


def test_a_limit_spreads_the_bytes_evenly(pair: Pair) -> None:
    pair.put("disk", (0, noise(4 * MIB)))
    clock, moves, asked = FakeClock(100.0), list[tuple[float, int]](), list[float]()
    watch = Watch(
        lambda done: moves.append((clock.now, done)), lambda: asked.append(clock.now), clock, clock.sleep)
    pair.copy("disk", watch=watch, limit=100 * KIB).sent.result()
    assert moves[-1][1] == 4 * MIB
    assert moves[-1][0] == pytest.approx(140, abs=3)
    for when, done in moves:
        assert done == pytest.approx((when - 100) * 100 * KIB, abs=257 * KIB)
    assert max(after - before for before, after in zip(asked, asked[1:])) <= 1


def test_what_a_sleep_took_too_long_is_made_up_for_but_not_a_long_stop(pair: Pair) -> None:
    pair.put("disk", (0, noise(4 * MIB)))
    for late, seconds in ((0.05, 4.0), (0.25, 6.25)):
        now = [0.0]

        def sleep(seconds: float, late: float = late, now: list[float] = now) -> None:
            now[0] += seconds + late

        (pair.destination / "disk").unlink(missing_ok=True)
        watch = Watch(lambda done: None, lambda: None, lambda now=now: now[0], sleep)  # type: ignore[misc]
        pair.copy("disk", watch=watch, limit=MIB).sent.result()
        assert now[0] == pytest.approx(seconds, abs=0.5)


# The last word.

LAST_BODY = b'{"code": "space-short", "facts": {"host": "192.0.2.12"}}'
LAST_WORD = HEADER.pack(ERROR, 0, 0, len(LAST_BODY)) + LAST_BODY


def test_a_sender_in_the_middle_of_a_block_hears_why_nobody_reads_on(pair: Pair) -> None:
    path = pair.put("disk", (0, noise(MIB)))
    sending, peer = socket.socketpair()
    with peer, ThreadPoolExecutor(1) as pool:
        peer.sendall(HEADER.pack(STANDING, 0, 0, NOTHING))
        sent = pool.submit(send_files, sending, [Outgoing(str(path))], SOURCE, stop_after(300))
        assert peer.recv(21 * 2 + 1, socket.MSG_WAITALL)
        peer.sendall(LAST_WORD)
        error = sent.exception()
    assert isinstance(error, MigrationError)
    assert error.code is ErrorCode.SPACE_SHORT


def test_a_sender_hears_why_the_connection_was_closed_before_it_could_say_a_word(pair: Pair) -> None:
    path = pair.put("disk", (0, b"x"))
    sending, peer = socket.socketpair()
    peer.sendall(LAST_WORD)
    peer.close()
    with pytest.raises(MigrationError) as caught:
        send_files(sending, [Outgoing(str(path))], SOURCE, QUIET)
    assert caught.value.code is ErrorCode.SPACE_SHORT
    assert dict(caught.value.facts) == {"host": DESTINATION}


def test_an_error_is_not_told_to_the_one_who_told_it(pair: Pair) -> None:
    receiving, peer = socket.socketpair()
    with peer:
        peer.sendall(OFFERED + LAST_WORD)
        with pytest.raises(MigrationError):
            pair.receiver("disk").serve(receiving)
        assert told(peer) == [(STANDING, 0, 0, NOTHING)]


def test_who_gives_up_lets_the_other_one_read_why(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_link, "_PARTING_SECONDS", 5.0)
    receiving, peer = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(pair.receiver("disk").serve, receiving)
        with peer:
            peer.sendall(HEADER.pack(99, 0, 0, 0))
            assert HEADER.unpack(peer.recv(HEADER.size, socket.MSG_WAITALL))[0] == ERROR
            # A connection that was closed would refuse it, and SSH throw away what lies unread before it.
            peer.sendall(bytes(MIB))
        assert isinstance(served.exception(), MigrationError)


# What nobody should ever send.

OFFERED = HEADER.pack(OFFER, 0, 7, 8192)
FIRST = HEADER.pack(DATA, 0, 4096, 100) + bytes(100)


@pytest.mark.parametrize("sent", [
    pytest.param(HEADER.pack(99, 0, 0, 0), id="unknown kind"),
    pytest.param(HEADER.pack(DATA, 0, 0, 4096), id="data before a file"),
    pytest.param(HEADER.pack(OFFER, 1, 7, 8192), id="another file"),
    pytest.param(HEADER.pack(OFFER, 0, 7, 1 << 63), id="file of an impossible length"),
    pytest.param(HEADER.pack(GOODBYE, 0, 0, 0), id="end without a file"),
    pytest.param(OFFERED + HEADER.pack(OFFER, 0, 7, 8192), id="file in a file"),
    pytest.param(OFFERED + HEADER.pack(DATA, 1, 0, 4096), id="data of another file"),
    pytest.param(OFFERED + HEADER.pack(DATA, 0, 4097, 4096), id="data beyond the end"),
    pytest.param(OFFERED + HEADER.pack(DATA, 0, (1 << 64) - 1, 4096), id="data far beyond the end"),
    pytest.param(OFFERED + HEADER.pack(DATA, 0, 0, 0), id="no data"),
    pytest.param(OFFERED + FIRST + HEADER.pack(DATA, 0, 4195, 10), id="data that overlaps"),
    pytest.param(OFFERED + FIRST + HEADER.pack(DATA, 0, 0, 10), id="data that goes back"),
    pytest.param(OFFERED + HEADER.pack(KNOWN, 0, 0, 4096), id="known data that is not known"),
    pytest.param(HEADER.pack(OFFER, 0, 7, 1 << 30) + HEADER.pack(DATA, 0, 0, MIB + 1), id="block too large"),
    pytest.param(OFFERED + HEADER.pack(END, 0, 0, 33), id="digest too long"),
    pytest.param(OFFERED + HEADER.pack(END, 1, 0, 32), id="digest of another file"),
    pytest.param(OFFERED + HEADER.pack(ERROR, 0, 0, MIB), id="error too long"),
    pytest.param(OFFERED + HEADER.pack(ERROR, 0, 0, 2) + b"{}", id="error without a code"),
    pytest.param(OFFERED + HEADER.pack(ERROR, 0, 0, 2) + b"\xff\xff", id="error that is no text"),
    pytest.param(OFFERED + HEADER.pack(ERROR, 0, 0, 25) + b'{"code":"","facts":[["x"]}', id="error that is none"),
    pytest.param(OFFERED + HEADER.pack(ERROR, 0, 0, 36) + b'{"code":"copy-damaged","facts":"xyz"}'[:36], id="cut"),
])
def test_a_receiver_refuses_what_cannot_be(pair: Pair, sent: bytes) -> None:
    receiving, peer = socket.socketpair()
    with peer:
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(MigrationError) as caught:
            pair.receiver("disk").serve(receiving)
        assert told(peer)[-1][0] == ERROR
    assert caught.value.code is ErrorCode.MESSAGE_INVALID
    assert caught.value.facts["host"] == DESTINATION
    assert pair.names() == []


def test_a_file_that_was_there_before_takes_no_data(pair: Pair) -> None:
    (pair.destination / "disk").write_bytes(bytes(8192))
    receiving, peer = socket.socketpair()
    with peer:
        peer.sendall(OFFERED + FIRST)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(MigrationError) as caught:
            pair.receiver("disk").serve(receiving)
    assert caught.value.code is ErrorCode.MESSAGE_INVALID


@pytest.mark.parametrize("answer", [
    pytest.param(HEADER.pack(STANDING, 0, 0, 99), id="unknown standing"),
    pytest.param(HEADER.pack(STANDING, 1, 0, NOTHING), id="standing of another file"),
    pytest.param(HEADER.pack(COMPLETE, 0, 0, 0), id="complete before it began"),
    pytest.param(HEADER.pack(STANDING, 0, 8193, PART), id="more than there is"),
    pytest.param(HEADER.pack(STANDING, 0, 0, NOTHING) + HEADER.pack(COMPLETE, 0, 0, 0), id="complete in between"),
    pytest.param(HEADER.pack(STANDING, 0, 0, DONE) + HEADER.pack(COMPLETE, 0, 0, 0), id="complete twice"),
])
def test_a_sender_refuses_what_cannot_be(pair: Pair, answer: bytes) -> None:
    path = pair.put("disk", (0, noise(8192)))
    sending, peer = socket.socketpair()
    with peer:
        peer.sendall(answer)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(MigrationError) as caught:
            send_files(sending, [Outgoing(str(path))], SOURCE, QUIET)
    assert caught.value.code is ErrorCode.MESSAGE_INVALID
    assert caught.value.facts["host"] == SOURCE


def test_a_sender_with_more_or_fewer_files_than_were_asked_for_is_refused(pair: Pair) -> None:
    pair.put("a", (0, b"x"))
    pair.put("b", (0, b"x"))
    assert pair.copy("a", "b", receiver=pair.receiver("a")).codes == (ErrorCode.MESSAGE_INVALID,) * 2
    (pair.destination / "a").unlink()
    copied = pair.copy("a", receiver=pair.receiver("a", "b"))
    assert isinstance(copied.served.exception(), MigrationError)


def test_an_error_too_long_for_a_frame_crosses_without_its_facts(pair: Pair) -> None:
    pair.put("disk", (0, b"x"))
    long = MigrationError(ErrorCode.MIGRATION_CANCELLED, {f"reason {number}": "x" * 4096 for number in range(16)})
    copied = pair.copy("disk", watch=Watch(lambda done: None, lambda: long, iter(range(99)).__next__))
    error = copied.served.exception()
    assert isinstance(error, MigrationError)
    assert (error.code, dict(error.facts)) == (ErrorCode.MIGRATION_CANCELLED, {})


# Block devices, as far as they can be had without root: a file stands for one.


@pytest.fixture
def device(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_receiving, "is_device", lambda path: True)
    path = pair.destination / "device"
    path.write_bytes(b"old" * MIB)
    return path


def test_a_device_is_written_in_place_with_zeros_where_the_source_has_none(
        pair: Pair, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = list[str](), os.fsync

    def watched(descriptor: int) -> None:
        synced.append(path_of(descriptor))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    path = pair.put("device", (4096, noise(8192)), (MIB + 512, noise(7)), length=2 * MIB + 100)
    before = device.stat()
    assert pair.copy("device").served.result() is True
    content = device.read_bytes()
    assert content[:2 * MIB + 100] == path.read_bytes()
    assert content[2 * MIB + 100:] == (b"old" * MIB)[2 * MIB + 100:]
    assert (device.stat().st_ino, device.stat().st_mode) == (before.st_ino, before.st_mode)
    assert pair.made == []
    assert pair.names() == ["device"]
    assert synced == [str(device)]


def test_a_copying_to_a_device_goes_on_after_a_broken_connection(pair: Pair, device: Path) -> None:
    path = pair.put("device", (4096, noise(400 * KIB)), (MIB, noise(600 * KIB)), length=3 * MIB)
    receiver = pair.receiver("device")
    for cut in (300 * KIB, 500 * KIB):
        assert pair.copy("device", receiver=receiver, relay=Relay(cut=cut)).served.result() is False
    copied = pair.copy("device", receiver=receiver)
    assert copied.sent.result()[0].data == 344 * KIB
    assert device.read_bytes() == path.read_bytes()


def test_a_device_that_is_too_small_is_not_touched(pair: Pair, device: Path) -> None:
    pair.put("device", (0, noise(4096)), length=4 * MIB)
    copied = pair.copy("device")
    assert copied.codes == (ErrorCode.FILE_NOT_WRITTEN,) * 2
    assert str(4 * MIB) in copied.facts["reason"]
    assert device.read_bytes() == b"old" * MIB
