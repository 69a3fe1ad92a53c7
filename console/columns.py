"""Text in columns of a terminal, on which a Chinese sign is as wide as two others: its width, tables, lines."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

_WIDE = ("W", "F")
# What a line may be broken after: a word, or a wide sign with the marks that must not begin or end a line.
_PIECE = re.compile(r"\s+|[（《“]*(?:[^\s\u2e80-\uffef]+|.)[，。；：、！？）》”]*")  # noqa: RUF001 - Chinese marks are meant


def width(text: str) -> int:
    """How many columns it takes."""
    return sum(_width_of(sign) for sign in text)


def _width_of(sign: str) -> int:
    if unicodedata.combining(sign):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in _WIDE else 1


def padded(text: str, columns: int) -> str:
    """The text with blanks after it, up to so many columns."""
    return text + " " * max(0, columns - width(text))


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows as lines, each cell as wide as the widest of its column."""
    widths = [max(map(width, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(map(padded, row, widths)).rstrip()


def wrapped(text: str, columns: int) -> list[str]:
    """The text in lines of at most so many columns, broken at blanks and between wide signs."""
    return [line.rstrip() for line in _lines(_PIECE.findall(text), columns)]


def _lines(pieces: Iterable[str], columns: int) -> Iterator[str]:
    line = ""
    for piece in pieces:
        if line and width(line + piece.rstrip()) > columns:
            yield line
            line = ""
        line += piece if line or not piece.isspace() else ""
    yield line
