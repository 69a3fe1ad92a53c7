"""The catalogues of the reader's languages: which sentences the code has for them, and what a .po and a .mo file hold.

`script/language` brings the files up to date with it, tests/unit/test_language_catalogue.py says when they are not.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from constant import DomainState, FilePurpose, Outcome, Pause, Verdict
from wire.situation import Situation

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "console" / "locale"
PACKAGES = ("console", "control", "host", "steps", "steps/checks", "wire")
# What is shown under its own value.
ENUMERATIONS = (DomainState, FilePurpose, Outcome, Pause, Situation, Verdict)
# Functions and records that take sentences of ours, and which of their arguments are.
TAKES = {"translate": (0,), "template": (0,), "Phrase": (0,), "CheckText": (0,), "ErrorText": (1, 2)}
# Where argparse takes them as well, by their keyword.
OPTIONS = "console/arguments.py"
_NAME = re.compile(r"\{\w+(?:!r)?\}")

Places = Mapping[str, Sequence[str]]
"""Each sentence, with the files that have it."""


@dataclass(frozen=True)
class Language:
    """One catalogue: its two files."""

    name: str

    @property
    def written(self) -> Path:
        """What a translator writes."""
        return LOCALES / self.name / "LC_MESSAGES" / "vmmigration.po"

    @property
    def compiled(self) -> Path:
        """What gettext reads."""
        return self.written.with_suffix(".mo")

    def read(self) -> Catalog:
        """The translator's file."""
        with self.written.open("rb") as file:
            return read_po(file, locale=self.name)


LANGUAGES = tuple(Language(path.name) for path in sorted(LOCALES.iterdir()))


# What the code says.


def sources(root: Path = ROOT) -> list[Path]:
    """The files that may say something to a person."""
    return sorted([*root.glob("*.py"), *(path for package in PACKAGES for path in root.glob(f"{package}/*.py"))])


def sentences(root: Path = ROOT) -> Places:
    """All that the code may show, in the order of the files."""
    found: dict[str, list[str]] = {}
    for path in sources(root):
        place = str(path.relative_to(root))
        for text in _said(ast.parse(path.read_text(encoding="utf-8")), place):
            if place not in found.setdefault(text, []):
                found[text].append(place)
    for kind in ENUMERATIONS:
        for member in kind:
            found.setdefault(member.value, []).append(f"{kind.__module__.replace('.', '/')}.py")
    return found


def _said(tree: ast.Module, place: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for position in TAKES.get(called, ()):
            if position < len(node.args):
                yield from _texts(node.args[position])
        for keyword in node.keywords:
            if place == OPTIONS and keyword.arg == "help":
                yield from _texts(keyword.value)


def _texts(node: ast.expr) -> Iterator[str]:
    """The text, or each of those that a condition chooses from; nothing of what comes out of a table."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value:
            yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)


def names(text: str) -> list[str]:
    """What is put into a sentence."""
    return sorted(set(_NAME.findall(text)))


# The files.


def texts(catalog: Catalog) -> dict[str, str]:
    """Each sentence with its translation."""
    return {str(message.id): _text(message.string) for message in catalog if message.id}


def _text(string: Union[str, Sequence[str], None]) -> str:
    return string if isinstance(string, str) else ""


def updated(old: Catalog, said: Places) -> Catalog:
    """The catalogue with exactly these sentences, each with the translation that it had."""
    known = texts(old)
    new = Catalog(
        locale=old.locale, domain="vmmigration", header_comment=old.header_comment, project="vmmigration",
        version=old.version, msgid_bugs_address=old.msgid_bugs_address, creation_date=old.creation_date,
        revision_date=old.revision_date, last_translator=old.last_translator, language_team=old.language_team,
        charset="utf-8", fuzzy=False)
    for text, places in said.items():
        new.add(text, known.get(text, ""), locations=[(place, 0) for place in places]).flags.clear()
    return new


def as_text(catalog: Catalog) -> bytes:
    """The catalogue as a .po file."""
    file = io.BytesIO()
    write_po(file, catalog, width=120, include_lineno=False)
    return file.getvalue()


def compiled(catalog: Catalog) -> bytes:
    """The catalogue as a .mo file."""
    file = io.BytesIO()
    write_mo(file, catalog)
    return file.getvalue()


def problems(catalog: Catalog, said: Places) -> Iterator[str]:
    """All that is wrong with a catalogue."""
    known = texts(catalog)
    for text in said:
        if text not in known:
            yield f"is not there: {text!r}"
    for message in catalog:
        if not message.id:
            continue
        text, translated = str(message.id), _text(message.string)
        if text not in said:
            yield f"is said nowhere: {text!r}"
        if not translated:
            yield f"has no translation: {text!r}"
        elif names(text) != names(translated):
            yield f"has other names in it: {text!r}"
        if message.fuzzy:
            yield f"is fuzzy: {text!r}"
    for message in catalog.obsolete.values():
        yield f"is obsolete: {message.id!r}"


def main() -> int:
    """Bring every catalogue up to date with the code, compile it, and print what a translator has to do."""
    said, code = sentences(), 0
    for language in LANGUAGES:
        catalog = updated(language.read(), said)
        language.written.write_bytes(as_text(catalog))
        language.compiled.write_bytes(compiled(catalog))
        for problem in problems(catalog, said):
            print(f"{language.written.relative_to(ROOT)}: {problem}")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
