"""Records, keys and files that the unit tests start from; each test changes just what it is about."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from constant import (
    VERSION,
    Command,
    CopyStorage,
    DomainState,
    FilePurpose,
    ImageFormat,
    LibvirtDaemon,
    MessageType,
    OnTimeout,
    Outcome,
    Pause,
    Severity,
    Transport,
)
from wire.access import AddressList, Key
from wire.errors import ErrorCode
from wire.facts import (
    DiskFacts,
    DomainFacts,
    FileFacts,
    GraphicsFacts,
    HostFacts,
    InterfaceFacts,
    LayerFacts,
    NvramFacts,
    SerialFacts,
)
from wire.findings import Check, CheckReport, Finding
from wire.history import (
    JobArguments,
    JobDetails,
    JobList,
    JobRecord,
    JobsArguments,
    JobSummary,
    StepState,
)
from wire.memory import Begun, Ended, Entry, Seen
from wire.message import Reply, Request
from wire.placement import Connection, DiskMap, NetworkMap
from wire.records import (
    CancelArguments,
    CancelReport,
    Convergence,
    DiskProgress,
    HelloArguments,
    LinkArguments,
    LinkReport,
    MemoryProgress,
    Migration,
    MigrationReport,
    Obstacle,
    Page,
    Progress,
    RollBackReport,
    StatusArguments,
    StepArguments,
    StepReport,
)
from wire.situation import DomainArguments, DomainView, MovedNote

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "192.0.2.11"
DESTINATION = "192.0.2.12"
CONTROLLER = ("192.0.2.1", 8001)
CONTROLLERS = AddressList(Path("ControllerIPAddr.txt"), (ipaddress.ip_network(CONTROLLER[0]),))
AGENTS = AddressList(Path("AgentIPAddr.txt"), (ipaddress.ip_network(SOURCE), ipaddress.ip_network(DESTINATION)))
MASTER = Key(bytes(range(32)))
AGENT_KEY = MASTER.for_agent(SOURCE)

MIGRATION = Migration(
    job_id="0badcafe", domain="VM1", source=SOURCE, destination=DESTINATION, user="kvm",
    disk="/var/lib/libvirt/images/node.qcow2", conf_file="/etc/libvirt/qemu/VM1.xml", transport=Transport.SSH,
    copy_storage=CopyStorage.AUTO, bandwidth=0, timeout=0)
HARD = Convergence(
    auto_converge=True, max_downtime=600_000, post_copy=True, on_timeout=OnTimeout.SUSPEND, synchronous_writes=True)
PASS = MemoryProgress(passes=5, left=40 << 20, rate=60 << 20, dirty_rate=120 << 20, downtime_limit=675)
QCOW2 = DiskFacts(
    target="vda", path="/var/lib/libvirt/images/node.qcow2", format=ImageFormat.QCOW2, virtual_size=8 << 30,
    allocated=2 << 30, cluster_size=65536, compat="1.1")
RAW = DiskFacts(
    target="vda", path="/srv/vm/node.img", format=ImageFormat.RAW, virtual_size=1 << 30, allocated=0, cluster_size=0,
    compat="")
LAYER = LayerFacts(path="/srv/vm/base.img", format=ImageFormat.RAW, virtual_size=1 << 30)
LAYERED = DiskFacts(
    target="vdb", path="/srv/vm/top.qcow2", format=ImageFormat.QCOW2, virtual_size=1 << 30, allocated=1 << 20,
    cluster_size=131072, compat="1.1", extended_l2=True, lazy_refcounts=True, refcount_bits=1, compression="zstd",
    preallocated=True, backing_name="middle.qcow2", layers=(
        LayerFacts(path="/srv/vm/middle.qcow2", format=ImageFormat.QCOW2, virtual_size=1 << 30,
                   backing_name="/srv/vm/base.img"), LAYER))
ISO = FileFacts(
    path="/srv/iso/a.iso", purpose=FilePurpose.MEDIUM, length=4 << 20, allocated=4 << 20, mode=0o644, target="sda")
NVRAM = NvramFacts(path="/var/lib/libvirt/qemu/nvram/VM1_VARS.fd", format=ImageFormat.RAW, length=540672)
BRIDGED = InterfaceFacts(kind="bridge", source="br0", mac="52:54:00:00:00:01")
FACTS = DomainFacts(
    uuid="2f1d0b6e-7d1c-4a8f-9a55-0c1d2e3f4a5b", virtualization="kvm", architecture="x86_64",
    machine="pc-q35-7.2", memory=2 << 30, autostart=True, disks=(QCOW2,), resident=300 << 20,
    interfaces=(BRIDGED,))
HOST_FACTS = HostFacts(
    version=VERSION, hostname="node1", libvirt_version=9_000_000, daemon=LibvirtDaemon.LIBVIRTD,
    epoch="0123456789abcdef", challenge="12-0123456789abcdef")


def obstacle(code: ErrorCode, check: Check = Check.DOMAIN_JOB, **facts: str) -> Finding:
    """A finding that stops the migration."""
    return Finding(check=check, severity=Severity.STOPS, facts=facts, code=code)


STOPS = obstacle(ErrorCode.PATH_TAKEN, Check.TARGET_PATH, path="/srv/vm/ü.img", host=DESTINATION)
FINE = Finding(check=Check.SNAPSHOTS, severity=Severity.FINE, facts={"host": SOURCE})
LINK = LinkArguments(
    job_id="0badcafe", source=SOURCE, destination=DESTINATION, user="kvm", transport=Transport.SSH,
    destination_daemon=LibvirtDaemon.LIBVIRTD, domain="VM1", milliseconds=800)
MOVED = MigrationReport(disk_bytes=2 << 30, memory_bytes=300 << 20, downtime=87)

REQUEST_ID = "0123456789abcdef" * 2
STEP = StepArguments(migration=MIGRATION, facts=FACTS, source_keeps=True, stood_still=90_000)
DID = StepReport(summary="did it")
PATH_TAKEN = Obstacle(code=ErrorCode.PATH_TAKEN, facts={"path": "/srv/vm/ü.img", "host": DESTINATION})
KEPT = JobRecord(
    arguments=STEP, asked_by=CONTROLLER[0], since=1_790_000_000, ended=1_790_000_060, outcome=Outcome.MOVED,
    moved=MOVED, sent=1)
SUMMARY = JobSummary.of(KEPT, (Command.FINISH,))
NOTE = MovedNote(job_id="0badcafe", destination=DESTINATION, at=1_790_000_000)
STEP_STATE = StepState(
    command=Command.LIVE_MIGRATION, request_id=REQUEST_ID, ended=True, error=ErrorCode.TUNNEL_LOST)

# One of every record that crosses the wire, with every optional field once there and once not.
EVERY_RECORD: tuple[object, ...] = (
    MIGRATION,
    Migration(
        job_id="00000001", domain="win 11 (prod)", source="2001:db8::1", destination="2001:db8::2", user="_vm-mover",
        disk=None, conf_file=None, transport=Transport.TCP, copy_storage=CopyStorage.ALL, bandwidth=100,
        timeout=3600, destination_daemon=LibvirtDaemon.VIRTQEMUD, new_name="win 11", pool="fast", directory="/srv/fast",
        disk_maps=(DiskMap(what="vda", path="/srv/vm/x.qcow2"), DiskMap(what="/srv/vm", path="/data")),
        network_maps=(NetworkMap(here=Connection(kind="bridge", name="br0"),
                                 there=Connection(kind="network", name="default")),),
        flatten=True, eject_cdrom=True, trim=True, convergence=HARD),
    HARD,
    QCOW2,
    RAW,
    LAYERED,
    LAYER,
    ISO,
    NVRAM,
    DiskMap(what="vda", path="/srv/vm/x.qcow2"),
    Connection(kind="network", name="default"),
    NetworkMap(here=Connection(kind="bridge", name="br0"), there=Connection(kind="network", name="default")),
    FACTS,
    DomainFacts(
        uuid="u", virtualization="qemu", architecture="aarch64", machine="virt-7.2", memory=1, autostart=False,
        disks=(), emulator="/usr/bin/qemu-system-aarch64", state=DomainState.PAUSED, persistent=False, files=(ISO,),
        nvram=NVRAM, firmware="/usr/share/OVMF/OVMF_CODE.fd", has_tpm=True,
        vcpus=4, last_cpu=7, last_node=1, huge_page=2048,
        interfaces=(InterfaceFacts(kind="network", source="default", mac="", portgroup="lan"),),
        graphics=(GraphicsFacts(kind="vnc", port=5900, address="127.0.0.1"), GraphicsFacts(kind="spice", port=-1)),
        serial_ports=(SerialFacts(path="/dev/ttyS0", must_exist=True),), secrets=("usage ceph x",),
        security_models=("apparmor",), libvirt_version=9_000_000, qemu_version=7_002_022),
    BRIDGED,
    InterfaceFacts(kind="network", source="default", mac="", portgroup="lan"),
    GraphicsFacts(kind="vnc", port=5900, address="127.0.0.1"),
    SerialFacts(path="/dev/ttyS0", must_exist=True),
    STOPS,
    FINE,
    StepArguments(migration=MIGRATION),
    StepArguments(migration=MIGRATION, facts=FACTS),
    CancelArguments(job_id="0badcafe"),
    Obstacle(code=ErrorCode.PATH_TAKEN, facts={"path": "/srv/vm/node.img", "host": SOURCE}),
    HOST_FACTS,
    CheckReport(findings=()),
    CheckReport(findings=(), directory="/srv/fast"),
    CheckReport(facts=FACTS, findings=(
        STOPS, Finding(check=Check.MEMORY, severity=Severity.WARNS, facts={"reason": "ü…"}, skipped=True,
                       code=ErrorCode.MEMORY_SHORT))),
    LinkReport(rate=100, dirty_rate=None, write_rate=0),
    LinkArguments(
        job_id="0badcafe", source=SOURCE, destination=DESTINATION, user="kvm", transport=Transport.TCP,
        destination_daemon=LibvirtDaemon.VIRTQEMUD, milliseconds=800, bandwidth=7, at_most=8 << 20),
    StepReport(summary="empty qcow2 of 8192 MiB"),
    StepReport(summary="sent", bytes=7),
    MOVED,
    MigrationReport(disk_bytes=0, memory_bytes=0, downtime=-1),
    RollBackReport(state=DomainState.SHUT_OFF, removed=("/a/b", "/c/d")),
    MigrationReport(disk_bytes=1, memory_bytes=1, downtime=8, downtime_limit=675, passes=9, post_copy=True),
    PASS,
    MemoryProgress(passes=1, left=0, rate=None, dirty_rate=None, downtime_limit=300),
    Progress(phase="copying the disk", done=1, total=0),
    Progress(phase="x", done=1, total=2, disks=(DiskProgress("vda", 1, 2), DiskProgress("vdb", 0, 0))),
    Progress(phase="x", done=1, total=2, memory=PASS),
    HelloArguments(),
    StatusArguments(of="0" * 32),
    StatusArguments(of="f" * 32, page=63),
    CancelReport(known=True),
    JobsArguments(),
    JobsArguments(wanted="0badcafe"),
    JobArguments(job_id="0badcafe"),
    JobRecord(arguments=StepArguments(migration=MIGRATION, facts=FACTS), asked_by="2001:db8::1", since=1),
    KEPT,
    SUMMARY,
    STEP_STATE,
    StepState(command=Command.FINISH, request_id=REQUEST_ID, ended=False),
    JobList(jobs=()),
    JobList(jobs=(SUMMARY,)),
    JobDetails(record=KEPT, steps=(STEP_STATE,)),
    DomainArguments(domain="VM1"),
    DomainView(state=DomainState.SHUT_OFF, migrated=True, persistent=True, autostart=True),
    NOTE,
    DomainView(state=DomainState.SHUT_OFF, persistent=True, moved=NOTE),
    Page(page=0, pages=2, digest="0123456789abcdef" * 4, part='{"value":{'),
)

# What each command is asked with, and what it may come to. STATUS comes to nothing of its own.
ARGUMENTS_OF: Mapping[Command, object] = {
    **dict.fromkeys(Command, STEP),
    Command.HELLO: HelloArguments(),
    Command.STATUS: StatusArguments(of=REQUEST_ID, page=3),
    Command.CANCEL: CancelArguments(job_id=MIGRATION.job_id),
    Command.CHECK_LINK: LINK,
    Command.MEASURE_LINK: LINK,
    Command.LOCATE: DomainArguments(domain="VM1"),
    Command.LIST: JobsArguments(wanted="VM1"),
    Command.RECALL: JobArguments(job_id=MIGRATION.job_id),
}
RESULT_OF: Mapping[Command, object] = {
    Command.HELLO: HOST_FACTS,
    Command.CHECK_SOURCE: CheckReport(findings=(STOPS, FINE), facts=FACTS),
    Command.CHECK_DESTINATION: CheckReport(findings=()),
    Command.CHECK_LINK: CheckReport(findings=(FINE,)),
    Command.MEASURE_LINK: LinkReport(rate=1),
    Command.PREPARE_DESTINATION: DID,
    Command.COPY_DISK_FILE: DID,
    Command.LIVE_MIGRATION: MOVED,
    Command.EXTRACT_CONFIGURE_FILE: DID,
    Command.DEFINE_VIRTUAL_MACHINE: DID,
    Command.FINISH: DID,
    Command.RESTORE_SOURCE: DID,
    Command.ROLL_BACK: RollBackReport(state=DomainState.PAUSED, removed=("/a/b",)),
    Command.CANCEL: CancelReport(known=False),
    Command.HAND_OVER: DID,
    Command.LIST: JobList(jobs=(SUMMARY,)),
    Command.RECALL: JobDetails(record=KEPT, steps=(STEP_STATE,)),
    Command.LOCATE: DomainView(state=DomainState.PAUSED, pause=Pause.MIGRATION, busy=True),
}
PROGRESS = Progress(phase="copying the disk", done=1, total=2)
PAGE = Page(page=63, pages=64, digest="0123456789abcdef" * 4, part="ü…")
# Each kind of what a reply can hold, in each type of reply that may hold it.
ENDS = (MessageType.RESPONSE, MessageType.REFUSED)
CONTENTS: tuple[tuple[MessageType, object], ...] = (
    (MessageType.ACCEPTED, None), (MessageType.PROGRESS, PROGRESS), *((end, PATH_TAKEN) for end in ENDS),
    *((end, PAGE) for end in ENDS))


def a_reply(command: Command, msg_type: MessageType, content: object) -> Reply:
    """A reply of that type, which holds that."""
    return Reply(
        msg_type=msg_type, request_id=REQUEST_ID, agent_ip=SOURCE, cmd=command, sequence=7, cmd_result=content)


EVERY_REQUEST: tuple[Request, ...] = (
    *(Request(
        request_id=REQUEST_ID, agent_ip=SOURCE, cmd=command, cmd_arguments=arguments, epoch=HOST_FACTS.epoch,
        challenge=HOST_FACTS.challenge) for command, arguments in ARGUMENTS_OF.items()),
    Request(request_id="f" * 32, agent_ip="2001:db8::1", cmd=Command.HELLO, cmd_arguments=HelloArguments()),
)
EVERY_REPLY: tuple[Reply, ...] = (
    *(a_reply(command, kind, content) for command in Command for kind, content in CONTENTS),
    *(a_reply(command, MessageType.RESPONSE, result) for command, result in RESULT_OF.items()),
)
# One of every entry that an agent's journal holds, below its first line.
EVERY_ENTRY: tuple[Entry, ...] = (
    Begun(
        request_id=REQUEST_ID, digest="ab" * 32, agent_ip=SOURCE, cmd=Command.LIVE_MIGRATION, asked_by=CONTROLLER[0],
        at=1_790_000_000, job_id=MIGRATION.job_id, domain="büro"),
    Begun(
        request_id="f" * 32, digest="cd" * 32, agent_ip="2001:db8::1", cmd=Command.CHECK_SOURCE,
        asked_by="2001:db8::2", at=1_790_000_000),
    *(Ended(request_id=REQUEST_ID, cmd=command, at=1_790_000_001, cmd_result=result)
      for command, result in RESULT_OF.items()),
    Ended(request_id=REQUEST_ID, cmd=Command.FINISH, at=1_790_000_001, cmd_result=PATH_TAKEN),
    Seen(request_id=REQUEST_ID, digest="ef" * 32, at=1_790_000_002),
)


@dataclass
class FakeClock:
    """A clock that only moves when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let so much time go by."""
        self.now += seconds


def address_list(directory: Path, *lines: str) -> AddressList:
    """A list file with these lines, read."""
    path = directory / "list.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return AddressList.load(path, "node")


def write_key(path: Path, *keys: Key, mode: int = 0o600) -> Path:
    """A key file as the commands make it, with the mode given."""
    path.write_text("".join(f"{key.secret.hex()}\n" for key in keys), encoding="ascii")
    os.chmod(path, mode)
    return path
