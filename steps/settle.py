"""Settles a job that has no controller any more: the agent was started again, or nobody has asked for a long time.

Everything follows from what libvirt says here and on the other host, never from what the job was to do. What cannot be
told is left alone, and looked at again later.
"""

from __future__ import annotations

import logging

from constant import DomainState, LibvirtDaemon, Outcome
from host.elsewhere import view_elsewhere
from host.hypervisor import Hypervisor
from host.ssh import Login
from steps import define_virtual_machine, extract_configure_file, finish, hand_over, roll_back
from steps.context import StepContext
from steps.hand_over import has_arrived, is_held
from steps.resting import bring_to_rest, moved_by_another
from wire.errors import MigrationError
from wire.records import Migration, StepArguments
from wire.situation import DomainView, has_whole

log = logging.getLogger(__name__)


def run(context: StepContext, arguments: StepArguments, *, alone: bool) -> Outcome | None:
    """Do what is certain, and say how the job ended here; None while it has not, or cannot be told.

    Unless the agent is `alone` with the job, only a VM that waits here to be handed over is seen to. Raises
    MigrationError where something certain does not work.
    """
    if context.host == arguments.migration.source:
        return _on_source(context, arguments) if alone else None
    return _on_destination(context, arguments, alone=alone)


# The source.


def _on_source(context: StepContext, arguments: StepArguments) -> Outcome | None:
    migration, facts = arguments.migration, arguments.known_facts()
    if moved_by_another(context, migration):
        return None
    view = bring_to_rest(context.host, migration, facts)
    if view is None:
        return None
    if is_held(migration, facts) and view.has_it:
        # Whatever is over there has never run.
        return _take_back(context, arguments)
    if view.migrated and not view.left_by_another(migration.job_id):
        return _leave(context, arguments)
    there = _ask(context, migration, migration.destination, migration.destination_daemon, migration.name_there)
    if there is None:
        return None
    moved = _has_moved(context, migration)
    if there.gone and not view.split and not moved:
        return _take_back(context, arguments)
    gone = view.state in (DomainState.SHUT_OFF, DomainState.ABSENT)
    arrived = there.state is facts.state and not there.half
    return _leave(context, arguments) if gone and (moved or arrived) else None


def _has_moved(context: StepContext, migration: Migration) -> bool:
    """Whether LIVE_MIGRATION has come to its end here, whatever became of the VM since."""
    kept = context.history.get(migration.job_id)
    return kept is not None and kept.moved is not None


def _take_back(context: StepContext, arguments: StepArguments) -> Outcome:
    roll_back.run(context, arguments)
    return Outcome.ROLLED_BACK


def _leave(context: StepContext, arguments: StepArguments) -> Outcome:
    finish.run(context, arguments)
    return Outcome.MOVED


# The destination.


def _on_destination(context: StepContext, arguments: StepArguments, *, alone: bool) -> Outcome | None:
    migration, facts = arguments.migration, arguments.known_facts()
    with Hypervisor.open(context.host) as hypervisor:
        view = hypervisor.view(migration.name_there)
    held = is_held(migration, facts) and has_arrived(view)
    if view.half or not (held or alone):
        # It is on its way, or its controller will say.
        return None
    is_here = view.state is facts.state or (view.state is DomainState.RUNNING and is_held(migration, facts))
    if is_here and not view.gone:
        if alone and view.state is DomainState.RUNNING:
            return _arrive(context, arguments)
        return _arrive_unless_there(context, arguments)
    source = _ask(context, migration, migration.source, migration.source_daemon, migration.domain)
    if source is None or source.busy or source.half:
        return None
    if held and source.gave_up:
        log.warning("VM %s had arrived and its source had given it up: it goes on here", migration.name_there)
        hand_over.run(context, _given_up(arguments))
        return _arrive(context, arguments) if alone else None
    if alone and source.migrated and view.state is DomainState.SHUT_OFF and not view.gone:
        log.warning("VM %s has moved here and is shut off since", migration.name_there)
        return _arrive(context, _given_up(arguments))
    post_copy = migration.convergence.may_post_copy
    keeps = not source.gave_up and has_whole(source, facts.state, post_copy=post_copy)
    # One that is shut off and does not say why may have moved: then what waits here is all that there is of its memory.
    is_off = source.left_by_another(migration.job_id) or (
        not source.gave_up and source.state is DomainState.SHUT_OFF and not post_copy)
    if alone and ((keeps and (held or view.gone)) or (is_off and view.gone)):
        return _clear(context, arguments, keeps=keeps)
    return None


def _arrive_unless_there(context: StepContext, arguments: StepArguments) -> Outcome | None:
    """Of a VM that does not run: the source may hold it as well, if it has not heard of the arrival.

    The definition of one that is moved shut off comes last, so that with it everything is here.
    """
    migration = arguments.migration
    source = _ask(context, migration, migration.source, migration.source_daemon, migration.domain)
    if source is None or source.has_it:
        return None
    return _arrive(context, arguments)


def _given_up(arguments: StepArguments) -> StepArguments:
    return StepArguments(migration=arguments.migration, facts=arguments.facts, source_gave_up=True)


def _arrive(context: StepContext, arguments: StepArguments) -> Outcome:
    """The steps after the switchover, which may run again. What fails is told, and tried again later."""
    for step in (extract_configure_file.run, define_virtual_machine.run, finish.run):
        step(context, arguments)
    return Outcome.MOVED


def _clear(context: StepContext, arguments: StepArguments, *, keeps: bool) -> Outcome | None:
    report = roll_back.run(context, StepArguments(
        migration=arguments.migration, facts=arguments.facts, source_keeps=keeps, source_is_off=not keeps))
    return Outcome.ROLLED_BACK if report.state is DomainState.ABSENT else None


def _ask(
    context: StepContext, migration: Migration, address: str, daemon: LibvirtDaemon, domain: str,
) -> DomainView | None:
    """How the domain is on the other host. Only hosts of the list are ever logged in to."""
    if address not in context.destinations:
        return None
    try:
        return view_elsewhere(Login(context.host, migration.user, address), daemon, migration.job_id, domain)
    except MigrationError as error:
        log.info("%s cannot be asked: %s", address, error.message)
        return None
