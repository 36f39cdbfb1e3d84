"""The gateway as one ASGI application: authentication and routing."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from fsspec import AbstractFileSystem

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
    make_request,
)
from free_ml_stack.gateway.log.call_log import CallLog
from free_ml_stack.gateway.openapi import description
from free_ml_stack.hub.client import error_line
from free_ml_stack.project.science import Predictor

log = logging.getLogger(__name__)
LOAD_SECONDS = 5.0  # seconds that the server's start, or the first request, waits for the model
LOOPBACK = ("127.0.0.1", "::1")
Handler = Callable[[Request], Awaitable[None]]


class Gateway:
    """The ASGI application: authenticates each request, and routes it to the part that answers it.

    Can be mounted below any path, with or without the host's lifespan events.
    """

    def __init__(
        self,
        *,
        store: AbstractFileSystem,
        project: AbstractFileSystem,
        user: str,
        keys: Sequence[str],
        algorithm: str,
        predictor: Predictor | str,
        limits: Limits = Limits(),  # noqa: B008
        poll_seconds: float = 1.0,
    ) -> None:
        """Create the parts.

        `store` holds the Data API's tree (`<user>/<collection>/…`), `project` the deployments and logs: usually a
        collection of that tree. Each of `keys` authenticates as `user`. `algorithm` is `owner/name`.
        `predictor` is the project's predict.py or its module name; only the processes that run the model import it.
        """
        owner, _, name = algorithm.partition("/")
        self.user, self.keys, self.name = user, [key.encode() for key in keys], name
        call_log = CallLog(project, name)
        self.models = Models(project, predictor, call_log.record, limits.queue, poll_seconds)
        self.memory = Memory()
        self.calls = Calls(owner, self.models, call_log, limits)
        self.management: Handler = Management(owner, name, self.models)
        self.data, self.inference = DataAPI(store), Inference(self.calls)
        self.dashboard = Dashboard(owner, name, self.models, call_log)
        self.ready = False
        self.starting: asyncio.Task[None] | None = None
        self.tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            if not self.ready:
                await self.start()
            with suppress(DisconnectedError):
                await self._answer(make_request(scope, receive, send, self.memory))

    def share(self, folder: Path) -> None:
        """Include the statistics of the other processes that share `folder`."""
        self.calls.log.statistics.folder = folder

    async def start(self) -> None:
        """Load the latest version; called by the first request if there are no lifespan events."""
        if self.starting is None:
            self.starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self.starting)

    async def _start(self) -> None:
        loading = asyncio.ensure_future(self._load())
        await asyncio.wait([loading], timeout=LOAD_SECONDS)  # a slow model does not delay other requests
        watches = (self.models.watch(), self.calls.log.write_periodically())
        self.tasks = [loading, *(asyncio.ensure_future(watch) for watch in watches)]
        self.ready = True

    async def _load(self) -> None:
        try:
            await self.models.get(self.name, "")
        except Exception as error:
            log.error("the deployed model cannot be served: %s", error_line(error))

    async def stop(self) -> None:
        """Finish the calls in the background and flush the log."""
        for task in self.tasks:
            task.cancel()
        await self.calls.finish()
        await self.models.close()
        await self.calls.log.flush()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        finally:  # also if the server fails: the models' processes would wait for calls, and this one for them
            await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, request: Request) -> None:
        request.user = self.user if self._is_authorized(request_keys(request.headers, request.key)) else None
        try:
            await self._route(request)(request)
        except (DisconnectedError, ConnectionError):
            raise
        except CallError as error:
            await request.answer_bytes(*failure(error))
        except HTTPError as error:
            await request.answer_error(error)
        except Exception:
            log.exception("%s failed", request.path)
            message = "internal error; see the server's log"
            await request.answer_error(HTTPError(500, message, 5001))
        finally:
            request.release()

    def answer_fast(
        self,
        path: bytes,
        headers: dict[bytes, bytes],
        body: bytes,
        answer: Callable[[Answer], object],
        single_caller: bool = False,
    ) -> bool:
        """Answer a complete, plain call of `/v1/algo/…`; return False if it needs the normal path.

        `answer` may be called before this returns. `single_caller` is true if there is no other connection.
        """
        if (
            not self.ready
            or headers.get(b"content-type") != b"application/json"
            or len(body) > self.calls.limits.body_bytes
            or not self._is_authorized(request_keys(headers, b""))
        ):
            return False
        return self.calls.answer_fast(path[9:].decode(), body, answer, single_caller)

    def _is_authorized(self, candidates: Iterable[bytes]) -> bool:
        """Compare every key with every candidate in constant time."""
        admitted = False
        for candidate in candidates:
            for key in self.keys:
                admitted |= hmac.compare_digest(candidate, key)
        return admitted

    def _route(self, request: Request) -> Handler:
        """Return the handler of a request. Raises HTTPError or CallError if it is unauthenticated or has no route."""
        path, known = request.path, request.user is not None
        if path.startswith("/v1/algo/"):
            if request.method != "POST":
                raise HTTPError(405, "call an algorithm with POST")
            if not known:
                raise CallError("authorization required")
            return self.calls
        if path.startswith(("/v1/data", "/v1/connector")):
            return self.data
        if path == "/v1/insights" and (known or is_local_request(request)):
            return self.dashboard.insights
        if path == "/v2" or path.startswith("/v2/"):
            return self.inference
        if path == "/":
            return self.dashboard
        if part := {"/healthz": self._health, "/readyz": self._readiness}.get(path):
            return part
        if not known:
            raise HTTPError(401, "authorization required", 2001)
        return self._private_route(path)

    def _private_route(self, path: str) -> Handler:
        if path == "/openapi.json":
            return self._description
        if path.startswith("/v1/"):
            return self.management
        if path in ("/stats", "/metrics"):
            return self.dashboard
        raise HTTPError(404, f"no such path: {path}")

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


def is_local_request(request: Request) -> bool:
    """Return whether a request comes from this machine without a proxy.

    The official client's `report_insights` sends no key, so only local reports are accepted without one. A web page
    open on this machine is recognized by its Origin header, or by the name of its site in the Host header.
    """
    host = request.header(b"host").rpartition(":")[0] or request.header(b"host")
    marks = (b"origin", b"via", b"forwarded", b"x-forwarded", b"x-real-ip")
    marked = any(name.startswith(marks) for name in request.headers)
    return request.client in LOOPBACK and host.strip("[]") in (*LOOPBACK, "localhost") and not marked


def request_keys(headers: dict[bytes, bytes], key: bytes) -> list[bytes]:
    """Return the keys in a request's path, in `X-API-Key`, and in `Authorization` in any form."""
    found = [key] if key else []
    if other := headers.get(b"x-api-key"):
        found.append(other)
    if value := headers.get(b"authorization"):
        scheme, _, rest = value.partition(b" ")
        found.append(rest.strip() if rest and scheme.lower() in (b"simple", b"bearer") else value)
    return found
