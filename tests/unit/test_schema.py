"""What a record is: given by name, checked when it is made, and read out of JSON just as strictly.

All records are walked: those that cross the wire, requests and replies, and the journal's entries.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import json
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import ImageFormat, LibvirtDaemon, Transport
from tests.unit.samples import (
    EVERY_ENTRY,
    EVERY_RECORD,
    EVERY_REPLY,
    EVERY_REQUEST,
    FACTS,
    HOST_FACTS,
    ISO,
    LINK,
    MIGRATION,
    PROGRESS,
    QCOW2,
    RAW,
)
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts
from wire.forms import check_path
from wire.journal import Head
from wire.records import CancelArguments, Migration, MigrationReport, Obstacle, Page, StatusArguments, StepArguments
from wire.schema import _OWN_CHECKS, LONGEST_TEXT, from_wire, to_wire

ALL: tuple[Any, ...] = (*EVERY_RECORD, *EVERY_REQUEST, *EVERY_REPLY, *EVERY_ENTRY, Head(epoch=HOST_FACTS.epoch))
# Requests, replies and ends hold one of many records, which only their own modules can read.
READ_ALONE = [each for each in ALL if object not in typing.get_type_hints(type(each)).values()]
TOO_LONG = "x" * (LONGEST_TEXT + 1)
# One more than a signed number of 64 bits holds.
TOO_LARGE = (2**63, -2**63, 10**400)
each_record = pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
each_read_alone = pytest.mark.parametrize("record", READ_ALONE, ids=lambda record: type(record).__name__)


class Text(str):
    """Text that is more than that."""

    __slots__ = ()


class Number(int):
    """A number that is more than that."""


def a_migration(**changes: Any) -> Migration:
    """MIGRATION with some fields changed."""
    return dataclasses.replace(MIGRATION, **changes)


def wrong_values(hint: Any) -> Iterator[Any]:
    """What must not stand in a field of that type."""
    yield from (1.5, math.inf, math.nan, b"x", object(), {1}, [], [[]], {"": {}}, hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        yield from (value for value in wrong_values(arguments[0]) if value is not None)
        return
    if hint is object:
        yield from ("", 0, True, (), {}, PROGRESS.__dict__, ErrorCode.INTERNAL)
        return
    yield None
    if hint is str:
        yield from (0, True, Text("x"), ErrorCode.INTERNAL, TOO_LONG, ["x"])
    elif hint is int:
        yield from ("1", True, False, 1.0, Number(1), *TOO_LARGE)
    elif hint is bool:
        yield from ("true", 0, 1)
    elif origin is tuple:
        yield from ("xx", {}, iter(()), *((value,) for value in wrong_values(arguments[0])))
    elif origin is not None:
        yield from ([("x", "x")], "x", *({"x": value} for value in wrong_values(arguments[1])))
        yield from ({1: "x"}, {None: "x"}, {Text("x"): "x"}, {TOO_LONG: "x"})
    elif issubclass(hint, Enum):
        yield from (*(member.value for member in hint), "x", 0, True, Other.MEMBER)
    else:
        yield from ("x", 0, (), {}, *(to_wire(each) for each in ALL if type(each) is hint), Head(epoch="x"))


class Other(str, Enum):
    """An enumeration of no record."""

    MEMBER = "source"


def wrong_json(hint: Any) -> Iterator[Any]:
    """What must not stand for a value of that type in JSON."""
    yield from (None, 1.5, math.inf, -math.inf, math.nan, [[]], {"": {}})
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        yield from wrong_json(arguments[0])
    elif hint is str:
        yield from (0, True, [], {}, ["x"], TOO_LONG, "\ud800", "x\udfff")
    elif hint is int:
        yield from ("1", "", True, False, 1.0, [], {}, *TOO_LARGE)
    elif hint is bool:
        yield from ("true", "", 0, 1, [], {})
    elif origin is tuple:
        yield from ("", "xx", 0, True, {}, *([value] for value in wrong_json(arguments[0])))
    elif origin is not None:
        yield from ("", "xx", 0, True, [], [["x", "x"]], {"\ud800": "x"}, {TOO_LONG: "x"})
        yield from ({"x": value} for value in wrong_json(arguments[1]))
    elif issubclass(hint, Enum):
        yield from ("", "x", 0, True, [], {}, TOO_LONG, "\ud800", *(f"{member.value} " for member in hint))
    else:
        yield from ("", "x", 0, True, [], {"no such field": 1})


def taken(make: Callable[..., object], name: str, values: Iterable[Any]) -> list[Any]:
    """Those of the values that `make` takes under that name."""
    found = []
    for value in values:
        with contextlib.suppress(ValueError):
            make(**{name: value})
            found.append(value)
    return found


# Every record.


def test_no_record_is_left_out_of_these_tests() -> None:
    assert {kind for kind in _OWN_CHECKS if kind.__module__.startswith("wire.")} == {type(record) for record in ALL}


@each_record
def test_a_record_takes_its_fields_by_name_alone(record: Any) -> None:
    values = dict(record.__dict__)
    assert type(record)(**values) == record
    for count in range(1, len(values) + 1):
        with pytest.raises(TypeError, match="positional"):
            type(record)(*list(values.values())[:count], **dict(list(values.items())[count:]))


@each_record
def test_a_record_without_one_of_its_fields_is_not_made_unless_that_is_optional(record: Any) -> None:
    for field in dataclasses.fields(record):
        values = {name: value for name, value in record.__dict__.items() if name != field.name}
        if field.default is dataclasses.MISSING:
            with pytest.raises(TypeError, match=field.name):
                type(record)(**values)


@each_record
def test_a_record_with_a_field_that_it_does_not_have_is_not_made(record: Any) -> None:
    for name in ("extra", "msg_type_", "self_", "__dict__", ""):
        with pytest.raises(TypeError, match="unexpected"):
            type(record)(**record.__dict__, **{name: 1})


@each_record
def test_a_record_with_a_field_of_the_wrong_type_or_size_is_not_made(record: Any) -> None:
    for name, hint in typing.get_type_hints(type(record)).items():
        assert taken(functools.partial(dataclasses.replace, record), name, wrong_values(hint)) == [], name


@each_record
def test_a_record_does_not_change(record: Any) -> None:
    for name in (*record.__dict__, "extra"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(record, name)


def test_the_largest_numbers_and_the_longest_text_are_taken() -> None:
    largest = MigrationReport(disk_bytes=2**63 - 1, memory_bytes=0, downtime=1 - 2**63)
    assert from_wire(MigrationReport, json.loads(json.dumps(to_wire(largest)))) == largest
    longest = Obstacle(code=ErrorCode.INTERNAL, facts={TOO_LONG[1:]: "\U0001f600" * LONGEST_TEXT})
    assert from_wire(Obstacle, json.loads(json.dumps(to_wire(longest)))) == longest


def test_the_type_hints_of_all_records_can_be_evaluated_by_python_3_9() -> None:
    # Which knows `X | None` as little as the names that typing has since then.
    for kind in {type(record) for record in ALL}:
        for hint in kind.__annotations__.values():
            assert not [node for node in ast.walk(ast.parse(hint)) if isinstance(node, ast.BinOp)], f"{kind}: {hint}"


# Their JSON.


@each_read_alone
def test_a_record_comes_back_as_it_was_sent(record: Any) -> None:
    sent = json.loads(json.dumps(to_wire(record), allow_nan=False))
    assert from_wire(type(record), sent) == record


@each_read_alone
def test_each_field_of_a_record_is_read_as_strictly_as_it_is_made(record: Any) -> None:
    sent = to_wire(record)
    for name, hint in typing.get_type_hints(type(record)).items():
        assert taken(lambda **change: from_wire(type(record), {**sent, **change}), name, wrong_json(hint)) == [], name


@each_read_alone
def test_a_field_that_is_missing_or_unknown_in_json_is_refused(record: Any) -> None:
    sent = to_wire(record)
    optional = {field.name for field in dataclasses.fields(record) if field.default is not dataclasses.MISSING}
    optional |= {name for name, hint in typing.get_type_hints(type(record)).items() if typing.get_origin(hint) is Union}
    for name in sent.keys() - optional:
        with pytest.raises(ValueError, match="lacks"):
            from_wire(type(record), {each: sent[each] for each in sent if each != name})
    for name in ("extra", "", "__class__", "self", "\ud800"):
        with pytest.raises(ValueError, match="unknown"):
            from_wire(type(record), {**sent, name: 1})
    for wrong in (None, [], [sent], "x", 1, True):
        with pytest.raises(ValueError, match="no object"):
            from_wire(type(record), wrong)


def test_an_absent_optional_field_is_none_and_is_left_out_again() -> None:
    sent = to_wire(StepArguments(migration=MIGRATION))
    assert "facts" not in sent
    assert from_wire(StepArguments, sent).facts is None
    assert to_wire(a_migration(disk=None)).keys().isdisjoint({"disk"})


def test_a_record_out_of_a_datagram_is_checked_like_one_made_here() -> None:
    with pytest.raises(MigrationError):
        from_wire(Migration, {**to_wire(MIGRATION), "user": "-oProxyCommand=x"})
    with pytest.raises(ValueError, match="qcow2"):
        from_wire(DomainFacts, {**to_wire(FACTS), "disks": [{**to_wire(QCOW2), "cluster_size": 3}]})
    with pytest.raises(ValueError, match=r"facts: DomainFacts\.disks: DiskFacts\.path"):
        from_wire(StepArguments, {
            "migration": to_wire(MIGRATION), "facts": {**to_wire(FACTS), "disks": [{**to_wire(QCOW2), "path": 1}]}})


# What the content of a record must be.


NO_JOB_IDS = ("", "0badcaf", "0badcafe0", "0BADCAFE", "../../..", "0badcafe\n", "g" * 8, "\u0660" * 8)


@pytest.mark.parametrize("job_id", NO_JOB_IDS)
def test_a_job_id_is_eight_hex_digits(job_id: str) -> None:
    with pytest.raises(MigrationError) as caught:
        a_migration(job_id=job_id)
    assert caught.value.code is ErrorCode.ARGUMENTS_INVALID


@pytest.mark.parametrize("job_id", NO_JOB_IDS)
def test_what_is_to_be_cancelled_is_named_by_a_job_id_and_nothing_else(job_id: str) -> None:
    with pytest.raises((ValueError, MigrationError)):
        CancelArguments(job_id=job_id)


@pytest.mark.parametrize("user", [
    "", "-oProxyCommand=x", "-l", "root;id", "a b", "kvm\n", "kvm@host", "kvm:x", "1kvm", "../kvm", "k" * 65,
    "$USER", "ü",
])
def test_a_user_is_a_plain_account_name_and_never_an_option(user: str) -> None:
    with pytest.raises(MigrationError) as caught:
        a_migration(user=user)
    assert caught.value.code is ErrorCode.ARGUMENTS_INVALID
    assert "user name" in caught.value.message


@pytest.mark.parametrize("user", ["kvm", "_x", "vm-mover", "a" * 32, "kvm2", "a_b"])
def test_an_ordinary_user_is_taken(user: str) -> None:
    assert a_migration(user=user).user == user


@pytest.mark.parametrize("domain", [
    "", "-VM1", "--all", "a/b", "/", "../x", "VM\n1", "VM1\n", "VM\x001", "VM\t1", "VM\x7f", "x" * 256,
    "VM\x9b2J", "\x80VM", "VM\ud800", "\udcff", bytes([0x56, 0xff]).decode("utf-8", "surrogateescape"),
])
def test_a_domain_is_a_name_that_libvirt_takes_and_never_an_option_or_a_path(domain: str) -> None:
    with pytest.raises(MigrationError) as caught:
        a_migration(domain=domain)
    assert caught.value.code is ErrorCode.ARGUMENTS_INVALID
    assert "VM name" in caught.value.message


@pytest.mark.parametrize("domain", ["VM1", "a-b", "Windows 11", "büro", "x" * 255, "vm.example.org", "a:b"])
def test_an_ordinary_domain_is_taken(domain: str) -> None:
    assert a_migration(domain=domain).domain == domain


@pytest.mark.parametrize("path", [
    "", "/", "relative", "./x", "images/x.qcow2", "a/b/c",
    "/file", "/a/../b", "/a/..", "/a/.", "/./a", "//a/b", "/a//b",
    "/a/b/", "/a/b\n", "/a\x00/b", "/a/\x1b[2J", "/a/\u202egnp", "/a/" + "x" * 510, "~/x", "$HOME/x", "C:\\x\\y",
])
def test_a_path_is_absolute_and_plain(path: str) -> None:
    with pytest.raises(MigrationError) as caught:
        check_path("Disk path", path)
    assert caught.value.code is ErrorCode.PATH_INVALID
    for make in (
        lambda: a_migration(disk=path), lambda: a_migration(conf_file=path),
        lambda: dataclasses.replace(QCOW2, path=path), lambda: dataclasses.replace(FACTS, firmware=path),
        lambda: dataclasses.replace(ISO, path=path),
    ):
        with pytest.raises(MigrationError) as caught:
            make()
        assert caught.value.code is ErrorCode.PATH_INVALID


@pytest.mark.parametrize("path", ["/a/b", "/var/lib/libvirt/images/VM 1.qcow2", "/srv/büro/..x", "/a/" + "x" * 509])
def test_an_ordinary_path_is_taken(path: str) -> None:
    assert check_path("Disk path", path) == path


@pytest.mark.parametrize("changes", [
    {"source": "node1"}, {"source": ""}, {"destination": "192.0.2.011"}, {"destination": "2001:DB8::1"},
    {"source": "fe80::1%eth0"}, {"destination": "fe80::1%1"}, {"destination": "fe80::1%a b;\n$(id)"},
    {"source": "192.0.2.1/32"}, {"source": "192.0.2.1 "}, {"bandwidth": -1}, {"timeout": -1},
])
def test_a_migration_has_canonical_addresses_and_no_negative_limit(changes: Mapping[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any cause
        a_migration(**changes)


@pytest.mark.parametrize("changes", [
    {"cluster_size": 0}, {"cluster_size": 256}, {"cluster_size": 65535}, {"cluster_size": 65537},
    {"cluster_size": 98304}, {"cluster_size": 4 << 20}, {"cluster_size": -65536}, {"compat": ""}, {"compat": "1.2"},
    {"compat": "1.1,preallocation=full"}, {"virtual_size": 0}, {"virtual_size": -1}, {"allocated": -1},
    {"target": ""}, {"target": "v"}, {"target": "1vda"}, {"target": "vda,x"}, {"target": "VDA"}, {"target": "vd-a"},
    {"target": "v" * 17}, {"target": "vda\n"},
])
def test_an_image_that_cannot_be_is_not_described(changes: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"range|qcow2"):
        dataclasses.replace(QCOW2, **changes)


@pytest.mark.parametrize("size", [512, 4096, 65536, 2 << 20])
def test_every_cluster_size_of_qcow2_is_taken(size: int) -> None:
    for compat in ("1.1", "0.10"):
        assert dataclasses.replace(QCOW2, cluster_size=size, compat=compat).cluster_size == size


@pytest.mark.parametrize("changes", [{"cluster_size": 65536}, {"compat": "1.1"}, {"preallocated": True}])
def test_a_raw_image_has_neither_clusters_nor_a_version(changes: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="raw"):
        dataclasses.replace(RAW, **changes)
    assert DiskFacts(
        target="sda", path="/a/b", format=ImageFormat.RAW, virtual_size=1, allocated=0, cluster_size=0, compat="")


@pytest.mark.parametrize(("record", "changes"), [
    (PROGRESS, {"phase": "x" * 199}), (PROGRESS, {"done": -1}), (PROGRESS, {"total": -1}),
    (StatusArguments(of="0" * 32), {"page": -1}),
    *((StatusArguments(of="0" * 32), {"of": each}) for each in ("", "0" * 31, "0" * 33, "A" * 32, "0" * 31 + "\n")),
    *((Page(page=0, pages=1, digest="", part=""), each) for each in (
        {"page": -1}, {"page": 1}, {"pages": 0}, {"pages": 65}, {"pages": -1})),
])
def test_a_count_or_an_id_out_of_range_is_refused(record: Any, changes: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"phase|page|id"):
        dataclasses.replace(record, **changes)


@pytest.mark.parametrize("changes", [
    {"milliseconds": -1}, {"milliseconds": 10_001}, {"bandwidth": -1}, {"at_most": -1}])
def test_a_link_is_not_measured_out_of_all_bounds(changes: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        dataclasses.replace(LINK, **changes)


def test_a_greeting_holds_no_epoch_or_challenge_that_a_request_could_not_carry() -> None:
    assert dataclasses.replace(HOST_FACTS, epoch="x" * 64, challenge="x" * 64)
    for name in ("epoch", "challenge"):
        assert taken(functools.partial(dataclasses.replace, HOST_FACTS), name, ["x" * 65, TOO_LONG[1:]]) == [], name


def test_what_a_tool_said_at_great_length_is_cut_in_an_obstacle() -> None:
    obstacle = Obstacle.of(MigrationError(ErrorCode.INTERNAL, {"host": "x" * LONGEST_TEXT, "reason": TOO_LONG}))
    assert obstacle.facts == {"host": "x" * LONGEST_TEXT, "reason": TOO_LONG[2:] + "…"}
    assert obstacle.error().code is ErrorCode.INTERNAL


def test_the_conf_file_goes_where_libvirt_keeps_it_unless_asked_otherwise() -> None:
    assert a_migration(conf_file=None).conf_path() == "/etc/libvirt/qemu/VM1.xml"
    assert a_migration(conf_file="/srv/x.xml").conf_path() == "/srv/x.xml"


def test_a_migration_to_another_daemon_differs_in_nothing_else() -> None:
    changed = MIGRATION.with_daemons(LibvirtDaemon.LIBVIRTD, LibvirtDaemon.VIRTQEMUD)
    assert changed.destination_daemon is LibvirtDaemon.VIRTQEMUD
    assert dataclasses.replace(changed, destination_daemon=LibvirtDaemon.LIBVIRTD) == MIGRATION
    assert MIGRATION.transport is Transport.SSH


def test_a_step_that_needs_facts_says_so_when_they_are_missing() -> None:
    assert StepArguments(migration=MIGRATION, facts=FACTS).known_facts() == FACTS
    with pytest.raises(MigrationError) as caught:
        StepArguments(migration=MIGRATION).known_facts()
    assert caught.value.code is ErrorCode.MESSAGE_INVALID


# Whatever comes, it is a record or a ValueError.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12)


@given(st.sampled_from(READ_ALONE), st.sampled_from(READ_ALONE), st.data())
def test_a_record_with_a_random_field_is_a_record_or_a_value_error(
    record: object, kind: object, data: st.DataObject,
) -> None:
    sent = to_wire(record)
    name = data.draw(st.sampled_from([*sorted(sent), "x"]))
    try:
        from_wire(type(kind), {**sent, name: data.draw(JSON_VALUES)})
    except (ValueError, MigrationError):
        return
