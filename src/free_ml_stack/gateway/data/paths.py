"""Paths of the Data API: `user/collection/…`, "" for the root."""

import re

from free_ml_stack.gateway.http import HTTPError

ADDRESS = re.compile(r"/+v1/+(?:data|connector/+(?P<connector>[^/]*))(?:/+(?P<path>.*))?\Z", re.DOTALL)
CONNECTOR = re.compile(r"[\w+.-]+:/")  # the prefix of another connector's path
USER = re.compile(r"\w[\w.-]*")


def path_of(address: str, user: str | None) -> str:
    """Return the path for a URL path such as `/v1/data/.my/collection/file`. Raises HTTPError."""
    match = ADDRESS.search(address)
    path = (match["path"] or "") if match else ""
    if not match or match["connector"] not in (None, "data") or CONNECTOR.match(path):
        raise HTTPError(404, f"no data connector for {address}", 5005)
    segments = [segment for segment in path.split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise HTTPError(400, "a path must not contain . or ..")
    if segments[:1] == [".session"]:  # it exists during an algorithm's call only, and calls have none here
        raise HTTPError(404, "data://.session is not supported; use data://.my or data://.algo/temp", 5005)
    if segments and segments[0] in (".my", ".algo"):
        if user is None:
            raise HTTPError(401, "authorization required", 2001)
        segments[0:1] = [user] if segments[0] == ".my" else [user, segments[0]]
    if segments and not USER.fullmatch(segments[0]):
        raise HTTPError(404, f"no such user: {segments[0]!r}", 3000)
    return "/".join(segments)


def uri_of(path: str) -> str:
    """Return the data:// URI of a path."""
    return f"data://{path}"
