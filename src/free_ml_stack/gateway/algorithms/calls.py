"""Calls of an algorithm: `POST /v1/algo/<owner>/<name>[/<version>]`.

A call that is understood is answered with status 200, even where the algorithm fails, as Algorithmia did: its
clients throw away the body of any other status.
"""

import asyncio
import base64
import itertools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson

from free_ml_stack.deployment.answering import FAULTS, JSON, Output
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.batching import QueueFullError
from free_ml_stack.gateway.algorithms.models import Model, Models
from free_ml_stack.gateway.algorithms.workers import Question
from free_ml_stack.gateway.http import HTTPError, Request
from free_ml_stack.gateway.log.call_log import CallLog

TEXT, BINARY = "text/plain; charset=utf-8", "application/octet-stream"


@dataclass(frozen=True)
class Limits:
    """What one caller may ask of the gateway."""

    body_bytes: int = 10 << 20
    body_seconds: float = 60.0  # for a request to arrive whole
    call_seconds: float = 300.0  # unless the call says otherwise
    longest_call_seconds: float = 3000.0
    queue: int = 1024  # calls that wait for one model; more are answered 429


Answer = tuple[int, bytes, str]  # status, body, content type


@dataclass(slots=True)
class Call:
    """What is known of one call, mostly from its query."""

    request_id: str
    start: float  # by the clock of time.perf_counter
    timeout: float
    stdout: bool = False
    output: str = ""

    @property
    def duration(self) -> float:
        """Seconds since the call came."""
        return time.perf_counter() - self.start


class CallError(Exception):
    """An error that the caller sees, with Algorithmia's name for its kind."""

    def __init__(self, message: str, error_type: str = "AlgorithmError", stack_trace: str = "") -> None:
        super().__init__(message)
        self.message, self.error_type, self.stack_trace = message, error_type, stack_trace


class Calls:
    """Answers calls with the models of one owner."""

    def __init__(self, owner: str, models: Models, call_log: CallLog, limits: Limits) -> None:
        self.owner, self.models, self.log, self.limits = owner, models, call_log, limits
        self.background: set[asyncio.Task[Any]] = set()
        self.run, self.numbers = uuid.uuid4().hex[:20], itertools.count(1 << 44)

    async def __call__(self, request: Request) -> None:
        """Answer the call of `/v1/algo/<owner>/<name>[/<version>]`. Raises QueueFullError and DisconnectedError."""
        call = self.new_call()
        try:
            self._read_options(call, request.query)
            given = request.header(b"content-type"), await self._body(request)
            model = await self._model(request.path.removeprefix("/v1/algo/"))
            if call.output == "void":
                answer = self._answer_later(model, given, call, request)
            else:
                answer = await self._ask(model, given, call)
        except CallError as error:
            answer = failure(error, call)
        await request.answer_bytes(*answer)

    async def _ask(self, model: Model, given: tuple[str, bytes], call: Call) -> Answer:
        answers: list[Answer] = []
        await model.ask(
            *given, call.stdout, call.timeout, lambda output: self._conclude(model, output, call, answers.append)
        )
        return answers[0]

    async def _body(self, request: Request) -> bytes:
        try:
            return await request.body(self.limits.body_bytes, self.limits.body_seconds)
        except HTTPError as error:
            if error.status == 503:
                raise
            kind = "TooLargeError" if error.status == 413 else "TimeoutError"
            raise CallError(error.message, kind) from None

    def at_once(self, path: str, body: bytes, answer: Callable[[Answer], object], alone: bool = False) -> bool:
        """Answer a plain call in JSON, without a task of its own; False where it takes more than that.

        The answer may come before this returns.
        """
        owner, _, rest = path.partition("/")
        name, _, version = rest.partition("/")
        model = self.models.find(name, version)
        if model is None or owner != self.owner or model.full:
            return False
        call, seconds = self.new_call(), self.limits.call_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        conclude = partial(self._conclude, model, call=call, answer=answer)
        model.submit(Question(JSON, body, conclude, seconds, deadline), alone)
        return True

    def new_call(self) -> Call:
        """Return a call that begins now."""
        return Call(f"req-{self.run}{next(self.numbers):x}", time.perf_counter(), self.limits.call_seconds)

    def _read_options(self, call: Call, given: dict[str, str]) -> None:
        try:
            seconds = float(given.get("timeout", call.timeout))
        except ValueError:
            seconds = -1.0
        if not seconds > 0:
            raise CallError("timeout must be a number of seconds", "InputError")
        call.timeout = min(seconds, self.limits.longest_call_seconds)
        call.output, call.stdout = given.get("output", "").lower(), given.get("stdout", "").lower() == "true"

    async def _model(self, path: str) -> Model:
        owner, _, rest = path.strip("/").partition("/")
        name, _, version = rest.partition("/")
        try:
            model = await self.models.get(name, version) if owner == self.owner else None
        except StackError as error:
            raise CallError(str(error), "LoadingError") from error
        if model is None:
            raise CallError(f"algorithm algo://{path.strip('/')} not found", "EntityNotFoundError")
        return model

    def _conclude(
        self, model: Model, output: Output, call: Call, answer: Callable[[Answer], object]
    ) -> dict[str, Any] | None:
        """Answer a call that the model has dealt with. Returns the entry for the log, which the worker completes."""
        kind, content, printed = output
        entry = self.log_call(model, output, call)
        if kind in FAULTS:
            error_type, message, trace = content
            answer(failure(CallError(message, error_type, trace), call))
        else:
            answer(success(kind, content, call, printed))
        return entry

    def log_call(self, model: Model, output: Output, call: Call) -> dict[str, Any] | None:
        """Log a call that failed; return the entry of one that did not, for the worker to complete."""
        version = model.build.version or model.build.hash
        entry = {"time": datetime.now(UTC), "version": version, "latency_ms": round(call.duration * 1000, 3)}
        if output[0] == "error":
            self.log.record(model.algorithm, {**entry, "error": output[1][0]})
        return None if output[0] in FAULTS else entry

    def _answer_later(self, model: Model, given: tuple[str, bytes], call: Call, request: Request) -> Answer:
        if model.full:
            raise QueueFullError
        task = asyncio.ensure_future(self._ask(model, given, call))
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        later, request.kept = replace(request), []  # the body stays in memory for longer than the request
        task.add_done_callback(lambda _: later.release())
        return 200, orjson.dumps({"async": "void", "request_id": call.request_id}), JSON

    async def finish(self) -> None:
        """Wait for the calls whose answers nobody waits for."""
        await asyncio.gather(*self.background)


def success(kind: str, content: bytes, call: Call, printed: str | None = None) -> Answer:
    """A result with its metadata, alone for `output=raw`; `content` is JSON, or bytes where `kind` is "binary"."""
    if call.output == "raw":
        if kind == "binary":
            return 200, content, BINARY
        return (200, orjson.loads(content).encode(), TEXT) if kind == "text" else (200, content, JSON)
    if kind == "binary":
        content = b'"%b"' % base64.b64encode(content)
    metadata: dict[str, Any] = {"content_type": kind, "duration": call.duration, "request_id": call.request_id}
    if printed is not None:
        metadata["stdout"] = printed.encode(errors="replace").decode()
    return 200, b'{"result":%b,"metadata":%b}' % (content, orjson.dumps(metadata)), JSON


def failure(error: CallError, call: Call | None = None) -> Answer:
    """An error object; with status 400 for a caller who asked for the bare answer."""
    trace = error.stack_trace.encode(errors="replace").decode()
    content = {
        "error": {
            "message": error.message.encode(errors="replace").decode(),
            "error_type": error.error_type,
            "stacktrace": trace,
            "stack_trace": trace,
        },
        "metadata": {"content_type": "json", "duration": call.duration if call else 0.0},
    }
    return 400 if call and call.output == "raw" else 200, orjson.dumps(content), JSON
