"""new-key, agent-key and change-key: keys are made, derived and changed, and never seen by anybody else."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

import vmmigration
from constant import AGENT_LIST_FILE, CONTROLLER_KEY_FILE
from tests.unit.pair import Pair
from tests.unit.samples import DESTINATION, MASTER, SOURCE, write_key
from wire.access import Key, begin_key_change, finish_key_change, load_keys
from wire.errors import ErrorCode, MigrationError
from wire.message import Reply

OTHER = Key(bytes(range(1, 33)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A key file with one key in it."""
    return write_key(tmp_path / CONTROLLER_KEY_FILE, MASTER)


def command(directory: Path, *words: str) -> int:
    """The exit code of the command with these words."""
    return vmmigration.main(["--config-dir", str(directory), *words])


def refused(path: Path, change: object) -> ErrorCode:
    """The code of the error that a change of that file ends with."""
    assert callable(change)
    with pytest.raises(MigrationError) as caught:
        change(path)
    return caught.value.code


def test_a_change_puts_the_new_key_behind_the_old_one_and_takes_the_old_one_away_at_its_end(path: Path) -> None:
    begin_key_change(path)
    old, new = load_keys(path)
    assert old == MASTER
    assert new != MASTER
    finish_key_change(path)
    assert load_keys(path) == (new,)


def test_each_step_of_a_change_is_refused_where_it_does_not_fit(path: Path) -> None:
    assert refused(path, finish_key_change) is ErrorCode.KEY_CHANGE_NOT_BEGUN
    begin_key_change(path)
    both = load_keys(path)
    assert refused(path, begin_key_change) is ErrorCode.KEY_CHANGE_BEGUN
    assert load_keys(path) == both


def test_comments_and_a_missing_last_line_end_survive_a_change(path: Path) -> None:
    path.write_text(f"# ours\n{MASTER.secret.hex()}  # first\n# end", encoding="utf-8")
    begin_key_change(path)
    assert load_keys(path)[0] == MASTER
    finish_key_change(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ours\n# end\n")
    assert MASTER.secret.hex() not in text
    assert len(load_keys(path)) == 1


def test_a_changed_key_file_is_as_private_as_before_and_nothing_else_is_left_beside_it(path: Path) -> None:
    for change in (begin_key_change, finish_key_change):
        change(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_change_that_cannot_be_written_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refused(path, begin_key_change) is ErrorCode.FILE_NOT_WRITTEN
    assert load_keys(path) == (MASTER,)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_an_agents_key_is_printed_once_for_each_master_key(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(path.parent, "agent-key", SOURCE) == 0
    assert capsys.readouterr().out.split() == [MASTER.for_agent(SOURCE).secret.hex()]
    assert command(path.parent, "change-key", "begin") == 0
    capsys.readouterr()
    assert command(path.parent, "agent-key", SOURCE) == 0
    assert capsys.readouterr().out.split() == [key.for_agent(SOURCE).secret.hex() for key in load_keys(path)]


def test_no_key_stands_in_what_the_commands_say_or_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for words in (("new-key",), ("change-key", "begin"), ("change-key", "finish"), ("change-key", "finish")):
        command(tmp_path, "-v", *words)
    said = "".join(capsys.readouterr()) + caplog.text
    assert not any(key.secret.hex() in said for key in load_keys(tmp_path / CONTROLLER_KEY_FILE))


def test_a_change_is_not_finished_while_an_agent_knows_only_the_old_key(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    (path.parent / AGENT_LIST_FILE).write_text(f"{SOURCE}\n{DESTINATION}\n", encoding="utf-8")
    command(path.parent, "change-key", "begin")
    before = load_keys(path)
    without = {before[1]: [DESTINATION]}
    monkeypatch.setattr("vmmigration.agents_without", lambda key, _talk, old: without[key] if old == before[0] else [])
    assert command(path.parent, "change-key", "finish") == 2
    assert f"do not take the new key yet: {DESTINATION}." in capsys.readouterr().err
    assert load_keys(path) == before
    without[before[1]] = []
    assert command(path.parent, "change-key", "finish") == 0
    assert load_keys(path) == before[1:]


@pytest.mark.parametrize("words", [
    ("change-key",), ("change-key", "begin", "now"), ("change-key", "end"), ("new-key", SOURCE), ("agent-key",)])
def test_wrong_words_are_an_error_of_the_arguments_and_change_nothing(path: Path, words: tuple[str, ...]) -> None:
    before = path.read_bytes()
    assert command(path.parent, *words) == 2
    assert path.read_bytes() == before


def test_while_a_change_goes_on_requests_under_either_key_are_answered_and_afterwards_only_under_the_new_one() -> None:
    old, new = MASTER.for_agent(SOURCE), OTHER.for_agent(SOURCE)
    pair = Pair(keys=(old,), patience=2.0)
    for agent, controller, answered in (
        ((old,), (old,), True), ((old, new), (old, new), True), ((old, new), (new,), True), ((new,), (new,), True),
        ((new,), (old,), False),
    ):
        pair.responder.reconfigure(pair.responder.gate.sources, agent)
        pair.keys = controller
        outcome = pair.run(pair.exchange(pair.request()))[-1]
        assert isinstance(outcome, Reply) is answered
