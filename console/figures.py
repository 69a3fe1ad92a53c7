"""How bytes, rates and times are written for a person, and what is known of a step that runs, from its counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from console.language import listed, readable, translate
from constant import Command
from wire.records import DiskProgress, Progress

_RATE_WINDOW_SECONDS = 5.0
# Before that the rate says more about the start than about what is to come.
_ESTIMATE_AFTER_SECONDS = 2.0


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 12 s, 3:05 min, 1:02:30 h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} h"


def percent(progress: Progress, shown: int) -> int:
    """How much is done, never less than was shown before, and never 100: only the step's end is that."""
    return max(shown, min(99, 100 * progress.done // progress.total if progress.total else 0))


class RateMeter:
    """The rate of the last seconds, from cumulative counts."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """Take one count, in bytes at a time in seconds."""
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()

    def rate(self) -> float:
        """Bytes per second; 0 while there is too little to tell."""
        if not self._samples:
            return 0.0
        (first, begun), (last, done) = self._samples[0], self._samples[-1]
        return max(0.0, (done - begun) / (last - first)) if last - first >= _ESTIMATE_AFTER_SECONDS else 0.0

    def stalled(self) -> bool:
        """Whether nothing came for as long as the window is."""
        if not self._samples:
            return False
        (first, begun), (last, done) = self._samples[0], self._samples[-1]
        return done == begun and last - first >= _RATE_WINDOW_SECONDS - 1


@dataclass(frozen=True)
class Running:
    """A step that runs, as it is at one moment: seconds since it began, what it told last, bytes per second."""

    command: Command
    host: str
    seconds: float
    progress: Optional[Progress] = None
    percent: int = 0
    """The most that was shown so far."""
    rate: float = 0.0
    """0 while there is too little to tell."""
    stalled: bool = False
    silent: float = 0.0
    """How long ago that was, in seconds."""
    disk_rates: Mapping[str, float] = field(default_factory=dict)
    """By target, as above."""

    @property
    def seconds_left(self) -> Optional[float]:
        """As far as that is known; what the guest writes to its memory meanwhile has to cross as well."""
        if self.progress is None or not self.progress.total:
            return None
        memory = self.progress.memory
        written = (memory.dirty_rate or 0) if memory is not None and not memory.post_copy else 0
        gained = self.rate - written
        return (self.progress.total - self.progress.done) / gained if gained > 0 else None

    def disk_rate(self, disk: DiskProgress) -> float:
        """Bytes per second; 0 while there is too little to tell."""
        return self.disk_rates.get(disk.target, 0.0)


class StepMeter:
    """What one step tells of itself, added up."""

    def __init__(self, command: Command, host: str, now: float) -> None:
        self.command, self.host = command, host
        self._began = now
        self._meter = RateMeter()
        self._disks: dict[str, RateMeter] = {}
        self._percent = 0
        self._progress: Optional[Progress] = None
        self._heard = now

    def add(self, now: float, progress: Progress) -> None:
        """Take one report, at a time in seconds."""
        self._progress, self._heard = progress, now
        self._percent = percent(progress, self._percent)
        self._meter.add(now, progress.done)
        for disk in progress.disks:
            self._disks.setdefault(disk.target, RateMeter()).add(now, disk.done)

    def at(self, now: float) -> Running:
        """How it is at that time."""
        return Running(
            self.command, self.host, now - self._began, self._progress, self._percent, self._meter.rate(),
            self._meter.stalled(), now - self._heard, {target: meter.rate() for target, meter in self._disks.items()})


def disk_percent(disk: DiskProgress) -> int:
    """How much of it is there; what the guest goes on writing is never all there."""
    return min(99, 100 * disk.done // disk.total) if disk.total else 0


def disks_text(running: Running, disks: Sequence[DiskProgress]) -> str:
    """Each disk with percent and rate, such as `vda 45 % 120 MiB/s`."""
    return listed(
        f"{disk.target} {disk_percent(disk)} %" + (f" {size(rate)}/s" if (rate := running.disk_rate(disk)) else "")
        for disk in disks)


def amount_text(done: int, total: int) -> str:
    """How many bytes of how many."""
    return translate("{done} of {total}").format(done=size(done), total=size(total))


def left_text(seconds: float) -> str:
    """How long it takes from now on."""
    return translate("{time} left").format(time=duration(seconds))


def progress_text(running: Running) -> str:
    """One line: phase, percent, bytes, rate and time left, as far as they are known; several disks each."""
    progress = running.progress
    if progress is None:
        return ""
    phase = readable(progress.phase)
    if not progress.total:
        return phase
    parts = [f"{phase} {running.percent}%", amount_text(progress.done, progress.total)]
    if running.rate > 0:
        parts.append(f"{size(running.rate)}/s")
    if running.seconds_left is not None:
        parts.append(left_text(running.seconds_left))
    if running.stalled:
        parts.append(translate("nothing is moving"))
    if len(progress.disks) > 1:
        parts.append(disks_text(running, progress.disks))
    return listed(parts)
