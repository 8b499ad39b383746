"""Chromium driven through chromedriver's own protocol (W3C WebDriver), for benchmarks of pages."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
]  # fmt: skip


class Chromium:
    """A browser with a profile of its own; `with Chromium(1400, 2000) as browser`."""

    def __init__(self, width: int, height: int, dark: bool = False) -> None:
        self._size, self._dark, self._stack = (width, height), dark, ExitStack()

    def __enter__(self) -> Chromium:
        profile = self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.PIPE, text=True)
        self._stack.callback(driver.wait)
        self._stack.callback(driver.terminate)
        assert driver.stdout is not None
        next(line for line in driver.stdout if "started successfully" in line)
        self._url = f"http://127.0.0.1:{port}"
        options = {"args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
        answer = self._post("/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        self._url += f"/session/{answer['sessionId']}"
        self._stack.callback(self._call, "DELETE", "", None)
        width, height = self._size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, url: str) -> None:
        """Go there; returns once the page has loaded."""
        self._post("/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value of `return …`."""
        return self._post("/execute/sync", {"script": script, "args": []})

    def wait(self, condition: str, seconds: float = 120.0) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return !!({condition});"):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.02)

    def screenshot(self, path: Path) -> None:
        """The window as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot", None)))

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """A command of the developer tools."""
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["value"]
