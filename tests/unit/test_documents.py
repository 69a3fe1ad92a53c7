"""What the documents list is what the program has: checks, JSON fields, error codes, options."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import pytest

from console.arguments import parse
from console.hosts import fleet_json
from console.jobs import jobs_json, repair_json, restored_json
from console.result import result_json
from constant import AGENT_PORT, CONTROLLER_PORT, DOWNTIME_FIRST, Command, DomainState, ExitCode, Outcome, Verdict
from control.conversation import StepResult
from control.fleet import FleetReport, HostLook, PairLook
from control.looking import JobLook, JobsReport
from control.plan import make_plan
from control.repairing import RepairReport
from control.report import RunReport
from control.restoring import Restored
from control.whereabouts import Whereabouts
from tests.unit.samples import DESTINATION, FACTS, FINE, HOST_FACTS, MASTER, MIGRATION, ROOT, SOURCE, STOPS, write_key
from tests.unit.scripted import job
from tests.unit.test_layout import MAY_IMPORT
from vmmigration import main
from wire.access import Key
from wire.errors import ErrorCode, MigrationError
from wire.findings import CHECKS, Check
from wire.records import LinkReport
from wire.situation import DomainView, Situation

README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKS_DOCUMENT = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
JSON_DOCUMENT = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ERROR = MigrationError(ErrorCode.AGENT_SILENT, {"host": SOURCE})


def rows_of(check: Check) -> str:
    """What docs/checks.md says of a check: its row, and those below it that have no name of their own."""
    lines = CHECKS_DOCUMENT.splitlines()
    first = next(
        (number for number, line in enumerate(lines)
         if line.startswith("| ") and f"`{check.value}`" in line.split("|")[1]), None)
    assert first is not None, f"docs/checks.md has no row for {check.value}"
    rows = [lines[first]]
    for line in lines[first + 1:]:
        if not line.startswith("| |"):
            break
        rows.append(line)
    return "\n".join(rows)


@pytest.mark.parametrize("check", list(Check))
def test_every_check_is_documented_with_whether_it_can_be_skipped(check: Check) -> None:
    last_cells = [row.split("|")[-2] for row in rows_of(check).splitlines()]
    assert {"skip" in cell for cell in last_cells} == {CHECKS[check].skippable}


def documented(section: str) -> set[str]:
    """The fields that the tables between this heading of docs/json.md and the next of its kind name."""
    text = JSON_DOCUMENT.partition(f"## {section}")[2].partition("\n## ")[0]
    return {name for line in text.splitlines() if line.startswith("| ") for name in re.findall(
        r"`([a-z_]+)`", line)}


def fields_of(value: object) -> set[str]:
    """Every name in an object, but for the names of an error's facts."""
    found: set[str] = set()
    if isinstance(value, Mapping):
        for name, content in value.items():
            found.add(name)
            if name != "facts":
                found |= fields_of(content)
    elif isinstance(value, (list, tuple)):
        for each in value:
            found |= fields_of(each)
    return found


def test_every_field_of_a_migrations_json_is_documented() -> None:
    plan = make_plan(MIGRATION, FACTS, LinkReport(rate=100 << 20, dirty_rate=0, write_rate=0))
    report = RunReport(
        MIGRATION, Outcome.NOTHING_CHANGED, None, 1.0, errors=(ERROR,), findings=(STOPS, FINE), plan=plan, dry_run=True,
        steps=(StepResult(Command.HELLO, SOURCE, 0.1, "here"),))
    assert fields_of(result_json(report)) <= documented("Of a migration")


def test_every_field_of_the_hosts_json_is_documented() -> None:
    report = FleetReport(
        (HostLook(SOURCE, HOST_FACTS), HostLook(DESTINATION, error=ERROR)),
        (PairLook(SOURCE, DESTINATION, (STOPS,)), PairLook(DESTINATION, SOURCE, error=ERROR)), (ERROR,))
    assert fields_of(fleet_json(report)) <= documented("Of a migration") | documented("Of `vmmigration.py check`")


JOBS = JobsReport((JobLook({SOURCE: job(1, None, Command.FINISH)}),), (ERROR,))
RESTORED = Restored(MIGRATION, "shut off, as it was", (ERROR,))


def test_every_field_of_the_json_of_list_and_status_is_documented() -> None:
    assert fields_of(jobs_json(JOBS)) <= documented("Of `list` and `status`")


def test_every_field_of_repairs_json_is_documented() -> None:
    runs = DomainView(state=DomainState.RUNNING)
    report = RepairReport(
        "VM1", SOURCE, DESTINATION, Whereabouts(runs, runs), commands=((SOURCE, "virsh destroy VM1"),),
        runs=(RunReport(MIGRATION, Outcome.ROLLED_BACK, SOURCE, 1.0),), errors=(ERROR,))
    assert set(repair_json(report)) <= documented("Of `repair`")
    assert fields_of(repair_json(report)) <= documented("Of a migration") | documented("Of `repair`")


def test_every_field_of_the_json_of_restore_source_is_documented() -> None:
    assert fields_of(restored_json(RESTORED)) <= documented("Of `restore-source`")


def test_every_field_that_is_documented_of_a_list_and_of_a_copy_brought_back_is_there() -> None:
    assert documented("Of `list` and `status`") - {"null"} <= fields_of(jobs_json(JOBS))
    assert documented("Of `restore-source`") <= fields_of(restored_json(RESTORED))


@pytest.mark.parametrize("named", list(Situation))
def test_every_situation_of_a_vm_is_documented(named: Situation) -> None:
    assert f"`{named.value}`" in JSON_DOCUMENT.partition("## Of `repair`")[2]


@pytest.mark.parametrize("word", [*Outcome, *Verdict])
def test_every_outcome_and_verdict_is_documented(word: Outcome | Verdict) -> None:
    assert f"`{word.value}`" in JSON_DOCUMENT


# What only one who writes another program ever sees.
@pytest.mark.parametrize("code", sorted(set(ErrorCode) - {ErrorCode.INTERNAL}))
def test_readme_says_what_to_do_about_every_error(code: ErrorCode) -> None:
    assert re.search(rf"(?<![\w-]){code.value}(?![\w-])", README), f"README.md does not name {code.value}"


@pytest.mark.parametrize("code", list(ExitCode))
def test_readme_and_the_help_text_name_every_exit_code(code: ExitCode, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert f"\n  {int(code)}  " in capsys.readouterr().out
    assert f"\n| {int(code)} | " in README


def test_readme_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out))
    assert {option for option in options if option not in README} == set()


def test_the_documents_name_the_version_that_this_is() -> None:
    version = dataclasses.asdict(HOST_FACTS)["version"]
    assert f"agent {version} serves" in README
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# docs/architecture.md


def test_the_architecture_names_every_module_with_all_that_it_may_import() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$", ARCHITECTURE, re.MULTILINE)
    named = {module: set(re.findall(r"`(\w+)`", imports)) for module, imports in rows}
    assert named == {module: imports - {module} for module, imports in MAY_IMPORT.items()}


def test_the_files_that_the_architecture_names_are_there() -> None:
    paths = re.findall(r"`((?:\w+/)+\w+(?:\.py)?|\w+\.py)`", ARCHITECTURE)
    assert "tests/faults" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_picture_is_well_formed_and_shows_what_the_text_speaks_of() -> None:
    assert "](architecture.svg)" in ARCHITECTURE
    picture = ElementTree.parse(ROOT / "docs" / "architecture.svg")  # noqa: S314 - our own file
    shown = " ".join(str(each.text) for each in picture.iter("{http://www.w3.org/2000/svg}text"))
    for word in ("management host", "controller", "agent", "libvirtd", "QEMU", "SSH tunnel", "journal", "memory",
                 "disks", "files", str(AGENT_PORT), str(CONTROLLER_PORT)):
        assert word in shown


# docs/troubleshooting.md


def section(document: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its kind or above."""
    level = heading.split(" ", 1)[0]
    found = re.search(
        rf"^{re.escape(heading)}.*?$(.*?)(?=^#{{1,{len(level)}}} |\Z)", document, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no heading {heading!r}"
    return found[1]


@pytest.mark.parametrize("code", list(ExitCode))
def test_each_exit_code_says_what_is_certain_and_what_to_type_first(code: ExitCode) -> None:
    text = section(TROUBLESHOOTING, f"## {int(code)}: ")
    assert text.count("**Certain:**") == 1
    assert text.count("**First:**") == 1
    assert re.search(rf"^\| \[{int(code)}\]\(#{int(code)}-", TROUBLESHOOTING, re.MULTILINE)


@pytest.mark.parametrize(
    "code", [ExitCode.INTERNAL, ExitCode.INPUT, ExitCode.NO_CONTACT, ExitCode.UNKNOWN, ExitCode.DETACHED])
def test_the_causes_of_an_exit_code_are_errors_that_end_with_it(code: ExitCode) -> None:
    text = section(TROUBLESHOOTING, f"## {int(code)}: ")
    # The codes of errors, among other words that are written like them.
    named = {ErrorCode(word) for word in re.findall(r"`([a-z-]+)`", text) if word in set(ErrorCode)}
    wanted = ExitCode.UNKNOWN if code is ExitCode.DETACHED else code
    assert named
    assert {each.value for each in named if MigrationError(each, {}).exit_code is not wanted} == set()


@pytest.mark.parametrize("code", sorted(ErrorCode))
def test_every_error_code_leads_to_where_its_remedy_is(code: ErrorCode) -> None:
    index = section(TROUBLESHOOTING, "## By error code")
    rows = [line for line in index.splitlines() if f"`{code.value}`" in line]
    assert rows, f"docs/troubleshooting.md does not name {code.value}"
    for row in rows:
        if code is not ErrorCode.INTERNAL:
            heading = row.split("[")[1].split("]")[0]
            assert re.search(rf"(?<![\w-]){code.value}(?![\w-])", section(README, f"### {heading}"))


@pytest.mark.parametrize("words", [
    ["check"], ["list"], ["status"], ["resume", "1a2b3c4d"], ["cancel", "1a2b3c4d"],
    ["repair", "VM1", SOURCE, DESTINATION], ["restore-source", "1a2b3c4d"], ["change-key", "finish"]])
def test_each_command_that_a_wide_network_stops_is_named_where_its_remedy_is(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "AgentIPAddr.txt").write_text(f"{SOURCE}\n{DESTINATION}\n10.0.0.0/8\n")
    write_key(tmp_path / "ControllerKey.txt", MASTER, Key(b"n" * 32))
    assert main(["--config-dir", str(tmp_path), *words]) == ExitCode.INPUT
    assert "Name the nodes themselves there" in capsys.readouterr().err
    command = " ".join(words) if words[0] == "change-key" else words[0]
    for document in ("README.md", "README.zh-CN.md"):
        lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
        assert f"`{command}`" in next(line for line in lines if line.startswith("| list-line-invalid"))


@pytest.mark.parametrize("document", ["README.md", "man/vmmigration.1.scd"])
def test_the_pause_at_the_switchover_begins_with_what_the_code_says(document: str) -> None:
    text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    (first,) = re.findall(r"It begins with (\d+) (?:ms )?and is raised", text)
    assert int(first) == DOWNTIME_FIRST


# All documents.


def anchor(heading: str) -> str:
    """What a heading is linked by, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, wanted = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if link.startswith(("http:", "https:")):
            continue
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if target.exists() else []
        if not target.exists() or (wanted and wanted not in map(anchor, headings)):
            lost.append(link)
    assert lost == []
