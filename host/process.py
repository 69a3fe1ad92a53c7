"""Runs the host's own command-line tools: an argument list, never a shell, with the errors an admin can act on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase

# Debian's package for each tool that the agent runs.
TOOL_PACKAGES: Mapping[str, str] = MappingProxyType({
    "qemu-img": "qemu-utils", "setfacl": "acl", "ssh": "openssh-client", "setpriv": "util-linux",
    "wipefs": "util-linux", "swtpm": "swtpm swtpm-tools", "ss": "iproute2",
})
_TIMEOUT_SECONDS = 60.0


def tool_environment() -> dict[str, str]:
    """The environment for a tool whose messages are read: the agent's own, in the C locale."""
    return {**os.environ, "LC_ALL": "C"}


def tool_path(tool: str, host: str) -> str:
    """Where the tool is. Raises MigrationError TOOL_MISSING, which names the package on `host`."""
    path = shutil.which(tool)
    if path is None:
        raise MigrationError(
            ErrorCode.TOOL_MISSING, {"tool": tool, "host": host, "package": TOOL_PACKAGES.get(tool, tool)})
    return path


def run_tool(arguments: Sequence[str], host: str, keep_open: tuple[int, ...] = ()) -> str:
    """Run a tool to its end and return what it printed; it inherits the descriptors in `keep_open`.

    Raises MigrationError TOOL_MISSING or TOOL_FAILED.
    """
    command = [tool_path(arguments[0], host), *arguments[1:]]
    try:
        finished = subprocess.run(
            command, env=tool_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_TIMEOUT_SECONDS, check=True, pass_fds=keep_open)
    except subprocess.CalledProcessError as error:
        reason = last_line(error.stderr) or Phrase("exit code {code}", {"code": str(error.returncode)})
        raise MigrationError(ErrorCode.TOOL_FAILED, {"tool": arguments[0], "host": host, "reason": reason}) from error
    except subprocess.TimeoutExpired as error:
        reason = Phrase("no end after {seconds} s", {"seconds": f"{_TIMEOUT_SECONDS:.0f}"})
        raise MigrationError(ErrorCode.TOOL_FAILED, {"tool": arguments[0], "host": host, "reason": reason}) from error
    return finished.stdout


def last_line(text: str) -> str:
    """The last line that says something, without its closing full stop: it ends up inside a sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""
