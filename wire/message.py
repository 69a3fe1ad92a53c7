"""What a message is: the one place where requests and replies become bytes and are read back.

Both are records; what stands in them is looked up by command in ARGUMENTS and RESULTS. Reading is strict: what is not
exactly one such message is a ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from constant import REPLY_TRANSITIONS, Command, MessageType
from wire.errors import ErrorCode, MigrationError
from wire.facts import HostFacts
from wire.findings import CheckReport
from wire.forms import check_address, check_request_id, check_tokens
from wire.history import JobArguments, JobDetails, JobList, JobsArguments
from wire.records import (
    CancelArguments,
    CancelReport,
    HelloArguments,
    LinkArguments,
    LinkReport,
    MigrationReport,
    Obstacle,
    Page,
    Progress,
    RollBackReport,
    StatusArguments,
    StepArguments,
    StepReport,
)
from wire.schema import from_wire, record, to_wire
from wire.situation import DomainArguments, DomainView

ARGUMENTS: Mapping[Command, type] = MappingProxyType({
    Command.HELLO: HelloArguments,
    Command.STATUS: StatusArguments,
    Command.CANCEL: CancelArguments,
    Command.CHECK_LINK: LinkArguments,
    Command.MEASURE_LINK: LinkArguments,
    Command.LOCATE: DomainArguments,
    Command.LIST: JobsArguments,
    Command.RECALL: JobArguments,
    **dict.fromkeys((
        Command.CHECK_SOURCE, Command.CHECK_DESTINATION, Command.PREPARE_DESTINATION, Command.COPY_DISK_FILE,
        Command.LIVE_MIGRATION, Command.HAND_OVER, Command.EXTRACT_CONFIGURE_FILE, Command.DEFINE_VIRTUAL_MACHINE,
        Command.FINISH, Command.ROLL_BACK, Command.RESTORE_SOURCE), StepArguments),
})
# STATUS has none of its own: it is answered with what is known of the request that it asks for.
RESULTS: Mapping[Command, type] = MappingProxyType({
    Command.HELLO: HostFacts,
    Command.CHECK_SOURCE: CheckReport,
    Command.CHECK_LINK: CheckReport,
    Command.MEASURE_LINK: LinkReport,
    Command.CHECK_DESTINATION: CheckReport,
    Command.PREPARE_DESTINATION: StepReport,
    Command.COPY_DISK_FILE: StepReport,
    Command.LIVE_MIGRATION: MigrationReport,
    Command.EXTRACT_CONFIGURE_FILE: StepReport,
    Command.DEFINE_VIRTUAL_MACHINE: StepReport,
    Command.HAND_OVER: StepReport,
    Command.FINISH: StepReport,
    Command.RESTORE_SOURCE: StepReport,
    Command.ROLL_BACK: RollBackReport,
    Command.CANCEL: CancelReport,
    Command.LOCATE: DomainView,
    Command.LIST: JobList,
    Command.RECALL: JobDetails,
})
# What `cmd_result` may hold in each type of reply, by the name of its only field; "" stands for nothing.
_CONTENTS: Mapping[MessageType, frozenset[str]] = MappingProxyType({
    MessageType.REQUEST: frozenset(),
    MessageType.ACCEPTED: frozenset({""}),
    MessageType.PROGRESS: frozenset({"progress"}),
    MessageType.RESPONSE: frozenset({"value", "error", "page"}),
    MessageType.REFUSED: frozenset({"error", "page"}),
})
_KINDS: Mapping[str, type] = MappingProxyType({"progress": Progress, "error": Obstacle, "page": Page})


def _check_envelope(request_id: str, agent_ip: str) -> None:
    check_request_id(request_id)
    check_address(agent_ip)


@record
class Request:
    """What a controller asks of the agent at `agent_ip`; `epoch` and `challenge` are from its HELLO reply."""

    request_id: str
    agent_ip: str
    cmd: Command
    cmd_arguments: object
    """The command's record in ARGUMENTS, or a Page of a whole request that is too long for one datagram."""
    epoch: str = ""
    challenge: str = ""

    def __post_init__(self) -> None:
        _check_envelope(self.request_id, self.agent_ip)
        if type(self.cmd_arguments) not in (ARGUMENTS[self.cmd], Page):
            raise ValueError(f"{self.cmd.value} has other arguments")
        check_tokens(self.epoch, self.challenge)


@record
class Reply:
    """What an agent answers to the request with that id: a value, an error, how far it is, or a page of one."""

    msg_type: MessageType
    request_id: str
    agent_ip: str
    cmd: Command
    sequence: int
    asked: str = ""
    """The id of the STATUS that this answers; empty where the agent tells it by itself."""
    cmd_result: object = None
    """None, Progress, Obstacle, Page, or the command's record in RESULTS."""

    def __post_init__(self) -> None:
        _check_envelope(self.request_id, self.agent_ip)
        if self.sequence < 0:
            raise ValueError("the sequence begins at 0")
        if self.asked:
            check_request_id(self.asked)
        if _content_name(self.cmd, self.cmd_result) not in _CONTENTS[self.msg_type]:
            raise ValueError(f"{self.msg_type.value} cannot hold this")

    def error(self) -> MigrationError | None:
        """The error that ended the request, if one did."""
        return self.cmd_result.error() if isinstance(self.cmd_result, Obstacle) else None


def _content_name(command: Command, content: object) -> str:
    """What the field of `cmd_result` is called that holds this, "" for None. Raises ValueError if none does."""
    if content is None:
        return ""
    for name, kind in (*_KINDS.items(), ("value", RESULTS.get(command))):
        if type(content) is kind:
            return name
    raise ValueError(f"{command.value} has no such result")


def can_hold(command: Command, result: object) -> bool:
    """Whether that is a result of this command, or an error."""
    return type(result) in (RESULTS.get(command), Obstacle)


class ArgumentsRefusedError(ValueError):
    """Only the arguments of a request are wrong. `envelope` is a HELLO with its other fields."""

    def __init__(self, envelope: Request, command: Command, error: MigrationError) -> None:
        super().__init__(error.message)
        self.envelope = envelope
        self.command = command
        self.error = error


# Encoding.


def write_json(value: object) -> bytes:
    """A value as the shortest JSON.

    A path out of bytes that are not UTF-8 holds lone surrogates, which no reader would accept: each becomes a question
    mark.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(errors="replace")


def encode(message: Request | Reply) -> bytes:
    """A message as the bytes below the header line."""
    if isinstance(message, Request):
        body = {"msg_type": MessageType.REQUEST.value, **to_wire(message)}
    else:
        body = {**to_wire(message), "cmd_result": result_to_wire(message.cmd, message.cmd_result)}
    return write_json(body)


def result_to_wire(command: Command, result: object) -> dict[str, Any]:
    """The result of a request alone, as JSON has it: one field, named after what kind of result it is."""
    name = _content_name(command, result)
    return {name: to_wire(result)} if name else {}


def encode_result(command: Command, result: object) -> str:
    """The same as text, for pages to carry."""
    return write_json(result_to_wire(command, result)).decode()


# Decoding.


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a field stands twice")
    return result


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_no_constant)


def read_json(text: str) -> dict[str, Any]:
    """The one JSON object in `text`. Raises ValueError."""
    try:
        content = _decoder.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def result_from_wire(command: Command, result: object) -> object:
    """The record in a `cmd_result`, None if there is none. Raises ValueError or MigrationError."""
    if not isinstance(result, dict) or len(result) > 1:
        raise ValueError("a result has one field")
    for name, value in result.items():
        kind = RESULTS.get(command) if name == "value" else _KINDS.get(name)
        if kind is None:
            raise ValueError("no such result")
        return from_wire(kind, value)
    return None


def decode(body: bytes) -> Request | Reply:
    """The message in `body`.

    Raises ValueError for anything that is not exactly one, as ArgumentsRefusedError where only a request's arguments
    are wrong. A reply whose result cannot be read is one whose result is the error MESSAGE_INVALID.
    """
    content = read_json(body.decode())
    if content.get("msg_type") == MessageType.REQUEST.value:
        del content["msg_type"]
        return _request(content)
    return _reply(content)


def _request(content: dict[str, Any]) -> Request:
    command = Command(content.get("cmd"))
    given = content.get("cmd_arguments")
    kind = Page if isinstance(given, dict) and "part" in given else ARGUMENTS[command]
    try:
        arguments: object = from_wire(kind, given)
    except (MigrationError, ValueError) as error:
        # Everything else must be right all the same: the same request with the simplest arguments tells.
        envelope = from_wire(Request, {**content, "cmd": Command.HELLO.value, "cmd_arguments": HelloArguments()})
        raise ArgumentsRefusedError(envelope, command, _named(error, envelope.agent_ip)) from error
    return from_wire(Request, {**content, "cmd_arguments": arguments})


def _reply(content: dict[str, Any]) -> Reply:
    result = content.pop("cmd_result", None)
    envelope = from_wire(Reply, {**content, "msg_type": MessageType.ACCEPTED.value})
    return with_result(envelope, MessageType(content.get("msg_type")), lambda: result)


def with_result(envelope: Reply, msg_type: MessageType, read: Callable[[], object]) -> Reply:
    """The reply with what `read` gives, out of JSON, for its `cmd_result`.

    Raises ValueError if that cannot be read; where the reply is the request's end, the end is an error then.
    """
    try:
        return replace(envelope, msg_type=msg_type, cmd_result=result_from_wire(envelope.cmd, read()))
    except (MigrationError, ValueError) as error:
        if REPLY_TRANSITIONS[msg_type]:
            raise ValueError("not such a reply") from error
        # The request has ended, whatever it is that this version cannot read.
        return replace(envelope, msg_type=msg_type, cmd_result=Obstacle.of(_named(error, envelope.agent_ip)))


def _named(error: MigrationError | ValueError, host: str) -> MigrationError:
    """The error as the admin reads it: a record's own, or that the two versions do not understand each other."""
    if isinstance(error, MigrationError):
        return error
    return MigrationError(ErrorCode.MESSAGE_INVALID, {"host": host, "problem": str(error)[:200]})
