"""Shows a run while it goes on: steps and progress, as lines, with a bar on a terminal, as JSON, or not at all."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from typing import TextIO

from console.figures import DiskMeters, RateMeter, disk_percent, percent, progress_text
from console.terminal import printable, write
from constant import Command
from control.conversation import StepResult
from wire.records import Progress

_PLAIN_INTERVAL_SECONDS = 5.0
_BAR_INTERVAL_SECONDS = 0.1


class Display:
    """Shows steps and progress on stderr: as lines, with a bar on a terminal, as JSON, or not at all."""

    def __init__(self, mode: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._mode = mode
        self._stream = stream
        self._clock = clock
        self._bar = mode == "bar"
        self._drawn = False
        self._new_step()

    def _new_step(self) -> None:
        self._meter = RateMeter()
        self._disks = DiskMeters()
        self._percent = 0
        # A plain line is worth writing once a step takes longer than the interval; a bar at once.
        self._shown_at = self._clock() if self._mode == "plain" else float("-inf")

    def step_began(self, command: Command, host: str) -> None:
        """Name the step on the terminal while it runs."""
        self._new_step()
        if self._mode == "json":
            self._json({"event": "step-began", "command": command.value, "host": host})
        elif self._bar:
            self._draw(f"{command.value:<23} {host:<16} ...")

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        """Draw the bar, or write a line if the last one is old enough."""
        now = self._clock()
        self._meter.add(now, progress.done)
        self._disks.add(now, progress.disks)
        self._percent = percent(progress, self._percent)
        interval = _PLAIN_INTERVAL_SECONDS if self._mode == "plain" else _BAR_INTERVAL_SECONDS
        if now - self._shown_at < interval:
            return
        self._shown_at = now
        if self._mode == "json":
            self._json({
                "event": "progress", "command": command.value, "host": host, "phase": progress.phase,
                "done": progress.done, "total": progress.total, "percent": self._percent,
                "rate": round(self._meter.rate()), **self._details(progress)})
            return
        text = progress_text(progress, self._percent, self._meter, self._disks)
        if self._bar:
            filled = self._percent * 20 // 100
            self._draw(f"{command.value:<23} [{'#' * filled}{'.' * (20 - filled)}] {text}")
        elif self._mode == "plain":
            self._line(f"{command.value:<23} {host:<16} {text}")

    def _details(self, progress: Progress) -> dict[str, object]:
        """What --progress json also tells: each disk while they are mirrored, and the passes over the memory."""
        memory = progress.memory
        return {
            "disks": [{"target": disk.target, "done": disk.done, "total": disk.total, "percent": disk_percent(disk),
                       "rate": round(self._disks.rate(disk))} for disk in progress.disks],
            "memory": None if memory is None else {
                "pass": memory.passes, "left": memory.left, "rate": memory.rate, "dirty_rate": memory.dirty_rate,
                "downtime_limit_ms": memory.downtime_limit, "post_copy": memory.post_copy}}

    def step_ended(self, step: StepResult) -> None:
        """One line: step, host, result, seconds."""
        if self._mode == "json":
            error = step.error.code.value if step.error else None
            self._json({"event": "step-ended", "command": step.command.value, "host": step.host,
                        "seconds": round(step.seconds, 3), "summary": step.summary, "obstacles": step.obstacles,
                        "error": error})
        elif self._mode != "none":
            result = "FAILED" if step.error else "BLOCKED" if step.obstacles else "ok"
            text = step.error.code.value if step.error else printable(step.summary)
            self._line(f"{step.command.value:<23} {step.host:<16} {result:<7} {step.seconds:6.2f} s  {text}")

    def leaving(self, seconds: float) -> None:
        """Say what Ctrl-C does."""
        if self._mode == "json":
            self._json({"event": "leaving"})
        elif self._mode != "none":
            self._line(f"Leaving: the job goes on. Ctrl-C once more within {seconds:.0f} s cancels it.")

    def cancelling(self, *, possible: bool) -> None:
        """Say that Ctrl-C was understood."""
        if self._mode == "json":
            self._json({"event": "cancelling" if possible else "too-late-to-cancel"})
        elif self._mode != "none":
            answer = "Cancelling: the VM stays where it is." if possible else "Too late to cancel: this clears up."
            self._line(f"{answer} A second Ctrl-C leaves at once, with the state unknown.")

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._drawn = True
        self._write(f"\r\x1b[K{text[:width]}")

    def _line(self, text: str) -> None:
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Take the bar off the terminal."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _json(self, event: dict[str, object]) -> None:
        self._write(json.dumps(event) + "\n")

    def _write(self, text: str) -> None:
        if not write(self._stream, text):
            # Nobody is looking any more. That is no reason to leave a migration alone in the middle.
            self._mode, self._bar, self._drawn = "none", False, False


def display_mode(options: argparse.Namespace, stream: TextIO) -> str:
    """What --progress and -q come to on this stream."""
    if options.quiet:
        return "none"
    if options.progress == "auto":
        return "bar" if stream.isatty() else "plain"
    return str(options.progress)
