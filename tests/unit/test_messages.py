"""What a message is: every record comes back as it was sent, and nothing malformed gets through as one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wire.records
from constant import Command, ErrorCode, ImageFormat, LibvirtDaemon, MessageType, MigrationError, Transport
from tests.unit.samples import EVERY_RECORD, FACTS, MIGRATION, QCOW2, RAW
from wire.message import Reply, Request, decode, encode, from_wire, to_wire
from wire.records import (
    CheckReport,
    DiskFacts,
    DomainFacts,
    Migration,
    MigrationReport,
    Obstacle,
    Progress,
    StepArguments,
    check_path,
)

REQUEST = Request(
    request_id="0" * 32, agent_ip="192.0.2.11", cmd=Command.LIVE_MIGRATION, cmd_arguments={"a": {"b": [1, "ü"]}},
    epoch="e", challenge="1-2")
REPLY = Reply(
    msg_type=MessageType.PROGRESS, request_id="0" * 32, agent_ip="192.0.2.11", cmd=Command.LIVE_MIGRATION,
    cmd_result={"phase": "x"}, sequence=7)


def request_fields(**changes: object) -> bytes:
    """The bytes of REQUEST with some fields changed."""
    return json.dumps({**json.loads(encode(REQUEST)), **changes}).encode()


def reply_fields(**changes: object) -> bytes:
    """The bytes of REPLY with some fields changed."""
    return json.dumps({**json.loads(encode(REPLY)), **changes}).encode()


def a_migration(**changes: Any) -> Migration:
    """MIGRATION with some fields changed."""
    return dataclasses.replace(MIGRATION, **changes)


# What is sent comes back.


@pytest.mark.parametrize("record", EVERY_RECORD, ids=lambda record: type(record).__name__)
def test_every_record_comes_back_as_it_was_sent(record: object) -> None:
    sent = json.loads(json.dumps(to_wire(record), allow_nan=False))
    assert from_wire(type(record), sent) == record


def test_no_record_is_left_out_of_these_tests() -> None:
    defined = {
        each for each in vars(wire.records).values()
        if isinstance(each, type) and dataclasses.is_dataclass(each) and each.__module__ == "wire.records"}
    assert defined == {type(record) for record in EVERY_RECORD}


@pytest.mark.parametrize("message", [
    REQUEST, REPLY, Request(request_id="1", agent_ip="::1", cmd=Command.HELLO, cmd_arguments={}),
    *(dataclasses.replace(REQUEST, cmd=command) for command in Command),
    *(dataclasses.replace(REPLY, msg_type=each) for each in MessageType if each is not MessageType.REQUEST),
])
def test_every_message_comes_back_as_it_was_sent(message: Request | Reply) -> None:
    assert decode(encode(message)) == message


def test_a_message_keeps_the_field_names_of_the_original_program() -> None:
    request, reply = json.loads(encode(REQUEST)), json.loads(encode(REPLY))
    assert {"msg_type", "request_id", "agent_ip", "cmd", "cmd_arguments"} <= request.keys()
    assert request["msg_type"] == "request"
    assert {"msg_type", "request_id", "agent_ip", "cmd", "cmd_result"} <= reply.keys()


def test_text_beyond_ascii_takes_no_more_bytes_than_utf_8_needs() -> None:
    assert "VM-ü".encode() in encode(dataclasses.replace(REQUEST, agent_ip="VM-ü"))


def test_an_absent_optional_field_is_none_and_is_left_out_again() -> None:
    sent = to_wire(StepArguments(MIGRATION))
    assert "facts" not in sent
    assert from_wire(StepArguments, sent).facts is None
    assert to_wire(a_migration(disk=None)).keys().isdisjoint({"disk"})


def test_an_error_crosses_as_code_and_facts_and_reads_the_same() -> None:
    error = MigrationError(ErrorCode.PATH_TAKEN, {"path": "/srv/x", "host": "192.0.2.12"})
    reply = dataclasses.replace(REPLY, cmd_result={"error": to_wire(Obstacle(error.code, error.facts))})
    received = decode(encode(reply))
    assert isinstance(received, Reply)
    arrived = received.error()
    assert arrived is not None
    assert (arrived.code, arrived.message, arrived.hint) == (error.code, error.message, error.hint)
    assert REPLY.error() is None


# What is not exactly a message is a ValueError.


@pytest.mark.parametrize("body", [
    request_fields(extra=1), request_fields(cmd_result={}), request_fields(sequence=1), reply_fields(epoch="e"),
    reply_fields(extra=None), reply_fields(cmd_arguments={}),
])
def test_an_unknown_field_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="unknown"):
        decode(body)


@pytest.mark.parametrize("field", ["request_id", "agent_ip", "cmd", "cmd_arguments", "msg_type"])
def test_a_request_without_one_of_its_fields_is_refused(field: str) -> None:
    content = json.loads(encode(REQUEST))
    del content[field]
    with pytest.raises(ValueError, match="fields"):
        decode(json.dumps(content).encode())


@pytest.mark.parametrize("field", ["request_id", "agent_ip", "cmd", "cmd_result", "msg_type", "sequence"])
def test_a_reply_without_one_of_its_fields_is_refused(field: str) -> None:
    content = json.loads(encode(REPLY))
    del content[field]
    with pytest.raises(ValueError, match="fields"):
        decode(json.dumps(content).encode())


@pytest.mark.parametrize("body", [
    request_fields(request_id=1), request_fields(request_id=None), request_fields(request_id=["x"]),
    request_fields(cmd=1), request_fields(cmd="SHELL"), request_fields(cmd="hello"), request_fields(cmd={}),
    request_fields(cmd_arguments=[]), request_fields(cmd_arguments="x"), request_fields(cmd_arguments=None),
    request_fields(agent_ip=True), request_fields(challenge=0), request_fields(epoch={}),
    reply_fields(sequence="1"), reply_fields(sequence=1.0), reply_fields(sequence=True), reply_fields(sequence=None),
    reply_fields(cmd_result=None), reply_fields(cmd_result=[1]), reply_fields(msg_type="shout"),
    reply_fields(msg_type=1), reply_fields(msg_type=[]), reply_fields(msg_type=None), reply_fields(msg_type={}),
])
def test_a_field_of_the_wrong_type_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any cause
        decode(body)


@pytest.mark.parametrize("body", [
    encode(REQUEST).replace(b'"agent_ip"', b'"request_id":"x","agent_ip"'),
    encode(REQUEST).replace(b'"a":', b'"a":1,"a":'),
    encode(REPLY).replace(b'"sequence":7', b'"sequence":7,"sequence":7'),
])
def test_a_field_that_stands_twice_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="twice"):
        decode(body)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_json_does_not_know_as_a_number_is_refused(number: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        decode(encode(REPLY).replace(b'"sequence":7', b'"sequence":' + number))
    with pytest.raises(ValueError, match="not JSON"):
        decode(encode(REQUEST).replace(b"[1,", b"[" + number + b","))


@pytest.mark.parametrize("body", [
    b"", b" ", b"null", b"[]", b"1", b'"x"', b"true", b"{", b"}", b"{}", b"{}{}", b"[{}]", b"\x00", b"\xff",
    b'{"a": \xff}', encode(REQUEST)[:-1], encode(REQUEST) + b"x", encode(REQUEST) + encode(REQUEST),
    encode(REQUEST).decode().encode("utf-16"), encode(REQUEST).decode().encode("utf-16-le"),
    encode(REQUEST).decode().encode("utf-32"), encode(REQUEST).decode().encode("utf-8-sig"),
    encode(REQUEST).replace("ü".encode(), b"\xfc"), encode(REQUEST).replace("ü".encode(), b"\xc3"),
])
def test_what_is_not_one_json_object_in_utf_8_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any cause
        decode(body)


def test_nesting_as_deep_as_a_datagram_allows_is_refused_or_read_but_never_a_crash() -> None:
    for opening in (b"[", b'{"a":'):
        with pytest.raises(ValueError):  # noqa: PT011 - of any cause
            decode(opening * 100_000)


@pytest.mark.parametrize("text", ["\ud800", "x\udfff", "\udc80\ud800"])
def test_a_lone_surrogate_anywhere_is_refused(text: str) -> None:
    for body in (
        request_fields(request_id=text), request_fields(agent_ip=text), request_fields(cmd_arguments={"a": [text]}),
        request_fields(cmd_arguments={text: 1}), reply_fields(request_id=text), reply_fields(cmd_result={"x": text}),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - of any cause
            decode(body)


def test_a_pair_of_surrogates_is_the_character_that_it_stands_for() -> None:
    assert decode(request_fields(request_id="\U0001f600")) == dataclasses.replace(REQUEST, request_id="\U0001f600")


def test_an_over_long_text_is_refused() -> None:
    assert isinstance(decode(request_fields(agent_ip="x" * 1024)), Request)
    with pytest.raises(ValueError, match="too long"):
        decode(request_fields(agent_ip="x" * 1025))


# The records are as strict inside arguments and results.


@pytest.mark.parametrize(("kind", "value"), [
    (Progress, {"phase": "x", "done": True, "total": 1}),
    (Progress, {"phase": "x", "done": 1, "total": False}),
    (Progress, {"phase": "x", "done": 1.0, "total": 1}),
    (Progress, {"phase": "x", "done": "1", "total": 1}),
    (Progress, {"phase": None, "done": 1, "total": 1}),
    (Progress, {"phase": "x", "done": 1}),
    (Progress, {"phase": "x", "done": 1, "total": 1, "more": 1}),
    (Progress, []),
    (Progress, None),
    (Progress, "Progress"),
    (MigrationReport, {"disk_bytes": 1, "memory_bytes": 1, "downtime": None}),
    (Obstacle, {"code": "no-such-code", "facts": {}}),
    (Obstacle, {"code": "internal", "facts": {"a": 1}}),
    (Obstacle, {"code": "internal", "facts": [["a", "b"]]}),
    (Obstacle, {"code": "internal", "facts": {"a": ["b"]}}),
    (CheckReport, {"obstacles": {}}),
    (CheckReport, {"obstacles": [1]}),
    (CheckReport, {"obstacles": "xx"}),
    (CheckReport, {"obstacles": [], "facts": None}),
    (StepArguments, {"migration": []}),
    (StepArguments, {"facts": to_wire(FACTS)}),
    (Migration, {**to_wire(MIGRATION), "transport": "pigeon"}),
    (Migration, {**to_wire(MIGRATION), "bandwidth": True}),
    (DomainFacts, {**to_wire(FACTS), "autostart": 1}),
    (DomainFacts, {**to_wire(FACTS), "disks": to_wire(QCOW2)}),
    (DomainFacts, {**to_wire(FACTS), "networks": [None]}),
])
def test_a_record_with_a_field_missing_unknown_or_of_another_type_is_refused(kind: type, value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any cause
        from_wire(kind, value)


@pytest.mark.parametrize("record", EVERY_RECORD, ids=lambda record: type(record).__name__)
def test_each_field_of_each_record_is_checked_for_its_type(record: object) -> None:
    sent = to_wire(record)
    for name in sent:
        wrong: object
        for wrong in (None, 1.5, [[]], {"": {}}):
            with pytest.raises(ValueError):  # noqa: PT011 - of any cause
                from_wire(type(record), {**sent, name: wrong})


# What cannot be constructed.


@pytest.mark.parametrize("job_id", ["", "0badcaf", "0badcafe0", "0BADCAFE", "../../..", "0badcafe\n", "g" * 8])
def test_a_job_id_is_eight_hex_digits(job_id: str) -> None:
    with pytest.raises(MigrationError) as caught:
        a_migration(job_id=job_id)
    assert caught.value.code is ErrorCode.ARGUMENTS_INVALID


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
    "VM\ud800", "\udcff", bytes([0x56, 0xff]).decode("utf-8", "surrogateescape"),
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
        lambda: dataclasses.replace(QCOW2, path=path), lambda: dataclasses.replace(FACTS, kernel=path),
        lambda: dataclasses.replace(FACTS, initrd=path),
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


@pytest.mark.parametrize("changes", [{"cluster_size": 65536}, {"compat": "1.1"}])
def test_a_raw_image_has_neither_clusters_nor_a_version(changes: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="raw"):
        dataclasses.replace(RAW, **changes)
    assert DiskFacts(
        target="sda", path="/a/b", format=ImageFormat.RAW, virtual_size=1, allocated=0, cluster_size=0, compat="")


def test_a_record_out_of_a_datagram_is_checked_like_one_made_here() -> None:
    with pytest.raises(MigrationError):
        from_wire(Migration, {**to_wire(MIGRATION), "user": "-oProxyCommand=x"})
    with pytest.raises(ValueError, match="qcow2"):
        from_wire(DomainFacts, {**to_wire(FACTS), "disks": [{**to_wire(QCOW2), "cluster_size": 3}]})


def test_the_conf_file_goes_where_libvirt_keeps_it_unless_asked_otherwise() -> None:
    assert a_migration(conf_file=None).conf_path() == "/etc/libvirt/qemu/VM1.xml"
    assert a_migration(conf_file="/srv/x.xml").conf_path() == "/srv/x.xml"


def test_a_migration_to_another_daemon_differs_in_nothing_else() -> None:
    changed = MIGRATION.to_daemon(LibvirtDaemon.VIRTQEMUD)
    assert changed.destination_daemon is LibvirtDaemon.VIRTQEMUD
    assert dataclasses.replace(changed, destination_daemon=LibvirtDaemon.LIBVIRTD) == MIGRATION
    assert MIGRATION.transport is Transport.SSH


def test_a_step_that_needs_facts_says_so_when_they_are_missing() -> None:
    assert StepArguments(MIGRATION, FACTS).known_facts() == FACTS
    with pytest.raises(MigrationError) as caught:
        StepArguments(MIGRATION).known_facts()
    assert caught.value.code is ErrorCode.MESSAGE_INVALID


# Whatever comes, it is a message or a ValueError.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12)
FIELDS = st.sampled_from([
    "msg_type", "request_id", "agent_ip", "cmd", "cmd_arguments", "cmd_result", "sequence", "epoch", "challenge", "x"])


def read(body: bytes) -> None:
    """Decode, and go as far as an agent or a controller does with what came out."""
    try:
        message = decode(body)
        if isinstance(message, Request):
            from_wire(StepArguments, dict(message.cmd_arguments))
        else:
            message.error()
            from_wire(Progress, dict(message.cmd_result))
    except (ValueError, MigrationError):
        return


@given(st.binary(max_size=1200))
def test_random_bytes_are_a_message_or_a_value_error(body: bytes) -> None:
    read(body)


@given(JSON_VALUES)
def test_random_json_is_a_message_or_a_value_error(value: object) -> None:
    read(json.dumps(value).encode())


@settings(max_examples=200)
@given(st.sampled_from([REQUEST, REPLY]), st.dictionaries(FIELDS, JSON_VALUES, max_size=3))
def test_a_message_with_random_fields_is_a_message_or_a_value_error(
    message: Request | Reply, changes: dict[str, object],
) -> None:
    read(json.dumps({**json.loads(encode(message)), **changes}).encode())


@given(st.sampled_from(EVERY_RECORD), st.sampled_from(EVERY_RECORD), st.data())
def test_a_record_with_a_random_field_is_a_record_or_a_value_error(
    record: object, kind: object, data: st.DataObject,
) -> None:
    sent = to_wire(record)
    name = data.draw(st.sampled_from(sorted(sent)))
    try:
        from_wire(type(kind), {**sent, name: data.draw(JSON_VALUES)})
    except (ValueError, MigrationError):
        return
