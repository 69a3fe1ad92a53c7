"""Requests that come in pages, until all of one are here: bounded in number, in size and in time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from constant import CHALLENGE_SECONDS, REQUEST_PAGES_LIMIT, UNFINISHED_LIMIT
from wire.datagram import Pages
from wire.message import ArgumentsRefusedError, Request, decode
from wire.records import Page


@dataclass
class _Unfinished:
    until: float
    pages: Pages = field(default_factory=Pages)


def _check_same(request: Request, envelope: Request) -> None:
    if (request.request_id, request.agent_ip, request.cmd) != (
            envelope.request_id, envelope.agent_ip, envelope.cmd):
        raise ValueError("not the request that its pages were of")


class Assembly:
    """Puts requests together. Only pages whose MAC is right come here."""

    def __init__(self) -> None:
        # By request and key: another agent's key cannot put pages into somebody's request. The oldest is first.
        self._unfinished: dict[tuple[str, str], _Unfinished] = {}

    def __len__(self) -> int:
        """How many requests are not complete yet."""
        return len(self._unfinished)

    def add(self, envelope: Request, page: Page, key_id: str, now: float) -> Request | None:
        """Take a page; returns the request once it is complete.

        Raises ValueError for what is not a page of a request like its envelope.
        """
        if page.pages > REQUEST_PAGES_LIMIT:
            raise ValueError("more pages than a request has")
        self._forget_old(now)
        name = envelope.request_id, key_id
        unfinished = self._unfinished.get(name)
        if unfinished is None:
            if len(self._unfinished) >= UNFINISHED_LIMIT:
                del self._unfinished[next(iter(self._unfinished))]
            unfinished = self._unfinished[name] = _Unfinished(now + CHALLENGE_SECONDS)
        unfinished.pages.add(page)
        if not unfinished.pages.complete():
            return None
        del self._unfinished[name]
        try:
            request = decode(unfinished.pages.text().encode())
        except ArgumentsRefusedError as refused:
            _check_same(replace(refused.envelope, cmd=refused.command, cmd_arguments=page), envelope)
            raise
        if not isinstance(request, Request) or isinstance(request.cmd_arguments, Page):
            raise ValueError("no request")
        _check_same(request, envelope)
        return request

    def _forget_old(self, now: float) -> None:
        """Its challenge has run out with it: it could not be begun any more."""
        for name, unfinished in list(self._unfinished.items()):
            if now > unfinished.until:
                del self._unfinished[name]
