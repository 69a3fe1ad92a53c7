"""The Controller: plans a migration, drives its steps on both agents and follows each of them to its end.

It prints nothing: an Observer is told what happens, and a RunReport says how it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from constant import DOWNTIME_OF_QEMU, GIVE_UP_SECONDS, Command, DomainState, Outcome
from control.checks import Checked, check, link_is_free, measured
from control.conversation import (
    Asked,
    ControllerSettings,
    Conversation,
    DetachedError,
    Observer,
    SilenceError,
    cancelled_by_admin,
    reason_of,
)
from control.looking import JobLook, Recalled, find_job, job_unknown, recall, recalled_migration, unreached
from control.report import RunReport
from control.whereabouts import locate
from udpmodule import ControllerSocket
from wire.errors import ErrorCode, MigrationError, first_of
from wire.facts import DomainFacts
from wire.findings import Check, Finding
from wire.phrase import SEMICOLON, Phrase, joined, template
from wire.records import Migration, MigrationReport, RollBackReport, StepArguments, StepReport, post_copy_failed
from wire.situation import DomainView, has_whole

log = logging.getLogger(__name__)

# The steps that have seen a VM that was held go on, if they came to a good end.
_LETS_GO_ON = (Command.HAND_OVER, Command.FINISH)


@dataclass
class Controller:
    """One controller run."""

    settings: ControllerSettings
    udp: ControllerSocket
    observer: Observer
    clock: Callable[[], float] = time.monotonic
    skipped: frozenset[Check] = frozenset()
    dry_run: bool = False
    on_checked: Callable[[Sequence[Finding]], None] = lambda _findings: None
    """Called with what the checks have found, before anything moves, and with what is known a little later."""
    on_ended: Callable[[RunReport], None] = lambda _report: None
    """Called with how a run has ended, before anybody else is told."""
    _talk: Conversation = field(init=False)
    _checked: Optional[Checked] = None
    _recalled_facts: Optional[DomainFacts] = None
    _moved: Optional[DomainFacts] = None
    """How the VM was, once it is known to be on the destination."""
    _sent: int = 0

    def __post_init__(self) -> None:
        self._talk = Conversation(self.settings, self.udp, self.observer, self.clock, skipped=self.skipped)

    @property
    def conversation(self) -> Conversation:
        """The run's talk with its agents."""
        return self._talk

    @property
    def facts(self) -> DomainFacts | None:
        """What is known of the VM as it was before it moved; None if no host has told."""
        return self._checked.facts if self._checked is not None else self._recalled_facts

    def migrate(self, migration: Migration) -> RunReport:
        """Move the VM, or leave it as it was. Raises MigrationError for what is wrong before any agent is asked."""
        self._talk.migration = migration
        for address in (migration.source, migration.destination):
            self.settings.agent_keys(address)
        return self._followed(migration, lambda: self._run(migration))

    def _followed(
        self, migration: Migration, run: Callable[[], RunReport], *, resumed: bool = False,
    ) -> RunReport:
        """The report of a run, whatever comes in between."""
        began = self.clock()
        try:
            report = run()
        except DetachedError:
            report = RunReport(migration, Outcome.DETACHED, None, 0.0, errors=(MigrationError(ErrorCode.DETACHED, {
                "job": migration.job_id, "domain": migration.domain, "seconds": f"{GIVE_UP_SECONDS:.0f}"}),))
        except KeyboardInterrupt:
            report = self._left(migration, cancelled_by_admin(migration.domain), Phrase(
                "Ctrl-C ended this command before both hosts had told what became of it"))
        except MigrationError as error:
            report = self._left(migration, error)
        except Exception as error:
            log.debug("unexpected", exc_info=True)
            report = self._left(
                migration, MigrationError(ErrorCode.INTERNAL, {"host": Phrase("this host"), "reason": repr(error)}))
        checked = self._checked
        facts = checked.facts if checked is not None else None
        report = dataclasses.replace(
            report, seconds=self.clock() - began, steps=tuple(self._talk.steps), dry_run=self.dry_run,
            findings=checked.findings if checked is not None else (), sent=self._sent,
            state=report.state if facts is None or report.runs_on is not None else facts.state,
            plan=checked.plan if checked is not None else None, resumed=resumed)
        self.on_ended(report)
        return report

    def _run(self, migration: Migration) -> RunReport:
        self._checked = checked = check(self._talk, migration, whole=self.dry_run)
        self.on_checked(checked.findings)
        migration, facts = checked.migration, checked.facts
        if self.dry_run or not checked.may_start or facts is None:
            self._talk.let_go()
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=checked.errors)
        return self._move(migration, facts, Recalled())

    def _move(self, migration: Migration, facts: DomainFacts, known: Recalled) -> RunReport:
        """The steps that move the VM; those that another controller has asked for are followed, or left out."""
        arguments = StepArguments(migration=migration, facts=facts)
        source, destination = migration.source, migration.destination
        try:
            if not known.done(destination, Command.PREPARE_DESTINATION):
                self._talk.end(self._asked(Command.PREPARE_DESTINATION, destination, arguments, known),
                               StepReport, _summary)
            if self._checked is not None:
                link_is_free(self._talk, self._checked)
            if not known.done(source, Command.COPY_DISK_FILE):
                self._copy_files(migration, arguments, known, both=bool(facts.files))
            moving = self._asked(Command.LIVE_MIGRATION, source, arguments, known)
            self._tell_measured()
            moved = self._talk.end(moving, MigrationReport, _moved)
        except MigrationError as error:
            return self._after_failure(migration, facts, error)
        except SilenceError as silence:
            if self._talk.may_have_moved:
                # libvirt may still be at it: nothing is undone under a migration that goes on.
                return self._unknown(migration, facts, silence.error.message)
            return self._after_failure(migration, facts, silence.error)
        return self._complete(migration, facts, moved, (), held=moved.held)

    def _tell_measured(self) -> None:
        """What was measured while the move began: whether it will catch up with what the guest writes, above all."""
        if self._checked is not None and (news := measured(self._talk, self._checked)):
            self.on_checked(news)

    def _asked(self, command: Command, host: str, arguments: StepArguments, known: Recalled) -> Asked:
        """A step that is asked for now, unless it runs already."""
        running = known.running(host, command)
        if running is not None:
            return self._talk.attach(command, host, running.request_id, arguments)
        return self._talk.begin(command, host, arguments)

    # Going on with what another controller has begun.

    def resume(self, job_id: str) -> RunReport:
        """Go on with a job where it is. Raises MigrationError JOB_UNKNOWN, or for what is wrong on this host.

        May be called for one job after the other.
        """
        self._talk.forget()
        self._checked, self._recalled_facts, self._moved, self._sent = None, None, None, 0
        migration, facts, known, look = self._recalled(job_id)
        if look.outcome is not None:
            report = self._ended(migration, facts, look.outcome)
            self.on_ended(report)
            return report
        return self._followed(migration, lambda: self._go_on(migration, facts, known), resumed=True)

    def cancel(self, job_id: str) -> RunReport:
        """Have a job end and undo it. Raises MigrationError JOB_UNKNOWN or TOO_LATE."""
        migration, facts, known, look = self._recalled(job_id)
        moved = next((details.record.moved for details in known.details.values() if details.record.moved), None)
        if look.outcome is not None or moved is not None:
            reason = Phrase("VM {domain} has moved to {destination}", {
                "domain": migration.domain, "destination": migration.destination})
            if moved is None and look.outcome is not None:
                reason = Phrase("it has ended, {outcome}", {"outcome": Phrase(look.outcome.value)})
            raise MigrationError(ErrorCode.TOO_LATE, {"job": job_id, "reason": reason})
        return self._followed(migration, lambda: self._cancelled(migration, facts, known), resumed=True)

    def _recalled(self, job_id: str) -> tuple[Migration, DomainFacts, Recalled, JobLook]:
        """What all agents together know of a job."""
        look, report = find_job(self._talk, job_id)
        hosts = (look.told.source, look.told.destination)
        silent = unreached(self._talk, report, hosts)
        if silent:
            # What a host did that cannot be asked is not known, and nothing is begun on suspicion.
            raise first_of(tuple(silent.values()))
        known = recall(self._talk, job_id, hosts)
        for error in known.errors:
            if error.code is not ErrorCode.JOB_UNKNOWN:
                raise error
        migration = recalled_migration(look, known)
        if migration is None:
            raise job_unknown(job_id)
        self._talk.migration = migration
        facts = self._recalled_facts = next(iter(known.details.values())).record.arguments.known_facts()
        return migration, facts, known, look

    def _ended(self, migration: Migration, facts: DomainFacts, outcome: Outcome) -> RunReport:
        """Of a job that has ended: what became of the VM since is told, but is no error of the job's."""
        has_it, other = migration.source, migration.destination
        if outcome is Outcome.MOVED:
            has_it, other = other, has_it
        try:
            view = locate(self._talk, has_it, migration.name_on(has_it))
            if view.half or not view.has_it:
                # Another move may have taken it to the other host since, or be at it.
                there = locate(self._talk, other, migration.name_on(other))
                if there.has_it and not there.half:
                    has_it, view = other, there
        except (MigrationError, SilenceError) as error:
            return RunReport(migration, outcome, None, 0.0, errors=(reason_of(error),), state=facts.state, before=True)
        return RunReport(migration, outcome, has_it, 0.0, state=view.state, before=True)

    def _go_on(self, migration: Migration, facts: DomainFacts, known: Recalled) -> RunReport:
        """From the step that the job is at. None that may have had its effect is asked for again."""
        self._talk.changed = True
        source, destination = migration.source, migration.destination
        moved = known.details[source].record.moved if source in known.details else None
        if moved is not None or known.done(source, Command.LIVE_MIGRATION):
            return self._complete(migration, facts, moved, (), held=moved is not None and moved.held)
        unfinished = [
            (host, command) for host, command in (
                (destination, Command.PREPARE_DESTINATION), (source, Command.COPY_DISK_FILE),
                (source, Command.LIVE_MIGRATION))
            if known.failed(host, command) is not None]
        undoing = any(known.steps(host, Command.ROLL_BACK) for host in (source, destination))
        if unfinished or undoing or destination not in known.details:
            return self._after_failure(migration, facts, _interrupted(migration))
        return self._move(migration, facts, known)

    def _cancelled(self, migration: Migration, facts: DomainFacts, known: Recalled) -> RunReport:
        """Have it end, wait for that, then undo."""
        self._talk.changed = self._talk.cancelled = True
        self.observer.cancelling(possible=True, pressed=False)
        self._talk.cancel()
        arguments = StepArguments(migration=migration, facts=facts)
        for host, command in ((migration.source, Command.LIVE_MIGRATION), (migration.source, Command.COPY_DISK_FILE),
                              (migration.destination, Command.COPY_DISK_FILE),
                              (migration.destination, Command.PREPARE_DESTINATION)):
            running = known.running(host, command)
            if running is None:
                continue
            asked = self._talk.attach(command, host, running.request_id, arguments)
            try:
                if command is Command.LIVE_MIGRATION:
                    moved = self._talk.end(asked, MigrationReport, _moved)
                    return self._complete(migration, facts, moved, (), held=moved.held)
                self._talk.end(asked, StepReport, _summary)
            except MigrationError as error:
                log.debug("%s has ended: %s", command.value, error)
            except SilenceError as silence:
                return self._unknown(migration, facts, silence.error.message)
        return self._after_failure(
            migration, facts, cancelled_by_admin(migration.domain, Phrase("`vmmigration.py cancel` was called")))

    def _copy_files(
        self, migration: Migration, arguments: StepArguments, known: Recalled, *, both: bool,
    ) -> None:
        """The source sends and the destination receives, if there is anything. Raises what went wrong first."""
        receiving = None
        if both:
            receiving = self._asked(Command.COPY_DISK_FILE, migration.destination, arguments, known)
        try:
            sent = self._talk.end(
                self._asked(Command.COPY_DISK_FILE, migration.source, arguments, known), StepReport, _summary)
        except (MigrationError, SilenceError) as error:
            if receiving is not None:
                self._prefer_cause(receiving, error)
            raise
        self._sent = sent.bytes
        if receiving is not None:
            self._talk.end(receiving, StepReport, _summary)

    def _prefer_cause(self, receiving: Asked, error: MigrationError | SilenceError) -> None:
        """Wait for the receiving end too; raises its error where the sending end only saw nobody there.

        If it has not ended by itself, it is told to: on a link that is half dead it would wait for hours.
        """
        self._talk.cancel(receiving.host)
        try:
            self._talk.end(receiving, StepReport, _summary)
        except SilenceError:
            return
        except MigrationError as cause:
            lost = isinstance(error, MigrationError) and error.code is ErrorCode.TUNNEL_LOST
            if lost and cause.code is not ErrorCode.MIGRATION_CANCELLED:
                raise cause from error

    # How it ends.

    def _complete(
        self, migration: Migration, facts: DomainFacts, moved: MigrationReport | None,
        errors: tuple[MigrationError, ...], *, held: bool,
    ) -> RunReport:
        """The steps after switchover. Each is tried, whatever became of the one before: the VM has moved."""
        self._moved = facts
        found = list(errors)
        arguments = StepArguments(migration=migration, facts=facts, source_gave_up=True)
        stood_still = max(moved.downtime, 0) if moved is not None else 0
        finishing = dataclasses.replace(arguments, stood_still=stood_still)
        steps_before = len(found)
        ended, waits = False, held
        for command, host, given in (
            *([(Command.HAND_OVER, migration.destination, arguments)] if held else []),
            (Command.EXTRACT_CONFIGURE_FILE, migration.destination, arguments),
            (Command.DEFINE_VIRTUAL_MACHINE, migration.destination, arguments),
            (Command.FINISH, migration.destination, finishing),
            (Command.FINISH, migration.source, finishing),
        ):
            if (command, host) == (Command.FINISH, migration.source):
                given = dataclasses.replace(given, destination_verified=len(found) == steps_before and not ended)
            try:
                ended = self._after_switchover(command, host, given).ended or ended
                waits = waits and (host != migration.destination or command not in _LETS_GO_ON)
            except MigrationError as error:
                found.append(error)
            except SilenceError as silence:
                found.append(silence.error)
        try:
            there = locate(self._talk, migration.destination, migration.name_there).state
        except (MigrationError, SilenceError):
            there = None
        return self._settled(migration, facts, moved, found, there, ended=ended, waits=waits)

    @staticmethod
    def _settled(
        migration: Migration, facts: DomainFacts, moved: MigrationReport | None, found: list[MigrationError],
        there: DomainState | None, *, ended: bool, waits: bool,
    ) -> RunReport:
        """How it is after the last step, by what its host says now: the steps' answers may be older than that.

        `ended` is whether one of them found it ended, `waits` whether none has seen it go on.
        """
        off = DomainState.SHUT_OFF if facts.persistent else DomainState.ABSENT
        if facts.state is not DomainState.SHUT_OFF and (there is off or (ended and there in (None, facts.state))):
            state = there or off
            # The domain that another step did not find is a transient one that has ended.
            kept = [error for error in found if error.code is not ErrorCode.DOMAIN_MISSING]
            return RunReport(migration, Outcome.MOVED_INCOMPLETE, migration.destination, 0.0, errors=(
                *kept, _ended_since(migration, facts, state)), moved=moved, state=state)
        if there is not facts.state and (there is not None or waits):
            said = Phrase("it waited on {host} to go on, which cannot be asked now", {"host": migration.destination})
            if there is not None:
                said = Phrase("it is {state} on {host}", {
                    "state": Phrase(there.value), "host": migration.destination})
            return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(
                *found, _state_unknown(migration, said)), moved=moved)
        outcome = Outcome.MOVED_INCOMPLETE if found else Outcome.MOVED
        return RunReport(
            migration, outcome, migration.destination, 0.0, errors=tuple(found), moved=moved, state=facts.state)

    def _after_switchover(self, command: Command, host: str, arguments: StepArguments) -> StepReport:
        """One of these steps, once more if libvirt has died in the middle of it: each may run twice."""
        try:
            return self._talk.step(command, host, arguments, StepReport, _summary)
        except MigrationError as error:
            if error.code not in (ErrorCode.LIBVIRT_ERROR, ErrorCode.LIBVIRT_UNREACHABLE):
                raise
            return self._talk.step(command, host, arguments, StepReport, _summary)

    def _after_failure(self, migration: Migration, facts: DomainFacts, error: MigrationError) -> RunReport:
        """Undo on both hosts, and conclude from what each says of the VM, not from what should be."""
        if not self._talk.changed:
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=(error,))
        reports: dict[str, RollBackReport] = {}
        silent = []
        judge = _Judge(facts.state, post_copy=_may_run_there(migration, error))
        for host in (migration.source, migration.destination):
            # The destination removes the images only if the VM is known to be where it was.
            here = reports.get(migration.source)
            arguments = StepArguments(
                migration=migration, facts=facts, source_keeps=judge.keeps(here),
                source_is_off=judge.is_off(here))
            try:
                reports[host] = self._talk.step(Command.ROLL_BACK, host, arguments, RollBackReport, _rolled_back)
            except MigrationError as undo_error:
                silent.append(undo_error)
            except SilenceError as silence:
                silent.append(silence.error)
        there = reports.get(migration.destination)
        if there is not None and there.cleared and judge.is_off(reports.get(migration.source)):
            # Nothing is over there, so what is shut off here is all of it: the job ends here as well.
            with contextlib.suppress(MigrationError, SilenceError):
                self._talk.step(Command.ROLL_BACK, migration.source, StepArguments(
                    migration=migration, facts=facts, source_keeps=True), RollBackReport, _rolled_back)
        return self._conclude(migration, facts, error, reports, tuple(silent))

    def _conclude(
        self, migration: Migration, facts: DomainFacts, error: MigrationError, reports: Mapping[str, RollBackReport],
        silent: tuple[MigrationError, ...],
    ) -> RunReport:
        """Where the VM is, by what the hosts have said of it."""
        here, there = reports.get(migration.source), reports.get(migration.destination)
        held = not migration.convergence.may_post_copy and facts.state is DomainState.RUNNING
        nothing_there = there is not None and there.state is DomainState.ABSENT
        judge = _Judge(facts.state, post_copy=_may_run_there(migration, error))
        stays = judge.keeps(here) and (nothing_there or (there is None and held))
        if here is not None and (stays or (nothing_there and judge.is_off(here))):
            # What is held over there has never run, whatever its agent could tell; it clears up once it is back.
            left = () if there is not None else (_left_behind(migration, facts),)
            return RunReport(
                migration, Outcome.ROLLED_BACK, migration.source, 0.0, errors=(error, *silent, *left),
                state=here.state, as_before=here.state is facts.state)
        if there is not None and there.arrived and here is not None and here.gave_up and held:
            return self._complete(migration, facts, None, (error,), held=True)
        if there is not None and here is not None and here.gave_up and (
                here.state is there.state is DomainState.SHUT_OFF is not facts.state):
            return self._complete(migration, facts, None, (error,), held=False)
        gone = here is not None and here.state in (DomainState.SHUT_OFF, DomainState.ABSENT)
        split = any(report.split for report in reports.values())
        # One that was paused when its move began is there only if it is not paused by its arriving.
        whole = there is not None and there.state is facts.state and not split and (
            there.arrived or there.state is not DomainState.PAUSED)
        if whole and (gone or (here is None and held)):
            # A post-copy that libvirt had given up, and that came to its end all the same, has not failed.
            errors = () if error.code is ErrorCode.POST_COPY_FAILED else (error,)
            return self._complete(migration, facts, None, errors, held=False)
        return self._undecided(migration, facts, _broken_off(migration, error) if split else error, reports, silent)

    def _undecided(
        self, migration: Migration, facts: DomainFacts, error: MigrationError, reports: Mapping[str, RollBackReport],
        silent: tuple[MigrationError, ...],
    ) -> RunReport:
        """It is on neither host for certain: what they have said goes to the admin."""
        found = [Phrase("It is {state} on {host}.", {"state": Phrase(report.state.value), "host": host})
                 for host, report in reports.items()]
        reasons = [problem.message for problem in silent]
        if error.code is ErrorCode.POST_COPY_FAILED:
            # Its own hint is the one to go by.
            state = _state_unknown(migration, joined([*reasons, *found] or [error.message], " "))
            return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(error, state))
        return self._unknown(migration, facts, joined([error.message, *reasons, *found], " "))

    @staticmethod
    def _unknown(migration: Migration, facts: DomainFacts, reason: str) -> RunReport:
        state = _state_unknown(migration, reason)
        if migration.convergence.may_post_copy:
            # The guest may have run there: its image is not to be removed, even if it is seen there no more.
            return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(state,))
        return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(state, _left_behind(migration, facts)))

    def _left(self, migration: Migration, error: MigrationError, reason: Optional[Phrase] = None) -> RunReport:
        """The report of a run that was not followed to its end, with the reason if it is another than the error."""
        if not self._talk.changed:
            return RunReport(migration, Outcome.NOTHING_CHANGED, None, 0.0, errors=(error,))
        if self._moved is not None:
            return RunReport(migration, Outcome.MOVED_INCOMPLETE, migration.destination, 0.0, errors=(error,),
                             state=self._moved.state)
        reason = reason or Phrase(
            "{error} What had been begun was not followed to its end.", {"error": error.message})
        return RunReport(migration, Outcome.UNKNOWN, None, 0.0, errors=(_state_unknown(migration, reason),))


def _interrupted(migration: Migration) -> MigrationError:
    return MigrationError(ErrorCode.MIGRATION_CANCELLED, {
        "domain": migration.domain, "reason": Phrase("the command that drove it was ended in the middle")})


def _broken_off(migration: Migration, error: MigrationError) -> MigrationError:
    """The error of a VM that is on each host in part: the step's own, or one where an earlier command met it."""
    if error.code is ErrorCode.POST_COPY_FAILED:
        return error
    return post_copy_failed(migration, Phrase("so libvirt there says"))


def _ended_since(migration: Migration, facts: DomainFacts, state: DomainState) -> MigrationError:
    restart = Phrase("`virsh start {domain}` there.", {"domain": migration.name_there})
    if not facts.persistent:
        restart = Phrase("Create it there anew.")
    return MigrationError(ErrorCode.ENDED_SINCE, {
        "domain": migration.name_there, "host": migration.destination, "state": Phrase(state.value),
        "remedy": Phrase("It was started since.") if state is facts.state else restart})


def _state_unknown(migration: Migration, reason: str) -> MigrationError:
    return MigrationError(ErrorCode.STATE_UNKNOWN, {
        "domain": migration.domain, "reason": reason, "source": migration.source,
        "destination": migration.destination, "job": migration.job_id})


def _left_behind(migration: Migration, facts: DomainFacts) -> MigrationError:
    return MigrationError(ErrorCode.LEFT_BEHIND, {
        "host": migration.destination, "domain": migration.domain, "job": migration.job_id,
        "paths": joined(migration.placement(facts).paths.values())})


def _may_run_there(migration: Migration, error: MigrationError) -> bool:
    """Whether the guest may have gone on at the destination before all of its memory was there."""
    return migration.convergence.may_post_copy or error.code is ErrorCode.POST_COPY_FAILED


@dataclass(frozen=True)
class _Judge:
    """What the source's account of a VM means that was in the state `began` when its move began."""

    began: DomainState
    post_copy: bool

    def keeps(self, report: RollBackReport | None) -> bool:
        """Whether the source still has it, all of it, and will keep it."""
        view = DomainView(state=report.state) if report is not None and not report.gave_up else None
        return view is not None and has_whole(view, self.began, post_copy=self.post_copy)

    def is_off(self, report: RollBackReport | None) -> bool:
        """Whether it is shut off there, which does not say why: with its host, or because it has moved."""
        return (report is not None and not report.gave_up and report.state is DomainState.SHUT_OFF
                and self.began is not DomainState.SHUT_OFF and not self.post_copy)


def _summary(report: StepReport) -> str:
    return report.summary


def _moved(report: MigrationReport) -> str:
    words = [Phrase("downtime {milliseconds} ms", {"milliseconds": str(report.downtime)})]
    if report.downtime < 0:
        words = []
    if report.downtime_limit > DOWNTIME_OF_QEMU:
        words.append(Phrase("{milliseconds} ms allowed", {"milliseconds": str(report.downtime_limit)}))
    if report.passes > 2:
        words.append(Phrase("{count} passes over the memory", {"count": str(report.passes)}))
    if report.post_copy:
        words.append(Phrase("post-copy"))
    return joined(words or [Phrase("done")])


# By whether the copy that an earlier move had left is there, and whether anything was removed.
_UNDONE = {
    (False, False): template("VM {state} here"),
    (False, True): template("VM {state} here, removed {paths}"),
    (True, False): template("only the copy of an earlier move here, as it was"),
    (True, True): template("only the copy of an earlier move here, as it was; removed {paths}"),
}


def _rolled_back(report: RollBackReport) -> str:
    facts = {"state": Phrase(report.state.value), "paths": joined(report.removed)}
    said = Phrase(_UNDONE[report.older_copy, bool(report.removed)], facts)
    if not report.spared:
        return said
    return joined((said, Phrase("{paths} left alone, another VM uses it as well", {
        "paths": joined(report.spared)})), SEMICOLON)
