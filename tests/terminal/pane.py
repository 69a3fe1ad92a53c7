"""A terminal of tmux's with a shell in it: what is typed there, and what a person sees."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

# Far longer than anything here takes.
PATIENCE_SECONDS = 30.0
PROMPT = "$ "


class Pane:
    """One terminal, on a tmux server of its own."""

    def __init__(
        self, socket: Path, directory: Path, width: int, height: int, environment: Mapping[str, str],
    ) -> None:
        """Run a shell whose PATH begins with the directory, and which has that in its environment."""
        self._socket = socket
        given = {"PATH": f"{directory}:{os.environ['PATH']}", "HOME": str(directory), "PS1": PROMPT,
                 "LC_ALL": "C.UTF-8", "HISTFILE": "", **environment}
        self._begin = [
            "-f", "/dev/null", "new-session", "-d", "-c", str(directory), "-x", str(width), "-y", str(height),
            "env", *(f"--unset={name}" for name in ("NO_COLOR", "COLUMNS", "LINES")),
            *(f"{name}={value}" for name, value in given.items()), "bash", "--norc", "--noprofile", "-i"]

    def __enter__(self) -> Pane:
        self._tmux(*self._begin)
        try:
            self.wait("a prompt", lambda lines: lines[:1] == [PROMPT.strip()])
        except BaseException:
            self._tmux("kill-server")
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None,
    ) -> None:
        self._tmux("kill-server")

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-u", "-S", str(self._socket), *words]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def type(self, *keys: str) -> None:
        """Press these keys, by tmux's names of them."""
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        """Make the window larger or smaller."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def lines(self) -> list[str]:
        """What a person sees and can scroll back to, without the empty rows below."""
        return self._tmux("capture-pane", "-p", "-S", "-").rstrip("\n").split("\n")

    def whole_lines(self) -> list[str]:
        """The same, with what the terminal has broken put together again."""
        return [line.rstrip() for line in self._tmux("capture-pane", "-p", "-J", "-S", "-").rstrip("\n").split("\n")]

    def colours(self) -> str:
        """The same with the sequences that colour it."""
        return self._tmux("capture-pane", "-p", "-e", "-S", "-")

    def wait(self, what: str, holds: Callable[[list[str]], bool]) -> list[str]:
        """Look until that is what is seen; what is seen then."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not holds(lines := self.lines()):
            assert time.monotonic() < until, f"still not {what}:\n" + "\n".join(lines)
            time.sleep(0.05)
        return lines

    def wait_for(self, *texts: str) -> list[str]:
        """Look until all of these are seen."""
        return self.wait(f"seen {texts}", lambda lines: all(any(text in line for line in lines) for text in texts))


    def wait_for_last(self, *last: str) -> list[str]:
        """Look until these are the last lines."""
        return self.wait(f"at {last}", lambda lines: lines[-len(last):] == list(last))

    def wait_for_end(self) -> list[str]:
        """Look until the shell waits for the next command; what is seen then, without that."""
        return self.wait("back at the prompt", lambda lines: lines[-1] == PROMPT.strip() and len(lines) > 1)[:-1]
