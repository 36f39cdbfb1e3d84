"""Management of algorithms: `/v1/algorithms/…` and the few catalogues that the official client asks for.

Source: the vendor's OpenAPI description (1.5.1), and what the official client 2.0.5 sends and reads. A gateway
has one user and no organisations or secrets; what concerns those is refused in Algorithmia's words.
"""

import asyncio
import hashlib
import threading
import uuid
from dataclasses import dataclass, replace
from typing import Any

import orjson
from fsspec import AbstractFileSystem

from free_ml_stack.deployment.deploy import try_out
from free_ml_stack.deployment.versions import (
    NAME,
    Algorithm,
    Build,
    Bump,
    add_build,
    changing,
    commit_hash,
    now,
    read_index,
    write_index,
)
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms import catalogue
from free_ml_stack.gateway.algorithms.descriptions import describe_build, describe_version, noted, page
from free_ml_stack.gateway.algorithms.models import Models
from free_ml_stack.gateway.algorithms.request import Asked, identifier, plain, request_of
from free_ml_stack.gateway.algorithms.source import build_from_git
from free_ml_stack.gateway.http import Receive, Refusal, Scope, Send, send_bytes, send_json

BUMPS: dict[str, Bump] = {"major": "major", "minor": "minor", "revision": "revision", "patch": "revision"}


@dataclass(frozen=True)
class Repository:
    """Where algorithms are pushed to, `{name}` in its place, and the Data API's tree with their models."""

    url: str
    data: AbstractFileSystem


class Management:
    """Answers for the algorithms of `owner`; `project` is the one whose model the others start from."""

    def __init__(
        self, owner: str, project: str, models: Models, repository: Repository | None = None
    ) -> None:
        self.owner, self.project, self.models, self.store = owner, project, models, models.store
        self.repository = repository
        self.building = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what it has changed is in force by then."""
        asked = await request_of(scope, receive)
        status, content = await asyncio.to_thread(self.answer, asked)
        if asked.method != "GET":
            await self.models.refresh_all()
        if isinstance(content, bytes):
            await send_bytes(send, status, content, b"application/gzip")
        else:
            await send_json(send, status, content)

    def answer(self, asked: Asked) -> tuple[int, Any]:
        """The status and the content of the answer. Raises Refusal."""
        match (asked.method, *asked.segments):
            case ("POST", "algorithms", owner):
                return 201, self.create(owner, asked)
            case (_, "algorithms", first, *rest) if identifier(first):
                return 200, self.of_algorithm(self._by_id(first), tuple(rest), asked)
            case ("GET", "algorithms", _, "errors"):
                raise Refusal(404, "No such algorithm", 1000)
            case (_, "algorithms", owner, name, *rest):
                return 200, self.of_algorithm(self._by_name(owner, name), tuple(rest), asked)
        return 200, catalogue.answer(asked.method, asked.segments)

    def of_algorithm(self, algorithm: Algorithm, rest: tuple[str, ...], asked: Asked) -> Any:
        """What concerns one algorithm."""
        match (asked.method, *rest):
            case ("GET",):
                return self.describe(algorithm, asked, algorithm.latest())
            case ("PUT",):
                return self.update(algorithm, asked)
            case ("GET", "versions"):
                return self.versions(algorithm, asked)
            case ("POST", "versions"):
                return self.publish(algorithm, asked)
            case ("GET", "versions", reference):
                return self.describe(
                    algorithm, asked, found(algorithm.resolve(reference), "version", reference)
                )
            case ("POST", "compile"):
                return self.compile(algorithm, asked)
            case ("GET", "builds"):
                return page(asked, [*reversed(algorithm.builds)], describe_build)
            case ("GET", "builds", build_id, *logs) if logs in ([], ["logs"]):
                build = found(
                    next((b for b in algorithm.builds if b.build_id == build_id), None), "build", build_id
                )
                return {"logs": build.logs} if logs else describe_build(build)
            case ("POST", "scm", "webhook"):
                return {"status": self.compile(algorithm, asked)["build"]["status"]}
            case ("GET", "scm", "status"):
                return {"scm_connection_status": "active"}
            case ("GET", "secrets"):
                return {"secrets": [], "results": []}
            case ("GET", "errors"):
                return []
        raise Refusal(404, "this gateway does not serve that address", 5005)

    def create(self, owner: str, asked: Asked) -> dict[str, Any]:
        """Make an algorithm without builds."""
        name = asked.body.get("name")
        if owner != self.owner:
            raise Refusal(403, f"403: only {self.owner} has algorithms on this gateway", 2001)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise Refusal(400, "name must begin with a letter and hold letters, digits, - and _, at most 64")
        with changing(self.store, name):
            if read_index(self.store, name):
                raise Refusal(409, f"{owner}/{name} exists already", 1002)
            algorithm = changed(Algorithm(name=name), asked)
            write_index(self.store, algorithm)
        return self.describe(algorithm, asked, None)

    def update(self, algorithm: Algorithm, asked: Asked) -> dict[str, Any]:
        """Change details and settings; the client's own form of this call holds nothing to change."""
        with changing(self.store, algorithm.name):
            algorithm = changed(self._by_name(self.owner, algorithm.name), asked)
            write_index(self.store, algorithm)
        return self.describe(algorithm, asked, algorithm.latest())

    def compile(self, algorithm: Algorithm, asked: Asked) -> dict[str, Any]:
        """Build what is to be published next: the newest model, tried out. A repeat returns the same."""
        with self.building:
            algorithm = self._by_name(self.owner, algorithm.name)
            newest = algorithm.builds[-1] if algorithm.builds else None
            if self.repository:
                newest = self._build_from_git(algorithm.name, self.repository)
                return self.describe(self._by_name(self.owner, algorithm.name), asked, newest)
            if newest is None or newest.version or newest.status == "failed":
                newest = self._build(algorithm)
                add_build(self.store, algorithm.name, newest)
        return self.describe(algorithm, asked, newest)

    def _build(self, algorithm: Algorithm) -> Build:
        started = now()
        known = next((b for b in reversed(algorithm.builds) if b.status == "succeeded"), None)
        known = known or (read_index(self.store, self.project) or algorithm).latest()
        folder = known.folder if known else ""
        build = Build(hash=commit_hash(algorithm, folder.encode()), folder=folder, started_at=started)
        fault = self._fault(build) if known else "no model has been deployed yet"
        status = "failed" if fault else "succeeded"
        return replace(build, status=status, logs=fault or f"{build.folder} answers", finished_at=now())

    def _build_from_git(self, name: str, repository: Repository) -> Build:
        try:
            url = repository.url.format(name=name)
            return build_from_git(url, name, self.owner, repository.data, self.store, self.models.predictor)
        except StackError as error:
            raise Refusal(400, str(error), 4009) from None

    def _fault(self, build: Build) -> str:
        try:
            try_out(self.store, build, self.models.predictor)
        except StackError as error:
            return str(error)
        return ""

    def publish(self, algorithm: Algorithm, asked: Asked) -> dict[str, Any]:
        """Give the newest build a version. A repeat of the request returns the same version."""
        bump = BUMPS.get(plain(asked, "version_info").get("version_type", "minor"))
        if not bump:
            raise Refusal(400, "version_type must be major, minor or revision")
        request = hashlib.sha256(orjson.dumps(asked.body)).hexdigest()
        with changing(self.store, algorithm.name):
            algorithm = changed(self._by_name(self.owner, algorithm.name), asked)
            build = algorithm.builds[-1] if algorithm.builds else None
            if build and build.version and build.request == request:
                return self.describe(algorithm, asked, build)
            if not build or build.version or build.status != "succeeded":
                raise Refusal(400, "there is no new build to publish: deploy, or compile first", 1007)
            build = replace(
                build,
                version=algorithm.next_version(bump),
                callability=algorithm.settings.get("algorithm_callability", "public"),
                request=request,
                **noted(plain(asked, "version_info")),
            )
            write_index(self.store, algorithm.with_build(build))
        return self.describe(algorithm, asked, build)

    def versions(self, algorithm: Algorithm, asked: Asked) -> dict[str, Any]:
        """The published versions, newest first; `published=false` lists the other builds."""
        builds = algorithm.published()
        if asked.query.get("published", "true").lower() == "false":
            builds = [build for build in reversed(algorithm.builds) if not build.version]
        if wanted := asked.query.get("callable", "").lower():
            wanted = {"true": "public", "false": "private"}.get(wanted, wanted)
            builds = [build for build in builds if build.callability == wanted]
        return page(asked, builds, lambda build: self.describe(algorithm, asked, build))

    def describe(self, algorithm: Algorithm, asked: Asked, build: Build | None) -> dict[str, Any]:
        """The algorithm object, with one of its builds."""
        path = f"{asked.base}/v1/algorithms/{self.owner}/{algorithm.name}"
        content: dict[str, Any] = {
            "id": self._id(algorithm.name),
            "name": algorithm.name,
            "details": {"label": algorithm.name, "summary": "", "tagline": ""} | algorithm.details,
            "settings": catalogue.SETTINGS | algorithm.settings,
            "source": {"scm": catalogue.SCM} | self._source(algorithm.name),
            "self_link": path,
            "resource_type": "algorithm",
        }
        if build:
            content["settings"]["algorithm_callability"] = build.callability
            content["version_info"] = describe_version(build)
            content["build"] = describe_build(build)
            fault = build.logs if build.status == "failed" else ""
            content["compilation"] = {"successful": not fault, "output": fault}
            content["self_link"] = f"{path}/versions/{build.hash}"
        return content

    def _source(self, name: str) -> dict[str, str]:
        if not self.repository:
            return {}
        url = self.repository.url.format(name=name)
        return {"repository_name": name, "repository_owner": self.owner, "repository_https_url": url}

    def _id(self, name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"algo://{self.owner}/{name}"))

    def _by_name(self, owner: str, name: str) -> Algorithm:
        algorithm = read_index(self.store, name) if NAME.fullmatch(name) and owner == self.owner else None
        if algorithm is None:
            raise Refusal(404, "No such algorithm", 1000)
        return algorithm

    def _by_id(self, wanted: str) -> Algorithm:
        known = self.store.ls("deployments", detail=False) if self.store.isdir("deployments") else []
        names = (path.rstrip("/").rpartition("/")[2] for path in known)
        return self._by_name(
            self.owner, next((name for name in names if self._id(name) == wanted.lower()), "")
        )


def changed(algorithm: Algorithm, asked: Asked) -> Algorithm:
    """The algorithm with the request's details and settings."""
    settings = plain(asked, "settings")
    if settings.get("algorithm_callability", "public") not in ("public", "private"):
        raise Refusal(400, "algorithm_callability must be public or private")
    return replace(
        algorithm, details=algorithm.details | plain(asked, "details"), settings=algorithm.settings | settings
    )


def found(build: Build | None, what: str, reference: str) -> Build:
    """The build. Raises Refusal where there is none."""
    if build is None:
        raise Refusal(404, f"No such {what}: {reference}", 1009)
    return build
