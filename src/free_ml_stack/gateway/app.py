"""The gateway as one ASGI application: who asks, and which part answers."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

from fsspec import AbstractFileSystem

from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.batching import QueueFull
from free_ml_stack.gateway.algorithms.calls import Answer, CallError, Calls, Limits, failure
from free_ml_stack.gateway.algorithms.management import Management, Repository
from free_ml_stack.gateway.algorithms.models import Models
from free_ml_stack.gateway.dashboard import Dashboard
from free_ml_stack.gateway.data.api import DataAPI
from free_ml_stack.gateway.http import (
    Disconnected,
    Receive,
    Refusal,
    Scope,
    Send,
    send_bytes,
    send_json,
    send_refusal,
)
from free_ml_stack.gateway.log.call_log import CallLog
from free_ml_stack.gateway.openapi import description
from free_ml_stack.project.science import Predictor

log = logging.getLogger(__name__)
Part = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app(
    *,
    store: AbstractFileSystem,
    project: AbstractFileSystem,
    user: str,
    keys: Sequence[str],
    algorithm: str,
    predictor: Predictor,
    limits: Limits = Limits(),  # noqa: B008
    poll_seconds: float = 1.0,
    repository: str = "",
    logs: AbstractFileSystem | None = None,
    log_seconds: float = 0.0,
) -> "Gateway":
    """The ASGI application.

    `store` holds the Data API's tree (`<user>/<collection>/…`), `project` the deployments and logs: usually a
    collection of that tree. Each of `keys` makes its bearer the `user`. `algorithm` is `owner/name`.
    `repository` is the git address that algorithms are pushed to, with `{name}` in it, where there is one.
    `logs` is where calls are logged, if not in `project`, each `log_seconds`, if not as fits the store.
    """
    owner, _, name = algorithm.partition("/")
    models = Models(project, predictor, limits.queue, poll_seconds)
    call_log = CallLog(logs or project, name, predictor, log_seconds)
    calls = Calls(owner, models, call_log, limits)
    management = Management(owner, name, models, Repository(repository, store) if repository else None)
    return Gateway(user, keys, name, calls, management, DataAPI(store))


class Gateway:
    """Looks at a request's key and hands it to the Data API, to a call, or to management.

    Mountable below any path, whether or not the host passes its lifespan events on.
    """

    def __init__(
        self, user: str, keys: Sequence[str], name: str, calls: Calls, management: Part, data: Part
    ) -> None:
        self.user, self.keys = user, [key.encode() for key in keys]
        self.name, self.calls, self.management, self.data = name, calls, management, data
        self.models = calls.models
        self.dashboard = Dashboard(calls.owner, name, calls.models, calls.log)
        self.ready = False
        self.starting: asyncio.Task[None] | None = None
        self.watching: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            if not self.ready:
                await self.start()
            with suppress(Disconnected):
                await self._answer(scope, receive, send)

    def share(self, folder: Path) -> None:
        """Add the figures of the other processes up that share `folder`."""
        self.calls.log.statistics.folder = folder

    async def start(self) -> None:
        """Load the latest version; called by the first request where there are no lifespan events."""
        if self.starting is None:
            self.starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self.starting)

    async def _start(self) -> None:
        try:
            await self.models.get(self.name, "")
        except (StackError, OSError) as error:
            log.error("the deployed model can't be served: %s", error)
        watches = (self.models.watch(), self.calls.log.watch(), self.calls.watch())
        self.watching = [asyncio.ensure_future(watch) for watch in watches]
        self.ready = True

    async def stop(self) -> None:
        """Finish the calls that run in the background and write the log out."""
        for task in self.watching:
            task.cancel()
        await self.calls.finish()
        await self.calls.log.flush()
        self.models.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, key = split_key(raw_path(scope))
        headers = dict(scope["headers"])
        user = self.user if self._admits(credentials(headers, key)) else None
        text = (unquote_to_bytes(path) if b"%" in path else path).decode(errors="replace")
        try:
            if path.startswith(b"/v1/algo/"):
                if scope["method"] != "POST":
                    raise Refusal(405, "an algorithm is called with POST")
                if user is None:
                    raise CallError("authorization required")
                await self.calls(scope, receive, send, text.removeprefix("/v1/algo/"), headers)
            else:
                await self._other({**scope, "path": text, "user": user}, receive, send)
        except (Disconnected, ConnectionError):
            raise
        except QueueFull:
            await send_refusal(send, Refusal(429, "too many calls are waiting"), (b"retry-after", b"1"))
        except CallError as error:
            await send_bytes(send, *failure(error))
        except Refusal as refusal:
            await send_refusal(send, refusal)
        except Exception:
            log.exception("%s failed", text)
            await send_refusal(
                send, Refusal(500, "internal error; the log of the server has the cause", 5001)
            )

    def at_once(
        self,
        path: bytes,
        headers: dict[bytes, bytes],
        body: bytes,
        answer: Callable[[Answer], object],
        alone: bool = False,
    ) -> bool:
        """Answer a plain call of `/v1/algo/…`, which is all there; False where it must go the usual way.

        The answer may come before this returns; `alone` says that no other caller is there.
        """
        if (
            not self.ready
            or headers.get(b"content-type") != b"application/json"
            or len(body) > self.calls.limits.body_bytes
            or not self._admits(credentials(headers, b""))
        ):
            return False
        return self.calls.at_once(path[9:].decode(), body, answer, alone)

    def _admits(self, candidates: Iterable[bytes]) -> bool:
        """Compare every key with every candidate, in a time that doesn't tell how far they agree."""
        admitted = False
        for candidate in candidates:
            for key in self.keys:
                admitted |= hmac.compare_digest(candidate, key)
        return admitted

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(("/v1/data", "/v1/connector")):
            await self.data(scope, receive, send)
        elif path == "/healthz":
            await send_json(send, 200, {"status": "ok"})
        elif path == "/readyz":
            await send_json(send, 200, self._readiness())
        elif path == "/":
            await self.dashboard(scope, receive, send)
        elif path == "/v1/insights" and (scope["user"] or from_this_machine(scope)):
            await self.dashboard.insights(receive, send)
        elif scope["user"] is None:
            raise Refusal(401, "authorization required", 2001)
        elif path == "/openapi.json":
            await send_json(send, 200, description(self.calls.owner))
        elif path.startswith("/v1/"):
            await self.management(scope, receive, send)
        elif path in ("/stats", "/metrics"):
            await self.dashboard(scope, receive, send)
        else:
            raise Refusal(404, f"no such address: {path}")

    def _readiness(self) -> dict[str, Any]:
        algorithm = self.models.algorithms.get(self.name)
        latest = algorithm.latest() if algorithm else None
        model = self.models.find(self.name, "")
        if latest and not model:
            raise Refusal(503, f"version {latest.version} is not loaded")
        return {"status": "ready", "version": model.build.version if model else None}


def from_this_machine(scope: Scope) -> bool:
    """Whether nobody stands between: what an algorithm reports with the official client carries no key."""
    local = (scope.get("client") or ("",))[0] in ("127.0.0.1", "::1")
    return local and not any(name.startswith((b"x-forwarded", b"forwarded")) for name, _ in scope["headers"])


def raw_path(scope: Scope) -> bytes:
    """The path as it was sent, without the gateway's own mount point and without a doubled first slash."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    if root := scope.get("root_path"):
        path = path.removeprefix(quote(root).encode())
    return b"/" + path.lstrip(b"/") if path[:2] == b"//" else path or b"/"


def split_key(path: bytes) -> tuple[bytes, bytes]:
    """The path and the key in front of it: `/k/<key>/v1/…`."""
    if not path.startswith(b"/k/"):
        return path, b""
    key, _, rest = path[3:].partition(b"/")
    return b"/" + rest.lstrip(b"/"), unquote(key.decode("latin-1")).encode()


def credentials(headers: dict[bytes, bytes], key: bytes) -> list[bytes]:
    """The keys that a request presents in its address, in `X-API-Key`, and in `Authorization` of any form."""
    found = [key] if key else []
    if other := headers.get(b"x-api-key"):
        found.append(other)
    if value := headers.get(b"authorization"):
        scheme, _, rest = value.partition(b" ")
        found.append(rest.strip() if rest and scheme.lower() in (b"simple", b"bearer") else value)
    return found
