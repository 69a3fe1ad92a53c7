"""Sockets that send an agent whatever a test likes, and see all that it sends: the strangers of these tests."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
from collections.abc import Iterable, Iterator
from itertools import count, islice

from constant import RATE_BURST, Command, MessageType
from tests.loopback.site import PATIENCE_SECONDS, Node, fresh_address
from wire.datagram import Direction, Dropped, keyring, seal, unseal
from wire.memory import Address
from wire.message import Reply, Request, decode, encode
from wire.records import StatusArguments

# A UDP header, behind an IPv4 header without options.
_IP_HEADER, _UDP_HEADER = 20, 8


class Probe:
    """A socket at an address of its own that talks to one agent, without any of the controller's code."""

    def __init__(self, node: Node, source: str | None = None) -> None:
        self._node = node
        self._udp = socket.socket(socket.AF_INET6 if ":" in node.listen[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((source or ("::1" if ":" in node.listen[0] else fresh_address()), 0))
        self._udp.setblocking(False)

    @property
    def address(self) -> Address:
        """Where it is."""
        name = self._udp.getsockname()
        return (name[0], name[1])

    def send(self, datagrams: Iterable[bytes]) -> None:
        """Send these to the agent."""
        self.send_to(self._node.listen, datagrams)

    def send_to(self, address: Address, datagrams: Iterable[bytes]) -> None:
        """Send these to another one."""
        for datagram in datagrams:
            # Nobody at that port, says the system: then nobody gets it.
            with contextlib.suppress(ConnectionRefusedError):
                self._udp.sendto(datagram, address)

    def connect(self) -> None:
        """Hear nobody from now on but who sends from the agent's own address and port."""
        self._udp.connect(self._node.listen)

    def received(self) -> list[bytes]:
        """All that has come since the last time."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._udp.recv(65535))
        return found

    def ask(self, request: Request) -> bytes:
        """Send a request under the agent's key; the reply that ends it."""
        self.send([seal(self._node.key(), Direction.REQUEST, encode(request))])
        of = request.cmd_arguments
        request_id = of.of if isinstance(of, StatusArguments) else request.request_id
        while select.select([self._udp], [], [], PATIENCE_SECONDS)[0]:
            datagram = self._udp.recv(65535)
            reply = open_reply(self._node, datagram)
            ends = reply is not None and reply.msg_type in (MessageType.RESPONSE, MessageType.REFUSED)
            if reply is not None and ends and reply.request_id == request_id:
                return datagram
        raise AssertionError("the agent does not answer")

    def wait_for_agent(self) -> bytes:
        """Wait until the agent has looked at all that anybody sent it before: it does that in order. Its answer."""
        return self.ask(Request(
            request_id=secrets.token_hex(16), agent_ip=self._node.address, cmd=Command.STATUS,
            cmd_arguments=StatusArguments(of=secrets.token_hex(16))))

    def close(self) -> None:
        """Close the socket."""
        self._udp.close()


def open_reply(node: Node, datagram: bytes) -> Reply | None:
    """The reply in a datagram of that agent's; None if its MAC is wrong."""
    try:
        reply = decode(unseal(datagram, keyring([node.key()]), Direction.REPLY)[1])
    except (Dropped, ValueError):
        return None
    return reply if isinstance(reply, Reply) else None


class Wire:
    """Sees every datagram that an agent on IPv4 sends, whoever it is for; without root it sees nothing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        try:
            self._raw: socket.socket | None = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        except PermissionError:
            self._raw = None
        else:
            self._raw.setblocking(False)

    def sent_by_agent(self) -> list[bytes]:
        """What the agent has sent since the last time."""
        address, port = self._node.listen
        found = []
        with contextlib.suppress(BlockingIOError):
            while self._raw is not None:
                packet, (source, _) = self._raw.recvfrom(65535)
                if source == address and int.from_bytes(packet[_IP_HEADER:_IP_HEADER + 2], "big") == port:
                    found.append(packet[_IP_HEADER + _UDP_HEADER:])
        return found

    def close(self) -> None:
        """Close the socket."""
        if self._raw is not None:
            self._raw.close()


def _in_bursts(datagrams: Iterable[bytes]) -> Iterator[list[bytes]]:
    """So many at a time as an agent takes from one address at once."""
    left = iter(datagrams)
    while burst := list(islice(left, RATE_BURST)):
        yield burst


def answers_to(node: Node, datagrams: Iterable[bytes], sources: Iterable[str] | None = None) -> list[bytes]:
    """Send the agent all of these, and return all that it sent, to whomever, once it has looked at each of them.

    They come in bursts from one of `sources` after the other; by default those are new, so that the agent's limit of
    datagrams lets all of them in.
    """
    found = []
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(contextlib.closing(Wire(node)))
        bursts = zip(sources or map(lambda _: fresh_address(), count()), _in_bursts(datagrams))
        for number, (source, burst) in enumerate(bursts):
            if number % RATE_BURST == 0:
                friend = stack.enter_context(contextlib.closing(Probe(node)))
            with contextlib.closing(Probe(node, source)) as stranger:
                stranger.send(burst)
                own_answer = friend.wait_for_agent()
                received = stranger.received()
            sent = [each for each in wire.sent_by_agent() if each != own_answer]
            found += sent or received
    return found
