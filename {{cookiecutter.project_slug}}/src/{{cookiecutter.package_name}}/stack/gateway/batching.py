"""Answer requests that are in flight together with one run of the model."""

import asyncio
import contextlib
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

INLINE_SECONDS = 0.002  # a batch that takes longer runs in a thread, so that the server stays awake


class Predictor(Protocol):
    """What `predict.py` offers; it may also have `apply_batch(inputs, model)` and `summary(input)`."""

    def load(self, model_dir: Path, /) -> Any:
        """Load the model of a folder."""

    def apply(self, payload: Any, model: Any, /) -> Any:
        """Answer one input. Raises ValueError for an input that makes no sense."""


class QueueFull(Exception):  # noqa: N818 - a state, not a fault
    """More requests are waiting than the gateway allows."""


class ModelExit(Exception):  # noqa: N818 - a state, not a fault
    """The model tried to end the process."""

    error_type = "SystemExit"


class Batcher:
    """One loaded model and the requests that wait for it.

    Requests that arrive in one turn of the event loop, or while the model is busy, form a batch; a lone
    request does not wait. One thread runs the model: the event loop's while it is quick, else its own.
    """

    def __init__(self, predictor: Predictor, model: Any, queue: int = 1024, batch: int = 64) -> None:
        self.predictor, self.model, self.queue, self.batch = predictor, model, queue, batch
        self.apply_batch: Callable[[list[Any], Any], list[Any]] | None = getattr(
            predictor, "apply_batch", None
        )
        self.waiting: list[tuple[Any, asyncio.Future[Any], bool]] = []
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.running = False
        self.seconds = 0.0  # that a batch takes, smoothed

    @property
    def quick(self) -> bool:
        """Whether the model answers so fast that it may run on the event loop's thread."""
        return self.seconds < INLINE_SECONDS

    @property
    def full(self) -> bool:
        """Whether the next request has to be refused."""
        return len(self.waiting) >= self.queue

    def submit(self, payload: Any, capture: bool = False) -> asyncio.Future[Any]:
        """The future answer to one input; with `capture`, the pair of answer and what was printed meanwhile.

        Where the model raised an exception, that exception is the answer. Raises QueueFull.
        """
        if self.full:
            raise QueueFull
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.waiting.append((payload, future, capture))
        if not self.running:
            self.running = True
            loop.call_soon(self._start)
        return future

    def _start(self) -> None:
        batch = [entry for entry in self.waiting[: self.batch] if not entry[1].done()]
        del self.waiting[: self.batch]
        if self.quick:
            self._finish(batch, self._timed(batch))
        else:
            done = asyncio.get_running_loop().run_in_executor(self.executor, self._timed, batch)
            done.add_done_callback(lambda done: self._finish(batch, done.result()))

    def _finish(self, batch: list[tuple[Any, asyncio.Future[Any], bool]], answers: list[Any]) -> None:
        for (_, future, _), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
        self.running = bool(self.waiting)
        if self.running:
            asyncio.get_running_loop().call_soon(self._start)

    def _timed(self, batch: list[tuple[Any, asyncio.Future[Any], bool]]) -> list[Any]:
        start = time.perf_counter()
        answers = self._answers(batch)
        self.seconds += (time.perf_counter() - start - self.seconds) / 4
        return answers

    def _answers(self, batch: list[tuple[Any, asyncio.Future[Any], bool]]) -> list[Any]:
        if self.apply_batch is not None and len(batch) > 1 and not any(capture for _, _, capture in batch):
            with contextlib.suppress(Exception):  # one bad input must not fail the others: each again, alone
                answers = self.apply_batch([payload for payload, _, _ in batch], self.model)
                if len(answers) == len(batch):
                    return answers
        return [self._alone(payload, capture) for payload, _, capture in batch]

    def _alone(self, payload: Any, capture: bool) -> Any:
        try:
            if not capture:
                return self.predictor.apply(payload, self.model)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                return self.predictor.apply(payload, self.model), printed.getvalue()
        except SystemExit as error:
            return ModelExit(f"exited with code {error.code}")
        except Exception as error:
            return error
