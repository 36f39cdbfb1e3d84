"""A loopback git server like that of an Algorithmia installation: everyone can fetch, the owner can push."""

import asyncio
import base64
import subprocess
from pathlib import Path
from typing import Any


class GitServer:
    """An ASGI app for the repositories in a folder, based on git's `http-backend`."""

    def __init__(self, folder: Path, user: str, key: str) -> None:
        self.folder = folder
        self.owner = b"Basic " + base64.b64encode(f"{user}:{key}".encode())

    def create(self, name: str, hook: str) -> None:
        """Create an empty repository with a shell script that runs after each push."""
        path = self.folder / f"{name}.git"
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(path)], check=True)
        subprocess.run(["git", "-C", str(path), "config", "http.receivepack", "true"], check=True)
        (path / "hooks" / "post-receive").write_text(f"#!/bin/sh\n{hook}\n")
        (path / "hooks" / "post-receive").chmod(0o755)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers, query = dict(scope["headers"]), scope["query_string"].decode()
        if "receive-pack" in scope["path"] + query and headers.get(b"authorization") != self.owner:
            status, fields, content = 401, [(b"www-authenticate", b'Basic realm="git"')], b"who are you?"
        else:
            status, fields, content = await asyncio.to_thread(self._run, scope, headers, query, body)
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": content})

    def _run(self, scope: Any, headers: dict[bytes, bytes], query: str, body: bytes) -> Any:
        environment = {
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": scope["path"],
            "QUERY_STRING": query,
            "REQUEST_METHOD": scope["method"],
            "CONTENT_TYPE": headers.get(b"content-type", b"").decode(),
            "HTTP_CONTENT_ENCODING": headers.get(b"content-encoding", b"").decode(),
            "GIT_PROTOCOL": headers.get(b"git-protocol", b"").decode(),
            "PATH": "/usr/bin:/bin:/usr/local/bin",
            "REMOTE_USER": "owner",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in head.split(b"\r\n"))
        ]
        status = next((int(value.split()[0]) for name, value in fields if name == b"status"), 200)
        return status, fields, content
