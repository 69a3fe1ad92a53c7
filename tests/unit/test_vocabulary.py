"""The shared vocabulary: every word of it is used, every sentence can be filled, the tables are complete, and the
modules that the controller's host has can be read there.
"""

from __future__ import annotations

import ast
import graphlib
import string
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import constant
from constant import (
    ANSWERED_AT_ONCE,
    CHALLENGE_SECONDS,
    CHANGE_NOTHING,
    CHECK_LIMIT_SECONDS,
    CLEARING,
    CLOSE_JOB,
    DATAGRAM_LIMIT,
    GIVE_UP_SECONDS,
    HELLO_GIVE_UP_SECONDS,
    IDS_KEPT_SECONDS,
    IDS_LIMIT,
    JOBS_LIMIT,
    JOURNAL_ENTRIES_LIMIT,
    LIBVIRT_SOCKETS,
    LOOK_AFTER_SECONDS,
    NOT_JOURNALED,
    OPEN_JOB,
    PAGES_LIMIT,
    PROGRESS_INTERVAL_SECONDS,
    RATE_BURST,
    RATE_PER_SECOND,
    REPEATABLE,
    REPLY_TRANSITIONS,
    RESULTS_KEPT_SECONDS,
    RESULTS_LIMIT,
    RETRY_FIRST_SECONDS,
    RETRY_JITTER,
    RETRY_LONGEST_SECONDS,
    SOCKET_PATH_LIMIT,
    START_NOTHING,
    UNJOURNALED_KEPT_SECONDS,
    VERSION,
    WORK_LIMIT,
    Command,
    ExitCode,
    LibvirtDaemon,
    MessageType,
    Outcome,
)
from control.report import RunReport
from tests.unit.samples import MIGRATION, ROOT
from wire.errors import ERRORS, ErrorCode, ErrorKind, MigrationError

SOURCES = sorted(
    path for path in [*ROOT.glob("*.py"), *(
        path for package in ("console", "control", "host", "steps", "steps/checks", "wire")
        for path in ROOT.glob(f"{package}/*.py"))]
    if path.name not in ("setup.py", "constant.py"))
# What these functions put into an error's facts themselves, for the code or the facts that they are called with.
HELPER_FACTS = {
    "_obstacle": {"host", "domain"},
    "facts": {"host", "user", "destination", "reason"},
    "_refuse": {"host", "command"},
    "_examine_domain": {"host", "domain"},
    # The loop that runs the checks puts these in.
    "stops": {"host", "domain"},
    "warns": {"host", "domain"},
}
# Codes whose table in host/ssh.py is turned into errors by diagnose(), with the facts of a Login.
DIAGNOSED = "_DIAGNOSES"


def fields(text: str) -> set[str]:
    """The names in the braces of a sentence."""
    return {name for _literal, name, _format, _conversion in string.Formatter().parse(text) if name}


def mentioned(node: ast.AST) -> Iterator[ErrorCode]:
    """The error codes that a piece of code makes, not those that it compares with."""
    if isinstance(node, ast.Compare):
        return
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ErrorCode":
        yield ErrorCode[node.attr]
    for child in ast.iter_child_nodes(node):
        yield from mentioned(child)


def names_in(function: ast.AST) -> set[str]:
    """Everything in a function that can become the name of a fact."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            found |= {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            found.add(str(node.slice.value))
        if isinstance(node, ast.Call):
            found |= {keyword.arg for keyword in node.keywords if keyword.arg}
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found |= HELPER_FACTS.get(called, set())
    return found


def raised() -> dict[ErrorCode, list[tuple[str, set[str]]]]:
    """For each code the places that make it, each with the facts that it gives."""
    places: dict[ErrorCode, list[tuple[str, set[str]]]] = {code: [] for code in ErrorCode}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for guarded in (node for node in tree.body if isinstance(node, ast.Try)):
            for code in mentioned(guarded):
                places[code].append((f"{path.name}:{guarded.lineno}", names_in(guarded)))
        for function in functions:
            for code in set(mentioned(function)):
                places[code].append((f"{path.name}:{function.lineno} {function.name}", names_in(function)))
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == DIAGNOSED:
                for code in mentioned(statement):
                    places[code].append((f"{path.name} {DIAGNOSED}", HELPER_FACTS["facts"]))
    return places


RAISED = raised()


# Errors.


def test_every_error_code_has_its_words() -> None:
    assert set(ERRORS) == set(ErrorCode)
    for text in ERRORS.values():
        assert text.message.endswith(".")
        assert text.hint.endswith((".", "?"))
        assert not text.message.startswith(" ")
        assert "  " not in text.message + text.hint


def test_every_error_code_has_a_name_of_its_own_that_says_the_same() -> None:
    assert len({code.value for code in ErrorCode}) == len(list(ErrorCode))
    assert all(code.value == code.name.lower().replace("_", "-") for code in ErrorCode)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_is_made_somewhere(code: ErrorCode) -> None:
    assert RAISED[code], f"no module makes {code.name}"


# The controller turns the agent's "unknown" into its own words, since only it knows the domain.
@pytest.mark.parametrize("code", sorted(set(ErrorCode) - {ErrorCode.REQUEST_UNKNOWN}))
def test_every_place_that_makes_an_error_gives_all_facts_that_its_words_need(code: ErrorCode) -> None:
    needed = fields(ERRORS[code].message) | fields(ERRORS[code].hint)
    for place, given in RAISED[code]:
        assert needed <= given, f"{place} makes {code.name} without {needed - given}"


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_reads_as_a_sentence_even_if_a_fact_is_missing(code: ErrorCode) -> None:
    error = MigrationError(code, {})
    assert "{" not in str(error)
    needed = fields(ERRORS[code].message) | fields(ERRORS[code].hint)
    filled = MigrationError(code, {name: f"<{name}>" for name in needed})
    assert all(f"<{name}>" in str(filled) for name in needed)
    assert "?" not in filled.message


def test_the_facts_of_an_error_cannot_be_changed_afterwards() -> None:
    facts = {"address": "192.0.2.1"}
    error = MigrationError(ErrorCode.SAME_HOST, facts)
    facts["address"] = "x"
    assert error.facts["address"] == "192.0.2.1"
    with pytest.raises(TypeError):
        error.facts["address"] = "y"  # type: ignore[index]


def test_braces_in_a_fact_are_shown_as_they_are() -> None:
    assert "{x}" in MigrationError(ErrorCode.SAME_HOST, {"address": "{x}"}).message


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_kind_of_error_has_an_exit_code_that_is_not_success(kind: ErrorKind) -> None:
    assert isinstance(kind.value, ExitCode)
    assert kind.value is not ExitCode.MOVED
    assert kind in {text.kind for text in ERRORS.values()}


# Exit codes and outcomes.


def test_the_exit_codes_are_the_documented_numbers() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "MOVED": 0, "INTERNAL": 1, "INPUT": 2, "REFUSED": 3, "NO_CONTACT": 4, "ROLLED_BACK": 5,
        "MOVED_INCOMPLETE": 6, "UNKNOWN": 7, "DETACHED": 8}


def test_every_outcome_has_an_exit_code_of_its_own() -> None:
    codes = {outcome: RunReport(MIGRATION, outcome, None, 0.0).exit_code for outcome in Outcome}
    assert len(set(codes.values())) == len(list(Outcome))
    assert [outcome for outcome, code in codes.items() if code == 0] == [Outcome.MOVED]


# Commands and messages.


def names_of_dictionary(path: str, variable: str) -> set[str]:
    """The members of Command that are keys of a dictionary in a module's own text."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if getattr(target, "id", "") == variable:
                return {
                    key.attr for each in ast.walk(node) if isinstance(each, ast.Dict)
                    for key in each.keys if isinstance(key, ast.Attribute)}
    raise AssertionError(f"no {variable} in {path}")


def test_every_command_is_handled_by_exactly_one_part_of_an_agent() -> None:
    steps = names_of_dictionary("steps/table.py", "STEPS")
    at_once = {command.name for command in ANSWERED_AT_ONCE}
    assert not steps & at_once
    assert steps | at_once | {"HELLO"} == {command.name for command in Command}


def test_every_step_is_a_module_named_after_its_command() -> None:
    steps = names_of_dictionary("steps/table.py", "STEPS") | {"HELLO"}
    for name in steps:
        tree = ast.parse((ROOT / "steps" / f"{name.lower()}.py").read_text(encoding="utf-8"))
        assert "run" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_command_is_asked_by_someone() -> None:
    asked = {
        node.attr for name in (
            "controller.py", *(f"control/{name}.py" for name in (
                "conversation", "checks", "whereabouts", "looking", "restoring")),
            "wire/exchange.py")
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Command"}
    assert asked >= {command.name for command in Command}


def test_the_original_commands_keep_their_names_on_the_wire() -> None:
    assert all(command.value == command.name for command in Command)
    original = {"COPY_DISK_FILE", "LIVE_MIGRATION", "EXTRACT_CONFIGURE_FILE", "DEFINE_VIRTUAL_MACHINE"}
    assert original <= {command.value for command in Command}


# What each command is, in the names of the sets that it belongs to.
BELONGS: Mapping[Command, set[str]] = {
    Command.HELLO: {"NOT_JOURNALED", "CHANGE_NOTHING", "REPEATABLE", "START_NOTHING"},
    Command.CHECK_SOURCE: {"NOT_JOURNALED", "CHANGE_NOTHING", "REPEATABLE"},
    Command.CHECK_LINK: {"NOT_JOURNALED", "CHANGE_NOTHING", "REPEATABLE"},
    Command.CHECK_DESTINATION: {"NOT_JOURNALED", "CHANGE_NOTHING", "REPEATABLE"},
    Command.MEASURE_LINK: {"NOT_JOURNALED", "CHANGE_NOTHING", "REPEATABLE"},
    Command.PREPARE_DESTINATION: {"OPEN_JOB"},
    Command.COPY_DISK_FILE: {"OPEN_JOB", "REPEATABLE"},
    Command.LIVE_MIGRATION: {"OPEN_JOB"},
    Command.EXTRACT_CONFIGURE_FILE: {"BEGUN_WITHOUT_JOURNAL", "CLEARING", "REPEATABLE"},
    Command.DEFINE_VIRTUAL_MACHINE: {"BEGUN_WITHOUT_JOURNAL", "CLEARING", "REPEATABLE"},
    Command.FINISH: {"BEGUN_WITHOUT_JOURNAL", "CLEARING", "CLOSE_JOB", "REPEATABLE"},
    Command.ROLL_BACK: {"BEGUN_WITHOUT_JOURNAL", "CLEARING", "CLOSE_JOB", "REPEATABLE"},
    Command.RESTORE_SOURCE: {"REPEATABLE"},
    Command.HAND_OVER: {"BEGUN_WITHOUT_JOURNAL", "CLEARING", "REPEATABLE"},
    Command.LIST: {"NOT_JOURNALED", "CHANGE_NOTHING", "REPEATABLE"},
    Command.RECALL: {"NOT_JOURNALED", "CHANGE_NOTHING", "REPEATABLE"},
    Command.LOCATE: {"NOT_JOURNALED", "CHANGE_NOTHING", "REPEATABLE"},
    Command.STATUS: {"ANSWERED_AT_ONCE", "NOT_JOURNALED", "START_NOTHING"},
    Command.CANCEL: {"ANSWERED_AT_ONCE", "NOT_JOURNALED"},
}


@pytest.mark.parametrize("command", list(Command))
def test_every_command_is_in_just_the_sets_that_it_belongs_to(command: Command) -> None:
    sets = {
        name: each for name, each in vars(constant).items()
        if isinstance(each, frozenset) and all(isinstance(member, Command) for member in each)}
    assert {name for name, each in sets.items() if command in each} == BELONGS[command]
    assert sets.keys() == set().union(*BELONGS.values())


def test_the_sets_of_commands_fit_each_other() -> None:
    assert CHANGE_NOTHING <= REPEATABLE
    assert ANSWERED_AT_ONCE | START_NOTHING <= NOT_JOURNALED
    # A command of which the journal knows nothing is forgotten with the agent: it may be none of a job's steps.
    assert not NOT_JOURNALED & (OPEN_JOB | CLEARING)
    assert not OPEN_JOB & (CHANGE_NOTHING | CLEARING)
    assert CLOSE_JOB <= CLEARING & REPEATABLE


def test_nothing_that_changes_a_host_goes_without_a_challenge() -> None:
    assert {Command.HELLO, Command.STATUS} == START_NOTHING


def test_every_message_type_says_what_may_follow_it() -> None:
    assert set(REPLY_TRANSITIONS) == set(MessageType)
    reached = {MessageType.REQUEST}.union(*REPLY_TRANSITIONS.values())
    assert reached == set(MessageType)
    assert all(MessageType.REQUEST not in following for following in REPLY_TRANSITIONS.values())
    assert {kind for kind, following in REPLY_TRANSITIONS.items() if not following} == {
        MessageType.RESPONSE, MessageType.REFUSED}


def paths(path: tuple[MessageType, ...]) -> Iterator[tuple[MessageType, ...]]:
    """Every way on from the end of a path, without what leads back to where it has been."""
    following = REPLY_TRANSITIONS[path[-1]] - set(path)
    if not following:
        yield path
    for kind in following:
        yield from paths((*path, kind))


def test_every_path_of_a_request_leads_to_an_end_and_back_to_nothing_but_progress() -> None:
    for path in paths((MessageType.REQUEST,)):
        assert not REPLY_TRANSITIONS[path[-1]], path
        assert all(
            later is MessageType.PROGRESS for number, kind in enumerate(path)
            for later in REPLY_TRANSITIONS[kind] & set(path[:number + 1])), path


def test_what_was_accepted_is_not_refused_any_more() -> None:
    for kind in (MessageType.ACCEPTED, MessageType.PROGRESS):
        assert MessageType.REFUSED not in REPLY_TRANSITIONS[kind]


# Limits.


def test_the_times_fit_each_other() -> None:
    assert RETRY_FIRST_SECONDS < RETRY_LONGEST_SECONDS < HELLO_GIVE_UP_SECONDS < CHALLENGE_SECONDS < GIVE_UP_SECONDS
    # A step is told to be overdue before its agent is given up.
    assert HELLO_GIVE_UP_SECONDS < CHECK_LIMIT_SECONDS < GIVE_UP_SECONDS
    # HELLO has some tries, and a dead path is told from six lost tries in a row.
    assert RETRY_FIRST_SECONDS * RETRY_JITTER * 3 < HELLO_GIVE_UP_SECONDS
    assert RETRY_LONGEST_SECONDS * RETRY_JITTER * 6 < GIVE_UP_SECONDS
    # Progress that comes more often than it is asked for makes asking unnecessary.
    assert PROGRESS_INTERVAL_SECONDS <= RETRY_FIRST_SECONDS


def test_nothing_is_forgotten_before_it_is_stale_and_its_controller_has_given_up() -> None:
    assert UNJOURNALED_KEPT_SECONDS > GIVE_UP_SECONDS
    assert UNJOURNALED_KEPT_SECONDS > CHALLENGE_SECONDS + LOOK_AFTER_SECONDS
    assert UNJOURNALED_KEPT_SECONDS < RESULTS_KEPT_SECONDS < IDS_KEPT_SECONDS
    assert (RESULTS_KEPT_SECONDS, IDS_KEPT_SECONDS) == (24 * 3600, 30 * 24 * 3600)
    assert (CHALLENGE_SECONDS, GIVE_UP_SECONDS, LOOK_AFTER_SECONDS) == (30, 90, 60)


def test_the_sizes_fit_each_other() -> None:
    assert DATAGRAM_LIMIT == 1200
    assert SOCKET_PATH_LIMIT == 107
    # IPv6's smallest MTU, less its header and UDP's.
    assert DATAGRAM_LIMIT < 1280 - 40 - 8
    # Whatever is answered is kept, and many times over.
    assert PAGES_LIMIT * DATAGRAM_LIMIT * 100 < RESULTS_LIMIT
    assert JOURNAL_ENTRIES_LIMIT < IDS_LIMIT
    # At once: an agent's jobs, each with a step, and somebody who asks about other VMs.
    assert JOBS_LIMIT * 2 < WORK_LIMIT
    assert (RATE_PER_SECOND, RATE_BURST, JOBS_LIMIT) == (20, 40, 2)


def test_every_libvirt_daemon_has_its_socket() -> None:
    assert set(LIBVIRT_SOCKETS) == set(LibvirtDaemon)
    assert all(path.startswith("/run/libvirt/") for path in LIBVIRT_SOCKETS.values())


def test_the_version_is_the_same_where_it_is_installed_from() -> None:
    assert f'version="{VERSION}"' in (ROOT / "setup.py").read_text(encoding="utf-8")


# What a management host must be able to import: any system, Python 3.9, nothing installed.

CONTROLLER_SIDE = sorted(
    path for path in [*(ROOT / f"{name}.py" for name in ("vmmigration", "controller", "udpmodule", "constant")),
                      *(path for package in ("console", "control", "wire") for path in ROOT.glob(f"{package}/*.py"))]
    if path.name != "journal.py")
# Modules of the standard library that Windows or Python 3.9 lacks, and what only an agent's host has.
ABSENT = (
    "fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog", "crypt", "spwd", "readline", "tomllib",
    "libvirt", "paramiko", "typing_extensions")


def wire_imports(path: Path) -> set[str]:
    """The modules of the package wire that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if (ROOT / f"{name.replace('.', '/')}.py").exists() and name.startswith("wire.")}


def test_the_modules_of_the_wire_import_each_other_one_way() -> None:
    modules = {f"wire.{path.stem}": wire_imports(path) for path in ROOT.glob("wire/*.py")}
    order = list(graphlib.TopologicalSorter(modules).static_order())
    assert set(order) == set(modules)
    assert modules["wire.phrase"] == set()
    assert modules["wire.schema"] == {"wire.phrase"}


def test_only_the_agent_imports_the_journal() -> None:
    importing = {
        path.name for path in [*ROOT.glob("*.py"), *ROOT.glob("wire/*.py"), *ROOT.glob("steps/*.py"),
                               *ROOT.glob("host/*.py")] if "wire.journal" in wire_imports(path)}
    assert importing == {"agent.py"}


@pytest.mark.parametrize("path", CONTROLLER_SIDE, ids=lambda path: path.name)
def test_what_the_controller_needs_is_written_in_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_the_controller_is_imported_where_only_pythons_own_modules_are_and_those_of_unix_are_not() -> None:
    script = (
        "import os, signal, socket, sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        "for name in ('O_NOFOLLOW', 'O_DIRECTORY', 'fdatasync', 'geteuid', 'getuid', 'fork', 'chown', 'killpg'):\n"
        "    delattr(os, name)\n"
        "del signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, socket.AF_UNIX\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import vmmigration\n"
        "print(*sorted(sys.modules))\n"
        f"sys.exit(vmmigration.main(['192.0.2.1', '192.0.2.2', 'kvm', 'VM1', '--config-dir', {str(ROOT / 'none')!r}]))")
    # Isolated, and without site-packages: what is not here cannot be imported by mistake.
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in ran.stderr, ran.stderr
    assert ran.returncode == ExitCode.INPUT, ran.stderr
    loaded = set(ran.stdout.splitlines()[0].split())
    assert {"vmmigration", "controller", "udpmodule", "wire.exchange"} <= loaded
    assert not {"agent", "host", "steps", "wire.journal"} & loaded
