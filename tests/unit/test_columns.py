"""How many columns text takes, and what is left of it in so many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.columns import columns, cut, pad, wrap

TEXTS = st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=60)


@pytest.mark.parametrize(("text", "taken"), [
    ("", 0), ("VM1", 3), ("ü", 1), ("u\u0308", 1), ("复制", 4), ("\uff21", 2), ("ｱ", 1), ("━╸─…", 4),
    ("🙂", 2), ("a\u200db", 2),
])
def test_a_wide_sign_takes_two_columns_and_a_mark_none(text: str, taken: int) -> None:
    assert columns(text) == taken
    assert columns(pad(text, 7)) == 7


def test_what_is_too_wide_is_cut_with_an_ellipsis() -> None:
    assert [cut("abcdef", width) for width in (6, 5, 1, 0)] == ["abcdef", "abcd…", "…", ""]
    assert cut("abc def", 5) == "abc…"
    assert cut("abcdef", 5, "...") == "ab..."
    assert cut("abcdef", 2, "...") == ""


def test_half_of_a_wide_sign_is_never_left() -> None:
    assert [cut("正在复制", width) for width in (8, 7, 6, 5)] == ["正在复制", "正在复…", "正在…", "正在…"]


@given(TEXTS, st.integers(0, 30))
def test_no_cut_is_too_wide(text: str, width: int) -> None:
    assert columns(cut(text, width)) <= width


def test_words_stay_whole_where_that_can_be() -> None:
    assert wrap("22 checks, nothing in the way", 20, 56) == ["22 checks, nothing", "in the way"]
    assert wrap("/var/lib/node.qcow2 is there", 10, 20) == ["", "/var/lib/node.qcow2", "is there"]
    assert wrap("/var/lib/libvirt", 6, 6) == ["/var/l", "ib/lib", "virt"]
    assert wrap("", 5, 5) == []


def test_chinese_breaks_between_any_two_signs_but_not_before_a_comma() -> None:
    assert wrap("正在复制磁盘\uff0c第五遍", 8, 8) == ["正在复制", "磁盘\uff0c第", "五遍"]
    assert wrap("正在复制\uff0c磁盘", 8, 8) == ["正在复", "制\uff0c磁盘"]
    assert wrap("剩余 40 MiB\uff0c很长", 9, 9) == ["剩余 40", "MiB\uff0c很长"]


def test_no_line_ends_with_what_opens() -> None:
    assert wrap("正在复制\uff08磁盘\uff09", 10, 10) == ["正在复制", "\uff08磁盘\uff09"]
    assert wrap("正在复制“磁盘”", 10, 10) == ["正在复制", "“磁盘”"]
    assert wrap("正在复制(磁盘)", 9, 9) == ["正在复制", "(磁盘)"]


@given(TEXTS, st.integers(0, 30), st.integers(2, 30))
def test_wrapping_loses_nothing_but_blanks_and_no_line_is_too_wide(text: str, first: int, others: int) -> None:
    lines = wrap(text, first, others)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(columns(line) <= (others if place else first) for place, line in enumerate(lines))
