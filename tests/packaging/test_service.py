"""The packages on a fresh machine that systemd runs: installed, the agent as a service, removed and purged."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from constant import VERSION
from tests.packaging.machine import Machine, booted, needed, wait_until
from tests.packaging.node import AGENT, configure, install
from tests.unit.samples import ROOT

HERE = "127.0.0.1"
UNIT = ROOT / "packaging" / "systemd" / "vmmigration-agent.service"
# 10.0 is a service that may do anything; the project's bound is 4.0.
EXPOSURE = 40


def systemd_analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What systemd itself says of the unit file."""
    return subprocess.run(
        [needed("systemd-analyze"), *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_service_may_do_no_more_than_it_needs() -> None:
    finished = systemd_analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", UNIT)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_systemd_finds_no_fault_in_the_unit_file(tmp_path: Path) -> None:
    # The command is on no machine yet.
    text = UNIT.read_text().replace("/usr/sbin/vmmigration-agent", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    finished = systemd_analyze("verify", "--man=no", "--recursive-errors=no", tmp_path / UNIT.name)
    assert (finished.returncode, finished.stdout + finished.stderr) == (0, "")


def test_the_way_to_a_service_of_a_checkout_is_right() -> None:
    command = next(line for line in UNIT.read_text().splitlines() if "sed " in line).partition("'")[2]
    expression = command.rpartition("'")[0]
    changed = subprocess.run([needed("sed"), expression, UNIT], capture_output=True, text=True, check=True).stdout
    assert "\nExecStart=/usr/bin/python3 /opt/vmmigration/vmmigration-agent.py\n" in changed


@pytest.fixture(scope="module")
def fresh(root: Path, packages: Path) -> Iterator[Machine]:
    """A machine with both packages just installed, and nothing configured."""
    with booted(root, "fresh") as machine:
        install(machine, packages)
        yield machine


@pytest.fixture(scope="module")
def node(fresh: Machine) -> Machine:
    """The same with a key and lists, its agent at work and watched closely."""
    configure(fresh, {HERE: fresh}, HERE)
    fresh.write(f"/etc/systemd/system/{AGENT}.service.d/test.conf",
                "[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=3\nRestartSec=0\nTimeoutStopSec=5\n")
    fresh.run("systemctl", "daemon-reload")
    fresh.run("systemctl", "start", AGENT)
    return fresh


# Without a key: these come first.


def test_the_command_is_there_and_says_what_it_lacks(fresh: Machine) -> None:
    assert fresh.says("vmmigration", "--version") == f"vmmigration {VERSION}"
    checked = fresh.run("vmmigration", "check", check=False)
    assert checked.returncode == 2
    assert "/etc/vmmigration/AgentIPAddr.txt names no address" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_the_agent_waits_for_its_key(fresh: Machine) -> None:
    assert fresh.unit(AGENT, "ActiveState") == "inactive"
    assert fresh.unit(AGENT, "ConditionResult") == "no"
    assert fresh.says("systemctl", "is-enabled", AGENT) == "enabled"
    assert fresh.says("systemctl", "--failed", "--plain", "--no-legend", AGENT) == ""


def test_its_files_are_roots_and_its_lists_say_what_they_are_for(fresh: Machine) -> None:
    listed = fresh.says("find", "/etc/vmmigration", "-printf", r"%p %u:%g %m\n").splitlines()
    assert sorted(listed) == [
        "/etc/vmmigration root:root 755", "/etc/vmmigration/AgentIPAddr.txt root:root 644",
        "/etc/vmmigration/ControllerIPAddr.txt root:root 644"]
    for name in ("AgentIPAddr.txt", "ControllerIPAddr.txt"):
        assert fresh.says("cat", f"/etc/vmmigration/{name}").startswith("# ")


def test_a_bad_list_is_told_once_and_the_agent_is_not_started_again(fresh: Machine) -> None:
    fresh.write("/etc/vmmigration/AgentKey.txt", 64 * "0" + "\n", 0o600)
    fresh.run("systemctl", "start", AGENT, check=False)
    assert fresh.unit(AGENT, "ActiveState") == "failed"
    assert fresh.unit(AGENT, "NRestarts") == "0"
    assert "/etc/vmmigration/ControllerIPAddr.txt names no address" in fresh.journal(AGENT)
    fresh.run("systemctl", "reset-failed", AGENT)


# At work.


def test_it_is_started_when_it_listens_and_says_what_it_does(node: Machine) -> None:
    assert node.unit(AGENT, "ActiveState") == "active"
    assert node.unit(AGENT, "StatusText") == "no jobs"
    checked = json.loads(node.says("vmmigration", "--json", "check"))
    assert [(host["address"], host["agent_version"]) for host in checked["hosts"]] == [(HERE, VERSION)]


def test_its_state_is_for_root_alone(node: Machine) -> None:
    assert node.says("stat", "--format=%U:%G %a", "/var/lib/vmmigration") == "root:root 700"


def test_it_may_write_where_images_are_but_not_to_the_system(node: Machine) -> None:
    inside = ["nsenter", "--target", node.unit(AGENT, "MainPID"), "--mount", "--", "touch"]
    for path in ("/srv/x", "/home/x", "/root/x", "/var/tmp/x", "/var/lib/libvirt/images/x"):  # noqa: S108 - its own
        node.run(*inside, path)
        node.run("rm", path)
    for path in ("/usr/x", "/etc/x", "/boot/x"):
        assert "Read-only file system" in node.run(*inside, path, check=False).stderr


def test_a_reload_reads_the_lists_again(node: Machine) -> None:
    pid = node.unit(AGENT, "MainPID")
    node.run("systemctl", "reload", AGENT)
    wait_until("the lists were read", lambda: "lists and keys were read again" in node.journal(AGENT))
    wait_until("it is ready again", lambda: node.unit(AGENT, "ActiveState") == "active")
    assert node.unit(AGENT, "MainPID") == pid


@pytest.mark.parametrize(("signal", "result"), [("KILL", "signal"), ("STOP", "watchdog")])
def test_an_agent_that_was_killed_or_hangs_is_started_again(node: Machine, signal: str, result: str) -> None:
    pid, restarts = node.unit(AGENT, "MainPID"), int(node.unit(AGENT, "NRestarts"))
    node.run("kill", f"-{signal}", pid)
    wait_until("it was started again", lambda: int(node.unit(AGENT, "NRestarts")) > restarts and node.unit(
        AGENT, "ActiveState") == "active")
    assert node.unit(AGENT, "MainPID") != pid
    assert f"Failed with result '{result}'" in node.journal(AGENT)
    assert json.loads(node.says("vmmigration", "--json", "check"))["hosts"][0]["agent_version"] == VERSION


def test_a_restart_leaves_the_work_to_the_next_agent_and_a_stop_ends_it(node: Machine) -> None:
    node.run("systemctl", "restart", AGENT)
    assert "leaving 0 job step(s) to the agent that is started next" in node.journal(AGENT)
    assert "stopping; 0 job step(s)" not in node.journal(AGENT)
    node.run("systemctl", "stop", AGENT)
    assert "stopping; 0 job step(s)" in node.journal(AGENT)
    assert (node.unit(AGENT, "ActiveState"), node.unit(AGENT, "Result")) == ("inactive", "success")
    node.run("systemctl", "start", AGENT)


def test_an_agent_whose_port_is_taken_comes_up_once_it_is_free(node: Machine) -> None:
    node.run("systemctl", "stop", AGENT)
    taken = node.start("python3", "-c", (
        "import socket, sys; taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "taken.bind(('0.0.0.0', 8002)); sys.stdin.read()"), stdin=subprocess.PIPE)
    try:
        wait_until("the port is taken", lambda: ":8002" in node.says("ss", "-lun"))
        node.run("systemctl", "start", AGENT, check=False)
        wait_until("it was tried again", lambda: int(node.unit(AGENT, "NRestarts")) > 1)
        assert node.unit(AGENT, "ActiveState") != "active"
    finally:
        taken.communicate()
    wait_until("it listens", lambda: node.unit(AGENT, "ActiveState") == "active")
    assert "UDP 0.0.0.0 port 8002 cannot be opened" in node.journal(AGENT)


def test_what_it_starts_outlives_it(node: Machine) -> None:
    # As the ssh of a migration does.
    group = node.unit(AGENT, "ControlGroup")
    child = node.start("sh", "-c", f"echo $$ >/sys/fs/cgroup{group}/cgroup.procs; exec sleep 600")
    wait_until("the child is in its group", lambda: len(
        node.says("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()) == 2)
    try:
        for how in ("restart", "stop", "start"):
            node.run("systemctl", how, AGENT)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


# At the end: these come last.


def test_an_upgrade_restarts_the_agent_and_keeps_what_the_admin_has_written(node: Machine, packages: Path) -> None:
    pid = node.unit(AGENT, "MainPID")
    for package in packages.glob("*.deb"):
        node.copy(package, f"/packages/{package.name}")
    node.run("sh", "-c", "apt-get --quiet --yes reinstall /packages/*.deb")
    node.run("rm", "-r", "/packages")
    assert node.unit(AGENT, "MainPID") not in (pid, "0")
    assert node.says("cat", "/etc/vmmigration/AgentIPAddr.txt") == HERE


def test_a_removal_ends_the_agent_and_keeps_keys_and_lists_and_a_purge_leaves_nothing(node: Machine) -> None:
    node.run("rm", "-r", f"/etc/systemd/system/{AGENT}.service.d")
    node.run("apt-get", "--quiet", "--yes", "remove", "vmmigration", AGENT)
    assert node.unit(AGENT, "ActiveState") == "inactive"
    assert node.says("pgrep", "-f", "vmmigration-agent") == ""
    assert node.says("ls", "/etc/vmmigration").split() == [
        "AgentIPAddr.txt", "AgentKey.txt", "ControllerIPAddr.txt", "ControllerKey.txt"]
    node.run("apt-get", "--quiet", "--yes", "purge", "vmmigration", AGENT)
    left = node.says("find", "/", "-xdev", "-path", "*vmmigration*")
    assert left == ""
