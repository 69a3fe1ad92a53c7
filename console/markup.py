"""Builds HTML and SVG in which no text can become markup: what is not Markup already is escaped.

The result is well-formed XML too, but for the line that says it is HTML.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Union

from console.terminal import printable

# Elements of HTML that have no content (HTML Standard, 13.1.2), as far as they are used.
_VOID = frozenset({"meta", "link", "br"})

Value = Union[str, float, None]
"""Of an attribute. One that is None is left out."""
Attributes = Mapping[str, Value]


class Markup(str):
    """Text that is markup already."""


NOTHING = Markup("")


def escaped(text: str) -> Markup:
    """Any text as content or as an attribute's value; a control character, which HTML does not have, reads `?`."""
    return Markup(html.escape(printable(" ".join(text.splitlines()) if "\n" in text else text)))


def element(name: str, attributes: Attributes, *content: str) -> Markup:
    """An element. Content that is no Markup is escaped, and every attribute's value is."""
    start = name + "".join(
        f' {attribute}="{_value(value)}"' for attribute, value in attributes.items() if value is not None)
    if name in _VOID:
        return Markup(f"<{start}/>")
    return Markup(f"<{start}>{joined(content)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Parts one after the other, each escaped that is no Markup."""
    return Markup(between.join(part if isinstance(part, Markup) else escaped(part) for part in parts))


def _value(value: str | float) -> str:
    # Two decimals of a pixel or a percent are more than a screen shows.
    return escaped(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
