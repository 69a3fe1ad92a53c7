"""The command line: what can be typed, and what it asks for."""

from __future__ import annotations

import argparse
import difflib
import getpass
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from console.columns import pad, wrap
from console.language import translate
from console.program import PROGRAM
from constant import (
    DOWNTIME_CAP,
    DOWNTIME_FIRST,
    DOWNTIME_LARGEST,
    VERSION,
    CopyStorage,
    OnTimeout,
    SourceAfter,
    Transport,
)
from wire.errors import ErrorCode, MigrationError
from wire.findings import parse_skipped, skippable
from wire.forms import DOMAIN_PATTERN, JOB_ID_PATTERN, NAME_FORM, USER_FORM, USER_PATTERN
from wire.phrase import Phrase, fill, joined, template
from wire.placement import parse_disk_map, parse_network_map
from wire.records import Convergence, Migration

COMMANDS = (
    "check", "list", "status", "resume", "cancel", "repair", "restore-source", "new-key", "agent-key", "change-key")
# Those that have no run of their own which a page could tell of.
_WITHOUT_RUN = frozenset(COMMANDS) - {"resume"}
# How much a word has in common with a command that was probably meant: no address and no host's name comes near that.
_CLOSE = 0.7
_LARGEST_NUMBER = 1_000_000
_WHOLE_NUMBER = template("{text} is not a whole number from 1 to {largest}")
# The user of README.md's walk-through.
_CHECKING_USER = "kvm"

_DESCRIPTION = template(
    "Moves a running KVM virtual machine, with its disks, between two hosts that share no storage.")
# The same in every language: what is in capitals is explained below it, and some of the words are commands.
_USAGE = f"""{PROGRAM} [options] SRC DST USER VM [DISK [CONF]]
       {PROGRAM} [options] check [USER]
       {PROGRAM} [options] list | status [JOB|VM]
       {PROGRAM} [options] resume JOB | cancel JOB
       {PROGRAM} [options] repair VM SRC DST
       {PROGRAM} [options] restore-source JOB [--without-destination]
       {PROGRAM} [--config-dir DIR] new-key
       {PROGRAM} [--config-dir DIR] agent-key IP
       {PROGRAM} [--config-dir DIR] change-key begin|finish"""
_EXAMPLE = template("""\
example:
  vmmigration.py 192.168.111.130 192.168.111.132 kvm VM1 /var/lib/libvirt/images/node.qcow2 /etc/libvirt/qemu/VM1.xml
""")
_EPILOG = (
    template("""\
arguments:
  SRC    IP address of the host that runs the VM
  DST    IP address of the host that it moves to
  USER   user name on DST that root on SRC logs in as over SSH; needs no more than the group libvirt
  VM     the VM's name
  DISK   path of its disk image (default: as its XML says)
  CONF   where its XML is put on DST (default: /etc/libvirt/qemu/VM.xml)"""),
    template("""\
before anything moves:
  -n, --dry-run   with the arguments above: look at everything on both hosts, print the plan, change nothing
  check [USER]    without a VM: look at all agents of AgentIPAddr.txt and at SSH and libvirt between each two of
                  them, logging in as USER (default: kvm)"""),
    template("""\
while something moves, and after something broke; from any management host with the key:
  status [JOB|VM] what is under way; of one job, live until it ends
  list            all jobs that the agents know of, and how they ended
  cancel JOB      end a job and undo it; until the switchover
  resume JOB      go on with a job where it is, after Ctrl-C, a crash or from another management host
  repair VM SRC DST
                  ask both hosts where the VM really is, finish or undo what is left of its jobs, and say what else
                  there is to do, and why
  restore-source JOB
                  bring back the copy that a move has left on SRC, for whoever must go back; what the VM has written
                  since is not in it
  Ctrl-C leaves a move to itself; a second one within 2 s cancels it."""),
    template("""\
keys:
  new-key         make the master key on the management host, once
  agent-key IP    print the key for the agent at IP: put it into AgentKey.txt there
  change-key begin|finish
                  change the master key without a stop: begin, give every agent both lines that agent-key prints
                  then (and SIGHUP), finish; after that agent-key prints the new line alone"""),
    template("""\
exit codes:
  0  moved: the VM runs on DST (with --dry-run: a real run would start; check: all is well; cancel: undone)
  1  unexpected error in this program before anything was changed
  2  nothing changed: wrong arguments or configuration on this host
  3  nothing changed: something stands in the way, or an agent refused
  4  nothing changed: an agent does not answer
  5  rolled back: it failed or was cancelled, the VM runs on SRC as before
  6  moved, but a step after the move failed
  7  state unknown: run resume or repair before you do anything
  8  left by Ctrl-C: the job goes on, resume takes it up again"""),
    _EXAMPLE,
)
# What argparse itself puts into its help, Python 3.9 in one other word.
_HEADINGS = (template("positional arguments:"), template("options:"), template("optional arguments:"))
_HELP = (
    template("show this help message and exit"), template("show program's version number and exit"))
# What argparse says of what it cannot read, in the English of Python 3.9 to 3.14. Anything else stays as it is.
_COMPLAINTS = tuple((re.compile(pattern, re.DOTALL), words) for pattern, words in (
    (r"argument (?P<option>\S+): (?P<problem>.*)", template("argument {option}: {problem}")),
    (r"unrecognized arguments: (?P<arguments>.*)", template("unrecognized arguments: {arguments}")),
    (r"invalid choice: (?P<choice>.*) \(choose from (?P<choices>.*)\)",
     template("invalid choice: {choice} (choose from {choices})")),
    (r"expected one argument", template("expected one argument")),
    (r"ignored explicit argument (?P<argument>.*)", template("ignored explicit argument {argument}")),
    (r"(?P<text>.*) is not a whole number from 1 to (?P<largest>\d+)", _WHOLE_NUMBER),
))


def arguments_invalid(problem: str, hint: Phrase | None = None) -> MigrationError:
    """The error for what cannot be understood on the command line, with a better hint than --help if there is one."""
    facts = {"problem": problem, "program": PROGRAM}
    return MigrationError(ErrorCode.ARGUMENTS_INVALID, facts if hint is None else {**facts, "hint": hint})


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as one of our errors."""

    def error(self, message: str) -> NoReturn:
        raise arguments_invalid(complaint(message.rstrip(".")))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's layout in the reader's language, whose signs may be two columns wide and stand without blanks."""

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Iterable[Any], prefix: str | None = None,
    ) -> None:
        super().add_usage(usage, actions, groups, pad(translate("usage:"), len("usage: ")))

    def start_section(self, heading: str | None) -> None:
        super().start_section(translate(f"{heading}:"))

    def format_help(self) -> str:
        text = super().format_help()
        for heading in map(translate, _HEADINGS):
            # argparse puts a colon of its own behind it.
            text = text.replace(f"{heading}:", heading)
        return text

    def _get_help_string(self, action: argparse.Action) -> str:
        return translate(action.help or "")

    def _split_lines(self, text: str, width: int) -> list[str]:
        return super()._split_lines(text, width) if text.isascii() else wrap(text, width, width)


def complaint(message: str) -> str:
    """What argparse complains of, as a Phrase where that is known."""
    for pattern, words in _COMPLAINTS:
        found = pattern.fullmatch(message)
        if found is not None:
            return Phrase(words, {name: complaint(fact) for name, fact in found.groupdict().items()})
    return message


def _whole_number(text: str, largest: int = _LARGEST_NUMBER) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= largest):
        raise argparse.ArgumentTypeError(fill(_WHOLE_NUMBER, {"text": repr(text), "largest": str(largest)}))
    return int(text)


def _downtime(text: str) -> int:
    return _whole_number(text, DOWNTIME_LARGEST)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, the positional arguments as `words`, all as `typed`. Raises MigrationError ARGUMENTS_INVALID."""
    parser = _Parser(
        prog=PROGRAM, usage=_USAGE, description=translate(_DESCRIPTION),
        epilog="\n\n".join(map(translate, _EPILOG)), formatter_class=_Formatter, allow_abbrev=False)
    add = parser.add_argument
    add("words", nargs="*", help=argparse.SUPPRESS)
    add("--config-dir", metavar="DIR", help="where AgentIPAddr.txt and ControllerKey.txt are (default: "
        "/etc/vmmigration, or the folder of a checkout if that does not exist)")
    add("--transport", choices=[each.value for each in Transport], default=Transport.SSH.value,
        help="how memory and disk cross: inside SSH, or over plain TCP without encryption (default: ssh)")
    add("--copy-storage", choices=[each.value for each in CopyStorage], default=CopyStorage.AUTO.value,
        help="all: zero the whole target first; inc: write only what is allocated (default: auto, which is inc "
        "because the target is new and empty)")
    add("--bandwidth", metavar="MiB/s", type=_whole_number, default=0, help="limit for each disk and for the memory")
    add("--timeout", metavar="S", type=_whole_number, default=0,
        help="the longest that the live migration may take in seconds, see --on-timeout (default: no limit)")
    _add_convergence(parser)
    _add_places(parser)
    add("--source-after", choices=[each.value for each in SourceAfter], default=SourceAfter.KEEP.value,
        help="what becomes of the copy on SRC once the VM has moved. keep: it stays defined, its disks get other names "
        "so that it cannot be started by mistake (default); undefine: only those disks stay; delete: they go too, once "
        "DST has said that all is well")
    add("--without-destination", action="store_true",
        help="with restore-source: although the host that the VM moved to cannot be asked whether it runs there")
    add("-n", "--dry-run", action="store_true", help="check everything, print the plan, change nothing")
    add("--skip-check", metavar="NAME", action="append", default=[], type=parse_skipped,
        help=Phrase("go on although that check finds something in the way; one of {checks}", {
            "checks": joined(skippable())}))
    add("--json", action="store_true", help="the result as JSON on stdout")
    add("--report", metavar="FILE", help="with a move, -n or resume: a page about the run, for any browser, goes into "
        "this file (such as run.html), whatever comes of it")
    add("--progress", choices=["auto", "plain", "json", "none"], default="auto",
        help="how steps and progress are shown on stderr (default: auto, bars on a terminal, plain lines elsewhere)")
    add("-v", "--verbose", action="store_true", help="log on stderr what is sent and received")
    add("-q", "--quiet", action="store_true", help="only the result and errors")
    add("--insecure", action="store_true", help="no key: rely on the IP lists alone; agents need --insecure too")
    add("--version", action="version", version=f"vmmigration {VERSION}")
    options = parser.parse_intermixed_args(argv)
    if options.without_destination and options.words[:1] != ["restore-source"]:
        raise arguments_invalid(Phrase("--without-destination goes with restore-source alone"))
    for word in options.words[:1]:
        if options.report is not None and word in _WITHOUT_RUN:
            raise arguments_invalid(Phrase(
                "--report goes with a move or with resume, not with {command}", {"command": word}))
        if options.dry_run and word in COMMANDS:
            raise arguments_invalid(Phrase("-n (--dry-run) goes with a move, not with {command}", {"command": word}))
    options.typed = tuple(argv)
    return options


def _add_places(parser: argparse.ArgumentParser) -> None:
    """The options about what becomes of the VM's files, networks and name over there."""
    add = parser.add_argument
    add("--disk-map", metavar="WHAT=PATH", action="append", default=[], type=parse_disk_map,
        help="where a disk, a file or a directory of SRC goes: vda=/srv/vm/x.qcow2, or "
        "/var/lib/libvirt/images=/srv/vm; may be given several times (default: the same path)")
    add("--pool", metavar="NAME", help="put the images into that storage pool of DST")
    add("--network-map", metavar="HERE=THERE", action="append", default=[], type=parse_network_map,
        help="connect interfaces to another network: br0=br1 for bridges, network:default=bridge:br1 with libvirt's")
    add("--rename", metavar="NAME", help="what the VM is called on DST")
    add("--flatten", action="store_true", help="make one image of each chain of images")
    add("--eject-cdrom", action="store_true", help="leave its CD-ROM and floppy drives empty on DST")
    add("--trim", action="store_true", help="have the guest agent trim the file systems after the arrival")


def _add_convergence(parser: argparse.ArgumentParser) -> None:
    """What may be done to a guest that writes faster than it is copied."""
    add = parser.add_argument
    add("--on-timeout", choices=[each.value for each in OnTimeout],
        help="abort: the VM stays on SRC (default); suspend: pause it until it is on DST; post-copy: let it go on "
        "there at once, its memory follows")
    add("--max-downtime", metavar="MS", type=_downtime, default=DOWNTIME_CAP,
        help=Phrase(
            "how long the guest may stand still at the switchover: begins with {first} ms, is raised step by step up "
            "to this if the copying does not catch up (default: {largest})",
            {"first": str(DOWNTIME_FIRST), "largest": str(DOWNTIME_CAP)}))
    add("--auto-converge", action="store_true", help="slow the guest down until the copying catches up")
    add("--post-copy", action="store_true",
        help="let it go on at DST once one pass over its memory was not enough; if the link breaks then, its memory is "
        "lost")
    add("--synchronous-writes", action="store_true",
        help="the guest's disk writes wait until DST has them too, so that the disk catches up")


def convergence_of(options: argparse.Namespace) -> Convergence:
    """What the admin allows so that a guest that writes hard gets across. Raises MigrationError ARGUMENTS_INVALID."""
    if options.on_timeout is not None and not options.timeout:
        raise arguments_invalid(Phrase("--on-timeout needs --timeout"))
    return Convergence(
        auto_converge=options.auto_converge, max_downtime=options.max_downtime, post_copy=options.post_copy,
        on_timeout=OnTimeout(options.on_timeout or OnTimeout.ABORT), synchronous_writes=options.synchronous_writes)


def address_of(what: str, text: str) -> str:
    """An IP address as the wire has it; `what` it is, as a template. Raises MigrationError ADDRESS_INVALID."""
    try:
        if "%" in text:
            raise ValueError("a scope means something on one host only")
        parsed = ipaddress.ip_address(text)
        return str(getattr(parsed, "ipv4_mapped", None) or parsed)
    except ValueError as error:
        raise MigrationError(ErrorCode.ADDRESS_INVALID, {"what": Phrase(what), "address": text}) from error


def checking_user(options: argparse.Namespace) -> str:
    """The user that `check` logs in as. Raises MigrationError ARGUMENTS_INVALID."""
    words: list[str] = options.words
    if len(words) > 2:
        raise arguments_invalid(Phrase("check takes one user name at most"))
    user = words[1] if len(words) == 2 else _CHECKING_USER
    if not USER_PATTERN.fullmatch(user):
        raise arguments_invalid(Phrase("{name!r} is not a user name", {"name": user}), USER_FORM)
    return user


def job_of(options: argparse.Namespace) -> str:
    """The job that `resume` or `cancel` is given. Raises MigrationError ARGUMENTS_INVALID."""
    words: list[str] = options.words
    if len(words) != 2 or not JOB_ID_PATTERN.fullmatch(words[1]):
        raise arguments_invalid(Phrase(
            "{command} takes one job, such as 1a2b3c4d; `vmmigration.py list` shows them", {"command": words[0]}))
    return words[1]


def wanted_of(options: argparse.Namespace) -> str:
    """The job or VM that `status` is asked for, empty for all. Raises MigrationError ARGUMENTS_INVALID."""
    words: list[str] = options.words
    if len(words) > 2 or (words[0] == "list" and len(words) > 1):
        raise arguments_invalid(Phrase("list takes no argument, status one job or VM at most"))
    if len(words) == 2 and not DOMAIN_PATTERN.fullmatch(words[1]):
        raise arguments_invalid(Phrase("{name!r} is neither a job nor a VM", {"name": words[1]}), NAME_FORM)
    return words[1] if len(words) == 2 else ""


def repair_of(options: argparse.Namespace) -> tuple[str, str, str]:
    """VM, source and destination. Raises MigrationError."""
    words: list[str] = options.words
    # A user's name at the end is as in the command that moved it, and not needed.
    if not 4 <= len(words) <= 5 or not DOMAIN_PATTERN.fullmatch(words[1]):
        raise arguments_invalid(Phrase("repair takes VM SRC DST"))
    source, destination = address_of(template("Source"), words[2]), address_of(template("Destination"), words[3])
    if source == destination:
        raise MigrationError(ErrorCode.SAME_HOST, {"address": source})
    return words[1], source, destination


def migration_of(options: argparse.Namespace, job_id: str) -> Migration:
    """What the admin asks for. Raises MigrationError."""
    words: list[str] = options.words
    meant = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=_CLOSE) if words else []
    if meant:
        raise arguments_invalid(Phrase("There is no command {word!r}", {"word": words[0]}), Phrase(
            "Perhaps {command} is meant. See `{program} --help`.", {"command": meant[0], "program": PROGRAM}))
    if not 4 <= len(words) <= 6:
        facts = {"count": str(len(words)), "commands": joined(COMMANDS)}
        raise arguments_invalid(Phrase(
            "Expected SRC DST USER VM [DISK [CONF]] or one of {commands}; got 1 argument" if len(words) == 1 else
            "Expected SRC DST USER VM [DISK [CONF]] or one of {commands}; got {count} arguments", facts))
    source, destination = address_of(template("Source"), words[0]), address_of(template("Destination"), words[1])
    if source == destination:
        raise MigrationError(ErrorCode.SAME_HOST, {"address": source})
    return Migration(
        job_id=job_id, domain=words[3], source=source, destination=destination, user=words[2],
        disk=words[4] if len(words) > 4 else None, conf_file=words[5] if len(words) > 5 else None,
        transport=Transport(options.transport), copy_storage=CopyStorage(options.copy_storage),
        bandwidth=options.bandwidth, timeout=options.timeout, new_name=_new_name(options.rename, words[3]),
        disk_maps=tuple(options.disk_map), pool=options.pool, network_maps=tuple(options.network_map),
        flatten=options.flatten, eject_cdrom=options.eject_cdrom, trim=options.trim,
        convergence=convergence_of(options), source_after=SourceAfter(options.source_after), admin=_admin())


def _admin() -> str:
    """Who types this, and where: for another admin who finds the VM locked."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "?"
    return f"{user}@{socket.gethostname()}"[:200]


def _new_name(name: str | None, domain: str) -> str | None:
    """The new name, None where it is the old one. An empty one is refused as any other that is no name."""
    return None if name == domain else name
