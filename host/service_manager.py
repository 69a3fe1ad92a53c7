"""What the agent tells the service manager that has started it: that it is ready, that it still turns, that it ends.

The protocol is that of sd_notify(3): lines in a datagram to the unix socket that NOTIFY_SOCKET names. An agent that was
started by hand has no such socket, and tells nothing.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

_ADDRESS, _WATCHDOG, _WATCHED = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
# A manager that does not read must not keep the agent from answering: it gives up the agent, or takes the next message.
_SEND_SECONDS = 1.0


class ServiceManager:
    """The service manager at a socket; nobody if the address is empty."""

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        """It ends the agent if it hears nothing for `watchdog_seconds`; 0 if it does not mind."""
        self._address = address
        self._watchdog_seconds = watchdog_seconds
        self._alive_at = 0.0
        self._status = ""

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str], pid: int) -> ServiceManager:
        """The one that the variables of sd_notify(3) and sd_watchdog_enabled(3) tell of, to this process.

        The variables are taken out: what the agent starts, ssh among it, is not to speak in its name.
        """
        address, microseconds, watched = (
            environment.pop(name, "") for name in (_ADDRESS, _WATCHDOG, _WATCHED))
        if address and address[0] not in "/@":
            log.warning("%s is %r, which is no unix socket: nothing is told to the service manager", _ADDRESS, address)
            address = ""
        meant = watched in ("", str(pid)) and microseconds.isascii() and microseconds.isdigit()
        return cls(address, int(microseconds) / 1e6 if meant else 0.0)

    def ready(self, status: str) -> None:
        """The agent serves: for the first time, or after reloading()."""
        self._status = status
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self, now: float) -> None:
        """The agent reads its configuration again, since `now` on the monotonic clock; ready() is to follow."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}")

    def stopping(self) -> None:
        """The agent is about to end."""
        self._tell("STOPPING=1")

    def turned(self, now: float, status: str) -> None:
        """The agent has just made a turn of its loop, at `now`; `status` is one line on what it does.

        To be called often: it sends what is news, and a sign of life twice in the time after which it would be missed.
        """
        news = []
        if self._watchdog_seconds and now >= self._alive_at:
            self._alive_at = now + self._watchdog_seconds / 2
            news.append("WATCHDOG=1")
        if status != self._status:
            self._status = status
            news.append(f"STATUS={status}")
        if news:
            self._tell(*news)

    def _tell(self, *lines: str) -> None:
        """Send these lines. What cannot be sent is logged: the agent does its work all the same."""
        if not self._address:
            return
        # A leading @ stands for the NUL of an abstract socket (unix(7)).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.settimeout(_SEND_SECONDS)
                connection.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("the service manager was not told %s: %s", lines[0], error)
