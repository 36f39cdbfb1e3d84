"""The gateway on a Space or in a container: configured by variables, with a store on the Hub."""

import os
from collections.abc import Mapping
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem

from free_ml_stack.gateway.app import Gateway, create_app
from free_ml_stack.storage.local import local_store


def asgi_app(package: str, variables: Mapping[str, str] = os.environ) -> Gateway:
    """Make the ASGI application that serves the model of a project; `package` is its import name.

    Call its `start` and `stop` if the server sends no lifespan events.

    Variables: `ALGORITHM` ("owner/name"), `COLLECTION` (of the project), `STORE` (a data-set repository of the Hub,
    "user/name", or a folder that begins with / or .), `REVISION` (its commit with the model), and the secret
    `ALGORITHMIA_API_KEY`, without which every request is rejected. The Hub's own client reads the secret `HF_TOKEN`.
    """
    owner = variables["ALGORITHM"].partition("/")[0]
    store, project = variables["STORE"], f"{owner}/{variables['COLLECTION']}"
    key = variables.get("ALGORITHMIA_API_KEY", "")
    return create_app(
        store=open_tree(store),
        project=open_tree(store, project, variables.get("REVISION", "")),
        logs=open_tree(store, project),
        user=owner,
        keys=[key] if key else [],
        algorithm=variables["ALGORITHM"],
        predictor=f"{package}.predict",
        poll_seconds=60.0,
    )


def is_folder(store: str) -> bool:
    """Return whether a store is a folder rather than a repository on the Hub."""
    return store.startswith(("/", "."))


def open_tree(store: str, inner: str = "", revision: str = "") -> AbstractFileSystem:
    """Open the Data API's tree, or `inner` of it, in a folder or in a repository on the Hub at `revision`."""
    if is_folder(store):
        return local_store(Path(store) / inner, Path(store))
    from free_ml_stack.storage.repository import HubFileSystem  # the Hub's client takes 11 MB

    place = f"datasets/{store}{f'@{revision}' if revision else ''}/{inner}".rstrip("/")
    return DirFileSystem(place, fs=HubFileSystem())
