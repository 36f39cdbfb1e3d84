"""A loopback server that responds to credential checks like the real services, and valid keys."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WANDB_KEY = "wandb_v1_" + "k" * 73 + "wxyz"
HF_KEY = "hf_" + "h" * 30 + "wxyz"
ALGORITHMIA_KEY = "sim" + "a" * 21 + "wxyz"
KEYS = {"ALGORITHMIA_API_KEY": ALGORITHMIA_KEY, "WANDB_API_KEY": WANDB_KEY, "HF_TOKEN": HF_KEY}
VARIABLE = {"algorithmia": "ALGORITHMIA_API", "wandb": "WANDB_BASE_URL", "huggingface": "HF_ENDPOINT"}
SERVICES = list(VARIABLE)


class Server(http.server.ThreadingHTTPServer):
    """Return the same response to every request, and record the requests."""

    daemon_threads = True

    def __init__(self, status=200, body=b"{}", kind="application/json", delay=0.0, headers=()):
        self.answer = (status, body if isinstance(body, bytes) else json.dumps(body).encode(), kind, headers)
        self.delay, self.requests = delay, []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        status, body, kind, headers = self.server.answer
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        pieces = [body] if not self.server.delay else [body[i : i + 1] for i in range(len(body))]
        for piece in pieces:  # a slow server drips, so that no single wait is long
            time.sleep(self.server.delay)
            try:
                self.wfile.write(piece)
            except ConnectionError:
                return

    do_POST = do_CONNECT = do_GET

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(**answer) -> Iterator[Server]:
    with Server(**answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(home), **more}


def viewer(entity="ada", username="ada", teams=("lovelace-lab",)):
    edges = [{"node": {"name": name}} for name in teams]
    return {"data": {"viewer": {"id": "VXNlcjox", "entity": entity, "username": username, "teams": {"edges": edges}}}}


def whoami(role="write", scoped=None, orgs=(), **more):
    token = {"displayName": "laptop", "role": role, "createdAt": "2026-01-01T00:00:00.000Z"}
    if role == "fineGrained":
        token["fineGrained"] = {
            "canReadGatedRepos": False,
            "global": ["discussion.write"],
            "scoped": scoped or [],
        }
    return {
        "type": "user",
        "id": "1",
        "name": "ada",
        "isPro": False,
        "canPay": False,
        "orgs": [{"type": "org", "id": "2", "name": name, "roleInOrg": role} for name, role in orgs],
        "auth": {"type": "access_token", "accessToken": token},
        **more,
    }


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path
