"""A browser for the whole session, and the pages of all kinds of runs as files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from console.report_page import page
from tests.page.browser import Browser, find_browser
from tests.unit.report_runs import EVERY_RUN


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium. Skips where there is none; under CI that is a failure."""
    program = find_browser()
    if program is None and os.environ.get("CI") == "true":
        pytest.fail("under CI a run's page must be looked at: there is no Chromium")
    if program is None:
        pytest.skip("there is no Chromium")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The page of each kind of run."""
    directory = tmp_path_factory.mktemp("pages")
    written = {}
    for name, make in EVERY_RUN.items():
        written[name] = directory / f"{name}.html"
        written[name].write_text(page(make()), encoding="utf-8")
    return written
