"""How many columns text takes on a terminal, and how it is cut, padded and wrapped to so many; tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

# Marks that stand on the sign before them, and signs that nothing is drawn for.
_NO_COLUMN = ("Mn", "Me", "Cf")
# Stops, commas and what closes: no line begins with them.
_NEVER_FIRST = ("Po", "Pe", "Pf")
# What opens: no line ends with them.
_NEVER_LAST = ("Ps", "Pi")


def columns(text: str) -> int:
    """The columns that it takes: two for each sign that is wide or fullwidth (Unicode's annex 11), such as Chinese."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def _columns_of(sign: str) -> int:
    if unicodedata.category(sign) in _NO_COLUMN:
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def cut(text: str, width: int, ellipsis: str = "…") -> str:
    """As much of the text as fits into so many columns, with an ellipsis if that is not all of it."""
    if columns(text) <= width:
        return text
    if width < columns(ellipsis):
        return ""
    head, _rest = _split(text, width - columns(ellipsis))
    return head.rstrip() + ellipsis


def pad(text: str, width: int) -> str:
    """The text with blanks behind it, so that what follows begins at that column."""
    return text + " " * (width - columns(text))


def wrap(text: str, first: int, others: int) -> list[str]:
    """The text in lines of at most so many columns, the first and the others, broken at blanks where there are any.

    A line is never wider; a first one that holds nothing is empty. Two columns are needed for a wide sign.
    """
    lines: list[str] = []
    rest = text.strip()
    while rest:
        head, tail = _split(rest, max(2, others) if lines else first)
        place = _break(head, tail)
        # A word that is too long for the first line may fit on one of the others.
        if place or (not lines and first < others):
            head, tail = rest[:place], rest[place:]
        lines.append(head.rstrip())
        rest = tail.strip()
    return lines


def _break(head: str, tail: str) -> int:
    """How much of the head stays with it: up to the last blank, or to a wide sign, which is a word by itself."""
    whole = head + tail[:1]
    if not tail:
        return len(head)
    return next((place for place in range(len(head), 0, -1) if _may_break(whole[place - 1:place + 1])), 0)


def _may_break(two: str) -> bool:
    """Whether a line may end between these two signs."""
    before, after = unicodedata.category(two[0]), unicodedata.category(two[-1])
    return " " in two or (2 in map(_columns_of, two) and before not in _NEVER_LAST and after not in _NEVER_FIRST)


def _split(text: str, width: int) -> tuple[str, str]:
    """What fits into so many columns, and the rest."""
    taken = 0
    for place, sign in enumerate(text):
        taken += _columns_of(sign)
        if taken > width:
            return text[:place], text[place:]
    return text, ""


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows as lines, each cell as wide as the widest of its column, two blanks between them."""
    widths = [max(map(columns, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(map(pad, row, widths)).rstrip()
