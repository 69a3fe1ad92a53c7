"""What the scripts of the checkout do when they are only asked what they are for, and where little is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.samples import ROOT

SCRIPTS = ("bench", "demo", "domains", "language", "manual", "package", "test")


@pytest.fixture
def no_commands(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing can be installed or made: a shell, and what its help is read with."""
    for name in ("dirname", "sed"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    return {"PATH": str(tmp_path)}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_asked_for_help_says_what_it_is_for_and_does_nothing(
    script: str, arguments: list[str], no_commands: dict[str, str], tmp_path: Path,
) -> None:
    finished = subprocess.run(
        [str(ROOT / "script" / script), *arguments], cwd=tmp_path, env=no_commands, capture_output=True, text=True,
        check=False, timeout=30)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(f"usage: script/{script}")
    assert "set -eu" not in finished.stdout


def test_help_that_is_asked_for_after_the_kind_of_tests_is_help_as_well(
    no_commands: dict[str, str], tmp_path: Path,
) -> None:
    finished = subprocess.run(
        [str(ROOT / "script" / "test"), "lab", "--help"], cwd=tmp_path, env=no_commands, capture_output=True, text=True,
        check=False, timeout=30)
    assert finished.returncode == 0
    assert finished.stdout.startswith("usage: script/test")


def test_every_script_that_can_be_run_tells_its_usage() -> None:
    # lab and soak hand all words on to a program that has its own.
    runnable = {path.name for path in (ROOT / "script").iterdir() if path.stat().st_mode & 0o100}
    assert runnable == {*SCRIPTS, "lab", "soak"}


def test_the_unit_tests_can_be_run_where_neither_libvirt_nor_paramiko_is_installed() -> None:
    # What is missing there is said by each test that needs it; none may end the run.
    without = "import sys; sys.modules.update(libvirt=None, paramiko=None); import pytest; sys.exit(pytest.main())"
    finished = subprocess.run(
        [sys.executable, "-c", without, "-q", "--collect-only", "-p", "no:cacheprovider", "tests/unit"], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stdout[-2000:]
    assert "libvirt-python is not installed" in finished.stdout
