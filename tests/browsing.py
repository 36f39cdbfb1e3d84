"""Pages in headless Chromium."""

import shutil
import subprocess
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def browse(url: str, profile: Path) -> str:
    """The HTML of a page after its scripts have run."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    command = [browser, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def browse_folder(folder: Path, profile: Path) -> str:
    """The page `index.html` of a folder after it has drawn itself, served on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever).start()
        try:
            return browse(f"http://127.0.0.1:{server.server_port}/index.html", profile)
        finally:
            server.shutdown()
