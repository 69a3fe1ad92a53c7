"""The one error tree: stable codes that cross the wire, and the words that the admin reads for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from constant import ExitCode


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
    """The words for one error code; `{names}` are filled from the error's facts."""

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
    KEY_MISSING = "key-missing"
    KEY_INVALID = "key-invalid"
    KEY_EXISTS = "key-exists"
    KEY_CHANGE_BEGUN = "key-change-begun"
    KEY_CHANGE_NOT_BEGUN = "key-change-not-begun"
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
    TUNNEL_LOST = "tunnel-lost"
    MIGRATION_FAILED = "migration-failed"
    MIGRATION_TIMEOUT = "migration-timeout"
    MIGRATION_CANCELLED = "migration-cancelled"
    NOT_AS_EXPECTED = "not-as-expected"
    LEFT_BEHIND = "left-behind"
    STATE_UNKNOWN = "state-unknown"
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
        _INPUT, "{address} is not in {path}.", "Add the line `{address}` to that file if it is one of your nodes."),
    ErrorCode.FILE_UNREADABLE: ErrorText(
        _INPUT, "{path} cannot be read: {reason}.", "Create it or mend its permissions; README.md says what it holds."),
    ErrorCode.FILE_NOT_WRITTEN: ErrorText(
        _INPUT, "{path} cannot be written: {reason}.",
        "Make the directory, mend its permissions, or choose another with --config-dir."),
    ErrorCode.FILE_NOT_PRIVATE: ErrorText(
        _INPUT, "{path} holds a key and others on this host can read it.", "Run `chmod 600 {path}`."),
    ErrorCode.LIST_LINE_INVALID: ErrorText(
        _INPUT, "{path}, line {line}: {text!r} is neither an IP address nor a network.",
        "Write one address or network a line; a comment starts with #."),
    ErrorCode.LIST_EMPTY: ErrorText(
        _INPUT, "{path} names no address.", "Add a line for each {what}."),
    ErrorCode.KEY_MISSING: ErrorText(
        _INPUT, "There is no key in {path}.",
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
    ErrorCode.PATH_INVALID: ErrorText(
        _INPUT, "{what} {path!r} is not a plain absolute path.",
        "Give it as /directory/file, without `..`, doubled slashes or control characters."),
    ErrorCode.PATH_NOT_ALLOWED: ErrorText(
        _REFUSED, "{what} {path} cannot be used on {host}: {reason}.",
        "Choose another, such as a .xml file beside the image, or leave the argument out."),
    ErrorCode.LISTEN_FAILED: ErrorText(
        _INPUT, "UDP {address} cannot be opened: {reason}.",
        "Another agent may be running here, or the address is not this host's; see `ss -lun` and --listen."),
    ErrorCode.PACKAGE_MISSING: ErrorText(
        _INPUT, "The Python module {module} is missing on this host.",
        "Run `apt-get install {package}` and start the agent with the system's own /usr/bin/python3."),
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
        _REFUSED, "The {what} for {host} is {size} bytes long, a datagram holds {limit}.",
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
        _INPUT, "The agent cannot keep its journal in {path}: {reason}.",
        "Make room or mend the directory there, or choose another with --state-dir."),
    ErrorCode.JOURNAL_IN_USE: ErrorText(
        _INPUT, "Another agent on this host keeps its journal in {path}.",
        "End that one first, or give this one a directory of its own with --state-dir."),
    ErrorCode.JOURNAL_NOT_WRITTEN: ErrorText(
        _REFUSED, "{host} cannot write {path}, so it did not begin {command}: {reason}.",
        "Make room on that file system of {host} or mend it, then run the command again."),
    ErrorCode.AGENT_STOPPING: ErrorText(
        _REFUSED, "The agent on {host} is being stopped.", "Start it again, then repeat the command."),
    ErrorCode.AGENT_BUSY: ErrorText(
        _REFUSED, "The agent on {host} works on {count} requests already.", "Run the command again in a moment."),
    ErrorCode.JOBS_LIMIT_REACHED: ErrorText(
        _REFUSED, "{host} has {count} migrations under way, of {domains}, and takes no more than {limit} at once.",
        "Wait for one of them, or start the agent there with a larger --jobs."),
    ErrorCode.DOMAIN_LOCKED: ErrorText(
        _REFUSED, "VM {domain} is being migrated on {host} already: job {job}, asked for by {asked_by} since {since}.",
        "Wait for it to end. If its controller was killed, it is given up {seconds} s after it was last heard of."),
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
        _REFUSED, "There is no VM {domain} on {host}.", "See `virsh list --all` on {host}."),
    ErrorCode.DOMAIN_NOT_RUNNING: ErrorText(
        _REFUSED, "VM {domain} on {host} is {state}, not running.",
        "If it was moved before, it runs on another host: look there first. Otherwise `virsh start {domain}`, or "
        "`virsh resume {domain}` if it is paused."),
    ErrorCode.DOMAIN_BUSY: ErrorText(
        _REFUSED, "VM {domain} on {host} is busy with another job.",
        "Wait for it or end it: `virsh domjobinfo {domain}`, `virsh domjobabort {domain}`."),
    ErrorCode.DOMAIN_HAS_SNAPSHOTS: ErrorText(
        _REFUSED, "VM {domain} on {host} has {count} snapshot(s); libvirt cannot migrate those.",
        "Remove them: `virsh snapshot-list {domain}`, `virsh snapshot-delete {domain} NAME`."),
    ErrorCode.DOMAIN_NAME_UNFIT: ErrorText(
        _REFUSED, "The name of VM {domain} on {host} does not fit into the socket paths of the SSH tunnel.",
        "Use `--transport tcp`, or rename the shut-off VM with `virsh domrename`."),
    ErrorCode.DISK_NOT_OF_DOMAIN: ErrorText(
        _REFUSED, "{path} is not a disk of VM {domain} on {host}; its disk is {disks}.",
        "Give that path, or leave the disk argument out."),
    ErrorCode.DISK_UNSUPPORTED: ErrorText(
        _REFUSED, "Disk {target} of VM {domain} on {host} cannot be moved yet: {reason}.",
        "Only one qcow2 or raw image without a backing image, in a directory, is moved so far."),
    ErrorCode.DEVICE_UNSUPPORTED: ErrorText(
        _REFUSED, "VM {domain} on {host} has {device}, which cannot be moved yet.",
        "Detach it: `virsh edit {domain}`, then restart the VM."),
    ErrorCode.DOMAIN_EXISTS: ErrorText(
        _REFUSED, "{host} has a VM with the same {what} already: {domain} ({state}).",
        "If it is a stale copy, remove it on {host}: `virsh undefine {domain}`."),
    ErrorCode.PATH_TAKEN: ErrorText(
        _REFUSED, "{path} exists already on {host}.",
        "Nothing is overwritten: move that file away on {host} if nobody needs it."),
    ErrorCode.DIRECTORY_MISSING: ErrorText(
        _REFUSED, "{host} has no usable directory {path}: {reason}.", "Make it there: `install -d -m 711 {path}`."),
    ErrorCode.FILE_MISSING: ErrorText(
        _REFUSED, "{host} lacks {path}, which VM {domain} needs as its {what}.",
        "Copy it there first: `scp {path} root@{host}:{path}`."),
    ErrorCode.SPACE_SHORT: ErrorText(
        _REFUSED, "{path} on {host} has {free} MiB free, {needed} MiB are needed.", "Make room there."),
    ErrorCode.MACHINE_UNSUPPORTED: ErrorText(
        _REFUSED, "QEMU on {host} cannot run this VM: {reason}.", "Install the source's QEMU version on {host}."),
    ErrorCode.NETWORK_MISSING: ErrorText(
        _REFUSED, "{host} has no {what} {name}, to which VM {domain} is connected.",
        "Create it on {host}; a libvirt network is started with `virsh net-start {name}`."),
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
        "AllowTcpForwarding and AllowStreamLocalForwarding on, and the key is not restricted."),
    ErrorCode.SAME_LIBVIRT_HOST: ErrorText(
        _REFUSED, "{host} and {destination} have the same libvirt host UUID, so libvirt takes them for one host.",
        "Set a different host_uuid in /etc/libvirt/libvirtd.conf on one of them and restart libvirtd."),
    # What can go wrong while something is being done.
    ErrorCode.TUNNEL_LOST: ErrorText(
        _FAILED, "The SSH tunnel from {host} to {destination} ended: {reason}.",
        "Check the link between the hosts, then repeat the command."),
    ErrorCode.MIGRATION_FAILED: ErrorText(
        _FAILED, "libvirt on {host} gave up migrating VM {domain}: {reason}.",
        "See `journalctl -u libvirtd` and /var/log/libvirt/qemu/{domain}.log on both hosts."),
    ErrorCode.MIGRATION_TIMEOUT: ErrorText(
        _FAILED, "VM {domain} was not moved within {seconds} s.",
        "Give more `--timeout`, more `--bandwidth`, or a quieter hour."),
    ErrorCode.MIGRATION_CANCELLED: ErrorText(
        _FAILED, "The migration of VM {domain} was cancelled: {reason}.", "Repeat the command when you want it moved."),
    ErrorCode.NOT_AS_EXPECTED: ErrorText(
        _FAILED, "On {host}: {problem}.", "See `virsh list --all` and `virsh dumpxml {domain}` on both hosts."),
    ErrorCode.LEFT_BEHIND: ErrorText(
        _FAILED, "What this run made on {host} may still be there: {paths}.",
        "Once {host} can be reached again and `virsh list --all` there shows no {domain}, remove it."),
    ErrorCode.STATE_UNKNOWN: ErrorText(
        ErrorKind.UNKNOWN, "It is not certain where VM {domain} runs: {reason}.",
        "Run `virsh list --all` on {source} and on {destination}; start nothing before you have looked at both."),
    ErrorCode.INTERNAL: ErrorText(
        ErrorKind.INTERNAL, "Unexpected error on {host}: {reason}.",
        "Please report it, with the log of a run with -v."),
})


class _FactsOrQuestionMark(dict[str, str]):
    """The facts of an error as str.format_map() wants them; a fact that an older peer left out reads `?`."""

    def __missing__(self, key: str) -> str:
        return "?"


class MigrationError(Exception):
    """An error that the admin can do something about: a code, and the facts of the case.

    Both cross the wire as they are. The words come from ERRORS, on the host where somebody reads them.
    """

    def __init__(self, code: ErrorCode, facts: Mapping[str, str]) -> None:
        super().__init__(code.value)
        self.code = code
        self.facts: Mapping[str, str] = MappingProxyType(dict(facts))

    @property
    def message(self) -> str:
        """One sentence: which host, which thing, what is wrong."""
        return ERRORS[self.code].message.format_map(_FactsOrQuestionMark(self.facts))

    @property
    def hint(self) -> str:
        """What to do about it."""
        return ERRORS[self.code].hint.format_map(_FactsOrQuestionMark(self.facts))

    @property
    def exit_code(self) -> ExitCode:
        """The exit code if nothing had been changed when the error came."""
        return ExitCode(ERRORS[self.code].kind.value)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"
