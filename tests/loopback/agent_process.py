"""The real agent in a process of its own, whose steps only write down that they were run: `python -m
tests.loopback.agent_process`. What it does not know of the command line is vmmigration-agent's.

Each execution of a step is a line in --executions before anything else is done, and another one at its end.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import agent
import wire.journal
from constant import Command, DomainState
from steps.context import StepContext
from tests.loopback.kill_point import KillPoint, die, write_line
from tests.unit.samples import HOST_FACTS
from tests.unit.scripted import HAPPY
from wire.errors import ErrorCode, MigrationError
from wire.facts import HostFacts
from wire.journal import Journal
from wire.memory import Entry
from wire.records import LinkArguments, Migration, Progress, RollBackReport, StepArguments

_RESULTS: Mapping[Command, object] = {command: result for (command, _host), result in HAPPY.items()}
# So long that it takes several datagrams.
_REMOVED = tuple(f"/var/lib/libvirt/images/made-by-the-job-{number:04}.qcow2" for number in range(60))
_LOOK_SECONDS = 0.01


def hello(context: StepContext) -> HostFacts:
    """HELLO without a libvirt."""
    return HostFacts(
        version=HOST_FACTS.version, hostname=HOST_FACTS.hostname, libvirt_version=0, daemon=HOST_FACTS.daemon,
        epoch=context.epoch, challenge=context.challenge)


@dataclass
class Steps:
    """What the agent runs for each command: so many seconds of nothing."""

    executions: Path
    seconds: Mapping[str, float]

    def table(self) -> Mapping[Command, agent.Step]:
        """A step for each command that has one."""
        return {command: self._step(command) for command in (*_RESULTS, Command.ROLL_BACK)}

    def _step(self, command: Command) -> agent.Step:
        def run(context: StepContext, arguments: StepArguments | LinkArguments) -> object:
            asked = arguments if isinstance(arguments, LinkArguments) else arguments.migration
            self._work(command, context, asked.domain or "")
            if command is Command.ROLL_BACK and isinstance(arguments, StepArguments):
                return self._roll_back(context, arguments)
            return _RESULTS[command]
        return run

    def _work(self, command: Command, context: StepContext, domain: str) -> None:
        """Progress at the beginning and in the middle; in between the controller has to ask."""
        seconds = self.seconds.get(command.value, self.seconds[""])
        began = time.perf_counter()
        for half in range(2):
            context.progress(Progress(phase=f"half {half + 1}", done=half, total=2))
            while time.perf_counter() < began + seconds * (half + 1) / 2:
                if context.cancellation.reason is not None:
                    facts = {"domain": domain, "reason": context.cancellation.reason}
                    raise MigrationError(ErrorCode.MIGRATION_CANCELLED, facts)
                time.sleep(min(_LOOK_SECONDS, seconds))

    def adopt(self, context: StepContext, arguments: StepArguments) -> object:
        """A migration that goes on without its agent: it is over when that comes back, and has moved the VM or not."""
        if self._moved(arguments):
            return _RESULTS[Command.LIVE_MIGRATION]
        facts = {"domain": arguments.migration.domain, "host": context.host}
        raise MigrationError(ErrorCode.MIGRATION_INTERRUPTED, facts)

    def _moved(self, arguments: StepArguments) -> bool:
        """The VM runs where the executions say: at its destination once LIVE_MIGRATION was done."""
        done = f'["done", "{Command.LIVE_MIGRATION.value}", "{arguments.migration.domain}"'
        return done in self.executions.read_text()

    def _roll_back(self, context: StepContext, arguments: StepArguments) -> RollBackReport:
        moved, on_source = self._moved(arguments), context.host == arguments.migration.source
        here, elsewhere = (
            (DomainState.SHUT_OFF, DomainState.RUNNING) if on_source else (DomainState.RUNNING, DomainState.ABSENT))
        return RollBackReport(
            state=here if moved else elsewhere, removed=_REMOVED, cleared=not moved, gave_up=moved and on_source)


def settle(_context: StepContext, _arguments: StepArguments, *, alone: bool) -> None:
    """Nothing can be told without a libvirt: the job stays as it is."""


def recording(executions: Path) -> type[agent.Agent]:
    """The Agent that writes down each step that it runs, with the id of the request, which the step does not know."""

    class RecordingAgent(agent.Agent):
        def _outcome(self, work: agent._Work, context: StepContext) -> object:
            request, arguments = work.request, work.request.cmd_arguments
            asked = arguments.migration if isinstance(arguments, StepArguments) else arguments
            if work.adopted or not isinstance(asked, (Migration, LinkArguments)):
                # What is adopted was begun in an earlier life.
                return super()._outcome(work, context)
            what = (request.cmd.value, asked.domain, asked.job_id, request.request_id, request.agent_ip)
            write_line(executions, ("begun", *what, os.getpid()))
            outcome = super()._outcome(work, context)
            if not isinstance(outcome, MigrationError):
                write_line(executions, ("done", *what, os.getpid()))
            return outcome

    return RecordingAgent


def mortal(kill_point: KillPoint) -> type[Journal]:
    """The Journal at one of whose writes the process dies."""

    class MortalJournal(Journal):
        def append(self, entries: Sequence[Entry]) -> None:
            with kill_point.around():
                super().append(entries)

        def replace(self, entries: Sequence[Entry]) -> None:
            with kill_point.around():
                super().replace(entries)

    return MortalJournal


def torn(kill_point: KillPoint, write: Callable[[int, bytes], None]) -> Callable[[int, bytes], None]:
    """The same function, but it gets no further than half of what it is to write."""

    def write_half(file: int, content: bytes) -> None:
        if kill_point.comes_within:
            os.write(file, content[:len(content) // 2])
            die()
        write(file, content)

    return write_half


def shifted(clock: Callable[[], float], by: Path) -> Callable[[], float]:
    """The clock, as many seconds later as the file says."""
    return lambda: clock() + float(by.read_text())


def main(argv: Sequence[str]) -> int:
    """Run the agent until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--executions", type=Path, required=True)
    parser.add_argument("--work", metavar="[COMMAND=]SECONDS", action="append", default=["0.02"])
    parser.add_argument("--clock", type=Path, help="a file with the seconds that the agent's clocks are put on by")
    KillPoint.add_option(parser, "write to the journal")
    options, rest = parser.parse_known_args(argv)
    kill_point = KillPoint.from_option(options.kill_at)
    pairs = [text.rpartition("=") for text in options.work]
    steps = Steps(options.executions, {command: float(seconds) for command, _, seconds in pairs})
    table = types.ModuleType("steps.table")
    vars(table).update(HELLO=hello, STEPS=steps.table(), ADOPT=steps.adopt, SETTLE=settle, CLEAR=lambda _job_ids: None)
    # Put in the place of what is there as long as this process lives: libvirt and root, which nothing here needs ...
    sys.modules["steps.table"] = table
    vars(os).update(geteuid=lambda: 0)
    # ... and what the tests are about.
    vars(agent).update(Agent=recording(options.executions), Journal=mortal(kill_point))
    vars(wire.journal).update(_write=torn(kill_point, wire.journal._write))
    if options.clock is not None:
        clocks = {name: shifted(vars(time)[name], options.clock) for name in ("monotonic", "time")}
        vars(time).update(clocks)
    return agent.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
