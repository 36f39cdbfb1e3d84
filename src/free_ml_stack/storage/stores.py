"""Open a project's store by its URL, and move folders between stores."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fsspec import AbstractFileSystem, filesystem

from free_ml_stack.console import display_path
from free_ml_stack.errors import NoServiceError, StackError
from free_ml_stack.storage.local import local_store
from free_ml_stack.storage.rooted import RootedFileSystem

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

SERVICES = {"algorithmia": "algorithmia", "data": "algorithmia", "hf": "huggingface", "s3": "s3"}
FOLDERS = {"algorithmia": "data", "huggingface": "hf", "s3": "s3"}
PLACE = "name a place to store in, such as algorithmia://.my/my_project"


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
        if service == "algorithmia" and (fault := _key_error(settings)):
            raise NoServiceError(fault)
        if service == "huggingface" and url == settings.storage:
            _make_repository(url)
        return RootedFileSystem("/".join(segments), fs=_remote(service, settings))
    return embedded_store(service, segments, settings)


@cache
def _key_error(settings: "Settings") -> str:
    """Why the key for Algorithmia can't be used, asked once; nothing where it can."""
    from free_ml_stack.credentials import check as credentials

    return credentials.key_problem("algorithmia", settings.algorithmia_username, settings.root / ".env")


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
    if scheme == "hf":
        from free_ml_stack.storage import repository

        repository.parse(url)
    return SERVICES[scheme], segments


def connected(service: str, settings: "Settings") -> bool:
    """Whether the real service is used: its key is there, or for Algorithmia an address."""
    return service in settings.credentials or (service == "algorithmia" and bool(settings.algorithmia_api))


def embedded_store(service: str, segments: list[str], settings: "Settings") -> AbstractFileSystem:
    """The local folder that stands for a service: for Algorithmia the tree that a local gateway serves."""
    root = settings.private / FOLDERS[service]
    return local_store(embedded_folder(service, segments, settings), root)


def place(url: str, path: str, settings: "Settings") -> str:
    """Where `path` of the store at `url` is, as it is told: also as a folder here, where that stands for a service."""
    service, segments = parse(url)
    named = f"{url}/{path}"
    if not service or connected(service, settings):
        return named
    return f"{named} (without a key: {display_path(embedded_folder(service, segments, settings) / path)})"


def embedded_folder(service: str, segments: list[str], settings: "Settings") -> Path:
    """Where the files are that a service without credentials would have."""
    if service == "algorithmia" and segments[0] == ".my":
        segments = [settings.user, *segments[1:]]
    return settings.private.joinpath(FOLDERS[service], *segments)


def with_local_services(settings: "Settings") -> "Settings":
    """The settings with which the project's own folder and gateway do what others elsewhere did."""
    service, segments = parse(settings.storage)
    storage = settings.storage
    if service and connected(service, settings):
        storage = str(embedded_folder(service, segments, settings))
    own = settings.credentials - {"algorithmia"}
    return replace(settings, storage=storage, algorithmia_api="", algorithmia_api_key="", credentials=own)


def _remote(service: str, settings: "Settings") -> AbstractFileSystem:
    if service == "huggingface":
        from free_ml_stack.storage.repository import HubFileSystem

        return HubFileSystem()
    if service != "algorithmia":
        try:
            return filesystem(service)
        except ImportError as error:
            raise StackError(f"{service} storage needs a package that is not installed: {error}") from error
    return filesystem(
        service, api_address=settings.algorithmia_api or None, api_key=settings.algorithmia_api_key or None
    )


def _make_repository(url: str) -> None:
    """The project's own store is made when it is missing, as a folder is; another URL may be mistyped."""
    from free_ml_stack.storage import repository

    repository.make(repository.parse(url))
