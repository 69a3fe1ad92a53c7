"""The packages as they are built from this checkout, and a machine to install them on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.packaging.root import node_root, own_release
from tests.unit.samples import ROOT


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the two packages and their .changes."""
    directory = tmp_path_factory.mktemp("packages")
    built = subprocess.run(
        [ROOT / "script" / "package", directory], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert built.returncode == 0, built.stdout + built.stderr
    return directory


@pytest.fixture(scope="session")
def root(packages: Path) -> Path:
    """What a node boots from before the packages are installed. Needs root."""
    if os.geteuid() != 0 and os.environ.get("CI") != "true":
        pytest.skip("a machine of its own needs root")
    return node_root(packages, own_release())
