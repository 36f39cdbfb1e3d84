"""What every endpoint needs of HTTP: read a body within limits, answer JSON, answer an error."""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """An answer other than success: HTTP status, one line, Algorithmia's error code."""

    def __init__(self, status: int, message: str, code: int = 6001) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Disconnected(Exception):  # noqa: N818 - nobody is left to answer
    """The client went away before its request was whole."""


async def read_body(receive: Receive, limit: int, seconds: float) -> bytes:
    """The whole body. Raises Refusal when it is over `limit` bytes or takes too long, and Disconnected."""
    try:
        async with asyncio.timeout(seconds):
            message = await receive()
            return await _read_pieces(message, receive, limit)
    except TimeoutError:
        raise Refusal(408, f"the request was not whole after {seconds:g} seconds") from None


async def _read_pieces(message: Scope, receive: Receive, limit: int) -> bytes:
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        pieces, size = [body], len(body)
        while message.get("more_body") and size <= limit:
            message = await receive()
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
        body = b"".join(pieces)
    if message["type"] == "http.disconnect":
        raise Disconnected
    if len(body) > limit:
        raise Refusal(413, f"the request is larger than {limit} bytes")
    return body


class Reader:
    """Reads bodies as `read_body` does, with one clock for all of them: cheaper where there are many.

    Somebody must call `sweep` from time to time.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit, self.seconds = limit, seconds
        self.since: dict[asyncio.Task[Any], float] = {}
        self.late: set[asyncio.Task[Any]] = set()

    async def read(self, receive: Receive) -> bytes:
        """The whole body. Raises Refusal and Disconnected."""
        task = asyncio.current_task()
        assert task
        self.since[task] = time.monotonic()
        try:
            return await _read_pieces(await receive(), receive, self.limit)
        except asyncio.CancelledError:
            if task not in self.late:
                raise
            self.late.discard(task)
            task.uncancel()
            raise Refusal(408, f"the request was not whole after {self.seconds:g} seconds") from None
        finally:
            del self.since[task]

    def sweep(self) -> None:
        """Give up on the bodies that take too long."""
        now = time.monotonic()
        for task, since in self.since.items():
            if now - since > self.seconds and task not in self.late:
                self.late.add(task)
                task.cancel()


async def send_bytes(send: Send, status: int, body: bytes, content_type: bytes, *headers: Header) -> None:
    """Answer in one piece."""
    described = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": described})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, content: Any, *headers: Header) -> None:
    """Answer a JSON document."""
    await send_bytes(send, status, orjson.dumps(content, option=JSON_OPTIONS), b"application/json", *headers)


async def send_refusal(send: Send, refusal: Refusal, *headers: Header) -> None:
    """Answer an error: in the body, and in the header that the official client shows after a HEAD."""
    line = re.sub(r"[^\x20-\x7e]", "?", refusal.message).encode()
    message = refusal.message.encode(errors="replace").decode()
    error = {"id": str(uuid.uuid4()), "code": refusal.code, "message": message}
    await send_json(send, refusal.status, {"error": error}, (b"x-error-message", line), *headers)


def query(scope: Scope) -> dict[str, str]:
    """The query's last value of each name."""
    return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
