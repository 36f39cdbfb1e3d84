"""Start Python programs in processes with preloaded packages such as torch.

A server has imported heavy third-party packages and the library. It forks each program, which then runs as with
`python -m`, `python -c` or `python FILE`: with its own working folder, environment, signals and exit code. In a program, `sys.executable` is `launcher`, so that Python programs which it starts are forked too. Python is
started instead where forking is not equivalent: see `forkserver.forks`.
"""

import atexit
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, TextIO

import launcher

SHARED = "FORK_SERVER"  # variable with the address of the server of all workers


class UnforkedError(Exception):
    """A fork is not equivalent to a start of Python."""


class Server:
    """A process that forks programs. Another one is needed for other variables that Python reads at startup."""

    def __init__(self, startup: Mapping[str, str] | None = None, shell: str = "exec {}") -> None:
        """Start a server by a shell command, which sets up what all programs inherit; {} is the server."""
        self.home = tempfile.TemporaryDirectory(prefix="forking-")
        self.address = f"{self.home.name}/socket"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environ |= {"HOME": self.home.name, "PYTHONDONTWRITEBYTECODE": "1"} | dict(startup or {})
        self._make_launcher()
        its_life, self.life = os.pipe()
        ready, its_ready = os.pipe()
        program = Path(__file__).with_name("forkserver.py")
        command = [sys.executable, str(program), self.address, str(its_life), str(its_ready), str(self.python)]
        self.process = subprocess.Popen(
            ["sh", "-c", shell.format(shlex.join(command))],
            env=environ,
            stdin=subprocess.DEVNULL,
            pass_fds=(its_life, its_ready),
        )
        os.close(its_life)
        os.close(its_ready)
        with os.fdopen(ready) as file:
            assert file.read() == "ready", "the fork server has not started"

    @classmethod
    def running(cls, address: str) -> "Server":
        """Return the server at an address, which another process has started."""
        found = cls.__new__(cls)
        found.address = address
        return found

    @property
    def python(self) -> Path:
        """`python` in a folder that replaces that of the interpreter in PATH: it forks programs."""
        return Path(self.address).with_name("bin") / "python"

    def _make_launcher(self) -> None:
        self.python.parent.mkdir()
        for command in Path(sys.executable).parent.iterdir():
            if not command.name.startswith("python"):
                (self.python.parent / command.name).symlink_to(command)
        source = Path(launcher.__file__).read_text("utf-8")
        self.python.write_text(f"#!{sys.executable} -IS\n{source}\n\nlaunch({sys.executable!r}, {self.address!r})\n")
        self.python.chmod(0o755)

    def close(self) -> None:
        """Stop forking, and kill the programs that run."""
        os.close(self.life)
        self.process.wait()
        self.home.cleanup()

    def launched(self, pid: int) -> int:
        """Return the program of a process that runs `launcher`, or else the process."""
        note = Path(f"{self.address}-{pid}")
        return int(note.read_text()) if note.exists() else pid


@cache
def server() -> Server:
    """The server of all workers, or else one that exits with this process."""
    if SHARED in os.environ:
        return Server.running(os.environ[SHARED])
    made = Server()
    atexit.register(made.close)
    return made


def share() -> None:
    """Start the server of all workers, which inherit the environment of this process."""
    os.environ[SHARED] = server().address


class Process:
    """A running program, with the interface of subprocess.Popen with text pipes."""

    running: ClassVar[list["Process"]] = []

    def __init__(
        self, arguments: Sequence[str], folder: Path, environ: Mapping[str, str], merged: bool, server: Server
    ) -> None:
        """Start `python ARGUMENTS`; `merged` redirects errors to the output. Raises UnforkedError."""
        self.args = [sys.executable, *arguments]
        self.returncode: int | None = None
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server.address)
        out, its_out = os.pipe()
        error, its_error = (None, its_out) if merged else os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        files = {0: nothing, 1: its_out, 2: its_error}
        self.pid = launcher.request(self.connection, arguments, str(folder), environ, files)
        for end in set(files.values()):
            os.close(end)
        self.stdout: TextIO | None = os.fdopen(out)
        self.stderr: TextIO | None = None if error is None else os.fdopen(error)
        if not self.pid:
            self._close()
            raise UnforkedError(self.args)
        self.running.append(self)
        self.readers: list[threading.Thread] = []
        self.printed = {"stdout": "", "stderr": ""}

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None and readable(self.connection, 0):
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not readable(self.connection, timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def _end(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(int(launcher.line(self.connection)))
        self.running.remove(self)
        self.connection.close()

    def _close(self) -> None:
        self.connection.close()
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and return the remaining output and errors; can be called repeatedly."""
        end = None if timeout is None else time.monotonic() + timeout

        def left() -> float | None:
            return None if end is None else max(0.0, end - time.monotonic())

        if not self.readers:
            self.readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self.printed]
            for reader in self.readers:
                reader.start()
        for reader in self.readers:
            reader.join(left())
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(left())
        return self.printed["stdout"], self.printed["stderr"]

    def _read(self, name: str) -> None:
        stream: TextIO | None = getattr(self, name)
        if stream and not stream.closed:
            self.printed[name] = stream.read()
            stream.close()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait(300)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            raise
        finally:
            self._close()


def end_all(seconds: float = 30) -> None:
    """Terminate, then kill, the processes left by a failed test; a terminated sweep stops its agents."""
    for process in list(Process.running):
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        with process:
            pass


Running = Process | subprocess.Popen[str]


def python() -> Path:
    """Return a `python` for programs that are started by other programs than tests: it forks, too."""
    return server().python


def start(
    arguments: Sequence[str], folder: Path, environ: Mapping[str, str], merged: bool = False, by: Server | None = None
) -> Running:
    """Start `python ARGUMENTS` in `folder`, by forking if that is equivalent."""
    try:
        return Process(arguments, folder, environ, merged, by or server())
    except UnforkedError:
        pass  # start Python
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
    )


def readable(connection: socket.socket, seconds: float | None) -> bool:
    """Return whether a descriptor is readable within some seconds (None: no timeout); unlike select, for any number."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))
