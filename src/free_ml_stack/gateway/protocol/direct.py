"""uvicorn's HTTP protocol with a short way for large files: between disk and socket, not through the application."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from free_ml_stack.gateway.http import PATIENCE, DisconnectedError
from free_ml_stack.gateway.protocol.guarded import GuardedProtocol
from free_ml_stack.storage.atomic import CHUNK

LARGEST = 1 << 24  # bytes handed to the kernel at once; the socket takes what it can
EXTENSION = "files"  # in an ASGI scope's extensions


CORK = getattr(socket, "TCP_CORK", None)  # Linux has it


@contextmanager
def corked(connection: socket.socket) -> Iterator[None]:
    """A block in which only full packets leave: sendfile would push one for every few pages, at 1.3 x the time."""
    if CORK is not None:
        connection.setsockopt(socket.IPPROTO_TCP, CORK, 1)
    try:
        yield
    finally:
        if CORK is not None:
            connection.setsockopt(socket.IPPROTO_TCP, CORK, 0)


def possible(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop tells when a socket is ready, and the system sends files: neither does on Windows."""
    return type(loop).add_reader is not asyncio.AbstractEventLoop.add_reader and hasattr(os, "sendfile")


class DirectProtocol(GuardedProtocol):
    """For `uvicorn.Config(http=…)`; puts a `Direct` into the scope's extensions where the connection has no TLS."""

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        super().on_headers_complete()
        cycle = self.cycle
        if (
            possible(self.loop)
            and self.scheme == "http"
            and cycle
            and cycle.scope is self.scope
            and self.scope["method"] in ("GET", "PUT")
        ):
            self.scope["extensions"] = {EXTENSION: Direct(self, cycle)}  # type: ignore[dict-item]


class Direct:
    """One request's way to the socket. Both calls raise DisconnectedError when the client is gone."""

    def __init__(self, protocol: GuardedProtocol, cycle: RequestResponseCycle) -> None:
        self.protocol, self.cycle = protocol, cycle
        self.loop = protocol.loop

    async def receive(self, size: int, take: Callable[[memoryview], object]) -> None:
        """Hand a body of `size` bytes to `take` as it comes; instead of ASGI's receive, not after it.

        What `take` raises is raised when the body is over, so that the next request begins where it should.
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
                await self._pump(self.loop.add_reader, self.loop.remove_reader, connection, step)
            protocol.on_message_complete()
            protocol.parser = httptools.HttpRequestParser(protocol)  # the old one still expects the body
        if failure:
            raise failure

    async def send(self, file: BinaryIO, begin: int, end: int) -> None:
        """Send a part of a file; between the start of the response and its last, empty piece."""
        flow, transport = self.protocol.flow, self.protocol.transport
        transport.set_write_buffer_limits(high=0)
        await flow.drain()
        transport.set_write_buffer_limits()

        def step() -> bool:
            nonlocal begin
            sent = os.sendfile(connection.fileno(), file.fileno(), begin, min(LARGEST, end - begin))
            if not sent:
                raise ConnectionError("a file became shorter while it was sent")
            begin += sent
            return begin == end

        with self._socket() as connection, corked(connection):
            await self._pump(self.loop.add_writer, self.loop.remove_writer, connection, step)
        self.cycle.expected_content_length = 0

    async def _pump(
        self,
        add: Callable[..., Any],
        remove: Callable[..., Any],
        connection: socket.socket,
        step: Callable[[], bool],
    ) -> None:
        """Call `step` whenever the socket is ready, until it returns True. Raises TimeoutError when it never is."""
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
                await asyncio.wait([done], timeout=PATIENCE)
                if steps == before and not done.done():
                    raise TimeoutError
        finally:
            remove(connection)
        done.result()

    @contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        """The connection's socket under a number of its own, so that the loop lets us wait for it."""
        original = self.protocol.transport.get_extra_info("socket")
        with socket.fromfd(original.fileno(), original.family, original.type) as connection:
            connection.setblocking(False)
            try:
                yield connection
            except (ConnectionResetError, BrokenPipeError, TimeoutError, DisconnectedError):
                self.cycle.disconnected = True
                self.protocol.transport.abort()
                raise DisconnectedError from None
