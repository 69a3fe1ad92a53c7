"""How a VM is brought to rest on the host that it left, or was to leave, and how that host tells that it has left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tests.unit.one_domain import POST_COPY

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import DomainState, Pause
from host.job_statistics import JobStatistics
from steps.resting import REST_SECONDS, SPLIT_SECONDS, bring_to_rest, has_left
from tests.unit.one_domain import (
    ABSENT,
    ARRIVED,
    BROKEN_OFF,
    HALF,
    MIGRATED,
    PAUSED,
    RUNNING,
    SHUT_OFF,
    OneDomain,
    put_clock,
    put_here,
)
from tests.unit.samples import FACTS, MIGRATION, SOURCE, FakeClock
from wire.records import Migration
from wire.situation import DomainView

BUSY = dataclasses.replace(RUNNING, busy=True)
Rest = Callable[..., "DomainView | None"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock by which it waits."""
    return put_clock(monkeypatch)


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> Rest:
    """Bring that VM to rest."""
    def run(here: OneDomain, migration: Migration = MIGRATION) -> DomainView | None:
        put_here(monkeypatch, here)
        return bring_to_rest(SOURCE, migration, FACTS)
    return run


@pytest.mark.parametrize("view", [RUNNING, SHUT_OFF, MIGRATED, ABSENT, PAUSED])
def test_a_vm_at_rest_is_left_as_it_is(rest: Rest, clock: FakeClock, view: DomainView) -> None:
    began, here = clock.now, OneDomain.of(view)
    assert rest(here) == view
    assert (here.done, clock.now) == ([], began)


def test_a_job_of_libvirts_is_ended_until_there_is_none(rest: Rest) -> None:
    here = OneDomain.of(RUNNING, jobs=3)
    assert rest(here) == RUNNING
    assert here.done == ["abort VM1"] * 3


def test_mirrors_that_a_libvirtd_that_died_has_left_are_ended(rest: Rest) -> None:
    here = OneDomain.of(BUSY, BUSY, RUNNING)
    assert rest(here) == RUNNING
    assert here.done == ["end mirrors of VM1"] * 2


def test_a_backup_that_somebody_has_begun_meanwhile_goes_on(rest: Rest) -> None:
    here = OneDomain.of(BUSY, jobs=1_000_000, foreign=True)
    assert rest(here) == BUSY
    assert here.done == []
    here = OneDomain.of(BUSY, mirrors=False)
    assert rest(here) == BUSY


def test_a_vm_that_its_migration_left_paused_goes_on(rest: Rest) -> None:
    here = OneDomain.of(HALF, RUNNING)
    assert rest(here) == RUNNING
    assert here.done == ["resume VM1"]


def test_a_vm_that_may_run_over_there_is_not_let_go_on(rest: Rest) -> None:
    here = OneDomain.of(HALF)
    assert rest(here, POST_COPY) == HALF
    assert here.done == []


@pytest.mark.parametrize("pause", [Pause.SOMEBODY, Pause.OTHER])
def test_only_what_the_migration_paused_is_let_go_on(rest: Rest, pause: Pause) -> None:
    view = DomainView(state=DomainState.PAUSED, pause=pause)
    here = OneDomain.of(view)
    assert rest(here) == view
    assert here.done == []


def test_one_of_which_post_copy_broke_off_is_at_rest_once_its_memory_follows_no_more_although_libvirt_keeps_its_job(
    rest: Rest, clock: FakeClock,
) -> None:
    began, here = clock.now, OneDomain.of(BROKEN_OFF, jobs=1_000_000)
    assert rest(here, POST_COPY) == BROKEN_OFF
    assert here.done == []
    assert SPLIT_SECONDS <= clock.now - began < SPLIT_SECONDS + 1.0


def test_one_in_post_copy_is_waited_for_as_long_as_its_memory_follows(rest: Rest, clock: FakeClock) -> None:
    counted = [JobStatistics(disk_done=0, disk_total=0, memory_done=done, memory_total=1000) for done in range(500)]
    began, here = clock.now, OneDomain.of(*[BROKEN_OFF] * 500, MIGRATED, figures=iter(counted))
    assert rest(here, POST_COPY) == MIGRATED
    assert (here.done, clock.now - began > REST_SECONDS) == ([], True)
    began, here = clock.now, OneDomain.of(BROKEN_OFF, figures=iter(counted[:10]))
    assert rest(here, POST_COPY) == BROKEN_OFF
    assert SPLIT_SECONDS <= clock.now - began < SPLIT_SECONDS + 5.0


def test_a_libvirtd_that_is_started_again_is_waited_for(rest: Rest, clock: FakeClock) -> None:
    began, here = clock.now, OneDomain.of(RUNNING, unreachable=7)
    assert rest(here) == RUNNING
    assert 1.0 < clock.now - began < REST_SECONDS
    assert (len(here.opened), here.closed) == (8, 1)


@pytest.mark.parametrize(("here", "reason"), [
    (OneDomain.of(BUSY), "it is still busy"), (OneDomain.of(RUNNING, jobs=1_000_000), "it is still busy"),
    (OneDomain.of(RUNNING, unreachable=1_000_000), "connection refused"),
    (OneDomain.of(HALF, refusing=True), "not now"),
])
def test_what_does_not_come_to_rest_is_given_up_in_less_than_a_minute_and_told(
    rest: Rest, clock: FakeClock, caplog: pytest.LogCaptureFixture, here: OneDomain, reason: str,
) -> None:
    began = clock.now
    assert rest(here) is None
    assert REST_SECONDS <= clock.now - began < 60.0
    assert reason in caplog.text


# Whether it has left.


def nobody() -> DomainView | None:
    """The other side is not asked."""
    raise AssertionError("the other side was asked")


@pytest.mark.parametrize("view", [RUNNING, PAUSED, HALF, BROKEN_OFF])
def test_a_vm_whose_memory_is_here_has_not_left(view: DomainView) -> None:
    assert not has_left(view, nobody)


def test_libvirt_remembers_that_a_vm_has_left() -> None:
    assert has_left(MIGRATED, nobody)


@pytest.mark.parametrize(("other", "left"), [
    (ARRIVED, True), (RUNNING, True), (HALF, False), (SHUT_OFF, False), (ABSENT, False), (BROKEN_OFF, False),
    (None, False),
])
@pytest.mark.parametrize("view", [SHUT_OFF, ABSENT])
def test_where_libvirt_does_not_remember_it_is_the_other_side_that_tells(
    view: DomainView, other: DomainView | None, left: bool,
) -> None:
    assert has_left(view, lambda: other) is left
