"""One HTTP request: where it points, who sends it, and how it is answered."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ADDRESS = re.compile(r"/+v1/+(?:data|connector/+(?P<connector>[^/]*))(?:/+(?P<path>.*))?\Z", re.DOTALL)
USER = re.compile(r"\w[\w.-]*")
LIMIT = 1 << 20  # bytes of a JSON body
PATIENCE = 60.0  # seconds without a byte after which the other side has gone


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """An answer other than success: HTTP status, one line, Algorithmia's error code."""

    def __init__(self, status: int, message: str, code: int = 6001, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class Disconnected(Exception):  # noqa: N818 - nobody is left to answer
    """The client went away before its request was whole."""


@dataclass(frozen=True)
class Request:
    """`path` is `user/collection/…` for the Data API, "" for the root; `user` is None for a stranger."""

    method: str
    path: str
    user: str | None
    query: dict[str, str]
    headers: dict[bytes, bytes]
    receive: Receive
    send: Send
    direct: Any = None  # the server's short way for large files, where it has one

    @property
    def segments(self) -> list[str]:
        """The names in the path."""
        return self.path.split("/") if self.path else []

    @property
    def uri(self) -> str:
        """How a client of the Data API names the path."""
        return f"data://{self.path}"

    def header(self, name: bytes) -> str:
        """A header's value, "" without it."""
        return self.headers.get(name, b"").decode("latin-1").strip()

    def flag(self, name: str) -> bool:
        """Whether the query says that something is true."""
        return self.query.get(name, "").lower() == "true"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Refusal when it stops coming, and Disconnected."""
        more = True
        while more:
            try:
                async with asyncio.timeout(PATIENCE):
                    message = await self.receive()
            except TimeoutError:
                raise Refusal(408, f"nothing came for {PATIENCE:g} seconds", 2015) from None
            if message["type"] == "http.disconnect":
                raise Disconnected
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def body(self, limit: int) -> bytearray:
        """The whole body. Raises Refusal when it is larger than `limit` bytes, and as `pieces` does."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > limit:
                raise Refusal(413, f"the request is larger than {limit} bytes", 2015)
        return body

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises Refusal and Disconnected."""
        body = await self.body(LIMIT)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "the request is not valid JSON", 2013) from None
        if not isinstance(value, dict):
            raise Refusal(400, "the request is not a JSON object", 2013)
        return value

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Send the head of an answer."""
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        """Send a whole JSON answer; the keyword `x_y` is the header `x-y`."""
        body = json.dumps(value).encode()
        named = {"content-type": "application/json", "content-length": str(len(body))}
        await self.start(status, named | {name.replace("_", "-"): text for name, text in headers.items()})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error: in the body, and for HEAD in the header that the official client shows."""
        line = re.sub(r"[^\x20-\x7e]", "?", str(refusal))
        error = {"id": str(uuid.uuid4()), "code": refusal.code, "message": str(refusal)}
        await self.answer({"error": error}, refusal.status, x_error_message=line, **refusal.headers)


def request_of(scope: Message, receive: Receive, send: Send) -> Request:
    """The Data API's request in an ASGI scope, whose `user` has been authenticated. Raises Refusal."""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    user = scope.get("user")
    path = path_of(scope["path"], user)
    direct = scope.get("extensions", {}).get("files")
    return Request(scope["method"], path, user, query, dict(scope["headers"]), receive, send, direct)


def path_of(address: str, user: str | None) -> str:
    """The path that an address such as `/v1/data/.my/collection/file` names. Raises Refusal."""
    match = ADDRESS.search(address)
    path = (match["path"] or "") if match else ""
    if not match or match["connector"] not in (None, "data") or ":/" in path:
        raise Refusal(404, f"no data connector serves {address}", 5005)
    segments = [segment for segment in path.split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise Refusal(400, "a path may not contain . or ..")
    if segments and segments[0] in (".my", ".algo", ".session"):
        if user is None:
            raise Refusal(401, "authorization required", 2001)
        segments[0:1] = [user] if segments[0] == ".my" else [user, segments[0]]
    if segments and not USER.fullmatch(segments[0]):
        raise Refusal(404, f"no user is called {segments[0]!r}", 3000)
    return "/".join(segments)
