"""The real agent in a process of its own, whose steps stay where a file says: `python -m tests.terminal.staged_agent`.

What it does not know of the command line is vmmigration-agent's. Time goes on, so the counts of a stage do too.
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
from constant import Command, DomainState
from steps import list as list_jobs
from steps import recall
from steps.context import StepContext
from tests.loopback.agent_process import hello, settle
from tests.unit.scripted import HAPPY
from wire.errors import ErrorCode, MigrationError
from wire.records import DiskProgress, MemoryProgress, Progress, RollBackReport, StepArguments, StepReport

MIB = 1 << 20
# The stages of a run, and the step that each of them holds.
CHECKING, DISKS, MEMORY, POST_COPY, CHINESE, GOES_ON, FAILS = (
    "checking", "disks", "memory", "post-copy", "chinese", "goes on", "fails")
# Short ones, so that a line is a line at 80 columns.
_SAID = {
    Command.PREPARE_DESTINATION: "empty qcow2 of 8192 MiB", Command.COPY_DISK_FILE: "nothing to send beforehand",
    Command.FINISH: "shut off here, its disk kept",
}
_RESULTS: Mapping[Command, object] = {
    **{command: result for (command, _host), result in HAPPY.items()},
    **{command: StepReport(summary=said) for command, said in _SAID.items()},
}
_LOOK_SECONDS = 0.05
_TELL_SECONDS = 0.25


def _disks(seconds: float) -> Progress:
    done = (min(round(100 * MIB * seconds), 1500 * MIB), min(round(40 * MIB * seconds), 400 * MIB))
    disks = (DiskProgress("vda", 600 * MIB + done[0], 3000 * MIB), DiskProgress("vdb", 100 * MIB + done[1], 1000 * MIB))
    return Progress(
        phase="copying the disk", done=sum(disk.done for disk in disks), total=4000 * MIB, disks=disks)


def _memory(seconds: float) -> Progress:
    return Progress(
        phase="copying memory, pass 5, downtime raised to 675 ms", done=3900 * MIB + round(60 * MIB * seconds),
        total=4500 * MIB, memory=MemoryProgress(
            passes=5, left=40 * MIB, rate=60 * MIB, dirty_rate=20 * MIB, downtime_limit=675))


def _post_copy(seconds: float) -> Progress:
    return Progress(
        phase="post-copy: the guest runs on the destination, the rest of its memory follows",
        done=3900 * MIB + round(60 * MIB * seconds), total=4500 * MIB, memory=MemoryProgress(
            passes=2, left=40 * MIB, rate=60 * MIB, dirty_rate=0, downtime_limit=300, post_copy=True))


def _chinese(seconds: float) -> Progress:
    return Progress(phase="正在复制虚拟机的内存" * 4, done=round(MIB * seconds), total=4500 * MIB)


_SHOWN: Mapping[str, Callable[[float], Progress]] = {
    DISKS: _disks, MEMORY: _memory, POST_COPY: _post_copy, CHINESE: _chinese}


@dataclass
class Steps:
    """What the agent runs for each command: nothing, but it stays as long as its stage lasts."""

    stage: Path

    def table(self) -> Mapping[Command, agent.Step]:
        """A step for each command that has one."""
        return {**{command: self._step(command) for command in _RESULTS}, Command.ROLL_BACK: _roll_back,
                Command.LIST: list_jobs.run, Command.RECALL: recall.run}

    def _step(self, command: Command) -> agent.Step:
        def run(context: StepContext, _arguments: object) -> object:
            if command in (Command.CHECK_SOURCE, Command.CHECK_LINK):
                self._stay(context, lambda: self._now() == CHECKING)
            elif command is Command.LIVE_MIGRATION:
                self._migrate(context)
            return _RESULTS[command]
        return run

    def _now(self) -> str:
        return self.stage.read_text()

    def _stay(self, context: StepContext, holds: Callable[[], bool]) -> None:
        while holds():
            if context.cancellation.reason is not None:
                facts = {"domain": "VM1", "reason": context.cancellation.reason}
                raise MigrationError(ErrorCode.MIGRATION_CANCELLED, facts)
            time.sleep(_LOOK_SECONDS)

    def _migrate(self, context: StepContext) -> None:
        while (stage := self._now()) in _SHOWN:
            began = time.perf_counter()
            told = began - _TELL_SECONDS

            def stays(stage: str = stage, began: float = began) -> bool:
                nonlocal told
                now = time.perf_counter()
                if now - told >= _TELL_SECONDS:
                    told = now
                    context.progress(_SHOWN[stage](now - began))
                return self._now() == stage

            self._stay(context, stays)
        if stage == FAILS:
            facts = {"domain": "VM1", "host": context.host, "reason": "no route to host"}
            raise MigrationError(ErrorCode.MIGRATION_FAILED, facts)


def _roll_back(context: StepContext, arguments: StepArguments) -> RollBackReport:
    """The VM has never left."""
    here = context.host == arguments.migration.source
    return RollBackReport(
        state=DomainState.RUNNING if here else DomainState.ABSENT, removed=() if here else ("/srv/vm/node.qcow2",),
        cleared=True)


def adopt(context: StepContext, arguments: StepArguments) -> object:
    """Nothing here outlives its agent."""
    raise MigrationError(ErrorCode.MIGRATION_INTERRUPTED, {
        "domain": arguments.migration.domain, "host": context.host})


def main(argv: Sequence[str]) -> int:
    """Run the agent until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--stage", type=Path, required=True, help="the file that says where steps stay")
    options, rest = parser.parse_known_args(argv)
    table = types.ModuleType("steps.table")
    vars(table).update(
        HELLO=hello, STEPS=Steps(options.stage).table(), ADOPT=adopt, SETTLE=settle, CLEAR=lambda _job_ids: None)
    # As long as this process lives, in the place of libvirt and root, which nothing here needs.
    sys.modules["steps.table"] = table
    vars(os).update(geteuid=lambda: 0)
    return agent.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
