"""What the agent tells the service manager, over a real unix socket, and when."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import agent
from agent import AgentSettings
from constant import Command
from host.process import run_tool
from host.service_manager import ServiceManager
from tests.unit.node import Blocking, StillAgent
from tests.unit.samples import AGENT_KEY, AGENTS, CONTROLLERS
from udpmodule import Event
from wire.errors import ErrorCode, MigrationError

PID = 4711


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """The messages that have come, their lines joined by a space."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode().replace("\n", " "))
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """One that listens, at a path or at an abstract address."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@vmmigration-test-{os.getpid()}"
    manager = Manager(address)
    with closing(manager.socket):
        yield manager


def test_each_thing_is_told_in_the_words_of_sd_notify(manager: Manager) -> None:
    speaker = ServiceManager(manager.address)
    speaker.ready("no jobs")
    speaker.reloading(12.5)
    speaker.ready("1 job")
    speaker.stopping()
    assert manager.heard() == [
        "READY=1 STATUS=no jobs", "RELOADING=1 MONOTONIC_USEC=12500000", "READY=1 STATUS=1 job", "STOPPING=1"]


def test_a_sign_of_life_is_given_twice_in_the_time_and_what_it_does_only_when_that_is_news(manager: Manager) -> None:
    speaker = ServiceManager(manager.address, 10.0)
    speaker.ready("no jobs")
    manager.heard()
    told = []
    for now, status in ((100.0, "no jobs"), (104.9, "no jobs"), (104.9, "1 job"), (105.0, "1 job"), (109.0, "1 job")):
        speaker.turned(now, status)
        told.append(manager.heard())
    assert told == [["WATCHDOG=1"], [], ["STATUS=1 job"], ["WATCHDOG=1"], []]


def test_no_sign_of_life_is_given_to_one_that_does_not_watch(manager: Manager) -> None:
    speaker = ServiceManager(manager.address)
    speaker.ready("no jobs")
    speaker.turned(100.0, "no jobs")
    assert manager.heard() == ["READY=1 STATUS=no jobs"]


# What the environment says.


def test_the_variables_are_taken_out_of_the_environment(manager: Manager) -> None:
    environment = {
        "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(PID), "PATH": "/usr/bin"}
    speaker = ServiceManager.of_environment(environment, PID)
    speaker.turned(100.0, "")
    assert manager.heard() == ["WATCHDOG=1"]
    assert environment == {"PATH": "/usr/bin"}


def test_a_program_that_the_agent_starts_does_not_know_of_the_service_manager(
    manager: Manager, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    assert "NOTIFY_SOCKET" in run_tool(["env"], "here")
    ServiceManager.of_environment(os.environ, os.getpid())
    assert "NOTIFY_SOCKET" not in run_tool(["env"], "here")
    assert "WATCHDOG_USEC" not in run_tool(["env"], "here")


@pytest.mark.parametrize(("variables", "watched"), [
    ({"WATCHDOG_USEC": "10000000"}, True), ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(PID)}, True),
    ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, False), ({"WATCHDOG_USEC": "0"}, False),
    ({"WATCHDOG_USEC": "-5"}, False), ({"WATCHDOG_USEC": "soon"}, False), ({}, False),
])
def test_the_watchdog_is_minded_if_it_is_meant_for_this_process(
    manager: Manager, variables: dict[str, str], watched: bool,
) -> None:
    speaker = ServiceManager.of_environment({"NOTIFY_SOCKET": manager.address, **variables}, PID)
    speaker.turned(100.0, "")
    assert manager.heard() == (["WATCHDOG=1"] if watched else [])


def test_started_by_hand_it_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    speaker = ServiceManager.of_environment({}, PID)
    speaker.ready("no jobs")
    speaker.turned(100.0, "1 job")
    speaker.stopping()
    assert caplog.records == []


def test_an_address_of_another_kind_is_logged_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager.of_environment({"NOTIFY_SOCKET": "vsock:2:1234"}, PID).ready("no jobs")
    assert [record.getMessage() for record in caplog.records] == [
        "NOTIFY_SOCKET is 'vsock:2:1234', which is no unix socket: nothing is told to the service manager"]


def test_a_manager_that_has_gone_does_not_end_the_agent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager(str(tmp_path / "gone")).ready("no jobs")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "was not told READY=1" in caplog.text


def test_a_manager_that_does_not_read_does_not_stop_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("host.service_manager._SEND_SECONDS", 0.01)
    manager = Manager(str(tmp_path / "notify"))
    with closing(manager.socket):
        speaker = ServiceManager(manager.address)
        for _each in range(2000):
            speaker.stopping()
            if caplog.records:
                return
    pytest.fail("the socket takes whatever is sent, so this test shows nothing")


# The agent.


class Turning(StillAgent):
    """An agent whose loop makes one turn for each action that a test has put into it, and one more."""

    actions: tuple[Callable[[], object], ...] = ()

    def serve(
        self, on_event: Callable[[Event], None], stopped: Callable[[], bool], on_turn: Callable[[], None],
    ) -> None:
        """Turn."""
        for action in self.actions:
            assert not stopped()
            on_turn()
            action()
        on_turn()
        self.ended = stopped()


def turning(manager: Manager, watchdog_seconds: float = 0.0) -> Turning:
    """An agent that tells that manager."""
    turner = Turning({Command.LIVE_MIGRATION: Blocking()})
    turner.agent._manager = ServiceManager(manager.address, watchdog_seconds)
    return turner


def test_an_agent_is_ready_when_its_loop_begins_and_tells_how_many_jobs_it_has(manager: Manager) -> None:
    turner = turning(manager)
    assert manager.heard() == []
    turner.actions = (lambda: turner.send(Command.LIVE_MIGRATION), turner.agent.stop)
    turner.agent.run()
    assert manager.heard() == ["READY=1 STATUS=no jobs", "STATUS=1 job", "STOPPING=1"]


def test_each_turn_of_the_loop_is_a_sign_of_life(manager: Manager) -> None:
    turner = turning(manager, 1e-9)
    turner.actions = (lambda: None, lambda: None)
    turner.agent.run()
    assert manager.heard() == ["READY=1 STATUS=no jobs", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]


@pytest.mark.parametrize("readable", [True, False])
def test_an_agent_that_reads_its_lists_again_says_so_and_is_ready_again(manager: Manager, readable: bool) -> None:
    turner = turning(manager)

    def load() -> AgentSettings:
        if not readable:
            raise MigrationError(ErrorCode.LIST_EMPTY, {"path": "/etc/x", "what": "y"})
        return AgentSettings(CONTROLLERS, AGENTS, (AGENT_KEY,))

    turner.agent.configure(load)
    first, second = manager.heard()
    assert first.startswith("RELOADING=1 MONOTONIC_USEC=")
    assert second == "READY=1 STATUS=no jobs"


def test_an_agent_that_leaves_ends_its_loop_and_tells_its_work_nothing(manager: Manager) -> None:
    step = Blocking()
    turner = Turning({Command.LIVE_MIGRATION: step})
    turner.agent._manager = ServiceManager(manager.address)
    turner.send(Command.LIVE_MIGRATION)
    turner.write()
    turner.actions = (turner.agent.leave,)
    turner.agent.run()
    assert turner.ended
    assert turner.agent.leaves
    assert manager.heard()[-1] == "STOPPING=1"
    (work,) = turner.agent._working.values()
    assert work.cancellation.reason is None


@pytest.mark.parametrize(("leaves", "cleaned"), [(True, ""), (False, "cleaned up\n")])
def test_what_is_to_be_cleaned_up_at_the_end_is_left_by_an_agent_that_leaves(leaves: bool, cleaned: str) -> None:
    program = (
        "import agent, atexit, sys\n"
        "atexit.register(print, 'cleaned up')\n"
        f"agent._serve = lambda options, manager: {leaves}\n"
        "sys.exit(agent.main([]))\n")
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(agent.__file__).parent, capture_output=True, text=True, check=False,
        timeout=30)
    assert (finished.returncode, finished.stdout) == (0, cleaned), finished.stderr
