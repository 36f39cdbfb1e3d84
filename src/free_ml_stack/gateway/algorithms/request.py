"""A request for management: its address, its query and its JSON."""

import uuid
from dataclasses import dataclass
from typing import Any

import orjson

from free_ml_stack.gateway.http import Receive, Refusal, Scope, query, read_body

BODY_BYTES, BODY_SECONDS = 1 << 20, 60.0


@dataclass(frozen=True)
class Asked:
    """One request: the address without `/v1`, and the body's JSON object."""

    method: str
    segments: tuple[str, ...]
    query: dict[str, str]
    body: dict[str, Any]
    base: str  # the gateway's own address


async def request_of(scope: Scope, receive: Receive) -> Asked:
    """The request in an ASGI scope. Raises Refusal for a body that is not a JSON object."""
    headers = dict(scope["headers"])
    body: Any = await read_body(receive, BODY_BYTES, BODY_SECONDS)
    if body and headers.get(b"content-type", b"").startswith(b"application/json"):
        try:
            body = orjson.loads(body)
        except ValueError:
            raise Refusal(400, "the request is not valid JSON", 2013) from None
    elif body and scope["method"] == "POST":
        raise Refusal(415, "the request must be JSON (Content-Type: application/json)", 2013)
    else:
        body = {}
    if not isinstance(body, dict):
        raise Refusal(400, "the request is not a JSON object", 2013)
    base = f"{scope.get('scheme', 'http')}://{headers.get(b'host', b'').decode('latin-1')}"
    segments = tuple(segment for segment in scope["path"].split("/") if segment)
    return Asked(scope["method"], segments[1:], query(scope), body, base)


def identifier(text: str) -> bool:
    """Whether a segment is an algorithm's id rather than its owner."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def plain(asked: Asked, key: str) -> dict[str, Any]:
    """The scalar entries of an object in the body. Raises Refusal where there is something else."""
    value = asked.body.get(key) or {}
    if not isinstance(value, dict):
        raise Refusal(400, f"{key} must be an object")
    return {name: entry for name, entry in value.items() if isinstance(entry, str | int | float | bool)}
