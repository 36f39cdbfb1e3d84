"""Run a Python program by the server of `forking`, in place of `python`.

It passes its open files on, and mirrors signals and the exit code. If forking is not equivalent, it starts Python.
"""

import array
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
MAX_FILES = 250  # of one message


def request(
    connection: socket.socket,
    arguments: Sequence[str],
    folder: str,
    environ: Mapping[str, str],
    files: Mapping[int, int],
    ignored: Sequence[int] = (),
) -> int:
    """Request a program with open files by number; return its process id, or 0 if forking is not equivalent."""
    order = json.dumps([list(arguments), folder, dict(environ), list(files), list(ignored)]).encode()
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files.values()))]
    connection.sendmsg([b"%010d" % len(order)], passed)
    connection.sendall(order)
    return int(line(connection))


def line(connection: socket.socket) -> bytes:
    """Return the next line that the server sends. Raises ConnectionError if the server has ended."""
    found = b""
    while not found.endswith(b"\n"):
        read = connection.recv(1)
        if not read:
            raise ConnectionError("the fork server has ended")
        found += read
    return found


def open_files() -> list[int]:
    """Return the numbers of the open files."""
    found = []
    for number in sorted(int(entry.name) for entry in os.scandir("/dev/fd")):
        try:
            os.fstat(number)
        except OSError:
            continue  # the list itself
        found.append(number)
    return found


def launch(python: str, address: str) -> NoReturn:
    """Run the program that the arguments of this process name."""
    arguments = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    ignored = [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    files, pid = open_files(), 0
    if arguments and files[:3] == [0, 1, 2] and len(files) <= MAX_FILES:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        passed = {number: number for number in files}
        pid = request(connection, arguments, os.getcwd(), os.environ, passed, ignored)  # noqa: PTH109 - pathlib is slow
    if not pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.execv(python, [python, *arguments])
    note = os.open(f"{address}-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
    os.write(note, str(pid).encode())
    os.close(note)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in files:  # a pipe has ended when the program has closed it
        if number < 3:
            os.dup2(nothing, number)
        else:
            os.close(number)
    sent, its_sent = os.pipe()  # a signal that arrives before a system call would not interrupt it
    os.set_blocking(its_sent, False)
    signal.set_wakeup_fd(its_sent)
    for forwarded in set(FORWARDED) - set(ignored):
        signal.signal(forwarded, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    while connection not in (ready := select.select([connection, sent], [], [])[0]):
        for number in os.read(sent, 64) if ready else b"":
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    status = int(line(connection))
    if os.WIFSIGNALED(status):
        end = os.WTERMSIG(status)
        if end != signal.SIGKILL:
            signal.signal(end, signal.SIG_DFL)
        os.kill(os.getpid(), end)
    os._exit(os.waitstatus_to_exitcode(status))
