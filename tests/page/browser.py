"""A headless Chromium that is spoken to through two pipes (--remote-debugging-pipe): no port, no further package.

Only what the tests of a run's page need of the DevTools protocol.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Debian's name, and Google's. Ubuntu's chromium-browser is no browser but a note that there is a snap.
NAMES = ("chromium", "google-chrome")
_ANSWER_SECONDS = 30.0
_END_SECONDS = 10.0
# Chromium reads its commands from descriptor 3 and answers on 4, whatever the pipes are here.
_START = ("import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
          "os.execv(sys.argv[3], sys.argv[3:])")
_FREE_DESCRIPTOR = 10


def find_browser() -> str | None:
    """The path of a Chromium; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class Browser:
    """One browser with one page, whose names all resolve to nothing: it sees files, and no network."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs = []
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        for end in (commands, answers):
            theirs.append(fcntl.fcntl(end, fcntl.F_DUPFD, _FREE_DESCRIPTOR))
            os.close(end)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, theirs), program, "--headless", "--no-sandbox", "--disable-gpu",
             "--remote-debugging-pipe", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
             f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=theirs)
        for end in theirs:
            os.close(end)
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        """What it has told without being asked, since the last open()."""
        self._attach()

    def _attach(self) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """Have it do something, and wait for its answer. Raises RuntimeError with what it complains about."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                break
            self.events.append(told)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        result: dict[str, Any] = told["result"]
        return result

    def _next(self) -> dict[str, Any]:
        give_up = time.monotonic() + _ANSWER_SECONDS
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], max(0.0, give_up - time.monotonic()))[0]:
                raise RuntimeError(f"the browser says nothing for {_ANSWER_SECONDS:.0f} s")
            part = os.read(self._answers, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def open(self, path: Path, *, width: int = 1200, dark: bool = False, script: bool = True) -> None:
        """Show a file, as on a screen of that width with that preference, and wait until it is there."""
        self.events.clear()
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.look(width=width, dark=dark)
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def look(self, *, width: int, dark: bool) -> None:
        """Change the screen's width and the reader's preference."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def evaluate(self, expression: str) -> Any:
        """What an expression in the page comes to."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return base64.b64decode(self.ask(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={
                "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1})["data"])

    def printed(self) -> bytes:
        """The page on A4 paper, as PDF."""
        return base64.b64decode(self.ask(
            "Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)["data"])

    def requests(self) -> list[str]:
        """Every address that was asked for since open(), the file's own included."""
        return [event["params"]["request"]["url"] for event in self.events
                if event.get("method") == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What the browser has logged since open(), such as what the page's policy forbade."""
        return [event["params"]["entry"]["text"] for event in self.events
                if event.get("method") == "Log.entryAdded"]

    def close(self) -> None:
        """End it."""
        self._session = ""
        try:
            self.ask("Browser.close")
            self._process.wait(_END_SECONDS)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
