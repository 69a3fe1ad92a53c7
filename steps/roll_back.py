"""ROLL_BACK: after a failure, removes what the job made here, unless the domain came to live here after all."""

from __future__ import annotations

import time

from constant import DomainState
from host.hypervisor import Hypervisor
from host.job_files import MadeKind
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.records import Migration, RollBackReport, StepArguments

# libvirt here ends the half-arrived domain when it notices that its peer is gone: 5 s when the link was cut
# (design.md, section 4), at most its keepalive of 5 x 5 s and the end of QEMU.
_GONE_SECONDS = 45.0


def run(context: StepContext, arguments: StepArguments) -> RollBackReport:
    """Tell how the domain is on this host, and remove what the job made here.

    Nothing is removed unless the domain is gone from here and is as it was on the source: it may be the last good copy.
    """
    migration = arguments.migration
    with Hypervisor.open(context.host) as hypervisor:
        if context.host == migration.source:
            state = hypervisor.state(migration.domain)
            return RollBackReport(state=state, removed=())
        state = _state_at_rest(hypervisor, migration)
    if state is not DomainState.ABSENT or not arguments.source_keeps:
        return RollBackReport(state=state, removed=())
    try:
        removed = context.ledger(migration).close(frozenset(MadeKind))
    except OSError as error:
        facts = {"host": context.host, "problem": f"cannot remove {error.filename}: {error.strerror}"}
        raise MigrationError(ErrorCode.NOT_AS_EXPECTED, {**facts, "domain": migration.domain}) from error
    return RollBackReport(state=state, removed=tuple(removed))


def _state_at_rest(hypervisor: Hypervisor, migration: Migration) -> DomainState:
    """How the domain is here once a half-arrived one, which libvirt shows as paused, has been ended by libvirt."""
    deadline, domain = time.monotonic() + _GONE_SECONDS, migration.name_there
    while True:
        state = hypervisor.state(domain)
        # One that has arrived and that somebody had paused is at rest.
        arriving = state is DomainState.PAUSED and hypervisor.pause_problem(domain) is not None
        if not arriving or time.monotonic() > deadline:
            return state
        time.sleep(0.2)
