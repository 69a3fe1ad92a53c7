"""Datagrams between controller and agent: sealing, repeating until answered, and never doing a request twice.

Exchange (the controller's side) and Responder (the agent's side) hold the protocol without socket, clock or thread:
the time is passed in, datagrams go in and come out. ControllerSocket and AgentSocket are the thin drivers around
them, and the only code of the project that opens a UDP socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import logging
import math
import queue
import secrets
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from constant import (
    AGENT_PORT,
    CHALLENGE_SECONDS,
    CONTROLLER_PORT,
    DATAGRAM_LIMIT,
    PROGRESS_INTERVAL_SECONDS,
    REPLY_TRANSITIONS,
    RETRY_FIRST_SECONDS,
    RETRY_JITTER,
    RETRY_LONGEST_SECONDS,
    START_NOTHING,
    Command,
    ErrorCode,
    MessageType,
    MigrationError,
)
from wire.access import AddressList, Key
from wire.message import Reply, Request, decode, encode, from_wire, to_wire
from wire.records import Obstacle, Progress

log = logging.getLogger(__name__)

Address = tuple[str, int]

MAGIC = b"VMM1"
NO_KEY = "-"
_LOG_COUNTERS_SECONDS = 60.0
# How often the agent looks whether it is to stop when nothing else wakes it.
_LOOK_SECONDS = 1.0
_RESULTS_KEPT_SECONDS = 24 * 3600.0


# Sealing.


class Direction(bytes, Enum):
    """Part of what the MAC covers, so that a request cannot be sent back as a reply, nor the reverse."""

    REQUEST = b"request\n"
    REPLY = b"reply\n"


class Dropped(Exception):  # noqa: N818 - not an error: it is the ordinary fate of a stranger's datagram
    """A datagram that gets no answer; the argument is the reason it is counted under."""


def _mac(key: Key, direction: Direction, body: bytes) -> bytes:
    return hmac.new(key.secret, direction.value + body, "sha256").hexdigest().encode()


def seal(key: Key | None, direction: Direction, body: bytes) -> bytes:
    """Put the header line before `body`; without a key (--insecure) it carries none."""
    if key is None:
        return b"%b - -\n%b" % (MAGIC, body)
    return b"%b %b %b\n%b" % (MAGIC, key.id.encode(), _mac(key, direction, body), body)


def unseal(datagram: bytes, keys: Mapping[str, Key | None], direction: Direction) -> tuple[str, bytes]:
    """The key id and the body of a datagram whose MAC is right; nothing of the body is looked at before.

    `keys` is by key id; under NO_KEY it holds None if unsealed datagrams are allowed. Raises Dropped.
    """
    if len(datagram) > DATAGRAM_LIMIT:
        raise Dropped("size")
    header, newline, body = datagram.partition(b"\n")
    parts = header.split(b" ")
    if not newline or len(parts) != 3 or parts[0] != MAGIC:
        raise Dropped("form")
    key_id = parts[1].decode("ascii", "replace")
    if key_id not in keys:
        raise Dropped("key")
    key = keys[key_id]
    expected = b"-" if key is None else _mac(key, direction, body)
    if not hmac.compare_digest(parts[2], expected):
        raise Dropped("mac")
    return key_id, body


def keyring(keys: Sequence[Key]) -> dict[str, Key | None]:
    """The keys by their id; no key at all means that unsealed datagrams are allowed."""
    return {key.id: key for key in keys} if keys else {NO_KEY: None}


# The controller's side of one request.


@dataclass(frozen=True)
class GaveUp:
    """The event that ends an Exchange which the agent did not: it was silent for too long, or it is overdue."""

    answered: bool
    """Whether the agent still answered: then it is the step that hangs."""


class Exchange:
    """One request to one agent, from the first send to its result, whatever the network loses on the way."""

    def __init__(
        self, request: Request, keys: Sequence[Key], now: float, patience: float, random: Callable[[], float],
        limit: float = math.inf,
    ) -> None:
        """`patience` is for how many seconds of silence to go on, `limit` for how many altogether.

        `random` gives numbers from 0 to 1.
        """
        self._overdue_at = now + limit
        self.request = request
        self._keys = keyring(keys)
        self._key = keys[0] if keys else None
        self._patience = patience
        self._random = random
        self._heard = now
        self._wait = RETRY_FIRST_SECONDS
        self._next_send = now
        self._sequence = -1
        self._state = MessageType.REQUEST
        self._events: deque[Reply | GaveUp] = deque()
        datagram = self._sealed(request)
        if len(datagram) > DATAGRAM_LIMIT:
            facts = {"what": request.cmd.value, "host": request.agent_ip, "size": str(len(datagram))}
            raise MigrationError(ErrorCode.MESSAGE_TOO_LONG, {**facts, "limit": str(DATAGRAM_LIMIT)})
        self._first = datagram

    def _sealed(self, request: Request) -> bytes:
        return seal(self._key, Direction.REQUEST, encode(request))

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        return not REPLY_TRANSITIONS[self._state]

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """What is due now: the request itself until it was accepted, then STATUS about it."""
        if self.ended or now < self._next_send:
            return []
        self._next_send = now + self._wait * (1 + (RETRY_JITTER - 1) * self._random())
        self._wait = min(self._wait * 2, RETRY_LONGEST_SECONDS)
        if self._state is MessageType.REQUEST:
            return [self._first]
        status = Request(
            request_id=secrets.token_hex(16), agent_ip=self.request.agent_ip, cmd=Command.STATUS,
            cmd_arguments={"of": self.request.request_id})
        return [self._sealed(status)]

    def get_timer(self) -> float:
        """When handle_timer() wants to be called."""
        return min(self._next_send, self._heard + self._patience, self._overdue_at)

    def handle_timer(self, now: float) -> None:
        """Give up if the agent has been silent for too long, or has not come to an end in time."""
        if not self.ended and now >= min(self._heard + self._patience, self._overdue_at):
            answered = self._state is not MessageType.REQUEST and now < self._heard + self._patience
            self._state = MessageType.REFUSED
            self._events.append(GaveUp(answered))

    def receive_datagram(self, datagram: bytes, now: float) -> bool:
        """Take a datagram if it answers this request; anything else is left alone. True if it did."""
        try:
            reply = decode(unseal(datagram, self._keys, Direction.REPLY)[1])
        except (Dropped, ValueError):
            return False
        if not isinstance(reply, Reply) or reply.request_id != self.request.request_id:
            return False
        next_state = reply.msg_type in REPLY_TRANSITIONS[self._state] and reply.sequence > self._sequence
        if next_state or self._forgotten(reply):
            self._sequence = reply.sequence
            self._state = reply.msg_type
            self._events.append(reply)
        elif reply.sequence != self._sequence:
            # An old reply that was overtaken says nothing of how the agent is now.
            return True
        self._heard = now
        self._wait = RETRY_FIRST_SECONDS
        self._next_send = now + self._wait * (1 + (RETRY_JITTER - 1) * self._random())
        return True

    def _forgotten(self, reply: Reply) -> bool:
        """Whether an agent that had accepted the request knows nothing of it any more: it was started anew."""
        if self._state is MessageType.REQUEST or reply.msg_type is not MessageType.REFUSED or self.ended:
            return False
        error = reply.error()
        return error is not None and error.code is ErrorCode.REQUEST_UNKNOWN

    def next_event(self) -> Reply | GaveUp | None:
        """What has happened since the last call, one at a time."""
        return self._events.popleft() if self._events else None


# The agent's side of all requests.


@dataclass
class _Entry:
    """What the agent remembers of one request."""

    request: Request
    digest: bytes
    address: Address
    key_id: str
    reply: Reply | None = None
    changed: float = 0.0


class Responder:
    """The agent's protocol: who is heard, what is fresh, what was asked before and what it was answered."""

    def __init__(self, controllers: AddressList, keys: Sequence[Key]) -> None:
        self._controllers = controllers
        self._keys = keyring(keys)
        self._secret = secrets.token_bytes(32)
        self.epoch = secrets.token_hex(8)
        self.counters: Counter[str] = Counter()
        self._entries: dict[str, _Entry] = {}
        self._events: deque[Request] = deque()
        self._outgoing: deque[tuple[bytes, Address]] = deque()

    def challenge(self, now: float) -> str:
        """What a request must carry to start something during the next CHALLENGE_SECONDS."""
        second = int(now)
        return f"{second}-{hmac.new(self._secret, str(second).encode(), 'sha256').hexdigest()[:16]}"

    def _fresh(self, request: Request, now: float) -> bool:
        second = request.challenge.partition("-")[0]
        if request.epoch != self.epoch or not (second.isascii() and second.isdigit() and len(second) < 16):
            return False
        right = hmac.compare_digest(request.challenge.encode(), self.challenge(float(second)).encode())
        return right and 0 <= now - int(second) <= CHALLENGE_SECONDS

    def receive_datagram(self, datagram: bytes, address: Address, now: float) -> None:
        """Take one datagram from anywhere; never raises. What is not a sealed request is dropped and counted."""
        self.counters["received"] += 1
        try:
            if address[0] not in self._controllers:
                raise Dropped("source")
            key_id, body = unseal(datagram, self._keys, Direction.REQUEST)
            request = decode(body)
            if not isinstance(request, Request):
                raise Dropped("form")
        except Dropped as reason:
            self._drop(str(reason), address)
            return
        except ValueError:
            self._drop("form", address)
            return
        self._take(_Entry(request, hashlib.sha256(body).digest(), address, key_id), now)

    def _drop(self, reason: str, address: Address) -> None:
        name = f"dropped: {reason}"
        if not self.counters[name]:
            # The first of each kind at once, for the admin who is just setting things up.
            log.warning("%s: a datagram from %s port %d; more of them are counted", name, *address)
        self.counters[name] += 1

    def _take(self, entry: _Entry, now: float) -> None:
        request = entry.request
        known = self._entries.get(request.request_id)
        if request.cmd is Command.STATUS:
            self._answer_status(entry)
        elif known is not None and known.digest != entry.digest:
            self._refuse(entry, ErrorCode.REQUEST_CONFLICT)
        elif known is not None:
            self.counters["repeated"] += 1
            self._send_again(known, entry)
        elif request.cmd not in START_NOTHING and not self._fresh(request, now):
            self._refuse(entry, ErrorCode.REQUEST_STALE)
        else:
            self._forget_old(now)
            self._entries[request.request_id] = entry
            self._events.append(request)

    def _answer_status(self, entry: _Entry) -> None:
        asked = self._entries.get(str(entry.request.cmd_arguments.get("of")))
        if asked is None:
            of = str(entry.request.cmd_arguments.get("of"))[:64]
            self._refuse(dataclasses.replace(entry, request=dataclasses.replace(entry.request, request_id=of)),
                         ErrorCode.REQUEST_UNKNOWN)
        else:
            self._send_again(asked, entry)

    def _send_again(self, known: _Entry, asking: _Entry) -> None:
        """Answer with what is known, to where the question came from, and send what follows there too."""
        known.address, known.key_id = asking.address, asking.key_id
        if known.reply is not None:
            self._send(known)

    def _refuse(self, entry: _Entry, code: ErrorCode) -> None:
        facts = {"host": entry.request.agent_ip, "command": entry.request.cmd.value}
        self._reply(entry, MessageType.REFUSED, {"error": to_wire(Obstacle(code, facts))}, 0.0)

    def _forget_old(self, now: float) -> None:
        """Drop results past their time. A held-back copy of such a request is not fresh any more, so cannot run."""
        old = [
            request_id for request_id, entry in self._entries.items()
            if entry.reply is not None and not REPLY_TRANSITIONS[entry.reply.msg_type]
            and now - entry.changed > _RESULTS_KEPT_SECONDS
        ]
        for request_id in old:
            del self._entries[request_id]

    def _reply(self, entry: _Entry, msg_type: MessageType, result: Mapping[str, Any], now: float) -> None:
        sequence = entry.reply.sequence + 1 if entry.reply else 0
        request = entry.request
        entry.reply = Reply(msg_type, request.request_id, request.agent_ip, request.cmd, result, sequence)
        entry.changed = now
        self._send(entry)

    def _send(self, entry: _Entry) -> None:
        if entry.reply is None:
            return
        datagram = seal(self._keys[entry.key_id], Direction.REPLY, encode(entry.reply))
        if len(datagram) > DATAGRAM_LIMIT:
            what = f"answer to {entry.request.cmd.value}"
            facts = {"what": what, "host": entry.request.agent_ip, "size": str(len(datagram))}
            facts["limit"] = str(DATAGRAM_LIMIT)
            error = {"error": to_wire(Obstacle(ErrorCode.MESSAGE_TOO_LONG, facts))}
            entry.reply = dataclasses.replace(entry.reply, cmd_result=error)
            datagram = seal(self._keys[entry.key_id], Direction.REPLY, encode(entry.reply))
        self._outgoing.append((datagram, entry.address))

    def next_event(self) -> Request | None:
        """The next request that nobody has answered yet: accept(), refuse() or finish() it."""
        return self._events.popleft() if self._events else None

    def asked_by(self, request_id: str) -> str:
        """The address that the request came from."""
        return self._entries[request_id].address[0]

    def accept(self, request_id: str, now: float) -> None:
        """Say that the work of this request has begun."""
        self._reply(self._entries[request_id], MessageType.ACCEPTED, {}, now)

    def refuse(self, request_id: str, error: MigrationError, now: float) -> None:
        """Say that this request will not be worked on."""
        self._reply(self._entries[request_id], MessageType.REFUSED, _error_result(error), now)

    def progress(self, request_id: str, progress: Progress, now: float) -> None:
        """Say how far it is: at most once in PROGRESS_INTERVAL_SECONDS, but each change of phase at once."""
        entry = self._entries[request_id]
        last = entry.reply
        same_phase = last is not None and last.cmd_result.get("phase") == progress.phase
        if same_phase and now - entry.changed < PROGRESS_INTERVAL_SECONDS:
            return
        self._reply(entry, MessageType.PROGRESS, to_wire(progress), now)

    def finish(self, request_id: str, outcome: object, now: float) -> None:
        """Store and send the result: a record of constant.py, or a MigrationError."""
        result = _error_result(outcome) if isinstance(outcome, MigrationError) else {"value": to_wire(outcome)}
        self._reply(self._entries[request_id], MessageType.RESPONSE, result, now)

    def datagrams_to_send(self) -> list[tuple[bytes, Address]]:
        """What is to be sent now, and where to."""
        datagrams = list(self._outgoing)
        self._outgoing.clear()
        return datagrams


def _error_result(error: MigrationError) -> dict[str, Any]:
    # Cut so that any one error fits a datagram: at most eight facts, and a libvirt message says the essential first.
    facts = {name: value if len(value) <= 400 else value[:399] + "…" for name, value in error.facts.items()}
    return {"error": to_wire(Obstacle(error.code, facts))}


# Drivers.


def _socket(family: int, address: str, port: int) -> socket.socket:
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        udp.bind((address, port))
    except OSError:
        udp.close()
        raise
    udp.setblocking(False)
    return udp


def _receive(udp: socket.socket) -> tuple[bytes, Address] | None:
    """The next datagram, None if there is none. An ICMP error that some systems report here is no reason to end."""
    try:
        datagram, address = udp.recvfrom(65535)
    except (BlockingIOError, ConnectionError):
        return None
    return datagram, (address[0], address[1])


def _send(udp: socket.socket, datagram: bytes, address: Address) -> None:
    # What cannot be sent now counts as lost: it will be asked for again.
    with contextlib.suppress(OSError):
        udp.sendto(datagram, address)


class ControllerSocket:
    """Runs Exchanges over UDP for a controller, in the thread that waits for them."""

    def __init__(self, agent_port: int = AGENT_PORT, clock: Callable[[], float] = time.monotonic) -> None:
        self._agent_port = agent_port
        self._clock = clock
        self._random = secrets.SystemRandom().random
        self._sockets: dict[int, socket.socket] = {}
        self._running: list[Exchange] = []

    def _socket_for(self, agent: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in agent else socket.AF_INET
        if family not in self._sockets:
            anywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - replies come from any interface
            try:
                self._sockets[family] = _socket(family, anywhere, CONTROLLER_PORT)
            except OSError:
                self._sockets[family] = _socket(family, anywhere, 0)
        return self._sockets[family]

    def start(self, request: Request, keys: Sequence[Key], patience: float, limit: float = math.inf) -> Exchange:
        """Begin a request; wait() follows it. Raises MigrationError MESSAGE_TOO_LONG."""
        exchange = Exchange(request, keys, self._clock(), patience, self._random, limit)
        log.debug("request %s: %s to %s", request.request_id[:8], request.cmd.value, request.agent_ip)
        self._running.append(exchange)
        self._socket_for(request.agent_ip)
        return exchange

    def wait(self, exchange: Exchange, on_progress: Callable[[Progress], None]) -> Reply | GaveUp:
        """Follow one exchange to its end, keeping the others alive. A KeyboardInterrupt passes; then call it again."""
        while True:
            event = exchange.next_event()
            if isinstance(event, Reply):
                log.debug("request %s: %s %s", event.request_id[:8], event.msg_type.value, dict(event.cmd_result))
            if isinstance(event, GaveUp) or (event is not None and not REPLY_TRANSITIONS[event.msg_type]):
                self._running.remove(exchange)
                return event
            if event is not None and event.msg_type is MessageType.PROGRESS:
                with contextlib.suppress(ValueError):
                    on_progress(from_wire(Progress, dict(event.cmd_result)))
            if event is None:
                self._turn()

    def _turn(self) -> None:
        """Send what is due, then wait for a datagram or the next timer."""
        for exchange in self._running:
            now = self._clock()
            exchange.handle_timer(now)
            for datagram in exchange.datagrams_to_send(now):
                agent = exchange.request.agent_ip
                _send(self._socket_for(agent), datagram, (agent, self._agent_port))
        timer = min((exchange.get_timer() for exchange in self._running if not exchange.ended), default=self._clock())
        readable, _, _ = select.select(list(self._sockets.values()), [], [], max(0.0, timer - self._clock()))
        for udp in readable:
            received = _receive(udp)
            if received is not None:
                any(exchange.receive_datagram(received[0], self._clock()) for exchange in self._running)

    def close(self) -> None:
        """Close the sockets."""
        for udp in self._sockets.values():
            udp.close()


class AgentSocket:
    """Runs a Responder over UDP. Other threads hand it work with post(); it never waits for anything but datagrams."""

    def __init__(self, responder: Responder, address: str, port: int) -> None:
        """Raises MigrationError LISTEN_FAILED."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._udp = _socket(family, address, port)
        except OSError as error:
            facts = {"address": f"{address} port {port}", "reason": error.strerror or str(error)}
            raise MigrationError(ErrorCode.LISTEN_FAILED, facts) from error
        self.responder = responder
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` called in the receive loop's thread. Safe from any thread and from a signal handler."""
        self._posted.put(action)
        with contextlib.suppress(BlockingIOError):
            self._wake_sender.send(b"w")

    def serve(self, on_request: Callable[[Request], None], stopped: Callable[[], bool]) -> None:
        """Receive until `stopped()`; each new request goes to `on_request`, which must return at once."""
        counted, log_at = Counter[str](), time.monotonic() + _LOG_COUNTERS_SECONDS
        while not stopped():
            readable, _, _ = select.select([self._udp, self._wake_receiver], [], [], _LOOK_SECONDS)
            if self._wake_receiver in readable:
                self._wake_receiver.recv(4096)
            while not self._posted.empty():
                self._run_posted(self._posted.get())
            if self._udp in readable:
                received = _receive(self._udp)
                if received is not None:
                    self.responder.receive_datagram(*received, time.monotonic())
            while (request := self.responder.next_event()) is not None:
                on_request(request)
            for datagram, address in self.responder.datagrams_to_send():
                _send(self._udp, datagram, address)
            if time.monotonic() >= log_at:
                counted, log_at = self._log_counters(counted), time.monotonic() + _LOG_COUNTERS_SECONDS

    @staticmethod
    def _run_posted(action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            # One answer that cannot be sent must not end the agent for all others.
            log.exception("a result could not be handed on")

    def _log_counters(self, last: Counter[str]) -> Counter[str]:
        now = Counter(self.responder.counters)
        if any(name.startswith("dropped") for name in now - last):
            log.warning("datagrams so far: %s", ", ".join(f"{name} {count}" for name, count in sorted(now.items())))
        return now

    def close(self) -> None:
        """Close the sockets."""
        for each in (self._udp, self._wake_receiver, self._wake_sender):
            each.close()
