"""COPY_DISK_FILE and PREPARE_DESTINATION, both ends of them in one process: what is sent, made and written down."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from constant import DomainState, FilePurpose, ImageFormat
from tests.unit.samples import AGENTS, DESTINATION, FACTS, LAYERED, MIGRATION, QCOW2, SOURCE

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from host.file_identity import FileIdentity
from host.hypervisor import Hypervisor
from host.image import ImageQuestion, examine
from host.job_files import JobSockets, MadeKind
from steps import copy_disk_file, prepare_destination
from steps.context import Cancellation, StepContext
from steps.copy_disk_file import files_to_send
from steps.domain_changes import changes_for
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts, FileFacts, NvramFacts
from wire.placement import parse_disk_map, parse_network_map
from wire.records import Migration, Progress, StepArguments, StepReport
from wire.situation import DomainView

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


class Here:
    """A libvirt whose QEMU runs as whoever runs the tests."""

    def qemu_ids(self, _virtualization: str) -> tuple[int, int]:
        """User and group."""
        return os.getuid(), os.getgid()

    def view(self, _domain: str) -> DomainView:
        """There is none of that name."""
        return DomainView(state=DomainState.ABSENT)


@dataclasses.dataclass
class Hosts:
    """Two hosts in two directories, with the steps that are run on them."""

    here: Path
    there: Path
    told: list[Progress] = dataclasses.field(default_factory=list)
    cancellation: Cancellation = dataclasses.field(default_factory=Cancellation)
    facts: DomainFacts = FACTS
    """What the source itself says of the domain."""

    def context(self, host: str) -> StepContext:
        """What a step on one of them is given."""
        return StepContext(
            host=host, epoch="", challenge="", destinations=AGENTS, state_directory=self.there / "state",
            cancellation=self.cancellation, progress=self.told.append)

    def migration(self, **changes: Any) -> Migration:
        """A move from one directory to the other."""
        return dataclasses.replace(
            MIGRATION, disk_maps=(parse_disk_map(f"{self.here}={self.there}"),), **changes)

    def copy(
        self, migration: Migration, facts: DomainFacts, own: DomainFacts | None = None,
    ) -> list[StepReport | MigrationError]:
        """COPY_DISK_FILE on both, each in a thread; what became of the source's and of the destination's."""
        found: dict[str, StepReport | MigrationError] = {}
        self.facts = own or facts

        def run(host: str) -> None:
            try:
                found[host] = copy_disk_file.run(
                    self.context(host), StepArguments(migration=migration, facts=facts))
            except MigrationError as error:
                found[host] = error

        threads = [threading.Thread(target=run, args=(host,)) for host in (DESTINATION, SOURCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [found[SOURCE], found[DESTINATION]]

    def ledger(self) -> list[str]:
        """What the job made and is there."""
        entries = self.context(DESTINATION).ledger(MIGRATION).entries()
        return [os.path.basename(each.path) for each in entries if each.still_there()]


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """The hosts, with a socket instead of SSH between them."""
    made = Hosts(tmp_path / "here", tmp_path / "there")
    for directory in (made.here, made.there, tmp_path / "run"):
        directory.mkdir()
    monkeypatch.setattr("host.job_files._SOCKET_ROOT", str(tmp_path / "run"))
    (tmp_path / "run" / f"vmmigration-{MIGRATION.job_id}").mkdir()

    @contextlib.contextmanager
    def opened(_host: str) -> Iterator[Here]:
        yield Here()

    @contextlib.contextmanager
    def connected(_context: object, migration: Migration, _type: str) -> Iterator[tuple[socket.socket, None]]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(JobSockets.of(migration).files)
            yield connection, None

    monkeypatch.setattr(Hypervisor, "open", opened)
    monkeypatch.setattr(copy_disk_file, "_connected", connected)
    monkeypatch.setattr(copy_disk_file, "staging_directory", lambda *_wanted: contextlib.nullcontext())
    monkeypatch.setattr(copy_disk_file, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(copy_disk_file, "domain_facts", lambda *_asked: made.facts)
    return made


def file_at(path: Path, purpose: FilePurpose, mode: int = 0o644) -> FileFacts:
    """A file that is there, as CHECK_SOURCE tells of it."""
    status = path.stat()
    return FileFacts(
        path=str(path), purpose=purpose, length=status.st_size, allocated=status.st_blocks * 512, mode=mode)


def qemu_img(*words: str, cwd: Path) -> None:
    """Run qemu-img."""
    subprocess.run(["qemu-img", *words], cwd=cwd, capture_output=True, check=True)  # noqa: S607


def test_files_arrive_with_their_modes_and_are_written_down(hosts: Hosts) -> None:
    iso, disk = hosts.here / "a.iso", hosts.here / "disk.img"
    iso.write_bytes(b"iso" * 1000)
    disk.write_bytes(b"disk" * 1000)
    facts = dataclasses.replace(FACTS, disks=(), files=(
        file_at(iso, FilePurpose.MEDIUM, 0o755), file_at(disk, FilePurpose.DISK, 0o644)))
    sent, received = hosts.copy(hosts.migration(), facts)
    assert sent == StepReport(summary="sent a.iso, disk.img: 0 MiB of data", bytes=7000)
    assert received == StepReport(summary="2 of 2 files received and verified")
    assert (hosts.there / "a.iso").read_bytes() == iso.read_bytes()
    assert (hosts.there / "disk.img").read_bytes() == disk.read_bytes()
    assert [(hosts.there / name).stat().st_mode & 0o777 for name in ("a.iso", "disk.img")] == [0o644, 0o600]
    assert hosts.ledger() == ["a.iso", "disk.img"]


def test_what_is_there_of_several_files_is_told_beside_what_is_received(hosts: Hosts) -> None:
    for directory, names in ((hosts.here, ("a.iso", "b.iso", "c.iso")), (hosts.there, ("a.iso", "b.iso"))):
        for name in names:
            (directory / name).write_bytes(name.encode() * 1000)
    every = tuple(file_at(hosts.here / name, FilePurpose.MEDIUM) for name in ("a.iso", "b.iso", "c.iso"))
    for files, told in ((every, "1 of 3 files received and verified, there already: 2"),
                        (every[:2], "nothing to receive, 2 files are there already")):
        _sent, received = hosts.copy(hosts.migration(), dataclasses.replace(FACTS, disks=(), files=files))
        assert received == StepReport(summary=told)


def test_a_file_that_is_there_and_the_same_stays_and_is_not_the_jobs(hosts: Hosts) -> None:
    for directory in (hosts.here, hosts.there):
        (directory / "a.iso").write_bytes(b"iso" * 1000)
    facts = dataclasses.replace(FACTS, disks=(), files=(file_at(hosts.here / "a.iso", FilePurpose.MEDIUM),))
    sent, received = hosts.copy(hosts.migration(), facts)
    assert sent == StepReport(summary="there already: a.iso", bytes=0)
    assert received == StepReport(summary="nothing to receive, the file is there already")
    assert hosts.ledger() == []


def test_another_file_in_its_place_stops_both_ends_and_stays(hosts: Hosts) -> None:
    (hosts.here / "a.iso").write_bytes(b"iso" * 1000)
    (hosts.there / "a.iso").write_bytes(b"oso" * 1000)
    facts = dataclasses.replace(FACTS, disks=(), files=(file_at(hosts.here / "a.iso", FilePurpose.MEDIUM),))
    for error in hosts.copy(hosts.migration(), facts):
        assert isinstance(error, MigrationError)
        assert (error.code, error.facts["path"]) == (ErrorCode.PATH_TAKEN, str(hosts.there / "a.iso"))
    assert (hosts.there / "a.iso").read_bytes() == b"oso" * 1000


@needs_qemu_img
def test_layers_arrive_under_other_names_and_their_headers_say_so(hosts: Hosts) -> None:
    (hosts.here / "base").mkdir()
    (hosts.there / "elsewhere").mkdir()
    qemu_img("create", "-f", "raw", "base/base.img", "1M", cwd=hosts.here)
    qemu_img("create", "-f", "qcow2", "-b", str(hosts.here / "base/base.img"), "-F", "raw", "m.qcow2", cwd=hosts.here)
    qemu_img("create", "-f", "qcow2", "-b", "m.qcow2", "-F", "qcow2", "top.qcow2", cwd=hosts.here)
    question = ImageQuestion("vda", str(hosts.here / "top.qcow2"), ImageFormat.QCOW2, {}, SOURCE, "VM1")
    disk = examine(question, sent=False)
    facts = dataclasses.replace(FACTS, disks=(disk,), files=tuple(
        file_at(Path(layer.path), FilePurpose.LAYER) for layer in disk.layers))
    migration = dataclasses.replace(hosts.migration(), disk_maps=(
        *hosts.migration().disk_maps, parse_disk_map(f"{hosts.here}/base={hosts.there}/elsewhere")))
    prepared = prepare(hosts, migration, facts)
    _sent, received = hosts.copy(migration, facts)
    assert isinstance(received, StepReport)
    assert "1 told the new name of the layer below" in received.summary
    found = examine(dataclasses.replace(question, path=str(hosts.there / "top.qcow2")), sent=False)
    assert [(layer.path, layer.backing_name) for layer in found.layers] == [
        (str(hosts.there / "m.qcow2"), str(hosts.there / "elsewhere/base.img")),
        (str(hosts.there / "elsewhere/base.img"), None)]
    assert "on m.qcow2" in prepared


def prepare(hosts: Hosts, migration: Migration, facts: DomainFacts) -> str:
    """PREPARE_DESTINATION's summary. The directory of sockets is there already, so none is asked for."""
    (Path(JobSockets.of(migration).directory)).rmdir()
    user = dataclasses.replace(migration, user="root")
    return prepare_destination.run(
        hosts.context(DESTINATION), StepArguments(migration=user, facts=facts)).summary


@pytest.fixture(autouse=True)
def no_access_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """What setfacl does is none of these tests' business."""
    def make(path: str, _owner: object, _others: object, _host: str) -> FileIdentity:
        Path(path).mkdir()
        return FileIdentity.at(path)

    monkeypatch.setattr(prepare_destination, "make_socket_directory", make)


def test_nvram_and_the_directory_of_a_tpm_are_made_and_written_down(hosts: Hosts) -> None:
    nvram = NvramFacts(path=str(hosts.here / "VM1_VARS.fd"), format=ImageFormat.RAW, length=540672)
    state = hosts.here / "tpm" / "uuid" / "tpm2" / "state"
    facts = dataclasses.replace(FACTS, disks=(), nvram=nvram, files=(
        FileFacts(path=str(state), purpose=FilePurpose.TPM, length=1, allocated=1, mode=0o600),))
    summary = prepare(hosts, hosts.migration(new_name="new"), facts)
    assert summary == f"NVRAM at {hosts.there}/new_VARS.fd"
    assert (hosts.there / "new_VARS.fd").stat().st_size == 540672
    assert (hosts.there / "tpm" / "uuid" / "tpm2").is_dir()
    ledger = hosts.context(DESTINATION).ledger(MIGRATION)
    # What is made under another name first is written down under both, and so is what is planned.
    assert [each.kind for each in ledger.entries()] == [
        *[MadeKind.IMAGE] * 2, *[MadeKind.DIRECTORY] * 6, *[MadeKind.SOCKET_DIRECTORY] * 2]
    assert [each.inode == 0 for each in ledger.entries()] == [True, False] * 5
    assert ledger.close(frozenset(MadeKind))[1] == []
    assert [path.name for path in hosts.there.iterdir()] == ["state"]


def test_a_path_among_the_systems_own_is_refused_whoever_asks(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copy_disk_file, "_PATIENCE_SECONDS", 0.2)
    (hosts.here / "x").write_text("x")
    facts = dataclasses.replace(FACTS, disks=(), files=(file_at(hosts.here / "x", FilePurpose.MEDIUM),))
    migration = dataclasses.replace(MIGRATION, disk_maps=(parse_disk_map(f"{hosts.here}/x=/etc/cron.d/x"),))
    error = hosts.copy(migration, facts)[1]
    assert isinstance(error, MigrationError)
    assert error.code is ErrorCode.PATH_NOT_ALLOWED
    assert not Path("/etc/cron.d/x").exists()


def test_a_file_that_is_not_the_vms_is_not_sent_whoever_asks(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_disk_file, "_PATIENCE_SECONDS", 0.2)
    (hosts.here / "shadow").write_text("secret")
    (hosts.here / "iso").write_text("iso")
    own = dataclasses.replace(FACTS, disks=(), files=(file_at(hosts.here / "iso", FilePurpose.MEDIUM),))
    asked = dataclasses.replace(own, files=(*own.files, file_at(hosts.here / "shadow", FilePurpose.MEDIUM)))
    error = hosts.copy(hosts.migration(), asked, own)[0]
    assert isinstance(error, MigrationError)
    assert error.code is ErrorCode.MESSAGE_INVALID
    assert f"{hosts.here}/shadow does not belong to VM VM1" in error.message
    assert not (hosts.there / "shadow").exists()


def test_a_cancel_ends_both_ends(hosts: Hosts) -> None:
    (hosts.here / "x").write_text("x")
    facts = dataclasses.replace(FACTS, disks=(), files=(file_at(hosts.here / "x", FilePurpose.MEDIUM),))
    hosts.cancellation.reason = "somebody pressed Ctrl-C"
    for error in hosts.copy(hosts.migration(), facts):
        assert isinstance(error, MigrationError)
        assert error.code is ErrorCode.MIGRATION_CANCELLED
    assert not (hosts.there / "x").exists()


def test_a_link_that_stays_away_is_waited_for_and_then_given_up(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[int] = []

    def never(*_what: object) -> socket.socket:
        tries.append(1)
        raise MigrationError(ErrorCode.SSH_UNREACHABLE, {
            "host": SOURCE, "user": "kvm", "destination": DESTINATION, "reason": "no route"})

    (hosts.here / "x").write_text("x")
    monkeypatch.setattr(copy_disk_file, "_connected", never)
    monkeypatch.setattr(copy_disk_file, "_PATIENCE_SECONDS", 0.2)
    facts = dataclasses.replace(FACTS, disks=(), files=(file_at(hosts.here / "x", FilePurpose.MEDIUM),))
    for error in hosts.copy(hosts.migration(), facts):
        assert isinstance(error, MigrationError)
        assert error.code is ErrorCode.TUNNEL_LOST
    assert len(tries) > 3


def test_what_is_refused_is_not_tried_again(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_what: object) -> socket.socket:
        raise MigrationError(ErrorCode.SSH_LOGIN_REFUSED, {
            "host": SOURCE, "user": "kvm", "destination": DESTINATION, "reason": "no"})

    (hosts.here / "x").write_text("x")
    monkeypatch.setattr(copy_disk_file, "_connected", refused)
    monkeypatch.setattr(copy_disk_file, "_PATIENCE_SECONDS", 1.0)
    facts = dataclasses.replace(FACTS, disks=(), files=(file_at(hosts.here / "x", FilePurpose.MEDIUM),))
    source, _destination = hosts.copy(hosts.migration(), facts)
    assert isinstance(source, MigrationError)
    assert source.code is ErrorCode.SSH_LOGIN_REFUSED


def test_without_files_nothing_is_opened_and_the_disks_are_named(hosts: Hosts) -> None:
    report = copy_disk_file.run(
        hosts.context(SOURCE), StepArguments(migration=MIGRATION, facts=dataclasses.replace(FACTS, files=())))
    assert report.summary == "nothing to send beforehand, node.qcow2 crosses in the live migration"


def test_a_kernel_of_the_systems_own_is_not_sent() -> None:
    kernel = FileFacts(path="/boot/vmlinuz", purpose=FilePurpose.KERNEL, length=1, allocated=1, mode=0o644)
    facts = dataclasses.replace(FACTS, files=(kernel,))
    assert files_to_send(MIGRATION.placement(facts), facts) == []


# What becomes of the XML.

def layered(disk: DiskFacts) -> DomainFacts:
    """A domain with that disk alone."""
    return dataclasses.replace(FACTS, disks=(disk,))


def test_an_ordinary_vm_has_nothing_changed() -> None:
    changes = changes_for(MIGRATION, FACTS, frozenset(), live=True)
    assert (changes.name, dict(changes.paths), dict(changes.chains), dict(changes.networks)) == (None, {}, {}, {})


def test_the_chain_is_written_out_for_the_running_vm_alone_unless_it_is_cut() -> None:
    live = changes_for(MIGRATION, layered(LAYERED), frozenset(), live=True)
    assert [(layer.path, layer.format) for layer in live.chains["vdb"]] == [
        ("/srv/vm/middle.qcow2", "qcow2"), ("/srv/vm/base.img", "raw")]
    assert changes_for(MIGRATION, layered(LAYERED), frozenset(), live=False).chains == {}
    flat = dataclasses.replace(MIGRATION, flatten=True)
    for kind in (True, False):
        assert changes_for(flat, layered(QCOW2), frozenset(), live=kind).chains == {"vda": ()}


def test_zeros_are_detected_for_the_running_vm_alone_where_its_image_is_preallocated() -> None:
    thick = layered(dataclasses.replace(QCOW2, preallocated=True))
    assert changes_for(MIGRATION, thick, frozenset(), live=True).thin == {"vda"}
    assert changes_for(MIGRATION, thick, frozenset(), live=False).thin == frozenset()
    assert changes_for(MIGRATION, layered(QCOW2), frozenset(), live=True).thin == frozenset()


def test_maps_names_and_empty_drives_reach_the_document() -> None:
    asked = dataclasses.replace(
        MIGRATION, new_name="new", eject_cdrom=True, disk_maps=(parse_disk_map("vda=/data/x"),),
        network_maps=(parse_network_map("br0=network:lan"),))
    changes = changes_for(asked, FACTS, frozenset({"sda"}), live=True)
    assert (changes.name, set(changes.ejected), dict(changes.paths)) == ("new", {"sda"}, {QCOW2.path: "/data/x"})
    network = changes.networks[("bridge", "br0")]
    assert (network.kind, network.name) == ("network", "lan")
