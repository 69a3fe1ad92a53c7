"""PREPARE_DESTINATION is killed at any moment: what a later ROLL_BACK removes is just what this job has made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.disk import killed, without_waiting
from tests.unit.libvirtd import Libvirtd, document
from tests.unit.samples import DESTINATION, FACTS, MIGRATION, NOTE, NVRAM, QCOW2, RAW

# isort: split
from constant import FilePurpose
from host.file_identity import FileIdentity
from host.job_files import JobSockets, Ledger, Made, MadeKind
from host.mounts import mount_point
from steps import prepare_destination, roll_back
from tests.unit.one_domain import context_on, put_clock
from wire.errors import ErrorCode, MigrationError
from wire.facts import FileFacts
from wire.records import RollBackReport, StepArguments

JOB = MIGRATION.job_id
PART = f".vmmigration-{JOB}"
# More than PREPARE_DESTINATION makes of them.
MANY_CALLS = 400


@dataclass
class Site:
    """A host to which a VM goes that has two disks and an NVRAM, perhaps a TPM, and whose earlier copy is there."""

    directory: Path
    arguments: StepArguments
    libvirtd: Libvirtd

    @property
    def images(self) -> Path:
        """Where all of the VM goes."""
        return self.directory / "images"

    def prepare(self) -> None:
        """PREPARE_DESTINATION."""
        prepare_destination.run(context_on(DESTINATION, self.directory / "state"), self.arguments)

    def roll_back(self) -> RollBackReport:
        """ROLL_BACK by another life of the agent."""
        return roll_back.run(context_on(DESTINATION, self.directory / "state"), self.arguments)

    def ledger(self) -> Ledger:
        """What the job has made."""
        return Ledger(JOB, self.directory / "state" / "jobs")

    def files(self) -> dict[str, str]:
        """All files and directories but the agent's own, and what is in them."""
        return {
            str(path.relative_to(self.directory)): path.read_text() if path.is_file() else ""
            for path in sorted(self.directory.rglob("*")) if "state" not in path.parts}

    def own(self) -> set[str]:
        """The agent's own files."""
        return {path.name for path in (self.directory / "state" / "jobs").glob("*")}


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes, and no tool runs."""
    put_clock(monkeypatch)
    without_waiting(monkeypatch)
    for module in ("image", "job_files"):
        monkeypatch.setattr(f"host.{module}.run_tool", lambda *_arguments, **_more: "")


@contextmanager
def site_in(directory: Path, *, tpm: bool = False) -> Iterator[Site]:
    """The host as it is before, with files of others beside those that the job is to make."""
    images = directory / "images"
    images.mkdir(parents=True)
    (directory / "run").mkdir()
    libvirtd = Libvirtd(owner=(os.getuid(), os.getgid()))
    libvirtd.add(document(str(images / "node.qcow2")), note=NOTE)
    for name in ("node.qcow2.moved-12345678", "node.qcow2.vmmigration-12345678", "node.qcow2.bak"):
        (images / name).write_text(f"somebody's {name}")
    disks = (dataclasses.replace(QCOW2, path=str(images / "node.qcow2")),
             dataclasses.replace(RAW, target="vdb", path=str(images / "data.img"), virtual_size=512))
    state = FileFacts(
        path=str(images / "swtpm" / FACTS.uuid / "tpm2" / "state"), purpose=FilePurpose.TPM, length=1, allocated=1,
        mode=0o600)
    nvram = dataclasses.replace(NVRAM, path=str(images / "VARS.fd"), length=64)
    facts = dataclasses.replace(FACTS, disks=disks, files=(state,) if tpm else (), nvram=nvram)
    migration = dataclasses.replace(MIGRATION, disk=disks[0].path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("host.job_files._SOCKET_ROOT", str(directory / "run"))
        libvirtd.put(patch)
        yield Site(directory, StepArguments(migration=migration, facts=facts, source_keeps=True), libvirtd)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """One of them."""
    with site_in(tmp_path, tpm=True) as made:
        yield made


def test_what_is_made_without_being_killed_is_all_that_was_asked_for_and_no_part_of_it_is_left(site: Site) -> None:
    before = site.files()
    site.prepare()
    assert set(site.files()) - set(before) == {
        "images/node.qcow2", "images/data.img", "images/VARS.fd", "images/swtpm", f"images/swtpm/{FACTS.uuid}",
        f"images/swtpm/{FACTS.uuid}/tpm2", f"run/vmmigration-{JOB}"}
    assert JobSockets.of(MIGRATION).directory.endswith(f"/vmmigration-{JOB}")


def test_whenever_it_is_killed_a_roll_back_leaves_all_as_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = 0
    left: set[frozenset[str]] = set()
    for number in range(MANY_CALLS):
        with site_in(tmp_path / str(number)) as site:
            before, (vm,) = site.files(), site.libvirtd.domains
            was_killed = killed(monkeypatch, number, site.prepare)
            left.add(frozenset(set(site.files()) - set(before)))
            assert site.roll_back().cleared, f"killed at {number}"
            assert site.files() == before, f"killed at {number}"
            assert [each.text for each in site.libvirtd.domains] == [vm.text], f"killed at {number}"
            assert site.ledger().entries() == []
            if not was_killed:
                break
            points += 1
    # It did come to all of them: with a part, with the image beside it, with the directories.
    assert 40 < points < MANY_CALLS
    assert any(any(name.endswith(PART) for name in names) for names in left)
    assert any({"images/node.qcow2", f"images/node.qcow2{PART}"} <= names for names in left)
    assert any(f"run/vmmigration-{JOB}" in names for names in left)


def test_whenever_it_is_killed_no_directory_for_a_tpm_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(MANY_CALLS):
        with site_in(tmp_path / str(number), tpm=True) as site:
            before = site.files()
            was_killed = killed(monkeypatch, number, site.prepare)
            site.roll_back()
            assert site.files() == before, f"killed at {number}"
            if not was_killed:
                break


def test_whenever_the_roll_back_is_killed_too_the_next_one_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(MANY_CALLS):
        with site_in(tmp_path / str(number)) as site:
            before, (vm,) = site.files(), site.libvirtd.domains
            site.prepare()
            if not killed(monkeypatch, number, site.roll_back):
                break
            assert site.roll_back().cleared, f"killed at {number}"
            assert site.files() == before, f"killed at {number}"
            assert [each.text for each in site.libvirtd.domains] == [vm.text], f"killed at {number}"
    assert 10 < number < MANY_CALLS


def test_whenever_it_is_killed_a_roll_back_leaves_nothing_in_the_agents_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: set[str] = set()
    for number in range(MANY_CALLS):
        with site_in(tmp_path / str(number)) as site:
            was_killed = killed(monkeypatch, number, site.prepare)
            site.roll_back()
            left |= site.own()
            if not was_killed:
                break
    assert left == set()


def test_an_image_that_came_to_the_path_in_time_stays_and_the_part_goes(site: Site) -> None:
    (site.images / "data.img").write_text("somebody's")
    before = site.files()
    with pytest.raises(MigrationError) as caught:
        site.prepare()
    assert (caught.value.code, caught.value.facts["path"]) == (ErrorCode.PATH_TAKEN, str(site.images / "data.img"))
    assert not list(site.images.glob(f"*{PART}"))
    site.roll_back()
    assert site.files() == before


# The ledger.


def test_what_might_be_somebody_elses_is_never_planned(tmp_path: Path) -> None:
    ledger = Ledger(JOB, tmp_path)
    for path in ("/srv/node.qcow2", f"/srv/{JOB}/node.qcow2", "/srv/node.qcow2.vmmigration-12345678"):
        with pytest.raises(ValueError, match="might be somebody else's"):
            ledger.plan(MadeKind.IMAGE, path)
    assert ledger.entries() == []
    ledger.plan(MadeKind.IMAGE, f"{tmp_path}/node.qcow2{PART}")
    mount = mount_point(str(tmp_path))
    assert ledger.entries() == [Made(MadeKind.IMAGE, f"{tmp_path}/node.qcow2{PART}", 0, 0, mount=mount)]


def test_what_was_planned_goes_by_its_name_and_what_was_made_only_if_it_still_is_that(tmp_path: Path) -> None:
    ledger = Ledger(JOB, tmp_path / "jobs")
    planned, made, other = tmp_path / f"a{PART}", tmp_path / "b", tmp_path / "c"
    ledger.plan(MadeKind.IMAGE, str(planned))
    for path in (made, other):
        path.touch()
        ledger.add(MadeKind.IMAGE, str(path), FileIdentity.at(str(path)))
    planned.write_text("made after it was planned")
    other.rename(tmp_path / "d")
    other.write_text("somebody's")
    assert ledger.close(frozenset(MadeKind)) == ([str(made), str(planned)], [])
    assert {path.name for path in tmp_path.iterdir()} == {"c", "d", "jobs"}
    assert list((tmp_path / "jobs").iterdir()) == []


def test_what_was_planned_and_never_made_is_nothing_to_tell(tmp_path: Path) -> None:
    ledger = Ledger(JOB, tmp_path / "jobs")
    ledger.plan(MadeKind.IMAGE, str(tmp_path / f"a{PART}"))
    assert ledger.close(frozenset(MadeKind)) == ([], [])


def test_what_was_planned_is_the_domains_own_too_once_it_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(JOB, tmp_path / "jobs")
    ledger.plan(MadeKind.IMAGE, str(tmp_path / f"a{PART}"))
    ledger.plan(MadeKind.SOCKET_DIRECTORY, str(tmp_path / f"vmmigration-{JOB}"))
    ledger.keep(frozenset({MadeKind.IMAGE}))
    assert [made.kind for made in ledger.entries()] == [MadeKind.SOCKET_DIRECTORY]
