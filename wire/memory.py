"""What an agent remembers of the requests that came: their state or result, and for a while after that the id alone.

Bounded in time and in size. It knows nothing of files; what is to survive the agent comes from and goes to journal.py
as entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional, Union

from constant import (
    IDS_KEPT_SECONDS,
    IDS_LIMIT,
    NOT_JOURNALED,
    OPEN_JOB,
    REPLY_TRANSITIONS,
    RESULTS_KEPT_SECONDS,
    RESULTS_LIMIT,
    UNJOURNALED_KEPT_SECONDS,
    Command,
    MessageType,
)
from wire.errors import ErrorCode
from wire.forms import check_request_id
from wire.history import outcome_of
from wire.message import Reply, can_hold, encode
from wire.records import Obstacle
from wire.schema import record

# What a remembered request takes in memory beside the text of its result, rounded up.
_OVERHEAD = 2000

Address = tuple[str, int]


# What survives the agent.


@record
class Begun:
    """A request is about to be worked on. Times are whole seconds since 1970."""

    request_id: str
    digest: str
    agent_ip: str
    cmd: Command
    asked_by: str
    at: int
    job_id: Optional[str] = None
    domain: Optional[str] = None

    def __post_init__(self) -> None:
        check_request_id(self.request_id)


@record
class Ended:
    """The work on a request has ended with this result: a record or an Obstacle, as in a reply."""

    request_id: str
    cmd: Command
    at: int
    cmd_result: object

    def __post_init__(self) -> None:
        check_request_id(self.request_id)
        if not can_hold(self.cmd, self.cmd_result):
            raise ValueError(f"{self.cmd.value} has no such result")


@record
class Seen:
    """A request of which only the id is remembered; its result is past its time."""

    request_id: str
    digest: str
    at: int

    def __post_init__(self) -> None:
        check_request_id(self.request_id)


Entry = Union[Begun, Ended, Seen]


# What it has in memory.


@dataclass(frozen=True)
class Asker:
    """Where answers go, and under which key."""

    address: Address
    key_id: str


@dataclass
class Remembered:
    """One request, and what was answered to it last."""

    request_id: str
    digest: str
    agent_ip: str
    cmd: Command
    asked_by: str
    changed: float
    """When it was answered last, in seconds on the clock of Memory."""
    job_id: Optional[str] = None
    domain: Optional[str] = None
    begun: bool = False
    """Whether the work was begun: only that goes into the journal."""
    reply: Optional[Reply] = None
    asker: Optional[Asker] = None
    """None for a request of an earlier life of this agent that nobody has asked for since."""

    @property
    def ended(self) -> bool:
        """Whether it has its last answer."""
        return self.reply is not None and not REPLY_TRANSITIONS[self.reply.msg_type]

    @property
    def journaled(self) -> bool:
        """Whether the journal knows it."""
        return self.begun and self.cmd not in NOT_JOURNALED


def _is_open(requests: Sequence[Remembered]) -> bool:
    """Whether a job with these steps has begun on this host and not ended, as far as they say."""
    ended = any(outcome_of(each.cmd, each.reply.cmd_result) is not None for each in requests if each.reply is not None)
    return not ended and any(each.cmd in OPEN_JOB for each in requests)


class Memory:
    """Requests by id. `now` is on the caller's clock, which only goes forward; `wall` is the time since 1970."""

    def __init__(self, now: float, wall: float) -> None:
        self._now, self._wall = now, wall
        self._requests: dict[str, Remembered] = {}
        self._seen: dict[str, tuple[str, float]] = {}
        self._sizes: dict[str, int] = {}
        self._size = 0

    def _at(self, time: float) -> int:
        return round(self._wall + time - self._now)

    def _time(self, at: int) -> float:
        # A wall clock that was put back must not make anything younger than new.
        return self._now - max(0.0, self._wall - at)

    def __len__(self) -> int:
        """How many requests are remembered with their state or result."""
        return len(self._requests)

    def find(self, request_id: str) -> Remembered | None:
        """The request with that id, if its state or result is remembered."""
        return self._requests.get(request_id)

    def seen(self, request_id: str) -> str | None:
        """The digest of a request whose result is past its time."""
        seen = self._seen.get(request_id)
        return seen[0] if seen else None

    def add(self, request: Remembered) -> None:
        """Remember a new request."""
        self._requests[request.request_id] = request

    def answered(self, request: Remembered, reply: Reply, now: float) -> None:
        """Remember what it was answered. Makes room if the results take more than RESULTS_LIMIT bytes."""
        request.reply, request.changed = reply, now
        if not request.ended:
            return
        size = len(encode(reply)) + _OVERHEAD
        self._size += size - self._sizes.get(request.request_id, 0)
        self._sizes[request.request_id] = size
        while self._size > RESULTS_LIMIT:
            self._forget(self._requests[next(iter(self._sizes))])

    def _forget(self, request: Remembered) -> None:
        self._size -= self._sizes.pop(request.request_id, 0)
        del self._requests[request.request_id]
        if request.journaled:
            self._seen[request.request_id] = (request.digest, request.changed)
            if len(self._seen) > IDS_LIMIT:
                del self._seen[next(iter(self._seen))]

    def forget_old(self, now: float) -> None:
        """Drop what is past its time. A held-back copy of such a request is not fresh any more, so cannot run.

        Of a job everything goes at once, a day after its last step, and of one that is open after a month: whoever
        goes on with it has to know what was done.
        """
        jobs = self._jobs()
        for request in list(self._requests.values()):
            changed, kept = request.changed, UNJOURNALED_KEPT_SECONDS
            if request.journaled:
                changed, kept = jobs.get(request.job_id or "", (changed, RESULTS_KEPT_SECONDS))
            if request.ended and now - changed > kept:
                self._forget(request)
        for request_id, (_, changed) in list(self._seen.items()):
            if now - changed > IDS_KEPT_SECONDS:
                del self._seen[request_id]

    def _jobs(self) -> dict[str, tuple[float, float]]:
        """Of each job: when the last of its requests changed, and for how many seconds it is kept from then on."""
        found: dict[str, list[Remembered]] = {}
        for request in self._requests.values():
            if request.journaled and request.job_id is not None:
                found.setdefault(request.job_id, []).append(request)
        return {
            job_id: (max(request.changed for request in requests),
                     IDS_KEPT_SECONDS if _is_open(requests) else RESULTS_KEPT_SECONDS)
            for job_id, requests in found.items()}

    # What goes to the journal and comes from it.

    def begun(self, request: Remembered, now: float) -> Begun:
        """The entry that says that the work on it is about to begin."""
        return Begun(
            request_id=request.request_id, digest=request.digest, agent_ip=request.agent_ip, cmd=request.cmd,
            asked_by=request.asked_by, at=self._at(now), job_id=request.job_id, domain=request.domain)

    def ended(self, request: Remembered, result: object, now: float) -> Ended:
        """The entry that says how it ended."""
        return Ended(request_id=request.request_id, cmd=request.cmd, at=self._at(now), cmd_result=result)

    def entries(self) -> tuple[Entry, ...]:
        """All that a new journal has to hold."""
        found: list[Entry] = [
            Seen(request_id=request_id, digest=digest, at=self._at(changed))
            for request_id, (digest, changed) in self._seen.items()]
        for request in self._requests.values():
            if request.journaled:
                found.append(self.begun(request, request.changed))
                if request.ended and request.reply is not None:
                    found.append(self.ended(request, request.reply.cmd_result, request.changed))
        return tuple(found)

    def restore(self, entries: Iterable[Entry], adopted: frozenset[str] = frozenset()) -> None:
        """Take what a journal holds. A request that was begun and has no end was interrupted: so it is answered.

        Unless it is among those `adopted`, which go on.
        """
        for entry in entries:
            if isinstance(entry, Begun):
                self._restore(entry)
            elif isinstance(entry, Seen):
                self._seen[entry.request_id] = (entry.digest, self._time(entry.at))
            elif (request := self.find(entry.request_id)) is not None:
                self._end(request, entry.cmd_result, self._time(entry.at))
        for request in list(self._requests.values()):
            if request.request_id in adopted and not request.ended:
                # Its numbers go on above all that an earlier life may have come to.
                request.reply = self._said(request, MessageType.ACCEPTED, None, round(self._wall))
                request.changed = self._now
            elif not request.ended:
                facts = {"host": request.agent_ip, "command": request.cmd.value, "domain": request.domain or "?"}
                # From now on, however long ago it was begun.
                self._end(request, Obstacle(code=ErrorCode.REQUEST_INTERRUPTED, facts=facts), self._now)
        self.forget_old(self._now)

    def _restore(self, entry: Begun) -> None:
        self.add(Remembered(
            request_id=entry.request_id, digest=entry.digest, agent_ip=entry.agent_ip, cmd=entry.cmd,
            asked_by=entry.asked_by, changed=self._time(entry.at), job_id=entry.job_id, domain=entry.domain,
            begun=True))

    def _end(self, request: Remembered, result: object, time: float) -> None:
        # An end is the last word whatever its number: the numbers of an earlier life are not known.
        self.answered(request, self._said(request, MessageType.RESPONSE, result, 0), time)

    @staticmethod
    def _said(request: Remembered, msg_type: MessageType, result: object, sequence: int) -> Reply:
        return Reply(
            msg_type=msg_type, request_id=request.request_id, agent_ip=request.agent_ip, cmd=request.cmd,
            sequence=sequence, cmd_result=result)

    def of_job(self, job_id: str) -> list[Remembered]:
        """The requests of a job, in the order in which they came."""
        # A copy: steps ask from threads of their own, while the receive loop adds to it.
        return [request for request in list(self._requests.values()) if request.job_id == job_id]
