"""Asks libvirt on another host how a domain is there, through SSH: what an agent does that has nobody to ask for it."""

from __future__ import annotations

import logging

from constant import LIBVIRT_SOCKETS, LibvirtDaemon
from host import orphans
from host.hypervisor import Hypervisor
from host.job_files import JobSockets, socket_directory
from host.ssh import Login, tunnel
from wire.errors import MigrationError
from wire.situation import DomainView

log = logging.getLogger(__name__)


def view_elsewhere(login: Login, daemon: LibvirtDaemon, job_id: str, domain: str) -> DomainView | None:
    """How the domain is over there; None if that host cannot be asked, which is logged with its reason."""
    # Not the job's own directory, which may be in use.
    sockets = JobSockets.named(job_id, beside="look")
    # An agent that was killed while it asked.
    orphans.clear(sockets.directory)
    try:
        with socket_directory(sockets.directory, (0, 0), [], login.host), \
                tunnel(login, {sockets.libvirt: LIBVIRT_SOCKETS[daemon]}, sockets.control), \
                Hypervisor.open(login.destination, f"qemu+unix:///system?socket={sockets.libvirt}") as there:
            return there.view(domain)
    except MigrationError as error:
        log.info("%s cannot be asked about VM %s: %s", login.destination, domain, error.message)
        return None
