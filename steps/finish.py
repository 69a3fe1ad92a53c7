"""FINISH: the domain runs on the destination and not on the source; what the job made for itself is gone."""

from __future__ import annotations

import logging

from constant import CLOCK_PAUSE, DomainState, SourceAfter
from host import orphans
from host.hypervisor import RESTART_SECONDS, Hypervisor
from host.job_files import OF_JOB, JobSockets
from host.stale_copy import StaleCopy, mark
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.phrase import SEMICOLON, Phrase, joined
from wire.records import Migration, StepArguments, StepReport
from wire.situation import MovedNote

log = logging.getLogger(__name__)


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Verify this host's part and clear up. Raises MigrationError NOT_AS_EXPECTED; nothing is cleared then."""
    migration, facts = arguments.migration, arguments.known_facts()
    domain = migration.name_on(context.host)
    here = context.host == migration.destination
    with Hypervisor.open(context.host, patience=RESTART_SECONDS) as hypervisor:
        state = hypervisor.state(domain)
        expected = [facts.state] if here else [DomainState.SHUT_OFF, DomainState.ABSENT]
        ended = here and state is (DomainState.SHUT_OFF if facts.persistent else DomainState.ABSENT)
        ended = ended and state not in expected
        if ended and arguments.source_gave_up:
            # All of it is here, as after a power failure: a guest may shut itself off at any moment, and hosts fail.
            expected.append(state)
        if state not in expected:
            problem = Phrase("VM {domain} is {state}, not {expected}", {
                "domain": domain, "state": Phrase(state.value), "expected": Phrase(expected[0].value)})
            raise MigrationError(
                ErrorCode.NOT_AS_EXPECTED, {"host": context.host, "problem": problem, "domain": domain})
        # The images are the domain's now: only what served the job itself goes.
        _, problems = context.ledger(migration).close(OF_JOB)
        words: list[str] = [
            Phrase("{state} here", {"state": Phrase(state.value)}),
            *(Phrase("cannot remove {problem}", {"problem": problem}) for problem in problems)]
        if not here:
            # What an agent that was killed has left.
            orphans.clear(JobSockets.of(migration).directory)
            if state is DomainState.SHUT_OFF:
                words = [_leave_copy(context, hypervisor, arguments), *words[1:]]
        elif state is DomainState.RUNNING:
            words += _ask_guest(hypervisor, migration, arguments.stood_still)
    return StepReport(summary=joined(words), ended=ended)


def _leave_copy(context: StepContext, hypervisor: Hypervisor, arguments: StepArguments) -> str:
    """See that the copy here cannot be started beside the VM that has moved. Returns what became of it, in words.

    Raises MigrationError NOT_AS_EXPECTED if it still could be started.
    """
    migration = arguments.migration
    domain, wanted = migration.domain, migration.source_after
    # First of all: what other VMs use is looked for on their disks, which takes time.
    mark(hypervisor, domain, MovedNote(
        job_id=migration.job_id, destination=migration.destination, at=context.wall))
    copy = StaleCopy.of(hypervisor, domain, migration.job_id, context.host)
    problems = copy.hide(hypervisor, domain)
    said: str = Phrase("shut off here, cannot be started")
    if not problems and wanted is not SourceAfter.KEEP:
        if not arguments.destination_verified:
            log.warning("VM %s: its copy is kept: %s has not said that the VM is there", domain, migration.destination)
            said = Phrase(
                "shut off here, cannot be started, kept because {host} has not said that all is well there",
                {"host": migration.destination})
        else:
            hypervisor.undefine(domain)
            said = Phrase("undefined here")
            if wanted is SourceAfter.DELETE:
                stays, problems = copy.beyond(), copy.delete()
                if stays:
                    said = Phrase("undefined here, the data of {paths} kept", {"paths": joined(stays)})
                elif copy.files:
                    said = Phrase("undefined here, its disks deleted")
            elif copy.files:
                said = Phrase("undefined here, its disks kept under other names")
    if problems:
        raise MigrationError(ErrorCode.NOT_AS_EXPECTED, {
            "host": context.host, "problem": joined(problems, SEMICOLON), "domain": domain})
    if copy.shared:
        said = joined((said, Phrase("{paths} left alone, another VM uses it as well", {
            "paths": joined(copy.shared)})), SEMICOLON)
    return said


def _ask_guest(hypervisor: Hypervisor, migration: Migration, stood_still: int) -> list[Phrase]:
    """What the guest's agent was asked for and has done."""
    domain, done = migration.name_there, list[Phrase]()
    if stood_still >= CLOCK_PAUSE and hypervisor.agent_problem(domain) is None:
        try:
            hypervisor.set_clock(domain)
            done.append(Phrase("its clock set"))
        except MigrationError as error:
            # Nobody asked for it, and what keeps a guest's time will notice as well.
            log.warning("the clock of VM %s stood still for %d ms: %s", domain, stood_still, error.message)
    if migration.trim:
        hypervisor.trim(domain)
        done.append(Phrase("its file systems trimmed"))
    return done
