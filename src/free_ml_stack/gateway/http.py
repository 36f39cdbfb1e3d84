"""An HTTP request and its response over ASGI: the body within limits, JSON responses, error responses."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import orjson

from free_ml_stack.deployment.answering import JSON_OPTIONS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON_BYTES = 1 << 20  # the maximum size of a JSON body, except the input of a call
IDLE_SECONDS = 60.0  # seconds without a byte after which the client is disconnected
HELD_BYTES = 1 << 28  # the total size of all bodies in memory
BODY_SECONDS = 60.0  # to receive a body that is kept in memory


class HTTPError(Exception):
    """An error response: HTTP status, message, Algorithmia's error code; the keyword `x_y` is the header `x-y`."""

    def __init__(self, status: int, message: str, code: int = 6001, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


class DisconnectedError(Exception):
    """The client disconnected before its request was complete."""


@dataclass(slots=True)
class Memory:
    """The total size of the bodies that a gateway holds in memory."""

    held: int = 0

    def reserve(self, size: int) -> None:
        """Count `size` more bytes. Raises HTTPError if that exceeds HELD_BYTES."""
        if self.held + size > HELD_BYTES:
            raise HTTPError(503, "too many bytes in flight; retry later", 2015, retry_after="1")
        self.held += size


@dataclass(slots=True)
class Request:
    """A request. `path` is decoded and relative to the mount point; `user` is None if unauthenticated."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    receive: Receive
    send: Send
    user: str | None = None
    query: dict[str, str] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)  # the JSON object in the body, if it was read
    key: bytes = b""  # the key in the path
    base: str = ""  # the gateway's base URL
    client: str = ""  # the client's IP address
    memory: Memory = field(default_factory=Memory)
    kept: list[int] = field(default_factory=list)  # sizes counted in `memory`; shared by all copies of a request
    direct: Any = None  # the server's fast path for large files, if available

    def hold(self, size: int) -> None:
        """Count bytes of the body that are in memory until `release`. Raises HTTPError if the gateway has too many."""
        self.memory.reserve(size)
        self.kept.append(size)

    def release(self) -> None:
        """Release the memory counted for the body."""
        self.memory.held -= sum(self.kept)
        self.kept.clear()

    @property
    def segments(self) -> list[str]:
        """The segments of the path."""
        return [segment for segment in self.path.split("/") if segment]

    def header(self, name: bytes) -> str:
        """Return a header's value, "" if it is missing."""
        return self.headers.get(name, b"").decode("latin-1").strip()

    def flag(self, name: str) -> bool:
        """Return whether a query parameter is "true"."""
        return self.query.get(name, "").lower() == "true"

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks. Raises HTTPError on a timeout, and DisconnectedError."""
        more = True
        while more:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await self.receive()
            except TimeoutError:
                raise HTTPError(408, f"timeout: no data received for {IDLE_SECONDS:g} seconds", 2015) from None
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def body(self, limit: int = JSON_BYTES, seconds: float = BODY_SECONDS) -> bytes:
        """Return the body. Raises HTTPError if it exceeds `limit` bytes or `seconds`, and DisconnectedError."""
        pieces, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                async for piece in self.stream():
                    self.hold(len(piece))
                    pieces.append(piece)
                    size += len(piece)
                    if size > limit:
                        raise HTTPError(413, f"request body larger than {limit} bytes", 2015)
        except TimeoutError:
            raise HTTPError(408, f"timeout: request body incomplete after {seconds:g} seconds", 2015) from None
        return b"".join(pieces)

    async def json(self, empty: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the body as a JSON object; `empty` is returned for no body. Raises HTTPError and DisconnectedError."""
        body = await self.body()
        if not body and empty is not None:
            return empty
        try:
            value = orjson.loads(body)
        except ValueError:
            raise HTTPError(400, "request body is not valid JSON", 2013) from None
        if not isinstance(value, dict):
            raise HTTPError(400, "request body must be a JSON object", 2013)
        return value

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Send the status and headers of a response."""
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def answer_bytes(self, status: int, body: bytes, content_type: str, /, **headers: str) -> None:
        """Send a complete response; the keyword `x_y` is the header `x-y`."""
        described = {"content-type": content_type, "content-length": str(len(body))}
        await self.start(status, described | {name.replace("_", "-"): headers[name] for name in headers})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def answer(self, value: Any, status: int = 200, /, **headers: str) -> None:
        """Send a complete JSON response."""
        body = orjson.dumps(value, option=JSON_OPTIONS)
        await self.answer_bytes(status, body, "application/json", **headers)

    async def answer_error(self, error: HTTPError) -> None:
        """Send an error in the body, and in the header that the official client shows after HEAD."""
        line = re.sub(r"[^\x20-\x7e]", "?", error.message)
        message = error.message.encode(errors="replace").decode()
        content = {"id": str(uuid.uuid4()), "code": error.code, "message": message}
        await self.answer({"error": content}, error.status, x_error_message=line, **error.headers)


def make_request(scope: Message, receive: Receive, send: Send, memory: Memory) -> Request:
    """Return the request of an ASGI scope, not yet authenticated."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    path, key = split_key(raw_path(scope))
    return Request(
        scope["method"],
        (unquote_to_bytes(path) if b"%" in path else path).decode(errors="replace"),
        headers,
        receive,
        send,
        query=dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
        key=key,
        base=f"{scope.get('scheme', 'http')}://{headers.get(b'host', b'').decode('latin-1')}",
        client=(scope.get("client") or ("",))[0],
        memory=memory,
        direct=scope.get("extensions", {}).get("files"),
    )


def raw_path(scope: Message) -> bytes:
    """Return the path as sent, without the mount point and without a double leading slash."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    if root := scope.get("root_path"):
        path = path.removeprefix(quote(root).encode())
    return b"/" + path.lstrip(b"/") if path[:2] == b"//" else path or b"/"


def split_key(path: bytes) -> tuple[bytes, bytes]:
    """Split `/k/<key>/v1/…` into the path and the key."""
    if not path.startswith(b"/k/"):
        return path, b""
    key, _, rest = path[3:].partition(b"/")
    return b"/" + rest.lstrip(b"/"), unquote_to_bytes(key)


def whole_number(digits: str) -> int:
    """Return the number in a header or query; only the first 18 digits are read, which exceed any file size."""
    return int(digits.lstrip("0")[:18] or "0")
