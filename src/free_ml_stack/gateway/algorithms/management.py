"""Management of algorithms: `/v1/algorithms/…` and the catalogues that the official client requests.

Source: the vendor's OpenAPI description (1.5.1), and the requests of the official client 2.0.5. A gateway has a
single user and no organisations or secrets; requests for those are answered with Algorithmia's errors.
"""

import asyncio
import hashlib
import threading
import uuid
from dataclasses import replace
from typing import Any

import orjson

from free_ml_stack.deployment.deploy import check_build
from free_ml_stack.deployment.versions import (
    NAME,
    Algorithm,
    Build,
    Bump,
    add_build,
    commit_hash,
    index_lock,
    names,
    now,
    read_index,
    remove,
    write_index,
)
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms import catalogue
from free_ml_stack.gateway.algorithms.descriptions import describe_build, describe_version, page, version_notes
from free_ml_stack.gateway.algorithms.models import Models
from free_ml_stack.gateway.algorithms.workers import check
from free_ml_stack.gateway.http import HTTPError, Request

BUMPS: dict[str, Bump] = {"major": "major", "minor": "minor", "revision": "revision", "patch": "revision"}


class Management:
    """Manages the algorithms of `owner`; builds of other algorithms use the model of `project`."""

    def __init__(self, owner: str, project: str, models: Models) -> None:
        self.owner, self.project, self.models, self.store = owner, project, models, models.store
        self.build_lock = threading.Lock()

    async def __call__(self, request: Request) -> None:
        """Answer a request; changes are effective before the answer is sent."""
        request.content = await read_content(request)
        status, content = await asyncio.to_thread(self.answer, request)
        if request.method != "GET":
            await self.models.refresh_all()
        if content is None:
            await request.answer_bytes(204, b"", "application/json")
        elif isinstance(content, bytes):
            await request.answer_bytes(status, content, "application/gzip")
        else:
            await request.answer(content, status)

    def answer(self, request: Request) -> tuple[int, Any]:
        """Return the status and the content of the answer. Raises HTTPError."""
        segments = request.segments[1:]  # without "v1"
        match (request.method, *segments):
            case ("POST", "algorithms", owner):
                return 201, self.create(owner, request)
            case (_, "algorithms", first, *rest) if is_identifier(first):
                return 200, self.of_algorithm(self._by_id(first), tuple(rest), request)
            case ("GET", "algorithms", _, "errors"):
                raise HTTPError(404, "No such algorithm", 1000)
            case (_, "algorithms", owner, name, *rest):
                return 200, self.of_algorithm(self._by_name(owner, name), tuple(rest), request)
        return 200, catalogue.answer(request.method, segments)

    def of_algorithm(self, algorithm: Algorithm, rest: tuple[str, ...], request: Request) -> Any:
        """Return the answer to a path of one algorithm."""
        match (request.method, *rest):
            case ("GET",):
                return self.describe(algorithm, request, algorithm.latest())
            case ("DELETE",):
                remove(self.store, algorithm.name)
                return None
            case ("PUT",):
                return self.update(algorithm, request)
            case ("GET", "versions"):
                return self.versions(algorithm, request)
            case ("POST", "versions"):
                return self.publish(algorithm, request)
            case ("GET", "versions", reference):
                return self.describe(algorithm, request, existing(algorithm.resolve(reference), "version", reference))
            case ("POST", "compile"):
                return self.compile(algorithm, request)
            case ("GET", "builds"):
                return page(request, [*reversed(algorithm.builds)], describe_build)
            case ("GET", "builds", build_id, *logs) if logs in ([], ["logs"]):
                build = existing(next((b for b in algorithm.builds if b.build_id == build_id), None), "build", build_id)
                return {"logs": build.logs} if logs else describe_build(build)
            case ("POST", "scm", "webhook"):
                return {"status": self.compile(algorithm, request)["build"]["status"]}
            case ("GET", "scm", "status"):
                return {"scm_connection_status": "active"}
            case ("GET", "secrets"):
                return {"secrets": [], "results": []}
            case ("GET", "errors"):
                return []
        raise HTTPError(404, "this gateway does not support that path", 5005)

    def create(self, owner: str, request: Request) -> dict[str, Any]:
        """Create an algorithm without builds."""
        name = request.content.get("name")
        if owner != self.owner:
            raise HTTPError(403, f"403: only {self.owner} can have algorithms on this gateway", 2001)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise HTTPError(400, "name must begin with a letter and contain at most 64 letters, digits, - and _")
        with index_lock(self.store, name):
            if read_index(self.store, name):
                raise HTTPError(409, f"{owner}/{name} already exists", 1002)
            algorithm = with_changes(Algorithm(name=name), request)
            write_index(self.store, algorithm)
        return self.describe(algorithm, request, None)

    def update(self, algorithm: Algorithm, request: Request) -> dict[str, Any]:
        """Change details and settings; the official client sends an empty change."""
        with index_lock(self.store, algorithm.name):
            algorithm = with_changes(self._by_name(self.owner, algorithm.name), request)
            write_index(self.store, algorithm)
        return self.describe(algorithm, request, algorithm.latest())

    def compile(self, algorithm: Algorithm, request: Request) -> dict[str, Any]:
        """Create the build to publish next."""
        with self.build_lock:
            build = self.build(self._by_name(self.owner, algorithm.name))
        return self.describe(self._by_name(self.owner, algorithm.name), request, build)

    def build(self, algorithm: Algorithm) -> Build:
        """Return a checked build of the newest model; repeated calls return the same build until it is published."""
        newest = algorithm.builds[-1] if algorithm.builds else None
        if newest is None or newest.version or newest.status == "failed":
            newest = self._new_build(algorithm)
            add_build(self.store, algorithm.name, newest)
        return newest

    def _new_build(self, algorithm: Algorithm) -> Build:
        started = now()
        known = next((b for b in reversed(algorithm.builds) if b.status == "succeeded"), None)
        known = known or (read_index(self.store, self.project) or algorithm).latest()
        folder = known.folder if known else ""
        build = Build(hash=commit_hash(algorithm, folder.encode()), folder=folder, started_at=started)
        fault = self._check_build(build) if known else "no deployed model"
        status = "failed" if fault else "succeeded"
        return replace(build, status=status, logs=fault or f"{build.folder}: sample check passed", finished_at=now())

    def _check_build(self, build: Build) -> str:
        try:
            check_build(self.store, build, self.models.predictor, check)
        except StackError as error:
            return str(error)
        return ""

    def publish(self, algorithm: Algorithm, request: Request) -> dict[str, Any]:
        """Give the newest build a version. A repeat of the request returns the same version."""
        bump = BUMPS.get(scalars(request.content, "version_info").get("version_type", "minor"))
        if not bump:
            raise HTTPError(400, "version_type must be major, minor or revision")
        digest = hashlib.sha256(orjson.dumps(request.content)).hexdigest()
        with index_lock(self.store, algorithm.name):
            algorithm = with_changes(self._by_name(self.owner, algorithm.name), request)
            build = algorithm.builds[-1] if algorithm.builds else None
            if build and build.version and build.request == digest:
                return self.describe(algorithm, request, build)
            if not build or build.version or build.status != "succeeded":
                raise HTTPError(400, "no unpublished build; deploy or compile first", 1007)
            build = replace(
                build,
                version=algorithm.next_version(bump),
                callability=algorithm.settings.get("algorithm_callability", "public"),
                request=digest,
                **version_notes(scalars(request.content, "version_info")),
            )
            write_index(self.store, algorithm.with_build(build))
        return self.describe(algorithm, request, build)

    def versions(self, algorithm: Algorithm, request: Request) -> dict[str, Any]:
        """List the published versions, newest first; with `published=false` the unpublished builds."""
        builds = algorithm.published()
        if request.query.get("published", "true").lower() == "false":
            builds = [build for build in reversed(algorithm.builds) if not build.version]
        if wanted := request.query.get("callable", "").lower():
            wanted = {"true": "public", "false": "private"}.get(wanted, wanted)
            builds = [build for build in builds if build.callability == wanted]
        return page(request, builds, lambda build: self.describe(algorithm, request, build))

    def describe(self, algorithm: Algorithm, request: Request, build: Build | None) -> dict[str, Any]:
        """Return the algorithm object, with one of its builds."""
        path = f"{request.base}/v1/algorithms/{self.owner}/{algorithm.name}"
        content: dict[str, Any] = {
            "id": self._id(algorithm.name),
            "name": algorithm.name,
            "details": {"label": algorithm.name, "summary": "", "tagline": ""} | algorithm.details,
            "settings": catalogue.SETTINGS | algorithm.settings,
            "source": {"scm": catalogue.SCM},
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

    def _id(self, name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"algo://{self.owner}/{name}"))

    def _by_name(self, owner: str, name: str) -> Algorithm:
        algorithm = read_index(self.store, name) if NAME.fullmatch(name) and owner == self.owner else None
        if algorithm is None:
            raise HTTPError(404, "No such algorithm", 1000)
        return algorithm

    def _by_id(self, wanted: str) -> Algorithm:
        known = (name for name in names(self.store) if self._id(name) == wanted.lower())
        return self._by_name(self.owner, next(known, ""))


async def read_content(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body. Raises HTTPError for other content."""
    if request.header(b"content-type").startswith("application/json"):
        return await request.json(empty={})
    if await request.body() and request.method == "POST":
        raise HTTPError(415, "request body must be JSON (Content-Type: application/json)", 2013)
    return {}


def is_identifier(text: str) -> bool:
    """Return whether a segment is an algorithm's id rather than an owner."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def scalars(content: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the scalar entries of an object in the body. Raises HTTPError if it is not an object."""
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise HTTPError(400, f"{key} must be an object")
    return {name: entry for name, entry in value.items() if isinstance(entry, str | int | float | bool)}


def with_changes(algorithm: Algorithm, request: Request) -> Algorithm:
    """Return the algorithm with the details and settings of the request."""
    settings = scalars(request.content, "settings")
    if settings.get("algorithm_callability", "public") not in ("public", "private"):
        raise HTTPError(400, "algorithm_callability must be public or private")
    return replace(
        algorithm,
        details=algorithm.details | scalars(request.content, "details"),
        settings=algorithm.settings | settings,
    )


def existing(build: Build | None, what: str, reference: str) -> Build:
    """Return the build. Raises HTTPError if it is None."""
    if build is None:
        raise HTTPError(404, f"No such {what}: {reference}", 1009)
    return build
