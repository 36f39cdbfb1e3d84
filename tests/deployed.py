"""A gateway with one deployed algorithm, served on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import Algorithmia
from fsspec import AbstractFileSystem
from predictors import Echo, echo_folder
from serving import serving

from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.gateway.app import Gateway
from free_ml_stack.gateway.protocol.express import ExpressProtocol
from free_ml_stack.storage.local import local_store

KEY = "sim0123456789012345678901234"


@dataclass
class Deployed:
    """A running gateway, for tests."""

    url: str
    store: AbstractFileSystem
    app: Gateway

    def client(self, key: str = KEY, **options: Any) -> Any:
        """Create a client."""
        return Algorithmia.client(key, self.url, **options)


def open_app(root: Path, predictor: Any = None, **options: Any) -> tuple[AbstractFileSystem, Gateway]:
    """Create the project's store and the application of the user `me` in the folder `root`."""
    project = local_store(root / "me" / "project", root)
    app = Gateway(
        store=local_store(root),
        project=project,
        user="me",
        algorithm="me/demo",
        predictor=predictor or Echo(),
        **{"keys": [KEY, "revocable"], "poll_seconds": 0.05} | options,
    )
    return project, app


@contextmanager
def deployed(
    root: Path, predictor: Any = None, model: Path | None = None, http: Any = ExpressProtocol, **options: Any
) -> Iterator[Deployed]:
    """A running gateway with version 0.1.0 of the algorithm `me/demo`, by default Echo."""
    store, app = open_app(root / "data", predictor, **options)
    deploy(model or echo_folder(root / "model"), store, "demo", predictor or Echo())
    with serving(app, http=http, proxy_headers=False) as url:
        yield Deployed(url, store, app)
