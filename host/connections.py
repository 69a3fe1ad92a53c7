"""Cuts the TCP connections that a domain's QEMU has open to another host: the last resort against a job that hangs.

A QEMU that waits for an answer on a dead link waits for ever (measured: 11 minutes, until its socket was killed;
design.md, section 4).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from pathlib import Path

from host.process import run_tool
from host.qemu_process import process_id
from wire.errors import MigrationError

log = logging.getLogger(__name__)


def cut_connections(domain: str, destination: str, host: str) -> int:
    """Cut them with `ss --kill`; returns how many there were. What goes wrong is logged: there is nothing else to try.

    Each is named by its own two ports, so that no other program's connection is cut.
    """
    cut = 0
    try:
        for local, remote in tcp_ports(process_id(domain), destination):
            run_tool(["ss", "--kill", "--tcp", "--numeric", "dst", f"{_bracketed(destination)}:{remote}", "sport", "=",
                      f":{local}"], host)
            cut += 1
    except (OSError, ValueError, MigrationError) as error:
        log.warning("cannot cut the connections of VM %s to %s: %s", domain, destination, error)
    return cut


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def tcp_ports(pid: int, address: str) -> list[tuple[int, int]]:
    """The local and the remote port of each TCP connection of a process to that address. Raises OSError."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/{pid}/fd/{name}")
            if link.startswith("socket:["):
                inodes.add(link[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and read_address(words[2]) == (ipaddress.ip_address(address), _port(words[2])):
                found.append((_port(words[1]), _port(words[2])))
    return found


def _port(text: str) -> int:
    return int(text.rpartition(":")[2], 16)


def read_address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """An address and port as /proc/net/tcp has them: each 32-bit word in the machine's own order (proc(5))."""
    digits = text.rpartition(":")[0]
    words = bytes.fromhex(digits)
    straight = b"".join(words[start:start + 4][::-1] for start in range(0, len(words), 4))
    address = ipaddress.ip_address(straight)
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address, _port(text)
