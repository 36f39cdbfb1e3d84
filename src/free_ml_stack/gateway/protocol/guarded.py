"""uvicorn's HTTP protocol with an end to requests that never become one: their head is limited in size and time.

Without that a stranger, who needs no key to send a head, could fill the memory, or hold every connection. So all of
them together are limited, too.
"""

import asyncio
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

HEAD = 1 << 16  # bytes of a head, beyond what comes with its beginning
HEADS = 1 << 26  # bytes of all heads that are not whole; beyond that only short ones are read
SHORT = 1 << 13  # bytes of a head as programs send it
CONNECTIONS = 4096  # at once; more are closed
PATIENCE = 60.0  # seconds for a head to come, and for the rest of a request that is answered already
heads: WeakKeyDictionary[ServerState, int] = WeakKeyDictionary()  # bytes of all that are not whole, by server


class GuardedProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=…)`."""

    heading = False  # whether a head has begun and not ended
    ending = False  # whether the connection ends with the next answer
    size = 0  # bytes of it, without those of its first piece
    held = 0  # bytes of it that count among all
    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self.transport.close()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._cancel()
        self._hold(0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        begun = self.heading
        super().data_received(data)
        if self.heading and self._hold(self.held + len(data)) > HEADS and self.held > SHORT:
            self._close(503, b"too many requests are coming that are not whole")
        if begun and self.heading:
            self.size += len(data)
            if self.size > HEAD:
                self._close(431, b"the head of the request is too large")
        if self.deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        super().on_message_begin()
        self.heading, self.size = True, 0

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.heading = False
        self._hold(0)
        self._cancel()
        super().on_headers_complete()
        if self.ending:
            self.end_soon()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._cancel()
        super().on_message_complete()

    def end_soon(self) -> None:
        """Close the connection with the next answer, which says so."""
        self.ending = True
        if self.cycle and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _hold(self, size: int) -> int:
        """Count the bytes of this head; return those of all heads of the server."""
        count = heads[self.server_state] = heads.get(self.server_state, 0) + size - self.held
        self.held = size
        return count

    def _expect_head(self) -> None:
        if not self.transport.is_closing():
            self.deadline = self.loop.call_later(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self.heading:
            self._close(408, b"the request did not come")
        else:
            self.transport.close()

    def _cancel(self) -> None:
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None

    def _close(self, status: int, message: bytes) -> None:
        if self.transport.is_closing():
            return
        self._hold(0)
        if self.cycle is None or self.cycle.response_complete:  # else it would get between another answer
            body = b'{"error":{"code":6001,"message":"%b"}}' % message
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()
