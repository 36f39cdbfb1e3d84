"""A Hub that runs its Spaces: uploaded files are started as configured in README.md."""

import json
import os
import socket
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fresh
from services.hub_server import Hub, Token, metadata
from services.hub_store import Repo

from free_ml_stack.deployment.spaces import GRADIO

SDK = (f"gradio=={GRADIO}", "spaces")  # which a Space of Gradio has


def interpreter(requirements: Path, sdk: str) -> Path:
    """Return the interpreter of an environment with the packages of a Space only."""
    return fresh.python(*requirements.read_text("utf-8").split(), *(SDK if sdk == "gradio" else ()))


class Spaces(Hub):
    """A Hub that allows some kinds of Space; `granted` are hardware or SDK, `refusal` is the status for others."""

    def __init__(self, root: Path, granted: set[str], refusal: int = 402) -> None:
        super().__init__(root / "hub", {"hf_of_a_test": Token()}, frozenset(granted))
        self.refusal = (refusal, self.refusal[1] if refusal == 402 else "no rights")
        self.root, self.address = root, ""
        self.process: subprocess.Popen[bytes] | None = None
        self.page: ThreadingHTTPServer | None = None
        self.start = self.run

    @property
    def space(self) -> Repo:
        """Return the only Space."""
        return next(repo for (kind, _), repo in self.repos.items() if kind == "space")

    @property
    def uploaded(self) -> Path:
        """Write the uploaded files of the Space to a folder."""
        return self.checkout("space", self.space.id)

    def checkout(self, kind: str, id: str) -> Path:
        """Write the files of a repository to a folder."""
        place = self.root / "checkout" / kind / self.repo(kind, id).head.oid
        for path, content in self.files(kind, id).items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
        return place

    def readme(self) -> dict[str, Any]:
        """Return the Space's settings."""
        return metadata((self.uploaded / "README.md").read_text())

    def run(self, repo: Repo) -> str:
        """Start the Space once; return its address, "" if it has no files."""
        if self.address or "README.md" not in repo.head.tree:
            return self.address
        tree = self.uploaded
        if (tree / "index.html").exists():
            handler = partial(SimpleHTTPRequestHandler, directory=str(tree))
            self.page = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=self.page.serve_forever).start()
            self.address = f"http://127.0.0.1:{self.page.server_port}"
            return self.address
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "PORT": str(port),
            "HF_ENDPOINT": self.url,
        }
        environment |= repo.variables | repo.secrets | {"GRADIO_ANALYTICS_ENABLED": "False"}
        self.process = subprocess.Popen(
            [interpreter(tree / "requirements.txt", self.readme()["sdk"]), "app.py"], cwd=tree, env=environment
        )
        self.address = f"http://127.0.0.1:{port}"
        return self.address

    def stop(self) -> None:
        """Stop the Space."""
        if self.process:
            self.process.terminate()
            self.process.wait(20)
        if self.page:
            self.page.shutdown()
            self.page.server_close()


def as_json(text: str) -> Any:
    """Return the results in the text of the static page."""
    return json.loads(text.split('id="answers">')[1].split("</script>")[0])
