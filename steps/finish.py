"""FINISH: the domain runs on the destination and not on the source; what the job made for itself is gone."""

from __future__ import annotations

import logging

from constant import CLOCK_PAUSE, DomainState
from host.hypervisor import Hypervisor
from host.job_files import MadeKind
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.records import Migration, StepArguments, StepReport

log = logging.getLogger(__name__)


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
        words = [f"{state.value} here"]
        if not here:
            words.append("its disks kept")
        elif state is DomainState.RUNNING:
            words += _ask_guest(hypervisor, migration, arguments.stood_still)
    return StepReport(summary=", ".join(words))


def _ask_guest(hypervisor: Hypervisor, migration: Migration, stood_still: int) -> list[str]:
    """What the guest's agent was asked for and has done."""
    domain, done = migration.name_there, []
    if stood_still >= CLOCK_PAUSE and hypervisor.agent_problem(domain) is None:
        try:
            hypervisor.set_clock(domain)
            done.append("its clock set")
        except MigrationError as error:
            # Nobody asked for it, and what keeps a guest's time will notice as well.
            log.warning("the clock of VM %s stood still for %d ms: %s", domain, stood_still, error.message)
    if migration.trim:
        hypervisor.trim(domain)
        done.append("its file systems trimmed")
    return done
