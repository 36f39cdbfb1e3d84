"""The Data API over a folder, with two users, for the tests of what speaks to it."""

from pathlib import Path
from typing import Any

from skeleton.stack.gateway.data import DataAPI

USERS = {b"key-of-me": "me", b"key-of-you": "you"}


def data_app(folder: Path) -> Any:
    """The Data API alone: who has which key is the gateway's business, so here it is a table."""
    api = DataAPI(folder)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["user"] = USERS.get(dict(scope["headers"]).get(b"authorization", b""))
        await api(scope, receive, send)

    return app
