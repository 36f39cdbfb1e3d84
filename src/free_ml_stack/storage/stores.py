"""Open a project's store by its URL, and move folders between stores."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem, filesystem
from fsspec.implementations.dirfs import DirFileSystem

from free_ml_stack.errors import NoServiceError, StackError
from free_ml_stack.storage.local import DiskFileSystem
from free_ml_stack.storage.checksums import sum_of
from free_ml_stack.storage.transfer import transfer as transfer

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

SERVICES = {"algorithmia": "algorithmia", "data": "algorithmia", "hf": "huggingface", "s3": "s3"}
FOLDERS = {"algorithmia": "data", "huggingface": "hf", "s3": "s3"}
MANIFEST = "manifest.json"
PLACE = "name a place to store in, such as algorithmia://.my/my_project"


class DamagedError(StackError):
    """A file is missing, truncated or not the one that the manifest names."""


def open_store(url: str, settings: "Settings") -> AbstractFileSystem:
    """The file system rooted at `url`: the service itself, or its local folder while it has no credentials.

    `url` is `algorithmia://.my/<collection>` (or `data://…`), `hf://…`, `s3://…`, `file://…` or a path, taken
    from the project's folder. Raises StackError for an URL that names no store.
    """
    service, segments = parse(url)
    if not service:
        try:
            return local_store(settings.root / Path(*segments).expanduser())
        except RuntimeError:  # ~USER, of whom the system knows nothing
            raise StackError(f"{url}: no such user's home; give the folder's full path") from None
    if connected(service, settings):
        if service == "algorithmia" and (told := _trouble(settings)):
            raise NoServiceError(told)
        if service == "huggingface" and url == settings.storage:
            _make_repository("/".join(segments))
        return DirFileSystem("/".join(segments), fs=_remote(service, settings))
    return embedded_store(service, segments, settings)


@cache
def _trouble(settings: "Settings") -> str:
    """Why the key for Algorithmia can't be used, asked once; nothing where it can."""
    from free_ml_stack.credentials import check as credentials

    return credentials.trouble("algorithmia", settings.algorithmia_username, settings.root / ".env")


def parse(url: str) -> tuple[str, list[str]]:
    """The service and the path's segments that a store's URL names; for a folder "" and its path."""
    scheme, separator, path = url.rpartition("://")
    if not path.strip() or re.search(r"[\x00-\x1f]", url):
        raise StackError(f"storage {url!r}: {PLACE}, or ./store for a folder")
    if not separator or scheme == "file":
        return "", [path]
    if scheme not in SERVICES:
        raise StackError(f"{url}: unknown storage; use algorithmia://, hf://, s3://, file:// or a path")
    segments = path.strip("/").split("/")
    if ".." in segments or len(segments) < (1 if scheme == "s3" else 2) or not all(segments):
        raise StackError(f"{url}: {PLACE}")
    return SERVICES[scheme], segments


def connected(service: str, settings: "Settings") -> bool:
    """Whether the real service is used: its key is there, or for Algorithmia an address."""
    return service in settings.credentials or (service == "algorithmia" and bool(settings.algorithmia_api))


def local_store(folder: Path, root: Path | None = None) -> AbstractFileSystem:
    """The file system of a local folder; its files in the making live in `root` (default: the folder)."""
    return DirFileSystem(str(folder), fs=DiskFileSystem(root=str(root or folder)))


def embedded_store(service: str, segments: list[str], settings: "Settings") -> AbstractFileSystem:
    """The local folder that stands for a service: for Algorithmia the tree that a local gateway serves."""
    root = settings.private / FOLDERS[service]
    return local_store(embedded_folder(service, segments, settings), root)


def embedded_folder(service: str, segments: list[str], settings: "Settings") -> Path:
    """Where the files are that a service without credentials would have."""
    if service == "algorithmia" and segments[0] == ".my":
        segments = [settings.user, *segments[1:]]
    return settings.private.joinpath(FOLDERS[service], *segments)


def standing_in(settings: "Settings") -> "Settings":
    """The settings with which the project's own folder and gateway do what others elsewhere did."""
    service, segments = parse(settings.storage)
    storage = settings.storage
    if service and connected(service, settings):
        storage = str(embedded_folder(service, segments, settings))
    own = settings.credentials - {"algorithmia"}
    return replace(settings, storage=storage, algorithmia_api="", algorithmia_api_key="", credentials=own)


def _remote(service: str, settings: "Settings") -> AbstractFileSystem:
    if service != "algorithmia":
        try:
            return filesystem({"huggingface": "hf"}.get(service, service))
        except ImportError as error:
            raise StackError(f"{service} storage needs a package that is not installed: {error}") from error
    from free_ml_stack.algorithmia.filesystem import AlgorithmiaFileSystem

    return AlgorithmiaFileSystem(settings.algorithmia_api or None, settings.algorithmia_api_key or None)


def _make_repository(path: str) -> None:
    """The project's own store is made when it is missing, as a folder is; another URL may be mistyped."""
    from free_ml_stack.storage import repository

    if not path.startswith("buckets/"):
        repository.make(repository.place_of(path))


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
