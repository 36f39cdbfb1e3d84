"""Processes on this machine: liveness, termination signals, and multiprocessing's fork server."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

INTERRUPT = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)  # the only one Windows delivers, to a process group
TERMINATE = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)  # a program can catch it; Windows' SIGTERM it cannot
OWN_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # for Popen's creationflags
STOPPING = (signal.SIGTERM, signal.SIGINT)  # of systemd and Ctrl-C, which send them to all processes of a group
TERMINATION_SIGNALS = ("SIGTERM", "SIGINT", "SIGBREAK")  # those that the system has
MAX_TEMP_PATH = 60  # bytes
GC_THRESHOLDS = (700, 10, 10)  # of Python; a command starts with higher ones, as imports create a million objects
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - only subfolders are created there


def alive(pid: int) -> bool:
    """Return whether process `pid` exists. On Windows, where signal 0 would kill it, its handle is opened instead."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        return bool(handle and ctypes.windll.kernel32.CloseHandle(handle))
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def termination_signals() -> list[signal.Signals]:
    """Return the signals that terminate this process, without those that it ignores."""
    known = [getattr(signal, name) for name in TERMINATION_SIGNALS if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


def process_context(imported: Sequence[str]) -> Any:
    """Return multiprocessing's context, with a running fork server that has imported modules; Windows has none.

    It starts processes in milliseconds even if they use torch. Call this before each start, because a fork server may
    have been killed. STOPPING are blocked in it, as they would end it with a traceback during its imports, and in its
    processes until `set_signals`.
    """
    import multiprocessing

    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    shorten_socket_paths()
    forkserver.set_forkserver_preload(list(imported))
    resource_tracker.ensure_running()  # its start would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


def set_signals(terminate: signal.Handlers, interrupt: signal.Handlers) -> None:
    """Set the handlers of SIGTERM and SIGINT in a process of `process_context`, and unblock both."""
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, interrupt)
    if hasattr(signal, "pthread_sigmask"):  # Windows has none
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def shorten_socket_paths() -> None:
    """Make multiprocessing create its sockets in a short folder if the path of the temporary folder is too long.

    A socket address has at most 108 bytes (104 on macOS), of which the file name takes about forty.
    """
    import tempfile
    from multiprocessing.util import get_temp_dir

    if sys.platform == "win32" or len(os.fsencode(tempfile.gettempdir())) <= MAX_TEMP_PATH:
        return
    kept = tempfile.gettempdir()
    tempfile.tempdir = next((place for place in SHORT_FOLDERS if os.access(place, os.W_OK | os.X_OK)), kept)
    try:
        get_temp_dir()  # cached by multiprocessing, which removes it at exit
    finally:
        tempfile.tempdir = kept
