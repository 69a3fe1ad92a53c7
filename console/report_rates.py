"""What a recording says about rates: of each disk, of the memory and of what the guest wrote; and the passes.

Pure functions over what console/recorder.py has kept.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from console.recorder import Recording, Sample, Track
from constant import Command
from wire.records import DiskProgress

# A source looks at its counts every half second, and what it tells is not older than that: over less than this the
# difference of two tells more about when they came than about a rate.
_LEAST_SECONDS = 0.5


class Kind(Enum):
    """What a rate is of."""

    FILES = "files"
    DISK = "disk"
    MEMORY = "memory"
    DIRTY = "dirty"
    """What the guest writes to its memory: it does not cross the link, but has to be copied again."""


@dataclass(frozen=True)
class Level:
    """A mean rate in bytes per second, between two times in seconds since the run began."""

    began: float
    ended: float
    rate: float


@dataclass(frozen=True)
class Series:
    """One rate over time. `name` is a disk's target, and empty for what there is one of."""

    kind: Kind
    name: str
    levels: tuple[Level, ...]

    @property
    def bytes(self) -> float:
        """All of it."""
        return sum(level.rate * (level.ended - level.began) for level in self.levels)

    @property
    def mean(self) -> float:
        """In bytes per second, over the time for which it was told."""
        seconds = sum(level.ended - level.began for level in self.levels)
        return self.bytes / seconds if seconds else 0.0

    @property
    def peak(self) -> float:
        """The highest level."""
        return max((level.rate for level in self.levels), default=0.0)


def series_of(recording: Recording, source: str) -> tuple[Series, ...]:
    """The rates that the source told of, each until its last byte; in the order of their beginning."""
    found: dict[tuple[Kind, str], list[Level]] = {}
    for track in recording.tracks:
        if track.host != source:
            # The other end of the same bytes.
            continue
        marks = _marks(recording, track)
        for before, sample in zip(marks, marks[1:]):
            for kind, name, rate in _rates(track, before, sample):
                found.setdefault((kind, name), []).append(Level(before.at, sample.at, rate))
    every = (Series(kind, name, _until_the_last(levels)) for (kind, name), levels in found.items())
    return tuple(series for series in every if series.levels)


def _first(recording: Recording, track: Track) -> Sample:
    """From which on is counted: nothing, when the step began, or what an earlier command had seen of it already."""
    if not recording.resumed:
        return Sample(track.began, "", 0, 0)
    # What is told first of all may be as old as the last time that somebody was told.
    return [sample for sample in track.samples if sample.at - track.samples[0].at < _LEAST_SECONDS][-1]


def _marks(recording: Recording, track: Track) -> list[Sample]:
    """The samples between which rates are counted: far enough apart, from the first one that counts to the last."""
    marks = [_first(recording, track)]
    for sample in track.samples:
        if sample.at - marks[-1].at >= _LEAST_SECONDS:
            marks.append(sample)
    if len(marks) > 1:
        marks[-1] = track.samples[-1]
    return marks


def _until_the_last(levels: Sequence[Level]) -> tuple[Level, ...]:
    """A disk that is across is told of until all are: its mean is not over that time."""
    last = max((place for place, level in enumerate(levels) if level.rate > 0), default=-1)
    return tuple(levels[:last + 1])


def _rates(track: Track, before: Sample, sample: Sample) -> Iterator[tuple[Kind, str, float]]:
    """What crossed between two samples, in bytes per second."""
    seconds = sample.at - before.at
    crossed = max(0, sample.done - before.done)
    if track.command is Command.COPY_DISK_FILE:
        yield Kind.FILES, "", crossed / seconds
    elif sample.memory is not None:
        for disk in before.disks:
            # The memory begins when all disks are across, so this is the rest of each.
            rest = min(crossed, max(0, disk.total - disk.done))
            crossed -= rest
            yield Kind.DISK, disk.target, rest / seconds
        yield Kind.MEMORY, "", crossed / seconds
        if sample.memory.dirty_rate is not None:
            yield Kind.DIRTY, "", float(sample.memory.dirty_rate)
    elif sample.disks:
        done = {disk.target: disk.done for disk in before.disks}
        for disk in sample.disks:
            yield Kind.DISK, disk.target, max(0, disk.done - done.get(disk.target, 0)) / seconds
    else:
        yield Kind.DISK, "", crossed / seconds


# What is drawn.


@dataclass(frozen=True)
class Band:
    """One series as it is drawn: a mean rate for each bucket of time, 0 where it was not told."""

    series: Series
    rates: tuple[float, ...]


def edges_of(series: Iterable[Series], limit: int) -> tuple[float, ...]:
    """The times between which each series is one level: their own, or so many of equal distance at most."""
    times = sorted({time for each in series for level in each.levels for time in (level.began, level.ended)})
    if len(times) <= limit + 1:
        return tuple(times)
    first, last = times[0], times[-1]
    return tuple(first + (last - first) * number / limit for number in range(limit + 1))


def band(series: Series, edges: Sequence[float]) -> Band:
    """The mean of a series in each bucket."""
    times, carried = [series.levels[0].began], [0.0]
    for level in series.levels:
        if level.began > times[-1]:
            times.append(level.began)
            carried.append(carried[-1])
        times.append(level.ended)
        carried.append(carried[-1] + level.rate * (level.ended - level.began))
    counts = [_at(times, carried, edge) for edge in edges]
    return Band(series, tuple(
        (later - earlier) / (ended - began)
        for earlier, later, began, ended in zip(counts, counts[1:], edges, edges[1:])))


def _at(times: Sequence[float], carried: Sequence[float], time: float) -> float:
    """How much had been carried at a time, between two counts in proportion."""
    place = bisect.bisect_right(times, time)
    if place == 0 or place == len(times):
        return carried[min(place, len(times) - 1)]
    began, ended = times[place - 1], times[place]
    return carried[place - 1] + (carried[place] - carried[place - 1]) * (time - began) / (ended - began)


def fewer(series: Sequence[Series], limit: int, name_of_rest: str) -> tuple[Series, ...]:
    """At most so many: of more, those that carried least are one, with a name of its own."""
    if len(series) <= limit:
        return tuple(series)
    largest = sorted(series, key=lambda each: -each.bytes)[:limit - 1]
    rest = [each for each in series if each not in largest]
    return (*(each for each in series if each in largest), together(rest, name_of_rest))


def together(series: Sequence[Series], name: str) -> Series:
    """The sum of some."""
    edges = edges_of(series, len([level for each in series for level in each.levels]) * 2)
    sums = [sum(rates) for rates in zip(*(band(each, edges).rates for each in series))]
    levels = (Level(began, ended, rate) for began, ended, rate in zip(edges, edges[1:], sums))
    return Series(series[0].kind, name, tuple(levels))


# The passes over the memory.


@dataclass(frozen=True)
class Pass:
    """One pass over the guest's memory. Seconds since the run began, bytes, bytes per second, milliseconds."""

    number: int
    began: float
    ended: float
    sent: int
    left: int
    """When it was last told of."""
    dirty_rate: int | None
    downtime_limit: int
    post_copy: bool

    @property
    def rate(self) -> float:
        """Its mean; 0 while there is too little to tell."""
        seconds = self.ended - self.began
        return self.sent / seconds if seconds >= _LEAST_SECONDS else 0.0


def passes_of(recording: Recording, source: str) -> tuple[Pass, ...]:
    """The passes that a recording tells of, in their order; those between two samples are not known."""
    found: dict[int, Pass] = {}
    for track in recording.tracks:
        if (track.command, track.host) != (Command.LIVE_MIGRATION, source):
            continue
        before = _first(recording, track)
        for sample in (sample for sample in track.samples if sample.at >= before.at):
            memory = sample.memory
            if memory is not None:
                known = found.get(memory.passes)
                crossed = max(0, sample.done - before.done - _disk_rest(before.disks))
                found[memory.passes] = Pass(
                    number=memory.passes, began=known.began if known is not None else before.at, ended=sample.at,
                    sent=crossed + (known.sent if known is not None else 0), left=memory.left,
                    dirty_rate=memory.dirty_rate, downtime_limit=memory.downtime_limit, post_copy=memory.post_copy)
            before = sample
    return tuple(found[number] for number in sorted(found))


def _disk_rest(disks: Sequence[DiskProgress]) -> int:
    return sum(max(0, disk.total - disk.done) for disk in disks)


def crossed_bytes(recording: Recording, source: str) -> int:
    """What had crossed when the source was last heard of."""
    return sum(track.samples[-1].done for track in recording.tracks if track.host == source and track.samples)
