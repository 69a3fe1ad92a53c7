"""The unit tests draw the same random examples in every run, and keep no files about them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", derandomize=True, database=None, deadline=None)
settings.load_profile("unit")
