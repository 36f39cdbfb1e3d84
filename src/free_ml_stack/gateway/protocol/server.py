"""The uvicorn server of the gateway, with the gateway's protocol if this version of uvicorn supports it."""

import asyncio
import ctypes
import logging
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

import uvicorn

log = logging.getLogger(__name__)
SHUTDOWN_SECONDS = 60  # seconds for requests in flight after SIGTERM
DRAIN_ITERATIONS = 50  # iterations of 10 ms to receive requests that were on the network at SIGTERM
SO_ATTACH_FILTER = 26  # asm-generic/socket.h; missing in Python's socket module
DROP_NEW = (  # a packet filter: load the TCP flags; if SYN is set, keep 0 bytes; else all
    (0x30, 0, 0, 13),
    (0x45, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
OPEN_SECONDS = 0.05  # seconds for connections that were being opened
ACCEPT_ITERATIONS = 5  # iterations until accepted connections are registered

# private attributes of uvicorn used by guarded.py, direct.py and express.py
PROTOCOL = (
    "config", "connections", "cycle", "flow", "loop", "parser", "scheme", "scope", "server_state", "transport",
    "connection_made", "connection_lost", "data_received", "shutdown", "on_message_begin", "on_headers_complete",
    "on_message_complete", "_unset_keepalive_if_required",
)  # fmt: skip
CYCLE = (
    "body", "disconnected", "expected_content_length", "keep_alive", "response_complete", "scope",
    "waiting_for_100_continue",
)  # fmt: skip
FLOW = ("drain", "pause_reading", "resume_reading", "write_paused")
STATE = ("connections", "default_headers")


class Server(uvicorn.Server):
    """A server that answers all accepted requests on shutdown."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and close each after its next response, or if it stays idle."""
        try:
            await self._drain(sockets or [])
        except AttributeError as error:
            log.warning("uvicorn %s: %s: requests on the network at shutdown are lost", uvicorn.__version__, error)
        await super().shutdown(sockets)

    async def _drain(self, sockets: list[socket.socket]) -> None:
        for listening in sockets:
            drop_new_connections(listening)
        await asyncio.sleep(OPEN_SECONDS)
        waiting = [connection for listening in sockets for connection in accept_all(listening)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._new_protocol, connection)
        for iteration in range(
            DRAIN_ITERATIONS
        ):  # counted, not timed: on a busy machine a deadline may pass without an iteration
            for protocol in list(self.server_state.connections):
                getattr(protocol, "close_after_response", protocol.shutdown)()
            if iteration > ACCEPT_ITERATIONS and not self.server_state.connections:
                break
            await asyncio.sleep(0.01)

    def _new_protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def drop_new_connections(listening: socket.socket) -> None:
    """Drop new connections if the system supports and permits it: one before the close would be reset."""
    if sys.platform == "linux":
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in DROP_NEW))
        program = struct.pack("HP", len(DROP_NEW), ctypes.addressof(code))
        with suppress(OSError):  # not permitted, or not supported, in some containers
            listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def accept_all(listening: socket.socket) -> list[socket.socket]:
    """Return the connections in the accept queue, which would be reset when the port is closed."""
    found = []
    listening.setblocking(False)
    with suppress(OSError):  # the queue is empty
        while True:
            connection, _ = listening.accept()
            connection.setblocking(False)
            found.append(connection)
    return found


def make_server(app: Any) -> Server:
    """Return a server for a Gateway; set `should_exit` to stop it."""
    config = uvicorn.Config(
        app,
        http=http_protocol(),
        proxy_headers=False,
        log_level="warning",
        access_log=False,  # it would contain the keys in paths
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return Server(config)


def http_protocol() -> Any:
    """Return the protocol for `uvicorn.Config(http=…)`: the gateway's, or uvicorn's own for unsupported versions."""
    try:
        from free_ml_stack.gateway.protocol.express import ExpressProtocol

        missing = missing_attributes()
    except (ImportError, AttributeError, TypeError) as error:
        missing = [str(error)]
    if not missing:
        return ExpressProtocol
    log.warning(
        "uvicorn %s lacks %s: large files and calls are served without a fast path, and request heads without limits",
        uvicorn.__version__,
        ", ".join(missing),
    )
    return "h11"  # independent of the missing attributes


def missing_attributes() -> list[str]:
    """Return the attributes that this version of uvicorn lacks. Raises ImportError, AttributeError or TypeError."""
    from uvicorn.protocols.http import httptools_impl
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.server import ServerState

    make_protocol: Any = httptools_impl.HttpToolsProtocol
    make_cycle: Any = httptools_impl.RequestResponseCycle
    state, nothing = ServerState(), object()
    parameters = make_cycle.__init__.__code__.co_argcount - 1
    used: list[tuple[Any, tuple[str, ...]]] = [
        (httptools_impl, ("STATUS_LINE",)),
        (make_protocol(uvicorn.Config(unused_app, log_config=None), state, {}, nothing), PROTOCOL),
        (make_cycle(*[None] * parameters), CYCLE),
        (FlowControl(nothing), FLOW),  # type: ignore[arg-type]
        (state, STATE),
    ]
    return [name for holder, names in used for name in names if not hasattr(holder, name)]


async def unused_app(scope: Any, receive: Any, send: Any) -> None:
    """An application for a protocol that is only inspected."""
