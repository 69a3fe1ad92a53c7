"""Starts a guest together with the witness that watches it."""

from __future__ import annotations

from .guest import GuestSpec, define_and_start
from .hosts import Host
from .lab import Lab
from .witness import Witness

#: User space comes after some 3 s; a busy machine may take longer.
BOOT_TIMEOUT = 60.0


def start_guest(lab: Lab, host: Host, spec: GuestSpec, *, wait: bool = True) -> Witness:
    """Start a guest, defined and running, in a host, and return its witness.

    Waits, if asked to, until the guest ticks; raises LabError if anything fails or the guest does not tick.
    """
    witness = Witness(lab, spec.name)
    witness.start()
    define_and_start(host, spec, lab.nodes)
    if wait:
        witness.wait_for_ticks(20, BOOT_TIMEOUT)
    return witness
