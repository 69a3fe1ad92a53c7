"""Decides what is done about a guest that writes while it is copied: wait, allow a longer pause, switch to post-copy,
pause it, give up. No clock, no libvirt: it is fed libvirt's statistics with the time and says what to do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from constant import DOWNTIME_FIRST, DOWNTIME_OF_QEMU, OnTimeout
from host.job_statistics import JobStatistics
from wire.phrase import Phrase, template
from wire.records import Convergence, MemoryProgress

_MIB = 1024 * 1024
# So many passes, of which none begins with less than this part of the smallest one before them, get nowhere. One alone
# says nothing, as a guest's writing comes in bursts; it is enough for a pause that QEMU would have allowed by itself.
_PATIENCE = 2
_SHRINKS = 0.9
# With auto-converge QEMU looks at two passes before it slows the guest down a step more (measured: every second pass,
# by 10 %), so one more tells whether it still will.
_THROTTLE_PASSES = 3
# What crosses, averaged over so long: QEMU's own figure is that of the last tenth of a second (measured 4 to 45 MB/s on
# a link of 37).
_RATE_SECONDS = 5.0
_RATE_LEAST_SECONDS = 1.0
# Figures that are nearly the same are not told as the reason.
_CLEARLY = 1.1
# The pause is raised by this factor, or to what the smallest of the last passes would have needed and a margin.
_STEP = 1.5
_MARGIN = 1.1
_LAST_PASSES = 3
# In so many seconds at least this part of what crosses has to be a gain on the disks, or they do not catch up: the
# rest is what the guest has written again meanwhile.
_DISK_WINDOW_SECONDS = 10.0
_DISK_GAINS = 0.05
_DISK_RATE_SECONDS = 2.0
# While disks are mirrored a guest is paused only if they are nearly across: it would stand still for all of it.
_SUSPEND_DISK_SECONDS = 10.0
# By whether it is the first pass no more, the pause was raised, the guest was slowed down. Whole sentences: another
# language may have another order.
_COPYING_MEMORY = {
    (False, False, False): template("copying memory"),
    (True, False, False): template("copying memory, pass {pass}"),
    (False, True, False): template("copying memory, downtime raised to {limit} ms"),
    (True, True, False): template("copying memory, pass {pass}, downtime raised to {limit} ms"),
    (False, False, True): template("copying memory, guest slowed down by {percent} %"),
    (True, False, True): template("copying memory, pass {pass}, guest slowed down by {percent} %"),
    (False, True, True): template("copying memory, downtime raised to {limit} ms, guest slowed down by {percent} %"),
    (True, True, True): template(
        "copying memory, pass {pass}, downtime raised to {limit} ms, guest slowed down by {percent} %"),
}


class Stage(Enum):
    """How the guest gets across, as far as that was decided."""

    COPYING = "copying"
    PAUSED = "paused"
    POST_COPY = "post-copy"


class Remedy(Enum):
    """What is to be done to the migration now."""

    NONE = "none"
    SET_DOWNTIME = "set the downtime"
    SUSPEND = "pause the guest"
    START_POST_COPY = "start post-copy"
    ABORT = "end the migration"


@dataclass(frozen=True)
class Advice:
    """What is to be done now, and what there is to tell."""

    remedy: Remedy = Remedy.NONE
    downtime: int = 0
    """The new limit in milliseconds, for SET_DOWNTIME."""
    news: str | None = None
    """A sentence for the log, once for each change."""


class ConvergenceControl:
    """Follows one migration. Whoever does what look() advises tells it by did(); what fails is advised again."""

    def __init__(self, wanted: Convergence, timeout: int) -> None:
        self._wanted = wanted
        self._timeout = timeout
        self.stage = Stage.COPYING
        self.downtime_limit = DOWNTIME_OF_QEMU
        self._limited = False
        self.passes = 0
        self._statistics: JobStatistics | None = None
        self._sizes: deque[int] = deque(maxlen=_LAST_PASSES)
        """What the last passes began with, in bytes."""
        self._judged: deque[int] = deque()
        """Those of them that are compared with the smallest one before, none of which was under another limit."""
        self._smallest_before: int | None = None
        self._this_pass = 0
        self._throttle = 0
        self._throttled_in = 2
        """The pass in which it was slowed down last; 2 because the first ones cannot tell."""
        self._stuck = False
        self._trouble = Phrase("")
        self._disks = _DiskWindow()
        self._sent: deque[tuple[float, int]] = deque()
        self._timed_out = False

    # What is done.

    def look(self, statistics: JobStatistics | None, seconds: float) -> Advice:
        """What to do, `seconds` after the migration began, given its statistics; None if libvirt has none."""
        self._timed_out = bool(self._timeout) and seconds > self._timeout
        self._statistics = statistics
        new_pass = statistics is not None and self._follow(statistics, seconds)
        for advice in (self._at_timeout(), self._post_copy(), self._first_limit(), self._raise(new_pass)):
            if advice.remedy is not Remedy.NONE:
                return advice
        return Advice(news=self._news(new_pass))

    def did(self, advice: Advice) -> None:
        """What was advised has been done."""
        if advice.remedy is Remedy.SET_DOWNTIME:
            self.downtime_limit = advice.downtime
            self._limited = True
            self._judge_anew()
        elif advice.remedy is Remedy.SUSPEND:
            self.stage = Stage.PAUSED
        elif advice.remedy is Remedy.START_POST_COPY:
            self.stage = Stage.POST_COPY

    def _follow(self, statistics: JobStatistics, seconds: float) -> bool:
        """Take in the figures; whether a pass has ended since the last ones, which says something only then."""
        if statistics.mirroring:
            self._disks.add(seconds, statistics)
            return False
        self._sent.append((seconds, statistics.memory_done))
        while seconds - self._sent[0][0] > _RATE_SECONDS:
            self._sent.popleft()
        ended = statistics.passes > self.passes >= 1
        if ended:
            self._end_pass(statistics)
        self.passes = max(self.passes, statistics.passes)
        # The downtime that QEMU expects is that of what the pass began with, part of which has crossed since.
        expected = (statistics.downtime or 0) * (statistics.rate or 0) // 1000
        self._this_pass = max(statistics.memory_left, expected)
        return ended

    def _end_pass(self, statistics: JobStatistics) -> None:
        """Judge the pass that has ended. The first one is all of the memory: it says nothing."""
        if self.passes < 2:
            return
        if statistics.throttle > self._throttle:
            self._throttle, self._throttled_in = statistics.throttle, statistics.passes
        if len(self._judged) == self._patience():
            self._smallest_before = self._smallest(self._judged.popleft())
        self._judged.append(self._this_pass)
        self._sizes.append(self._this_pass)

    def _judge_anew(self) -> None:
        if self._judged:
            self._smallest_before = self._smallest(*self._judged)
            self._judged.clear()

    def _smallest(self, *sizes: int) -> int:
        return min(*sizes, sizes[0] if self._smallest_before is None else self._smallest_before)

    def _below_qemus(self) -> bool:
        """Whether the pause may still be raised to one that QEMU would have allowed by itself."""
        return self.downtime_limit < min(DOWNTIME_OF_QEMU, self._wanted.max_downtime)

    def passes_are_short(self) -> bool:
        """Whether several may go by in half a second, so that each look may bring the last one to an end.

        While a shorter pause is tried than QEMU's own: a guest that rewrote 16 MiB took 250 MiB instead of 177 to get
        across, as each pass that was noticed too late crossed for nothing (measured at 1 Gbit/s).
        """
        copies = self._statistics is not None and not self._statistics.mirroring and self.passes >= 1
        return copies and self.stage is Stage.COPYING and self._below_qemus()

    def _patience(self) -> int:
        return 1 if self._below_qemus() else _PATIENCE

    def _gets_nowhere(self) -> bool:
        """Whether the passes do not become smaller any more."""
        before = self._smallest_before
        slowed = self._wanted.auto_converge and not self._below_qemus()
        if slowed and self.passes - self._throttled_in < _THROTTLE_PASSES:
            # A guest that is being slowed down more and more has not been slowed down enough yet.
            return False
        return before is not None and len(self._judged) == self._patience() and min(self._judged) >= before * _SHRINKS

    def _rate(self) -> float:
        """Bytes of memory per second that cross; 0 if that is not known."""
        if self._sent and self._sent[-1][0] - self._sent[0][0] >= _RATE_LEAST_SECONDS:
            (began, first), (ended, last) = self._sent[0], self._sent[-1]
            return (last - first) / (ended - began)
        return (self._statistics.rate if self._statistics is not None else None) or 0

    def _needed(self) -> float:
        """The pause that the smallest of the last passes would have taken, in milliseconds."""
        rate = self._rate()
        return min(self._sizes, default=0) * 1000 / rate if rate else 0

    def _at_timeout(self) -> Advice:
        if not self._timed_out or self.stage is not Stage.COPYING:
            return Advice()
        wanted = self._wanted.on_timeout
        if wanted is OnTimeout.ABORT:
            return Advice(Remedy.ABORT)
        if wanted is OnTimeout.SUSPEND and self._may_suspend():
            return Advice(Remedy.SUSPEND, news=f"paused after {self._timeout} s, so that the rest can cross")
        if wanted is OnTimeout.POST_COPY and self._copies_memory():
            return Advice(Remedy.START_POST_COPY, news=f"switching to post-copy after {self._timeout} s")
        return Advice()

    def _post_copy(self) -> Advice:
        """QEMU switches only once memory is being copied; one whole pass is the least that goes over beforehand."""
        if self._wanted.post_copy and self.stage is Stage.COPYING and self.passes >= 2 and self._statistics:
            return Advice(Remedy.START_POST_COPY, news="one pass was not enough, switching to post-copy")
        return Advice()

    def _first_limit(self) -> Advice:
        """A shorter pause than QEMU begins with is tried first. In the middle of a migration only the cap holds."""
        if self._statistics is None or self._limited:
            return Advice()
        # Post-copy begins after a single pass: a guest that would fit by then needs none.
        tries = self.passes <= 1 and not self._wanted.post_copy
        first = min(self._wanted.max_downtime, DOWNTIME_FIRST if tries else DOWNTIME_OF_QEMU)
        return Advice(Remedy.SET_DOWNTIME, first) if first < self.downtime_limit else Advice()

    def _raise(self, new_pass: bool) -> Advice:
        cap = self._wanted.max_downtime
        if not new_pass or self.stage is not Stage.COPYING or not self._gets_nowhere():
            return Advice()
        highest = min(cap, DOWNTIME_OF_QEMU) if self._below_qemus() else cap
        limit = min(highest, round(max(self.downtime_limit * _STEP, self._needed() * _MARGIN)))
        if limit <= self.downtime_limit:
            return Advice()
        return Advice(Remedy.SET_DOWNTIME, limit, news=(
            f"pass {self.passes} is no smaller than those before: the guest may stand still for {limit} ms now, "
            f"at most {cap} ms"))

    def _copies_memory(self) -> bool:
        return self._statistics is not None and self._statistics.memory_total > 0

    def _may_suspend(self) -> bool:
        """Whether a pause helps now: not for the length of a disk that is still to cross and does so by itself."""
        return self._copies_memory() or self._disks.stuck or self._disks.seconds_left() < _SUSPEND_DISK_SECONDS

    # What is told.

    def _news(self, new_pass: bool) -> str | None:
        """Once when it turns out that it will not end, and once when it gets on again after all."""
        was, self._stuck = self._stuck, self._will_not_end(new_pass)
        if self._stuck and (new_pass or not was):
            self._trouble = self._name_trouble()
        if self._stuck and not was:
            return f"it {self._trouble}. {self._remedies()}"
        return "it gets on again" if was and not self._stuck and self.stage is Stage.COPYING else None

    def _will_not_end(self, new_pass: bool) -> bool:
        if self.stage is not Stage.COPYING or self._statistics is None:
            return False
        if self._statistics.mirroring:
            return self._disks.stuck
        if not new_pass:
            return self._stuck and self.passes > 1
        return self.downtime_limit >= self._wanted.max_downtime and self._gets_nowhere()

    def _name_trouble(self) -> Phrase:
        """What is wrong, in no more than Progress has room for."""
        found = self._statistics
        if found is None or found.mirroring:
            return Phrase("does not converge: the guest writes its disks as fast as they cross, {rate}", {
                "rate": self._disks.rate()})
        rate, dirty_rate = self._rate(), found.dirty_rate or 0
        if dirty_rate > rate * _CLEARLY:
            return Phrase("does not converge: the guest writes {written}, the link carries {rate}", {
                "written": _text(dirty_rate), "rate": _text(rate)})
        return Phrase("does not converge: what each pass leaves takes {needed} ms, {allowed} ms are allowed", {
            "needed": f"{self._needed():.0f}", "allowed": str(self._wanted.max_downtime)})

    def _remedies(self) -> str:
        """What the admin could have asked for, or can the next time."""
        wanted, mirroring = self._wanted, self._statistics is None or self._statistics.mirroring
        options = (
            ("--synchronous-writes", mirroring and not wanted.synchronous_writes),
            ("--auto-converge", not mirroring and not wanted.auto_converge),
            ("--post-copy", not mirroring and not wanted.may_post_copy),
            ("--timeout S --on-timeout suspend", wanted.on_timeout is not OnTimeout.SUSPEND),
        )
        needed = "" if mirroring else (
            f"The guest would have to stand still for about {self._needed() * _MARGIN:.0f} ms, "
            f"--max-downtime allows {wanted.max_downtime} ms. ")
        helps = ["a faster link or more --bandwidth", "a quieter hour", *(option for option, fits in options if fits)]
        return f"{needed}What helps: {', '.join(helps)}"

    def phase(self) -> Phrase:
        """What goes on, for Progress."""
        statistics = self._statistics
        if self.stage is Stage.POST_COPY:
            return Phrase("post-copy: the guest runs on the destination, the rest of its memory follows")
        if self.stage is Stage.PAUSED:
            return Phrase("guest paused after {seconds} s, copying the rest", {"seconds": str(self._timeout)})
        if statistics is None or not (statistics.disk_done or statistics.memory_done or statistics.disk_left):
            return Phrase("connecting to the destination")
        if self._stuck:
            return self._trouble
        if statistics.mirroring:
            if not self._timed_out or self._wanted.on_timeout is OnTimeout.ABORT:
                return Phrase("copying the disk")
            return Phrase("copying the disk, then {action} (time-out)", {"action": self._wanted.on_timeout.value})
        raised = self._limited and self.downtime_limit > DOWNTIME_FIRST
        slowed = statistics.throttle > 0
        return Phrase(_COPYING_MEMORY[self.passes > 1, raised, slowed], {
            "pass": str(self.passes), "limit": str(self.downtime_limit), "percent": str(statistics.throttle)})

    def memory(self) -> MemoryProgress | None:
        """The figures of the pass that goes on; None if there is none."""
        found = self._statistics
        if found is None or not found.passes:
            return None
        return MemoryProgress(
            passes=found.passes, left=found.memory_left, rate=round(self._rate()), dirty_rate=found.dirty_rate,
            downtime_limit=self.downtime_limit, post_copy=self.stage is Stage.POST_COPY)


def _text(rate: float) -> str:
    return f"{rate / _MIB:.0f} MiB/s"


class _DiskWindow:
    """Whether the disks catch up with what the guest writes to them, judged once in _DISK_WINDOW_SECONDS."""

    def __init__(self) -> None:
        self._began: tuple[float, JobStatistics] | None = None
        self._carried = 0.0
        self._left = 0
        self.stuck = False

    def add(self, seconds: float, statistics: JobStatistics) -> None:
        """Take one look at the figures."""
        self._left = statistics.disk_left
        self._began = self._began or (seconds, statistics)
        began, first = self._began
        passed, carried = seconds - began, statistics.disk_done - first.disk_done
        if passed >= _DISK_RATE_SECONDS:
            self._carried = carried / passed
        if passed >= _DISK_WINDOW_SECONDS:
            # Where nothing crosses at all, it is not the guest that is in the way.
            self.stuck = carried > 0 and first.disk_left - statistics.disk_left < carried * _DISK_GAINS
            self._began = (seconds, statistics)

    def rate(self) -> str:
        """What the link carries."""
        return _text(self._carried)

    def seconds_left(self) -> float:
        """How long the rest takes as things are; endless while that is not known."""
        return self._left / self._carried if self._carried else float("inf")
