"""The lab's own command line: `script/lab --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .guest import GuestSpec, parse_size
from .hostfiles import QEMU_USER
from .kernel import guest_boot
from .lab import Lab
from .start import start_guest
from .state import CHECKOUT, LabError
from .witness import Witness

EXIT_FAILED = 1
#: The witness found a record lost, a write failed, or two copies running.
EXIT_UNSOUND = 3
#: Set by script/lab, which changes to the checkout: where its caller was.
CALLER_DIRECTORY_VARIABLE = "VMMIGRATION_LAB_CALLER_DIRECTORY"


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="script/lab", description="Real KVM hosts in namespaces of this machine.")
    parser.add_argument("--prefix", default="lab", help="which lab, where several run side by side (default: lab)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="bring boss, node1 and node2 up")
    up.add_argument("--firewall", action="store_true", help="let only SSH, UDP 8001 and 8002 in")
    up.add_argument("--qemu-root", action="store_true", help="QEMU runs as root, not as libvirt-qemu")
    commands.add_parser("down", help="take everything down, also what a failed `up` has left")
    commands.add_parser("hosts", help="print name, address and full name of each host")
    commands.add_parser("leftovers", help="print what is there of the lab; fails if there is anything")
    commands.add_parser("kernel", help="fetch and unpack the guest's kernel")

    run = commands.add_parser("run", help="run a command in a host")
    run.add_argument("--user", default="root")
    run.add_argument("host")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD ...")

    guest = commands.add_parser("guest", help="start a guest")
    start = guest.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser("start")
    start.add_argument("host")
    start.add_argument("name")
    start.add_argument("--format", choices=("qcow2", "raw"), default="qcow2")
    start.add_argument("--disk-size", type=parse_size, default=parse_size("8G"), metavar="SIZE")
    start.add_argument("--data", type=parse_size, default=parse_size("2G"), metavar="SIZE", help="random content")
    start.add_argument("--memory", type=int, default=192, metavar="MiB")
    start.add_argument("--writer", type=int, default=0, metavar="MiB", help="rewritten in a circle by the guest")

    witness = commands.add_parser("witness", help="what a guest's witness has to say")
    report = witness.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser("report")
    report.add_argument("name")
    report.add_argument("--json", action="store_true")
    report.add_argument("--disk", metavar="IMAGE", help="path in --host, instead of the domain's own disk")
    report.add_argument("--host", help="the host of that image (default: where the guest ticked last)")
    report.add_argument("--no-disk", action="store_true", help="do not look at the disk")

    link = commands.add_parser("link", help="pull a host's cable, or plug it in")
    link.add_argument("host")
    link.add_argument("state", choices=("up", "down"))
    rate = commands.add_parser("rate", help="limit a host's bandwidth")
    rate.add_argument("host")
    rate.add_argument("mbit", help="megabits per second, or off")
    firewall = commands.add_parser("firewall", help="switch the firewalls of all hosts")
    firewall.add_argument("state", choices=("on", "off"))

    commands.add_parser("provision", help="write VMMigration's keys and allow-lists into all hosts")
    agent = commands.add_parser("agent", help="start VMMigration's agent in a host")
    agent.add_argument("host")
    agent.add_argument("options", nargs=argparse.REMAINDER)
    return parser


def _run(lab: Lab, arguments: argparse.Namespace) -> int:
    """Become the command that is to run in a host."""
    if not arguments.argv:
        raise LabError("run: no command given")
    terminal = {name: os.environ[name] for name in ("TERM", "COLUMNS", "LINES") if name in os.environ}
    directory = os.environ.get(CALLER_DIRECTORY_VARIABLE) or os.getcwd()
    argv, environment = lab.host(arguments.host).launch(arguments.argv, arguments.user, terminal, directory)
    os.execve(argv[0], argv, environment)  # noqa: S606 - an argument list; the launcher takes this process's place


def _start_guest(lab: Lab, arguments: argparse.Namespace) -> int:
    """Start a guest and say that it ticks."""
    spec = GuestSpec(
        arguments.name,
        image_format=arguments.format,
        disk_bytes=arguments.disk_size,
        data_bytes=arguments.data,
        memory_mib=arguments.memory,
        writer_mib=arguments.writer,
    )
    host = lab.host(arguments.host)
    start_guest(lab, host, spec)
    print(f"{spec.name} runs and ticks on {host.full_name}, disk {spec.image_path}")
    return 0


def _report(lab: Lab, arguments: argparse.Namespace) -> int:
    """Print the witness's report."""
    host = lab.host(arguments.host) if arguments.host else None
    report = Witness(lab, arguments.name).report(image=arguments.disk, host=host, disk=not arguments.no_disk)
    print(report.to_json() if arguments.json else report.to_text())
    return 0 if report.sound else EXIT_UNSOUND


def _leftovers(lab: Lab) -> int:
    """Print what there is of the lab."""
    found = lab.leftovers()
    print("\n".join(found) or f"nothing is left of lab {lab.prefix!r}")
    return EXIT_FAILED if found else 0


def _network(lab: Lab, arguments: argparse.Namespace) -> int:
    """Change a link, a rate or the firewalls."""
    if arguments.command == "link":
        lab.host(arguments.host).link(arguments.state == "up")
    elif arguments.command == "rate":
        lab.host(arguments.host).rate(None if arguments.mbit == "off" else float(arguments.mbit))
    else:
        for host in lab.hosts.values():
            host.firewall(arguments.state == "on")
    return 0


def _dispatch(lab: Lab, arguments: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit code."""
    command = arguments.command
    if command == "up":
        lab.up(firewall=arguments.firewall)
    elif command == "down":
        lab.down()
    elif command == "hosts":
        for host in lab.hosts.values():
            print(host.name, host.address, host.full_name)
    elif command == "leftovers":
        return _leftovers(lab)
    elif command == "kernel":
        print(guest_boot().kernel)
    elif command == "run":
        return _run(lab, arguments)
    elif command == "guest":
        return _start_guest(lab, arguments)
    elif command == "witness":
        return _report(lab, arguments)
    elif command == "provision":
        lab.provision(CHECKOUT)
    elif command == "agent":
        print(lab.start_agent(lab.host(arguments.host), *arguments.options).log)
    else:
        return _network(lab, arguments)
    return 0


def _end_on_signal(number: int, _: object) -> None:
    """Let `up` clean up when it is told to end."""
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _end_on_signal)
    signal.signal(signal.SIGHUP, _end_on_signal)
    try:
        if os.geteuid() != 0:
            raise LabError("the lab needs root: it makes namespaces")
        qemu_user = "root" if getattr(arguments, "qemu_root", False) else QEMU_USER
        return _dispatch(Lab(arguments.prefix, qemu_user=qemu_user), arguments)
    except (LabError, OSError) as error:
        print(f"{Path(sys.argv[0]).parent.name}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
