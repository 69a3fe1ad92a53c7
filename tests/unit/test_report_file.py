"""`--report FILE`: a page is written whatever becomes of the run, over nothing else, and changes no exit code."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import vmmigration
from console.arguments import parse
from console.recorder import Recorder
from console.report_file import ReportFile, WrittenRun, command_line
from console.report_page import page
from constant import Command, DomainState, ExitCode, Outcome
from control.conversation import ControllerSettings
from controller import Controller
from tests.unit.report_runs import moved
from tests.unit.samples import (
    AGENTS,
    DESTINATION,
    FACTS,
    HOST_FACTS,
    MASTER,
    MIGRATION,
    MOVED,
    SOURCE,
    FakeClock,
    obstacle,
    write_key,
)
from tests.unit.scripted import (
    BEFORE,
    COPIED,
    FAILED,
    PREPARED,
    Call,
    Interrupt,
    ScriptedAgents,
    Silence,
    WithProgress,
    known,
    sleeping_with,
    step,
)
from vmmigration import main
from wire.errors import ErrorCode, MigrationError
from wire.findings import CheckReport
from wire.records import DiskProgress, Progress

WORDS = [SOURCE, DESTINATION, "kvm", "VM1"]
MIGRATING = (Command.LIVE_MIGRATION, SOURCE)


class Ran:
    """What one command has come to."""

    def __init__(self, code: int, out: str, err: str, agents: ScriptedAgents) -> None:
        self.code, self.out, self.err, self.agents = code, out, err, agents


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run the command in this process, with agents that follow a script, and below a directory for pages."""
    configured = tmp_path / "configured"
    configured.mkdir()
    (configured / "AgentIPAddr.txt").write_text(f"{SOURCE}\n{DESTINATION}\n")
    write_key(configured / "ControllerKey.txt", MASTER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_given: None)

    def run_command(*words: str, script: Mapping[Call, object] | None = None) -> Ran:
        # A Ctrl-C in it is pressed once for each run.
        agents = ScriptedAgents(script={
            call: copy.copy(line) if isinstance(line, Interrupt) else line for call, line in (script or {}).items()})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vmmigration, "ControllerSocket", lambda: agents)
            patch.setattr(Controller, "__post_init__", sleeping_with(agents))
            code = main(["--config-dir", str(configured), *words])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Ran(code, printed.out, printed.err, agents)
    yield run_command
    left = [path.name for path in tmp_path.rglob(".vmmigration-*")]
    assert left == [], "something was left beside the page"


# Whatever becomes of the run.


RUNS: Mapping[str, tuple[list[str], Mapping[Call, object], int, str]] = {
    "moved": (WORDS, {}, 0, "VM1 runs on 192.0.2.12 now."),
    "rolled back": (WORDS, {**BEFORE, MIGRATING: FAILED}, 5, "Rolled back: VM1 runs on 192.0.2.11 as before."),
    "blocked": (WORDS, {(Command.CHECK_SOURCE, SOURCE): CheckReport(
        findings=(obstacle(ErrorCode.DOMAIN_MISSING, host=SOURCE, domain="VM1"),))}, 3, "domain-missing"),
    "silent": (WORDS, {(Command.HELLO, DESTINATION): Silence()}, 4, "agent-silent"),
    "unknown": (WORDS, {MIGRATING: Silence()}, 7, "STATE UNKNOWN"),
    "left by Ctrl-C": (WORDS, {MIGRATING: Interrupt(MOVED)}, 8, "Left: job"),
    "cancelled by Ctrl-C": (WORDS, {**BEFORE, MIGRATING: Interrupt(FAILED, 2)}, 5, "twice: cancels the job"),
    "Ctrl-C during the checks": (WORDS, {(Command.CHECK_SOURCE, SOURCE): Interrupt(FAILED)}, 3, "nothing changed"),
    "not finished": (WORDS, {(Command.EXTRACT_CONFIGURE_FILE, DESTINATION): MigrationError(
        ErrorCode.DIRECTORY_MISSING, {"host": DESTINATION, "path": "/x", "reason": "none"})}, 6, "not all went well"),
    "dry run": (["-n", *WORDS], {}, 0, "A real run would start."),
    "blocked dry run": (["-n", *WORDS], {(Command.HELLO, SOURCE): Silence()}, 4, "A real run would not start"),
    "resumed": (["resume", MIGRATION.job_id], known(
        [*COPIED, step(Command.LIVE_MIGRATION, 3)], PREPARED, moved=MOVED), 0, "VM1 runs on 192.0.2.12 now."),
    "resumed and rolled back": (["resume", MIGRATION.job_id], {
        **known(COPIED, PREPARED), **BEFORE, MIGRATING: FAILED}, 5, "Rolled back"),
    "resumed too late": (["resume", MIGRATION.job_id], known(
        COPIED, PREPARED, outcomes=(Outcome.MOVED, Outcome.MOVED)), 0, "Job 0badcafe has ended: moved. VM1 runs on"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_page_is_written_whatever_becomes_of_the_run(name: str, run: Run, tmp_path: Path) -> None:
    words, script, code, told = RUNS[name]
    without = run(*words, script=script)
    ran = run("--report", "run.html", *words, script=script)
    assert ran.code == without.code == code
    # What is printed is the same: a job has another id each time.
    numbers = re.compile(r"[0-9a-f]{8}|[0-9.]+ s")
    assert numbers.sub("", ran.out + ran.err) == numbers.sub("", without.out + without.err)
    assert ran.agents.calls() == without.agents.calls()
    written = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert told in written
    assert f"exit code {code}" in written
    assert re.search(r"vmmigration\.py --config-dir \S+ --report run\.html", written)


def test_a_page_is_its_owners_and_holds_no_key(run: Run, tmp_path: Path) -> None:
    run("--report", "run.html", *WORDS)
    path = tmp_path / "run.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for secret in (MASTER, MASTER.for_agent(SOURCE), MASTER.for_agent(DESTINATION)):
        assert secret.secret.hex() not in path.read_text(encoding="utf-8")


def test_a_page_tells_what_the_hosts_told_and_how_the_move_went_on(run: Run, tmp_path: Path) -> None:
    reports = tuple(Progress(phase="copying the disk", done=done << 20, total=900 << 20, disks=(
        DiskProgress("vda", done << 20, 900 << 20),)) for done in (0, 300, 900))
    run("--report", "run.html", *WORDS, script={
        MIGRATING: WithProgress(reports, MOVED), (Command.HELLO, SOURCE): dataclasses.replace(
            HOST_FACTS, hostname="the-source")})
    written = (tmp_path / "run.html").read_text(encoding="utf-8")
    for told in ("the-source", FACTS.uuid, "pc-q35-7.2", 'class="timeline"', "vda", "9.0.0 (libvirtd)"):
        assert told in written


def test_a_job_that_is_gone_on_with_has_the_facts_of_its_vm(run: Run, tmp_path: Path) -> None:
    run("--report", "run.html", "resume", MIGRATION.job_id, script=RUNS["resumed"][1])
    assert FACTS.uuid in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_a_job_that_is_gone_on_with_has_no_average_for_what_this_command_has_not_seen(
    run: Run, tmp_path: Path,
) -> None:
    running = step(Command.LIVE_MIGRATION, 3, ended=False)
    run("--report", "run.html", "resume", MIGRATION.job_id, script={**known([*COPIED, running], PREPARED)})
    resumed = (tmp_path / "run.html").read_text(encoding="utf-8")
    run("--report", "run.html", *WORDS)
    assert "average rate" not in resumed
    assert "average rate" in (tmp_path / "run.html").read_text(encoding="utf-8")


# Where it may go is found out before.


def test_a_page_of_ours_is_overwritten_and_a_link_to_it_goes_on_being_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "newest.html").symlink_to("pages/run.html")
    run("--report", "newest.html", *WORDS)
    assert "A real run" not in (tmp_path / "pages/run.html").read_text(encoding="utf-8")
    assert run("-n", "--report", "newest.html", *WORDS).code == 0
    assert "A real run would start." in (tmp_path / "pages/run.html").read_text(encoding="utf-8")
    assert (tmp_path / "newest.html").is_symlink()


def prepare_places(directory: Path) -> None:
    """What is there already, and is none of ours."""
    (directory / "notes.html").write_text("<!DOCTYPE html>\n<title>mine</title>")
    (directory / "empty.html").write_text("")
    (directory / "picture").write_bytes(b"\x89PNG\xff\xfe")
    (directory / "directory").mkdir()
    (directory / "loop.html").symlink_to("loop.html")
    os.mkfifo(directory / "pipe")


@pytest.mark.parametrize(("path", "said"), [
    ("missing/run.html", "No such file or directory"), ("notes.html/run.html", "Not a directory"),
    ("directory", "it is a directory"), ("notes.html", "no report of this program"),
    ("empty.html", "no report of this program"), ("picture", "no report of this program"),
    ("pipe", "no ordinary file"), ("/dev/null", "no ordinary file"), ("loop.html", "symbolic links"),
    ("/proc/run.html", "cannot be written"), ("n" * 300, "File name too long"), ("", "it names no file"),
    ("-", "it names no file"), ("new/", "it names no file")])
@pytest.mark.parametrize("words", [WORDS, ["-n", *WORDS], ["resume", MIGRATION.job_id]])
def test_a_place_that_will_not_do_is_refused_before_an_agent_is_asked(
    words: list[str], path: str, said: str, run: Run, tmp_path: Path,
) -> None:
    prepare_places(tmp_path)
    before = sorted(each.name for each in tmp_path.iterdir())
    ran = run("--report", path, *words)
    assert (ran.code, ran.out, ran.agents.asked) == (ExitCode.INPUT, "", [])
    first, second = ran.err.splitlines()
    assert first.startswith(f"vmmigration.py: {path} cannot be written: ")
    assert said in first
    assert second.startswith("  ")
    assert sorted(each.name for each in tmp_path.iterdir()) == before
    assert (tmp_path / "notes.html").read_text() == "<!DOCTYPE html>\n<title>mine</title>"


@pytest.mark.parametrize("words", [
    ["list"], ["status", "VM1"], ["check"], ["cancel", MIGRATION.job_id], ["repair", "VM1", SOURCE, DESTINATION],
    ["restore-source", MIGRATION.job_id], ["new-key"], ["agent-key", SOURCE], ["change-key", "begin"]])
def test_a_command_without_a_run_has_no_page(words: list[str], run: Run, tmp_path: Path) -> None:
    ran = run("--report", "run.html", *words)
    assert (ran.code, ran.out, ran.agents.asked) == (ExitCode.INPUT, "", [])
    assert f"--report goes with a move or with resume, not with {words[0]}." in ran.err
    assert not (tmp_path / "run.html").exists()


def test_what_is_wrong_before_an_agent_is_asked_has_no_page(run: Run, tmp_path: Path) -> None:
    assert run("--report", "run.html", SOURCE, "192.0.2.99", "kvm", "VM1").code == ExitCode.INPUT
    assert run("--report", "run.html", "resume", "0badf00d", script=known(None, None)).code == ExitCode.REFUSED
    assert not (tmp_path / "run.html").exists()


# What goes wrong at the end.


def broken(patch: pytest.MonkeyPatch, how: str) -> str:
    """Break the writing of a page that could be written before the run. Returns what is to be said."""
    def no_room(*_given: object) -> None:
        raise OSError(28, "No space left on device")

    def mistake(_run: object) -> str:
        raise ZeroDivisionError("a mistake")

    def pressed(_run: object) -> str:
        raise KeyboardInterrupt

    if how == "no room":
        patch.setattr("os.replace", no_room)
        return "No space left on device"
    patch.setattr("console.report_page.page", mistake if how == "a mistake of ours" else pressed)
    return "ZeroDivisionError('a mistake')" if how == "a mistake of ours" else "KeyboardInterrupt()"


@pytest.mark.parametrize("how", ["no room", "a mistake of ours", "Ctrl-C"])
@pytest.mark.parametrize("name", ["moved", "rolled back", "unknown", "dry run"])
def test_a_page_that_cannot_be_written_in_the_end_changes_no_exit_code(
    how: str, name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, script, code, _told = RUNS[name]
    without = run("-q", *words, script=script)
    run("--report", "run.html", *WORDS)
    earlier = (tmp_path / "run.html").read_bytes()
    said = broken(monkeypatch, how)
    ran = run("-q", "--report", "run.html", *words, script=script)
    assert ran.code == code
    assert ran.out.splitlines()[0].partition("job")[0] == without.out.splitlines()[0].partition("job")[0]
    assert ran.err.splitlines()[-2] == f"vmmigration.py: run.html cannot be written: {said}. [file-not-written]"
    assert len(ran.err.splitlines()) == len(without.err.splitlines()) + 2
    assert (tmp_path / "run.html").read_bytes() == earlier


def test_what_somebody_has_put_there_meanwhile_is_left_alone(tmp_path: Path) -> None:
    file = ReportFile(str(tmp_path / "run.html"))
    file.check()
    (tmp_path / "run.html").write_text("mine")
    with pytest.raises(MigrationError) as caught:
        file.write(page(moved()))
    assert caught.value.code is ErrorCode.FILE_NOT_WRITTEN
    assert (tmp_path / "run.html").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]


# What it is made from.


@pytest.mark.parametrize("words", [WORDS, ["-n", SOURCE, DESTINATION, "kvm", "win 11 (prod)", "--report", "a b.html"]])
def test_the_command_can_be_typed_again_as_it_stands_there(words: list[str]) -> None:
    typed = shlex.split(command_line(parse(words).typed))
    assert typed == ["vmmigration.py", *words]


def test_a_clock_is_held_against_this_hosts_own() -> None:
    clock = FakeClock(500.0)
    agents = ScriptedAgents(clock=clock, tells_when=True, script={
        (Command.HELLO, SOURCE): dataclasses.replace(HOST_FACTS, clock=1_790_000_000_000 + 7_000)})
    written = WrittenRun(parse(WORDS), clock, lambda: 1_790_000_000.0 + clock.now - 500.0)
    controller = Controller(
        ControllerSettings(agents=AGENTS, keys=(MASTER,)), agents, Recorder(clock), clock, on_ended=written.ended)
    report = controller.migrate(MIGRATION)
    made = written._all_of_it(controller, report)
    # It was asked at 0 s, and had answered after half a second: more than that is not certain.
    assert made.clocks[SOURCE] == pytest.approx(7.0 - 0.5)
    assert made.began.timestamp() == 1_790_000_000.0
    assert made.began.tzinfo is not None
    assert set(made.hosts) == {SOURCE, DESTINATION}
    assert made.facts is not None
    assert made.facts.state is DomainState.RUNNING
