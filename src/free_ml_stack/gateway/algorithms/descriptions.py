"""JSON descriptions of builds and versions."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from free_ml_stack.deployment.versions import Build
from free_ml_stack.gateway.http import HTTPError, Request, whole_number

PAGE = 50
NOTES = ("release_notes", "sample_input", "sample_output")


def version_notes(info: dict[str, Any]) -> dict[str, Any]:
    """Return the stored fields of a request's `version_info`."""
    return {key: str(info[key]) for key in NOTES if key in info}


def describe_version(build: Build) -> dict[str, Any]:
    """Return the `version_info` of a build."""
    info = {"git_hash": build.hash, "version_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, build.build_id))}
    notes = {key: getattr(build, key) for key in NOTES if getattr(build, key)}
    return info | notes | ({"semantic_version": build.version} if build.version else {})


def describe_build(build: Build) -> dict[str, Any]:
    """Return the build object."""
    content: dict[str, Any] = {
        "build_id": build.build_id,
        "status": build.status,
        "commit_sha": build.hash,
        "started_at": build.started_at,
        "finished_at": build.finished_at,
        "resource_type": "algorithm_build",
    }
    return content | ({"version_info": {"semantic_version": build.version}} if build.version else {})


def page(request: Request, builds: Sequence[Build], describe: Callable[[Build], Any]) -> dict[str, Any]:
    """Return a page of a list; its marker is the id of its last build. Raises HTTPError."""
    limit = request.query.get("limit", str(PAGE))
    if not limit.isdecimal() or whole_number(limit) == 0:
        raise HTTPError(400, "limit must be a positive integer", 5003)
    begin = 0
    if marker := request.query.get("marker"):
        ids = [build.build_id for build in builds]
        if marker not in ids:
            raise HTTPError(400, "unknown marker", 5002)
        begin = ids.index(marker) + 1
    shown = builds[begin : begin + whole_number(limit)]
    last = shown[-1].build_id if shown and shown[-1] is not builds[-1] else None
    link = f"{request.base}/{'/'.join(request.segments)}?limit={limit}&marker={last}" if last else None
    return {"marker": last, "next_link": link, "results": [describe(build) for build in shown]}
