"""The ssh children of a job whose agent was killed: they outlive it, because a migration may still go through them."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
import weakref
from collections.abc import Collection
from pathlib import Path

from host.job_files import remove_socket_directory, socket_directories
from host.ssh import Login
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

log = logging.getLogger(__name__)

_END_SECONDS = 5.0


class Process:
    """A process, by a descriptor of its own: none that is given the same number later is taken for it.

    Before Linux 5.3 there is none (pidfd_open(2)); then the number has to do.
    """

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError if there is none."""
        self.pid = pid
        self._descriptor: int | None = None
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except OSError:
            return
        weakref.finalize(self, os.close, self._descriptor)

    def ended(self) -> bool:
        """Whether it is gone."""
        if self._descriptor is None:
            return not os.path.exists(f"/proc/{self.pid}/exe")
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that is gone takes none."""
        with contextlib.suppress(ProcessLookupError):
            if self._descriptor is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self._descriptor, number)


class OrphanedTunnel:
    """The tunnel of an earlier life of this agent: seen, and ended, by the process's own descriptor."""

    def __init__(self, login: Login, processes: list[Process]) -> None:
        self._login = login
        self._processes = processes
        self._kept = False

    def ended(self) -> bool:
        """Whether it is gone, and with it everything that was forwarded."""
        return all(process.ended() for process in self._processes)

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
        end(self._processes)


def find(directory: str) -> list[Process]:
    """The ssh processes of this network namespace that forward sockets in a job's directory."""
    found = []
    here = os.readlink("/proc/self/ns/net")
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            # First of all, so that what is read then is said of the process that it stands for.
            process = Process(int(entry))
            words = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if (os.path.basename(words[0]) == "ssh" and any(word.startswith(directory + "/") for word in words)
                    and os.readlink(f"/proc/{entry}/ns/net") == here and not process.ended()):
                found.append(process)
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


def end(processes: list[Process]) -> None:
    """End these processes, by SIGKILL if they do not go by SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.send(number)
        deadline = time.monotonic() + _END_SECONDS
        while not all(process.ended() for process in processes) and time.monotonic() < deadline:
            time.sleep(0.02)
        processes = [process for process in processes if not process.ended()]
        if not processes:
            return
    log.warning("ssh of an earlier agent does not end: %s", [process.pid for process in processes])
