"""README.zh-CN.md says in Chinese what README.md says: the same parts in the same order, and all that is not prose."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from constant import ExitCode
from tests.unit.samples import ROOT
from tests.unit.test_documents import anchor
from wire.errors import ErrorCode
from wire.findings import CHECKS

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
# What a line begins with that begins a part, and the part's kind.
BEGINNINGS = {r"#+ ": "heading", r" {4}": "code", r"\|": "table", r"- ": "item", r"\d+\. ": "number"}
SPAN = r"(?<!\\)`[^`]+`"
LINK = r"\]\(([^)\s]+)\)"


@dataclasses.dataclass
class Part:
    """A heading, a paragraph, an item of a list, a table or a block of code, with its lines."""

    kind: str
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def shape(self) -> str:
        """What both languages have in common: the kind, a heading's level, a table's columns row by row."""
        if self.kind == "heading":
            return self.text.split(" ")[0]
        if self.kind == "table":
            return f"table {[len(cells(line)) for line in self.lines]}"
        return self.kind


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def parts(text: str) -> list[Part]:
    found: list[Part] = []
    after_empty = True
    for line in text.splitlines():
        kind = next((kind for beginning, kind in BEGINNINGS.items() if re.match(beginning, line)), "paragraph")
        goes_on = kind == "code" if after_empty else kind in ("code", "table", "paragraph")
        if line and goes_on and found and (kind == "paragraph" or found[-1].kind == kind):
            found[-1].lines += ["", line] if after_empty else [line]
        elif line:
            found.append(Part(kind, [line]))
        after_empty = not line
    return found


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and the parts below it, up to the next heading."""

    parts: tuple[Part, ...]

    @property
    def prose(self) -> str:
        return "\n\n".join(part.text for part in self.parts if part.kind != "code")

    @property
    def tables(self) -> list[Part]:
        return [part for part in self.parts if part.kind == "table"]

    def all_of(self, pattern: str) -> Counter[str]:
        """What the prose holds of a kind, in any order: each language puts it where its sentences want it."""
        return Counter(re.findall(pattern, self.prose))


def sections(text: str) -> list[Section]:
    found: list[list[Part]] = []
    for part in parts(text):
        if part.kind == "heading":
            found.append([])
        found[-1].append(part)
    return [Section(tuple(each)) for each in found]


def headings(text: str) -> list[str]:
    return [part.text for part in parts(text) if part.kind == "heading"]


EACH_SECTION = pytest.mark.parametrize(("english", "chinese"), [
    pytest.param(english, chinese, id=english.parts[0].text.lstrip("# "))
    for english, chinese in zip(sections(ENGLISH), sections(CHINESE))
])


# What the two are made of.


def test_the_headings_have_the_same_levels_in_the_same_order() -> None:
    assert [each.split(" ")[0] for each in headings(CHINESE)] == [each.split(" ")[0] for each in headings(ENGLISH)]


@EACH_SECTION
def test_each_section_has_the_same_paragraphs_items_and_tables_with_as_many_rows(
        english: Section, chinese: Section) -> None:
    assert [part.shape for part in chinese.parts] == [part.shape for part in english.parts]


def test_commands_and_what_they_print_are_the_same_to_the_byte() -> None:
    english, chinese = ([part.text for part in parts(text) if part.kind == "code"] for text in (ENGLISH, CHINESE))
    assert len(english) > 30
    assert chinese == english
    assert "```" not in ENGLISH + CHINESE, "blocks of code are indented"


@EACH_SECTION
def test_each_section_names_the_same_commands_options_and_files(english: Section, chinese: Section) -> None:
    assert chinese.all_of(SPAN) == english.all_of(SPAN)


@EACH_SECTION
def test_each_section_tells_the_same_figures(english: Section, chinese: Section) -> None:
    figures = r"(?<![\w.])\d[\d.]*(?<!\.)"
    assert chinese.all_of(figures) == english.all_of(figures)


@EACH_SECTION
def test_the_rows_of_tables_stand_in_the_same_order(english: Section, chinese: Section) -> None:
    # What stands in a first column and is no word of a language: code, a number, a step, an error's code.
    fixed = rf"{SPAN}|^\d+$|\b[A-Z_]{{4,}}\b|\b[a-z]+(?:-[a-z]+)+\b"
    wanted, found = ([re.findall(fixed, cells(line)[0]) for table in each.tables for line in table.lines]
                     for each in (english, chinese))
    assert found == wanted


# Links.


@EACH_SECTION
def test_each_section_links_to_the_same_files(english: Section, chinese: Section) -> None:
    wanted, found = ([link for link in sorted(each.all_of(LINK).elements()) if not link.startswith(("#", "README"))]
                     for each in (english, chinese))
    assert found == wanted


@EACH_SECTION
def test_each_section_links_to_the_same_headings(english: Section, chinese: Section) -> None:
    def targets(section: Section, text: str) -> list[int]:
        anchors = [anchor(heading.lstrip("# ")) for heading in headings(text)]
        return sorted(anchors.index(link[1:]) if link[1:] in anchors else -1
                      for link in re.findall(LINK, section.prose) if link.startswith("#"))

    assert targets(chinese, CHINESE) == targets(english, ENGLISH)


def test_every_heading_that_is_linked_is_there_and_there_once() -> None:
    anchors = Counter(anchor(heading.lstrip("# ")) for heading in headings(CHINESE))
    linked = re.findall(r"\]\(#([^)\s]+)\)", CHINESE)
    assert [link for link in linked if anchors[link] != 1] == []


def test_each_links_to_the_other_at_its_top() -> None:
    assert parts(ENGLISH)[1].text == "[中文](README.zh-CN.md)"
    assert parts(CHINESE)[1].text == "[English](README.md)"


# What somebody looks up.


@pytest.mark.parametrize("code", sorted({each.value for each in ErrorCode} | {check.name for check in CHECKS}))
def test_every_code_that_readme_names_is_named_in_chinese(code: str) -> None:
    english, chinese = (len(re.findall(rf"(?<![\w-]){code}(?![\w-])", re.sub(LINK, "]", text), re.ASCII))
                        for text in (ENGLISH, CHINESE))
    assert chinese >= english


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_in_the_chinese_table(code: ExitCode) -> None:
    table = sections(CHINESE)[headings(ENGLISH).index("## Exit codes")].prose
    assert f"\n| {int(code)} | " in table


def test_every_option_that_readme_names_is_named_in_chinese() -> None:
    english, chinese = (set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text, re.ASCII)) for text in (ENGLISH, CHINESE))
    assert english - chinese == set()


@EACH_SECTION
def test_no_sentence_is_left_in_english(english: Section, chinese: Section) -> None:
    prose = re.sub(rf"{SPAN}|{LINK}|“[^”]*”|\"[^\"]*\"", " ; ", chinese.prose)
    # Four words beside each other are no name of a thing.
    assert re.findall(r"(?:\b[a-z]+ ){3,}[a-z]+\b", prose) == []
