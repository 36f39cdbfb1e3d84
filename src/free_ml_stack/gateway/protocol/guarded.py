"""uvicorn's HTTP protocol with limits on the size and duration of request heads.

Without them an unauthenticated client could exhaust the memory or the connections. The total size of all incomplete
heads is limited, too.
"""

import asyncio
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

HEAD_BYTES = 1 << 16  # maximum bytes of a head after its first chunk
TOTAL_HEAD_BYTES = 1 << 26  # maximum bytes of all incomplete heads; beyond that only short heads are accepted
SHORT_HEAD_BYTES = 1 << 13  # bytes of a typical head
CONNECTIONS = 4096  # maximum number; further ones are closed
HEAD_SECONDS = 60.0  # seconds to receive a head, or the rest of a request that is answered already
heads: WeakKeyDictionary[ServerState, int] = WeakKeyDictionary()  # bytes of all incomplete heads, by server


class GuardedProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=…)`."""

    in_head = False  # whether a head is incomplete
    closing = False  # whether the connection is closed after the next response
    size = 0  # bytes of the head after its first chunk
    held = 0  # bytes of the head counted in `heads`
    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self.transport.close()
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._cancel_timer()
        self._count(0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        begun = self.in_head
        super().data_received(data)
        if self.in_head and self._count(self.held + len(data)) > TOTAL_HEAD_BYTES and self.held > SHORT_HEAD_BYTES:
            self._close(503, b"too many incomplete requests")
        if begun and self.in_head:
            self.size += len(data)
            if self.size > HEAD_BYTES:
                self._close(431, b"request head too large")
        if self.deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._start_timer()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        super().on_message_begin()
        self.in_head, self.size = True, 0

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.in_head = False
        self._count(0)
        self._cancel_timer()
        super().on_headers_complete()
        if self.closing:
            self.close_after_response()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._cancel_timer()
        super().on_message_complete()

    def close_after_response(self) -> None:
        """Close the connection after the next response, with `connection: close`."""
        self.closing = True
        if self.cycle and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _count(self, size: int) -> int:
        """Set the counted bytes of this head; return the total of the server."""
        count = heads[self.server_state] = heads.get(self.server_state, 0) + size - self.held
        self.held = size
        return count

    def _start_timer(self) -> None:
        if not self.transport.is_closing():
            self.deadline = self.loop.call_later(HEAD_SECONDS, self._on_timeout)

    def _on_timeout(self) -> None:
        if self.in_head:
            self._close(408, b"timeout: request incomplete")
        else:
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None

    def _close(self, status: int, message: bytes) -> None:
        if self.transport.is_closing():
            return
        self._count(0)
        if self.cycle is None or self.cycle.response_complete:  # otherwise it would corrupt a response in progress
            body = b'{"error":{"code":6001,"message":"%b"}}' % message
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()
