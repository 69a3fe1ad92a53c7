"""OpenSSH children: one that forwards unix sockets to another host, the way of libvirt's calls, memory and disks, and
one that speaks with a subsystem there.

Key login and a known host key are required; nothing is ever asked or accepted on the way.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from host.process import last_line, run_tool, tool_environment, tool_path
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_CLOSE_SECONDS = 5.0
_SOCKETS = Path("/proc/net/unix")
# __SO_ACCEPTCON of linux/net.h: set by listen().
_ACCEPTS = 0x10000
# ssh_config(5). A silent link is given up after 3 unanswered questions, 5 s apart; AES-GCM first because it is the
# fastest that every OpenSSH has (370 against scp's default 213 MB/s, design.md section 4). The mask lets QEMU's user
# use the sockets as far as the directory's access list says so, and nobody else.
_OPTIONS: Mapping[str, str] = MappingProxyType({
    # First, because OpenSSH before 8.7 does not know the second one and reads the options in their order.
    "IgnoreUnknown": "ForkAfterAuthentication",
    "ForkAfterAuthentication": "no",
    # Its messages are read.
    "LogLevel": "INFO",
    "BatchMode": "yes",
    # Kerberos, which some distributions turn on, asks the name service first: 0.05 s of each login (measured).
    "GSSAPIAuthentication": "no",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ConnectTimeout": str(_CONNECT_SECONDS),
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ExitOnForwardFailure": "yes",
    "StreamLocalBindMask": "0117",
    "Ciphers": "^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    "Compression": "no",
    # Those that say otherwise say so before these.
    "ControlMaster": "no",
    "ControlPath": "none",
    "ControlPersist": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
})

# What OpenSSH says in the C locale, and which error that is. The first line that fits decides.
_DIAGNOSES = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", ErrorCode.SSH_HOST_KEY_CHANGED),
    ("Host key verification failed", ErrorCode.SSH_HOST_KEY_UNKNOWN),
    ("host key is known for", ErrorCode.SSH_HOST_KEY_UNKNOWN),
    ("Permission denied (", ErrorCode.SSH_LOGIN_REFUSED),
    ("Too many authentication failures", ErrorCode.SSH_LOGIN_REFUSED),
    ("Connection refused", ErrorCode.SSH_UNREACHABLE),
    ("Connection timed out", ErrorCode.SSH_UNREACHABLE),
    ("Operation timed out", ErrorCode.SSH_UNREACHABLE),
    ("No route to host", ErrorCode.SSH_UNREACHABLE),
    ("Network is unreachable", ErrorCode.SSH_UNREACHABLE),
)


@dataclass(frozen=True)
class Login:
    """A login from this host, `host`, to an account on another."""

    host: str
    user: str
    destination: str

    def facts(self, reason: str) -> dict[str, str]:
        """The facts of an error about this login."""
        return {"host": self.host, "user": self.user, "destination": self.destination, "reason": reason}


def diagnose(login: Login, messages: str) -> MigrationError:
    """The error that OpenSSH's messages on stderr stand for."""
    for words, code in _DIAGNOSES:
        if words in messages:
            line = next(line for line in messages.splitlines() if words in line)
            return MigrationError(code, login.facts(last_line(line)))
    return MigrationError(ErrorCode.SSH_FAILED, login.facts(last_line(messages) or Phrase("it ended without a word")))


class Tunnel:
    """A running OpenSSH child and what it said so far."""

    def __init__(self, login: Login, process: subprocess.Popen[bytes], messages: IO[bytes]) -> None:
        self._login = login
        self._process = process
        self._messages = messages
        self._kept = False

    @property
    def pid(self) -> int:
        """The child's."""
        return self._process.pid

    def keep(self) -> None:
        """Leave the child running until close(), whoever else lets go of it: what goes through it must not be cut."""
        self._kept = True

    def let_go(self) -> None:
        """End the child, unless it is to be kept."""
        if not self._kept:
            self.close()

    def messages(self) -> str:
        """What OpenSSH printed on stderr."""
        return os.pread(self._messages.fileno(), 8192, 0).decode(errors="replace")

    def ended(self) -> bool:
        """Whether the child is gone, and with it everything that was forwarded."""
        return self._process.poll() is not None

    def lost(self) -> MigrationError:
        """The error for a tunnel that ended by itself."""
        return MigrationError(
            ErrorCode.TUNNEL_LOST, self._login.facts(last_line(self.messages()) or Phrase("ssh ended without a word")))

    def wait_until_open(self, sockets: list[str], control: str) -> None:
        """Return when ssh listens on each of the local sockets, which it does after the login. Raises MigrationError.

        That a socket is there is not enough: between its bind() and its listen(), whoever connects is refused. Only
        `control`, which ssh makes last, gets its name once it is listened on (muxserver_listen()).
        """
        deadline = time.monotonic() + 2 * _CONNECT_SECONDS
        while not (os.path.exists(control) and _listening().issuperset(sockets)):
            if self.ended():
                raise diagnose(self._login, self.messages())
            if time.monotonic() > deadline:
                raise MigrationError(ErrorCode.SSH_UNREACHABLE, self._login.facts(Phrase("no login within the time")))
            time.sleep(0.005)

    def close(self) -> None:
        """End the child."""
        self._process.terminate()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _listening() -> set[str]:
    """The paths of the unix sockets of this host that take connections, as the kernel tells in /proc/net/unix."""
    lines = _SOCKETS.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    # Num RefCount Protocol Flags Type St Inode Path
    rows = [fields for line in lines if len(fields := line.split(None, 7)) == 8]
    return {fields[7] for fields in rows if int(fields[3], 16) & _ACCEPTS}


@contextmanager
def tunnel(login: Login, forwards: Mapping[str, str], control: str) -> Iterator[Tunnel]:
    """Forward each local unix socket to one over there for the length of a `with`; ssh is told more at `control`.

    Raises MigrationError TOOL_MISSING, or one of the SSH errors if the login fails.
    """
    words = ["-M", "-S", control, "-N", "-T"]
    for local, remote in forwards.items():
        words += ["-L", f"{local}:{remote}"]
    with _child(login, words, [], subprocess.DEVNULL) as opened:
        opened.wait_until_open(list(forwards), control)
        threading.Thread(
            target=_have_answers_sent_at_once, args=(login, control), name="empty-session", daemon=True).start()
        log.info("SSH tunnel to %s@%s is open (pid %d)", login.user, login.destination, opened.pid)
        yield opened


def _have_answers_sent_at_once(login: Login, control: str) -> None:
    """Have sshd not hold an answer back until what it sent before is acknowledged, which takes 40 ms: by a session.

    With forwards alone it leaves TCP_NODELAY off, until a session begins (OpenSSH's do_exec_no_pty()). A migration has
    up to four such answers after the guest has stopped: it stood still for 194 ms, and for 104 with this (measured).
    One that ends at once will do, and one that is made to run something else; without any it only takes longer.
    """
    # Through that connection or not at all.
    words = ["-S", control, "-o", "ProxyCommand=false", "-T", "-s"]
    try:
        run_tool(_arguments(login, words, ["sftp"]), login.host)
    except MigrationError as error:
        log.debug("no session of %s@%s: %s", login.user, login.destination, error.message)


@contextmanager
def subsystem(login: Login, name: str) -> Iterator[tuple[Tunnel, socket.socket]]:
    """A subsystem of the server over there and the stream to it, for the length of a `with`.

    The stream ends if the login fails. Raises MigrationError TOOL_MISSING.
    """
    here, there = socket.socketpair()
    with here, there, _child(login, ["-T", "-s"], [name], there.fileno()) as opened:
        there.close()
        yield opened, here


@contextmanager
def _child(login: Login, words: list[str], command: list[str], stream: int) -> Iterator[Tunnel]:
    """The child for the length of a `with`; `stream` is what it reads from and writes to."""
    arguments = _arguments(login, words, command)
    arguments[0] = tool_path(arguments[0], login.host)
    with tempfile.TemporaryFile() as messages:
        # A session of its own: a Ctrl-C that is meant for the agent must not cut a running migration.
        process = subprocess.Popen(
            arguments, env=tool_environment(), stdin=stream, stdout=stream, stderr=messages, start_new_session=True)
        opened = Tunnel(login, process, messages)
        # Also when the agent has to leave before this thread gets to its end.
        atexit.register(opened.let_go)
        try:
            yield opened
        finally:
            opened.let_go()
            atexit.unregister(opened.let_go)


def _arguments(login: Login, words: list[str], command: list[str]) -> list[str]:
    arguments = ["ssh", *words]
    for name, value in _OPTIONS.items():
        arguments += ["-o", f"{name}={value}"]
    return [*arguments, "--", f"{login.user}@{login.destination}", *command]
