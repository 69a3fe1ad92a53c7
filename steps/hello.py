"""HELLO: what this host is and which versions it runs. It changes nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from constant import LIBVIRT_SOCKETS, VERSION
from host.hypervisor import Hypervisor, libvirt_daemon
from steps.context import StepContext
from wire.errors import MigrationError
from wire.facts import HostFacts

# Where Debian, Ubuntu and RHEL keep images unless told otherwise.
_IMAGES = "/var/lib/libvirt/images"


def run(context: StepContext) -> HostFacts:
    """Tell of this host; a libvirt that does not answer is told as version 0, and CHECK says why."""
    libvirt_version = qemu_version = 0
    with contextlib.suppress(MigrationError), Hypervisor.open(context.host) as hypervisor:
        libvirt_version, qemu_version = hypervisor.version(), hypervisor.qemu_version()
    daemon = libvirt_daemon({name: os.path.exists(path) for name, path in LIBVIRT_SOCKETS.items()})
    path = _IMAGES if os.path.isdir(_IMAGES) else "/"
    file_system = os.statvfs(path)
    return HostFacts(
        version=VERSION, hostname=socket.gethostname(), libvirt_version=libvirt_version, qemu_version=qemu_version,
        daemon=daemon, epoch=context.epoch, challenge=context.challenge, clock=round(time.time() * 1000),
        free_slots=context.free_slots, slots=context.slots, space_path=path,
        space_free=file_system.f_bavail * file_system.f_frsize)
