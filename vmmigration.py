#!/usr/bin/env python3
"""The admin's command: arguments in, a Controller in the middle, and what the admin sees of it out.

The result goes to stdout; steps, progress and errors go to stderr. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from console.arguments import address_of, arguments_invalid, checking_user, migration_of, parse
from console.commands import JOB_COMMANDS, show_run
from console.display import Display, display_mode
from console.hosts import fleet_json, fleet_text
from console.language import choose_language, translate
from console.plan import show_findings
from console.program import PROGRAM
from console.recorder import Observers
from console.report_file import WrittenRun
from console.result import error_json, show_errors
from console.terminal import LogHandler, write
from constant import CONTROLLER_KEY_FILE, ExitCode, Outcome
from control.conversation import ControllerSettings, Conversation
from control.fleet import agents_without, look_at_fleet
from control.report import nothing_changed_code
from controller import Controller
from udpmodule import ControllerSocket
from wire.access import Key, begin_key_change, config_directory, finish_key_change, load_keys, write_new_key
from wire.errors import ErrorCode, MigrationError
from wire.findings import Finding
from wire.phrase import Phrase, joined, template


def _migrate(options: argparse.Namespace) -> int:
    migration = migration_of(options, secrets.token_hex(4))
    written = WrittenRun(options)
    settings = ControllerSettings.load(config_directory(options.config_dir, __file__), insecure=options.insecure)
    display = Display(display_mode(options, sys.stderr), sys.stderr)
    udp = ControllerSocket()

    def tell(findings: Sequence[Finding]) -> None:
        show_findings(findings, sys.stderr, warnings=not options.quiet, fine=options.verbose)

    try:
        controller = Controller(
            settings, udp, Observers(display, written.recorder), skipped=frozenset(options.skip_check),
            dry_run=options.dry_run, on_checked=tell, on_ended=written.ended)
        report = controller.migrate(migration)
    finally:
        display.clear()
        udp.close()
    exit_code = show_run(options, report)
    written.write(controller)
    return exit_code


def _about_jobs(options: argparse.Namespace) -> int:
    """status, list, resume, cancel, repair and restore-source."""
    command = JOB_COMMANDS[options.words[0]](options)
    written = WrittenRun(options)
    settings = ControllerSettings.load(config_directory(options.config_dir, __file__), insecure=options.insecure)
    display = Display(display_mode(options, sys.stderr), sys.stderr)
    udp = ControllerSocket()
    try:
        controller = Controller(settings, udp, Observers(display, written.recorder), on_ended=written.ended)
        exit_code = command(controller)
    finally:
        display.clear()
        udp.close()
    written.write(controller)
    return exit_code


def _check(options: argparse.Namespace) -> int:
    user = checking_user(options)
    settings = ControllerSettings.load(config_directory(options.config_dir, __file__), insecure=options.insecure)
    udp = ControllerSocket()
    try:
        report = look_at_fleet(Conversation(settings, udp, Display("none", sys.stderr)), user)
    finally:
        udp.close()
    result = json.dumps(fleet_json(report), indent=2) if options.json else fleet_text(report)
    write(sys.stdout, result + "\n")
    show_errors([*report.warnings, *report.errors], sys.stderr)
    return int(report.exit_code)


def _say(words: Phrase) -> None:
    write(sys.stderr, translate(words) + "\n")


def _master_key_path(options: argparse.Namespace) -> Path:
    return config_directory(options.config_dir, __file__) / CONTROLLER_KEY_FILE


def _new_key(options: argparse.Namespace) -> int:
    if len(options.words) != 1:
        raise arguments_invalid(Phrase("new-key takes no argument"))
    path = _master_key_path(options)
    write_new_key(path)
    _say(Phrase("New master key in {path}. Now run `vmmigration.py agent-key IP` for each node.", {"path": str(path)}))
    return 0


def _agent_key(options: argparse.Namespace) -> int:
    if len(options.words) != 2:
        raise arguments_invalid(Phrase("agent-key takes one IP address"))
    address = address_of(template("Agent"), options.words[1])
    for key in load_keys(_master_key_path(options)):
        print(key.for_agent(address).secret.hex())
    return 0


def _change_key(options: argparse.Namespace) -> int:
    path = _master_key_path(options)
    if options.words[1:] == ["begin"]:
        begin_key_change(path)
        _say(Phrase(
            "{path} holds the old and a new key. Now put both lines of `vmmigration.py agent-key IP` into each node's "
            "AgentKey.txt and send its agent SIGHUP, then run `vmmigration.py change-key finish`.",
            {"path": str(path)}))
    elif options.words[1:] == ["finish"]:
        _refuse_before_all_have(load_keys(path), config_directory(options.config_dir, __file__))
        finish_key_change(path)
        _say(Phrase(
            "{path} holds the new key alone. Now put the one line of `vmmigration.py agent-key IP` into each node's "
            "AgentKey.txt and send its agent SIGHUP.", {"path": str(path)}))
    else:
        raise arguments_invalid(Phrase("change-key takes one word, begin or finish"))
    return 0


def _refuse_before_all_have(keys: Sequence[Key], directory: Path) -> None:
    """Raise MigrationError KEY_NOT_TAKEN while an agent that answers to the old key does not know the new one."""
    if len(keys) < 2:
        return
    agents = ControllerSettings.load(directory, insecure=True).agents
    udp = ControllerSocket()
    try:
        lacking = agents_without(keys[1], lambda key: Conversation(
            ControllerSettings(agents, (key,)), udp, Display("none", sys.stderr)), old=keys[0])
    finally:
        udp.close()
    if lacking:
        raise MigrationError(ErrorCode.KEY_NOT_TAKEN, {"hosts": joined(lacking)})


_COMMANDS = {
    **dict.fromkeys(JOB_COMMANDS, _about_jobs), "check": _check, "new-key": _new_key, "agent-key": _agent_key,
    "change-key": _change_key}


class _Interrupt:
    """The end of a terminal or of a service is taken like Ctrl-C: the job is left to itself, not broken off.

    Only a person's second Ctrl-C cancels: a terminal that is closed may send its signal twice.
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
        level=logging.DEBUG if options.verbose else logging.WARNING, handlers=[LogHandler(sys.stderr)],
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    interrupt = _Interrupt()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # nohup keeps its meaning, and Windows has no SIGHUP.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), interrupt)
    return _COMMANDS.get(options.words[0] if options.words else "", _migrate)(options)


# Before it ends Python looks for garbage in everything that was imported: 15 ms of each run (measured).
atexit.register(gc.freeze)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `vmmigration`. Returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs
    choose_language(os.environ, (sys.stdout, sys.stderr))
    try:
        return _run(words)
    except MigrationError as error:
        return _nothing_done(words, nothing_changed_code(error), [error, *error.others])
    except KeyboardInterrupt:
        _say(Phrase("{program}: interrupted", {"program": PROGRAM}))
        return _nothing_done(words, ExitCode.INPUT, [])
    except Exception as error:
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        facts = {"host": Phrase("this host"), "reason": repr(error)}
        return _nothing_done(words, ExitCode.INTERNAL, [MigrationError(ErrorCode.INTERNAL, facts)])


def _nothing_done(words: Sequence[str], exit_code: ExitCode, errors: Sequence[MigrationError]) -> int:
    """Tell of a command that came to no result of its own, a program too. Returns the exit code."""
    show_errors(errors, sys.stderr)
    if "--json" in words:
        result = {"outcome": Outcome.NOTHING_CHANGED.value, "exit_code": int(exit_code),
                  "errors": [error_json(each) for each in errors]}
        write(sys.stdout, json.dumps(result, indent=2) + "\n")
    return int(exit_code)


if __name__ == "__main__":
    sys.exit(main())
