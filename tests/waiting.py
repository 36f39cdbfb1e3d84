"""Wait for a condition on a busy machine."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Poll until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout: the condition is still false"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    return [
        int(child) for thread in Path(f"/proc/{pid}/task").glob("*/children") for child in thread.read_text().split()
    ]


def fork_server_has(library: str, parent: int) -> bool:
    """Return whether multiprocessing's fork server of a process is running and has loaded a library."""
    processes = [Path(f"/proc/{pid}") for pid in children(parent)]
    servers = [one for one in processes if b"multiprocessing.forkserver" in (one / "cmdline").read_bytes()]
    return any(library in (one / "maps").read_text() for one in servers)
