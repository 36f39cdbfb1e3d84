"""The Open Inference Protocol (version 2, REST), for clients of Triton, KServe and MLServer.

Models and versions are algorithms and their versions; tensors are the inputs and outputs of the ONNX graph.
"""

import asyncio
import zlib
from typing import Any

import orjson

from free_ml_stack.deployment.answering import FAULTS, JSON, METADATA, TENSORS, Output
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.calls import BINARY, Calls
from free_ml_stack.gateway.algorithms.models import LoadedModel
from free_ml_stack.gateway.http import HTTPError, Request
from free_ml_stack.version import __version__

HEADER = "inference-header-content-length"
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
STATUS = {"InputError": 400, "TimeoutError": 504, "LoadingError": 503}


class Inference:
    """Answers `/v2/…` for one owner's models. Health checks need no key, as load balancers send none."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    async def __call__(self, request: Request) -> None:
        """Answer a request; errors have the protocol's form `{"error": message}`."""
        try:
            await self._answer(request)
        except HTTPError as error:
            await request.answer({"error": error.message}, error.status, **error.headers)

    async def _answer(self, request: Request) -> None:
        path = request.segments[1:]
        if path in (["health", "live"], ["health", "ready"]):
            await request.answer({path[1]: True})
            return
        if request.user is None:
            raise HTTPError(401, "authorization required")
        match (request.method, *path):
            case ("GET",):
                extensions = ["binary_tensor_data"]
                await request.answer({"name": "free-ml-stack", "version": __version__, "extensions": extensions})
            case (method, "models", name, *rest):
                version = rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else ""
                action = rest[2:] if version else rest
                await self._answer_model(request, method, name, version, action)
            case _:
                raise HTTPError(404, f"no such path: {request.path}")

    async def _answer_model(self, request: Request, method: str, name: str, version: str, action: list[str]) -> None:
        model = await self._model(name, version)
        match (method, *action):
            case ("GET", "ready"):
                await request.answer({"name": name, "ready": True})
            case ("GET",):
                described = orjson.loads((await self._run(model, METADATA, b""))[4:])
                published = self.calls.models.algorithms[name].published()
                facts = {"name": name, "platform": "onnxruntime_onnx"}
                await request.answer({**facts, "versions": [build.version for build in published], **described})
            case ("POST", "infer"):
                await self._infer(request, model, name)
            case (_, *rest) if rest in ([], ["ready"], ["infer"]):
                raise HTTPError(405, f"{method} is not supported here")
            case _:
                raise HTTPError(404, f"no such path: {request.path}")

    async def _model(self, name: str, version: str) -> LoadedModel:
        try:
            model = await self.calls.models.get(name, version)
        except StackError as error:
            raise HTTPError(503, str(error)) from error
        if model is None:
            raise HTTPError(404, f"model {name} {version}".rstrip() + " does not exist")
        return model

    async def _infer(self, request: Request, model: LoadedModel, name: str) -> None:
        body = await request.body(self.calls.limits.body_bytes, self.calls.limits.body_seconds)
        if encoding := request.header(b"content-encoding").lower():
            body = await asyncio.to_thread(decompress, body, encoding, self.calls.limits.body_bytes)
            request.hold(len(body))
        length = request.header(HEADER.encode()) or str(len(body))
        if not (length.isascii() and length.isdecimal() and len(length) < 20 and int(length) <= len(body)):
            raise HTTPError(400, f"{HEADER} must be an integer of at most {len(body)}")
        answer = await self._run(model, f"{TENSORS}{length}", body)
        end = 4 + int.from_bytes(answer[:4], "little")
        head = orjson.dumps({"model_name": name, "model_version": model.build.version})[:-1] + b"," + answer[5:end]
        if end == len(answer):
            await request.answer_bytes(200, head, JSON)
        else:
            await request.answer_bytes(200, head + answer[end:], BINARY, inference_header_content_length=str(len(head)))

    async def _run(self, model: LoadedModel, content_type: str, body: bytes) -> bytes:
        """Return the output of the model process. Raises HTTPError."""
        call, outputs = self.calls.new_call(), []

        def deliver(output: Output) -> dict[str, Any] | None:
            outputs.append(output)
            return None if content_type == METADATA else self.calls.log_call(model, output, call)

        await model.ask(content_type, body, False, call.timeout, deliver)
        kind, content, _ = outputs[0]
        if kind in FAULTS:
            raise HTTPError(STATUS.get(content[0], 500), content[1])
        answer: bytes = content
        return answer


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body with gzip or deflate. Raises HTTPError for more than `limit` bytes or invalid data."""
    if encoding not in WINDOW_BITS:
        raise HTTPError(415, f"Content-Encoding: expected gzip or deflate, got {encoding}")
    stream = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise HTTPError(400, f"the body is not valid {encoding}: {error}") from None
    if len(found) > limit:
        raise HTTPError(413, f"the decompressed request is larger than {limit} bytes")
    if not stream.eof or stream.unused_data:
        raise HTTPError(400, f"the body is not one complete {encoding} stream")
    return found
