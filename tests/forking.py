"""Start Python programs in processes with preloaded packages such as torch.

One server process per test worker has imported heavy third-party packages, and none of this repository. It forks each
program, which then runs as with `python -m` or `python -c`: with its own working folder, environment, modules, signals
and exit code. Where other variables are given that Python reads at startup, it is started instead: see `start`.
"""

import array
import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, NoReturn, TextIO

HEAVY = (  # without wandb and onnxruntime, which create a folder and a thread on import and cannot be forked
    "scipy.stats", "pyarrow.parquet", "onnx", "torch._dynamo", "optuna", "matplotlib.pyplot", "PIL.Image",
    "safetensors.torch", "pydantic", "requests", "yaml", "google.protobuf.descriptor_pb2",
)  # fmt: skip
STARTUP = ("PYTHON", "LANG", "LC_", "OMP_", "LD_")  # variables that Python and its libraries read at startup
HANDLED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")


class Process:
    """A running program, with the interface of subprocess.Popen with text pipes."""

    spent = 0.0  # CPU seconds of finished processes and their children
    running: ClassVar[list["Process"]] = []

    def __init__(self, arguments: Sequence[str], folder: Path, environ: Mapping[str, str], merged: bool) -> None:
        """Start `python ARGUMENTS`, which start with -m or -c; `merged` redirects errors to the output."""
        self.args = [sys.executable, *arguments]
        self.returncode: int | None = None
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server())
        out, its_out = os.pipe()
        error, its_error = (None, its_out) if merged else os.pipe()
        order = json.dumps([list(arguments), str(folder), dict(environ)]).encode()
        given = array.array("i", [its_out, its_error])
        self.connection.sendmsg([b"%010d" % len(order)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)])
        self.connection.sendall(order)
        for end in {its_out, its_error}:
            os.close(end)
        self.told = self.connection.makefile("r")
        self.pid = int(self.told.readline())
        self.stdout: TextIO | None = os.fdopen(out)
        self.stderr: TextIO | None = None if error is None else os.fdopen(error)
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
        status, spent = self.told.readline().split()
        self.returncode = os.waitstatus_to_exitcode(int(status))
        Process.spent += float(spent)
        self.running.remove(self)
        self.told.close()
        self.connection.close()

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
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()


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


def start(arguments: Sequence[str], folder: Path, environ: Mapping[str, str], merged: bool = False) -> Running:
    """Start `python ARGUMENTS` in `folder`, by forking if that is equivalent."""
    startup = {name for name in environ if name.startswith(STARTUP) and name not in HANDLED}
    if all(environ[name] == os.environ.get(name) for name in startup):
        return Process(arguments, folder, environ, merged)
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
    )


@cache
def server() -> str:
    """The address of this worker's fork server, which exits with it."""
    home = tempfile.TemporaryDirectory(prefix="forking-")
    address = f"{home.name}/socket"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    started = subprocess.Popen(
        [sys.executable, "-P", __file__, address],
        env={**environ, "HOME": home.name, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def end() -> None:
        started.stdin.close()  # its end ends the server, whose output may be open in processes that are left
        started.wait()
        started.stdout.close()
        home.cleanup()

    assert started.stdin and started.stdout
    atexit.register(end)
    assert started.stdout.readline() == b"ready\n"
    return address


def readable(connection: socket.socket, seconds: float | None) -> bool:
    """Return whether a descriptor is readable within some seconds (None: no timeout); unlike select, for any number."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))


def serve(address: str) -> list[str]:
    """Fork a process per request. Returns the program in each child; never returns in the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no process is left
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        os.write(1, b"ready\n")
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                os._exit(0)
            connection = listener.accept()[0]
            if os.fork():
                connection.close()
                continue
            listener.close()
            return attend(connection)


def attend(connection: socket.socket) -> list[str]:
    """Fork a requested process and report its exit; returns in that process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, passed, _, _ = connection.recvmsg(10, socket.CMSG_SPACE(8))
    ends = array.array("i")
    ends.frombytes(passed[0][2])
    with connection.makefile("rb") as file:
        arguments, folder, environ = json.loads(file.read(int(length)))
    pid = os.fork()
    if pid:
        for end in ends:
            os.close(end)
        report(connection, pid)
    connection.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the tests run in the background
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, end in enumerate((nothing, *ends)):
        os.dup2(end, number)
    for end in {nothing, *ends}:
        os.close(end)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    time.tzset()
    given: list[str] = arguments
    return given


def report(connection: socket.socket, pid: int) -> NoReturn:
    """Report the id of a process, and at its exit the status and CPU seconds."""
    connection.sendall(b"%d\n" % pid)
    _, status, usage = os.wait4(pid, 0)
    try:
        connection.sendall(f"{status} {usage.ru_utime + usage.ru_stime}\n".encode())
    finally:
        os._exit(0)


def run(arguments: Sequence[str]) -> None:
    """Run a program as Python does, including startup and exit.

    The finalization of the interpreter is skipped, as it takes a second with torch.
    """
    import runpy

    import numpy as np

    kind, what, *words = arguments
    code = 0
    np.random.seed()  # otherwise all children would have the same seed
    first = str(Path.cwd()) if kind == "-m" else ""
    sys.path[:0] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[:] = [kind, *words]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding=sys.stdout.encoding, closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(
        2, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False
    )
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
        if isinstance(error, KeyboardInterrupt):
            code = -signal.SIGINT
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    if code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    from importlib import import_module

    for module in HEAVY:
        import_module(module)
    gc.freeze()  # garbage collection would copy shared pages
    run(serve(sys.argv[1]))
