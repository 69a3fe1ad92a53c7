"""`repair`: finds out where a VM really is, has the agents finish or undo the jobs that are left of it, and says what
an admin has to do about the rest, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Optional

from constant import DomainState, ExitCode, Outcome, Pause
from control.conversation import Conversation, SilenceError, cancelled_by_admin, reason_of
from control.looking import JobLook, job_runs, look_at_jobs
from control.report import RunReport
from control.whereabouts import Whereabouts, whereabouts
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase, fill, joined, template
from wire.situation import DomainView, Situation


@dataclass(frozen=True)
class RepairReport:
    """Where the VM is now, what was done, and what is left to do: commands, each with the host that it is for."""

    domain: str
    source: str
    destination: str
    found: Whereabouts
    runs: tuple[RunReport, ...] = ()
    """How each job that was left of it was brought to an end."""
    why: str = ""
    commands: tuple[tuple[str, str], ...] = ()
    errors: tuple[MigrationError, ...] = ()
    name_there: Optional[str] = None
    """What the VM is called on the destination, if otherwise."""

    @property
    def exit_code(self) -> ExitCode:
        """MOVED, which is 0, if nothing is left to do."""
        return ExitCode.MOVED if self.all_done else ExitCode.UNKNOWN

    @property
    def all_done(self) -> bool:
        """Whether nothing is left to do, for certain."""
        return not (self.commands or self.errors or self.found.situation is Situation.NOT_KNOWN
                    or not all(map(came_to_its_end, self.runs)))


def came_to_its_end(run: RunReport) -> bool:
    """Whether a job that was resumed is over, with nothing of it left undone."""
    return run.outcome in (Outcome.MOVED, Outcome.ROLLED_BACK)


@dataclass(frozen=True)
class _Advice:
    """What there is to say of a situation; `{vm}` `{source}` `{destination}` are put in. Commands by host.

    All of it are templates; a command is one with words of ours only where a comment follows.
    """

    why: str
    commands: tuple[tuple[str, str], ...] = ()


_NOTHING = _Advice("")
# For what the agents do not do by themselves: either choice could lose what somebody needs.
_ADVICE: Mapping[Situation, _Advice] = {
    Situation.ON_SOURCE: _NOTHING,
    Situation.ON_DESTINATION: _NOTHING,
    Situation.SHUT_OFF_ON_SOURCE: _NOTHING,
    Situation.SHUT_OFF_ON_DESTINATION: _NOTHING,
    Situation.ON_SOURCE_PAUSED: _NOTHING,
    Situation.ON_DESTINATION_PAUSED: _NOTHING,
    Situation.BOTH: _Advice(template(
        "Both copies write, each to disks of its own. Look into both (`virsh console {vm}`, its services, the clock of "
        "its last log lines), keep the one that its users reach, and end the other at once. What the other has written "
        "stays in its image: copy that image away before anything else."),
        (("{source}", template("virsh destroy {vm}   # if {destination} is to keep it")),
         ("{destination}", template("virsh destroy {there}   # if {source} is to keep it")))),
    Situation.ARRIVING: _Advice(template(
        "It runs on {source}. What is paused on {destination} is a migration that did not end there, and no job of "
        "ours; libvirt removes it within a minute if its peer is gone. If it is still there then, end it."),
        (("{destination}", "virsh destroy {there}"),)),
    Situation.LEAVING: _Advice(template(
        "It runs on {destination}. What is paused on {source} is what a migration left of it, and must not go on."),
        (("{source}", "virsh destroy {vm}"),)),
    Situation.SPLIT: _Advice(template(
        "Post-copy broke off: each host has a part of its memory. As long as both are there, destroy nothing. Mend the "
        "link, let TCP 49152 to 49215 in on {destination}, and have it go on as root on {source}, which needs libvirt "
        "8.5. If that command does not come to an end, QEMU on {destination} waits for memory that does not come: then "
        "the memory is lost. End {there} on {destination} and {vm} on {source}, and start the VM on {destination}, "
        "whose image is the newest."),
        (("{source}", "virsh migrate --live --p2p --persistent --postcopy --postcopy-resume {vm} "
          "qemu+ssh://USER@{destination}/system{named}"),)),
    Situation.BETWEEN: _Advice(template(
        "Neither copy runs. The one on {source} has all of the VM's disk and memory; the one on {destination} has "
        "never run if it came with a migration of today."),
        (("{destination}", "virsh destroy {there}"), ("{source}", "virsh resume {vm}"))),
    Situation.SHUT_OFF_ON_BOTH: _Advice(template(
        "Two definitions, none runs. Start the one with the newer disks, never both: `virsh dumpxml` shows a note in "
        "the metadata of a copy that was left behind, `qemu-img info` and the time of the image tell the rest."),
        (("{destination}", template("virsh start {there}   # if it was moved there last")),
         ("{source}", template("virsh start {vm}   # if it never left")))),
    Situation.NOWHERE: _Advice(template(
        "Neither libvirt knows a VM of that name. If it was transient it has ended; its images are still where they "
        "were."),
        (("{source}", "ls -l /var/lib/libvirt/images"), ("{destination}", "ls -l /var/lib/libvirt/images"))),
    Situation.NOT_KNOWN: _Advice(template(
        "One of the hosts cannot be asked. Nothing is certain before it can be.")),
}
_IN_POST_COPY = _Advice(template(
    "It runs on {destination}, and its memory is still following from {source}: that is post-copy, of a migration that "
    "is not ours. End nothing before it is over."), (("{source}", "virsh domjobinfo {vm}"),))


def repair(
    talk: Conversation, resume: Callable[[str], RunReport], domain: str, source: str, destination: str,
) -> RepairReport:
    """Do what is safe. Raises MigrationError for what is wrong on this host, JOB_RUNS, or JOB_UNKNOWN.

    The last for a name that nobody has heard of: it is mistyped rather than lost.
    """
    for address in (source, destination):
        talk.settings.agent_keys(address)
    jobs = look_at_jobs(talk, domain)
    left = [job for job in jobs.jobs
            if job.outcome is None and {job.told.source, job.told.destination} == {source, destination}]
    for job in left:
        if job.doing:
            raise job_runs(job)
    silent = [error for error in jobs.errors if error.facts.get("host") in (source, destination)]
    # With one host alone nothing is begun: what the other one has done since is not known.
    both = {source, destination} <= talk.contacts.keys()
    runs, broken_off = _resumed(resume, domain, reversed(left)) if both else ((), ())
    name_there = _name_there(jobs.jobs, destination)
    # What the jobs have changed is theirs: Ctrl-C ends this look, and leaves nothing that goes on.
    talk.forget()
    try:
        found = whereabouts(talk, (source, domain), (destination, name_there or domain))
    except KeyboardInterrupt:
        if not runs:
            raise
        found = Whereabouts(errors=(cancelled_by_admin(domain),))
    if found.situation is Situation.NOWHERE and not jobs.jobs and not jobs.errors:
        raise MigrationError(ErrorCode.JOB_UNKNOWN, {"problem": Phrase(
            "Neither {source} nor {destination} has a VM {domain}, and no agent knows of a job that moved one",
            {"source": source, "destination": destination, "domain": domain})})
    return _report(RepairReport(
        domain, source, destination, found, runs, errors=(*silent, *broken_off, *found.errors), name_there=name_there))


def _resumed(
    resume: Callable[[str], RunReport], domain: str, jobs: Iterable[JobLook],
) -> tuple[tuple[RunReport, ...], tuple[MigrationError, ...]]:
    """How each job went on, until the admin left, and what kept the next one from going on.

    Raises what is wrong before any of them has.
    """
    runs: list[RunReport] = []
    for job in jobs:
        try:
            runs.append(resume(job.told.job_id))
        except (MigrationError, SilenceError, KeyboardInterrupt) as error:
            if not runs:
                raise
            return tuple(runs), (cancelled_by_admin(domain) if isinstance(error, KeyboardInterrupt)
                                 else reason_of(error),)
        if runs[-1].outcome is Outcome.DETACHED:
            break
    return tuple(runs), ()


def _name_there(jobs: Iterable[JobLook], destination: str) -> Optional[str]:
    """What the newest job has called the VM on that host, if otherwise than here."""
    return next((job.told.name_there for job in jobs if job.told.destination == destination), None)


def _report(report: RepairReport) -> RepairReport:
    """The report with what is left to do."""
    there = report.name_there or report.domain
    names = {"vm": report.domain, "there": there, "source": report.source, "destination": report.destination,
             "named": f" --dname {there}" if there != report.domain else ""}
    source, destination = report.found.source, report.found.destination
    advice, says_all = _advice(report.found)
    why = [Phrase(advice.why, names)] if advice.why else []
    commands = [(fill(host, names), Phrase(command, names)) for host, command in advice.commands]
    if (source is not None and destination is not None and source.state is DomainState.SHUT_OFF and not source.gone
            and destination.pause is Pause.SOMEBODY):
        why.append(Phrase(
            "On {destination} it is paused, on {source} shut off: it may have arrived in a move that did not come to "
            "its end. Let it go on unless the other one was started since; then end it instead.", names))
        commands.append((report.destination, Phrase("virsh resume {there}   # or: virsh destroy {there}", names)))
    if not says_all:
        for host, name, view, other in (
                (report.source, report.domain, source, destination), (report.destination, there, destination, source)):
            for reason, command in _of_view(name, host, view, other):
                why.append(reason)
                commands.append((host, command))
    return replace(report, why=joined(why, " "), commands=tuple(commands))


def _advice(found: Whereabouts) -> tuple[_Advice, bool]:
    """What there is to say of both hosts together, and whether that is all of it."""
    source, destination = found.source, found.destination
    if found.situation is Situation.LEAVING and source is not None and source.split:
        # That libvirt here says that it broke off, and there that all is well, means that its end was not heard of.
        return _ADVICE[found.situation] if source.pause is Pause.POST_COPY_FAILED else _IN_POST_COPY, True
    halves = any(view is not None and view.split for view in (source, destination))
    if halves and found.situation is not Situation.SPLIT:
        # What is said of halves is said of each: the situation itself may name one of them as superfluous.
        return _NOTHING, False
    return _ADVICE[found.situation], found.situation is Situation.SPLIT


def _of_view(
    domain: str, host: str, view: Optional[DomainView], other: Optional[DomainView],
) -> Iterable[tuple[Phrase, Phrase]]:
    """What has to be done about the VM on one host."""
    for why, command in _words_of_view(view, other):
        names = {"vm": domain, "host": host}
        yield Phrase(why, names), Phrase(command, names)


def _words_of_view(view: Optional[DomainView], other: Optional[DomainView]) -> Iterable[tuple[str, str]]:
    """The same as templates."""
    if view is None:
        return
    if view.split and (other is None or other.has_it):
        yield (template(
            "On {host} it has only a part of its memory; the rest is on the other host. End neither."),
            "virsh domstate --reason {vm}")
        return
    if view.split:
        yield (template(
            "On {host} it waits for memory that was on the other host, where it is no more: that memory is lost. End "
            "it, and start the VM where its image is the newest: where it moved to."), "virsh destroy {vm}")
        return
    if other is None:
        # The job may be ours, and the other host may have the VM.
        return
    if view.busy:
        yield (template("On {host} it is locked by a job that is not ours."),
               "virsh domjobinfo {vm}; virsh domjobabort {vm}")
    if view.pause is Pause.MIGRATION and not view.busy and other.gone:
        yield (template(
            "On {host} a migration has left it paused, and the other host has nothing of it: it may go on."),
            "virsh resume {vm}")
    elif view.state is DomainState.PAUSED and view.pause is Pause.OTHER:
        yield (template("On {host} it is paused by an I/O error or the like: see to that first."),
               "virsh domstate --reason {vm}; virsh resume {vm}")
