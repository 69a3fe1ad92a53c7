"""The tables of a run's page: what was planned beside how it came, the passes over the memory, the VM and its hosts.

Pure functions; what stands in them comes from other hosts, and is escaped where it becomes markup.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from console.figures import duration, size
from console.language import listed, readable, translate
from console.markup import NOTHING, Markup, element, joined
from console.report_charts import stretch
from console.report_rates import Pass
from constant import Command, DomainState, Outcome
from control.conversation import StepResult
from control.plan import Plan, PlannedStep
from control.report import RunReport
from wire.facts import DomainFacts, HostFacts, version_text
from wire.placement import Placement
from wire.records import Migration

# In a cell of which there is nothing to say.
NOT_KNOWN = "-"


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> Markup:
    """A table whose first column names its rows. On a narrow screen each cell stands below its head."""
    body = joined((
        element("tr", {}, element("th", {"scope": "row"}, row[0]), *(
            element("td", {"data-head": head, "class": "none" if cell == NOT_KNOWN else None}, cell)
            for head, cell in zip(heads[1:], row[1:])))
        for row in rows), "\n")
    head = element("tr", {}, *(
        # What names the rows needs no name itself.
        element("th", {"scope": "col"}, each) if each else element("td", {}) for each in heads))
    return element("table", {"class": kind or None}, element("caption", {}, caption), element("thead", {}, head),
                   element("tbody", {}, body))


def code(text: str) -> Markup:
    """A path, a name or a command as it is typed."""
    return element("code", {}, text)


def prose(text: str) -> Markup:
    """A sentence, in which what stands in backticks is to be typed."""
    return joined(code(part) if place % 2 else part for place, part in enumerate(re.split(r"`([^`]+)`", text)))


def lines(parts: Iterable[str]) -> Markup:
    """One below the other."""
    return joined(parts, Markup("<br/>"))


def seconds_text(seconds: float) -> str:
    """A time that was measured: 0.05 s, 4.9 s, 3:05 min."""
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def expected_text(plan: Plan | None) -> str:
    """How long the run was expected to take; empty where nobody could say."""
    if plan is None or plan.seconds is None:
        return ""
    return translate("{least} to {most}").format(
        least=duration(plan.seconds[0]), most=duration(plan.seconds[1] + 1))


def rate_text(rate: float | None) -> str:
    """Bytes per second; empty where they are not known."""
    return f"{size(rate)}/s" if rate is not None else ""


# What was planned, and how it came.


@dataclass(frozen=True)
class Came:
    """What is known of how a run went, besides its report. Bytes per second."""

    average: float | None
    peak: float | None
    dirty_peak: float | None


def plan_table(report: RunReport, plan: Plan, came: Came) -> Markup:
    """Each figure of the plan beside the real one. Of a dry run there is no real one."""
    moved, most = report.moved, report.migration.convergence.max_downtime
    real = not report.dry_run and moved is not None
    live = report.state is not DomainState.SHUT_OFF
    rows = [
        (translate("whole run"), expected_text(plan) or translate("could not be said"),
         _against(report.seconds, plan) if real else
         NOT_KNOWN if report.outcome is Outcome.DETACHED else seconds_text(report.seconds)),
        (translate("disks and files"), size(plan.disk_bytes),
         size(moved.disk_bytes + report.sent) if moved is not None else ""),
        (translate("memory"), translate("up to {amount}").format(amount=size(plan.memory_bytes)),
         size(moved.memory_bytes) if moved is not None else ""),
        (translate("rate of the link"), rate_text(plan.link_rate) or translate("not measured"), _rates(came)),
        (translate("the guest writes memory"), rate_text(plan.dirty_rate),
         translate("up to {rate}").format(rate=rate_text(came.dirty_peak)) if came.dirty_peak is not None else ""),
        (translate("the guest writes its disks"), rate_text(plan.write_rate), ""),
        *([(translate("the guest stands still"), translate("at most {most} ms").format(most=most),
            downtime_text(report))] if live else []),
        (translate("does the copying catch up?"), translate(plan.verdict.value),
         translate("it did") if moved is not None and live else ""),
    ]
    if report.dry_run:
        return table(translate("What a real run would come to"), ("", translate("expected")),
                     [row[:2] for row in rows], "pairs")
    return table(
        translate("What was expected, and what came"), ("", translate("expected"), translate("came")),
        [row if row[2] else (*row[:2], NOT_KNOWN) for row in rows], "pairs")


def downtime_text(report: RunReport) -> str:
    """How long the guest stood still, as libvirt says; empty where it did not move."""
    if report.moved is None:
        return ""
    return f"{report.moved.downtime} ms" if report.moved.downtime >= 0 else translate("not told by libvirt")


def _against(seconds: float, plan: Plan) -> str:
    took = seconds_text(seconds)
    if plan.seconds is None:
        return took
    words = translate("{time}, sooner than expected") if seconds < int(plan.seconds[0]) else (
        translate("{time}, later than expected") if seconds > plan.seconds[1] + 1 else translate("{time}, as expected"))
    return words.format(time=took)


def _rates(came: Came) -> str:
    parts = [
        words.format(rate=rate_text(rate)) for words, rate in (
            (translate("{rate} on average"), came.average), (translate("{rate} at most"), came.peak)) if rate]
    return listed(parts)


def step_table(report: RunReport, going_on: Collection[tuple[Command, str]], names: Mapping[str, str]) -> Markup:
    """Every step that was run or planned: where, what it was to do, and what came of it; or that it is `going_on`."""
    planned = list(report.plan.steps) if report.plan is not None else []
    rows: list[tuple[str, ...]] = []
    for step in report.steps:
        of_plan = next((each for each in planned if (each.command, each.host) == (step.command, step.host)), None)
        if of_plan is not None:
            planned.remove(of_plan)
        rows.append((_step_on(step, names), _does(of_plan), _result(step), seconds_text(step.seconds)))
    not_run = translate("not in a dry run") if report.dry_run else translate("not run")
    rows += [(
        _step_on(each, names), _does(each),
        translate("goes on") if (each.command, each.host) in going_on else not_run, NOT_KNOWN) for each in planned]
    return table(translate("Every step"), (
        translate("step"), translate("planned"), translate("came of it"), translate("took")), rows, "steps")


def _step_on(step: StepResult | PlannedStep, names: Mapping[str, str]) -> Markup:
    where = element("span", {"class": "quiet"}, names.get(step.host, step.host))
    return joined((step.command.value, element("br", {}), where))


def _does(step: PlannedStep | None) -> Markup:
    if step is None:
        return Markup(NOT_KNOWN)
    return element("ul", {}, *(element("li", {}, readable(each)) for each in step.does))


def _result(step: StepResult) -> Markup:
    if step.error is not None:
        return joined((element("strong", {"class": "bad"}, translate("FAILED")), " ", code(step.error.code.value)))
    if step.obstacles:
        return joined((element("strong", {"class": "bad"}, translate("BLOCKED")), " ", readable(step.summary)))
    return joined((readable(step.summary) or NOT_KNOWN,))


def pass_table(passes: Sequence[Pass]) -> Markup:
    """The passes over the memory, each of which sends what the guest wrote during the one before."""
    rows = [
        (str(each.number) + (f" ({translate('post-copy')})" if each.post_copy else ""),
         stretch(each.began, each.ended), size(each.sent), rate_text(each.rate) if each.rate else NOT_KNOWN,
         rate_text(each.dirty_rate) or NOT_KNOWN, size(each.left), f"{each.downtime_limit} ms") for each in passes]
    return table(translate("The passes over the memory"), (
        translate("pass"), translate("seen"), translate("sent"), translate("rate"), translate("guest writes"),
        translate("left"), translate("may stand still")), rows, "passes")


# The VM and the hosts.


def facts_list(facts: DomainFacts, migration: Migration) -> Markup:
    """What the source told of the VM, as names and values."""
    placement = migration.placement(facts)
    # QEMU holds more than the guest's memory.
    in_use = size(min(facts.resident, facts.memory))
    entries = [
        (translate("state when it began"), translate(facts.state.value)),
        (translate("memory"), translate("{all}, of which {resident} were in use").format(
            all=size(facts.memory), resident=in_use) if facts.resident else size(facts.memory)),
        (translate("virtual CPUs"), str(facts.vcpus)),
        (translate("machine"), listed((facts.machine, facts.architecture, facts.virtualization))),
        (translate("firmware"), code(facts.firmware) if facts.firmware else "BIOS"),
        (translate("NVRAM"), _placed(facts.nvram.path, placement) if facts.nvram is not None else translate("none")),
        (translate("TPM"), translate("yes") if facts.has_tpm else translate("none")),
        (translate("defined"), translate("persistent") if facts.persistent else translate("transient")),
        (translate("autostart"), translate("on") if facts.autostart else translate("off")),
        (translate("networks"), lines(_interfaces(facts, migration)) if facts.interfaces else translate("none")),
        ("UUID", code(facts.uuid)),
    ]
    return named(entries)


def named(entries: Iterable[tuple[str, str]]) -> Markup:
    """Names and values, side by side."""
    return element("dl", {}, joined(
        element("div", {}, element("dt", {}, name), element("dd", {}, value)) for name, value in entries))


def _interfaces(facts: DomainFacts, migration: Migration) -> Iterator[str]:
    for each in facts.interfaces:
        there = next((f" → {_connected(mapped.there.kind)} {mapped.there.name}" for mapped in migration.network_maps
                      if (mapped.here.kind, mapped.here.name) == (each.kind, each.source)), "")
        yield f"{_connected(each.kind)} {each.source}{there} ({each.mac or translate('no MAC address')})"


def _connected(kind: str) -> str:
    """What an interface of that kind is connected to; libvirt has more kinds than can be moved."""
    kinds: Mapping[str, str] = {
        "bridge": translate("bridge"), "network": translate("libvirt network"), "direct": translate("network device")}
    return kinds.get(kind, kind)


def disk_table(facts: DomainFacts, migration: Migration) -> Markup:
    """Its disks and the files that go along: what they are, and where they go."""
    placement = migration.placement(facts)
    rows = []
    for disk in facts.disks:
        kind = f"{disk.format.value} {disk.compat}".strip()
        how = translate("sent as a file") if disk.sent else translate("mirrored by QEMU")
        rows.append((code(disk.target), listed((kind, how)), size(disk.virtual_size), size(disk.allocated),
                     lines(_placed(path, placement) for path in (
                         disk.path, *(layer.path for layer in disk.layers)))))
    known = {disk.path for disk in facts.disks} | {layer.path for disk in facts.disks for layer in disk.layers}
    rows += [(code(file.target or NOT_KNOWN), translate(file.purpose.value), size(file.length), size(file.allocated),
              _placed(file.path, placement)) for file in facts.files if file.path not in known]
    return table(translate("Disks, with the layers below each, and other files"), (
        translate("disk"), translate("what it is"), translate("size"), translate("allocated"), translate("where")),
        rows, "disks") if rows else NOTHING


def _placed(path: str, placement: Placement) -> Markup:
    there = placement.path(path)
    return code(path) if there == path else joined((code(path), " → ", code(there)))


def host_table(migration: Migration, hosts: Mapping[str, HostFacts], clocks: Mapping[str, float]) -> Markup:
    """What each host told when it was greeted."""
    def row(name: str, tell: dict[str, str]) -> tuple[str, ...]:
        return (name, *(tell.get(address, translate("did not answer")) for address in both))

    both = (migration.source, migration.destination)
    rows = [
        (translate("address"), *both),
        row(translate("name"), {each: facts.hostname for each, facts in hosts.items()}),
        row("libvirt", {each: f"{readable(version_text(facts.libvirt_version))} ({facts.daemon.value})"
                        for each, facts in hosts.items()}),
        row("QEMU", {each: readable(version_text(facts.qemu_version)) for each, facts in hosts.items()}),
        row(translate("agent"), {each: facts.version for each, facts in hosts.items()}),
        row(translate("clock, ahead of the management host's"), {
            each: f"{ahead:+.1f} s" for each, ahead in clocks.items()}),
        row(translate("places for more jobs"), {
            each: translate("{free} of {all}").format(free=facts.free_slots, all=facts.slots)
            for each, facts in hosts.items()}),
        row(translate("free space"), {
            each: translate("{amount} in {path}").format(amount=size(facts.space_free), path=facts.space_path)
            if facts.space_path else NOT_KNOWN for each, facts in hosts.items()}),
    ]
    return table(translate("What each host told when it was greeted"), (
        "", translate("source"), translate("destination")), rows, "pairs")
