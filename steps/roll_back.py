"""ROLL_BACK: after a failure, removes what the job made here, unless the domain came to live here after all.

On the source, the domain is brought to rest: unlocked, and not left paused half way.
"""

from __future__ import annotations

import contextlib
import time

from constant import DomainState
from host import orphans
from host.disks_of_others import DisksOfOthers
from host.hypervisor import RESTART_SECONDS, Hypervisor
from host.job_files import JobSockets, MadeKind
from host.set_aside import put_back
from steps.context import StepContext
from steps.hand_over import has_arrived, is_held
from steps.resting import began_here, bring_to_rest, moved_by_another
from wire.errors import ErrorCode, MigrationError
from wire.phrase import SEMICOLON, Phrase, joined
from wire.records import Migration, RollBackReport, StepArguments
from wire.situation import has_whole

# libvirt here ends the half-arrived domain when it notices that its peer is gone: 5 s when the link was cut
# (design.md, section 4), at most its keepalive of 5 x 5 s and the end of QEMU.
_GONE_SECONDS = 45.0
_LOOK_SECONDS = 0.2


def run(context: StepContext, arguments: StepArguments) -> RollBackReport:
    """Tell how the domain is on this host, and remove what the job made here.

    Nothing is removed unless the domain is gone from here and is as it was on the source: it may be the last good copy.
    """
    migration = arguments.migration
    if context.host == migration.source:
        return _on_source(context, arguments)
    _wait_for_rest(context.host, migration)
    with Hypervisor.open(context.host, patience=RESTART_SECONDS) as hypervisor:
        view = hypervisor.view(migration.name_there)
        if has_arrived(view) and arguments.source_keeps and is_held(migration, arguments.known_facts()):
            # It was held and never ran; the source, which does, never gave it up.
            hypervisor.drop(migration.name_there)
            view = hypervisor.view(migration.name_there)
        # The copy that an earlier move has left is as good as nothing.
        state = DomainState.ABSENT if view.gone else view.state
        if not view.gone or not (arguments.source_keeps or arguments.source_is_off):
            return RollBackReport(state=state, removed=(), arrived=has_arrived(view), split=view.split)
        ledger = context.ledger(migration)
        put_back(hypervisor, migration.name_there, ledger)
        view = hypervisor.view(migration.name_there)
        others = DisksOfOthers.of(hypervisor, migration.name_there, context.host)
    coming = _coming(context, migration)
    spared = ledger.spare(lambda path: path in coming or others.include(path))
    removed, problems = ledger.close(frozenset(MadeKind))
    if problems:
        raise MigrationError(ErrorCode.NOT_AS_EXPECTED, {
            "host": context.host, "problem": Phrase("cannot remove {problem}", {
                "problem": joined(problems, SEMICOLON)}), "domain": migration.domain})
    return RollBackReport(
        state=state, removed=tuple(removed), cleared=True, spared=spared,
        older_copy=view.state is not DomainState.ABSENT)


def _coming(context: StepContext, migration: Migration) -> set[str]:
    """What other VMs that are on their way to this host will need: a base that several have is sent once."""
    found: set[str] = set()
    for record in context.history.all():
        other, facts = record.arguments.migration, record.arguments.facts
        if (record.outcome is None and facts is not None and other.job_id != migration.job_id
                and other.destination == context.host):
            placement = other.placement(facts)
            found.update(map(placement.path, placement.paths))
    return found


def _on_source(context: StepContext, arguments: StepArguments) -> RollBackReport:
    migration = arguments.migration
    with Hypervisor.open(context.host, patience=RESTART_SECONDS) as hypervisor:
        view = hypervisor.view(migration.domain)
    if moved_by_another(context, migration) or not began_here(context, migration, view):
        # Whatever is done with the VM here, this job has no part in it, and moved nothing.
        return RollBackReport(state=view.state, removed=(), cleared=True)
    if not view.split:
        orphans.clear(JobSockets.of(migration).directory)
    rested = bring_to_rest(context.host, migration, arguments.known_facts())
    if rested is None:
        problem = Phrase("VM {domain} is still busy with its migration", {"domain": migration.domain})
        raise MigrationError(
            ErrorCode.NOT_AS_EXPECTED, {"host": context.host, "problem": problem, "domain": migration.domain})
    keeps = has_whole(
        rested, arguments.known_facts().state, post_copy=migration.convergence.may_post_copy) or arguments.source_keeps
    gave_up = rested.gave_up and not rested.left_by_another(migration.job_id)
    return RollBackReport(
        state=rested.state, removed=(), cleared=keeps and not gave_up, gave_up=gave_up, split=rested.split)


def _wait_for_rest(host: str, migration: Migration) -> None:
    """Give libvirt the time to end a half-arrived domain, which it shows as paused."""
    deadline = time.monotonic() + _GONE_SECONDS
    while True:
        with contextlib.suppress(MigrationError), Hypervisor.open(host) as hypervisor:
            # One that has arrived and is held, or that somebody had paused, is at rest. One in post-copy is not ended.
            view = hypervisor.view(migration.name_there)
            if view.split or not view.half:
                return
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_SECONDS)
