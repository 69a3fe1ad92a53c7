"""What a message is: every request and reply comes back as it was sent, and nothing malformed gets through as one."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constant import Command, MessageType
from tests.unit.samples import (
    ARGUMENTS_OF,
    CONTENTS,
    ENDS,
    EVERY_REPLY,
    EVERY_REQUEST,
    FACTS,
    HOST_FACTS,
    MIGRATION,
    MOVED,
    PAGE,
    PATH_TAKEN,
    PROGRESS,
    RESULT_OF,
    SOURCE,
    a_reply,
)
from wire.errors import ErrorCode, MigrationError
from wire.facts import HostFacts
from wire.findings import CheckReport
from wire.history import JobArguments, JobDetails, JobList, JobsArguments
from wire.message import (
    ARGUMENTS,
    RESULTS,
    ArgumentsRefusedError,
    Reply,
    Request,
    can_hold,
    decode,
    encode,
    encode_result,
    read_json,
    result_from_wire,
    result_to_wire,
)
from wire.records import (
    CancelArguments,
    CancelReport,
    HelloArguments,
    LinkArguments,
    LinkReport,
    MigrationReport,
    Obstacle,
    RollBackReport,
    StatusArguments,
    StepArguments,
    StepReport,
)
from wire.situation import DomainArguments, DomainView

REQUEST = Request(
    request_id="0" * 32, agent_ip=SOURCE, cmd=Command.LIVE_MIGRATION, epoch=HOST_FACTS.epoch,
    challenge=HOST_FACTS.challenge,
    cmd_arguments=StepArguments(migration=dataclasses.replace(MIGRATION, domain="büro"), facts=FACTS))
REPLY = a_reply(Command.LIVE_MIGRATION, MessageType.PROGRESS, PROGRESS)
REPORTED = a_reply(Command.CHECK_SOURCE, MessageType.RESPONSE, RESULT_OF[Command.CHECK_SOURCE])
# What an agent answers to REQUEST if it is only its arguments that are wrong.
ENVELOPE = dataclasses.replace(REQUEST, cmd=Command.HELLO, cmd_arguments=HelloArguments())
Path = tuple[object, ...]


def content_of(message: Request | Reply) -> dict[str, Any]:
    """The JSON of a message, taken apart."""
    content: dict[str, Any] = json.loads(encode(message))
    return content


def as_bytes(content: object) -> bytes:
    """JSON, right or not, as the bytes of a message."""
    return json.dumps(content).encode()


def request_fields(**changes: object) -> bytes:
    """The bytes of REQUEST with some fields changed."""
    return as_bytes({**content_of(REQUEST), **changes})


def reply_fields(**changes: object) -> bytes:
    """The bytes of REPLY with some fields changed."""
    return as_bytes({**content_of(REPLY), **changes})


def objects_in(value: object, path: Path = ()) -> Iterator[Path]:
    """The way to each JSON object inside a value, the outermost first."""
    if isinstance(value, dict):
        yield path
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in below:
        yield from objects_in(inner, (*path, name))


def object_at(content: Any, path: Path) -> dict[str, Any]:
    """The JSON object that a way leads to."""
    for name in path:
        content = content[name]
    found: dict[str, Any] = content
    return found


def answer_to(body: bytes) -> object:
    """What an agent or a controller makes of a message: its error if it names one, None if it drops it."""
    try:
        message = decode(body)
    except ArgumentsRefusedError as refused:
        return refused.error.code
    except ValueError:
        return None
    error = message.error() if isinstance(message, Reply) else None
    return error.code if error else message


# What is sent comes back.


@pytest.mark.parametrize("message", [*EVERY_REQUEST, *EVERY_REPLY, REQUEST])
def test_every_message_comes_back_as_it_was_sent(message: Request | Reply) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("reply", EVERY_REPLY)
def test_every_result_comes_back_as_it_was_sent_also_alone(reply: Reply) -> None:
    wired = result_to_wire(reply.cmd, reply.cmd_result)
    assert result_from_wire(reply.cmd, json.loads(json.dumps(wired))) == reply.cmd_result
    assert result_from_wire(reply.cmd, read_json(encode_result(reply.cmd, reply.cmd_result))) == reply.cmd_result


def test_every_command_has_arguments_of_one_kind() -> None:
    named = {
        Command.HELLO: HelloArguments, Command.STATUS: StatusArguments, Command.CANCEL: CancelArguments,
        Command.CHECK_LINK: LinkArguments, Command.MEASURE_LINK: LinkArguments,
        Command.LOCATE: DomainArguments, Command.LIST: JobsArguments, Command.RECALL: JobArguments}
    assert {**dict.fromkeys(set(Command), StepArguments), **named} == ARGUMENTS
    assert {command: type(arguments) for command, arguments in ARGUMENTS_OF.items()} == ARGUMENTS


def test_every_command_but_status_has_a_result_of_one_kind() -> None:
    named = {
        Command.HELLO: HostFacts, Command.CHECK_SOURCE: CheckReport, Command.CHECK_DESTINATION: CheckReport,
        Command.CHECK_LINK: CheckReport, Command.MEASURE_LINK: LinkReport,
        Command.LIVE_MIGRATION: MigrationReport, Command.ROLL_BACK: RollBackReport, Command.CANCEL: CancelReport,
        Command.LOCATE: DomainView, Command.LIST: JobList, Command.RECALL: JobDetails}
    assert {**dict.fromkeys(set(Command) - {Command.STATUS}, StepReport), **named} == RESULTS
    assert {command: type(result) for command, result in RESULT_OF.items()} == RESULTS


def test_a_message_keeps_the_field_names_of_the_original_program() -> None:
    request, reply = content_of(REQUEST), content_of(REPLY)
    assert {"msg_type", "request_id", "agent_ip", "cmd", "cmd_arguments"} <= request.keys()
    assert request["msg_type"] == "request"
    assert {"msg_type", "request_id", "agent_ip", "cmd", "cmd_result"} <= reply.keys()


def test_a_result_stands_under_the_name_of_what_kind_it_is() -> None:
    for content, name in ((PROGRESS, "progress"), (PATH_TAKEN, "error"), (PAGE, "page"), (MOVED, "value")):
        assert result_to_wire(Command.LIVE_MIGRATION, content).keys() == {name}
    assert result_to_wire(Command.LIVE_MIGRATION, None) == {}


def test_text_beyond_ascii_takes_no_more_bytes_than_utf_8_needs() -> None:
    assert "büro".encode() in encode(REQUEST)
    assert "/srv/vm/ü.img" in encode_result(Command.FINISH, PATH_TAKEN)


def test_text_that_utf_8_cannot_hold_crosses_with_a_question_mark() -> None:
    reply = a_reply(Command.FINISH, MessageType.RESPONSE, StepReport(summary="image-\udcff"))
    assert decode(encode(reply)) == dataclasses.replace(reply, cmd_result=StepReport(summary="image-?"))
    assert encode_result(reply.cmd, reply.cmd_result) == '{"value":{"summary":"image-?"}}'


def test_an_error_crosses_as_code_and_facts_and_reads_the_same() -> None:
    error = MigrationError(ErrorCode.PATH_TAKEN, {"path": "/srv/x", "host": "192.0.2.12"})
    received = decode(encode(a_reply(Command.FINISH, MessageType.RESPONSE, Obstacle.of(error))))
    assert isinstance(received, Reply)
    arrived = received.error()
    assert arrived is not None
    assert (arrived.code, arrived.message, arrived.hint) == (error.code, error.message, error.hint)
    assert REPLY.error() is None


# What a message holds.


@pytest.mark.parametrize("command", list(Command))
def test_a_request_holds_the_arguments_of_its_command_and_no_others(command: Command) -> None:
    for other in (*ARGUMENTS_OF.values(), None, {}, HelloArguments, MIGRATION, PROGRESS):
        if type(other) is ARGUMENTS[command]:
            assert dataclasses.replace(REQUEST, cmd=command, cmd_arguments=other).cmd_arguments is other
        else:
            with pytest.raises(ValueError, match="other arguments"):
                dataclasses.replace(REQUEST, cmd=command, cmd_arguments=other)


@pytest.mark.parametrize("command", list(Command))
@pytest.mark.parametrize("msg_type", list(MessageType))
def test_a_reply_holds_what_its_type_may_hold_and_nothing_else(command: Command, msg_type: MessageType) -> None:
    for content in (None, PROGRESS, PATH_TAKEN, PAGE, *RESULT_OF.values(), MIGRATION, {}, "x"):
        value = msg_type is MessageType.RESPONSE and type(content) is RESULTS.get(command)
        if value or any(kind is msg_type and allowed is content for kind, allowed in CONTENTS):
            assert a_reply(command, msg_type, content).cmd_result is content
        else:
            with pytest.raises(ValueError, match=r"cannot hold|no such result"):
                a_reply(command, msg_type, content)


@pytest.mark.parametrize("command", list(RESULTS))
def test_a_command_ends_with_its_own_result_or_an_error(command: Command) -> None:
    for content in (None, PROGRESS, PAGE, MIGRATION, *RESULT_OF.values()):
        assert can_hold(command, content) is (type(content) is RESULTS[command])
    assert can_hold(command, PATH_TAKEN)


@pytest.mark.parametrize("request_id", [
    "", "0", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 31 + "\n", " " + "0" * 31, "\u0660" * 32, "-" + "0" * 31,
])
def test_a_request_id_is_128_bits_in_hex_digits(request_id: str) -> None:
    for message in (REQUEST, REPLY):
        with pytest.raises(ValueError, match="request id"):
            dataclasses.replace(message, request_id=request_id)
    assert answer_to(request_fields(request_id=request_id)) is None
    assert answer_to(reply_fields(request_id=request_id)) is None


@pytest.mark.parametrize("address", [
    "", "node1", "192.0.2.011", "192.0.2.1 ", "192.0.2.1/32", "192.0.2.1:8002", "2001:DB8::1", "2001:db8:0::1",
    "[2001:db8::1]", "fe80::1%eth0", "::1%", "3221225985", "0x7f.1",
])
def test_an_agent_has_a_canonical_address(address: str) -> None:
    for message in (REQUEST, REPLY):
        with pytest.raises(ValueError, match="address"):
            dataclasses.replace(message, agent_ip=address)
    assert answer_to(request_fields(agent_ip=address)) is None
    assert answer_to(reply_fields(agent_ip=address)) is None


def test_an_epoch_and_a_challenge_are_short_and_a_sequence_begins_at_0() -> None:
    for name in ("epoch", "challenge"):
        assert isinstance(decode(request_fields(**{name: "x" * 64})), Request)
        assert answer_to(request_fields(**{name: "x" * 65})) is None
    assert isinstance(decode(reply_fields(sequence=0)), Reply)
    assert isinstance(decode(reply_fields(sequence=2**63 - 1)), Reply)
    for wrong in (-1, 2**63):
        assert answer_to(reply_fields(sequence=wrong)) is None


# What is not exactly a message is a ValueError.


@pytest.mark.parametrize("message", [*EVERY_REQUEST, REQUEST, REPLY, REPORTED])
def test_an_unknown_field_is_refused_however_deep_it_stands(message: Request | Reply) -> None:
    content = content_of(message)
    for path in objects_in(content):
        for name in ("extra", "", "msg_type "):
            changed = copy.deepcopy(content)
            object_at(changed, path)[name] = None
            # An agent says so where it is in the arguments, a controller in a result.
            expected = None if path == () or message is REPLY else ErrorCode.MESSAGE_INVALID
            assert answer_to(as_bytes(changed)) == expected, path


@pytest.mark.parametrize("message", [*EVERY_REQUEST, *EVERY_REPLY, REQUEST])
def test_a_field_that_stands_twice_is_refused_however_deep_it_stands(message: Request | Reply) -> None:
    content = content_of(message)
    for path in objects_in(content):
        for name, value in object_at(content, path).items():
            changed = copy.deepcopy(content)
            object_at(changed, path)["again"] = value
            with pytest.raises(ValueError, match="twice"):
                decode(as_bytes(changed).replace(b'"again"', json.dumps(name).encode()))


@pytest.mark.parametrize("field", ["request_id", "agent_ip", "cmd", "msg_type"])
def test_a_request_without_one_of_its_fields_is_refused(field: str) -> None:
    content = content_of(REQUEST)
    del content[field]
    assert answer_to(as_bytes(content)) is None


@pytest.mark.parametrize("field", ["request_id", "agent_ip", "cmd", "cmd_result", "msg_type", "sequence"])
def test_a_reply_without_one_of_its_fields_is_refused(field: str) -> None:
    content = content_of(REPLY)
    del content[field]
    assert answer_to(as_bytes(content)) is None


@pytest.mark.parametrize("body", [
    request_fields(cmd_result={}), request_fields(sequence=1), reply_fields(epoch="e"), reply_fields(cmd_arguments={}),
    request_fields(request_id=1), request_fields(request_id=None), request_fields(request_id=["x"]),
    request_fields(cmd=1), request_fields(cmd="SHELL"), request_fields(cmd="hello"), request_fields(cmd={}),
    request_fields(cmd=None), request_fields(cmd=["HELLO"]), request_fields(cmd="HELLO "), reply_fields(cmd="SHELL"),
    request_fields(agent_ip=True), request_fields(challenge=0), request_fields(epoch={}), request_fields(epoch=None),
    reply_fields(sequence="1"), reply_fields(sequence=1.0), reply_fields(sequence=True), reply_fields(sequence=None),
    reply_fields(msg_type="shout"), reply_fields(msg_type=""), reply_fields(msg_type="REQUEST"),
    reply_fields(msg_type=1), reply_fields(msg_type=[]), reply_fields(msg_type=None), reply_fields(msg_type={}),
    reply_fields(msg_type="request"), request_fields(msg_type="response"), request_fields(msg_type="accepted"),
])
def test_a_field_of_the_wrong_type_or_an_unknown_word_is_refused(body: bytes) -> None:
    assert answer_to(body) is None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_json_does_not_know_as_a_number_is_refused(number: str) -> None:
    for body, place in ((encode(REPLY), b'"sequence":7'), (encode(REQUEST), b'"bandwidth":0')):
        with pytest.raises(ValueError, match="not JSON"):
            decode(body.replace(place, place[:-1] + number.encode()))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1.0", "1e3", "9223372036854775808", "1" + "0" * 5000])
def test_what_is_no_whole_number_of_64_bits_is_refused(number: str) -> None:
    assert answer_to(encode(REPLY).replace(b'"sequence":7', b'"sequence":' + number.encode())) is None
    changed = encode(REQUEST).replace(b'"bandwidth":0', b'"bandwidth":' + number.encode())
    assert answer_to(changed) in (None, ErrorCode.MESSAGE_INVALID)


@pytest.mark.parametrize("body", [
    b"", b" ", b"null", b"[]", b"1", b'"x"', b"true", b"{", b"}", b"{}", b"{}{}", b"[{}]", b"\x00", b"\xff",
    b'{"a": \xff}', encode(REQUEST)[:-1], encode(REQUEST)[1:], encode(REQUEST) + b"x", encode(REQUEST) + b"\x00",
    encode(REQUEST) + encode(REQUEST), b"[%b]" % encode(REQUEST), encode(REQUEST).replace(b'"', b"'"),
    encode(REQUEST).decode().encode("utf-16"), encode(REQUEST).decode().encode("utf-16-le"),
    encode(REQUEST).decode().encode("utf-32"), encode(REQUEST).decode().encode("utf-8-sig"),
    encode(REQUEST).decode().encode("latin-1"), encode(REQUEST).replace("ü".encode(), b"\xc3"),
    encode(REQUEST).replace("ü".encode(), b"\xed\xa0\x80"), encode(REQUEST).replace(b"0badcafe", b"0bad\ncafe"),
])
def test_what_is_not_one_json_object_in_utf_8_is_refused(body: bytes) -> None:
    assert answer_to(body) is None
    with pytest.raises(ValueError):  # noqa: PT011 - of any cause
        decode(body)


@pytest.mark.parametrize("depth", [100, 1_000, 100_000])
def test_nesting_however_deep_is_refused_and_never_a_crash(depth: int) -> None:
    for deep in (b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        assert answer_to(deep) is None
        for name in (b"request_id", b"cmd", b"epoch", b"extra"):
            assert answer_to(b'{"%b":%b,%b' % (name, deep, encode(ENVELOPE)[1:])) is None
        for name, body in ((b"cmd_arguments", request_fields), (b"cmd_result", reply_fields)):
            changed = body(**{name.decode(): "here"}).replace(b'"here"', deep)
            assert answer_to(changed) in (None, ErrorCode.MESSAGE_INVALID)


@pytest.mark.parametrize("text", ["\ud800", "x\udfff", "\udc80\ud800"])
def test_a_lone_surrogate_anywhere_is_refused(text: str) -> None:
    for message in (REQUEST, REPLY):
        content = content_of(message)
        for path in objects_in(content):
            for name, value in object_at(content, path).items():
                if isinstance(value, str):
                    changed = copy.deepcopy(content)
                    object_at(changed, path)[name] = text
                    with pytest.raises(ValueError):  # noqa: PT011 - of any cause
                        decode(as_bytes(changed))
    with pytest.raises(ValueError):  # noqa: PT011 - of any cause
        decode(request_fields(**{text: 1}))


def test_a_pair_of_surrogates_is_the_character_that_it_stands_for() -> None:
    body = request_fields().replace(b"b\\u00fcro", b"\\ud83d\\ude00")
    received = decode(body)
    assert isinstance(received, Request)
    assert isinstance(received.cmd_arguments, StepArguments)
    assert received.cmd_arguments.migration.domain == "\U0001f600"


# Only the arguments are wrong: the agent can say so.


def with_arguments(**changes: object) -> bytes:
    """The bytes of REQUEST with some of the migration's fields changed."""
    content = content_of(REQUEST)
    content["cmd_arguments"]["migration"].update(changes)
    return as_bytes(content)


@pytest.mark.parametrize(("body", "code"), [
    (request_fields(cmd_arguments=None), ErrorCode.MESSAGE_INVALID),
    (request_fields(cmd_arguments=[]), ErrorCode.MESSAGE_INVALID),
    (request_fields(cmd_arguments="x"), ErrorCode.MESSAGE_INVALID),
    (request_fields(cmd_arguments={}), ErrorCode.MESSAGE_INVALID),
    (as_bytes({name: value for name, value in content_of(REQUEST).items() if name != "cmd_arguments"}),
     ErrorCode.MESSAGE_INVALID),
    (with_arguments(bandwidth=True), ErrorCode.MESSAGE_INVALID),
    (with_arguments(bandwidth=-1), ErrorCode.MESSAGE_INVALID),
    (with_arguments(transport="pigeon"), ErrorCode.MESSAGE_INVALID),
    (with_arguments(later="x"), ErrorCode.MESSAGE_INVALID),
    (with_arguments(domain="\ud800"), ErrorCode.MESSAGE_INVALID),
    (with_arguments(domain="--all"), ErrorCode.ARGUMENTS_INVALID),
    (with_arguments(user="-oProxyCommand=x"), ErrorCode.ARGUMENTS_INVALID),
    (with_arguments(disk="/a/../b"), ErrorCode.PATH_INVALID),
])
def test_wrong_arguments_of_a_right_request_are_told_with_what_is_right_of_it(body: bytes, code: ErrorCode) -> None:
    with pytest.raises(ArgumentsRefusedError) as caught:
        decode(body)
    assert caught.value.envelope == ENVELOPE
    assert caught.value.command is Command.LIVE_MIGRATION
    assert caught.value.error.code is code
    assert "?" not in caught.value.error.message
    # It crosses back.
    encode(a_reply(Command.LIVE_MIGRATION, MessageType.REFUSED, Obstacle.of(caught.value.error)))


# A job's id is all that CANCEL and RECALL take, and HELLO may have one. LIST may be asked for as little as HELLO.
ALIKE = {
    (Command.CANCEL, Command.RECALL), (Command.RECALL, Command.CANCEL), (Command.HELLO, Command.CANCEL),
    (Command.HELLO, Command.RECALL), (Command.LIST, Command.HELLO)}


@pytest.mark.parametrize("command", list(Command))
def test_the_arguments_of_another_command_are_told(command: Command) -> None:
    for other, arguments in ARGUMENTS_OF.items():
        sent = content_of(dataclasses.replace(REQUEST, cmd=other, cmd_arguments=arguments))["cmd_arguments"]
        if ARGUMENTS[other] is not ARGUMENTS[command] and (command, other) not in ALIKE:
            assert answer_to(request_fields(cmd=command.value, cmd_arguments=sent)) is ErrorCode.MESSAGE_INVALID


@pytest.mark.parametrize("changes", [
    {"request_id": "x"}, {"agent_ip": "node1"}, {"epoch": 1}, {"challenge": "x" * 65}, {"extra": 1}, {"cmd": "SHELL"},
])
def test_wrong_arguments_of_a_wrong_request_get_no_answer(changes: Mapping[str, object]) -> None:
    for arguments in (None, {}, {"migration": 1}):
        assert answer_to(request_fields(cmd_arguments=arguments, **changes)) is None


# A reply that cannot be read.

UNREADABLE: tuple[object, ...] = (
    None, [], "x", 1, {"later": {}}, {"value": {}, "error": {}}, {"value": None}, {"value": {"summary": 1}},
    {"value": {"disk_bytes": 1, "memory_bytes": 1, "downtime": 1, "later": 1}}, {"error": {}},
    {"error": {"code": "later", "facts": {}}}, {"page": None},
    {"page": {"page": 2, "pages": 2, "digest": "", "part": ""}}, {"progress": {"phase": "x", "done": 1}},
    {"value": {"phase": "x", "done": 1, "total": 1}},
)


@pytest.mark.parametrize("result", [*UNREADABLE, {}, {"progress": {"phase": "x", "done": 1, "total": 1}}])
@pytest.mark.parametrize("end", ENDS)
def test_an_end_that_cannot_be_read_is_an_end_all_the_same(end: MessageType, result: object) -> None:
    received = decode(reply_fields(msg_type=end.value, cmd_result=result))
    assert isinstance(received, Reply)
    assert isinstance(received.cmd_result, Obstacle)
    assert received.cmd_result.code is ErrorCode.MESSAGE_INVALID
    assert received.cmd_result.facts["host"] == REPLY.agent_ip
    assert received == dataclasses.replace(REPLY, msg_type=end, cmd_result=received.cmd_result)


def test_a_refusal_that_brings_a_result_is_a_refusal_all_the_same() -> None:
    body = reply_fields(msg_type="refused", cmd_result=result_to_wire(Command.LIVE_MIGRATION, MOVED))
    assert answer_to(body) is ErrorCode.MESSAGE_INVALID


def test_an_end_without_its_result_is_an_end_all_the_same() -> None:
    content = content_of(REPORTED)
    del content["cmd_result"]
    assert answer_to(as_bytes(content)) is ErrorCode.MESSAGE_INVALID


@pytest.mark.parametrize("result", UNREADABLE)
@pytest.mark.parametrize("msg_type", [MessageType.ACCEPTED, MessageType.PROGRESS])
def test_what_cannot_be_read_and_is_no_end_is_no_message(msg_type: MessageType, result: object) -> None:
    with pytest.raises(ValueError, match="not such a reply"):
        decode(reply_fields(msg_type=msg_type.value, cmd_result=result))


@pytest.mark.parametrize("content", [PATH_TAKEN, PAGE, MOVED])
def test_what_ends_a_request_does_not_stand_in_a_reply_that_does_not(content: object) -> None:
    wired = result_to_wire(Command.LIVE_MIGRATION, content)
    for msg_type in ("accepted", "progress"):
        assert answer_to(reply_fields(msg_type=msg_type, cmd_result=wired)) is None
    assert answer_to(reply_fields(msg_type="accepted")) is None
    assert answer_to(reply_fields(msg_type="progress", cmd_result={})) is None


# Whatever comes, it is a message or a ValueError.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12)
FIELDS = st.sampled_from([
    "msg_type", "request_id", "agent_ip", "cmd", "cmd_arguments", "cmd_result", "sequence", "epoch", "challenge", "x"])


def read(body: bytes) -> None:
    """Decode; what comes out can be sent again and comes back the same."""
    try:
        message = decode(body)
    except ValueError:
        return
    assert decode(encode(message)) == message


@given(st.binary(max_size=1200))
def test_random_bytes_are_a_message_or_a_value_error(body: bytes) -> None:
    read(body)


@given(JSON_VALUES)
def test_random_json_is_a_message_or_a_value_error(value: object) -> None:
    read(as_bytes(value))


@settings(max_examples=200)
@given(st.sampled_from([REQUEST, REPLY, REPORTED]), st.dictionaries(FIELDS, JSON_VALUES, max_size=3))
def test_a_message_with_random_fields_is_a_message_or_a_value_error(
    message: Request | Reply, changes: dict[str, object],
) -> None:
    read(as_bytes({**content_of(message), **changes}))


@settings(max_examples=200)
@given(st.sampled_from([REQUEST, REPLY, REPORTED]), st.data())
def test_a_message_with_random_content_somewhere_is_a_message_or_a_value_error(
    message: Request | Reply, data: st.DataObject,
) -> None:
    content = content_of(message)
    place = object_at(content, data.draw(st.sampled_from(sorted(objects_in(content), key=str))))
    place[data.draw(st.sampled_from([*sorted(place), "x"]))] = data.draw(JSON_VALUES)
    read(as_bytes(content))
