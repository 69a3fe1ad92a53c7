"""How a host settles a job that nobody drives any more: for each pair of views what is done, or left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.one_domain import WAS_PAUSED

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import Command, DomainState, LibvirtDaemon, Outcome
from host.job_history import JobHistory
from host.ssh import Login
from steps import settle
from steps.context import StepContext
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
from tests.unit.samples import DESTINATION, FACTS, MIGRATION, MOVED, NOTE, SOURCE
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.history import JobRecord
from wire.records import Convergence, Migration, RollBackReport, StepArguments, StepReport
from wire.situation import DomainView

HELD = dataclasses.replace(
    MIGRATION, new_name="web", source_daemon=LibvirtDaemon.VIRTQEMUD, destination_daemon=LibvirtDaemon.LIBVIRTD)
POST_COPY = dataclasses.replace(HELD, convergence=Convergence(post_copy=True))
WAS_OFF = dataclasses.replace(FACTS, state=DomainState.SHUT_OFF)
BUSY = dataclasses.replace(RUNNING, busy=True)
NOBODY = None
ARRIVING = ["EXTRACT_CONFIGURE_FILE", "DEFINE_VIRTUAL_MACHINE", "FINISH"]


class Site:
    """Two hosts: what is asked of the other one, and which steps are run here."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.directory = directory
        self.ran: list[str] = []
        self.asked: list[tuple[str, str, LibvirtDaemon, str]] = []
        self.there: DomainView | None = None
        self.cleared_to = ABSENT
        self._patch = patch
        for name in ("extract_configure_file", "define_virtual_machine", "finish", "hand_over"):
            patch.setattr(f"steps.{name}.run", self._step(name.upper()))
        patch.setattr("steps.roll_back.run", self._roll_back)
        patch.setattr(settle, "view_elsewhere", self._look)
        put_clock(patch)

    def _step(self, name: str) -> Callable[[StepContext, StepArguments], StepReport]:
        def run(_context: StepContext, arguments: StepArguments) -> StepReport:
            self.ran.append(name + (" given up" if arguments.source_gave_up else ""))
            return StepReport(summary="did it")
        return run

    def _roll_back(self, _context: StepContext, arguments: StepArguments) -> RollBackReport:
        self.ran.append("ROLL_BACK" + (" source keeps" if arguments.source_keeps else ""))
        return RollBackReport(state=self.cleared_to.state, removed=(), cleared=True)

    def _look(self, login: Login, daemon: LibvirtDaemon, job_id: str, domain: str) -> DomainView | None:
        assert job_id == MIGRATION.job_id
        self.asked.append((login.host, login.destination, daemon, domain))
        return self.there

    def settle(
        self, host: str, here: DomainView, there: DomainView | None, *, alone: bool = True, facts: DomainFacts = FACTS,
        migration: Migration = HELD, **changes: Any,
    ) -> Outcome | None:
        """What comes of it."""
        self.there = there
        put_here(self._patch, OneDomain.of(here))
        context = dataclasses.replace(context_on(host, self.directory), **changes)
        return settle.run(context, StepArguments(migration=migration, facts=facts), alone=alone)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """Both hosts."""
    return Site(monkeypatch, tmp_path)


# The source.


@pytest.mark.parametrize("view", [RUNNING, PAUSED])
def test_a_source_that_has_a_vm_that_is_held_takes_it_back_without_asking(site: Site, view: DomainView) -> None:
    assert site.settle(SOURCE, view, RUNNING) is Outcome.ROLLED_BACK
    assert (site.ran, site.asked) == (["ROLL_BACK"], [])


def test_a_source_whose_libvirt_remembers_that_the_vm_has_left_finishes_without_asking(site: Site) -> None:
    assert site.settle(SOURCE, MIGRATED, NOBODY) is Outcome.MOVED
    assert (site.ran, site.asked) == (["FINISH"], [])


def test_a_source_that_another_job_has_moved_the_vm_from_is_not_told_as_moved_by_this_one(site: Site) -> None:
    assert site.settle(SOURCE, MOVED_BY_ANOTHER, ABSENT) is Outcome.ROLLED_BACK
    assert site.ran == ["ROLL_BACK"]
    own = dataclasses.replace(MIGRATED, moved=dataclasses.replace(NOTE, job_id=HELD.job_id))
    assert site.settle(SOURCE, own, NOBODY) is Outcome.MOVED


def test_a_source_does_nothing_while_another_job_moves_the_vm(site: Site, tmp_path: Path) -> None:
    put_job(tmp_path, OTHER_JOB)
    doing = {OTHER_JOB.job_id: (Command.LIVE_MIGRATION,)}
    assert site.settle(SOURCE, BUSY, ABSENT, doing=doing) is None
    assert (site.ran, site.asked) == ([], [])


ON_SOURCE: list[tuple[DomainView, DomainView | None, DomainFacts, Migration, Outcome | None]] = [
    # A libvirtd that was started anew has forgotten that the VM was migrated.
    (SHUT_OFF, RUNNING, FACTS, HELD, Outcome.MOVED), (ABSENT, RUNNING, FACTS, HELD, Outcome.MOVED),
    (SHUT_OFF, ABSENT, FACTS, HELD, Outcome.ROLLED_BACK), (ABSENT, ABSENT, FACTS, HELD, Outcome.ROLLED_BACK),
    (SHUT_OFF, ARRIVED, FACTS, HELD, None), (SHUT_OFF, HALF, FACTS, HELD, None),
    (SHUT_OFF, SHUT_OFF, FACTS, HELD, None), (SHUT_OFF, NOBODY, FACTS, HELD, None), (ABSENT, NOBODY, FACTS, HELD, None),
    # One that may have run over there is not taken back as long as there is anything of it.
    (RUNNING, ABSENT, FACTS, POST_COPY, Outcome.ROLLED_BACK), (RUNNING, RUNNING, FACTS, POST_COPY, None),
    (RUNNING, PAUSED, FACTS, POST_COPY, None), (RUNNING, NOBODY, FACTS, POST_COPY, None),
    (BROKEN_OFF, RUNNING, FACTS, POST_COPY, None), (BROKEN_OFF, BROKEN_OFF, FACTS, POST_COPY, None),
    (SHUT_OFF, RUNNING, FACTS, POST_COPY, Outcome.MOVED), (SHUT_OFF, PAUSED, FACTS, POST_COPY, None),
    (SHUT_OFF, HALF_ARRIVED, FACTS, POST_COPY, None), (BROKEN_OFF, HALF_ARRIVED, FACTS, POST_COPY, None),
    # One that was paused arrives as it was.
    (PAUSED, ABSENT, WAS_PAUSED, HELD, Outcome.ROLLED_BACK), (PAUSED, PAUSED, WAS_PAUSED, HELD, None),
    (SHUT_OFF, PAUSED, WAS_PAUSED, HELD, Outcome.MOVED), (SHUT_OFF, RUNNING, WAS_PAUSED, HELD, None),
    # One that is shut off is so on both, once its definition is over there.
    (SHUT_OFF, SHUT_OFF, WAS_OFF, HELD, Outcome.MOVED), (SHUT_OFF, ABSENT, WAS_OFF, HELD, Outcome.ROLLED_BACK),
    (SHUT_OFF, RUNNING, WAS_OFF, HELD, None), (SHUT_OFF, NOBODY, WAS_OFF, HELD, None),
    (RUNNING, SHUT_OFF, WAS_OFF, HELD, None), (RUNNING, ABSENT, WAS_OFF, HELD, Outcome.ROLLED_BACK),
]
DONE = {Outcome.MOVED: ["FINISH"], Outcome.ROLLED_BACK: ["ROLL_BACK"], None: []}


@pytest.mark.parametrize(("here", "there", "facts", "migration", "outcome"), ON_SOURCE)
def test_a_source_that_cannot_tell_by_itself_goes_by_what_the_other_host_says(
    site: Site, here: DomainView, there: DomainView | None, facts: DomainFacts, migration: Migration,
    outcome: Outcome | None,
) -> None:
    assert site.settle(SOURCE, here, there, facts=facts, migration=migration) is outcome
    assert site.ran == DONE[outcome]
    assert site.asked == [(SOURCE, DESTINATION, LibvirtDaemon.LIBVIRTD, "web")]


def test_a_transient_vm_that_has_moved_and_is_on_neither_host_since_has_moved(site: Site, tmp_path: Path) -> None:
    history = JobHistory(tmp_path)
    transient = dataclasses.replace(FACTS, persistent=False)
    kept = JobRecord(arguments=StepArguments(migration=HELD, facts=transient), asked_by="x", since=1)
    for moved, outcome in ((None, Outcome.ROLLED_BACK), (MOVED, Outcome.MOVED)):
        history.put(dataclasses.replace(kept, moved=moved))
        assert site.settle(SOURCE, ABSENT, ABSENT, facts=transient) is outcome
    assert site.ran == ["ROLL_BACK", "FINISH"]


def test_a_source_on_which_post_copy_broke_off_is_not_told_as_rolled_back(site: Site) -> None:
    assert site.settle(SOURCE, BROKEN_OFF, ABSENT, migration=POST_COPY) is None


def test_a_source_on_which_the_vm_does_not_come_to_rest_leaves_it_alone(site: Site) -> None:
    assert site.settle(SOURCE, BUSY, ABSENT) is None
    assert (site.ran, site.asked) == ([], [])


@pytest.mark.parametrize("view", [RUNNING, MIGRATED, SHUT_OFF, ABSENT])
def test_a_source_does_nothing_as_long_as_its_controller_may_come_back(site: Site, view: DomainView) -> None:
    assert site.settle(SOURCE, view, RUNNING, alone=False) is None
    assert (site.ran, site.asked) == ([], [])


# The destination.


@pytest.mark.parametrize("there", [MIGRATED, ABSENT])
def test_a_vm_that_is_held_goes_on_as_soon_as_its_source_has_given_it_up(site: Site, there: DomainView) -> None:
    assert site.settle(DESTINATION, ARRIVED, there, alone=False) is None
    assert site.ran == ["HAND_OVER given up"]
    assert site.asked == [(DESTINATION, SOURCE, LibvirtDaemon.VIRTQEMUD, "VM1")]
    assert site.settle(DESTINATION, ARRIVED, there) is Outcome.MOVED
    assert site.ran[1:] == ["HAND_OVER given up", *ARRIVING]


@pytest.mark.parametrize("there", [RUNNING, PAUSED, HALF, BUSY, BROKEN_OFF, SHUT_OFF, NOBODY])
def test_a_vm_that_is_held_does_not_go_on_while_its_source_may_have_it(site: Site, there: DomainView | None) -> None:
    assert site.settle(DESTINATION, ARRIVED, there, alone=False) is None
    site.settle(DESTINATION, ARRIVED, there)
    assert not [step for step in site.ran if not step.startswith("ROLL_BACK")]


@pytest.mark.parametrize("there", [RUNNING, PAUSED])
def test_a_vm_that_is_held_is_cleared_away_if_its_source_has_it_and_nobody_asks_any_more(
    site: Site, there: DomainView,
) -> None:
    assert site.settle(DESTINATION, ARRIVED, there) is Outcome.ROLLED_BACK
    assert site.ran == ["ROLL_BACK source keeps"]


def test_a_vm_that_is_held_is_not_ended_because_its_source_is_shut_off_and_does_not_remember_why(site: Site) -> None:
    site.settle(DESTINATION, ARRIVED, SHUT_OFF)
    assert site.ran == []


def test_a_vm_that_its_source_gave_up_and_that_was_shut_off_here_since_has_arrived(site: Site) -> None:
    assert site.settle(DESTINATION, SHUT_OFF, MIGRATED, alone=False) is None
    assert site.ran == []
    assert site.settle(DESTINATION, SHUT_OFF, MIGRATED) is Outcome.MOVED
    assert site.ran == [f"{step} given up" for step in ARRIVING]
    for there in (SHUT_OFF, ABSENT, RUNNING):
        assert site.settle(DESTINATION, SHUT_OFF, there) is None


def test_what_was_made_for_a_vm_that_never_came_is_cleared_away_if_its_source_has_it(site: Site) -> None:
    for there, migration in ((RUNNING, HELD), (PAUSED, HELD), (RUNNING, POST_COPY)):
        assert site.settle(DESTINATION, ABSENT, there, migration=migration) is Outcome.ROLLED_BACK
    assert site.ran == ["ROLL_BACK source keeps"] * 3
    # Shut off with its host, for example: what never came is cleared away too.
    assert site.settle(DESTINATION, ABSENT, SHUT_OFF) is Outcome.ROLLED_BACK
    # Moved elsewhere meanwhile.
    assert site.settle(DESTINATION, ABSENT, MOVED_BY_ANOTHER) is Outcome.ROLLED_BACK
    assert site.settle(DESTINATION, ARRIVED, MOVED_BY_ANOTHER, migration=POST_COPY) is None
    site.cleared_to = HALF
    assert site.settle(DESTINATION, ABSENT, RUNNING) is None


@pytest.mark.parametrize("there", [MIGRATED, ABSENT, NOBODY, HALF, BUSY, BROKEN_OFF])
def test_nothing_is_cleared_away_while_the_vm_may_be_nowhere_else(site: Site, there: DomainView | None) -> None:
    for migration in (HELD, POST_COPY):
        assert site.settle(DESTINATION, ABSENT, there, migration=migration) is None
    assert site.ran == []


@pytest.mark.parametrize(("here", "facts", "migration"), [
    (RUNNING, FACTS, HELD), (RUNNING, FACTS, POST_COPY)])
def test_a_vm_that_runs_here_has_arrived_for_good(
    site: Site, here: DomainView, facts: DomainFacts, migration: Migration,
) -> None:
    assert site.settle(DESTINATION, here, NOBODY, facts=facts, migration=migration) is Outcome.MOVED
    assert (site.ran, site.asked) == (ARRIVING, [])


@pytest.mark.parametrize(("there", "outcome"), [(MIGRATED, Outcome.MOVED), (PAUSED, None), (NOBODY, None)])
def test_a_vm_that_was_paused_has_arrived_once_the_source_does_not_hold_it_any_more(
    site: Site, there: DomainView | None, outcome: Outcome | None,
) -> None:
    assert site.settle(DESTINATION, PAUSED, there, facts=WAS_PAUSED) is outcome


@pytest.mark.parametrize("view", [RUNNING, ABSENT, SHUT_OFF, HALF])
def test_a_destination_leaves_all_to_its_controller_but_a_vm_that_waits(site: Site, view: DomainView) -> None:
    assert site.settle(DESTINATION, view, RUNNING, alone=False) is None
    assert (site.ran, site.asked) == ([], [])


@pytest.mark.parametrize("half", [HALF, BROKEN_OFF])
def test_what_is_half_here_is_left_alone(site: Site, half: DomainView) -> None:
    assert site.settle(DESTINATION, half, RUNNING) is None
    assert site.settle(DESTINATION, half, RUNNING, facts=WAS_PAUSED) is None
    assert site.settle(DESTINATION, HALF_ARRIVED, BROKEN_OFF, migration=POST_COPY) is None
    assert (site.ran, site.asked) == ([], [])


@pytest.mark.parametrize(("here", "there"), [(PAUSED, RUNNING), (PAUSED, MIGRATED), (SHUT_OFF, RUNNING)])
def test_a_vm_that_may_have_run_here_is_neither_ended_nor_let_go_on(
    site: Site, here: DomainView, there: DomainView,
) -> None:
    assert site.settle(DESTINATION, here, there, migration=POST_COPY) is None
    assert site.ran == []


# A VM that is moved shut off.


@pytest.mark.parametrize(("there", "outcome"), [
    (SHUT_OFF, Outcome.MOVED), (ABSENT, Outcome.MOVED), (RUNNING, None), (PAUSED, None), (NOBODY, None)])
def test_a_vm_that_is_shut_off_has_arrived_with_its_definition_unless_it_runs_on_its_source(
    site: Site, there: DomainView | None, outcome: Outcome | None,
) -> None:
    assert site.settle(DESTINATION, SHUT_OFF, there, facts=WAS_OFF) is outcome
    assert site.ran == (ARRIVING if outcome is not None else [])


# The other host.


def test_a_host_that_is_not_on_the_list_is_not_logged_in_to(site: Site) -> None:
    nobody = dataclasses.replace(context_on(SOURCE, site.directory).destinations, networks=())
    assert site.settle(DESTINATION, ARRIVED, MIGRATED, destinations=nobody) is None
    assert site.settle(SOURCE, SHUT_OFF, RUNNING, destinations=nobody) is None
    assert (site.ran, site.asked) == ([], [])


def test_a_host_that_cannot_be_logged_in_to_has_said_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_what: object) -> DomainView:
        raise MigrationError(ErrorCode.SSH_LOGIN_REFUSED, {"host": SOURCE, "user": "kvm", "reason": "no key"})

    monkeypatch.setattr(settle, "view_elsewhere", refused)
    assert site.settle(DESTINATION, ARRIVED, MIGRATED) is None
    assert site.settle(SOURCE, SHUT_OFF, RUNNING) is None
    assert site.ran == []
