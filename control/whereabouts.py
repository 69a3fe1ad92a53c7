"""Where a VM is: asks the agents of two hosts, and keeps what each of them said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from constant import Command, DomainState, Pause
from control.conversation import Conversation, SilenceError, reason_of
from wire.errors import MigrationError
from wire.phrase import Phrase
from wire.situation import DomainArguments, DomainView, Situation, situation


@dataclass(frozen=True)
class Whereabouts:
    """What two hosts say of a VM; None for one that could not be asked, and why in `errors`."""

    source: Optional[DomainView] = None
    destination: Optional[DomainView] = None
    errors: tuple[MigrationError, ...] = ()

    @property
    def situation(self) -> Situation:
        """What that comes to."""
        return situation(self.source, self.destination)


def whereabouts(talk: Conversation, source: tuple[str, str], destination: tuple[str, str]) -> Whereabouts:
    """Ask both hosts, each given as its address and the domain's name there; one that did not greet is not asked."""
    views: list[Optional[DomainView]] = []
    errors = []
    for host, domain in (source, destination):
        try:
            views.append(locate(talk, host, domain) if host in talk.contacts else None)
        except (MigrationError, SilenceError) as error:
            views.append(None)
            errors.append(reason_of(error))
    return Whereabouts(views[0], views[1], tuple(errors))


def locate(talk: Conversation, host: str, domain: str) -> DomainView:
    """How the domain is on that host. Raises MigrationError or SilenceError."""
    with talk.unseen():
        return talk.step(Command.LOCATE, host, DomainArguments(domain=domain), DomainView, describe)


def describe(view: DomainView) -> str:
    """A view in a few words."""
    words = Phrase(view.state.value)
    if view.state is DomainState.PAUSED and view.pause is not Pause.NONE:
        words = Phrase("paused by {pause}", {"pause": Phrase(view.pause.value)})
    if view.busy:
        words = Phrase("{state} with a job", {"state": words})
    if view.migrated:
        words = Phrase("{state} (migrated away)", {"state": words})
    return words
