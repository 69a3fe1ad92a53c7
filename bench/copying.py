"""Measures how long a file takes that is sent over SSH, beside scp of the same file in the same run.

Real hosts in the lab (root needed): `script/bench copying`. A dense raw image and a sparse one of a VM that is shut
off, in pairs; prints a line for each pair, then medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Host, Lab
from tests.lab.state import CHECKOUT

_MIB = 1024 * 1024
_RUN_SECONDS = 3600.0
_IMAGE = "/var/lib/libvirt/images/copied.img"
_DOMAIN = f"""<domain type='qemu'><name>copied</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='file' device='disk'>
<driver name='qemu' type='raw'/><source file='{_IMAGE}'/><target dev='vda' bus='virtio'/></disk></devices></domain>
"""
_COLUMNS = "{:>8} {:>10} {:>10} {:>10} {:>14} {:>7}"


@dataclass(frozen=True)
class Pair:
    """Ours, the step and the whole run, and scp's, one after the other. Seconds."""

    ours: float
    run: float
    scp: float


def _make(path: Path, length: int, data: int) -> None:
    """A file of `length` bytes, of which `data` at its end are random."""
    with path.open("wb") as file:
        file.truncate(length)
        file.seek(length - data)
        for _block in range(data // _MIB):
            file.write(os.urandom(_MIB))
        os.fsync(file.fileno())


def _ours(lab: Lab, source: Host, destination: Host) -> tuple[float, float]:
    words = ["/usr/bin/python3", str(CHECKOUT / "vmmigration.py"), "--json", "--progress", "none", source.address,
             destination.address, "kvm", "copied"]
    result = json.loads(lab.host("boss").run(words, timeout=_RUN_SECONDS).stdout)
    destination.run(["virsh", "-q", "undefine", "copied"])
    destination.path(_IMAGE).unlink()
    step = next(each["seconds"] for each in result["steps"] if each["command"] == "COPY_DISK_FILE")
    return float(step), float(result["seconds"])


def _scp(source: Host, destination: Host) -> float:
    target = "/home/kvm/copied.img"
    began = time.monotonic()
    source.run(["scp", "-q", _IMAGE, f"kvm@{destination.address}:{target}"], timeout=_RUN_SECONDS)
    seconds = time.monotonic() - began
    destination.path(target).unlink()
    return seconds


def measure(lab: Lab, length: int, data: int, runs: int) -> list[Pair]:
    """Copy such an image `runs` times each way of doing it, in turn."""
    source, destination = lab.nodes
    _make(source.path(_IMAGE), length, data)
    source.path("/tmp/copied.xml").write_text(_DOMAIN)  # noqa: S108 - the host's own /tmp
    source.run(["virsh", "-q", "define", "/tmp/copied.xml"])  # noqa: S108 - see above
    pairs = []
    for _run in range(runs):
        ours, run = _ours(lab, source, destination)
        pairs.append(Pair(ours, run, _scp(source, destination)))
        print(_line(length, data, pairs[-1:]), flush=True)
    source.run(["virsh", "-q", "undefine", "copied"])
    source.path(_IMAGE).unlink()
    print(_line(length, data, pairs), "median", flush=True)
    return pairs


def _line(length: int, data: int, pairs: Sequence[Pair]) -> str:
    ours, run, scp = (statistics.median(values) for values in zip(*((each.ours, each.run, each.scp) for each in pairs)))
    return _COLUMNS.format(
        f"{length / 1024**3:.0f} GiB", f"{data // _MIB} MiB", f"{ours:.1f} s", f"{scp:.1f} s", f"{run:.1f} s",
        f"{ours / scp:.2f}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="script/bench copying", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="pairs for each image (default: 3)")
    parser.add_argument("--dense", type=int, default=2, metavar="GiB", help="length of the dense image (default: 2)")
    parser.add_argument("--sparse", type=int, default=40, metavar="GiB", help="length of the sparse one (default: 40)")
    options = parser.parse_args(argv)
    print(_COLUMNS.format("length", "data", "the step", "scp", "the whole run", "ratio"))
    with Lab("copying") as lab:
        lab.down()
        lab.up()
        lab.provision()
        agents = [lab.start_agent(node) for node in lab.nodes]
        measure(lab, options.dense * 1024 * _MIB, options.dense * 1024 * _MIB, options.runs)
        if options.sparse:
            measure(lab, options.sparse * 1024 * _MIB, 1024 * _MIB, options.runs)
        for agent in agents:
            agent.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
