"""The server of `forking`: import heavy packages and the library once, then fork a process for each requested program."""

import array
import atexit
import ctypes
import fcntl
import gc
import io
import json
import multiprocessing.spawn
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HEAVY = (  # without onnxruntime, which creates a thread on import and cannot be forked
    "wandb.sdk.launch.inputs.internal",  # imported by every run at W&B; slower if it is not the first
    "scipy.stats", "pyarrow.parquet", "onnx", "torch._dynamo", "optuna", "matplotlib.pyplot", "PIL.Image",
    "safetensors.torch", "pydantic", "requests", "httpx", "yaml", "google.protobuf.descriptor_pb2", "pandas",
    "sklearn.base",
)  # fmt: skip
READERS = ("huggingface_hub",)  # read environment variables when they are imported
STARTUP = ("PYTHON", "LANG", "LC_", "OMP_", "LD_")  # variables that Python and its libraries read at startup
HANDLED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "OMP_NUM_THREADS")
UNFORKED = ("pip", "venv", "ensurepip")  # they use sys.executable as an interpreter
HIGH = 512  # open files are moved out of the way of their numbers in the program
HUGE = 1 << 21  # bytes of a huge page
MADV_COLLAPSE = 25  # of Linux's madvise


class Program(NamedTuple):
    """A requested program."""

    arguments: list[str]  # of python
    folder: str
    environ: dict[str, str]
    numbers: list[int]  # of its open files
    ignored: list[int]  # signals


class Folder(tempfile.TemporaryDirectory[str]):
    """A temporary folder of an imported package, which each program creates when its name is read."""

    @classmethod
    def replace(cls, made: tempfile.TemporaryDirectory[str]) -> None:
        """Make a folder one of these."""
        made.cleanup()
        made.__class__ = cls
        del made.name

    def __getattr__(self, name: str) -> Any:
        if name != "name":
            raise AttributeError(name)
        super().__init__()
        return self.name

    def cleanup(self) -> None:
        if "name" in vars(self):
            super().cleanup()


def forks(program: Program, modules: Mapping[str, str | None]) -> bool:
    """Return whether forking is equivalent to a start of Python.

    It is not if variables differ that Python read when the server started, or PYTHONPATH has another version of one of
    the imported `modules`, which are mapped to their files.
    """
    kind, name = (*program.arguments, "", "")[:2]
    options = kind.startswith("-") and kind not in ("-m", "-c")
    if not kind or options or (kind == "-m" and name in UNFORKED):
        return False
    folders = [Path(folder) for folder in program.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    found = {path.name.partition(".")[0] for folder in folders if folder.is_dir() for path in folder.iterdir()}
    specs = {name: PathFinder.find_spec(name, [*map(str, folders)]) for name in found & modules.keys()}
    if any(spec and spec.origin not in (None, modules[name]) for name, spec in specs.items()):
        return False
    return startup(program.environ) == startup(os.environ)


def startup(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are read at startup and cannot be set later."""
    return {name: value for name, value in environ.items() if name.startswith(STARTUP) and name not in HANDLED}


def serve(listener: socket.socket, life: int) -> Program:
    """Fork a process per request and report its exit. Returns the program in each child; never returns in the server.

    A program is killed if its client has ended, and all are if `life` is closed.
    """
    modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items() if "." not in name}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the tests
    signal.signal(signal.SIGCHLD, lambda *_: None)
    exits, its_exits = os.pipe()
    os.set_blocking(its_exits, False)
    signal.set_wakeup_fd(its_exits, warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}  # by process id
    poll = select.poll()
    for file in (listener.fileno(), life, exits):
        poll.register(file, select.POLLIN)
    while True:
        found = dict(poll.poll())
        if life in found:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        for pid, connection in running.items():
            if connection.fileno() in found:
                os.kill(pid, signal.SIGKILL)
                poll.unregister(connection)
        if exits in found:
            os.read(exits, select.PIPE_BUF)
            report(running, poll)
        if listener.fileno() not in found:
            continue
        connection = listener.accept()[0]
        pid = os.fork()
        if pid:
            running[pid] = connection
            poll.register(connection, 0)  # the end of its client is always reported
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for file in (life, exits, its_exits):
            os.close(file)
        for other in running.values():
            other.close()
        listener.close()
        return receive(connection, modules)


def report(running: dict[int, socket.socket], poll: select.poll) -> None:
    """Report the exits of processes to their clients."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        connection = running.pop(pid)
        with suppress(KeyError):
            poll.unregister(connection)
        with suppress(OSError):  # the client has ended
            connection.sendall(b"%d\n" % status)
        connection.close()


def receive(connection: socket.socket, modules: Mapping[str, str | None]) -> Program:
    """Receive a program in its process and report the process id, or 0 and exit if forking is not equivalent."""
    length, passed, _, _ = connection.recvmsg(10, socket.CMSG_SPACE(4 * HIGH))
    files = array.array("i")
    files.frombytes(passed[0][2])
    with connection.makefile("rb") as file:
        program = Program(*json.loads(file.read(int(length))))
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # multiprocessing adds them
    if program.arguments[: len(options)] == options:
        del program.arguments[: len(options)]
    if not forks(program, modules):
        connection.sendall(b"0\n")
        os._exit(0)
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    for number in files:
        os.close(number)
    connection.sendall(b"%d\n" % os.getpid())
    connection.close()
    for number, file in zip(program.numbers, high, strict=True):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the tests run in the background
    for number in program.ignored:
        signal.signal(number, signal.SIG_IGN)
    return program


def run(program: Program, closed: Sequence[int], python: str) -> NoReturn:
    """Run a program as Python does, including startup and exit.

    The finalization of the interpreter is skipped, as it takes a second with torch.
    """
    import runpy

    import numpy as np
    import torch

    os.environ.clear()
    os.environ.update(program.environ)
    os.chdir(program.folder)
    time.tzset()
    tempfile.tempdir = None
    sys.executable = python
    multiprocessing.spawn.set_executable(python)
    if threads := int(os.environ.get("OMP_NUM_THREADS", 0)):  # set by torchrun; read by torch when it is imported
        torch.set_num_threads(min(threads, torch.get_num_threads()))
    np.random.seed()  # otherwise all children would have the same seed
    kind, *words = program.arguments
    first = {"-m": Path.cwd(), "-c": ""}.get(kind, Path(kind).resolve().parent)
    sys.path[:0] = [str(first), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[:] = [kind, *words[1:]] if kind.startswith("-") else program.arguments
    open_streams(closed)
    code = 0
    try:
        if kind == "-m":
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[0], "<string>", "exec"), main.__dict__)
        else:
            runpy.run_path(kind, run_name="__main__")
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
    for stream in (sys.stdout, sys.stderr):
        if stream and not stream.closed:
            stream.flush()
    if code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def open_streams(closed: Sequence[int]) -> None:
    """Open the standard streams, except those that were closed when the server started."""
    for number in closed:
        os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is None:
            continue
        errors = "backslashreplace" if number == 2 else before.errors
        unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
        file: Any = os.fdopen(number, "wb", buffering=0 if unbuffered else -1, closefd=False)
        lines = number == 2 or os.isatty(number)
        stream = io.TextIOWrapper(file, before.encoding, errors, line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def closed_streams() -> list[int]:
    """Return the numbers of the standard streams that are closed, and prevent that other files get them."""
    found = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            found.append(number)
    for _ in found:
        os.open(os.devnull, os.O_RDWR)
    return found


def import_all() -> None:
    """Import heavy packages and the library, without modules that import `READERS`."""
    from importlib import import_module

    for module in HEAVY:
        import_module(module)
    import free_ml_stack

    sys.modules |= dict.fromkeys(READERS)  # type: ignore[arg-type] # None: not importable
    for found in pkgutil.walk_packages(free_ml_stack.__path__, "free_ml_stack."):
        with suppress(ImportError):
            import_module(found.name)
    for name in READERS:
        del sys.modules[name]


def merge_pages() -> None:
    """Move the memory to huge pages where Linux offers them: a fork then copies a page table of a hundredth."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in maps.read_text().splitlines():
        area, mode, _, _, _, *name = line.split()
        first, end = (int(address, 16) for address in area.split("-"))
        first, end = -(-first // HUGE) * HUGE, end // HUGE * HUGE
        if mode == "rw-p" and name in ([], ["[heap]"]) and first < end:
            libc.madvise(first, end - first, MADV_COLLAPSE)  # without effect before Linux 6.1


def main(address: str, life: str, ready: str, python: str) -> None:
    """Listen, import the packages and serve."""
    closed = closed_streams()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    os.write(int(ready), b"ready")
    os.close(int(ready))
    del sys.path[0]  # the folder of this file
    gc.disable()
    import_all()
    for one in gc.get_objects():
        if type(one) is tempfile.TemporaryDirectory:
            Folder.replace(one)
        elif type(one) is weakref.finalize:
            one.atexit = False  # those of torch take longer than a short program
    gc.freeze()  # garbage collection would copy shared pages
    gc.enable()
    merge_pages()
    run(serve(listener, int(life)), closed, python)


if __name__ == "__main__":
    main(*sys.argv[1:])
