"""Fault injection for a server: which requests fail, how, and whether they are processed first."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@dataclass
class Fault:
    """A fault of the requests whose `METHOD /path` contains `match`: all of them, or those with the numbers `at`.

    `kind` is a status, "reset", "slow" (`seconds` late), "held" (no answer until the client has gone) or "html" (a page
    with status 200, as of a captive portal). `text` is the error of a status. With `after` the request is processed and only its response is lost.
    `struck` is set at the first of them.
    """

    kind: int | str
    at: Container[int] | None = None
    match: str = ""
    after: bool = False
    seconds: float = 1.0
    text: str = "injected failure"
    seen: int = 0
    struck: threading.Event = field(default_factory=threading.Event)

    def strikes(self, call: str) -> bool:
        """Count a request and return whether it fails."""
        self.seen += self.match in call
        return self.match in call and (self.at is None or self.seen in self.at)


class Faulty:
    """An app with faults. Every request is recorded in `calls` as `METHOD /path`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.faults: list[Fault] = []
        self.calls: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        call = f"{scope['method']} {scope['path']}"
        self.calls.append(call)
        struck = [fault for fault in self.faults if fault.strikes(call)]  # every fault counts every request
        if not struck:
            return await self.app(scope, receive, send)
        fault = struck[0]
        if fault.after:
            await self.app(scope, receive, nowhere)
        fault.struck.set()
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
            return await self.app(scope, receive, send)
        if fault.kind in ("reset", "held"):
            if fault.kind == "reset":
                reset(scope["extensions"]["transport"])
            while (await receive())["type"] != "http.disconnect":
                pass
            return None
        return await answer(fault.kind, send, fault.text)


async def answer(kind: int | str, send: Any, text: str = Fault.text) -> None:
    """Send the response of a fault."""
    page = kind == "html"
    body = b"<html><body>Welcome to our Wi-Fi</body></html>" if page else json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"text/html" if page else b"application/json")]
    headers += [(b"content-length", str(len(body)).encode())]
    headers += [(b"ratelimit", b'"api";r=0;t=1')] if kind == 429 else []
    await send({"type": "http.response.start", "status": 200 if page else kind, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def nowhere(message: Any) -> None:
    """Discard a response."""


def reset(transport: asyncio.Transport) -> None:
    """Reset a connection, as a crashed machine does."""
    end: socket.socket = transport.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with access to the connection for the app."""

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self.scope["extensions"] = {"transport": self.transport}  # type: ignore[typeddict-item]
