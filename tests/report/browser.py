"""A real Chromium without a window, driven by its DevTools protocol: what it loads, what it says.

with Browser(folder) as browser:
    visit = browser.open(page, width=360, dark=True)
"""

import base64
import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

from websocket import WebSocket

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]
ENABLED = ("Page", "Runtime", "Network", "Log")
PATIENCE = 60  # seconds


@dataclass
class Visit:
    """A page that was loaded: what it asked for, and what it complained about."""

    browser: "Browser"
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.browser.command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key, as a keyboard does."""
        for kind in ("rawKeyDown", "keyUp"):
            self.browser.command(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def screenshot(self) -> bytes:
        """What the window shows, as a PNG."""
        return base64.b64decode(self.browser.command("Page.captureScreenshot")["data"])


class Browser:
    """One Chromium with one page; its profile lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        assert EXECUTABLE is not None
        self._process = subprocess.Popen(
            [EXECUTABLE, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = self._wait_for(folder / "DevToolsActivePort").split()[0]
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [one for one in json.load(answer) if one["type"] == "page"]
        self._socket = WebSocket()
        self._socket.connect(
            pages[0]["webSocketDebuggerUrl"], suppress_origin=True, timeout=PATIENCE
        )
        self._number = 0
        self._events: list[dict[str, Any]] = []
        for domain in ENABLED:
            self.command(f"{domain}.enable")

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> Visit:
        """Load a file in a window of this width, and wait for all of it."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.command("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(json.loads(self._socket.recv()))
        visit = Visit(self)
        visit.ask("Promise.all([...document.images].map(it => it.decode().catch(() => 0)))")
        for event in self._events:
            _note(visit, event["method"], event["params"])
        return visit

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer; events on the way are kept."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(request))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._events.append(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(PATIENCE)

    def _wait_for(self, path: Path) -> str:
        for _ in range(PATIENCE * 20):
            if path.exists() and path.read_text():
                return path.read_text()
            assert self._process.poll() is None, "chromium ended before it listened"
            time.sleep(0.05)
        raise TimeoutError(path)


def _note(visit: Visit, method: str, parameters: dict[str, Any]) -> None:
    if method == "Network.requestWillBeSent":
        visit.requests.append(parameters["request"]["url"])
    elif method == "Runtime.exceptionThrown":
        visit.complaints.append(str(parameters["exceptionDetails"]))
    elif method == "Runtime.consoleAPICalled":
        visit.complaints.append(str(parameters["args"]))
    elif method == "Log.entryAdded":
        visit.complaints.append(parameters["entry"]["text"])
