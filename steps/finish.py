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
    migration = arguments.migration
    with Hypervisor.open(context.host) as hypervisor:
        state = hypervisor.state(migration.domain)
        here = context.host == migration.destination
        expected = [DomainState.RUNNING] if here else [DomainState.SHUT_OFF, DomainState.ABSENT]
        if state not in expected:
            problem = f"VM {migration.domain} is {state.value}, not {expected[0].value}"
            raise MigrationError(
                ErrorCode.NOT_AS_EXPECTED, {"host": context.host, "problem": problem, "domain": migration.domain})
        if state is DomainState.SHUT_OFF and hypervisor.autostart(migration.domain):
            # The copy left behind must not come to life at this host's next start, beside the one that moved.
            hypervisor.set_autostart(migration.domain, False)
    # The images are the domain's now: only what served the job itself goes.
    context.ledger(migration).close(frozenset({MadeKind.SOCKET_DIRECTORY}))
    return StepReport(summary=f"{state.value} here" + ("" if here else ", its disk kept"))
