"""Checks that both hosts have: the tools that the agent runs, and a libvirt that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from constant import Severity
from host.hypervisor import Hypervisor
from host.process import tool_path
from steps.checks.look import Looks, Saw, fine, look, stops
from wire.errors import MigrationError
from wire.facts import version_text
from wire.findings import Check, Finding, not_fine
from wire.phrase import joined


def _tools(*names: str) -> Callable[[str], Iterator[Saw]]:
    def tools(host: str) -> Iterator[Saw]:
        for name in names:
            try:
                tool_path(name, host)
            except MigrationError as error:
                yield stops(error.code, **error.facts)
        yield fine(tools=joined(names))

    return tools


def look_for_tools(host: str, *names: str) -> list[Finding]:
    """What of these the host has."""
    looks: Looks[str] = {Check.TOOLS: _tools(*names)}
    return look(looks, host, {"host": host})


def libvirt_answers(host: str, hypervisor: Hypervisor) -> Finding:
    """The finding for a libvirt that could be opened."""
    facts = {"host": host, "version": version_text(hypervisor.version())}
    return Finding(check=Check.LIBVIRT, severity=Severity.FINE, facts=facts)


def libvirt_fails(error: MigrationError) -> Finding:
    """The finding for one that could not, or that fails in the middle."""
    return not_fine(Check.LIBVIRT, Severity.STOPS, error)
