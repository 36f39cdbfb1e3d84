"""Pages in headless Chromium."""

import shutil
import subprocess
from pathlib import Path

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def browse(url: str, profile: Path) -> str:
    """The HTML of a page after its scripts have run."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    command = [browser, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
