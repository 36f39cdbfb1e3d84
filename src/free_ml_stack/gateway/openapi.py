"""The OpenAPI description of the gateway."""

import re
from typing import Any

JSON = "application/json"
ANY: dict[str, Any] = {}
OBJECT = {"type": "object"}
SEGMENT = {"type": "string", "minLength": 1}
RIGHTS = {"type": "object", "properties": {"read": {"type": "array", "items": {"type": "string"}}}}
OPTIONS = {
    "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": 3000},
    "stdout": {"type": "boolean"},
    "output": {"enum": ["raw", "void"]},
}
PAGE = {"limit": {"type": "integer", "minimum": 1}, "marker": {"type": "string"}}
FILTER = PAGE | {"published": {"type": "boolean"}, "callable": {"enum": ["public", "private"]}}
CHANGE = {
    "type": "object",
    "properties": {"details": OBJECT, "settings": OBJECT, "version_info": OBJECT, "source": OBJECT},
}
NAMED = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "details": OBJECT},
    "required": ["name"],
}
FOLDER = {"type": "object", "properties": {"name": {"type": "string"}, "acl": RIGHTS}, "required": ["name"]}
INSIGHT = {
    "type": "object",
    "properties": {"insight_key": {"type": "string"}, "insight_value": {"type": "number"}},
    "required": ["insight_key", "insight_value"],
}
BODIES: dict[str, Any] = {
    "application/json": ANY,
    "text/plain": {"type": "string"},
    "application/octet-stream": ANY,
}
ALGORITHM = "/v1/algorithms/{owner}/{name}"
EDGE = "/v1/algorithm-environments/edge"
FILE = {"application/octet-stream": {"type": "string", "format": "binary"}}

# method, path, summary, query parameters, body by content type
OPERATIONS: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = [
    ("post", "/v1/algo/{owner}/{name}", "Call an algorithm", OPTIONS, BODIES),
    ("post", "/v1/algo/{owner}/{name}/{version}", "Call a version of an algorithm", OPTIONS, BODIES),
    ("post", "/v1/algorithms/{owner}", "Create an algorithm", {}, {JSON: NAMED}),
    ("get", ALGORITHM, "Describe an algorithm", {}, {}),
    ("put", ALGORITHM, "Change an algorithm's details and settings", {}, {JSON: CHANGE}),
    ("get", f"{ALGORITHM}/versions", "List an algorithm's versions", FILTER, {}),
    ("post", f"{ALGORITHM}/versions", "Publish an algorithm's newest build", {}, {JSON: CHANGE}),
    ("get", f"{ALGORITHM}/versions/{{version}}", "Describe a version", {}, {}),
    ("post", f"{ALGORITHM}/compile", "Build an algorithm", {}, {JSON: OBJECT}),
    ("get", f"{ALGORITHM}/builds", "List an algorithm's builds", PAGE, {}),
    ("get", f"{ALGORITHM}/builds/{{build}}", "Describe a build", {}, {}),
    ("get", f"{ALGORITHM}/builds/{{build}}/logs", "Get the log of a build", {}, {}),
    ("get", f"{ALGORITHM}/scm/status", "Get the status of an algorithm's repository", {}, {}),
    ("get", "/v1/scms", "List the kinds of source control", {}, {}),
    ("get", f"{EDGE}/languages", "List the languages", {}, {}),
    ("get", f"{EDGE}/languages/{{language}}/environments", "List the environments of a language", {}, {}),
    ("head", "/v1/data/{owner}/{collection}/{file}", "Check whether a file exists", {}, {}),
    ("get", "/v1/data/{owner}/{collection}/{file}", "Read a file", {}, {}),
    ("put", "/v1/data/{owner}/{collection}/{file}", "Write a file", {}, FILE),
    ("delete", "/v1/data/{owner}/{collection}/{file}", "Delete a file", {}, {}),
    ("post", "/v1/data/{owner}", "Create a collection", {}, {JSON: FOLDER}),
    ("get", "/v1/data/{owner}/{collection}", "List a collection", PAGE | {"acl": {"type": "boolean"}}, {}),
    (
        "patch",
        "/v1/data/{owner}/{collection}",
        "Set a collection's rights",
        {},
        {JSON: {"properties": {"acl": RIGHTS}}},
    ),
    ("delete", "/v1/data/{owner}/{collection}", "Delete a collection", {"force": {"type": "boolean"}}, {}),
    ("post", "/v1/insights", "Report insights", {}, {JSON: {"type": "array", "items": INSIGHT}}),
    ("get", "/healthz", "Check whether the gateway is running", {}, {}),
    ("get", "/readyz", "Check whether the deployed model is loaded", {}, {}),
    ("get", "/stats", "Get the figures of the page", {}, {}),
    ("get", "/metrics", "Get metrics in the Prometheus format", {}, {}),
]


def description(owner: str) -> dict[str, Any]:
    """Return the document at `/openapi.json` of a gateway with the single user `owner`."""
    paths: dict[str, Any] = {}
    for method, path, summary, query, body in OPERATIONS:
        paths.setdefault(path, {})[method] = operation(owner, path, summary, query, body)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gateway",
            "version": "1",
            "description": "Algorithmia's REST API for one project.",
        },
        "security": [{"key": []}],
        "components": {"securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "Authorization"}}},
        "paths": paths,
    }


def operation(owner: str, path: str, summary: str, query: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return the operation object of one method of a path."""
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"enum": [owner]} if name == "owner" else SEGMENT,
        }
        for name in re.findall(r"{(\w+)}", path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
    content = {kind: {"schema": schema} for kind, schema in body.items()}
    return {
        "summary": summary,
        "parameters": parameters,
        **({"requestBody": {"required": True, "content": content}} if content else {}),
        "responses": {
            "2XX": {"description": "success"},
            "4XX": {"description": "client error, with an error object"},
        },
    }
