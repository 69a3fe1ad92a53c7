"""LOCATE: how a domain is on this host. It changes nothing."""

from __future__ import annotations

from host.hypervisor import Hypervisor
from steps.context import StepContext
from wire.situation import DomainArguments, DomainView


def run(context: StepContext, arguments: DomainArguments) -> DomainView:
    """Ask libvirt here. Raises MigrationError LIBVIRT_UNREACHABLE or LIBVIRT_ERROR."""
    with Hypervisor.open(context.host) as hypervisor:
        return hypervisor.view(arguments.domain)
