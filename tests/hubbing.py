"""As much of the Hugging Face Hub as the storing of files asks of it, on loopback."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_app(root: Path, commits: list[int]) -> Starlette:
    """The Hub, with its repositories as folders of `root`; `commits` collects the number of files in each commit."""

    def folder(request: Request) -> Path:
        return root / request.path_params["kind"] / request.path_params["user"] / request.path_params["name"]

    async def create(request: Request) -> Response:
        body = await request.json()
        place = root / f"{body.get('type', 'model')}s" / body.get("organization", "me") / body["name"]
        answer = {"url": f"{request.base_url}{place.relative_to(root)}"}
        if place.exists():
            return JSONResponse({"error": "exists", **answer}, 409)
        place.mkdir(parents=True)
        return JSONResponse(answer)

    async def revision(request: Request) -> Response:
        if not folder(request).exists():
            return JSONResponse({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})
        name = f"{request.path_params['user']}/{request.path_params['name']}"
        return JSONResponse({"id": name, "sha": COMMIT, "siblings": [], "private": True, "tags": []})

    async def tree(request: Request) -> Response:
        inner = folder(request) / request.path_params.get("path", "")
        if not inner.exists():
            return JSONResponse({"error": "no such entry"}, 404, {"X-Error-Code": "EntryNotFound"})
        deep = request.query_params.get("recursive", "").lower() in ("true", "1")
        found = sorted(inner.rglob("*") if deep else inner.iterdir())
        return JSONResponse([entry(path, folder(request)) for path in found])

    async def preupload(request: Request) -> Response:
        files = (await request.json())["files"]
        modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
        return JSONResponse({"files": modes})

    async def commit(request: Request) -> Response:
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        for file in files:
            path = folder(request) / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(file["content"]))
        commits.append(len(files))
        url = f"{request.base_url}{folder(request).relative_to(root)}/commit/{COMMIT}"
        return JSONResponse({"success": True, "commitOid": COMMIT, "commitUrl": url})

    async def resolve(request: Request) -> Response:
        path = folder(request) / request.path_params["path"]
        if not path.is_file():
            return JSONResponse({"error": "no such entry"}, 404, {"X-Error-Code": "EntryNotFound"})
        return FileResponse(path, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{blob_id(path)}"'})

    async def nothing(request: Request) -> Response:
        return JSONResponse({"error": f"not served here: {request.url.path}"}, 404)

    repository = "/api/{kind}/{user}/{name}"
    return Starlette(
        routes=[
            Route("/api/repos/create", create, methods=["POST"]),
            Route(repository, revision),
            Route(repository + "/revision/{revision}", revision),
            Route(repository + "/tree/{revision}", tree),
            Route(repository + "/tree/{revision}/{path:path}", tree),
            Route(repository + "/preupload/{revision}", preupload, methods=["POST"]),
            Route(repository + "/commit/{revision}", commit, methods=["POST"]),
            Route("/{kind}/{user}/{name}/resolve/{revision}/{path:path}", resolve, methods=["GET", "HEAD"]),
            Route("/{path:path}", nothing, methods=["GET", "POST", "HEAD"]),
        ]
    )


def entry(path: Path, root: Path) -> dict[str, Any]:
    """What the Hub tells of a file or folder."""
    name = path.relative_to(root).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
    return {"type": "file", "path": name, "oid": blob_id(path), "size": path.stat().st_size}


def blob_id(path: Path) -> str:
    """git's name for a content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
