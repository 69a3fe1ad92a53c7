"""What every step is given besides its arguments: who it is, how it reports, and whether it was cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from host.job_files import Ledger
from wire.access import AddressList
from wire.records import Migration, Progress


@dataclass
class Cancellation:
    """Whether the job's running step is to end, and why. Set by the receive loop, looked at by the step's thread."""

    reason: Optional[str] = None


@dataclass(frozen=True)
class StepContext:
    """The host that a step runs on, and its way to report. `host` is its address as the admin knows it.

    `epoch` and `challenge` are what HELLO hands out, for the requests that start something.
    """

    host: str
    epoch: str
    challenge: str
    destinations: AddressList
    state_directory: Path
    cancellation: Cancellation
    progress: Callable[[Progress], None]
    free_slots: int = 0
    slots: int = 0
    """How many more jobs this host takes now, and how many altogether."""

    def ledger(self, migration: Migration) -> Ledger:
        """What the job has made on this host."""
        return Ledger(migration.job_id, self.state_directory / "jobs")
