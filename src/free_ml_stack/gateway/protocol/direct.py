"""uvicorn's HTTP protocol with a fast path for large files: directly between disk and socket."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from free_ml_stack.gateway.http import IDLE_SECONDS, DisconnectedError
from free_ml_stack.gateway.protocol.guarded import GuardedProtocol
from free_ml_stack.storage.atomic import CHUNK

SENDFILE_BYTES = 1 << 24  # bytes per sendfile call; the socket accepts as many as it can
EXTENSION = "files"  # the key in an ASGI scope's extensions


CORK = getattr(socket, "TCP_CORK", None)  # Linux only


@contextmanager
def corked(connection: socket.socket) -> Iterator[None]:
    """Send only full packets: without it sendfile pushes a packet every few pages and takes 1.3 times as long."""
    if CORK is not None:
        connection.setsockopt(socket.IPPROTO_TCP, CORK, 1)
    try:
        yield
    finally:
        if CORK is not None:
            connection.setsockopt(socket.IPPROTO_TCP, CORK, 0)


def is_supported(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether the loop has add_reader and the system has sendfile; both are missing on Windows."""
    return type(loop).add_reader is not asyncio.AbstractEventLoop.add_reader and hasattr(os, "sendfile")


class DirectProtocol(GuardedProtocol):
    """For `uvicorn.Config(http=…)`; adds a `Direct` to the scope's extensions if the connection has no TLS."""

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        super().on_headers_complete()
        cycle = self.cycle
        if (
            is_supported(self.loop)
            and self.scheme == "http"
            and cycle
            and cycle.scope is self.scope
            and self.scope["method"] in ("GET", "PUT")
        ):
            self.scope["extensions"] = {EXTENSION: Direct(self, cycle)}  # type: ignore[dict-item]


class Direct:
    """Direct access to the socket of one request. Both methods raise DisconnectedError if the client disconnects."""

    def __init__(self, protocol: GuardedProtocol, cycle: RequestResponseCycle) -> None:
        self.protocol, self.cycle = protocol, cycle
        self.loop = protocol.loop

    async def receive(self, size: int, take: Callable[[memoryview], object]) -> None:
        """Pass a body of `size` bytes to `take` in chunks; use it instead of ASGI's receive, not after it.

        Exceptions of `take` are raised at the end of the body, so that the next request is parsed correctly.
        """
        protocol, cycle = self.protocol, self.cycle
        protocol.flow.pause_reading()
        if cycle.waiting_for_100_continue:
            protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        head, cycle.body = memoryview(cycle.body), bytearray()
        buffer, left = memoryview(bytearray(CHUNK)), size - len(head)
        failure: Exception | None = None

        def hand(piece: memoryview) -> None:
            nonlocal failure
            try:
                if not failure:
                    take(piece)
            except Exception as error:
                failure = error

        def step() -> bool:
            nonlocal left
            count = connection.recv_into(buffer[:left])
            if not count:
                raise DisconnectedError
            hand(buffer[:count])
            left -= count
            return not left

        hand(head)
        if left:
            with self._socket() as connection:
                await self._run_when_ready(self.loop.add_reader, self.loop.remove_reader, connection, step)
            protocol.on_message_complete()
            protocol.parser = httptools.HttpRequestParser(protocol)  # the old parser still expects the body
        if failure:
            raise failure

    async def send(self, file: BinaryIO, begin: int, end: int) -> None:
        """Send bytes `begin` to `end` of a file, between the response's start and its empty last chunk."""
        flow, transport = self.protocol.flow, self.protocol.transport
        transport.set_write_buffer_limits(high=0)
        await flow.drain()
        transport.set_write_buffer_limits()

        def step() -> bool:
            nonlocal begin
            sent = os.sendfile(connection.fileno(), file.fileno(), begin, min(SENDFILE_BYTES, end - begin))
            if not sent:
                raise ConnectionError("the file was truncated while it was sent")
            begin += sent
            return begin == end

        with self._socket() as connection, corked(connection):
            await self._run_when_ready(self.loop.add_writer, self.loop.remove_writer, connection, step)
        self.cycle.expected_content_length = 0

    async def _run_when_ready(
        self,
        add: Callable[..., Any],
        remove: Callable[..., Any],
        connection: socket.socket,
        step: Callable[[], bool],
    ) -> None:
        """Call `step` whenever the socket is ready, until it returns True. Raises TimeoutError if it stays blocked."""
        done, steps = self.loop.create_future(), 0

        def ready() -> None:
            nonlocal steps
            if done.done():
                return
            steps += 1
            try:
                if step():
                    done.set_result(None)
            except BlockingIOError:
                return
            except Exception as error:
                done.set_exception(error)

        add(connection, ready)
        try:
            while not done.done():
                before = steps
                await asyncio.wait([done], timeout=IDLE_SECONDS)
                if steps == before and not done.done():
                    raise TimeoutError
        finally:
            remove(connection)
        done.result()

    @contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        """Duplicate the connection's socket: asyncio allows no reader or writer for a transport's own descriptor."""
        original = self.protocol.transport.get_extra_info("socket")
        with socket.fromfd(original.fileno(), original.family, original.type) as connection:
            connection.setblocking(False)
            try:
                yield connection
            except (ConnectionResetError, BrokenPipeError, TimeoutError, DisconnectedError):
                self.cycle.disconnected = True
                self.protocol.transport.abort()
                raise DisconnectedError from None
