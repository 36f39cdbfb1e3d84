"""The gateway as one ASGI application: who asks, and which part answers."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from fsspec import AbstractFileSystem

from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.calls import Answer, CallError, Calls, Limits, failure
from free_ml_stack.gateway.algorithms.inference import Inference
from free_ml_stack.gateway.algorithms.management import Management
from free_ml_stack.gateway.algorithms.models import Models
from free_ml_stack.gateway.dashboard import Dashboard
from free_ml_stack.gateway.data.api import DataAPI
from free_ml_stack.gateway.http import (
    DisconnectedError,
    HTTPError,
    Memory,
    Message,
    Receive,
    Request,
    Send,
    request_of,
)
from free_ml_stack.gateway.log.call_log import CallLog
from free_ml_stack.gateway.openapi import description
from free_ml_stack.project.science import Predictor

log = logging.getLogger(__name__)
LOADING = 5.0  # seconds that the first request, or the server's start, waits for the model
LOOPBACK = ("127.0.0.1", "::1")
Part = Callable[[Request], Awaitable[None]]


def create_app(
    *,
    store: AbstractFileSystem,
    project: AbstractFileSystem,
    user: str,
    keys: Sequence[str],
    algorithm: str,
    predictor: Predictor | str,
    limits: Limits = Limits(),  # noqa: B008
    poll_seconds: float = 1.0,
    logs: AbstractFileSystem | None = None,
) -> "Gateway":
    """The ASGI application.

    `store` holds the Data API's tree (`<user>/<collection>/…`), `project` the deployments and logs: usually a
    collection of that tree. Each of `keys` makes its bearer the `user`. `algorithm` is `owner/name`.
    `predictor` is the project's predict.py or its name as a module: only the processes that run the model import it.
    `logs` is where calls are logged, if not in `project`.
    """
    owner, _, name = algorithm.partition("/")
    call_log = CallLog(logs or project, name)
    models = Models(project, predictor, call_log.record, limits.queue, poll_seconds)
    calls = Calls(owner, models, call_log, limits)
    management = Management(owner, name, models)
    return Gateway(user, keys, name, calls, management, DataAPI(store))


class Gateway:
    """Looks at a request's key and hands it to the Data API, to a call, or to management.

    Mountable below any path, whether or not the host passes its lifespan events on.
    """

    def __init__(self, user: str, keys: Sequence[str], name: str, calls: Calls, management: Part, data: Part) -> None:
        self.user, self.keys = user, [key.encode() for key in keys]
        self.name, self.calls, self.management, self.data = name, calls, management, data
        self.models, self.memory = calls.models, Memory()
        self.inference = Inference(calls)
        self.dashboard = Dashboard(calls.owner, name, calls.models, calls.log)
        self.ready = False
        self.starting: asyncio.Task[None] | None = None
        self.watching: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            if not self.ready:
                await self.start()
            with suppress(DisconnectedError):
                await self._answer(request_of(scope, receive, send, self.memory))

    def share(self, folder: Path) -> None:
        """Add the figures of the other processes up that share `folder`."""
        self.calls.log.statistics.folder = folder

    async def start(self) -> None:
        """Load the latest version; called by the first request where there are no lifespan events."""
        if self.starting is None:
            self.starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self.starting)

    async def _start(self) -> None:
        loading = asyncio.ensure_future(self._load())
        await asyncio.wait([loading], timeout=LOADING)  # a model that takes longer keeps nothing else waiting
        watches = (self.models.watch(), self.calls.log.keep_writing())
        self.watching = [loading, *(asyncio.ensure_future(watch) for watch in watches)]
        self.ready = True

    async def _load(self) -> None:
        try:
            await self.models.get(self.name, "")
        except (StackError, OSError) as error:
            log.error("the deployed model can't be served: %s", error)

    async def stop(self) -> None:
        """Finish the calls that run in the background and write the log out."""
        for task in self.watching:
            task.cancel()
        await self.calls.finish()
        await self.models.close()
        await self.calls.log.flush()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, request: Request) -> None:
        request.user = self.user if self._admits(credentials(request.headers, request.key)) else None
        try:
            await self._part(request)(request)
        except (DisconnectedError, ConnectionError):
            raise
        except CallError as error:
            await request.answer_bytes(*failure(error))
        except HTTPError as error:
            await request.answer_error(error)
        except Exception:
            log.exception("%s failed", request.path)
            message = "internal error; the log of the server has the cause"
            await request.answer_error(HTTPError(500, message, 5001))
        finally:
            request.release()

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

    def _part(self, request: Request) -> Part:
        """What answers a request. Raises HTTPError and CallError for a stranger, and where nothing does."""
        path, known = request.path, request.user is not None
        if path.startswith("/v1/algo/"):
            if request.method != "POST":
                raise HTTPError(405, "an algorithm is called with POST")
            if not known:
                raise CallError("authorization required")
            return self.calls
        if path.startswith(("/v1/data", "/v1/connector")):
            return self.data
        if path == "/v1/insights" and (known or from_this_machine(request)):
            return self.dashboard.insights
        if path == "/v2" or path.startswith("/v2/"):
            return self.inference
        if path == "/":
            return self.dashboard
        if part := {"/healthz": self._health, "/readyz": self._readiness}.get(path):
            return part
        if not known:
            raise HTTPError(401, "authorization required", 2001)
        return self._private_part(path)

    def _private_part(self, path: str) -> Part:
        if path == "/openapi.json":
            return self._description
        if path.startswith("/v1/"):
            return self.management
        if path in ("/stats", "/metrics"):
            return self.dashboard
        raise HTTPError(404, f"no such address: {path}")

    async def _health(self, request: Request) -> None:
        await request.answer({"status": "ok"})

    async def _description(self, request: Request) -> None:
        await request.answer(description(self.calls.owner))

    async def _readiness(self, request: Request) -> None:
        algorithm = self.models.algorithms.get(self.name)
        latest = algorithm.latest() if algorithm else None
        model = self.models.find(self.name, "")
        if latest and not model:
            raise HTTPError(503, f"version {latest.version} is not loaded")
        await request.answer({"status": "ready", "version": model.build.version if model else None})


def from_this_machine(request: Request) -> bool:
    """Whether nobody stands between: what an algorithm reports with the official client carries no key.

    A web page that is open on this machine tells its Origin, or the name of its own site as the Host.
    """
    host = request.header(b"host").rpartition(":")[0] or request.header(b"host")
    marks = (b"origin", b"via", b"forwarded", b"x-forwarded", b"x-real-ip")
    marked = any(name.startswith(marks) for name in request.headers)
    return request.client in LOOPBACK and host.strip("[]") in (*LOOPBACK, "localhost") and not marked


def credentials(headers: dict[bytes, bytes], key: bytes) -> list[bytes]:
    """The keys that a request presents in its address, in `X-API-Key`, and in `Authorization` of any form."""
    found = [key] if key else []
    if other := headers.get(b"x-api-key"):
        found.append(other)
    if value := headers.get(b"authorization"):
        scheme, _, rest = value.partition(b" ")
        found.append(rest.strip() if rest and scheme.lower() in (b"simple", b"bearer") else value)
    return found
