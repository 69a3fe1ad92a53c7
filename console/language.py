"""The language of what a person reads: English, or another one by the locale if there is a catalogue of it.

What programs read, JSON, logs and the wire, stays as it is.
"""

from __future__ import annotations

import gettext
import os
from pathlib import Path

_DOMAIN = "vmmigration"
# Beside the packages, in a checkout as in an installed package.
_CATALOGUES = Path(__file__).resolve().parent / "locale"


class _Language:
    """The catalogue in use; the text itself where there is none."""

    def __init__(self) -> None:
        self.catalogue: gettext.NullTranslations = gettext.NullTranslations()


_language = _Language()


def choose_language() -> None:
    """Take the language that LANGUAGE, LC_ALL, LC_MESSAGES or LANG asks for, in this order (gettext's own)."""
    _language.catalogue = gettext.translation(_DOMAIN, os.fspath(_CATALOGUES), fallback=True)


def translate(text: str) -> str:
    """The text in the reader's language. What stands in braces is filled in afterwards."""
    return _language.catalogue.gettext(text) if text else text
