"""Run the gateway: open the port, tell others where it is, stop without losing a request."""

import gc
import json
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from free_ml_stack.errors import StackError
from free_ml_stack.gateway.app import Gateway
from free_ml_stack.gateway.hosted import asgi_app
from free_ml_stack.gateway.protocol.server import make_server, turn_away

CONNECTIONS = 1 << 16  # at once, where the system allows it


def serve_project(package: str) -> None:
    """Serve the model of a project from a container until SIGTERM, at 0.0.0.0 and the port in `PORT` (7860).

    `package` is the import name of the project's package. The variables are those of `asgi_app`.
    """
    port = int(os.environ.get("PORT", "7860"))
    serve(lambda keys: asgi_app(package), keys=[""], host="0.0.0.0", port=port)  # noqa: S104


def new_key() -> str:
    """A fresh key of the form that Algorithmia's command line insists on: `sim` and 25 more characters."""
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
    """Serve until SIGTERM or SIGINT. `make_app(keys)` makes the application, once in each of the `workers`.

    Port 0 takes a free one. A key is made where there is none. `record` is a file for the local tools, there
    while the gateway runs and readable by its owner alone: `{"url", "pid", "key"}`. Raises StackError when
    the port is taken.
    """
    if workers > 1 and not hasattr(os, "fork"):
        raise StackError(f"--workers {workers}: this system can't fork processes; leave it at 1")
    keys = keys or (new_key(),)
    allow_connections()
    listening = open_port(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    came: list[int] = []
    on_signals(lambda number, _: came.append(number))
    with recorded(record, {"url": url, "pid": os.getpid(), "key": keys[0]}):
        say(f"Serving on {url}")
        if workers == 1:
            run(make_app(keys), listening, came)
        else:
            with tempfile.TemporaryDirectory() as shared:
                run_workers(lambda: run(make_app(keys), listening, came, Path(shared)), workers, came, listening)


def allow_connections() -> None:
    """Let this process open more files than the usual 1024, which idle strangers would use up."""
    with suppress(ImportError, OSError, ValueError):  # as it is, where the system has no such limit or insists on it
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, CONNECTIONS)
        if 0 <= soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def on_signals(handler: Callable[[int, object], None]) -> None:
    """Handle the two signals that ask for an end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket, so that nobody is turned away from now on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # which asyncio forgets for sockets it is given
    # Windows lets two programs share a port with the option that elsewhere only shortens the wait for it
    option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    listening.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
        raise StackError(f"{host}:{port} can't be opened: {reason}; choose another port") from None
    listening.listen(2048)
    return listening


def run(app: Gateway, listening: socket.socket, came: list[int], shared: Path | None = None) -> None:
    """Serve in this process until a signal comes, if none has; `shared` is the folder of the workers' figures."""
    if listening.fileno() < 0:
        return  # a worker that was started as the signal came
    if shared:
        app.share(shared)
    gc.collect()
    gc.freeze()  # what is loaded stays; the collector need not look at it between requests
    server = make_server(app)
    on_signals(lambda *_: setattr(server, "should_exit", True))  # uvicorn raises a signal anew at its end
    server.should_exit = bool(came)
    server.run(sockets=[listening])


def run_workers(work: Callable[[], None], count: int, came: list[int], listening: socket.socket) -> None:
    """Run `work` in `count` processes, start it again where one dies, and stop them all on a signal."""
    pids = {fork(work) for _ in range(count)}

    def stop(number: int, frame: object) -> None:
        came.append(number)
        if listening.fileno() >= 0:
            turn_away(listening)
        listening.close()  # else a connection could wait here that nobody will ever take
        for pid in pids:
            os.kill(pid, signal.SIGTERM)

    on_signals(stop)
    if came:
        stop(came[0], None)
    while pids:
        pid, _ = os.wait()
        pids.discard(pid)
        if not came:
            pids.add(fork(work))
            if came:  # meanwhile: the signal was not handed on to the new one
                stop(came[0], None)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a new process; returns its id."""
    if pid := os.fork():
        return pid
    try:
        work()
    finally:
        os._exit(0)


@contextmanager
def recorded(record: Path | None, content: dict[str, str | int]) -> Iterator[None]:
    """Write down where the gateway is, and remove it at the end."""
    if record is None:
        yield
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    fresh = record.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    fresh.replace(record)
    try:
        yield
    finally:
        if record.exists() and json.loads(record.read_text(encoding="utf-8"))["pid"] == os.getpid():
            record.unlink()
