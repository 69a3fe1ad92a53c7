"""The host without libvirt: what OpenSSH's messages mean, what a job makes and may remove, and empty images."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest

from constant import ImageFormat
from host import image, process
from host.file_identity import FileIdentity
from host.job_files import (
    JobSockets,
    Ledger,
    MadeKind,
    in_system_directory,
    make_directory,
    make_socket_directory,
    remove_socket_directory,
    socket_directory,
)
from host.process import last_line, run_tool, tool_environment, tool_path
from host.ssh import Login, Tunnel, diagnose
from tests.unit.samples import MIGRATION, QCOW2, RAW
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts

LOGIN = Login("192.0.2.11", "kvm", "192.0.2.12")
ME = (os.getuid(), os.getgid())
HOST = "192.0.2.12"


# What OpenSSH says.

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r
Add correct host key in /root/.ssh/known_hosts to get rid of this message.\r
Offending ED25519 key in /root/.ssh/known_hosts:1\r
Host key for 192.0.2.12 has changed and you have requested strict checking.\r
Host key verification failed.\r
"""


@pytest.mark.parametrize(("messages", "code"), [
    (CHANGED, ErrorCode.SSH_HOST_KEY_CHANGED),
    ("No ED25519 host key is known for 192.0.2.12 and you have requested strict checking.\r\n"
     "Host key verification failed.\r\n", ErrorCode.SSH_HOST_KEY_UNKNOWN),
    ("Host key verification failed.\r\n", ErrorCode.SSH_HOST_KEY_UNKNOWN),
    ("kvm@192.0.2.12: Permission denied (publickey,password).\r\n", ErrorCode.SSH_LOGIN_REFUSED),
    ("Warning: Permanently added '192.0.2.12'.\r\nkvm@192.0.2.12: Permission denied (publickey).\r\n",
     ErrorCode.SSH_LOGIN_REFUSED),
    ("Received disconnect from 192.0.2.12 port 22:2: Too many authentication failures\r\n"
     "Disconnected from 192.0.2.12 port 22\r\n", ErrorCode.SSH_LOGIN_REFUSED),
    ("ssh: connect to host 192.0.2.12 port 22: Connection refused\r\n", ErrorCode.SSH_UNREACHABLE),
    ("ssh: connect to host 192.0.2.12 port 22: Connection timed out\r\n", ErrorCode.SSH_UNREACHABLE),
    ("ssh: connect to host 192.0.2.12 port 22: Operation timed out\r\n", ErrorCode.SSH_UNREACHABLE),
    ("ssh: connect to host 192.0.2.12 port 22: No route to host\r\n", ErrorCode.SSH_UNREACHABLE),
    ("ssh: connect to host 192.0.2.12 port 22: Network is unreachable\r\n", ErrorCode.SSH_UNREACHABLE),
    ("kex_exchange_identification: Connection closed by remote host\r\n", ErrorCode.SSH_FAILED),
    ("Bad SSH2 cipher spec '^aes128-gcm@openssh.com'.\r\n", ErrorCode.SSH_FAILED),
    ("", ErrorCode.SSH_FAILED),
])
def test_what_openssh_says_is_told_as_the_error_that_it_means(messages: str, code: ErrorCode) -> None:
    error = diagnose(LOGIN, messages)
    assert error.code is code
    assert "?" not in error.message
    assert "192.0.2.12" in error.message
    assert not any(character in str(error) for character in "\r\n")
    assert ".." not in error.message

# On a machine with nothing but Python the rest still runs; script/test installs both tools as root.
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="apt-get install qemu-utils")
needs_setfacl = pytest.mark.skipif(shutil.which("setfacl") is None, reason="apt-get install acl")


def test_the_line_of_openssh_that_says_it_is_the_reason() -> None:
    assert diagnose(LOGIN, "banner\r\nkvm@192.0.2.12: Permission denied (publickey).\r\n").facts["reason"] == (
        "kvm@192.0.2.12: Permission denied (publickey)")
    assert diagnose(LOGIN, "one\ntwo\n\n").facts["reason"] == "two"
    assert diagnose(LOGIN, "").facts["reason"] == "it ended without a word"


# Tools.


def test_a_missing_tool_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MigrationError) as caught:
        tool_path("qemu-img", HOST)
    assert caught.value.code is ErrorCode.TOOL_MISSING
    assert "apt-get install qemu-utils" in caught.value.hint


@needs_qemu_img
def test_a_tool_that_fails_is_told_with_its_last_line() -> None:
    with pytest.raises(MigrationError) as caught:
        run_tool(["qemu-img", "info", "/nonexistent/image"], HOST)
    assert caught.value.code is ErrorCode.TOOL_FAILED
    assert "No such file" in caught.value.message


def test_a_tool_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_TIMEOUT_SECONDS", 0.01)
    with pytest.raises(MigrationError) as caught:
        run_tool(["tail", "-f", "/dev/null"], HOST)
    assert caught.value.code is ErrorCode.TOOL_FAILED
    assert "no end after" in caught.value.message


def test_no_shell_ever_sees_an_argument(tmp_path: Path) -> None:
    assert run_tool(["echo", f"; touch {tmp_path}/x", "$(id)", "a b"], HOST) == f"; touch {tmp_path}/x $(id) a b\n"
    assert list(tmp_path.iterdir()) == []


def test_the_messages_of_tools_are_read_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert tool_environment()["LC_ALL"] == "C"


def test_the_last_line_is_the_last_that_says_something() -> None:
    assert last_line("a.\n b.. \n\n") == "b"
    assert last_line(" \n") == ""


# The ledger.


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger of a job."""
    return Ledger("0badcafe", tmp_path / "jobs")


def made_file(path: Path, ledger: Ledger) -> Path:
    """A file that is written down as the job's."""
    path.write_text("image")
    ledger.add(MadeKind.IMAGE, str(path), FileIdentity.at(str(path)))
    return path


def test_what_a_job_made_is_removed_newest_first(tmp_path: Path, ledger: Ledger) -> None:
    paths = [made_file(tmp_path / name, ledger) for name in ("one", "two")]
    directory = tmp_path / "sockets"
    directory.mkdir()
    ledger.add(MadeKind.SOCKET_DIRECTORY, str(directory), FileIdentity.at(str(directory)))
    assert ledger.close(frozenset(MadeKind)) == ([str(directory), str(paths[1]), str(paths[0])], [])
    assert not any(path.exists() for path in [*paths, directory])
    assert ledger.entries() == []
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_later_agent_reads_what_an_earlier_one_wrote(tmp_path: Path, ledger: Ledger) -> None:
    path = made_file(tmp_path / "image", ledger)
    (again,) = Ledger("0badcafe", tmp_path / "jobs").entries()
    assert (again.kind, again.path, again.inode) == (MadeKind.IMAGE, str(path), path.stat().st_ino)
    assert Ledger("0badcafe", tmp_path / "jobs").close(frozenset(MadeKind)) == ([str(path)], [])


def test_jobs_have_ledgers_of_their_own(tmp_path: Path, ledger: Ledger) -> None:
    path = made_file(tmp_path / "image", ledger)
    assert Ledger("ffffffff", tmp_path / "jobs").close(frozenset(MadeKind)) == ([], [])
    assert path.exists()


def test_another_file_at_the_same_path_is_not_removed(tmp_path: Path, ledger: Ledger) -> None:
    path = made_file(tmp_path / "image", ledger)
    (tmp_path / "other").write_text("somebody's")
    os.replace(tmp_path / "other", path)
    assert ledger.close(frozenset(MadeKind)) == ([], [])
    assert path.read_text() == "somebody's"


def test_a_file_is_still_the_jobs_when_its_file_system_was_mounted_again_under_another_number(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "image"
    path.write_text("half of it")
    # A tmpfs, which is all that some machines have here, would not tell.
    monkeypatch.setattr("host.file_identity._generation", lambda _descriptor: 77)
    now = FileIdentity.at(str(path))
    ledger.add(MadeKind.IMAGE, str(path), dataclasses.replace(now, device=now.device + 1))
    assert ledger.close(frozenset(MadeKind)) == ([str(path)], [])
    assert not path.exists()


@pytest.mark.parametrize("generation", [None, 77])
def test_another_file_that_was_given_the_same_inode_number_is_not_the_jobs(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, generation: int | None,
) -> None:
    path = tmp_path / "image"
    path.write_text("somebody's")
    now = FileIdentity.at(str(path))
    monkeypatch.setattr("host.file_identity._generation", lambda _descriptor: generation and generation + 1)
    ledger.add(MadeKind.IMAGE, str(path), FileIdentity(now.device + 1, now.inode, generation))
    assert ledger.close(frozenset(MadeKind)) == ([], [])
    assert path.read_text() == "somebody's"


def test_a_block_device_is_told_from_another_through_the_link_that_names_it(tmp_path: Path, ledger: Ledger) -> None:
    # As /dev/VG/LV leads to /dev/dm-3; files stand in for the devices.
    devices = [tmp_path / name for name in ("dm-3", "dm-4")]
    for device in devices:
        device.write_text("data")
    link = tmp_path / "lv"
    link.symlink_to("dm-3")
    ledger.take(str(link))
    with_other = Ledger("ffffffff", tmp_path / "jobs")
    with_other.take(str(link))
    link.unlink()
    link.symlink_to("dm-4")
    assert with_other.close(frozenset(MadeKind)) == ([], [])
    link.unlink()
    link.symlink_to("dm-3")
    assert ledger.close(frozenset(MadeKind)) == ([str(link)], [])
    assert (devices[0].read_bytes()[:4], devices[1].read_text()) == (bytes(4), "data")


def test_a_link_put_at_the_path_is_not_followed(tmp_path: Path, ledger: Ledger) -> None:
    path = made_file(tmp_path / "image", ledger)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert ledger.close(frozenset(MadeKind)) == ([], [])
    assert (tmp_path / "moved").exists()
    assert path.is_symlink()


def test_what_is_gone_already_is_no_error(tmp_path: Path, ledger: Ledger) -> None:
    made_file(tmp_path / "image", ledger).unlink()
    assert ledger.close(frozenset(MadeKind)) == ([], [])


def test_only_the_kinds_asked_for_are_removed(tmp_path: Path, ledger: Ledger) -> None:
    path = made_file(tmp_path / "image", ledger)
    directory = tmp_path / "sockets"
    directory.mkdir()
    ledger.add(MadeKind.SOCKET_DIRECTORY, str(directory), FileIdentity.at(str(directory)))
    assert ledger.close(frozenset({MadeKind.SOCKET_DIRECTORY})) == ([str(directory)], [])
    assert path.exists()


def test_what_is_on_a_file_system_that_is_not_mounted_now_is_not_taken_for_removed(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    image = images / "VM1.qcow2"
    image.write_text("half of it")
    ledger.add(MadeKind.IMAGE, str(image), FileIdentity.at(str(image)))
    ledger.plan(MadeKind.IMAGE, f"{images}/x.vmmigration-0badcafe")
    image.rename(tmp_path / "elsewhere")
    with monkeypatch.context() as unmounted:
        unmounted.setattr("host.job_files.mount_point", lambda _path: "/another")
        removed, problems = ledger.close(frozenset(MadeKind))
        assert (removed, len(problems)) == ([], 2)
        assert all("not mounted" in problem for problem in problems)
    (tmp_path / "elsewhere").rename(image)
    assert ledger.close(frozenset(MadeKind)) == ([str(image)], [])
    assert not image.exists()


def test_what_could_not_be_removed_stays_written_down(tmp_path: Path, ledger: Ledger) -> None:
    path = made_file(tmp_path / "image", ledger)
    directory = tmp_path / "sockets"
    directory.mkdir()
    (directory / "somebody's").write_text("x")
    ledger.add(MadeKind.SOCKET_DIRECTORY, str(directory), FileIdentity.at(str(directory)))
    problem = f"{directory}: Directory not empty"
    # It does not keep the rest from being removed.
    assert ledger.close(frozenset(MadeKind)) == ([str(path)], [problem])
    assert [made.path for made in ledger.entries()] == [str(directory)]
    (directory / "somebody's").unlink()
    assert ledger.close(frozenset(MadeKind)) == ([str(directory)], [])
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_ledger_is_for_its_owner_alone(tmp_path: Path, ledger: Ledger) -> None:
    made_file(tmp_path / "image", ledger)
    (written,) = (tmp_path / "jobs").iterdir()
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o700


# Sockets.


def test_the_sockets_of_a_job_are_named_as_the_profile_of_the_vm_allows() -> None:
    sockets = JobSockets.of(MIGRATION)
    assert sockets.directory == "/run/libvirt/qemu/vmmigration-0badcafe"
    for path in (sockets.memory, sockets.disks):
        assert path.startswith(sockets.directory + "/")
        assert path.endswith(".tunnelmigrate.dest.VM1")
    assert len({sockets.memory, sockets.disks, sockets.libvirt}) == 3
    # The profile is that of the destination, where QEMU makes them.
    renamed = JobSockets.of(dataclasses.replace(MIGRATION, new_name="web"))
    assert renamed.directory == sockets.directory
    assert [path.rpartition(".")[2] for path in (renamed.memory, renamed.disks)] == ["web", "web"]


def test_a_name_fits_as_long_as_its_socket_paths_have_107_bytes() -> None:
    room = 107 - len(JobSockets.of(dataclasses.replace(MIGRATION, domain="x")).memory.encode()) + 1
    for domain, fits in (("x" * room, True), ("x" * (room + 1), False), ("ü" * (room // 2), True),
                         ("ü" * (room // 2 + 1), False)):
        sockets = JobSockets.of(dataclasses.replace(MIGRATION, domain=domain))
        assert sockets.fit(domain) is fits
        assert (len(sockets.disks.encode()) <= 107) is fits


@pytest.mark.parametrize("domain", ["a:b", "a%b", "a$b", "a\\b", "a'b", 'a"b', "a;b", "a*b", "a{b}"])
def test_a_name_that_ssh_reads_as_its_own_does_not_fit(domain: str) -> None:
    assert not JobSockets.of(dataclasses.replace(MIGRATION, domain=domain)).fit(domain)


@pytest.mark.parametrize("domain", ["VM1", "win 11", "a-b_c.d", "büro", "x@y", "a+b"])
def test_an_ordinary_name_fits(domain: str) -> None:
    assert JobSockets.of(dataclasses.replace(MIGRATION, domain=domain)).fit(domain)


def test_a_socket_directory_is_closed_to_others_and_is_never_one_that_exists(tmp_path: Path) -> None:
    path = str(tmp_path / "below" / "sockets")
    identity = make_socket_directory(path, ME, [], HOST)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert identity == FileIdentity.at(path)
    with pytest.raises(MigrationError) as caught:
        make_socket_directory(path, ME, [], HOST)
    assert caught.value.code is ErrorCode.PATH_TAKEN


@needs_setfacl
def test_a_socket_directory_that_cannot_be_given_to_a_user_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "sockets"
    with pytest.raises(MigrationError) as caught:
        make_socket_directory(str(path), ME, ["no-such-user-here"], HOST)
    assert caught.value.code is ErrorCode.TOOL_FAILED
    assert not path.exists()


def test_sockets_go_with_their_directory_and_other_files_stay(tmp_path: Path) -> None:
    directory = tmp_path / "s"
    directory.mkdir()
    for name in ("m", "d"):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(directory / name))
    (directory / "file").write_text("somebody's")
    (directory / "link").symlink_to(directory / "file")
    with pytest.raises(OSError, match="not empty"):
        remove_socket_directory(str(directory))
    assert sorted(path.name for path in directory.iterdir()) == ["file", "link"]
    for name in ("file", "link"):
        (directory / name).unlink()
    remove_socket_directory(str(directory))
    assert not directory.exists()
    remove_socket_directory(str(directory))


def test_a_socket_directory_lasts_as_long_as_its_with_also_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sockets"
    seen = []

    def fail() -> None:
        seen.append(path.is_dir())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), socket_directory(str(path), ME, [], HOST):
        fail()
    assert seen == [True]
    assert not path.exists()


# Directories that are not for images.


@pytest.mark.parametrize("path", [
    "/etc/x", "/etc/cron.d/x", "/usr/bin/x", "/lib/x", "/lib/systemd/system/x.service", "/bin/x", "/run/x",
    "/var/run/x", "/boot/x", "/proc/x", "/sys/x", "/dev/x", "/dev/mapper/x", "/var/spool/cron/x", "/x", "/sbin/x",
])
def test_no_image_goes_among_the_systems_own_files(path: str) -> None:
    assert in_system_directory(path)


@pytest.mark.parametrize("path", [
    "/var/lib/libvirt/images/x", "/srv/vm/x", "/home/kvm/x", "/etcetera/x", "/mnt/etc/x", "/usrlocal/x",
])
def test_an_image_may_go_where_images_are(path: str) -> None:
    assert not in_system_directory(path)


def test_a_link_into_the_system_is_followed(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to("/etc/cron.d")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "link").symlink_to(tmp_path / "images")
    assert in_system_directory(str(tmp_path / "images" / "x"))
    assert in_system_directory(str(tmp_path / "deep" / "link" / "x"))
    assert not in_system_directory(str(tmp_path / "deep" / "x"))


# Images.


def disk_at(path: Path, kind: ImageFormat) -> DiskFacts:
    """The facts of a small disk at this path."""
    return dataclasses.replace(QCOW2 if kind is ImageFormat.QCOW2 else RAW, path=str(path), virtual_size=10 << 20)


def information(path: Path) -> dict[str, object]:
    """What qemu-img says of an image."""
    said = subprocess.run(
        ["qemu-img", "info", "--output=json", str(path)],  # noqa: S607
        capture_output=True, check=True)
    return dict(json.loads(said.stdout))


@needs_qemu_img
@pytest.mark.parametrize("kind", list(ImageFormat))
def test_an_empty_image_has_the_format_and_size_asked_for_and_is_its_owners_alone(
    tmp_path: Path, kind: ImageFormat,
) -> None:
    path = tmp_path / "image"
    identity = image.create_empty(disk_at(path, kind), ME, HOST)
    found = path.stat()
    assert information(path)["format"] == kind.value
    assert information(path)["virtual-size"] == 10 << 20
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_uid, found.st_gid) == ME
    assert identity == FileIdentity.at(str(path))
    assert found.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("kind", list(ImageFormat))
def test_an_existing_file_or_link_is_never_touched(tmp_path: Path, kind: ImageFormat) -> None:
    taken, dangling = tmp_path / "taken", tmp_path / "dangling"
    taken.write_text("somebody's")
    dangling.symlink_to(tmp_path / "nowhere")
    link = tmp_path / "link"
    link.symlink_to(taken)
    for path in (taken, link, dangling):
        with pytest.raises(MigrationError) as caught:
            image.create_empty(disk_at(path, kind), ME, HOST)
        assert caught.value.code is ErrorCode.PATH_TAKEN
    assert taken.read_text() == "somebody's"
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_directory_is_told_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(MigrationError) as caught:
        image.create_empty(disk_at(tmp_path / "missing" / "image", ImageFormat.RAW), ME, HOST)
    assert caught.value.code is ErrorCode.DIRECTORY_MISSING
    assert not (tmp_path / "missing").exists()


def test_an_image_that_cannot_be_finished_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no-tools"))
    with pytest.raises(MigrationError) as caught:
        image.create_empty(disk_at(tmp_path / "image", ImageFormat.QCOW2), ME, HOST)
    assert caught.value.code is ErrorCode.TOOL_MISSING
    assert list(tmp_path.iterdir()) == []


@needs_qemu_img
def test_an_image_that_qemu_img_cannot_make_is_told_and_taken_back(tmp_path: Path) -> None:
    disk = dataclasses.replace(disk_at(tmp_path / "image", ImageFormat.QCOW2), virtual_size=1 << 62)
    with pytest.raises(MigrationError) as caught:
        image.create_empty(disk, ME, HOST)
    assert caught.value.code is ErrorCode.TOOL_FAILED
    assert "qemu-img failed on 192.0.2.12: " in caught.value.message
    assert list(tmp_path.iterdir()) == []


@needs_qemu_img
@pytest.mark.parametrize("virtual_size", [10 << 20, 1 << 62])
def test_a_link_put_in_place_of_a_new_image_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtual_size: int,
) -> None:
    path, victim, aside = tmp_path / "image", tmp_path / "victim", tmp_path / "aside"
    victim.write_text("somebody's")
    written_to = []

    def swap_and_run(arguments: list[str], host: str, keep_open: tuple[int, ...] = ()) -> str:
        path.rename(aside)
        path.symlink_to(victim)
        (descriptor,) = keep_open
        assert not any(argument.startswith(str(tmp_path)) for argument in arguments)
        written_to.append(arguments[-2])
        assert arguments[-2] == f"/proc/self/fd/{descriptor}"
        return run_tool(arguments, host, keep_open)

    monkeypatch.setattr(image, "run_tool", swap_and_run)
    disk = dataclasses.replace(disk_at(path, ImageFormat.QCOW2), virtual_size=virtual_size)
    if virtual_size == 10 << 20:
        identity = image.create_empty(disk, ME, HOST)
        assert information(aside)["virtual-size"] == virtual_size
        assert identity == FileIdentity.at(str(aside))
    else:
        with pytest.raises(MigrationError):
            image.create_empty(disk, ME, HOST)
    assert len(written_to) == 1
    assert path.is_symlink()
    assert victim.read_text() == "somebody's"


# Whether QEMU may enter a directory.


def test_a_directory_is_made_for_others_to_enter_whatever_umask_the_agent_was_started_with(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        make_directory(str(tmp_path / "swtpm"), "here")
    finally:
        os.umask(before)
    assert (tmp_path / "swtpm").stat().st_mode & 0o777 == 0o711


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_qemu_may_enter_what_its_user_may_and_root_everything(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    ids = (nobody.pw_uid, nobody.pw_gid)
    opened, closed = Path(tempfile.mkdtemp(dir="/tmp")), tmp_path / "closed"
    closed.mkdir(mode=0o700)
    opened.chmod(0o711)
    try:
        assert image.qemu_may_enter(str(opened), ids, "here")
        assert not image.qemu_may_enter(str(closed), ids, "here")
        assert image.qemu_may_enter(str(closed), (0, 0), "here")
    finally:
        opened.rmdir()


def test_what_cannot_be_found_out_about_qemus_user_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: object) -> str:
        raise MigrationError(ErrorCode.TOOL_FAILED, {"tool": "setpriv", "host": "here", "reason": "uid 4711 not found"})

    monkeypatch.setattr(image, "run_tool", fails)
    assert image.qemu_may_enter("/srv", (4711, 4711), "here")


# The tunnel.


class BindingSsh:
    """An ssh child that is asked now and then whether it has ended, and listens on its socket the third time."""

    pid = 1

    def __init__(self, listener: socket.socket) -> None:
        self.asked = 0
        self._listener = listener

    def poll(self) -> None:
        """It runs."""
        self.asked += 1
        if self.asked == 3:
            self._listener.listen()


def test_a_tunnel_is_open_when_ssh_takes_connections_and_not_when_its_socket_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("host.ssh.time.sleep", lambda _seconds: None)
    path = str(tmp_path / "libvirt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        ssh = BindingSsh(listener)
        Tunnel(LOGIN, cast(Any, ssh), cast(Any, None)).wait_until_open([path], path)
        assert ssh.asked == 3
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(path)
