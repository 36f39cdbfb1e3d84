"""Run the gateway: open the port, write the record for local tools, shut down without losing requests."""

import gc
import json
import logging
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from free_ml_stack.algorithmia.calls import latest_running, read_record
from free_ml_stack.errors import StackError, one_line
from free_ml_stack.gateway.app import Gateway
from free_ml_stack.gateway.hosted import asgi_app
from free_ml_stack.gateway.protocol.server import drop_new_connections, make_server
from free_ml_stack.processes import GC_THRESHOLDS, STOPPING
from free_ml_stack.storage.atomic import replace

log = logging.getLogger(__name__)
RESTART_SECONDS = 1.0  # seconds until a process that failed is replaced
CONNECTIONS = 1 << 16  # the limit of open files, if the system allows it


def serve_project(package: str) -> None:
    """Serve the model of a project from a container until SIGTERM, at 0.0.0.0 and the port in `PORT` (7860).

    `package` is the import name of the project's package. The variables are those of `asgi_app`.
    """
    port = int(os.environ.get("PORT", "7860"))
    serve(lambda keys: asgi_app(package), keys=[""], host="0.0.0.0", port=port)  # noqa: S104


def new_key() -> str:
    """Return a new key in the form that Algorithmia's command line requires: `sim` and 25 more characters."""
    return "sim" + secrets.token_hex(13)[:25]


def serve(
    make_app: Callable[[Sequence[str]], Gateway],
    *,
    keys: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    workers: int = 1,
    record: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT. `make_app(keys)` creates the application in each of the `workers`.

    Port 0 selects a free port. Without `keys` a new one is generated. `record` is a file for local tools, which
    exists while the gateway runs and is readable by its owner only: `{"url", "pid", "key", "before"}`, the last being
    the record of an earlier gateway that is running. Raises StackError if the port is in use.
    """
    if workers > 1 and not hasattr(os, "fork"):
        raise StackError(f"--workers {workers}: this system cannot fork processes; use --workers 1")
    keys = keys or (new_key(),)
    raise_file_limit()
    listening = open_port(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    signals: list[int] = []
    set_signal_handlers(lambda number, _: signals.append(number))
    with record_file(record, {"url": url, "pid": os.getpid(), "key": keys[0]}):
        say(f"Serving on {url}")
        if workers == 1:
            run(make_app(keys), listening, signals)
        else:
            with tempfile.TemporaryDirectory() as shared:
                run_workers(lambda: run(make_app(keys), listening, signals, Path(shared)), workers, signals, listening)


def raise_file_limit() -> None:
    """Raise the limit of open files from the usual 1024, which idle unauthenticated clients could exhaust."""
    with suppress(ImportError, OSError, ValueError):  # the system has no such limit, or does not allow a change
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, CONNECTIONS)
        if 0 <= soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def set_signal_handlers(handler: Callable[[int, object], None]) -> None:
    """Set the handler of SIGTERM and SIGINT."""
    for number in STOPPING:
        signal.signal(number, handler)


def open_port(host: str, port: int) -> socket.socket:
    """Return a listening socket; connections queue from now on. Raises StackError if the port cannot be opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not set it for sockets passed to it
    # on Windows SO_REUSEADDR lets two programs share a port; elsewhere it only allows reuse after a restart
    option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    listening.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "expected a port from 0 to 65535"
        raise StackError(f"cannot open {host}:{port}: {reason}; choose another port") from None
    listening.listen(2048)
    return listening


def run(app: Gateway, listening: socket.socket, signals: list[int], shared: Path | None = None) -> None:
    """Serve in this process until a signal is received; `shared` is the folder of the workers' statistics."""
    if shared:
        app.share(shared)
    gc.collect()
    gc.freeze()  # loaded objects stay; exclude them from collections between requests
    gc.set_threshold(*GC_THRESHOLDS)
    server = make_server(app)
    set_signal_handlers(lambda *_: setattr(server, "should_exit", True))  # uvicorn raises the signal again on exit
    server.should_exit |= bool(signals)  # the handler may have set it
    server.run(sockets=[listening])


def run_workers(work: Callable[[], None], count: int, signals: list[int], listening: socket.socket) -> None:
    """Run `work` in `count` processes, restart those that exit, and stop all of them when there are `signals`."""
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())  # a signal just before a wait, or in another thread, ends it, too
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pids = {fork(work) for _ in range(count)}
    while pids:
        if signals and listening.fileno() >= 0:
            drop_new_connections(listening)
            listening.close()  # otherwise a connection could wait in a queue that no process accepts from
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
        woken.recv(1024)
        while pids and (ended := os.waitpid(-1, os.WNOHANG)[0]):
            if ended in pids:  # the first process of a container gets the orphans of others, too
                pids.remove(ended)
                if not signals:
                    pids.add(fork(work))
    signal.set_wakeup_fd(-1)  # the socket is closed on return


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a new process; return its process id."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # Python discards those that arrive in a process before it runs
    pid = os.fork()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work()
    except Exception as error:
        log.error("a process of the gateway failed: %s", one_line(error), exc_info=not isinstance(error, StackError))
        time.sleep(RESTART_SECONDS)
    finally:
        os._exit(0)


@contextmanager
def record_file(record: Path | None, content: dict[str, str | int]) -> Iterator[None]:
    """Write the record of the running gateway; on exit remove it, or restore that of an earlier one still running."""
    if record is None:
        yield
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    before = latest_running(read_record(record))
    replace(record, json.dumps({**content, "before": before}).encode(), private=True)
    try:
        yield
    finally:
        if read_record(record).get("pid") == os.getpid():
            if before := latest_running(before):
                replace(record, json.dumps(before).encode(), private=True)
            else:
                record.unlink()
