"""The lab itself: it comes and goes without a trace, and what the witness says can be believed."""

from __future__ import annotations

import signal
import subprocess
import time

from . import Lab, state
from .conftest import IMAGES, Guest, MakeGuest
from .witness import Witness, missing_records


def test_an_up_that_was_killed_in_the_middle_is_taken_down_without_a_trace(lab_machine: None) -> None:
    command = ["/usr/bin/python3", "-m", "tests.lab", "--prefix", "killed", "up"]
    process = subprocess.Popen(command, cwd=state.CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    broken = Lab("killed")
    broken.down()
    assert broken.leftovers() == []


def test_the_witness_notices_records_that_are_not_on_the_disk(lab: Lab, make_guest: MakeGuest) -> None:
    guest: Guest = make_guest("witness")
    node = lab.host("node1")
    copy = node.path(f"{IMAGES}/witness-copy.qcow2")
    node.run(["qemu-img", "convert", "-U", "-O", "qcow2", guest.disk, f"{IMAGES}/witness-copy.qcow2"])
    try:
        last = guest.witness.wait_for_ticks(50)
        assert missing_records(node.path(guest.disk), [last]) == []
        assert missing_records(copy, [last]) == [last]
    finally:
        copy.unlink()


def test_the_account_of_a_guest_that_is_gone_is_not_its_namesakes(lab: Lab, make_guest: MakeGuest) -> None:
    guest: Guest = make_guest("namesake")
    lab.host("node1").run(["virsh", "-q", "-c", "qemu:///system", "destroy", guest.name])
    guest.witness.end()
    assert not Witness(lab, guest.name).ticks()


def test_only_ssh_and_the_two_udp_ports_are_open_between_the_hosts(lab: Lab) -> None:
    program = (
        "import socket, sys\n"
        "try:\n"
        "    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close(); print('open')\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n")
    node1, node2 = lab.nodes
    answers = {
        port: node1.run(["/usr/bin/python3", "-c", program, node2.address, str(port)]).stdout.strip()
        for port in (22, 49152, 16509)}
    assert answers == {22: "open", 49152: "TimeoutError", 16509: "TimeoutError"}
