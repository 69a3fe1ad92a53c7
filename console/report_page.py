"""A run as one page of HTML that needs nothing but itself: how it ended, its time line and rates, plan, VM and hosts.

A pure function of what is known. The page has no script and asks nobody for anything: its own policy forbids it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Optional

from console.figures import size
from console.language import listed, translate
from console.markup import NOTHING, Markup, element, joined
from console.program import NAME
from console.recorder import Press, Recording, Span, Wish, in_step
from console.report_charts import Axis, RateChart, bar, class_of, draw_rates, name_of, press_mark, swatch, time_axis
from console.report_rates import Kind, Series, crossed_bytes, passes_of, series_of, together
from console.report_style import STYLE
from console.report_tables import (
    NOT_KNOWN,
    Came,
    code,
    disk_table,
    downtime_text,
    expected_text,
    facts_list,
    host_table,
    named,
    pass_table,
    plan_table,
    prose,
    rate_text,
    seconds_text,
    step_table,
    table,
)
from console.result import result_text
from constant import CHANGE_NOTHING, VERSION, Command, DomainState, Outcome, Severity
from control.plan import Plan
from control.report import RunReport
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts, HostFacts
from wire.findings import CHECKS, Finding
from wire.phrase import COLON, SEMICOLON

# Nothing is fetched, sent or run; the styles are the page's own, the icon is in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_ICON = ("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M1 4h9v3l5-4-5"
         "-4M15 12H6V9l-5 4 5 4' fill='%232460a7'/%3E%3C/svg%3E")
# So many passes are shown without being asked for; of more, the first and the last.
_PASSES = 24


@dataclass(frozen=True)
class RunPage:
    """All that a page is made from."""

    report: RunReport
    recording: Recording
    began: datetime
    """By the management host's clock, with its time zone."""
    command: str
    """As it was typed."""
    facts: Optional[DomainFacts] = None
    hosts: Mapping[str, HostFacts] = field(default_factory=dict)
    clocks: Mapping[str, float] = field(default_factory=dict)
    """How many seconds each host's clock is ahead of the management host's."""


def page(run: RunPage) -> str:
    """The page, whole."""
    report = run.report
    title = f"{report.migration.domain}: {_outcome_text(report)} (VMMigration)"
    # Translators: the code of the language that this is translated to, such as de or zh-CN.
    language = translate("en")
    head = element(
        "head", {}, element("meta", {"charset": "utf-8"}),
        element("meta", {"name": "generator", "content": f"{NAME} {VERSION}"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("link", {"rel": "icon", "href": _ICON}),
        element("title", {}, title), element("style", {}, STYLE))
    body = element("body", {}, element("main", {}, joined((part for part in _parts(run) if part), "\n")))
    return f"<!DOCTYPE html>\n{element('html', {'lang': language}, head, body)}\n"


def _parts(run: RunPage) -> Iterator[Markup]:
    yield _header(run)
    yield _troubles(run.report)
    yield _time_line(run)
    yield _came(run)
    yield _section(translate("The VM"), element("div", {"class": "facts"}, facts_list(
        run.facts, run.report.migration), disk_table(run.facts, run.report.migration))) if (
            run.facts is not None) else NOTHING
    yield _section(translate("The two hosts"), host_table(run.report.migration, run.hosts, run.clocks)) if (
        run.hosts) else NOTHING
    yield _checks(run.report)
    yield _command(run)


def _section(heading: str, *content: str, kind: str = "") -> Markup:
    return element("section", {"class": kind or None}, element("h2", {}, heading), *content)


# How it ended.

_KINDS: Mapping[Outcome, str] = {
    Outcome.MOVED: "good", Outcome.MOVED_INCOMPLETE: "warn", Outcome.ROLLED_BACK: "warn",
    Outcome.NOTHING_CHANGED: "bad", Outcome.UNKNOWN: "unknown", Outcome.DETACHED: "left"}
# A tick, an exclamation mark, a cross, a question mark and an arrow, each in a circle: no colour is needed to tell.
_SIGNS: Mapping[str, str] = {
    "good": "M5.5 10.5l3 3 6-7", "warn": "M10 5.5v5.5M10 14v.6", "bad": "M6.8 6.8l6.4 6.4M13.2 6.8l-6.4 6.4",
    "unknown": "M7.4 8a2.6 2.6 0 1 1 3.8 2.3c-.8.4-1.2.8-1.2 1.7M10 14.4v.6", "left": "M6 10h8M10.8 6.6L14 10l-3.2 3.4"}


def _kind(report: RunReport) -> str:
    return "good" if report.dry_run and report.would_start else _KINDS[report.outcome]


def _outcome_text(report: RunReport) -> str:
    return translate("dry run") if report.dry_run else translate(report.outcome.value)


def _header(run: RunPage) -> Markup:
    report, migration, kind = run.report, run.report.migration, _kind(run.report)
    said = result_text(report).splitlines()
    sign = element("svg", {"width": 20, "height": 20, "viewBox": "0 0 20 20", "aria-hidden": "true"},
                   element("circle", {"cx": 10, "cy": 10, "r": 9}), element("path", {"d": _SIGNS[kind]}))
    outcome = translate("{outcome}, exit code {code}").format(outcome=_outcome_text(report), code=int(report.exit_code))
    way = translate("{domain} from {source} to {destination}").format(
        domain=migration.domain if migration.new_name is None else f"{migration.domain} → {migration.new_name}",
        source=_named(run, migration.source), destination=_named(run, migration.destination))
    ended = run.began + timedelta(seconds=report.seconds)
    when = translate("{date}, {begin} to {end} ({zone})").format(
        date=f"{run.began:%Y-%m-%d}", begin=f"{run.began:%H:%M:%S}", end=f"{ended:%H:%M:%S}", zone=f"{run.began:%z}")
    return element(
        "header", {"class": kind}, element("p", {"class": "outcome"}, sign, element("span", {}, outcome)),
        # Of a dry run the plan comes first there, and stands further down here.
        element("h1", {}, said[-1] if report.dry_run else said[0]), element("p", {"class": "quiet"}, way),
        element("p", {"class": "quiet"}, when, " · ", translate("job"), " ", code(migration.job_id)), _figures(run))


def _named(run: RunPage, address: str) -> str:
    facts = run.hosts.get(address)
    return f"{facts.hostname} ({address})" if facts is not None else address


def _figures(run: RunPage) -> Markup:
    entries = list(_planned_figures(run.report.plan) if run.report.dry_run else _real_figures(run))
    return element("dl", {"class": "figures"}, joined(
        element("div", {}, element("dt", {}, name), element("dd", {}, value), *(
            [element("dd", {"class": "note"}, note)] if note else [])) for name, value, note in entries))


def _planned_figures(plan: Plan | None) -> Iterator[tuple[str, str, str]]:
    if plan is None:
        return
    yield translate("to send"), size(plan.disk_bytes), translate("of disk, and up to {amount} of memory").format(
        amount=size(plan.memory_bytes))
    yield translate("link"), rate_text(plan.link_rate) or NOT_KNOWN, "" if plan.link_rate else translate("not measured")
    yield translate("expected"), expected_text(plan) or NOT_KNOWN, ""
    yield translate("copying"), translate(plan.verdict.value), ""


def _real_figures(run: RunPage) -> Iterator[tuple[str, str, str]]:
    report, moved = run.report, run.report.moved
    expected = expected_text(report.plan)
    whole = not report.resumed and report.outcome is not Outcome.DETACHED
    yield translate("total time") if whole else translate("followed for"), seconds_text(report.seconds), (
        translate("expected {range}").format(range=expected) if expected else "")
    if moved is None:
        crossed = crossed_bytes(run.recording, report.migration.source)
        if crossed:
            yield translate("had crossed"), size(crossed), translate("when the source was last heard of")
        return
    amounts = ((translate("files"), report.sent), (translate("disk"), moved.disk_bytes),
               (translate("memory"), moved.memory_bytes))
    yield translate("data moved"), size(sum(amount for _what, amount in amounts)), listed(
        f"{what} {size(amount)}" for what, amount in amounts if amount)
    if report.state is not DomainState.SHUT_OFF:
        limit = translate("{limit} ms were allowed in the end").format(limit=moved.downtime_limit)
        yield translate("guest stood still"), downtime_text(report), limit if moved.downtime_limit else ""
    if moved.passes:
        yield translate("passes over the memory"), str(moved.passes), translate("post-copy") if moved.post_copy else ""
    average = _average(run)
    if average is not None:
        link = report.plan.link_rate if report.plan is not None else None
        yield translate("average rate"), rate_text(average), (
            translate("link measured: {rate}").format(rate=rate_text(link)) if link else "")


def _average(run: RunPage) -> float | None:
    """Bytes per second over the steps that carried them; None if this run did not see all of them."""
    report = run.report
    seconds = sum(step.seconds for step in report.steps if step.host == report.migration.source and (
        step.command is Command.LIVE_MIGRATION or (step.command is Command.COPY_DISK_FILE and report.sent)))
    if report.moved is None or not seconds or run.recording.resumed:
        return None
    return (report.moved.disk_bytes + report.moved.memory_bytes + report.sent) / seconds


# What went wrong.


def _troubles(report: RunReport) -> Markup:
    """Errors first, then what stands in the way, then warnings; nothing where there is none."""
    notices = [
        *(_error(error) for error in report.errors), *(_finding(finding) for finding in report.obstacles),
        *(_finding(finding) for finding in report.warnings)]
    if not notices:
        return NOTHING
    wrong = any(error.code is not ErrorCode.DETACHED for error in report.errors)
    heading = translate("What went wrong") if wrong else translate("What stands in the way") if (
        report.obstacles) else translate("What to know")
    return _section(heading, element("ul", {"class": "notices"}, *notices))


def _error(error: MigrationError) -> Markup:
    if error.code is ErrorCode.DETACHED:
        # That was wanted.
        return _notice("left", translate("Left"), (error.code.value,), translate(error.message), translate(error.hint))
    return _notice("bad", translate("Error"), (error.code.value,), translate(error.message), translate(error.hint))


def _finding(finding: Finding) -> Markup:
    kind = translate("Skipped") if finding.skipped else translate("Obstacle") if (
        finding.severity is Severity.STOPS) else translate("Warning")
    remedies = [translate(finding.hint)]
    if finding.severity is Severity.STOPS and CHECKS[finding.check].skippable:
        remedies.append(
            translate("To go on all the same: {option}").format(option=f"`--skip-check {finding.check.value}`"))
    look = "bad" if finding.severity is Severity.STOPS else "warn"
    names = (finding.check.value, *([finding.code.value] if finding.code is not None else []))
    return _notice(look, kind, names, translate(finding.message), " ".join(remedies))


def _notice(state: str, kind: str, names: Iterable[str], message: str, hint: str) -> Markup:
    word = element("span", {"class": f"kind {state}"}, kind)
    return element("li", {"class": state}, element("p", {}, word, joined(map(code, names), " ")),
                   element("p", {}, prose(message)), *([element("p", {"class": "hint"}, prose(hint))] if hint else []))


# The time line.


def _time_line(run: RunPage) -> Markup:
    recording, source = run.recording, run.report.migration.source
    if not recording.spans:
        return NOTHING
    axis = Axis.of(max(recording.seconds, *(span.ended for span in recording.spans)))
    rows = [*((span.began, _bar_row(run, span, axis)) for span in recording.spans),
            *((press.at, _press_row(press, axis)) for press in recording.presses)]
    rows.sort(key=lambda each: in_step(each[0]))
    series = series_of(recording, source)
    plan = run.report.plan
    chart = RateChart.of(series, axis, plan.link_rate if plan is not None else None)
    passes = passes_of(recording, source)
    shown = passes if len(passes) <= _PASSES else (*passes[:_PASSES // 4], *passes[-_PASSES * 3 // 4:])
    return _section(
        translate("Time line"), _hosts_key(run),
        element("ol", {"class": "timeline"}, joined((row for _at, row in rows), "\n"),
                element("li", {"class": "axis", "aria-hidden": "true"}, element("span", {}), time_axis(axis))),
        _rates(chart, series, run.report) if chart is not None else NOTHING, pass_table(shown) if shown else NOTHING)


def _hosts_key(run: RunPage) -> Markup:
    migration = run.report.migration
    return element("p", {"class": "hosts-key"}, *(
        element("span", {}, element(
            "svg", {"width": 22, "height": 12, "aria-hidden": "true"},
            element("rect", {"class": f"bar {where}", "width": 22, "height": 12, "rx": 3})),
            listed((role, _named(run, address)), COLON))
        for where, role, address in (
            ("source", translate("source"), migration.source),
            ("destination", translate("destination"), migration.destination))))


def _bar_row(run: RunPage, span: Span, axis: Axis) -> Markup:
    where = "destination" if span.host == run.report.migration.destination else "source"
    role = translate("destination") if where == "destination" else translate("source")
    took = seconds_text(span.ended - span.began)
    state = _state(span)
    told = translate("{step} on {host}: {seconds}, from {began} on").format(
        step=span.command.value, host=_named(run, span.host), seconds=took, began=f"{span.began:.2f} s")
    bad = "left" if span.result is None else "bad"
    return element(
        "li", {}, element("span", {"class": "who"}, element("b", {}, span.command.value), " ", element(
            "span", {"class": "quiet"}, role)), bar(span, axis, where, told),
        element("span", {"class": "took"}, *([element("b", {"class": bad}, state), " "] if state else []), took))


def _state(span: Span) -> str:
    if span.result is None:
        # A look at a host ends by itself, and nobody has to know.
        return translate("not waited for") if span.command in CHANGE_NOTHING else translate("goes on")
    return translate("FAILED") if span.result.error else translate("BLOCKED") if span.result.obstacles else ""


def _press_row(press: Press, axis: Axis) -> Markup:
    wishes: Mapping[Wish, str] = {
        Wish.LEAVE: translate("leaves the job to itself"), Wish.CANCEL: translate("twice: cancels the job"),
        Wish.CANCEL_TOO_LATE: translate("twice: too late to cancel")}
    what = wishes[press.wish]
    told = translate("Ctrl-C {what}, at {time}").format(what=what, time=f"{press.at:.2f} s")
    return element(
        "li", {}, element("span", {"class": "who"}, element("b", {}, "Ctrl-C"), " ", element(
            "span", {"class": "quiet"}, what)), press_mark(press, axis, told), element("span", {"class": "took"}))


def _rates(chart: RateChart, series: tuple[Series, ...], report: RunReport) -> Markup:
    plan, limit = report.plan, report.migration.bandwidth
    # What each disk, and the memory, may have of it at most.
    limited = f" (--bandwidth {limit})" if limit else ""
    entries = [_legend(class_of(chart, place), each.series) for place, each in enumerate(chart.bands)]
    entries.reverse()
    dirty = next((each for each in series if each.kind is Kind.DIRTY), None)
    if dirty is not None:
        entries.insert(0, _legend("dirty", dirty))
    if plan is not None and plan.link_rate:
        entries.insert(0, element("li", {}, swatch("link"), element("span", {}, translate(
            "link, measured beforehand"), element("br", {}), element("span", {"class": "quiet"}, rate_text(
                plan.link_rate) + limited))))
    title = translate("What crossed the link, over time")
    description = listed((
        listed((name_of(each), _of_series(each)), COLON) for each in (
            *(each.series for each in chart.bands), *([dirty] if dirty is not None else []))), SEMICOLON)
    return element(
        "figure", {"class": "chart"},
        element("figcaption", {}, element("ul", {"class": "legend"}, *entries)), draw_rates(
            chart, title, description), element("span", {"class": "room"}))


def _legend(name: str, series: Series) -> Markup:
    return element("li", {}, swatch(name), element("span", {}, name_of(series), element("br", {}), element(
        "span", {"class": "quiet"}, _of_series(series))))


def _of_series(series: Series) -> str:
    return translate("{mean}, up to {peak}").format(
        mean=rate_text(series.mean), peak=rate_text(series.peak))


# What was planned, the checks, the command.


def _came(run: RunPage) -> Markup:
    report = run.report
    series = series_of(run.recording, report.migration.source)
    crossing = [each for each in series if each.kind is not Kind.DIRTY]
    came = Came(
        average=_average(run), peak=together(crossing, "").peak if crossing else None,
        dirty_peak=next((each.peak for each in series if each.kind is Kind.DIRTY), None))
    roles = {report.migration.source: translate("source"), report.migration.destination: translate("destination")}
    names = {address: listed((role, run.hosts[address].hostname if address in run.hosts else address))
             for address, role in roles.items()}
    going_on = {(span.command, span.host) for span in run.recording.spans if span.result is None}
    parts = [*([plan_table(report, report.plan, came)] if report.plan is not None else []),
             *([step_table(report, going_on, names)] if report.steps or report.plan is not None else [])]
    return _section(translate("Plan and course"), *parts) if parts else NOTHING


def _checks(report: RunReport) -> Markup:
    if not report.findings:
        return NOTHING
    words: Mapping[Severity, tuple[str, str]] = {
        Severity.FINE: ("good", translate("fine")), Severity.WARNS: ("warn", translate("warning")),
        Severity.STOPS: ("bad", translate("obstacle"))}
    rows = []
    for finding in report.findings:
        state, word = words[finding.severity]
        if finding.skipped:
            word = translate("skipped")
        rows.append((code(finding.check.value), finding.facts.get("host", NOT_KNOWN),
                     element("span", {"class": state}, word), prose(translate(finding.message))))
    fine = sum(finding.severity is Severity.FINE for finding in report.findings)
    summary = translate("All findings: {count}, of which {fine} are fine").format(count=len(rows), fine=fine)
    return _section(translate("What the checks found"), element(
        "details", {}, element("summary", {}, summary), table(translate("Every check, and what it saw"), (
            translate("check"), translate("host"), translate("result"), translate("what was seen")), rows, "checks")))


def _command(run: RunPage) -> Markup:
    migration = run.report.migration
    return _section(
        translate("The command"), element("p", {"class": "command"}, code(run.command)), named((
            (translate("typed by"), migration.admin or translate("not told")),
            (translate("version"), f"VMMigration {VERSION}"), (translate("job"), code(migration.job_id)))),
        kind="facts")
