"""Pages in headless Chromium, and their check with axe-core at two widths, light and dark."""

import atexit
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import pytest
from places import ROOT

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
AXE = ROOT / "build" / "axe-core" / "axe.min.js"
SECONDS = 300  # after which a page without an answer fails its test
ANSWERS = "document.getElementById('answers')"  # true once the page of a Space has computed its examples
SIZES = {1280: 900, 390: 844}  # width and height of the windows in which pages are checked
# Elements whose content is wider than they are or that the window cuts off, except in those that scroll by themselves.
WIDE = """
const clipped = e => { for (let o = e; o; o = o.parentElement) {
  const {overflowX, textOverflow} = getComputedStyle(o);
  if (/auto|scroll/.test(overflowX) || textOverflow === "ellipsis") return true;
}};
const name = e => e.tagName + (e.id && "#" + e.id) + " " + JSON.stringify(e.textContent.trim().slice(0, 30));
const shown = [...document.body.querySelectorAll("*")].filter(e => e.checkVisibility() && !clipped(e));
const wide = shown.filter(e => e instanceof HTMLElement && getComputedStyle(e).display !== "inline" && e.scrollWidth > e.clientWidth + 1
  || e.getBoundingClientRect().right > innerWidth + 1);
const labels = shown.filter(e => e.tagName === "text"), met = [];
labels.forEach((one, i) => labels.slice(i + 1).forEach(other => {
  const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
  if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) met.push(`${name(one)} overlaps ${name(other)}`);
}));
"""
CHECK = """(async () => {
  const {violations} = await axe.run(document, {resultTypes: ["violations"]});
  const found = violations.filter(one => ["serious", "critical"].includes(one.impact));
  %s
  return [...found.map(one => `${one.id}: ${one.nodes.slice(0, 3).map(node => node.target).join(", ")}`),
    ...wide.map(e => `too wide: ${name(e)}`), ...met];
})()"""
# What the Tab key must reach, and its look, which the focus must change.
TARGETS = """(() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
  .filter(e => e.checkVisibility() && !e.disabled)
  .map(e => [e, JSON.stringify(["outline", "boxShadow", "borderColor"].map(name => getComputedStyle(e)[name]))]))()"""
FOCUSED = f"{TARGETS}.findIndex(([e]) => e === document.activeElement)"


def chromium() -> str:
    """Return the path of Chromium; fail the test without it."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.fail("Chromium not found; run `make browser` as root, or install it", pytrace=False)


class Chromium:
    """A browser, controlled by its debugging protocol: JSON, ended by a null byte, on descriptors 3 and 4.

    Source: https://chromedevtools.github.io/devtools-protocol
    """

    def __init__(self) -> None:
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        inner, outer = os.pipe(), os.pipe()
        passed = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (inner[0], outer[1])]  # not 3 or 4
        command = [chromium(), *QUIET, "--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{passed[0]} 4>&{passed[1]} {passed[0]}<&- {passed[1]}>&-', "-", *command]
        self.process = subprocess.Popen(shell, pass_fds=passed, stderr=subprocess.DEVNULL)
        for end in (inner[0], outer[1], *passed):
            os.close(end)
        self.commands, self.events = os.fdopen(inner[1], "wb", buffering=0), os.fdopen(outer[0], "rb")
        self.numbers, self.received = itertools.count(1), b""
        atexit.register(self.close)

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait()
        self.commands.close()
        self.events.close()
        self.profile.cleanup()

    def call(self, method: str, session: str = "", **parameters: Any) -> Any:
        """Call a method of the browser, or of the page with a session, and return its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        self.commands.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        answer = self.wait(lambda message: message.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def wait(self, fits: Callable[[Any], bool]) -> Any:
        """Read messages until one fits."""
        while True:
            while b"\0" not in self.received:
                piece = self.events.read1(1 << 16)
                assert piece, "Chromium has ended, or gave no answer"
                self.received += piece
            message, _, self.received = self.received.partition(b"\0")
            if fits(found := json.loads(message)):
                return found


browsers: list[Chromium] = []  # the one of this test worker, which exits with it


def browser() -> Chromium:
    """Return the browser of this test worker: one that runs, or a new one."""
    if not browsers or browsers[-1].process.poll() is not None:
        browsers.append(Chromium())
    return browsers[-1]


class Page:
    """A page in a browser."""

    def __init__(self, browser: Chromium, context: str) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method and return its result."""
        return self.browser.call(method, self.session, **parameters)

    def look(self, width: int, dark: bool) -> None:
        """Set the width of the window and the preferred colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=SIZES[width], deviceScaleFactor=1, mobile=False
        )
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str, ready: str = "true") -> None:
        """Open a page and wait until it is loaded and the expression `ready` holds."""
        for target in ("about:blank", url):  # a change of the fragment alone loads nothing
            self.call("Page.navigate", url=target)
            self.browser.wait(
                lambda message: message.get("method") == "Page.loadEventFired" and message["sessionId"] == self.session
            )
        self.run(f"new Promise(done => {{ const look = () => {ready} ? done(1) : setTimeout(look, 20); look(); }})")

    def run(self, script: str) -> Any:
        """Run a script in the page and return its result."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press_tab(self) -> None:
        """Press and release the Tab key."""
        for event in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=event, key="Tab", code="Tab", windowsVirtualKeyCode=9)


@contextmanager
def opened() -> Iterator[Page]:
    """An empty page for a block, without the cookies and storage of other pages."""
    used = browser()
    guard = Timer(SECONDS, used.process.kill)
    guard.start()
    try:
        context = used.call("Target.createBrowserContext")["browserContextId"]
        yield Page(used, context)
        used.call("Target.disposeBrowserContext", browserContextId=context)
    finally:
        guard.cancel()


def browse(url: str, ready: str) -> str:
    """The HTML of a page once the expression `ready` holds."""
    with opened() as page:
        page.open(url, ready)
        return str(page.run("document.documentElement.outerHTML"))


def faults(url: str, ready: str = "true") -> list[str]:
    """What axe-core finds serious or critical in a page, what is too wide for it, and what the Tab key does not reach."""
    if not AXE.exists():
        pytest.fail("axe-core not found; run `make browser`", pytrace=False)
    found = []
    with opened() as page:
        page.call("Page.setBypassCSP", enabled=True)  # axe-core is a script from elsewhere
        for width in SIZES:
            page.look(width, dark=False)
            page.open(url, ready)
            page.run(AXE.read_text(encoding="utf-8"))
            for dark in (False, True):
                page.look(width, dark)
                found += [f"{width} {'dark' if dark else 'light'}: {one}" for one in page.run(CHECK % WIDE)]
        targets = page.run(f"{TARGETS}.map(([e, look]) => [e.outerHTML.slice(0, 80), look])")
        reached = set()
        for _ in range(10 * len(targets)):  # a date has several stops
            page.press_tab()
            if (index := page.run(FOCUSED)) < 0:
                break
            if index not in reached and page.run(f"{TARGETS}[{index}][1]") == targets[index][1]:
                found.append(f"no visible focus: {targets[index][0]}")
            reached.add(index)
        found += [f"not reached by Tab: {html}" for index, (html, _) in enumerate(targets) if index not in reached]
    return found


@contextmanager
def folder_served(folder: Path) -> Iterator[str]:
    """The URL of a folder on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
