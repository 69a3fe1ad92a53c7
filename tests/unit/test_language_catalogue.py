"""Each language's catalogue has just what the code says, whole; and the .mo file that is read is made from the .po."""

from __future__ import annotations

import ast
import gettext
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog

from tests.unit.catalogue import (
    ENUMERATIONS,
    LANGUAGES,
    ROOT,
    Language,
    as_text,
    compiled,
    names,
    problems,
    sentences,
    sources,
    texts,
    updated,
)
from wire.errors import ERRORS
from wire.findings import CHECKS
from wire.phrase import fill

SAID = sentences()
EACH = pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
# The names under which prose of ours is among the facts of an error or a check, and in the records that tell of a step.
PROSE = frozenset({"problem", "reason", "what", "why", "remedy", "state", "device", "verdict", "helps", "hint"})
TOLD = frozenset({"summary", "phase"})
# What stands under these names all the same: JSON, the agent's own log and stderr, names of commands, classes of the
# page's markup, and what only another version of ours could bring about.
NO_PROSE = {
    "agent.py": {"--listen", "--listen takes one address of IPv4 and one of IPv6", "The agent must run as root"},
    "console/plan.py": {"plan.verdict.value"},
    "console/report_charts.py": {"going-on", "failed", "ok"},
    "console/report_page.py": {"bad", "warn"},
    "console/result.py": {"report.state.value"},
    "control/conversation.py": {"it answers {} without a {}"},
    "steps/resting.py": {"it is still busy"},
    "udpmodule.py": {"{} gave {} for a result"},
    "wire/datagram.py": {"request.cmd.value"},
}


# What is in the files.


def test_there_is_a_catalogue_of_chinese() -> None:
    assert "zh_CN" in [language.name for language in LANGUAGES]


@EACH
def test_every_sentence_has_its_translation_with_the_same_names_and_there_is_no_other(language: Language) -> None:
    assert list(problems(language.read(), SAID)) == []


@EACH
def test_what_is_read_is_what_was_written(language: Language) -> None:
    assert language.compiled.read_bytes() == compiled(language.read()), "script/language compiles it"


@EACH
def test_the_file_is_as_the_script_leaves_it(language: Language) -> None:
    assert language.written.read_bytes() == as_text(updated(language.read(), SAID)), "script/language orders it"


@EACH
def test_an_installed_package_has_it(language: Language) -> None:
    (given,) = [
        ast.literal_eval(node.value) for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "package_data"]
    assert language.compiled in [path for pattern in given["console"] for path in (ROOT / "console").glob(pattern)]


@EACH
def test_the_standard_library_reads_it(language: Language) -> None:
    with language.compiled.open("rb") as file:
        catalogue = gettext.GNUTranslations(file)
    for text, translated in texts(language.read()).items():
        assert catalogue.gettext(text) == translated


@EACH
def test_every_translation_can_be_filled(language: Language) -> None:
    for text, translated in texts(language.read()).items():
        facts = {name.strip("{}").partition("!")[0]: "fact" for name in names(text)}
        filled = fill(translated, facts)
        assert filled == fill(filled, {})
        assert "?" not in filled or "?" in text


@EACH
def test_commands_paths_and_options_are_in_a_translation_as_they_were(language: Language) -> None:
    for text, translated in texts(language.read()).items():
        for quoted in set(text.split("`")[1::2]):
            assert f"`{quoted}`" in translated, text
        for option in {word.strip(",.;:)(`") for word in text.split() if word.startswith("--")}:
            assert option in translated, text


@EACH
def test_a_translation_ends_as_its_sentence_does(language: Language) -> None:
    stops = {"zh_CN": {".": "。", ":": "\uff1a:"}}[language.name]
    for text, translated in texts(language.read()).items():
        assert translated[-1] in stops.get(text[-1], translated), text
        assert translated == translated.strip() or translated.strip() == text.strip() or text.endswith("\n"), text


# What is wrong is found: each kind of it once.


@pytest.fixture
def catalog() -> Catalog:
    """A catalogue of two sentences, in which nothing is wrong."""
    made = Catalog(locale="zh_CN", fuzzy=False)
    made.add("done", "完成")
    made.add("VM {domain} is {state!r}.", "{state!r}\uff1a{domain}")
    return made


TWO = {"done": ["a.py"], "VM {domain} is {state!r}.": ["a.py"]}


def test_nothing_is_wrong_with_a_good_one(catalog: Catalog) -> None:
    assert list(problems(catalog, TWO)) == []


def test_a_sentence_that_is_not_there_is_found(catalog: Catalog) -> None:
    assert list(problems(catalog, {**TWO, "new": ["a.py"]})) == ["is not there: 'new'"]


def test_a_sentence_that_is_said_nowhere_is_found(catalog: Catalog) -> None:
    catalog.add("old", "旧")
    assert list(problems(catalog, TWO)) == ["is said nowhere: 'old'"]


def test_a_sentence_without_a_translation_is_found(catalog: Catalog) -> None:
    catalog["done"].string = ""
    assert list(problems(catalog, TWO)) == ["has no translation: 'done'"]


@pytest.mark.parametrize("translated", ["{domain}", "{state}{domain}", "{state!r}{domain}{more}", "{state!r}{name}"])
def test_a_translation_with_other_names_is_found(catalog: Catalog, translated: str) -> None:
    catalog["VM {domain} is {state!r}."].string = translated
    assert list(problems(catalog, TWO)) == ["has other names in it: 'VM {domain} is {state!r}.'"]


def test_a_fuzzy_translation_is_found(catalog: Catalog) -> None:
    catalog["done"].flags.add("fuzzy")
    assert list(problems(catalog, TWO)) == ["is fuzzy: 'done'"]


def test_an_obsolete_translation_is_found(catalog: Catalog) -> None:
    catalog.obsolete["old"] = catalog["done"]
    assert list(problems(catalog, TWO)) == ["is obsolete: 'done'"]


def test_bringing_it_up_to_date_keeps_what_is_translated_and_drops_what_nobody_says(catalog: Catalog) -> None:
    new = updated(catalog, {"new": ["b.py"], "done": ["a.py"]})
    assert texts(new) == {"new": "", "done": "完成"}
    assert as_text(updated(new, {"new": ["b.py"], "done": ["a.py"]})) == as_text(new)


def test_another_translation_is_another_compiled_file(catalog: Catalog) -> None:
    before = compiled(catalog)
    assert compiled(catalog) == before
    catalog["done"].string = "结束"
    assert compiled(catalog) != before
    assert gettext.GNUTranslations(io.BytesIO(compiled(catalog))).gettext("done") == "结束"


# What the code says is found.


@pytest.mark.parametrize(("code", "found"), [
    ('translate("a")', ["a"]), ('language.translate("a")', ["a"]), ('template("a")', ["a"]), ('Phrase("a", {})', ["a"]),
    ('Phrase("a" if x else "b", {"c": "d"})', ["a", "b"]), ('Phrase("a" "b")', ["ab"]),
    ('Phrase("a" if x else "b" if y else "c")', ["a", "b", "c"]), ('CheckText("a", skippable=True)', ["a"]),
    ('ErrorText(_INPUT, "a", "b")', ["a", "b"]), ('Phrase("a", {"b": Phrase("c")})', ["a", "c"]),
    ("translate(a)", []), ('print("a")', []), ('Phrase("")', []), ('add("--x", help="a")', []),
])
def test_what_is_said_is_found(code: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(code)
    listed = sentences(tmp_path)
    assert [text for text, places in listed.items() if places == ["a.py"]] == found


def test_the_help_of_each_option_is_said(tmp_path: Path) -> None:
    (tmp_path / "console").mkdir()
    (tmp_path / "console" / "arguments.py").write_text('add("--x", help="a", metavar="b")')
    assert sentences(tmp_path)["a"] == ["console/arguments.py"]
    assert "b" not in sentences(tmp_path)


def test_every_word_of_the_tables_is_among_it() -> None:
    said = {*(text.message for text in ERRORS.values()), *(text.hint for text in ERRORS.values()),
            *(text.fine for text in CHECKS.values()), *(member.value for kind in ENUMERATIONS for member in kind)}
    assert said <= set(SAID)


def test_every_package_is_looked_through() -> None:
    looked = {path.parent for path in sources()}
    ours = {path.parent for path in ROOT.glob("[a-z]*/**/__init__.py")}
    assert {path for path in ours if path.relative_to(ROOT).parts[0] not in ("tests", "bench", "build")} <= looked


# What a person reads is a sentence that the catalogue can have.


def plain(path: Path) -> Iterator[tuple[int, str]]:
    """The prose under one of the names that is no Phrase, with its line: it would never be translated."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            given = [(key.value, value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)]
            yield from ((value.lineno, text) for name, value in given if name in PROSE for text in _words(value))
        elif isinstance(node, ast.Call):
            yield from ((keyword.value.lineno, text) for keyword in node.keywords
                        if keyword.arg in PROSE | TOLD for text in _words(keyword.value))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in PROSE:
            yield from ((node.lineno, text) for text in _words(node.value))


def _words(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _words(node.body)
        yield from _words(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _words(value)
    elif isinstance(node, ast.Attribute) and node.attr == "value":
        yield ast.unparse(node)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_of_ours_is_a_phrase(path: Path) -> None:
    allowed = NO_PROSE.get(str(path.relative_to(ROOT)), set())
    assert [(line, text) for line, text in plain(path) if text not in allowed] == []


@pytest.mark.parametrize("code", [
    'x = {"reason": "it failed"}', 'stops(code, reason="it failed")', 'StepReport(summary=f"{x} here")',
    'Progress(phase="copying")', 'problem = "it failed"', 'reason = f"no {x}" if y else z',
    'x = {"state": view.state.value}', 'x = {"reason": error.strerror or "no answer"}',
])
def test_prose_that_is_none_is_found(code: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(code)
    assert list(plain(tmp_path / "a.py"))
