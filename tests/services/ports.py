"""Where servers listen: on 127.0.0.1, on a port that the system chooses."""

import socket


def listening(port: int = 0, backlog: int = 128) -> socket.socket:
    """A listening socket. Without delay, which asyncio forgets for sockets it is given: it would cost 44 ms an answer."""
    listener = socket.create_server(("127.0.0.1", port), backlog=backlog)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
