"""How a running migration is followed: what is done when, what ends it, and what may not be ended any more."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.samples import DESTINATION

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import DOWNTIME_OF_QEMU, DomainState, OnTimeout
from host.hypervisor import Hypervisor
from host.job_statistics import JobStatistics
from host.migration_target import MigrationTarget
from host.ssh import Login, Tunnel
from steps.context import Cancellation, StepContext
from steps.convergence import Stage
from steps.live_migration import _after_switchover
from steps.watching import STALL_SECONDS, Watch
from tests.unit.samples import AGENTS, MIGRATION, MOVED, SOURCE, FakeClock
from wire.errors import ErrorCode, MigrationError
from wire.records import Convergence, DiskProgress, Progress

MIB = 1 << 20
CLOSED = MigrationError(ErrorCode.MIGRATION_FAILED, {"domain": "VM1", "host": SOURCE, "reason": "a socket was closed"})
REFUSED = MigrationError(ErrorCode.LIBVIRT_ERROR, {"host": SOURCE, "reason": "not now"})
TARGET = cast(MigrationTarget, dataclasses.make_dataclass("Target", ["mirrored"])(("vda", "vdb")))


def mirroring(seconds: float) -> JobStatistics:
    """Disks of which much is left."""
    return JobStatistics(int(seconds * MIB), 1000 * MIB, 0, 0)


def copying(seconds: float) -> JobStatistics:
    """A guest that writes 60 MiB again in each pass of a second, of which the first has ten."""
    passes = max(1, int(seconds) - 8)
    return JobStatistics(
        MIB, MIB, int(seconds * 50 * MIB), 500 * MIB, passes=passes, memory_left=60 * MIB, rate=50 * MIB,
        dirty_rate=80 * MIB)


@dataclass
class Site:
    """A source host: its clock, its libvirt, its tunnel and the thread in which libvirt migrates."""

    statistics: Callable[[float], JobStatistics | None] = copying
    ends_at: float = 1000.0
    """Seconds after which libvirt's call returns."""
    error: Exception | None = None
    aborting_ends: bool = True
    refused: Mapping[str, int] = field(default_factory=dict)
    """How often libvirt refuses each call at first."""
    tunnel_ends_at: float = 1e9
    clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))
    asked: list[str] = field(default_factory=list)
    told: list[Progress] = field(default_factory=list)
    cancellation: Cancellation = field(default_factory=Cancellation)
    cancel_at: float = 1e9
    kept: bool = False
    began_post_copy: bool = False
    begins_post_copy: bool = True
    """Whether QEMU begins it when it is asked to."""
    begun_at: list[float] = field(default_factory=list)
    tells_split: bool = True
    """Whether libvirt says where the memory is."""
    closing_ends: bool = True
    """Whether a migration that goes on after it was to end does so when its tunnel is closed, or its connections."""

    # The thread.

    def thread(self, *_what: object) -> Site:
        """libvirt's call, which has not begun."""
        return self

    def start(self) -> None:
        """Begin it."""

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.clock.now < self.ends_at

    def join(self, seconds: float) -> None:
        """Time passes."""
        self.clock.now = round(self.clock.now + seconds, 3)
        if self.clock.now >= self.cancel_at:
            self.cancellation.reason = "Ctrl-C"
        assert self.clock.now < 500.0, "it never ends"

    # libvirt.

    def is_split(self, _domain: str) -> bool | None:
        """An earlier life of the agent may have begun it."""
        return self.began_post_copy if self.tells_split else None

    def _ask(self, call: str) -> None:
        self.asked.append(f"{self.clock.now:.1f} {call}")
        left = dict(self.refused)
        if left.get(call.split()[0], 0) > 0:
            left[call.split()[0]] -= 1
            self.refused = left
            raise REFUSED

    def job_statistics(self, _domain: str) -> JobStatistics | None:
        """How far it is."""
        return self.statistics(self.clock.now)

    def mirrors(self, _domain: str, targets: tuple[str, ...]) -> tuple[DiskProgress, ...]:
        """Of each disk."""
        return tuple(DiskProgress(target, 1, 2) for target in targets)

    def abort_job(self, _domain: str) -> None:
        """The migration ends a little later."""
        self._ask("abort")
        if self.aborting_ends:
            self.ends_at, self.error = self.clock.now + 0.5, CLOSED

    def set_downtime_limit(self, _domain: str, milliseconds: int) -> None:
        """That is enough, at the end of the pass; but what is tried in every move is not."""
        if milliseconds <= DOWNTIME_OF_QEMU:
            return
        self._ask(f"downtime {milliseconds}")
        self.ends_at = min(self.ends_at, self.clock.now + 1.5)

    def start_post_copy(self, _domain: str) -> None:
        """The guest goes on at the other host."""
        self._ask("post-copy")
        self.began_post_copy = self.begins_post_copy

    def is_whole(self, _domain: str) -> bool:
        """It is, as long as it has not begun."""
        return not self.began_post_copy

    def suspend(self, _domain: str) -> None:
        """Write it down."""
        self._ask("suspend")

    def resume_if_suspended(self, _domain: str) -> None:
        """Write it down."""
        self._ask("resume")

    def state(self, _domain: str) -> DomainState:
        """How it is here after the move."""
        return DomainState.SHUT_OFF

    def autostart(self, _domain: str) -> bool:
        """It does not start with its host."""
        return False

    def finished_job(self, _domain: str) -> object:
        """libvirt's figures."""
        return MOVED

    def begin(self) -> None:
        """Both hosts have the domain now."""
        self.begun_at.append(self.clock.now)

    # The tunnel.

    def ended(self) -> bool:
        """Whether it is gone."""
        return self.clock.now >= self.tunnel_ends_at

    def lost(self) -> MigrationError:
        """Why."""
        return MigrationError(ErrorCode.TUNNEL_LOST, {
            "host": SOURCE, "destination": "x", "user": "kvm", "reason": "the link is cut"})

    def keep(self) -> None:
        """It stays open whatever becomes of the agent."""
        self.kept = True

    def close(self) -> None:
        """QEMU notices that there is nobody any more."""
        self.asked.append(f"{self.clock.now:.1f} close")
        self.tunnel_ends_at = self.clock.now
        if self.closing_ends:
            self.ends_at, self.error = self.clock.now + 0.5, CLOSED

    def cut(self) -> None:
        """What QEMU itself has open to the other host is cut."""
        self.asked.append(f"{self.clock.now:.1f} cut")
        self.ends_at, self.error = self.clock.now + 0.5, CLOSED


Follow = Callable[..., Watch]


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Follow:
    """Follow a migration on a site to its end."""
    def run(site: Site, *, timeout: int = 0, **wanted: Any) -> Watch:
        monkeypatch.setattr("steps.watching.time.monotonic", site.clock)
        context = StepContext(
            host=SOURCE, epoch="", challenge="", destinations=AGENTS, state_directory=tmp_path,
            cancellation=site.cancellation, progress=site.told.append)
        migration = dataclasses.replace(MIGRATION, timeout=timeout, convergence=Convergence(**wanted))
        watch = Watch(context, migration, cast(Hypervisor, site), site, site.cut, begun=site.begin)
        watch.follow(site, ("vda", "vdb"))
        return watch
    return run


def failing(follow: Follow, site: Site, **how: Any) -> MigrationError:
    """The error that a migration ends with."""
    with pytest.raises(MigrationError) as caught:
        follow(site, **how)
    return caught.value


def phases(site: Site) -> list[str]:
    """Each phase once, in order."""
    return list(dict.fromkeys(progress.phase for progress in site.told))


def test_the_downtime_is_raised_and_the_admin_and_the_log_are_told_once(
    follow: Follow, caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    watch = follow(site)
    assert [call.split(" ", 1)[1] for call in site.asked] == ["downtime 1320"]
    assert any("downtime raised to 1320 ms" in phase for phase in phases(site))
    assert len([each for each in caplog.records if "may stand still for 1320 ms" in each.message]) == 1
    report = _after_switchover(cast(Hypervisor, site), "VM1", watch.control)
    assert report == dataclasses.replace(MOVED, downtime_limit=1320, passes=7)


def test_what_libvirt_refuses_is_tried_again_and_logged_once(
    follow: Follow, caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site(ends_at=30.0, refused={"post-copy": 3})
    assert follow(site, post_copy=True).control.stage is Stage.POST_COPY
    assert len(site.asked) == 4
    assert site.kept
    assert len([each for each in caplog.records if "cannot start post-copy" in each.message]) == 1


def test_each_disk_is_told_only_while_disks_are_mirrored_and_the_pass_only_while_memory_is_copied(
    follow: Follow,
) -> None:
    site = Site(lambda seconds: mirroring(seconds) if seconds < 5 else copying(seconds), ends_at=12.0)
    follow(site)
    assert site.told[0].disks == (DiskProgress("vda", 1, 2), DiskProgress("vdb", 1, 2))
    assert site.told[0].memory is None
    assert site.told[-1].disks == ()
    assert site.told[-1].memory is not None


def test_each_short_pass_is_looked_at_and_the_admin_is_told_no_more_often_for_it(follow: Follow) -> None:
    looked: list[float] = []

    def at(seconds: float) -> JobStatistics:
        looked.append(seconds)
        return mirroring(seconds) if seconds <= 5.0 else copying(3.0)

    site = Site(statistics=at, ends_at=10.0)
    follow(site)
    assert [len([when for when in looked if low < when <= low + 1]) for low in (3.0, 8.0)] == [2, 10]
    assert len(site.told) <= 21


def test_that_libvirt_has_begun_is_told_once_and_not_before(follow: Follow) -> None:
    site = Site(lambda seconds: None if seconds < 2 else mirroring(seconds), ends_at=5.0)
    follow(site)
    (began,) = site.begun_at
    assert 2.0 <= began < 2.7


def test_a_host_that_takes_long_before_the_first_byte_is_waited_for(
    follow: Follow, monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = JobStatistics(disk_done=0, disk_total=0, memory_done=0, memory_total=0)
    site = Site(lambda seconds: nothing if seconds < 3 * STALL_SECONDS else copying(seconds), ends_at=110.0)
    monkeypatch.setattr(site, "mirrors", lambda _domain, _targets: ())
    follow(site)
    assert not [call for call in site.asked if call.endswith("abort")]
    (began,) = site.begun_at
    assert began >= 3 * STALL_SECONDS


def test_a_job_that_tells_nothing_is_followed_to_its_end_without_a_word(follow: Follow) -> None:
    site = Site(lambda _seconds: None, ends_at=5.0)
    follow(site)
    assert (site.told, site.asked, site.begun_at) == ([], [], [])


# What ends it.


@pytest.mark.parametrize(("changes", "timeout", "code"), [
    ({"cancel_at": 3.0}, 0, ErrorCode.MIGRATION_CANCELLED), ({}, 3, ErrorCode.MIGRATION_TIMEOUT),
    ({"tunnel_ends_at": 3.0}, 0, ErrorCode.TUNNEL_LOST),
])
def test_a_migration_that_is_cancelled_overdue_or_cut_off_is_ended_for_that_reason(
    follow: Follow, changes: dict[str, Any], timeout: int, code: ErrorCode,
) -> None:
    site = Site(**changes)
    assert failing(follow, site, timeout=timeout).code is code
    assert all(call.endswith("abort") for call in site.asked)
    assert 3.0 <= float(site.asked[0].split()[0]) <= 3.7


def test_libvirt_is_asked_again_to_end_a_migration_that_goes_on(follow: Follow) -> None:
    site = Site(cancel_at=1.0, aborting_ends=False, ends_at=6.9, error=CLOSED)
    assert failing(follow, site).code is ErrorCode.MIGRATION_CANCELLED
    assert site.asked == ["1.0 abort", "3.0 abort", "5.0 abort"]


def test_a_migration_that_goes_on_after_it_was_to_end_has_its_tunnel_closed(follow: Follow) -> None:
    site = Site(cancel_at=1.0, aborting_ends=False)
    # The reason is the one that came first, not the tunnel that was closed for it.
    assert failing(follow, site).code is ErrorCode.MIGRATION_CANCELLED
    assert site.asked == ["1.0 abort", "3.0 abort", "5.0 abort", "7.0 abort", "7.0 close"]


def test_a_migration_that_goes_on_without_its_tunnel_has_its_connections_cut(follow: Follow) -> None:
    site = Site(cancel_at=1.0, aborting_ends=False, closing_ends=False)
    assert failing(follow, site).code is ErrorCode.MIGRATION_CANCELLED
    assert [call for call in site.asked if not call.endswith("abort")] == ["7.0 close", "11.0 cut"]


def test_tunnel_and_connections_are_closed_once_however_long_it_goes_on(follow: Follow) -> None:
    site = Site(cancel_at=1.0, aborting_ends=False, closing_ends=False)
    site.cut = lambda: site.asked.append("cut")  # type: ignore[method-assign]
    site.ends_at, site.error = 60.0, CLOSED
    failing(follow, site)
    assert [call.split()[-1] for call in site.asked if not call.endswith("abort")] == ["close", "cut"]


# Nothing moves any more.


def standing_still(since: float) -> Callable[[float], JobStatistics]:
    """A mirror of which nothing crosses any more from then on."""
    return lambda seconds: mirroring(min(seconds, since))


def test_a_migration_of_which_no_byte_crosses_any_more_is_ended_within_a_minute(follow: Follow) -> None:
    site = Site(standing_still(5.0))
    error = failing(follow, site)
    assert error.code is ErrorCode.MIGRATION_STALLED
    assert (error.facts["seconds"], error.facts["destination"]) == ("35", DESTINATION)
    assert "?" not in error.message + error.hint
    (asked,) = site.asked
    assert 5.0 + STALL_SECONDS <= float(asked.split()[0]) <= 5.0 + STALL_SECONDS + 1.0
    site = Site(standing_still(5.0), aborting_ends=False, closing_ends=False)
    assert failing(follow, site).code is ErrorCode.MIGRATION_STALLED
    assert site.clock.now <= 5.0 + 60.0


def test_a_migration_that_is_slow_is_not_ended(follow: Follow) -> None:
    last = STALL_SECONDS - 1.0
    for statistics in (
        # One byte more each time, of the disk or of the memory, just before it would be ended.
        lambda seconds: JobStatistics(int(seconds // last), 1000, 0, 0),
        lambda seconds: JobStatistics(1000, 1000, int(seconds // last), 1000),
        lambda seconds: JobStatistics(1000, 1000, 7, 1000, passes=int(seconds // last)),
    ):
        site = Site(statistics, ends_at=400.0)
        follow(site, max_downtime=300)
        assert not [call for call in site.asked if call.endswith("abort")]


def test_a_migration_of_which_one_disk_gets_on_is_not_ended(
    follow: Follow, monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(standing_still(1.0), ends_at=200.0)
    monkeypatch.setattr(
        site, "mirrors", lambda _domain, _targets: (DiskProgress("vda", int(site.clock.now), 200),))
    follow(site)
    assert site.asked == []


def test_a_tunnel_that_is_gone_is_the_reason_behind_a_closed_socket(follow: Follow) -> None:
    site = Site(ends_at=3.0, error=CLOSED, tunnel_ends_at=3.0)
    assert failing(follow, site).code is ErrorCode.TUNNEL_LOST
    assert failing(follow, Site(ends_at=3.0, error=CLOSED)).code is ErrorCode.MIGRATION_FAILED


def test_a_migration_that_succeeds_in_spite_of_a_late_cancel_has_succeeded(follow: Follow) -> None:
    follow(Site(ends_at=3.0, cancel_at=2.9, aborting_ends=False))


def test_once_it_is_to_end_nothing_else_is_done_to_it(follow: Follow) -> None:
    site = Site(cancel_at=1.0, aborting_ends=False, ends_at=6.5, error=CLOSED)
    failing(follow, site, post_copy=True)
    assert {call.split()[1] for call in site.asked} == {"abort"}


# The pause.


def test_at_the_timeout_the_guest_is_paused_once_and_not_ended(follow: Follow) -> None:
    site = Site(ends_at=20.0)
    assert follow(site, timeout=3, on_timeout=OnTimeout.SUSPEND).control.stage is Stage.PAUSED
    assert site.asked == ["3.1 suspend"]


def test_a_paused_guest_whose_migration_fails_is_seen_to_run_again(follow: Follow) -> None:
    site = Site(cancel_at=6.0)
    assert failing(follow, site, timeout=3, on_timeout=OnTimeout.SUSPEND).code is ErrorCode.MIGRATION_CANCELLED
    assert site.asked[-1].endswith("resume")
    site = Site(cancel_at=2.0)
    failing(follow, site, timeout=3, on_timeout=OnTimeout.SUSPEND)
    assert not any(call.endswith("resume") for call in site.asked)


# Post-copy: the point of no return.


def copying_until(end: float) -> Callable[[float], JobStatistics]:
    """As copying(), but from then on nothing crosses any more."""
    return lambda seconds: copying(min(seconds, end))


@pytest.mark.parametrize("changes", [
    {"cancel_at": 15.0}, {"tunnel_ends_at": 15.0}, {"statistics": copying_until(15.0), "ends_at": 90.0}])
def test_in_post_copy_nothing_is_ended_and_what_succeeds_has_succeeded(
    follow: Follow, changes: dict[str, Any],
) -> None:
    site = Site(**{"ends_at": 30.0, **changes})
    watch = follow(site, timeout=12, post_copy=True)
    assert [call.split()[1] for call in site.asked] == ["post-copy"]
    report = _after_switchover(cast(Hypervisor, site), "VM1", watch.control)
    assert report.post_copy is True
    assert phases(site)[-1].startswith("post-copy: ")


@pytest.mark.parametrize(("changes", "reason"), [
    ({}, "a socket was closed"), ({"tunnel_ends_at": 15.0}, "the link is cut"),
    ({"cancel_at": 15.0}, "a socket was closed"),
])
def test_a_failure_in_post_copy_is_one_of_its_own_with_the_reason_behind_it(
    follow: Follow, changes: dict[str, Any], reason: str,
) -> None:
    error = failing(follow, Site(ends_at=30.0, error=CLOSED, **changes), post_copy=True)
    assert error.code is ErrorCode.POST_COPY_FAILED
    assert error.facts["reason"] == reason
    assert "?" not in error.message + error.hint
    error = failing(follow, Site(ends_at=30.0, error=ValueError("odd.")), post_copy=True)
    assert (error.code, error.facts["reason"]) == (ErrorCode.POST_COPY_FAILED, "odd")


@pytest.mark.parametrize("changes", [{"cancel_at": 15.0}, {"statistics": copying_until(15.0)}])
def test_post_copy_that_an_earlier_life_of_the_agent_has_begun_is_not_ended_either(
    follow: Follow, changes: dict[str, Any],
) -> None:
    # libvirt refuses to begin post-copy again, and to end the job.
    site = Site(refused={"post-copy": 1000}, aborting_ends=False, ends_at=90.0, began_post_copy=True, **changes)
    with contextlib.suppress(MigrationError):
        follow(site, post_copy=True)
    assert not {call.split()[1] for call in site.asked} & {"close", "cut"}


def test_a_failure_before_post_copy_began_is_an_ordinary_one(follow: Follow) -> None:
    site = Site(ends_at=5.0, error=CLOSED)
    assert failing(follow, site, post_copy=True).code is ErrorCode.MIGRATION_FAILED
    assert not site.kept


def test_a_failure_before_qemu_began_the_post_copy_that_it_was_asked_for_is_an_ordinary_one(follow: Follow) -> None:
    site = Site(ends_at=30.0, error=CLOSED, begins_post_copy=False, tunnel_ends_at=30.0)
    assert failing(follow, site, post_copy=True).code is ErrorCode.TUNNEL_LOST


def test_a_migration_whose_post_copy_was_asked_for_and_not_begun_is_ended_as_any_other(follow: Follow) -> None:
    site = Site(cancel_at=15.0, begins_post_copy=False)
    assert failing(follow, site, post_copy=True).code is ErrorCode.MIGRATION_CANCELLED
    site = Site(cancel_at=15.0, begins_post_copy=False, aborting_ends=False, closing_ends=False, ends_at=40.0,
                error=CLOSED)
    failing(follow, site, post_copy=True)
    assert {call.split()[1] for call in site.asked} == {"post-copy", "abort", "close", "cut"}


def test_nothing_is_ended_in_the_moment_in_which_qemu_was_asked_for_post_copy(follow: Follow) -> None:
    asked = Site(ends_at=30.0)
    follow(asked, post_copy=True)
    at = float(asked.asked[0].split()[0])
    site = Site(cancel_at=at + 0.1, begins_post_copy=False)
    failing(follow, site, post_copy=True)
    ((when, what),) = [call.split() for call in site.asked[1:]]
    assert (what, at + 2.0 <= float(when) < at + 3.0) == ("abort", True)


def test_where_libvirt_does_not_say_whether_post_copy_has_begun_nothing_is_ended(follow: Follow) -> None:
    site = Site(cancel_at=15.0, tells_split=False, ends_at=60.0)
    follow(site, post_copy=True)
    assert [call.split()[1] for call in site.asked] == ["post-copy"]
    ordinary = Site(cancel_at=3.0, tells_split=False)
    assert failing(follow, ordinary).code is ErrorCode.MIGRATION_CANCELLED


class Child:
    """An ssh child."""

    def __init__(self) -> None:
        self.ended = False

    def terminate(self) -> None:
        """End it."""
        self.ended = True

    def wait(self, _seconds: float) -> None:
        """It ends at once."""


def test_a_tunnel_that_is_kept_outlives_whoever_lets_go_of_it_and_any_other_ends_then() -> None:
    for kept in (False, True):
        child = Child()
        opened = Tunnel(Login(SOURCE, "kvm", "x"), cast(Any, child), cast(Any, None))
        if kept:
            opened.keep()
        opened.let_go()
        assert child.ended is not kept
        opened.close()
        assert child.ended


def test_the_log_says_what_is_done_as_a_warning(follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    follow(Site(ends_at=30.0), timeout=12, on_timeout=OnTimeout.POST_COPY)
    told = [each for each in caplog.records if "switching to post-copy after 12 s" in each.message]
    assert [each.levelno for each in told] == [logging.WARNING]
