"""Brings a VM to rest on the host that it left, or was to leave: no job of libvirt's on it, and not stuck half way.

What arrives at the other host is held there until this one has given it up, so whatever is here may always go on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from constant import OPEN_JOB, Pause
from host.hypervisor import Hypervisor
from host.job_files import JobSockets
from host.job_statistics import JobStatistics
from steps.context import StepContext
from steps.hand_over import has_arrived, is_held
from wire.errors import MigrationError
from wire.facts import DomainFacts
from wire.records import Migration
from wire.situation import DomainView

log = logging.getLogger(__name__)

# For so long libvirt may take to bring a domain to rest after a failure, and a libvirtd that has died to come back.
REST_SECONDS = 45.0
# Without a byte for so long, what was left of a post-copy does not follow any more: as long as ssh takes to notice that
# its peer is gone.
SPLIT_SECONDS = 15.0
_LOOK_SECONDS = 0.3


def bring_to_rest(
    host: str, migration: Migration, facts: DomainFacts,
    told: Callable[[JobStatistics], object] = lambda _figures: None,
) -> DomainView | None:
    """How the domain is here once nothing is done with it any more; None if that does not come to pass in time.

    One in post-copy is waited for as long as its memory follows, and `told` about: that libvirt calls it failed may
    only mean that the two libvirts have lost each other, while the two QEMUs go on and come to their end.
    """
    now = time.monotonic()
    deadline, figures, moved_at = now + REST_SECONDS, None, now
    while True:
        problem = "it is still busy"
        try:
            with Hypervisor.open(host) as hypervisor:
                view = at_rest(hypervisor, migration, facts)
                last, now = figures, time.monotonic()
                if view is not None and view.split:
                    figures = hypervisor.job_statistics(migration.domain) or last
            if figures is not None and figures != last:
                deadline, moved_at = now + REST_SECONDS, now
                told(figures)
            if view is not None and not (view.split and now - moved_at < SPLIT_SECONDS):
                return view
        except MigrationError as error:
            # A libvirtd that has died is started again by its init system.
            problem = error.message
        if time.monotonic() > deadline:
            log.warning("VM %s is not at rest here after %.0f s: %s", migration.domain, REST_SECONDS, problem)
            return None
        time.sleep(_LOOK_SECONDS)


def at_rest(hypervisor: Hypervisor, migration: Migration, facts: DomainFacts) -> DomainView | None:
    """How it is, or None while something is done with it: that is ended, and one that is stuck half way goes on.

    What somebody else has begun meanwhile, such as a backup, is no migration's and goes on.
    """
    domain = migration.domain
    view = hypervisor.view(domain)
    if view.split:
        # libvirt keeps its job, which only its own end or a recovery may end.
        return view
    if hypervisor.has_foreign_job(domain):
        return view
    if hypervisor.has_job(domain):
        hypervisor.abort_job(domain)
        return None
    if view.busy and hypervisor.end_mirrors(domain):
        return None
    if view.pause is Pause.MIGRATION and is_held(migration, facts):
        # A libvirtd that dies between the end of the copying and the switchover leaves it so.
        log.warning("VM %s was left paused by its migration: it goes on here", domain)
        hypervisor.resume(domain)
        return None
    return view


def moved_by_another(context: StepContext, migration: Migration) -> bool:
    """Whether another job moves the VM here now: what libvirt does with it is that job's then."""
    for job_id, commands in context.doing.items():
        kept = context.history.get(job_id) if job_id != migration.job_id and OPEN_JOB & {*commands} else None
        if kept is not None and kept.arguments.migration.domain == migration.domain:
            return True
    return False


def began_here(context: StepContext, migration: Migration, view: DomainView) -> bool:
    """Whether the job has begun anything on its source, which is this host: else the VM is none of its business."""
    return (context.history.get(migration.job_id) is not None
            or os.path.isdir(JobSockets.of(migration).directory)
            or (view.moved is not None and view.moved.job_id == migration.job_id))


def has_left(view: DomainView, there: Callable[[], DomainView | None]) -> bool:
    """Whether the source has given the domain up, so that the one over there may go on.

    libvirt remembers that it was migrated, unless it was started anew since; then it is the other side that tells.
    """
    if view.has_it:
        return False
    if view.migrated:
        return True
    other = there()
    return other is not None and (has_arrived(other) or other.runs_whole)
