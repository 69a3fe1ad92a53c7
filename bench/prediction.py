"""Measures whether the plan's expected range holds the time that the run then takes, at several rates of the link.

Real hosts, a real guest and real moves to and fro in the lab (root needed): `script/bench prediction`. Prints a line
for each move, then how many of them were within the range.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab import GuestSpec, Host, Lab, start_guest
from tests.lab.state import CHECKOUT

_MIB = 1024 * 1024
_GUEST = "predicted"
_RUN_SECONDS = 1800.0
_COLUMNS = "{:>8} {:>10} {:>10} {:>10} {:>9} {:>16}  {}"


@dataclass(frozen=True)
class Move:
    """One move: what was planned for it, and how long it took. Bytes per second, bytes and seconds."""

    limit: str
    plan: dict[str, Any]
    seconds: float

    @property
    def within(self) -> bool:
        """Whether it took as long as was said."""
        low, high = self.plan["seconds"] or (0.0, 0.0)
        return bool(low <= self.seconds <= high)

    def line(self) -> str:
        """The line of the table."""
        low, high = self.plan["seconds"] or (0.0, 0.0)
        return _COLUMNS.format(
            self.limit, f"{(self.plan['link_bytes_per_second'] or 0) / _MIB:.1f}", self.plan["disk_bytes"] // _MIB,
            self.plan["memory_bytes"] // _MIB, f"{self.seconds:.1f}", f"{low:.1f} to {high:.1f}",
            "within" if self.within else f"OUTSIDE ({self.plan['verdict']})")


def _move(lab: Lab, source: Host, destination: Host, limit: str) -> Move:
    """Move the guest, and leave no copy of it behind."""
    words = ["/usr/bin/python3", str(CHECKOUT / "vmmigration.py"), "--json", "--progress", "none", "--source-after",
             "delete", source.address, destination.address, "kvm", _GUEST]
    result = json.loads(lab.host("boss").run(words, timeout=_RUN_SECONDS).stdout)
    return Move(limit, result["plan"], result["seconds"])


def measure(limits: Sequence[str], runs: int, spec: GuestSpec) -> list[Move]:
    """Move a guest to and fro, `runs` times at each limit: Mbit/s, or `off` for none."""
    moves = []
    with Lab("predict") as lab:
        lab.down()
        lab.up()
        lab.provision()
        agents = [lab.start_agent(node) for node in lab.nodes]
        hosts = list(lab.nodes)
        start_guest(lab, hosts[0], spec).wait_for_ticks(20)
        for limit in limits:
            for host in hosts:
                host.rate(None if limit == "off" else float(limit))
            for _run in range(runs):
                moves.append(_move(lab, hosts[0], hosts[1], limit))
                print(moves[-1].line(), flush=True)
                hosts.reverse()
        for agent in agents:
            agent.stop()
    return moves


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 1 if fewer than 8 of 10 moves were within their range."""
    parser = argparse.ArgumentParser(prog="script/bench prediction", description=__doc__)
    parser.add_argument("--limits", default="off,500,100", metavar="MBIT,...", help="default: off,500,100")
    parser.add_argument("--runs", type=int, default=4, help="moves at each limit (default: 4)")
    parser.add_argument("--data", type=int, default=256, metavar="MiB", help="what the disk holds (default: 256)")
    parser.add_argument("--writer", type=int, default=0, metavar="MiB", help="rewritten in a circle by the guest")
    options = parser.parse_args(argv)
    spec = GuestSpec(
        _GUEST, disk_bytes=4096 * _MIB, data_bytes=options.data * _MIB, writer_mib=options.writer)
    print(_COLUMNS.format("Mbit/s", "MiB/s", "disk MiB", "RAM MiB", "took s", "expected s", ""))
    moves = measure(options.limits.split(","), options.runs, spec)
    within = sum(move.within for move in moves)
    print(f"{within} of {len(moves)} within the range")
    return 0 if within * 10 >= len(moves) * 8 else 1


if __name__ == "__main__":
    sys.exit(main())
