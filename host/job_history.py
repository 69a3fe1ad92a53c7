"""The jobs that this host has taken part in: a file for each, so that any controller, or a later life of the agent, can
go on with one, and `list` can tell how they ended."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from constant import IDS_KEPT_SECONDS
from host.job_files import write_synced
from wire.errors import MigrationError
from wire.history import JobRecord
from wire.message import read_json, write_json
from wire.schema import from_wire, to_wire

log = logging.getLogger(__name__)


class JobHistory:
    """The files, below the agent's state directory."""

    def __init__(self, state_directory: Path) -> None:
        self._directory = state_directory / "history"

    def _path(self, job_id: str) -> Path:
        return self._directory / f"{job_id}.json"

    def put(self, kept: JobRecord) -> None:
        """Write a job down, on disk before it returns. Raises OSError."""
        write_synced(self._path(kept.job_id), write_json(to_wire(kept)))

    def get(self, job_id: str) -> JobRecord | None:
        """What is written down of a job; None if there is nothing that this version can read."""
        try:
            kept: JobRecord = from_wire(JobRecord, read_json(self._path(job_id).read_text(encoding="utf-8")))
            return kept
        except OSError:
            return None
        except (ValueError, MigrationError) as error:
            log.warning("%s cannot be read: %s", self._path(job_id), error)
            return None

    def all(self) -> list[JobRecord]:
        """All of them, the newest first."""
        names = []
        with contextlib.suppress(FileNotFoundError):
            names = [name for name in os.listdir(self._directory) if name.endswith(".json")]
        found = [kept for name in names if (kept := self.get(name.removesuffix(".json"))) is not None]
        return sorted(found, key=lambda kept: kept.since, reverse=True)

    def forget_old(self, wall: float) -> None:
        """Remove what ended longer ago than a journal remembers, `wall` being the time since 1970."""
        for kept in self.all():
            if kept.outcome is not None and wall - kept.ended > IDS_KEPT_SECONDS:
                with contextlib.suppress(OSError):
                    self._path(kept.job_id).unlink(missing_ok=True)
