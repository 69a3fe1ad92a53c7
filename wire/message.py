"""What a message is: the one place where requests, replies and the records in them become bytes and are read back.

Reading is strict: an unknown or missing field, a wrong type, a field that stands twice or NaN is a ValueError.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, Union

from constant import Command, ErrorCode, MessageType, MigrationError
from wire.records import Obstacle

T = TypeVar("T")

_LONGEST_TEXT = 1024


def to_wire(value: object) -> Any:
    """A record of constant.py as JSON has it; fields that are None are left out."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: to_wire(content) for name, content in fields.items() if content is not None}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): to_wire(content) for name, content in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_wire(content) for content in value]
    return value


def from_wire(kind: type[T], value: object) -> T:
    """The record of type `kind` that `value`, out of JSON, stands for.

    Raises ValueError for a missing or unknown field, a wrong type, or content that the record itself refuses;
    MigrationError where the record names the admin's mistake.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{kind.__name__} is not an object")
    hints = typing.get_type_hints(kind)
    unknown = value.keys() - hints.keys()
    if unknown:
        raise ValueError(f"{kind.__name__} has unknown fields")
    # to_wire() leaves out what is None.
    fields = {name: None for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    fields |= {name: _field(hints[name], content, f"{kind.__name__}.{name}") for name, content in value.items()}
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{kind.__name__} lacks fields") from error


def _field(hint: Any, value: object, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        return _field(arguments[0], value, name)
    if origin is tuple and isinstance(value, list):
        return tuple(_field(arguments[0], content, name) for content in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return {_field(str, key, name): _field(arguments[1], content, name) for key, content in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_wire(typing.cast("type[Any]", hint), value)
    if origin is None and issubclass(hint, Enum) and isinstance(value, str):
        return hint(value)
    if hint in (str, int, bool) and type(value) is hint:
        if isinstance(value, str) and len(value) > _LONGEST_TEXT:
            raise ValueError(f"{name} is too long")
        return value
    raise ValueError(f"{name} has the wrong type")


@dataclass(frozen=True)
class Request:
    """What a controller asks of the agent at `agent_ip`; `epoch` and `challenge` are from its HELLO reply."""

    request_id: str
    agent_ip: str
    cmd: Command
    cmd_arguments: Mapping[str, Any]
    epoch: str = ""
    challenge: str = ""


@dataclass(frozen=True)
class Reply:
    """What an agent answers to the request with that id: a value, an error, or how far it is."""

    msg_type: MessageType
    request_id: str
    agent_ip: str
    cmd: Command
    cmd_result: Mapping[str, Any]
    sequence: int

    def error(self) -> MigrationError | None:
        """The error that ended the request, if one did."""
        if "error" not in self.cmd_result:
            return None
        try:
            return from_wire(Obstacle, self.cmd_result["error"]).error()
        except ValueError:
            problem = "it answers with an error that this version does not know"
            return MigrationError(ErrorCode.MESSAGE_INVALID, {"host": self.agent_ip, "problem": problem})


def encode(message: Request | Reply) -> bytes:
    """A message as the bytes below the header line."""
    body = to_wire(message)
    if isinstance(message, Request):
        body["msg_type"] = MessageType.REQUEST.value
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A path out of bytes that are not UTF-8 holds lone surrogates, which no peer would accept.
    return text.encode(errors="replace")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a field stands twice")
    return result


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def decode(body: bytes) -> Request | Reply:
    """The message in `body`. Raises ValueError for anything that is not exactly one."""
    try:
        content = json.loads(body.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
        # Lone surrogates, which JSON can escape and UTF-8 cannot hold, are a UnicodeEncodeError: a ValueError.
        json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError("not an object")
    free = {name: content.pop(name, None) for name in ("cmd_arguments", "cmd_result") if name in content}
    if any(not isinstance(value, dict) for value in free.values()):
        raise ValueError("arguments or result is not an object")
    if content.get("msg_type") == MessageType.REQUEST.value:
        del content["msg_type"]
        return _with_free_fields(Request, content, free)
    return _with_free_fields(Reply, content, free)


def _with_free_fields(kind: type[T], content: dict[str, object], free: Mapping[str, Any]) -> T:
    """Like from_wire(), for a message whose arguments or result are checked later, by the command's own record."""
    hints = typing.get_type_hints(kind)
    if content.keys() - hints.keys():
        raise ValueError("unknown fields")
    checked = {name: _field(hints[name], value, name) for name, value in content.items()}
    try:
        return kind(**checked, **free)
    except TypeError as error:
        raise ValueError("missing or unknown fields") from error
