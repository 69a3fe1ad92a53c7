"""Two agents that stay at a stage, the command that moves a VM between them, and terminals to type it in."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from constant import AGENT_LIST_FILE, AGENT_PORT
from tests.loopback.site import Node, Site, wait_until
from tests.terminal.pane import Pane
from tests.unit.samples import ROOT


@pytest.fixture(scope="session")
def tmux() -> None:
    """A machine with tmux. Skips elsewhere; under CI that is a failure."""
    if shutil.which("tmux") is None and os.environ.get("CI") == "true":
        pytest.fail("under CI the tests of the terminal must run, and tmux is not installed")
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")


@dataclass
class Stage:
    """A management host with `go`, the command that moves VM1, and `vm`, the same without arguments; and the agents of
    both hosts, which do as is said.
    """

    directory: Path
    source: str
    destination: str
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    panes: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    opened: list[Pane] = field(default_factory=list)

    def set(self, stage: str) -> None:
        """Have the steps stay there; what is at another one goes on."""
        new = self.directory / "stage.new"
        new.write_text(stage)
        new.replace(self.directory / "stage")

    def pane(self, width: int = 80, height: int = 24, **environment: str) -> Pane:
        """A terminal of that size, which ends with the test."""
        socket = self.directory / f"tmux-{len(self.opened)}"
        self.opened.append(self.panes.enter_context(Pane(socket, self.directory, width, height, environment)))
        return self.opened[-1]

    def start(self, *nodes: Node) -> None:
        """Start the agents of these."""
        logs = [node.directory / "agent.log" for node in nodes]
        for node, log in zip(nodes, logs):
            with log.open("wb") as output:
                self.agents.append(subprocess.Popen(
                    [sys.executable, "-m", "tests.terminal.staged_agent", "--stage", self.directory / "stage",
                     "--config-dir", node.directory, "--state-dir", node.state_directory,
                     f"--listen={node.address}:{AGENT_PORT}"],
                    cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL))
        wait_until("serving", lambda: all(" serves " in log.read_text() for log in logs))

    def end(self) -> None:
        """End all that was started."""
        self.panes.close()
        for agent in self.agents:
            agent.kill()
            agent.wait()


@pytest.fixture
def stage(tmux: None, tmp_path: Path) -> Iterator[Stage]:
    """Both agents run; `go` is on the PATH of each terminal."""
    site = Site(tmp_path)
    source, destination = site.node(), site.node()
    made = Stage(tmp_path, source.address, destination.address)
    made.set("goes on")
    (tmp_path / AGENT_LIST_FILE).write_text(f"{source.address}\n{destination.address}\n")
    command = [sys.executable, str(ROOT / "vmmigration.py"), "--config-dir", str(tmp_path)]
    for name, words in (("vm", command), ("go", [*command, source.address, destination.address, "kvm", "VM1"])):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (tmp_path / name).chmod(0o755)
    try:
        made.start(source, destination)
        yield made
    finally:
        made.end()
