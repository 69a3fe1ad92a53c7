"""A run's page: it needs nothing but itself, no text from anywhere becomes markup, and it tells what an admin asks."""

from __future__ import annotations

import dataclasses
import gettext
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from console import language
from console.markup import Markup, element, escaped, joined
from console.recorder import SAMPLES_LIMIT, Recording, Sample, Span, Track
from console.report_charts import Axis, RateChart, draw_rates, moment
from console.report_page import RunPage, page
from console.report_rates import Kind, Level, Series, series_of
from console.report_style import STYLE
from constant import Command, ExitCode, Outcome, Severity
from control.conversation import StepResult
from control.plan import make_plan
from control.report import RunReport
from tests.unit.report_runs import (
    BEGAN,
    COMMAND,
    EVERY_RUN,
    FACTS,
    FINDINGS,
    HOSTS,
    LINK,
    MIB,
    MIGRATION,
    MOVED,
    NODE1,
    NODE2,
    blocked,
    moved,
    rolled_back,
    shut_off,
)
from wire.errors import ErrorCode, MigrationError
from wire.findings import Check, Finding
from wire.records import DiskProgress, MemoryProgress

PAGES = {name: page(make()) for name, make in EVERY_RUN.items()}
HOSTILE = "\"'><script>alert(1)</script><svg onload=alert(2)><img src=http://192.0.2.99/x>&amp;\x1b[2J\x00\u202e"


class Reader(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        """It closes what was opened last."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note what can be read, and in which element."""
        if self._open and self._open[-1] != "style" and data.strip():
            self.words.append(data)
            self.inside.append(self._open[-1])

    @property
    def text(self) -> str:
        """All that can be read."""
        return " ".join(" ".join(self.words).split())

    def headings(self) -> list[str]:
        """The tags of the headings, in their order."""
        return [tag for tag, _attributes in self.elements if re.fullmatch(r"h[1-6]", tag)]


# It needs nothing but itself.


@pytest.mark.parametrize("name", PAGES)
def test_a_page_refers_to_nothing_outside_of_itself_and_runs_nothing(name: str) -> None:
    reader = Reader(PAGES[name])
    for tag, attributes in reader.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "image", "img", "use")
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            if attribute in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "ping"):
                assert value.startswith(("data:image/svg+xml,", "#")), (tag, attribute, value)
            assert "url(" not in value
    assert not re.search(r"url\(|@import|expression\(", STYLE)
    policies = [attributes["content"] for tag, attributes in reader.elements
                if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "script-src" not in policies[0]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed_and_its_ids_are_its_own(name: str) -> None:
    start, _, rest = PAGES[name].partition("\n")
    assert start == "<!DOCTYPE html>"
    root = ET.fromstring(rest)  # noqa: S314 - made here a moment ago
    ids = [each.attrib["id"] for each in root.iter() if "id" in each.attrib]
    assert len(ids) == len(set(ids))
    for each in root.iter():
        for named in each.attrib.get("aria-labelledby", "").split():
            assert named in ids


@pytest.mark.parametrize("name", PAGES)
def test_whoever_cannot_see_a_page_finds_headings_captions_and_names(name: str) -> None:
    root = ET.fromstring(PAGES[name].partition("\n")[2])  # noqa: S314 - made here a moment ago
    levels = [int(tag[1]) for tag in Reader(PAGES[name]).headings()]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert set(levels[1:]) <= {2}
    assert root.attrib["lang"] == "en"
    for table in root.iter("table"):
        assert "".join(table.find("caption").itertext()).strip()  # type: ignore[union-attr]  # fails the test
        assert all(cell.attrib.get("scope") in ("row", "col") for cell in table.iter("th"))
        assert all("".join(cell.itertext()).strip() for cell in table.iter("th"))
    for drawing in root.iter("svg"):
        told = drawing.attrib.get("aria-label") or drawing.attrib.get("aria-labelledby")
        inner = "viewBox" in drawing.attrib and drawing.attrib.get("preserveAspectRatio") == "none"
        assert told or inner or drawing.attrib.get("aria-hidden") == "true"
        if drawing.attrib.get("role") == "img":
            assert drawing[0].tag == "title"


def test_the_same_run_makes_the_same_page() -> None:
    assert page(moved()) == PAGES["moved"]


# Nothing that comes from anywhere becomes markup.


def hostile_page() -> RunPage:
    """A run of which every text that another host or an admin chooses is an attack."""
    run = moved()
    error = MigrationError(ErrorCode.MIGRATION_FAILED, {"domain": HOSTILE, "host": HOSTILE, "reason": HOSTILE})
    migration = dataclasses.replace(MIGRATION, domain="<script>alert(1)", admin=HOSTILE)
    finding = Finding(check=Check.DISKS, severity=Severity.FINE, facts={"host": HOSTILE, "disks": HOSTILE})
    steps = (StepResult(Command.HELLO, HOSTILE, 1.0, HOSTILE), StepResult(Command.LIVE_MIGRATION, NODE1, 1.0, HOSTILE))
    samples = (Sample(1.0, HOSTILE, 50, 100, (DiskProgress(HOSTILE, 50 * MIB, 100 * MIB),)),
               Sample(9.0, HOSTILE, 99, 100, (DiskProgress(HOSTILE, 99 * MIB, 100 * MIB),)))
    hosts = {each: dataclasses.replace(facts, hostname=HOSTILE, version=HOSTILE, space_path=HOSTILE)
             for each, facts in HOSTS.items()}
    facts = dataclasses.replace(
        FACTS, uuid=HOSTILE, machine=HOSTILE, virtualization=HOSTILE, architecture=HOSTILE,
        interfaces=tuple(dataclasses.replace(each, source=HOSTILE, mac=HOSTILE) for each in FACTS.interfaces),
        disks=(dataclasses.replace(FACTS.disks[1], path="/srv/<script>alert(1)</script>\".img"),))
    spans = tuple(Span(step.command, step.host, place, place + 1.0, step) for place, step in enumerate(steps))
    recording = Recording(12.0, spans, (Track(Command.LIVE_MIGRATION, NODE1, 0.0, samples),))
    report = dataclasses.replace(
        run.report, migration=migration, errors=(error,), findings=(*FINDINGS, finding), steps=steps,
        plan=make_plan(migration, facts, LINK))
    return RunPage(report, recording, BEGAN, f"vmmigration.py {HOSTILE}", facts, hosts, run.clocks)


def test_no_text_from_another_host_becomes_markup() -> None:
    text = page(hostile_page())
    reader = Reader(text)
    known = {(tag, frozenset(attributes)) for made in PAGES.values() for tag, attributes in Reader(made).elements}
    assert {(tag, frozenset(attributes)) for tag, attributes in reader.elements} <= known
    ET.fromstring(text.partition("\n")[2])  # noqa: S314 - made here a moment ago
    # It can be read all the same: of the name, the disk's target in the chart, its path, a host's name, the error.
    for shown in ("<script>alert(1) runs on", "/srv/<script>alert(1)</script>\".img", "source: \"'><script>alert(1)",
                  "vmmigration.py \"'><script>"):
        assert shown in reader.text
    assert any(word.startswith("\"'><script>alert(1)</script>") for word in reader.words)


def test_control_characters_and_what_turns_the_direction_of_writing_are_not_in_a_page() -> None:
    text = page(hostile_page())
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert escaped("two\nlines\x1b[2J") == "two lines?[2J"
    assert escaped("\udcff").encode() == b"?"


def test_only_what_is_markup_already_stays_markup() -> None:
    inner = element("b", {"title": 'a"b<c'}, "x<y", Markup("<i></i>"))
    assert inner == '<b title="a&quot;b&lt;c">x&lt;y<i></i></b>'
    assert element("p", {"class": None, "width": 2.5}, inner) == f'<p width="2.5">{inner}</p>'
    assert element("meta", {"charset": "utf-8"}) == '<meta charset="utf-8"/>'
    assert joined(("<", Markup("<br/>"))) == "&lt;<br/>"


# What it tells.


TOLD = {
    "moved": [
        "moved, exit code 0", "mail runs on 192.168.111.132 now.", "kvm-node1 (192.168.111.130)", "1a2b3c4d",
        "2026-11-22, 19:28:45 to 19:37:46 (+0100)", "55.29 GiB", "files 2.00 GiB, disk 41.29 GiB, memory 12.00 GiB",
        "412 ms", "675 ms were allowed in the end", "passes over the memory 5", "as expected", "Warning", "way-back",
        "Skipped", COMMAND, "root@BOSS", "VMMigration 0.6.0",
        "vda 42 MiB/s, up to 49 MiB/s", "written by the guest", "link, measured beforehand 112 MiB/s",
        "10.0.0 (virtqemud)", "8.2.2", "-0.3 s", "bridge br0 → bridge br-lan (52:54:00:3a:11:7c)",
        "/var/lib/libvirt/images/mail-spool.img → /srv/vm/mail-spool.img", "qcow2 1.1, mirrored by QEMU",
        "16.00 GiB, of which 11.00 GiB were in use", "mail_VARS.fd", "make a directory for the tunnel's sockets",
        "persistent, autostart on", "All findings: 61, of which 58 are fine"],
    "moved-incomplete": ["moved, not finished, exit code 6", "but not all went well", "FAILED directory-missing",
                         "Read-only file system", "What went wrong"],
    "rolled-back": ["rolled back, exit code 5", "Rolled back: mail runs on 192.168.111.130 as before.", "tunnel-lost",
                    "had crossed 18.53 GiB", "removed /var/lib/libvirt/images/mail.qcow2", "not run"],
    "blocked": ["nothing changed, exit code 3", "Nothing was changed on either host.", "What stands in the way",
                "Obstacle memory memory-short", "--skip-check memory", "Obstacle target-path path-taken", "BLOCKED",
                "not waited for 0.34 s"],
    "silent": ["nothing changed, exit code 4", "agent-silent", "did not answer", "kvm-node1"],
    "unknown": ["state unknown, exit code 7", "STATE UNKNOWN: look for mail", "vmmigration.py resume 1a2b3c4d"],
    "detached": ["goes on without this command, exit code 8", "Left: job 1a2b3c4d of mail goes on with its step.",
                 "goes on 1:21 min", "followed for", "Ctrl-C leaves the job to itself", "status 1a2b3c4d"],
    "dry-run": ["dry run, exit code 0", "A real run would start.", "to send 43.00 GiB",
                "of disk, and up to 11.00 GiB of memory", "not in a dry run", "What a real run would come to",
                "converges"],
    "short": ["total time 4.8 s", "353 MiB", "142 ms", "vda 90 MiB/s, up to 135 MiB/s"],
    "shut-off": ["mail is shut off on 192.168.111.132 now.", "files 2.00 GiB", "its definition is there"],
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_tells_what_an_admin_asks_of_such_a_run(name: str) -> None:
    text = Reader(PAGES[name]).text
    for told in TOLD[name]:
        assert told in text


def test_a_vm_that_was_shut_off_has_no_downtime_and_no_passes() -> None:
    text = Reader(PAGES["shut-off"]).text
    assert "stood still" not in text
    assert "stands still" not in text
    assert "passes" not in text
    assert "not told by libvirt" in Reader(page(dataclasses.replace(moved(), report=dataclasses.replace(
        moved().report, moved=dataclasses.replace(MOVED, downtime=-1))))).text
    assert shut_off().report.exit_code is ExitCode.MOVED


def test_a_guest_does_not_use_more_memory_than_it_has() -> None:
    run = moved()
    facts = dataclasses.replace(FACTS, resident=FACTS.memory + 50 * MIB)
    assert "16.00 GiB, of which 16.00 GiB were in use" in Reader(page(dataclasses.replace(run, facts=facts))).text


def test_a_dry_run_that_is_blocked_is_not_shown_as_good() -> None:
    run = blocked(dry_run=True)
    text = page(run)
    assert '<header class="bad">' in text
    assert "A real run would not start: 2 things in the way." in Reader(text).text
    assert '<header class="good">' in PAGES["dry-run"]


@pytest.mark.parametrize(("seconds", "told"), [(5.0, "sooner"), (500.0, "as expected"), (5000.0, "later")])
def test_the_time_it_took_is_held_against_the_plan(seconds: float, told: str) -> None:
    run = moved()
    text = Reader(page(dataclasses.replace(run, report=dataclasses.replace(run.report, seconds=seconds)))).text
    assert told in text.partition("whole run")[2][:80]


def rows_of_steps(text: str) -> list[tuple[str, ...]]:
    """The rows of the table of all steps."""
    root = ET.fromstring(text.partition("\n")[2])  # noqa: S314 - made here a moment ago
    body = next(each for each in root.iter("table") if each.attrib.get("class") == "steps").find("tbody")
    assert body is not None
    return [tuple(" ".join(cell.itertext()) for cell in row) for row in body]


@pytest.mark.parametrize("name", PAGES)
def test_each_step_is_told_once_with_what_was_planned_and_what_came_of_it(name: str) -> None:
    report = EVERY_RUN[name]().report
    planned = report.plan.steps if report.plan is not None else ()
    rows = rows_of_steps(PAGES[name])
    run = [(step.command, step.host) for step in report.steps]
    left = [step for step in planned if (step.command, step.host) not in run]
    assert len(rows) == len(run) + len(left)
    assert [row[0].split()[0] for row in rows] == [
        *(step.command.value for step in report.steps), *(step.command.value for step in left)]
    for step in planned:
        row = next(row for row in rows if row[0].startswith(step.command.value) and (
            "source" in row[0]) == (step.host == NODE1))
        assert row[1] == " ".join(step.does)
        assert (row[2] in ("not run", "not in a dry run", "goes on")) == (step in left)


def test_a_run_that_was_left_is_not_told_as_one_that_is_over() -> None:
    (going_on,) = [row for row in rows_of_steps(PAGES["detached"]) if row[0].startswith("LIVE_MIGRATION")]
    assert going_on[2] == "goes on"
    assert "not run" in {row[2] for row in rows_of_steps(PAGES["detached"])}
    whole = Reader(PAGES["detached"]).text.partition("whole run")[2].partition("disks and files")[0]
    assert whole.endswith(" - ")


def test_what_is_to_be_typed_stands_as_code_in_a_remedy() -> None:
    assert "<code>--skip-check memory</code>" in PAGES["blocked"]
    assert "`" not in Reader(PAGES["blocked"]).text


def test_a_run_of_which_nothing_is_known_has_a_page_too() -> None:
    for outcome in Outcome:
        run = RunPage(RunReport(MIGRATION, outcome, None, 0.0), Recording(0.0), BEGAN, "vmmigration.py")
        text = Reader(page(run)).text
        assert f"exit code {int(run.report.exit_code)}" in text
        assert "Time line" not in text


def test_a_move_that_told_nothing_of_its_progress_has_a_time_line_and_no_rates() -> None:
    run = rolled_back()
    text = page(dataclasses.replace(run, recording=dataclasses.replace(run.recording, tracks=())))
    assert "Time line" in text
    assert 'class="chart"' not in text
    assert 'class="chart"' in PAGES["rolled-back"]


def test_every_heading_and_every_caption_is_in_the_readers_language(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loud(gettext.NullTranslations):
        """A language in which everything is shouted."""

        def gettext(self, message: str) -> str:
            """Its name, or the text in capitals but for what is filled in."""
            return "de" if message == "en" else re.sub(
                r"(^|\})([^{]*)", lambda found: found.group(1) + found.group(2).upper(), message)

    monkeypatch.setattr(language._language, "catalogue", Loud())
    for make in EVERY_RUN.values():
        reader = Reader(page(make()))
        assert reader.elements[0] == ("html", {"lang": "de"})
        for words, inside in zip(reader.words, reader.inside):
            if inside in ("h2", "caption", "dt", "summary"):
                assert words == words.upper()


def test_a_host_whose_qemu_does_not_answer_and_each_outcome_are_told_in_the_readers_language(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = moved()
    hosts = {**HOSTS, NODE1: dataclasses.replace(HOSTS[NODE1], qemu_version=0, libvirt_version=0)}
    monkeypatch.setattr("console.language._language.catalogue", Bracketed())
    text = page(dataclasses.replace(run, hosts=hosts))
    assert text.count("<not answering>") == 0
    assert text.count("&lt;not answering&gt;") == 2
    for outcome in Outcome:
        told = page(dataclasses.replace(run, report=dataclasses.replace(run.report, outcome=outcome, runs_on=NODE1)))
        assert f"&lt;{outcome.value}&gt;" in told


class Bracketed(gettext.NullTranslations):
    """A language in which each text that is looked up stands in angle brackets."""

    def gettext(self, message: str) -> str:
        """The text in them."""
        return f"<{message}>"


# Its charts.


def bars_of(text: str) -> list[tuple[str, float, float]]:
    """The steps of a time line with begin and end in percent."""
    root = ET.fromstring(text.partition("\n")[2])  # noqa: S314 - made here a moment ago
    found = []
    for row in root.iter("li"):
        bars = [each for each in row.iter("rect") if each.attrib["class"].startswith("bar ")]
        if bars:
            began, width = (float(bars[-1].attrib[name].rstrip("%")) for name in ("x", "width"))
            found.append(("".join(row.find("span").itertext()), began, began + width))  # type: ignore[union-attr]
    return found


def test_bars_lie_on_the_time_line_as_the_steps_did() -> None:
    bars = bars_of(PAGES["short"])
    run = EVERY_RUN["short"]()
    assert len(bars) == len(run.recording.spans)
    for (name, began, ended), span in zip(bars, run.recording.spans):
        assert name.startswith(span.command.value)
        assert began == pytest.approx(100 * span.began / run.recording.seconds, abs=0.01)
        assert ended == pytest.approx(100 * span.ended / run.recording.seconds, abs=0.01)
        assert 0 <= began <= ended <= 100.01


@pytest.mark.parametrize("seconds", [0.0, 0.4, 5.3, 59.0, 61.0, 547.0, 3599.0, 7300.0, 86_400.0, 2_000_000.0])
def test_a_time_line_of_any_length_has_a_few_round_marks(seconds: float) -> None:
    axis = Axis.of(seconds)
    ticks = list(axis.ticks())
    assert 1 <= len(ticks) <= 6
    assert all(0 < axis.percent(at) <= 100 for at in ticks)
    assert len({moment(at) for at in ticks}) == len(ticks)


@pytest.mark.parametrize(("seconds", "told"), [
    (0.5, "0.5 s"), (45, "45 s"), (90, "1:30 min"), (120, "2 min"), (5400, "1:30 h"), (86_400, "24 h")])
def test_a_mark_is_written_as_a_person_does(seconds: float, told: str) -> None:
    assert moment(seconds) == told


def test_the_rates_are_stacked_and_stay_below_the_top() -> None:
    run = moved()
    chart = RateChart.of(series_of(run.recording, NODE1), Axis.of(run.recording.seconds), 112.0 * MIB)
    assert chart is not None
    assert [(each.series.kind, each.series.name) for each in chart.bands] == [
        (Kind.FILES, ""), (Kind.DISK, "vda"), (Kind.DISK, "vdb"), (Kind.MEMORY, "")]
    assert chart.link == 112.0 * MIB
    highest = max(sum(rates) for rates in zip(*(each.rates for each in chart.bands)))
    assert highest < chart.top
    assert len(chart.edges) <= 161
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.-]+)", draw_rates(chart, "", ""))]
    assert min(heights) == pytest.approx(chart.y(highest), abs=0.1)
    assert min(heights) >= 0
    assert max(heights) == pytest.approx(250)


def test_each_band_stands_on_the_one_below() -> None:
    series = [Series(Kind.DISK, name, (Level(0, 10, rate),)) for name, rate in (("vda", 10e6), ("vdb", 30e6))]
    chart = RateChart.of(series, Axis.of(10), None)
    assert chart is not None
    areas = re.findall(r'class="area [^"]*" d="M([^"]*)Z"', draw_rates(chart, "", ""))
    spans = [{float(point.split()[1]) for point in area.split("L")} for area in areas]
    ground, first, both = (round(chart.y(rate), 1) for rate in (0, 10e6, 40e6))
    assert spans == [{ground, first}, {first, both}]


def test_a_link_that_carries_far_more_is_told_and_does_not_press_the_rates_flat() -> None:
    series = (Series(Kind.DISK, "vda", (Level(0, 10, 10.0 * MIB),)),)
    chart = RateChart.of(series, Axis.of(10), 1000.0 * MIB)
    assert chart is not None
    assert chart.link is None
    assert chart.top < 12 * MIB


def test_a_guest_that_writes_faster_than_the_link_carries_is_seen_to() -> None:
    samples = (Sample(1.0, "", 60 * MIB, 90 * MIB, memory=MemoryProgress(
        passes=2, left=1, rate=None, dirty_rate=300 * MIB, downtime_limit=300)),)
    run = moved()
    recording = dataclasses.replace(run.recording, tracks=(Track(Command.LIVE_MIGRATION, NODE1, 0.0, samples),))
    text = Reader(page(dataclasses.replace(run, recording=recording))).text
    assert "written by the guest 300 MiB/s, up to 300 MiB/s" in text
    chart = RateChart.of(series_of(recording, NODE1), Axis.of(run.recording.seconds), None)
    assert chart is not None
    assert chart.top > 300 * MIB


def many_samples() -> Iterator[Sample]:
    """As many as are kept, of a guest with twenty disks that goes over its memory again and again."""
    names = [f"vd{chr(ord('a') + place)}" for place in range(16)]
    for place in range(SAMPLES_LIMIT):
        at, done = 1.0 + place, place * 160 * MIB
        if place < SAMPLES_LIMIT / 2:
            yield Sample(at, "", done, done, tuple(DiskProgress(name, done // 16, done) for name in names))
        else:
            yield Sample(at, "", done, done, memory=MemoryProgress(
                passes=place, left=0, rate=1, dirty_rate=place * MIB, downtime_limit=300))


def test_however_long_the_run_its_page_stays_small() -> None:
    run = moved()
    tracks = tuple(Track(command, host, 0.0, tuple(many_samples())) for command, host in (
        (Command.COPY_DISK_FILE, NODE1), (Command.COPY_DISK_FILE, NODE2), (Command.LIVE_MIGRATION, NODE1)))
    text = page(dataclasses.replace(run, recording=dataclasses.replace(run.recording, seconds=1001.0, tracks=tracks)))
    assert len(text) < 300_000
    reader = Reader(text)
    assert "other disks" in reader.text
    assert text.count(" to ") > 24
    assert 20 < len(re.findall(r'<tr><th scope="row">\d+</th>', text)) <= 24


# Light and dark.


def colours(scheme: str) -> dict[str, str]:
    """The page's colours by their names, in one of the two schemes."""
    dark = STYLE.partition("prefers-color-scheme: dark")[2].partition("* {")[0]
    light = STYLE.partition("@media")[0]
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", dark if scheme == "dark" else light))


def contrast(one: str, other: str) -> float:
    """Between two colours, as WCAG 2.1 counts it."""
    def luminance(colour: str) -> float:
        parts = [int(colour[place:place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_can_be_told_from_what_is_behind_it(scheme: str) -> None:
    palette = colours(scheme)
    behind = [palette.pop(name) for name in ("ground", "card", "code")]
    del palette["line"]
    text = ("text", "quiet", "good", "warn", "bad", "unknown", "left")
    for name, colour in palette.items():
        for other in behind:
            assert contrast(colour, other) >= (4.5 if name in text else 3.0), (name, other)


def test_light_and_dark_name_the_same_colours() -> None:
    assert set(colours("light")) == set(colours("dark"))
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", STYLE))
    assert used == set(colours("light"))


