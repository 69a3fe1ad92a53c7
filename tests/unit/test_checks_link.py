"""The checks of two hosts together, the place of every check, and how the rate of a link is counted."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from constant import Severity
from tests.unit.looking import CAPABILITIES, FINE, FakeHypervisor, found, said, stopping, warning
from tests.unit.samples import DESTINATION, ROOT, SOURCE

# isort: split
from host import link_rate
from host.ssh import Login
from steps import check_link, measure_link
from steps.checks import disks, domain, link, machine, neighbours, storage
from steps.checks.link import LinkView
from steps.context import Cancellation, StepContext
from tests.unit.samples import AGENTS, LINK
from wire.errors import ErrorCode, MigrationError
from wire.findings import CHECKS, Check
from wire.records import LinkReport

LOOKS = {**link.HOSTS, **link.DOMAIN}
PLAIN = (ROOT / "tests" / "unit" / "domains" / "nested-vmx.xml").read_text(encoding="utf-8")
PASSED_THROUGH = (ROOT / "tests" / "unit" / "domains" / "debian-12.xml").read_text(encoding="utf-8")
INCOMPATIBLE = "Host CPU does not provide required features: avx512f"


def view(
    document: str = PLAIN, here: dict[str, Any] | None = None, there: dict[str, Any] | None = None,
    name: str | None = "VM1",
) -> LinkView:
    """Two hosts that can both run the domain."""
    local = FakeHypervisor({False: document}, uuid="here", **here or {})
    remote = FakeHypervisor(**there or {})
    return LinkView(Login(SOURCE, "kvm", DESTINATION), local.hypervisor(), remote.hypervisor(), name)


@pytest.mark.parametrize("document", [PLAIN, PASSED_THROUGH])
@pytest.mark.parametrize("check", list(LOOKS))
def test_every_check_of_the_way_is_fine_between_two_hosts_that_are_alike(check: Check, document: str) -> None:
    assert said(LOOKS, view(document), check) == FINE


def test_two_hosts_with_one_uuid_are_one_host_to_libvirt() -> None:
    assert said(LOOKS, view(there={"uuid": "here"}), Check.HOST_UUID) == stopping(ErrorCode.SAME_LIBVIRT_HOST)


def test_a_cpu_that_the_other_host_lacks_stops_the_move_in_libvirts_words() -> None:
    lacking = view(there={"cpu": INCOMPATIBLE})
    assert said(LOOKS, lacking, Check.CPU) == stopping(ErrorCode.CPU_INCOMPATIBLE)
    assert "avx512f" in found(LOOKS, lacking, Check.CPU)[0].message


def test_the_running_domains_own_cpu_is_compared_and_of_a_passed_through_one_what_this_host_has() -> None:
    for document, expected in ((PLAIN, "vmx"), (PASSED_THROUGH, "EPYC")):
        remote = FakeHypervisor()
        compared = dataclasses.replace(view(document), remote=remote.hypervisor())
        said(LOOKS, compared, Check.CPU)
        assert len(remote.asked) == 1
        assert expected in remote.asked[0]


def test_a_domain_without_a_cpu_of_its_own_is_not_compared() -> None:
    plain = "<domain type='kvm'><os><type arch='x86_64'>hvm</type></os></domain>"
    assert said(LOOKS, view(plain, there={"cpu": INCOMPATIBLE}), Check.CPU) == FINE


def test_a_type_of_vm_that_the_other_host_does_not_run_is_left_to_its_own_check() -> None:
    types = CAPABILITIES.replace("<domain type='kvm'/>", "")
    assert said(LOOKS, view(there={"types": types, "cpu": INCOMPATIBLE}), Check.CPU) == FINE
    assert said(LOOKS, view(there={"types": types, "qemu": 9_000_000}), Check.WAY_BACK) == FINE


@pytest.mark.parametrize(("document", "here", "there"), [
    (PLAIN, {}, {"qemu": 8_002_000}),
    (PLAIN, {"machine": "the machine is not supported"}, {}),
    (PASSED_THROUGH, {"cpu": INCOMPATIBLE}, {}),
])
def test_a_way_back_that_is_closed_is_told_and_stops_nothing(
    document: str, here: dict[str, Any], there: dict[str, Any],
) -> None:
    assert said(LOOKS, view(document, here, there), Check.WAY_BACK) == warning(ErrorCode.WAY_BACK_CLOSED)


def test_a_cpu_of_a_named_model_can_come_back_whatever_else_this_host_lacks() -> None:
    assert said(LOOKS, view(PLAIN, here={"cpu": INCOMPATIBLE}), Check.WAY_BACK) == FINE


# Every check has its place.


def test_no_check_is_forgotten_and_none_is_made_twice() -> None:
    tables = [*domain.LOOKS, *disks.LOOKS, *link.HOSTS, *link.DOMAIN, *machine.LOOKS, *neighbours.LOOKS, *storage.LOOKS]
    # What steps find before there is anything to look at, and what the controller finds from what both hosts told.
    elsewhere = [
        Check.TOOLS, Check.LIBVIRT, Check.DOMAIN, Check.ALLOWED_DESTINATION, Check.CLOCK, Check.MIGRATION_PORTS,
        Check.LINK_RATE, Check.DIRTY_RATE, Check.DISK_WRITE_RATE]
    assert sorted([*tables, *elsewhere]) == sorted(Check)
    assert set(CHECKS) == set(Check)


# The steps, as far as they go without another host.


def context(tmp_path: Path) -> StepContext:
    """An agent that may migrate to the samples' nodes."""
    return StepContext(
        host=SOURCE, epoch="", challenge="", destinations=AGENTS, state_directory=tmp_path,
        cancellation=Cancellation(), progress=lambda _progress: None)


def test_a_destination_that_is_not_listed_is_not_even_tried(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(LINK, destination="198.51.100.1")
    (finding,) = check_link.run(context(tmp_path), elsewhere).findings
    assert (finding.check, finding.severity, finding.code) == (
        Check.ALLOWED_DESTINATION, Severity.STOPS, ErrorCode.DESTINATION_NOT_ALLOWED)
    with pytest.raises(MigrationError) as caught:
        measure_link.run(context(tmp_path), elsewhere)
    assert caught.value.code is ErrorCode.DESTINATION_NOT_ALLOWED


@pytest.mark.parametrize(("code", "check"), [
    (ErrorCode.SSH_HOST_KEY_UNKNOWN, Check.SSH), (ErrorCode.SSH_LOGIN_REFUSED, Check.SSH),
    (ErrorCode.SSH_LIBVIRT_REFUSED, Check.REMOTE_LIBVIRT), (ErrorCode.TOOL_MISSING, Check.TOOLS),
    (ErrorCode.LIBVIRT_UNREACHABLE, Check.LIBVIRT),
])
def test_what_goes_wrong_on_the_way_is_the_finding_of_the_check_that_it_belongs_to(
    code: ErrorCode, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_arguments: object) -> None:
        raise MigrationError(code, {"host": SOURCE})

    monkeypatch.setattr(check_link, "_try", fails)
    allowed, finding = check_link.run(context(tmp_path), LINK).findings
    assert allowed.severity is Severity.FINE
    assert (finding.check, finding.severity, finding.code) == (check, Severity.STOPS, code)


# The rate.


def measured(tmp_path: Path, seconds: float, limit: int = 0, at_most: int = 0) -> tuple[int | None, float]:
    """What one end counts while the other sends, and how long the sending took."""
    found: list[int | None] = []
    path = str(tmp_path / "probe")
    with link_rate.listen_on(path) as server:
        receiver = threading.Thread(target=lambda: found.append(link_rate.receive(server, seconds, at_most)))
        receiver.start()
        began = time.monotonic()
        with link_rate.meet(socket.AF_UNIX, path) as connection:
            link_rate.send(connection, seconds, limit, at_most)
        took = time.monotonic() - began
        receiver.join()
    return found[0], took


def test_the_sender_is_stopped_by_the_one_who_counts(tmp_path: Path) -> None:
    rate, took = measured(tmp_path, 0.2)
    assert rate is not None
    assert rate > 1 << 20
    assert took < 2.0
    assert not (tmp_path / "probe").exists()


def test_no_more_is_sent_than_the_migration_may_use(tmp_path: Path) -> None:
    rate, _took = measured(tmp_path, 0.1, limit=20 << 20)
    assert rate is not None
    assert rate < 60 << 20


def test_what_comes_in_bursts_is_no_faster_than_the_migration_may_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure_link, "_receive", lambda _context, _arguments: 184 << 20)
    there = dataclasses.replace(context(tmp_path), host=DESTINATION)
    assert measure_link.run(there, dataclasses.replace(LINK, bandwidth=24)).rate == 24 << 20
    assert measure_link.run(there, LINK).rate == 184 << 20


def test_a_fast_link_is_measured_with_few_bytes(tmp_path: Path) -> None:
    rate, took = measured(tmp_path, 5.0, limit=20 << 20, at_most=4 << 20)
    assert rate is not None
    assert 10 << 20 < rate < 60 << 20
    assert took < 2.0


MIB = 1 << 20


def counted(pieces: Iterable[tuple[float, int]]) -> tuple[int | None, float]:
    """What a count of 0.5 s and 12 MiB makes of bytes that arrive after such pauses, and when it has had enough."""
    now = 0.0
    count = link_rate.Counting(0.5, 12 * MIB, now, 1)
    for pause, size in pieces:
        if not count.goes_on():
            break
        now += pause
        count.add(now, size)
    return count.rate(now), now


def test_a_slow_link_is_waited_for_no_longer_than_until_its_rate_stays_the_same() -> None:
    rate, took = counted(itertools.repeat((0.005, 12 * MIB // 200)))
    assert rate == pytest.approx(12 * MIB, rel=0.01)
    assert took == pytest.approx(0.26, abs=0.01)


def test_a_link_that_still_gets_faster_is_waited_for_to_the_end() -> None:
    _rate, took = counted((0.02, int(100_000 * 1.1 ** number)) for number in range(40))
    assert took == pytest.approx(0.5)


def test_a_burst_is_not_the_rate_of_a_link_that_brings_little_behind_it() -> None:
    burst = [(0.01, 12 * MIB // 16)] * 5
    rate, took = counted(itertools.chain(burst, itertools.repeat((0.05, 20_000))))
    assert took >= 0.5
    assert rate == pytest.approx(400_000, rel=0.01)


def test_of_a_link_that_carries_nothing_after_a_burst_no_rate_is_told() -> None:
    count = link_rate.Counting(0.5, 12 * MIB, 0.0, 1)
    for number in range(1, 5):
        count.add(number / 100, 12 * MIB // 16)
    assert count.rate(2.04) is None


def test_the_sender_stops_where_it_is_enough_whoever_goes_on_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_rate, "_MEET_SECONDS", 0.1)
    arrived = 0
    here, there = socket.socketpair()

    def send() -> None:
        with here:
            link_rate.send(here, 5.0, 0, at_most=4 << 20)

    with there:
        sender = threading.Thread(target=send)
        sender.start()
        while got := len(there.recv(256 << 10)):
            arrived += got
        sender.join()
    assert 4 << 20 <= arrived < (4 << 20) + (256 << 10)


def test_a_link_that_brings_little_is_waited_for(tmp_path: Path) -> None:
    found: list[int | None] = []
    path = str(tmp_path / "probe")
    with link_rate.listen_on(path) as server:
        receiver = threading.Thread(target=lambda: found.append(link_rate.receive(server, 0.05)))
        receiver.start()
        with link_rate.meet(socket.AF_UNIX, path) as connection:
            # Each piece comes when the time is over that would do for a faster link.
            while receiver.is_alive():
                with contextlib.suppress(OSError):
                    connection.send(b"x" * 8192)
                receiver.join(0.06)
    assert found[0] is not None
    assert 8192 < found[0] < 1 << 20


def test_a_way_that_is_only_tried_carries_nothing(tmp_path: Path) -> None:
    rate, _took = measured(tmp_path, 0.0)
    assert rate is None


def test_somebody_who_comes_and_sends_nothing_is_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_rate, "_MEET_SECONDS", 0.1)
    with link_rate.listen_on(str(tmp_path / "probe")) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "probe"))
        assert link_rate.receive(server, 0.05) is None


def test_nobody_who_sends_is_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_rate, "_MEET_SECONDS", 0.02)
    with link_rate.listen_on(str(tmp_path / "probe")) as server:
        assert link_rate.receive(server, 0.05) is None


def test_a_place_where_nobody_listens_is_given_up_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_rate, "_MEET_SECONDS", 0.05)
    with pytest.raises(OSError, match="No such file"):
        link_rate.meet(socket.AF_UNIX, str(tmp_path / "none"))


def test_a_jobs_port_is_one_of_libvirts_for_migrations() -> None:
    assert {link_rate.port_of(f"{number:08x}") for number in range(1000)} == set(range(49152, 49216))


def test_over_tcp_the_other_end_is_met_on_the_jobs_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(link_rate, "port_of", lambda _job_id: port)
    with link_rate.listen_at(("127.0.0.1", port)) as server:
        receiver = threading.Thread(target=lambda: link_rate.receive(server, 0.0))
        receiver.start()
        link_rate.meet(socket.AF_INET, ("127.0.0.1", port)).close()
        receiver.join()
    closed = link_rate.ports_closed(SOURCE, DESTINATION, port, OSError(111, "Connection refused"))
    assert (closed.code, closed.facts["reason"]) == (ErrorCode.PORTS_CLOSED, "Connection refused")
    assert context(tmp_path).host == SOURCE
    assert LinkReport().rate is None
