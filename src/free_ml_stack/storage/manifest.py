"""The manifest of a folder: its files with their SHA-256 checksums."""

import json
import re
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from free_ml_stack.errors import StackError
from free_ml_stack.storage.checksums import checksum_of
from free_ml_stack.storage.local import local_store

MANIFEST = "manifest.json"


class DamagedError(StackError):
    """A file is missing, truncated or differs from the manifest."""


def sha256(store: AbstractFileSystem, path: str) -> str:
    """Return the hexadecimal SHA-256 checksum of a stored file."""
    with store.open(path, "rb") as file:
        return checksum_of(file, "sha-256").hex()


def write_manifest(folder: Path | AbstractFileSystem) -> dict[str, Any]:
    """Write a folder's `manifest.json`, `{"files": {name: {"sha256", "size"}}}` of all other files; return it."""
    store = _as_store(folder)
    found = {name.lstrip("/"): info["size"] for name, info in store.find("", detail=True).items()}
    found.pop(MANIFEST, None)
    content = {"files": {name: {"sha256": sha256(store, name), "size": found[name]} for name in sorted(found)}}
    store.pipe_file(MANIFEST, json.dumps(content, indent=1).encode())
    return content


def verify(folder: Path | AbstractFileSystem) -> dict[str, Any]:
    """Compare a folder with its `manifest.json`, and return the manifest.

    Raises DamagedError naming the first file that is missing, truncated or changed; other files are ignored.
    """
    store = _as_store(folder)
    content = read_manifest(store)
    for name, entry in content["files"].items():
        if fault := _fault(store, name, entry):
            raise DamagedError(f"{getattr(store, 'path', folder)}: {name} {fault}; fetch or create it again")
    return content


def read_manifest(store: AbstractFileSystem) -> dict[str, Any]:
    """Return the `manifest.json` of a store's folder. Raises DamagedError if it is missing or invalid.

    Its names and checksums are used as paths, so those that point outside a folder are rejected.
    """
    place = getattr(store, "path", store)
    try:
        content: dict[str, Any] = json.loads(store.cat_file(MANIFEST))
        for name, entry in content["files"].items():
            inside = not {"", ".", ".."} & set(name.split("/")) and "\\" not in name
            if not inside or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]) or entry["size"] < 0:
                raise ValueError
    except FileNotFoundError:
        raise DamagedError(f"{place}: {MANIFEST} not found") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{place}: {MANIFEST} is not a valid manifest; fetch or create it again") from None
    return content


def _fault(store: AbstractFileSystem, name: str, entry: dict[str, Any]) -> str:
    if not store.isfile(name):
        return "is missing"
    if (size := store.size(name)) != entry["size"]:
        return f"is damaged: expected {entry['size']} bytes, got {size}"
    return "" if sha256(store, name) == entry["sha256"] else f"is damaged: checksum mismatch with {MANIFEST}"


def _as_store(folder: Path | AbstractFileSystem) -> AbstractFileSystem:
    return local_store(folder) if isinstance(folder, Path) else folder
