"""The Hugging Face Hub on loopback, for its unmodified client (huggingface_hub 2.x).

`python tests/services/hub_server.py [FOLDER]` serves one until Ctrl-C and prints its address. Set HF_ENDPOINT to it
before the client is imported. The keys are those of `TOKENS`. A comment at each route names the source of its format:
"client" is the code of huggingface_hub 2.4, "docs" huggingface.co/docs/hub (/api, /xet, /spaces-overview), "js" the
types of @huggingface/hub.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from services import ports
from services.hub_buckets import Buckets, moment
from services.hub_faults import Faulty, Protocol
from services.hub_jobs import Jobs
from services.hub_limits import Limits
from services.hub_store import ATTRIBUTES, CREATED, Commit, Contents, Entry, Repo
from services.hub_xet import Blocks

EMPTY = "0" * 64  # Xet's hash of no bytes
PAGE = (1000, 50)  # entries per page of a listing, without and with details
LARGE = 10 << 20  # bytes above which a file is stored outside git
PRO = "hosting Gradio and Docker Spaces on free cpu-basic requires a PRO subscription"
BLOCK = re.compile(r"\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
NAME = re.compile(r"[\w.-]{1,96}")


@dataclass(frozen=True)
class Token:
    """The user and role of a key: read, write or fineGrained with `scopes` of (type, name, permissions)."""

    user: str = "me"
    role: str = "write"
    scopes: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    pro: bool = False

    def writes(self, id: str) -> bool:
        """Return whether the key may write to a repository."""
        if self.role != "fineGrained":
            return self.role == "write" and id.split("/")[0] == self.user
        own = [allowed for _, name, allowed in self.scopes if name in (id, id.split("/")[0])]
        return any(right in ("repo.write", "repo.content.write") for rights in own for right in rights)


TOKENS = {
    "hf_write": Token(),
    "hf_read": Token(role="read"),
    "hf_fine": Token(role="fineGrained", scopes=(("user", "me", ("repo.content.read", "repo.write")),)),
    "hf_other": Token("you"),
}


class RefusedError(Exception):
    """An error response."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Quoted:
    """An app that distinguishes %2F in the name of a branch or file from a slash."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            raw = scope["raw_path"].decode()
            scope = {**scope, "path": unquote(re.sub("%2[Ff]", "%252F", raw))}
        await self.app(scope, receive, send)


def revision(request: Request) -> str:
    """Return the branch, tag or commit in a request."""
    return unquote(request.path_params.get("revision", "main"))


class Hub:
    """The Hub: repositories and contents in `folder`, `tokens`, and the kinds of Space that it `grants`."""

    def __init__(
        self,
        folder: Path,
        tokens: Mapping[str, Token] = TOKENS,
        grants: frozenset[str] = frozenset({"static"}),
    ) -> None:
        self.contents, self.blocks = Contents(folder / "contents"), Blocks(folder / "blocks")
        self.tokens, self.grants, self.refusal = dict(tokens), grants, (402, PRO)
        self.publishers: dict[str, str] = {}  # identity tokens of a CI, and the repository that trusts it
        self.repos: dict[tuple[str, str], Repo] = {}
        self.asked_for: list[dict[str, Any]] = []  # request bodies of create_repo
        self.times: dict[str, float] = {}  # times of commits
        self.sent = 0  # received bytes of contents
        self.start: Callable[[Repo], str] = lambda repo: ""  # runs a Space; returns its address
        self.url = self.far = ""  # its address, and the target of redirects for large files
        # The client caches the contents of a block store by its address across processes, and another Hub may have
        # used the port before.
        self.store = f"/cas-{secrets.token_hex(8)}"
        self.jobs = Jobs(self)
        self.buckets, self.hashes = Buckets(self), {EMPTY: self.contents.keep(b"", lfs=False).sha256}
        routed = Starlette(routes=self._routes(), exception_handlers={RefusedError: refuse})
        self.limits = Limits(Quoted(routed))
        self.app = Faulty(self.limits)

    @property
    def calls(self) -> list[str]:
        """All requests as `METHOD /path`."""
        return self.app.calls

    @staticmethod
    def refusing(status: int, message: str, code: str = "") -> RefusedError:
        """Return an error response to raise."""
        return RefusedError(status, message, code)

    def repo(self, kind: str, id: str) -> Repo:
        """Return a repository, for inspection."""
        return self.repos[kind, id]

    def files(self, kind: str, id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision of a repository."""
        commit = self.repo(kind, id).at(revision)
        assert commit
        return {path: self.contents.path(entry.sha256).read_bytes() for path, entry in commit.tree.items()}

    def create(self, kind: str, id: str, private: bool = True) -> Repo:
        """Create a repository as the Hub does: with one commit of .gitattributes."""
        repo = self.repos[kind, id] = Repo(kind, id, private)
        repo.commit("initial commit", {".gitattributes": self.contents.keep(ATTRIBUTES.encode(), lfs=False)})
        return repo

    def put(self, kind: str, id: str, files: Mapping[str, bytes]) -> Commit:
        """Commit files to a repository without a request; create it if it is missing."""
        repo = self.repos.get((kind, id)) or self.create(kind, id, private=False)
        return repo.commit(
            "put", {path: self.contents.keep(data, is_large(path, data)) for path, data in files.items()}
        )

    def _routes(self) -> list[Route]:
        api = "/api/{kind}/{user}/{name}"
        routes = [
            *self.buckets.routes(),
            *self.jobs.routes(),
            Route("/api/settings/repositories", self.repositories),  # client: list_user_repos, RepoStorageInfo
            Route("/api/organizations/{user}/settings/repositories", self.repositories),  # client: the same
            Route("/api/whoami-v2", self.whoami),  # js: WhoAmI; docs: security-tokens
            Route("/oauth/token", self.exchange, methods=["POST"]),  # client: _oidc.exchange_oidc_token (RFC 8693)
            Route("/api/repos/create", self.create_repo, methods=["POST"]),  # client: create_repo; docs: api
            Route("/api/repos/delete", self.delete_repo, methods=["DELETE"]),  # client: delete_repo
            Route("/api/validate-yaml", self.validate, methods=["POST"]),  # client: _validate_yaml
            Route("/api/agent-harnesses", self.nothing),  # client: once a day
            Route(api + "/auth-check", self.auth_check),  # client: auth_check
            Route(api + "/auth-check/write", self.auth_check),  # client: auth_check(write=True)
            # client: RepoFile, RepoFolder, paginate; js: listFiles and parseLinkHeader, which also follow `Link`
            Route(api + "/tree/{revision}", self.tree),
            Route(api + "/tree/{revision}/{path:path}", self.tree),
            Route(api + "/paths-info/{revision}", self.paths_info, methods=["POST"]),  # client: get_paths_info
            Route(api + "/preupload/{revision}", self.preupload, methods=["POST"]),  # client: _fetch_upload_modes
            Route(api + "/commit/{revision}", self.commit, methods=["POST"]),  # client: _send_commit
            Route(api + "/commits/{revision}", self.history),  # client: GitCommitInfo
            Route(api + "/refs", self.refs),  # client: GitRefs
            Route(api + "/tag/{revision}", self.tag, methods=["POST", "DELETE"]),  # client: create_tag, delete_tag
            Route(api + "/branch/{revision}", self.branch, methods=["POST"]),  # client: create_branch
            Route(api + "/xet-{right}-token/{revision}", self.xet_token),  # client: XetConnectionInfo; docs: xet/auth
            Route(api + "/secrets", self.secrets, methods=["POST"]),  # client: add_space_secret
            Route(api + "/variables", self.variables, methods=["GET", "POST"]),  # client: add_space_variable
            Route(api + "/settings", self.settings, methods=["PUT"]),  # client: update_repo_settings
            Route(api + "/runtime", self.runtime),  # client: SpaceRuntime
            Route(api + "/hardware", self.hardware, methods=["POST"]),  # client: request_space_hardware
            Route(api + "/revision/{revision}", self.info),  # client: ModelInfo, DatasetInfo, SpaceInfo
            Route(api, self.info),
            Route("/lfs/{sha256}", self.lfs_put, methods=["PUT"]),  # git-lfs: docs/api/basic-transfers.md
            Route("/lfs/{sha256}/verify", self.lfs_verify, methods=["POST"]),  # git-lfs: the same
            Route("/cdn/{sha256}", self.cdn),  # the target of redirects for large files
            Route(self.store + "/v1/xorbs/default/{hash}", self.xorb, methods=["POST"]),  # docs: xet/api
            Route(self.store + "/v1/shards", self.shard, methods=["POST"]),  # docs: xet/api
            Route(self.store + "/v1/reconstructions/{hash}", self.reconstruction),  # docs: xet/api, download-protocol
            Route(self.store + "/xorbs/{hash}", self.stored_xorb),  # the download URLs of reconstructions
        ]
        for prefix in ("/{user}/{name}", "/{kind}/{user}/{name}"):
            batch = prefix + ".git/info/lfs/objects/batch"
            routes += [Route(batch, self.lfs_batch, methods=["POST"])]  # git-lfs: docs/api/batch.md
            routes += [Route(prefix + "/resolve/{revision}/{path:path}", self.resolve)]  # client: file_download
        return [*routes, Route("/{path:path}", self.missing, methods=["GET", "POST", "PUT", "DELETE"])]

    def token(self, request: Request) -> Token | None:
        """Return the key of a request, None without one. Raises RefusedError for an unknown key."""
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key and key not in self.tokens:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.tokens.get(key)

    def asked(self, request: Request, write: bool = False) -> Repo:
        """Return the repository of a request. Raises 404 if it is missing or not readable."""
        token, given = self.token(request), request.path_params
        repo_id = f"{given['user']}/{given['name']}"
        repo = self.repos.get((given.get("kind", "models").removesuffix("s"), repo_id))
        if repo is None or (
            repo.private and not (token and (token.user == repo_id.split("/")[0] or token.writes(repo_id)))
        ):
            raise RefusedError(404 if token else 401, "Repository not found", "RepoNotFound")
        if write and not (token and token.writes(repo_id)):
            raise RefusedError(403, f"You don't have the rights to write to {repo_id}")
        return repo

    def at(self, request: Request, repo: Repo) -> Commit:
        """Return the commit of a request."""
        if found := repo.at(revision(request)):
            return found
        raise RefusedError(404, f"Invalid rev id: {revision(request)}", "RevisionNotFound")

    async def whoami(self, request: Request) -> Response:
        token = self.token(request)
        if token is None:
            raise RefusedError(401, "Invalid username or password.")
        access: dict[str, Any] = {"displayName": "test", "role": token.role, "createdAt": CREATED}
        if token.role == "fineGrained":
            scoped = [
                {"entity": {"_id": "0", "type": kind, "name": name}, "permissions": list(rights)}
                for kind, name, rights in token.scopes
            ]
            access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        about = {
            "type": "user",
            "id": "0",
            "name": token.user,
            "fullname": token.user,
            "email": f"{token.user}@x.org",
        }
        about |= {
            "isPro": token.pro,
            "canPay": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": access},
        }
        return JSONResponse(about)

    async def exchange(self, request: Request) -> Response:
        body = await request.json()
        if self.publishers.get(body.get("subject_token")) != body.get("resource"):
            raise RefusedError(401, "no trusted publisher matches")
        key = f"hf_jwt_{len(self.tokens)}"
        scope = ("model", body["resource"], ("repo.content.read", "repo.content.write"))
        self.tokens[key] = Token("ci", "fineGrained", (scope,))
        return JSONResponse({"access_token": key, "token_type": "bearer", "expires_in": 3600})

    async def create_repo(self, request: Request) -> Response:
        body, token = await request.json(), self.token(request)
        if token is None:
            raise RefusedError(401, "Invalid username or password.")
        kind, repo_id = (
            body.get("type") or "model",
            f"{body.get('organization') or token.user}/{body['name']}",
        )
        self.asked_for.append(body)
        if not token.writes(repo_id.split("/")[0]):
            raise RefusedError(
                403,
                f"You don't have the rights to create a {kind} under the namespace {repo_id.split('/')[0]}",
            )
        if not NAME.fullmatch(body["name"]):
            raise RefusedError(400, f"Invalid repo name: {body['name']}")
        url = f"{self.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind, repo_id) in self.repos:
            return JSONResponse({"error": f"You already created this {kind} repo", "url": url}, 409)
        if kind == "space" and not {body["sdk"], body.get("hardware")} & self.grants and not token.pro:
            raise RefusedError(*self.refusal)
        private = body.get("visibility") == "private" or body.get("private", False)
        repo = self.create(kind, repo_id, private)
        repo.space = {"sdk": body.get("sdk"), "hardware": body.get("hardware") or "cpu-basic"}
        repo.secrets = {item["key"]: item["value"] for item in body.get("secrets") or []}
        repo.variables = {item["key"]: item["value"] for item in body.get("variables") or []}
        return JSONResponse({"url": url, "name": repo_id, "id": "0"})

    async def delete_repo(self, request: Request) -> Response:
        body, token = await request.json(), self.token(request)
        repo_id = f"{body.get('organization') or (token.user if token else '')}/{body['name']}"
        if not (token and token.writes(repo_id)):
            raise RefusedError(403, "no rights")
        if self.repos.pop((body.get("type") or "model", repo_id), None) is None:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return Response("OK")

    async def validate(self, request: Request) -> Response:
        body = await request.json()
        errors, warnings = judged(body["content"], body["repoType"])
        found = {
            "errors": [{"message": line} for line in errors],
            "warnings": [{"message": line} for line in warnings],
        }
        return JSONResponse(found, 400 if errors else 200)

    async def auth_check(self, request: Request) -> Response:
        self.asked(request, write=request.url.path.endswith("write"))
        return Response("OK")

    async def info(self, request: Request) -> Response:
        repo = self.asked(request)
        commit = self.at(request, repo)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.tree)]
        if request.query_params.get("blobs"):
            for item in siblings:
                described = commit.tree[item["rfilename"]].described(item["rfilename"])
                item |= {"size": described["size"], "blobId": described["oid"]}
                if lfs := described.get("lfs"):
                    item["lfs"] = {
                        "sha256": lfs["oid"],
                        "size": lfs["size"],
                        "pointerSize": lfs["pointerSize"],
                    }
        front = metadata(self.text(commit, "README.md"))
        about = {
            "_id": "0",
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "lastModified": CREATED,
        }
        about |= {
            "createdAt": CREATED,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
        }
        about |= {"likes": 0, "tags": front.get("tags") or [], "siblings": siblings, "cardData": front}
        if repo.kind == "model":
            about |= {"modelId": repo.id, "pipeline_tag": front.get("pipeline_tag")}
            about |= {"library_name": front.get("library_name")}
        if repo.kind == "space":
            about |= {
                "sdk": repo.space["sdk"],
                "host": self.start(repo) or None,
                "subdomain": repo.id.replace("/", "-"),
            }
        return JSONResponse(about)

    def text(self, commit: Commit, path: str) -> str:
        """Return a file of a commit as text, "" if it is missing."""
        entry = commit.tree.get(path)
        return self.contents.path(entry.sha256).read_text(encoding="utf-8") if entry else ""

    async def tree(self, request: Request) -> Response:
        repo = self.asked(request)
        commit, inner = self.at(request, repo), unquote(request.path_params.get("path", "")).strip("/")
        below = {path: entry for path, entry in commit.tree.items() if not inner or path.startswith(f"{inner}/")}
        if not below and inner:
            raise RefusedError(404, f"{inner} does not exist on {commit.oid}", "EntryNotFound")
        deep = request.query_params.get("recursive", "").lower() in ("true", "1")
        found = [folder(path) for path in folders(below, inner)]
        found += [entry.described(path) for path, entry in below.items()]
        if not deep:
            depth = inner.count("/") + 1 if inner else 0
            found = [item for item in found if item["path"].count("/") == depth]
        return paged(request, sorted(found, key=lambda item: str(item["path"])), self.url)

    async def paths_info(self, request: Request) -> Response:
        repo = self.asked(request)
        commit, form = self.at(request, repo), await request.form()
        found = []
        for path in map(str, form.getlist("paths")):
            if path in commit.tree:
                found.append(commit.tree[path].described(path))
            elif path in folders(commit.tree, ""):
                found.append(folder(path))
        return JSONResponse(found)

    async def preupload(self, request: Request) -> Response:
        repo = self.asked(request, write=True)
        tree, files = self.at(request, repo).tree, (await request.json())["files"]
        described = []
        for file in files:
            lfs = is_large(file["path"], base64.b64decode(file["sample"]), file["size"])
            entry = tree.get(file["path"])
            known = {"oid": entry.remote} if entry and entry.lfs == lfs else {}
            mode = "lfs" if lfs else "regular"
            described.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return JSONResponse({"files": described})

    async def commit(self, request: Request) -> Response:
        repo = self.asked(request, write=True)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header, changes = lines[0]["value"], {}
        branch = revision(request)
        if branch not in repo.branches:
            raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            changes[value["path"]] = None if key.startswith("deleted") else self.stored(key, value)
        if "README.md" in changes and (entry := changes["README.md"]):
            errors, _ = judged(self.contents.path(entry.sha256).read_text(encoding="utf-8"), repo.kind)
            if errors:
                raise RefusedError(400, errors[0])
        if reason := self.limits.refused(f"{repo.kind} {repo.id}"):
            raise RefusedError(429, reason)
        made = repo.commit(header["summary"], changes, branch)
        self.times[made.oid] = self.limits.clock()
        url = f"{self.url}/{'' if repo.kind == 'model' else repo.kind + 's/'}{repo.id}/commit/{made.oid}"
        return JSONResponse({"success": True, "commitOid": made.oid, "commitUrl": url})

    def stored(self, key: str, value: dict[str, Any]) -> Entry:
        """Return the file of a line of a commit request."""
        if key == "lfsFile":
            if not self.contents.path(value["oid"]).exists():
                raise RefusedError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            return self.contents.entry(value["oid"], lfs=True)
        content = base64.b64decode(value["content"])
        self.sent += len(content)
        return self.contents.keep(content, lfs=False)

    async def history(self, request: Request) -> Response:
        repo = self.asked(request)
        self.at(request, repo)
        return paged(
            request,
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": "",
                    "date": moment(self.times[commit.oid] * 1000) if commit.oid in self.times else CREATED,
                    "authors": [{"user": "me"}],
                }
                for commit in repo.history(revision(request))
            ],
            self.url,
        )

    async def refs(self, request: Request) -> Response:
        repo = self.asked(request)
        named = (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
        found: dict[str, Any] = {
            key: [{"name": name, "ref": f"refs/{place}/{name}", "targetCommit": oid} for name, oid in refs.items()]
            for key, place, refs in named
        }
        return JSONResponse({**found, "converts": [], "pullRequests": []})

    async def tag(self, request: Request) -> Response:
        repo = self.asked(request, write=True)
        if request.method == "DELETE":
            if repo.tags.pop(revision(request), None) is None:
                raise RefusedError(404, "no such tag", "RevisionNotFound")
            return Response("OK")
        commit, name = self.at(request, repo), (await request.json())["tag"]
        if name in repo.tags:
            raise RefusedError(409, f"Tag reference exists already: {name}")
        repo.tags[name] = commit.oid
        return Response("OK", 201)

    async def branch(self, request: Request) -> Response:
        repo, name = self.asked(request, write=True), revision(request)
        if name in repo.branches:
            raise RefusedError(409, "Reference already exists")
        start = repo.at((await request.json()).get("startingPoint", "main"))
        if start is None:
            raise RefusedError(404, "Invalid rev id", "RevisionNotFound")
        repo.branches[name] = start.oid
        return Response("OK", 201)

    async def lfs_batch(self, request: Request) -> Response:
        self.asked(request, write=True)
        objects = []
        for item in (await request.json())["objects"]:
            here = f"{self.url}/lfs/{item['oid']}"
            actions = {"upload": {"href": here}, "verify": {"href": f"{here}/verify"}}
            known = self.contents.path(item["oid"]).exists()
            objects.append({**item, "authenticated": True, **({} if known else {"actions": actions})})
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def lfs_put(self, request: Request) -> Response:
        content, sha256 = await request.body(), request.path_params["sha256"]
        if hashlib.sha256(content).hexdigest() != sha256:
            raise RefusedError(400, "the content differs from its announced checksum")
        self.sent += len(content)
        self.contents.keep(content, lfs=True)
        return Response()

    async def lfs_verify(self, request: Request) -> Response:
        body = await request.json()
        path = self.contents.path(body["oid"])
        if not path.exists() or path.stat().st_size != body["size"]:
            raise RefusedError(404, "not here")
        return JSONResponse({})

    async def xet_token(self, request: Request) -> Response:
        self.asked(request, write=request.path_params["right"] == "write")
        return self.connection()

    def connection(self) -> Response:
        """Return the address of the block store and its token."""
        store = self.url + self.store
        described = {"casUrl": store, "accessToken": "xet_of_a_test", "exp": 4102444800}
        headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "xet_of_a_test"}
        return JSONResponse(described, headers={**headers, "X-Xet-Token-Expiration": "4102444800"})

    def xet(self, request: Request) -> None:
        """Reject requests without a token of the block store."""
        if request.headers.get("authorization") != "Bearer xet_of_a_test":
            raise RefusedError(401, "no token")

    async def xorb(self, request: Request) -> Response:
        self.xet(request)
        content = await request.body()
        self.sent += len(content)
        return JSONResponse({"was_inserted": self.blocks.keep(request.path_params["hash"], content)})

    async def shard(self, request: Request) -> Response:
        self.xet(request)
        for xet, content in self.blocks.made(await request.body()):
            self.hashes[xet] = self.contents.keep(content, lfs=True).sha256
        return JSONResponse({"result": 1})

    async def reconstruction(self, request: Request) -> Response:
        self.xet(request)
        found = self.blocks.reconstruction(request.path_params["hash"], f"{self.url}{self.store}/xorbs")
        return JSONResponse(found) if found else Response(status_code=404)

    async def stored_xorb(self, request: Request) -> Response:
        return FileResponse(self.blocks.folder / request.path_params["hash"])

    async def repositories(self, request: Request) -> Response:
        token = self.token(request)
        if token is None:
            raise RefusedError(401, "Invalid username or password.")
        user = request.path_params.get("user", token.user)
        found = [
            (kind, repo.id, repo.private, sum(entry.size for entry in repo.head.tree.values()))
            for (kind, _), repo in self.repos.items()
        ]
        found += [
            ("bucket", bucket.id, bucket.private, self.buckets.described(bucket)["size"])
            for bucket in self.buckets.all.values()
        ]
        return JSONResponse(
            [
                {
                    "id": repo_id,
                    "type": kind,
                    "updatedAt": CREATED,
                    "visibility": "private" if private else "public",
                    "storage": size,
                    "storagePercent": 0,
                }
                for kind, repo_id, private, size in found
                if repo_id.startswith(f"{user}/")
            ]
        )

    async def resolve(self, request: Request) -> Response:
        repo = self.asked(request)
        commit, path = self.at(request, repo), unquote(request.path_params["path"])
        if path not in commit.tree:
            headers = {
                "X-Error-Code": "EntryNotFound",
                "X-Error-Message": "Entry not found",
                "X-Repo-Commit": commit.oid,
            }
            return JSONResponse({"error": "Entry not found"}, 404, headers)
        entry = commit.tree[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.remote}"'}
        if entry.lfs:
            linked = {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.sha256}"'}
            return Response(
                status_code=302, headers={**headers, **linked, "Location": f"{self.far}/cdn/{entry.sha256}"}
            )
        return FileResponse(self.contents.path(entry.sha256), headers=headers, media_type="text/plain")

    async def cdn(self, request: Request) -> Response:
        sha256 = request.path_params["sha256"]
        headers = {"ETag": f'"{sha256}"'}
        return FileResponse(self.contents.path(sha256), headers=headers, media_type="application/octet-stream")

    async def secrets(self, request: Request) -> Response:
        repo, body = self.asked(request, write=True), await request.json()
        repo.secrets[body["key"]] = body["value"]
        return JSONResponse({})

    async def variables(self, request: Request) -> Response:
        repo = self.asked(request, write=request.method == "POST")
        if request.method == "POST":
            body = await request.json()
            repo.variables[body["key"]] = body["value"]
        return JSONResponse({key: {"value": value, "updatedAt": CREATED} for key, value in repo.variables.items()})

    async def runtime(self, request: Request) -> Response:
        repo = self.asked(request)
        self.start(repo)
        has_app = {"app.py", "index.html", "Dockerfile"} & set(repo.head.tree)
        hardware = {"current": repo.space["hardware"], "requested": repo.space["hardware"]}
        return JSONResponse({"stage": "RUNNING" if has_app else "NO_APP_FILE", "hardware": hardware, "storage": None})

    async def hardware(self, request: Request) -> Response:
        repo, flavor = self.asked(request, write=True), (await request.json())["flavor"]
        if flavor not in self.grants:
            raise RefusedError(*self.refusal)
        repo.space["hardware"] = flavor
        return await self.runtime(request)

    async def settings(self, request: Request) -> Response:
        self.asked(request, write=True).private = (await request.json())["visibility"] == "private"
        return JSONResponse({})

    async def nothing(self, request: Request) -> Response:
        return JSONResponse({})

    async def missing(self, request: Request) -> Response:
        raise RefusedError(404, f"not served here: {request.url.path}")


async def refuse(request: Request, error: Exception) -> Response:
    """Return an error response in the Hub's format."""
    assert isinstance(error, RefusedError)
    headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
    return JSONResponse({"error": error.message}, error.status, headers)


def is_large(path: str, sample: bytes, size: int = 0) -> bool:
    """Return whether a file is stored outside git: by name, size, or binary content (docs: repositories)."""
    named = path.endswith((".bin", ".onnx", ".parquet", ".safetensors"))
    return max(size, len(sample)) > 0 and (named or max(size, len(sample)) > LARGE or b"\0" in sample)


def paged(request: Request, items: list[dict[str, Any]], url: str) -> Response:
    """Return a page of a listing, with the next page in `Link` (RFC 8288), which keeps the other query parameters.

    A page has 1,000 entries, 50 with details (client: list_repo_tree), or fewer by `limit`. The cursor is opaque; here
    it counts entries.
    """
    asked = request.query_params
    most = PAGE[asked.get("expand", "").lower() in ("true", "1")]
    start, size = int(asked.get("cursor", 0)), min(most, int(asked.get("limit", most)))
    end = start + size
    query = urlencode({**asked, "limit": size, "cursor": end})
    more = {"Link": f'<{url}{quote(request.url.path)}?{query}>; rel="next"'} if end < len(items) else {}
    return JSONResponse(items[start:end], headers=more)


def folders(paths: Mapping[str, Entry], inner: str) -> list[str]:
    """Return the folders of files below a folder."""
    found = {path[: match.start()] for path in paths for match in re.finditer("/", path)}
    return sorted(name for name in found if not inner or name.startswith(f"{inner}/"))


def folder(path: str) -> dict[str, Any]:
    """Return the JSON object of a folder in a listing."""
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def metadata(text: str) -> dict[str, Any]:
    """Return the metadata of a card: the block between two lines of dashes (client: repocard.REGEX_YAML_BLOCK)."""
    block = BLOCK.match(text)
    found = yaml.safe_load(block[1]) if block else {}
    return found if isinstance(found, dict) else {}


def judged(content: str, kind: str) -> tuple[list[str], list[str]]:
    """Return errors and warnings for a card's metadata (docs: model-cards)."""
    try:
        front = metadata(content)
    except yaml.YAMLError as error:
        return [f"YAML: {str(error).splitlines()[0]}"], []
    if not front:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [
        f'"{key}" must be a string'
        for key in ("license", "library_name", "pipeline_tag")
        if not isinstance(front.get(key, ""), str)
    ]
    errors += [f'"{key}" must be an array' for key in ("tags", "metrics") if not isinstance(front.get(key, []), list)]
    for entry in front.get("model-index") or []:
        for result in entry.get("results") or []:
            values = [metric.get("value") for metric in result.get("metrics") or []]
            if not result.get("dataset", {}).get("type") or None in values:
                errors.append('"model-index" needs a dataset and a value with each metric')
    if kind == "space" and front.get("sdk") not in ("gradio", "docker", "static"):
        errors.append('"sdk" must be one of [gradio, docker, static]')
    return errors, []


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve a Hub in a thread on a free port; yield its URL."""
    with listening(hub) as listeners:
        server = uvicorn.Server(config(hub))
        thread = threading.Thread(target=server.run, args=(listeners,))
        thread.start()
        try:
            yield hub.url
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
    assert not hub.limits.exceeded, hub.limits.exceeded


@contextmanager
def listening(hub: Hub) -> Iterator[list[socket.socket]]:
    """Yield the sockets of a Hub: its own, and one for its content delivery network."""
    with ports.listening() as near, ports.listening() as far:
        hub.url, hub.far = (f"http://127.0.0.1:{place.getsockname()[1]}" for place in (near, far))
        yield [near, far]


def config(hub: Hub) -> uvicorn.Config:
    """Return uvicorn's configuration of a Hub."""
    return uvicorn.Config(hub.app, log_level="warning", lifespan="off", http=Protocol, timeout_keep_alive=75)


def main() -> None:
    """Serve a Hub until Ctrl-C."""
    with tempfile.TemporaryDirectory() as scratch:
        hub = Hub(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
        with listening(hub) as listeners:
            print(hub.url, flush=True)
            uvicorn.Server(config(hub)).run(listeners)


if __name__ == "__main__":
    main()
