"""docs/performance.md: the page is what its figures say, and a missed goal comes with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import performance_page
from bench.peer_commands import Way
from bench.peer_figures import Results, Run
from bench.performance_page import after_steps, before_steps, beyond_libvirt, page, read_reasons, table, verdict_lines
from tests.unit.test_bench_peers import a_run, results

STEPS = [
    {"command": "HELLO", "host": "192.0.2.11", "seconds": 0.01, "began": 0.1, "ended": 0.11},
    {"command": "LIVE_MIGRATION", "host": "192.0.2.11", "seconds": 9.7, "began": 0.2, "ended": 9.9}]


def three_ways() -> Results:
    """One case, ours slower than virsh with its file and faster than with the pool's."""
    return results(
        a_run(steps=STEPS, seconds=10.0), a_run(steps=STEPS, seconds=12.0), a_run(Way.VIRSH_FILE, seconds=10.0),
        a_run(Way.VIRSH_POOL, seconds=20.0))


def row(text: str, beginning: str) -> list[str]:
    """The cells of the row of a table that begins like that."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {beginning}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_way_has_its_median_its_spread_and_ours_beside_it() -> None:
    text = page(three_ways(), {})
    assert row(text, "ours")[1:4] == ["2", "11.0 (10.0 to 12.0)", ""]
    assert row(text, "virsh, file made beforehand")[1:4] == ["1", "10.0", "1.10"]
    assert row(text, "virsh, file made by libvirt")[1:4] == ["1", "20.0", "0.55"]


def test_a_missed_goal_is_told_with_its_reason_and_one_that_is_met_is_not() -> None:
    reasons = {("plain-full", "total", "VIRSH_FILE"): "The link is measured."}
    text = page(three_ways(), reasons).partition("### Missed")[2].partition("## The cases")[0]
    told = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(told) == 2
    assert told[0].endswith("(virsh, file made beforehand): 1.10 x, at most 1.0 x. The link is measured.")
    assert "outside libvirt" in told[1]
    assert told[1].endswith("The reason is not known yet.")


def test_a_reason_for_a_goal_that_is_met_does_not_stay() -> None:
    with pytest.raises(ValueError, match="VIRSH_POOL"):
        page(three_ways(), {("plain-full", "total", "VIRSH_POOL"): "It was slow."})


def test_a_page_whose_reasons_do_not_fit_is_left_as_it_was_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = tmp_path / "reasons.txt"
    reasons.write_text("plain-full gap SCP: because.\n")
    monkeypatch.setattr(performance_page, "REASONS", reasons)
    monkeypatch.setattr(performance_page, "CHECKOUT", tmp_path)
    assert performance_page.main([]) == 1
    assert "mend reasons.txt, then run script/bench page" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [reasons]


def test_reasons_are_read_by_case_goal_and_way() -> None:
    text = "# a comment\n\nplain-full total VIRSH_FILE: so: that\nlarge-1000 outside -: this\n"
    assert read_reasons(text) == {
        ("plain-full", "total", "VIRSH_FILE"): "so: that", ("large-1000", "outside", "-"): "this"}
    with pytest.raises(ValueError, match="not `case goal way: reason`"):
        read_reasons("plain-full total: why")


def test_where_our_time_goes_adds_what_is_before_between_and_after_the_steps() -> None:
    run = a_run(steps=STEPS, seconds=10.0)
    assert before_steps(run) == 0.1
    assert beyond_libvirt(run) == pytest.approx(0.2)
    assert after_steps(run) == pytest.approx(0.1)
    text = page(results(run), {})
    assert row(text, "HELLO, source")[1] == "0.01"
    assert row(text, "LIVE_MIGRATION beyond")[1] == "0.20"


def test_the_goals_are_counted_over_the_cases_with_the_worst_one_named() -> None:
    cells = row(page(three_ways(), {}), "the whole run")
    assert cells[1:] == ["1.0 x", "1 of 2", "1.10 x (plain-full, virsh, file made beforehand)"]


def test_the_lines_for_a_terminal_say_met_or_missed() -> None:
    words = [line.split()[0] for line in verdict_lines(three_ways()).splitlines()]
    assert words.count("MISSED") == 2
    assert set(words) == {"met", "MISSED"}


def test_what_is_typed_is_shown_a_line_each() -> None:
    run: Run = a_run(Way.RSYNC, "off-full", lines=[{"host": "node1", "text": "rsync -S a b", "seconds": 1.0}])
    assert "    node1# rsync -S a b\n" in page(results(run), {})


def test_a_table_has_a_line_below_its_head() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_page_that_is_kept_is_what_the_figures_that_are_kept_say() -> None:
    # Either both are kept or neither is.
    assert performance_page.PAGE.exists() is performance_page.FIGURES.exists()
    if performance_page.FIGURES.exists():
        reasons = read_reasons(performance_page.REASONS.read_text(encoding="utf-8"))
        assert performance_page.PAGE.read_text(encoding="utf-8") == page(
            Results.load(performance_page.FIGURES), reasons)
