"""The command on each Python from 3.9 to 3.13, with nothing but that: started, and through a whole move."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from constant import VERSION
from tests.packaging.machine import needed, wait_until
from tests.packaging.pythons import COMMAND, RELEASES, Interpreter, interpreter
from tests.unit.samples import ROOT, write_key
from wire.access import load_keys

VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
SOURCE, DESTINATION = "127.0.0.11", "127.0.0.12"


@pytest.fixture(scope="module", params=VERSIONS)
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """An interpreter of that version. The oldest and the newest must be there under CI, what is between may."""
    found = interpreter(request.param, tmp_path_factory.mktemp("command"))
    if found is None and request.param in RELEASES and os.environ.get("CI") == "true":
        pytest.fail(f"under CI Python {request.param} must be there")
    if found is None:
        pytest.skip(f"there is no Python {request.param} here")
    return found


@contextmanager
def network() -> Iterator[Sequence[str]]:
    """A network with a loopback alone, for the length of a `with`: the words that begin a command in it."""
    holder = subprocess.Popen(
        [needed("unshare"), "--net", "sh", "-c", "ip link set lo up && echo && exec sleep infinity"],
        stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.read(1) == b"\n"
        yield (needed("nsenter"), f"--net=/proc/{holder.pid}/ns/net")
    finally:
        holder.kill()
        holder.wait()


@contextmanager
def agent(directory: Path, address: str, master: Path, begin: Sequence[str]) -> Iterator[None]:
    """An agent with steps that do nothing, in that network and on this machine's own Python."""
    directory.mkdir()
    (directory / "ControllerIPAddr.txt").write_text("127.0.0.0/8\n")
    (directory / "AgentIPAddr.txt").write_text(f"{SOURCE}\n{DESTINATION}\n")
    write_key(directory / "AgentKey.txt", load_keys(master)[0].for_agent(address))
    (directory / "executions").touch()
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [*begin, sys.executable, "-m", "tests.loopback.agent_process", "--config-dir", directory, "--state-dir",
             directory / "state", "--executions", directory / "executions", f"--listen={address}:8002"],
            cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_until("the agent serves", lambda: " serves " in (directory / "log").read_text())
        yield
    finally:
        process.kill()
        process.wait()


def test_every_module_of_the_command_is_understood(python: Interpreter) -> None:
    compiled = python.run("-X", "pycache_prefix=/tmp/compiled", "-m", "compileall", "-q", "-f", python.inside)
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr


def test_the_command_tells_its_version_and_how_it_is_used(python: Interpreter) -> None:
    assert python.vmmigration("--version").stdout == f"vmmigration {VERSION}\n"
    assert "SRC DST USER VM" in python.vmmigration("--help").stdout


def test_without_a_list_it_says_what_is_missing(python: Interpreter) -> None:
    checked = python.vmmigration("--config-dir", python.inside, "check")
    assert checked.returncode == 2
    assert "AgentIPAddr.txt" in checked.stderr
    assert "Traceback" not in checked.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own needs root")
def test_a_vm_is_moved(python: Interpreter, tmp_path: Path) -> None:
    (python.outside / "AgentIPAddr.txt").write_text(f"{SOURCE}\n{DESTINATION}\n")
    assert python.vmmigration("--config-dir", python.inside, "new-key").returncode == 0
    with ExitStack() as stack:
        begin = stack.enter_context(network())
        for name, address in (("source", SOURCE), ("destination", DESTINATION)):
            stack.enter_context(agent(tmp_path / name, address, python.outside / "ControllerKey.txt", begin))
        moved = python.vmmigration(
            "--config-dir", python.inside, "--json", SOURCE, DESTINATION, "kvm", "VM1", before=begin)
        listed = python.vmmigration("--config-dir", python.inside, "--json", "check", before=begin)
    assert moved.returncode == 0, moved.stdout + moved.stderr
    assert json.loads(moved.stdout)["outcome"] == "moved"
    assert [host["agent_version"] for host in json.loads(listed.stdout)["hosts"]] == [VERSION, VERSION]


def test_nothing_newer_than_the_oldest_python_is_used() -> None:
    # What no test runs on it, vermin reads.
    read = subprocess.run(
        [Path(sys.executable).with_name("vermin"), "--target=3.9-", "--no-tips", "--violations",
         "--eval-annotations", *(ROOT / name for name in COMMAND)], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stdout + read.stderr
