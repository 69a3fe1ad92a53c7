#!/usr/bin/env python3
"""The admin's command: arguments in, a Controller in the middle, and what the admin sees of it out.

The result goes to stdout; steps, progress and errors go to stderr. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from constant import CONTROLLER_KEY_FILE, VERSION, Command, CopyStorage, ExitCode, Outcome, Transport
from controller import Controller, ControllerSettings, RunReport, StepResult
from udpmodule import ControllerSocket
from wire.access import begin_key_change, config_directory, finish_key_change, load_keys, write_new_key
from wire.errors import ErrorCode, MigrationError
from wire.records import Migration, Progress

PROGRAM = "vmmigration.py"
_MIB = 1024 * 1024
_PLAIN_INTERVAL_SECONDS = 5.0
_BAR_INTERVAL_SECONDS = 0.1
_RATE_WINDOW_SECONDS = 5.0
# Before that the rate says more about the start than about what is to come.
_ESTIMATE_AFTER_SECONDS = 2.0
_LARGEST_NUMBER = 1_000_000

_DESCRIPTION = "Moves a running KVM virtual machine, with its disks, between two hosts that share no storage."
_USAGE = f"""{PROGRAM} [options] SRC DST USER VM [DISK [CONF]]
       {PROGRAM} [--config-dir DIR] new-key
       {PROGRAM} [--config-dir DIR] agent-key IP
       {PROGRAM} [--config-dir DIR] change-key begin|finish"""
_EPILOG = """\
arguments:
  SRC    IP address of the host that runs the VM
  DST    IP address of the host that it moves to
  USER   user name on DST that root on SRC logs in as over SSH; needs no more than the group libvirt
  VM     the VM's name
  DISK   path of its disk image (default: as its XML says)
  CONF   where its XML is put on DST (default: /etc/libvirt/qemu/VM.xml)

keys:
  new-key         make the master key on the management host, once
  agent-key IP    print the key for the agent at IP: put it into AgentKey.txt there
  change-key begin|finish
                  change the master key without a stop: begin, give every agent both lines that agent-key prints
                  then (and SIGHUP), finish; after that agent-key prints the new line alone

exit codes:
  0  moved: the VM runs on DST
  1  unexpected error in this program before anything was changed
  2  nothing changed: wrong arguments or configuration on this host
  3  nothing changed: something stands in the way, or an agent refused
  4  nothing changed: an agent does not answer
  5  rolled back: it failed or was cancelled, the VM runs on SRC as before
  6  moved, but a step after the move failed
  7  state unknown: look at both hosts before you do anything

example:
  vmmigration.py 192.168.111.130 192.168.111.132 kvm VM1 /var/lib/libvirt/images/node.qcow2 /etc/libvirt/qemu/VM1.xml
"""


def _arguments_invalid(problem: str) -> MigrationError:
    return MigrationError(ErrorCode.ARGUMENTS_INVALID, {"problem": problem, "program": PROGRAM})


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as one of our errors."""

    def error(self, message: str) -> NoReturn:
        raise _arguments_invalid(message.rstrip("."))


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= _LARGEST_NUMBER):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {_LARGEST_NUMBER}")
    return int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, and the positional arguments as `words`. Raises MigrationError ARGUMENTS_INVALID."""
    parser = _Parser(
        prog=PROGRAM, usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("words", nargs="*", help=argparse.SUPPRESS)
    add("--config-dir", metavar="DIR", help=f"where AgentIPAddr.txt and {CONTROLLER_KEY_FILE} are (default: "
        "/etc/vmmigration if it exists, else the script's folder)")
    add("--transport", choices=[each.value for each in Transport], default=Transport.SSH.value,
        help="how memory and disk cross: inside SSH, or over plain TCP without encryption (default: ssh)")
    add("--copy-storage", choices=[each.value for each in CopyStorage], default=CopyStorage.AUTO.value,
        help="all: zero the whole target first; inc: write only what is allocated (default: auto, which is inc "
        "because the target is new and empty)")
    add("--bandwidth", metavar="MiB/s", type=_whole_number, default=0, help="limit for disk and for memory, each")
    add("--timeout", metavar="S", type=_whole_number, default=0,
        help="cancel the live migration after that many seconds, the VM stays on SRC (default: no limit)")
    add("--json", action="store_true", help="the result as JSON on stdout")
    add("--progress", choices=["auto", "plain", "json", "none"], default="auto",
        help="how steps and progress are shown on stderr (default: auto, a bar on a terminal, plain lines elsewhere)")
    add("-v", "--verbose", action="store_true", help="log on stderr what is sent and received")
    add("-q", "--quiet", action="store_true", help="only the result and errors")
    add("--insecure", action="store_true", help="no key: rely on the IP lists alone; agents need --insecure too")
    add("--version", action="version", version=f"vmmigration {VERSION}")
    return parser.parse_intermixed_args(argv)


def _address(what: str, text: str) -> str:
    try:
        if "%" in text:
            raise ValueError("a scope means something on one host only")
        parsed = ipaddress.ip_address(text)
        return str(getattr(parsed, "ipv4_mapped", None) or parsed)
    except ValueError as error:
        raise MigrationError(ErrorCode.ADDRESS_INVALID, {"what": what, "address": text}) from error


def migration_of(options: argparse.Namespace, job_id: str) -> Migration:
    """What the admin asks for. Raises MigrationError."""
    words: list[str] = options.words
    if not 4 <= len(words) <= 6:
        problem = f"Expected SRC DST USER VM [DISK [CONF]], got {len(words)} argument{'s' if len(words) != 1 else ''}"
        raise _arguments_invalid(problem)
    source, destination = _address("Source", words[0]), _address("Destination", words[1])
    if source == destination:
        raise MigrationError(ErrorCode.SAME_HOST, {"address": source})
    return Migration(
        job_id=job_id, domain=words[3], source=source, destination=destination, user=words[2],
        disk=words[4] if len(words) > 4 else None, conf_file=words[5] if len(words) > 5 else None,
        transport=Transport(options.transport), copy_storage=CopyStorage(options.copy_storage),
        bandwidth=options.bandwidth, timeout=options.timeout)


# What the admin sees while it runs.


class RateMeter:
    """The rate of the last seconds, from cumulative counts."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """Take one count, in bytes at a time in seconds."""
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()

    def rate(self) -> float:
        """Bytes per second; 0 while there is too little to tell."""
        (first, begun), (last, done) = self._samples[0], self._samples[-1]
        return max(0.0, (done - begun) / (last - first)) if last - first >= _ESTIMATE_AFTER_SECONDS else 0.0

    def stalled(self) -> bool:
        """Whether nothing came for as long as the window is."""
        (first, begun), (last, done) = self._samples[0], self._samples[-1]
        return done == begun and last - first >= _RATE_WINDOW_SECONDS - 1


def percent(progress: Progress, shown: int) -> int:
    """How much is done, never less than was shown before, and never 100: only the step's end is that."""
    return max(shown, min(99, 100 * progress.done // progress.total if progress.total else 0))


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 12 s, 3:05 min, 1:02:30 h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} h"


def progress_text(progress: Progress, shown_percent: int, meter: RateMeter) -> str:
    """One line: phase, percent, bytes, rate and time left, as far as they are known."""
    if not progress.total:
        return progress.phase
    parts = [f"{progress.phase} {shown_percent}%", f"{size(progress.done)} of {size(progress.total)}"]
    rate = meter.rate()
    if rate > 0:
        parts += [f"{size(rate)}/s", f"{duration((progress.total - progress.done) / rate)} left"]
    elif meter.stalled():
        parts.append("nothing is moving")
    return ", ".join(parts)


def write(stream: TextIO, text: str) -> bool:
    """Write to a stream of the terminal's and say whether it was possible; one that is closed goes nowhere then."""
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        return write(stream, text.encode("ascii", "backslashreplace").decode())
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            # Python flushes once more at its end, and a failure there would take the place of our exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


class Display:
    """Shows steps and progress on stderr: as lines, with a bar on a terminal, as JSON, or not at all."""

    def __init__(self, mode: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._mode = mode
        self._stream = stream
        self._clock = clock
        self._bar = mode == "bar"
        self._drawn = False
        self._new_step()

    def _new_step(self) -> None:
        self._meter = RateMeter()
        self._percent = 0
        # A plain line is worth writing once a step takes longer than the interval; a bar at once.
        self._shown_at = self._clock() if self._mode == "plain" else float("-inf")

    def step_began(self, command: Command, host: str) -> None:
        """Name the step on the terminal while it runs."""
        self._new_step()
        if self._mode == "json":
            self._json({"event": "step-began", "command": command.value, "host": host})
        elif self._bar:
            self._draw(f"{command.value:<23} {host:<16} ...")

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        """Draw the bar, or write a line if the last one is old enough."""
        now = self._clock()
        self._meter.add(now, progress.done)
        self._percent = percent(progress, self._percent)
        interval = _PLAIN_INTERVAL_SECONDS if self._mode == "plain" else _BAR_INTERVAL_SECONDS
        if now - self._shown_at < interval:
            return
        self._shown_at = now
        if self._mode == "json":
            self._json({
                "event": "progress", "command": command.value, "host": host, "phase": progress.phase,
                "done": progress.done, "total": progress.total, "percent": self._percent,
                "rate": round(self._meter.rate())})
            return
        text = progress_text(progress, self._percent, self._meter)
        if self._bar:
            filled = self._percent * 20 // 100
            self._draw(f"{command.value:<23} [{'#' * filled}{'.' * (20 - filled)}] {text}")
        elif self._mode == "plain":
            self._line(f"{command.value:<23} {host:<16} {text}")

    def step_ended(self, step: StepResult) -> None:
        """One line: step, host, result, seconds."""
        if self._mode == "json":
            error = step.error.code.value if step.error else None
            self._json({"event": "step-ended", "command": step.command.value, "host": step.host,
                        "seconds": round(step.seconds, 3), "summary": step.summary, "obstacles": step.obstacles,
                        "error": error})
        elif self._mode != "none":
            result = "FAILED" if step.error else "BLOCKED" if step.obstacles else "ok"
            text = step.error.code.value if step.error else printable(step.summary)
            self._line(f"{step.command.value:<23} {step.host:<16} {result:<7} {step.seconds:6.2f} s  {text}")

    def cancelling(self, *, possible: bool) -> None:
        """Say that Ctrl-C was understood."""
        if self._mode == "json":
            self._json({"event": "cancelling" if possible else "too-late-to-cancel"})
        elif self._mode != "none":
            answer = "Cancelling: the VM stays where it is." if possible else "Too late to cancel: this clears up."
            self._line(f"{answer} A second Ctrl-C leaves at once, with the state unknown.")

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._drawn = True
        self._write(f"\r\x1b[K{text[:width]}")

    def _line(self, text: str) -> None:
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Take the bar off the terminal."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _json(self, event: dict[str, object]) -> None:
        self._write(json.dumps(event) + "\n")

    def _write(self, text: str) -> None:
        if not write(self._stream, text):
            # Nobody is looking any more. That is no reason to leave a migration alone in the middle.
            self._mode, self._bar, self._drawn = "none", False, False


def display_mode(options: argparse.Namespace, stream: TextIO) -> str:
    """What --progress and -q come to on this stream."""
    if options.quiet:
        return "none"
    if options.progress == "auto":
        return "bar" if stream.isatty() else "plain"
    return str(options.progress)


# What the admin sees at the end.


def result_text(report: RunReport) -> str:
    """The result in a few lines."""
    migration = report.migration
    where = {
        Outcome.NOTHING_CHANGED: "Nothing was changed on either host.",
        Outcome.MOVED: f"{migration.domain} runs on {report.runs_on} now.",
        Outcome.MOVED_INCOMPLETE: f"{migration.domain} runs on {report.runs_on} now, but the steps after the move "
                                  "did not all succeed.",
        Outcome.ROLLED_BACK: f"Rolled back: {migration.domain} runs on {report.runs_on} as before.",
        Outcome.UNKNOWN: f"STATE UNKNOWN: look for {migration.domain} on both hosts before you do anything.",
    }
    lines = [where[report.outcome]]
    if report.moved is not None:
        downtime = f"{report.moved.downtime} ms" if report.moved.downtime >= 0 else "not told by libvirt"
        total = report.moved.disk_bytes + report.moved.memory_bytes
        lines.append(
            f"total {report.seconds:.1f} s, moved {size(total)} (disk {size(report.moved.disk_bytes)}, memory "
            f"{size(report.moved.memory_bytes)}), downtime {downtime}")
    return "\n".join(lines)


def result_json(report: RunReport) -> dict[str, object]:
    """The result for programs. Bytes, seconds, milliseconds."""
    moved = report.moved
    return {
        "outcome": report.outcome.value,
        "exit_code": int(report.exit_code),
        "job_id": report.migration.job_id,
        "domain": report.migration.domain,
        "source": report.migration.source,
        "destination": report.migration.destination,
        "runs_on": report.runs_on,
        "seconds": round(report.seconds, 3),
        "disk_bytes": moved.disk_bytes if moved else None,
        "memory_bytes": moved.memory_bytes if moved else None,
        "downtime_ms": moved.downtime if moved and moved.downtime >= 0 else None,
        "steps": [
            {"command": step.command.value, "host": step.host, "seconds": round(step.seconds, 3),
             "summary": step.summary, "obstacles": step.obstacles,
             "error": step.error.code.value if step.error else None}
            for step in report.steps
        ],
        "errors": [_error_json(error) for error in report.errors],
    }


def _error_json(error: MigrationError) -> dict[str, object]:
    return {"code": error.code.value, "message": error.message, "hint": error.hint, "facts": dict(error.facts)}


def _show_errors(errors: Sequence[MigrationError], stream: TextIO) -> None:
    for error in errors:
        write(stream, f"{PROGRAM}: {printable(error.message)}\n  {printable(error.hint)}\n")


def printable(text: str) -> str:
    """Text from another host without what would steer the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


# The commands.


def _migrate(options: argparse.Namespace) -> int:
    migration = migration_of(options, secrets.token_hex(4))
    settings = ControllerSettings.load(config_directory(options.config_dir, __file__), insecure=options.insecure)
    display = Display(display_mode(options, sys.stderr), sys.stderr)
    udp = ControllerSocket()
    try:
        report = Controller(settings, udp, display).migrate(migration)
    finally:
        display.clear()
        udp.close()
    _show_errors(report.errors, sys.stderr)
    result = json.dumps(result_json(report), indent=2) if options.json else result_text(report)
    write(sys.stdout, result + "\n")
    return int(report.exit_code)


def _master_key_path(options: argparse.Namespace) -> Path:
    return config_directory(options.config_dir, __file__) / CONTROLLER_KEY_FILE


def _new_key(options: argparse.Namespace) -> int:
    if len(options.words) != 1:
        raise _arguments_invalid("new-key takes no argument")
    path = _master_key_path(options)
    write_new_key(path)
    write(sys.stderr, f"New master key in {path}. Now run `{PROGRAM} agent-key IP` for each node.\n")
    return 0


def _agent_key(options: argparse.Namespace) -> int:
    if len(options.words) != 2:
        raise _arguments_invalid("agent-key takes one IP address")
    address = _address("Agent", options.words[1])
    for key in load_keys(_master_key_path(options)):
        print(key.for_agent(address).secret.hex())
    return 0


def _change_key(options: argparse.Namespace) -> int:
    path = _master_key_path(options)
    if options.words[1:] == ["begin"]:
        begin_key_change(path)
        write(sys.stderr, f"{path} holds the old and a new key. Now put both lines of `{PROGRAM} agent-key IP` into "
              f"each node's AgentKey.txt and send its agent SIGHUP, then run `{PROGRAM} change-key finish`.\n")
    elif options.words[1:] == ["finish"]:
        finish_key_change(path)
        write(sys.stderr, f"{path} holds the new key alone. Now put the one line of `{PROGRAM} agent-key IP` into each "
              "node's AgentKey.txt and send its agent SIGHUP.\n")
    else:
        raise _arguments_invalid("change-key takes one word, begin or finish")
    return 0


class _Interrupt:
    """The end of a terminal or of a service is taken like Ctrl-C: cancelled, not left alone.

    Only a person's second Ctrl-C leaves at once: a terminal that is closed may send its signal twice.
    """

    def __init__(self) -> None:
        self._seen = False

    def __call__(self, number: int, _frame: object) -> None:
        if not self._seen or number == signal.SIGINT:
            self._seen = True
            raise KeyboardInterrupt


def _run(argv: Sequence[str]) -> int:
    options = parse(argv)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING, stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    interrupt = _Interrupt()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # nohup keeps its meaning, and Windows has no SIGHUP.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), interrupt)
    commands = {"new-key": _new_key, "agent-key": _agent_key, "change-key": _change_key}
    return commands.get(options.words[0] if options.words else "", _migrate)(options)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `vmmigration`. Returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs
    try:
        return _run(words)
    except MigrationError as error:
        _show_errors([error], sys.stderr)
        if "--json" in words:
            result = {"outcome": Outcome.NOTHING_CHANGED.value, "exit_code": int(error.exit_code),
                      "errors": [_error_json(error)]}
            write(sys.stdout, json.dumps(result, indent=2) + "\n")
        return int(error.exit_code)
    except KeyboardInterrupt:
        write(sys.stderr, f"{PROGRAM}: interrupted before anything was asked of an agent\n")
        return int(ExitCode.INPUT)
    except Exception as error:
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        _show_errors([MigrationError(ErrorCode.INTERNAL, {"host": "this host", "reason": repr(error)})], sys.stderr)
        return int(ExitCode.INTERNAL)


if __name__ == "__main__":
    sys.exit(main())
