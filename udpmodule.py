"""Datagrams between controller and agent: repeating until answered, and never doing a request twice.

Requester (the controller's side, in wire/exchange.py) and Responder (the agent's) hold the protocol without socket,
clock or thread. Both are driven alike: receive_datagram(), datagrams_to_send(), get_timer(), handle_timer() and
next_event(), with the time passed in. ControllerSocket and AgentSocket are the thin drivers around them, and the only
code of the project that opens a UDP socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import hmac
import logging
import math
import queue
import secrets
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from constant import (
    AGENT_PORT,
    BEGUN_WITHOUT_JOURNAL,
    CHALLENGE_SECONDS,
    CONTROLLER_PORT,
    JOURNAL_ENTRIES_LIMIT,
    LOOK_AFTER_SECONDS,
    NOT_JOURNALED,
    PROGRESS_INTERVAL_SECONDS,
    REPLY_TRANSITIONS,
    START_NOTHING,
    Command,
    MessageType,
)
from wire.access import AddressList, Key
from wire.admission import Gate
from wire.assembly import Assembly
from wire.datagram import Direction, Dropped, keyring, seal_reply, unseal
from wire.errors import ErrorCode, MigrationError
from wire.exchange import BURST, Exchange, GaveUp, Requester
from wire.history import StepState
from wire.memory import Address, Asker, Begun, Ended, Entry, Memory, Remembered
from wire.message import ArgumentsRefusedError, Reply, Request, can_hold, decode
from wire.records import Obstacle, Page, Progress, StatusArguments, StepArguments

log = logging.getLogger(__name__)

# How long a fact of an error is that has to fit a datagram with three others.
_BRIEF = 60
# How often the agent looks whether it is to stop when nothing else wakes it, and a controller on Windows, whose
# select() Ctrl-C does not end, whether that was pressed.
_LOOK_SECONDS = 0.2


# The agent's side.


class Stage(Enum):
    """What has become of a request on its way to being worked on."""

    ARRIVED = auto()
    """It is new and fresh: accept(), refuse() or finish() it."""
    BEGUN = auto()
    """It was accepted, and the journal has it on disk: do the work, then finish() it."""
    NOT_BEGUN = auto()
    """It was accepted, and the journal could not be written: it has been refused."""
    ENDED = auto()
    """Its result is in the journal and on its way."""


@dataclass(frozen=True)
class Event:
    """Something for the agent to do."""

    stage: Stage
    request: Request


@dataclass(frozen=True)
class Write:
    """Entries for the journal; `anew` if they are all that it is to hold from now on."""

    entries: tuple[Entry, ...]
    anew: bool = False


class Responder:
    """The agent's protocol: who is heard, what is fresh, what was asked before and what it was answered.

    Nothing is accepted before its entry has come back from the journal: entries_to_write(), entries_written().
    """

    def __init__(
        self, gate: Gate, keys: Sequence[Key], memory: Memory, epoch: str, secret: bytes, now: float,
        journal_path: str = "",
    ) -> None:
        """`secret` is new at each start: a challenge of an earlier life of this agent is no longer worth anything."""
        self.gate = gate
        self.epoch = epoch
        self._keys = keyring(keys)
        self._memory = memory
        self._secret = secret
        self._journal_path = journal_path
        self._look_after = now + LOOK_AFTER_SECONDS
        self._requests: dict[str, Request] = {}
        self._assembly = Assembly()
        self._appended = 0
        self._unwritten = 0
        self._events: deque[Event] = deque()
        self._writes: deque[Write] = deque()
        self._outgoing: deque[tuple[bytes, Address]] = deque()

    def reconfigure(self, controllers: AddressList, keys: Sequence[Key]) -> None:
        """Hear these from now on, under these keys. What runs goes on, and is asked for under a key that is left."""
        self.gate.sources = controllers
        self._keys = keyring(keys)

    # Freshness.

    def challenge(self, now: float) -> str:
        """What a request must carry to start something during the next CHALLENGE_SECONDS."""
        second = int(now)
        return f"{second}-{hmac.digest(self._secret, str(second).encode(), 'sha256').hex()[:16]}"

    def is_fresh(self, request: Request, now: float) -> bool:
        """Whether it carries this agent's epoch and a challenge that is alive."""
        second = request.challenge.partition("-")[0]
        if request.epoch != self.epoch or not (second.isascii() and second.isdigit() and len(second) < 16):
            return False
        right = hmac.compare_digest(request.challenge.encode(), self.challenge(float(second)).encode())
        return right and 0 <= now - int(second) <= CHALLENGE_SECONDS

    # Receiving.

    def receive_datagram(self, datagram: bytes, address: Address, now: float) -> None:
        """Take one datagram from anywhere; never raises. What is not a sealed request is dropped and counted."""
        self.gate.counters.add("received")
        try:
            self.gate.pass_in(address[0], now)
            key_id, body = unseal(datagram, self._keys, Direction.REQUEST)
            request = decode(body)
            if not isinstance(request, Request):
                raise Dropped("form")
            digest = hashlib.sha256(body).hexdigest()
            if isinstance(request.cmd_arguments, Page):
                digest = request.cmd_arguments.digest
                whole = self._joined(request, request.cmd_arguments, key_id, now)
                if whole is None:
                    return
                request = whole
        except Dropped as reason:
            self.gate.counters.drop(str(reason), *address)
        except ArgumentsRefusedError as refused:
            self._refuse_unknown(refused.envelope, refused.command, refused.error, Asker(address, key_id))
        except ValueError:
            self.gate.counters.drop("form", *address)
        else:
            self._take(request, digest, Asker(address, key_id), now)

    def _joined(self, envelope: Request, page: Page, key_id: str, now: float) -> Request | None:
        """The request that has come with this page. One that was taken before is answered once for all its pages."""
        known = self._memory.find(envelope.request_id) or self._memory.seen(envelope.request_id)
        if known is not None:
            return envelope if page.page == 0 else None
        return self._assembly.add(envelope, page, key_id, now)

    def _take(self, request: Request, digest: str, asker: Asker, now: float) -> None:
        known = self._memory.find(request.request_id)
        seen = known.digest if known else self._memory.seen(request.request_id)
        refusal: ErrorCode | None = None
        if isinstance(request.cmd_arguments, StatusArguments):
            self._answer_status(request, request.cmd_arguments, asker)
        elif seen is not None and seen != digest:
            refusal = ErrorCode.REQUEST_CONFLICT
        elif known is not None:
            self.gate.counters.add("repeated")
            self._send(known, asker)
        elif seen is not None:
            refusal = ErrorCode.REQUEST_EXPIRED
        elif request.cmd not in START_NOTHING and not self.is_fresh(request, now):
            refusal = ErrorCode.REQUEST_STALE
        else:
            self._remember(request, digest, asker, now)
        if refusal is not None:
            facts = {"host": request.agent_ip, "command": request.cmd.value}
            self._refuse_unknown(request, request.cmd, MigrationError(refusal, facts), asker)

    def _remember(self, request: Request, digest: str, asker: Asker, now: float) -> None:
        migration = request.cmd_arguments.migration if isinstance(request.cmd_arguments, StepArguments) else None
        self._memory.add(Remembered(
            request_id=request.request_id, digest=digest, agent_ip=request.agent_ip, cmd=request.cmd,
            asked_by=asker.address[0], changed=now, job_id=migration.job_id if migration else None,
            domain=migration.domain if migration else None, asker=asker))
        self._requests[request.request_id] = request
        self._events.append(Event(Stage.ARRIVED, request))

    def _answer_status(self, request: Request, arguments: StatusArguments, asker: Asker) -> None:
        asked = self._memory.find(arguments.of)
        if asked is not None:
            self._send(asked, asker, arguments.page, request.request_id)
            return
        seen = self._memory.seen(arguments.of)
        code = ErrorCode.REQUEST_UNKNOWN if seen is None else ErrorCode.REQUEST_EXPIRED
        error = MigrationError(code, {"host": request.agent_ip, "command": request.cmd.value})
        self._refuse_unknown(dataclasses.replace(request, request_id=arguments.of), request.cmd, error, asker)

    # Sending.

    def _refuse_unknown(self, request: Request, command: Command, error: MigrationError, asker: Asker) -> None:
        """Refuse what is not remembered, so in one datagram: nobody could ask for a second page."""
        reply = Reply(
            msg_type=MessageType.REFUSED, request_id=request.request_id, agent_ip=request.agent_ip, cmd=command,
            sequence=0, cmd_result=Obstacle.of(error, _BRIEF))
        self._outgoing.append((seal_reply(self._keys[asker.key_id], reply), asker.address))

    def _send(self, known: Remembered, asker: Asker, page: int = 0, status_id: str = "") -> None:
        """Say what is known, to where the question came from; what follows is sent there too."""
        known.asker = asker
        if known.reply is not None:
            reply = dataclasses.replace(known.reply, asked=status_id)
            self._outgoing.append((seal_reply(self._keys[asker.key_id], reply, page), asker.address))

    def _reply(self, known: Remembered, msg_type: MessageType, result: object, now: float) -> None:
        last = known.reply
        if msg_type not in REPLY_TRANSITIONS[last.msg_type if last else MessageType.REQUEST]:
            raise ValueError(f"{known.cmd.value} was answered {last}, {msg_type.value} cannot follow")
        self._memory.answered(known, Reply(
            msg_type=msg_type, request_id=known.request_id, agent_ip=known.agent_ip, cmd=known.cmd,
            sequence=last.sequence + 1 if last else 0, cmd_result=result), now)
        asker = known.asker
        # Its key or address may have been taken away since: it is then asked for under another.
        if asker is not None and asker.key_id in self._keys and asker.address[0] in self.gate.sources:
            self._send(known, asker)

    def datagrams_to_send(self, _now: float) -> list[tuple[bytes, Address]]:
        """What is to be sent now, and where to."""
        datagrams = list(self._outgoing)
        self._outgoing.clear()
        return datagrams

    # What the agent does with a request.

    def next_event(self) -> Event | None:
        """The next thing to do."""
        return self._events.popleft() if self._events else None

    def _known(self, request_id: str) -> Remembered:
        known = self._memory.find(request_id)
        if known is None:
            raise KeyError(request_id)
        return known

    def adopt(self, request: Request) -> None:
        """Take on a request that an earlier life of this agent has begun, and that the memory knows as not ended."""
        self._requests[request.request_id] = request

    def steps_of(self, job_id: str) -> tuple[StepState, ...]:
        """The steps of a job that were begun, and how far they are."""
        return tuple(
            StepState(command=known.cmd, request_id=known.request_id, ended=known.ended, error=_code(known.reply))
            for known in self._memory.of_job(job_id) if known.journaled)

    def asked_by(self, request_id: str) -> str:
        """The address that the request came from."""
        return self._known(request_id).asked_by

    def accept(self, request_id: str, now: float) -> None:
        """Take it on: the event BEGUN follows when the journal has it."""
        known = self._known(request_id)
        known.begun = True
        if known.cmd in NOT_JOURNALED:
            self._begin(known, now)
        else:
            self._write(self._memory.begun(known, now))

    def _begin(self, known: Remembered, now: float) -> None:
        self._reply(known, MessageType.ACCEPTED, None, now)
        self._events.append(Event(Stage.BEGUN, self._requests[known.request_id]))

    def _end(self, known: Remembered, result: object, now: float) -> None:
        self._reply(known, MessageType.RESPONSE, result, now)
        self._events.append(Event(Stage.ENDED, self._requests.pop(known.request_id)))

    def refuse(self, request_id: str, error: MigrationError, now: float) -> None:
        """Say that it will not be worked on."""
        self._requests.pop(request_id, None)
        self._reply(self._known(request_id), MessageType.REFUSED, Obstacle.of(error), now)

    def progress(self, request_id: str, progress: Progress, now: float) -> None:
        """Say how far it is: at most once in PROGRESS_INTERVAL_SECONDS, but each change of phase at once."""
        known = self._known(request_id)
        last = known.reply.cmd_result if known.reply else None
        same_phase = isinstance(last, Progress) and last.phase == progress.phase
        if not (same_phase and now - known.changed < PROGRESS_INTERVAL_SECONDS):
            self._reply(known, MessageType.PROGRESS, progress, now)

    def finish(self, request_id: str, outcome: object, now: float) -> None:
        """Store and send the result: a record, or a MigrationError."""
        known = self._known(request_id)
        result = Obstacle.of(outcome) if isinstance(outcome, MigrationError) else outcome
        if result is None or not can_hold(known.cmd, result):
            reason = f"{known.cmd.value} gave {type(result).__name__} for a result"
            result = Obstacle.of(MigrationError(ErrorCode.INTERNAL, {"host": known.agent_ip, "reason": reason}))
        if known.journaled:
            self._write(self._memory.ended(known, result, now))
        else:
            self._end(known, result, now)

    # The journal.

    def _write(self, entry: Entry) -> None:
        self._writes.append(Write((entry,)))
        self._appended += 1
        self._unwritten += 1

    def entries_to_write(self) -> list[Write]:
        """What is to be written to the journal now, in this order; entries_written() tells how it went."""
        writes = list(self._writes)
        self._writes.clear()
        return writes

    def entries_written(self, write: Write, problem: str | None, now: float) -> None:
        """Take note that it is on disk, or of the reason why it is not: what was to begin is then refused."""
        if write.anew:
            if problem is not None:
                log.error("the journal %s cannot be written anew: %s", self._journal_path, problem)
            return
        self._unwritten -= 1
        for entry in write.entries:
            known = self._memory.find(entry.request_id)
            if known is not None and isinstance(entry, Begun):
                self._begun(known, problem, now)
            elif known is not None and isinstance(entry, Ended):
                if problem is not None:
                    log.error("the end of request %s is not in %s: %s", entry.request_id[:8], self._journal_path,
                              problem)
                self._end(known, entry.cmd_result, now)

    def _begun(self, known: Remembered, problem: str | None, now: float) -> None:
        known.begun = problem is None
        if problem is not None and known.cmd in BEGUN_WITHOUT_JOURNAL:
            log.error("%s is begun although %s cannot be written: %s", known.cmd.value, self._journal_path, problem)
        if problem is None or known.cmd in BEGUN_WITHOUT_JOURNAL:
            self._begin(known, now)
            return
        request = self._requests[known.request_id]
        facts = {"host": known.agent_ip, "path": self._journal_path, "command": known.cmd.value, "reason": problem}
        error = MigrationError(ErrorCode.JOURNAL_NOT_WRITTEN, facts)
        log.error("%s", error)
        self.refuse(known.request_id, error, now)
        self._events.append(Event(Stage.NOT_BEGUN, request))

    def get_timer(self) -> float:
        """When handle_timer() wants to be called."""
        return self._look_after

    def handle_timer(self, now: float) -> None:
        """Once a minute: log the counters, drop what is past its time, and have the journal made shorter."""
        if now < self._look_after:
            return
        self._look_after = now + LOOK_AFTER_SECONDS
        self.gate.counters.log_news()
        self._memory.forget_old(now)
        # Not while an entry is on its way, which the new journal would have to hold as well.
        if self._appended > JOURNAL_ENTRIES_LIMIT and not self._unwritten:
            self._appended = 0
            self._writes.append(Write(self._memory.entries(), anew=True))


# Drivers.


class _Core(Protocol):
    """What both protocols have in common for the code that drives them."""

    def receive_datagram(self, datagram: bytes, address: Address, now: float) -> None:
        """Take a datagram."""

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Give what is to be sent."""

    def get_timer(self) -> float:
        """Give the time of the next handle_timer()."""

    def handle_timer(self, now: float) -> None:
        """Do what is due."""


def _socket(address: str, port: int) -> socket.socket:
    """A UDP socket of the address's family; an IPv6 one leaves IPv4 to another."""
    family = _family(address)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _never_fragment(udp)
        udp.bind((address, port))
    except OSError:
        udp.close()
        raise
    udp.setblocking(False)
    return udp


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _never_fragment(udp: socket.socket) -> None:
    """Have a datagram that is too long for a link dropped instead of cut into fragments (Linux: ip(7), ipv6(7))."""
    if sys.platform == "linux":
        # IP_MTU_DISCOVER and IPV6_MTU_DISCOVER with IP_PMTUDISC_DO; Python has no names for them.
        level, option = (socket.IPPROTO_IPV6, 23) if udp.family == socket.AF_INET6 else (socket.IPPROTO_IP, 10)
        udp.setsockopt(level, option, 2)


def _turn(core: _Core, sockets: Mapping[int, socket.socket], others: Sequence[socket.socket], longest: float) -> None:
    """Wait for a datagram, the next timer or one of `others`, take all that has come, then do and send what is due."""
    patience = min(longest, max(0.0, core.get_timer() - time.monotonic()))
    readable, _, _ = select.select([*sockets.values(), *others], [], [], patience)
    # What has come goes before what is due: after a standstill the answers are there.
    for udp in sockets.values():
        if udp in readable:
            _receive(core, udp)
    core.handle_timer(time.monotonic())
    _send(core, sockets)


def _send(core: _Core, sockets: Mapping[int, socket.socket]) -> None:
    for datagram, address in core.datagrams_to_send(time.monotonic()):
        udp = sockets.get(_family(address[0]))
        # What cannot be sent now counts as lost: it will be asked for again.
        with contextlib.suppress(OSError):
            if udp is not None:
                udp.sendto(datagram, address)


def _receive(core: _Core, udp: socket.socket) -> None:
    """Take what has come, but not for ever: a flood must not keep the timers waiting."""
    for _each in range(BURST):
        try:
            datagram, address = udp.recvfrom(65535)
        except BlockingIOError:
            return
        except OSError:
            # An ICMP error that some systems report here is no reason to end.
            continue
        core.receive_datagram(datagram, (address[0], address[1]), time.monotonic())


class ControllerSocket:
    """Runs a Requester over UDP, in the thread that waits for its answers."""

    def __init__(self, agent_port: int = AGENT_PORT) -> None:
        self._requester = Requester(agent_port, secrets.SystemRandom().random)
        self._sockets: dict[int, socket.socket] = {}

    def _open_socket(self, agent: str) -> None:
        family = _family(agent)
        if family not in self._sockets:
            anywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - replies come from any interface
            try:
                self._sockets[family] = _socket(anywhere, CONTROLLER_PORT)
            except OSError:
                self._sockets[family] = self._any_port(agent, anywhere)

    @staticmethod
    def _any_port(agent: str, anywhere: str) -> socket.socket:
        try:
            return _socket(anywhere, 0)
        except OSError as error:
            facts = {"host": agent, "reason": error.strerror or str(error)}
            raise MigrationError(ErrorCode.ADDRESS_UNUSABLE, facts) from error

    def start(
        self, request: Request, keys: Sequence[Key], patience: float, limit: float = math.inf, *,
        attached: bool = False,
    ) -> Exchange:
        """Begin a request, or follow one that was made before; wait() tells how it ends.

        Raises MigrationError MESSAGE_TOO_LONG or ADDRESS_UNUSABLE.
        """
        self._open_socket(request.agent_ip)
        log.debug("request %s: %s to %s", request.request_id[:8], request.cmd.value, request.agent_ip)
        return self._requester.start(request, keys, time.monotonic(), patience, limit, attached=attached)

    def wait(self, exchange: Exchange, on_progress: Callable[[Progress], None]) -> Reply | GaveUp:
        """Follow one exchange to its end, keeping the others alive. A KeyboardInterrupt passes; then call it again."""
        while True:
            event = self._requester.next_event(exchange)
            if isinstance(event, Reply):
                log.debug("request %s: %s %s", event.request_id[:8], event.msg_type.value, event.cmd_result)
                if isinstance(event.cmd_result, Progress):
                    on_progress(event.cmd_result)
            if exchange.outcome is not None:
                self._requester.end(exchange)
                return exchange.outcome
            if event is None:
                self._wait_once()

    def drop(self, exchange: Exchange) -> Reply | GaveUp | None:
        """Stop following an exchange; returns how it has ended, if it has."""
        self._requester.end(exchange)
        return exchange.outcome

    def _wait_once(self) -> None:
        try:
            _turn(self._requester, self._sockets, (), _LOOK_SECONDS)
        except KeyboardInterrupt:
            # It may have come between taking a timer out and putting it in again.
            self._requester.set_timers_anew()
            raise

    def close(self) -> None:
        """Close the sockets."""
        for udp in self._sockets.values():
            udp.close()


class Journals(Protocol):
    """Where an agent's entries are written; wire.journal.JournalWriter does it on disk."""

    def put(self, entries: Sequence[Entry], done: Callable[[str | None], None], *, anew: bool = False) -> None:
        """Write entries, then call `done` from any thread, with the reason if they could not be written."""


def _code(reply: Reply | None) -> ErrorCode | None:
    error = reply.error() if reply is not None else None
    return error.code if error is not None else None


class AgentSocket:
    """Runs a Responder over UDP. Other threads hand it work with post(); it never waits for anything but datagrams."""

    def __init__(self, responder: Responder, addresses: Sequence[Address], journal: Journals) -> None:
        """Serve these addresses, at most one of IPv4 and one of IPv6. Raises MigrationError LISTEN_FAILED."""
        self.responder = responder
        self._journal = journal
        self._sockets: dict[int, socket.socket] = {}
        for address, port in addresses:
            self._listen(address, port)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def _listen(self, address: str, port: int) -> None:
        try:
            self._sockets[_family(address)] = _socket(address, port)
        except OSError as error:
            for udp in self._sockets.values():
                udp.close()
            facts = {"address": f"{address} port {port}", "reason": error.strerror or str(error)}
            raise MigrationError(ErrorCode.LISTEN_FAILED, facts) from error

    def addresses(self) -> str:
        """What it serves, for the log."""
        return " and ".join(f"{name[0]} port {name[1]}" for name in (
            udp.getsockname() for udp in self._sockets.values()))

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` called in the receive loop's thread. Safe from any thread and from a signal handler."""
        self._posted.put(action)
        # Full: it is awake. Closed: it has ended, and nobody is left to tell.
        with contextlib.suppress(OSError):
            self._wake_sender.send(b"w")

    def serve(
        self, on_event: Callable[[Event], None], stopped: Callable[[], bool], on_turn: Callable[[], None],
    ) -> None:
        """Receive until `stopped()`; what is to be done goes to `on_event`, which must return at once.

        So must `on_turn`, which is called several times a second.
        """
        while not stopped():
            self._guarded(on_turn)
            _turn(self.responder, self._sockets, (self._wake_receiver,), _LOOK_SECONDS)
            with contextlib.suppress(BlockingIOError):
                self._wake_receiver.recv(4096)
            while not self._posted.empty():
                self._guarded(self._posted.get())
            # Before the work begins that has just been accepted: its thread would be first otherwise.
            _send(self.responder, self._sockets)
            while (event := self.responder.next_event()) is not None:
                self._guarded(functools.partial(on_event, event))
            for write in self.responder.entries_to_write():
                self._write(write)
            _send(self.responder, self._sockets)

    def _write(self, write: Write) -> None:
        def written(problem: str | None) -> None:
            self.post(lambda: self.responder.entries_written(write, problem, time.monotonic()))

        self._journal.put(write.entries, written, anew=write.anew)

    @staticmethod
    def _guarded(action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            # What goes wrong with one request must not end the agent for all others.
            log.exception("a request or its result could not be handed on")

    def close(self) -> None:
        """Close the sockets."""
        for each in (*self._sockets.values(), self._wake_receiver, self._wake_sender):
            each.close()
