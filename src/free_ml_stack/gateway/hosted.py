"""The gateway on a Space or in a container: configured by variables, with a store on the Hub."""

import os
from pathlib import Path

from fsspec import AbstractFileSystem

from free_ml_stack.gateway.app import Gateway
from free_ml_stack.storage.local import local_store
from free_ml_stack.storage.stores import hub_store


def asgi_app(package: str) -> Gateway:
    """Make the ASGI application that serves the model of a project; `package` is its import name.

    Call its `start` and `stop` if the server sends no lifespan events.

    Variables: `ALGORITHM` ("owner/name"), `COLLECTION` (of the project), `STORE` (hf://buckets/USER/NAME, or a folder
    that begins with / or .), and the secret `ALGORITHMIA_API_KEY`, without which every request is rejected. The Hub's
    own client reads the secret `HF_TOKEN`.
    """
    owner = os.environ["ALGORITHM"].partition("/")[0]
    store, project = os.environ["STORE"], f"{owner}/{os.environ['COLLECTION']}"
    key = os.environ.get("ALGORITHMIA_API_KEY", "")
    return Gateway(
        store=open_tree(store),
        project=open_tree(store, project),
        user=owner,
        keys=[key] if key else [],
        algorithm=os.environ["ALGORITHM"],
        predictor=f"{package}.predict",
        poll_seconds=60.0,
    )


def open_tree(store: str, inner: str = "") -> AbstractFileSystem:
    """Open the Data API's tree, or `inner` of it, in a folder or in a bucket or repository on the Hub."""
    if store.startswith(("/", ".")):
        return local_store(Path(store) / inner, Path(store))
    return hub_store(f"{store}/{inner}")
