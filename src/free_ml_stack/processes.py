"""Whether a process on this machine still exists."""

import os
import sys


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
