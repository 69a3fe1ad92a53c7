"""What the kernel tells an agent: QEMU's connections, the moment of its end, and the ssh of an earlier life."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from host import connections, orphans, qemu_process
from host.connections import cut_connections, read_address, tcp_ports
from host.orphans import OrphanedTunnel, Process
from host.qemu_process import ExitWatch, process_id
from host.ssh import Login
from tests.unit.samples import DESTINATION, SOURCE
from wire.errors import ErrorCode, MigrationError

WAITING = ("-c", "import time; time.sleep(60)")
LOGIN = Login(SOURCE, "kvm", DESTINATION)


@contextmanager
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits, and is ended at the latest here."""
    process = subprocess.Popen([sys.executable, *WAITING])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# Connections.


@pytest.mark.parametrize(("text", "address", "port"), [
    ("0100007F:1F42", "127.0.0.1", 8002), ("0B0200C0:0016", "192.0.2.11", 22),
    ("B80D0120000000000000000012000000:C000", "2001:db8::12", 49152),
    ("0000000000000000FFFF00000B0200C0:C001", "192.0.2.11", 49153),
    ("00000000000000000000000001000000:0001", "::1", 1),
])
def test_an_address_is_read_as_the_kernel_writes_it(text: str, address: str, port: int) -> None:
    assert read_address(text) == (ipaddress.ip_address(address), port)


@pytest.mark.parametrize(("listening", "connecting"), [("127.0.0.1", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1")])
def test_the_connections_of_a_process_to_an_address_are_found_and_no_others(listening: str, connecting: str) -> None:
    family = socket.AF_INET6 if ":" in connecting else socket.AF_INET
    with closing(socket.create_server((listening, 0), family=socket.AF_INET6 if ":" in listening else family,
                                      dualstack_ipv6=listening == "::")) as server, \
            closing(socket.socket(family)) as client:
        client.connect((connecting, server.getsockname()[1]))
        accepted, _ = server.accept()
        with closing(accepted):
            ours, theirs = client.getsockname()[1], server.getsockname()[1]
            assert set(tcp_ports(os.getpid(), connecting)) >= {(ours, theirs), (theirs, ours)}
            assert tcp_ports(os.getpid(), "192.0.2.77") == []
    with child() as other:
        assert tcp_ports(other.pid, connecting) == []


@pytest.mark.parametrize(("destination", "written"), [("192.0.2.12", "192.0.2.12"), ("2001:db8::12", "[2001:db8::12]")])
def test_each_connection_is_cut_by_its_own_two_ports(
    monkeypatch: pytest.MonkeyPatch, destination: str, written: str,
) -> None:
    ran: list[Sequence[str]] = []
    monkeypatch.setattr(connections, "process_id", lambda domain: {"VM1": 77}[domain])
    monkeypatch.setattr(connections, "tcp_ports", lambda pid, address: [(1, 2), (3, 4)] if pid == 77 else [])
    monkeypatch.setattr(connections, "run_tool", lambda arguments, _host: ran.append(arguments))
    assert cut_connections("VM1", destination, SOURCE) == 2
    assert [" ".join(each) for each in ran] == [
        f"ss --kill --tcp --numeric dst {written}:{there} sport = :{here}" for here, there in ((1, 2), (3, 4))]


@pytest.mark.parametrize("error", [
    FileNotFoundError(2, "No such file or directory"), ValueError("no number"),
    MigrationError(ErrorCode.TOOL_MISSING, {"tool": "ss", "host": SOURCE, "package": "iproute2"})])
def test_connections_that_cannot_be_cut_are_told_and_make_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception,
) -> None:
    def fail(_domain: str) -> int:
        raise error

    monkeypatch.setattr(connections, "process_id", fail)
    assert cut_connections("VM1", DESTINATION, SOURCE) == 0
    assert f"cannot cut the connections of VM VM1 to {DESTINATION}" in caplog.text


# QEMU's end.


def test_the_process_of_a_vm_is_the_one_that_libvirt_has_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    monkeypatch.setattr(qemu_process, "_PID_DIRECTORY", str(tmp_path))
    (tmp_path / "VM1.pid").write_text("4711\n")
    (tmp_path / "VM2.pid").write_text("")
    assert process_id("VM1") == 4711
    with pytest.raises(ValueError, match="invalid literal"):
        process_id("VM2")
    with pytest.raises(FileNotFoundError):
        process_id("VM3")


def test_the_end_of_a_process_is_told_at_once_and_once() -> None:
    ended: list[int] = []
    told = threading.Event()

    def note() -> None:
        ended.append(1)
        told.set()

    with child() as process, ExitWatch(process.pid, note):
        assert not told.wait(0.02)
        process.kill()
        assert told.wait(5.0)
    assert ended == [1]


def test_a_process_that_lives_on_is_told_of_no_more_after_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_process, "_LOOK_MILLISECONDS", 5)
    ended: list[int] = []
    with child() as process:
        with ExitWatch(process.pid, lambda: ended.append(1)):
            pass
        process.kill()
        process.wait()
        assert ended == []
        with pytest.raises(ProcessLookupError):
            ExitWatch(process.pid, lambda: None)


# The ssh of an earlier life.


DIRECTORY = "/run/x/vmmigration-0badcafe"
# A process whose parent has ended, as that of an agent that was killed.
LEAVE_BEHIND = (
    "import subprocess, sys; null = subprocess.DEVNULL; print(subprocess.Popen(sys.argv[1:], stdin=null, stdout=null, "
    "stderr=null, executable=sys.executable).pid)")


@contextmanager
def left_behind(name: str, *arguments: str) -> Iterator[int]:
    """A process of that name that was left behind; it is ended at the latest here."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVE_BEHIND, name, *WAITING, *arguments], check=True, stdout=subprocess.PIPE)
    try:
        yield int(done.stdout)
    finally:
        orphans.end([Process(int(done.stdout))])


def found(directory: str) -> list[int]:
    """The process ids of what is found there."""
    return sorted(each.pid for each in orphans.find(directory))


def test_only_an_ssh_that_forwards_below_the_jobs_directory_is_found_of_this_life_or_an_earlier_one() -> None:
    forward = f"{DIRECTORY}/m.sock:{DIRECTORY}/m.sock"
    with left_behind("ssh", "-L", forward) as ours, left_behind("rsync", "-L", forward), \
            left_behind("ssh", "-L", f"{DIRECTORY}-look/libvirt:/x"), left_behind("ssh", DIRECTORY):
        own = subprocess.Popen(["ssh", *WAITING, forward], executable=sys.executable)  # noqa: S607 - it is no ssh
        try:
            wait_for(lambda: found(DIRECTORY) == sorted([ours, own.pid]))
        finally:
            own.kill()
            own.wait()


def test_an_agent_that_begins_ends_what_its_earlier_life_has_left_but_for_its_open_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("host.job_files._SOCKET_ROOT", str(tmp_path))
    names = ("vmmigration-0000000a", "vmmigration-0000000a-look", "vmmigration-0000000b", "domain-1-VM1")
    for name in names:
        (tmp_path / name).mkdir()
    with left_behind("ssh", "-L", f"{tmp_path}/vmmigration-0000000a/libvirt:/x") as ended, \
            left_behind("ssh", "-L", f"{tmp_path}/vmmigration-0000000b/libvirt:/x") as kept:
        wait_for(lambda: found(f"{tmp_path}/vmmigration-0000000a") == [ended])
        orphans.clear_all_but(["0000000b"])
        assert not Path(f"/proc/{ended}/exe").exists()
        assert Path(f"/proc/{kept}/exe").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"vmmigration-0000000b", "domain-1-VM1"}


def wait_for(holds: Callable[[], bool]) -> None:
    """A process that was just begun has its own name a moment later."""
    until = time.monotonic() + 5.0
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_tunnel_that_was_left_behind_is_seen_and_ended() -> None:
    with left_behind("ssh") as pid:
        tunnel = OrphanedTunnel(LOGIN, [Process(pid)])
        assert not tunnel.ended()
        tunnel.keep()
        tunnel.let_go()
        assert not tunnel.ended()
        tunnel.close()
        assert tunnel.ended()
        error = tunnel.lost()
        assert (error.code, error.facts["destination"]) == (ErrorCode.TUNNEL_LOST, DESTINATION)
        assert "?" not in error.message


def test_where_no_ssh_was_left_behind_the_tunnel_is_gone() -> None:
    assert OrphanedTunnel(LOGIN, []).ended()


# It ignores SIGTERM, and says when it does.
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)")


@pytest.mark.parametrize("descriptors", [True, False], ids=["by descriptor", "before Linux 5.3"])
def test_a_process_that_does_not_go_is_killed(monkeypatch: pytest.MonkeyPatch, *, descriptors: bool) -> None:
    monkeypatch.setattr("host.orphans._END_SECONDS", 0.1)
    if not descriptors:
        monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    stubborn = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == b"\n"
    process = Process(stubborn.pid)
    assert not process.ended()
    orphans.end([process])
    assert stubborn.wait() == -signal.SIGKILL
    stubborn.stdout.close()
    assert process.ended()
    # To one that is gone nothing is sent, whoever has its number now.
    orphans.end([process])


def no_descriptor(_pid: int) -> int:
    """What a kernel says that has no descriptors of processes."""
    raise OSError(38, "Function not implemented")


def test_a_number_that_is_given_again_is_not_taken_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    with child() as process:
        earlier = Process(process.pid)
    monkeypatch.setattr(os, "kill", lambda pid, _number: sent.append(pid))
    earlier.send(signal.SIGTERM)
    assert earlier.ended()
    assert sent == []
    with pytest.raises(ProcessLookupError):
        Process(process.pid)
