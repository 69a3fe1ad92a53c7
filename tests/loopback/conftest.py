"""A Site for each test, and failures of the helpers here as readable as those of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.loopback.site")

from tests.loopback.site import Site  # noqa: E402 - after that line, or it has no effect


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A management host without nodes yet; what is started on it is ended after the test."""
    with Site(tmp_path) as made:
        yield made
