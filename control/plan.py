"""The plan of a migration: what each step will do, how much has to cross, how long that will take. Pure functions.

The constants of the prediction were fitted to measured runs in the lab; docs/json.md says what the figures mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from constant import DOWNTIME_CAP, Command, DomainState, OnTimeout, SourceAfter, Transport, Verdict
from wire.facts import DomainFacts
from wire.phrase import Phrase, joined
from wire.placement import Placement, is_device
from wire.records import Convergence, LinkReport, Migration, libvirt_conf_path

_MIB = 1024 * 1024
# What a run takes beside the bytes: checks and measurement 1.8 s, connecting, libvirt's own phases, switchover and
# defining. Measured 2.6 to 4.3 s, the longer ones on a machine that was busy.
_FIXED_SECONDS = (2.0, 5.0)
# Parts of the measured rate that disk and memory get. On a slow link it is the link that limits: measured 0.96 to 0.98
# at 100 Mbit/s to 1 Gbit/s. On a fast one QEMU, the guest and the encryption share the CPUs, in the measurement too.
_SHARE = (0.88, 1.05)
_SHARE_OF_FAST = (0.5, 1.5)
_FAST_LINK = 150 * _MIB
# Part of the guest's resident memory that has to cross: pages of zeroes cross as a few bytes, and without KVM the
# translated code of the guest counts as resident as well (measured 0.55 then).
_MEMORY_SHARE = (0.4, 1.05)
# What the guest writes is counted for a second: what it writes again and again in a longer one is not known.
_COUNTED_SECONDS = 1.0
# Above this part of the link's rate, writing outpaces copying sooner or later.
_KEEPS_UP = 0.8
# How far auto-converge can slow a guest down: to 1 % of its CPU time, but the pages that it hits first stay hot.
_THROTTLED_TO = 0.1
_SEEN = {
    DomainState.RUNNING: Phrase("see that it runs"),
    DomainState.PAUSED: Phrase("see that it is paused"),
    DomainState.SHUT_OFF: Phrase("see that it is shut off"),
}


@dataclass(frozen=True)
class PlannedStep:
    """One step, and what it will do to which file on which host, in words."""

    command: Command
    host: str
    does: tuple[Phrase, ...]


@dataclass(frozen=True)
class Plan:
    """What a real run would do. Bytes, bytes per second, seconds; None is what could not be measured."""

    steps: tuple[PlannedStep, ...]
    disk_bytes: int
    """Allocated on the source: what is sent or mirrored, not the size that the guest sees."""
    memory_bytes: int
    link_rate: Optional[int]
    dirty_rate: Optional[int]
    write_rate: Optional[int]
    seconds: Optional[tuple[float, float]]
    """The range that the whole run is expected to take; None if the link was not measured or it will not end."""
    verdict: Verdict


def make_plan(migration: Migration, facts: DomainFacts, link: LinkReport) -> Plan:
    """The plan, from what both hosts told."""
    disk_bytes, memory_bytes = planned_bytes(facts)
    rate = _limited(link.rate, migration.bandwidth)
    dirty_rate, write_rate, convergence = link.dirty_rate or 0, link.write_rate or 0, migration.convergence
    by_itself = verdict(rate, dirty_rate, write_rate, memory_bytes, convergence.max_downtime / 1000)
    found = with_help(convergence, rate, dirty_rate, write_rate, memory_bytes)
    seconds = None
    if rate and by_itself is Verdict.CONVERGES:
        seconds = predict(disk_bytes, memory_bytes, rate, link.dirty_rate or 0, link.write_rate or 0)
    return Plan(
        steps=tuple(_steps(migration, facts, memory_bytes)), disk_bytes=disk_bytes, memory_bytes=memory_bytes,
        link_rate=link.rate, dirty_rate=link.dirty_rate, write_rate=link.write_rate, seconds=seconds, verdict=found)


def planned_bytes(facts: DomainFacts) -> tuple[int, int]:
    """What is to be sent: of disks and files, and of memory."""
    return (
        sum(disk.copied for disk in facts.mirrored) + sum(file.allocated for file in facts.files),
        facts.memory_to_move)


def _limited(rate: int | None, bandwidth: int) -> int | None:
    """The rate that the migration may use, in bytes per second."""
    return min(rate, bandwidth * _MIB) if rate and bandwidth else rate


def with_help(
    convergence: Convergence, rate: int | None, dirty_rate: int, write_rate: int, memory_bytes: int,
) -> Verdict:
    """The verdict, given what the admin has asked for against too much writing. Bytes per second."""
    # Writes that wait for the destination are never more than the link carries.
    disk_rate = 0 if convergence.synchronous_writes else write_rate
    found = verdict(rate, dirty_rate, disk_rate, memory_bytes, convergence.max_downtime / 1000)
    if found in (Verdict.CONVERGES, Verdict.NOT_MEASURED):
        return found
    # Neither a slower CPU nor post-copy does anything about the disks.
    disks_catch_up = disk_rate < (rate or 0) * _KEEPS_UP
    ends = convergence.on_timeout is OnTimeout.SUSPEND or (disks_catch_up and (
        convergence.may_post_copy or (convergence.auto_converge and found is Verdict.NEEDS_THROTTLING)))
    return Verdict.CONVERGES if ends else found


def verdict(
    rate: int | None, dirty_rate: int, write_rate: int, memory_bytes: int, downtime: float = DOWNTIME_CAP / 1000,
) -> Verdict:
    """Whether copying at `rate` catches up with a guest that writes so much memory and disk. Bytes per second.

    `downtime` is how many seconds it may stand still at the switchover.
    """
    if not rate:
        return Verdict.NOT_MEASURED
    if write_rate >= rate * _KEEPS_UP:
        # Throttling slows the CPU; disks that are written without it go on.
        return Verdict.WILL_NOT_CONVERGE
    # What is dirtied again and again fits into the pause at the end, however fast.
    fits = dirty_rate <= rate * min(downtime, _COUNTED_SECONDS) or memory_bytes <= rate * downtime
    if fits or dirty_rate < rate * _KEEPS_UP:
        return Verdict.CONVERGES
    return Verdict.NEEDS_THROTTLING if dirty_rate * _THROTTLED_TO < rate * _KEEPS_UP else Verdict.WILL_NOT_CONVERGE


def predict(
    disk_bytes: int, memory_bytes: int, rate: int, dirty_rate: int, write_rate: int,
) -> tuple[float, float]:
    """The shortest and the longest time to expect for the whole run, in seconds, at `rate` bytes per second."""
    share = _SHARE_OF_FAST if rate >= _FAST_LINK else _SHARE
    slowest, fastest = rate * share[0], rate * share[1]
    least = _FIXED_SECONDS[0] + (disk_bytes + memory_bytes * _MEMORY_SHARE[0]) / fastest
    # Each pass over what was written meanwhile is shorter than the one before: a geometric series.
    disk_seconds = disk_bytes / slowest / (1 - min(write_rate / slowest, 0.9))
    memory_seconds = memory_bytes * _MEMORY_SHARE[1] / slowest / (1 - min(dirty_rate / slowest, 0.9))
    return least, _FIXED_SECONDS[1] + disk_seconds + memory_seconds


def _steps(migration: Migration, facts: DomainFacts, memory_bytes: int) -> list[PlannedStep]:
    source, destination = migration.source, migration.destination
    words = _Words(migration, facts, migration.placement(facts))
    sockets = migration.transport is Transport.SSH or bool(facts.files)
    conf = migration.conf_path()
    own = conf == libvirt_conf_path(migration.name_there)
    receiving = [
        PlannedStep(Command.COPY_DISK_FILE, destination, (
            Phrase("receive and verify the files that {source} sends", {"source": source}),))] if facts.files else []
    return [
        PlannedStep(Command.PREPARE_DESTINATION, destination, (
            *words.made(), *([Phrase("make a directory for the tunnel's sockets")] if sockets else []))),
        *receiving,
        PlannedStep(Command.COPY_DISK_FILE, source, tuple(words.sent()) or (Phrase("send nothing beforehand"),)),
        PlannedStep(Command.LIVE_MIGRATION, source, tuple(words.moved(memory_bytes))),
        PlannedStep(Command.EXTRACT_CONFIGURE_FILE, destination, (Phrase(
            "leave the XML to libvirt at {path}" if own else "write the XML to {path}", {"path": conf}),)),
        PlannedStep(Command.DEFINE_VIRTUAL_MACHINE, destination, (words.defined(),)),
        PlannedStep(Command.FINISH, destination, (
            _SEEN[facts.state], *([Phrase("trim its file systems")] if migration.trim else []),
            *([Phrase("remove the sockets")] if sockets else []))),
        PlannedStep(Command.FINISH, source, tuple(words.left())),
    ]


@dataclass(frozen=True)
class _Words:
    """What the steps do, in words."""

    migration: Migration
    facts: DomainFacts
    placement: Placement

    def made(self) -> Iterator[Phrase]:
        """Of PREPARE_DESTINATION."""
        for disk in self.facts.mirrored:
            path = self.placement.path(disk.path)
            facts = {"path": path, "bytes": str(disk.virtual_size), "format": disk.format.value,
                     "size": str(disk.virtual_size // _MIB)}
            if is_device(path):
                yield Phrase("take the block device {path} of {bytes} bytes", facts)
            elif disk.layers:
                yield Phrase("make an empty {format} of {size} MiB at {path} on {below}", {
                    **facts, "below": self.placement.path(disk.layers[0].path)})
            else:
                yield Phrase("make an empty {format} of {size} MiB at {path}", facts)
        if self.facts.nvram is not None:
            yield Phrase("make the NVRAM file {path}", {"path": self.placement.path(self.facts.nvram.path)})

    def sent(self) -> Iterator[Phrase]:
        """Of COPY_DISK_FILE."""
        for file in self.facts.files:
            facts = {"path": file.path, "there": self.placement.path(file.path),
                     "purpose": Phrase(file.purpose.value), "size": str(file.allocated // _MIB)}
            yield Phrase(
                "send {path} ({purpose}, {size} MiB), unless it is there" if facts["there"] == file.path else
                "send {path} to {there} ({purpose}, {size} MiB), unless it is there", facts)

    def moved(self, memory_bytes: int) -> Iterator[Phrase]:
        """Of LIVE_MIGRATION."""
        if self.facts.state is DomainState.SHUT_OFF:
            yield Phrase("send the definition to libvirt over there")
            return
        way = Phrase("through SSH" if self.migration.transport is Transport.SSH else "over TCP, not encrypted")
        for disk in self.facts.mirrored:
            facts = {"path": disk.path, "there": self.placement.path(disk.path), "way": way,
                     "allocated": str(disk.allocated // _MIB), "size": str(disk.virtual_size // _MIB)}
            yield Phrase(
                "mirror {path}, {allocated} MiB allocated of {size} MiB, {way}" if facts["there"] == disk.path else
                "mirror {path} to {there}, {allocated} MiB allocated of {size} MiB, {way}", facts)
        yield Phrase("copy up to {size} MiB of memory {way}", {"size": str(memory_bytes // _MIB), "way": way})
        yield Phrase("switch over")
        yield Phrase("turn autostart off")

    def defined(self) -> Phrase:
        """Of DEFINE_VIRTUAL_MACHINE."""
        if not self.facts.persistent:
            return Phrase("leave it transient, as it is")
        return Phrase(
            "make {vm} persistent, autostart on" if self.facts.autostart else "make {vm} persistent, autostart off",
            {"vm": self.migration.name_there})

    def left(self) -> Iterator[Phrase]:
        """Of FINISH on the source: what becomes of the copy there, as host/stale_copy.py has it."""
        wanted, persistent = self.migration.source_after, self.facts.persistent
        kept = persistent and wanted is SourceAfter.KEEP
        yield Phrase("see that it does not run; keep it defined, but so that it cannot be started by mistake" if kept
                     else "see that it does not run")
        if not persistent:
            # libvirt forgets it at the switchover: there is no definition by which it could be started. What becomes of
            # its NVRAM and TPM is libvirt's business.
            yield Phrase("leave {paths} alone", {"paths": joined(disk.path for disk in self.facts.disks)})
            return
        files, devices = self._own()
        if files and wanted is not SourceAfter.DELETE:
            yield Phrase("rename {paths}, unless read-only or used by another VM as well", {"paths": joined(files)})
        if devices and kept:
            yield Phrase("have its definition name something else than {paths}, unless used by another VM as well", {
                "paths": joined(devices)})
        if kept:
            return
        yield Phrase("undefine it once {host} has said that all is well there", {"host": self.migration.destination})
        if files and wanted is SourceAfter.DELETE:
            yield Phrase("delete {paths} then, unless read-only or used by another VM as well", {
                "paths": joined(files)})
        if devices:
            yield Phrase("leave {paths} alone", {"paths": joined(devices)})

    def _own(self) -> tuple[list[str], list[str]]:
        """What belongs to the domain alone, as far as is known here: files, and block devices."""
        # Of one that is shut off everything is sent, and what is read-only cannot be told from the rest.
        off = self.facts.state is DomainState.SHUT_OFF
        disks = [disk.path for disk in (self.facts.disks if off else self.facts.mirrored)]
        files = [path for path in disks if not is_device(path)]
        if self.facts.nvram is not None:
            files.append(self.facts.nvram.path)
        if self.facts.has_tpm:
            files.append(Phrase("its TPM's state"))
        return files, [path for path in disks if is_device(path)]
