"""Checks on the source about the way to the destination, and about what the two libvirts say of each other.

Both are asked by the same agent, through the tunnel that the migration will use: no XML crosses in a datagram.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree  # the documents are libvirt's own, never out of a datagram
from collections.abc import Iterator
from dataclasses import dataclass

from constant import DomainState
from host import capabilities
from host.domain_xml import DomainDescription, describe
from host.hypervisor import Hypervisor
from host.ssh import Login
from steps.checks.look import Looks, Saw, fine, stops, warns
from wire.errors import ErrorCode
from wire.facts import version_text
from wire.findings import Check
from wire.phrase import Phrase

# Modes in which the CPU becomes another one when the domain is started on another host.
_HOST_MODES = ("host-model", "host-passthrough", "maximum")


@dataclass(frozen=True)
class LinkView:
    """What the checks of two hosts together look at."""

    login: Login
    local: Hypervisor
    remote: Hypervisor
    domain: str | None

    def description(self) -> DomainDescription | None:
        """The running domain, if it is about one that is here."""
        return describe(self.local.document(self.domain)) if self.domain is not None else None


def ssh(view: LinkView) -> Iterator[Saw]:
    """The login has worked, or there would be no view."""
    yield fine(user=view.login.user, destination=view.login.destination)


def remote_libvirt(view: LinkView) -> Iterator[Saw]:
    """libvirt over there answers to the user."""
    yield fine(version=version_text(view.remote.version()), **_names(view))


def _names(view: LinkView) -> dict[str, str]:
    return {"user": view.login.user, "destination": view.login.destination}


def host_uuid(view: LinkView) -> Iterator[Saw]:
    """Two hosts with one UUID are one host to libvirt."""
    if view.local.host_uuid() == view.remote.host_uuid():
        yield stops(ErrorCode.SAME_LIBVIRT_HOST, destination=view.login.destination)


def cpu(view: LinkView) -> Iterator[Saw]:
    """The CPU that the guest runs on now can be given to it over there."""
    description = view.description()
    if description is None or not _runs_type(view.remote, description):
        yield fine(cpu=Phrase("not compared"), destination=view.login.destination)
        return
    element = description.cpu
    if description.cpu_mode in _HOST_MODES:
        # Of one that is shut off, it becomes the other host's at its next start.
        running = view.domain is not None and view.local.state(view.domain) is not DomainState.SHUT_OFF
        element = view.local.host_model(description) if running else None
    problem = view.remote.cpu_problem(description, element) if element is not None else None
    if problem is not None:
        yield stops(ErrorCode.CPU_INCOMPATIBLE, destination=view.login.destination, reason=problem)
    yield fine(cpu=_cpu_name(element), destination=view.login.destination)


def _runs_type(hypervisor: Hypervisor, description: DomainDescription) -> bool:
    """Whether that host runs such VMs at all; if it does not, another check says so."""
    types = capabilities.domain_types(hypervisor.host_capabilities(), description.architecture)
    return description.virtualization in types


def _cpu_name(element: str | None) -> str:
    if element is None:
        return Phrase("QEMU's default")
    return ElementTree.fromstring(element).findtext("model") or Phrase("no model named")  # noqa: S314 - from libvirt


def way_back(view: LinkView) -> Iterator[Saw]:
    """Whether the VM could return later: QEMU here is no older, and has the CPU that it may get over there."""
    description = view.description()
    yield fine(destination=view.login.destination)
    if description is None or view.domain is None or not _runs_type(view.remote, description):
        return
    reasons: list[str] = []
    here, there = view.local.qemu_version(), view.remote.qemu_version()
    if there // 1000 > here // 1000:
        reasons.append(Phrase("QEMU is {there} there and {here} here", {
            "there": version_text(there), "here": version_text(here)}))
    lasting = describe(view.local.document(view.domain, inactive=True))
    if lasting.cpu_mode in _HOST_MODES:
        element = view.remote.host_model(lasting)
        problem = view.local.cpu_problem(lasting, element) if element is not None else None
        if problem is not None:
            reasons.append(Phrase(
                "once it is started anew there, its CPU ({mode}) is one that this host has not: {problem}",
                {"mode": lasting.cpu_mode, "problem": problem}))
    problem = view.local.machine_problem(lasting.virtualization, lasting.architecture, lasting.machine)
    if problem is not None:
        reasons.append(problem)
    for reason in reasons:
        yield warns(ErrorCode.WAY_BACK_CLOSED, destination=view.login.destination, reason=reason)


HOSTS: Looks[LinkView] = {
    Check.SSH: ssh,
    Check.REMOTE_LIBVIRT: remote_libvirt,
    Check.HOST_UUID: host_uuid,
}
DOMAIN: Looks[LinkView] = {
    Check.CPU: cpu,
    Check.WAY_BACK: way_back,
}
