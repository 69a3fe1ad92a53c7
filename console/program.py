"""What the command is called: the script of a checkout, or the command that a package or pip has installed."""

from __future__ import annotations

import os
import sys

NAME = "vmmigration"
SCRIPT = f"{NAME}.py"
_AGENT = f"{NAME}-agent"
_INSTALLED = (NAME, f"{NAME}.exe")


def program_name(called: str) -> str:
    """The name by which a person calls it again, given the path by which it was called."""
    return NAME if os.path.basename(called) in _INSTALLED else SCRIPT


PROGRAM = program_name(sys.argv[0] if sys.argv else "")


def with_program_name(text: str, program: str = PROGRAM) -> str:
    """A sentence that tells what to type, with the name by which the command was called, and the agent's likewise."""
    return text if program == SCRIPT else text.replace(SCRIPT, program).replace(f"{_AGENT}.py", _AGENT)
