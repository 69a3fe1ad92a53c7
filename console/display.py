"""Shows a run while it goes on: steps and progress on a terminal, as plain lines, as JSON, or not at all."""

from __future__ import annotations

import argparse
import functools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

from console.columns import pad, wrap
from console.figures import Running, StepMeter, disk_percent, progress_text
from console.language import readable, translate
from console.live import Live, Repeat, repeat_in_thread
from console.screen import finished_lines, room, running_lines
from console.terminal import Look, look_of, obeys_sequences, printable, write
from constant import Command
from control.conversation import StepResult
from wire.records import Progress

_PLAIN_INTERVAL_SECONDS = 5.0
_JSON_INTERVAL_SECONDS = 0.1


class _Form(Protocol):
    """One of the ways in which a run is shown."""

    def began(self, meter: StepMeter) -> None:
        """A step begins."""

    def went_on(self, meter: StepMeter) -> None:
        """It told how far it is."""

    def ended(self, step: StepResult) -> None:
        """It has ended."""

    def said(self, event: str, text: str) -> None:
        """Something else has happened, as an event for programs and in words."""

    def clear(self) -> None:
        """Leave nothing that is not to stay."""


class _Lines:
    """A stream on which a line after the other is written, as long as anybody reads them."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], interval: float) -> None:
        self._stream = stream
        self._clock = clock
        self._interval = interval
        self._told_at = float("-inf")
        self._read = True

    def _is_due(self) -> bool:
        """Whether the last progress was told long enough ago."""
        now = self._clock()
        if now - self._told_at < self._interval:
            return False
        self._told_at = now
        return True

    def _line(self, text: str) -> None:
        # Nobody reading is no reason to leave a migration alone in the middle.
        self._read = self._read and write(self._stream, text + "\n")

    def clear(self) -> None:
        """All lines stay."""


class _Plain(_Lines):
    """A line for each step at its end, and now and then one for a step that takes longer."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        super().__init__(stream, clock, _PLAIN_INTERVAL_SECONDS)

    def began(self, _meter: StepMeter) -> None:
        """A line is worth writing once it takes longer than the interval."""
        self._told_at = self._clock()

    def went_on(self, meter: StepMeter) -> None:
        """Write a line if the last one is old enough."""
        if self._is_due():
            text = printable(progress_text(meter.at(self._clock())))
            self._line(f"{meter.command.value:<23} {meter.host:<16} {text}")

    def ended(self, step: StepResult) -> None:
        """One line: step, host, result, seconds."""
        result = translate("FAILED") if step.error else translate("BLOCKED") if step.obstacles else translate("ok")
        text = step.error.code.value if step.error else printable(readable(step.summary))
        self._line(f"{step.command.value:<23} {step.host:<16} {pad(result, 7)} {step.seconds:6.2f} s  {text}")

    def said(self, _event: str, text: str) -> None:
        """The words."""
        self._line(text)


class _Json(_Lines):
    """An object a line, as docs/json.md says."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        super().__init__(stream, clock, _JSON_INTERVAL_SECONDS)

    def _event(self, event: str, **fields: object) -> None:
        self._line(json.dumps({"event": event, **fields}))

    def began(self, meter: StepMeter) -> None:
        """`step-began`."""
        self._told_at = float("-inf")
        self._event("step-began", command=meter.command.value, host=meter.host)

    def went_on(self, meter: StepMeter) -> None:
        """`progress`."""
        running = meter.at(self._clock())
        progress = running.progress
        if progress is None or not self._is_due():
            return
        self._event(
            "progress", command=running.command.value, host=running.host, phase=progress.phase, done=progress.done,
            total=progress.total, percent=running.percent, rate=round(running.rate), **_details(running, progress))

    def ended(self, step: StepResult) -> None:
        """`step-ended`."""
        self._event(
            "step-ended", command=step.command.value, host=step.host, seconds=round(step.seconds, 3),
            summary=step.summary, obstacles=step.obstacles, error=step.error.code.value if step.error else None)

    def said(self, event: str, _text: str) -> None:
        """The event."""
        self._event(event)


def _details(running: Running, progress: Progress) -> dict[str, object]:
    """Each disk while they are mirrored, and the passes over the memory."""
    memory = progress.memory
    return {
        "disks": [{"target": disk.target, "done": disk.done, "total": disk.total, "percent": disk_percent(disk),
                   "rate": round(running.disk_rate(disk))} for disk in progress.disks],
        "memory": None if memory is None else {
            "pass": memory.passes, "left": memory.left, "rate": memory.rate, "dirty_rate": memory.dirty_rate,
            "downtime_limit_ms": memory.downtime_limit, "post_copy": memory.post_copy}}


class _Nothing:
    """Shows nothing."""

    def began(self, meter: StepMeter) -> None:
        """Not shown."""

    def went_on(self, meter: StepMeter) -> None:
        """Not shown."""

    def ended(self, step: StepResult) -> None:
        """Not shown."""

    def said(self, event: str, text: str) -> None:
        """Not shown."""

    def clear(self) -> None:
        """Nothing is there."""


class _Screen:
    """Steps that are done as lines that stay, and what runs as a block below them."""

    def __init__(
        self, stream: TextIO, lock: AbstractContextManager[bool], clock: Callable[[], float],
        look: Callable[[], Look], repeat: Repeat,
    ) -> None:
        self._clock = clock
        self._hosts: list[str] = []
        self._running: dict[tuple[Command, str], StepMeter] = {}
        self._live = Live(stream, self._block, lock=lock, clock=clock, look=look, repeat=repeat)

    def _block(self, look: Look) -> Sequence[str]:
        now = self._clock()
        return running_lines([meter.at(now) for meter in self._running.values()], look, self._hosts)

    def began(self, meter: StepMeter) -> None:
        """It is in the block from now on."""
        if meter.host not in self._hosts:
            self._hosts.append(meter.host)
        self._running[meter.command, meter.host] = meter
        self._live.changed()

    def went_on(self, _meter: StepMeter) -> None:
        """The block shows it."""
        self._live.changed()

    def ended(self, step: StepResult) -> None:
        """It is a line above the block now."""
        self._running.pop((step.command, step.host), None)
        self._live.say(lambda look: finished_lines(step, look, self._hosts))

    def said(self, _event: str, text: str) -> None:
        """The words, above the block."""
        self._live.say(lambda look: wrap(text, room(look), room(look)))

    def clear(self) -> None:
        """Take the block off the terminal, with all that has not ended: that is not followed any more."""
        self._running.clear()
        self._live.stop()


class Display:
    """An Observer that shows steps and progress in one of the forms `screen`, `plain`, `json` and `none`.

    Told from one thread; a screen is drawn by another one as well.
    """

    def __init__(
        self, mode: str, stream: TextIO, clock: Callable[[], float] = time.monotonic, *,
        look: Callable[[], Look] | None = None, repeat: Repeat = repeat_in_thread,
    ) -> None:
        look = look if look is not None else functools.partial(look_of, stream)
        self._lock = threading.RLock()
        forms: Mapping[str, Callable[[], _Form]] = {
            "screen": lambda: _Screen(stream, self._lock, clock, look, repeat), "plain": lambda: _Plain(stream, clock),
            "json": lambda: _Json(stream, clock), "none": _Nothing}
        self._form = forms[mode]()
        self._clock = clock
        self._meters: dict[tuple[Command, str], StepMeter] = {}

    def step_began(self, command: Command, host: str) -> None:
        """Name the step while it runs."""
        with self._lock:
            meter = self._meters[command, host] = StepMeter(command, host, self._clock())
            self._form.began(meter)

    def step_progress(self, command: Command, host: str, progress: Progress) -> None:
        """Show how far it is."""
        with self._lock:
            meter = self._meters[command, host]
            meter.add(self._clock(), progress)
            self._form.went_on(meter)

    def step_ended(self, step: StepResult) -> None:
        """Show what became of it."""
        with self._lock:
            self._meters.pop((step.command, step.host), None)
            self._form.ended(step)

    def leaving(self, seconds: float) -> None:
        """Say what Ctrl-C does."""
        words = translate("Leaving: the running step goes on. Ctrl-C once more within {seconds} s cancels the job.")
        self._say("leaving", words.format(seconds=f"{seconds:.0f}"))

    def cancelling(self, *, possible: bool, pressed: bool = True) -> None:
        """Say that Ctrl-C, or `cancel`, was understood."""
        if possible:
            self._say("cancelling", translate(
                "Cancelling: the VM stays where it is if it has not moved yet. Another Ctrl-C leaves at once, with the "
                "state unknown."
                if pressed else
                "Cancelling: the VM stays where it is if it has not moved yet. Ctrl-C leaves at once, with the state "
                "unknown."))
        else:
            self._say("too-late-to-cancel", translate(
                "Too late to cancel: this clears up. Another Ctrl-C leaves at once, with that unfinished."))

    def _say(self, event: str, text: str) -> None:
        with self._lock:
            self._form.said(event, text)

    def clear(self) -> None:
        """Leave the terminal to whoever writes to it now."""
        with self._lock:
            self._form.clear()


def display_mode(options: argparse.Namespace, stream: TextIO) -> str:
    """What --progress and -q come to on this stream."""
    if options.quiet:
        return "none"
    if options.progress == "auto":
        return "screen" if obeys_sequences(stream) else "plain"
    return str(options.progress)
