"""The manifest of a folder: its files with their SHA-256 sums."""

import json
import re
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from free_ml_stack.errors import StackError
from free_ml_stack.storage.checksums import sum_of
from free_ml_stack.storage.local import local_store

MANIFEST = "manifest.json"


class DamagedError(StackError):
    """A file is missing, truncated or not the one that the manifest names."""


def sha256(store: AbstractFileSystem, path: str) -> str:
    """The hexadecimal SHA-256 of a stored file."""
    with store.open(path, "rb") as file:
        return sum_of(file, "sha-256").hex()


def manifest(folder: Path | AbstractFileSystem) -> dict[str, Any]:
    """`{"files": {name: {"sha256", "size"}}}` of every file below a folder, its manifest apart."""
    store = _as_store(folder)
    found = {name.lstrip("/"): info for name, info in store.find("", detail=True).items()}
    return {
        "files": {
            name: {"sha256": sha256(store, name), "size": found[name]["size"]}
            for name in sorted(found)
            if name != MANIFEST
        }
    }


def write_manifest(folder: Path | AbstractFileSystem) -> dict[str, Any]:
    """Sum a folder's files up in its `manifest.json`, and return what it holds."""
    content = manifest(folder)
    _as_store(folder).pipe_file(MANIFEST, json.dumps(content, indent=1).encode())
    return content


def verify(folder: Path | AbstractFileSystem) -> dict[str, Any]:
    """Hold a folder against its `manifest.json` and return it.

    Raises DamagedError naming the first file that is missing, truncated or changed; further files are allowed.
    """
    store = _as_store(folder)
    content = read_manifest(store)
    for name, entry in content["files"].items():
        if fault := _fault(store, name, entry):
            raise DamagedError(f"{getattr(store, 'path', folder)}: {name} {fault}; fetch or make it again")
    return content


def read_manifest(store: AbstractFileSystem) -> dict[str, Any]:
    """The `manifest.json` of a store's folder; DamagedError where it is missing or is none.

    Its names and sums become paths, so none of them may lead out of a folder.
    """
    place = getattr(store, "path", store)
    try:
        content: dict[str, Any] = json.loads(store.cat_file(MANIFEST))
        for name, entry in content["files"].items():
            inside = not {"", ".", ".."} & set(name.split("/")) and "\\" not in name
            if not inside or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]) or entry["size"] < 0:
                raise ValueError
    except FileNotFoundError:
        raise DamagedError(f"{place}: {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{place}: {MANIFEST} is not a manifest; fetch or make it again") from None
    return content


def _fault(store: AbstractFileSystem, name: str, entry: dict[str, Any]) -> str:
    if not store.isfile(name):
        return "is missing"
    if (size := store.size(name)) != entry["size"]:
        return f"has {size} bytes instead of {entry['size']}"
    return "" if sha256(store, name) == entry["sha256"] else "is not the file that the manifest names"


def _as_store(folder: Path | AbstractFileSystem) -> AbstractFileSystem:
    return local_store(folder) if isinstance(folder, Path) else folder
