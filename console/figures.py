"""How bytes, rates and times are written for a person, and how a rate is found from counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

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
        (first, begun), (last, done) = self._samples[0], self._samples[-1]
        return max(0.0, (done - begun) / (last - first)) if last - first >= _ESTIMATE_AFTER_SECONDS else 0.0

    def stalled(self) -> bool:
        """Whether nothing came for as long as the window is."""
        (first, begun), (last, done) = self._samples[0], self._samples[-1]
        return done == begun and last - first >= _RATE_WINDOW_SECONDS - 1


class DiskMeters:
    """The rate of each disk's mirror."""

    def __init__(self) -> None:
        self._meters: dict[str, RateMeter] = {}

    def add(self, now: float, disks: Sequence[DiskProgress]) -> None:
        """Take one count of each."""
        for disk in disks:
            self._meters.setdefault(disk.target, RateMeter()).add(now, disk.done)

    def rate(self, disk: DiskProgress) -> float:
        """Bytes per second; 0 while there is too little to tell."""
        meter = self._meters.get(disk.target)
        return meter.rate() if meter is not None else 0.0

    def text(self, disks: Sequence[DiskProgress]) -> str:
        """Each disk with percent and rate, such as `vda 45 % 120 MiB/s`."""
        return ", ".join(
            f"{disk.target} {disk_percent(disk)} %" + (f" {size(rate)}/s" if (rate := self.rate(disk)) else "")
            for disk in disks)


def disk_percent(disk: DiskProgress) -> int:
    """How much of it is there; what the guest goes on writing is never all there."""
    return min(99, 100 * disk.done // disk.total) if disk.total else 0


def progress_text(progress: Progress, shown_percent: int, meter: RateMeter, disks: DiskMeters | None = None) -> str:
    """One line: phase, percent, bytes, rate and time left, as far as they are known; several disks each."""
    if not progress.total:
        return progress.phase
    parts = [f"{progress.phase} {shown_percent}%", f"{size(progress.done)} of {size(progress.total)}"]
    rate = meter.rate()
    if rate > 0:
        parts += [f"{size(rate)}/s", f"{duration((progress.total - progress.done) / rate)} left"]
    elif meter.stalled():
        parts.append("nothing is moving")
    if disks is not None and len(progress.disks) > 1:
        parts.append(disks.text(progress.disks))
    return ", ".join(parts)
