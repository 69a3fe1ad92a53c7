"""A look at all agents of the list, without a VM: what each host is, and whether SSH and libvirt work between them."""

from __future__ import annotations

import ipaddress
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Optional

from constant import Command, ExitCode, LibvirtDaemon, Severity, Transport
from control.checks import SKEW_SECONDS, summarise
from control.conversation import Asked, Contact, Conversation, SilenceError, clock_skew, reason_of
from wire.access import AddressList, Key
from wire.errors import ErrorCode, MigrationError
from wire.facts import HostFacts
from wire.findings import CheckReport, Finding
from wire.phrase import Phrase
from wire.records import LinkArguments

# Of an address that only a network of the list comes to, which need not have an agent at each of its addresses.
NOT_TOLD = (ErrorCode.AGENT_SILENT, ErrorCode.ADDRESS_UNUSABLE)
# As many agents as have been tried at once on loopback; a network of the list may be wider.
_ADDRESSES_LIMIT = 1024


@dataclass(frozen=True)
class HostLook:
    """One host: what its agent told, or why it did not.

    `clock` is how many seconds it is certain to be ahead of this host's, however long the answer took.
    """

    address: str
    facts: Optional[HostFacts] = None
    clock: float = 0.0
    error: Optional[MigrationError] = None

    @property
    def libvirt_error(self) -> Optional[MigrationError]:
        """What is wrong with its libvirt, as far as its agent could tell."""
        if self.facts is None or self.facts.libvirt_version:
            return None
        return MigrationError(ErrorCode.LIBVIRT_UNREACHABLE, {"host": self.address, "reason": Phrase("no answer")})


@dataclass(frozen=True)
class PairLook:
    """The way from one host to another."""

    source: str
    destination: str
    findings: tuple[Finding, ...] = ()
    error: Optional[MigrationError] = None

    @property
    def errors(self) -> tuple[MigrationError, ...]:
        """What stands in this way."""
        found = tuple(finding.error() for finding in self.findings if finding.severity is Severity.STOPS)
        return found if self.error is None else (*found, self.error)


@dataclass(frozen=True)
class FleetReport:
    """All hosts and all ways between them."""

    hosts: tuple[HostLook, ...]
    pairs: tuple[PairLook, ...]
    warnings: tuple[MigrationError, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """0 if every agent answers, with its libvirt, and every way is open; else as of a run that nothing came of."""
        if any(host.error is not None for host in self.hosts):
            return ExitCode.NO_CONTACT
        return ExitCode.REFUSED if self.errors else ExitCode.MOVED

    @property
    def errors(self) -> tuple[MigrationError, ...]:
        """What is wrong with the hosts and with the ways between them, each once."""
        found = [host.error or host.libvirt_error for host in self.hosts]
        told = [error for error in found if error is not None]
        dead = {error.facts["host"] for error in told if error.code is ErrorCode.LIBVIRT_UNREACHABLE}
        ways = [error for pair in self.pairs for error in pair.errors
                if error.code is not ErrorCode.LIBVIRT_UNREACHABLE or error.facts.get("host") not in dead]
        return (*told, *ways)


def look_at_fleet(talk: Conversation, user: str, wall: Callable[[], float] = time.time) -> FleetReport:
    """Ask all agents, and each of them about its way to all others. Raises MigrationError LIST_TOO_LONG."""
    named, addresses = addresses_of(talk.settings.agents)
    errors = {error.facts.get("host", ""): error for error in talk.greet(addresses)}
    answered = [address for address in addresses if address in talk.contacts]
    hosts = [
        _host(address, talk, errors, wall() - talk.clock()) for address in addresses
        if address in talk.contacts or address in named or errors[address].code not in NOT_TOLD]
    return FleetReport(tuple(hosts), tuple(_pairs(talk, answered, user)), tuple(_skews(talk, answered)))


def agents_without(key: Key, talk: Callable[[Key], Conversation], old: Key) -> list[str]:
    """The agents of the list that take the old key and not this one. Those that do not answer are left out.

    Raises MigrationError LIST_TOO_LONG.
    """
    asking = talk(key)
    _named, addresses = addresses_of(asking.settings.agents)
    asking.greet(addresses)
    silent = [address for address in addresses if address not in asking.contacts]
    asking = talk(old)
    asking.greet(silent)
    return [address for address in silent if address in asking.contacts]


def addresses_of(agents: AddressList) -> tuple[set[str], list[str]]:
    """The addresses that the list names one by one, and all that it comes to."""
    count = sum(network.num_addresses for network in agents.networks)
    if count > _ADDRESSES_LIMIT:
        facts = {"path": str(agents.path), "count": str(count), "limit": str(_ADDRESSES_LIMIT)}
        raise MigrationError(ErrorCode.LIST_TOO_LONG, facts)
    named = {str(network.network_address) for network in agents.networks if network.num_addresses == 1}
    every: dict[str, None] = {}
    for network in agents.networks:
        hosts: Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address] = iter(network.hosts())
        every.update((str(address), None) for address in hosts)
    return named, list(every)


def _host(address: str, talk: Conversation, errors: dict[str, MigrationError], wall_offset: float) -> HostLook:
    contact = talk.contacts.get(address)
    if contact is None:
        return HostLook(address, error=errors[address])
    return HostLook(address, contact.facts, contact.ahead(wall_offset))


def _pairs(talk: Conversation, answered: list[str], user: str) -> Iterator[PairLook]:
    """Every ordered pair, in rounds in which each host is the source of one and the destination of another."""
    for distance in range(1, len(answered)):
        asked: list[tuple[str, str, Asked | MigrationError]] = []
        for position, source in enumerate(answered):
            destination = answered[(position + distance) % len(answered)]
            asked.append((source, destination, _begin(talk, source, destination, user)))
        for source, destination, begun in asked:
            yield _end(talk, source, destination, begun)


def _begin(talk: Conversation, source: str, destination: str, user: str) -> Asked | MigrationError:
    daemon = talk.contacts[destination].facts.daemon if destination in talk.contacts else LibvirtDaemon.LIBVIRTD
    arguments = LinkArguments(
        job_id=secrets.token_hex(4), source=source, destination=destination, user=user, transport=Transport.SSH,
        destination_daemon=daemon)
    try:
        return talk.begin(Command.CHECK_LINK, source, arguments)
    except (MigrationError, SilenceError) as error:
        return reason_of(error)


def _end(talk: Conversation, source: str, destination: str, begun: Asked | MigrationError) -> PairLook:
    if isinstance(begun, MigrationError):
        return PairLook(source, destination, error=begun)
    try:
        return PairLook(source, destination, talk.end(begun, CheckReport, summarise).findings)
    except (MigrationError, SilenceError) as error:
        return PairLook(source, destination, error=reason_of(error))


def _skews(talk: Conversation, answered: list[str]) -> Iterator[MigrationError]:
    """The clocks that are apart, each told once, against the one that most agree with."""
    contacts: dict[str, Contact] = {address: talk.contacts[address] for address in answered}
    if len(contacts) < 2:
        return
    middle = sorted(contacts, key=lambda address: contacts[address].clock_offset()[0])[len(contacts) // 2]
    for address, contact in contacts.items():
        skew = clock_skew(contact, contacts[middle])
        if skew >= SKEW_SECONDS:
            yield MigrationError(
                ErrorCode.CLOCK_SKEWED, {"source": address, "destination": middle, "seconds": f"{skew:.0f}"})
