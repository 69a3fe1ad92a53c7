"""FINISH: what is looked at, what is cleared up, and what the guest's agent is asked for on the destination."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import DomainState
from host.hypervisor import Hypervisor
from steps import finish
from steps.context import Cancellation, StepContext
from tests.unit.samples import AGENTS, DESTINATION, FACTS, MIGRATION, SOURCE
from wire.errors import ErrorCode, MigrationError
from wire.records import StepArguments


@dataclasses.dataclass
class Site:
    """A host's libvirt, and what its domain and the agent in it were told."""

    state_there: DomainState = DomainState.RUNNING
    agent: str | None = None
    """Why it does not answer."""
    failing: bool = False
    starts: bool = True
    told: list[str] = dataclasses.field(default_factory=list)

    def state(self, _domain: str) -> DomainState:
        return self.state_there

    def autostart(self, _domain: str) -> bool:
        return self.starts

    def set_autostart(self, _domain: str, enabled: bool) -> None:
        self.starts = enabled

    def agent_problem(self, _domain: str) -> str | None:
        return self.agent

    def set_clock(self, domain: str) -> None:
        if self.failing:
            raise MigrationError(ErrorCode.LIBVIRT_ERROR, {"host": DESTINATION, "reason": "no clock"})
        self.told.append(f"clock of {domain}")

    def trim(self, domain: str) -> None:
        self.told.append(f"trim {domain}")


Finish = Callable[..., str]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Finish:
    """FINISH on a host; its summary."""
    def run(site: Site, host: str = DESTINATION, *, stood_still: int = 0, trim: bool = False) -> str:
        @contextlib.contextmanager
        def opened(_host: str) -> Iterator[Site]:
            yield site

        monkeypatch.setattr(Hypervisor, "open", opened)
        context = StepContext(
            host=host, epoch="", challenge="", destinations=AGENTS, state_directory=tmp_path,
            cancellation=Cancellation(), progress=lambda _progress: None)
        migration = dataclasses.replace(MIGRATION, trim=trim, new_name="web")
        arguments = StepArguments(migration=migration, facts=FACTS, stood_still=stood_still)
        return finish.run(context, arguments).summary
    return run


def test_a_guest_that_stood_still_for_a_second_has_its_clock_set_and_others_have_not(ended: Finish) -> None:
    site = Site()
    assert ended(site, stood_still=999) == "running here"
    assert site.told == []
    assert ended(site, stood_still=1000, trim=True) == "running here, its clock set, its file systems trimmed"
    assert site.told == ["clock of web", "trim web"]


@pytest.mark.parametrize("site", [Site(agent="not connected"), Site(failing=True)], ids=["silent", "failing"])
def test_a_clock_that_cannot_be_set_makes_no_failure_of_a_move(ended: Finish, site: Site) -> None:
    assert ended(site, stood_still=90_000) == "running here"


def test_a_guest_that_arrived_paused_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch, ended: Finish) -> None:
    monkeypatch.setattr("tests.unit.test_finish.FACTS", dataclasses.replace(FACTS, state=DomainState.PAUSED))
    site = Site(DomainState.PAUSED)
    assert ended(site, stood_still=90_000, trim=True) == "paused here"
    assert site.told == []


def test_the_copy_left_behind_does_not_start_with_its_host(ended: Finish) -> None:
    site = Site(DomainState.SHUT_OFF)
    assert ended(site, SOURCE, stood_still=90_000, trim=True) == "shut off here, its disks kept"
    assert (site.starts, site.told) == (False, [])


@pytest.mark.parametrize(("host", "state"), [(DESTINATION, DomainState.SHUT_OFF), (SOURCE, DomainState.RUNNING)])
def test_a_vm_that_is_not_where_it_should_be_is_an_error_and_nothing_is_done(
        ended: Finish, host: str, state: DomainState) -> None:
    site = Site(state)
    with pytest.raises(MigrationError) as caught:
        ended(site, host)
    assert caught.value.code is ErrorCode.NOT_AS_EXPECTED
    assert site.starts
