"""FINISH: the domain runs on the destination and not on the source; what the job made for itself is gone."""

from __future__ import annotations

from constant import DomainState
from host.hypervisor import Hypervisor
from host.job_files import MadeKind
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.records import StepArguments, StepReport


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Verify this host's part and clear up. Raises MigrationError NOT_AS_EXPECTED; nothing is cleared then."""
    migration, facts = arguments.migration, arguments.known_facts()
    domain = migration.name_on(context.host)
    here = context.host == migration.destination
    with Hypervisor.open(context.host) as hypervisor:
        state = hypervisor.state(domain)
        expected = [facts.state] if here else [DomainState.SHUT_OFF, DomainState.ABSENT]
        if state not in expected:
            problem = f"VM {domain} is {state.value}, not {expected[0].value}"
            raise MigrationError(
                ErrorCode.NOT_AS_EXPECTED, {"host": context.host, "problem": problem, "domain": domain})
        if not here and state is DomainState.SHUT_OFF and hypervisor.autostart(domain):
            # The copy left behind must not come to life at this host's next start, beside the one that moved.
            hypervisor.set_autostart(domain, False)
        # The images are the domain's now: only what served the job itself goes.
        context.ledger(migration).close(frozenset({MadeKind.SOCKET_DIRECTORY}))
        trimmed = ""
        if here and migration.trim and state is DomainState.RUNNING:
            hypervisor.trim(domain)
            trimmed = ", its file systems trimmed"
    return StepReport(summary=f"{state.value} here{trimmed}" + ("" if here else ", its disks kept"))
