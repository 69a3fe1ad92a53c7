"""What the command calls itself, and tells people to type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from console.program import program_name, with_program_name

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("called", "name"), [
    ("/usr/bin/vmmigration", "vmmigration"), ("vmmigration", "vmmigration"), ("vmmigration.exe", "vmmigration"),
    ("/opt/vmmigration/vmmigration.py", "vmmigration.py"), ("vmmigration.py", "vmmigration.py"),
    ("/usr/lib/python3/pytest/__main__.py", "vmmigration.py"), ("", "vmmigration.py"),
])
def test_it_is_called_as_it_was_called(called: str, name: str) -> None:
    assert program_name(called) == name


def test_what_is_to_be_typed_names_the_command_that_there_is() -> None:
    hint = "Run `vmmigration.py new-key` once, then `vmmigration.py agent-key IP`."
    assert with_program_name(hint, "vmmigration") == "Run `vmmigration new-key` once, then `vmmigration agent-key IP`."
    assert with_program_name(hint, "vmmigration.py") == hint
    agent = "Check: vmmigration-agent.py runs."
    assert with_program_name(agent, "vmmigration") == "Check: vmmigration-agent runs."
    assert with_program_name(agent, "vmmigration.py") == agent


@pytest.mark.parametrize("name", ["vmmigration", "vmmigration.py"])
def test_help_and_hints_of_an_installed_command_name_it(tmp_path: Path, name: str) -> None:
    command = tmp_path / "bin" / name
    command.parent.mkdir()
    command.symlink_to(ROOT / "vmmigration.py")
    (tmp_path / "AgentIPAddr.txt").write_text("192.0.2.1\n")
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    shown = subprocess.run([sys.executable, command, "--help"], env=environment, capture_output=True, text=True)
    assert shown.stdout.startswith(f"usage: {name} [options] SRC DST")
    refused = subprocess.run(
        [sys.executable, command, "--config-dir", str(tmp_path), "agent-key", "192.0.2.1"], env=environment,
        capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"`{name} new-key`" in refused.stderr
    assert ("vmmigration.py" in refused.stderr) is (name == "vmmigration.py")
    wrong = subprocess.run(
        [sys.executable, command, "--disk-map", "vda", "192.0.2.1", "192.0.2.2", "kvm", "VM1"], env=environment,
        capture_output=True, text=True)
    assert f"See `{name} --help`." in wrong.stderr
