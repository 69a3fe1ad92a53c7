"""The QEMU process of a domain: its id, the moment in which it ends, and why the last one has ended."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Callable
from pathlib import Path

# Where libvirt writes the process id of each QEMU of qemu:///system.
_PID_DIRECTORY = "/run/libvirt/qemu"
_LOOK_MILLISECONDS = 200
# Where libvirt writes, for each domain, how its QEMU was started and why it ended (qemuProcessStop()).
_LOG_DIRECTORY = "/var/log/libvirt/qemu"
_LOG_END = re.compile(rb"(?:: shutting down, reason=(\w+)|: starting up libvirt version)")
_LOG_BYTES = 64 * 1024


def process_id(domain: str) -> int:
    """The process id of the domain's QEMU. Raises OSError or ValueError."""
    return int(Path(_PID_DIRECTORY, f"{domain}.pid").read_text())


def last_end(domain: str) -> str | None:
    """Why the domain's last QEMU has ended, in libvirt's word for it; None if its log does not say that it has."""
    try:
        with open(f"{_LOG_DIRECTORY}/{domain}.log", "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _LOG_BYTES))
            found = _LOG_END.findall(file.read())
    except OSError:
        return None
    return found[-1].decode() or None if found else None


class ExitWatch:
    """Calls back from a thread of its own as soon as a process has ended, for the length of a `with`.

    libvirt itself looks every 0.2 s whether a QEMU that it ends is gone (virProcessKillPainfully), with the guest
    standing still meanwhile.
    """

    def __init__(self, pid: int, ended: Callable[[], None]) -> None:
        """Raises OSError where there is no such process, or where the kernel has no pidfd_open (before Linux 5.3)."""
        self._descriptor = os.pidfd_open(pid)
        self._ended = ended
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"exit-of-{pid}", daemon=True)

    def __enter__(self) -> ExitWatch:
        self._thread.start()
        return self

    def __exit__(self, *_what: object) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._descriptor)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while not self._over.is_set():
            if poll.poll(_LOOK_MILLISECONDS):
                self._ended()
                return
