"""Calls of an algorithm: `POST /v1/algo/<owner>/<name>[/<version>]`.

A call that is understood is answered with status 200, even where the algorithm fails, as Algorithmia did: its
clients throw away the body of any other status.
"""

import asyncio
import base64
import itertools
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.batching import Question, QueueFullError
from free_ml_stack.gateway.algorithms.models import Model, Models
from free_ml_stack.gateway.http import JSON_OPTIONS, HTTPError, Request
from free_ml_stack.gateway.log.call_log import CallLog

JSON, TEXT, BINARY = "application/json", "text/plain; charset=utf-8", "application/octet-stream"
KNOWN_ERRORS = {
    "InputError", "UnsupportedError", "InitializationError", "OutOfMemoryError", "OutOfGpuMemoryError",
    "LanguageError", "TooLargeError", "ParsingError", "EntityNotFoundError", "ThirdPartyCredentialError",
    "AlgorithmError", "TimeoutError", "LoadingError", "SystemExit",
}  # fmt: skip


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
        call = self._new_call()
        try:
            self._read_options(call, request.query)
            payload = decode(request.header(b"content-type"), await self._body(request))
            model = await self._model(request.path.removeprefix("/v1/algo/"))
            if call.output == "void":
                answer = self._answer_later(model, payload, call)
            else:
                answer = self._conclude(model, payload, await model.ask(payload, call.stdout, call.timeout), call)
        except CallError as error:
            answer = failure(error, call)
        await request.answer_bytes(*answer)

    async def _body(self, request: Request) -> bytes:
        try:
            return await request.body(self.limits.body_bytes, self.limits.body_seconds)
        except HTTPError as error:
            kind = "TooLargeError" if error.status == 413 else "TimeoutError"
            raise CallError(error.message, kind) from None

    def at_once(self, path: str, body: bytes, answer: Callable[[Answer], object], alone: bool = False) -> bool:
        """Answer a plain call in JSON, without a task of its own; False where it takes more than that.

        The answer may come before this returns.
        """
        owner, _, rest = path.partition("/")
        name, _, version = rest.partition("/")
        model = self.models.find(name, version)
        if model is None or owner != self.owner or not model.quick or model.full:
            return False
        call = self._new_call()
        try:
            payload = decode(JSON, body)
            model.submit(Question(payload, lambda result: answer(self._conclude(model, payload, result, call))), alone)
        except CallError as error:
            answer(failure(error, call))
        return True

    def _new_call(self) -> Call:
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

    def _conclude(self, model: Model, payload: Any, result: Any, call: Call) -> Answer:
        """The answer to a call that the model has dealt with, noted in the log."""
        if call.stdout and isinstance(result, tuple):
            result, printed = result
        else:
            printed = None
        if isinstance(result, Exception):
            error = failed(result, call.timeout)
            self.log.record(model, payload, None, call.duration, error.error_type)
            return failure(error, call)
        self.log.record(model, payload, result, call.duration)
        try:
            return success(result, call, printed)
        except CallError as error:
            return failure(error, call)

    def _answer_later(self, model: Model, payload: Any, call: Call) -> Answer:
        if model.full:
            raise QueueFullError

        async def work() -> None:
            self._conclude(model, payload, await model.ask(payload, call.stdout, call.timeout), call)

        task = asyncio.ensure_future(work())
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return 200, orjson.dumps({"async": "void", "request_id": call.request_id}), JSON

    async def finish(self) -> None:
        """Wait for the calls whose answers nobody waits for."""
        await asyncio.gather(*self.background)


def decode(content_type: str, body: bytes) -> Any:
    """The input of a call: text, binary, or what JSON holds. Raises CallError."""
    if content_type != JSON:
        content_type = content_type.partition(";")[0].strip().lower()
    try:
        match content_type:
            case "application/json":
                return orjson.loads(body)
            case "text/plain" | "application/text":
                return body.decode()
            case "application/octet-stream":
                return body
    except ValueError as error:
        kind = "JSON" if content_type == JSON else "UTF-8 text"
        raise CallError(f"the body is not {kind}: {error}", "ParsingError") from error
    raise CallError("Content-Type must be application/json, text/plain or application/octet-stream", "UnsupportedError")


def failed(error: Exception, seconds: float) -> CallError:
    """What the caller is told of an exception in the model."""
    if isinstance(error, TimeoutError):
        return CallError(f"no answer within {seconds:g} seconds", "TimeoutError")
    kind = "InputError" if isinstance(error, ValueError) else "AlgorithmError"
    kind = "OutOfMemoryError" if isinstance(error, MemoryError) else kind
    kind = getattr(error, "error_type", kind)
    trace = "".join(traceback.format_exception(error))
    message = str(error) or type(error).__name__
    return CallError(message, kind if kind in KNOWN_ERRORS else "AlgorithmError", trace)


def success(result: Any, call: Call, printed: str | None = None) -> Answer:
    """A result with its metadata, alone for `output=raw`. Raises CallError for one that is not JSON."""
    kind = "text" if isinstance(result, str) else "json"
    if isinstance(result, bytes | bytearray):
        if call.output == "raw":
            return 200, bytes(result), BINARY
        kind, result = "binary", base64.b64encode(result).decode()
    elif call.output == "raw" and kind == "text":
        return 200, result.encode(errors="replace"), TEXT
    metadata = {"content_type": kind, "duration": call.duration, "request_id": call.request_id}
    if printed is not None:
        metadata["stdout"] = printed
    content = result if call.output == "raw" else {"result": result, "metadata": metadata}
    try:
        return 200, orjson.dumps(content, option=JSON_OPTIONS), JSON
    except TypeError as error:
        raise CallError(f"the answer can't be written as JSON: {error}") from error


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
