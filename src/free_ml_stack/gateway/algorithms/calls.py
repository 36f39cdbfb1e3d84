"""Algorithm calls: `POST /v1/algo/<owner>/<name>[/<version>]`.

A valid call is answered with status 200 even if the algorithm fails, as Algorithmia did: its clients discard the
body of any other status.
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
from free_ml_stack.gateway.algorithms.models import LoadedModel, Models
from free_ml_stack.gateway.algorithms.workers import Question
from free_ml_stack.gateway.http import HTTPError, Request
from free_ml_stack.gateway.log.call_log import CallLog

TEXT, BINARY = "text/plain; charset=utf-8", "application/octet-stream"


@dataclass(frozen=True)
class Limits:
    """Limits of a call."""

    body_bytes: int = 10 << 20
    body_seconds: float = 60.0  # to receive the request
    call_seconds: float = 300.0  # default timeout of a call
    longest_call_seconds: float = 3000.0
    queue: int = 1024  # calls waiting for one model; further ones are answered with status 429


Answer = tuple[int, bytes, str]  # status, body, content type


@dataclass(slots=True)
class Call:
    """The state and options of one call."""

    request_id: str
    start: float  # time.perf_counter()
    timeout: float
    stdout: bool = False
    output: str = ""

    @property
    def duration(self) -> float:
        """Seconds since the call was received."""
        return time.perf_counter() - self.start


class CallError(Exception):
    """An error in the answer of a call, with Algorithmia's error type."""

    def __init__(self, message: str, error_type: str = "AlgorithmError", stack_trace: str = "") -> None:
        super().__init__(message)
        self.message, self.error_type, self.stack_trace = message, error_type, stack_trace


class Calls:
    """Answers calls of one owner's algorithms."""

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
                answer = self._run_in_background(model, given, call, request)
            else:
                answer = await self._ask(model, given, call)
        except CallError as error:
            answer = failure(error, call)
        await request.answer_bytes(*answer)

    async def _ask(self, model: LoadedModel, given: tuple[str, bytes], call: Call) -> Answer:
        answers: list[Answer] = []
        await model.ask(
            *given, call.stdout, call.timeout, lambda output: self._finish_call(model, output, call, answers.append)
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

    def answer_fast(
        self, path: str, body: bytes, answer: Callable[[Answer], object], single_caller: bool = False
    ) -> bool:
        """Answer a plain JSON call without a task; return False if the model is not loaded or its queue is full.

        `answer` may be called before this returns.
        """
        owner, _, rest = path.partition("/")
        name, _, version = rest.partition("/")
        model = self.models.find(name, version)
        if model is None or owner != self.owner or model.full:
            return False
        call, seconds = self.new_call(), self.limits.call_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        finish_call = partial(self._finish_call, model, call=call, answer=answer)
        model.submit(Question(JSON, body, finish_call, seconds, deadline), single_caller)
        return True

    def new_call(self) -> Call:
        """Return a new call that starts now."""
        return Call(f"req-{self.run}{next(self.numbers):x}", time.perf_counter(), self.limits.call_seconds)

    def _read_options(self, call: Call, given: dict[str, str]) -> None:
        try:
            seconds = float(given.get("timeout", call.timeout))
        except ValueError:
            seconds = -1.0
        if not seconds > 0:
            raise CallError("timeout must be a positive number of seconds", "InputError")
        call.timeout = min(seconds, self.limits.longest_call_seconds)
        call.output, call.stdout = given.get("output", "").lower(), given.get("stdout", "").lower() == "true"

    async def _model(self, path: str) -> LoadedModel:
        owner, _, rest = path.strip("/").partition("/")
        name, _, version = rest.partition("/")
        try:
            model = await self.models.get(name, version) if owner == self.owner else None
        except StackError as error:
            raise CallError(str(error), "LoadingError") from error
        if model is None:
            raise CallError(f"algorithm algo://{path.strip('/')} not found", "EntityNotFoundError")
        return model

    def _finish_call(
        self, model: LoadedModel, output: Output, call: Call, answer: Callable[[Answer], object]
    ) -> dict[str, Any] | None:
        """Answer a call with the model's output. Return its log entry, which the worker completes."""
        kind, content, printed = output
        entry = self.log_call(model, output, call)
        if kind in FAULTS:
            error_type, message, trace = content
            answer(failure(CallError(message, error_type, trace), call))
        else:
            answer(success(kind, content, call, printed))
        return entry

    def log_call(self, model: LoadedModel, output: Output, call: Call) -> dict[str, Any] | None:
        """Log a failed call; return the entry of a successful one, which the worker completes."""
        version = model.build.version or model.build.hash
        entry = {"time": datetime.now(UTC), "version": version, "latency_ms": round(call.duration * 1000, 3)}
        if output[0] == "error":
            self.log.record(model.algorithm, {**entry, "error": output[1][0]})
        return None if output[0] in FAULTS else entry

    def _run_in_background(self, model: LoadedModel, given: tuple[str, bytes], call: Call, request: Request) -> Answer:
        if model.full:
            raise QueueFullError
        task = asyncio.ensure_future(self._ask(model, given, call))
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        later, request.kept = replace(request), []  # the body outlives the request
        task.add_done_callback(lambda _: later.release())
        return 200, orjson.dumps({"async": "void", "request_id": call.request_id}), JSON

    async def finish(self) -> None:
        """Wait for the calls in the background."""
        await asyncio.gather(*self.background)


def success(kind: str, content: bytes, call: Call, printed: str | None = None) -> Answer:
    """Return a result with metadata, or alone for `output=raw`; `content` is JSON, or bytes if `kind` is "binary"."""
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
    """Return an error object; with status 400 for `output=raw`."""
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
