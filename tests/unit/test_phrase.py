"""A Phrase: English as a text, another language where a person reads it, and whole on its way between two hosts."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constant import Command, MessageType, Severity
from tests.unit.samples import REQUEST_ID, SOURCE
from wire.errors import ERRORS, ErrorCode, MigrationError
from wire.findings import Check, Finding
from wire.message import Reply, decode, encode
from wire.phrase import SEMICOLON, Phrase, fill, joined
from wire.records import Obstacle, StepReport
from wire.schema import LONGEST_TEXT, from_wire, to_wire

GERMAN = {
    "VM {domain} is {state}.": "{state} ist VM {domain}.", "running": "in Betrieb", "; ": " / ", "done": "fertig",
    "It failed: {reason}.": "Fehler: {reason}."}


def german(words: str) -> str:
    """A catalogue of some sentences."""
    return GERMAN.get(words, words)


def same(one: object, other: object) -> bool:
    """Whether two texts are the same sentence with the same facts, and not only the same English."""
    if type(one) is not type(other) or one != other:
        return False
    if isinstance(one, Phrase) and isinstance(other, Phrase):
        return one.words == other.words and one.facts.keys() == other.facts.keys() and all(
            same(one.facts[name], other.facts[name]) for name in one.facts)
    return True


RUNS = Phrase("VM {domain} is {state}.", {"domain": "VM1", "state": Phrase("running")})


def test_as_a_text_it_is_english() -> None:
    assert RUNS == "VM VM1 is running."
    assert f"{RUNS}" == str(RUNS) == "VM VM1 is running."
    assert type(str(RUNS)) is str
    assert json.loads(json.dumps({"message": RUNS})) == {"message": "VM VM1 is running."}


def test_another_language_has_an_order_of_its_own_and_facts_that_are_phrases_are_in_it_too() -> None:
    assert RUNS.text(german) == "in Betrieb ist VM VM1."


def test_a_fact_that_is_no_phrase_stays_as_it_is_also_where_the_catalogue_has_it() -> None:
    assert Phrase("VM {domain} is {state}.", {"domain": "done", "state": "running"}).text(german) == (
        "running ist VM done.")


def test_a_sentence_that_the_catalogue_lacks_is_shown_in_english() -> None:
    newer = Phrase("VM {domain} is {state} since {time}.", {"domain": "VM1", "state": Phrase("running"), "time": "9"})
    assert newer.text(german) == "VM VM1 is in Betrieb since 9."


def test_a_fact_that_is_lacking_is_a_question_mark_and_one_too_many_is_left_out() -> None:
    phrase = Phrase("VM {domain} is {state}.", {"domain": "VM1", "other": "x"})
    assert (phrase, dict(phrase.facts)) == ("VM VM1 is ?.", {"domain": "VM1"})


@pytest.mark.parametrize(("words", "filled"), [
    ("{text!r} is it", "'a' is it"), ("{text}{text}", "aa"), ("{no}", "?"), ("{}", "{}"), ("{{text}}", "{a}"),
    ("{text.__class__}", "{text.__class__}"), ("{text[0]}", "{text[0]}"), ("{text:>99999999}", "{text:>99999999}"),
    ("{text!s}", "{text!s}"), ("a } b { c", "a } b { c"),
])
def test_nothing_but_facts_gets_into_a_sentence(words: str, filled: str) -> None:
    assert fill(words, {"text": "a"}) == filled


@pytest.mark.parametrize(("words", "fact", "filled"), [
    ("It failed: {x}.", "no.", "It failed: no."), ("It failed: {x}.", "no", "It failed: no."),
    ("It failed: {x}. Why?", "no.", "It failed: no. Why?"), ("See {x}.log.", "a.", "See a..log."),
    ("失败\uff1a{x}。为何", "no.", "失败\uff1ano.为何"), ("失败\uff1a{x}。", "断线。", "失败\uff1a断线。"),
    ("It failed: {x}.", "断线。", "It failed: 断线。"), ("{x!r}.", "a.", "'a.'."), ("{x}.", "", "."),
])
def test_two_full_stops_never_follow_each_other(words: str, fact: str, filled: str) -> None:
    assert fill(words, {"x": fact}) == filled


def test_it_cannot_be_changed_and_a_copy_is_the_same() -> None:
    for name in ("words", "facts"):
        with pytest.raises(AttributeError):
            setattr(RUNS, name, "x")
    with pytest.raises(TypeError):
        RUNS.facts["domain"] = "VM2"  # type: ignore[index]
    assert same(copy.deepcopy(RUNS), RUNS)
    assert copy.deepcopy(RUNS).text(german) == RUNS.text(german)


def test_several_texts_are_one_with_the_languages_own_separator() -> None:
    listed = joined([Phrase("done"), "a.iso", RUNS], SEMICOLON)
    assert listed == "done; a.iso; VM VM1 is running."
    assert isinstance(listed, Phrase)
    assert listed.text(german) == "fertig / a.iso / in Betrieb ist VM VM1."
    assert joined(["a", "b"]) == "a, b"


def test_one_text_alone_is_itself_and_none_is_empty() -> None:
    assert joined([RUNS]) is RUNS
    assert joined([]) == ""


def test_what_an_error_and_a_finding_say_are_phrases() -> None:
    error = MigrationError(ErrorCode.PATH_TAKEN, {"path": "/srv/x", "host": SOURCE})
    assert (error.message.words, error.hint.words) == (
        ERRORS[ErrorCode.PATH_TAKEN].message, ERRORS[ErrorCode.PATH_TAKEN].hint)
    found = Finding(check=Check.DOMAIN, severity=Severity.FINE, facts={"host": SOURCE, "domain": "VM1"})
    assert found.message.text(lambda words: words.upper()) != found.message


# On the wire.


PHRASES = st.recursive(
    st.text(max_size=9),
    lambda facts: st.builds(Phrase, st.sampled_from(["{a} of {b}", "no {a}", "done", "{a}"]), st.dictionaries(
        st.sampled_from(["a", "b"]), facts, max_size=2)), max_leaves=3)


@given(PHRASES)
def test_it_crosses_as_it_is(text: str) -> None:
    reply = Reply(
        msg_type=MessageType.RESPONSE, request_id=REQUEST_ID, agent_ip=SOURCE, cmd=Command.FINISH, sequence=1,
        cmd_result=StepReport(summary=text))
    told = decode(encode(reply))
    assert isinstance(told, Reply)
    assert isinstance(told.cmd_result, StepReport)
    assert same(told.cmd_result.summary, text)


def test_its_words_and_facts_are_what_crosses() -> None:
    assert to_wire(StepReport(summary=RUNS)) == {"summary": {
        "words": "VM {domain} is {state}.", "facts": {"domain": "VM1", "state": {"words": "running"}}}}
    assert to_wire(StepReport(summary="a.iso")) == {"summary": "a.iso"}


def test_an_error_keeps_the_phrases_among_its_facts() -> None:
    error = MigrationError(ErrorCode.NOT_AS_EXPECTED, {"host": SOURCE, "domain": "VM1", "problem": RUNS})
    told = from_wire(Obstacle, to_wire(Obstacle.of(error))).error()
    assert told.message == f"On {SOURCE}: VM VM1 is running."
    assert told.message.text(german) == f"On {SOURCE}: in Betrieb ist VM VM1."


def test_a_hint_among_the_facts_takes_the_place_of_the_codes_own() -> None:
    facts = {"path": "/srv/x", "host": SOURCE, "hint": Phrase("Look at {host}.", {"host": SOURCE})}
    error = MigrationError(ErrorCode.PATH_TAKEN, facts)
    assert error.hint == f"Look at {SOURCE}."
    assert from_wire(Obstacle, to_wire(Obstacle.of(error))).error().hint == error.hint
    # Words that are not a Phrase are somebody else's.
    assert MigrationError(ErrorCode.PATH_TAKEN, {**facts, "hint": "x"}).hint.startswith("Nothing is overwritten")


def test_a_fact_that_is_too_long_crosses_cut_and_in_english() -> None:
    long = Phrase("It failed: {reason}.", {"reason": "x" * LONGEST_TEXT})
    cut = Obstacle.of(MigrationError(ErrorCode.INTERNAL, {"reason": long})).facts["reason"]
    assert type(cut) is str
    assert (len(cut), cut[:12], cut[-1]) == (LONGEST_TEXT, "It failed: x", "…")
    brief = Obstacle.of(MigrationError(ErrorCode.INTERNAL, {"reason": RUNS}), longest=40).facts["reason"]
    assert (type(brief), brief) == (str, "VM VM1 is running.")


DEEP: Any = {"words": "done"}
for _depth in range(4):
    DEEP = {"words": "{a}", "facts": {"a": DEEP}}


@pytest.mark.parametrize("summary", [
    None, 7, [], {}, {"facts": {}}, {"words": None}, {"words": {"words": "done"}}, {"words": "done", "facts": None},
    {"words": "done", "facts": []}, {"words": "done", "facts": {"a": 1}}, {"words": "done", "facts": {"a": None}},
    {"words": "done", "facts": {}, "more": 1}, {"words": "x" * (LONGEST_TEXT + 1)}, {"words": "\ud800"},
    {"words": "{a}" * 9, "facts": {"a": "x" * 1000}}, {"words": "done", "facts": {"a": "x" * (LONGEST_TEXT + 1)}},
    DEEP,
])
def test_what_is_no_phrase_is_refused(summary: Any) -> None:
    with pytest.raises(ValueError, match="summary"):
        from_wire(StepReport, {"summary": summary})


def test_a_phrase_in_a_phrase_in_a_list_is_read() -> None:
    assert from_wire(StepReport, {"summary": DEEP["facts"]["a"]}).summary == "done"


def test_where_a_name_is_wanted_no_phrase_is_taken() -> None:
    wire = to_wire(StepReport(summary="x"))
    assert from_wire(StepReport, wire).summary == "x"
    with pytest.raises(ValueError, match="code"):
        from_wire(Obstacle, {"code": {"words": "internal"}, "facts": {}})
    with pytest.raises(ValueError, match="wrong type"):
        StepReport(summary=Phrase("{a}" * 9, {"a": "x" * 1000}))
