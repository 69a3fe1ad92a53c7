"""HELLO: what this host is and which versions it runs. It changes nothing."""

from __future__ import annotations

import os
import socket

from constant import LIBVIRT_SOCKETS, VERSION
from host.hypervisor import Hypervisor, libvirt_daemon
from steps.context import StepContext
from wire.errors import MigrationError
from wire.records import HostFacts


def run(context: StepContext) -> HostFacts:
    """Tell of this host; a libvirt that does not answer is told as version 0, and CHECK says why."""
    try:
        with Hypervisor.open(context.host) as hypervisor:
            version = hypervisor.version()
    except MigrationError:
        version = 0
    daemon = libvirt_daemon({name: os.path.exists(path) for name, path in LIBVIRT_SOCKETS.items()})
    return HostFacts(
        version=VERSION, hostname=socket.gethostname(), libvirt_version=version, daemon=daemon, epoch=context.epoch,
        challenge=context.challenge)
