"""A headless Chromium that does what it is told, by its own protocol over two pipes: no driver and no port is needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--disable-extensions",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


class Browser:
    """folder: of its profile. As a context manager it ends with the block."""

    def __init__(self, folder: Path):
        theirs, self.to = _pipe()
        self.out, ours = _pipe()
        words = [BROWSER, *FLAGS, f"--user-data-dir={folder}"]

        def connect():
            os.dup2(theirs, 3)
            os.dup2(ours, 4)

        self.process = subprocess.Popen(words, pass_fds=(3, 4), preexec_fn=connect, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(theirs)
        os.close(ours)
        self.number, self.read, self.events = 0, b"", []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.call("Browser.close")
        self.process.wait(20)
        os.close(self.to)
        os.close(self.out)

    def call(self, method: str, session: str | None = None, **params):
        """The result of a method of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _next(self, seconds: float = 60) -> dict:
        while b"\0" not in self.read:
            assert select.select([self.out], [], [], seconds)[0], "the browser says nothing"
            self.read += os.read(self.out, 1 << 16)
        line, _, self.read = self.read.partition(b"\0")
        return json.loads(line)

    def open(self, url: str, width: int = 1280, height: int = 900) -> "Tab":
        return Tab(self, url, width, height)


def _pipe() -> tuple[int, int]:
    """(end to read, end to write), far from the numbers that the browser's ends get."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 50) for end in ends)
    for end in ends:
        os.close(end)
    return high


class Tab:
    """A page of this size in pixels."""

    def __init__(self, browser: Browser, url: str, width: int, height: int):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Page.navigate", url=url)

    def call(self, method: str, **params):
        return self.browser.call(method, self.session, **params)

    def run(self, script: str):
        """The value of a JavaScript expression, or of what it promises."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            assert time.monotonic() < end, (script, self.run("document.body.innerText"))
            time.sleep(0.05)

    def upload(self, selector: str, path) -> None:
        """Gives the file to an input of files."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["objectId"])

    def write(self, selector: str, text: str) -> None:
        """Replaces the text of a field."""
        self.run(f"(e => {{ e.value = {json.dumps(text)}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
                 f"(document.querySelector({json.dumps(selector)}))")  # fmt: skip

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def picture(self, whole: bool = True, kind: str = "png", **more) -> bytes:
        found = self.call("Page.captureScreenshot", format=kind, captureBeyondViewport=whole, **more)
        return base64.b64decode(found["data"])

    def _events(self, method: str) -> list[dict]:
        self.run("1")  # what has happened until now is then here
        mine = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [event["params"] for event in mine if event["method"] == method]

    def requests(self) -> list[str]:
        """Addresses of all that the page has asked for."""
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """What went wrong in its scripts, and errors of its console."""
        thrown = [str(event["exceptionDetails"]) for event in self._events("Runtime.exceptionThrown")]
        entries = [event["entry"] for event in self._events("Log.entryAdded")]
        return thrown + [f"{entry['text']} {entry.get('url', '')}" for entry in entries if entry["level"] == "error"]
