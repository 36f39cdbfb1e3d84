"""A proxy that forwards every request except those with an injected fault."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3
from services.hub_faults import Faulty, Protocol
from serving import serving

HOP = {
    b"connection",
    b"keep-alive",
    b"transfer-encoding",
}  # headers of a connection, which are not forwarded


class Relay(Faulty):
    """A proxy to `target`, which can be changed, with faults."""

    def __init__(self) -> None:
        super().__init__(self.forward)
        self.target = ""
        self.pool = urllib3.PoolManager(maxsize=16)

    async def forward(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward a request and its response."""
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        answer = await asyncio.to_thread(self.asked, scope, body)
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        headers = [(name, value) for name, value in headers if name.lower() not in HOP]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.data})

    def asked(self, scope: Any, body: bytes) -> urllib3.BaseHTTPResponse:
        """Return the target's response."""
        headers = {name.decode(): value.decode() for name, value in scope["headers"] if name not in HOP}
        path = scope["raw_path"].decode() + ("?" + scope["query_string"].decode()).rstrip("?")
        return self.pool.request(
            scope["method"],
            self.target + path,
            body=body or None,
            headers=headers,
            retries=False,
            redirect=False,
            decode_content=False,
        )

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve the proxy; yield its URL."""
        with serving(self, http=Protocol, lifespan="off") as url, self.pool:
            yield url
