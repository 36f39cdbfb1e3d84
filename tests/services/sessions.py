"""Colab and Kaggle on loopback for their clients, which are unmodified except for the address.

Colab: assignments, each with a real Jupyter server. Kaggle: a kernel that is run when it is pushed.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import forking

PACKAGES = ("google-colab-cli==0.7.5", "kaggle==2.2.4", "six", "jupyter_server>=2", "packaging")
SLOW = "rfc3987-syntax"  # an optional check of URLs, which takes most of the time of importing jsonschema
COLAB = """#!{python}
import os, types, requests, colab_cli.common as common
common.Prod = lambda: types.SimpleNamespace(domain={url!r}, api={url!r})
common.get_credentials = lambda *args, **options: requests.Session()
from colab_cli.cli import main
main()
"""
CONTENT = """# The client goes to /content, which is a folder of this machine's own here.
import os
def there(function):
    return lambda path, *args, **options: function({place!r} if path == "/content" else path, *args, **options)
os.chdir, os.makedirs = there(os.chdir), there(os.makedirs)
"""
KAGGLE = """#!{python}
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.LOCAL] = {url!r}
from kaggle.cli import main
main()
"""


def clients(folder: Path, tools: Path) -> Path:
    """Return the Python of an environment with both clients, created once; they need Python 3.12."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = shutil.which("uv") or str(tools / "uv")
        subprocess.run([uv, "venv", "--quiet", "--python", newer_python(), str(folder)], check=True)
        environ = {**os.environ, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES], check=True, env=environ)
        subprocess.run([uv, "pip", "uninstall", "--quiet", "--python", str(python), SLOW], check=True, env=environ)
        (folder / "ready").touch()
    return python


def newer_python() -> str:
    """Return a Python of version 3.12 or later; uv installs one if it is missing."""
    if sys.version_info >= (3, 12):
        return sys.executable
    versions = Path.home() / ".pyenv" / "versions"
    found = [str(path) for path in sorted(versions.glob("3.1[2-9]*/bin/python"))]
    return found[0] if found else "3.12"


class Sessions:
    """The requests to both services, and the open sessions."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python = folder, python
        self.asked: list[str] = []
        self.open: dict[str, subprocess.Popen[bytes]] = {}
        self.urls: dict[str, str] = {}
        self.refuses = 0
        self.refused: dict[str, int | bytes] = {}  # the status for paths that contain this
        self.kernels: dict[str, dict[str, Any]] = {}
        self.url = ""
        (folder / "bin").mkdir(parents=True)

    def launchers(self) -> None:
        """Create the two commands, which use this server."""
        for name, text in (("colab", COLAB), ("kaggle", KAGGLE)):
            path = self.folder / "bin" / name
            path.write_text(text.format(python=self.python, url=self.url))
            path.chmod(0o755)

    def assign(self, name: str) -> dict[str, Any]:
        """Start a machine: a Jupyter server whose kernels start in `content`."""
        root = self.folder / name
        (root / "content").mkdir(parents=True)
        spec = root / "jupyter" / "kernels" / "python3"
        spec.mkdir(parents=True)
        start = f"cd {root / 'content'} && exec {forking.python()} -m ipykernel_launcher -f {{connection_file}}"
        about = {"argv": ["/bin/sh", "-c", start], "display_name": "Python 3", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(about))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = [
            "--IdentityProvider.token=",
            "--ServerApp.disable_check_xsrf=True",
            "--ServerApp.open_browser=False",
        ]
        places = [f"--ServerApp.port={port}", f"--ServerApp.root_dir={root}", "--allow-root"]
        kept = ("HF_", "WANDB", "ALGORITHMIA", "STACK_", "PYTHONPATH")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(kept)}
        environ |= {"JUPYTER_PATH": str(root / "jupyter"), "HOME": str(root), "STACK_TRACKER": "none"}
        startup = root / ".ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "content.py").write_text(CONTENT.format(place=str(root / "content")))
        self.open[name] = subprocess.Popen(
            [str(self.python), "-m", "jupyter_server", *options, *places],
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.urls[name] = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.urls[name]}/api/status", timeout=5).close()
                return self.described(name)
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)

    def described(self, name: str) -> dict[str, Any]:
        """Return the JSON object of an assignment."""
        info = {"token": "t", "tokenExpiresInSeconds": 3600, "url": self.urls[name]}
        return {
            "accelerator": "T4",
            "endpoint": name,
            "variant": 1,
            "machineShape": 0,
            "runtimeProxyInfo": info,
        }

    def unassign(self, name: str) -> None:
        """Stop the machine."""
        process = self.open.pop(name)
        process.terminate()
        process.wait(30)

    def push(self, body: dict[str, Any]) -> dict[str, Any]:
        """Run a kernel until it finishes."""
        name = body["slug"]
        place = self.folder / name.replace("/", "-")
        place.mkdir()
        (place / "script.py").write_text(body["text"])
        kept = ("HF_", "WANDB", "ALGORITHMIA", "STACK_", "PYTHONPATH")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(kept)}
        environ |= {"HOME": str(place), "STACK_TRACKER": "none"}
        done = subprocess.run([forking.python(), "script.py"], cwd=place, env=environ, capture_output=True, check=False)
        self.kernels[name] = {"place": place, "code": done.returncode, "body": body}
        return {"ref": name, "url": f"{self.url}/{name}", "versionNumber": 1}


def handler(sessions: Sessions) -> type[BaseHTTPRequestHandler]:
    """Return the request handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            sessions.asked.append(f"GET {path}")
            if self.planted(path):
                pass
            elif path == "/tun/m/assign":
                self.answer({"acc": "T4", "nbh": "n", "token": "xsrf", "variant": "GPU"})
            elif path == "/tun/m/assignments":
                self.answer({"assignments": [sessions.described(name) for name in sessions.open]})
            elif path.startswith("/tun/m/unassign/"):
                self.answer({"token": "xsrf"})
            elif path.startswith("/output/"):
                self.send((sessions.folder / path.removeprefix("/output/")).read_bytes())
            else:
                self.answer({})

        def do_POST(self) -> None:
            path = self.path.split("?")[0]
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            sessions.asked.append(f"POST {path}")
            name = f"{body.get('userName')}/{body.get('kernelSlug')}"
            if sessions.refuses:
                self.answer({}, sessions.refuses)
            elif self.planted(path):
                pass
            elif path == "/tun/m/assign":
                self.answer(sessions.assign(f"m{len(sessions.asked)}"))
            elif path.startswith("/tun/m/unassign/"):
                sessions.unassign(path.rpartition("/")[2])
                self.answer({})
            elif path.endswith("/SaveKernel"):
                self.answer(sessions.push(body))
            elif path.endswith("/GetKernelSessionStatus"):
                self.answer({"status": "ERROR" if sessions.kernels[name]["code"] else "COMPLETE"})
            elif path.endswith("/ListKernelSessionOutput"):
                place = sessions.kernels[name]["place"].name
                url = f"{sessions.url}/output/{place}/results.tgz"
                self.answer({"files": [{"fileName": "results.tgz", "url": url}], "log": "[]"})
            elif path.endswith("/DeleteKernel"):
                self.answer({}, 200 if sessions.kernels.pop(name, None) else 404)
            else:
                self.answer({})

        def planted(self, path: str) -> bool:
            for part, answer in sessions.refused.items():
                if part in path:
                    self.answer({}, answer) if isinstance(answer, int) else self.send(answer)
                    return True
            return False

        def answer(self, value: Any, status: int = 200) -> None:
            self.send(json.dumps(value).encode(), status)

        def send(self, content: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Last-Modified", "Mon, 01 Jun 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving(folder: Path, python: Path) -> Iterator[Sessions]:
    """Serve both services, with the two commands in `folder/bin`."""
    sessions = Sessions(folder, python)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(sessions))
    sessions.url = f"http://127.0.0.1:{server.server_address[1]}"
    sessions.launchers()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield sessions
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for name in list(sessions.open):
            sessions.unassign(name)
