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
from dataclasses import dataclass
from typing import Any

import orjson

from .. import StackError
from .batching import QueueFull
from .metrics import CallLog
from .models import Model, Models
from .wire import JSON_OPTIONS, Receive, Refusal, Scope, Send, query, read_body, send_bytes

JSON, TEXT, BINARY = b"application/json", b"text/plain; charset=utf-8", b"application/octet-stream"
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


@dataclass(frozen=True)
class Options:
    """The query of a call."""

    timeout: float
    stdout: bool
    output: str


class CallError(Exception):
    """An error that the caller sees, with Algorithmia's name for its kind."""

    def __init__(self, message: str, error_type: str = "AlgorithmError", stack_trace: str = "") -> None:
        super().__init__(message)
        self.message, self.error_type, self.stack_trace = message, error_type, stack_trace


class Calls:
    """Answers calls with the models of one owner."""

    def __init__(self, owner: str, models: Models, call_log: CallLog, limits: Limits) -> None:
        self.owner, self.models, self.log, self.limits = owner, models, call_log, limits
        self.usual = Options(limits.call_seconds, False, "")
        self.background: set[asyncio.Task[Any]] = set()
        self.run, self.numbers = uuid.uuid4().hex[:20], itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer the call of `path`, which is `<owner>/<name>[/<version>]`."""
        request_id = f"req-{self.run}{next(self.numbers):012x}"
        start = time.perf_counter()
        output = ""
        try:
            options = self._options(scope) if scope["query_string"] else self.usual
            output = options.output
            body = await read_body(receive, self.limits.body_bytes, self.limits.body_seconds)
            payload = decode(_content_type(scope), body)
            model = await self._model(path)
            if output == "void":
                if model.full:
                    raise QueueFull
                await self._send_void(send, model, payload, options, request_id)
                return
            result, printed = await self._answer(model, payload, options)
            content = encode(result, time.perf_counter() - start, output, request_id, printed)
        except Refusal as refusal:
            kind = "TooLargeError" if refusal.status == 413 else "TimeoutError"
            await send_error(
                send, CallError(str(refusal), kind), time.perf_counter() - start, output, request_id
            )
        except CallError as error:
            await send_error(send, error, time.perf_counter() - start, output, request_id)
        else:
            await send_bytes(send, 200, *content)

    def _options(self, scope: Scope) -> Options:
        given = query(scope)
        try:
            timeout = float(given.get("timeout", self.limits.call_seconds))
        except ValueError:
            timeout = -1.0
        if not 0 < timeout <= self.limits.longest_call_seconds:
            raise CallError(
                f"timeout must be seconds, at most {self.limits.longest_call_seconds:g}", "InputError"
            )
        output = given.get("output", "").lower()
        return Options(timeout, given.get("stdout", "").lower() == "true", output)

    async def _model(self, path: str) -> Model:
        owner, _, rest = path.strip("/").partition("/")
        name, _, version = rest.partition("/")
        if (model := self.models.find(name, version)) and owner == self.owner:
            return model
        try:
            found = await self.models.get(name, version) if owner == self.owner else None
        except StackError as error:
            raise CallError(str(error), "LoadingError") from error
        if found is None:
            raise CallError(f"algorithm algo://{path.strip('/')} not found", "EntityNotFoundError")
        return found

    async def _answer(self, model: Model, payload: Any, options: Options) -> tuple[Any, str | None]:
        """The model's answer, logged."""
        start = time.perf_counter()
        waiting = model.submit(payload, options.stdout)
        try:
            answer = await (waiting if model.quick else asyncio.wait_for(waiting, options.timeout))
        except TimeoutError:
            answer = CallError(f"no answer within {options.timeout:g} seconds", "TimeoutError")
        printed = None
        if options.stdout and isinstance(answer, tuple):
            answer, printed = answer
        failure = failed(answer) if isinstance(answer, Exception) else None
        self.log.record(
            model, payload, answer, time.perf_counter() - start, failure.error_type if failure else ""
        )
        if failure:
            raise failure
        return answer, printed

    async def _send_void(
        self, send: Send, model: Model, payload: Any, options: Options, request_id: str
    ) -> None:
        task = asyncio.ensure_future(self._answer(model, payload, options))
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # logged as a call already
        await send_bytes(send, 200, orjson.dumps({"async": "void", "request_id": request_id}), JSON)

    async def finish(self) -> None:
        """Wait for the calls whose answers nobody waits for."""
        await asyncio.gather(*self.background, return_exceptions=True)


def decode(content_type: bytes, body: bytes) -> Any:
    """The input of a call: text, binary, or what JSON holds. Raises CallError."""
    if content_type == b"application/json":
        try:
            return orjson.loads(body)
        except ValueError as error:
            raise CallError(f"the body is not JSON: {error}", "ParsingError") from error
    if content_type in (b"text/plain", b"application/text"):
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise CallError(f"the body is not UTF-8 text: {error}", "ParsingError") from error
    if content_type == b"application/octet-stream":
        return body
    raise CallError(
        "Content-Type must be application/json, text/plain or application/octet-stream", "UnsupportedError"
    )


def failed(error: Exception) -> CallError:
    """What the caller is told of an exception in the model."""
    if isinstance(error, CallError):
        return error
    kind = "InputError" if isinstance(error, ValueError) else "AlgorithmError"
    kind = "OutOfMemoryError" if isinstance(error, MemoryError) else kind
    kind = getattr(error, "error_type", kind)
    trace = "".join(traceback.format_exception(error))
    return CallError(
        str(error) or type(error).__name__, kind if kind in KNOWN_ERRORS else "AlgorithmError", trace
    )


def _content_type(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bytes(value) if value == b"application/json" else value.split(b";")[0].strip().lower()
    return b""


def encode(
    answer: Any, duration: float, output: str, request_id: str, printed: str | None
) -> tuple[bytes, bytes]:
    """The body and content type of a result with its metadata, alone for `output=raw`. Raises CallError."""
    if output == "raw" and isinstance(answer, str):
        return answer.encode(errors="replace"), TEXT
    if output == "raw" and isinstance(answer, bytes | bytearray):
        return bytes(answer), BINARY
    kind = "text" if isinstance(answer, str) else "json"
    if isinstance(answer, bytes | bytearray):
        kind, answer = "binary", base64.b64encode(answer).decode()
    metadata = {"content_type": kind, "duration": duration, "request_id": request_id}
    if printed is not None:
        metadata["stdout"] = printed
    content = answer if output == "raw" else {"result": answer, "metadata": metadata}
    try:
        return orjson.dumps(content, option=JSON_OPTIONS), JSON
    except TypeError as error:
        raise CallError(f"the answer can't be written as JSON: {error}") from error


async def send_error(send: Send, error: CallError, duration: float, output: str, request_id: str) -> None:
    """Answer an error object; with status 400 to a caller who asked for the bare answer."""
    trace = error.stack_trace.encode(errors="replace").decode()
    content = {
        "error": {
            "message": error.message.encode(errors="replace").decode(),
            "error_type": error.error_type,
            "stacktrace": trace,
            "stack_trace": trace,
        },
        "metadata": {"content_type": "json", "duration": duration, "request_id": request_id},
    }
    await send_bytes(send, 400 if output == "raw" else 200, orjson.dumps(content), JSON)
