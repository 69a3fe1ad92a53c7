"""FINISH: what is looked at, what is cleared up, and what the guest's agent is asked for on the destination."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import DomainState, SourceAfter
from host.domain_xml import describe
from host.hypervisor import RESTART_SECONDS, Hypervisor, OtherDomain
from steps import finish
from steps.context import Cancellation, StepContext
from tests.unit.samples import AGENTS, DESTINATION, FACTS, MIGRATION, SOURCE
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.records import StepArguments, StepReport
from wire.situation import MovedNote


def document(disk: str) -> str:
    """A domain with that disk."""
    return f"""<domain type='kvm'><name>VM1</name><uuid>{FACTS.uuid}</uuid><memory>1024</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda'/></disk></devices></domain>"""


@dataclasses.dataclass
class Site:
    """A host's libvirt, and what its domain and the agent in it were told."""

    state_there: DomainState = DomainState.RUNNING
    agent: str | None = None
    """Why it does not answer."""
    failing: bool = False
    starts: bool = True
    told: list[str] = dataclasses.field(default_factory=list)
    disk: str = "/none.qcow2"
    used: tuple[str, ...] = ()
    """By other VMs."""
    note: MovedNote | None = None
    defined: bool = True

    def document(self, _domain: str, *, inactive: bool) -> str:
        assert inactive
        return document(self.disk)

    def others(self, _domain: str) -> list[OtherDomain]:
        return [OtherDomain(f"other {path}", describe(document(path)), None, None) for path in self.used]

    def define(self, text: str) -> None:
        self.disk = str(describe(text).disks[0].path)

    def set_moved_note(self, _domain: str, note: MovedNote | None) -> None:
        self.note = note

    def undefine(self, _domain: str) -> None:
        self.defined = False

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


Finish = Callable[..., StepReport]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Finish:
    """FINISH on a host."""
    def run(
        site: Site, host: str = DESTINATION, *, stood_still: int = 0, trim: bool = False,
        after: SourceAfter = SourceAfter.KEEP, verified: bool = True, gave_up: bool = False,
        facts: DomainFacts = FACTS,
    ) -> StepReport:
        @contextlib.contextmanager
        def opened(_host: str, patience: float) -> Iterator[Site]:
            assert patience == RESTART_SECONDS
            yield site

        monkeypatch.setattr(Hypervisor, "open", opened)
        monkeypatch.setattr("host.orphans.find", lambda _directory: [])
        context = StepContext(
            host=host, epoch="", challenge="", destinations=AGENTS, state_directory=tmp_path,
            cancellation=Cancellation(), progress=lambda _progress: None, wall=1_790_000_000)
        migration = dataclasses.replace(MIGRATION, trim=trim, new_name="web", source_after=after)
        arguments = StepArguments(
            migration=migration, facts=facts, stood_still=stood_still, destination_verified=verified,
            source_gave_up=gave_up)
        return finish.run(context, arguments)
    return run


def test_a_guest_that_stood_still_for_a_second_has_its_clock_set_and_others_have_not(ended: Finish) -> None:
    site = Site()
    assert ended(site, stood_still=999).summary == "running here"
    assert site.told == []
    assert ended(site, stood_still=1000, trim=True).summary == "running here, its clock set, its file systems trimmed"
    assert site.told == ["clock of web", "trim web"]


@pytest.mark.parametrize("site", [Site(agent="not connected"), Site(failing=True)], ids=["silent", "failing"])
def test_a_clock_that_cannot_be_set_makes_no_failure_of_a_move(ended: Finish, site: Site) -> None:
    assert ended(site, stood_still=90_000).summary == "running here"


def test_a_guest_that_arrived_paused_is_asked_for_nothing(ended: Finish) -> None:
    site, paused = Site(DomainState.PAUSED), dataclasses.replace(FACTS, state=DomainState.PAUSED)
    assert ended(site, facts=paused, stood_still=90_000, trim=True).summary == "paused here"
    assert site.told == []


# The copy that stays.


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The VM's image on the source."""
    path = tmp_path / "node.qcow2"
    path.write_text("as it was at the switch")
    return path


HIDDEN = f"node.qcow2.moved-{MIGRATION.job_id}"


def test_the_copy_left_behind_says_where_the_vm_went_and_can_be_started_neither_by_hand_nor_by_its_host(
    ended: Finish, disk: Path,
) -> None:
    site = Site(DomainState.SHUT_OFF, disk=str(disk))
    for _twice in range(2):
        assert ended(site, SOURCE, stood_still=90_000, trim=True).summary == "shut off here, cannot be started"
        assert (site.starts, site.told, site.defined) == (False, [], True)
        assert site.note == MovedNote(job_id=MIGRATION.job_id, destination=DESTINATION, at=1_790_000_000)
        assert not disk.exists()
        assert disk.with_name(HIDDEN).read_text() == "as it was at the switch"


@pytest.mark.parametrize(("after", "left"), [(SourceAfter.UNDEFINE, {HIDDEN}), (SourceAfter.DELETE, set())])
def test_the_copy_goes_only_if_that_was_asked_for_and_the_destination_has_said_that_all_is_well(
    ended: Finish, disk: Path, after: SourceAfter, left: set[str],
) -> None:
    site = Site(DomainState.SHUT_OFF, disk=str(disk))
    said = ended(site, SOURCE, after=after, verified=False).summary
    assert said == f"shut off here, cannot be started, kept because {DESTINATION} has not said that all is well there"
    assert site.defined
    assert disk.with_name(HIDDEN).exists()
    assert ended(site, SOURCE, after=after).summary.startswith("undefined here")
    assert not site.defined
    assert {path.name for path in disk.parent.glob("node*")} == left


@pytest.mark.parametrize(("after", "said"), [
    (SourceAfter.KEEP, "shut off here, cannot be started"), (SourceAfter.UNDEFINE, "undefined here"),
    (SourceAfter.DELETE, "undefined here")])
def test_a_disk_that_another_vm_uses_as_well_is_left_alone_and_the_copy_does_not_start_for_all_that(
    ended: Finish, disk: Path, after: SourceAfter, said: str,
) -> None:
    site = Site(DomainState.SHUT_OFF, disk=str(disk), used=(str(disk),))
    for _twice in range(2):
        assert ended(site, SOURCE, after=after).summary == f"{said}; {disk} left alone, another VM uses it as well"
        assert disk.exists()
        assert site.disk == str(disk.with_name(HIDDEN))


def test_the_copy_is_marked_before_the_disks_of_others_are_looked_at(
    ended: Finish, disk: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dies(*_what: object) -> None:
        raise MigrationError(ErrorCode.TOOL_MISSING, {"host": SOURCE, "tool": "qemu-img", "package": "qemu-utils"})

    monkeypatch.setattr("host.disks_of_others.DisksOfOthers.of", dies)
    site = Site(DomainState.SHUT_OFF, disk=str(disk))
    with pytest.raises(MigrationError):
        ended(site, SOURCE)
    assert (site.starts, site.note is not None) == (False, True)


def test_what_stays_when_the_copy_is_deleted_is_told(ended: Finish, disk: Path) -> None:
    disk.rename(disk.with_name("elsewhere.qcow2"))
    disk.symlink_to("elsewhere.qcow2")
    site = Site(DomainState.SHUT_OFF, disk=str(disk))
    summary = ended(site, SOURCE, after=SourceAfter.DELETE).summary
    assert summary == f"undefined here, the data of {disk} kept"
    assert disk.with_name("elsewhere.qcow2").read_text() == "as it was at the switch"
    assert not disk.is_symlink()


def test_nothing_is_put_in_the_place_of_another_file(ended: Finish, disk: Path) -> None:
    disk.with_name(HIDDEN).write_text("somebody's")
    with pytest.raises(MigrationError, match="exists already"):
        ended(Site(DomainState.SHUT_OFF, disk=str(disk)), SOURCE)
    assert disk.exists()
    assert disk.with_name(HIDDEN).read_text() == "somebody's"


@pytest.mark.parametrize(("host", "state"), [(DESTINATION, DomainState.SHUT_OFF), (SOURCE, DomainState.RUNNING)])
def test_a_vm_that_is_not_where_it_should_be_is_an_error_and_nothing_is_done(
        ended: Finish, host: str, state: DomainState) -> None:
    site = Site(state)
    with pytest.raises(MigrationError) as caught:
        ended(site, host)
    assert caught.value.code is ErrorCode.NOT_AS_EXPECTED
    assert site.starts


def test_a_vm_that_has_moved_for_certain_may_be_shut_off_since_and_nobody_is_asked_in_it(ended: Finish) -> None:
    report = ended(Site(DomainState.SHUT_OFF), gave_up=True, trim=True, stood_still=5000)
    assert report == StepReport(summary="shut off here", ended=True)
    assert not ended(Site(), gave_up=True).ended
    gone = ended(Site(DomainState.ABSENT), gave_up=True, facts=dataclasses.replace(FACTS, persistent=False))
    assert gone == StepReport(summary="absent here", ended=True)
    for host, state in (
            (SOURCE, DomainState.RUNNING), (DESTINATION, DomainState.PAUSED), (DESTINATION, DomainState.ABSENT)):
        with pytest.raises(MigrationError):
            ended(Site(state), host, gave_up=True)
