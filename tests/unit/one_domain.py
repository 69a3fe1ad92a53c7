"""A libvirt with one VM, for the steps that see to it after a failure: what it is like, and what is done to it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.unit.samples import FACTS, MIGRATION
from wire.records import Convergence

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import DomainState, Pause
from host.hypervisor import SYSTEM_URI, Hypervisor, OtherDomain
from host.job_history import JobHistory
from host.job_statistics import JobStatistics
from steps.context import Cancellation, StepContext
from tests.unit.samples import AGENTS, MOVED, NOTE, FakeClock
from wire.errors import ErrorCode, MigrationError
from wire.history import JobRecord
from wire.records import Migration, MigrationReport, Progress, StepArguments
from wire.situation import DomainView

RUNNING = DomainView(state=DomainState.RUNNING, persistent=True)
PAUSED = DomainView(state=DomainState.PAUSED, pause=Pause.SOMEBODY, persistent=True)
HALF = DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION)
BROKEN_OFF = DomainView(state=DomainState.PAUSED, pause=Pause.POST_COPY_FAILED, persistent=True, split=True)
HALF_ARRIVED = DomainView(state=DomainState.RUNNING, persistent=True, split=True)
SHUT_OFF = DomainView(state=DomainState.SHUT_OFF, persistent=True)
MIGRATED = DomainView(state=DomainState.SHUT_OFF, migrated=True, persistent=True)
ABSENT = DomainView(state=DomainState.ABSENT)
# As a VM that is held has arrived.
ARRIVED = PAUSED

POST_COPY = dataclasses.replace(MIGRATION, convergence=Convergence(post_copy=True))
# The same VM, moved by somebody else.
OTHER_JOB = dataclasses.replace(MIGRATION, job_id="0ddba11e")
MOVED_BY_ANOTHER = dataclasses.replace(MIGRATED, moved=dataclasses.replace(NOTE, job_id=OTHER_JOB.job_id))
WAS_PAUSED = dataclasses.replace(FACTS, state=DomainState.PAUSED)


@dataclass
class OneDomain:
    """Tells one view after the other, and stays with the last."""

    views: list[DomainView]
    jobs: int = 0
    """At so many looks a job of libvirt's runs on it."""
    foreign: bool = False
    """Whether they are somebody else's, a backup say."""
    mirrors: bool = True
    """Whether its block jobs are what a migration has left."""
    unreachable: int = 0
    """So often nobody gets a connection."""
    figures: Iterator[JobStatistics | None] = field(default_factory=lambda: iter(()))
    """What libvirt counts of its job, at each look."""
    refusing: bool = False
    """Whether it does nothing that it is asked to do."""
    others_here: list[OtherDomain] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    """The URI of each connection."""
    closed: int = 0

    @classmethod
    def of(cls, *views: DomainView, **how: Any) -> OneDomain:
        """With these views, one after the other."""
        return cls(list(views), **how)

    def view(self, _domain: str) -> DomainView:
        """The next one."""
        return self.views.pop(0) if len(self.views) > 1 else self.views[0]

    def others(self, _domain: str) -> list[OtherDomain]:
        """The other domains."""
        return self.others_here

    def state(self, domain: str) -> DomainState:
        """How it is."""
        return self.view(domain).state

    def has_arrived(self, domain: str) -> bool:
        """Whether it is paused, by nothing but having arrived."""
        return self.view(domain) == ARRIVED

    def has_job(self, _domain: str) -> bool:
        """Whether a job runs on it."""
        self.jobs -= 1
        return self.jobs >= 0

    def _do(self, what: str) -> None:
        self.done.append(what)
        if self.refusing:
            raise MigrationError(ErrorCode.LIBVIRT_ERROR, {"host": "here", "reason": "not now"})

    def abort_job(self, domain: str) -> None:
        """Write it down."""
        self._do(f"abort {domain}")

    def has_foreign_job(self, _domain: str) -> bool:
        """Whether that job is no migration."""
        return self.foreign

    def end_mirrors(self, domain: str) -> bool:
        """Write it down."""
        self._do(f"end mirrors of {domain}")
        return self.mirrors

    def job_statistics(self, _domain: str) -> JobStatistics | None:
        """The next figures; nothing once there are no more."""
        return next(self.figures, None)

    def resume(self, domain: str) -> None:
        """Write it down."""
        self._do(f"resume {domain}")

    def resumption(self, domain: str) -> Callable[[], None]:
        """Found now, and resumed later; libvirt does that only to one that has arrived."""
        if self.state(domain) is DomainState.ABSENT:
            raise MigrationError(ErrorCode.DOMAIN_MISSING, {"host": "here", "domain": domain})

        def resume() -> None:
            if self.view(domain) != ARRIVED:
                raise MigrationError(ErrorCode.LIBVIRT_ERROR, {"host": "here", "reason": "held by a migration"})
            self.resume(domain)

        return resume

    def drop(self, domain: str) -> None:
        """Write it down; it is gone."""
        self._do(f"drop {domain} and its definition")
        self.views = [ABSENT]

    def autostart(self, _domain: str) -> bool:
        """It does not start with its host."""
        return False

    def finished_job(self, _domain: str) -> MigrationReport:
        """libvirt's figures."""
        return MOVED

    @contextlib.contextmanager
    def connect(self, uri: str) -> Iterator[OneDomain]:
        """A connection for the length of a `with`."""
        self.opened.append(uri)
        if self.unreachable > 0:
            self.unreachable -= 1
            raise MigrationError(ErrorCode.LIBVIRT_UNREACHABLE, {"host": "here", "reason": "connection refused"})
        try:
            yield self
        finally:
            self.closed += 1


def put_here(patch: pytest.MonkeyPatch, here: OneDomain, there: OneDomain | None = None) -> None:
    """Have that libvirt on this host, and the other one behind every connection that goes elsewhere."""
    def opened(_host: str, uri: str = SYSTEM_URI, patience: float = 0.0) -> Any:
        return (here if uri == SYSTEM_URI or there is None else there).connect(uri)

    patch.setattr(Hypervisor, "open", opened)


def put_clock(patch: pytest.MonkeyPatch) -> FakeClock:
    """Have all that waits go by a clock, and no time pass."""
    clock = FakeClock()
    patch.setattr("time.monotonic", clock)
    patch.setattr("time.sleep", clock.sleep)
    return clock


def put_job(state_directory: Path, migration: Migration) -> None:
    """A job that has begun on this host."""
    JobHistory(state_directory).put(JobRecord(
        arguments=StepArguments(migration=migration, facts=FACTS), asked_by="198.51.100.1", since=1))


def context_on(host: str, state_directory: Path, told: list[Progress] | None = None) -> StepContext:
    """What a step on that host is given."""
    return StepContext(
        host=host, epoch="", challenge="", destinations=AGENTS, state_directory=state_directory,
        cancellation=Cancellation(), progress=(told if told is not None else []).append)
