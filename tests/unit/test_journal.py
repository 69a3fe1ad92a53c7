"""The journal's lines: what is written is read again, and what a crash or a bad disk made of it is told apart."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import Command
from tests.unit.disk import (
    FOUR,
    HEAD,
    NEW,
    OLD,
    ONE,
    THREE,
    TWO,
    Line,
    entries_in,
    journal_file,
    line_of,
    lines,
    new,
    opened,
    system_calls,
    without_waiting,
)
from tests.unit.samples import EVERY_ENTRY, PAGE, PATH_TAKEN, PROGRESS, REQUEST_ID, RESULT_OF
from wire.errors import ErrorCode
from wire.journal import JOURNAL_FILE, Head, from_line, read_lines, to_line
from wire.memory import Ended, Entry, Seen
from wire.message import can_hold, result_to_wire
from wire.records import Obstacle, StepReport

# A journal as it was written once: a change of its form would make an agent forget what it did.
RECORDED = (
    b'dc6c1f7f {"head":{"epoch":"0123456789abcdef","format":1}}\n'
    b'712ecc4b {"begun":{"request_id":"00000000000000000000000000000001","digest":"ab","agent_ip":"192.0.2.11",'
    b'"cmd":"FINISH","asked_by":"192.0.2.1","at":1790000000,"job_id":"0badcafe","domain":"VM1"}}\n'
    b'89aaeb38 {"ended":{"request_id":"00000000000000000000000000000001","cmd":"FINISH","at":1790000001,'
    b'"cmd_result":{"value":{"summary":"running here"}}}}\n'
    b'627eab81 {"seen":{"request_id":"00000000000000000000000000000002","digest":"cd","at":1790000002}}\n'
)


# Lines.


@pytest.mark.parametrize("entry", [HEAD, *EVERY_ENTRY, ONE], ids=lambda entry: type(entry).__name__)
def test_every_entry_is_one_line_and_is_read_as_it_was_written(entry: Line) -> None:
    line = to_line(entry)
    assert from_line(line) == entry
    assert line.index(b"\n") == len(line) - 1
    assert len(line.splitlines()) == 1


def test_a_journal_that_was_written_once_can_still_be_read() -> None:
    contents = read_lines(RECORDED)
    assert contents.head == HEAD
    assert contents.entries == (
        dataclasses.replace(ONE, digest="ab", cmd=Command.FINISH, domain="VM1"),
        Ended(request_id=ONE.request_id, cmd=Command.FINISH, at=1_790_000_001,
              cmd_result=StepReport(summary="running here")),
        Seen(request_id=TWO.request_id, digest="cd", at=1_790_000_002))
    assert (contents.intact, contents.damaged) == (len(RECORDED), False)
    assert read_lines(lines(HEAD, *contents.entries)).entries == contents.entries


def test_what_was_answered_is_what_a_later_agent_answers_also_where_utf_8_cannot_hold_it() -> None:
    for result in (StepReport(summary="image-\udcff"), Obstacle(code=ErrorCode.INTERNAL, facts={"reason": "\udcff"})):
        entry = Ended(request_id=REQUEST_ID, cmd=Command.FINISH, at=1, cmd_result=result)
        read = from_line(to_line(entry))
        assert isinstance(read, Ended)
        sent = json.dumps(result_to_wire(Command.FINISH, result), ensure_ascii=False).encode(errors="replace")
        assert result_to_wire(Command.FINISH, read.cmd_result) == json.loads(sent)


@pytest.mark.parametrize("command", list(RESULT_OF))
def test_an_end_holds_what_its_command_may_come_to_and_nothing_else(command: Command) -> None:
    for result in (None, PROGRESS, PAGE, PATH_TAKEN, *RESULT_OF.values()):
        if can_hold(command, result):
            assert Ended(request_id=REQUEST_ID, cmd=command, at=1, cmd_result=result).cmd_result is result
        else:
            with pytest.raises(ValueError):  # noqa: PT011 - of any cause
                Ended(request_id=REQUEST_ID, cmd=command, at=1, cmd_result=result)


@pytest.mark.parametrize("result", [
    None, [], "x", {}, {"later": {}}, {"value": {"later": 1}}, {"value": {"summary": "x"}, "later": 1},
    {"error": {"code": "later", "facts": {}}}, {"progress": {"phase": "x", "done": 1, "total": 1}},
    {"page": {"page": 0, "pages": 1, "digest": "", "part": ""}},
])
def test_a_result_of_another_version_that_cannot_be_read_is_still_an_end(result: object) -> None:
    content = {"request_id": ONE.request_id, "cmd": ONE.cmd.value, "at": 1, "cmd_result": result}
    read = read_lines(lines(HEAD, ONE) + line_of({"ended": content}))
    assert not read.damaged
    assert len(read.entries) == 2
    end = read.entries[1]
    assert isinstance(end, Ended)
    assert isinstance(end.cmd_result, Obstacle)
    assert end.cmd_result.code is ErrorCode.MESSAGE_INVALID


# A line of the right form and checksum that this version does not know.
STRANGE: tuple[object, ...] = (
    None, [], {}, 1, "x", {"later": {}}, {"begun": {}, "seen": {}}, {"begun": []}, {"begun": {"request_id": "x"}},
    {"seen": {"request_id": REQUEST_ID, "digest": "x", "at": 1, "later": 1}}, {"head": {"epoch": ""}},
    {"head": {"epoch": "x", "format": 2}}, {"head": None},
    {"begun": {**json.loads(to_line(ONE)[9:])["begun"], "cmd": "LATER"}}, {"ended": {"cmd": "LATER"}},
    {"ended": {"request_id": "x", "cmd": "FINISH", "at": 1, "cmd_result": {}}}, {"ended": {}},
    {"ended": []}, {"ended": None}, {"ended": "x"}, {"ended": 1},
)


@pytest.mark.parametrize("content", STRANGE, ids=json.dumps)
def test_a_line_that_is_not_known_is_a_value_error(content: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any cause
        from_line(line_of(content))


@given(st.binary(max_size=300))
def test_random_bytes_are_never_an_entry_nor_a_crash(content: bytes) -> None:
    assert read_lines(content).entries == ()
    read = read_lines(lines(HEAD, ONE) + content)
    # What a crash leaves has no end; a line that has one was whole when it was written.
    damaged = b"\n" in content or b"\r\n" in content
    assert (read.entries, read.intact, read.damaged) == ((ONE,), len(lines(HEAD, ONE)), damaged)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["head", "begun", "ended", "seen", "cmd", "cmd_result", "request_id", "x"]), inner, max_size=3),
    max_leaves=8))
def test_random_json_with_the_right_checksum_is_an_entry_or_a_value_error(content: object) -> None:
    with contextlib.suppress(ValueError):
        from_line(line_of(content))


# A new journal, and one that goes on.


def test_a_journal_begins_with_its_epoch(tmp_path: Path) -> None:
    with opened(tmp_path / "state", new) as journal:
        assert journal.epoch == NEW
        assert journal.entries == ()
        assert journal.path.read_bytes() == lines(Head(epoch=NEW))
        assert journal.path.stat().st_size == len(lines(Head(epoch=NEW)))


def test_what_was_written_is_known_to_the_next_agent(tmp_path: Path) -> None:
    written: list[Entry] = []
    with opened(tmp_path, new):
        pass
    for entry in EVERY_ENTRY:
        with opened(tmp_path) as journal:
            assert (journal.epoch, list(journal.entries)) == (NEW, written)
            journal.append([entry, ONE])
            written += [entry, ONE]
    assert entries_in(tmp_path) == written
    assert sorted(path.name for path in tmp_path.iterdir()) == [JOURNAL_FILE]


def test_every_line_is_on_disk_before_it_counts_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, new) as journal, system_calls(monkeypatch) as calls:
        inode = journal.path.stat().st_ino
        journal.append([ONE, TWO])
        assert calls.made == [("write", inode), ("fdatasync", inode)]
        assert journal.path.read_bytes().endswith(lines(ONE, TWO))


def test_a_new_file_is_on_disk_before_it_gets_its_name_and_so_is_the_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with system_calls(monkeypatch) as calls, opened(tmp_path, new) as journal:
        for _each in ("made", "replaced"):
            inode, directory = journal.path.stat().st_ino, tmp_path.stat().st_ino
            assert [call for call in calls.made if call[0] not in ("open", "mkdir")] == [
                ("write", inode), ("fdatasync", inode), ("replace", 0), ("fsync", directory)]
            calls.made.clear()
            journal.replace([ONE])


def test_a_journal_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    for mask in (0o000, 0o022, 0o077):
        before = os.umask(mask)
        try:
            with opened(tmp_path / f"{mask}" / "state", new) as journal:
                assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
                journal.replace([ONE])
        finally:
            os.umask(before)
        assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


def test_what_the_system_writes_in_pieces_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with opened(tmp_path, new) as journal, monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, content: real(file, content[:7]))
        journal.append([ONE, TWO])
    assert entries_in(tmp_path) == [ONE, TWO]


# A crash.


def test_a_last_line_that_was_cut_off_anywhere_is_left_out_and_the_journal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_waiting(monkeypatch)
    last, before = to_line(THREE), lines(HEAD, ONE, TWO)
    for length in range(len(last)):
        path = journal_file(tmp_path, before + last[:length])
        with opened(tmp_path) as journal:
            assert (journal.epoch, list(journal.entries)) == (OLD, [ONE, TWO])
            assert path.read_bytes() == before
            journal.append([FOUR])
        assert entries_in(tmp_path) == [ONE, TWO, FOUR]
        assert path.read_bytes() == before + to_line(FOUR)
        assert sorted(each.name for each in tmp_path.iterdir()) == [JOURNAL_FILE]


@pytest.mark.parametrize("rest", [
    b"\x00" * 512, b"\x00" * 4096, b"garbage", b" ", b"\xff" * 300, to_line(ONE)[1:-1],
    to_line(ONE)[:-1] + b"\x00" * 200,
])
def test_what_a_crash_left_behind_the_last_line_is_cut_off_and_told(
    tmp_path: Path, rest: bytes, caplog: pytest.LogCaptureFixture,
) -> None:
    path = journal_file(tmp_path, lines(HEAD, ONE, TWO) + rest)
    assert entries_in(tmp_path) == [ONE, TWO]
    assert path.read_bytes() == lines(HEAD, ONE, TWO)
    assert f"{len(rest)} bytes" in caplog.text
    caplog.clear()
    assert entries_in(tmp_path) == [ONE, TWO]
    assert caplog.text == ""


def test_a_whole_last_line_that_is_damaged_is_damage_and_costs_nothing_before_it() -> None:
    before, last = lines(HEAD, ONE, TWO), to_line(THREE)
    for changed in every_damage(last):
        read = read_lines(before + changed)
        assert (read.head, read.entries, read.intact) == (HEAD, (ONE, TWO), len(before))
        # Without its end it cannot be told from what a crash leaves.
        assert read.damaged is (b"\n" in changed)


# Damage.


def every_damage(line: bytes) -> Iterator[bytes]:
    """A line with each byte of it changed in turn: each bit flipped, and the byte made one that means something."""
    for place, byte in enumerate(line):
        for other in {*(byte ^ 1 << bit for bit in range(8)), *b"\r\n\x00 0\xff\"\\"} - {byte}:
            yield line[:place] + bytes([other]) + line[place + 1:]


def test_any_damage_in_the_middle_is_noticed_and_costs_that_line_alone() -> None:
    for changed in every_damage(to_line(TWO)):
        read = read_lines(lines(HEAD, ONE) + changed + lines(THREE, FOUR))
        assert (read.head, read.damaged) == (HEAD, True)
        # Without its end it is one with the next line.
        assert read.entries == ((ONE, THREE, FOUR) if changed[-1:] in (b"\n", b"\r") else (ONE, FOUR))
    for changed in every_damage(to_line(HEAD)):
        read = read_lines(changed + lines(ONE, TWO))
        assert (read.head, read.damaged) == (None, True)
        assert read.entries == ((ONE, TWO) if changed[-1:] in (b"\n", b"\r") else (TWO,))


def test_a_damaged_journal_is_set_aside_and_what_is_intact_of_it_goes_on_under_a_new_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    without_waiting(monkeypatch)
    for place in range(len(lines(HEAD, ONE))):
        content = bytearray(lines(HEAD, ONE, TWO, THREE))
        content[place] ^= 1
        path = journal_file(tmp_path, bytes(content))
        with opened(tmp_path, new) as journal:
            assert journal.epoch == NEW
            assert list(journal.entries)[-1:] == [THREE]
            assert set(journal.entries) <= {ONE, TWO, THREE}
            kept = list(journal.entries)
            journal.append([FOUR])
        assert path.with_name("journal.damaged").read_bytes() == content
        with opened(tmp_path) as journal:
            assert (journal.epoch, list(journal.entries)) == (NEW, [*kept, FOUR])
        assert path.read_bytes() == lines(Head(epoch=NEW), *kept, FOUR)
    assert "journal.damaged" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


@pytest.mark.parametrize("content", [
    b"garbage", b"\n", b"\x00" * 4096, b"\xff" * 100, RECORDED.replace(b" ", b"\t"), b"SQLite format 3\x00" * 20,
    line_of({"head": {"epoch": OLD, "format": 2}}) + line_of({"later": {}}), lines(HEAD)[:-1], lines(HEAD)[1:],
    line_of({"head": {"epoch": OLD, "format": 2}}) + lines(ONE)[:-1],
])
def test_a_file_that_is_no_journal_of_this_version_is_set_aside_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = journal_file(tmp_path, content)
    with opened(tmp_path, new) as journal:
        assert (journal.epoch, journal.entries) == (NEW, ())
    assert path.with_name("journal.damaged").read_bytes() == content
    assert path.read_bytes() == lines(Head(epoch=NEW))


def test_a_journal_without_its_first_line_is_a_damaged_one(tmp_path: Path) -> None:
    path = journal_file(tmp_path, lines(ONE, TWO))
    assert read_lines(path.read_bytes()).damaged
    with opened(tmp_path, new) as journal:
        assert (journal.epoch, list(journal.entries)) == (NEW, [ONE, TWO])
    assert path.with_name("journal.damaged").read_bytes() == lines(ONE, TWO)


def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    path = journal_file(tmp_path, b"")
    assert entries_in(tmp_path, new) == []
    assert not path.with_name("journal.damaged").exists()


@pytest.mark.parametrize("content", STRANGE, ids=json.dumps)
def test_a_whole_line_that_is_not_known_is_no_torn_one_wherever_it_stands(tmp_path: Path, content: object) -> None:
    # A later version has written it: what it says may be that a request was begun.
    for after in ([TWO], []):
        path = journal_file(tmp_path, lines(HEAD, ONE) + line_of(content) + lines(*after))
        with opened(tmp_path, new) as journal:
            assert (journal.epoch, list(journal.entries)) == (NEW, [ONE, *after])
        assert line_of(content) in path.with_name("journal.damaged").read_bytes()


