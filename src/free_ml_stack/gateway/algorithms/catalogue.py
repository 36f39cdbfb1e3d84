"""Static answers of the management API: languages, environments, source control, unsupported resources."""

import io
import tarfile
import uuid
from typing import Any

from free_ml_stack.gateway.http import HTTPError

CREATED = "2021-01-01T00:00:00.000Z"
LANGUAGES = {"anaconda3": "Conda", "python3": "Python 3.x"}
TEMPLATE = {  # the initial source of an algorithm; the client replaces owner and name
    ".adk": "",
    "algorithmia.conf": '{"username": "__USER__", "algoname": "__ALGO__", "language": "python3"}\n',
    "requirements.txt": "algorithmia==2.0.5\n",
    "src/__init__.py": "",
    "src/__ALGO__.py": """from Algorithmia import ADK


def apply(input):
    return f"hello {input}"


ADK(apply).init("world")
""",
}
SCM = {"id": "internal", "provider": "internal", "default": True, "enabled": True, "name": ""}


def _id(what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, what))


SETTINGS: dict[str, Any] = {
    "algorithm_callability": "public",
    "source_visibility": "closed",
    "license": "apl",
    "network_access": "full",
    "pipeline_enabled": False,
    "insights_enabled": True,
    "royalty_microcredits": 0,
    "algorithm_environment": _id("python3"),
}


def answer(method: str, segments: list[str]) -> Any:
    """Return the answer to a path without an algorithm. Raises HTTPError."""
    match (method, *segments):
        case ("GET", "scms"):
            return {"marker": None, "next_link": None, "results": [SCM]}
        case ("GET", "algorithm-environments", "edge", "languages"):
            return [language(name) for name in LANGUAGES]
        case ("GET", "algorithm-environments", "edge", "languages", name, "environments"):
            return {"environments": [environment(name)] if name in LANGUAGES else []}
        case ("GET", "algorithm-environments", "edge", "environment-specifications", _, "template"):
            return template()
        case ("GET", "organization", "types"):
            return [{"id": _id("basic"), "name": "basic"}]
        case ("GET", "users" | "organizations", _, "errors"):
            return []  # not stored: errors of calls are in the gateway's log
        case (_, "users" | "organizations" | "organization", *_):
            raise HTTPError(404, "this gateway has a single user and no organisations", 5005)
        case (_, "secret-provider", *_):
            raise HTTPError(404, "this gateway stores no secrets; set environment variables on its machine", 5005)
    raise HTTPError(404, "this gateway does not support that path", 5005)


def template() -> bytes:
    """Return the template of an algorithm as tar.gz."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in TEMPLATE.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return archive.getvalue()


def language(name: str) -> dict[str, str]:
    """Return the description of a language."""
    return {"name": name, "display_name": LANGUAGES[name], "configuration": "{}"}


def environment(name: str) -> dict[str, Any]:
    """Return the only environment of a language: the CPU of the gateway's machine."""
    return {
        "id": _id(name),
        "environment_specification_id": _id(f"{name} specification"),
        "display_name": f"{LANGUAGES[name]} (CPU)",
        "description": "onnxruntime on the gateway's own machine",
        "created_at": CREATED,
        "language": language(name),
        "machine_type": "CPU",
    }
