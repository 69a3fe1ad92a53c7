"""A node: a real agent whose steps do nothing to the host, and what a migration does to its host meanwhile."""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import threading
import time
from pathlib import Path

from agent import Agent, AgentSettings, configure_logging, open_responder, prompt_answers
from bench.processes import play, say, wait_for_end
from bench.samples import AGENT, LOOPBACK, MASTER, host_facts
from constant import Command
from steps.context import StepContext
from udpmodule import AgentSocket
from wire.facts import HostFacts
from wire.journal import Journal, JournalWriter
from wire.records import MigrationReport, Progress, StepArguments, StepReport

# libvirt's job is looked at that often (steps/live_migration.py), and this is more work than that takes.
_TICK_SECONDS = 0.1
_TICK_WORK_SECONDS = 0.01
# The image that is mirrored meanwhile, as fast as the disk takes it, over and over.
_BLOCK = 1 << 20
_BLOCKS_A_SYNC = 16
_BLOCKS_OF_IMAGE = 256


# The agent.


def _hello(context: StepContext) -> HostFacts:
    return host_facts(context.epoch, context.challenge)


def _extract(_context: StepContext, _arguments: StepArguments) -> StepReport:
    return StepReport(summary="done")


def _migrate(context: StepContext, _arguments: StepArguments) -> MigrationReport:
    """Work in the agent's process as the step of a migration does, until it is cancelled."""
    for tick in itertools.count():
        if context.cancellation.reason is not None:
            return MigrationReport(disk_bytes=tick, memory_bytes=0, downtime=-1)
        context.progress(Progress(phase="migrating", done=tick, total=0))
        working_until = time.monotonic() + _TICK_WORK_SECONDS
        while time.monotonic() < working_until:
            pass
        time.sleep(_TICK_SECONDS - _TICK_WORK_SECONDS)
    raise AssertionError("counting has no end")


def _agent(directory: str) -> None:
    configure_logging(verbose=False)
    with prompt_answers():
        _run_agent(directory)


def _run_agent(directory: str) -> None:
    settings = AgentSettings(LOOPBACK, LOOPBACK, (MASTER.for_agent(AGENT),))
    journal = Journal(Path(directory), lambda: secrets.token_hex(8))
    writer = JournalWriter(journal)
    udp = AgentSocket(open_responder(settings, journal), [(AGENT, 0)], writer)
    steps = {Command.EXTRACT_CONFIGURE_FILE: _extract, Command.LIVE_MIGRATION: _migrate}
    agent = Agent(settings, udp, _hello, steps, state_directory=Path(directory))

    def stop_at_the_end() -> None:
        wait_for_end()
        udp.post(agent.stop)

    threading.Thread(target=stop_at_the_end, daemon=True).start()
    say(port=int(udp.addresses().rpartition(" ")[2]))
    agent.run()
    udp.close()
    writer.close()


# What a migration does to its host outside the agent: QEMU and SSH burn a processor, the mirror writes the image.


def _burn() -> None:
    block = bytes(_BLOCK)
    while True:
        hashlib.sha256(block)


def _write_image(path: Path) -> None:
    block = os.urandom(_BLOCK)
    with open(path, "wb", buffering=0) as image:
        for number in itertools.count():
            image.seek(number % _BLOCKS_OF_IMAGE * _BLOCK)
            image.write(block)
            if number % _BLOCKS_A_SYNC == _BLOCKS_A_SYNC - 1:
                os.fdatasync(image.fileno())


def _load(directory: str) -> None:
    path = Path(directory) / "image"
    for target, arguments in ((_burn, ()), (_write_image, (path,))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    while not path.exists() or path.stat().st_size < _BLOCKS_A_SYNC * _BLOCK:
        time.sleep(0.01)
    say(ready=True)
    wait_for_end()


if __name__ == "__main__":
    play({"agent": _agent, "load": _load})
