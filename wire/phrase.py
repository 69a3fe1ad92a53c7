"""A sentence of ours with facts in it: English for logs and programs, and in the reader's language where a person
reads. It crosses the wire as its English words and the facts, so that a peer's sentence that is not in the catalogue
is still shown in English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Union

# A name in braces, perhaps to be quoted, and the full stop after it if it ends a sentence.
_NAME = re.compile(r"\{(\w+)(!r)?\}(\.(?=\s|$)|。)?")
_FULL_STOPS = (".", "。")
_NO_FACTS: Mapping[str, str] = MappingProxyType({})


class Phrase(str):
    """What `words` say once their `{names}` are filled from the facts.

    As a text it is that in English. A fact that is a Phrase is put into the reader's language as well; any other is a
    name, a figure or somebody else's words, and stays as it is.
    """

    __slots__ = ("_facts", "_words")
    _words: str
    _facts: Mapping[str, str]

    def __new__(cls, words: str, facts: Mapping[str, str] = _NO_FACTS) -> Phrase:
        """Facts that the words do not name are left out; one that they lack reads `?`."""
        made = super().__new__(cls, fill(words, facts))
        made._words = words
        made._facts = MappingProxyType({
            name: facts[name] for name in dict.fromkeys(found[1] for found in _NAME.finditer(words)) if name in facts})
        return made

    @property
    def words(self) -> str:
        """The English words, with the names in their braces."""
        return self._words

    @property
    def facts(self) -> Mapping[str, str]:
        """What fills them."""
        return self._facts

    def __reduce__(self) -> tuple[type[Phrase], tuple[str, dict[str, str]]]:
        """How copies are made: as it was."""
        return Phrase, (self._words, dict(self._facts))

    def text(self, translate: Callable[[str], str]) -> str:
        """The same in another language, given what turns our English words into that."""
        return fill(translate(self._words), {
            name: fact.text(translate) if isinstance(fact, Phrase) else fact for name, fact in self._facts.items()})


# The type of a record's field in which either may stand.
Text = Union[str, Phrase]


def fill(words: str, facts: Mapping[str, str]) -> str:
    """The words with the facts in the place of their names, `{name}` or, in quotes, `{name!r}`.

    A fact that an older peer left out reads `?`. One that ends with a full stop takes the place of the one after it.
    Not str.format(): what comes from a peer must reach nothing but the facts.
    """
    def put(found: re.Match[str]) -> str:
        name, quoted, stop = found[1], found[2], found[3] or ""
        fact = str(facts.get(name, "?"))
        return repr(fact) + stop if quoted else fact if fact.endswith(_FULL_STOPS) else fact + stop

    return _NAME.sub(put, words)


def template(words: str) -> str:
    """Words of ours that become a Phrase elsewhere: marks them for the catalogue, and changes nothing."""
    return words


COMMA = template(", ")
SEMICOLON = template("; ")
COLON = template(": ")


def joined(parts: Iterable[str], separator: str = COMMA) -> str:
    """Several texts as one, each in the reader's language, and the separator as well."""
    named = {str(number): part for number, part in enumerate(parts)}
    if len(named) < 2:
        return named.get("0", "")
    return Phrase("{and}".join(f"{{{name}}}" for name in named), {**named, "and": Phrase(separator)})
