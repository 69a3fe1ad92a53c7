"""Small files by SFTP, with OpenSSH's own server in a child: what goes that way, and what does when it is not there."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("paramiko", reason="paramiko is not installed (apt-get install python3-paramiko)")

from host import job_files, staging
from host.copy_link import Watch
from host.job_files import remove_socket_directory, staging_directory
from host.ssh import Login
from host.staging import SMALL_BYTES, Before, SftpUpload
from tests.unit.copying import CANCELLED, DESTINATION, MIB, SOURCE, Pair, Relay, make_pair, noise
from tests.unit.samples import FakeClock
from wire.errors import ErrorCode, MigrationError

# Debian's and Fedora's place.
SERVER = next((path for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")
               if os.path.exists(path)), None)
LOGIN = Login(SOURCE, "kvm", DESTINATION)

# Where the lab can run it is there: script/test installs it with OpenSSH's server. `script/test unit` installs nothing.
needs_server = pytest.mark.skipif(
    SERVER is None, reason="OpenSSH's SFTP server is not installed (apt-get install openssh-sftp-server)")


class Child:
    """The ssh that would be between."""

    def lost(self) -> MigrationError:
        return MigrationError(ErrorCode.TUNNEL_LOST, LOGIN.facts("subsystem request failed on channel 0"))


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(staging, "LOOK_SECONDS", 0.01)
    return make_pair(tmp_path, monkeypatch)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subsystems that were asked for, each of which a server in a child answers."""
    found = []

    @contextmanager
    def serve(_login: Login, name: str) -> Iterator[tuple[Child, socket.socket]]:
        found.append(name)
        here, there = socket.socketpair()
        with here, there, subprocess.Popen([str(SERVER), "-e"], stdin=there.fileno(), stdout=there.fileno()) as server:
            there.close()
            yield Child(), here
            here.close()
            server.wait(10)

    monkeypatch.setattr(staging, "subsystem", serve)
    return found


@pytest.fixture
def upload(pair: Pair) -> Iterator[SftpUpload]:
    with SftpUpload(LOGIN, str(pair.staging)) as made:
        yield made


@needs_server
def test_small_files_go_by_sftp_in_one_login_and_nothing_stays_in_between(
        pair: Pair, opened: list[str], upload: SftpUpload) -> None:
    pair.put("seed.iso", (0, noise(366 << 10)))
    pair.put("vars.fd", (0, noise(SMALL_BYTES)))
    relay = Relay()
    copied = pair.copy("seed.iso", "vars.fd", relay=relay, upload=upload)
    assert [(each.data, each.kept) for each in copied.sent.result()] == [(366 << 10, False), (SMALL_BYTES, False)]
    assert pair.same("seed.iso", "vars.fd")
    assert opened == ["sftp"]
    assert relay.carried < 1024
    assert list(pair.staging.iterdir()) == []


def test_large_files_files_with_holes_and_empty_ones_go_through_the_stream(
        pair: Pair, opened: list[str], upload: SftpUpload) -> None:
    pair.put("large", (0, noise(SMALL_BYTES + 1)))
    pair.put("sparse", (MIB, noise(4096)), length=3 * MIB)
    pair.put("empty")
    assert pair.copy("large", "sparse", "empty", upload=upload).served.result()
    assert pair.same("large", "sparse", "empty")
    assert opened == []


def test_without_an_sftp_server_there_the_stream_takes_all_and_that_is_said_once(
        pair: Pair, monkeypatch: pytest.MonkeyPatch, upload: SftpUpload, caplog: pytest.LogCaptureFixture) -> None:
    @contextmanager
    def refuse(_login: Login, _name: str) -> Iterator[tuple[Child, socket.socket]]:
        here, there = socket.socketpair()
        there.shutdown(socket.SHUT_WR)
        with here, there:
            yield Child(), here

    monkeypatch.setattr(staging, "subsystem", refuse)
    pair.put("a", (0, noise(5000)))
    pair.put("b", (0, noise(6000)))
    assert pair.copy("a", "b", upload=upload).served.result()
    assert pair.same("a", "b")
    assert [record.message for record in caplog.records if "no SFTP" in record.message] == [
        f"no SFTP to kvm@{DESTINATION}, the stream takes small files too: "
        "subsystem request failed on channel 0"]


@needs_server
@pytest.mark.usefixtures("opened")
def test_an_upload_keeps_to_the_limit_and_is_told_of(pair: Pair, upload: SftpUpload) -> None:
    clock, moved = FakeClock(0.0), list[int]()
    pair.put("seed.iso", (0, noise(2 * MIB)))
    watch = Watch(moved.append, lambda: None, clock=clock, sleep=clock.sleep)
    assert pair.copy("seed.iso", watch=watch, limit=MIB, upload=upload).served.result()
    assert 1.8 <= clock.now <= 2.1
    assert moved[-1] == 2 * MIB


@needs_server
@pytest.mark.usefixtures("opened")
def test_a_cancel_ends_an_upload_and_nothing_is_left(pair: Pair, upload: SftpUpload) -> None:
    pair.put("seed.iso", (0, noise(SMALL_BYTES)))
    asked = iter([None, None])
    # A clock by which every look is due.
    ticks = itertools.count()
    watch = Watch(lambda _done: None, lambda: next(asked, CANCELLED), clock=lambda: float(next(ticks)))
    copied = pair.copy("seed.iso", watch=watch, upload=upload)
    assert copied.codes == (ErrorCode.MIGRATION_CANCELLED,) * 2
    assert pair.names() == []


class Meddled:
    """An upload behind which another user of the destination has something else in place."""

    def __init__(self, pair: Pair, put: Callable[[Path], None]) -> None:
        self._staging = pair.staging
        self._put = put

    def put(self, name: str, descriptor: int, length: int, before: Before) -> bool:
        """As if it had gone well."""
        before(length)
        self._put(self._staging / name)
        return True


@pytest.mark.parametrize(("put", "code"), [
    pytest.param(lambda path: None, ErrorCode.FILE_NOT_WRITTEN, id="nothing"),
    pytest.param(lambda path: path.symlink_to("/etc/passwd"), ErrorCode.FILE_NOT_WRITTEN, id="a link"),
    pytest.param(lambda path: os.mkfifo(path), ErrorCode.FILE_NOT_WRITTEN, id="a pipe"),
    pytest.param(lambda path: path.write_bytes(noise(4999)), ErrorCode.FILE_NOT_WRITTEN, id="less"),
    pytest.param(lambda path: path.write_bytes(bytes(5000)), ErrorCode.COPY_DAMAGED, id="other bytes"),
])
def test_only_what_the_source_has_is_taken_over(
        pair: Pair, put: Callable[[Path], None], code: ErrorCode) -> None:
    pair.put("seed.iso", (0, noise(5000)))
    copied = pair.copy("seed.iso", upload=Meddled(pair, put))
    assert copied.codes == (code, code)
    assert pair.names() == []


def test_the_staging_directory_is_one_users_and_goes_with_what_is_in_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(job_files, "run_tool", lambda words, *_host: asked.append([*words[:3], os.readlink(words[3])]))
    path = tmp_path / "staging"
    path.mkdir()
    (path / "0").write_text("what an agent that was ended has left")
    with staging_directory(str(path), "kvm", DESTINATION):
        assert list(path.iterdir()) == []
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "1").write_text("half of it")
    assert not path.exists()
    assert asked == [["setfacl", "-m", "u:kvm:rwx", str(path)]]


def test_the_jobs_directory_goes_with_its_staging_directory_but_never_what_a_link_in_its_place_leads_to(
        tmp_path: Path) -> None:
    job, other = tmp_path / "job", tmp_path / "other"
    (job / "staging").mkdir(parents=True)
    (job / "staging" / "0").write_text("half of it")
    remove_socket_directory(str(job))
    assert not job.exists()
    other.mkdir()
    (other / "precious").write_text("x")
    job.mkdir()
    (job / "staging").symlink_to(other)
    with pytest.raises(NotADirectoryError):
        remove_socket_directory(str(job))
    assert (other / "precious").exists()
