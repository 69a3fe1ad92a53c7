"""RESTORE_SOURCE: the copy that stayed behind gets its names back, for an admin who has to go back to it.

What the VM has written since it moved is not in it. Nothing is started: that is the admin's to do.
"""

from __future__ import annotations

import time

from host.hypervisor import Hypervisor
from host.stale_copy import StaleCopy
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.phrase import SEMICOLON, Phrase, joined
from wire.records import StepArguments, StepReport


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Undo what FINISH did to it. Raises MigrationError NO_STALE_COPY or NOT_AS_EXPECTED; it cannot be started then."""
    migration, domain = arguments.migration, arguments.migration.domain
    with Hypervisor.open(context.host) as hypervisor:
        view = hypervisor.view(domain)
        if not view.gone or view.moved is None or view.moved.job_id != migration.job_id:
            raise MigrationError(ErrorCode.NO_STALE_COPY, {
                "host": context.host, "domain": domain, "job": migration.job_id, "state": Phrase(view.state.value)})
        copy = StaleCopy.of(hypervisor, domain, migration.job_id, context.host)
        problems: list[str] = [
            *(Phrase("{path} is not there any more", {"path": path}) for path in copy.lacking()),
            *(Phrase("another VM has {path} now", {"path": path}) for path in copy.taken)]
        problems = problems or copy.bring_back(hypervisor, domain)
    if problems:
        raise MigrationError(ErrorCode.NOT_AS_EXPECTED, {
            "host": context.host, "domain": domain, "problem": joined(problems, SEMICOLON)})
    moved_at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.moved.at))
    return StepReport(summary=Phrase(
        "shut off, as it was when it moved at {time}; autostart stays off", {"time": moved_at}))
