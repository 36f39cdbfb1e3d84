"""One HTTP request and its answer over ASGI: read the body within limits, answer JSON, answer an error."""

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

JSON_BYTES = 1 << 20  # the largest JSON body, except the input of a call
PATIENCE = 60.0  # seconds without a byte after which the other side has gone
HELD_BYTES = 1 << 28  # of all bodies that are kept in memory at a time
BODY_SECONDS = 60.0  # for a body that is kept in memory to arrive whole


class HTTPError(Exception):
    """An answer other than success: HTTP status, one line, Algorithmia's error code; `x_y` is the header `x-y`."""

    def __init__(self, status: int, message: str, code: int = 6001, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


class DisconnectedError(Exception):
    """The client went away before its request was whole."""


@dataclass(slots=True)
class Memory:
    """The bytes of all bodies that a gateway keeps at a time."""

    held: int = 0

    def take(self, size: int) -> None:
        """Count some more. Raises HTTPError where that would be too many."""
        if self.held + size > HELD_BYTES:
            raise HTTPError(503, "too much is being received at a time", 2015, retry_after="1")
        self.held += size


@dataclass(slots=True)
class Request:
    """One request. `path` is decoded and below the gateway's own address; `user` is None for a stranger."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    receive: Receive
    send: Send
    user: str | None = None
    query: dict[str, str] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)  # the JSON object of the body, where it was read
    key: bytes = b""  # the key in the address
    base: str = ""  # the gateway's own address
    client: str = ""  # the address of the connection's other end
    memory: Memory = field(default_factory=Memory)
    kept: list[int] = field(default_factory=list)  # sizes of what is counted there; one list of all copies
    direct: Any = None  # the server's short way for large files, where it has one

    def release(self) -> None:
        """Count the body no more, for it is dealt with."""
        self.memory.held -= sum(self.kept)
        self.kept.clear()

    @property
    def segments(self) -> list[str]:
        """The names in the path."""
        return [segment for segment in self.path.split("/") if segment]

    def header(self, name: bytes) -> str:
        """A header's value, "" without it."""
        return self.headers.get(name, b"").decode("latin-1").strip()

    def flag(self, name: str) -> bool:
        """Whether the query says that something is true."""
        return self.query.get(name, "").lower() == "true"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises HTTPError when it stops coming, and DisconnectedError."""
        more = True
        while more:
            try:
                async with asyncio.timeout(PATIENCE):
                    message = await self.receive()
            except TimeoutError:
                raise HTTPError(408, f"nothing came for {PATIENCE:g} seconds", 2015) from None
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def body(self, limit: int = JSON_BYTES, seconds: float = BODY_SECONDS) -> bytes:
        """The whole body. Raises HTTPError when it is over `limit` bytes or `seconds`, and DisconnectedError."""
        pieces, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                async for piece in self.pieces():
                    self.memory.take(len(piece))
                    self.kept.append(len(piece))
                    pieces.append(piece)
                    size += len(piece)
                    if size > limit:
                        raise HTTPError(413, f"the request is larger than {limit} bytes", 2015)
        except TimeoutError:
            raise HTTPError(408, f"the request was not whole after {seconds:g} seconds", 2015) from None
        return b"".join(pieces)

    async def json(self, empty: dict[str, Any] | None = None) -> dict[str, Any]:
        """The body as a JSON object; `empty` stands for no body. Raises HTTPError and DisconnectedError."""
        body = await self.body()
        if not body and empty is not None:
            return empty
        try:
            value = orjson.loads(body)
        except ValueError:
            raise HTTPError(400, "the request is not valid JSON", 2013) from None
        if not isinstance(value, dict):
            raise HTTPError(400, "the request is not a JSON object", 2013)
        return value

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Send the head of an answer."""
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def answer_bytes(self, status: int, body: bytes, content_type: str, /, **headers: str) -> None:
        """Send a whole answer; the keyword `x_y` is the header `x-y`."""
        described = {"content-type": content_type, "content-length": str(len(body))}
        await self.start(status, described | {name.replace("_", "-"): headers[name] for name in headers})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def answer(self, value: Any, status: int = 200, /, **headers: str) -> None:
        """Send a whole JSON answer."""
        body = orjson.dumps(value, option=JSON_OPTIONS)
        await self.answer_bytes(status, body, "application/json", **headers)

    async def answer_error(self, error: HTTPError) -> None:
        """Send an error: in the body, and in the header that the official client shows after a HEAD."""
        line = re.sub(r"[^\x20-\x7e]", "?", error.message)
        message = error.message.encode(errors="replace").decode()
        content = {"id": str(uuid.uuid4()), "code": error.code, "message": message}
        await self.answer({"error": content}, error.status, x_error_message=line, **error.headers)


def request_of(scope: Message, receive: Receive, send: Send, memory: Memory) -> Request:
    """The request in an ASGI scope, of a stranger until somebody looks at its key."""
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
    """The path as it was sent, without the gateway's own mount point and without a doubled first slash."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    if root := scope.get("root_path"):
        path = path.removeprefix(quote(root).encode())
    return b"/" + path.lstrip(b"/") if path[:2] == b"//" else path or b"/"


def split_key(path: bytes) -> tuple[bytes, bytes]:
    """The path and the key in front of it: `/k/<key>/v1/…`."""
    if not path.startswith(b"/k/"):
        return path, b""
    key, _, rest = path[3:].partition(b"/")
    return b"/" + rest.lstrip(b"/"), unquote_to_bytes(key)


def whole_number(digits: str) -> int:
    """The number in a header or query; of one that is too large for any file just its first 18 digits are read."""
    return int(digits.lstrip("0")[:18] or "0")
