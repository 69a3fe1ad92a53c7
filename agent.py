"""The agent of a KVM node: authorises a request, runs its step in a thread of its own, and remembers the result."""

from __future__ import annotations

import argparse
import contextvars
import ipaddress
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from constant import (
    AGENT_KEY_FILE,
    AGENT_LIST_FILE,
    AGENT_PORT,
    ANSWERED_AT_ONCE,
    CLEARING,
    CONTROLLER_LIST_FILE,
    DATAGRAM_LIMIT,
    VERSION,
    Command,
    ErrorCode,
    MigrationError,
)
from steps.context import Cancellation, StepContext
from udpmodule import AgentSocket, Responder
from wire.access import AddressList, Key, config_directory, load_keys
from wire.message import Request, from_wire, to_wire
from wire.records import CancelArguments, CheckReport, HostFacts, Progress, StepArguments

log = logging.getLogger(__name__)

# A job that is ended by SIGTERM gets this long to be rolled back by libvirt before the agent leaves.
_STOP_SECONDS = 30.0
# After that its controller wants the result, and to hear how the VM is: a round trip or two, some of them lost.
_LINGER_SECONDS = 4.0
_NO_JOB = ("-", "-")
# What a datagram leaves beside its header (80 bytes at most) and the reply's other fields (220 at most).
_CHECK_REPORT_LIMIT = DATAGRAM_LIMIT - 300
_job: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar("job", default=_NO_JOB)

Step = Callable[[StepContext, StepArguments], object]
Hello = Callable[[StepContext], HostFacts]


class JobFilter(logging.Filter):
    """Puts the job id and the domain that a thread works for into each of its log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the two fields; every record passes."""
        record.job, record.domain = _job.get()
        return True


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
            controllers=AddressList.load(directory / CONTROLLER_LIST_FILE, "management host that this agent obeys"),
            destinations=AddressList.load(directory / AGENT_LIST_FILE, "node that this agent may migrate to"),
            keys=() if insecure else load_keys(directory / AGENT_KEY_FILE),
        )


class Agent:
    """Takes requests from the socket's thread and works on each in its own; the socket never waits for the work."""

    def __init__(
        self, settings: AgentSettings, udp: AgentSocket, hello: Hello, steps: Mapping[Command, Step],
    ) -> None:
        self._settings = settings
        self._udp = udp
        self._hello = hello
        self._steps = steps
        self._cancellations: dict[str, Cancellation] = {}
        self._working: set[threading.Thread] = set()
        self._stop_by: float | None = None
        self._linger_until = 0.0

    def run(self) -> None:
        """Serve until stop() was called and all work has ended, at most _STOP_SECONDS later."""
        self._udp.serve(self.take, self._stopped)

    def stop(self) -> None:
        """Refuse new work and cancel what runs. Called in the receive loop's thread."""
        if self._stop_by is None:
            log.info("stopping; %d job step(s) to end first", len(self._working))
            now = time.monotonic()
            self._stop_by = now + _STOP_SECONDS
            self._linger_until = now + _LINGER_SECONDS if self._working else now
            for cancellation in self._cancellations.values():
                cancellation.reason = "the agent on the source was stopped"

    def _stopped(self) -> bool:
        if self._stop_by is None:
            return False
        now = time.monotonic()
        return now > self._stop_by or (not self._working and now >= self._linger_until)

    def take(self, request: Request) -> None:
        """Accept, answer or refuse one new request. Returns at once."""
        responder, now = self._udp.responder, time.monotonic()
        asked_by = responder.asked_by(request.request_id)
        try:
            if request.cmd in ANSWERED_AT_ONCE:
                responder.finish(request.request_id, self._cancel(request), now)
                return
            arguments = self._arguments(request)
            # What clears up after a job, or asks how it went, is still served: see _LINGER_SECONDS.
            if self._stop_by is not None and request.cmd not in CLEARING | {Command.HELLO}:
                raise MigrationError(ErrorCode.AGENT_STOPPING, {"host": request.agent_ip})
        except MigrationError as error:
            log.warning("refused %s, asked for by %s: %s", request.cmd.value, asked_by, error.message)
            responder.refuse(request.request_id, error, now)
            return
        responder.accept(request.request_id, now)
        cancellation = Cancellation()
        if arguments is not None:
            self._cancellations[arguments.migration.job_id] = cancellation
        worker = threading.Thread(
            target=self._work, args=(request, arguments, asked_by, cancellation), name=request.cmd.value,
            daemon=True)
        self._working.add(worker)
        worker.start()

    def _arguments(self, request: Request) -> StepArguments | None:
        """The checked arguments, None for HELLO. Raises MigrationError."""
        if request.cmd is Command.HELLO:
            return None
        try:
            arguments = from_wire(StepArguments, dict(request.cmd_arguments))
        except ValueError as error:
            facts = {"host": request.agent_ip, "problem": str(error)}
            raise MigrationError(ErrorCode.MESSAGE_INVALID, facts) from error
        if request.agent_ip not in (arguments.migration.source, arguments.migration.destination):
            facts = {"host": request.agent_ip, "problem": "this host is no part of the migration"}
            raise MigrationError(ErrorCode.MESSAGE_INVALID, facts)
        return arguments

    def _cancel(self, request: Request) -> dict[str, bool]:
        """Have the job's running step end. Raises MigrationError MESSAGE_INVALID."""
        try:
            job_id = from_wire(CancelArguments, dict(request.cmd_arguments)).job_id
        except ValueError as error:
            facts = {"host": request.agent_ip, "problem": str(error)}
            raise MigrationError(ErrorCode.MESSAGE_INVALID, facts) from error
        cancellation = self._cancellations.get(job_id)
        log.info("job %s: cancel asked for, %s", job_id, "it runs" if cancellation else "no such job here")
        if cancellation is not None:
            cancellation.reason = "somebody pressed Ctrl-C"
        return {"known": cancellation is not None}

    def _work(
        self, request: Request, arguments: StepArguments | None, asked_by: str, cancellation: Cancellation,
    ) -> None:
        """In a thread of its own: run the step, then hand its result to the receive loop."""
        if arguments is not None:
            _job.set((arguments.migration.job_id, arguments.migration.domain))
        began = time.monotonic()
        log.info("%s asked for by %s", request.cmd.value, asked_by)
        outcome = self._outcome(request, arguments, cancellation)
        if isinstance(outcome, MigrationError):
            log.error("%s failed: %s", request.cmd.value, outcome.message)
        else:
            log.info("%s done in %.2f s", request.cmd.value, time.monotonic() - began)
            for obstacle in getattr(outcome, "obstacles", ()):
                log.info("obstacle: %s", obstacle.error().message)
        thread = threading.current_thread()

        def deliver() -> None:
            self._working.discard(thread)
            if arguments is not None:
                self._cancellations.pop(arguments.migration.job_id, None)
            self._udp.responder.finish(request.request_id, fitting(outcome), time.monotonic())

        self._udp.post(deliver)

    def _outcome(
        self, request: Request, arguments: StepArguments | None, cancellation: Cancellation,
    ) -> object:
        """The step's result or its error; whatever else goes wrong in it is an error of its own code."""
        responder = self._udp.responder
        context = StepContext(
            host=request.agent_ip, epoch=responder.epoch, challenge=responder.challenge(time.monotonic()),
            destinations=self._settings.destinations, cancellation=cancellation,
            progress=lambda progress: self._progress(request.request_id, progress))
        try:
            if arguments is None:
                return self._hello(context)
            return self._steps[request.cmd](context, arguments)
        except MigrationError as error:
            return error
        except Exception as error:
            log.exception("%s ended in an unexpected error", request.cmd.value)
            return MigrationError(ErrorCode.INTERNAL, {"host": request.agent_ip, "reason": repr(error)})

    def _progress(self, request_id: str, progress: Progress) -> None:
        self._udp.post(lambda: self._udp.responder.progress(request_id, progress, time.monotonic()))


def fitting(outcome: object) -> object:
    """The outcome of a step, a CheckReport with as many of its obstacles as a datagram holds."""
    while isinstance(outcome, CheckReport) and len(json.dumps(to_wire(outcome))) > _CHECK_REPORT_LIMIT:
        if not outcome.obstacles:
            break
        outcome = replace(outcome, obstacles=outcome.obstacles[:-1], omitted=outcome.omitted + 1)
    return outcome


def configure_logging(*, verbose: bool) -> None:
    """Log to stderr, each line with the job's id and its domain."""
    handler = logging.StreamHandler()
    handler.addFilter(JobFilter())
    handler.setFormatter(logging.Formatter(
        "%(asctime)s %(levelname)-7s job=%(job)s domain=%(domain)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


def parse_listen(text: str) -> tuple[str, int]:
    """ADDRESS, ADDRESS:PORT, or [ADDRESS]:PORT for IPv6. Raises MigrationError ADDRESS_INVALID."""
    address, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not address.endswith("]")):
        address, port = text, str(AGENT_PORT)
    address = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        number = int(port)
        if not 0 <= number < 65536:
            raise ValueError
        return str(ipaddress.ip_address(address)), number
    except ValueError as error:
        raise MigrationError(ErrorCode.ADDRESS_INVALID, {"what": "--listen", "address": text}) from error


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vmmigration-agent", description="Moves this node's VMs when a controller on the list asks for it.",
        epilog="Started by hand without arguments, or by systemd. It runs in the foreground and logs to stderr.")
    parser.add_argument("--config-dir", metavar="DIR", help="where ControllerIPAddr.txt, AgentIPAddr.txt and "
                        "AgentKey.txt are (default: /etc/vmmigration if it exists, else the script's folder)")
    parser.add_argument("--listen", metavar="ADDRESS[:PORT]", default="0.0.0.0",  # noqa: S104 - lists and key decide
                        help=f"the address to serve (default: all IPv4, port {AGENT_PORT})")
    parser.add_argument("--insecure", action="store_true", help="no key: rely on the IP lists alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"vmmigration-agent {VERSION}")
    return parser.parse_args(argv)


def _serve(options: argparse.Namespace) -> None:
    # Imported here because a node without python3-libvirt is told so in a sentence instead of by a traceback.
    from steps.table import HELLO, STEPS

    if os.geteuid() != 0:
        raise MigrationError(
            ErrorCode.ARGUMENTS_INVALID, {"problem": "The agent must run as root", "program": "vmmigration-agent.py"})

    directory = config_directory(options.config_dir, __file__)
    address, port = parse_listen(options.listen)
    settings = AgentSettings.load(directory, insecure=options.insecure)
    responder = Responder(settings.controllers, settings.keys)
    udp = AgentSocket(responder, address, port)
    agent = Agent(settings, udp, HELLO, STEPS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: udp.post(agent.stop))
    log.info("agent %s serves %s port %d, configured in %s%s", VERSION, address, port, directory,
             "" if settings.keys else "; INSECURE: no key, any host that can send from a listed address is obeyed")
    try:
        agent.run()
    finally:
        udp.close()
    log.info("ended")


def main(argv: Sequence[str] | None = None) -> int:
    """The command `vmmigration-agent`. Returns its exit code."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    configure_logging(verbose=options.verbose)
    try:
        _serve(options)
    except MigrationError as error:
        print(f"vmmigration-agent: {error.message}\n  {error.hint}", file=sys.stderr)
        return int(error.exit_code)
    return 0
