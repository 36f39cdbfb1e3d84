"""The Hub's Spaces on loopback: what is uploaded is started and must answer."""

import json
import os
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hubbing import COMMIT, hub_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

REFUSALS = {
    402: "hosting Gradio and Docker Spaces on free cpu-basic requires a PRO subscription",
    403: "no rights",
}


class Spaces:
    """A Hub that grants some kinds of Space; `granted` are hardware or SDK, `refusal` is its status for others."""

    def __init__(self, root: Path, granted: set[str], refusal: int = 402) -> None:
        self.root, self.granted, self.refusal = root, granted, refusal
        self.created: list[dict[str, Any]] = []
        self.variables: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.address, self.hub = "", ""
        self.process: subprocess.Popen[bytes] | None = None
        self.page: ThreadingHTTPServer | None = None
        self.app = self._app()

    @property
    def tree(self) -> Path:
        """What has been uploaded to the Space."""
        return next((self.root / "spaces").glob("*/*"))

    def _app(self) -> Starlette:
        hub = hub_app(self.root, [])
        by_path = {getattr(route, "path", ""): route for route in hub.routes}
        create = by_path["/api/repos/create"].endpoint  # type: ignore[attr-defined]

        async def create_space(request: Request) -> Response:
            body = await request.json()
            if body.get("type") == "space":
                self.created.append(body)
                if not {body.get("hardware"), body["sdk"]} & self.granted:
                    return JSONResponse({"error": REFUSALS[self.refusal]}, self.refusal)
            return await create(request)

        async def keep(request: Request) -> Response:
            body = await request.json()
            kept = self.variables if request.url.path.endswith("variables") else self.secrets
            kept[body["key"]] = body["value"]
            return JSONResponse({})

        async def runtime(request: Request) -> Response:
            self._start()
            return JSONResponse({"stage": "RUNNING", "hardware": {}, "storage": None})

        async def info(request: Request) -> Response:
            if not any((self.root / "spaces").glob("*/*")):
                return JSONResponse({"error": "no such Space"}, 404, {"X-Error-Code": "RepoNotFound"})
            self._start()
            name = f"{request.path_params['user']}/{request.path_params['name']}"
            content = {"id": name, "sha": COMMIT, "host": self.address, "tags": [], "private": False}
            return JSONResponse(content | {"siblings": []})

        async def valid(request: Request) -> Response:
            return JSONResponse({"errors": [], "warnings": []})

        mine = [
            Route("/api/repos/create", create_space, methods=["POST"]),
            Route("/api/validate-yaml", valid, methods=["POST"]),
            Route("/api/spaces/{user}/{name}/{kept:str}", keep, methods=["POST"]),
            Route("/api/spaces/{user}/{name}/runtime", runtime),
            Route("/api/spaces/{user}/{name}", info),
        ]
        return Starlette(routes=[*mine, *hub.routes])

    def _start(self) -> None:
        """Run the Space as its README says."""
        if self.address or not (self.tree / "README.md").exists():
            return
        if (self.tree / "index.html").exists():
            handler = partial(SimpleHTTPRequestHandler, directory=str(self.tree))
            self.page = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=self.page.serve_forever).start()
            self.address = f"http://127.0.0.1:{self.page.server_port}"
            return
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "PORT": str(port),
            "HF_ENDPOINT": self.hub,
        }
        environment |= (
            self.variables | self.secrets | {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_XET": "1"}
        )
        self.process = subprocess.Popen([sys.executable, "app.py"], cwd=self.tree, env=environment)

    def stop(self) -> None:
        """End what has been started."""
        if self.process:
            self.process.terminate()
            self.process.wait(20)
        if self.page:
            self.page.shutdown()
            self.page.server_close()

    def readme(self) -> dict[str, Any]:
        """The Space's settings."""
        import yaml

        settings: dict[str, Any] = yaml.safe_load((self.tree / "README.md").read_text().split("---")[1])
        return settings


def as_json(text: str) -> Any:
    """The answers that the static page leaves in its text."""
    return json.loads(text.split('id="answers">')[1].split("</script>")[0])
