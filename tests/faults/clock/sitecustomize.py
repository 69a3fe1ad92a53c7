"""Python imports this at its start where this directory is in PYTHONPATH: the process then sees a clock that is off.

By how many seconds stands in the file that VMMIGRATION_LAB_CLOCK names, and is read each time: a clock can be turned
under a running process. libfaketime cannot do this to Python: told to leave the monotonic clock alone, it makes every
time.sleep() fail with EINVAL (0.9.10, Python 3.11, 4000 of 4000 calls).
"""

from __future__ import annotations

import functools
import os
import time
from typing import Optional, SupportsIndex, Union

_true_time = time.time
_true_localtime = time.localtime
_true_gmtime = time.gmtime


def _offset() -> int:
    try:
        with open(os.environ["VMMIGRATION_LAB_CLOCK"]) as file:
            return int(file.read())
    except (OSError, KeyError, ValueError):
        return 0


def _time() -> float:
    return _true_time() + _offset()


def _time_ns() -> int:
    return int(_time() * 1e9)


def _localtime(seconds: Optional[Union[float, SupportsIndex]] = None, /) -> time.struct_time:
    return _true_localtime(_time() if seconds is None else seconds)


def _gmtime(seconds: Optional[Union[float, SupportsIndex]] = None, /) -> time.struct_time:
    return _true_gmtime(_time() if seconds is None else seconds)


time.time = _time
time.time_ns = _time_ns
# No plain functions: as attributes of a class, such as logging.Formatter's converter, those would become methods.
time.localtime = functools.partial(_localtime)
time.gmtime = functools.partial(_gmtime)
