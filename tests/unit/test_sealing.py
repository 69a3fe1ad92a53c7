"""Who may talk to whom: the two lists, the keys, and the seal that every datagram carries."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import DATAGRAM_LIMIT
from tests.unit.samples import AGENT_KEY, DESTINATION, MASTER, SOURCE, address_list, write_key
from wire.access import AddressList, Key, config_directory, load_keys, write_new_key
from wire.datagram import NO_KEY, Direction, Dropped, keyring, seal, unseal
from wire.errors import ErrorCode, MigrationError

BODY = b'{"msg_type":"request","cmd":"HELLO"}'
# A datagram as it was recorded once: a change of the header, the MAC's scope or the key derivation breaks old agents.
RECORDED = (
    b"VMM1 0d55a2f7 e3ace0a6c15a5f6c00a3e2cead152d214de93ee00713b88ee3f35503dc06fcbf\n" + BODY
)


def refused(code: ErrorCode, path: Path) -> MigrationError:
    """The error with which a key file is refused."""
    with pytest.raises(MigrationError) as caught:
        load_keys(path)
    assert caught.value.code is code
    return caught.value


# Lists.


def test_a_list_holds_its_addresses_and_no_other(tmp_path: Path) -> None:
    listed = address_list(tmp_path, "192.0.2.11", "192.0.2.12")
    assert "192.0.2.11" in listed
    assert "192.0.2.12" in listed
    assert "192.0.2.13" not in listed


def test_comments_and_blank_lines_in_a_list_say_nothing(tmp_path: Path) -> None:
    listed = address_list(tmp_path, "# 192.0.2.1", "", "   ", "\t192.0.2.2  # the second node", "#", "192.0.2.3#x")
    assert [str(network) for network in listed.networks] == ["192.0.2.2/32", "192.0.2.3/32"]
    assert "192.0.2.1" not in listed


LINE_ENDINGS = pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
STARTS = pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])


@LINE_ENDINGS
@STARTS
def test_a_list_is_read_whatever_editor_wrote_it(tmp_path: Path, ending: bytes, start: bytes) -> None:
    path = tmp_path / "list.txt"
    lines = (b"192.0.2.1", b"", b"# comment", b"2001:db8:1::/48  # node 2", b"\t198.51.100.0/25#nodes", b"192.0.2.2")
    for last in (b"", ending, ending * 2):
        path.write_bytes(start + ending.join(lines) + last)
        assert [str(network) for network in AddressList.load(path, "node").networks] == [
            "192.0.2.1/32", "2001:db8:1::/48", "198.51.100.0/25", "192.0.2.2/32"]


@LINE_ENDINGS
@STARTS
@pytest.mark.parametrize("line", ["192.0.2.1/24", "2001:db8::1/64", "192.0.2.1/24 # node", "node1#"])
def test_a_bad_line_has_the_number_that_the_admins_editor_shows(
    tmp_path: Path, ending: bytes, start: bytes, line: str,
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(start + ending.join([b"# heading", b"", b"192.0.2.1", line.encode(), b"192.0.2.2", b""]))
    with pytest.raises(MigrationError) as caught:
        AddressList.load(path, "node")
    assert caught.value.code is ErrorCode.LIST_LINE_INVALID
    assert caught.value.facts["line"] == "4"


def test_a_network_in_a_list_holds_its_hosts_alone(tmp_path: Path) -> None:
    listed = address_list(tmp_path, "198.51.100.0/25", "2001:db8:1::/48")
    assert "198.51.100.127" in listed
    assert "198.51.100.128" not in listed
    assert "2001:db8:1:ffff::1" in listed
    assert "2001:db8:2::1" not in listed


def test_ipv6_addresses_are_compared_as_addresses_and_not_as_text(tmp_path: Path) -> None:
    listed = address_list(tmp_path, "2001:DB8:0:0::1", "fe80::1")
    assert "2001:db8::1" in listed
    assert "fe80::1%eth0" in listed
    assert "2001:db8::2" not in listed


def test_an_ipv4_address_or_network_in_ipv6_form_is_that_of_ipv4(tmp_path: Path) -> None:
    listed = address_list(tmp_path, "::ffff:192.0.2.11", "::ffff:198.51.100.0/121")
    for sender in ("192.0.2.11", "::ffff:192.0.2.11", "198.51.100.127"):
        assert sender in listed
    for sender in ("192.0.2.12", "198.51.100.128", "::192.0.2.11"):
        assert sender not in listed


def test_all_of_ipv6_holds_nothing_of_ipv4_and_the_reverse(tmp_path: Path) -> None:
    assert "192.0.2.1" not in address_list(tmp_path, "::/0")
    assert "::ffff:192.0.2.1" not in address_list(tmp_path, "::/0")
    assert "2001:db8::1" not in address_list(tmp_path, "0.0.0.0/0")


def test_an_ipv4_sender_on_an_ipv6_socket_is_found_under_its_ipv4_address(tmp_path: Path) -> None:
    listed = address_list(tmp_path, "192.0.2.11")
    assert "::ffff:192.0.2.11" in listed
    assert "::ffff:192.0.2.12" not in listed


@pytest.mark.parametrize("line", [
    "node1", "192.0.2.300", "192.0.2", "192.0.2.1/24", "192.0.2.1/33", "192.0.2.1 192.0.2.2", "192.0.2.1:8002", "[::1]",
    "0x7f000001", "1", "::g", "2001:db8::1/64", "2001:db8::/129", "2001:db8::/-1", "192.0.2.0/", "192.0.2.1,192.0.2.2",
    "\ufeff192.0.2.2", "192.0.2.2;", "*",
])
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(MigrationError) as caught:
        address_list(tmp_path, "# heading", "192.0.2.1", "", line)
    assert caught.value.code is ErrorCode.LIST_LINE_INVALID
    assert caught.value.facts["line"] == "4"
    assert caught.value.facts["text"] == line
    assert str(tmp_path / "list.txt") in caught.value.message
    assert "line 4" in caught.value.message


@pytest.mark.parametrize("lines", [[], ["# 192.0.2.1", "", "#"]])
def test_an_empty_list_is_an_error_and_not_a_list_of_everything(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(MigrationError) as caught:
        address_list(tmp_path, *lines)
    assert caught.value.code is ErrorCode.LIST_EMPTY


def test_a_missing_list_and_one_that_is_no_text_are_unreadable_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe1\x009\x00")
    for path, reason in (("missing", "No such file"), ("binary", "not UTF-8"), (".", "directory")):
        with pytest.raises(MigrationError) as caught:
            AddressList.load(tmp_path / path, "node")
        assert caught.value.code is ErrorCode.FILE_UNREADABLE
        assert reason in caught.value.message


def test_what_only_others_may_read_is_not_to_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_given: object, **_named: object) -> str:
        raise PermissionError(13, "Permission denied")

    path = write_key(tmp_path / "key", MASTER)
    monkeypatch.setattr(Path, "read_text", forbidden)
    for read in (lambda: load_keys(path), lambda: AddressList.load(path, "node")):
        with pytest.raises(MigrationError) as caught:
            read()
        assert caught.value.hint == "Repeat the command as root or as the owner of that file."


def test_what_is_no_address_is_in_no_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not appear"):
        assert "node1" not in address_list(tmp_path, "0.0.0.0/0")


def test_the_given_configuration_directory_wins_and_the_working_directory_never_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = tmp_path / "program" / "vmmigration.py"
    script.parent.mkdir()
    (tmp_path / "system").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wire.access.SYSTEM_CONFIG_DIRECTORY", str(tmp_path / "missing"))
    assert config_directory("/elsewhere", str(script)) == Path("/elsewhere")
    assert config_directory(None, str(script)) == script.parent
    installed = tmp_path / "lib" / "python3" / "site-packages" / "vmmigration.py"
    assert config_directory(None, str(installed)) == tmp_path / "missing", "nobody looks for a key among modules"
    monkeypatch.setattr("wire.access.SYSTEM_CONFIG_DIRECTORY", str(tmp_path / "system"))
    assert config_directory(None, str(script)) == tmp_path / "system"


# Keys.


def test_a_new_key_is_64_hex_digits_that_only_its_owner_can_read(tmp_path: Path) -> None:
    path = tmp_path / "ControllerKey.txt"
    write_new_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(bytes.fromhex(path.read_text())) == 32
    assert len(path.read_text().strip()) == 64
    (key,) = load_keys(path)
    assert key.secret.hex() == path.read_text().strip()


@LINE_ENDINGS
@STARTS
def test_a_key_file_is_read_whatever_editor_wrote_it(tmp_path: Path, ending: bytes, start: bytes) -> None:
    path = write_key(tmp_path / "key")
    other = Key(b"o" * 32)
    lines = (b"# first the one to send with", MASTER.secret.hex().encode(), b"",
             b"  " + other.secret.hex().upper().encode() + b" # old")
    for last in (b"", ending):
        path.write_bytes(start + ending.join(lines) + last)
        assert load_keys(path) == (MASTER, other)


def test_two_new_keys_differ(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_new_key(tmp_path / name)
    assert load_keys(tmp_path / "one") != load_keys(tmp_path / "two")


def test_a_new_key_never_replaces_one_nor_follows_a_link(tmp_path: Path) -> None:
    path = write_key(tmp_path / "ControllerKey.txt", MASTER)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(MigrationError) as caught:
            write_new_key(taken)
        assert caught.value.code is ErrorCode.KEY_EXISTS
    assert load_keys(path) == (MASTER,)
    assert not (tmp_path / "nowhere").exists()


def test_a_new_key_that_does_not_fit_on_the_disk_leaves_no_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "ControllerKey.txt"
    with monkeypatch.context() as patched:
        patched.setattr("wire.access.os.fsync", full)
        with pytest.raises(MigrationError) as caught:
            write_new_key(path)
    assert caught.value.code is ErrorCode.FILE_NOT_WRITTEN
    assert "No space left" in caught.value.message
    assert list(tmp_path.iterdir()) == []
    write_new_key(path)


def test_a_key_that_cannot_be_written_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(MigrationError) as caught:
        write_new_key(tmp_path / "missing" / "ControllerKey.txt")
    assert caught.value.code is ErrorCode.FILE_NOT_WRITTEN
    assert "No such file" in caught.value.message


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o610, 0o604, 0o601, 0o602, 0o660, 0o777])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    error = refused(ErrorCode.FILE_NOT_PRIVATE, write_key(tmp_path / "key", MASTER, mode=mode))
    assert f"chmod 600 {tmp_path / 'key'}" in error.hint


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_that_only_its_owner_can_reach_is_taken(tmp_path: Path, mode: int) -> None:
    assert load_keys(write_key(tmp_path / "key", MASTER, mode=mode)) == (MASTER,)


@pytest.mark.parametrize("line", ["secret", "ab" * 31, "ab" * 33, "zz" * 32, "ab" * 31 + "a"])
def test_a_bad_key_line_is_named_by_number_and_never_shown(tmp_path: Path, line: str) -> None:
    path = write_key(tmp_path / "key", MASTER)
    path.write_text(f"# mine\n{MASTER.secret.hex()}\n{line}\n")
    error = refused(ErrorCode.KEY_INVALID, path)
    assert error.facts["line"] == "3"
    assert line not in str(error)
    assert MASTER.secret.hex() not in str(error)


def test_a_missing_key_and_an_empty_file_say_which_commands_make_one(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", write_key(tmp_path / "empty")):
        error = refused(ErrorCode.KEY_MISSING, path)
        assert "new-key" in error.hint
        assert "agent-key IP" in error.hint


def test_two_keys_in_a_file_are_both_heard_while_they_are_being_changed(tmp_path: Path) -> None:
    old, new = Key(b"o" * 32), Key(b"n" * 32)
    keys = load_keys(write_key(tmp_path / "key", new, old))
    assert keys == (new, old)
    for key in keys:
        assert unseal(seal(key, Direction.REQUEST, BODY), keyring(keys), Direction.REQUEST) == (key.id, BODY)


def test_each_agent_has_a_key_of_its_own() -> None:
    addresses = [SOURCE, DESTINATION, "192.0.2.1", "192.0.2.10", "2001:db8::1", "::192.0.2.11"]
    derived = {MASTER.for_agent(address).secret for address in addresses}
    assert len(derived) == len(addresses)
    assert MASTER.secret not in derived
    assert all(len(secret) == 32 for secret in derived)


def test_an_agents_key_depends_on_the_address_and_not_on_how_it_is_written() -> None:
    assert MASTER.for_agent("2001:DB8:0:0:0:0:0:1") == MASTER.for_agent("2001:db8::1")


def test_another_master_key_makes_other_agent_keys() -> None:
    assert Key(bytes(32)).for_agent(SOURCE) != MASTER.for_agent(SOURCE)


def test_nothing_that_is_printed_of_a_key_tells_its_secret() -> None:
    shown = f"{MASTER!r} {MASTER} {MASTER.id} {[MASTER]} {keyring([MASTER])}"
    assert MASTER.secret.hex()[:8] not in shown
    assert repr(MASTER.secret)[2:-1] not in shown
    assert str(MASTER.secret) not in shown


# The seal.


def test_what_is_sealed_is_read_back_with_its_key_id() -> None:
    datagram = seal(AGENT_KEY, Direction.REQUEST, BODY)
    assert datagram.endswith(b"\n" + BODY)
    assert unseal(datagram, keyring([AGENT_KEY]), Direction.REQUEST) == (AGENT_KEY.id, BODY)


def test_the_seal_of_a_recorded_datagram_still_fits() -> None:
    assert seal(AGENT_KEY, Direction.REQUEST, BODY) == RECORDED
    assert unseal(RECORDED, keyring([AGENT_KEY]), Direction.REQUEST)[1] == BODY


def test_no_bit_of_a_datagram_can_be_changed() -> None:
    for direction in Direction:
        datagram = seal(AGENT_KEY, direction, BODY)
        for bit in range(len(datagram) * 8):
            changed = bytearray(datagram)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Dropped):
                unseal(bytes(changed), keyring([AGENT_KEY]), direction)


def test_no_byte_can_be_cut_off_or_added() -> None:
    datagram = seal(AGENT_KEY, Direction.REQUEST, BODY)
    shorter = [datagram[:length] for length in range(len(datagram))] + [datagram[1:]]
    for changed in [*shorter, datagram + b"\n", datagram + b" ", b" " + datagram, datagram + datagram]:
        with pytest.raises(Dropped):
            unseal(changed, keyring([AGENT_KEY]), Direction.REQUEST)


@pytest.mark.parametrize(("sent", "read"), [
    (Direction.REQUEST, Direction.REPLY), (Direction.REPLY, Direction.REQUEST),
])
def test_a_datagram_cannot_be_sent_back_the_other_way(sent: Direction, read: Direction) -> None:
    with pytest.raises(Dropped, match="mac"):
        unseal(seal(AGENT_KEY, sent, BODY), keyring([AGENT_KEY]), read)


def test_an_agent_does_not_hear_what_is_sealed_for_another_one() -> None:
    datagram = seal(MASTER.for_agent(DESTINATION), Direction.REQUEST, BODY)
    with pytest.raises(Dropped, match="key"):
        unseal(datagram, keyring([AGENT_KEY]), Direction.REQUEST)


def test_the_right_key_id_with_a_mac_by_another_key_is_dropped() -> None:
    other = seal(Key(b"x" * 32), Direction.REQUEST, BODY).split(b" ")
    forged = b" ".join([other[0], AGENT_KEY.id.encode(), *other[2:]])
    with pytest.raises(Dropped, match="mac"):
        unseal(forged, keyring([AGENT_KEY]), Direction.REQUEST)


def test_a_datagram_of_the_limit_is_read_and_one_byte_more_is_dropped() -> None:
    room = DATAGRAM_LIMIT - len(seal(AGENT_KEY, Direction.REQUEST, b""))
    longest = seal(AGENT_KEY, Direction.REQUEST, b"x" * room)
    assert len(longest) == 1200
    assert unseal(longest, keyring([AGENT_KEY]), Direction.REQUEST)[1] == b"x" * room
    with pytest.raises(Dropped, match="size"):
        unseal(seal(AGENT_KEY, Direction.REQUEST, b"x" * (room + 1)), keyring([AGENT_KEY]), Direction.REQUEST)


def test_an_unsealed_datagram_is_dropped_where_there_is_a_key() -> None:
    with pytest.raises(Dropped, match="key"):
        unseal(seal(None, Direction.REQUEST, BODY), keyring([AGENT_KEY]), Direction.REQUEST)


def test_without_a_key_only_unsealed_datagrams_are_heard() -> None:
    assert unseal(seal(None, Direction.REQUEST, BODY), keyring([]), Direction.REQUEST) == (NO_KEY, BODY)
    with pytest.raises(Dropped, match="key"):
        unseal(seal(AGENT_KEY, Direction.REQUEST, BODY), keyring([]), Direction.REQUEST)


@pytest.mark.parametrize("datagram", [
    b"", b"\n", b"VMM1", b"VMM1 - -", b"VMM2 - -\n{}", b"VMM1  - -\n{}", b"VMM1 -\n{}", b"VMM1 - - -\n{}",
    b"vmm1 - -\n{}", b"\nVMM1 - -\n{}",
])
def test_a_header_of_another_form_is_dropped(datagram: bytes) -> None:
    with pytest.raises(Dropped, match="form"):
        unseal(datagram, keyring([]), Direction.REQUEST)


@given(st.binary(max_size=1300))
def test_no_random_bytes_are_ever_taken_for_a_sealed_datagram(datagram: bytes) -> None:
    with pytest.raises(Dropped):
        unseal(datagram, keyring([AGENT_KEY]), Direction.REQUEST)


@given(st.binary(max_size=80), st.binary(max_size=200))
def test_no_random_header_is_ever_taken_for_a_seal(middle: bytes, body: bytes) -> None:
    with pytest.raises(Dropped):
        unseal(b"VMM1 " + AGENT_KEY.id.encode() + b" " + middle + b"\n" + body, keyring([AGENT_KEY]), Direction.REQUEST)
