"""The migrations under way on a host: who may begin which step, what is locked, and which jobs nobody drives any more.

It knows nothing of threads, files or the clock; agent.py tells it what happens and when.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from constant import (
    CHANGE_NOTHING,
    CLEARING,
    CLOSE_JOB,
    GIVE_UP_SECONDS,
    OPEN_JOB,
    Command,
)
from wire.errors import ErrorCode, MigrationError
from wire.history import outcome_of
from wire.memory import Begun, Ended, Entry
from wire.phrase import Phrase, joined
from wire.records import Migration

log = logging.getLogger(__name__)

_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


@dataclass
class Job:
    """A migration that is under way on this host. `heard` is when its last step ended, or its controller said so."""

    job_id: str
    domain: str
    asked_by: str
    since: str
    heard: float
    on_source: bool = False
    """Whether this host is the one that the VM leaves."""
    running: Counter[Command] = field(default_factory=Counter)
    begun: bool = False
    """Whether any of its steps was begun."""
    given_up: bool = False
    """Whether it has waited too long for its controller: it holds no place and locks nothing any more."""
    closing: bool = False
    """Whether its controller was done with it, and something could not be cleared up."""
    seeing_to: bool = False
    """Whether this agent is seeing to it by itself."""
    look_at: float = 0.0
    """When this agent looks at it next."""
    looks: int = 0


def who_asked(migration: Migration, address: str) -> str:
    """The admin and their host, for whoever is refused because of the job."""
    return f"{migration.admin} ({address})" if migration.admin else address


class Jobs:
    """The migrations under way on this host: one for a domain, and no more than `limit`.

    A job begins with its first step that changes something, and ends with the step that clears up after it. One whose
    controller has gone for good locks nothing any more GIVE_UP_SECONDS after it was last heard of, and the agent
    settles it by itself.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: dict[str, Job] = {}

    def restore(self, entries: Iterable[Entry], now: float) -> None:
        """Take what the journal tells of jobs that an earlier life of this agent has not seen the end of."""
        commands = {}
        for entry in entries:
            if isinstance(entry, Begun) and entry.job_id is not None and entry.domain is not None:
                commands[entry.request_id] = entry.job_id
                if entry.cmd in OPEN_JOB and entry.job_id not in self._jobs:
                    since = time.strftime(_TIME_FORMAT, time.localtime(entry.at))
                    self._jobs[entry.job_id] = Job(
                        entry.job_id, entry.domain, entry.asked_by, since, now,
                        on_source=entry.cmd is not Command.PREPARE_DESTINATION, begun=True)
            elif isinstance(entry, Ended) and outcome_of(entry.cmd, entry.cmd_result) is not None:
                self._jobs.pop(commands.get(entry.request_id, ""), None)

    def enter(self, command: Command, host: str, migration: Migration, asked_by: str, now: float) -> None:
        """Begin a step of a migration. Raises MigrationError DOMAIN_LOCKED or JOBS_LIMIT_REACHED."""
        self._give_up(now)
        own = self._jobs.get(migration.job_id)
        if own is not None and own.domain != migration.domain:
            problem = Phrase("job {job} is about VM {domain}", {"job": own.job_id, "domain": own.domain})
            raise MigrationError(ErrorCode.MESSAGE_INVALID, {"host": host, "problem": problem})
        if command not in CLEARING or (own is not None and OPEN_JOB & own.running.keys()):
            self._check(own, command, host, migration, now)
        if own is None and command in OPEN_JOB:
            since = time.strftime(_TIME_FORMAT)
            own = self._jobs[migration.job_id] = Job(
                migration.job_id, migration.domain, who_asked(migration, asked_by), since, now,
                on_source=host == migration.source)
        if own is not None:
            own.running[command] += 1
            own.given_up = False

    def leave(
        self, command: Command, migration: Migration, now: float, *, begun: bool = True, settled: bool = True,
    ) -> None:
        """End a step of a migration, or take it back if it was not `begun` after all.

        A step that clears up ends the job, if it has `settled` what there was to clear up.
        """
        job = self._jobs.get(migration.job_id)
        if job is None:
            return
        # A check may have entered before there was a job.
        job.running -= Counter({command: 1})
        job.heard, job.begun = now, job.begun or begun
        job.closing = command in CLOSE_JOB and not settled
        if not job.running and ((command in CLOSE_JOB and settled) or not job.begun):
            del self._jobs[migration.job_id]

    def open(self) -> list[Job]:
        """All of them."""
        return list(self._jobs.values())

    def unattended(self, now: float) -> list[Job]:
        """Those that have nothing to do here now, and at which this agent may look by itself."""
        return [job for job in self._jobs.values() if not job.running and not job.seeing_to and now >= job.look_at]

    def settle(self, job_id: str) -> None:
        """End a job that was settled without its controller."""
        self._jobs.pop(job_id, None)

    @property
    def limit(self) -> int:
        """How many there may be at once."""
        return self._limit

    def free(self) -> int:
        """How many more there may be."""
        return max(0, self._limit - len(self._holding()))

    def _holding(self) -> list[Job]:
        # A copy: steps ask from threads of their own, while the receive loop adds to it.
        return [job for job in list(self._jobs.values()) if not job.given_up]

    def keep(self, job_id: str, now: float) -> None:
        """Hear of a job that has nothing to do here now."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.heard, job.given_up = now, False

    def _give_up(self, now: float) -> None:
        for job in self._holding():
            if not job.running and now - job.heard > GIVE_UP_SECONDS:
                log.warning("job %s of VM %s is given up: nothing was heard of it for %.0f s", job.job_id, job.domain,
                            GIVE_UP_SECONDS)
                job.given_up = True

    def _check(self, own: Job | None, command: Command, host: str, migration: Migration, now: float) -> None:
        for job in self._holding():
            busy = job is not own or (command not in CHANGE_NOTHING and bool(job.running))
            if busy and job.domain == migration.domain:
                raise MigrationError(ErrorCode.DOMAIN_LOCKED, {
                    "host": host, "domain": job.domain, "job": job.job_id, "asked_by": job.asked_by,
                    "since": job.since, "seconds": f"{GIVE_UP_SECONDS:.0f}"})
        holding = self._holding()
        if (own is None or own.given_up) and len(holding) >= self._limit:
            domains = joined(job.domain for job in holding)
            raise MigrationError(ErrorCode.JOBS_LIMIT_REACHED, {
                "host": host, "count": str(len(holding)), "domains": domains, "limit": str(self._limit)})
