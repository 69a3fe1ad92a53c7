"""Real shells, asked what they complete: bash and zsh by keys at a pseudo-terminal, fish by its own `complete -C`."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

# Far longer than anything here takes: a test that comes to it has found a hang.
_PATIENCE_SECONDS = 30.0
# Insert all completions, write the line to the file of answers, empty the line: bound below.
_KEYS = b"\x18a\x18b\x15"
_BASH = r"""
HISTFILE=
bind 'set bell-style none' 'set enable-bracketed-paste off'
bind '"\C-xa": insert-completions'
bind -x '"\C-xb": printf "%s\n" "$READLINE_LINE" >>"$ANSWERS"'
"""
_ZSH = r"""
HISTFILE=
autoload -Uz compinit && compinit -u -d "$ANSWERS.dump"
zstyle ':completion:*' completer _all_matches _complete
zstyle ':completion:*' insert true
unsetopt beep
write-line() { print -r -- "$BUFFER" >>$ANSWERS }
zle -N write-line
bindkey -e
bindkey '\C-xa' complete-word
bindkey '\C-xb' write-line
"""


class Shell(Protocol):
    """A shell that completes."""

    def completes(self, line: str) -> set[str]:
        """What it would put into the place of the line's last word; empty if it knows nothing."""


class _TerminalShell:
    """A shell at a pseudo-terminal, from its start to the end of a `with`."""

    def __init__(self, argv: Sequence[str], setup: str, directory: Path, environment: Mapping[str, str]) -> None:
        self._answers = directory / "answers"
        self._answers.touch()
        self._argv, self._setup = list(argv), setup
        # A line that is longer than the terminal is wide comes back cut into pieces.
        self._environment = {**environment, "ANSWERS": str(self._answers), "TERM": "dumb", "COLUMNS": "2000"}
        self._pid = self._terminal = -1

    def __enter__(self) -> _TerminalShell:
        self._pid, self._terminal = pty.fork()
        if not self._pid:
            os.execvpe(self._argv[0], self._argv, self._environment)  # noqa: S606 - no shell in between
        # In two pieces, because what is typed is shown as well. With its prompt it has the terminal in its hand: the
        # terminal itself would take a Ctrl-U for its own.
        self._type(f"{self._setup}\nPS1='rea''dy> '\n".encode())
        self._wait_until(lambda shown: b"ready> " in shown)
        return self

    def __exit__(self, *_what: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)

    def completes(self, line: str) -> set[str]:
        before = len(self._lines())
        self._type(line.encode() + _KEYS)
        self._wait_until(lambda _shown: len(self._lines()) > before)
        after = self._lines()[-1]
        word = line.split(" ")[-1]
        start = line[:len(line) - len(word)]
        assert after.startswith(start), f"{line!r} has become {after!r}"
        if after.rstrip() == line.rstrip():
            return set()
        # bash writes `--option=` before the first of several values only.
        found = shlex.split(after[len(start):])
        option = word.partition("=")[0] + "=" if word.startswith("--") and "=" in word else ""
        return {each[len(option):] if option and each.startswith(option) else each for each in found}

    def _lines(self) -> list[str]:
        return self._answers.read_text().splitlines()

    def _type(self, keys: bytes) -> None:
        while keys:
            keys = keys[os.write(self._terminal, keys):]

    def _wait_until(self, holds: Callable[[bytes], bool]) -> None:
        """Wait until that is true of what it has shown meanwhile."""
        until = time.monotonic() + _PATIENCE_SECONDS
        shown = b""
        while not holds(shown):
            assert time.monotonic() < until, f"{self._argv[0]} does not answer: {shown[-2000:]!r}"
            shown += self._read(0.02)

    def _read(self, seconds: float) -> bytes:
        """What it shows. Unread, it would wait for its reader at some time."""
        with contextlib.suppress(OSError):
            if select.select([self._terminal], [], [], seconds)[0]:
                return os.read(self._terminal, 65536)
        return b""


class _FishShell:
    """fish, which is started for each question."""

    def __init__(self, argv: Sequence[str], setup: str, environment: Mapping[str, str]) -> None:
        self._argv, self._setup, self._environment = list(argv), setup, dict(environment)

    def __enter__(self) -> _FishShell:
        return self

    def __exit__(self, *_what: object) -> None:
        pass

    def completes(self, line: str) -> set[str]:
        asked = f"{self._setup}\ncomplete -C {shlex.quote(line)}"
        finished = subprocess.run(
            [*self._argv, "-c", asked], env=self._environment, capture_output=True, text=True, check=True,
            timeout=_PATIENCE_SECONDS)
        assert not finished.stderr, finished.stderr
        option = f"{line.split(' ')[-1].partition('=')[0]}=" if line.split(" ")[-1].startswith("--") else ""
        found = {each.partition("\t")[0] for each in finished.stdout.splitlines()}
        return {each[len(option):] if option.endswith("=") and each.startswith(option) else each for each in found}


def bash(setup: str, directory: Path, environment: Mapping[str, str], before: Sequence[str]) -> _TerminalShell:
    """bash without anybody's configuration."""
    return _TerminalShell(
        [*before, "bash", "--norc", "--noprofile", "-i"], _BASH + setup, directory, environment)


def zsh(setup: str, directory: Path, environment: Mapping[str, str], before: Sequence[str]) -> _TerminalShell:
    """zsh without anybody's configuration; `setup` comes before compinit."""
    return _TerminalShell([*before, "zsh", "-f", "-i"], setup + _ZSH, directory, environment)


def fish(setup: str, _directory: Path, environment: Mapping[str, str], before: Sequence[str]) -> _FishShell:
    """fish; its configuration is in HOME, where there is none."""
    return _FishShell([*before, "fish"], setup, environment)


MakeShell = Callable[[str, Path, Mapping[str, str], Sequence[str]], "AbstractContextManager[Shell]"]
SHELLS: Mapping[str, MakeShell] = MappingProxyType({"bash": bash, "zsh": zsh, "fish": fish})
