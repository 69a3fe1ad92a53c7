"""What every step is given besides its arguments: who it is, how it reports, and whether it was cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from constant import Command
from host.job_files import Ledger
from host.job_history import JobHistory
from host.kept_tunnels import KeptTunnels as KeptTunnels  # the agent holds them from step to step
from wire.access import AddressList
from wire.history import StepState
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
    wall: int = 0
    """The time since 1970, in seconds, when the step was begun."""
    free_slots: int = 0
    slots: int = 0
    """How many more jobs this host takes now, and how many altogether."""
    doing: Mapping[str, tuple[Command, ...]] = field(default_factory=dict)
    """What each job does here now, for LIST."""
    tunnels: KeptTunnels = field(default_factory=KeptTunnels)
    """Those that wait for a job's next step."""
    asked: tuple[StepState, ...] = ()
    """The steps that were begun here for the job in question, for RECALL."""

    def aside(self, migration: Migration) -> Path:
        """Where the definition of a copy is kept that is on this host already, while the VM comes back to it."""
        return self.state_directory / "jobs" / f"{migration.job_id}.xml"

    def ledger(self, migration: Migration) -> Ledger:
        """What the job has made on this host."""
        return Ledger(migration.job_id, self.state_directory / "jobs")

    @property
    def history(self) -> JobHistory:
        """The jobs that this host has taken part in."""
        return JobHistory(self.state_directory)
