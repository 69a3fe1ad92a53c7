"""ROLL_BACK: what it removes on the destination and when, and how the source tells that it keeps the VM."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.one_domain import POST_COPY, WAS_PAUSED

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import Command, DomainState, Outcome, Pause
from host.domain_xml import describe
from host.file_identity import FileIdentity
from host.hypervisor import OtherDomain
from host.job_files import JobSockets, Ledger, MadeKind
from steps import roll_back
from tests.unit.libvirtd import document
from tests.unit.one_domain import (
    ABSENT,
    ARRIVED,
    BROKEN_OFF,
    HALF,
    HALF_ARRIVED,
    MIGRATED,
    MOVED_BY_ANOTHER,
    OTHER_JOB,
    PAUSED,
    RUNNING,
    SHUT_OFF,
    OneDomain,
    context_on,
    put_clock,
    put_here,
    put_job,
)
from tests.unit.samples import DESTINATION, FACTS, MIGRATION, SOURCE, FakeClock
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.history import JobRecord
from wire.records import Migration, RollBackReport, StepArguments
from wire.situation import DomainView

RollBack = Callable[..., RollBackReport]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock by which it waits."""
    return put_clock(monkeypatch)


@pytest.fixture
def rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> RollBack:
    """Roll back on a host with that VM, where the job has made an image and a directory for its sockets."""
    monkeypatch.setattr("host.job_files._SOCKET_ROOT", str(tmp_path))
    monkeypatch.setattr("host.orphans.find", lambda _directory: [])

    def run(
        here: OneDomain, *, host: str = DESTINATION, source_keeps: bool = True, migration: Migration = MIGRATION,
        facts: DomainFacts = FACTS, **changes: Any,
    ) -> RollBackReport:
        put_here(monkeypatch, here)
        context = dataclasses.replace(context_on(host, tmp_path), **changes)
        image, sockets = tmp_path / "image", Path(JobSockets.of(MIGRATION).directory)
        image.write_text("the last good copy")
        sockets.mkdir()
        context.ledger(MIGRATION).add(MadeKind.IMAGE, str(image), FileIdentity.at(str(image)))
        context.ledger(MIGRATION).add(MadeKind.SOCKET_DIRECTORY, str(sockets), FileIdentity.at(str(sockets)))
        return roll_back.run(context, StepArguments(migration=migration, facts=facts, source_keeps=source_keeps))
    return run


def left(directory: Path) -> set[str]:
    """What is still there of what the job made."""
    return {path.name.partition("-")[0] for path in directory.iterdir() if path.name != "jobs"}


# The destination.


def test_what_the_job_made_goes_when_the_source_alone_has_the_vm(rolled_back: RollBack, tmp_path: Path) -> None:
    report = rolled_back(OneDomain.of(ABSENT))
    removed = (str(tmp_path / "vmmigration-0badcafe"), str(tmp_path / "image"))
    assert report == RollBackReport(state=DomainState.ABSENT, removed=removed, cleared=True)
    assert left(tmp_path) == set()
    assert not list((tmp_path / "jobs").iterdir())


@pytest.mark.parametrize("view", [ABSENT, SHUT_OFF, RUNNING])
def test_nothing_is_removed_unless_the_source_is_known_to_keep_the_vm(
    rolled_back: RollBack, tmp_path: Path, view: DomainView,
) -> None:
    assert rolled_back(OneDomain.of(view), source_keeps=False) == RollBackReport(state=view.state, removed=())
    assert left(tmp_path) == {"image", "vmmigration"}
    assert len(Ledger(MIGRATION.job_id, tmp_path / "jobs").entries()) == 2


@pytest.mark.parametrize("view", [SHUT_OFF, RUNNING, BROKEN_OFF])
def test_nothing_is_removed_while_the_vm_is_here(
    rolled_back: RollBack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: DomainView,
) -> None:
    monkeypatch.setattr(roll_back, "_GONE_SECONDS", -1.0)
    here = OneDomain.of(view)
    assert rolled_back(here) == RollBackReport(state=view.state, removed=(), split=view.split)
    assert left(tmp_path) == {"image", "vmmigration"}
    assert here.done == []


def test_a_half_arrived_vm_is_waited_for_until_libvirt_has_ended_it(
    rolled_back: RollBack, tmp_path: Path, clock: FakeClock,
) -> None:
    began = clock.now
    assert rolled_back(OneDomain.of(HALF, HALF, HALF, ABSENT)).cleared
    assert left(tmp_path) == set()
    assert clock.now > began


def test_a_half_arrived_vm_that_stays_keeps_its_image_and_is_not_waited_for_for_ever(
    rolled_back: RollBack, tmp_path: Path, clock: FakeClock,
) -> None:
    began = clock.now
    here = OneDomain.of(HALF)
    assert rolled_back(here) == RollBackReport(state=DomainState.PAUSED, removed=())
    assert (left(tmp_path), here.done) == ({"image", "vmmigration"}, [])
    assert 45.0 <= clock.now - began <= 46.0


def test_a_vm_that_was_held_here_and_never_ran_is_ended_with_its_definition_if_the_source_keeps_it(
    rolled_back: RollBack, tmp_path: Path,
) -> None:
    here = OneDomain.of(ARRIVED)
    report = rolled_back(here, migration=dataclasses.replace(MIGRATION, new_name="web"))
    assert here.done == ["drop web and its definition"]
    assert (report.state, report.cleared, len(report.removed)) == (DomainState.ABSENT, True, 2)
    assert left(tmp_path) == set()


def test_a_vm_that_is_held_here_stays_and_says_so_while_the_source_may_have_given_it_up(
    rolled_back: RollBack, tmp_path: Path,
) -> None:
    here = OneDomain.of(ARRIVED)
    report = rolled_back(here, source_keeps=False)
    assert report == RollBackReport(state=DomainState.PAUSED, removed=(), arrived=True)
    assert (left(tmp_path), here.done) == ({"image", "vmmigration"}, [])


@pytest.mark.parametrize(("migration", "facts"), [(POST_COPY, FACTS), (MIGRATION, WAS_PAUSED)])
def test_a_paused_vm_that_may_have_run_here_is_not_ended_and_keeps_its_image(
    rolled_back: RollBack, tmp_path: Path, migration: Migration, facts: DomainFacts,
) -> None:
    here = OneDomain.of(PAUSED)
    report = rolled_back(here, migration=migration, facts=facts)
    assert (report.state, report.removed, report.cleared) == (DomainState.PAUSED, (), False)
    assert (left(tmp_path), here.done) == ({"image", "vmmigration"}, [])


def test_what_cannot_be_removed_is_told_after_all_the_rest_is_gone(rolled_back: RollBack, tmp_path: Path) -> None:
    def unremovable(_domain: str) -> DomainView:
        (tmp_path / "vmmigration-0badcafe" / "somebody's").write_text("x")
        return ABSENT

    here = OneDomain.of(ABSENT)
    here.view = unremovable  # type: ignore[method-assign]
    with pytest.raises(MigrationError) as caught:
        rolled_back(here)
    assert caught.value.code is ErrorCode.NOT_AS_EXPECTED
    assert "vmmigration-0badcafe: Directory not empty" in caught.value.message
    assert left(tmp_path) == {"vmmigration"}


def test_what_another_vm_has_been_given_since_is_left_alone_and_told(
    rolled_back: RollBack, tmp_path: Path,
) -> None:
    image = str(tmp_path / "image")
    other = OtherDomain("other", describe(document(image, name="other")), None, None)
    report = rolled_back(OneDomain.of(ABSENT, others_here=[other]))
    assert (report.spared, report.cleared) == ((image,), True)
    assert report.removed == (str(tmp_path / "vmmigration-0badcafe"),)
    assert left(tmp_path) == {"image"}
    # It is not this job's any more: a second roll back finds nothing either.
    assert not list((tmp_path / "jobs").iterdir())


def test_what_another_vm_that_is_on_its_way_here_will_need_is_left_for_it(
    rolled_back: RollBack, tmp_path: Path,
) -> None:
    image = str(tmp_path / "image")
    facts = dataclasses.replace(FACTS, disks=(dataclasses.replace(FACTS.disks[0], path=image),))
    history = context_on(DESTINATION, tmp_path).history
    other = dataclasses.replace(MIGRATION, job_id="12345678", domain="other", disk=None)
    record = JobRecord(arguments=StepArguments(migration=other, facts=facts), asked_by="admin", since=1)
    history.put(record)
    assert rolled_back(OneDomain.of(ABSENT)).spared == (image,)
    (tmp_path / "image").unlink()
    history.put(record.ending(Outcome.ROLLED_BACK, 2))
    assert rolled_back(OneDomain.of(ABSENT)).spared == ()


# The source.


@pytest.mark.parametrize(("view", "gave_up"), [
    (RUNNING, False), (PAUSED, False), (MIGRATED, True), (ABSENT, True),
])
def test_the_source_tells_its_state_and_whether_it_gave_the_vm_up_and_removes_no_image(
    rolled_back: RollBack, tmp_path: Path, view: DomainView, gave_up: bool,
) -> None:
    report = rolled_back(OneDomain.of(view), host=SOURCE)
    assert report == RollBackReport(state=view.state, removed=(), cleared=not gave_up, gave_up=gave_up)
    assert "image" in left(tmp_path)


def test_a_source_that_has_the_vm_no_more_and_does_not_remember_why_does_not_say_that_all_is_as_before(
    rolled_back: RollBack,
) -> None:
    assert not rolled_back(OneDomain.of(SHUT_OFF), host=SOURCE, source_keeps=False).cleared


def test_a_source_on_which_post_copy_broke_off_does_not_say_that_all_is_as_before(rolled_back: RollBack) -> None:
    report = rolled_back(OneDomain.of(BROKEN_OFF), host=SOURCE, source_keeps=False, migration=POST_COPY)
    assert (report.cleared, report.split) == (False, True)


def test_a_destination_on_which_the_vm_runs_without_all_of_its_memory_says_so_at_once_and_removes_nothing(
    rolled_back: RollBack, tmp_path: Path,
) -> None:
    here = OneDomain.of(HALF_ARRIVED)
    report = rolled_back(here, migration=POST_COPY)
    assert (report.state, report.split, report.cleared, report.removed) == (DomainState.RUNNING, True, False, ())
    assert ("image" in left(tmp_path), here.done) == (True, [])


def test_the_source_brings_the_vm_to_rest_first(rolled_back: RollBack) -> None:
    busy = dataclasses.replace(RUNNING, busy=True)
    here = OneDomain.of(busy, busy, busy, HALF, RUNNING, jobs=1)
    assert rolled_back(here, host=SOURCE).state is DomainState.RUNNING
    assert here.done == ["abort VM1", "end mirrors of VM1", "resume VM1"]


def test_a_source_on_which_the_vm_stays_busy_says_so(rolled_back: RollBack) -> None:
    with pytest.raises(MigrationError) as caught:
        rolled_back(OneDomain.of(RUNNING, jobs=1_000_000), host=SOURCE)
    assert caught.value.code is ErrorCode.NOT_AS_EXPECTED
    assert "still busy" in caught.value.message


@pytest.mark.parametrize("view", [RUNNING, HALF, MIGRATED, MOVED_BY_ANOTHER])
def test_a_job_that_never_began_on_the_source_ends_nothing_that_is_done_with_the_vm_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeClock, view: DomainView,
) -> None:
    monkeypatch.setattr("host.job_files._SOCKET_ROOT", str(tmp_path))
    here = OneDomain.of(dataclasses.replace(view, busy=True), jobs=1_000_000)
    put_here(monkeypatch, here)
    context = dataclasses.replace(context_on(SOURCE, tmp_path), doing={OTHER_JOB.job_id: (Command.LIVE_MIGRATION,)})
    report = roll_back.run(context, StepArguments(migration=MIGRATION, facts=FACTS))
    # It did not move the VM, whoever did.
    assert report == RollBackReport(state=view.state, removed=(), cleared=True)
    assert here.done == []


@pytest.mark.parametrize(("command", "ended"), [
    (Command.LIVE_MIGRATION, []), (Command.COPY_DISK_FILE, []), (Command.CHECK_SOURCE, ["abort VM1"])])
def test_what_another_job_does_with_the_vm_now_is_not_ended_by_one_that_was_given_up(
    rolled_back: RollBack, tmp_path: Path, command: Command, ended: list[str],
) -> None:
    for migration in (MIGRATION, OTHER_JOB):
        put_job(tmp_path, migration)
    here = OneDomain.of(RUNNING, jobs=1)
    report = rolled_back(here, host=SOURCE, doing={OTHER_JOB.job_id: (command,)})
    assert report == RollBackReport(state=DomainState.RUNNING, removed=(), cleared=True)
    assert here.done == ended


def test_a_move_of_another_vm_is_no_reason_to_leave_this_one_locked(rolled_back: RollBack, tmp_path: Path) -> None:
    put_job(tmp_path, dataclasses.replace(OTHER_JOB, domain="VM2"))
    here = OneDomain.of(RUNNING, jobs=1)
    rolled_back(here, host=SOURCE, doing={OTHER_JOB.job_id: (Command.LIVE_MIGRATION,)})
    assert here.done == ["abort VM1"]


def test_a_source_whose_vm_was_moved_by_another_job_did_not_give_it_up_to_this_one(rolled_back: RollBack) -> None:
    report = rolled_back(OneDomain.of(MOVED_BY_ANOTHER), host=SOURCE, source_keeps=False)
    assert (report.state, report.gave_up, report.cleared) == (DomainState.SHUT_OFF, False, False)


def test_the_source_ends_the_ssh_of_an_agent_that_was_killed_and_removes_its_sockets(
    rolled_back: RollBack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []
    monkeypatch.setattr("host.orphans.find", lambda directory: [directory])
    monkeypatch.setattr("host.orphans.end", ended.extend)
    rolled_back(OneDomain.of(RUNNING), host=SOURCE)
    assert ended == [JobSockets.of(MIGRATION).directory]
    assert left(tmp_path) == {"image"}
    # What is left of a post-copy may still go through it.
    rolled_back(OneDomain.of(BROKEN_OFF), host=SOURCE, migration=POST_COPY)
    assert len(ended) == 1


@pytest.mark.parametrize("pause", [Pause.SOMEBODY, Pause.OTHER])
def test_a_vm_that_was_not_paused_by_its_migration_is_left_paused_on_the_source(
    rolled_back: RollBack, pause: Pause,
) -> None:
    here = OneDomain.of(DomainView(state=DomainState.PAUSED, pause=pause))
    assert rolled_back(here, host=SOURCE).state is DomainState.PAUSED
    assert here.done == []
