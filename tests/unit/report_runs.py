"""Runs as they are written down, for the tests of a run's page: one of each outcome, none of which has happened.

The move that all of them are cut from takes eleven minutes over a gigabit link: a layer as a file, two disks side by
side, five passes over the memory of a guest that writes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

from console.recorder import Recorder, Recording
from console.report_page import RunPage
from constant import (
    Command,
    CopyStorage,
    DomainState,
    FilePurpose,
    ImageFormat,
    LibvirtDaemon,
    Outcome,
    Severity,
    Transport,
)
from control.conversation import StepResult
from control.plan import make_plan
from control.report import RunReport
from tests.unit.samples import HOST_FACTS, FakeClock
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts, FileFacts, InterfaceFacts, LayerFacts, NvramFacts
from wire.findings import CHECKS, Check, Finding, not_fine
from wire.placement import Connection, DiskMap, NetworkMap
from wire.records import DiskProgress, LinkReport, MemoryProgress, Migration, MigrationReport, Progress

MIB = 1 << 20
GIB = 1 << 30
NODE1, NODE2 = "192.168.111.130", "192.168.111.132"
BEGAN = datetime(2026, 11, 22, 19, 28, 45, tzinfo=timezone(timedelta(hours=1)))
COMMAND = (f"vmmigration.py {NODE1} {NODE2} kvm mail --disk-map vdb=/srv/vm/mail-spool.img --network-map br0=br-lan "
           "--auto-converge --report mail.html")

MIGRATION = Migration(
    job_id="1a2b3c4d", domain="mail", source=NODE1, destination=NODE2, user="kvm", disk=None, conf_file=None,
    transport=Transport.SSH, copy_storage=CopyStorage.AUTO, bandwidth=0, timeout=0, admin="root@BOSS",
    disk_maps=(DiskMap(what="vdb", path="/srv/vm/mail-spool.img"),),
    network_maps=(NetworkMap(here=Connection(kind="bridge", name="br0"),
                             there=Connection(kind="bridge", name="br-lan")),))
BASE = LayerFacts(path="/var/lib/libvirt/images/debian-12.qcow2", format=ImageFormat.QCOW2, virtual_size=20 * GIB)
FACTS = DomainFacts(
    uuid="2f1d0b6e-7d1c-4a8f-9a55-0c1d2e3f4a5b", virtualization="kvm", architecture="x86_64", machine="pc-q35-7.2",
    memory=16 * GIB, resident=11 * GIB, autostart=True, vcpus=8, has_tpm=True,
    firmware="/usr/share/OVMF/OVMF_CODE_4M.fd",
    nvram=NvramFacts(path="/var/lib/libvirt/qemu/nvram/mail_VARS.fd", format=ImageFormat.RAW, length=540_672),
    disks=(
        DiskFacts(target="vda", path="/var/lib/libvirt/images/mail.qcow2", format=ImageFormat.QCOW2,
                  virtual_size=20 * GIB, allocated=9 * GIB, cluster_size=65536, compat="1.1",
                  backing_name=BASE.path, layers=(BASE,)),
        DiskFacts(target="vdb", path="/var/lib/libvirt/images/mail-spool.img", format=ImageFormat.RAW,
                  virtual_size=60 * GIB, allocated=32 * GIB, cluster_size=0, compat="")),
    files=(FileFacts(path=BASE.path, purpose=FilePurpose.LAYER, length=3 * GIB, allocated=2 * GIB, mode=0o644,
                     target="vda"),),
    interfaces=(InterfaceFacts(kind="bridge", source="br0", mac="52:54:00:3a:11:7c"),
                InterfaceFacts(kind="network", source="backup", mac="52:54:00:90:0e:42")),
    libvirt_version=9_000_000, qemu_version=7_002_022)
HOSTS = {
    NODE1: dataclasses.replace(
        HOST_FACTS, hostname="kvm-node1", qemu_version=7_002_022, free_slots=2, slots=2,
        space_path="/var/lib/libvirt/images", space_free=412 * GIB),
    NODE2: dataclasses.replace(
        HOST_FACTS, hostname="kvm-node2", libvirt_version=10_000_000, qemu_version=8_002_002, free_slots=1, slots=2,
        daemon=LibvirtDaemon.VIRTQEMUD, space_path="/var/lib/libvirt/images", space_free=836 * GIB),
}
CLOCKS = {NODE1: 0.02, NODE2: -0.31}
LINK = LinkReport(rate=112 * MIB, dirty_rate=31 * MIB, write_rate=2 * MIB)
MOVED = MigrationReport(
    disk_bytes=41 * GIB + 300 * MIB, memory_bytes=12 * GIB, downtime=412, downtime_limit=675, passes=5)
GROWS = not_fine(Check.VIRTUAL_SIZE, Severity.WARNS, MigrationError(ErrorCode.SPACE_FOR_VIRTUAL_SIZE, {
    "host": NODE2, "path": "/srv/vm", "free": "48211", "domain": "mail", "needed": "61440"}))
NO_WAY_BACK = not_fine(Check.WAY_BACK, Severity.WARNS, MigrationError(ErrorCode.WAY_BACK_CLOSED, {
    "host": NODE1, "domain": "mail", "destination": NODE2, "reason": "QEMU there is 8.2.2, here 7.2.22"}))
SKIPPED = dataclasses.replace(not_fine(Check.CPUS, Severity.WARNS, MigrationError(ErrorCode.CPUS_FEWER, {
    "host": NODE2, "domain": "mail", "vcpus": "8", "cpus": "6"})), skipped=True)
SHORT = not_fine(Check.MEMORY, Severity.STOPS, MigrationError(ErrorCode.MEMORY_SHORT, {
    "host": NODE2, "free": "9120", "domain": "mail", "needed": "16384"}))
TAKEN = not_fine(Check.TARGET_PATH, Severity.STOPS, MigrationError(ErrorCode.PATH_TAKEN, {
    "host": NODE2, "path": "/srv/vm/mail-spool.img"}))


def fine(check: Check, host: str) -> Finding:
    """That check, with nothing in the way."""
    return Finding(check=check, severity=Severity.FINE, facts={
        "host": host, "domain": "mail", "destination": NODE2, "state": "running", "user": "kvm", "version": "10.0.0",
        "disks": "vda, vdb", "rate": "112.0", "written": "31.0", "seconds": "2"})


FINE = tuple(fine(check, NODE1 if place < 26 else NODE2) for place, check in enumerate(CHECKS)
             if check not in (Check.VIRTUAL_SIZE, Check.WAY_BACK, Check.CPUS))
FINDINGS = (*FINE, GROWS, NO_WAY_BACK, SKIPPED)


class Scene:
    """A clock, and a recorder that is told what a controller would tell it."""

    def __init__(self) -> None:
        self.clock = FakeClock(50.0)
        self.recorder = Recorder(self.clock)
        self.steps: list[StepResult] = []
        self._measuring = 0.0

    def step(self, command: Command, host: str, seconds: float, summary: str,
             error: MigrationError | None = None, obstacles: int = 0) -> None:
        """A step that begins now, and nothing beside it."""
        self.recorder.step_began(command, host)
        self.clock.now += seconds
        self.ended(command, host, seconds, summary, error, obstacles)

    def ended(self, command: Command, host: str, seconds: float, summary: str,
              error: MigrationError | None = None, obstacles: int = 0) -> None:
        """A step that has ended now and took so long."""
        self.steps.append(StepResult(command, host, seconds, summary, error, obstacles))
        self.recorder.step_ended(self.steps[-1])

    def looked(self, obstacles: int = 0) -> None:
        """The greetings, and the checks side by side."""
        recorder, clock = self.recorder, self.clock
        recorder.step_began(Command.HELLO, NODE1)
        clock.now += 0.02
        self.ended(Command.HELLO, NODE1, 0.02, "kvm-node1, libvirt 9.0.0")
        recorder.step_began(Command.HELLO, NODE2)
        self.ended(Command.HELLO, NODE2, 0.02, "kvm-node2, libvirt 10.0.0")
        recorder.step_began(Command.CHECK_SOURCE, NODE1)
        recorder.step_began(Command.CHECK_LINK, NODE1)
        clock.now += 0.21
        self.ended(Command.CHECK_SOURCE, NODE1, 0.21, "20 checks, nothing in the way")
        recorder.step_began(Command.CHECK_DESTINATION, NODE2)
        self._measuring = clock.now
        for host in (NODE2, NODE1):
            recorder.step_began(Command.MEASURE_LINK, host)
        clock.now += 0.34
        self.ended(Command.CHECK_DESTINATION, NODE2, 0.34, "28 checks: 2 obstacles, 2 warnings" if (
            obstacles) else "28 checks: 2 warnings", obstacles=obstacles)
        self.ended(Command.CHECK_LINK, NODE1, 0.55, "6 checks: 1 warning")

    def measured(self) -> None:
        """The destination's end of the measurement."""
        self.clock.now += 0.5
        self.ended(Command.MEASURE_LINK, NODE2, 0.84, "112.0 MiB/s arrive")

    def counted(self) -> None:
        """The source's end, which counts what the guest writes meanwhile, and longer."""
        self.clock.now += 0.4
        self.ended(Command.MEASURE_LINK, NODE1, self.clock.now - self._measuring,
                   "sent; the guest writes 31 MiB/s of memory meanwhile")

    def prepared(self) -> None:
        """The empty images, and the layer that is sent."""
        self.step(Command.PREPARE_DESTINATION, NODE2, 0.12,
                  "empty qcow2 of 20480 MiB at /var/lib/libvirt/images/mail.qcow2, empty raw of 61440 MiB at "
                  "/srv/vm/mail-spool.img")
        for host in (NODE2, NODE1):
            self.recorder.step_began(Command.COPY_DISK_FILE, host)
        done, seconds = 0, 0
        while done < 2 * GIB:
            self.clock.now += 1
            seconds += 1
            done = min(2 * GIB, done + round(108 * MIB * _wave(seconds)))
            for host in (NODE1, NODE2):
                self.recorder.step_progress(Command.COPY_DISK_FILE, host, Progress(
                    phase="sending files over SSH", done=done, total=2 * GIB))
        self.ended(Command.COPY_DISK_FILE, NODE1, float(seconds), "sent debian-12.qcow2, 2.00 GiB")
        self.ended(Command.COPY_DISK_FILE, NODE2, float(seconds), "debian-12.qcow2 received and verified")

    def mirrored(self, until: float = 1.0) -> int:
        """The disks side by side, up to that part of them. Returns the bytes."""
        sizes = {"vda": 9 * GIB + 100 * MIB, "vdb": 32 * GIB + 200 * MIB}
        done = dict.fromkeys(sizes, 0)
        seconds = 0
        self._tell(Progress(phase="connecting to the destination", done=0, total=0))
        while sum(done.values()) < until * sum(sizes.values()):
            seconds += 1
            left = [name for name in sizes if done[name] < sizes[name]]
            for name in left:
                # The larger one is on slower disks.
                share = 1.0 if len(left) == 1 else 0.42 if name == "vda" else 0.58
                rate = 109 * MIB * share * _wave(seconds + len(name) * 7) * (0.45 if 170 <= seconds < 205 else 1)
                done[name] = min(sizes[name], done[name] + round(rate))
            self._tell(Progress(
                phase="copying the disk", done=sum(done.values()), total=sum(sizes.values()),
                disks=tuple(DiskProgress(name, done[name], all_of_it) for name, all_of_it in sizes.items())))
        return sum(done.values())

    def remembered(self, done: int, passes: int = 5) -> int:
        """The memory, in so many passes, each over what was written during the one before. Returns all bytes."""
        left, limit = 9.4 * GIB, 300
        for number in range(1, passes + 1):
            began, sent = self.clock.now, 0.0
            whole = left
            while sent < whole:
                step = min(111 * MIB * _wave(self.clock.now), whole - sent)
                sent += step
                self._tell(Progress(
                    phase=f"copying memory, pass {number}", done=done + round(sent), total=done + round(whole),
                    memory=MemoryProgress(
                        passes=number, left=round(whole - sent), rate=111 * MIB, downtime_limit=limit,
                        dirty_rate=None if number == 1 else round((26 + 9 * math.sin(number * 2.1)) * MIB))),
                    after=max(step / (111 * MIB), 0.2))
            done += round(sent)
            left = (self.clock.now - began) * 24 * MIB
            limit = 675 if number >= 3 else 300
        return done

    def completed(self, error: MigrationError | None = None) -> None:
        """What follows the switchover."""
        self.step(Command.EXTRACT_CONFIGURE_FILE, NODE2, 0.02, "" if error else (
            "/etc/libvirt/qemu/mail.xml (libvirt's own)"), error)
        self.step(Command.DEFINE_VIRTUAL_MACHINE, NODE2, 0.04, "persistent, autostart on")
        self.step(Command.FINISH, NODE2, 0.03, "running here")
        self.step(Command.FINISH, NODE1, 0.05, "shut off here, cannot be started")

    def _tell(self, progress: Progress, after: float = 1.0) -> None:
        self.clock.now += after
        self.recorder.step_progress(Command.LIVE_MIGRATION, NODE1, progress)

    def recording(self) -> Recording:
        """What was written down."""
        return self.recorder.recording()


def _wave(place: float) -> float:
    """A rate is never quite even: a factor about 1."""
    return 1 + 0.04 * math.sin(place * 0.9) + 0.03 * math.sin(place * 0.23 + 1)


def page_of(scene: Scene, report: RunReport, *, facts: DomainFacts | None = FACTS,
            hosts: Mapping[str, object] = HOSTS) -> RunPage:
    """The run of a scene, with what its report has to have of it."""
    report = dataclasses.replace(report, seconds=scene.clock.now - 50.0, steps=tuple(scene.steps))
    known = {each: HOSTS[each] for each in hosts}
    return RunPage(report, scene.recording(), BEGAN, COMMAND, facts, known, {each: CLOCKS[each] for each in known})


def _report(outcome: Outcome, runs_on: str | None, *errors: MigrationError) -> RunReport:
    return RunReport(MIGRATION, outcome, runs_on, 0.0, errors, findings=FINDINGS,
                     plan=make_plan(MIGRATION, FACTS, LINK), sent=2 * GIB)


def moved() -> RunPage:
    """All went well."""
    scene = Scene()
    scene.looked()
    scene.measured()
    scene.prepared()
    began = scene.clock.now
    scene.recorder.step_began(Command.LIVE_MIGRATION, NODE1)
    scene.counted()
    scene.remembered(scene.mirrored())
    scene.clock.now += 0.7
    scene.ended(Command.LIVE_MIGRATION, NODE1, scene.clock.now - began, "downtime 412 ms, 675 ms allowed, 5 passes "
                "over the memory")
    scene.completed()
    return page_of(scene, dataclasses.replace(_report(Outcome.MOVED, NODE2), moved=MOVED))


def moved_incomplete() -> RunPage:
    """The conf file could not be written."""
    error = MigrationError(ErrorCode.DIRECTORY_MISSING, {
        "host": NODE2, "path": "/etc/libvirt/qemu", "reason": "Read-only file system"})
    scene = Scene()
    scene.looked()
    scene.measured()
    scene.prepared()
    scene.counted()
    scene.step(Command.LIVE_MIGRATION, NODE1, 500.0, "downtime 412 ms")
    scene.completed(error)
    return page_of(scene, dataclasses.replace(_report(Outcome.MOVED_INCOMPLETE, NODE2, error), moved=MOVED))


def rolled_back() -> RunPage:
    """The tunnel broke in the middle of the disks."""
    error = MigrationError(ErrorCode.TUNNEL_LOST, {
        "host": NODE1, "destination": NODE2, "reason": "Timeout, server 192.168.111.132 not responding"})
    scene = Scene()
    scene.looked()
    scene.measured()
    scene.prepared()
    began = scene.clock.now
    scene.recorder.step_began(Command.LIVE_MIGRATION, NODE1)
    scene.counted()
    scene.mirrored(0.4)
    scene.clock.now += 17.0
    scene.ended(Command.LIVE_MIGRATION, NODE1, scene.clock.now - began, "", error)
    scene.step(Command.ROLL_BACK, NODE1, 0.06, "VM running here")
    scene.step(Command.ROLL_BACK, NODE2, 0.09, "VM absent here, removed /var/lib/libvirt/images/mail.qcow2, "
               "/srv/vm/mail-spool.img")
    return page_of(scene, _report(Outcome.ROLLED_BACK, NODE1, error))


def blocked(*, dry_run: bool = False) -> RunPage:
    """The checks have found something in the way."""
    scene = Scene()
    scene.looked(obstacles=2)
    report = RunReport(MIGRATION, Outcome.NOTHING_CHANGED, None, 0.0, findings=(*FINDINGS, SHORT, TAKEN),
                       dry_run=dry_run)
    return page_of(scene, report)


def silent() -> RunPage:
    """The destination's agent does not answer."""
    error = MigrationError(ErrorCode.AGENT_SILENT, {"host": NODE2, "port": "8002", "seconds": "10"})
    scene = Scene()
    scene.step(Command.HELLO, NODE1, 0.02, "kvm-node1, libvirt 9.0.0")
    scene.step(Command.HELLO, NODE2, 10.0, "", error)
    report = RunReport(MIGRATION, Outcome.NOTHING_CHANGED, None, 0.0, (error,))
    return page_of(scene, report, facts=None, hosts={NODE1: None})


def unknown() -> RunPage:
    """The source fell silent in the middle of the memory."""
    error = MigrationError(ErrorCode.STATE_UNKNOWN, {
        "domain": "mail", "reason": f"No agent answered at {NODE1} UDP port 8002 within 90 s", "source": NODE1,
        "destination": NODE2, "job": MIGRATION.job_id})
    silence = MigrationError(ErrorCode.AGENT_SILENT, {"host": NODE1, "port": "8002", "seconds": "90"})
    scene = Scene()
    scene.looked()
    scene.measured()
    began = scene.clock.now
    scene.recorder.step_began(Command.LIVE_MIGRATION, NODE1)
    scene.counted()
    scene.remembered(scene.mirrored(), passes=2)
    scene.clock.now += 90.0
    scene.ended(Command.LIVE_MIGRATION, NODE1, scene.clock.now - began, "", silence)
    return page_of(scene, _report(Outcome.UNKNOWN, None, error))


def detached() -> RunPage:
    """The admin pressed Ctrl-C once, while the disks crossed."""
    error = MigrationError(ErrorCode.DETACHED, {"job": MIGRATION.job_id, "domain": "mail", "seconds": "90"})
    scene = Scene()
    scene.looked()
    scene.measured()
    scene.recorder.step_began(Command.LIVE_MIGRATION, NODE1)
    scene.counted()
    scene.mirrored(0.2)
    scene.recorder.leaving(2.0)
    scene.clock.now += 2.0
    return page_of(scene, _report(Outcome.DETACHED, None, error))


def dry_run() -> RunPage:
    """Nothing is in the way."""
    scene = Scene()
    scene.looked()
    scene.measured()
    scene.counted()
    return page_of(scene, dataclasses.replace(
        _report(Outcome.NOTHING_CHANGED, None), dry_run=True, sent=0))


def short() -> RunPage:
    """A move of three seconds, with as many reports: README's."""
    scene = Scene()
    scene.looked()
    scene.measured()
    scene.step(Command.PREPARE_DESTINATION, NODE2, 0.03, "empty qcow2 of 1024 MiB at /var/lib/libvirt/images/x.qcow2")
    scene.step(Command.COPY_DISK_FILE, NODE1, 0.0, "nothing to send beforehand")
    began = scene.clock.now
    scene.recorder.step_began(Command.LIVE_MIGRATION, NODE1)
    scene.counted()
    for after, done, memory in ((0.9, 96, 0), (1.0, 231, 0), (0.6, 290, 30), (0.5, 353, 93)):
        scene.clock.now += after
        scene.recorder.step_progress(Command.LIVE_MIGRATION, NODE1, Progress(
            phase="copying", done=done * MIB, total=353 * MIB,
            disks=() if memory else (DiskProgress("vda", done * MIB, 260 * MIB),),
            memory=MemoryProgress(passes=1, left=0, rate=None, dirty_rate=4 * MIB, downtime_limit=300) if (
                memory) else None))
    scene.clock.now += 0.16
    scene.ended(Command.LIVE_MIGRATION, NODE1, scene.clock.now - began, "downtime 142 ms")
    scene.completed()
    facts = dataclasses.replace(
        FACTS, memory=192 * MIB, resident=192 * MIB, files=(), nvram=None, firmware=None, has_tpm=False,
        disks=(dataclasses.replace(FACTS.disks[0], virtual_size=GIB, allocated=260 * MIB, backing_name=None,
                                   layers=()),))
    migration = dataclasses.replace(MIGRATION, disk_maps=())
    report = RunReport(
        migration, Outcome.MOVED, NODE2, 0.0, findings=FINE, plan=make_plan(
            migration, facts, LinkReport(rate=204 * MIB, dirty_rate=4 * MIB, write_rate=380 << 10)),
        moved=MigrationReport(
            disk_bytes=260 * MIB, memory_bytes=93 * MIB, downtime=142, downtime_limit=300, passes=1))
    return page_of(scene, report, facts=facts)


def shut_off() -> RunPage:
    """A VM that was shut off: it crossed as files."""
    facts = dataclasses.replace(FACTS, state=DomainState.SHUT_OFF)
    scene = Scene()
    scene.looked()
    scene.measured()
    scene.prepared()
    scene.counted()
    scene.step(Command.LIVE_MIGRATION, NODE1, 0.4, "its definition is there")
    scene.completed()
    return page_of(scene, dataclasses.replace(
        _report(Outcome.MOVED, NODE2), state=DomainState.SHUT_OFF,
        moved=MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1)), facts=facts)


EVERY_RUN = {
    "moved": moved, "moved-incomplete": moved_incomplete, "rolled-back": rolled_back, "blocked": blocked,
    "silent": silent, "unknown": unknown, "detached": detached, "dry-run": dry_run, "short": short,
    "shut-off": shut_off}
