"""The bytes of one datagram: a header line with the MAC, a message below it, and pages where a message is longer.

Nothing is read of a datagram before its MAC is right. The limit holds for every datagram that is sent or taken.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum

from constant import DATAGRAM_LIMIT, PAGES_LIMIT, REQUEST_PAGES_LIMIT
from wire.access import Key
from wire.errors import ErrorCode, MigrationError
from wire.message import Reply, Request, encode, encode_result, read_json, with_result
from wire.phrase import Phrase
from wire.records import Obstacle, Page

MAGIC = b"VMM1"
NO_KEY = "-"
Keyring = Mapping[str, "Key | None"]


class Direction(bytes, Enum):
    """Part of what the MAC covers, so that a request cannot be sent back as a reply, nor the reverse."""

    REQUEST = b"request\n"
    REPLY = b"reply\n"


class Dropped(Exception):  # noqa: N818 - not an error: it is the ordinary fate of a stranger's datagram
    """A datagram that gets no answer; the argument is the reason it is counted under."""


# Sealing.


def _mac(key: Key, direction: Direction, body: bytes) -> bytes:
    return hmac.digest(key.secret, direction.value + body, "sha256").hex().encode()


def seal(key: Key | None, direction: Direction, body: bytes) -> bytes:
    """Put the header line before `body`; without a key (--insecure) it carries none."""
    if key is None:
        return b"%b - -\n%b" % (MAGIC, body)
    return b"%b %b %b\n%b" % (MAGIC, key.id.encode(), _mac(key, direction, body), body)


def unseal(datagram: bytes, keys: Keyring, direction: Direction) -> tuple[str, bytes]:
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


# Requests of any length.


def seal_request(key: Key | None, request: Request) -> tuple[bytes, ...]:
    """The datagram of a request, or its pages, which carry the same body, where one does not hold it.

    Raises MigrationError MESSAGE_TOO_LONG.
    """
    body = encode(request)
    datagram = seal(key, Direction.REQUEST, body)
    if len(datagram) <= DATAGRAM_LIMIT:
        return (datagram,)
    text = body.decode()
    # The longest that anything in it can be; epoch and challenge are in the body.
    emptiest = replace(
        request, epoch="", challenge="",
        cmd_arguments=Page(page=PAGES_LIMIT - 1, pages=PAGES_LIMIT, digest=_digest(text), part=""))
    parts = _cut(text, DATAGRAM_LIMIT - len(seal(key, Direction.REQUEST, encode(emptiest))))
    if len(parts) > REQUEST_PAGES_LIMIT:
        limit = sum(len(part.encode()) for part in parts[:REQUEST_PAGES_LIMIT])
        facts = {"what": request.cmd.value, "host": request.agent_ip, "size": str(len(body)), "limit": str(limit)}
        raise MigrationError(ErrorCode.MESSAGE_TOO_LONG, facts)
    return tuple(
        seal(key, Direction.REQUEST, encode(replace(emptiest, cmd_arguments=Page(
            page=number, pages=len(parts), digest=_digest(text), part=part))))
        for number, part in enumerate(parts))


# Replies of any length.


def seal_reply(key: Key | None, reply: Reply, page: int = 0) -> bytes:
    """The datagram that carries a reply, or the page of it with that number if it does not fit into one.

    A page that there is not is taken for the first; a result too long for PAGES_LIMIT pages becomes the error
    MESSAGE_TOO_LONG.
    """
    datagram = seal(key, Direction.REPLY, encode(reply))
    if len(datagram) <= DATAGRAM_LIMIT:
        return datagram
    digest, parts = _parts(reply, len(seal(key, Direction.REPLY, b"")))
    if len(parts) > PAGES_LIMIT:
        limit = sum(len(part.encode()) for part in parts[:PAGES_LIMIT])
        facts = {"what": Phrase("answer to {command}", {"command": reply.cmd.value}), "host": reply.agent_ip,
                 "limit": str(limit), "size": str(sum(len(part.encode()) for part in parts))}
        too_long = Obstacle.of(MigrationError(ErrorCode.MESSAGE_TOO_LONG, facts))
        return seal(key, Direction.REPLY, encode(replace(reply, cmd_result=too_long)))
    number = page if page < len(parts) else 0
    content = Page(page=number, pages=len(parts), digest=digest, part=parts[number])
    return seal(key, Direction.REPLY, encode(replace(reply, cmd_result=content)))


def _parts(reply: Reply, header: int) -> tuple[str, tuple[str, ...]]:
    """The digest of a reply's result, and the result in parts that fit a datagram with a header of that size."""
    text = encode_result(reply.cmd, reply.cmd_result)
    digest = _digest(text)
    # The longest that anything else in it can be, so that the same result is always cut at the same places.
    emptiest = replace(
        reply, sequence=10**9, asked="0" * 32,
        cmd_result=Page(page=PAGES_LIMIT - 1, pages=PAGES_LIMIT, digest=digest, part=""))
    return digest, _cut(text, DATAGRAM_LIMIT - header - len(encode(emptiest)))


@functools.lru_cache(maxsize=16)
def _cut(text: str, room: int) -> tuple[str, ...]:
    """The text in parts, each of which takes at most `room` bytes inside a JSON string."""
    parts = []
    start = 0
    while start < len(text):
        size = room
        while (excess := _quoted_size(text[start:start + size]) - room) > 0:
            # No sign takes more than four bytes.
            size -= max(1, excess // 4)
        parts.append(text[start:start + size])
        start += size
    return tuple(parts)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _quoted_size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2


class Pages:
    """Puts the pages of one result, or of one request, together again, in whatever order they come."""

    def __init__(self) -> None:
        self._parts: dict[int, str] = {}
        self._count = 0
        self._digest = ""

    def add(self, page: Page) -> None:
        """Take a page; one of another result than those before begins anew."""
        if (page.digest, page.pages) != (self._digest, self._count):
            self._parts = {}
            self._digest, self._count = page.digest, page.pages
        self._parts[page.page] = page.part

    def lacks(self, page: Page) -> bool:
        """Whether this page is not here yet."""
        return (page.digest, page.pages) != (self._digest, self._count) or page.page not in self._parts

    def complete(self) -> bool:
        """Whether all pages are here and make the result that they say. If they do not, all are missing again."""
        if self.missing():
            return False
        if _digest(self.text()) != self._digest:
            self._parts = {}
        return not self.missing()

    def text(self) -> str:
        """What the pages hold together, once they are complete."""
        return "".join(self._parts[number] for number in range(self._count))

    def missing(self) -> list[int]:
        """The numbers of the pages that have not come yet."""
        return [number for number in range(self._count) if number not in self._parts]

    def joined(self, reply: Reply) -> Reply:
        """The reply whose pages these are, once they are complete."""
        return with_result(reply, reply.msg_type, lambda: read_json(self.text()))
