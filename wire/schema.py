"""What a record is: a frozen dataclass whose fields are given by name and checked when it is made, and its JSON form.

Reading is strict: an unknown or missing field, a wrong type, a number out of range or an over-long text is a
ValueError.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, Union

from wire.phrase import Phrase, Text

if typing.TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:
    def dataclass_transform(**_what_a_type_checker_reads: object) -> Callable[[Any], Any]:
        """Python 3.9 has it not yet, and at run time it means nothing."""
        return lambda decorator: decorator

T = TypeVar("T")

LONGEST_TEXT = 4096
# A sentence in a sentence in a list of them, and one more.
_DEEPEST_PHRASE = 4
# What SQLite, Java and most JSON readers hold in an integer.
_LARGEST_NUMBER = 2**63 - 1


# What a record's own __post_init__ is.
_OWN_CHECKS: dict[object, Callable[[Any], None]] = {}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(kind: type[T]) -> type[T]:
    """Make a class a frozen dataclass that takes its fields by name only and cannot be made wrong.

    Its __init__ raises TypeError for a missing or unknown field, ValueError for content that is not of the field's
    type, and then runs the class's own __post_init__. (dataclass has kw_only from Python 3.10 on.)
    """
    _OWN_CHECKS[kind] = kind.__dict__.get("__post_init__") or (lambda _self: None)
    # dataclass compiles six methods for each class that has these of its own: the admin's command, with some forty
    # records, started 0.02 to 0.03 s later (measured).
    made = dataclass(init=False, repr=False, eq=False)(kind)
    for method in (_init, _repr, _eq, _hash, _setattr, _delattr):
        setattr(made, f"_{method.__name__}__", method)
    return made


def _init(self: object, **fields: object) -> None:
    kind = type(self)
    known, content = _fields(kind), self.__dict__
    content.update(_defaults(kind))
    content.update(fields)
    for problem, names in (
        ("has unexpected", content.keys() - known.keys()), ("is missing", known.keys() - content.keys()),
    ):
        if names:
            raise TypeError(f"{kind.__name__} {problem} fields: {', '.join(sorted(names))}")
    for name, wanted in known.items():
        if not wanted.holds(content[name]):
            raise ValueError(f"{kind.__name__}.{name} has the wrong type or size")
    _OWN_CHECKS[kind](self)


def _repr(self: object) -> str:
    fields = ", ".join(f"{name}={self.__dict__[name]!r}" for name in _fields(type(self)))
    return f"{type(self).__qualname__}({fields})"


def _eq(self: object, other: object) -> bool:
    return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented


def _hash(self: object) -> int:
    return hash(tuple(self.__dict__[name] for name in _fields(type(self))))


def _setattr(_self: object, name: str, _value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(_self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


@dataclass(frozen=True)
class _Hint:
    """What one type hint means: how its value is read out of JSON, and what may stand in a field of that type."""

    read: Callable[[object], Any]
    holds: Callable[[object], bool]
    optional: bool = False


_AS_THEY_ARE = frozenset({str, int, bool, type(None)})
_FIELDS: dict[object, Mapping[str, _Hint]] = {}
_DEFAULTS: dict[object, Mapping[str, object]] = {}
_ABSENT: dict[object, Mapping[str, object]] = {}


def _fields(kind: Any) -> Mapping[str, _Hint]:
    """The fields of a record and what each of them holds, worked out once."""
    fields = _FIELDS.get(kind)
    if fields is None:
        fields = _FIELDS[kind] = {name: _hint(hint) for name, hint in typing.get_type_hints(kind).items()}
    return fields


def _refuse(_value: object) -> Any:
    raise ValueError("of the wrong type")


def _read_text(value: object) -> str:
    if not _is_text(value):
        raise ValueError("no text, or too long")
    text = typing.cast(str, value)
    if not text.isascii():
        # A lone surrogate, which JSON can escape and UTF-8 cannot hold, is a UnicodeEncodeError: a ValueError.
        text.encode()
    return text


def _is_text(value: object) -> bool:
    return type(value) is str and len(value) <= LONGEST_TEXT


def _read_words(value: object, depth: int = 0) -> Any:
    """A text, or a Phrase as `{"words", "facts"}`; neither is too long, nor nested too deep."""
    if not isinstance(value, dict):
        return _read_text(value)
    if depth == _DEEPEST_PHRASE or not {"words"} <= value.keys() <= {"words", "facts"}:
        return _refuse(value)
    facts = value.get("facts", {})
    if not isinstance(facts, dict):
        return _refuse(value)
    phrase = Phrase(_read_text(value["words"]), {
        _read_text(name): _read_words(fact, depth + 1) for name, fact in facts.items()})
    return phrase if _is_words(phrase) else _refuse(value)


def _is_words(value: object) -> bool:
    return type(value) in (str, Phrase) and len(typing.cast(str, value)) <= LONGEST_TEXT


def _read_number(value: object) -> object:
    return value if _is_number(value) else _refuse(value)


def _is_number(value: object) -> bool:
    return type(value) is int and -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER


def _read_truth(value: object) -> object:
    return value if type(value) is bool else _refuse(value)


_PLAIN: Mapping[object, _Hint] = {
    str: _Hint(_read_text, _is_text),
    Text: _Hint(_read_words, _is_words),
    int: _Hint(_read_number, _is_number),
    bool: _Hint(_read_truth, lambda value: type(value) is bool),
    # A field whose content the record itself looks at; what comes out of JSON must have been read before.
    object: _Hint(lambda value: value, lambda value: True),
}


@functools.cache
def _hint(hint: Any) -> _Hint:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        # Optional; what is None is left out of JSON, so null is never right there.
        inner = _hint(arguments[0])
        return _Hint(inner.read, lambda value: value is None or inner.holds(value), optional=True)
    if origin is tuple:
        return _tuple_of(_hint(arguments[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_of(_hint(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, tuple):
        return _named_tuple(hint)
    if dataclasses.is_dataclass(hint):
        read: Callable[[object], Any] = functools.partial(from_wire, typing.cast("type[Any]", hint))
    else:
        read = _member_of(hint)
    return _Hint(read, lambda value: type(value) is hint)


def _tuple_of(inner: _Hint) -> _Hint:
    def read(value: object) -> object:
        return tuple(inner.read(each) for each in value) if isinstance(value, list) else _refuse(value)

    return _Hint(read, lambda value: type(value) is tuple and all(inner.holds(each) for each in value))


def _named_tuple(kind: Any) -> _Hint:
    """A NamedTuple: a list in JSON, in the order of its fields, for what comes too often to carry their names."""
    inner = [_hint(hint) for hint in typing.get_type_hints(kind).values()]

    def read(value: object) -> object:
        if not isinstance(value, list) or len(value) != len(inner):
            return _refuse(value)
        return kind(*(hint.read(each) for hint, each in zip(inner, value)))

    return _Hint(read, lambda value: type(value) is kind and all(
        hint.holds(each) for hint, each in zip(inner, typing.cast("tuple[object, ...]", value))))


def _mapping_of(inner: _Hint) -> _Hint:
    def read(value: object) -> object:
        if not isinstance(value, dict):
            return _refuse(value)
        return {_read_text(name): inner.read(each) for name, each in value.items()}

    def holds(value: object) -> bool:
        return isinstance(value, Mapping) and all(
            _is_text(name) and inner.holds(each) for name, each in value.items())

    return _Hint(read, holds)


def _member_of(kind: type[Enum]) -> Callable[[object], Any]:
    members = {member.value: member for member in kind}

    def read(value: object) -> object:
        return members.get(value) or _refuse(value) if type(value) is str else _refuse(value)

    return read


def from_wire(kind: type[T], value: object) -> T:
    """The record of type `kind` that `value`, out of JSON, stands for.

    Raises ValueError for a missing or unknown field, a wrong type, or content that the record itself refuses;
    MigrationError where the record names the admin's mistake.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{kind.__name__} is no object")
    known = _fields(kind)
    if not value.keys() <= known.keys():
        raise ValueError(f"{kind.__name__} has unknown fields")
    # Made without __init__, which would look at everything a second time: this is what makes the difference between
    # 50 and 70 microseconds for a request.
    made = object.__new__(kind)
    fields = made.__dict__
    fields.update(_absent(kind))
    for name, content in value.items():
        try:
            fields[name] = known[name].read(content)
        except ValueError as error:
            raise ValueError(f"{kind.__name__}.{name}: {error}") from error
    if len(fields) < len(known):
        raise ValueError(f"{kind.__name__} lacks fields")
    _OWN_CHECKS[kind](made)
    return made


def _absent(kind: Any) -> Mapping[str, object]:
    """The fields of a record that need not be in its JSON, with what they are then."""
    absent = _ABSENT.get(kind)
    if absent is None:
        optional = {name: None for name, hint in _fields(kind).items() if hint.optional}
        absent = _ABSENT[kind] = {**optional, **_defaults(kind)}
    return absent


def _defaults(kind: Any) -> Mapping[str, object]:
    defaults = _DEFAULTS.get(kind)
    if defaults is None:
        defaults = _DEFAULTS[kind] = {
            field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    return defaults


def to_wire(value: object) -> Any:
    """A record as JSON has it; fields that are None, or what they are anyway if they are left out, are left out."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, Phrase):
        return {"words": value.words, **({"facts": to_wire(value.facts)} if value.facts else {})}
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(kind):
        content, absent = value.__dict__, _absent(kind)
        return {
            name: to_wire(content[name]) for name in _fields(kind)
            if content[name] is not None and (name not in absent or content[name] != absent[name])}
    if isinstance(value, Mapping):
        return {str(name): to_wire(content) for name, content in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_wire(content) for content in value]
    return value
