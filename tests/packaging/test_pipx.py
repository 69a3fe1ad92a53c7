"""`pipx install .` on a management host: the command, and all that belongs to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from constant import VERSION
from tests.packaging.machine import needed
from tests.packaging.test_build import ours
from tests.unit.samples import ROOT


def run(*command: object, environment: Mapping[str, str] | None = None, directory: Path = Path("/")) -> str:
    """What a command prints; fails unless it ends with 0."""
    finished = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, cwd=directory,
        env=dict(environment) if environment is not None else None)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def repository() -> list[str]:
    """What is in the repository, or is going to be."""
    listed = subprocess.run(
        [needed("git"), "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
        text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout: a build writes into it."""
    copy = tmp_path_factory.mktemp("checkout") / "vmmigration"
    for name in repository():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def home(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that pipx has installed the checkout into."""
    home = tmp_path_factory.mktemp("pipx")
    # Debian's own Python, as on a machine where nothing else is.
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "PIPX_HOME": str(home), "PIPX_BIN_DIR": str(home / "bin"),
                   "PIPX_DEFAULT_PYTHON": "/usr/bin/python3", "HOME": str(home)}
    run(needed("pipx"), "install", checkout, environment=environment)
    return home


def test_the_command_runs(home: Path) -> None:
    assert run(home / "bin" / "vmmigration", "--version") == f"vmmigration {VERSION}\n"
    assert "SRC DST USER VM" in run(home / "bin" / "vmmigration", "--help")
    assert run(home / "bin" / "vmmigration-agent", "--version") == f"vmmigration-agent {VERSION}\n"


def test_it_makes_and_derives_keys(home: Path, tmp_path: Path) -> None:
    command = [home / "bin" / "vmmigration", "--config-dir", tmp_path]
    run(*command, "new-key")
    assert len(run(*command, "agent-key", "192.0.2.11").strip()) == 64


def test_what_it_tells_to_type_has_the_name_that_it_was_installed_by(home: Path, tmp_path: Path) -> None:
    (tmp_path / "AgentIPAddr.txt").write_text("127.0.0.1\n127.0.0.2\n")
    finished = subprocess.run(
        [home / "bin" / "vmmigration", "--config-dir", tmp_path, "--json", "127.0.0.1", "127.0.0.2", "kvm", "VM1"],
        capture_output=True, text=True, check=False)
    (error,) = json.loads(finished.stdout)["errors"]
    assert error["code"] == "key-missing"
    for text in (error["hint"], finished.stderr):
        assert "run `vmmigration new-key` once" in text
        assert "vmmigration.py" not in text


def test_nothing_else_is_installed_with_it(home: Path) -> None:
    # --path, because pipx's own pip lies beside it.
    (libraries,) = home.glob("venvs/vmmigration/lib/python*/site-packages")
    listed = run(needed("python3"), "-m", "pip", "list", "--format=freeze", "--path", libraries)
    assert listed.splitlines() == [f"vmmigration=={VERSION}"]


def test_every_module_and_catalogue_is_installed(home: Path) -> None:
    (libraries,) = home.glob("venvs/vmmigration/lib/python*/site-packages")
    # The agent's wrapper for a checkout is not needed.
    wanted = set(ours()) - {"vmmigration-agent.py"}
    assert {path for path in wanted if not (libraries / path).is_file()} == set()


def test_an_archive_of_the_sources_has_all_that_the_repository_has(checkout: Path, tmp_path: Path) -> None:
    run(needed("python3"), "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "--quiet", "install", "setuptools>=61")
    run(python, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, directory=checkout)
    with tarfile.open(tmp_path / f"vmmigration-{VERSION}.tar.gz") as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert set(repository()) - packed == {".gitignore", ".ci/run"}
