"""What --report asks for: a run is written down while it goes on, and at its end a page about it is put into a file.

Whether that can be written is found out before the run. Nothing is overwritten that is no page of this program's.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from console.program import NAME, PROGRAM
from console.recorder import Recorder
from console.result import show_errors
from control.conversation import Contact
from control.report import RunReport
from controller import Controller
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

if TYPE_CHECKING:
    from console.report_page import RunPage

log = logging.getLogger(__name__)

# The line that makes a page ours stands in its first few elements.
_MARK = f'<meta name="generator" content="{NAME} '.encode("ascii")
_MARKED_WITHIN = 512


class ReportFile:
    """The place of a page."""

    def __init__(self, path: str) -> None:
        self.path = path
        # A link to a page keeps pointing to the newest.
        self._target = Path(os.path.realpath(path))

    def check(self) -> None:
        """See that it can be written. Raises MigrationError FILE_NOT_WRITTEN."""
        try:
            self._refuse_what_is_there()
            # What access rights alone do not tell: a read-only or full file system, a quota.
            beside = self._write_beside("")
            beside.unlink()
        except OSError as error:
            raise self.not_written(_reason(error)) from error

    def write(self, page: str) -> None:
        """Put the page there, whole or not at all, for its owner's eyes. Raises MigrationError FILE_NOT_WRITTEN."""
        try:
            self._refuse_what_is_there()
            beside = self._write_beside(page)
            try:
                os.replace(beside, self._target)
            except OSError:
                beside.unlink()
                raise
        except OSError as error:
            raise self.not_written(_reason(error)) from error

    def not_written(self, reason: str) -> MigrationError:
        """The error for that."""
        return MigrationError(ErrorCode.FILE_NOT_WRITTEN, {"path": self.path, "reason": reason})

    def _unfit(self, reason: Phrase) -> MigrationError:
        """The error for a name under which no page can be."""
        return MigrationError(ErrorCode.FILE_NOT_WRITTEN, {
            "path": self.path, "reason": reason, "hint": Phrase("Give another file name.")})

    def _refuse_what_is_there(self) -> None:
        """Raises MigrationError for anything but a page of ours, OSError where it cannot be looked at."""
        if self.path in ("", "-") or self.path.endswith(("/", os.sep)):
            raise self._unfit(Phrase("it names no file"))
        try:
            mode = self._target.stat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise self._unfit(Phrase("it is a directory"))
        if not stat.S_ISREG(mode):
            raise self._unfit(Phrase("it is no ordinary file"))
        with open(self._target, "rb") as file:
            if _MARK not in file.read(_MARKED_WITHIN):
                raise self._unfit(Phrase("it is there already, and no report of this program"))

    def _write_beside(self, text: str) -> Path:
        """A new file next to it that only its owner can read; gone again if it could not be written."""
        beside = self._target.with_name(f".{NAME}-{secrets.token_hex(4)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        return beside


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class WrittenRun:
    """A run that is written down, and a page of it if one was asked for. Raises MigrationError if that cannot be."""

    def __init__(self, options: argparse.Namespace, clock: Callable[[], float] = time.monotonic,
                 wall: Callable[[], float] = time.time) -> None:
        self._file = ReportFile(options.report) if options.report is not None else None
        if self._file is not None:
            self._file.check()
        self._command = command_line(options.typed)
        self._wall_offset = wall() - clock()
        self._began = datetime.fromtimestamp(wall()).astimezone()
        self.recorder = Recorder(clock, resumes=options.words[:1] == ["resume"])
        self._report: RunReport | None = None

    def ended(self, report: RunReport) -> None:
        """Take how it ended."""
        self._report = report

    def write(self, controller: Controller) -> None:
        """Write the page if one was asked for and the run began; say so if that fails, and raise nothing.

        The run has ended as it has: nothing that happens here may make another exit code of it.
        """
        if self._file is None or self._report is None:
            return
        try:
            # Imported here because it is 15 to 20 ms of each start (measured), and few runs want a page.
            from console.report_page import page

            self._file.write(page(self._all_of_it(controller, self._report)))
        except MigrationError as error:
            show_errors([error], sys.stderr)
        except (Exception, KeyboardInterrupt) as error:
            log.debug("unexpected", exc_info=True)
            show_errors([self._file.not_written(repr(error))], sys.stderr)

    def _all_of_it(self, controller: Controller, report: RunReport) -> RunPage:
        from console.report_page import RunPage

        contacts = {address: contact for address, contact in controller.conversation.contacts.items()
                    if address in (report.migration.source, report.migration.destination)}
        return RunPage(
            report, self.recorder.recording(), self._began, self._command, controller.facts,
            {address: contact.facts for address, contact in contacts.items()}, self._clocks(contacts))

    def _clocks(self, contacts: Mapping[str, Contact]) -> dict[str, float]:
        """How many seconds each host's clock is certain to be ahead of this one's."""
        return {address: contact.ahead(self._wall_offset) for address, contact in contacts.items()}


def command_line(typed: Sequence[str]) -> str:
    """The command as it can be typed again. No option takes a secret: keys are in files."""
    words = [PROGRAM, *typed]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
