"""Watches a VM on both nodes without the tool: asks each libvirt twice a second, by the socket in the host."""

from __future__ import annotations

import threading
import time
from typing import Any

import libvirt

from tests.faults.invariants import Sample
from tests.lab import Host

LOOK_SECONDS = 0.5
_SOCKET = "/run/libvirt/libvirt-sock"
_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running", libvirt.VIR_DOMAIN_BLOCKED: "running", libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off", libvirt.VIR_DOMAIN_CRASHED: "shut off",
    libvirt.VIR_DOMAIN_SHUTDOWN: "running"}


def silence_libvirt() -> None:
    """libvirt writes each error to stderr by itself; here they are results."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


class HostObserver(threading.Thread):
    """Watches one host. A libvirt that hangs keeps nobody else waiting."""

    def __init__(self, host: Host, domain: str) -> None:
        super().__init__(name=f"observer-{host.name}", daemon=True)
        self._host = host
        self._domain = domain
        self._connection: Any = None
        self._end = threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        """Look until stop() is called."""
        while not self._end.is_set():
            began = time.monotonic()
            state, locked = self.look()
            self.samples.append(Sample(began, time.monotonic(), self._host.name, state, locked))
            self._end.wait(max(0.05, LOOK_SECONDS - (time.monotonic() - began)))
        self._close()

    def look(self) -> tuple[str, bool]:
        """The VM's state now, and whether a job has locked it; `unknown` where libvirt does not answer."""
        try:
            if self._connection is None or not self._connection.isAlive():
                self._close()
                path = f"/proc/{self._host.init.pid}/root{_SOCKET}"
                self._connection = libvirt.open(f"qemu+unix:///system?socket={path}")
            domain = self._connection.lookupByName(self._domain)
            state = _STATES.get(domain.state()[0], "unknown")
            locked = state in ("running", "paused") and domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
            return state, locked
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            if code == libvirt.VIR_ERR_NO_DOMAIN:
                return "absent", False
            if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
                # Nobody gets the lock: it is locked.
                return "running", True
            if code != libvirt.VIR_ERR_OPERATION_INVALID:
                self._close()
            return "unknown", False

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except libvirt.libvirtError:
                return

    def stop(self) -> None:
        """Have it end."""
        self._end.set()


class Observer:
    """Watches a VM on both nodes for the length of a `with`."""

    def __init__(self, hosts: list[Host], domain: str) -> None:
        silence_libvirt()
        self._watching = {host.name: HostObserver(host, domain) for host in hosts}

    def __enter__(self) -> Observer:
        for each in self._watching.values():
            each.start()
        return self

    def __exit__(self, *_what: object) -> None:
        for each in self._watching.values():
            each.stop()
        for each in self._watching.values():
            each.join(5)

    def samples(self) -> list[Sample]:
        """All that was seen so far, in order of time."""
        return sorted((sample for each in self._watching.values() for sample in list(each.samples)),
                      key=lambda sample: sample.until)

    def now(self, host: Host) -> tuple[str, bool]:
        """The newest that was seen of a host."""
        seen = self._watching[host.name].samples
        return (seen[-1].state, seen[-1].locked) if seen else ("unknown", False)
