"""The gateway on a ZeroGPU Space: mounted on Gradio's server, which such a Space insists on; it needs no GPU itself."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio
import spaces

sys.path.insert(0, str(Path(__file__).parent / "src"))
from importlib import import_module

PACKAGE = next(path.parent.name for path in (Path(__file__).parent / "src").glob("*/predict.py"))
hosted = import_module("free_ml_stack.gateway.hosted")
gateway = hosted.gateway(import_module(f"{PACKAGE}.predict"), os.environ)


@spaces.GPU
def gpu() -> str:
    """A ZeroGPU Space must have one function like this; nobody calls it."""
    return "unused"


class Front:
    """Gradio keeps the addresses that it needs itself; all others are the gateway's."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI entry."""
        mine = scope["type"] == "http" and not scope["path"].startswith("/gradio_api")
        await (gateway if mine else self.app)(scope, receive, send)


@asynccontextmanager
async def life(app: Any) -> AsyncIterator[None]:
    """Start and stop the gateway with the server, so that its log is written out in the end."""
    await gateway.start()
    yield
    await gateway.stop()


server = gradio.Server()
server.api(name="gpu")(gpu)
server.add_middleware(Front)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Gradio stops in order on an interrupt only
    port = int(os.environ.get("PORT", "7860"))
    server.launch(server_name="0.0.0.0", server_port=port, app_kwargs={"lifespan": life})  # noqa: S104
