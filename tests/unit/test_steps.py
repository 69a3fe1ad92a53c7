"""What needs libvirt-python: the hypervisor over libvirt's own test driver, and the steps' decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

libvirt = pytest.importorskip(
    "libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)", exc_type=ImportError)

from constant import (  # noqa: E402 - nothing below can be imported without libvirt
    DOWNTIME_OF_QEMU,
    Command,
    CopyStorage,
    DomainState,
    LibvirtDaemon,
    OnTimeout,
    Transport,
)
from host.domain_xml import DiskElement  # noqa: E402
from host.hypervisor import (  # noqa: E402
    Hypervisor,
    MigrationThread,
    Network,
    libvirt_daemon,
)
from host.job_files import JobSockets  # noqa: E402
from host.job_statistics import JobStatistics  # noqa: E402
from host.migration_target import MigrationTarget  # noqa: E402
from steps.checks.disks import why_not  # noqa: E402
from steps.convergence import ConvergenceControl  # noqa: E402
from steps.live_migration import _after_switchover, _target  # noqa: E402
from steps.table import HELLO, STEPS  # noqa: E402
from steps.watching import as_progress  # noqa: E402
from tests.unit import libvirtd  # noqa: E402
from tests.unit.samples import FACTS, HARD, MIGRATION, MOVED  # noqa: E402
from wire.errors import ErrorCode, MigrationError  # noqa: E402
from wire.placement import DiskMap  # noqa: E402
from wire.records import Convergence, DiskProgress, MigrationReport  # noqa: E402

TEST_URI = "test:///default"
SOCKETS = JobSockets.of(MIGRATION)
PLAIN_DISK = DiskElement(
    target="vda", device="disk", kind="file", path="/srv/vm/x.qcow2", format="qcow2", encrypted=False,
    read_only=False, shareable=False)


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    """libvirt's test driver, with its one running domain `test`; each connection starts anew."""
    with Hypervisor.open("node1", TEST_URI) as opened:
        yield opened


# The hypervisor.


def test_a_libvirt_that_cannot_be_reached_is_told_by_host_and_reason(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MigrationError) as caught, \
            Hypervisor.open("node1", "qemu+unix:///system?socket=/nonexistent/socket"):
        pass
    assert caught.value.code is ErrorCode.LIBVIRT_UNREACHABLE
    assert "node1" in caught.value.message
    assert "/nonexistent/socket" in caught.value.message
    assert capfd.readouterr().err == ""


def test_a_domains_state_is_told_and_a_missing_one_is_absent(hypervisor: Hypervisor) -> None:
    assert hypervisor.state("test") is DomainState.RUNNING
    assert hypervisor.state("missing") is DomainState.ABSENT


def test_each_state_of_a_domain_is_told(hypervisor: Hypervisor) -> None:
    domain = hypervisor._find("test")
    domain.suspend()
    assert hypervisor.state("test") is DomainState.PAUSED
    domain.resume()
    assert hypervisor.state("test") is DomainState.RUNNING
    domain.destroy()
    assert hypervisor.state("test") is DomainState.SHUT_OFF


@pytest.mark.parametrize("ask", ["document", "snapshots", "is_persistent", "autostart", "busy"])
def test_a_question_about_a_missing_domain_names_it_and_the_host(hypervisor: Hypervisor, ask: str) -> None:
    with pytest.raises(MigrationError) as caught:
        getattr(hypervisor, ask)("missing")
    assert caught.value.code is ErrorCode.DOMAIN_MISSING
    assert caught.value.message == "There is no VM missing on node1."


def test_a_domain_is_found_by_name_and_by_uuid(hypervisor: Hypervisor) -> None:
    document = hypervisor.document("test")
    assert "<name>test</name>" in document
    uuid = document.partition("<uuid>")[2].partition("</uuid>")[0]
    assert hypervisor.name_of(uuid) == "test"
    assert hypervisor.name_of("00000000-0000-0000-0000-000000000001") is None
    assert hypervisor.name_of("not a uuid") is None


def test_a_domain_is_persistent_and_its_autostart_is_set(hypervisor: Hypervisor) -> None:
    assert hypervisor.is_persistent("test")
    for enabled in (True, False):
        hypervisor.set_autostart("test", enabled)
        assert hypervisor.autostart("test") is enabled


def test_a_domain_that_is_defined_is_there_and_shut_off(hypervisor: Hypervisor) -> None:
    hypervisor.define(
        "<domain type='test'><name>new</name><memory>1024</memory><os><type>hvm</type></os></domain>")
    assert hypervisor.state("new") is DomainState.SHUT_OFF
    assert hypervisor.is_persistent("new")


def test_snapshots_are_counted(hypervisor: Hypervisor) -> None:
    assert hypervisor.snapshots("test") == 0
    hypervisor._find("test").snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>")
    assert hypervisor.snapshots("test") == 1


def test_a_network_is_active_missing_or_stopped(hypervisor: Hypervisor) -> None:
    assert hypervisor.network("default") == Network(True)
    assert hypervisor.network("missing") is None
    hypervisor._connection.networkLookupByName("default").destroy()
    assert hypervisor.network("default") == Network(False)


def test_an_error_of_libvirt_inside_the_with_is_told_as_one_of_that_host() -> None:
    with pytest.raises(MigrationError) as caught, Hypervisor.open("node1", TEST_URI) as hypervisor:
        hypervisor.define("<domain/>")
    assert caught.value.code is ErrorCode.LIBVIRT_ERROR
    assert "node1" in caught.value.message
    assert ".." not in caught.value.message


def test_a_job_that_does_not_exist_has_no_statistics_and_is_not_aborted(hypervisor: Hypervisor) -> None:
    assert hypervisor.job_statistics("missing") is None
    hypervisor.abort_job("missing")
    hypervisor.abort_job("test")


class FakeDomain:
    """A domain that writes down how it is migrated."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[str, dict[str, Any], int]] = []

    def migrateToURI3(self, uri: str, parameters: dict[str, Any], flags: int) -> None:  # noqa: N802
        """As libvirt names it."""
        self.calls.append((uri, parameters, flags))
        if self.error is not None:
            raise self.error


class FakeConnection:
    """A connection with that domain alone."""

    def __init__(self, domain: FakeDomain) -> None:
        self.domain = domain
        self.closed = False

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def lookupByName(self, _name: str) -> FakeDomain:  # noqa: N802
        """As libvirt names it."""
        return self.domain


def migrated(copy_storage: CopyStorage, **changes: Any) -> tuple[str, dict[str, Any], int]:
    """How libvirt is asked to migrate."""
    domain = FakeDomain()
    target = MigrationTarget("qemu+unix:///x", "unix:///m", "unix:///d", None, copy_storage, 0, ("vda",))
    Hypervisor(FakeConnection(domain), "node1").migrate("VM1", dataclasses.replace(target, **changes))
    (call,) = domain.calls
    return call


@pytest.mark.parametrize("copy_storage", list(CopyStorage))
def test_a_migration_is_live_peer_to_peer_with_storage_and_never_unsafe(copy_storage: CopyStorage) -> None:
    _uri, _parameters, flags = migrated(copy_storage)
    for name in ("LIVE", "PEER2PEER", "PERSIST_DEST", "ABORT_ON_ERROR", "CHANGE_PROTECTION"):
        assert flags & getattr(libvirt, f"VIR_MIGRATE_{name}"), name
    for name in ("UNSAFE", "UNDEFINE_SOURCE", "TUNNELLED", "OFFLINE", "PAUSED"):
        assert not flags & getattr(libvirt, f"VIR_MIGRATE_{name}"), name
    whole = bool(flags & libvirt.VIR_MIGRATE_NON_SHARED_DISK)
    assert whole is (copy_storage is CopyStorage.ALL)
    assert bool(flags & libvirt.VIR_MIGRATE_NON_SHARED_INC) is not whole


def test_every_address_of_a_migration_is_given_and_limits_only_where_asked() -> None:
    uri, parameters, _flags = migrated(CopyStorage.INC, post_copy=True)
    assert (uri, parameters["migrate_uri"], parameters["disks_uri"]) == ("qemu+unix:///x", "unix:///m", "unix:///d")
    assert parameters["migrate_disks"] == ["vda"]
    assert not {"bandwidth", "bandwidth.postcopy", "listen_address"} & parameters.keys()
    _uri, parameters, _flags = migrated(CopyStorage.INC, bandwidth=50, listen_address="192.0.2.12")
    assert "bandwidth.postcopy" not in parameters
    assert (parameters["bandwidth"], parameters["listen_address"]) == (50, "192.0.2.12")


def test_a_limit_of_the_admins_holds_in_post_copy_too() -> None:
    _uri, parameters, _flags = migrated(CopyStorage.INC, bandwidth=50, post_copy=True)
    assert (parameters["bandwidth"], parameters["bandwidth.postcopy"]) == (50, 50)


@pytest.mark.parametrize(("wanted", "flag"), [
    ("auto_converge", "AUTO_CONVERGE"), ("post_copy", "POSTCOPY"),
    ("synchronous_writes", "NON_SHARED_SYNCHRONOUS_WRITES"),
])
def test_what_helps_a_guest_that_writes_is_asked_of_libvirt_only_if_the_admin_asked(wanted: str, flag: str) -> None:
    bit = getattr(libvirt, f"VIR_MIGRATE_{flag}")
    _uri, _parameters, without = migrated(CopyStorage.INC)
    _uri, _parameters, flags = migrated(CopyStorage.INC, **{wanted: True})
    assert (without & bit, flags) == (0, without | bit)


def test_a_migration_that_fails_in_its_thread_keeps_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeConnection(FakeDomain(libvirt.libvirtError("migration failed")))
    monkeypatch.setattr(libvirt, "open", lambda _uri: connection)
    target = MigrationTarget("x", "x", "x", None, CopyStorage.INC, 0, ())
    thread = MigrationThread("node1", "VM1", target)
    thread.start()
    thread.join(5.0)
    assert isinstance(thread.error, MigrationError)
    assert thread.error.code is ErrorCode.MIGRATION_FAILED
    assert connection.closed


@pytest.mark.parametrize(("monolithic", "modular", "daemon"), [
    (True, False, LibvirtDaemon.LIBVIRTD), (True, True, LibvirtDaemon.LIBVIRTD),
    (False, True, LibvirtDaemon.VIRTQEMUD), (False, False, LibvirtDaemon.LIBVIRTD),
])
def test_the_daemon_is_the_one_whose_socket_is_there(
    monolithic: bool, modular: bool, daemon: LibvirtDaemon,
) -> None:
    assert libvirt_daemon({LibvirtDaemon.LIBVIRTD: monolithic, LibvirtDaemon.VIRTQEMUD: modular}) is daemon


# CHECK_SOURCE: which disks can be moved.


def test_one_plain_disk_can_be_moved() -> None:
    assert why_not(PLAIN_DISK) is None
    for changes in ({"format": "raw"}, {"kind": "block"}, {"read_only": True}, {"layers": (("/srv/b", "qcow2"),)},
                    {"read_only": True, "shareable": True}, {"device": "floppy"}):
        assert why_not(dataclasses.replace(PLAIN_DISK, **changes)) is None


@pytest.mark.parametrize(("changes", "reason"), [
    ({"device": "lun"}, "it is a lun"),
    ({"transient": True}, "it is transient"),
    ({"kind": "volume", "path": None}, "its type is volume, not file or block"),
    ({"kind": "network", "path": None}, "its type is network, not file or block"),
    ({"format": "vmdk"}, "its format is vmdk"),
    ({"format": None}, "its format is None"),
    ({"layers": (("?", None),)}, "an image below it is not a file of this host"),
    ({"encrypted": True}, "it is encrypted"),
    ({"shareable": True}, "other VMs may write to it at the same time (<shareable/>)"),
])
def test_a_disk_that_cannot_be_moved_says_why(changes: dict[str, Any], reason: str) -> None:
    assert why_not(dataclasses.replace(PLAIN_DISK, **changes)) == reason


# LIVE_MIGRATION: what helps it.


class MigratingDomain:
    """A domain in a migration, of which `answers` says what each call returns or raises."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*arguments: Any) -> Any:
            self.asked.append(" ".join([name, *map(str, arguments)]))
            found = self.answers.get(f"{name} {arguments[0]}" if arguments else name, self.answers.get(name))
            if isinstance(found, Exception):
                raise found
            return found
        return answer


def hypervisor_of(domain: MigratingDomain) -> Hypervisor:
    """The hypervisor with that domain alone."""
    return Hypervisor(FakeConnection(cast(FakeDomain, domain)), "node1")


GONE = libvirt.libvirtError("domain is not running")


@pytest.mark.parametrize(("changes", "wanted", "done"), [
    ({}, CopyStorage.AUTO, CopyStorage.INC), ({}, CopyStorage.INC, CopyStorage.INC),
    ({}, CopyStorage.ALL, CopyStorage.ALL), ({"flatten": True}, CopyStorage.INC, CopyStorage.ALL),
    ({"disk_maps": (DiskMap(what=FACTS.disks[0].path, path="/dev/vg/VM1"),)}, CopyStorage.INC, CopyStorage.ALL),
])
def test_what_the_mirror_may_not_leave_out_is_copied_whatever_was_asked_for(
    changes: dict[str, Any], wanted: CopyStorage, done: CopyStorage,
) -> None:
    assert target_of(copy_storage=wanted, **changes).copy_storage is done


def test_that_libvirt_has_no_job_is_told_as_nothing() -> None:
    assert hypervisor_of(MigratingDomain(jobStats={"type": 0})).job_statistics("VM1") is None
    assert hypervisor_of(MigratingDomain(jobStats={"type": 2})).job_statistics("VM1") is not None


@pytest.mark.parametrize(("told", "foreign"), [
    ({"type": 2, "operation": 6}, True), ({"type": 2, "operation": 5}, False), ({"type": 2, "operation": 0}, False),
    ({"type": 2}, False), ({"type": 0}, False), (GONE, False),
], ids=["a snapshot", "a migration", "not known", "not told", "none", "no answer"])
def test_a_job_that_is_certainly_no_migration_is_somebody_elses(told: object, foreign: bool) -> None:
    assert hypervisor_of(MigratingDomain(jobStats=told)).has_foreign_job("VM1") is foreign


@pytest.mark.parametrize(("kind", "ended"), [(2, True), (5, False), (4, False)])
def test_of_block_jobs_only_mirrors_are_ended(kind: int, ended: bool) -> None:
    domain = MigratingDomain(XMLDesc=libvirtd.document("/srv/x.qcow2"), blockJobInfo={"type": kind, "cur": 0, "end": 7})
    assert hypervisor_of(domain).end_mirrors("VM1") is ended
    assert any(call.startswith("blockJobAbort") for call in domain.asked) is ended


def test_each_disks_mirror_is_told_and_one_that_has_not_begun_is_left_out() -> None:
    domain = MigratingDomain(**{
        "blockJobInfo vda": {"type": 2, "cur": 5, "end": 9}, "blockJobInfo vdb": {},
        "blockJobInfo vdc": {"type": 2, "cur": 0, "end": 7}})
    found = hypervisor_of(domain).mirrors("VM1", ("vda", "vdb", "vdc"))
    assert found == (DiskProgress("vda", 5, 9), DiskProgress("vdc", 0, 7))
    assert hypervisor_of(MigratingDomain(blockJobInfo=GONE)).mirrors("VM1", ("vda",)) == ()


def test_what_is_asked_of_a_migration_reaches_libvirt_and_its_refusal_comes_back() -> None:
    domain = MigratingDomain()
    hypervisor = hypervisor_of(domain)
    hypervisor.set_downtime_limit("VM1", 675)
    hypervisor.start_post_copy("VM1")
    hypervisor.suspend("VM1")
    assert domain.asked == ["migrateSetMaxDowntime 675", "migrateStartPostCopy", "suspend"]
    refusing = hypervisor_of(MigratingDomain(migrateSetMaxDowntime=GONE, migrateStartPostCopy=GONE, suspend=GONE))
    asks: list[Callable[[], None]] = [
        lambda: refusing.set_downtime_limit("VM1", 1), lambda: refusing.start_post_copy("VM1"),
        lambda: refusing.suspend("VM1")]
    for ask in asks:
        with pytest.raises(MigrationError) as caught:
            ask()
        assert caught.value.code is ErrorCode.LIBVIRT_ERROR


@pytest.mark.parametrize(("state", "reason", "resumed"), [
    ("PAUSED", "PAUSED_USER", True), ("PAUSED", "PAUSED_MIGRATION", False), ("PAUSED", "PAUSED_POSTCOPY", False),
    ("PAUSED", "PAUSED_POSTCOPY_FAILED", False), ("RUNNING", "RUNNING_BOOTED", False),
])
def test_only_a_guest_that_was_paused_like_an_ordinary_one_is_let_go_on(
    state: str, reason: str, resumed: bool,
) -> None:
    pair = [getattr(libvirt, f"VIR_DOMAIN_{name}") for name in (state, reason)]
    domain = MigratingDomain(state=pair)
    hypervisor_of(domain).resume_if_suspended("VM1")
    assert ("resume" in domain.asked) is resumed
    hypervisor_of(MigratingDomain(state=pair, resume=GONE)).resume_if_suspended("VM1")
    hypervisor_of(MigratingDomain(state=GONE)).resume_if_suspended("VM1")


# LIVE_MIGRATION: where to, and how far.


def target_of(**changes: Any) -> MigrationTarget:
    """The target of MIGRATION with some fields changed."""
    return _target(dataclasses.replace(MIGRATION, **changes), FACTS, SOCKETS, None, None)


@pytest.mark.parametrize("destination", ["192.0.2.12", "2001:db8::12"])
def test_over_ssh_everything_goes_through_the_jobs_sockets(destination: str) -> None:
    target = target_of(destination=destination)
    assert target.connection == f"qemu+unix:///system?socket={SOCKETS.libvirt}"
    assert (target.memory, target.disks) == (f"unix://{SOCKETS.memory}", f"unix://{SOCKETS.disks}")
    assert target.listen_address is None
    assert destination not in repr(target)


@pytest.mark.parametrize(("destination", "uri"), [
    ("192.0.2.12", "tcp://192.0.2.12"), ("2001:db8::12", "tcp://[2001:db8::12]"),
])
def test_over_tcp_the_address_is_the_one_the_admin_gave(destination: str, uri: str) -> None:
    target = target_of(destination=destination, transport=Transport.TCP)
    assert (target.memory, target.disks, target.listen_address) == (uri, uri, destination)
    assert target.connection == f"qemu+unix:///system?socket={SOCKETS.libvirt}"


def test_what_the_admin_allows_for_a_guest_that_writes_is_part_of_the_target() -> None:
    plain, hard = target_of(), target_of(convergence=HARD, timeout=5)
    assert (plain.auto_converge, plain.post_copy, plain.synchronous_writes) == (False, False, False)
    assert (hard.auto_converge, hard.post_copy, hard.synchronous_writes) == (True, True, True)
    late = target_of(convergence=Convergence(on_timeout=OnTimeout.POST_COPY), timeout=5)
    assert late.post_copy is True


def test_only_what_the_transport_needs_is_forwarded() -> None:
    assert SOCKETS.forwards(LibvirtDaemon.LIBVIRTD, Transport.SSH) == {
        SOCKETS.libvirt: "/run/libvirt/libvirt-sock",
        **{path: path for path in (SOCKETS.memory, SOCKETS.disks, SOCKETS.files)}, SOCKETS.probe: SOCKETS.probed}
    assert SOCKETS.forwards(LibvirtDaemon.VIRTQEMUD, Transport.TCP) == {
        SOCKETS.libvirt: "/run/libvirt/virtqemud-sock", SOCKETS.files: SOCKETS.files}


@pytest.mark.parametrize(("asked", "used"), [
    (CopyStorage.AUTO, CopyStorage.INC), (CopyStorage.INC, CopyStorage.INC), (CopyStorage.ALL, CopyStorage.ALL),
])
def test_the_storage_is_copied_as_asked_and_without_zeroing_by_default(asked: CopyStorage, used: CopyStorage) -> None:
    target = target_of(copy_storage=asked, bandwidth=7)
    assert (target.copy_storage, target.bandwidth, target.mirrored) == (used, 7, ("vda",))


@pytest.mark.parametrize(("statistics", "phase", "done", "total"), [
    (JobStatistics(0, 0, 0, 0), "connecting to the destination", 0, 0),
    # What follows the disks is not counted yet; it is expected.
    (JobStatistics(10, 100, 0, 0), "copying the disk", 10, 170),
    (JobStatistics(100, 100, 20, 50), "copying memory", 120, 150),
    (JobStatistics(100, 100, 90, 50), "copying memory", 190, 190),
    # Of 50, 10 were pages of zeros: they are behind it and have not crossed.
    (JobStatistics(100, 100, 35, 50, passes=1, memory_left=5), "copying memory", 135, 140),
])
def test_progress_is_disk_and_memory_together_and_never_more_than_all(
    statistics: JobStatistics, phase: str, done: int, total: int,
) -> None:
    control = ConvergenceControl(Convergence(), 0)
    control.look(statistics, 1.0)
    progress = as_progress(statistics, control, memory=70)
    assert (progress.phase, progress.done, progress.total) == (phase, done, total)


class FailingAfterwards:
    """A hypervisor on which the migration has succeeded and something goes wrong after it."""

    def __init__(self, failing: str, error: Exception) -> None:
        self._failing = failing
        self._error = error
        self.starts = True

    def state(self, _domain: str) -> DomainState:
        """How it is here now."""
        return DomainState.SHUT_OFF

    def autostart(self, _domain: str) -> bool:
        """Whether it starts with the host."""
        return self.starts

    def set_autostart(self, _domain: str, enabled: bool) -> None:
        """Turn it on or off."""
        if self._failing == "autostart":
            raise self._error
        self.starts = enabled

    def finished_job(self, _domain: str) -> MigrationReport:
        """libvirt's figures."""
        if self._failing == "figures":
            raise self._error
        return MOVED


@pytest.mark.parametrize("failing", ["autostart", "figures"])
@pytest.mark.parametrize("error", [
    libvirt.libvirtError("no such domain"), MigrationError(ErrorCode.DOMAIN_MISSING, {"domain": "VM1"}),
    ValueError("not a number"),
])
def test_what_goes_wrong_after_the_switchover_makes_no_failure_of_a_move(
    failing: str, error: Exception, caplog: pytest.LogCaptureFixture,
) -> None:
    report = _after_switchover(
        cast("Hypervisor", FailingAfterwards(failing, error)), "VM1", ConvergenceControl(Convergence(), 0))
    assert report == MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1)
    assert "VM VM1 has moved" in caplog.text


def test_after_the_switchover_the_copy_left_behind_does_not_start_with_its_host() -> None:
    hypervisor = FailingAfterwards("nothing", ValueError())
    control = ConvergenceControl(Convergence(), 0)
    report = _after_switchover(cast("Hypervisor", hypervisor), "VM1", control)
    assert report == dataclasses.replace(MOVED, downtime_limit=DOWNTIME_OF_QEMU)
    assert hypervisor.starts is False


def test_every_command_that_is_work_has_its_step() -> None:
    assert set(STEPS) == set(Command) - {Command.HELLO, Command.STATUS, Command.CANCEL}
    for command, step in STEPS.items():
        assert step.__module__ == f"steps.{command.value.lower()}"
    assert HELLO.__module__ == "steps.hello"
