"""The vocabulary that the controller and the agents share.

Commands, message types and states with their transitions, ports and limits, and exit codes. Nothing here reads a file,
opens a socket or asks the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from types import MappingProxyType

VERSION = "0.6.0"

# The original's ports. The controller takes any free port when another run already holds its own.
CONTROLLER_PORT = 8001
AGENT_PORT = 8002

CONTROLLER_LIST_FILE = "ControllerIPAddr.txt"
AGENT_LIST_FILE = "AgentIPAddr.txt"
CONTROLLER_KEY_FILE = "ControllerKey.txt"
AGENT_KEY_FILE = "AgentKey.txt"
SYSTEM_CONFIG_DIRECTORY = "/etc/vmmigration"

# IPv6 promises a path MTU of 1280 bytes (RFC 8200, section 5): less its 40 and UDP's 8 bytes of header, and
# room for a tunnel's, leaves 1200. Such a datagram is never cut into fragments.
DATAGRAM_LIMIT = 1200

# Waiting for an answer: doubled from the first value up to the second, each wait stretched by a random factor of
# 1 to RETRY_JITTER so that several runs do not send in step.
RETRY_FIRST_SECONDS = 1.0
RETRY_LONGEST_SECONDS = 5.0
RETRY_JITTER = 1.5
# Six lost 5 s retries in a row are a dead path, not a lossy one; three times that covers a rebooting switch.
GIVE_UP_SECONDS = 90.0
# Nothing has been started yet while HELLO goes unanswered, so there is no state to be careful about.
HELLO_GIVE_UP_SECONDS = 10.0
# A check that changes nothing takes a second or two; past this, libvirt or a disk hangs on that host.
CHECK_LIMIT_SECONDS = 45.0
# How long the challenge in a HELLO reply may be used to start something.
CHALLENGE_SECONDS = 30.0
PROGRESS_INTERVAL_SECONDS = 1.0

# A result that does not fit a datagram is pulled in pages; more than these, about 60 KiB, is no answer but a mistake.
PAGES_LIMIT = 64
# A request comes in all its pages at once, so they have to fit into RATE_BURST beside a few others.
REQUEST_PAGES_LIMIT = 32
# Requests of which an agent has some pages and not yet all; each lives as long as a challenge.
UNFINISHED_LIMIT = 64
# What one source may send before it is known whether it has the key. A controller sends a few datagrams a second.
RATE_PER_SECOND = 20
RATE_BURST = 40

# An agent remembers a result for a day, or as long as its job is open, and for a month that it has seen the request.
RESULTS_KEPT_SECONDS = 24 * 3600.0
IDS_KEPT_SECONDS = 30 * 24 * 3600.0
# Answers that were never work need only outlive their controller's patience, which is GIVE_UP_SECONDS.
UNJOURNALED_KEPT_SECONDS = 120.0
# Bounds in memory for an agent that is asked more than any admin asks: bytes of results, and ids (about 250 bytes
# each).
RESULTS_LIMIT = 32 * 1024 * 1024
IDS_LIMIT = 100_000
# The journal is written anew, without what is past its time, after so many new entries of about 400 bytes.
JOURNAL_ENTRIES_LIMIT = 20_000
# How often an agent logs its counters, if there is anything to tell, and looks what is past its time.
LOOK_AFTER_SECONDS = 60.0
STATE_DIRECTORY = "/var/lib/vmmigration"
# How many jobs at once an agent takes by default; each mirrors disks over the same link.
JOBS_LIMIT = 2
# Checks and greetings at once, each a thread; beyond that somebody is not asking but flooding.
WORK_LIMIT = 32

# A unix socket's path holds 108 bytes with its closing NUL (unix(7), sun_path).
SOCKET_PATH_LIMIT = 107


class Command(str, Enum):
    """What a controller can ask of an agent; the value is the name on the wire."""

    HELLO = "HELLO"
    CHECK_SOURCE = "CHECK_SOURCE"
    CHECK_LINK = "CHECK_LINK"
    CHECK_DESTINATION = "CHECK_DESTINATION"
    MEASURE_LINK = "MEASURE_LINK"
    PREPARE_DESTINATION = "PREPARE_DESTINATION"
    COPY_DISK_FILE = "COPY_DISK_FILE"
    LIVE_MIGRATION = "LIVE_MIGRATION"
    EXTRACT_CONFIGURE_FILE = "EXTRACT_CONFIGURE_FILE"
    DEFINE_VIRTUAL_MACHINE = "DEFINE_VIRTUAL_MACHINE"
    HAND_OVER = "HAND_OVER"
    FINISH = "FINISH"
    ROLL_BACK = "ROLL_BACK"
    RESTORE_SOURCE = "RESTORE_SOURCE"
    LOCATE = "LOCATE"
    LIST = "LIST"
    RECALL = "RECALL"
    STATUS = "STATUS"
    CANCEL = "CANCEL"


class MessageType(str, Enum):
    """The `msg_type` of a datagram: one request, and what an agent can answer to it."""

    REQUEST = "request"
    ACCEPTED = "accepted"
    PROGRESS = "progress"
    RESPONSE = "response"
    REFUSED = "refused"


# From what a request was last answered with to what may follow. RESPONSE and REFUSED are ends.
REPLY_TRANSITIONS: Mapping[MessageType, frozenset[MessageType]] = MappingProxyType({
    # PROGRESS too: the one that said ACCEPTED may have been lost.
    MessageType.REQUEST: frozenset({
        MessageType.ACCEPTED, MessageType.PROGRESS, MessageType.RESPONSE, MessageType.REFUSED}),
    MessageType.ACCEPTED: frozenset({MessageType.PROGRESS, MessageType.RESPONSE}),
    MessageType.PROGRESS: frozenset({MessageType.PROGRESS, MessageType.RESPONSE}),
    MessageType.RESPONSE: frozenset(),
    MessageType.REFUSED: frozenset(),
})

# Commands that the agent answers from memory, inside its receive loop; all others are work for a thread.
ANSWERED_AT_ONCE = frozenset({Command.STATUS, Command.CANCEL})
# Commands that change nothing on a host.
CHANGE_NOTHING = frozenset({
    Command.HELLO, Command.CHECK_SOURCE, Command.CHECK_LINK, Command.CHECK_DESTINATION, Command.MEASURE_LINK,
    Command.LOCATE, Command.LIST, Command.RECALL})
# Commands that the journal does not know: they leave nothing behind that must not happen twice, nor should a dry run.
NOT_JOURNALED = ANSWERED_AT_ONCE | CHANGE_NOTHING
# Commands that may run twice without harm: an agent that was restarted is asked for them again.
REPEATABLE = CHANGE_NOTHING | {
    Command.COPY_DISK_FILE, Command.HAND_OVER, Command.EXTRACT_CONFIGURE_FILE, Command.DEFINE_VIRTUAL_MACHINE,
    Command.FINISH, Command.ROLL_BACK, Command.RESTORE_SOURCE}
# Steps that go on after the admin cancelled: they clear up, or the VM has moved already.
CLEARING = frozenset({
    Command.ROLL_BACK, Command.HAND_OVER, Command.EXTRACT_CONFIGURE_FILE, Command.DEFINE_VIRTUAL_MACHINE,
    Command.FINISH})
# A job begins on a host with the first of these, and ends there with one of CLOSE_JOB.
OPEN_JOB = frozenset({Command.PREPARE_DESTINATION, Command.COPY_DISK_FILE, Command.LIVE_MIGRATION})
CLOSE_JOB = frozenset({Command.FINISH, Command.ROLL_BACK})
# Steps that are begun although the journal cannot be written: they make room on a full disk, and may run twice.
BEGUN_WITHOUT_JOURNAL = CLEARING & REPEATABLE
# Commands that start nothing, and so need no challenge.
START_NOTHING = frozenset({Command.HELLO, Command.STATUS})


class Transport(str, Enum):
    """How memory and disk cross: inside SSH (encrypted), or over plain TCP."""

    SSH = "ssh"
    TCP = "tcp"


class CopyStorage(str, Enum):
    """What QEMU's mirror writes: ALL zeroes the target first, INC writes only what is allocated; AUTO chooses."""

    AUTO = "auto"
    ALL = "all"
    INC = "inc"


class OnTimeout(str, Enum):
    """What happens to a live migration that takes longer than `--timeout`."""

    ABORT = "abort"
    """It is ended, the VM stays where it is."""
    SUSPEND = "suspend"
    """The guest is paused until it has arrived."""
    POST_COPY = "post-copy"
    """The guest goes on at the destination at once, and its memory follows."""


class SourceAfter(str, Enum):
    """What becomes of the copy that stays behind when a VM has moved."""

    KEEP = "keep"
    """It stays defined, and its disks get other names: it cannot be started by mistake, and can be brought back."""
    UNDEFINE = "undefine"
    """Only its disks stay, under those names."""
    DELETE = "delete"
    """Nothing stays but what other VMs may use as well: layers, media, and block devices."""


# How long a guest may stand still at the switchover, in milliseconds: what a move begins with (an idle guest stood
# still for 168 ms, and for 235 with what QEMU begins with, measured from inside), what QEMU begins with, how far that
# is raised if the admin says nothing, and the most that can be asked for.
DOWNTIME_FIRST = 50
DOWNTIME_OF_QEMU = 300
DOWNTIME_CAP = 2_000
DOWNTIME_LARGEST = 600_000
# From how many milliseconds of standing still on a guest's clock is set after the arrival: the hardware clock that it
# is set by counts seconds.
CLOCK_PAUSE = 1_000


class ImageFormat(str, Enum):
    """The image formats that are moved; always named, never probed."""

    QCOW2 = "qcow2"
    RAW = "raw"


class FilePurpose(str, Enum):
    """What a file is for that is sent over SSH rather than mirrored."""

    LAYER = "layer"
    DISK = "disk"
    KERNEL = "kernel"
    INITRD = "initrd"
    DEVICE_TREE = "device tree"
    MEDIUM = "medium"
    NVRAM = "NVRAM"
    TPM = "TPM state"


# What lies where the images are: a pool that the admin names takes these.
IN_POOL = frozenset({FilePurpose.LAYER, FilePurpose.DISK, FilePurpose.MEDIUM})
# QEMU itself opens chains of any length; libvirt stops at 200, and nobody has found one of 32 useful.
LAYERS_LIMIT = 32
# The flash of a machine is 4 MiB in edk2's largest build for x86 and 64 MiB in that for ARM.
NVRAM_LIMIT = 64 * 1024 * 1024


class LibvirtDaemon(str, Enum):
    """Which libvirt daemon serves qemu:///system on a host."""

    LIBVIRTD = "libvirtd"
    VIRTQEMUD = "virtqemud"


# Where each daemon listens (libvirt's daemons.rst); the remote end of the SSH forward is one of these, never a
# path out of a datagram.
LIBVIRT_SOCKETS: Mapping[LibvirtDaemon, str] = MappingProxyType({
    LibvirtDaemon.LIBVIRTD: "/run/libvirt/libvirt-sock",
    LibvirtDaemon.VIRTQEMUD: "/run/libvirt/virtqemud-sock",
})


class DomainState(str, Enum):
    """What a host says about a domain when a job ends."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUT_OFF = "shut off"
    ABSENT = "absent"


class Pause(str, Enum):
    """Why a paused domain is paused."""

    NONE = "none"
    """It is not paused."""
    SOMEBODY = "somebody"
    """By a person or a program, on purpose; libvirt says the same of a domain that has arrived to be released."""
    MIGRATION = "migration"
    """It leaves or arrives, or did when that was broken off."""
    POST_COPY_FAILED = "post-copy failed"
    """Part of its memory is on the other host."""
    OTHER = "other"
    """An I/O error, a save, a snapshot and the like."""


class Severity(str, Enum):
    """What a check's finding means for the migration."""

    STOPS = "stops"
    WARNS = "warns"
    FINE = "fine"


class Verdict(str, Enum):
    """Whether the copying is expected to catch up with what the guest writes meanwhile."""

    CONVERGES = "converges"
    NEEDS_THROTTLING = "needs throttling"
    WILL_NOT_CONVERGE = "will not converge"
    NOT_MEASURED = "not measured"


class Outcome(str, Enum):
    """How a run of the controller ended, as far as the VM is concerned."""

    NOTHING_CHANGED = "nothing changed"
    MOVED = "moved"
    MOVED_INCOMPLETE = "moved, not finished"
    ROLLED_BACK = "rolled back"
    UNKNOWN = "state unknown"
    DETACHED = "goes on without this command"


class ExitCode(IntEnum):
    """The exit codes of `vmmigration.py`; README.md holds the same table for the admin."""

    MOVED = 0
    INTERNAL = 1
    INPUT = 2
    REFUSED = 3
    NO_CONTACT = 4
    ROLLED_BACK = 5
    MOVED_INCOMPLETE = 6
    UNKNOWN = 7
    DETACHED = 8
