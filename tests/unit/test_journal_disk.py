"""The journal's file: whatever fails or is killed, and wherever, no more is lost than what was being written, and
nobody hears of what is not on disk.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.disk import (
    FOUR,
    HEAD,
    NEW,
    OLD,
    ONE,
    THREE,
    TWO,
    entries_in,
    error_of,
    failing,
    failing_at,
    failing_from,
    journal_file,
    killed,
    lines,
    new,
    opened,
    refused,
    room_for,
    system_calls,
    without_waiting,
)
from wire.errors import ErrorCode, MigrationError
from wire.journal import JOURNAL_FILE, Journal, JournalWriter, read_lines, to_line
from wire.memory import Entry

DAMAGED = lines(HEAD, ONE) + b"damage\n" + lines(TWO)


# An agent that is killed.


def test_an_agent_that_is_killed_while_it_writes_loses_at_most_what_it_was_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def append() -> None:
        with opened(tmp_path) as journal:
            journal.append([THREE, FOUR])

    for number in itertools.count():
        journal_file(tmp_path, lines(HEAD, ONE, TWO) + b"torn")
        was_killed = killed(monkeypatch, number, append)
        found = entries_in(tmp_path)
        if not was_killed:
            assert found == [ONE, TWO, THREE, FOUR]
            return
        assert found in ([ONE, TWO], [ONE, TWO, THREE, FOUR]), number


def test_an_agent_that_is_killed_while_it_writes_the_journal_anew_has_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def replace() -> None:
        with opened(tmp_path) as journal:
            journal.replace([THREE])
            journal.append([FOUR])

    for number in itertools.count():
        journal_file(tmp_path)
        was_killed = killed(monkeypatch, number, replace)
        found = entries_in(tmp_path)
        if not was_killed:
            assert found == [THREE, FOUR]
            return
        assert found in ([ONE, TWO], [THREE], [THREE, FOUR]), number


def test_an_agent_that_is_killed_while_it_makes_its_first_journal_makes_it_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in itertools.count():
        directory = tmp_path / str(number)
        was_killed = killed(monkeypatch, number, functools.partial(entries_in, directory, new))
        with opened(directory, new) as journal:
            assert (journal.epoch, journal.entries) == (NEW, ())
        if not was_killed:
            return


def test_an_agent_that_is_killed_while_it_sets_a_damaged_journal_aside_loses_no_intact_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in itertools.count():
        journal_file(tmp_path, DAMAGED)
        was_killed = killed(monkeypatch, number, functools.partial(entries_in, tmp_path, new))
        with opened(tmp_path, new) as journal:
            assert (journal.epoch, list(journal.entries)) == (NEW, [ONE, TWO]), number
        if not was_killed:
            return


# A disk that cannot.


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_while_a_damaged_journal_is_set_aside_costs_no_intact_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int,
) -> None:
    for number in itertools.count():
        journal_file(tmp_path, DAMAGED)
        with system_calls(monkeypatch, failing(number, code)) as calls:
            error_of(functools.partial(entries_in, tmp_path, new))
        with opened(tmp_path, new) as journal:
            assert (journal.epoch, list(journal.entries)) == (NEW, [ONE, TWO]), number
        if number >= calls.asked:
            return


def test_a_disk_that_fills_up_at_any_byte_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_waiting(monkeypatch)
    path = journal_file(tmp_path)
    with opened(tmp_path) as journal:
        for room in range(len(lines(THREE, ONE))):
            before = path.read_bytes()
            with room_for(monkeypatch, room):
                error = error_of(functools.partial(journal.append, [THREE, ONE]))
            assert isinstance(error, OSError)
            assert error.errno == errno.ENOSPC
            assert path.read_bytes() == before
            journal.append([FOUR])
            assert path.read_bytes() == before + to_line(FOUR)
    assert entries_in(tmp_path) == [ONE, TWO, *[FOUR] * len(lines(THREE, ONE))]


def test_a_disk_that_fills_up_at_any_byte_of_a_new_file_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_waiting(monkeypatch)
    path = journal_file(tmp_path)
    with opened(tmp_path) as journal:
        for room in range(len(lines(HEAD, THREE))):
            with room_for(monkeypatch, room):
                assert error_of(functools.partial(journal.replace, [THREE]))
            assert path.read_bytes() == lines(HEAD, ONE, TWO)
        journal.append([FOUR])
        journal.replace([THREE])
    assert entries_in(tmp_path) == [THREE]


def test_a_line_that_may_not_be_on_disk_is_not_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = journal_file(tmp_path)
    with opened(tmp_path) as journal:
        with system_calls(monkeypatch, failing_at("fdatasync")) as calls, pytest.raises(OSError, match="Input/output"):
            journal.append([THREE])
        assert calls.names() == ["write", "ftruncate"]
        assert path.read_bytes() == lines(HEAD, ONE, TWO)
        journal.append([FOUR])
    assert entries_in(tmp_path) == [ONE, TWO, FOUR]


def test_what_could_not_be_cut_off_at_once_is_cut_off_before_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = journal_file(tmp_path)
    with opened(tmp_path) as journal:
        # After the write nothing more; then not even that.
        for number in (1, 0):
            with system_calls(monkeypatch, failing_from(number)), pytest.raises(OSError, match="Input/output"):
                journal.append([THREE])
            assert path.read_bytes() == lines(HEAD, ONE, TWO, THREE)
        journal.append([FOUR])
        assert path.read_bytes() == lines(HEAD, ONE, TWO, FOUR)


def test_whatever_fails_while_the_journal_is_written_anew_it_goes_on_with_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in itertools.count():
        journal_file(tmp_path)
        with opened(tmp_path) as journal:
            with system_calls(monkeypatch, failing(number)) as calls:
                error = error_of(functools.partial(journal.replace, [THREE]))
            kept = [THREE] if "replace" in calls.names() else [ONE, TWO]
            assert journal.path.read_bytes() == lines(HEAD, *kept)
            journal.append([FOUR])
        assert entries_in(tmp_path) == [*kept, FOUR]
        if error is None:
            assert calls.names() == ["open", "write", "fdatasync", "replace", "fsync"]
            return


def test_a_line_counts_as_written_only_when_its_file_has_its_name_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal_file(tmp_path)
    with opened(tmp_path) as journal:
        with system_calls(monkeypatch, failing_at("fsync")), pytest.raises(OSError, match="Input/output"):
            journal.replace([THREE])
        # After a power failure the directory could still name the old file, which knows nothing of this line.
        with system_calls(monkeypatch) as calls:
            journal.append([FOUR])
        assert ("fsync", tmp_path.stat().st_ino) in calls.made


@pytest.mark.parametrize("content", [None, lines(HEAD, ONE), lines(HEAD, ONE) + b"torn", b"damaged\n"])
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_journal_that_cannot_be_kept_is_refused_with_path_and_reason_and_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, code: int,
) -> None:
    for number in itertools.count():
        directory = tmp_path / str(number)
        if content is not None:
            journal_file(directory, content)
        descriptors = len(os.listdir("/proc/self/fd"))
        with system_calls(monkeypatch, failing(number, code)) as calls:
            error = error_of(functools.partial(entries_in, directory, new))
        assert len(os.listdir("/proc/self/fd")) == descriptors
        if isinstance(error, MigrationError):
            assert error.code is ErrorCode.JOURNAL_UNUSABLE
            assert error.facts["reason"] == os.strerror(code)
            assert error.facts["path"].startswith(str(directory))
            assert "--state-dir" in error.hint
        entries_in(directory, new)
        if number >= calls.asked:
            assert error is None
            assert number > 1
            return


def test_a_file_in_the_place_of_the_directory_and_the_reverse_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory" / JOURNAL_FILE).mkdir(parents=True)
    for directory, path in (("file", "file"), ("directory", "directory/journal")):
        error = refused(tmp_path / directory)
        assert error.code is ErrorCode.JOURNAL_UNUSABLE
        assert error.facts["path"] == str(tmp_path / path)


# Nobody else.


def test_only_one_agent_at_a_time_has_a_journal(tmp_path: Path) -> None:
    with opened(tmp_path, new) as journal:
        for _each in ("as made", "written anew"):
            error = refused(tmp_path)
            assert error.code is ErrorCode.JOURNAL_IN_USE
            assert str(journal.path) in error.message
            journal.replace([ONE])
        journal.append([TWO])
        with opened(tmp_path / "another", new):
            pass
    assert entries_in(tmp_path) == [ONE, TWO]


@pytest.mark.parametrize("content", [lines(HEAD, ONE), b"a secret\n", None])
def test_a_link_in_the_place_of_the_journal_is_refused_and_never_followed(
    tmp_path: Path, content: bytes | None,
) -> None:
    target, directory = tmp_path / "target", tmp_path / "state"
    if content is not None:
        target.write_bytes(content)
    directory.mkdir()
    (directory / JOURNAL_FILE).symlink_to(target)
    error = refused(directory)
    assert error.code is ErrorCode.JOURNAL_UNUSABLE
    assert (target.read_bytes() if target.exists() else None) == content
    assert (directory / JOURNAL_FILE).is_symlink()


def test_a_link_in_the_place_of_the_new_file_is_never_followed(tmp_path: Path) -> None:
    journal_file(tmp_path)
    (tmp_path / "target").write_bytes(b"a secret")
    (tmp_path / "journal.new").symlink_to(tmp_path / "target")
    with opened(tmp_path) as journal:
        with pytest.raises(OSError, match="symbolic"):
            journal.replace([THREE])
        journal.append([FOUR])
    assert (tmp_path / "target").read_bytes() == b"a secret"
    assert entries_in(tmp_path) == [ONE, TWO, FOUR]


# Written anew.


def test_a_journal_that_is_written_anew_holds_what_is_given_and_what_follows(tmp_path: Path) -> None:
    journal_file(tmp_path)
    # Longer than what comes: an agent was killed when it had written it.
    (tmp_path / "journal.new").write_bytes(b"x" * 10_000)
    with opened(tmp_path) as journal:
        journal.replace([TWO, THREE])
        assert journal.path.read_bytes() == lines(HEAD, TWO, THREE)
        journal.append([FOUR])
        assert journal.path.read_bytes() == lines(HEAD, TWO, THREE, FOUR)
        journal.replace([])
        assert journal.path.stat().st_size == len(lines(HEAD))
        journal.append([ONE])
        assert sorted(path.name for path in tmp_path.iterdir()) == [JOURNAL_FILE]
    with opened(tmp_path) as journal:
        assert (journal.epoch, journal.entries) == (OLD, (ONE,))


def test_no_descriptor_is_left_open_however_often_it_is_written_anew_and_refused(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with opened(tmp_path, new) as journal:
        while_open = len(os.listdir("/proc/self/fd"))
        for _each in range(5):
            journal.replace([ONE])
            refused(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == while_open
    assert len(os.listdir("/proc/self/fd")) == before
    journal.close()


# The thread that writes.


class WatchedJournal(Journal):
    """A journal that notes what is asked of it, and takes its time over the first entries."""

    def __init__(self, directory: Path) -> None:
        self.asked: list[tuple[str, list[Entry]]] = []
        self.busy, self.may_go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None
        super().__init__(directory, new)
        self.asked.clear()

    def _ask(self, what: str, entries: Sequence[Entry]) -> None:
        self.asked.append((what, list(entries)))
        if what == "append":
            self.busy.set()
            assert self.may_go_on.wait(10)
        if self.error is not None:
            raise self.error

    def append(self, entries: Sequence[Entry]) -> None:
        """Append them, when it may."""
        self._ask("append", entries)
        super().append(entries)

    def replace(self, entries: Sequence[Entry]) -> None:
        """Begin anew with them."""
        self._ask("replace", entries)
        super().replace(entries)


def test_what_comes_together_is_written_at_once_and_in_its_order(tmp_path: Path) -> None:
    journal, told = WatchedJournal(tmp_path), list[object]()
    writer = JournalWriter(journal)

    def put(entries: Sequence[Entry], *, anew: bool = False) -> None:
        writer.put(entries, lambda reason: told.append((entries, reason)), anew=anew)

    put([ONE])
    assert journal.busy.wait(10)
    together: list[Sequence[Entry]] = [[TWO], [THREE, FOUR], [ONE, TWO], [ONE, TWO, THREE], [FOUR], [TWO]]
    for number, entries in enumerate(together):
        put(entries, anew=number in (2, 3))
    assert told == []
    journal.may_go_on.set()
    writer.close()
    assert journal.asked == [
        ("append", [ONE]), ("append", [TWO, THREE, FOUR]), ("replace", [ONE, TWO, THREE]), ("append", [FOUR, TWO])]
    assert told == [(entries, None) for entries in [[ONE], *together]]
    assert entries_in(tmp_path) == [ONE, TWO, THREE, FOUR, TWO]


def test_it_is_told_when_it_is_on_disk_and_from_the_thread_that_wrote_it(tmp_path: Path) -> None:
    writer, told = JournalWriter(Journal(tmp_path, new)), list[object]()

    def done(reason: str | None) -> None:
        entries = read_lines((tmp_path / JOURNAL_FILE).read_bytes()).entries
        told.append((reason, entries, threading.current_thread().name))

    writer.put([ONE], done)
    writer.close()
    assert told == [(None, (ONE,), "journal")]


@pytest.mark.parametrize(("error", "reason"), [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"), (OSError("gone"), "gone"),
    (ValueError("no such entry"), "ValueError('no such entry')"),
])
def test_everybody_is_told_why_it_could_not_be_written_and_the_next_is_written(
    tmp_path: Path, error: Exception, reason: str,
) -> None:
    journal, told, all_told = WatchedJournal(tmp_path), list[object](), threading.Event()
    journal.error = error
    writer = JournalWriter(journal)

    def last(reason: str | None) -> None:
        told.append(reason)
        all_told.set()

    writer.put([ONE], told.append)
    assert journal.busy.wait(10)
    writer.put([TWO], told.append)
    writer.put([THREE], told.append)
    writer.put([THREE], last, anew=True)
    journal.may_go_on.set()
    assert all_told.wait(10)
    assert told == [reason] * 4
    journal.error = None
    writer.put([FOUR], told.append)
    writer.close()
    assert told == [*[reason] * 4, None]
    assert entries_in(tmp_path) == [FOUR]


def test_what_was_put_is_written_before_the_journal_is_closed(tmp_path: Path) -> None:
    writer, told = JournalWriter(Journal(tmp_path, new)), list[object]()
    for _each in range(100):
        writer.put([ONE], told.append)
    writer.close()
    assert told == [None] * 100
    assert entries_in(tmp_path) == [ONE] * 100


def test_a_pipe_in_the_place_of_the_journal_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal")
    error = refused(tmp_path)
    assert error.code is ErrorCode.JOURNAL_UNUSABLE
    assert "not a regular file" in error.facts["reason"]
