"""A controller's requests, each from its first datagram to its result: repeated until it is answered, followed by
STATUS until it has ended, and its result put together from pages where it is long.

Without socket, clock or thread: the time is passed in, datagrams go in and come out.
"""

from __future__ import annotations

import heapq
import itertools
import math
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from constant import (
    REPLY_TRANSITIONS,
    RETRY_FIRST_SECONDS,
    RETRY_JITTER,
    RETRY_LONGEST_SECONDS,
    Command,
    MessageType,
)
from wire.access import Key
from wire.datagram import Direction, Dropped, Keyring, Pages, keyring, seal_request, unseal
from wire.errors import ErrorCode
from wire.memory import Address
from wire.message import Reply, Request, decode
from wire.records import Obstacle, Page, StatusArguments

# How many datagrams go out before what has come in is looked at: that many answers fit a socket's buffer.
BURST = 32
# How many pages of a long result are asked for at once.
_PAGES_AT_ONCE = 8


@dataclass(frozen=True)
class GaveUp:
    """The event that ends an Exchange which the agent did not: it was silent for too long, or it is overdue."""

    answered: bool
    """Whether the agent still answered: then it is the step that hangs."""


def _opened(datagram: bytes, keys: Keyring) -> tuple[str, Reply | None]:
    """The reply in a datagram, with the id of the key that it is sealed with; None for anything else."""
    try:
        key_id, body = unseal(datagram, keys, Direction.REPLY)
        reply = decode(body)
    except (Dropped, ValueError):
        return "", None
    return key_id, reply if isinstance(reply, Reply) else None


class Exchange:
    """One request to one agent, from the first send to its result, whatever the network loses on the way."""

    def __init__(
        self, request: Request, keys: Sequence[Key], now: float, patience: float, random: Callable[[], float],
        limit: float = math.inf, *, attached: bool = False,
    ) -> None:
        """`patience` is for how many seconds of silence to go on, `limit` for how many altogether.

        `attached`, it only asks what has become of a request that somebody else has made.

        `random` gives numbers from 0 to 1. Raises MigrationError MESSAGE_TOO_LONG.
        """
        self.request = request
        self.keys = keyring(keys)
        self._key = keys[0] if keys else None
        self._overdue_at = now + limit
        self._patience = patience
        self._random = random
        self._heard = now
        self._wait = RETRY_FIRST_SECONDS
        self._next_send = now
        self._sequence = -1
        self._state = MessageType.ACCEPTED if attached else MessageType.REQUEST
        self._last: Reply | None = None
        self._pages = Pages()
        self._asked: set[int] = set()
        self._statuses: deque[str] = deque(maxlen=4 * _PAGES_AT_ONCE)
        self._events: deque[Reply | GaveUp] = deque()
        self.outcome: Reply | GaveUp | None = None
        """How it ended, which is also its last event."""
        self.ended_at = math.inf
        """When that was known here."""
        self._first = seal_request(self._key, request)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        return not REPLY_TRANSITIONS[self._state]

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """What is due now: the request itself until it was accepted, then STATUS about it, page by page."""
        if self.ended or now < self._next_send:
            return []
        self._next_send = now + self._wait * (1 + (RETRY_JITTER - 1) * self._random())
        self._wait = min(self._wait * 2, RETRY_LONGEST_SECONDS)
        if self._state is MessageType.REQUEST and self._last is None:
            return list(self._first)
        self._asked = set(self._pages.missing()[:_PAGES_AT_ONCE])
        return [self._status(page) for page in sorted(self._asked) or [0]]

    def _status(self, page: int) -> bytes:
        self._statuses.append(secrets.token_hex(16))
        return seal_request(self._key, Request(
            request_id=self._statuses[-1], agent_ip=self.request.agent_ip, cmd=Command.STATUS,
            cmd_arguments=StatusArguments(of=self.request.request_id, page=page)))[0]

    def get_timer(self) -> float:
        """When handle_timer() wants to be called."""
        return min(self._next_send, self._heard + self._patience, self._overdue_at)

    def handle_timer(self, now: float) -> None:
        """Give up if the agent has been silent for too long, or has not come to an end in time."""
        late = now - self.get_timer()
        if late > RETRY_LONGEST_SECONDS:
            # Nobody asked or listened meanwhile: this process was stopped, or its host slept.
            self._heard += late
            self._overdue_at += late
        if not self.ended and now >= min(self._heard + self._patience, self._overdue_at):
            answered = self._last is not None and now < self._heard + self._patience
            self._happened(GaveUp(answered), MessageType.REFUSED, now)

    def _happened(self, event: Reply | GaveUp, state: MessageType, now: float) -> None:
        """Change the state. In an order that loses nothing if Ctrl-C comes in between."""
        if not REPLY_TRANSITIONS[state]:
            self.outcome, self.ended_at = event, now
        self._events.append(event)
        self._state = state

    def receive_datagram(self, datagram: bytes, now: float) -> bool:
        """Take a datagram if it answers this request; anything else is left alone. True if it did."""
        _, reply = _opened(datagram, self.keys)
        if reply is None or reply.request_id != self.request.request_id:
            return False
        self.receive_reply(reply, now)
        return True

    def receive_reply(self, reply: Reply, now: float) -> None:
        """Take a reply to this request that has come under one of its keys."""
        if not self._is_news(reply):
            # Only the answer to a question of ours says that the agent is there now; any other may be a recording.
            if reply.asked in self._statuses:
                self._statuses.remove(reply.asked)
                self._wait_from(now)
            return
        self._last, self._sequence = reply, reply.sequence
        self._wait_from(now)
        if isinstance(reply.cmd_result, Page):
            self._take_page(reply, reply.cmd_result, now)
        else:
            self._happened(reply, reply.msg_type, now)

    def _is_news(self, reply: Reply) -> bool:
        """Whether it says something that is not known yet. An end is that whatever its number."""
        if reply.msg_type not in REPLY_TRANSITIONS[self._state]:
            return self._forgotten(reply)
        if isinstance(reply.cmd_result, Page):
            return self._pages.lacks(reply.cmd_result)
        return not REPLY_TRANSITIONS[reply.msg_type] or reply.sequence > self._sequence

    def _forgotten(self, reply: Reply) -> bool:
        """Whether an agent that had accepted the request knows nothing of it any more: its journal was lost."""
        if self.ended or reply.msg_type is not MessageType.REFUSED or not isinstance(reply.cmd_result, Obstacle):
            return False
        return reply.cmd_result.code in (ErrorCode.REQUEST_UNKNOWN, ErrorCode.REQUEST_EXPIRED)

    def _wait_from(self, now: float) -> None:
        self._heard = now
        self._wait = RETRY_FIRST_SECONDS
        self._next_send = now + self._wait * (1 + (RETRY_JITTER - 1) * self._random())

    def _take_page(self, reply: Reply, page: Page, now: float) -> None:
        self._pages.add(page)
        self._asked.discard(page.page)
        if self._pages.complete():
            self._happened(self._pages.joined(reply), reply.msg_type, now)
        elif not self._asked:
            self._next_send = now

    def next_event(self) -> Reply | GaveUp | None:
        """What has happened since the last call, one at a time."""
        return self._events.popleft() if self._events else None


# All requests of a controller.


class Requester:
    """The controller's protocol: any number of Exchanges at once, each with an agent of its own."""

    def __init__(self, agent_port: int, random: Callable[[], float]) -> None:
        self._agent_port = agent_port
        self._random = random
        # By agent; ids of keys are short, and with a thousand agents two may be the same.
        self._keys: dict[str, dict[str, Key | None]] = {}
        self._all_keys: dict[str, Key | None] = {}
        self._exchanges: dict[str, Exchange] = {}
        # When to look at which exchange; one that has moved its timer is put in again, so that entries may be stale.
        self._timers: list[tuple[float, int, Exchange]] = []
        self._order = itertools.count()
        self._ready: deque[Exchange] = deque()

    def start(
        self, request: Request, keys: Sequence[Key], now: float, patience: float, limit: float = math.inf, *,
        attached: bool = False,
    ) -> Exchange:
        """Begin a request, or follow one that was made before. Raises MigrationError MESSAGE_TOO_LONG."""
        exchange = Exchange(request, keys, now, patience, self._random, limit, attached=attached)
        self._keys[request.agent_ip] = exchange.keys
        self._all_keys.update(exchange.keys)
        self._exchanges[request.request_id] = exchange
        self._set_timer(exchange)
        return exchange

    def end(self, exchange: Exchange) -> None:
        """Forget an exchange; what comes for it later is left alone."""
        self._exchanges.pop(exchange.request.request_id, None)

    def _set_timer(self, exchange: Exchange) -> None:
        heapq.heappush(self._timers, (exchange.get_timer(), next(self._order), exchange))

    def set_timers_anew(self) -> None:
        """Look at every exchange, whatever has become of its timer."""
        self._ready.clear()
        self._timers = []
        for exchange in self._exchanges.values():
            self._set_timer(exchange)

    def receive_datagram(self, datagram: bytes, address: Address, now: float) -> None:
        """Give a datagram to the exchange that it answers, if its key is one of that agent's; never raises."""
        # An agent with several addresses may answer from another one.
        keys = self._keys.get(address[0], self._all_keys)
        key_id, reply = _opened(datagram, keys)
        exchange = self._exchanges.get(reply.request_id) if reply is not None else None
        if exchange is None or reply is None:
            return
        if key_id not in exchange.keys or exchange.keys[key_id] != keys[key_id]:
            return
        exchange.receive_reply(reply, now)
        if not exchange.ended:
            self._set_timer(exchange)

    def get_timer(self) -> float:
        """When handle_timer() wants to be called; infinity if nothing is to be waited for."""
        if self._ready:
            return -math.inf
        return self._timers[0][0] if self._timers else math.inf

    def handle_timer(self, now: float) -> None:
        """Let the exchanges whose time has come give up or send; those that are left get their turn next time."""
        while self._timers and self._timers[0][0] <= now:
            exchange = heapq.heappop(self._timers)[2]
            if exchange.request.request_id in self._exchanges and not exchange.ended and exchange.get_timer() <= now:
                exchange.handle_timer(now)
                self._ready.append(exchange)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """What is to be sent now, and where to: not all at once, so that the answers can be taken in between."""
        found: list[tuple[bytes, Address]] = []
        while self._ready and len(found) < BURST:
            exchange = self._ready.popleft()
            address = (exchange.request.agent_ip, self._agent_port)
            found += [(datagram, address) for datagram in exchange.datagrams_to_send(now)]
            if not exchange.ended:
                self._set_timer(exchange)
        return found

    def next_event(self, exchange: Exchange) -> Reply | GaveUp | None:
        """What has happened to this exchange since the last call, one at a time."""
        return exchange.next_event()
