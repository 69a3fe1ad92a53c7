"""Writes a run down while it goes on: when each step began and ended, and how far each was at which time.

However long the run, what is kept is bounded: where there are too many samples, every other one goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from constant import Command
from control.conversation import Observer, StepResult
from wire.records import DiskProgress, MemoryProgress, Progress

# Of one step on one host. A chart of 800 pixels shows no more, and at one report a second it is a quarter of an hour
# that is kept whole. Three steps report: a page is made from 3000 at most.
SAMPLES_LIMIT = 1000


@dataclass(frozen=True)
class Sample:
    """How far a step was. `at` is in seconds since the run began, the counts are bytes since the step did."""

    at: float
    phase: str
    done: int
    total: int
    disks: tuple[DiskProgress, ...] = ()
    memory: Optional[MemoryProgress] = None


@dataclass(frozen=True)
class Span:
    """A step on the time line, in seconds since the run began. `result` is None while it has not ended."""

    command: Command
    host: str
    began: float
    ended: float
    result: Optional[StepResult] = None


@dataclass(frozen=True)
class Track:
    """What one step on one host told of its progress, in the order of time."""

    command: Command
    host: str
    began: float
    samples: tuple[Sample, ...]


class Wish(Enum):
    """What an admin wanted who pressed Ctrl-C."""

    LEAVE = "leave"
    """Once: the job is left to itself."""
    CANCEL = "cancel"
    """Twice."""
    CANCEL_TOO_LATE = "cancel, too late"


@dataclass(frozen=True)
class Press:
    """A Ctrl-C of the admin's, in seconds since the run began."""

    at: float
    wish: Wish


@dataclass(frozen=True)
class Recording:
    """A run as it was written down. Seconds since it began."""

    seconds: float
    spans: tuple[Span, ...] = ()
    """In the order in which they began."""
    tracks: tuple[Track, ...] = ()
    presses: tuple[Press, ...] = ()
    resumed: bool = False
    """Whether another command had begun the job: then what a step tells first is not what it did since this one did."""


class Observers:
    """An Observer that passes on what it is told, to each of several in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def step_began(self, command: Command, host: str) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.step_began(command, host)

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.step_progress(command, host, progress)

    def step_ended(self, step: StepResult) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.step_ended(step)

    def leaving(self, seconds: float) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.leaving(seconds)

    def cancelling(self, *, possible: bool, pressed: bool = True) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.cancelling(possible=possible, pressed=pressed)


@dataclass
class _Kept:
    """The samples of one step on one host: never more than SAMPLES_LIMIT, and always the first and the last."""

    began: float
    samples: list[Sample] = field(default_factory=list)
    interval: float = 0.0
    """How far apart they are at least, the last one excepted."""

    def add(self, sample: Sample) -> None:
        """Take one; it replaces the last if that came too soon after the one before it."""
        if len(self.samples) > 1 and self.samples[-1].at - self.samples[-2].at < self.interval:
            self.samples[-1] = sample
        else:
            self.samples.append(sample)
        if len(self.samples) > SAMPLES_LIMIT:
            self._thin_out()

    def _thin_out(self) -> None:
        span = self.samples[-1].at - self.samples[0].at
        self.interval = max(2 * self.interval, 2 * span / SAMPLES_LIMIT)
        kept = [self.samples[0]]
        for sample in self.samples[1:-1]:
            if sample.at - kept[-1].at > self.interval:
                kept.append(sample)
        self.samples = [*kept, self.samples[-1]]


class Recorder:
    """An Observer that writes down. What is only asked to find out (control.conversation.Nobody) is not seen here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, resumes: bool = False) -> None:
        self._clock = clock
        self._resumes = resumes
        self._origin = clock()
        self._begun: dict[tuple[Command, str], float] = {}
        self._spans: list[Span] = []
        self._kept: dict[tuple[Command, str], _Kept] = {}
        self._presses: list[Press] = []

    def _now(self) -> float:
        return self._clock() - self._origin

    def step_began(self, command: Command, host: str) -> None:
        """A step that may run beside others."""
        self._begun[command, host] = self._now()

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        """One sample."""
        kept = self._kept.get((command, host))
        if kept is None:
            kept = self._kept[command, host] = _Kept(self._begun.get((command, host), self._now()))
        kept.add(Sample(self._now(), progress.phase, progress.done, progress.total, progress.disks, progress.memory))

    def step_ended(self, step: StepResult) -> None:
        """It took as long as it says: of two that are greeted at once the second one is told of later."""
        now = self._now()
        began = min(self._begun.pop((step.command, step.host), now), max(0.0, now - step.seconds))
        self._spans.append(Span(step.command, step.host, began, min(now, began + step.seconds), step))

    def leaving(self, seconds: float) -> None:
        """A first Ctrl-C."""
        self._presses.append(Press(self._now(), Wish.LEAVE))

    def cancelling(self, *, possible: bool, pressed: bool = True) -> None:
        """A second one: then the first was not what was wanted."""
        if not pressed:
            return
        if self._presses and self._presses[-1].wish is Wish.LEAVE:
            self._presses.pop()
        self._presses.append(Press(self._now(), Wish.CANCEL if possible else Wish.CANCEL_TOO_LATE))

    def recording(self) -> Recording:
        """All of it until now. A step that has not ended goes on to the end of the recording."""
        now = self._now()
        going_on = [Span(command, host, began, now) for (command, host), began in self._begun.items()]
        return Recording(
            seconds=now, spans=_in_order((*self._spans, *going_on)), presses=tuple(self._presses),
            resumed=self._resumes, tracks=tuple(Track(command, host, kept.began, tuple(kept.samples))
                         for (command, host), kept in self._kept.items()))


def _in_order(spans: Iterable[Span]) -> tuple[Span, ...]:
    return tuple(sorted(spans, key=lambda span: in_step(span.began)))


def in_step(began: float) -> float:
    """By which to sort: what began at once stays in the order in which it was told of."""
    return round(began, 2)
