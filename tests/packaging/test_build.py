"""The packages themselves: lintian's opinion, what is in them, and that one version stands everywhere."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from constant import VERSION
from tests.packaging.machine import needed
from tests.unit.samples import ROOT

PRIVATE = "usr/share/vmmigration"
COMMAND, AGENT = "vmmigration", "vmmigration-agent"


def content(packages: Path, name: str) -> dict[str, tuple[str, str]]:
    """The mode and owner of each file of a package, by its path."""
    listed = subprocess.run(
        [needed("dpkg-deb"), "--contents", packages / f"{name}_{VERSION}_all.deb"], capture_output=True, text=True,
        check=True)
    rows = (line.split(None, 5) for line in listed.stdout.splitlines())
    return {row[5].removeprefix("./").partition(" -> ")[0]: (row[0], row[1]) for row in rows}


def test_one_version_stands_in_all_places() -> None:
    changelog = re.match(r"vmmigration \((\S+)\)", (ROOT / "packaging/debian/changelog").read_text())
    setup = next(node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
                 if isinstance(node, ast.keyword) and node.arg == "version")
    newest = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog is not None
    assert newest is not None
    assert {changelog[1], ast.literal_eval(setup.value), newest[1]} == {VERSION}


def test_lintian_finds_nothing(packages: Path) -> None:
    found = subprocess.run(
        [needed("lintian"), "--fail-on", "error,warning", "--info", "--allow-root", *packages.glob("*.changes")],
        capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def ours() -> Iterator[str]:
    """The modules that are installed."""
    for path in ROOT.glob("*.py"):
        if path.name != "setup.py":
            yield path.name
    for package in ("console", "control", "host", "steps", "wire"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".po", ".pyc"):
                yield str(path.relative_to(ROOT))


def test_every_module_is_in_one_of_the_packages_and_none_in_both(packages: Path) -> None:
    files = [{path.removeprefix(f"{PRIVATE}/") for path in content(packages, name)
              if path.startswith(f"{PRIVATE}/") and not path.endswith("/")} for name in (COMMAND, AGENT)]
    assert files[0] | files[1] == set(ours())
    assert not files[0] & files[1]


def test_nothing_lies_where_other_programs_import_from(packages: Path) -> None:
    for name in (COMMAND, AGENT):
        assert not [path for path in content(packages, name) if "dist-packages" in path]


@pytest.mark.parametrize(("name", "command"), [(COMMAND, "usr/bin/vmmigration"), (AGENT, "usr/sbin/vmmigration-agent")])
def test_files_are_roots_and_only_commands_are_run(packages: Path, name: str, command: str) -> None:
    files = content(packages, name)
    assert {owner for _mode, owner in files.values()} == {"root/root"}
    assert files[command][0].startswith("l")
    modes = {mode for path, (mode, _owner) in files.items() if not path.endswith((f"{name}.py", ".rtupdate"))}
    assert modes <= {"drwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx"}


def test_the_lists_are_the_admins_to_change(packages: Path) -> None:
    for name, configured in ((COMMAND, "AgentIPAddr.txt"), (AGENT, "ControllerIPAddr.txt")):
        told = subprocess.run(
            [needed("dpkg-deb"), "--info", packages / f"{name}_{VERSION}_all.deb", "conffiles"], capture_output=True,
            text=True, check=True)
        assert told.stdout.split() == [f"/etc/vmmigration/{configured}"]
