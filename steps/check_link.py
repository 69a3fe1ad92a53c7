"""CHECK_LINK: the way from this host to the destination, tried through the very tunnel that the migration will use.

It changes nothing: the destination's libvirt is asked who it is and what it can run. The tunnel is closed again, or
waits a moment for the move.
"""

from __future__ import annotations

from constant import DomainState, Severity
from host.hypervisor import Hypervisor
from host.job_files import JobSockets
from host.process import tool_path
from host.ssh import Login, Tunnel
from steps.checks import link
from steps.checks.link import LinkView
from steps.checks.look import look
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.findings import Check, CheckReport, Finding, not_fine
from wire.records import LinkArguments

# Errors of the way that belong to another check than SSH.
_CHECK_OF = {
    ErrorCode.SSH_LIBVIRT_REFUSED: Check.REMOTE_LIBVIRT,
    ErrorCode.LIBVIRT_UNREACHABLE: Check.LIBVIRT,
    ErrorCode.LIBVIRT_ERROR: Check.REMOTE_LIBVIRT,
    ErrorCode.TOOL_MISSING: Check.TOOLS,
    ErrorCode.TOOL_FAILED: Check.TOOLS,
}


def run(context: StepContext, arguments: LinkArguments) -> CheckReport:
    """Look at the way, as far as it goes."""
    known = {"host": context.host, "destination": arguments.destination}
    if arguments.destination not in context.destinations:
        error = MigrationError(ErrorCode.DESTINATION_NOT_ALLOWED, {
            "host": context.host, "address": arguments.destination, "path": str(context.destinations.path)})
        return CheckReport(findings=(not_fine(Check.ALLOWED_DESTINATION, Severity.STOPS, error),))
    findings = [Finding(check=Check.ALLOWED_DESTINATION, severity=Severity.FINE, facts=known)]
    try:
        findings += _try(context, arguments)
    except MigrationError as error:
        findings.append(not_fine(_CHECK_OF.get(error.code, Check.SSH), Severity.STOPS, error))
    return CheckReport(findings=tuple(findings))


def _try(context: StepContext, arguments: LinkArguments) -> list[Finding]:
    """Log in, ask libvirt over there. Raises MigrationError if the way does not go so far."""
    for tool in ("ssh", "setfacl"):
        tool_path(tool, context.host)
    with Hypervisor.open(context.host) as local, \
            context.tunnels.of_link(context.host, local, arguments) as opened:
        return _compare(Login(context.host, arguments.user, arguments.destination), opened, local, arguments)


def _compare(login: Login, opened: Tunnel, local: Hypervisor, arguments: LinkArguments) -> list[Finding]:
    known = {"host": login.host, "domain": arguments.domain or ""}
    sockets, domain = JobSockets.named(arguments.job_id), arguments.domain
    if domain is not None and local.state(domain) is DomainState.ABSENT:
        domain = None
    try:
        with Hypervisor.open(login.destination, f"qemu+unix:///system?socket={sockets.libvirt}") as remote:
            view = LinkView(login, local, remote, domain)
            return look({**link.HOSTS, **(link.DOMAIN if domain is not None else {})}, view, known)
    except MigrationError as error:
        said = opened.messages().strip().splitlines()
        reason = said[-1] if said else error.facts.get("reason", "")
        raise MigrationError(ErrorCode.SSH_LIBVIRT_REFUSED, login.facts(reason)) from error
