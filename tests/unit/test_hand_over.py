"""HAND_OVER, and the source's own way to release a VM over there: when one that is held goes on, and when not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.unit.one_domain import POST_COPY, WAS_PAUSED

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import Command, DomainState, OnTimeout, Pause
from steps import hand_over
from steps.hand_over import Peer, has_arrived, is_held
from steps.table import STEPS
from tests.unit.one_domain import (
    ABSENT,
    ARRIVED,
    BROKEN_OFF,
    HALF,
    RUNNING,
    SHUT_OFF,
    OneDomain,
    context_on,
    put_here,
)
from tests.unit.samples import DESTINATION, FACTS, MIGRATION
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.records import Convergence, Migration, StepArguments
from wire.situation import DomainView

RENAMED = dataclasses.replace(MIGRATION, new_name="web")
URI = "qemu+unix:///system?socket=/x"


@pytest.mark.parametrize(("migration", "state", "held"), [
    (MIGRATION, DomainState.RUNNING, True), (MIGRATION, DomainState.PAUSED, False),
    (MIGRATION, DomainState.SHUT_OFF, False), (POST_COPY, DomainState.RUNNING, False),
    (dataclasses.replace(MIGRATION, timeout=9, convergence=Convergence(on_timeout=OnTimeout.POST_COPY)),
     DomainState.RUNNING, False),
    (dataclasses.replace(MIGRATION, timeout=9, convergence=Convergence(on_timeout=OnTimeout.SUSPEND)),
     DomainState.RUNNING, True),
])
def test_a_running_vm_is_held_at_its_arrival_unless_there_may_be_no_way_back(
    migration: Migration, state: DomainState, held: bool,
) -> None:
    assert is_held(migration, dataclasses.replace(FACTS, state=state)) is held


def test_a_vm_has_arrived_when_libvirt_says_that_it_is_paused_by_nothing_else() -> None:
    for pause in Pause:
        assert has_arrived(DomainView(state=DomainState.PAUSED, pause=pause)) is (pause is Pause.SOMEBODY)
    for view in (RUNNING, SHUT_OFF, ABSENT):
        assert not has_arrived(view)


# The command.


def handed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: OneDomain, *, gave_up: bool = True,
    migration: Migration = RENAMED, facts: DomainFacts = FACTS,
) -> str:
    """HAND_OVER's summary."""
    put_here(monkeypatch, here)
    return hand_over.run(context_on(DESTINATION, tmp_path), StepArguments(
        migration=migration, facts=facts, source_gave_up=gave_up)).summary


def test_a_vm_that_has_arrived_goes_on_under_its_name_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = OneDomain.of(ARRIVED)
    assert handed(monkeypatch, tmp_path, here) == "it goes on here"
    assert here.done == ["resume web"]
    assert STEPS[Command.HAND_OVER] is hand_over.run


@pytest.mark.parametrize("gave_up", [True, False])
def test_a_vm_that_runs_here_already_has_been_handed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gave_up: bool,
) -> None:
    here = OneDomain.of(RUNNING)
    assert handed(monkeypatch, tmp_path, here, gave_up=gave_up) == "it runs already"
    assert here.done == []


@pytest.mark.parametrize(("view", "gave_up", "migration", "facts"), [
    (ARRIVED, False, RENAMED, FACTS), (HALF, True, RENAMED, FACTS), (BROKEN_OFF, True, RENAMED, FACTS),
    (SHUT_OFF, True, RENAMED, FACTS), (ABSENT, True, RENAMED, FACTS), (ARRIVED, True, POST_COPY, FACTS),
    (ARRIVED, True, RENAMED, WAS_PAUSED),
])
def test_a_vm_that_its_source_may_have_or_that_is_not_all_here_does_not_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, view: DomainView, gave_up: bool, migration: Migration,
    facts: DomainFacts,
) -> None:
    here = OneDomain.of(view)
    with pytest.raises(MigrationError) as caught:
        handed(monkeypatch, tmp_path, here, gave_up=gave_up, migration=migration, facts=facts)
    assert caught.value.code is ErrorCode.NOT_AS_EXPECTED
    assert view.state.value in caught.value.message
    assert here.done == []


# From the source.


def peer(monkeypatch: pytest.MonkeyPatch, there: OneDomain) -> Peer:
    """The libvirt over there, as the source has it."""
    put_here(monkeypatch, OneDomain.of(RUNNING), there)
    return Peer(URI, RENAMED)


def test_when_the_qemu_here_has_ended_what_has_arrived_goes_on_at_once_and_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = OneDomain.of(ARRIVED)
    with peer(monkeypatch, there) as opened:
        opened.source_ended()
        assert opened.release()
    assert there.done == ["resume web"]
    # By the connection that was opened beforehand.
    assert (there.opened, there.closed) == ([URI], 1)


def test_a_vm_that_was_looked_up_beforehand_goes_on_without_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    there = OneDomain.of(HALF, ARRIVED)
    with peer(monkeypatch, there) as opened:
        opened.begun()
        monkeypatch.setattr(there, "has_arrived", None)
        opened.source_ended()
        assert opened.release()
    assert there.done == ["resume web"]


@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("view", [HALF, BROKEN_OFF, RUNNING, SHUT_OFF, ABSENT])
def test_when_the_qemu_here_has_ended_for_another_reason_nothing_is_let_go_on(
    monkeypatch: pytest.MonkeyPatch, view: DomainView, looked_up: bool,
) -> None:
    there = OneDomain.of(view)
    with peer(monkeypatch, there) as opened:
        if looked_up:
            opened.begun()
        opened.source_ended()
    assert there.done == []


def test_a_qemu_that_ends_after_libvirt_has_given_the_migration_up_has_not_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = OneDomain.of(ARRIVED)
    with peer(monkeypatch, there) as opened:
        opened.begun()
        opened.failed()
        opened.source_ended()
    assert there.done == []


def test_what_could_not_be_let_go_on_at_once_is_when_libvirt_has_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (OneDomain.of(ARRIVED, unreachable=1), OneDomain.of(ARRIVED, refusing=True)):
        with peer(monkeypatch, there) as opened:
            opened.source_ended()
            there.refusing = False
            assert opened.release()
        assert there.done[-1] == "resume web"


def test_a_vm_that_goes_on_over_there_already_is_not_told_to_again(monkeypatch: pytest.MonkeyPatch) -> None:
    there = OneDomain.of(RUNNING)
    with peer(monkeypatch, there) as opened:
        assert opened.release()
    assert there.done == []


def test_a_vm_that_cannot_be_released_waits_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    for there in (OneDomain.of(ARRIVED, unreachable=9), OneDomain.of(ARRIVED, refusing=True)):
        with peer(monkeypatch, there) as opened:
            assert not opened.release()
            assert opened.view() == (None if there.unreachable else ARRIVED)
        assert "VM web waits over there to be handed over" in caplog.text
        caplog.clear()
