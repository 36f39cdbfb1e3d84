"""Serve an ASGI app on a free port of 127.0.0.1."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from services.ports import listening


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serve `app` in a thread for a block, and yield its URL; `options` are passed to uvicorn."""
    options = {"timeout_keep_alive": 75, **options}  # as in the gateway
    with listening() as listener:  # connections queue here until the server runs
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **options))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
