"""uvicorn as the gateway runs it: with its own protocol where this version has what that is built on."""

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
PATIENCE = 60  # seconds that requests in flight get to finish after SIGTERM
LINGER = 50  # turns of 10 ms in which a connection may still bring the request that was on its way at SIGTERM
SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python does not name it
DROP_NEW = (  # a packet filter: load the TCP flags; if SYN is set, keep 0 bytes; else all
    (0x30, 0, 0, 13),
    (0x45, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
OPENING = 0.05  # seconds in which connections that had begun to open are open
ARRIVING = 5  # turns in which connections that were accepted are made known

# what guarded.py, direct.py and express.py use of uvicorn besides its interface
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
STATE = ("connections", "default_headers", "total_requests")


class Server(uvicorn.Server):
    """A server that loses no request that it has accepted when it is told to end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and close each with its next answer, or when it stays idle."""
        for listening in sockets or ():
            turn_away(listening)
        await asyncio.sleep(OPENING)
        waiting = [connection for listening in sockets or () for connection in accept_all(listening)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._new_protocol, connection)
        for turn in range(LINGER):  # not until a time: a busy machine may let it pass without a turn
            for protocol in list(self.server_state.connections):
                getattr(protocol, "end_soon", protocol.shutdown)()
            if turn > ARRIVING and not self.server_state.connections:
                break
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    def _new_protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def turn_away(listening: socket.socket) -> None:
    """Drop new connections, where the system can: one that comes between `accept_all` and the close is reset."""
    if sys.platform == "linux":
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in DROP_NEW))
        program = struct.pack("HP", len(DROP_NEW), ctypes.addressof(code))
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def accept_all(listening: socket.socket) -> list[socket.socket]:
    """The connections that the system has accepted: closing the port would reset them."""
    found = []
    listening.setblocking(False)
    with suppress(OSError):  # there are no more
        while True:
            connection, _ = listening.accept()
            connection.setblocking(False)
            found.append(connection)
    return found


def make_server(app: Any) -> Server:
    """A server for a Gateway; `should_exit` ends it."""
    config = uvicorn.Config(
        app,
        http=http_protocol(),
        proxy_headers=False,
        log_level="warning",
        access_log=False,  # it would hold the keys that stand in addresses
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=PATIENCE,
    )
    return Server(config)


def http_protocol() -> Any:
    """The gateway's protocol for `uvicorn.Config(http=…)`, or uvicorn's own where it can't be built on this version."""
    try:
        from free_ml_stack.gateway.protocol.express import ExpressProtocol

        missing = missing_attributes()
    except (ImportError, AttributeError, TypeError) as error:
        missing = [str(error)]
    if not missing:
        return ExpressProtocol
    log.warning(
        "uvicorn %s lacks %s: large files and calls are served without short ways, and heads without limits",
        uvicorn.__version__,
        ", ".join(missing),
    )
    return "h11"  # uses nothing of what has changed


def missing_attributes() -> list[str]:
    """What the gateway's protocol needs and this version of uvicorn has not. Raises ImportError and the like."""
    from uvicorn.protocols.http import httptools_impl
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.server import ServerState

    make_protocol: Any = httptools_impl.HttpToolsProtocol
    make_cycle: Any = httptools_impl.RequestResponseCycle
    state, nothing = ServerState(), object()
    parameters = make_cycle.__init__.__code__.co_argcount - 1
    used: list[tuple[Any, tuple[str, ...]]] = [
        (httptools_impl, ("STATUS_LINE",)),
        (make_protocol(uvicorn.Config(nothing_to_serve, log_config=None), state, {}, nothing), PROTOCOL),
        (make_cycle(*[None] * parameters), CYCLE),
        (FlowControl(nothing), FLOW),  # type: ignore[arg-type]
        (state, STATE),
    ]
    return [name for holder, names in used for name in names if not hasattr(holder, name)]


async def nothing_to_serve(scope: Any, receive: Any, send: Any) -> None:
    """An application for a protocol that is only looked at."""
