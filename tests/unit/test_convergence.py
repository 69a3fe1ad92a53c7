"""What is done about a guest that writes while it is copied, on series of statistics: recorded ones and a model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import DOWNTIME_CAP, DOWNTIME_FIRST, DOWNTIME_OF_QEMU, OnTimeout
from host.job_statistics import JobStatistics
from steps.convergence import Advice, ConvergenceControl, Remedy, Stage
from tests.unit.samples import MIGRATION
from wire.records import Convergence, MemoryProgress, Migration
from wire.schema import from_wire, to_wire

MIB = 1 << 20
PAGE = 4096
PLAIN = Convergence()
LOOK_SECONDS = 0.5
SHORT_LOOK_SECONDS = 0.1

# A guest of 192 MiB that rewrites 48 MiB, on a link of 300 Mbit/s: seconds, pass, sent, left, bytes per second, pages
# dirtied per second, expected downtime; QEMU 7.2, libvirt 9.0, 24 November 2026. It converged by itself after pass 8.
RECORDED = (
    (4.1, 1, 5587718, 195301376, 0, 0, 300), (4.62, 1, 25012654, 171892736, 35549756, 0, 300),
    (5.16, 1, 43083882, 145829888, 35688824, 0, 300), (5.75, 1, 63345402, 125607936, 34843470, 0, 300),
    (6.27, 1, 81455123, 50343936, 36936202, 0, 300), (6.78, 1, 97752183, 34062336, 31209152, 0, 300),
    (7.29, 2, 116972710, 57360384, 37940542, 3693, 300), (8.18, 2, 146334546, 27303936, 34240686, 3693, 1679),
    (8.7, 2, 162779330, 10891264, 27079065, 3693, 2123), (9.21, 3, 181690681, 37511168, 34403811, 7707, 1551),
    (9.83, 3, 200762025, 18477056, 32892617, 7707, 1623), (10.35, 4, 219702041, 38154240, 34650754, 7256, 1388),
    (10.87, 4, 237164672, 20697088, 33870652, 7256, 1420), (11.39, 5, 255312608, 39579648, 34872861, 7713, 1311),
    (11.91, 5, 272803904, 22122496, 34039270, 7713, 1343), (12.42, 6, 290656424, 25149440, 35794863, 5006, 871),
    (12.94, 7, 308238098, 20738048, 35552556, 5006, 877), (13.46, 8, 325598066, 8986624, 37112466, 4466, 397),
)


def memory(
    *, passes: int, left: int, sent: int, rate: int | None = None, dirty_rate: int | None = None,
    downtime: int | None = None, throttle: int = 0,
) -> JobStatistics:
    """The statistics of a migration that copies memory."""
    return JobStatistics(
        disk_done=100, disk_total=100, memory_done=sent, memory_total=192 * MIB, passes=passes, memory_left=left,
        rate=rate, dirty_rate=dirty_rate, downtime=downtime, throttle=throttle)


@dataclass
class Guest:
    """QEMU's way of copying memory, and a guest that writes `working_set(pass)` bytes again and again in each pass."""

    rate: int
    working_set: Callable[[int], int]
    memory: int = 192 * MIB
    tells: bool = True
    """Whether QEMU tells the downtime that it expects and the dirty rate."""
    now: float = 0.0
    limit: int = DOWNTIME_OF_QEMU
    passes: int = 1
    sent: int = 0
    left: int = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.size = self.memory

    def run(self, control: ConvergenceControl, seconds: float = 120.0) -> Iterator[Advice]:
        """Copy until it is over or time is up; what was advised at each look, which is done."""
        while self.now < seconds:
            look_seconds = SHORT_LOOK_SECONDS if control.passes_are_short() else LOOK_SECONDS
            if self._copy(look_seconds):
                return
            self.now += look_seconds
            advice = control.look(self._statistics(), self.now)
            control.did(advice)
            if advice.remedy is Remedy.SET_DOWNTIME:
                self.limit = advice.downtime
            if advice.remedy in (Remedy.START_POST_COPY, Remedy.SUSPEND):
                self.working_set = lambda _number: 0
            yield advice

    def _copy(self, seconds: float) -> bool:
        """Copy for so long; whether it has switched over."""
        budget = int(self.rate * seconds)
        while budget > 0:
            if self.left <= self.rate * self.limit // 1000:
                self.passes, self.size = self.passes + 1, self.working_set(self.passes + 1)
                self.left = self.size
                if self.left <= self.rate * self.limit // 1000:
                    return True
            crossed = min(budget, self.left)
            self.left, self.sent, budget = self.left - crossed, self.sent + crossed, budget - crossed
        return False

    def _statistics(self) -> JobStatistics:
        statistics = memory(passes=self.passes, left=self.left, sent=self.sent, rate=self.rate)
        if not self.tells:
            return dataclasses.replace(statistics, rate=None)
        expected = self.size * 1000 // self.rate if self.passes > 1 else DOWNTIME_OF_QEMU
        return dataclasses.replace(statistics, downtime=expected, dirty_rate=self.rate * 2)


def constantly(size: int) -> Callable[[int], int]:
    """A guest that writes the same amount in each pass."""
    return lambda _number: size


def under_way(wanted: Convergence = PLAIN, timeout: int = 0) -> ConvergenceControl:
    """One that has tried a shorter pause than QEMU begins with, to no avail."""
    control = ConvergenceControl(wanted, timeout)
    control.did(Advice(Remedy.SET_DOWNTIME, min(DOWNTIME_OF_QEMU, wanted.max_downtime)))
    return control


def limits(advised: list[Advice]) -> list[int]:
    """The downtimes that were set, in order."""
    return [advice.downtime for advice in advised if advice.remedy is Remedy.SET_DOWNTIME]


def news(advised: list[Advice]) -> list[str]:
    """What was told."""
    return [advice.news for advice in advised if advice.news]


# The downtime.


def test_a_guest_that_does_not_fit_into_the_pause_that_is_tried_first_crosses_at_most_twice_more_than_it_must() -> None:
    # Of 16 MiB of memory and what belongs to 64 MiB of disk, on a link of 1 Gbit/s.
    guest = Guest(rate=110 * MIB, working_set=constantly(30 * MIB), memory=94 * MIB)
    control = ConvergenceControl(PLAIN, 0)
    assert list(guest.run(control))
    assert DOWNTIME_FIRST < guest.limit <= DOWNTIME_OF_QEMU
    assert guest.sent <= (94 + 3 * 30) * MIB


def test_passes_count_as_short_only_while_memory_crosses_and_a_shorter_pause_than_qemus_is_tried() -> None:
    control = ConvergenceControl(PLAIN, 0)
    assert not control.passes_are_short()
    short = []
    for statistics in (None, JobStatistics(50, 100, 0, 0), memory(passes=1, left=MIB, sent=MIB)):
        control.did(control.look(statistics, 1.0))
        short.append(control.passes_are_short())
    assert (short, control.downtime_limit) == ([False, False, True], DOWNTIME_FIRST)
    control.did(Advice(Remedy.SET_DOWNTIME, DOWNTIME_OF_QEMU))
    assert not control.passes_are_short()


def test_a_recorded_migration_that_converges_by_itself_is_given_no_longer_pause_than_qemu_begins_with() -> None:
    control = ConvergenceControl(Convergence(), 0)
    advised = []
    for seconds, number, sent, left, rate, pages, expected in RECORDED:
        statistics = memory(
            passes=number, left=left, sent=sent, rate=rate or None, dirty_rate=pages * PAGE, downtime=expected)
        advice = control.look(statistics, seconds)
        control.did(advice)
        advised.append(advice)
    assert limits(advised) == [DOWNTIME_FIRST, DOWNTIME_OF_QEMU]
    assert len(news(advised)) == 1
    assert control.passes == 8


def test_a_guest_whose_passes_shrink_is_never_given_a_longer_pause() -> None:
    guest = Guest(50 * MIB, lambda number: 160 * MIB // 2**number)
    control = ConvergenceControl(Convergence(), 0)
    advised = list(guest.run(control))
    assert guest.now < 10.0
    assert (limits(advised), news(advised), control.downtime_limit) == (
        [DOWNTIME_FIRST], [], DOWNTIME_FIRST)


def test_passes_that_shrink_by_next_to_nothing_are_not_waited_for() -> None:
    guest = Guest(50 * MIB, lambda number: int(40 * MIB * 0.97**number))
    assert len(limits(list(guest.run(ConvergenceControl(Convergence(), 0))))) == 3
    assert guest.now < 12.0


def test_a_slow_first_pass_raises_nothing() -> None:
    guest = Guest(MIB, constantly(0), memory=100 * MIB)
    assert limits(list(guest.run(ConvergenceControl(Convergence(), 0)))) == [DOWNTIME_FIRST]
    assert guest.now >= 99.0


def test_a_guest_that_needs_800_ms_gets_what_it_needs_and_a_tenth_and_moves() -> None:
    guest = Guest(50 * MIB, constantly(40 * MIB))
    advised = list(guest.run(ConvergenceControl(Convergence(), 0)))
    assert limits(advised) == [DOWNTIME_FIRST, DOWNTIME_OF_QEMU, 880]
    assert guest.now < 12.0
    assert "the guest may stand still for 880 ms now, at most 2000 ms" in news(advised)[1]


def test_a_pause_that_is_nearly_long_enough_is_raised_by_half() -> None:
    guest = Guest(50 * MIB, constantly(16 * MIB))
    assert limits(list(guest.run(ConvergenceControl(Convergence(), 0)))) == [
        DOWNTIME_FIRST, DOWNTIME_OF_QEMU, 450]


def test_a_guest_that_never_converges_gets_the_cap_and_is_told_of_once() -> None:
    guest = Guest(60 * MIB, constantly(180 * MIB))
    control = ConvergenceControl(Convergence(), 0)
    advised = list(guest.run(control))
    assert limits(advised) == [DOWNTIME_FIRST, DOWNTIME_OF_QEMU, DOWNTIME_CAP]
    told = [words for words in news(advised) if "does not converge" in words]
    assert len(told) == 1
    assert "the guest writes 120 MiB/s, the link carries 60 MiB/s" in told[0]
    assert "stand still for about 3300 ms, --max-downtime allows 2000 ms" in told[0]
    for option in ("--auto-converge", "--post-copy", "--timeout S --on-timeout suspend"):
        assert option in told[0]
    assert control.phase() == "does not converge: the guest writes 120 MiB/s, the link carries 60 MiB/s"


def test_where_the_link_carries_more_than_the_guest_writes_the_pause_is_what_is_told() -> None:
    control = under_way(Convergence(max_downtime=300))
    for advice in (guest := Guest(60 * MIB, constantly(60 * MIB))).run(control, 30.0):
        assert advice.remedy is Remedy.NONE
    slower = dataclasses.replace(guest._statistics(), dirty_rate=MIB, passes=guest.passes + 1)
    control.look(slower, guest.now + LOOK_SECONDS)
    assert control.phase().startswith("does not converge: what each pass leaves takes ")
    assert control.phase().endswith(" ms, 300 ms are allowed")


def test_options_that_were_given_are_not_recommended() -> None:
    wanted = Convergence(auto_converge=True, on_timeout=OnTimeout.SUSPEND)
    told = " ".join(news(list(Guest(60 * MIB, constantly(180 * MIB)).run(ConvergenceControl(wanted, 1000)))))
    assert "does not converge" in told
    assert "--auto-converge" not in told
    assert "suspend" not in told
    assert "--post-copy" in told


def test_an_oscillating_guest_gets_what_its_quiet_passes_need() -> None:
    guest = Guest(50 * MIB, lambda number: (60 if number % 2 else 30) * MIB)
    advised = list(guest.run(ConvergenceControl(Convergence(), 0)))
    assert limits(advised) == [DOWNTIME_FIRST, DOWNTIME_OF_QEMU, 660]
    assert guest.now < 20.0


def test_one_pass_that_does_not_shrink_is_not_enough_to_raise_the_pause_above_qemus() -> None:
    sizes = {2: 60, 3: 62, 4: 30, 5: 10}
    guest = Guest(50 * MIB, lambda number: sizes.get(number, 0) * MIB)
    assert limits(list(guest.run(ConvergenceControl(Convergence(), 0)))) == [DOWNTIME_FIRST, DOWNTIME_OF_QEMU]


def test_a_pause_that_qemu_would_allow_is_given_after_one_pass_that_does_not_shrink_and_no_longer_than_needed() -> None:
    guest = Guest(100 * MIB, constantly(16 * MIB))
    advised = list(guest.run(ConvergenceControl(Convergence(), 0)))
    assert limits(advised) == [DOWNTIME_FIRST, 176]
    assert guest.now < 4.0


def test_in_the_middle_of_a_migration_the_pause_is_not_made_shorter_but_for_the_cap() -> None:
    for cap, expected in ((DOWNTIME_CAP, []), (200, [200])):
        control = ConvergenceControl(Convergence(max_downtime=cap), 0)
        advice = control.look(memory(passes=4, left=60 * MIB, sent=MIB, rate=50 * MIB), 1.0)
        assert limits([advice]) == expected


def test_a_guest_that_is_being_slowed_down_more_and_more_is_not_given_a_longer_pause_meanwhile() -> None:
    control = under_way(Convergence(auto_converge=True))
    for number in range(1, 19):
        # As measured: 20 % in the fourth pass, and a step more in every second one.
        throttle = 10 * (number // 2) if number >= 4 else 0
        advice = control.look(memory(
            passes=number, left=60 * MIB, sent=number * 60 * MIB, rate=50 * MIB, throttle=throttle), 2.0 * number)
        assert advice == Advice()
    assert control.phase() == (
        "copying memory, pass 18, downtime raised to 300 ms, guest slowed down by 90 %")
    advised = [
        control.look(memory(
            passes=number, left=60 * MIB, sent=number * 60 * MIB, rate=50 * MIB, throttle=99), 2.0 * number)
        for number in range(19, 26)]
    assert [advice.remedy for advice in advised].index(Remedy.SET_DOWNTIME) == 3


def test_a_cap_below_what_qemu_begins_with_holds_from_the_first_look_and_is_never_exceeded() -> None:
    guest = Guest(50 * MIB, constantly(40 * MIB))
    advised = list(guest.run(ConvergenceControl(Convergence(max_downtime=100), 0), 30.0))
    assert limits(advised) == [DOWNTIME_FIRST, 100]
    assert advised[0].remedy is Remedy.SET_DOWNTIME


@given(
    st.integers(1, 600_000), st.lists(st.integers(0, 1 << 32), min_size=1, max_size=60), st.integers(0, 1 << 32))
def test_the_limit_is_never_lowered_but_to_the_cap_and_never_above_it(cap: int, sizes: list[int], rate: int) -> None:
    control = ConvergenceControl(Convergence(max_downtime=cap), 0)
    before = min(cap, DOWNTIME_FIRST)
    for number, size in enumerate(sizes):
        advice = control.look(memory(passes=number + 1, left=size, sent=number, rate=rate or None), number * 1.0)
        control.did(advice)
        if advice.remedy is Remedy.SET_DOWNTIME:
            assert before <= advice.downtime <= cap
            before = advice.downtime
        assert len(control.phase()) <= 100
    assert control.downtime_limit <= cap


def test_what_could_not_be_set_is_advised_again_and_counts_as_not_set() -> None:
    control = ConvergenceControl(Convergence(), 0)
    advised = [
        control.look(memory(passes=number, left=60 * MIB, sent=number, rate=50 * MIB), float(number))
        for number in range(1, 9)]
    assert [advice.remedy for advice in advised].count(Remedy.SET_DOWNTIME) > 1
    assert control.downtime_limit == DOWNTIME_OF_QEMU


def test_it_is_told_once_when_a_guest_gets_on_again() -> None:
    guest = Guest(60 * MIB, lambda number: int(180 * MIB * 0.8 ** max(0, number - 8)))
    advised = list(guest.run(under_way(Convergence(max_downtime=300))))
    assert [words[:18] for words in news(advised)] == ["it does not conver", "it gets on again"]


# What is told of the phase.


def test_the_phase_names_the_pass_and_the_pause() -> None:
    control = ConvergenceControl(Convergence(), 0)
    assert control.phase() == "connecting to the destination"
    control.look(memory(passes=1, left=1, sent=1), 1.0)
    assert control.phase() == "copying memory"
    control.look(memory(passes=5, left=1, sent=1), 2.0)
    assert control.phase() == "copying memory, pass 5"
    control.did(Advice(Remedy.SET_DOWNTIME, 675))
    assert control.phase() == "copying memory, pass 5, downtime raised to 675 ms"


def test_the_figures_of_the_pass_are_told_while_there_is_one() -> None:
    control = ConvergenceControl(Convergence(), 0)
    control.look(JobStatistics(10, 100, 0, 0), 0.5)
    assert control.memory() is None
    control.look(memory(passes=3, left=7, sent=0, rate=5, dirty_rate=6), 10.0)
    control.look(memory(passes=3, left=7, sent=40, rate=5, dirty_rate=6), 14.0)
    figures = control.memory()
    assert figures is not None
    assert figures == MemoryProgress(passes=3, left=7, rate=10, dirty_rate=6, downtime_limit=300)


# Post-copy, and the time-out.


def test_post_copy_starts_after_the_first_full_pass_and_only_once() -> None:
    guest = Guest(50 * MIB, constantly(60 * MIB))
    control = ConvergenceControl(Convergence(post_copy=True), 0)
    advised = list(guest.run(control))
    started = [advice for advice in advised if advice.remedy is not Remedy.NONE]
    assert [advice.remedy for advice in started] == [Remedy.START_POST_COPY]
    assert control.stage is Stage.POST_COPY
    assert control.phase().startswith("post-copy: the guest runs on the destination")
    figures = control.memory()
    assert figures is not None
    assert figures.post_copy


def test_a_guest_for_which_one_pass_is_enough_needs_no_post_copy() -> None:
    guest = Guest(50 * MIB, constantly(0))
    assert all(
        advice.remedy is Remedy.NONE
        for advice in guest.run(ConvergenceControl(Convergence(post_copy=True), 0)))


@pytest.mark.parametrize(("on_timeout", "remedy"), [
    (OnTimeout.ABORT, Remedy.ABORT), (OnTimeout.SUSPEND, Remedy.SUSPEND),
    (OnTimeout.POST_COPY, Remedy.START_POST_COPY),
])
def test_at_the_timeout_what_was_asked_for_is_done_and_not_before(on_timeout: OnTimeout, remedy: Remedy) -> None:
    control = under_way(Convergence(on_timeout=on_timeout), 5)
    statistics = memory(passes=1, left=100 * MIB, sent=MIB, rate=MIB)
    assert control.look(statistics, 5.0).remedy is Remedy.NONE
    advice = control.look(statistics, 5.5)
    assert advice.remedy is remedy
    control.did(advice)
    if remedy is not Remedy.ABORT:
        assert control.look(statistics, 6.0).remedy is Remedy.NONE


def test_without_a_timeout_time_never_runs_out() -> None:
    control = under_way()
    assert control.look(memory(passes=1, left=1, sent=1), 1e9) == Advice()


def test_a_migration_in_post_copy_is_not_ended_at_the_timeout() -> None:
    control = ConvergenceControl(Convergence(post_copy=True), 5)
    control.did(control.look(memory(passes=2, left=1, sent=1), 1.0))
    assert control.stage is Stage.POST_COPY
    assert control.look(memory(passes=2, left=1, sent=1), 100.0).remedy is Remedy.NONE


def test_post_copy_waits_for_the_disks_and_the_phase_says_so() -> None:
    control = under_way(Convergence(on_timeout=OnTimeout.POST_COPY), 5)
    assert control.look(JobStatistics(10, 100, 0, 0), 6.0).remedy is Remedy.NONE
    assert control.phase() == "copying the disk, then post-copy (time-out)"
    assert control.look(memory(passes=1, left=1, sent=1), 7.0).remedy is Remedy.START_POST_COPY


def test_a_paused_guest_is_told_of_and_gets_no_longer_pause() -> None:
    control = under_way(Convergence(on_timeout=OnTimeout.SUSPEND), 5)
    advised = list(Guest(50 * MIB, constantly(180 * MIB)).run(control))
    assert [advice.remedy for advice in advised if advice.remedy is not Remedy.NONE] == [Remedy.SUSPEND]
    assert control.phase() == "guest paused after 5 s, copying the rest"


# While disks are mirrored.


def mirror(control: ConvergenceControl, looks: int, left: Callable[[float], float], rate: int) -> list[Advice]:
    """Looks at a mirror that carries `rate` bytes per second and of which `left(seconds)` bytes are left."""
    advised = []
    for number in range(looks):
        seconds = number * LOOK_SECONDS
        done = int(rate * seconds)
        advised.append(control.look(JobStatistics(done, done + int(left(seconds)), 0, 0), seconds))
    return advised


def test_while_disks_are_mirrored_nothing_is_raised_and_a_long_disk_is_no_trouble() -> None:
    control = under_way()
    advised = mirror(control, 400, lambda seconds: (1 << 40) - 90 * MIB * seconds, 100 * MIB)
    assert set(advised) == {Advice()}
    assert control.phase() == "copying the disk"


def test_a_disk_that_is_written_as_fast_as_it_crosses_is_told_of_once_with_what_helps() -> None:
    control = under_way()
    told = news(mirror(control, 100, lambda _seconds: 64 * MIB, 12 * MIB))
    assert len(told) == 1
    assert "does not converge: the guest writes its disks as fast as they cross, 12 MiB/s" in told[0]
    assert "--synchronous-writes" in told[0]
    assert "--auto-converge" not in told[0]
    assert control.phase() == "does not converge: the guest writes its disks as fast as they cross, 12 MiB/s"


def test_a_link_that_carries_nothing_is_not_the_guests_fault() -> None:
    assert news(mirror(ConvergenceControl(Convergence(), 0), 100, lambda _seconds: 64 * MIB, 0)) == []


def test_the_pause_waits_for_a_long_disk_but_not_for_one_that_is_nearly_there_or_never_will_be() -> None:
    suspend = Convergence(on_timeout=OnTimeout.SUSPEND)
    for left, expected in ((10_000, False), (60, True)):
        control = ConvergenceControl(suspend, 1)
        advised = mirror(control, 10, lambda seconds, left=left: (left - 11 * seconds) * MIB, 12 * MIB)  # type: ignore[misc]
        assert any(advice.remedy is Remedy.SUSPEND for advice in advised) is expected, left
    control = ConvergenceControl(suspend, 1)
    advised = mirror(control, 60, lambda _seconds: 10_000 * MIB, 12 * MIB)
    assert [advice.remedy for advice in advised].index(Remedy.SUSPEND) > 10


# What libvirt may do.


def test_a_libvirt_without_statistics_gets_no_advice_but_at_the_timeout() -> None:
    control = ConvergenceControl(Convergence(post_copy=True), 60)
    bare = JobStatistics(100, 100, 50 * MIB, 192 * MIB)
    assert {control.look(bare, float(seconds)) for seconds in range(60)} == {Advice()}
    assert control.phase() == "copying memory"
    assert control.look(bare, 61.0).remedy is Remedy.ABORT


def test_where_qemu_tells_no_rates_the_pause_is_still_raised_by_what_was_sent() -> None:
    guest = Guest(50 * MIB, constantly(40 * MIB), tells=False)
    advised = list(guest.run(ConvergenceControl(Convergence(), 0)))
    assert guest.now < 30.0
    assert max(limits(advised)) > DOWNTIME_OF_QEMU


def test_a_job_that_vanishes_gets_no_advice_and_its_return_goes_on_from_there() -> None:
    control = ConvergenceControl(Convergence(), 0)
    assert control.look(None, 0.0) == Advice()
    assert control.phase() == "connecting to the destination"
    control.look(memory(passes=3, left=5, sent=5), 1.0)
    assert control.look(None, 2.0) == Advice()
    assert control.memory() is None
    control.look(memory(passes=4, left=5, sent=6), 3.0)
    assert control.passes == 4


def test_a_vanished_job_is_still_ended_at_the_timeout() -> None:
    assert ConvergenceControl(Convergence(), 5).look(None, 6.0).remedy is Remedy.ABORT


# What can be asked for.


@pytest.mark.parametrize("milliseconds", [-1, 0, 600_001])
def test_no_downtime_out_of_range_can_be_asked_for(milliseconds: int) -> None:
    with pytest.raises(ValueError, match="downtime"):
        Convergence(max_downtime=milliseconds)
    assert Convergence(max_downtime=1).max_downtime == 1


@pytest.mark.parametrize("on_timeout", [OnTimeout.SUSPEND, OnTimeout.POST_COPY])
def test_nothing_can_be_asked_for_at_a_timeout_that_there_is_not(on_timeout: OnTimeout) -> None:
    wanted = Convergence(on_timeout=on_timeout)
    with pytest.raises(ValueError, match="time-out"):
        dataclasses.replace(MIGRATION, convergence=wanted)
    assert dataclasses.replace(MIGRATION, convergence=wanted, timeout=1).convergence is wanted


def test_what_nobody_asked_for_takes_no_room_in_a_request() -> None:
    assert "convergence" not in to_wire(MIGRATION)
    hard = dataclasses.replace(MIGRATION, convergence=Convergence(max_downtime=1))
    assert from_wire(Migration, to_wire(hard)) == hard
    assert from_wire(Migration, to_wire(MIGRATION)) == MIGRATION


# libvirt's own statistics.


def test_libvirts_parameters_become_bytes_and_milliseconds() -> None:
    found = JobStatistics.of({
        "type": 2, "disk_processed": 71565312, "disk_total": 71565312, "memory_processed": 116972710,
        "memory_total": 201859072, "memory_iteration": 2, "memory_remaining": 57360384, "memory_bps": 37940542,
        "memory_dirty_rate": 3693, "memory_page_size": 4096, "downtime": 1488, "auto_converge_throttle": 20})
    assert found == JobStatistics(
        disk_done=71565312, disk_total=71565312, memory_done=116972710, memory_total=201859072, passes=2,
        memory_left=57360384, rate=37940542, dirty_rate=3693 * 4096, downtime=1488, throttle=20)
    assert not found.mirroring


def test_what_libvirt_leaves_out_is_none_or_nought() -> None:
    assert JobStatistics.of({}) == JobStatistics(0, 0, 0, 0)
    assert JobStatistics.of({"disk_total": 5, "disk_processed": 2}).mirroring
    assert JobStatistics.of({"disk_total": 5, "disk_processed": 2}).disk_left == 3
    assert JobStatistics.of({"memory_dirty_rate": 2}).dirty_rate == 2 * PAGE
    assert JobStatistics.of({"memory_bps": 0}).rate is None
