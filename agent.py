"""The agent of a KVM node: authorises a request, runs its step in a thread of its own, and remembers the result."""

from __future__ import annotations

import argparse
import contextlib
import contextvars
import ipaddress
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from constant import (
    AGENT_KEY_FILE,
    AGENT_LIST_FILE,
    AGENT_PORT,
    CHANGE_NOTHING,
    CLEARING,
    CONTROLLER_LIST_FILE,
    GIVE_UP_SECONDS,
    JOBS_LIMIT,
    STATE_DIRECTORY,
    UNJOURNALED_KEPT_SECONDS,
    VERSION,
    WORK_LIMIT,
    Command,
    Outcome,
    Severity,
)
from host.service_manager import ServiceManager
from steps import recording
from steps.context import Cancellation, KeptTunnels, StepContext
from udpmodule import AgentSocket, Event, Responder, Stage
from wire.access import AddressList, Key, config_directory, load_keys
from wire.admission import Gate
from wire.errors import ErrorCode, MigrationError
from wire.facts import HostFacts
from wire.findings import CheckReport
from wire.history import JobArguments
from wire.jobs import Job, Jobs, who_asked
from wire.journal import Journal, JournalWriter
from wire.memory import Address, Begun, Ended, Entry
from wire.message import Request
from wire.phrase import Phrase, template
from wire.records import (
    CancelArguments,
    CancelReport,
    HelloArguments,
    LinkArguments,
    Migration,
    Progress,
    StepArguments,
)

log = logging.getLogger(__name__)

# A job that is ended by SIGTERM gets this long to be rolled back by libvirt before the agent leaves.
_STOP_SECONDS = 30.0
# After that its controller wants the result, and to hear how the VM is: a round trip or two, some of them lost.
_LINGER_SECONDS = 4.0
_CANCELLED = Phrase("the admin asked for that")
# How long a step's thread may keep the receive loop waiting; Python's own 5 ms are felt in the answers.
_SWITCH_SECONDS = 0.0005
# The niceness of the receive loop and the journal, which do little and are waited for, and that of the work.
_PROMPT, _ORDINARY = -10, 0
_NO_JOB = ("-", "-")
# As it was called: by a package's name, or by that of a checkout's script.
_INSTALLED = "vmmigration-agent"
_PROGRAM = _INSTALLED if os.path.basename(sys.argv[0]) == _INSTALLED else f"{_INSTALLED}.py"
# All of IPv4 and all of IPv6.
_EVERYWHERE: Sequence[Address] = (("0.0.0.0", AGENT_PORT), ("::", AGENT_PORT))  # noqa: S104 - lists and key decide
# How often it looks whether one of its jobs needs it, and how rarely at one that could not be settled.
_LOOK_SECONDS = 2.0
_LOOK_LONGEST_SECONDS = 120.0
_job: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar("job", default=_NO_JOB)

# With the arguments that wire/message.py has for the command.
Step = Callable[[StepContext, Any], object]
Hello = Callable[[StepContext], HostFacts]


class JobFilter(logging.Filter):
    """Puts the job id and the domain that a thread works for into each of its log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the two fields; every record passes."""
        record.job, record.domain = _job.get()
        return True


@dataclass(frozen=True)
class Alone:
    """What an agent does without being asked: go on with a migration, and settle what nobody drives any more."""

    adopt: Step
    settle: Callable[..., Outcome | None]
    clear: Callable[[Collection[str]], None]
    """Ends what steps of an earlier life have left, but for those of these jobs."""


@dataclass(frozen=True)
class AgentSettings:
    """What an agent reads at its start."""

    controllers: AddressList
    destinations: AddressList
    keys: tuple[Key, ...]

    @classmethod
    def load(cls, directory: Path, *, insecure: bool) -> AgentSettings:
        """Read both lists and the key. Raises MigrationError."""
        return cls(
            controllers=AddressList.load(
                directory / CONTROLLER_LIST_FILE, template("management host that this agent obeys")),
            destinations=AddressList.load(directory / AGENT_LIST_FILE, template("node that this agent may migrate to")),
            keys=() if insecure else load_keys(directory / AGENT_KEY_FILE),
        )


@dataclass(frozen=True)
class _Work:
    """A request that is being worked on, in a thread of its own."""

    request: Request
    asked_by: str
    cancellation: Cancellation
    adopted: bool = False
    """Whether an earlier life of this agent has begun it."""

    @property
    def arguments(self) -> StepArguments | None:
        """The arguments of a step of a migration; None for what only looks at hosts."""
        arguments = self.request.cmd_arguments
        return arguments if isinstance(arguments, StepArguments) else None


class Agent:
    """Takes requests from the socket's thread and works on each in its own; the socket never waits for the work."""

    def __init__(
        self, settings: AgentSettings, udp: AgentSocket, hello: Hello, steps: Mapping[Command, Step], *,
        state_directory: Path = Path(STATE_DIRECTORY), jobs_limit: int = JOBS_LIMIT, alone: Alone | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        """`alone` is what it does without being asked, nothing if that is None; `manager` is told how it goes on."""
        self._settings = settings
        self._udp = udp
        self._hello = hello
        self._steps = steps
        self._state_directory = state_directory
        self._alone = alone
        self._manager = manager or ServiceManager()
        self._job_locks: dict[str, threading.Lock] = {}
        self._look_at = 0.0
        self.jobs = Jobs(jobs_limit)
        self._working: dict[str, _Work] = {}
        self._cancelled: dict[str, float] = {}
        self._tunnels = KeptTunnels()
        self._stop_by: float | None = None
        self._linger_until = 0.0
        self.leaves = False
        """Whether it ends without having ended its work."""

    def run(self) -> None:
        """Serve until leave() was called, or stop() and all work has ended, at most _STOP_SECONDS later."""
        self._manager.ready(self._status())
        self._udp.serve(self.take, self._stopped, self._turn)

    def _turn(self) -> None:
        self._manager.turned(time.monotonic(), self._status())
        self._see_to_jobs()

    def _status(self) -> str:
        count = len(self.jobs.open())
        return "1 job" if count == 1 else f"{count or 'no'} jobs"

    def stop(self) -> None:
        """Refuse new work and cancel what runs. Called in the receive loop's thread."""
        if self._stop_by is None:
            log.info("stopping; %d job step(s) to end first", len(self._working))
            self._manager.stopping()
            now = time.monotonic()
            self._stop_by = now + _STOP_SECONDS
            self._linger_until = now
            for work in self._working.values():
                work.cancellation.reason = Phrase("the agent on {host} was stopped", {"host": work.request.agent_ip})

    def leave(self) -> None:
        """End, and leave what runs to the next life of this agent, as if this one had been killed."""
        log.info("leaving %d job step(s) to the agent that is started next", len(self._working))
        self._manager.stopping()
        self.leaves = True

    def _stopped(self) -> bool:
        if self.leaves or self._stop_by is None:
            return self.leaves
        now = time.monotonic()
        return now > self._stop_by or (not self._working and now >= self._linger_until)

    def configure(self, load: Callable[[], AgentSettings]) -> None:
        """Go by what `load` reads from now on; if it cannot be read, by what was read before."""
        self._manager.reloading(time.monotonic())
        try:
            self._settings = load()
        except MigrationError as error:
            log.error("lists and keys stay as they were: %s", error)
        else:
            self._udp.responder.reconfigure(self._settings.controllers, self._settings.keys)
            log.info("lists and keys were read again")
        self._manager.ready(self._status())

    def take(self, event: Event) -> None:
        """Do what a request needs next. Returns at once."""
        request = event.request
        if event.stage is Stage.ARRIVED:
            self._take_new(request)
        elif event.stage is Stage.BEGUN:
            self._begin(self._working[request.request_id])
        else:
            ended = self._working.pop(request.request_id, None)
            if self._stop_by is not None:
                self._linger_until = time.monotonic() + _LINGER_SECONDS
            if ended is not None and event.stage is Stage.NOT_BEGUN:
                self._leave_job(ended, begun=False)

    def _begin(self, work: _Work) -> None:
        """Start its thread."""
        request = work.request
        try:
            threading.Thread(target=self._work, args=(work,), name=request.cmd.value, daemon=True).start()
        except RuntimeError as error:
            self._leave_job(work)
            facts = {"host": request.agent_ip, "reason": str(error)}
            self._udp.responder.finish(
                request.request_id, MigrationError(ErrorCode.INTERNAL, facts), time.monotonic())

    def _take_new(self, request: Request) -> None:
        """Accept, answer or refuse it."""
        responder, now = self._udp.responder, time.monotonic()
        work = _Work(request, responder.asked_by(request.request_id), Cancellation())
        try:
            if isinstance(request.cmd_arguments, CancelArguments):
                responder.finish(request.request_id, self._cancel(request.cmd_arguments.job_id), now)
                return
            self._enter(work, now)
        except MigrationError as error:
            log.warning("refused %s, asked for by %s: %s", request.cmd.value, work.asked_by, error.message)
            responder.refuse(request.request_id, error, now)
            return
        self._working[request.request_id] = work
        responder.accept(request.request_id, now)

    def _enter(self, work: _Work, now: float) -> None:
        """Raise MigrationError if it is not to be worked on here and now."""
        host, command = work.request.agent_ip, work.request.cmd
        if self._stop_by is not None and command not in CLEARING | {Command.HELLO}:
            # What clears up after a job, or asks how it went, is still served: see _LINGER_SECONDS.
            raise MigrationError(ErrorCode.AGENT_STOPPING, {"host": host})
        if len(self._working) >= WORK_LIMIT and command not in CLEARING:
            raise MigrationError(ErrorCode.AGENT_BUSY, {"host": host, "count": str(len(self._working))})
        arguments = work.request.cmd_arguments
        # A recorded greeting keeps no place.
        if isinstance(arguments, HelloArguments) and self._udp.responder.is_fresh(work.request, now):
            self.jobs.keep(arguments.job_id or "", now)
        concerned = work.arguments.migration if work.arguments is not None else arguments
        if isinstance(concerned, (Migration, LinkArguments)) and host not in (concerned.source, concerned.destination):
            problem = Phrase("this host is no part of the migration")
            raise MigrationError(ErrorCode.MESSAGE_INVALID, {"host": host, "problem": problem})
        if work.arguments is not None:
            migration = work.arguments.migration
            self._cancelled = {job_id: until for job_id, until in self._cancelled.items() if now < until}
            if migration.job_id in self._cancelled and command not in CLEARING:
                facts = {"domain": migration.domain, "reason": _CANCELLED}
                raise MigrationError(ErrorCode.MIGRATION_CANCELLED, facts)
            self.jobs.enter(command, host, migration, work.asked_by, now)

    def _leave_job(self, work: _Work, *, begun: bool = True, settled: bool = False) -> None:
        if work.arguments is not None:
            self.jobs.leave(
                work.request.cmd, work.arguments.migration, time.monotonic(), begun=begun, settled=settled)

    def _cancel(self, job_id: str) -> CancelReport:
        """Have the job's running step end."""
        known = False
        for work in self._working.values():
            if work.arguments is not None and work.arguments.migration.job_id == job_id:
                work.cancellation.reason = _CANCELLED
                known = True
        # What its controller sent before, and the network delivers later, is not begun any more.
        self._cancelled[job_id] = time.monotonic() + UNJOURNALED_KEPT_SECONDS
        self._tunnels.close_soon(job_id)
        log.info("job %s: cancel asked for, %s", job_id, "it runs" if known else "no such job here")
        return CancelReport(known=known)

    def _work(self, work: _Work) -> None:
        """In a thread of its own: run the step, then hand its result to the receive loop."""
        request = work.request
        outcome: object = MigrationError(
            ErrorCode.INTERNAL, {"host": request.agent_ip, "reason": Phrase("the step's thread ended")})
        settled = False
        if work.arguments is not None:
            _job.set((work.arguments.migration.job_id, work.arguments.migration.domain))
        elif isinstance(request.cmd_arguments, LinkArguments):
            _job.set((request.cmd_arguments.job_id, request.cmd_arguments.domain or "-"))
        # The work, and the ssh that it starts, waits for its turn like everything else on this host.
        _set_niceness(_ORDINARY)
        try:
            log.info("%s asked for by %s", request.cmd.value, work.asked_by)
            outcome, settled = self._recorded(work)
        finally:
            # Whatever becomes of this thread: the controller asks for its result until it has one.
            self._udp.post(lambda: self._deliver(work, outcome, settled=settled))

    def _recorded(self, work: _Work) -> tuple[object, bool]:
        """The outcome of the work, and whether the job is settled here with it; of a job, one step at a time."""
        context, arguments, command = self._context(work), work.arguments, work.request.cmd
        if arguments is None or command in CHANGE_NOTHING:
            return self._outcome(work, context), False
        with self._job_locks.setdefault(arguments.migration.job_id, threading.Lock()):
            try:
                recording.begin(context, command, arguments, work.asked_by, int(time.time()))
            except MigrationError as error:
                return error, False
            outcome = self._outcome(work, context)
            return outcome, recording.end(context, command, arguments, outcome, int(time.time()))

    def _deliver(self, work: _Work, outcome: object, *, settled: bool) -> None:
        """Hand a result on, in the receive loop's thread."""
        self._leave_job(work, settled=settled)
        self._udp.responder.finish(work.request.request_id, outcome, time.monotonic())

    def _context(self, work: _Work) -> StepContext:
        responder, request = self._udp.responder, work.request
        return StepContext(
            host=request.agent_ip, epoch=responder.epoch, challenge=responder.challenge(time.monotonic()),
            destinations=self._settings.destinations, state_directory=self._state_directory,
            cancellation=work.cancellation, progress=lambda progress: self._progress(request.request_id, progress),
            wall=int(time.time()), tunnels=self._tunnels,
            free_slots=self.jobs.free(), slots=self.jobs.limit, doing=self._doing(),
            asked=responder.steps_of(request.cmd_arguments.job_id)
            if isinstance(request.cmd_arguments, JobArguments) else ())

    def _doing(self) -> dict[str, tuple[Command, ...]]:
        return {job.job_id: tuple(job.running) for job in self.jobs.open()}

    def _outcome(self, work: _Work, context: StepContext) -> object:
        """The step's result or its error; whatever else goes wrong in it is an error of its own code."""
        request = work.request
        began = time.monotonic()
        try:
            if request.cmd is Command.HELLO:
                outcome: object = self._hello(context)
            elif work.adopted and self._alone is not None:
                outcome = self._alone.adopt(context, request.cmd_arguments)
            else:
                outcome = self._steps[request.cmd](context, request.cmd_arguments)
        except MigrationError as error:
            log.error("%s failed: %s", request.cmd.value, error.message)
            return error
        except Exception as error:
            log.exception("%s ended in an unexpected error", request.cmd.value)
            return MigrationError(ErrorCode.INTERNAL, {"host": request.agent_ip, "reason": repr(error)})
        log.info("%s done in %.2f s", request.cmd.value, time.monotonic() - began)
        if isinstance(outcome, CheckReport):
            for finding in outcome.findings:
                if finding.severity is not Severity.FINE:
                    log.info("check %s %s: %s", finding.check.value, finding.severity.value, finding.message)
        return outcome

    def _progress(self, request_id: str, progress: Progress) -> None:
        self._udp.post(lambda: self._udp.responder.progress(request_id, progress, time.monotonic()))

    # What it does without being asked.

    def go_on(self, entries: Sequence[Entry], adopted: Mapping[str, Request]) -> None:
        """Take up the jobs of an earlier life, and the requests of it that go on. Called before run()."""
        self.jobs.restore(entries, time.monotonic())
        for job in self.jobs.open():
            if (kept := recording.recall(self._state_directory, job.job_id)) is not None:
                # The journal has the address alone.
                job.asked_by = who_asked(kept.arguments.migration, kept.asked_by)
        if self._alone is not None:
            self._alone.clear(
                {job.job_id for job in self.jobs.open()} | set(recording.open_jobs(self._state_directory)))
        for request in adopted.values():
            work = _Work(request, self._udp.responder.asked_by(request.request_id), Cancellation(), adopted=True)
            arguments = work.arguments
            if arguments is not None:
                self.jobs.enter(request.cmd, request.agent_ip, arguments.migration, work.asked_by, time.monotonic())
                self._udp.responder.adopt(request)
                self._working[request.request_id] = work
                self._begin(work)

    def _see_to_jobs(self) -> None:
        """Look at the jobs that have nothing to do here, each in a thread of its own. Returns at once."""
        now = time.monotonic()
        if self._alone is None or now < self._look_at or self._stop_by is not None:
            return
        self._look_at = now + _LOOK_SECONDS
        for job in self.jobs.unattended(now):
            job.seeing_to = True
            alone = job.closing or now - job.heard > GIVE_UP_SECONDS
            threading.Thread(
                target=self._see_to, args=(job, self._alone.settle, alone), name=f"job-{job.job_id}",
                daemon=True).start()

    def _see_to(self, job: Job, settle: Callable[..., Outcome | None], alone: bool) -> None:
        """In a thread of its own: see to one job, then say so to the receive loop."""
        _job.set((job.job_id, job.domain))
        _set_niceness(_ORDINARY)
        outcome = None
        try:
            outcome = self._settled(job, settle, alone)
        except MigrationError as error:
            log.warning("the job cannot be settled yet: %s", error.message)
        except Exception:
            log.exception("the job cannot be settled yet")
        finally:
            self._udp.post(lambda: self._seen_to(job, outcome, alone=alone))

    def _settled(self, job: Job, settle: Callable[..., Outcome | None], alone: bool) -> Outcome | None:
        kept = recording.recall(self._state_directory, job.job_id)
        if kept is None or kept.outcome is not None:
            # It is written down before anything is changed: there is nothing to do. Its controller may still be at it.
            return kept.outcome if kept is not None else Outcome.NOTHING_CHANGED if alone else None
        with self._job_locks.setdefault(job.job_id, threading.Lock()):
            responder, arguments = self._udp.responder, kept.arguments
            here = arguments.migration.source if job.on_source else arguments.migration.destination
            context = StepContext(
                host=here, epoch=responder.epoch, challenge="", destinations=self._settings.destinations,
                state_directory=self._state_directory, cancellation=Cancellation(), progress=lambda _progress: None,
                wall=int(time.time()))
            outcome = settle(context, arguments, alone=alone)
            if outcome is not None:
                recording.put(context, kept.ending(outcome, int(time.time())))
                log.warning("nobody asked any more: the job was settled here, %s", outcome.value)
            return outcome

    def _seen_to(self, job: Job, outcome: Outcome | None, *, alone: bool) -> None:
        """In the receive loop's thread: the job has ended, or is looked at again, later each time."""
        job.seeing_to = False
        job.looks = job.looks + 1 if alone else 0
        job.look_at = time.monotonic() + min(_LOOK_SECONDS * 2 ** job.looks, _LOOK_LONGEST_SECONDS)
        if outcome is not None and not job.running:
            self.jobs.settle(job.job_id)


def configure_logging(*, verbose: bool) -> None:
    """Log to stderr, each line with the job's id and its domain."""
    handler = logging.StreamHandler()
    handler.addFilter(JobFilter())
    handler.setFormatter(logging.Formatter(
        "%(asctime)s %(levelname)-7s job=%(job)s domain=%(domain)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


def _arguments_invalid(problem: str) -> MigrationError:
    """The error for what cannot be understood on the command line."""
    return MigrationError(ErrorCode.ARGUMENTS_INVALID, {"problem": problem, "program": _PROGRAM})


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as one of our errors."""

    def error(self, message: str) -> NoReturn:
        raise _arguments_invalid(message.rstrip("."))


def parse_listen(text: str) -> tuple[str, int]:
    """ADDRESS, ADDRESS:PORT, or [ADDRESS]:PORT for IPv6. Raises MigrationError ADDRESS_INVALID or ARGUMENTS_INVALID."""
    address, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not address.endswith("]")):
        address, port = text, str(AGENT_PORT)
    address = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise MigrationError(ErrorCode.ADDRESS_INVALID, {"what": "--listen", "address": text}) from error
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise _arguments_invalid(f"--listen {text!r} does not end in a port, a whole number up to 65535")
    return str(parsed), int(port)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= WORK_LIMIT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {WORK_LIMIT}")
    return int(text)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Raises MigrationError ARGUMENTS_INVALID."""
    parser = _Parser(
        prog="vmmigration-agent", description="Moves this node's VMs when a controller on the list asks for it.",
        epilog="Started by hand without arguments, or by systemd. It runs in the foreground and logs to stderr. "
        "SIGHUP has it read its lists and its key again. SIGTERM ends it, and with it what it is working on; SIGUSR1 "
        "ends it and leaves that to the agent that is started next.")
    parser.add_argument("--config-dir", metavar="DIR", help="where ControllerIPAddr.txt, AgentIPAddr.txt and "
                        "AgentKey.txt are (default: /etc/vmmigration, or the folder of a checkout if that does not "
                        "exist)")
    parser.add_argument("--state-dir", metavar="DIR", default=STATE_DIRECTORY,
                        help=f"where the journal of requests is kept (default: {STATE_DIRECTORY})")
    parser.add_argument("--listen", metavar="ADDRESS[:PORT]", action="append",
                        help="the address to serve, once for IPv4 and once for IPv6 (default: all of this host's, port "
                        f"{AGENT_PORT})")
    parser.add_argument("--jobs", metavar="N", type=_positive, default=JOBS_LIMIT,
                        help=f"how many migrations to take part in at once (default: {JOBS_LIMIT})")
    parser.add_argument("--insecure", action="store_true", help="no key: rely on the IP lists alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"vmmigration-agent {VERSION}")
    return parser.parse_args(argv)


def listen_addresses(texts: Sequence[str]) -> list[Address]:
    """What several --listen come to. Raises MigrationError ADDRESS_INVALID or ARGUMENTS_INVALID."""
    addresses = [parse_listen(text) for text in texts]
    if len({":" in address for address, _ in addresses}) < len(addresses):
        raise _arguments_invalid("--listen takes one address of IPv4 and one of IPv6")
    return addresses


def _open_socket(responder: Responder, listen: Sequence[str] | None, writer: JournalWriter) -> AgentSocket:
    """Raises MigrationError."""
    if listen:
        return AgentSocket(responder, listen_addresses(listen), writer)
    try:
        return AgentSocket(responder, _EVERYWHERE, writer)
    except MigrationError as error:
        # A host without IPv6. If it was IPv4 that failed, it says so again.
        udp = AgentSocket(responder, _EVERYWHERE[:1], writer)
        log.info("IPv6 is not served: %s", error.message)
        return udp


def adoptable(entries: Sequence[Entry], state_directory: Path) -> dict[str, Request]:
    """The requests that an earlier life has begun and that go on without it: libvirt migrates by itself."""
    found: dict[str, Request] = {}
    for entry in entries:
        if isinstance(entry, Begun) and entry.cmd is Command.LIVE_MIGRATION and entry.job_id is not None:
            kept = recording.recall(state_directory, entry.job_id)
            if kept is not None and kept.outcome is None:
                found[entry.request_id] = Request(
                    request_id=entry.request_id, agent_ip=entry.agent_ip, cmd=entry.cmd, cmd_arguments=kept.arguments)
        elif isinstance(entry, Ended):
            found.pop(entry.request_id, None)
    return found


def open_responder(
    settings: AgentSettings, journal: Journal, adopted: frozenset[str] = frozenset(),
) -> Responder:
    """The protocol of an agent that starts now, and goes on where its journal ends."""
    now = time.monotonic()
    return Responder(
        Gate(settings.controllers), settings.keys, journal.memory(now, time.time(), adopted), journal.epoch,
        secrets.token_bytes(32), now, str(journal.path))


def _set_niceness(niceness: int) -> int:
    """Give this thread, and those that it starts, that niceness (sched(7)); returns what it was before."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    # Only root may be less nice than before; an agent is root.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, thread, niceness)
    return before


@contextlib.contextmanager
def prompt_answers() -> Iterator[None]:
    """For the length of a `with`, answers do not wait for the work. The loop and the journal's thread begin in it."""
    interval, niceness = sys.getswitchinterval(), _set_niceness(_PROMPT)
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        _set_niceness(niceness)


def _serve(options: argparse.Namespace, manager: ServiceManager) -> bool:
    """Returns whether it leaves its work to the next agent."""
    # Imported here because a node without python3-libvirt is told so in a sentence instead of by a traceback.
    from steps.table import ADOPT, CLEAR, HELLO, SETTLE, STEPS

    if os.geteuid() != 0:
        raise _arguments_invalid("The agent must run as root")

    # Whatever becomes of the working directory.
    directory = config_directory(options.config_dir, __file__).absolute()
    state_directory = Path(options.state_dir).absolute()

    def load() -> AgentSettings:
        return AgentSettings.load(directory, insecure=options.insecure)

    settings = load()
    journal = Journal(state_directory, lambda: secrets.token_hex(8))
    adopted = adoptable(journal.entries, state_directory)
    responder = open_responder(settings, journal, frozenset(adopted))
    writer = JournalWriter(journal)
    try:
        udp = _open_socket(responder, options.listen, writer)
        agent = Agent(settings, udp, HELLO, STEPS, state_directory=state_directory, jobs_limit=options.jobs,
                      alone=Alone(ADOPT, SETTLE, CLEAR), manager=manager)
        agent.go_on(journal.entries, adopted)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: udp.post(agent.stop))
        signal.signal(signal.SIGUSR1, lambda _number, _frame: udp.post(agent.leave))
        signal.signal(signal.SIGHUP, lambda _number, _frame: udp.post(lambda: agent.configure(load)))
        log.info("agent %s serves %s, configured in %s, journal in %s%s", VERSION, udp.addresses(), directory,
                 state_directory, "" if settings.keys else
                 "; INSECURE: no key, any host that can send from a listed address is obeyed")
        try:
            agent.run()
        finally:
            udp.close()
    finally:
        writer.close()
    log.info("ended")
    return agent.leaves


def main(argv: Sequence[str] | None = None) -> int:
    """The command `vmmigration-agent`. Returns its exit code."""
    try:
        options = _arguments(sys.argv[1:] if argv is None else argv)
        configure_logging(verbose=options.verbose)
        manager = ServiceManager.of_environment(os.environ, os.getpid())
        with prompt_answers():
            leaves = _serve(options, manager)
    except MigrationError as error:
        print(f"vmmigration-agent: {error.message}\n  {error.hint}", file=sys.stderr)
        return int(error.exit_code)
    if leaves:
        # Not by way of atexit, which closes the tunnels.
        os._exit(0)
    return 0
