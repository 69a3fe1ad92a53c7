"""Writing to a stream of the terminal's, whatever becomes of it, and nothing to it that would steer it."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO


def write(stream: TextIO, text: str) -> bool:
    """Write to a stream of the terminal's and say whether it was possible; one that is closed goes nowhere then."""
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        return write(stream, text.encode("ascii", "backslashreplace").decode())
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            # Python flushes once more at its end, and a failure there would take the place of our exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def printable(text: str) -> str:
    """Text from another host without what would steer the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
