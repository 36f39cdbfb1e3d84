"""Open a project's store by its URL."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fsspec import AbstractFileSystem, filesystem

from free_ml_stack.console import display_path
from free_ml_stack.errors import NoServiceError, StackError, extra_needed
from free_ml_stack.storage.local import local_store
from free_ml_stack.storage.rooted import RootedFileSystem

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

SERVICES = {"algorithmia": "algorithmia", "data": "algorithmia", "hf": "huggingface", "s3": "s3"}
FOLDERS = {"algorithmia": "data", "huggingface": "hf", "s3": "s3"}
EXPECTED = "expected a storage URL such as algorithmia://.my/my_project"


def open_store(url: str, settings: "Settings") -> AbstractFileSystem:
    """Return the file system rooted at `url`: the service, or its local folder if it has no credentials.

    `url` is `algorithmia://.my/<collection>` (or `data://…`), `hf://…`, `s3://…`, `file://…` or a path
    relative to the project's folder. Raises StackError if the URL is invalid.
    """
    service, segments = parse(url)
    if not service:
        try:
            return local_store(settings.root / Path(*segments).expanduser())
        except RuntimeError:  # ~USER of an unknown user
            raise StackError(f"{url}: unknown user; use the full path of the folder") from None
    if connected(service, settings):
        if service == "algorithmia" and (fault := _key_error(settings)):
            raise NoServiceError(fault)
        if service == "huggingface":
            if url == settings.storage:  # created as a folder is; another URL may be mistyped
                from free_ml_stack.storage import repository

                repository.make(repository.parse(url))
            return hub_store(url)
        return RootedFileSystem("/".join(segments), fs=_remote(service, settings))
    return local_store(embedded_folder(service, segments, settings), settings.private / FOLDERS[service])


def hub_store(url: str) -> AbstractFileSystem:
    """Return the file system rooted at `hf://…`. Raises StackError if the URL is invalid."""
    from free_ml_stack.storage import repository

    repository.parse(url)
    return RootedFileSystem(url.removeprefix(repository.SCHEME).strip("/"), fs=repository.HubFileSystem())


@cache
def _key_error(settings: "Settings") -> str:
    """Return why Algorithmia's key cannot be used, "" if it can; cached."""
    from free_ml_stack.credentials import check as credentials

    return credentials.key_problem("algorithmia", settings.algorithmia_username, settings.root / ".env")


def parse(url: str) -> tuple[str, list[str]]:
    """Split a storage URL into the service and the segments of the path; for a folder: "" and its path."""
    scheme, separator, path = url.rpartition("://")
    if not path.strip() or re.search(r"[\x00-\x1f]", url):
        raise StackError(f"storage {url!r}: {EXPECTED}, or ./store for a folder")
    if not separator or scheme == "file":
        return "", [path]
    if scheme not in SERVICES:
        raise StackError(f"{url}: unknown storage; use algorithmia://, hf://, s3://, file:// or a path")
    segments = path.strip("/").split("/")
    if ".." in segments or len(segments) < (1 if scheme == "s3" else 2) or not all(segments):
        raise StackError(f"{url}: {EXPECTED}")
    if scheme == "hf":
        from free_ml_stack.storage import repository

        repository.parse(url)
    return SERVICES[scheme], segments


def connected(service: str, settings: "Settings") -> bool:
    """Return whether the real service is used: it has a key, or for Algorithmia an address."""
    return service in settings.credentials or (service == "algorithmia" and bool(settings.algorithmia_api))


def place(url: str, path: str, settings: "Settings") -> str:
    """Return the location of `path` in the store at `url` for messages, with the local folder if one is used."""
    service, segments = parse(url)
    named = f"{url}/{path}"
    if not service or connected(service, settings):
        return named
    return f"{named} (without a key: {display_path(embedded_folder(service, segments, settings) / path)})"


def embedded_folder(service: str, segments: list[str], settings: "Settings") -> Path:
    """Return the local folder used instead of a service without credentials; for Algorithmia in the gateway's tree."""
    if service == "algorithmia" and segments[0] == ".my":
        segments = [settings.user, *segments[1:]]
    return settings.private.joinpath(FOLDERS[service], *segments)


def with_local_services(settings: "Settings") -> "Settings":
    """Return settings that replace remote services by local folders and the local gateway."""
    service, segments = parse(settings.storage)
    storage = settings.storage
    if service and connected(service, settings):
        storage = str(embedded_folder(service, segments, settings))
    own = settings.credentials - {"algorithmia"}
    return replace(settings, storage=storage, algorithmia_api="", algorithmia_api_key="", credentials=own)


def _remote(service: str, settings: "Settings") -> AbstractFileSystem:
    if service != "algorithmia":
        try:
            return filesystem(service)
        except ImportError as error:
            raise StackError(f"{service} storage: {extra_needed('s3fs', service)}") from error
    return filesystem(
        service, api_address=settings.algorithmia_api or None, api_key=settings.algorithmia_api_key or None
    )
