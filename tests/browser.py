# SPDX-License-Identifier: AGPL-3.0-or-later
"""Headless Chromium without a driver library: what a page looks like at a width, and what goes wrong in it.

    with Browser() as browser:
        seen = browser.measure(file, 390, dark=True, screenshot="page.png")
    assert not seen["overflow"] and not seen["errors"]

It is spoken to by the DevTools protocol through a pipe, so that any width is a real one: a window has a least width.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None or os.name == "nt", reason="needs Chromium in the PATH")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio")
TIMEOUT = 60
START = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(ours[0], 3), os.dup2(ours[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from descriptor 3, and writes to 4."""
MEASURE = """
(async () => {
  const images = [...document.images];
  for (const image of images) image.loading = "eager";
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  const width = document.documentElement.clientWidth;
  const scrolls = (node) => node && node !== document.body &&
    (/auto|scroll|hidden|clip/.test(getComputedStyle(node).overflowX) || scrolls(node.parentElement));
  const name = (node) => node.tagName.toLowerCase() + [...node.classList].map((one) => "." + one).join("");
  const outside = [...document.body.querySelectorAll("*")].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width && (box.right > width + 0.5 || box.left < -0.5) && !scrolls(node.parentElement);
  });
  return {
    width, scroll_width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
    overflow: outside.map(name), pictures: images.map((image) => image.naturalWidth), title: document.title,
  };
})()
"""


class Browser:
    """A headless Chromium for any number of pages, ended with the context."""

    def __enter__(self):
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        command = [sys.executable, "-S", "-c", START, str(to_browser), str(from_browser), CHROMIUM, *FLAGS]
        command += ["--remote-debugging-pipe", f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser), os.close(from_browser)
        self.buffer, self.last, self.events = b"", 0, []
        return self

    def __exit__(self, *_):
        os.close(self.write), os.close(self.read)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def measure(self, page, width, height=900, dark=False, script=None, screenshot=None, media="screen"):
        """Open a page and return what is seen there.

        Args:
            page: An HTML file, or an address.
            width: Width of the view in CSS pixels.
            height: Its height.
            dark: Whether the reader prefers dark pages.
            script: JavaScript to evaluate after loading; a promise is awaited.
            screenshot: PNG file to write, of the whole page.
            media: ``screen`` or ``print``.

        Returns:
            ``width``, ``scroll_width`` and ``height`` of the document, ``overflow``: the elements that reach out of
            the page and are in nothing that scrolls, ``pictures``: the width of each, 0 where one is not loaded,
            ``title``, ``errors``: those of scripts and the console, ``requests``: addresses asked for but the page
            itself and what is inside of it, and ``result`` of the script.
        """
        url = page if "://" in str(page) else Path(page).resolve().as_uri()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def call(method, **arguments):
            return self.call(method, session, **arguments)

        for domain in ("Page", "Runtime", "Log", "Network"):
            call(f"{domain}.enable")
        call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired", session)
        seen = self.value(call("Runtime.evaluate", expression=MEASURE, awaitPromise=True, returnByValue=True))
        if script is not None:
            seen["result"] = self.value(
                call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
            )
        if screenshot is not None:
            clip = {"x": 0, "y": 0, "width": width, "height": min(seen["height"], 16_000), "scale": 1}
            shot = call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
            Path(screenshot).write_bytes(base64.b64decode(shot["data"]))
        seen["errors"] = [text for event in self.events for text in self.error(event)]
        addresses = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        seen["requests"] = [address for address in addresses if address != url and not address.startswith("data:")]
        self.call("Target.closeTarget", targetId=target)
        return seen

    @staticmethod
    def value(answer):
        if "exceptionDetails" in answer:
            raise AssertionError(json.dumps(answer["exceptionDetails"], indent=1))
        return answer["result"].get("value")

    @staticmethod
    def error(event):
        """Yield the error that an event tells of."""
        method, params = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            yield details.get("exception", {}).get("description", details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            yield " ".join(str(one.get("value", one.get("description"))) for one in params["args"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            yield params["entry"]["text"]

    def call(self, method, session=None, **params):
        """Send a command and return its result."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params, **({"sessionId": session} if session else {})}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write, data) :]
        while True:
            answer = self.next()
            if answer.get("id") == self.last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method, session):
        """Wait for an event, or return at once if it was there."""
        end = time.monotonic() + TIMEOUT
        while not any(event.get("method") == method and event.get("sessionId") == session for event in self.events):
            assert time.monotonic() < end, f"no {method} within {TIMEOUT} s"
            self.events.append(self.next())

    def next(self):
        while b"\0" not in self.buffer:
            data = os.read(self.read, 1 << 20)
            assert data, f"Chromium ended with {self.process.poll()}"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)


def measure(page, width, **more):
    """Return what `Browser.measure` sees, from a browser of its own."""
    with Browser() as browser:
        return browser.measure(page, width, **more)
