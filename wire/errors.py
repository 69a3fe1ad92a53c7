"""The one error tree: stable codes that cross the wire, and the words that the admin reads for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from constant import ExitCode
from wire.phrase import Phrase


class ErrorKind(Enum):
    """The branches of the error tree. An error's branch says what it means before anything was changed."""

    INPUT = ExitCode.INPUT
    REFUSED = ExitCode.REFUSED
    NO_CONTACT = ExitCode.NO_CONTACT
    FAILED = ExitCode.ROLLED_BACK
    UNKNOWN = ExitCode.UNKNOWN
    INTERNAL = ExitCode.INTERNAL


@dataclass(frozen=True)
class ErrorText:
    """The words for one error code; `{names}` are filled from the error's facts. Each is in the catalogue."""

    kind: ErrorKind
    message: str
    hint: str


class ErrorCode(str, Enum):
    """The stable name of an error, the same on the wire, in JSON output and in the log."""

    ARGUMENTS_INVALID = "arguments-invalid"
    ADDRESS_INVALID = "address-invalid"
    SAME_HOST = "same-host"
    AGENT_NOT_LISTED = "agent-not-listed"
    FILE_UNREADABLE = "file-unreadable"
    FILE_NOT_WRITTEN = "file-not-written"
    FILE_NOT_PRIVATE = "file-not-private"
    LIST_LINE_INVALID = "list-line-invalid"
    LIST_EMPTY = "list-empty"
    LIST_TOO_LONG = "list-too-long"
    KEY_MISSING = "key-missing"
    KEY_INVALID = "key-invalid"
    KEY_EXISTS = "key-exists"
    KEY_CHANGE_BEGUN = "key-change-begun"
    KEY_CHANGE_NOT_BEGUN = "key-change-not-begun"
    KEY_NOT_TAKEN = "key-not-taken"
    PATH_INVALID = "path-invalid"
    PATH_NOT_ALLOWED = "path-not-allowed"
    LISTEN_FAILED = "listen-failed"
    PACKAGE_MISSING = "package-missing"
    AGENT_SILENT = "agent-silent"
    ADDRESS_UNUSABLE = "address-unusable"
    STEP_OVERDUE = "step-overdue"
    AGENT_OTHER_VERSION = "agent-other-version"
    MESSAGE_INVALID = "message-invalid"
    MESSAGE_TOO_LONG = "message-too-long"
    REQUEST_STALE = "request-stale"
    REQUEST_CONFLICT = "request-conflict"
    REQUEST_UNKNOWN = "request-unknown"
    REQUEST_INTERRUPTED = "request-interrupted"
    REQUEST_EXPIRED = "request-expired"
    JOURNAL_UNUSABLE = "journal-unusable"
    JOURNAL_IN_USE = "journal-in-use"
    JOURNAL_NOT_WRITTEN = "journal-not-written"
    JOB_UNKNOWN = "job-unknown"
    AGENT_STOPPING = "agent-stopping"
    AGENT_BUSY = "agent-busy"
    JOBS_LIMIT_REACHED = "jobs-limit-reached"
    DOMAIN_LOCKED = "domain-locked"
    DESTINATION_NOT_ALLOWED = "destination-not-allowed"
    LIBVIRT_UNREACHABLE = "libvirt-unreachable"
    LIBVIRT_ERROR = "libvirt-error"
    TOOL_MISSING = "tool-missing"
    TOOL_FAILED = "tool-failed"
    DOMAIN_MISSING = "domain-missing"
    DOMAIN_NOT_RUNNING = "domain-not-running"
    DOMAIN_SHUT_OFF = "domain-shut-off"
    DOMAIN_SAVED = "domain-saved"
    DOMAIN_BUSY = "domain-busy"
    DOMAIN_HAS_SNAPSHOTS = "domain-has-snapshots"
    DOMAIN_NAME_UNFIT = "domain-name-unfit"
    DISK_NOT_OF_DOMAIN = "disk-not-of-domain"
    DISK_UNSUPPORTED = "disk-unsupported"
    DEVICE_UNSUPPORTED = "device-unsupported"
    DOMAIN_EXISTS = "domain-exists"
    PATH_TAKEN = "path-taken"
    DIRECTORY_MISSING = "directory-missing"
    FILE_MISSING = "file-missing"
    SPACE_SHORT = "space-short"
    MACHINE_UNSUPPORTED = "machine-unsupported"
    NETWORK_MISSING = "network-missing"
    USER_MISSING = "user-missing"
    SSH_HOST_KEY_UNKNOWN = "ssh-host-key-unknown"
    SSH_HOST_KEY_CHANGED = "ssh-host-key-changed"
    SSH_LOGIN_REFUSED = "ssh-login-refused"
    SSH_UNREACHABLE = "ssh-unreachable"
    SSH_FAILED = "ssh-failed"
    SSH_LIBVIRT_REFUSED = "ssh-libvirt-refused"
    SAME_LIBVIRT_HOST = "same-libvirt-host"
    CHECK_UNKNOWN = "check-unknown"
    CHECK_NOT_SKIPPABLE = "check-not-skippable"
    CHECK_FAILED = "check-failed"
    DOMAIN_HAS_CHECKPOINTS = "domain-has-checkpoints"
    BACKING_UNREADABLE = "backing-unreadable"
    DISK_CACHE_UNSAFE = "disk-cache-unsafe"
    FILE_NOT_SENT = "file-not-sent"
    FILE_CHANGED = "file-changed"
    COPY_DAMAGED = "copy-damaged"
    FLATTEN_NEEDS_RUNNING = "flatten-needs-running"
    MAP_UNUSED = "map-unused"
    PATHS_COLLIDE = "paths-collide"
    POOL_MISSING = "pool-missing"
    DEVICE_UNFIT = "device-unfit"
    SERIAL_MISSING = "serial-missing"
    OWN_ARGUMENTS = "own-arguments"
    INVARIANT_TSC = "invariant-tsc"
    NESTED_GUESTS = "nested-guests"
    LINK_NOT_MEASURED = "link-not-measured"
    NOT_CONVERGING = "not-converging"
    VERSION_OLDER = "version-older"
    VIRTUALIZATION_MISSING = "virtualization-missing"
    EMULATOR_MISSING = "emulator-missing"
    MEMORY_SHORT = "memory-short"
    HUGE_PAGES_SHORT = "huge-pages-short"
    CPUS_FEWER = "cpus-fewer"
    CPU_PINNED_OUTSIDE = "cpu-pinned-outside"
    SPACE_FOR_VIRTUAL_SIZE = "space-for-virtual-size"
    POOL_NOT_ACTIVE = "pool-not-active"
    NETWORK_DOWN = "network-down"
    MAC_TAKEN = "mac-taken"
    GRAPHICS_PORT_TAKEN = "graphics-port-taken"
    GRAPHICS_ADDRESS_FOREIGN = "graphics-address-foreign"
    SECRET_MISSING = "secret-missing"  # noqa: S105 - no secret, the name of an error
    SECURITY_MODEL_MISSING = "security-model-missing"
    USER_NOT_IN_GROUP = "user-not-in-group"
    QEMU_NBD_FLAW = "qemu-nbd-flaw"
    CPU_INCOMPATIBLE = "cpu-incompatible"
    WAY_BACK_CLOSED = "way-back-closed"
    CLOCK_SKEWED = "clock-skewed"
    PORTS_CLOSED = "ports-closed"
    POST_COPY_UNAVAILABLE = "post-copy-unavailable"
    SYNCHRONOUS_WRITES_UNAVAILABLE = "synchronous-writes-unavailable"
    TUNNEL_LOST = "tunnel-lost"
    MIGRATION_FAILED = "migration-failed"
    MIGRATION_TIMEOUT = "migration-timeout"
    MIGRATION_STALLED = "migration-stalled"
    MIGRATION_INTERRUPTED = "migration-interrupted"
    MIGRATION_CANCELLED = "migration-cancelled"
    POST_COPY_FAILED = "post-copy-failed"
    NOT_AS_EXPECTED = "not-as-expected"
    ENDED_SINCE = "ended-since"
    TRIM_FAILED = "trim-failed"
    GUEST_AGENT_SILENT = "guest-agent-silent"
    LEFT_BEHIND = "left-behind"
    STATE_UNKNOWN = "state-unknown"
    DETACHED = "detached"
    TOO_LATE = "too-late"
    STALE_COPY = "stale-copy"
    STALE_COPY_REPLACED = "stale-copy-replaced"
    NO_STALE_COPY = "no-stale-copy"
    COPY_OUTDATED = "copy-outdated"
    RUNS_ELSEWHERE = "runs-elsewhere"
    JOB_RUNS = "job-runs"
    INTERNAL = "internal"


_INPUT, _REFUSED, _FAILED = ErrorKind.INPUT, ErrorKind.REFUSED, ErrorKind.FAILED

ERRORS: Mapping[ErrorCode, ErrorText] = MappingProxyType({
    # What the admin typed or configured, on the host where the command runs.
    ErrorCode.ARGUMENTS_INVALID: ErrorText(_INPUT, "{problem}.", "See `{program} --help`."),
    ErrorCode.ADDRESS_INVALID: ErrorText(
        _INPUT, "{what} {address!r} is not an IP address.", "Give an IPv4 or IPv6 address such as 192.168.111.130."),
    ErrorCode.SAME_HOST: ErrorText(
        _INPUT, "Source and destination are both {address}.", "Name two different hosts."),
    ErrorCode.AGENT_NOT_LISTED: ErrorText(
        _INPUT, "{address} is not in {path} on this host.",
        "Add the line `{address}` to that file if it is one of your nodes."),
    ErrorCode.FILE_UNREADABLE: ErrorText(
        _INPUT, "{path} cannot be read: {reason}.", "Mend what is said of it, then repeat the command."),
    ErrorCode.FILE_NOT_WRITTEN: ErrorText(
        _INPUT, "{path} cannot be written: {reason}.",
        "Make room or the directory there, or mend its permissions."),
    ErrorCode.FILE_NOT_PRIVATE: ErrorText(
        _INPUT, "{path} holds a key and others on this host can read it.", "Run `chmod 600 {path}`."),
    ErrorCode.LIST_LINE_INVALID: ErrorText(
        _INPUT, "{path}, line {line}: {text!r} is neither an IP address nor a network.",
        "Write one address or network a line; a comment starts with #."),
    ErrorCode.LIST_EMPTY: ErrorText(
        _INPUT, "{path} names no address.", "Add a line for each {what}."),
    ErrorCode.LIST_TOO_LONG: ErrorText(
        _INPUT, "{path} names {count} addresses, more than the {limit} that are asked at once.",
        "Name the nodes themselves there instead of a wide network."),
    ErrorCode.KEY_MISSING: ErrorText(
        _INPUT, "There is no key on this host: {path} is missing or empty.",
        "On the management host run `vmmigration.py new-key` once, then `vmmigration.py agent-key IP` for each node "
        "and put its output into that node's AgentKey.txt (mode 600). `--insecure` relies on the IP lists alone."),
    ErrorCode.KEY_INVALID: ErrorText(
        _INPUT, "{path}, line {line}: not a key.",
        "A key is 64 hexadecimal digits as `vmmigration.py new-key` or `agent-key IP` makes them."),
    ErrorCode.KEY_EXISTS: ErrorText(
        _INPUT, "{path} exists already.",
        "Every agent's key is derived from it. `vmmigration.py change-key begin` puts a new one beside it."),
    ErrorCode.KEY_CHANGE_BEGUN: ErrorText(
        _INPUT, "{path} holds a second key already: a change of keys has begun.",
        "Once every agent has both lines of `vmmigration.py agent-key IP`, run `vmmigration.py change-key finish`."),
    ErrorCode.KEY_CHANGE_NOT_BEGUN: ErrorText(
        _INPUT, "{path} holds one key only: there is no old one to take away.",
        "A change of keys begins with `vmmigration.py change-key begin`."),
    ErrorCode.KEY_NOT_TAKEN: ErrorText(
        _INPUT, "These agents do not take the new key yet: {hosts}.",
        "Put both lines of `vmmigration.py agent-key IP` into AgentKey.txt there, send the agent SIGHUP, then repeat "
        "the command."),
    ErrorCode.PATH_INVALID: ErrorText(
        _INPUT, "{what} {path!r} is not a plain absolute path.",
        "Give it as /directory/file, without `..`, doubled slashes or control characters."),
    ErrorCode.PATH_NOT_ALLOWED: ErrorText(
        _REFUSED, "{what} {path} cannot be used on {host}: {reason}.",
        "Choose another, such as a .xml file beside the image, or leave the argument out."),
    ErrorCode.LISTEN_FAILED: ErrorText(
        _REFUSED, "UDP {address} cannot be opened: {reason}.",
        "Another agent may be running here, or the address is not this host's; see `ss -lun` and --listen."),
    ErrorCode.PACKAGE_MISSING: ErrorText(
        _INPUT, "The Python module {module} is missing on this host.",
        "Run `apt-get install {package}` and start the agent with the system's own /usr/bin/python3."),
    ErrorCode.CHECK_UNKNOWN: ErrorText(
        _INPUT, "There is no check named {name!r}.", "Those that can be skipped are {names}."),
    ErrorCode.CHECK_NOT_SKIPPABLE: ErrorText(
        _INPUT, "The check {name} cannot be skipped: the migration would fail or do harm.",
        "Those that can be skipped are {names}."),
    ErrorCode.CHECK_FAILED: ErrorText(
        _REFUSED, "The check {check} could not be made on {host}: {reason}.",
        "Mend that on {host}; the agent's log there tells more."),
    # The two programs and the wire between them.
    ErrorCode.AGENT_SILENT: ErrorText(
        ErrorKind.NO_CONTACT, "No agent answered at {host} UDP port {port} within {seconds} s.",
        "Check on {host}: vmmigration-agent.py runs (its log counts what it drops), its AgentKey.txt is what "
        "`vmmigration.py agent-key {host}` prints here, its ControllerIPAddr.txt lists this management host, it was "
        "started again or sent SIGHUP after a change of these files, --insecure is on both sides or on none, and the "
        "firewall lets UDP port {port} in."),
    ErrorCode.ADDRESS_UNUSABLE: ErrorText(
        ErrorKind.NO_CONTACT, "This host cannot send to {host}: {reason}.",
        "Give it an address of that kind (IPv4 or IPv6), or name the agent by its other one."),
    ErrorCode.STEP_OVERDUE: ErrorText(
        ErrorKind.NO_CONTACT, "The agent on {host} answers, but has not finished {command} after {seconds} s.",
        "Something hangs there: see whether `virsh list` answers on {host}."),
    ErrorCode.AGENT_OTHER_VERSION: ErrorText(
        ErrorKind.NO_CONTACT, "The agent on {host} is version {theirs}, this controller is {ours}.",
        "Install the same version on both."),
    ErrorCode.MESSAGE_INVALID: ErrorText(
        _REFUSED, "{host} could not use the request: {problem}.", "Install the same version on both hosts."),
    ErrorCode.MESSAGE_TOO_LONG: ErrorText(
        _REFUSED, "The {what} for {host} is {size} bytes long, the most that is sent is {limit}.",
        "Shorten the names or paths of this migration."),
    ErrorCode.REQUEST_STALE: ErrorText(
        _REFUSED, "{host} refused {command}: it is not from a fresh exchange.", "Run the command again."),
    ErrorCode.REQUEST_CONFLICT: ErrorText(
        _REFUSED, "{host} has seen this request's id with other content.", "Run the command again."),
    ErrorCode.REQUEST_UNKNOWN: ErrorText(
        ErrorKind.UNKNOWN, "The agent on {host} no longer knows what it was asked.",
        "Look where {domain} runs with `virsh list --all` on both hosts."),
    ErrorCode.REQUEST_INTERRUPTED: ErrorText(
        ErrorKind.UNKNOWN, "The agent on {host} was ended while it worked on {command} and has been started again.",
        "Look where {domain} runs with `virsh list --all` on both hosts."),
    ErrorCode.REQUEST_EXPIRED: ErrorText(
        _REFUSED, "{host} was asked this {command} before and has not kept the answer.", "Run the command again."),
    ErrorCode.JOURNAL_UNUSABLE: ErrorText(
        _REFUSED, "The agent cannot keep its journal in {path}: {reason}.",
        "Make room or mend the directory there, or choose another with --state-dir."),
    ErrorCode.JOURNAL_IN_USE: ErrorText(
        _REFUSED, "Another agent on this host keeps its journal in {path}.",
        "End that one first, or give this one a directory of its own with --state-dir."),
    ErrorCode.JOURNAL_NOT_WRITTEN: ErrorText(
        _REFUSED, "{host} cannot write {path}, so it did not begin {command}: {reason}.",
        "Make room on that file system of {host} or mend it, then run the command again."),
    ErrorCode.JOB_UNKNOWN: ErrorText(
        _REFUSED, "{problem}.", "See `vmmigration.py list`; a job is known for 30 days."),
    ErrorCode.AGENT_STOPPING: ErrorText(
        _REFUSED, "The agent on {host} is being stopped.", "Start it again, then repeat the command."),
    ErrorCode.AGENT_BUSY: ErrorText(
        _REFUSED, "The agent on {host} works on {count} requests already.", "Run the command again in a moment."),
    ErrorCode.JOBS_LIMIT_REACHED: ErrorText(
        _REFUSED, "{host} has {count} migrations under way, of {domains}, and takes no more than {limit} at once.",
        "Wait for one of them, or start the agent there with a larger --jobs."),
    ErrorCode.DOMAIN_LOCKED: ErrorText(
        _REFUSED, "VM {domain} is being migrated on {host} already: job {job}, asked for by {asked_by} since {since}.",
        "`vmmigration.py status {job}` shows it. If its command was ended, `resume {job}` or `cancel {job}` brings it "
        "to its end; the two hosts do so by themselves {seconds} s after they last heard of it."),
    # What stands in the way on a host.
    ErrorCode.DESTINATION_NOT_ALLOWED: ErrorText(
        _REFUSED, "{host} may not migrate to {address}: it is not in its {path}.",
        "Add the line `{address}` to that file on {host} and send its agent SIGHUP."),
    ErrorCode.LIBVIRT_UNREACHABLE: ErrorText(
        _REFUSED, "libvirt on {host} does not answer: {reason}.", "Start it there: `systemctl start libvirtd`."),
    ErrorCode.LIBVIRT_ERROR: ErrorText(
        _FAILED, "libvirt on {host} failed: {reason}.", "See `journalctl -u libvirtd` on {host}."),
    ErrorCode.TOOL_MISSING: ErrorText(
        _REFUSED, "{tool} is not installed on {host}.", "Run `apt-get install {package}` there."),
    ErrorCode.TOOL_FAILED: ErrorText(
        _FAILED, "{tool} failed on {host}: {reason}.", "Mend what it says on {host}, then repeat the command."),
    ErrorCode.DOMAIN_MISSING: ErrorText(
        _REFUSED, "There is no VM {domain} on {host}.",
        "Is the name right, and are the two addresses the right way round? `virsh list --all` on {host} tells. What "
        "the other host says to it was not checked."),
    ErrorCode.DOMAIN_NOT_RUNNING: ErrorText(
        _REFUSED, "VM {domain} on {host} is {state}.",
        "Wait until that has passed, or see to it: `virsh domstate {domain} --reason`, `virsh resume {domain}`, "
        "`virsh dompmwakeup {domain}`."),
    ErrorCode.DOMAIN_SHUT_OFF: ErrorText(
        _REFUSED, "VM {domain} on {host} is shut off: its disks cross as files.",
        "If it has been moved away before, this is its stale copy: look first where else it runs."),
    ErrorCode.DOMAIN_SAVED: ErrorText(
        _REFUSED, "VM {domain} on {host} is saved: its memory lies in a file there, which is not moved.",
        "Start it (`virsh start {domain}`) and move it running, or give its memory up: `virsh managedsave-remove "
        "{domain}`."),
    ErrorCode.DOMAIN_BUSY: ErrorText(
        _REFUSED, "VM {domain} on {host} is busy with another job.",
        "Wait for it or end it: `virsh domjobinfo {domain}`, `virsh domjobabort {domain}`; of a block job "
        "`virsh blockjob {domain} TARGET --abort`."),
    ErrorCode.DOMAIN_HAS_SNAPSHOTS: ErrorText(
        _REFUSED, "VM {domain} on {host} has {count} snapshot(s); libvirt cannot migrate those.",
        "Remove them: `virsh snapshot-list {domain}`, `virsh snapshot-delete {domain} NAME`."),
    ErrorCode.DOMAIN_NAME_UNFIT: ErrorText(
        _REFUSED,
        "VM {domain} on {host}: its name over there, {name}, does not fit into the socket paths of the SSH tunnel.",
        "Use `--transport tcp`, or another name (`--rename`)."),
    ErrorCode.DISK_NOT_OF_DOMAIN: ErrorText(
        _REFUSED, "{path} is not a disk of VM {domain} on {host}; its disks are {disks}.",
        "Give one of those paths, or leave the disk argument out."),
    ErrorCode.DISK_UNSUPPORTED: ErrorText(
        _REFUSED, "Disk {target} of VM {domain} on {host} cannot be moved: {reason}.",
        "Disks are moved that are qcow2 or raw images or block devices of {host}; detach another one "
        "(`virsh detach-disk {domain} {target}`), or move its content into such an image first."),
    ErrorCode.DEVICE_UNSUPPORTED: ErrorText(
        _REFUSED, "VM {domain} on {host} has {device}, which cannot be moved.", "{remedy}."),
    ErrorCode.DOMAIN_HAS_CHECKPOINTS: ErrorText(
        _REFUSED, "VM {domain} on {host} has {count} checkpoint(s) of an incremental backup, which stay behind.",
        "Finish the backup, then `virsh checkpoint-delete {domain} NAME --metadata`; the next one must be a full one."),
    ErrorCode.BACKING_UNREADABLE: ErrorText(
        _REFUSED, "Disk {target} of VM {domain} on {host} is built on {path}, which cannot be read: {reason}.",
        "Put that image back before the VM is stopped: it will not start without."),
    ErrorCode.DISK_CACHE_UNSAFE: ErrorText(
        _REFUSED, "Disk {target} of VM {domain} has cache='unsafe': what the guest has flushed may not be on a disk.",
        "Set cache='none' in `virsh edit {domain}` and restart the VM if its writes matter."),
    ErrorCode.FILE_NOT_SENT: ErrorText(
        _REFUSED, "{path} on {host}, which VM {domain} has as its {what}, cannot be sent: {reason}.",
        "Put it there as an ordinary file. A medium can be left out with `--eject-cdrom`, or ejected: "
        "`virsh change-media {domain} TARGET --eject`."),
    ErrorCode.FLATTEN_NEEDS_RUNNING: ErrorText(
        _REFUSED, "VM {domain} on {host} is shut off, and only the image of a running VM is flattened on its way.",
        "Leave `--flatten` out, or start it (`virsh start {domain}`)."),
    ErrorCode.MAP_UNUSED: ErrorText(
        _REFUSED, "Nothing of VM {domain} on {host} is what `{option} {map}` names.",
        "It has {has}."),
    ErrorCode.PATHS_COLLIDE: ErrorText(
        _REFUSED, "Two files of VM {domain} would both become {path} on {host}.",
        "Give one of them another place with `--disk-map`."),
    ErrorCode.POOL_MISSING: ErrorText(
        _REFUSED, "{host} has no storage pool {pool} that can take images: {reason}.",
        "See `virsh pool-list --all` on {host}, or give a directory with `--disk-map`."),
    ErrorCode.DEVICE_UNFIT: ErrorText(
        _REFUSED, "The block device {path} on {host} cannot take disk {target} of VM {domain}: {reason}.",
        "Make one of {length} bytes there (such as `lvcreate -L {length}b`), or send the disk into a file: "
        "`--disk-map {target}=/directory/file`."),
    ErrorCode.SERIAL_MISSING: ErrorText(
        _REFUSED, "{host} lacks {path}, to which a serial port of VM {domain} leads.",
        "Put it there, or change the port in `virsh edit {domain}` and restart the VM."),
    ErrorCode.OWN_ARGUMENTS: ErrorText(
        _REFUSED, "VM {domain} hands QEMU arguments of its own (<qemu:commandline>), which nobody has checked.",
        "See that what they name is on the destination as well."),
    ErrorCode.INVARIANT_TSC: ErrorText(
        _REFUSED, "The CPU of VM {domain} on {host} has the feature invtsc, with which QEMU does not migrate.",
        "Take it out in `virsh edit {domain}` (or migratable='off', which brings it along), or give "
        "<timer name='tsc' frequency='...'/>, and restart the VM."),
    ErrorCode.NESTED_GUESTS: ErrorText(
        _REFUSED, "VM {domain} may run VMs of its own ({feature}); such a one may not survive the move.",
        "Shut those down for the time of the move, or make sure that both hosts run Linux 5.3 and QEMU 4.2 or later."),
    ErrorCode.LINK_NOT_MEASURED: ErrorText(
        _REFUSED, "The rate of the link from {host} to {destination} was not measured: {reason}.",
        "The migration may work all the same; the times of the plan are missing."),
    ErrorCode.NOT_CONVERGING: ErrorText(
        _REFUSED, "VM {domain} writes {written} MiB/s of {what}, the link to {destination} carries {rate} MiB/s: "
        "{verdict}.", "Move it at a quieter hour or over a faster link, give more `--bandwidth` if you gave one, or "
        "help it: {helps}. A `--timeout` alone leaves it where it is."),
    ErrorCode.DOMAIN_EXISTS: ErrorText(
        _REFUSED, "{host} has a VM with the same {what} already: {domain} ({state}).",
        "If nobody needs that one, remove it on {host}: `virsh undefine {domain} --nvram`. Against the same name "
        "`--rename` helps. A copy that a move left behind is replaced if the VM keeps its name."),
    ErrorCode.STALE_COPY: ErrorText(
        _REFUSED, "VM {domain} on {host} is only the copy that stayed behind when job {job} moved it to {destination} "
        "at {since}.", "Move it from where it is now; `vmmigration.py restore-source {job}` brings this copy back, "
        "without what was written since."),
    ErrorCode.STALE_COPY_REPLACED: ErrorText(
        _REFUSED, "{host} still has the copy of VM {domain} that job {job} left there: the VM takes its place. Old "
        "disks that stay: {paths}.",
        "Remove them once the VM runs well there. A move with `--source-after delete` leaves none on its source."),
    ErrorCode.PATH_TAKEN: ErrorText(
        _REFUSED, "{path} exists already on {host}.",
        "Nothing is overwritten: move that file away on {host} if nobody needs it."),
    ErrorCode.DIRECTORY_MISSING: ErrorText(
        _REFUSED, "{host} has no usable directory {path}: {reason}.",
        "Make it there (`install -d -m 711 {path}`), mend what is said of it, or send what would go there elsewhere: "
        "`--disk-map {path}=/other/directory`."),
    ErrorCode.FILE_MISSING: ErrorText(
        _REFUSED, "{host} lacks {path}, which VM {domain} needs as its {what}.",
        "Install the package that it comes with (`dpkg -S {path}` on the source says which), or copy it there first: "
        "`scp {path} root@{host}:{path}`."),
    ErrorCode.SPACE_SHORT: ErrorText(
        _REFUSED, "{path} on {host} has {free} MiB free, {needed} MiB are needed.", "Make room there."),
    ErrorCode.MACHINE_UNSUPPORTED: ErrorText(
        _REFUSED, "QEMU on {host} cannot run this VM: {reason}.", "Install the source's QEMU version on {host}."),
    ErrorCode.NETWORK_MISSING: ErrorText(
        _REFUSED, "{host} has no {what} {name}, to which VM {domain} is connected.",
        "{remedy} on {host}, or connect the VM to another one."),
    ErrorCode.VERSION_OLDER: ErrorText(
        _REFUSED, "{what} on {host} is {version}, older than the source's {source_version}.",
        "Update {host}: a move to an older version is not promised to work, and fails without harm if it does not."),
    ErrorCode.VIRTUALIZATION_MISSING: ErrorText(
        _REFUSED, "{host} cannot run VMs of type {type} for {architecture}: {reason}.",
        "For kvm, switch on virtualisation in the firmware of {host} and load the module kvm_intel or kvm_amd."),
    ErrorCode.EMULATOR_MISSING: ErrorText(
        _REFUSED, "{host} has no {path}, which the XML of VM {domain} names as its emulator.",
        "Install QEMU there at the same path, or link it: `ln -s $(command -v qemu-system-{architecture}) {path}`."),
    ErrorCode.MEMORY_SHORT: ErrorText(
        _REFUSED, "{host} has {free} MiB of memory available, VM {domain} needs {needed} MiB.",
        "Shut something down there, or make the VM smaller: `virsh setmem {domain} SIZE --live`."),
    ErrorCode.HUGE_PAGES_SHORT: ErrorText(
        _REFUSED, "{host} has {free} free huge pages of {size} KiB, VM {domain} needs {needed}.",
        "Reserve them: `virsh allocpages {size} COUNT --add` on {host}."),
    ErrorCode.CPUS_FEWER: ErrorText(
        _REFUSED, "VM {domain} has {vcpus} virtual CPUs, {host} has {cpus} CPUs.",
        "It runs all the same, more slowly; with fewer after `virsh setvcpus {domain} COUNT --live`."),
    ErrorCode.CPU_PINNED_OUTSIDE: ErrorText(
        _REFUSED, "VM {domain} is pinned to {what} {pinned}, {host} has only those up to {last}.",
        "Change it before: `virsh vcpupin {domain}`, `virsh emulatorpin {domain}`, `virsh numatune {domain}`."),
    ErrorCode.SPACE_FOR_VIRTUAL_SIZE: ErrorText(
        _REFUSED, "{path} on {host} has {free} MiB free, the disks of VM {domain} can grow to {needed} MiB there.",
        "It fits today. Watch it, or make room before the guest fills its disks."),
    ErrorCode.POOL_NOT_ACTIVE: ErrorText(
        _REFUSED, "The storage pool {pool} on {path} of {host} is not active.",
        "`virsh pool-start {pool}` there shows the VM's disk in `virsh vol-list`; the VM runs without."),
    ErrorCode.NETWORK_DOWN: ErrorText(
        _REFUSED, "The {what} {name} on {host} is down: VM {domain} would be cut off.",
        "Bring it up on {host}: `ip link set {name} up`."),
    ErrorCode.MAC_TAKEN: ErrorText(
        _REFUSED, "VM {other} ({state}) on {host} has the MAC address {mac} of VM {domain}.",
        "Give one of them another: two on one network take each other's traffic."),
    ErrorCode.GRAPHICS_PORT_TAKEN: ErrorText(
        _REFUSED, "The fixed {kind} port {port} of VM {domain} is in use on {host}.",
        "End what uses it there (`ss -ltnp`), or set autoport='yes' in `virsh edit {domain}` and restart the VM."),
    ErrorCode.GRAPHICS_ADDRESS_FOREIGN: ErrorText(
        _REFUSED, "The {kind} display of VM {domain} listens on {address}, which is not an address of {host}.",
        "Set listen='0.0.0.0' or '127.0.0.1' in `virsh edit {domain}` and restart the VM."),
    ErrorCode.SECRET_MISSING: ErrorText(
        _REFUSED, "{host} lacks the libvirt secret {secret}, which VM {domain} needs.",
        "Define it there: `virsh secret-define`, `virsh secret-set-value`."),
    ErrorCode.SECURITY_MODEL_MISSING: ErrorText(
        _REFUSED, "VM {domain} is confined by {model} on the source, and libvirt on {host} runs without ({models}).",
        "Switch it on there (security_driver in /etc/libvirt/qemu.conf), or off on both hosts."),
    ErrorCode.USER_NOT_IN_GROUP: ErrorText(
        _REFUSED, "{user} on {host} may not use libvirt: {path} is for the group {group}.",
        "Run `adduser {user} {group}` there."),
    ErrorCode.QEMU_NBD_FLAW: ErrorText(
        _REFUSED, "QEMU {version} on {host} may lack the fix for CVE-2024-7409: whoever reaches its port can crash the "
        "arriving VM.", "Use `--transport ssh`, or QEMU 7.2.14, 8.2.7, 9.0.3, 9.1 or later, or make sure that your "
        "distribution has put the fix in."),
    ErrorCode.CPU_INCOMPATIBLE: ErrorText(
        _REFUSED, "The CPU of {destination} cannot run VM {domain}: {reason}.",
        "Give the VM a CPU model that both hosts have (`virsh hypervisor-cpu-baseline`) and restart it."),
    ErrorCode.WAY_BACK_CLOSED: ErrorText(
        _REFUSED, "VM {domain} may not be able to come back from {destination} to {host}: {reason}.",
        "It can go there all the same. For a way back give both hosts the same versions, and the VM a CPU model that "
        "both have."),
    ErrorCode.CLOCK_SKEWED: ErrorText(
        _REFUSED, "The clocks of {source} and {destination} are {seconds} s apart.",
        "Run an NTP client on both (`timedatectl`): the guest's clock may jump otherwise."),
    ErrorCode.PORTS_CLOSED: ErrorText(
        _REFUSED, "{host} cannot reach TCP port {port} on {destination}: {reason}.",
        "Let TCP 49152 to 49215 in on {destination}, or use `--transport ssh`."),
    ErrorCode.USER_MISSING: ErrorText(
        _REFUSED, "{host} has no user {user}.",
        "Create it there: `adduser --ingroup users {user}`, `adduser {user} libvirt`."),
    ErrorCode.SSH_HOST_KEY_UNKNOWN: ErrorText(
        _REFUSED, "root on {host} does not know the SSH host key of {destination}.",
        "Run `ssh {user}@{destination} true` once as root on {host} and compare the fingerprint."),
    ErrorCode.SSH_HOST_KEY_CHANGED: ErrorText(
        _REFUSED, "The SSH host key of {destination} is not the one that root on {host} knows.",
        "If {destination} was reinstalled: `ssh-keygen -R {destination}` as root on {host}, then log in once. If not, "
        "somebody is between the hosts."),
    ErrorCode.SSH_LOGIN_REFUSED: ErrorText(
        _REFUSED, "{destination} does not let root of {host} in as {user} with a key: {reason}.",
        "Run `ssh-copy-id {user}@{destination}` as root on {host}; the key must have no passphrase."),
    ErrorCode.SSH_UNREACHABLE: ErrorText(
        _REFUSED, "{host} cannot reach SSH on {destination}: {reason}.",
        "Check sshd on {destination} and TCP port 22 between the hosts."),
    ErrorCode.SSH_FAILED: ErrorText(
        _REFUSED, "SSH from {host} to {user}@{destination} failed: {reason}.",
        "Try `ssh -v {user}@{destination} true` as root on {host}."),
    ErrorCode.SSH_LIBVIRT_REFUSED: ErrorText(
        _REFUSED, "libvirt on {destination} does not serve {user} over SSH from {host}: {reason}.",
        "On {destination}: libvirtd runs, {user} is in the group libvirt (`adduser {user} libvirt`), sshd has "
        "AllowTcpForwarding and AllowStreamLocalForwarding on, and a restricted key has port-forwarding and no "
        "permitopen (docs/operations.md)."),
    ErrorCode.SAME_LIBVIRT_HOST: ErrorText(
        _REFUSED, "{host} and {destination} have the same libvirt host UUID, so libvirt takes them for one host.",
        "Set a different host_uuid in /etc/libvirt/libvirtd.conf on one of them and restart libvirtd."),
    ErrorCode.POST_COPY_UNAVAILABLE: ErrorText(
        _REFUSED, "QEMU on {host} cannot take VM {domain} in by post-copy: {reason}.",
        "Run `sysctl vm.unprivileged_userfaultfd=1` on {host} (a file in /etc/sysctl.d keeps it), install libvirt 10.1 "
        "and QEMU 8.1 there, or leave post-copy out."),
    ErrorCode.SYNCHRONOUS_WRITES_UNAVAILABLE: ErrorText(
        _REFUSED, "libvirt on {host} cannot make the writes of VM {domain} synchronous: it has that from 8.0 on.",
        "Leave `--synchronous-writes` out, or install a newer libvirt and python3-libvirt on {host}."),
    # What can go wrong while something is being done.
    ErrorCode.TUNNEL_LOST: ErrorText(
        _FAILED, "The SSH tunnel from {host} to {destination} ended: {reason}.",
        "Check the link between the hosts, then repeat the command."),
    ErrorCode.MIGRATION_FAILED: ErrorText(
        _FAILED, "libvirt on {host} gave up migrating VM {domain}: {reason}.",
        "See `journalctl -u libvirtd` and /var/log/libvirt/qemu/{domain}.log on both hosts."),
    ErrorCode.MIGRATION_TIMEOUT: ErrorText(
        _FAILED, "VM {domain} was not moved within {seconds} s.",
        "Give more `--timeout`, more `--bandwidth`, a quieter hour, or `--on-timeout suspend`, which pauses the guest "
        "for the rest."),
    ErrorCode.MIGRATION_STALLED: ErrorText(
        _FAILED, "The migration of VM {domain} was ended: not a byte crossed from {host} to {destination} for "
        "{seconds} s.", "See on {destination} whether its disk and its libvirtd answer, and whether the link is up."),
    ErrorCode.MIGRATION_INTERRUPTED: ErrorText(
        _FAILED, "The agent on {host} was ended while VM {domain} was being moved, and the migration ended without it.",
        "See its log on {host} for why it was ended, then repeat the command."),
    ErrorCode.MIGRATION_CANCELLED: ErrorText(
        _FAILED, "The migration of VM {domain} was cancelled: {reason}.", "Start the move again when you want it."),
    ErrorCode.POST_COPY_FAILED: ErrorText(
        ErrorKind.UNKNOWN, "The post-copy migration of VM {domain} from {host} broke off: {reason}. Each host had a "
        "part of its memory, so neither can run it alone.",
        "Destroy nothing and remove no image. See `virsh domstate --reason {there}` on {destination}. If it does not "
        "say post-copy there, it has everything: end only the one on {host} (`virsh destroy {domain}`). If it does, "
        "mend the link, let TCP 49152 to 49215 in on {destination}, and let it go on as root on {host}: `virsh migrate "
        "--live --p2p --persistent --postcopy --postcopy-resume {domain} "
        "qemu+ssh://{user}@{destination}/system{named}` (libvirt 8.5). If one of the two has ended, or that command "
        "does not come to an end, the memory is lost: then end both (`virsh destroy {there}` on {destination}, `virsh "
        "destroy {domain}` on {host}), and `virsh start {there}` on {destination}, whose image is the newest (if it is "
        "not defined there, `virsh define` what `virsh dumpxml {domain}` says on {host}). Afterwards "
        "`vmmigration.py resume {job}` does the rest."),
    ErrorCode.ENDED_SINCE: ErrorText(
        _FAILED, "VM {domain} has moved to {host} and ended there after the switchover, by itself or with its host; it "
        "is {state} now.", "See why in /var/log/libvirt/qemu/{domain}.log on {host}. {remedy} Never start the copy on "
        "the source."),
    ErrorCode.NOT_AS_EXPECTED: ErrorText(
        _FAILED, "On {host}: {problem}.", "See `virsh list --all` and `virsh dumpxml {domain}` on both hosts."),
    ErrorCode.FILE_CHANGED: ErrorText(
        _FAILED, "{path} on {host} is being written to while it is copied.",
        "See who has it open there (`lsof {path}`); a VM that uses it has to stay shut off until it has moved."),
    ErrorCode.COPY_DAMAGED: ErrorText(
        _FAILED, "{path} did not arrive on {host} as it was sent: its checksum differs.",
        "Repeat the command; if it happens again, look at the memory, the disk and the network card of both hosts."),
    ErrorCode.TRIM_FAILED: ErrorText(
        _FAILED, "The file systems of VM {domain} on {host} could not be trimmed: {reason}.",
        "The VM is well. Try `virsh domfstrim {domain}` there, or `fstrim --all` in the guest."),
    ErrorCode.GUEST_AGENT_SILENT: ErrorText(
        _REFUSED, "The guest agent of VM {domain} on {host} does not answer, and `--trim` needs it: {reason}.",
        "Install and start qemu-guest-agent in the guest, or leave `--trim` out."),
    ErrorCode.LEFT_BEHIND: ErrorText(
        _FAILED, "What this run made on {host} may still be there: {paths}.",
        "The agent on {host} removes it once it can tell where {domain} runs; `vmmigration.py resume {job}` has it "
        "done as soon as {host} can be reached."),
    ErrorCode.STATE_UNKNOWN: ErrorText(
        ErrorKind.UNKNOWN, "It is not certain where VM {domain} runs: {reason}.",
        "Start nothing. Run `vmmigration.py resume {job}` as soon as both hosts can be reached: it asks both and "
        "finishes or undoes the job. `vmmigration.py repair {domain} {source} {destination}` says what else there is "
        "to do."),
    ErrorCode.DETACHED: ErrorText(
        ErrorKind.UNKNOWN, "This command has left; job {job} of VM {domain} goes on with its step.",
        "`vmmigration.py resume {job}` takes it up again, from any management host; `status {job}` shows it, `cancel "
        "{job}` ends it. If nobody does, the two hosts finish or undo it by themselves, {seconds} s after the end of "
        "that step."),
    ErrorCode.TOO_LATE: ErrorText(
        _REFUSED, "Job {job} cannot be cancelled any more: {reason}.",
        "`vmmigration.py resume {job}` finishes what is left to do, if anything is."),
    ErrorCode.NO_STALE_COPY: ErrorText(
        _REFUSED, "VM {domain} on {host} is not the copy that job {job} left behind there: it is {state}.",
        "See `virsh dumpxml {domain}` on {host} for a note of another job, and `vmmigration.py list`."),
    ErrorCode.COPY_OUTDATED: ErrorText(
        ErrorKind.UNKNOWN, "What VM {domain} has written since it moved is on {destination} alone; it is not in the "
        "copy on {host}.", "Start the copy (`virsh start {domain}` on {host}) only if the one on {destination} never "
        "starts again; to take the newer data along, move the VM back instead."),
    ErrorCode.RUNS_ELSEWHERE: ErrorText(
        _REFUSED, "VM {domain} is {state} on {host}: then there would be two of it.",
        "Move it back with `vmmigration.py`, or end it there for good (`virsh shutdown {domain}`), then repeat the "
        "command."),
    ErrorCode.JOB_RUNS: ErrorText(
        _REFUSED, "VM {domain} is being moved by job {job} now: {doing}.",
        "`vmmigration.py status {job}` shows it, `cancel {job}` ends it."),
    ErrorCode.INTERNAL: ErrorText(
        ErrorKind.INTERNAL, "Unexpected error on {host}: {reason}.",
        "Please report it, with the log of a run with -v."),
})


class MigrationError(Exception):
    """An error that the admin can do something about: a code, and the facts of the case.

    Both cross the wire as they are. The words come from ERRORS, on the host where somebody reads them. A fact that is
    prose of ours is a Phrase; one that is called `hint` takes the place of the code's own, which does not fit the case.
    """

    def __init__(self, code: ErrorCode, facts: Mapping[str, str]) -> None:
        super().__init__(code.value)
        self.code = code
        self.facts: Mapping[str, str] = MappingProxyType(dict(facts))
        self.others: tuple[MigrationError, ...] = ()
        """What else went wrong of the same kind, such as other agents that are silent too."""

    @property
    def message(self) -> Phrase:
        """One sentence: which host, which thing, what is wrong."""
        return Phrase(ERRORS[self.code].message, self.facts)

    @property
    def hint(self) -> Phrase:
        """What to do about it."""
        own = self.facts.get("hint")
        return own if isinstance(own, Phrase) else Phrase(ERRORS[self.code].hint, self.facts)

    @property
    def exit_code(self) -> ExitCode:
        """The exit code if nothing had been changed when the error came."""
        return ExitCode(ERRORS[self.code].kind.value)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"


def first_of(errors: Sequence[MigrationError]) -> MigrationError:
    """Several errors as one that can be raised: the first, which the exit code is of, with the others."""
    error = errors[0]
    error.others = tuple(errors[1:])
    return error
