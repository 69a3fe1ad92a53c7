"""HAND_OVER: lets a VM that has arrived go on here, once its source has given it up; until then it is held, paused.

Left to itself, libvirt starts a VM at the destination before the source has heard that it arrived. Where that answer is
lost, the source starts it again too and both run (the comment on `cancelled` in libvirt's virDomainMigrateVersion3Full
says so, and leaves it to lock managers, which disks of their own do not have). So it arrives paused, and goes on only
when libvirt at the source has ended its copy.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from constant import DomainState, Pause
from host.hypervisor import RESTART_SECONDS, Hypervisor
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.phrase import Phrase
from wire.records import Migration, StepArguments, StepReport
from wire.situation import DomainView

log = logging.getLogger(__name__)


def is_held(migration: Migration, facts: DomainFacts) -> bool:
    """Whether the VM arrives paused and has to be handed over. In post-copy it runs at once: there is no way back."""
    return facts.state is DomainState.RUNNING and not migration.convergence.may_post_copy


def has_arrived(view: DomainView) -> bool:
    """Whether a domain that is held has all of its memory here: libvirt has finished the migration."""
    return view.state is DomainState.PAUSED and view.pause is Pause.SOMEBODY


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Let it go on here. Raises MigrationError NOT_AS_EXPECTED; it is then as it was."""
    migration, domain = arguments.migration, arguments.migration.name_there
    with Hypervisor.open(context.host, patience=RESTART_SECONDS) as hypervisor:
        view = hypervisor.view(domain)
        if view.state is DomainState.RUNNING:
            return StepReport(summary=Phrase("it runs already"))
        if not arguments.source_gave_up or not is_held(migration, arguments.known_facts()) or not has_arrived(view):
            problem = Phrase("VM {domain} is {state} and cannot be let go on", {
                "domain": domain, "state": Phrase(view.state.value)})
            raise MigrationError(
                ErrorCode.NOT_AS_EXPECTED, {"host": context.host, "problem": problem, "domain": domain})
        hypervisor.resume(domain)
    return StepReport(summary=Phrase("it goes on here"))


class Peer:
    """libvirt at the destination, as the source reaches it through the job's tunnel.

    The connection is opened, and the VM looked up, beforehand: each moment between the end of the copy here and the
    release over there is one for which the guest stands still. So the first question is the one that lets it go on.
    """

    def __init__(self, connection: str, migration: Migration) -> None:
        self._connection = connection
        self._migration = migration
        self._opened = contextlib.ExitStack()
        self._there: Hypervisor | None = None
        self._go_on: Callable[[], None] | None = None
        self._released = False
        self._failed = False

    def __enter__(self) -> Peer:
        try:
            self._there = self._opened.enter_context(Hypervisor.open(self._migration.destination, self._connection))
        except MigrationError as error:
            # Then a little later, by a connection of its own.
            log.info("VM %s is handed over once libvirt says so: %s", self._migration.domain, error.message)
        return self

    def __exit__(self, *_what: object) -> None:
        with contextlib.suppress(MigrationError):
            self._opened.close()

    def begun(self) -> None:
        """libvirt over there has begun to receive the VM."""
        try:
            if self._there is not None:
                self._go_on = self._there.resumption(self._migration.name_there)
        except MigrationError as error:
            log.info("VM %s is looked up only once it has arrived: %s", self._migration.domain, error.message)

    def failed(self) -> None:
        """libvirt has given the migration up, so the QEMU here may go on; if it ends now, that is no leaving."""
        self._failed = True

    def source_ended(self) -> None:
        """The QEMU here has ended: if that is because it has left, have the one over there go on at once.

        libvirt lets nobody resume a VM that has not arrived: its migration locks the domain there until it has, or is
        gone (tried with libvirt 9.0: the call waits, and fails then).
        """
        if self._failed:
            return
        try:
            if self._go_on is not None:
                self._go_on()
                self._released = True
            elif self._there is not None and self._there.has_arrived(self._migration.name_there):
                self._there.resume(self._migration.name_there)
                self._released = True
        except MigrationError as error:
            log.debug("left to be handed over a little later: %s", error)

    def release(self) -> bool:
        """Have the domain over there go on, now that libvirt has ended the one here. False if that did not work."""
        if self._released:
            return True
        domain = self._migration.name_there
        try:
            with Hypervisor.open(self._migration.destination, self._connection) as there:
                if there.state(domain) is not DomainState.RUNNING:
                    there.resume(domain)
                return True
        except MigrationError as error:
            log.warning("VM %s waits over there to be handed over: %s", domain, error.message)
            return False

    def view(self) -> DomainView | None:
        """How the domain is over there, as far as the tunnel still tells."""
        try:
            with Hypervisor.open(self._migration.destination, self._connection) as there:
                return there.view(self._migration.name_there)
        except MigrationError:
            return None
