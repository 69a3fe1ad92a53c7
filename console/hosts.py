"""What `vmmigration.py check` found on all hosts and between them: a table, a matrix of ways, and JSON."""

from __future__ import annotations

from console.columns import table
from console.figures import size
from console.language import translate
from console.plan import finding_json, printable_lines
from console.result import error_json
from control.fleet import FleetReport, HostLook
from wire.facts import version_text
from wire.phrase import Phrase

_HEADS = (
    Phrase("host"), Phrase("name"), Phrase("agent"), Phrase("libvirt"), Phrase("QEMU"), Phrase("clock"),
    Phrase("free jobs"), Phrase("free space"))


def fleet_text(report: FleetReport) -> str:
    """The hosts and the ways between them, in lines."""
    lines = list(table([tuple(map(translate, _HEADS)), *(_row(host) for host in report.hosts)]))
    if report.pairs:
        lines += ["", translate("SSH and libvirt between them:")]
        lines += [f"  {pair.source} -> {pair.destination}  {translate('FAILED') if pair.errors else translate('ok')}"
                  for pair in report.pairs]
    elif len(report.hosts) > 1:
        lines += ["", translate("SSH and libvirt between them: not tried, fewer than two hosts answer.")]
    return printable_lines(lines)


def _row(host: HostLook) -> tuple[str, ...]:
    facts = host.facts
    if facts is None:
        return (host.address, translate("NO ANSWER") if host.error is None else host.error.code.value, *[""] * 6)
    return (
        host.address, facts.hostname, facts.version, translate(version_text(facts.libvirt_version)),
        translate(version_text(facts.qemu_version)), f"{round(host.clock, 1) + 0.0:+.1f} s",
        translate("{free} of {all}").format(free=facts.free_slots, all=facts.slots),
        translate("{size} in {path}").format(size=size(facts.space_free), path=facts.space_path))


def fleet_json(report: FleetReport) -> dict[str, object]:
    """The same for programs. Bytes and seconds."""
    return {
        "exit_code": int(report.exit_code),
        "hosts": [_host_json(host) for host in report.hosts],
        "pairs": [
            {"source": pair.source, "destination": pair.destination, "works": not pair.errors,
             "findings": [finding_json(finding) for finding in pair.findings],
             "error": error_json(pair.error) if pair.error is not None else None} for pair in report.pairs],
        "warnings": [error_json(warning) for warning in report.warnings],
    }


def _host_json(host: HostLook) -> dict[str, object]:
    facts = host.facts
    found: dict[str, object] = {
        "address": host.address, "error": error_json(host.error) if host.error is not None else None}
    if facts is not None:
        found.update({
            "hostname": facts.hostname, "agent_version": facts.version,
            "libvirt_version": version_text(facts.libvirt_version), "qemu_version": version_text(facts.qemu_version),
            "libvirt_daemon": facts.daemon.value, "clock_offset_seconds": round(host.clock, 3),
            "free_jobs": facts.free_slots, "jobs": facts.slots, "space_path": facts.space_path,
            "space_free_bytes": facts.space_free})
    return found
