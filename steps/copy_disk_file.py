"""COPY_DISK_FILE: what the mirror of LIVE_MIGRATION does not carry, sent over SSH beforehand.

A running VM's top image is never copied as a file: it would be torn, and every byte would cross twice.
"""

from __future__ import annotations

from steps.context import StepContext
from wire.records import StepArguments, StepReport


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Say what is sent here and what the live migration carries."""
    names = ", ".join(disk.path.rpartition("/")[2] for disk in arguments.known_facts().disks)
    return StepReport(summary=f"nothing to send beforehand, {names} crosses in the live migration")
