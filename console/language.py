"""The language of what a person reads: English, or another one by the locale if there is a catalogue of it.

What programs read, JSON, logs and the wire, stays as it is.
"""

from __future__ import annotations

import gettext
import locale
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

from console.program import with_program_name
from wire.phrase import COMMA, Phrase, Text, joined

_DOMAIN = "vmmigration"
# Beside the packages, in a checkout as in an installed package.
_CATALOGUES = Path(__file__).resolve().parent / "locale"
# In the order of setlocale(3); LANGUAGE is a list that goes before them, unless they ask for no language at all.
_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
_NO_LANGUAGE = ("C", "POSIX")
# Where simplified Chinese is written. Whoever reads traditional Chinese gets English, or LANGUAGE=zh_CN.
_SIMPLIFIED_CHINESE = re.compile(r"zh([_-](CN|SG|MY|Hans([_-]\w+)?))?", re.IGNORECASE)


class _Language:
    """The catalogue in use; the text itself where there is none."""

    def __init__(self) -> None:
        self.catalogue: gettext.NullTranslations = gettext.NullTranslations()


_language = _Language()


def choose_language(environment: Mapping[str, str] = os.environ, streams: Iterable[TextIO] = ()) -> None:
    """Take the language that the environment, or else Windows, asks for; English if the streams cannot show it."""
    languages = languages_of({"LANG": _language_of_windows(), **environment})
    catalogue = gettext.NullTranslations()
    if languages:
        catalogue = gettext.translation(_DOMAIN, os.fspath(_CATALOGUES), languages, fallback=True)
    _language.catalogue = catalogue
    if not all(_can_show(stream, translate("usage:")) for stream in streams):
        _language.catalogue = gettext.NullTranslations()


def languages_of(environment: Mapping[str, str]) -> list[str]:
    """The languages that it asks for, the best first, as far as they go before English; named as our catalogues are."""
    chosen = next((environment[name] for name in _LOCALE_VARIABLES if environment.get(name)), "")
    if chosen in _NO_LANGUAGE:
        return []
    found: list[str] = []
    for wanted in [*environment.get("LANGUAGE", "").split(":"), chosen]:
        # zh_CN.UTF-8, sr_RS@latin: the encoding is the stream's own.
        language = re.split(r"[.@]", wanted)[0]
        if re.match(r"en\b|en_", language):
            break
        found.append("zh_CN" if _SIMPLIFIED_CHINESE.fullmatch(language) else language)
    return [language for language in found if language]


def _language_of_windows() -> str:
    """What the display language of Windows is called elsewhere; empty where it is none."""
    if sys.platform != "win32":
        return ""
    import ctypes

    return locale.windows_locale.get(ctypes.windll.kernel32.GetUserDefaultUILanguage(), "")


def _can_show(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has these signs; one that is not encoded at all has every sign."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def readable(text: Text) -> str:
    """What a host has told: a Phrase in the reader's language; anything else stays as it is."""
    return translate(text) if isinstance(text, Phrase) else text


def listed(parts: Iterable[Text], separator: str = COMMA) -> str:
    """Several texts as one, with the separator of the reader's language between them."""
    return readable(joined(parts, separator))


def translate(text: str) -> str:
    """The text in the reader's language; that of a Phrase with its facts.

    Any other is looked up as it stands, and what stands in braces is filled in afterwards.
    """
    if isinstance(text, Phrase):
        return text.text(translate)
    return with_program_name(_language.catalogue.gettext(text)) if text else text
