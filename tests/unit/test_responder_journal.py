"""What the agent's journal must hold before anything is said, and what an agent remembers, for how long and over
restarts.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from constant import (
    ANSWERED_AT_ONCE,
    BEGUN_WITHOUT_JOURNAL,
    CHANGE_NOTHING,
    IDS_KEPT_SECONDS,
    LOOK_AFTER_SECONDS,
    NOT_JOURNALED,
    RESULTS_KEPT_SECONDS,
    UNJOURNALED_KEPT_SECONDS,
    Command,
    MessageType,
)
from tests.unit.pair import (
    Pair,
    answer,
    changed,
    done,
    error_of,
    opened,
    refused,
    responder,
    result_of,
    sealed,
    status_of,
)
from tests.unit.samples import CONTROLLER, MIGRATION, MOVED, RESULT_OF, SOURCE
from udpmodule import Responder, Stage, Write
from wire.errors import ErrorCode, MigrationError
from wire.facts import HostFacts
from wire.journal import Journal
from wire.memory import Begun, Ended
from wire.message import Reply, Request
from wire.records import StepArguments

FULL = "No space left on device"


@pytest.fixture
def pair() -> Pair:
    """A pair on a perfect network."""
    return Pair()


def sent(agent: Responder) -> list[Reply]:
    """What the agent wants to send."""
    return [opened(datagram) for datagram, _address in agent.datagrams_to_send(1000.0)]


def a_request(agent: Responder) -> Request:
    """A request that this agent has not seen, and that is fresh at 1000.0."""
    return Request(
        request_id="0" * 31 + "1", agent_ip=SOURCE, cmd=Command.LIVE_MIGRATION,
        cmd_arguments=StepArguments(migration=MIGRATION), epoch=agent.epoch, challenge=agent.challenge(1000.0))


def accepted(agent: Responder, request: Request) -> Write:
    """Have the agent accept it; return what the journal has to hold now."""
    agent.receive_datagram(sealed(request), CONTROLLER, 1000.0)
    event = agent.next_event()
    assert event is not None
    assert (event.stage, event.request) == (Stage.ARRIVED, request)
    agent.accept(request.request_id, 1000.0)
    (write,) = agent.entries_to_write()
    return write


# Nothing is said that the journal does not hold.


def test_accepted_is_not_said_before_the_entry_came_back_from_the_journal() -> None:
    agent = responder()
    request = a_request(agent)
    write = accepted(agent, request)
    for copy in (sealed(request), sealed(status_of(request)), sealed(request)):
        agent.receive_datagram(copy, CONTROLLER, 1000.0)
    assert agent.entries_to_write() == []
    assert sent(agent) == []
    assert agent.next_event() is None
    agent.entries_written(write, None, 1000.0)
    assert [reply.msg_type for reply in sent(agent)] == [MessageType.ACCEPTED]
    event = agent.next_event()
    assert event is not None
    assert (event.stage, event.request) == (Stage.BEGUN, request)
    assert agent.next_event() is None


def test_the_entry_says_what_was_asked_by_whom_and_for_which_domain() -> None:
    agent = responder()
    request = a_request(agent)
    ((entry,),) = (accepted(agent, request).entries,)
    assert isinstance(entry, Begun)
    assert (entry.request_id, entry.cmd, entry.agent_ip) == (request.request_id, request.cmd, SOURCE)
    assert (entry.asked_by, entry.job_id, entry.domain) == (CONTROLLER[0], MIGRATION.job_id, MIGRATION.domain)
    assert agent.asked_by(request.request_id) == CONTROLLER[0]


def test_a_result_is_not_told_before_the_journal_has_it() -> None:
    agent = responder()
    request = a_request(agent)
    agent.entries_written(accepted(agent, request), None, 1000.0)
    sent(agent)
    agent.finish(request.request_id, MOVED, 1000.0)
    agent.receive_datagram(sealed(status_of(request)), CONTROLLER, 1000.0)
    assert [reply.msg_type for reply in sent(agent)] == [MessageType.ACCEPTED]
    (write,) = agent.entries_to_write()
    assert [type(entry) for entry in write.entries] == [Ended]
    agent.entries_written(write, None, 1000.0)
    assert [reply.cmd_result for reply in sent(agent)] == [MOVED]


def test_a_journal_that_cannot_be_written_refuses_the_request_and_nothing_runs(
    pair: Pair, caplog: pytest.LogCaptureFixture,
) -> None:
    pair.journal.before_write = lambda _write: FULL
    request = pair.request()
    reply = answer(pair, request)
    assert refused(reply) is ErrorCode.JOURNAL_NOT_WRITTEN
    error = reply.error()
    assert error is not None
    assert "cannot write" in error.message
    for said in (error.message, caplog.text):
        assert "/var/lib/vmmigration/journal" in said
        assert FULL in said
        assert request.cmd.value in said
    assert answer(pair, request) == reply
    asked = status_of(request)
    assert answer(pair, asked) == dataclasses.replace(reply, asked=asked.request_id)
    assert not pair.executed
    assert pair.journal.entries == []


@pytest.mark.parametrize("command", sorted(BEGUN_WITHOUT_JOURNAL))
def test_what_makes_room_on_a_full_disk_is_begun_all_the_same(command: Command, pair: Pair) -> None:
    pair.journal.before_write = lambda _write: FULL
    pair.result_of = lambda _request: RESULT_OF[command]
    assert done(pair, pair.request(command)) == RESULT_OF[command]
    assert max(pair.executed.values()) == 1


def test_the_agent_hears_that_what_it_accepted_was_not_begun() -> None:
    agent = responder()
    request = a_request(agent)
    agent.entries_written(accepted(agent, request), FULL, 1000.0)
    event = agent.next_event()
    assert event is not None
    assert (event.stage, event.request) == (Stage.NOT_BEGUN, request)
    assert agent.next_event() is None


def test_a_request_that_the_journal_could_not_hold_is_not_begun_when_there_is_room_again(pair: Pair) -> None:
    pair.journal.before_write = lambda _write: FULL
    request = pair.request()
    answer(pair, request)
    pair.journal.before_write = lambda _write: None
    assert refused(answer(pair, request)) is ErrorCode.JOURNAL_NOT_WRITTEN
    pair.let_pass(UNJOURNALED_KEPT_SECONDS + LOOK_AFTER_SECONDS)
    assert refused(answer(pair, request)) is ErrorCode.REQUEST_STALE
    assert not pair.executed
    assert done(pair, pair.request())


def test_the_end_is_told_even_if_the_journal_cannot_hold_it(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.journal.before_write = lambda write: FULL if isinstance(write.entries[0], Ended) else None
    request = pair.request()
    assert done(pair, request) == result_of(request)
    assert answer(pair, request).cmd_result == result_of(request)
    assert request.request_id[:8] in caplog.text
    assert FULL in caplog.text


def test_what_is_answered_at_once_never_comes_near_the_journal(pair: Pair) -> None:
    for command in (Command.HELLO, Command.CANCEL, *CHANGE_NOTHING):
        pair.run(pair.exchange(pair.request(command)))
    pair.deliver(sealed(pair.request(Command.STATUS)))
    assert pair.journal.entries == []
    assert {Command.STATUS, Command.CANCEL} == ANSWERED_AT_ONCE
    assert {Command.STATUS, Command.CANCEL} | CHANGE_NOTHING == NOT_JOURNALED


def test_a_request_that_the_agent_refuses_leaves_nothing_in_the_journal() -> None:
    agent = responder()
    request = a_request(agent)
    agent.receive_datagram(sealed(request), CONTROLLER, 1000.0)
    agent.refuse(request.request_id, MigrationError(ErrorCode.AGENT_STOPPING, {"host": SOURCE}), 1000.0)
    assert agent.entries_to_write() == []
    (reply,) = sent(agent)
    assert refused(reply) is ErrorCode.AGENT_STOPPING


# The journal is made shorter.


def test_the_journal_is_written_anew_after_so_many_entries_and_not_before(
    pair: Pair, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("udpmodule.JOURNAL_ENTRIES_LIMIT", 5)
    written: list[Write] = []
    pair.journal.after_write = written.append
    for count, expected in ((2, [False] * 4), (1, [False] * 6 + [True]), (1, [False] * 6 + [True] + [False] * 2)):
        for _each in range(count):
            done(pair, pair.request())
        pair.let_pass(LOOK_AFTER_SECONDS)
        assert [write.anew for write in written] == expected


def test_the_journal_is_not_written_anew_while_an_entry_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udpmodule.JOURNAL_ENTRIES_LIMIT", 0)
    agent = responder()
    request = a_request(agent)
    begun = accepted(agent, request)
    agent.handle_timer(1060.0)
    assert agent.entries_to_write() == []
    agent.entries_written(begun, None, 1060.0)
    agent.finish(request.request_id, MOVED, 1060.0)
    (ended,) = agent.entries_to_write()
    agent.handle_timer(1120.0)
    assert agent.entries_to_write() == []
    agent.entries_written(ended, None, 1120.0)
    agent.handle_timer(1180.0)
    (anew,) = agent.entries_to_write()
    assert anew.anew
    assert [type(entry) for entry in anew.entries] == [Begun, Ended]


def test_the_journal_written_anew_holds_all_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(work_seconds=300.0)
    expired = changed(pair.request(Command.FINISH), cmd_arguments=StepArguments(
        migration=dataclasses.replace(MIGRATION, job_id="5eed5eed")))
    done(pair, expired)
    pair.let_pass(RESULTS_KEPT_SECONDS)
    ended = pair.request()
    done(pair, ended)
    interrupted = pair.request()
    answer(pair, interrupted)
    pair.restart_agent()
    working = pair.request()
    answer(pair, working)
    monkeypatch.setattr("udpmodule.JOURNAL_ENTRIES_LIMIT", 0)
    appended = pair.journal.entries
    pair.let_pass(LOOK_AFTER_SECONDS)
    assert pair.journal.entries is not appended
    for entries in (appended, pair.journal.entries):
        pair.responder = responder(entries=entries, now=pair.now, life=9)
        for request in (expired, ended, interrupted, working):
            assert refused(answer(pair, changed(request, cmd=Command.ROLL_BACK))) is ErrorCode.REQUEST_CONFLICT
        assert answer(pair, ended).cmd_result == result_of(ended)
        assert refused(answer(pair, expired)) is ErrorCode.REQUEST_EXPIRED
        for request in (interrupted, working):
            assert error_of(answer(pair, request)) is ErrorCode.REQUEST_INTERRUPTED


def test_an_end_that_could_not_be_written_is_in_the_journal_that_is_written_anew(
    pair: Pair, monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair.journal.before_write = lambda write: FULL if isinstance(write.entries[-1], Ended) else None
    request = pair.request()
    done(pair, request)
    pair.journal.before_write = lambda _write: None
    monkeypatch.setattr("udpmodule.JOURNAL_ENTRIES_LIMIT", 0)
    pair.let_pass(LOOK_AFTER_SECONDS)
    pair.restart_agent()
    assert answer(pair, request).cmd_result == result_of(request)


def test_a_journal_that_cannot_be_written_anew_goes_on_as_it_is(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("udpmodule.JOURNAL_ENTRIES_LIMIT", 0)
    pair.journal.before_write = lambda write: FULL if write.anew else None
    done(pair, pair.request())
    before = list(pair.journal.entries)
    pair.let_pass(LOOK_AFTER_SECONDS)
    assert f"/var/lib/vmmigration/journal cannot be written anew: {FULL}" in caplog.text
    done(pair, pair.request())
    assert pair.journal.entries[:2] == before
    assert len(pair.journal.entries) == 4


# A restart, and how long what is remembered.


def test_a_result_survives_a_restart(pair: Pair) -> None:
    requests = {command: pair.request(command) for command in (Command.ROLL_BACK, Command.PREPARE_DESTINATION)}
    for request in requests.values():
        done(pair, request)
    for _life in range(3):
        pair.restart_agent()
        for request in requests.values():
            for again in (request, status_of(request)):
                reply = answer(pair, again)
                assert (reply.msg_type, reply.cmd_result) == (MessageType.RESPONSE, result_of(request))
                assert (reply.cmd, reply.agent_ip) == (request.cmd, SOURCE)
            assert pair.executed[request.request_id] == 1


def test_an_error_survives_a_restart() -> None:
    pair = Pair()
    pair.result_of = lambda _request: MigrationError(ErrorCode.PATH_TAKEN, {"path": "/srv/x", "host": SOURCE})
    request = pair.request()
    told = pair.run(pair.exchange(request))[-1]
    assert isinstance(told, Reply)
    assert error_of(told) is ErrorCode.PATH_TAKEN
    pair.restart_agent()
    assert answer(pair, request).cmd_result == told.cmd_result


def test_work_that_was_interrupted_by_a_restart_is_told_as_that(pair: Pair) -> None:
    request = pair.request()
    answer(pair, request)
    for _life in range(3):
        pair.restart_agent()
        for again in (request, status_of(request)):
            reply = answer(pair, again)
            assert reply.msg_type is MessageType.RESPONSE
            error = reply.error()
            assert error is not None
            assert error.code is ErrorCode.REQUEST_INTERRUPTED
            assert error.facts == {"host": SOURCE, "command": request.cmd.value, "domain": MIGRATION.domain}
    pair.let_pass(100.0)
    assert pair.executed == {request.request_id: 1}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_result_is_kept_for_a_day_and_its_id_for_thirty(pair: Pair, restarted: bool) -> None:
    request = pair.request(Command.FINISH)
    done(pair, request)

    def told_after(seconds: float) -> tuple[Reply, Reply]:
        pair.let_pass(seconds)
        if restarted:
            pair.restart_agent()
        return answer(pair, request), answer(pair, status_of(request))

    a_minute = LOOK_AFTER_SECONDS
    for reply in told_after(RESULTS_KEPT_SECONDS - a_minute):
        assert reply.cmd_result == result_of(request)
    for reply in told_after(2 * a_minute):
        assert refused(reply) is ErrorCode.REQUEST_EXPIRED
    for reply in told_after(IDS_KEPT_SECONDS - RESULTS_KEPT_SECONDS - 2 * a_minute):
        assert refused(reply) is ErrorCode.REQUEST_EXPIRED
    again, status = told_after(2 * a_minute)
    assert refused(again) is ErrorCode.REQUEST_STALE
    assert refused(status) is ErrorCode.REQUEST_UNKNOWN
    assert pair.executed == {request.request_id: 1}


def test_work_that_takes_longer_than_a_result_is_kept_is_not_forgotten() -> None:
    agent = responder()
    request = a_request(agent)
    agent.entries_written(accepted(agent, request), None, 1000.0)
    sent(agent)
    agent.handle_timer(1000.0 + 2 * RESULTS_KEPT_SECONDS)
    agent.receive_datagram(sealed(status_of(request)), CONTROLLER, 1000.0 + 2 * RESULTS_KEPT_SECONDS)
    assert [reply.msg_type for reply in sent(agent)] == [MessageType.ACCEPTED]


@pytest.mark.parametrize(("command", "later"), [(Command.HELLO, None), (Command.CANCEL, ErrorCode.REQUEST_STALE)])
def test_what_was_never_work_is_kept_for_two_minutes(pair: Pair, command: Command, later: ErrorCode | None) -> None:
    request = pair.request(command)
    first = opened(pair.deliver(sealed(request))[-1][0])
    assert first.msg_type is MessageType.RESPONSE
    pair.let_pass(UNJOURNALED_KEPT_SECONDS)
    assert answer(pair, request) == first
    assert pair.executed[request.request_id] == 1
    pair.let_pass(LOOK_AFTER_SECONDS)
    again = [opened(datagram) for datagram, _address in pair.deliver(sealed(request))]
    if later is None:
        # A greeting may be answered twice, but not with a challenge that has run out.
        assert isinstance(again[-1].cmd_result, HostFacts)
        assert again[-1].cmd_result.challenge == pair.responder.challenge(pair.now)
    else:
        assert [refused(reply) for reply in again] == [later]
        assert pair.executed[request.request_id] == 1


def test_the_epoch_stays_with_the_journal_and_is_another_one_when_it_is_lost(tmp_path: Path) -> None:
    epochs = iter(["first", "second", "third"])

    def epoch() -> str:
        journal = Journal(tmp_path / "state", lambda: next(epochs))
        journal.close()
        return responder(epoch=journal.epoch).epoch

    assert [epoch(), epoch()] == ["first", "first"]
    (tmp_path / "state" / "journal").unlink()
    assert [epoch(), epoch()] == ["second", "second"]
