"""Processes on this machine: whether one still exists, and where sockets between them can be."""

import os
import signal
import subprocess
import sys

INTERRUPT = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)  # Windows hands no other on, and to a group only
OWN_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # for Popen's creationflags
ENDS = ("SIGTERM", "SIGINT", "SIGBREAK")  # by which a process is asked to end, where the system has them
LONGEST = 60  # bytes of a temporary folder's path
SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - folders of their own are made there


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


def end_signals() -> list[signal.Signals]:
    """The signals that ask this process to end, those apart that it ignores."""
    known = [getattr(signal, name) for name in ENDS if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


def shorten_sockets() -> None:
    """Let multiprocessing keep its sockets in another folder where the temporary one's path is too long for them.

    A socket's address has 108 bytes at most, on macOS 104, of which a name takes some forty.
    """
    import tempfile
    from multiprocessing.util import get_temp_dir

    if sys.platform == "win32" or len(os.fsencode(tempfile.gettempdir())) <= LONGEST:
        return
    kept = tempfile.gettempdir()
    tempfile.tempdir = next((place for place in SHORT if os.access(place, os.W_OK | os.X_OK)), kept)
    try:
        get_temp_dir()  # is asked for once, kept, and removed when this process ends
    finally:
        tempfile.tempdir = kept
