"""A headless Chromium for tests: the DevTools protocol over a pipe, with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")

CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
"""The browser; None where there is none."""

KEYS = {"Tab": 9, "Enter": 13, " ": 32}

MEASURE = """(() => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = colour => colour.map(linear)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = numbers(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > .99) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || parent.closest("title, script, style")) continue;
    texts += 1;
    const style = getComputedStyle(parent);
    const ink = numbers(parent.closest("svg") ? style.fill : style.color).slice(0, 3);
    const pair = [luminance(ink), luminance(ground(parent))].sort((a, b) => b - a);
    const ratio = (pair[0] + .05) / (pair[1] + .05);
    if (ratio < 4.5) low.push([walker.currentNode.data.trim().slice(0, 30), ratio]);
  }
  const root = document.documentElement;
  return {
    width: innerWidth, overflow: root.scrollWidth - root.clientWidth, low, texts,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    reachable: [...document.querySelectorAll("a[href], summary, .scroll")].every(one => one.tabIndex === 0),
  };
})()"""
"""Unfolds everything; measures overflow, contrast (WCAG 2) of every text, and what the keyboard reaches."""


class Browser:
    """One Chromium with one tab.

    Args:
        folder: Where it may keep its profile.
    """

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        there, self._write = os.pipe()
        self._read, back = os.pipe()
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank",
        ]  # fmt: skip

        def place() -> None:  # the protocol is spoken on 3 and 4
            first, second = os.dup(there), os.dup(back)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self._process = subprocess.Popen(
            command, preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(there)
        os.close(back)
        self._number, self._rest, self._session = 0, b"", ""
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._read, 1 << 20)
            assert read, "the browser ended"
            self._rest += read
        raw, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                self.console += [str(one.get("value", one)) for one in parameters["args"]]
            case "Runtime.exceptionThrown":
                self.console.append(parameters["exceptionDetails"]["text"])
            case "Log.entryAdded":
                self.console.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
        return message

    def show(self, page: Path, *, width: int, height: int = 800, dark: bool = False, media: str = "") -> None:
        """Open a file in a window of some width.

        Args:
            page: The file.
            width: Width of the window, in CSS pixels.
            height: Height of the window.
            dark: Whether the reader prefers dark pages.
            media: ``print`` shows it as it is printed.
        """
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.console, self.requests = [], []
        self._call("Page.navigate", url=page.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and let go of a key: Tab, Enter or the space bar."""
        code = KEYS[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        shared = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        down = {**shared, "text": text} if text else shared
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down)
        self._call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def measure(self) -> dict[str, Any]:
        """What :data:`MEASURE` finds."""
        found: dict[str, Any] = self.evaluate(MEASURE)
        return found

    def picture(self, path: Path, *, width: int, height: int, top: float = 0) -> None:
        """Save what is seen as a PNG.

        Args:
            path: The file.
            width: Width in CSS pixels.
            height: Height.
            top: Where it begins on the page.
        """
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        found = self._call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
