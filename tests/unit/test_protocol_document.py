"""docs/protocol.md is what the programs speak: each record with its fields, each word, each number, and real bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Union

import pytest

import constant
from constant import (
    BEGUN_WITHOUT_JOURNAL,
    CHANGE_NOTHING,
    NOT_JOURNALED,
    REPEATABLE,
    START_NOTHING,
    Command,
    MessageType,
)
from tests.unit.samples import MASTER, ROOT
from wire.access import Key
from wire.datagram import Direction, keyring, unseal
from wire.errors import ErrorCode
from wire.facts import HostFacts
from wire.findings import Check
from wire.forms import JOB_ID_PATTERN, USER_PATTERN
from wire.history import LIST_LIMIT
from wire.message import _KINDS, ARGUMENTS, RESULTS, Reply, Request, decode, encode
from wire.records import _DISKS_BYTES, CancelReport
from wire.schema import LONGEST_TEXT, _absent

DOCUMENT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
ONE_LINE = " ".join(DOCUMENT.split())


# Records.


def parts_of(hint: Any) -> Iterator[Any]:
    """The types that a type hint is made of."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        yield hint
    else:
        is_map = isinstance(origin, type) and issubclass(origin, Mapping)
        yield from parts_of(arguments[1 if is_map else 0])


def described(hint: Any) -> str:
    """How the document writes a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        return " or ".join(described(each) for each in arguments if each is not type(None))
    if origin is tuple:
        return f"list of {described(arguments[0])}"
    if arguments:
        return f"map of {described(arguments[1])}"
    plain = {str: "text", int: "number", bool: "boolean", object: "by `cmd`"}
    return plain.get(hint) or f"`{hint.__name__}`"


def is_named_tuple(kind: Any) -> bool:
    """Whether it is a list in JSON whose places have names."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def reachable(kinds: Iterable[Any], found: dict[str, Any]) -> dict[str, Any]:
    """Every record and word that can stand in these, by its name."""
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Enum):
            found[kind.__name__] = kind
        elif (dataclasses.is_dataclass(kind) or is_named_tuple(kind)) and kind.__name__ not in found:
            found[kind.__name__] = kind
            reachable((part for hint in typing.get_type_hints(kind).values() for part in parts_of(hint)), found)
    return found


ALL = reachable([Request, Reply, *ARGUMENTS.values(), *RESULTS.values(), *_KINDS.values()], {})
RECORDS = {name: kind for name, kind in ALL.items() if not issubclass(kind, Enum)}
WORDS = {name: kind for name, kind in ALL.items() if issubclass(kind, Enum)}


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = re.split(rf"^{re.escape(heading)}$", DOCUMENT, maxsplit=1, flags=re.MULTILINE)
    assert len(text) == 2, f"docs/protocol.md has no heading {heading!r}"
    rows: list[list[str]] = []
    for line in text[1].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows or line.startswith("#"):
            break
    return rows[2:]


def heading_of(name: str) -> str:
    """The heading of a record's table."""
    return f"{'###' if name in ('Request', 'Reply') else '####'} `{name}`"


def fields_of(kind: Any) -> list[list[str]]:
    """The fields of a record as the document lists them: name, type, and what it is if it is left out."""
    absent = _absent(kind) if dataclasses.is_dataclass(kind) else {}
    rows = []
    for name, hint in typing.get_type_hints(kind).items():
        value = absent.get(name)
        plain = value.value if isinstance(value, Enum) else value
        written = "none" if value is None else f"`{json.dumps(plain, default=lambda _record: {})}`"
        rows.append([f"`{name}`", described(hint), written if name in absent else "-"])
    return rows


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_every_record_is_there_with_its_fields_types_and_defaults(name: str) -> None:
    assert [row[:3] for row in rows_below(heading_of(name))] == fields_of(RECORDS[name])


def test_no_record_is_there_that_is_never_sent() -> None:
    assert set(re.findall(r"^#{3,4} `([A-Z]\w+)`$", DOCUMENT, re.MULTILINE)) == set(RECORDS)


@pytest.mark.parametrize("name", sorted(WORDS))
def test_every_word_is_there(name: str) -> None:
    row = next((cells for cells in rows_below("## Words") if cells[0] == f"`{name}`"), None)
    assert row is not None, f"the words of {name} are not listed"
    if WORDS[name] not in (Check, ErrorCode):
        assert re.findall(r"`([^`]+)`", row[1]) == [member.value for member in WORDS[name]]


# Commands.


def commands() -> dict[Command, list[str]]:
    """The row of each command."""
    table = re.search(r"^\| `cmd` \| `cmd_arguments` .*?\n\n", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert table is not None
    found = {}
    for line in table[0].strip().splitlines()[2:]:
        names, *cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        found.update({Command(name.strip()): cells for name in names.split(",")})
    return found


@pytest.mark.parametrize("command", list(Command))
def test_every_command_is_there_with_what_it_takes_and_gives(command: Command) -> None:
    arguments, result, starts, journaled = commands()[command]
    assert arguments == f"`{ARGUMENTS[command].__name__}`"
    if command is not Command.STATUS:
        assert result == f"`{RESULTS[command].__name__}`"
    assert starts.startswith("no" if command in START_NOTHING else "yes")
    assert ("changes nothing" in starts) == (command in CHANGE_NOTHING - START_NOTHING)
    assert journaled == ("no" if command in NOT_JOURNALED else "yes")


def test_it_says_which_steps_may_run_twice_and_which_begin_without_the_journal() -> None:
    names = [command.value for command in Command if command in REPEATABLE - CHANGE_NOTHING]
    sentence = re.search(r"These may run twice: what changes nothing, (.*?)\.", ONE_LINE)
    assert sentence is not None
    assert sorted(re.split(r", | and ", sentence[1])) == sorted(names)
    without = re.search(r"Only ([A-Z_, ]+ and [A-Z_]+), which may run twice and make room", ONE_LINE)
    assert without is not None
    assert set(re.split(r", | and ", without[1])) == {command.value for command in BEGUN_WITHOUT_JOURNAL}


def test_every_kind_of_reply_is_there_with_what_may_follow() -> None:
    table = re.search(r"^\| `msg_type` \| `cmd_result` .*?\n\n", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = {line.split("`")[1]: line for line in table[0].splitlines()[2:] if line}
    assert set(rows) == {kind.value for kind in MessageType} - {"request"}
    for kind, following in constant.REPLY_TRANSITIONS.items():
        if kind is not MessageType.REQUEST:
            last_cell = rows[kind.value].rstrip("| ").rpartition(" | ")[2] if following else ""
            assert set(re.findall(r"`(\w+)`", last_cell)) == {each.value for each in following}


# Numbers.


@pytest.mark.parametrize("sentence", [
    f"At most {constant.DATAGRAM_LIMIT} bytes",
    f"Requests go to UDP port {constant.AGENT_PORT}.",
    f"A controller sends from port {constant.CONTROLLER_PORT},",
    f"a text longer than {LONGEST_TEXT} characters",
    f"no more than {constant.RATE_PER_SECOND} datagrams a second, {constant.RATE_BURST} at once",
    f"a challenge of the last {constant.CHALLENGE_SECONDS:.0f} s",
    f"A challenge that is older than {constant.CHALLENGE_SECONDS / 2:.0f} s is renewed",
    f"to the destination every {constant.CHALLENGE_SECONDS * 2 / 3:.0f} s",
    f"again after {constant.RETRY_FIRST_SECONDS:.0f} s, 2 s, 4 s, then every {constant.RETRY_LONGEST_SECONDS:.0f} s, "
    f"each times a random 1 to {constant.RETRY_JITTER}",
    f"It gives up after {constant.GIVE_UP_SECONDS:.0f} s without a word (a HELLO at the start of a run after "
    f"{constant.HELLO_GIVE_UP_SECONDS:.0f} s)",
    f"What changes nothing is given up after {constant.CHECK_LIMIT_SECONDS:.0f} s",
    f"as take at most {_DISKS_BYTES} bytes",
    f"There are at most {constant.PAGES_LIMIT}.",
    f"There are at most {constant.REQUEST_PAGES_LIMIT}, so that",
    f"It keeps {constant.UNFINISHED_LIMIT} incomplete requests at most, each for {constant.CHALLENGE_SECONDS:.0f} s",
    f"by themselves {constant.GIVE_UP_SECONDS:.0f} s after they last heard of it",
    f"{LIST_LIMIT} at most",
    f"after {constant.JOURNAL_ENTRIES_LIMIT:,} entries",
    f"`{JOB_ID_PATTERN.pattern}`",
    f"`{USER_PATTERN.pattern}`",
])
def test_its_numbers_are_those_of_the_programs(sentence: str) -> None:
    assert sentence in ONE_LINE


# Bytes.


def example() -> str:
    """The section with the example."""
    return DOCUMENT.partition("## An example in bytes")[2].partition("\n## ")[0]


def datagrams() -> list[bytes]:
    """The datagrams of the example."""
    found = re.findall(r"^    (VMM1 .*)\n    (\{.*\})$", example(), re.MULTILINE)
    return [f"{header}\n{body}".encode() for header, body in found]


def opened(datagram: bytes, direction: Direction) -> Request | Reply:
    """What is in one of them."""
    return decode(unseal(datagram, keyring([MASTER.for_agent("192.168.111.132")]), direction)[1])


def test_the_examples_key_is_the_agents() -> None:
    key, key_id = re.findall(r"^    ([0-9a-f]+)$", example(), re.MULTILINE)
    assert MASTER.secret == bytes(range(32))
    assert MASTER.for_agent("192.168.111.132").secret.hex() == key
    assert Key(bytes.fromhex(key)).id == key_id
    # As the page says it is made, without our own code.
    assert hashlib.sha256(b"VMMigration key id" + bytes.fromhex(key)).hexdigest()[:8] == key_id


def test_the_examples_datagrams_open_with_that_key() -> None:
    hello, accepted, answer, cancel, cancelled, status, again = datagrams()
    for datagram in (hello, cancel, status):
        request = opened(datagram, Direction.REQUEST)
        assert isinstance(request, Request)
        # To the byte: a request is told by its bytes.
        assert encode(request) == datagram.partition(b"\n")[2]
    replies = [opened(datagram, Direction.REPLY) for datagram in (accepted, answer, cancelled, again)]
    results = [reply.cmd_result for reply in replies if isinstance(reply, Reply)]
    assert results[0] is None
    assert isinstance(results[1], HostFacts)
    assert results[2] == CancelReport(known=True)
    assert results[3] == results[1]


def test_the_examples_cancel_carries_what_hello_told() -> None:
    _, _, answer, cancel, _, status, again = datagrams()
    told, asked = opened(answer, Direction.REPLY), opened(cancel, Direction.REQUEST)
    assert isinstance(told, Reply)
    assert isinstance(told.cmd_result, HostFacts)
    assert isinstance(asked, Request)
    assert (asked.epoch, asked.challenge) == (told.cmd_result.epoch, told.cmd_result.challenge)
    repeated, question = opened(again, Direction.REPLY), opened(status, Direction.REQUEST)
    assert isinstance(repeated, Reply)
    assert repeated.asked == question.request_id
    assert repeated.request_id == told.request_id


def test_the_smallest_controller_is_a_program() -> None:
    program = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert program is not None
    compile(program[1], "smallest.py", "exec")
    assert not re.findall(r"^(?:from|import) (?:wire|control|constant|udpmodule)", program[1], re.MULTILINE)
