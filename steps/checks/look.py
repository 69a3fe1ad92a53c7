"""How a check says what it saw, and the one loop that runs a table of them: all of them, whatever one finds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from constant import Severity
from host.hypervisor import libvirt_errors
from wire.errors import ErrorCode, MigrationError
from wire.findings import Check, Finding, not_fine

log = logging.getLogger(__name__)

View = TypeVar("View")


@dataclass(frozen=True)
class Saw:
    """One thing that a check saw; an error code unless it is fine."""

    severity: Severity
    facts: Mapping[str, str]
    code: ErrorCode | None = None


Looks = Mapping[Check, Callable[[View], Iterable[Saw]]]


def stops(code: ErrorCode, **facts: str) -> Saw:
    """The migration cannot go on because of this."""
    return Saw(Severity.STOPS, facts, code)


def warns(code: ErrorCode, **facts: str) -> Saw:
    """The admin should know this before it goes on."""
    return Saw(Severity.WARNS, facts, code)


def fine(**facts: str) -> Saw:
    """This is what was seen; it only counts if nothing is wrong."""
    return Saw(Severity.FINE, facts)


def look(looks: Looks[View], view: View, known: Mapping[str, str]) -> list[Finding]:
    """Run every check of a table on `view`. `known` are facts that every finding has, `host` among them.

    A check that raises is one that stops; the others go on. One that sees nothing wrong is fine; its last word counts.
    """
    findings: list[Finding] = []
    for check, function in looks.items():
        try:
            with libvirt_errors(known["host"]):
                seen = list(function(view))
        except MigrationError as error:
            seen = [Saw(Severity.STOPS, error.facts, error.code)]
        except Exception as error:
            log.exception("the check %s ended in an unexpected error", check.value)
            seen = [stops(ErrorCode.CHECK_FAILED, check=check.value, reason=str(error) or repr(error))]
        wrong = [each for each in seen if each.code is not None]
        findings += [_finding(check, each, known) for each in wrong or seen[-1:] or [fine()]]
    return findings


def _finding(check: Check, saw: Saw, known: Mapping[str, str]) -> Finding:
    facts = {**known, **saw.facts}
    if saw.code is None:
        return Finding(check=check, severity=Severity.FINE, facts=facts)
    return not_fine(check, saw.severity, MigrationError(saw.code, facts))
