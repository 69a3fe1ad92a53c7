"""The ssh children of a job whose agent was killed: they outlive it, because a migration may still go through them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

from host.job_files import remove_socket_directory, socket_directories
from host.ssh import Login
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

log = logging.getLogger(__name__)

_END_SECONDS = 5.0


class OrphanedTunnel:
    """The tunnel of an earlier life of this agent: seen, and ended, by the process's own descriptor."""

    def __init__(self, login: Login, pids: list[int]) -> None:
        self._login = login
        self._pids = pids
        self._kept = False

    def ended(self) -> bool:
        """Whether it is gone, and with it everything that was forwarded."""
        return not any(os.path.exists(f"/proc/{pid}/exe") for pid in self._pids)

    def lost(self) -> MigrationError:
        """The error for that."""
        return MigrationError(ErrorCode.TUNNEL_LOST, self._login.facts(Phrase("its ssh has ended")))

    def keep(self) -> None:
        """Leave it running until close()."""
        self._kept = True

    def let_go(self) -> None:
        """End it, unless it is to be kept."""
        if not self._kept:
            self.close()

    def close(self) -> None:
        """End it."""
        end(self._pids)


def find(directory: str) -> list[int]:
    """The ssh processes of this network namespace that forward sockets in a job's directory."""
    found = []
    here = os.readlink("/proc/self/ns/net")
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if (os.path.basename(words[0]) == "ssh" and any(word.startswith(directory + "/") for word in words)
                    and os.readlink(f"/proc/{entry}/ns/net") == here):
                found.append(int(entry))
    return found


def clear(directory: str) -> None:
    """End what an agent that was killed has left in a job's directory of sockets, and remove that."""
    end(find(directory))
    try:
        remove_socket_directory(directory)
    except OSError as error:
        # Something lies in it that is not the job's.
        log.warning("%s stays: %s", directory, error.strerror or error)


def clear_all_but(job_ids: Collection[str]) -> None:
    """The same for all jobs but these, of an agent that has just been started and has nothing open yet."""
    for directory in socket_directories():
        if not any(job_id in os.path.basename(directory) for job_id in job_ids):
            log.info("clearing up %s, which an earlier life of this agent has left", directory)
            clear(directory)


def end(pids: list[int]) -> None:
    """End these processes, by SIGKILL if they do not go by SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _END_SECONDS
        while any(os.path.exists(f"/proc/{pid}/exe") for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.02)
        pids = [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]
        if not pids:
            return
    log.warning("ssh of an earlier agent does not end: %s", pids)
