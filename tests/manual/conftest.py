"""Tools that tests here need: a test is skipped where one is missing, and fails under CI, which installs them all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def need(tool: str) -> None:
    """Skip the test that asks if the tool, a program or a file, is not installed."""
    if shutil.which(tool) is None and not Path(tool).is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{tool} is missing: script/test manual installs it")
        pytest.skip(f"{tool} is missing: script/test manual installs it")


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the man pages, built anew."""
    need("scdoc")
    directory = tmp_path_factory.mktemp("man")
    subprocess.run([ROOT / "script" / "manual", directory], check=True)
    return directory
