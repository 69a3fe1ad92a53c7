"""What the admin reads of a dry run, of the checks, and of `check`; and the words that ask for them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest

import vmmigration
from console.plan import plan_text, show_findings
from constant import Command, ExitCode, Severity
from tests.unit.samples import DESTINATION, FACTS, FINE, HOST_FACTS, MASTER, SOURCE, obstacle, write_key
from tests.unit.scripted import CHECKED, Call, ScriptedAgents, Silence
from vmmigration import main
from wire.errors import ErrorCode, MigrationError
from wire.findings import Check, CheckReport, Finding, not_fine, skippable
from wire.records import LinkReport

WORDS = [SOURCE, DESTINATION, "kvm", "VM1"]
SHORT = obstacle(ErrorCode.MEMORY_SHORT, Check.MEMORY, host=DESTINATION, domain="VM1", free="1", needed="2")
TAKEN = obstacle(ErrorCode.PATH_TAKEN, Check.TARGET_PATH, host=DESTINATION, path="/srv/x")
FEW = not_fine(Check.CPUS, Severity.WARNS, MigrationError(ErrorCode.CPUS_FEWER, {
    "host": DESTINATION, "domain": "VM1", "vcpus": "8", "cpus": "2"}))


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> ScriptedAgents:
    """Both agents behind the command, with nothing in the way."""
    scripted = ScriptedAgents()
    monkeypatch.setattr(vmmigration, "ControllerSocket", lambda: scripted)
    return scripted


class Admin:
    """Types the command and reads what it prints."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._directory = directory
        self._capsys = capsys

    def types(self, *words: str) -> tuple[int, str, str]:
        """The exit code, stdout and stderr."""
        code = main(["--config-dir", str(self._directory), *words])
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err


@pytest.fixture
def admin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Admin:
    """An admin at a management host where both nodes are listed."""
    (tmp_path / "AgentIPAddr.txt").write_text(f"{SOURCE}\n{DESTINATION}\n")
    write_key(tmp_path / "ControllerKey.txt", MASTER)
    return Admin(tmp_path, capsys)


def finds(*findings: Finding) -> dict[Call, object]:
    """The destination's check finds these."""
    return {(Command.CHECK_DESTINATION, DESTINATION): CheckReport(findings=findings)}


# A dry run.


@pytest.mark.parametrize("option", ["-n", "--dry-run"])
def test_a_dry_run_prints_the_plan_and_changes_nothing(option: str, admin: Admin, agents: ScriptedAgents) -> None:
    code, out, _err = admin.types(option, *WORDS)
    assert code == 0
    assert agents.calls() == CHECKED
    assert out.splitlines() == [
        f"Plan for moving VM1 from {SOURCE} to {DESTINATION}:",
        "  1 PREPARE_DESTINATION     192.0.2.12       make an empty qcow2 of 8192 MiB at "
        "/var/lib/libvirt/images/node.qcow2",
        "                                             make a directory for the tunnel's sockets",
        "  2 COPY_DISK_FILE          192.0.2.11       send nothing beforehand",
        "  3 LIVE_MIGRATION          192.0.2.11       mirror /var/lib/libvirt/images/node.qcow2, 2048 MiB allocated of "
        "8192 MiB, through SSH",
        "                                             copy up to 300 MiB of memory through SSH",
        "                                             switch over",
        "                                             turn autostart off",
        "  4 EXTRACT_CONFIGURE_FILE  192.0.2.12       leave the XML to libvirt at /etc/libvirt/qemu/VM1.xml",
        "  5 DEFINE_VIRTUAL_MACHINE  192.0.2.12       make VM1 persistent, autostart on",
        "  6 FINISH                  192.0.2.12       see that it runs",
        "                                             remove the sockets",
        "  7 FINISH                  192.0.2.11       see that it does not run; keep it defined, but so that "
        "it cannot be started by mistake",
        "                                             rename /var/lib/libvirt/images/node.qcow2, unless read-only or "
        "used by another VM as well",
        "to send   2.00 GiB of disk (what is allocated), up to 300 MiB of memory",
        "link      100 MiB/s; the guest writes 0 B/s of memory and 0 B/s of disk",
        "expected  22 s to 32 s",
        "verdict   converges",
        "A real run would start.",
    ]


@pytest.mark.parametrize(("script", "code", "end"), [
    ({}, 0, "A real run would start."),
    (finds(FEW), 0, "A real run would start."),
    (finds(TAKEN), 3, "A real run would not start: 1 thing in the way."),
    (finds(TAKEN, SHORT), 3, "A real run would not start: 2 things in the way."),
    ({(Command.HELLO, DESTINATION): Silence()}, 4, "A real run would not start: 1 thing in the way."),
])
def test_the_last_line_and_the_exit_code_say_whether_a_real_run_would_start(
    script: dict[Call, object], code: int, end: str, admin: Admin, agents: ScriptedAgents,
) -> None:
    agents.script = script
    told, out, _err = admin.types("-n", *WORDS)
    assert (told, out.splitlines()[-1]) == (code, end)


def test_a_plan_without_a_measured_link_says_so(admin: Admin, agents: ScriptedAgents) -> None:
    agents.script = {(Command.MEASURE_LINK, DESTINATION): LinkReport(), (Command.MEASURE_LINK, SOURCE): LinkReport()}
    _code, out, _err = admin.types("-n", *WORDS)
    assert "link      not measured\nverdict   not measured\n" in out


def test_a_plan_as_json_has_what_a_program_needs(admin: Admin, agents: ScriptedAgents) -> None:
    agents.script = finds(FEW, FINE)
    code, out, _err = admin.types("-n", "--json", *WORDS)
    told = json.loads(out)
    assert (code, told["exit_code"], told["dry_run"], told["would_start"]) == (0, 0, True, True)
    assert told["plan"]["disk_bytes"] == 2 << 30
    assert told["plan"]["verdict"] == "converges"
    assert [finding["check"] for finding in told["findings"] if finding["severity"] == "warns"] == ["cpus"]
    assert all(finding["message"] for finding in told["findings"])


def test_a_refusal_as_json_names_each_obstacle_as_an_error_and_as_a_finding(
    admin: Admin, agents: ScriptedAgents,
) -> None:
    agents.script = finds(TAKEN, SHORT)
    code, out, _err = admin.types("--json", *WORDS)
    told = json.loads(out)
    assert (code, told["would_start"], told["plan"]) == (3, False, None)
    assert [error["code"] for error in told["errors"]] == ["path-taken", "memory-short"]
    assert [(each["check"], each["skippable"]) for each in told["findings"] if each["severity"] == "stops"] == [
        ("target-path", False), ("memory", True)]


# Findings.


def shown(*findings: Finding, warnings: bool = True, fine: bool = False) -> str:
    """What is printed of them."""
    stream = io.StringIO()
    show_findings(findings, stream, warnings=warnings, fine=fine)
    return stream.getvalue()


def test_the_worst_comes_last_next_to_the_result() -> None:
    lines = [line for line in shown(TAKEN, FEW, FINE, fine=True).splitlines() if line.startswith("vmmigration.py")]
    assert lines == [
        "vmmigration.py: snapshots: it has no snapshots",
        f"vmmigration.py: warning: VM VM1 has 8 virtual CPUs, {DESTINATION} has 2 CPUs. [cpus-fewer]",
        f"vmmigration.py: /srv/x exists already on {DESTINATION}. [path-taken]"]


def test_a_refusal_says_which_option_would_go_on_all_the_same_if_there_is_one() -> None:
    assert "\n  To go on all the same: --skip-check memory\n" in shown(SHORT)
    assert "--skip-check" not in shown(TAKEN)
    assert "--skip-check" not in shown(FEW)


def test_what_was_skipped_is_one_line() -> None:
    skipped = dataclasses.replace(SHORT, severity=Severity.WARNS, skipped=True)
    (line,) = shown(skipped).splitlines()
    assert line.startswith(f"vmmigration.py: skipped memory: {DESTINATION} has 1 MiB")


def test_quiet_is_without_warnings_and_verbose_with_what_is_fine(admin: Admin, agents: ScriptedAgents) -> None:
    agents.script = finds(FEW, TAKEN, FINE)
    quiet, plain, verbose = (admin.types(*options, "-n", *WORDS)[2] for options in (["-q"], [], ["-v"]))
    assert ["warning:" in err for err in (quiet, plain, verbose)] == [False, True, True]
    assert ["snapshots:" in err for err in (quiet, plain, verbose)] == [False, False, True]
    assert all("exists already" in err for err in (quiet, plain, verbose))


def test_what_a_host_says_cannot_steer_the_terminal() -> None:
    evil = obstacle(ErrorCode.PATH_TAKEN, Check.TARGET_PATH, host="\x1b[2J", path="/x\r\n/y")
    assert "\x1b" not in shown(evil)
    assert "\r" not in shown(evil)


def test_warnings_are_told_before_the_vm_moves(admin: Admin, agents: ScriptedAgents) -> None:
    agents.script = finds(FEW)
    code, _out, err = admin.types(*WORDS)
    assert code == 0
    assert err.index("warning:") < err.index("PREPARE_DESTINATION")


def test_a_plan_of_nothing_is_one_line(admin: Admin, agents: ScriptedAgents) -> None:
    agents.script = finds(TAKEN)
    assert admin.types("-n", *WORDS)[1] == "A real run would not start: 1 thing in the way.\n"
    assert callable(plan_text)


# Skipping.


def test_skipping_an_obstacle_lets_the_run_start(admin: Admin, agents: ScriptedAgents) -> None:
    agents.script = finds(SHORT)
    assert admin.types(*WORDS)[0] == ExitCode.REFUSED
    code, _out, err = admin.types("--skip-check", "memory", *WORDS)
    assert code == 0
    assert "skipped memory" in err


@pytest.mark.parametrize("name", ["target-path", "no-such", ""])
def test_a_check_that_cannot_be_skipped_is_refused_with_those_that_can(
    name: str, admin: Admin, agents: ScriptedAgents,
) -> None:
    code, out, err = admin.types("--skip-check", name, *WORDS)
    assert (code, out) == (2, "")
    assert all(each in err for each in skippable())
    assert agents.calls() == []


# The look at all hosts.


def test_check_tells_all_hosts_and_ways(admin: Admin, agents: ScriptedAgents) -> None:
    agents.script = {(Command.CHECK_LINK, DESTINATION): CheckReport(findings=())}
    code, out, err = admin.types("check", "mover")
    assert (code, err) == (0, "")
    assert f"  {SOURCE} -> {DESTINATION}  ok" in out
    assert {each.request.cmd for each in agents.asked} == {Command.HELLO, Command.CHECK_LINK}
    assert agents.closed
    assert HOST_FACTS.hostname in out


def test_check_says_why_a_way_is_closed(admin: Admin, agents: ScriptedAgents) -> None:
    refused = obstacle(
        ErrorCode.SSH_LOGIN_REFUSED, Check.SSH, host=DESTINATION, destination=SOURCE, user="kvm", reason="no")
    agents.script = {(Command.CHECK_LINK, DESTINATION): CheckReport(findings=(refused,))}
    code, out, err = admin.types("check")
    assert code == 3
    assert f"{DESTINATION} -> {SOURCE}  FAILED" in out
    assert "ssh-copy-id" in err
    assert json.loads(admin.types("check", "--json")[1])["exit_code"] == 3


@pytest.mark.parametrize(("words", "said"), [
    (["check", "kvm", "more"], "check takes one user name at most"), (["check", "a b"], "'a b' is not a user name"),
    (["check", "-x"], "-x"),
])
def test_a_check_with_wrong_words_asks_nobody(
    words: list[str], said: str, admin: Admin, agents: ScriptedAgents,
) -> None:
    code, out, err = admin.types(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert agents.calls() == []


def test_the_facts_of_the_samples_are_those_that_the_plan_was_made_from() -> None:
    assert FACTS.resident == 300 << 20
