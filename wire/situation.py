"""Where a VM really is: what each of two hosts says of it, what the two together mean, and what may be done then.

Pure rules, the same for the controller, for `repair` and for an agent that comes back after its death.
"""

from __future__ import annotations

from enum import Enum
from typing import Optional

from constant import DomainState, Pause
from wire.forms import DOMAIN_PATTERN, check_address, check_job_id
from wire.schema import record


@record
class DomainArguments:
    """The argument of LOCATE: the domain by the name that it has on that host."""

    domain: str

    def __post_init__(self) -> None:
        if not DOMAIN_PATTERN.fullmatch(self.domain):
            raise ValueError("no such domain name")


@record
class MovedNote:
    """What the copy that stays behind says of itself: which job moved the VM, where to, and when (since 1970)."""

    job_id: str
    destination: str
    at: int

    def __post_init__(self) -> None:
        check_job_id(self.job_id)
        check_address(self.destination)


def hidden_name(path: str, job_id: str) -> str:
    """The name under which a file of the copy that stays behind lies, so that it is not found."""
    return f"{path}.moved-{job_id}"


@record
class DomainView:
    """How a domain is on one host, as its libvirt says."""

    state: DomainState
    pause: Pause = Pause.NONE
    busy: bool = False
    """Whether a job of libvirt's or a block job runs on it, so that it cannot be changed."""
    migrated: bool = False
    """Whether it is shut off because it was migrated away, as far as libvirt remembers."""
    persistent: bool = False
    autostart: bool = False
    moved: Optional[MovedNote] = None
    """What it says of itself if it is only the copy that stayed behind."""
    split: bool = False
    """Whether a part of its memory is on the other host: it is in post-copy, or that broke off."""

    @property
    def gone(self) -> bool:
        """Whether there is nothing of the VM here, or nothing but the copy that an earlier move has left."""
        return self.state is DomainState.ABSENT or (self.state is DomainState.SHUT_OFF and self.moved is not None)

    @property
    def has_it(self) -> bool:
        """Whether a process holds the VM's memory here."""
        return self.state in (DomainState.RUNNING, DomainState.PAUSED)

    @property
    def runs_whole(self) -> bool:
        """Whether it runs with all of its memory."""
        return self.state is DomainState.RUNNING and not self.split

    @property
    def gave_up(self) -> bool:
        """Of a source: whether libvirt there has ended the VM because it was migrated away, as far as it knows."""
        return self.migrated or self.state is DomainState.ABSENT

    def left_by_another(self, job_id: str) -> bool:
        """Of a source: whether it is the copy that another job's move has left, so that this job moved nothing."""
        return self.gone and self.moved is not None and self.moved.job_id != job_id

    @property
    def half(self) -> bool:
        """Whether it is in the middle of a migration: paused, or running without all of its memory."""
        return self.split or self.pause is Pause.MIGRATION


def has_whole(view: DomainView, began: DomainState, *, post_copy: bool) -> bool:
    """Whether the source certainly has all of a VM that was in the state `began` when its move began.

    Where it may have gone on at the destination before all of its memory was there (`post_copy`), a source that holds
    it paused may have less. One that ran and is shut off may have been shut off because it has moved.
    """
    if view.state is began:
        return not (view.split or view.gone)
    return view.has_it and not post_copy


class Situation(str, Enum):
    """Where a VM is, of two hosts."""

    ON_SOURCE = "runs on source only"
    ON_SOURCE_PAUSED = "paused on source only"
    ON_DESTINATION = "runs on destination only"
    ON_DESTINATION_PAUSED = "paused on destination only"
    ARRIVING = "runs on source, half arrived on destination"
    LEAVING = "runs on destination, half left on source"
    SPLIT = "runs on destination without all of its memory"
    BETWEEN = "paused on both"
    BOTH = "runs on both"
    SHUT_OFF_ON_SOURCE = "shut off, on source only"
    SHUT_OFF_ON_DESTINATION = "shut off, on destination only"
    SHUT_OFF_ON_BOTH = "shut off on both"
    NOWHERE = "on neither host"
    NOT_KNOWN = "not known"


def situation(source: Optional[DomainView], destination: Optional[DomainView]) -> Situation:
    """What the two views together mean; None stands for a host that could not be asked."""
    if source is None or destination is None:
        return Situation.NOT_KNOWN
    if source.pause is Pause.POST_COPY_FAILED and destination.has_it and (destination.split or destination.busy):
        return Situation.SPLIT
    return _SITUATIONS[_kind(source), _kind(destination)]


class _Kind(Enum):
    RUNS = "runs"
    PAUSED = "paused"
    OFF = "off"
    NONE = "none"


_KINDS = {
    DomainState.RUNNING: _Kind.RUNS,
    DomainState.PAUSED: _Kind.PAUSED,
    DomainState.SHUT_OFF: _Kind.OFF,
    DomainState.ABSENT: _Kind.NONE,
}


def _kind(view: DomainView) -> _Kind:
    return _Kind.NONE if view.gone else _KINDS[view.state]


_SITUATIONS = {
    (_Kind.RUNS, _Kind.RUNS): Situation.BOTH,
    (_Kind.RUNS, _Kind.PAUSED): Situation.ARRIVING,
    (_Kind.RUNS, _Kind.OFF): Situation.ON_SOURCE,
    (_Kind.RUNS, _Kind.NONE): Situation.ON_SOURCE,
    (_Kind.PAUSED, _Kind.RUNS): Situation.LEAVING,
    (_Kind.PAUSED, _Kind.PAUSED): Situation.BETWEEN,
    (_Kind.PAUSED, _Kind.OFF): Situation.ON_SOURCE_PAUSED,
    (_Kind.PAUSED, _Kind.NONE): Situation.ON_SOURCE_PAUSED,
    (_Kind.OFF, _Kind.RUNS): Situation.ON_DESTINATION,
    (_Kind.OFF, _Kind.PAUSED): Situation.ON_DESTINATION_PAUSED,
    (_Kind.OFF, _Kind.OFF): Situation.SHUT_OFF_ON_BOTH,
    (_Kind.OFF, _Kind.NONE): Situation.SHUT_OFF_ON_SOURCE,
    (_Kind.NONE, _Kind.RUNS): Situation.ON_DESTINATION,
    (_Kind.NONE, _Kind.PAUSED): Situation.ON_DESTINATION_PAUSED,
    (_Kind.NONE, _Kind.OFF): Situation.SHUT_OFF_ON_DESTINATION,
    (_Kind.NONE, _Kind.NONE): Situation.NOWHERE,
}
