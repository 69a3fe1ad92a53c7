"""The real controller in a process of its own: `python -m tests.loopback.controller_process`.

It migrates a VM, or asks one agent for a list of commands, and writes each result down before it goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import wire.exchange
from constant import RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS, Command
from control.conversation import ControllerSettings, Observer, StepResult
from controller import Controller
from tests.loopback.kill_point import KillPoint, write_line
from tests.unit.samples import FACTS, MIGRATION
from udpmodule import ControllerSocket
from wire.errors import ErrorCode
from wire.exchange import Exchange, GaveUp
from wire.facts import HostFacts
from wire.message import Reply, Request, result_to_wire
from wire.records import HelloArguments, Progress, StepArguments

_LOOK_SECONDS = 0.005


class RecordingSocket(ControllerSocket):
    """Writes down how each request ended."""

    def __init__(self, agent_port: int, results: Path) -> None:
        super().__init__(agent_port)
        self._results = results

    def wait(self, exchange: Exchange, on_progress: Callable[[Progress], None]) -> Reply | GaveUp:
        outcome = super().wait(exchange, on_progress)
        request = exchange.request
        result = None if isinstance(outcome, GaveUp) else result_to_wire(outcome.cmd, outcome.cmd_result)
        write_line(self._results, {
            "request_id": request.request_id, "agent_ip": request.agent_ip, "cmd": request.cmd.value,
            "msg_type": "gave up" if isinstance(outcome, GaveUp) else outcome.msg_type.value, "result": result})
        return outcome


class Nobody(Observer):
    """Watches a run and says nothing."""

    def step_began(self, command: Command, host: str) -> None:
        pass

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        pass

    def step_ended(self, step: StepResult) -> None:
        pass

    def leaving(self, seconds: float) -> None:
        """Nobody."""

    def cancelling(self, *, possible: bool, pressed: bool = True) -> None:
        pass


def mortal(kill_point: KillPoint, results: Path) -> type[socket.socket]:
    """The socket at one of whose datagrams the process dies. It writes down which port it got."""

    class MortalSocket(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            write_line(results, {"port": self.getsockname()[1]})

        def sendto(self, *what: Any) -> int:
            with kill_point.around():
                return super().sendto(*what)

    return MortalSocket


def migrate(options: argparse.Namespace) -> None:
    """One run of the Controller, whose report is the last line."""
    settings = ControllerSettings.load(options.config_dir, insecure=False)
    udp = RecordingSocket(options.port, options.results)
    migration = dataclasses.replace(
        MIGRATION, source=options.source, destination=options.destination, job_id=options.job_id,
        domain=options.domain)
    report = Controller(settings, udp, Nobody()).migrate(migration)
    write_line(options.results, {
        "outcome": report.outcome.value, "runs_on": report.runs_on,
        "errors": [error.code.value for error in report.errors]})


class Asker:
    """Asks one agent for one command after the other, each with a job and a VM of its own unless it is given one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._udp = RecordingSocket(options.port, options.results)
        self._facts: HostFacts | None = None

    def _follow(self, command: Command, arguments: object) -> Reply | GaveUp:
        # Read again each time, as a new run of the controller does.
        keys = ControllerSettings.load(self._options.config_dir, insecure=False).agent_keys(self._options.agent)
        request = Request(
            request_id=secrets.token_hex(16), agent_ip=self._options.agent, cmd=command, cmd_arguments=arguments,
            epoch=self._facts.epoch if self._facts else "", challenge=self._facts.challenge if self._facts else "")
        return self._udp.wait(
            self._udp.start(request, keys, self._options.patience), lambda _progress: None)

    def greet(self) -> None:
        """Have a challenge that is fresh."""
        reply = self._follow(Command.HELLO, HelloArguments())
        if isinstance(reply, GaveUp) or not isinstance(reply.cmd_result, HostFacts):
            raise SystemExit(f"no HELLO: {reply}")
        self._facts = reply.cmd_result

    def ask(self, command: Command) -> None:
        """Until the agent takes it: one that was restarted wants to be greeted anew."""
        stale = True
        while stale:
            job_id = self._options.job_id or secrets.token_hex(4)
            migration = dataclasses.replace(
                MIGRATION, source=self._options.agent, domain=f"VM-{job_id}", job_id=job_id)
            facts = dataclasses.replace(FACTS, secrets=("x" * self._options.longer,) if self._options.longer else ())
            reply = self._follow(command, StepArguments(migration=migration, facts=facts))
            error = reply.error() if isinstance(reply, Reply) else None
            stale = error is not None and error.code is ErrorCode.REQUEST_STALE
            if stale:
                self.greet()


def ask(options: argparse.Namespace) -> None:
    """All commands, once or until the file `--until` is there."""
    asker = Asker(options)
    asker.greet()
    while True:
        for command in options.commands.split(","):
            asker.ask(Command(command))
        if options.until is None or options.until.exists():
            return
        asker.greet()


def main(argv: Sequence[str]) -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True, help="the agents' port")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--go", type=Path, help="do not begin before this file is there")
    parser.add_argument("--hurry", type=float, default=1.0, help="ask again so many times sooner")
    KillPoint.add_option(parser, "datagram that is sent")
    modes = parser.add_subparsers(required=True)
    run = modes.add_parser("migrate")
    run.add_argument("source")
    run.add_argument("destination")
    run.add_argument("--job-id", default=MIGRATION.job_id)
    run.add_argument("--domain", default=MIGRATION.domain)
    run.set_defaults(mode=migrate)
    asking = modes.add_parser("ask")
    asking.add_argument("agent")
    asking.add_argument("commands", help="with commas between them")
    asking.add_argument("--job-id", default="")
    asking.add_argument("--until", type=Path)
    asking.add_argument("--patience", type=float, default=90.0)
    asking.add_argument("--longer", type=int, default=0, help="have so many more bytes in each request")
    asking.set_defaults(mode=ask)
    options = parser.parse_args(argv)
    kill_point = KillPoint.from_option(options.kill_at)
    vars(socket).update(socket=mortal(kill_point, options.results))
    vars(wire.exchange).update(
        RETRY_FIRST_SECONDS=RETRY_FIRST_SECONDS / options.hurry,
        RETRY_LONGEST_SECONDS=RETRY_LONGEST_SECONDS / options.hurry)
    while options.go is not None and not options.go.exists():
        time.sleep(_LOOK_SECONDS)
    options.mode(options)
    write_line(options.results, {"sent": kill_point.count})


if __name__ == "__main__":
    main(sys.argv[1:])
