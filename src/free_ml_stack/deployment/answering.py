"""Calls of a model folder: decode the body, run the model, encode the answer, describe the call for the log.

The gateway's workers and the check of a deployment share these functions, so that the check matches serving.
"""

import contextlib
import io
import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson

from free_ml_stack.deployment.tensors import TensorModel, TensorRequest
from free_ml_stack.errors import StackError
from free_ml_stack.project.science import Predictor

JSON = "application/json"
# content types between gateway and worker; the second is followed by the length of the JSON part
METADATA, TENSORS = "tensors:metadata", "tensors:"
JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
SAMPLE, REFERENCE = "sample.json", "reference.json"
TOLERANCE = 1e-5
log = logging.getLogger(__name__)
KNOWN_ERRORS = {
    "InputError", "UnsupportedError", "InitializationError", "OutOfMemoryError", "OutOfGpuMemoryError",
    "LanguageError", "TooLargeError", "ParsingError", "EntityNotFoundError", "ThirdPartyCredentialError",
    "AlgorithmError", "TimeoutError", "LoadingError", "SystemExit",
}  # fmt: skip

Input = tuple[str, bytes, bool]  # content type, body, whether to capture stdout
Pair = tuple[Any, Any] | None  # input and answer of a call; None for tensors
Output = tuple[str, Any, str | None]  # "json", "text", "binary", "error" or "unread"; content; captured stdout


class UnreadableError(Exception):
    """The body of a call does not match its content type; `kind` is Algorithmia's error type."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Loaded:
    """A model folder in memory."""

    predictor: Predictor
    model: Any
    sample: dict[str, Any] | None
    reference: dict[str, Any] | None
    tensors: TensorModel

    def answers(self, inputs: Sequence[Input]) -> tuple[list[Output], list[Pair]]:
        """Return the outputs of a batch, and a pair for each successful call."""
        payloads: list[Any] = [_attempt(decode, *given[:2]) for given in inputs]
        results = self._run([given[2] for given in inputs], payloads)
        outputs = [_attempt_to_write(*result) for result in results]
        pairs = zip(payloads, results, outputs, strict=True)
        return outputs, [
            None if isinstance(payload, TensorRequest) else (payload, result[0])
            for payload, result, output in pairs
            if output[0] not in FAULTS
        ]

    @property
    def watches(self) -> bool:
        """Whether the project defines the monitoring fields of a call."""
        return hasattr(self.predictor, "watch") or hasattr(self.predictor, "watch_batch")

    def watched(self, pairs: Sequence[Pair]) -> list[Mapping[str, Any]]:
        """Return the monitoring fields of answered calls; empty if the project's function fails."""
        found = iter(self._watched([pair for pair in pairs if pair]))
        described = [next(found) if pair else {} for pair in pairs]
        return [fields if isinstance(fields, Mapping) else {} for fields in described]

    def _watched(self, pairs: Sequence[tuple[Any, Any]]) -> list[Mapping[str, Any]]:
        if not pairs:
            return []
        if batch := getattr(self.predictor, "watch_batch", None):
            with contextlib.suppress(Exception, SystemExit):  # the calls cannot be batched: describe each alone
                found: list[Mapping[str, Any]] = batch(*map(list, zip(*pairs, strict=True)), self.model)
                if len(found) == len(pairs):
                    return found
        return [self._watched_call(*pair) for pair in pairs]

    def _run(self, captures: list[bool], payloads: list[Any]) -> list[tuple[Any, str | None]]:
        batch = getattr(self.predictor, "apply_batch", None)
        single = any(isinstance(payload, Exception | TensorRequest) for payload in payloads)
        if batch and len(payloads) > 1 and not any(captures) and not single:
            with contextlib.suppress(Exception, SystemExit):  # an invalid input must not fail the others
                answers = batch(payloads, self.model)
                if len(answers) == len(payloads):
                    return [(answer, None) for answer in answers]
        return [self._alone(*each) for each in zip(payloads, captures, strict=True)]

    def _alone(self, payload: Any, capture: bool) -> tuple[Any, str | None]:
        if isinstance(payload, Exception):
            return payload, None
        if isinstance(payload, TensorRequest):
            return _attempt(self.tensors.answer, payload), None
        with contextlib.redirect_stdout(io.StringIO()) if capture else contextlib.nullcontext() as printed:
            answer = _attempt(self.predictor.apply, payload, self.model)
        return answer, printed.getvalue() if printed else None

    def _watched_call(self, payload: Any, answer: Any) -> Mapping[str, Any]:
        try:
            return self.predictor.watch(payload, answer, self.model)
        except (Exception, SystemExit) as error:
            log.debug("could not describe a call: %s", error)
            return {}


FAULTS = ("error", "unread")


def load(predictor: Predictor | str, folder: Path) -> Loaded:
    """Load a model folder with a predictor or the module of that name. Raises the predictor's exceptions."""
    if isinstance(predictor, str):
        predictor = import_module(predictor)
    assert not isinstance(predictor, str)
    return Loaded(
        predictor,
        predictor.load(folder),
        read_json(folder / SAMPLE),
        read_json(folder / REFERENCE),
        TensorModel(folder),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object of a model folder, None if the file is missing. Raises StackError if it is invalid."""
    try:
        content: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StackError(f"{path.name} is not valid JSON: {error}; run `publish` again") from None
    return content


def check_sample(predictor: Predictor | str, folder: Path) -> None:
    """Load a model folder and call it with its sample as the gateway does. Raises StackError on a mismatch."""
    try:
        loaded = load(predictor, folder)
    except StackError:
        raise
    except Exception as error:
        raise StackError(f"cannot load the model: {error}") from error
    if loaded.sample is None:
        raise StackError(f"{SAMPLE} not found in the model folder; run `publish` again")
    [(kind, content, _)], _ = loaded.answers([(JSON, orjson.dumps(loaded.sample["input"]), False)])
    if kind in FAULTS:
        raise StackError(f"the model fails on its own sample input: {content[1]}")
    expected = loaded.sample["output"]
    answer = orjson.loads(content) if kind in ("json", "text") else content
    if not close(answer, expected):
        raise StackError(f"{SAMPLE}: expected {expected!r}, got {answer!r} from the model")


def close(one: Any, other: Any) -> bool:
    """Return whether two JSON documents are equal, with a tolerance of 1e-5 for numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int) and float in (type(one), type(other)):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)


def decode(content_type: str, body: bytes) -> Any:
    """Return the input of a call: text, bytes, or a JSON value. Raises UnreadableError."""
    if content_type.startswith(TENSORS):
        return TensorRequest(body, None if content_type == METADATA else int(content_type.removeprefix(TENSORS)))
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
        raise UnreadableError(f"the body is not {kind}: {error}", "ParsingError") from error
    supported = "application/json, text/plain or application/octet-stream"
    raise UnreadableError(f"Content-Type must be {supported}", "UnsupportedError")


def _attempt(function: Any, *given: Any) -> Any:
    """Return the result of a function, or its exception, including SystemExit."""
    try:
        return function(*given)
    except (Exception, SystemExit) as error:
        return error


def _attempt_to_write(result: Any, printed: str | None) -> Output:
    if isinstance(result, UnreadableError):
        return "unread", (result.kind, str(result), ""), None
    if isinstance(result, BaseException):
        return "error", describe(result), printed
    if isinstance(result, bytes | bytearray):
        return "binary", bytes(result), printed
    try:
        return "text" if isinstance(result, str) else "json", orjson.dumps(result, option=JSON_OPTIONS), printed
    except TypeError as error:
        return "error", ("AlgorithmError", f"the answer is not JSON-serializable: {error}", ""), printed


def describe(error: BaseException) -> tuple[str, str, str]:
    """Return Algorithmia's error type for an exception of the model, the message and the traceback."""
    if isinstance(error, SystemExit):
        return "SystemExit", f"exited with code {error.code}", ""
    kind = "InputError" if isinstance(error, ValueError) else "AlgorithmError"
    kind = "OutOfMemoryError" if isinstance(error, MemoryError) else kind
    kind = getattr(error, "error_type", kind)
    kind = next((known for known in KNOWN_ERRORS if known == kind), "AlgorithmError")  # it may be a member of an Enum
    trace = "".join(traceback.format_exception(error)).encode(errors="replace").decode()
    message = (str(error) or type(error).__name__).encode(errors="replace").decode()
    return kind, message, trace
