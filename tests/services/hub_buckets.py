"""The buckets of a loopback Hub: object storage without versions, uploaded with Xet only.

Shapes are those that huggingface_hub 2.4 sends and reads (hf_api: create_bucket to download_bucket_files, _buckets.py).
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from services.hub_store import CREATED
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from services.hub_server import Hub


@dataclass
class Bucket:
    """A bucket: the Xet hash and the time stamp of each file by path."""

    id: str
    private: bool
    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    batches: list[list[str]] = field(default_factory=list)  # the changes of each request: "+path" or "-path"


class Buckets:
    """The routes of a Hub's buckets."""

    def __init__(self, hub: "Hub") -> None:
        self.hub = hub
        self.all: dict[str, Bucket] = {}

    def routes(self) -> list[Route]:
        """Return the routes; they must precede those of repositories, which match the same paths."""
        api = "/api/buckets/{user}/{name}"
        return [
            Route("/api/buckets/{user}", self.listing),
            Route(api, self.info),
            Route(api, self.create, methods=["POST"]),
            Route(api, self.delete, methods=["DELETE"]),
            Route(api + "/settings", self.settings, methods=["PUT"]),
            Route(api + "/tree", self.tree),
            Route(api + "/tree/{path:path}", self.tree),
            Route(api + "/paths-info", self.paths_info, methods=["POST"]),
            Route(api + "/batch", self.batch, methods=["POST"]),
            Route(api + "/xet-{right}-token", self.xet_token),
            Route("/buckets/{user}/{name}/resolve/{path:path}", self.resolve),
        ]

    def asked(self, request: Request, write: bool = False) -> Bucket:
        """Return the bucket of a request. Raises 404 if it is missing or not readable."""
        token, (user, name) = self.hub.token(request), (request.path_params["user"], request.path_params["name"])
        bucket = self.all.get(f"{user}/{name}")
        if bucket is None or (bucket.private and not (token and (token.user == user or token.writes(bucket.id)))):
            raise self.hub.refusing(404 if token else 401, "Repository not found", "RepoNotFound")
        if write and not (token and token.writes(bucket.id)):
            raise self.hub.refusing(403, f"You don't have the rights to write to {bucket.id}")
        return bucket

    def content(self, id: str) -> dict[str, bytes]:
        """Return the files of a bucket, for inspection."""
        contents = self.hub.contents
        return {path: contents.path(self.hub.hashes[xet]).read_bytes() for path, (xet, _) in self.all[id].files.items()}

    def size(self, xet: str) -> int:
        """Return the size of a content in bytes."""
        return self.hub.contents.path(self.hub.hashes[xet]).stat().st_size

    def described(self, bucket: Bucket) -> dict[str, Any]:
        """Return the JSON object of a bucket."""
        size = sum(self.size(xet) for xet, _ in bucket.files.values())
        about = {"_id": "0", "id": bucket.id, "private": bucket.private, "createdAt": CREATED, "size": size}
        return about | {"totalFiles": len(bucket.files)}

    def file(self, bucket: Bucket, path: str) -> dict[str, Any]:
        """Return the JSON object of a file in a listing."""
        xet, when = bucket.files[path]
        about = {"type": "file", "path": path, "size": self.size(xet), "xetHash": xet}
        return about | {"mtime": when, "uploadedAt": when}

    async def listing(self, request: Request) -> Response:
        token = self.hub.token(request)
        seen = [
            bucket
            for bucket in self.all.values()
            if bucket.id.startswith(f"{request.path_params['user']}/")
            and (not bucket.private or (token and token.user == bucket.id.split("/")[0]))
        ]
        return JSONResponse([self.described(bucket) for bucket in seen])

    async def info(self, request: Request) -> Response:
        return JSONResponse(self.described(self.asked(request)))

    async def create(self, request: Request) -> Response:
        token, body = self.hub.token(request), await request.json()
        if token is None:
            raise self.hub.refusing(401, "Invalid username or password.")
        user = request.path_params["user"]
        bucket_id = f"{user}/{request.path_params['name']}"
        if not token.writes(bucket_id):
            raise self.hub.refusing(403, f"You don't have the rights to create a bucket under the namespace {user}")
        url = f"{self.hub.url}/buckets/{bucket_id}"
        if bucket_id in self.all:
            return JSONResponse({"error": "You already created this bucket", "url": url}, 409)
        self.all[bucket_id] = Bucket(bucket_id, body.get("visibility") == "private")
        return JSONResponse({"url": url, "name": bucket_id})

    async def delete(self, request: Request) -> Response:
        del self.all[self.asked(request, write=True).id]
        return Response(status_code=204)

    async def settings(self, request: Request) -> Response:
        self.asked(request, write=True).private = bool((await request.json())["private"])
        return JSONResponse({})

    async def tree(self, request: Request) -> Response:
        from services.hub_server import paged

        bucket, prefix = self.asked(request), unquote(request.path_params.get("path", ""))
        paths = sorted(path for path in bucket.files if path.startswith(prefix))
        if request.query_params.get("recursive", "").lower() in ("true", "1"):
            return paged(request, [self.file(bucket, path) for path in paths], self.hub.url)
        inner = f"{prefix.rstrip('/')}/" if prefix else ""
        below = [path for path in paths if path.startswith(inner)]
        names = dict.fromkeys(inner + path.removeprefix(inner).split("/")[0] for path in below)
        found = [
            self.file(bucket, name)
            if name in bucket.files
            else {"type": "directory", "path": name, "uploadedAt": CREATED}
            for name in [*(path for path in paths if path == prefix), *names]
        ]
        return paged(request, found, self.hub.url)

    async def paths_info(self, request: Request) -> Response:
        bucket, body = self.asked(request), await request.json()
        return JSONResponse([self.file(bucket, path) for path in body["paths"] if path in bucket.files])

    async def batch(self, request: Request) -> Response:
        bucket, failed, done = self.asked(request, write=True), [], []
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        for line in lines:
            path = line["path"]
            if line["type"] == "deleteFile":
                known = bucket.files.pop(path, None) is not None
                problem = "" if known else "not found"
            else:
                problem = "" if line["xetHash"] in self.hub.hashes else "unknown xet hash"
                if not problem:
                    bucket.files[path] = line["xetHash"], moment(line["mtime"])
            if problem:
                failed.append({"path": path, "error": problem})
            else:
                done.append(f"{'-' if line['type'] == 'deleteFile' else '+'}{path}")
        bucket.batches.append(done)
        counts = {"success": not failed, "processed": len(lines), "succeeded": len(done), "failed": failed}
        return JSONResponse(counts, 422 if failed and not done else 200)

    async def xet_token(self, request: Request) -> Response:
        self.asked(request, write=request.path_params["right"] == "write")
        return self.hub.connection()

    async def resolve(self, request: Request) -> Response:
        bucket, path = self.asked(request), unquote(request.path_params["path"])
        if path not in bucket.files:
            raise self.hub.refusing(404, "Entry not found", "EntryNotFound")
        xet, _ = bucket.files[path]
        refresh = f"{self.hub.url}/api/buckets/{bucket.id}/xet-read-token"
        headers = {"X-Xet-Hash": xet, "X-Linked-Size": str(self.size(xet)), "X-Linked-Etag": f'"{xet}"'}
        headers |= {"ETag": f'"{xet}"', "Link": f'<{refresh}>; rel="xet-auth"'}
        if request.method == "HEAD":
            return Response(headers={**headers, "Content-Length": str(self.size(xet))})
        return FileResponse(self.hub.contents.path(self.hub.hashes[xet]), headers=headers)


def moment(milliseconds: int) -> str:
    """Format a time as the Hub does."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
