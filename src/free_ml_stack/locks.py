"""Whether a process on this machine is still there, and still at what it had begun."""

import errno
import os
import sys
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


def lock(file: IO[bytes], patient: bool = False) -> bool | None:
    """Lock an open file until it is closed, or this process ends, however that comes; `patient`, wait for it.

    False where another has it, None where the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if patient else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def claim(file: IO[bytes]) -> None:
    """Mark an open file as this process's own, where that does not keep others from reading it."""
    if sys.platform != "win32":
        lock(file)


def claimed(path: Path) -> bool:
    """Whether a process may have claimed a file; a pid alone says little, for it is used again after a restart."""
    if sys.platform == "win32":
        return True
    with path.open("rb") as file:
        return lock(file) is not True
