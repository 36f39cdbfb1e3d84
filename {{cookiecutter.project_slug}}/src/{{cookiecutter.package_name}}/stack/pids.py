"""Whether a process on this machine is still there, and still at what it had begun."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO


def alive(pid: int) -> bool:
    """Whether process `pid` exists. On Windows, where signal 0 would end it, its handle is asked for instead."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # the right to ask, and no more
        return bool(handle and ctypes.windll.kernel32.CloseHandle(handle))
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def claim(file: IO[bytes]) -> None:
    """Mark an open file as this process's own until it is closed, or the process ends, however that comes."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):  # a file system without locks, or another process has it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def claimed(path: Path) -> bool:
    """Whether a process may have claimed a file; a pid alone says little, for it is used again after a restart."""
    if sys.platform == "win32":
        return True
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
