"""Faults between client and server: a proxy that cuts or delays connections, applications that fail or corrupt data."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any


@dataclass
class Faults:
    """The faults of the next connections; each of `cuts` applies once, later connections are not cut."""

    cuts: Iterator[tuple[str, int]]  # ("up" | "down", bytes after which the connection is reset)
    bytes_per_second: float = float("inf")
    seen: int = 0


@contextmanager
def proxied(url: str, faults: Faults) -> Iterator[str]:
    """The URL of a proxy to `url` that injects `faults`."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        stop = threading.Event()

        def accept() -> None:
            while True:
                client, _ = listener.accept()
                if stop.is_set():
                    client.close()
                    return
                faults.seen += 1
                connect(client)

        def connect(client: socket.socket) -> None:
            direction, limit = next(faults.cuts, ("", 0))
            try:
                server = socket.create_connection((host, int(port)))
            except OSError:
                client.close()
                return
            pair = Pair(client, server)
            for source, target, name in ((client, server, "up"), (server, client, "down")):
                allowed = limit if direction == name else None
                threading.Thread(target=pair.pump, args=(source, target, allowed, faults)).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


class Pair:
    """The two ends of a connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.pumps = threading.Semaphore(1)  # acquired by the first pump that finishes

    def pump(self, source: socket.socket, target: socket.socket, allowed: int | None, faults: Faults) -> None:
        """Forward bytes until one side closes or the limit for a cut is reached.

        The first pump to finish wakes the other, which closes both sockets: the descriptor of a socket closed while
        in use would be reused by the next connection, which would receive its bytes.
        """
        with suppress(OSError):
            while data := source.recv(65536):
                if allowed is not None and len(data) >= allowed:
                    target.sendall(data[:allowed])
                    break
                target.sendall(data)
                allowed = None if allowed is None else allowed - len(data)
                time.sleep(len(data) / faults.bytes_per_second)
        ends = (self.client, self.server)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if self.pumps.acquire(blocking=False):
            return
        for end in ends:
            with suppress(OSError):
                # a reset, as from a crashed machine
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            end.close()


def failing(app: Any, answers: list[tuple[int, dict[str, str]]], calls: list[str]) -> Any:
    """`app` behind a server that first returns these `(status, headers)`; `calls` collects the methods."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["method"])
        if not answers:
            return await app(scope, receive, send)
        status, headers = answers.pop(0)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()] + [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b""})
        return None

    return wrapped


def spoiling(app: Any, spoil: Callable[[], bool]) -> Any:
    """`app` behind a network that changes a byte of each body, in both directions, while `spoil()` is true."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def spoiled_receive() -> Any:
            message = await receive()
            if message.get("body") and spoil():
                message["body"] = changed(message["body"])
            return message

        async def spoiled_send(message: Any) -> None:
            if message.get("body") and spoil():
                message["body"] = changed(message["body"])
            await send(message)

        await app(scope, spoiled_receive, spoiled_send)

    return wrapped


def changed(body: bytes) -> bytes:
    """Change one byte."""
    return bytes([body[0] ^ 1]) + body[1:]


def original(app: Any) -> Any:
    """Restrict `app` to the documented features of Algorithmia's server.

    No ranges, checksums, times or sizes in HEAD, or bundles; a collection must be created before its files.
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        undocumented = (b"range", b"if-", b"want-", b"repr-")
        headers = [item for item in scope["headers"] if not item[0].startswith(undocumented)]
        if scope["method"] == "POST" and scope["path"].rstrip("/") == "/v1/data":
            scope = {**scope, "path": "/v1/nothing"}
        if scope["method"] == "PUT" and not await exists(scope["path"].rpartition("/")[0]):
            scope = {**scope, "path": "/v1/nothing"}

        async def plain(message: Any) -> None:
            if message["type"] == "http.response.start":
                told = {b"content-type", b"x-data-type", b"x-error-message"}
                told |= {b"content-length"} if scope["method"] != "HEAD" else set()
                message["headers"] = [item for item in message["headers"] if item[0] in told]
            await send(message)

        await app({**scope, "headers": headers}, receive, plain)

    async def exists(path: str) -> bool:
        statuses: list[int] = []

        async def keep(message: Any) -> None:
            statuses.append(message.get("status", 0))

        async def nothing() -> Any:
            return {"type": "http.request"}

        headers = [(b"authorization", b"key-of-me")]
        scope = {"type": "http", "method": "HEAD", "path": path, "query_string": b"", "headers": headers}
        await app(scope, nothing, keep)
        return statuses[0] == 200

    return wrapped
