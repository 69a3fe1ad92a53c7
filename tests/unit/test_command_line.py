"""The admin's command as the admin sees it: what it prints where, its exit code, and never a traceback."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import vmmigration
from console.arguments import COMMANDS
from console.display import Display
from console.result import result_json, result_text
from console.terminal import printable, write
from constant import Command, CopyStorage, DomainState, ExitCode, OnTimeout, Outcome, Transport
from control.conversation import StepResult
from control.report import RunReport
from controller import Controller
from tests.unit.samples import (
    DESTINATION,
    FACTS,
    MASTER,
    MIGRATION,
    MOVED,
    ROOT,
    SOURCE,
    FakeClock,
    obstacle,
    write_key,
)
from tests.unit.scripted import (
    CHECKED_IN_TURN,
    COMPLETING,
    HAPPY,
    MOVING_IN_TURN,
    Call,
    Interrupt,
    ScriptedAgents,
    Signalled,
    Silence,
    WithProgress,
    cannot_send_to,
    error_of,
    known,
    sleeping_with,
    states,
)
from vmmigration import _COMMANDS, _Interrupt, main
from wire.errors import ErrorCode, MigrationError
from wire.findings import CheckReport
from wire.records import Convergence, Migration, Progress, StepArguments, StepReport

WORDS = [SOURCE, DESTINATION, "kvm", "VM1", "/var/lib/libvirt/images/node.qcow2", "/etc/libvirt/qemu/VM1.xml"]
FAILED = MigrationError(ErrorCode.MIGRATION_FAILED, {"domain": "VM1", "host": SOURCE, "reason": "no route"})
NEWEST_AND_OLDEST = ("3.9", "3.10", "3.11", "3.12", "3.13")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A configuration directory with both hosts listed and a key."""
    (tmp_path / "AgentIPAddr.txt").write_text(f"{SOURCE}\n{DESTINATION}\n")
    write_key(tmp_path / "ControllerKey.txt", MASTER)
    return tmp_path


Run = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The command takes SIGTERM and SIGHUP for itself; the tests' own process gets them back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def run(directory: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: its exit code, stdout and stderr."""
    def run_command(*arguments: str) -> tuple[int, str, str]:
        code = main(["--config-dir", str(directory), *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        assert MASTER.secret.hex() not in captured.out + captured.err
        return code, captured.out, captured.err
    return run_command


def scripted(monkeypatch: pytest.MonkeyPatch, script: Mapping[Call, object]) -> ScriptedAgents:
    """Put scripted agents behind the command."""
    agents = ScriptedAgents(script=script)
    monkeypatch.setattr(vmmigration, "ControllerSocket", lambda: agents)
    monkeypatch.setattr(Controller, "__post_init__", sleeping_with(agents))
    return agents


# What is wrong before any agent is asked: one sentence, one hint, exit code 2, and nothing on stdout.


@pytest.mark.parametrize(("words", "said"), [
    ([], "got 0 arguments"),
    (WORDS[:1], "got 1 argument."),
    (WORDS[:3], "got 3 arguments"),
    ([*WORDS, "more"], "got 7 arguments"),
    (["node1", *WORDS[1:]], "Source 'node1' is not an IP address"),
    ([SOURCE, "192.0.2.300", *WORDS[2:]], "Destination '192.0.2.300' is not an IP address"),
    ([SOURCE, SOURCE, *WORDS[2:]], f"both {SOURCE}"),
    (["2001:db8::1", "2001:0DB8:0::1", *WORDS[2:]], "both 2001:db8::1"),
    ([SOURCE, "192.0.2.99", *WORDS[2:]], "192.0.2.99 is not in "),
    (["192.0.2.98", DESTINATION, *WORDS[2:]], "192.0.2.98 is not in "),
    ([*WORDS[:4], "node.qcow2"], "Disk path 'node.qcow2' is not a plain absolute path"),
    ([*WORDS[:5], "/etc/../x.xml"], "Conf file path '/etc/../x.xml' is not a plain absolute path"),
    ([*WORDS[:2], "root;id", "VM1"], "'root;id' is not a user name"),
    ([*WORDS[:3], "a/b"], "'a/b' is not a VM name"),
    (["--no-such-option", *WORDS], "--no-such-option"),
    (["--transport", "pigeon", *WORDS], "pigeon"),
    (["--bandwidth", "0", *WORDS], "--bandwidth"),
    (["--bandwidth", "fast", *WORDS], "--bandwidth"),
    (["--timeout", "-1", *WORDS], "--timeout"),
    (["--on-timeout", "suspend", *WORDS], "--on-timeout needs --timeout"),
    (["--on-timeout", "abort", *WORDS], "--on-timeout needs --timeout"),
    (["--timeout", "5", "--on-timeout", "hope", *WORDS], "hope"),
    (["--max-downtime", "0", *WORDS], "'0' is not a whole number from 1 to 600000"),
    (["--max-downtime", "600001", *WORDS], "'600001' is not a whole number from 1 to 600000"),
    (["--progress", "dance", *WORDS], "dance"),
    (["--bandwidth", "9" * 5000, *WORDS], "--bandwidth"),
    (["statsu"], "There is no command 'statsu'"),
    (["resmue", "1a2b3c4d"], "There is no command 'resmue'"),
    (["repiar", "VM1", SOURCE, DESTINATION], "There is no command 'repiar'"),
    (["frobnicate"], "or one of check, list, status, resume,"),
    (["-n", "list"], "-n (--dry-run) goes with a move, not with list"),
    (["-n", "resume", "1a2b3c4d"], "-n (--dry-run) goes with a move, not with resume"),
    (["--without-destination", *WORDS], "--without-destination goes with restore-source alone"),
    (["repair", "VM1", SOURCE, DESTINATION, "--without-destination"], "goes with restore-source alone"),
    (["--js", *WORDS], "--js"),
    (["--trans", "tcp", *WORDS], "--trans"),
    (["--insec", *WORDS], "--insec"),
    (["--verb", "agent-key", SOURCE], "--verb"),
    (["fe80::1%eth0", *WORDS[1:]], "Source 'fe80::1%eth0' is not an IP address"),
    (["new-key", "more"], "new-key takes no argument"),
    (["new-key", SOURCE], "new-key takes no argument"),
    (["agent-key"], "agent-key takes one IP address"),
    (["agent-key", SOURCE, DESTINATION], "agent-key takes one IP address"),
    (["agent-key", "node1"], "Agent 'node1' is not an IP address"),
])
def test_bad_input_is_told_in_one_sentence_with_a_hint(run: Run, words: Sequence[str], said: str) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("vmmigration.py: ")
    assert said in first
    assert second.startswith("  ")
    assert second.endswith(".")


def test_the_commands_that_are_named_are_those_that_there_are() -> None:
    assert sorted(COMMANDS) == sorted(_COMMANDS)


@pytest.mark.parametrize(("words", "hint"), [
    ([*WORDS[:2], "k vm", "VM1"], "A user name is a letter or _,"),
    (["check", "k vm"], "A user name is a letter or _,"),
    ([*WORDS[:3], "a/b"], "A name has 1 to 255 signs, no `/`"),
    (["--pool", "a/b", *WORDS[:4]], "A name has 1 to 255 signs, no `/`"),
    (["status", "a/b"], "A name has 1 to 255 signs, no `/`"),
    (["statsu"], "Perhaps status is meant."),
    (["--report", "-", *WORDS], "Give another file name."),
    (["frobnicate"], "See `vmmigration.py --help`."),
])
def test_the_hint_says_what_would_be_right(run: Run, words: Sequence[str], hint: str) -> None:
    code, _out, err = run(*words)
    assert code == 2
    assert err.splitlines()[1].strip().startswith(hint)


@pytest.mark.parametrize(("words", "said"), [
    (["list", "x"], "list takes no argument"), (["resume"], "resume takes one job"),
    (["resume", "zz"], "resume takes one job"), (["cancel"], "cancel takes one job"),
    (["repair", "VM1"], "repair takes VM SRC DST"),
    (["status", "a/b"], "'a/b' is neither a job nor a VM"), (["restore-source"], "restore-source takes one job")])
def test_wrong_arguments_are_told_before_a_list_that_is_empty(
    run: Run, directory: Path, words: Sequence[str], said: str,
) -> None:
    (directory / "AgentIPAddr.txt").write_text("")
    assert said in run(*words)[2]


def test_what_goes_on_with_a_job_names_every_agent_that_is_silent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {(Command.HELLO, host): Silence() for host in (SOURCE, DESTINATION)})
    for command in ("resume", "cancel"):
        code, out, err = run("--json", command, "1a2b3c4d")
        assert code == json.loads(out)["exit_code"] == ExitCode.NO_CONTACT
        assert [error["facts"]["host"] for error in json.loads(out)["errors"]] == [SOURCE, DESTINATION]
        assert len(re.findall("No agent answered", err)) == 2


@pytest.mark.parametrize(("name", "content", "said"), [
    ("AgentIPAddr.txt", None, "cannot be read: No such file"),
    ("AgentIPAddr.txt", None, "Create it, with one address a line: that of each node that"),
    ("AgentIPAddr.txt", b"\xff\xfe", "cannot be read: it is not UTF-8"),
    ("AgentIPAddr.txt", b"# nothing\n", "names no address"),
    ("AgentIPAddr.txt", b"192.0.2.11\nnode2\n", "line 2: 'node2'"),
    ("ControllerKey.txt", None, "There is no key on this host"),
    ("ControllerKey.txt", b"", "There is no key on this host"),
    ("ControllerKey.txt", b"secret\n", "line 1: not a key"),
])
def test_a_bad_file_is_named_with_what_is_wrong(
    run: Run, directory: Path, name: str, content: bytes | None, said: str,
) -> None:
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    code, out, err = run(*WORDS)
    assert (code, out) == (2, "")
    assert said in err
    assert str(directory / name) in err


def test_a_key_that_others_can_read_is_refused_by_every_command(run: Run, directory: Path) -> None:
    (directory / "ControllerKey.txt").chmod(0o644)
    for words in (WORDS, ["agent-key", SOURCE]):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert f"chmod 600 {directory / 'ControllerKey.txt'}" in err


@pytest.mark.parametrize("words", [[], WORDS[:2], ["--bandwidth", "x", *WORDS], [SOURCE, SOURCE, "kvm", "VM1"]])
def test_with_json_an_input_error_is_one_json_object_on_stdout(run: Run, words: Sequence[str]) -> None:
    code, out, _err = run("--json", *words)
    told = json.loads(out)
    assert told["exit_code"] == code == 2
    assert told["outcome"] == "nothing changed"
    assert told["errors"][0].keys() == {"code", "message", "hint", "facts"}


# Keys.


def test_new_key_makes_a_private_file_and_shows_nothing_of_it(run: Run, directory: Path) -> None:
    path = directory / "ControllerKey.txt"
    path.unlink()
    code, out, err = run("new-key")
    assert (code, out) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().strip() not in err
    assert str(path) in err


def test_new_key_with_a_word_too_many_makes_no_key(run: Run, directory: Path) -> None:
    (directory / "ControllerKey.txt").unlink()
    code, out, _err = run("new-key", SOURCE)
    assert (code, out) == (2, "")
    assert not (directory / "ControllerKey.txt").exists()


def test_new_key_without_its_directory_says_how_that_is_made(run: Run, directory: Path) -> None:
    missing = directory / "none"
    code, _out, err = run("--config-dir", str(missing), "new-key")
    assert code == 2
    assert f"Make the directory first: `install -d -m 755 {missing}`" in err


def test_new_key_refuses_to_replace_a_key(run: Run, directory: Path) -> None:
    before = (directory / "ControllerKey.txt").read_bytes()
    code, out, err = run("new-key")
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert (directory / "ControllerKey.txt").read_bytes() == before


def test_agent_key_prints_the_agents_key_and_nothing_else(run: Run) -> None:
    code, out, err = run("-v", "agent-key", SOURCE)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{64}\n", out)
    assert out.strip() == MASTER.for_agent(SOURCE).secret.hex()


# Whole runs against scripted agents.


def test_a_good_run_tells_each_step_on_stderr_and_the_result_on_stdout(
    run: Run, monkeypatch: pytest.MonkeyPatch,
) -> None:
    agents = scripted(monkeypatch, {})
    code, out, err = run(*WORDS)
    assert code == 0
    assert agents.closed
    assert [line.split()[:3] for line in err.splitlines()] == [
        [command.value, host, "ok"] for command, host in CHECKED_IN_TURN + MOVING_IN_TURN + COMPLETING]
    first, second = out.splitlines()
    assert first == f"VM1 runs on {DESTINATION} now."
    assert "moved 2.29 GiB (disk 2.00 GiB, memory 300 MiB), downtime 87 ms" in second


def test_a_quiet_good_run_tells_the_result_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {})
    for option in (["-q"], ["--progress", "none"]):
        code, out, err = run(*option, *WORDS)
        assert (code, err) == (0, "")
        assert out.startswith("VM1 runs on")


def test_with_json_a_run_is_one_object_on_stdout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {})
    code, out, err = run("--json", "--progress", "json", *WORDS)
    told = json.loads(out)
    assert (told["outcome"], told["exit_code"], told["runs_on"]) == ("moved", code, DESTINATION)
    assert (told["disk_bytes"], told["memory_bytes"], told["downtime_ms"]) == (2 << 30, 300 << 20, 87)
    events = [json.loads(line) for line in err.splitlines()]
    assert {event["event"] for event in events} == {"step-began", "step-ended"}


@pytest.mark.parametrize(("script", "code", "said"), [
    ({(Command.HELLO, SOURCE): Silence()}, 4, "Nothing was changed on either host."),
    ({**states(DomainState.RUNNING, DomainState.ABSENT), (Command.LIVE_MIGRATION, SOURCE): FAILED}, 5,
     f"Rolled back: VM1 runs on {SOURCE} as before."),
    ({(Command.FINISH, SOURCE): FAILED}, 6, f"VM1 runs on {DESTINATION} now, but"),
    ({(Command.LIVE_MIGRATION, SOURCE): Silence()}, 7, "STATE UNKNOWN"),
])
def test_each_kind_of_end_has_its_exit_code_and_its_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, script: Mapping[Call, object], code: int, said: str,
) -> None:
    scripted(monkeypatch, script)
    got, out, err = run(*WORDS)
    assert got == code
    assert out.startswith(said)
    assert "FAILED" in err
    assert "\nvmmigration.py: " in err


def test_leaving_with_ctrl_c_is_told_with_the_job_that_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, said in (([], "Leaving: the running step goes on. Ctrl-C once more within 2 s cancels the job."),
                          (["--progress", "json"], '{"event": "leaving"}')):
        agents = scripted(monkeypatch, {(Command.LIVE_MIGRATION, SOURCE): Interrupt(MOVED)})
        code, out, err = run(*options, *WORDS)
        assert code == 8
        job = re.fullmatch(r"Left: job ([0-9a-f]{8}) of VM1 goes on with its step\.\n", out)
        assert job is not None
        assert said in err
        assert f"vmmigration.py resume {job[1]}" in err
        assert (agents.closed, agents.count((Command.CANCEL, SOURCE))) == (True, 0)


def test_leaving_a_cancel_is_told_as_unknown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {(Command.LIVE_MIGRATION, SOURCE): Interrupt(MOVED, times=3)})
    code, out, err = run("--json", *WORDS)
    assert (code, json.loads(out)["outcome"]) == (7, "state unknown")
    assert "Cancelling" in err


@pytest.mark.parametrize(("call", "answer"), [
    ((Command.FINISH, DESTINATION), StepReport(summary="running here")),
    ((Command.EXTRACT_CONFIGURE_FILE, DESTINATION), StepReport(summary="written")),
])
def test_a_cancel_after_the_move_is_told_to_be_too_late(
    run: Run, monkeypatch: pytest.MonkeyPatch, call: Call, answer: object,
) -> None:
    for options, said in (([], "Too late to cancel"), (["--progress", "json"], '{"event": "too-late-to-cancel"}')):
        scripted(monkeypatch, {call: Interrupt(answer, 2)})
        code, out, err = run(*options, *WORDS)
        assert code == 0
        assert out.startswith("VM1 runs on")
        assert said in err
        assert "Cancelling" not in err


def test_an_unexpected_error_is_told_in_a_sentence_and_not_by_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> ScriptedAgents:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(vmmigration, "ControllerSocket", fail)
    code, out, err = run(*WORDS)
    assert (code, out) == (1, "")
    assert err.startswith("vmmigration.py: Unexpected error on this host: ZeroDivisionError")
    code, out, _err = run("--json", *WORDS)
    told = json.loads(out)
    assert (code, told["exit_code"], told["outcome"]) == (1, 1, "nothing changed")
    assert [error["code"] for error in told["errors"]] == ["internal"]


@pytest.mark.parametrize("words", [["list"], ["status"], ["check", "kvm"]])
def test_ctrl_c_where_nothing_is_changed_ends_the_command_and_says_no_more_than_that(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: Sequence[str],
) -> None:
    for options in ([], ["--json"]):
        scripted(monkeypatch, {(Command.HELLO, SOURCE): Interrupt(HAPPY[Command.HELLO, SOURCE])})
        code, out, err = run(*options, *words)
        assert (code, err) == (2, "vmmigration.py: interrupted\n")
        if options:
            assert json.loads(out) == {"outcome": "nothing changed", "exit_code": 2, "errors": []}
        else:
            assert out == ""


def test_an_error_before_anything_was_changed_is_never_told_as_rolled_back_or_unknown(
    run: Run, monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = known([], [], outcomes=(Outcome.MOVED, Outcome.MOVED))
    for code in (ErrorCode.LIBVIRT_ERROR, ErrorCode.REQUEST_UNKNOWN):
        scripted(monkeypatch, {**moved, (Command.LOCATE, DESTINATION): error_of(code)})
        exit_code, out, _err = run("--json", "restore-source", MIGRATION.job_id)
        assert (exit_code, json.loads(out)["exit_code"]) == (3, 3)


def test_an_agent_that_this_host_cannot_send_to_is_no_fault_of_the_program(
    run: Run, monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, {}).before = cannot_send_to(DESTINATION)
    code, out, err = run(*WORDS)
    assert (code, out) == (4, "Nothing was changed on either host.\n")
    assert f"vmmigration.py: This host cannot send to {DESTINATION}: no IPv6 here." in err


def test_a_dry_run_whose_source_falls_silent_at_its_end_says_nothing_of_a_step_that_may_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    scripted(monkeypatch, {(Command.CANCEL, SOURCE): Silence()})
    assert run("--dry-run", *WORDS)[0] == 0
    assert [line for line in caplog.messages if "cancel" in line] == []


def test_what_another_host_says_cannot_steer_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = MigrationError(
        ErrorCode.LIBVIRT_ERROR, {"host": SOURCE, "reason": "\x1b[2J\x1b]0;owned\x07 ok\r\nvmmigration.py: fine\x9b1m"})
    scripted(monkeypatch, {
        (Command.CHECK_SOURCE, SOURCE): evil,
    })
    _code, _out, err = run(*WORDS)
    assert all(sign.isprintable() or sign == "\n" for sign in err)
    assert "\nvmmigration.py: fine" not in err
    scripted(monkeypatch, {(Command.COPY_DISK_FILE, SOURCE): StepReport(summary="all\x1b[2J\nwell")})
    _code, _out, err = run(*WORDS)
    assert "all?[2J?well" in err


def test_only_what_steers_is_taken_out_of_a_text() -> None:
    assert printable("büro 7 µs …") == "büro 7 µs …"
    assert printable("a\nb\tc\x1bd\x7fe\u202ef\ud800") == "a?b?c?d?e?f?"


def test_the_result_does_not_let_a_host_steer_the_terminal() -> None:
    report = RunReport(MIGRATION, Outcome.MOVED, "\x1b[2J\x9b1m", 1.0)
    assert result_text(report) == "VM1 runs on ?[2J?1m now."


def sent_migration(agents: ScriptedAgents) -> Migration:
    """What the agents were asked for, out of the first step."""
    arguments = agents.asked[2].request.cmd_arguments
    assert isinstance(arguments, StepArguments)
    return arguments.migration


def test_the_options_reach_the_agents(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = scripted(monkeypatch, {})
    run("--transport", "tcp", "--copy-storage", "all", "--bandwidth", "50", "--timeout", "600", *WORDS[:4])
    sent = sent_migration(agents)
    assert (sent.transport, sent.copy_storage) == (Transport.TCP, CopyStorage.ALL)
    assert (sent.bandwidth, sent.timeout) == (50, 600)
    assert (sent.disk, sent.conf_file, sent.convergence) == (None, None, Convergence())
    assert (sent.source, sent.destination, sent.user, sent.domain) == tuple(WORDS[:4])


@pytest.mark.parametrize(("options", "convergence"), [
    (["--max-downtime", "1"], Convergence(max_downtime=1)),
    (["--max-downtime", "600000", "--auto-converge"], Convergence(max_downtime=600_000, auto_converge=True)),
    (["--post-copy", "--timeout", "5", "--on-timeout", "post-copy"],
     Convergence(post_copy=True, on_timeout=OnTimeout.POST_COPY)),
    (["--timeout", "5", "--on-timeout", "suspend", "--synchronous-writes"],
     Convergence(on_timeout=OnTimeout.SUSPEND, synchronous_writes=True)),
])
def test_what_helps_a_vm_that_writes_hard_reaches_the_agents(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: Sequence[str], convergence: Convergence,
) -> None:
    agents = scripted(monkeypatch, {})
    assert run(*options, *WORDS)[0] == 0
    assert sent_migration(agents).convergence == convergence


def test_options_may_stand_anywhere_between_the_arguments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = scripted(monkeypatch, {})
    code, out, _err = run(
        SOURCE, "--json", DESTINATION, "--transport", "tcp", "kvm", "--bandwidth=50", "VM1", "-q", WORDS[4])
    assert code == 0
    assert json.loads(out)["outcome"] == "moved"
    sent = sent_migration(agents)
    assert (sent.transport, sent.bandwidth, sent.disk) == (Transport.TCP, 50, WORDS[4])
    assert (sent.source, sent.destination, sent.user, sent.domain) == tuple(WORDS[:4])


# A terminal that is gone, a reader that leaves.


class Gone(io.StringIO):
    """A stream that nobody reads any more."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    def write(self, _text: str) -> int:
        self.tried += 1
        raise BrokenPipeError


def test_what_is_written_to_a_stream_that_is_gone_goes_nowhere() -> None:
    closed = io.StringIO()
    closed.close()
    assert not write(closed, "x")
    assert not write(Gone(), "x")
    there = io.StringIO()
    assert write(there, "x")
    assert there.getvalue() == "x"


@pytest.mark.parametrize("mode", ["screen", "plain", "json"])
def test_a_display_that_nobody_reads_falls_silent_and_stops_nothing(mode: str) -> None:
    stream = Gone()
    display = Display(mode, stream, FakeClock(0.0))
    tried = []
    for _each in range(3):
        display.step_began(Command.LIVE_MIGRATION, SOURCE)
        display.step_progress(Command.LIVE_MIGRATION, SOURCE, Progress(phase="x", done=1, total=2))
        display.step_ended(StepResult(Command.LIVE_MIGRATION, SOURCE, 1.0, "done"))
        display.cancelling(possible=True)
        display.clear()
        tried.append(stream.tried)
    assert tried[0] > 0
    assert tried == tried[:1] * 3


SCRIPTED_RUN = """
import sys
import vmmigration
from constant import Command, DomainState
from wire.errors import ErrorCode, MigrationError
from tests.unit.samples import SOURCE
from tests.unit.scripted import ScriptedAgents, states
script = {}
if sys.argv[1] == "fails":
    script = {**states(DomainState.RUNNING, DomainState.ABSENT), (Command.LIVE_MIGRATION, SOURCE):
              MigrationError(ErrorCode.MIGRATION_FAILED, {"domain": "VM1", "host": SOURCE, "reason": "no route"})}
agents = ScriptedAgents(script=script)
vmmigration.ControllerSocket = lambda: agents
code = vmmigration.main(sys.argv[2:])
assert agents.closed
sys.exit(code)
"""


# Python's own way of writing, whatever the tests are run with.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def scripted_process(directory: Path, how: str, *options: str) -> list[str]:
    """The command line of a run against scripted agents, in a process of its own."""
    return [sys.executable, "-c", SCRIPTED_RUN, how, "--config-dir", str(directory), *options, *WORDS]


@pytest.mark.parametrize(("how", "code", "closing"), [
    ("goes well", 0, "2>&-"), ("fails", 5, ">&-"), ("fails", 5, "2>&-"), ("fails", 5, "<&- >&- 2>&-"),
])
def test_a_run_with_its_streams_closed_goes_to_its_end_with_its_exit_code(
    directory: Path, how: str, code: int, closing: str,
) -> None:
    finished = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {closing}', "sh", *scripted_process(directory, how)], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=30, env=ENVIRONMENT)
    assert finished.returncode == code
    assert "Traceback" not in finished.stdout + finished.stderr
    assert "Exception ignored" not in finished.stderr
    if closing == "2>&-":
        assert finished.stdout.splitlines()[0] in (
            f"VM1 runs on {DESTINATION} now.", f"Rolled back: VM1 runs on {SOURCE} as before.")


@pytest.mark.parametrize(("options", "streams"), [
    ([], {"stdout"}), ([], {"stderr"}), (["--json", "--progress", "json"], {"stdout", "stderr"}),
    (["-v"], {"stdout", "stderr"}),
])
def test_a_run_whose_reader_leaves_goes_to_its_end_with_its_exit_code(
    directory: Path, options: Sequence[str], streams: set[str],
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        finished = subprocess.run(
            scripted_process(directory, "fails", *options), cwd=ROOT, text=True, check=False, timeout=30,
            env=ENVIRONMENT,
            stdout=writing if "stdout" in streams else subprocess.PIPE,
            stderr=writing if "stderr" in streams else subprocess.PIPE)
    finally:
        os.close(writing)
    assert finished.returncode == 5
    for text in (finished.stdout, finished.stderr):
        assert "Traceback" not in (text or "")
        assert "Exception ignored" not in (text or "")
    if "stdout" not in streams:
        assert "VM1" in finished.stdout


# Signals.


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_end_of_a_terminal_or_a_service_is_taken_like_ctrl_c(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:
    signal.signal(getattr(signal, name), signal.SIG_DFL)
    agents = scripted(monkeypatch, {
        **states(DomainState.RUNNING, DomainState.ABSENT), (Command.COPY_DISK_FILE, SOURCE): Signalled(name)})
    code, out, err = run(*WORDS)
    assert code == 8
    assert out.startswith("Left: job ")
    assert "Leaving: the running step goes on." in err
    assert agents.calls()[-1] == (Command.COPY_DISK_FILE, SOURCE)


def test_a_hangup_that_nohup_ignores_stays_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    scripted(monkeypatch, {(Command.COPY_DISK_FILE, SOURCE): Signalled("SIGHUP")})
    code, out, _err = run(*WORDS)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert code == 0
    assert out.startswith("VM1 runs on")


def test_a_terminal_that_is_closed_and_sends_its_signal_twice_leaves_and_does_not_cancel() -> None:
    interrupt = _Interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGHUP, None)
    interrupt(signal.SIGHUP, None)
    interrupt(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)


# The result.


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_a_sentence_and_a_json_object(outcome: Outcome) -> None:
    report = RunReport(MIGRATION, outcome, DESTINATION, 12.34, errors=(FAILED,), moved=None)
    text = result_text(report)
    assert "None" not in text
    assert "VM1" in text or outcome is Outcome.NOTHING_CHANGED
    told = json.loads(json.dumps(result_json(report)))
    assert told["outcome"] == outcome.value
    assert told["exit_code"] == int(report.exit_code)
    assert told["errors"][0]["code"] == "migration-failed"
    assert told["downtime_ms"] is None


def test_a_downtime_that_libvirt_did_not_tell_is_not_invented() -> None:
    moved = type(MOVED)(disk_bytes=1, memory_bytes=1, downtime=-1)
    report = RunReport(MIGRATION, Outcome.MOVED, DESTINATION, 1.0, moved=moved)
    assert "downtime not told by libvirt" in result_text(report)
    assert result_json(report)["downtime_ms"] is None


def test_what_it_took_to_move_a_vm_that_writes_hard_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = dataclasses.replace(MOVED, downtime_limit=675, passes=9, post_copy=True)
    scripted(monkeypatch, {(Command.LIVE_MIGRATION, SOURCE): moved})
    code, out, err = run("--json", *WORDS)
    assert code == 0
    assert "downtime 87 ms, 675 ms allowed, 9 passes over the memory, post-copy" in err
    told = json.loads(out)
    assert (told["downtime_limit_ms"], told["memory_passes"], told["post_copy"]) == (675, 9, True)
    told = result_json(RunReport(MIGRATION, Outcome.MOVED, DESTINATION, 1.0, moved=MOVED))
    assert (told["downtime_limit_ms"], told["memory_passes"], told["post_copy"]) == (None, None, False)


def test_a_check_that_found_obstacles_is_not_told_as_ok(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = obstacle(ErrorCode.DOMAIN_BUSY, domain="VM1", host=SOURCE)
    scripted(monkeypatch, {(Command.CHECK_SOURCE, SOURCE): CheckReport(findings=(busy,), facts=FACTS)})
    code, out, err = run(*WORDS)
    assert (code, out) == (3, "Nothing was changed on either host.\n")
    (line,) = [line for line in err.splitlines() if line.startswith("CHECK_SOURCE")]
    assert " ok " not in line
    assert "1 obstacle" in line
    assert f"vmmigration.py: VM VM1 on {SOURCE} is busy" in err


def test_no_progress_is_lost_between_the_agents_and_the_display(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = (
        Progress(phase="copying the disk", done=1 << 20, total=4 << 20),
        Progress(phase="copying memory", done=3 << 20, total=4 << 20))
    scripted(monkeypatch, {(Command.LIVE_MIGRATION, SOURCE): WithProgress(reports, MOVED)})
    _code, _out, err = run("--progress", "json", *WORDS)
    told = [json.loads(line) for line in err.splitlines() if '"progress"' in line]
    assert (told[0]["phase"], told[0]["done"], told[0]["percent"]) == ("copying the disk", 1 << 20, 25)


# --help, and every Python.


def test_help_names_every_exit_code_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    table = told.partition("exit codes:\n")[2].partition("\n\n")[0]
    assert [int(line.split()[0]) for line in table.splitlines()] == sorted(int(code) for code in ExitCode)
    for code, words in ((0, "moved"), (2, "nothing changed"), (5, "rolled back"), (6, "moved, but"), (7, "unknown")):
        assert words in table.splitlines()[code]


def test_help_shows_the_arguments_of_the_original_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "SRC DST USER VM [DISK [CONF]]" in told
    assert "new-key" in told
    assert "agent-key IP" in told
    for option in ("--config-dir", "--transport", "--copy-storage", "--bandwidth", "--json", "--progress", "--timeout",
                   "--verbose", "--quiet", "--insecure", "--version"):
        assert option in told


def pythons() -> list[str]:
    """This interpreter, and each other version that is found on the machine."""
    found = {sys.executable}
    for version in NEWEST_AND_OLDEST:
        beside = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
        path = str(beside[-1]) if beside else shutil.which(f"python{version}")
        if path is not None:
            found.add(path)
    return sorted(found)


@pytest.mark.parametrize("python", pythons())
def test_the_command_needs_nothing_but_python(python: str, tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        # No site's packages (-S), no user's (-s), no variables (-E); -I would hide the script's own folder too.
        return subprocess.run(
            [python, "-S", "-s", "-E", "-B", str(ROOT / "vmmigration.py"), *arguments], capture_output=True, text=True,
            cwd=tmp_path, env={"PATH": os.defpath, "HOME": str(tmp_path)}, check=False, timeout=30)
    helped = command("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "exit codes:" in helped.stdout
    made = command("--config-dir", str(tmp_path), "new-key")
    assert (made.returncode, made.stdout) == (0, "")
    (tmp_path / "AgentIPAddr.txt").write_text("192.0.2.0/24\n")
    failed = command("--json", "--config-dir", str(tmp_path), "198.51.100.1", DESTINATION, "kvm", "VM1")
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["errors"][0]["code"] == "agent-not-listed"
    assert "Traceback" not in failed.stderr
