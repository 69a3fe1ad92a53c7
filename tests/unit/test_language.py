"""The language of what a person reads: chosen by the locale, while JSON, commands and codes stay as they are."""

from __future__ import annotations

import ctypes
import gettext
import io
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

import vmmigration
from console.arguments import complaint, parse
from console.columns import columns, table
from console.figures import Running, progress_text
from console.language import choose_language, languages_of, listed, translate
from constant import Command, DomainState, Outcome, Severity
from control.whereabouts import describe
from controller import Controller
from tests.unit.catalogue import LANGUAGES, texts
from tests.unit.samples import DESTINATION, MASTER, MOVED, ROOT, SOURCE, obstacle, write_key
from tests.unit.scripted import (
    BEFORE,
    FAILED,
    Call,
    Interrupt,
    ScriptedAgents,
    Silence,
    WithProgress,
    job,
    sleeping_with,
)
from wire.errors import ErrorCode, MigrationError
from wire.findings import Check, CheckReport, Finding, not_fine
from wire.history import JobList
from wire.phrase import COLON, Phrase
from wire.records import DiskProgress, Progress, StepReport
from wire.situation import DomainView

CHINESE = {"LC_ALL": "zh_CN.UTF-8"}
WORDS = [SOURCE, DESTINATION, "kvm", "VM1"]
HAN = re.compile(r"[\u4e00-\u9fff]")
# What needs no translation: what only joins others, and commands.
_NO_WORDS = re.compile(r"(\{\w+\}|[\W\d])*|(virsh|ls) .*")


@pytest.fixture(autouse=True)
def _english_again() -> Iterator[None]:
    yield
    choose_language({})


# Which language.


@pytest.mark.parametrize(("environment", "wanted"), [
    ({}, []), ({"LANG": "zh_CN.UTF-8"}, ["zh_CN"]), ({"LC_ALL": "zh_CN"}, ["zh_CN"]), ({"LANG": "zh"}, ["zh_CN"]),
    ({"LANG": "zh_SG.UTF-8"}, ["zh_CN"]), ({"LANG": "zh_CN.GB18030@pinyin"}, ["zh_CN"]),
    ({"LANG": "zh-Hans-CN"}, ["zh_CN"]), ({"LANGUAGE": "zh_CN"}, ["zh_CN"]),
    ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_GB.UTF-8"}, []),
    ({"LC_MESSAGES": "zh_CN", "LC_ALL": "de_DE"}, ["de_DE"]),
    ({"LANG": "zh_CN", "LC_ALL": ""}, ["zh_CN"]),
    # A list, in which English comes before what follows it.
    ({"LANG": "de_DE.UTF-8", "LANGUAGE": "de:zh_CN:zh"}, ["de", "zh_CN", "zh_CN", "de_DE"]),
    ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en_US:zh_CN"}, []), ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en"}, []),
    ({"LANG": "zh_TW.UTF-8", "LANGUAGE": "zh_TW:zh_CN"}, ["zh_TW", "zh_CN", "zh_TW"]),
    ({"LANG": "eno"}, ["eno"]),
    # A script that wants what it can read says so.
    ({"LC_ALL": "C", "LANGUAGE": "zh_CN:zh", "LANG": "zh_CN.UTF-8"}, []),
    ({"LANG": "POSIX", "LANGUAGE": "zh_CN"}, []), ({"LANG": "C.UTF-8", "LANGUAGE": "zh_CN"}, ["zh_CN", "C"]),
])
def test_the_locale_is_read_as_the_system_does(environment: Mapping[str, str], wanted: list[str]) -> None:
    assert languages_of(environment) == wanted


@pytest.mark.parametrize(("environment", "chinese"), [
    (CHINESE, True), ({"LANG": "zh_SG"}, True), ({"LANGUAGE": "de:zh_CN"}, True), ({"LANG": "de_DE.UTF-8"}, False),
    ({}, False), ({"LANG": "C.UTF-8"}, False), ({"LANG": "zh_TW.UTF-8"}, False), ({"LANG": "zh_HK.UTF-8"}, False),
    ({"LANG": "zh_Hant_TW"}, False), ({"LANG": "zh_TW.UTF-8", "LANGUAGE": "zh_TW:zh_CN"}, True),
])
def test_simplified_chinese_is_for_whoever_asks_for_it(environment: Mapping[str, str], chinese: bool) -> None:
    choose_language(environment)
    assert bool(HAN.search(translate("Nothing is under way."))) is chinese


@pytest.mark.parametrize(("number", "environment", "chinese"), [
    (0x804, {}, True), (0x1004, {}, True), (0x409, {}, False), (0x404, {}, False), (0x804, {"LANG": "en_US"}, False),
    (0x409, {"LANGUAGE": "zh_CN"}, True), (0x409, {"LANG": "zh_CN"}, True), (0xFFFF, {}, False),
])
def test_windows_has_a_display_language_where_no_variable_says_otherwise(
    number: int, environment: Mapping[str, str], chinese: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    windows = SimpleNamespace(kernel32=SimpleNamespace(GetUserDefaultUILanguage=lambda: number))
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    choose_language(environment)
    monkeypatch.undo()
    assert bool(HAN.search(translate("ok"))) is chinese


@pytest.mark.parametrize(("encoding", "chinese"), [
    ("utf-8", True), ("gbk", True), ("gb18030", True), ("ascii", False), ("latin-1", False), ("cp1252", False),
    ("no-such-encoding", False),
])
def test_a_stream_that_cannot_show_it_gets_english(encoding: str, chinese: bool) -> None:
    class Stream(io.StringIO):
        """A stream of some encoding."""

        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    choose_language(CHINESE, (io.StringIO(), Stream()))
    assert bool(HAN.search(translate("Nothing is under way."))) is chinese


def test_the_language_can_be_chosen_again() -> None:
    for environment, chinese in ((CHINESE, True), ({}, False), (CHINESE, True)):
        choose_language(environment)
        assert bool(HAN.search(translate("ok"))) is chinese


def test_a_phrase_is_put_into_it_with_its_facts_and_anything_else_stays() -> None:
    choose_language(CHINESE)
    said = translate(Phrase("It is {state} on {host}.", {"state": Phrase("running"), "host": SOURCE}))
    assert HAN.search(said)
    assert SOURCE in said
    assert "running" not in said
    assert translate("no sentence of ours") == "no sentence of ours"
    assert translate("") == ""


# The command, in a process of its own. No locale is installed for it.


def types(environment: Mapping[str, str], *words: str) -> tuple[int, str, str]:
    """Run the command so: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "vmmigration.py"), *words], capture_output=True, encoding="utf-8", timeout=60,
        env={"PATH": os.environ["PATH"], "COLUMNS": "100", **environment})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("environment", [CHINESE, {"LANGUAGE": "zh_CN", "PYTHONUTF8": "1"}])
def test_the_help_text_is_chinese_with_every_option_and_command_in_it(environment: Mapping[str, str]) -> None:
    code, out, err = types(environment, "--help")
    _code, english, _err = types({}, "--help")
    assert (code, err) == (0, "")
    assert not re.search(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", out)
    assert set(re.findall(r"--[a-z-]+|\b[A-Z]{2,}\b|AgentKey\.txt", english)) <= set(
        re.findall(r"--[a-z-]+|\b[A-Z]{2,}\b|AgentKey\.txt", out))
    assert max(map(columns, out.splitlines())) <= 120
    indents = [len(line) - len(line.lstrip()) for line in out.splitlines() if HAN.match(line.lstrip())]
    assert set(indents) <= {0, 2, 18, 24}
    # Nor a colon of argparse's own.
    assert [line for line in out.splitlines() if line.endswith(":")] == []
    assert "\noptions:\n" in english


def test_an_error_is_chinese_and_names_what_it_is_about() -> None:
    code, out, err = types(CHINESE, "node1", DESTINATION, "kvm", "VM1")
    assert (code, out) == (2, "")
    first, hint = err.splitlines()
    assert first.startswith("vmmigration.py: ")
    assert "'node1'" in first
    assert HAN.search(first)
    assert HAN.search(hint)


def test_json_and_exit_codes_are_the_same_in_every_language() -> None:
    for words in (["--json", "node1", DESTINATION, "kvm", "VM1"], ["--json", "--transport", "pigeon", *WORDS],
                  ["--json", "--bandwidth", "0", *WORDS], ["--json", "--config-dir", "/nowhere", *WORDS]):
        code, out, err = types(CHINESE, *words)
        assert (code, out) == types({}, *words)[:2]
        assert json.loads(out)["errors"][0]["message"].isascii()
        assert HAN.search(err)


def test_where_chinese_cannot_be_written_it_is_english() -> None:
    for environment in ({**CHINESE, "PYTHONIOENCODING": "ascii"}, {**CHINESE, "PYTHONIOENCODING": "latin-1"}):
        _code, _out, err = types(environment, "node1", DESTINATION, "kvm", "VM1")
        assert err == types({}, "node1", DESTINATION, "kvm", "VM1")[2]


def test_what_stands_side_by_side_has_chinese_signs_between() -> None:
    choose_language(CHINESE)
    running = Running(Command.LIVE_MIGRATION, SOURCE, 9.0, Progress(
        phase=Phrase("copying memory"), done=1 << 20, total=2 << 20, disks=tuple(
            DiskProgress(target, 1 << 20, 2 << 20) for target in ("vda", "vdb"))), percent=50)
    assert not re.search(r"[,;:] ", progress_text(running))
    assert listed(["vda", "1 s"], COLON) == "vda\uff1a1 s"
    moved_away = DomainView(state=DomainState.SHUT_OFF, migrated=True)
    assert translate(describe(moved_away)) == "已关机\uff08已迁出\uff09"


# The words of argparse.


@pytest.mark.parametrize("words", [
    ["--no-such-option", *WORDS], ["--transport", "pigeon", *WORDS], ["--bandwidth", "0", *WORDS], ["--timeout"],
    ["--json=7", *WORDS],
])
def test_what_argparse_complains_of_is_translated_too(words: list[str]) -> None:
    choose_language(CHINESE)
    with pytest.raises(MigrationError) as caught:
        parse(words)
    said = translate(caught.value.message)
    option = words[0].partition("=")[0]
    assert option in said
    assert re.sub(r"--[a-z-]+|'[^']*'|, ", "", said).isascii() is False
    assert not re.search(r"argument|expected|invalid|choice|whole", said)
    assert caught.value.message.isascii()


def test_a_complaint_that_is_not_known_stays_as_it_is() -> None:
    assert complaint("the moon is full") == "the moon is full"
    assert type(complaint("the moon is full")) is str


# Whole runs, with agents that follow a script.


class Strict(gettext.NullTranslations):
    """The Chinese catalogue, which writes down what it was asked for in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.known = texts(LANGUAGES[0].read())
        self.missed: list[str] = []

    def gettext(self, message: str) -> str:
        """The translation."""
        if message not in self.known and not _NO_WORDS.fullmatch(message):
            self.missed.append(message)
        return self.known.get(message, message)


Admin = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Strict:
    """A catalogue that misses nothing quietly, for the command that is run next."""
    catalogue = Strict()
    # argparse asks for a translation of its own.
    monkeypatch.setattr(gettext, "translation", lambda domain, *_what, **_how: (
        catalogue if domain == "vmmigration" else gettext.NullTranslations()))
    return catalogue


@pytest.fixture
def admin(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Admin:
    """Types the command on a management host in some language, with agents that say this."""
    (tmp_path / "AgentIPAddr.txt").write_text(f"{SOURCE}\n{DESTINATION}\n")
    write_key(tmp_path / "ControllerKey.txt", MASTER)

    def run(script: Mapping[Call, object], environment: Mapping[str, str], *words: str) -> tuple[int, str, str]:
        agents = ScriptedAgents(script={
            call: Interrupt(line.then) if isinstance(line, Interrupt) else line for call, line in script.items()})
        monkeypatch.setattr(vmmigration, "ControllerSocket", lambda: agents)
        monkeypatch.setattr(Controller, "__post_init__", sleeping_with(agents))
        monkeypatch.setattr(secrets, "token_hex", lambda count: "1a" * count)
        for name in ("LC_ALL", "LANGUAGE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = vmmigration.main(["--config-dir", str(tmp_path), *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


SHORT = obstacle(ErrorCode.MEMORY_SHORT, Check.MEMORY, host=DESTINATION, domain="VM1", free="1", needed="2")
FEW = not_fine(Check.CPUS, Severity.WARNS, MigrationError(ErrorCode.CPUS_FEWER, {
    "host": DESTINATION, "domain": "VM1", "vcpus": "8", "cpus": "2"}))
WELL = Finding(check=Check.DISK_SPACE, severity=Severity.FINE, facts={
    "host": DESTINATION, "free": Phrase("unknown"), "needed": "0"})
FOUND = {(Command.CHECK_DESTINATION, DESTINATION): CheckReport(findings=(SHORT, FEW, WELL))}
COPYING = WithProgress((Progress(phase=Phrase("copying the disk"), done=1, total=2),), MOVED)
WRITTEN = StepReport(summary=Phrase("{path} (libvirt's own)", {"path": "/etc/libvirt/qemu/VM1.xml"}))
LISTED = {(Command.LIST, SOURCE): JobList(jobs=(job(1, Outcome.MOVED), job(2))),
          (Command.LIST, DESTINATION): JobList(jobs=())}
OFF = DomainView(state=DomainState.SHUT_OFF)
PLACED = {**LISTED, (Command.LIST, SOURCE): JobList(jobs=()), (Command.LOCATE, SOURCE): OFF,
          (Command.LOCATE, DESTINATION): OFF}
RUNS: Mapping[str, tuple[Mapping[Call, object], list[str]]] = {
    "moved": ({(Command.LIVE_MIGRATION, SOURCE): COPYING,
               (Command.EXTRACT_CONFIGURE_FILE, DESTINATION): WRITTEN}, WORDS),
    "rolled back": ({**BEFORE, (Command.LIVE_MIGRATION, SOURCE): FAILED}, WORDS),
    "state unknown": ({(Command.LIVE_MIGRATION, SOURCE): Silence()}, WORDS),
    "moved, not finished": ({(Command.FINISH, SOURCE): FAILED}, WORDS),
    "left": ({(Command.LIVE_MIGRATION, SOURCE): Interrupt(MOVED)}, WORDS),
    "no agent": ({(Command.HELLO, SOURCE): Silence()}, WORDS),
    "obstacles": (FOUND, ["-v", *WORDS]),
    "skipped": (FOUND, ["--skip-check", "memory", *WORDS]),
    "dry run": ({}, ["-n", *WORDS]),
    "dry run with obstacles": (FOUND, ["-n", *WORDS]),
    "check": ({(Command.CHECK_LINK, DESTINATION): CheckReport(findings=(SHORT,))}, ["check"]),
    "check with one that is silent": ({(Command.HELLO, DESTINATION): Silence()}, ["check"]),
    "list": (LISTED, ["list"]),
    "status": ({**LISTED, (Command.LIST, SOURCE): JobList(jobs=())}, ["status"]),
    "repair": (PLACED, ["repair", "VM1", SOURCE, DESTINATION]),
    "repair of nothing": ({**PLACED, (Command.LOCATE, SOURCE): DomainView(state=DomainState.RUNNING),
                           (Command.LOCATE, DESTINATION): DomainView(state=DomainState.ABSENT)},
                          ["repair", "VM1", SOURCE, DESTINATION]),
    "unknown job": (LISTED, ["resume", "00000009"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_told_in_chinese_without_a_sentence_that_is_not_translated(
    name: str, admin: Admin, strict: Strict,
) -> None:
    script, words = RUNS[name]
    code, out, err = admin(script, CHINESE, *words)
    assert strict.missed == []
    assert code == admin(script, {}, *words)[0]
    sentences = out if out else err
    assert HAN.search(sentences)
    # No English but names, figures, commands, and the host's own words.
    lines = [line for line in sentences.splitlines() if not HAN.search(line) and re.search(r"[a-z]{3} [a-z]{3}", line)]
    assert all("virsh" in line for line in lines), lines


@pytest.mark.parametrize("name", RUNS)
def test_a_run_tells_programs_the_same_in_every_language(name: str, admin: Admin) -> None:
    script, words = RUNS[name]
    english = admin(script, {}, "--json", "--progress", "json", *words)
    chinese = admin(script, CHINESE, "--json", "--progress", "json", *words)
    assert (chinese[0], untimed(chinese[1])) == (english[0], untimed(english[1]))
    assert isinstance(json.loads(chinese[1]), dict)
    events = [[line for line in untimed(each).splitlines() if line.startswith("{")] for each in (
        english[2], chinese[2])]
    assert events[0] == events[1]


def untimed(text: str) -> str:
    """The text without how long things took on this machine."""
    return re.sub(r'("seconds"|"clock_offset_seconds"): [-\w.]+', "", text)


def test_the_commands_that_are_left_to_an_admin_are_not_translated(admin: Admin) -> None:
    script, words = RUNS["repair"]
    _code, out, _err = admin(script, CHINESE, *words)
    assert "virsh start VM1   # " in out
    for line in out.splitlines():
        if "virsh start" in line:
            assert HAN.search(line.partition("#")[2])


def test_states_and_outcomes_are_words_of_the_language(admin: Admin) -> None:
    for name, english, chinese in (("list", "moved", "已迁移"), ("repair of nothing", "running", "运行中"),
                                   ("dry run", "converges", "可以收敛"), ("check", "FAILED", "失败")):
        script, words = RUNS[name]
        _code, out, _err = admin(script, CHINESE, *words)
        assert (english in out, chinese in out) == (False, True)


# Tables.


def test_a_wide_sign_takes_two_columns() -> None:
    assert list(table([("虚拟机", "b"), ("ab", "c")])) == ["虚拟机  b", "ab      c"]


@pytest.mark.parametrize("rows", [
    [("a", "b"), ("long", "c")], [("虚拟机", "b"), ("a", "c"), ("long", "")], [("虚", "机"), ("abcde", "x")],
])
def test_the_columns_of_a_table_stand_below_each_other(rows: list[tuple[str, ...]]) -> None:
    lines = list(table(rows))
    places = {columns(line[:line.rindex(row[1])]) for line, row in zip(lines, rows) if row[1]}
    assert len(places) == 1
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", ["list", "check"])
def test_a_chinese_table_is_aligned(name: str, admin: Admin) -> None:
    script, words = RUNS[name]
    _code, out, _err = admin(script, CHINESE, *words)
    heads, *rows = [line for line in out.split("\n\n")[0].splitlines() if line]
    begin = [columns(heads[:found.start()]) for found in re.finditer(r"(?<=  )\S", heads)]
    for row in rows:
        starts = {columns(row[:found.start()]) for found in re.finditer(r"(?<=  )\S", row)}
        assert starts <= set(begin)


def test_the_plan_is_aligned(admin: Admin) -> None:
    _code, out, _err = admin({}, CHINESE, "-n", *WORDS)
    figures = out.splitlines()[-5:-1]
    assert {columns(re.split(r"\s{2,}", line)[0]) + len(re.findall(r"\s{2,}", line)[0]) for line in figures} == {10}
