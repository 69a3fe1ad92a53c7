"""LIVE_MIGRATION: what is begun, when the VM over there is let go on, and what is a move although libvirt said no."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.unit.one_domain import POST_COPY, WAS_PAUSED

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import DomainState
from host import bindings
from host.job_files import JobSockets
from host.job_statistics import JobStatistics
from host.migration_target import MigrationTarget
from steps import live_migration
from tests.unit.libvirtd import document
from tests.unit.one_domain import (
    ABSENT,
    ARRIVED,
    BROKEN_OFF,
    HALF,
    HALF_ARRIVED,
    MIGRATED,
    PAUSED,
    RUNNING,
    SHUT_OFF,
    OneDomain,
    context_on,
    put_clock,
    put_here,
)
from tests.unit.samples import FACTS, MIGRATION, MOVED, QCOW2, SOURCE, FakeClock
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.records import Migration, MigrationReport, Progress, StepArguments
from wire.situation import DomainView

LOST = MigrationError(ErrorCode.MIGRATION_FAILED, {"domain": "VM1", "host": SOURCE, "reason": "the answer was lost"})
SOCKETS = JobSockets.of(MIGRATION)
PID = 4711
# libvirt's call goes on for so many looks.
LOOKS = 3


@dataclass
class SourceDomain(OneDomain):
    """The VM here, with all that a migration asks of it."""

    def qemu_ids(self, _virtualization: str) -> tuple[int, int]:
        """As which user QEMU runs."""
        return 64055, 64055

    def is_split(self, _domain: str) -> bool:
        """Whether a part of its memory is on the other host."""
        return self.views[0].split

    def document(self, _domain: str, *, inactive: bool = False) -> str:
        """Its definition."""
        assert inactive
        return document(QCOW2.path)

    def migratable_document(self, _domain: str) -> str:
        """As it runs."""
        return document(QCOW2.path)


@dataclass
class Way:
    """The tunnel."""

    closed: int = 0

    def ended(self) -> bool:
        """It is open."""
        return False

    def lost(self) -> MigrationError:
        """It never is."""
        raise AssertionError("the tunnel was not lost")

    kept: bool = False

    def keep(self) -> None:
        """It stays open."""
        self.kept = True

    def let_go(self) -> None:
        """It is closed if nothing speaks against it."""
        if not self.kept:
            self.close()

    def close(self) -> None:
        """Write it down; once it is closed that does nothing."""
        self.closed = 1


@dataclass
class Site:
    """A source host: its VM, the one over there, the thread in which libvirt migrates, and the watch over QEMU."""

    directory: Path
    clock: FakeClock
    here: SourceDomain = field(default_factory=lambda: SourceDomain([RUNNING]))
    there: OneDomain = field(default_factory=lambda: OneDomain([HALF]))
    becomes: tuple[DomainView, DomainView] = (MIGRATED, ARRIVED)
    """What the VM is here and there once libvirt's call has returned."""
    error: Exception | None = None
    """What libvirt says then."""
    qemu_ends_at: int | None = None
    """At which look QEMU ends here, if it is seen to."""
    way: Way = field(default_factory=Way)
    targets: list[MigrationTarget] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    told: list[Progress] = field(default_factory=list)
    ended: Callable[[], None] | None = None
    looks: int = 0

    # libvirt's call in its thread.

    def thread(self, host: str, domain: str, target: MigrationTarget) -> Site:
        """It has not begun."""
        assert (host, domain) == (SOURCE, "VM1")
        self.targets.append(target)
        return self

    def start(self) -> None:
        """Begin it."""
        self.events.append("begun")

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.looks < LOOKS

    def join(self, seconds: float) -> None:
        """Time passes; nothing goes on over there before QEMU has ended here."""
        self.clock.sleep(seconds)
        self.looks += 1
        if self.qemu_ends_at == self.looks and self.ended is not None:
            self.there.views = [self.becomes[1]]
            self.ended()
        if self.looks == LOOKS:
            self.here.views, self.there.views = [self.becomes[0]], [self.becomes[1]]
            self.events.append("returned")
        elif self.qemu_ends_at is None or self.looks < self.qemu_ends_at:
            assert self.there.done == []

    @contextlib.contextmanager
    def watching(self, pid: int, ended: Callable[[], None]) -> Iterator[None]:
        """Stands for ExitWatch."""
        assert pid == PID
        self.ended = ended
        yield
        self.events.append("watched to the end")

    # The step.

    def run(self, migration: Migration = MIGRATION, facts: DomainFacts = FACTS) -> MigrationReport:
        """LIVE_MIGRATION."""
        return self._do(live_migration.run, migration, facts)

    def adopt(self, migration: Migration = MIGRATION, facts: DomainFacts = FACTS) -> MigrationReport:
        """The same by an agent that has been started anew."""
        return self._do(live_migration.adopt, migration, facts)

    def _do(self, step: Callable[..., MigrationReport], migration: Migration, facts: DomainFacts) -> MigrationReport:
        return step(
            context_on(SOURCE, self.directory, self.told), StepArguments(migration=migration, facts=facts))

    def refused(self, *how: Any, adopt: bool = False) -> MigrationError:
        """Why it is no move; nothing was let go on over there."""
        with pytest.raises(MigrationError) as caught:
            (self.adopt if adopt else self.run)(*how)
        assert self.there.done == []
        return caught.value


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A source host on which all goes well."""
    made = Site(tmp_path, put_clock(monkeypatch))

    @contextlib.contextmanager
    def tunnel(_login: object, forwards: dict[str, str], _control: str) -> Iterator[Way]:
        made.events.append(f"tunnel of {len(forwards)}")
        yield made.way
        made.events.append("tunnel closed")

    @contextlib.contextmanager
    def directory(path: str, *_more: object) -> Iterator[None]:
        assert path == SOCKETS.directory
        yield

    put_here(monkeypatch, made.here, made.there)
    monkeypatch.setattr("host.kept_tunnels.tunnel", tunnel)
    monkeypatch.setattr("host.kept_tunnels.socket_directory", directory)
    monkeypatch.setattr(live_migration, "MigrationThread", made.thread)
    monkeypatch.setattr(live_migration, "process_id", lambda _domain: PID)
    monkeypatch.setattr(live_migration, "ExitWatch", made.watching)
    monkeypatch.setattr(live_migration, "OrphanedTunnel", lambda _login, _pids: made.way)
    monkeypatch.setattr("host.orphans.find", lambda _directory: [])
    monkeypatch.setattr(live_migration, "remove_socket_directory", lambda path: made.events.append(f"removed {path}"))
    return made


# Before it begins.


def test_a_destination_that_this_host_does_not_list_is_refused_before_anything_is_opened(site: Site) -> None:
    error = site.refused(dataclasses.replace(MIGRATION, destination="192.0.2.77"))
    assert (error.code, error.facts["address"]) == (ErrorCode.DESTINATION_NOT_ALLOWED, "192.0.2.77")
    assert (site.events, site.here.opened) == ([], [])


@pytest.mark.parametrize("view", [PAUSED, SHUT_OFF])
def test_a_vm_that_is_no_longer_as_it_was_checked_is_not_begun_with(site: Site, view: DomainView) -> None:
    site.here.views = [view]
    error = site.refused()
    assert error.code is ErrorCode.NOT_AS_EXPECTED
    assert "no longer running" in error.message
    assert "begun" not in site.events


def test_libvirt_is_told_to_hold_the_vm_and_to_go_through_the_tunnel(site: Site) -> None:
    site.run()
    (target,) = site.targets
    assert (target.held, target.connection) == (True, f"qemu+unix:///system?socket={SOCKETS.libvirt}")
    assert (target.document, target.lasting) == (None, None)
    assert site.events == ["tunnel of 5", "begun", "returned", "watched to the end", "tunnel closed"]
    assert site.told[0].phase == "opening the SSH tunnel"


# A VM that is held.


def test_a_held_vm_goes_on_over_there_once_libvirt_has_ended_the_one_here(site: Site) -> None:
    report = site.run()
    assert site.there.done == ["resume VM1"]
    assert (report.held, report.downtime, report.disk_bytes) == (False, MOVED.downtime, MOVED.disk_bytes)


def test_it_goes_on_in_the_moment_in_which_qemu_has_ended_here_and_only_once(site: Site) -> None:
    site.qemu_ends_at = 2
    assert not site.run().held
    assert site.there.done == ["resume VM1"]
    # By the connection that was opened beforehand.
    assert len(site.there.opened) == 1


def test_a_qemu_that_ends_before_the_vm_has_arrived_lets_nothing_go_on(site: Site) -> None:
    site.qemu_ends_at, site.becomes, site.error = 1, (SHUT_OFF, HALF), LOST
    assert site.refused() is LOST


@pytest.mark.parametrize("problem", [FileNotFoundError("no such file"), ValueError("no number"), OSError("no pidfd")])
def test_where_the_end_of_qemu_cannot_be_watched_it_goes_on_when_libvirt_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch, problem: Exception,
) -> None:
    def unknown(_domain: str) -> int:
        raise problem

    monkeypatch.setattr(live_migration, "process_id", unknown)
    assert not site.run().held
    assert (site.there.done, site.ended) == (["resume VM1"], None)


def test_what_it_waited_to_be_let_go_on_is_part_of_its_downtime(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = site.there.resume

    def slow(domain: str) -> None:
        site.clock.sleep(0.25)
        resume(domain)

    monkeypatch.setattr(site.there, "resume", slow)
    assert site.run().downtime == MOVED.downtime + 250


def test_one_that_cannot_be_let_go_on_from_here_waits_and_that_is_told(site: Site) -> None:
    site.there.unreachable = 9
    report = site.run()
    assert (report.held, site.there.done) == (True, [])
    assert report.memory_bytes == MOVED.memory_bytes


def test_a_vm_that_got_another_name_goes_on_under_it(site: Site) -> None:
    site.run(dataclasses.replace(MIGRATION, new_name="web"))
    assert site.there.done == ["resume web"]


# One that is not.


@pytest.mark.parametrize(("migration", "facts", "view"), [(POST_COPY, FACTS, RUNNING), (MIGRATION, WAS_PAUSED, PAUSED)])
def test_a_vm_that_is_not_held_is_neither_watched_nor_let_go_on(
    site: Site, migration: Migration, facts: DomainFacts, view: DomainView,
) -> None:
    site.here.views, site.becomes, site.qemu_ends_at = [view], (MIGRATED, view), 2
    report = site.run(migration, facts)
    assert (site.there.done, site.ended, report.held) == ([], None, False)
    assert report.downtime == MOVED.downtime
    assert not site.targets[0].held


def test_of_one_that_is_shut_off_the_definition_alone_goes(site: Site) -> None:
    site.here.views, site.becomes = [SHUT_OFF], (SHUT_OFF, SHUT_OFF)
    report = site.run(facts=dataclasses.replace(FACTS, state=DomainState.SHUT_OFF))
    assert report == MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1)
    assert (site.targets[0].offline, site.there.done) == (True, [])


# Where libvirt says that it failed.


def test_an_error_after_the_vm_has_left_is_a_move(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.error = LOST
    report = site.run()
    assert (report.held, site.there.done) == (False, ["resume VM1"])
    assert "has moved although libvirt said" in caplog.text


@pytest.mark.parametrize("there", [ARRIVED, RUNNING])
def test_a_libvirt_that_was_started_anew_has_forgotten_that_the_vm_has_left_and_the_other_side_tells(
    site: Site, there: DomainView,
) -> None:
    site.error, site.becomes = LOST, (SHUT_OFF, there)
    assert not site.run().held
    assert site.there.done == (["resume VM1"] if there is ARRIVED else [])


@pytest.mark.parametrize("becomes", [
    (RUNNING, ABSENT), (RUNNING, ARRIVED), (PAUSED, ARRIVED), (SHUT_OFF, ABSENT), (SHUT_OFF, HALF),
    (SHUT_OFF, BROKEN_OFF), (ABSENT, ABSENT),
])
def test_an_error_is_one_as_long_as_the_vm_may_still_be_here_alone(
    site: Site, becomes: tuple[DomainView, DomainView],
) -> None:
    site.error, site.becomes = LOST, becomes
    assert site.refused() is LOST


def test_a_vm_that_its_migration_left_paused_here_goes_on_here_and_that_is_an_error(site: Site) -> None:
    def look(_domain: str) -> DomainView:
        return RUNNING if "resume VM1" in site.here.done else HALF

    site.error = LOST
    site.here.state = lambda domain: DomainState.RUNNING  # type: ignore[method-assign]
    site.here.view = look  # type: ignore[method-assign]
    assert site.refused() is LOST
    assert site.here.done == ["resume VM1"]


def test_a_vm_that_does_not_come_to_rest_is_an_error(site: Site) -> None:
    site.error, site.here.jobs = LOST, 1_000_000
    assert site.refused() is LOST


@pytest.mark.parametrize(("migration", "facts", "view"), [(POST_COPY, FACTS, RUNNING), (MIGRATION, WAS_PAUSED, PAUSED)])
def test_a_vm_that_was_not_held_has_moved_too_although_libvirt_said_no_if_its_source_gave_it_up(
    site: Site, migration: Migration, facts: DomainFacts, view: DomainView,
) -> None:
    site.here.views, site.error, site.becomes = [view], LOST, (MIGRATED, view)
    report = site.run(migration, facts)
    assert (report.held, site.there.done) == (False, [])
    site.here.views, site.looks, site.becomes = [view], 0, (view, ABSENT)
    assert site.refused(migration, facts) is LOST


def figures(*left: int) -> Iterator[JobStatistics]:
    """libvirt's, with so much memory left at each look."""
    return iter([JobStatistics(
        disk_done=0, disk_total=0, memory_done=9000 - each, memory_total=9000, memory_left=each) for each in left])


def test_a_post_copy_that_libvirt_gave_up_is_followed_through_its_tunnel_as_long_as_its_memory_follows(
    site: Site,
) -> None:
    def look(_domain: str) -> DomainView:
        site.here.views = [RUNNING] if site.looks < LOOKS else [next(seen, MIGRATED)]
        return site.here.views[0]

    seen = iter([BROKEN_OFF] * 150)
    site.here.view = look  # type: ignore[method-assign]
    site.here.figures = figures(*range(9000, 0, -50))
    site.way.keep()
    site.error, site.becomes = LOST, (BROKEN_OFF, RUNNING)
    report = site.run(POST_COPY)
    assert (report.memory_bytes, report.held) == (MOVED.memory_bytes, False)
    assert (site.here.done, site.way.closed) == ([], 1)
    assert len({each.done for each in site.told}) > 100


@pytest.mark.parametrize(("here", "closed"), [(BROKEN_OFF, 0), (RUNNING, 1)])
def test_a_tunnel_that_was_kept_stays_open_only_for_a_vm_that_is_on_both_hosts_in_part(
    site: Site, here: DomainView, closed: int,
) -> None:
    site.way.keep()
    site.error, site.becomes = LOST, (here, HALF_ARRIVED)
    assert site.refused(POST_COPY) is LOST
    assert (site.way.closed, site.here.done) == (closed, [])


# By an agent that was started anew.


def test_a_migration_that_was_begun_before_is_followed_to_its_end_and_none_is_begun(site: Site) -> None:
    site.here.jobs, site.here.views, site.there.views = 20, [MIGRATED], [ARRIVED]
    began = site.clock.now
    report = site.adopt()
    assert (report.held, report.memory_bytes, site.there.done) == (False, MOVED.memory_bytes, ["resume VM1"])
    assert site.clock.now > began
    assert (site.targets, site.here.done) == ([], [])
    assert (site.way.closed, site.events[-1]) == (1, f"removed {SOCKETS.directory}")


def test_where_libvirtd_dies_over_it_it_is_looked_at_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.here.views, site.there.views = [MIGRATED], [ARRIVED]
    looks = iter([True, bindings.libvirt.libvirtError("End of file while reading data")])

    def has_job(_domain: str) -> bool:
        look = next(looks, False)
        if isinstance(look, Exception):
            raise look
        return look

    monkeypatch.setattr(site.here, "has_job", has_job)
    assert not site.adopt().held
    assert site.there.done == ["resume VM1"]


def test_the_end_of_qemu_is_watched_then_too(site: Site) -> None:
    site.here.views, site.there.views = [MIGRATED], [ARRIVED]
    site.adopt()
    assert site.ended is not None


@pytest.mark.parametrize(("here", "there"), [(RUNNING, ABSENT), (RUNNING, HALF), (SHUT_OFF, ABSENT)])
def test_one_that_did_not_leave_was_interrupted_and_what_was_left_of_it_is_cleared_up(
    site: Site, here: DomainView, there: DomainView,
) -> None:
    site.here.views, site.there.views = [here], [there]
    assert site.refused(adopt=True).code is ErrorCode.MIGRATION_INTERRUPTED
    assert (site.way.closed, site.events[-1]) == (1, f"removed {SOCKETS.directory}")


@pytest.mark.parametrize(("migration", "facts", "there"), [
    (POST_COPY, FACTS, RUNNING), (MIGRATION, WAS_PAUSED, PAUSED)])
def test_one_that_was_not_held_and_that_its_source_gave_up_meanwhile_has_moved(
    site: Site, migration: Migration, facts: DomainFacts, there: DomainView,
) -> None:
    site.here.jobs, site.here.views, site.there.views = 20, [MIGRATED], [there]
    report = site.adopt(migration, facts)
    assert (report.memory_bytes, report.held, site.here.done) == (MOVED.memory_bytes, False, [])
    for half in (HALF_ARRIVED, HALF):
        site.here.views, site.there.views = [SHUT_OFF], [half]
        assert site.refused(migration, facts, adopt=True).code is ErrorCode.MIGRATION_INTERRUPTED


def test_the_job_that_libvirt_keeps_of_a_post_copy_that_broke_off_is_not_followed_for_ever(site: Site) -> None:
    site.here.jobs, site.here.views, site.there.views = 1_000_000, [BROKEN_OFF], [HALF_ARRIVED]
    site.refused(POST_COPY, adopt=True)
    assert site.here.done == []


def test_a_libvirt_that_cannot_be_asked_leaves_nothing_open(site: Site) -> None:
    site.here.unreachable = 1
    assert site.refused(adopt=True).code is ErrorCode.LIBVIRT_UNREACHABLE
    assert (site.way.closed, site.events) == (1, [f"removed {SOCKETS.directory}"])
