"""Answer requests that are in flight together with one run of the model."""

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from free_ml_stack.gateway.http import HTTPError
from free_ml_stack.project.science import Predictor

log = logging.getLogger(__name__)
INLINE_SECONDS = 0.01  # a batch that takes longer runs in a thread, so that the server stays awake


class QueueFullError(HTTPError):
    """More requests are waiting than the gateway allows."""

    def __init__(self) -> None:
        super().__init__(429, "too many calls are waiting", retry_after="1")


class ModelExitError(Exception):
    """The model tried to end the process."""

    error_type = "SystemExit"


@dataclass(slots=True, eq=False)
class Question:
    """An input that waits for its answer; `deliver` gets it, or the exception that the model raised instead.

    With `capture` it gets the pair of answer and what was printed meanwhile.
    """

    payload: Any
    deliver: Callable[[Any], object]
    capture: bool = False
    given_up: bool = False


class Batcher:
    """One loaded model and the questions that wait for it.

    Questions that arrive in one turn of the event loop, or while the model is busy, form a batch; a lone one
    does not wait. One thread runs the model: the event loop's while it is quick, else its own.
    """

    def __init__(self, predictor: Predictor, model: Any, queue: int = 1024, batch: int = 64) -> None:
        self.predictor, self.model, self.queue, self.batch = predictor, model, queue, batch
        self.apply_batch: Callable[[list[Any], Any], list[Any]] | None = getattr(predictor, "apply_batch", None)
        self.waiting: list[Question] = []
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.running = False
        self.last, self.seconds = 0.0, 0.0  # that the last batch took, and the quicker one of the last two

    @property
    def quick(self) -> bool:
        """Whether the model answers so fast that it may run on the event loop's thread."""
        return self.seconds < INLINE_SECONDS

    @property
    def full(self) -> bool:
        """Whether the next question has to be refused."""
        return len(self.waiting) >= self.queue

    def warm_up(self, payload: Any) -> None:
        """Answer an input twice for nobody, to see how long it takes."""
        for _ in range(2):
            self._timed([Question(payload, lambda _: None)])

    def submit(self, question: Question, alone: bool = False) -> None:
        """Answer a question: at once if it is `alone`, for no other can come in this turn. Raises QueueFullError."""
        if len(self.waiting) >= self.queue:
            raise QueueFullError
        self.waiting.append(question)
        if not self.running:
            self.running = True
            if alone:
                self._start()
            else:
                asyncio.get_running_loop().call_soon(self._start)

    async def ask(self, payload: Any, capture: bool, seconds: float) -> Any:
        """The answer, or the exception in its place; TimeoutError for one that is not there in time."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def deliver(answer: Any) -> None:
            if not future.done():
                future.set_result(answer)

        question = Question(payload, deliver, capture)
        self.submit(question)
        try:
            return await (future if self.quick else asyncio.wait_for(future, seconds))
        except TimeoutError as error:
            question.given_up = True
            return error

    def _start(self) -> None:
        batch = [question for question in self.waiting[: self.batch] if not question.given_up]
        del self.waiting[: self.batch]
        if self.seconds < INLINE_SECONDS:
            self._finish(batch, self._timed(batch))
        else:
            done = asyncio.get_running_loop().run_in_executor(self.executor, self._timed, batch)
            done.add_done_callback(lambda done: self._finish(batch, done.result()))

    def _finish(self, batch: list[Question], answers: list[Any]) -> None:
        for question, answer in zip(batch, answers, strict=True):
            try:
                question.deliver(answer)
            except Exception:
                log.exception("an answer could not be delivered")
        self.running = bool(self.waiting)
        if self.running:
            asyncio.get_running_loop().call_soon(self._start)

    def _timed(self, batch: list[Question]) -> list[Any]:
        start = time.perf_counter()
        answers = self._answers(batch)
        last, self.last = self.last, time.perf_counter() - start
        self.seconds = min(last, self.last)  # once may be an accident, twice is slow
        return answers

    def _answers(self, batch: list[Question]) -> list[Any]:
        if len(batch) > 1 and self.apply_batch and not any(question.capture for question in batch):
            with contextlib.suppress(Exception):  # one bad input must not fail the others: each again, alone
                answers = self.apply_batch([question.payload for question in batch], self.model)
                if len(answers) == len(batch):
                    return answers
        return [self._alone(question) for question in batch]

    def _alone(self, question: Question) -> Any:
        try:
            if not question.capture:
                return self.predictor.apply(question.payload, self.model)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                return self.predictor.apply(question.payload, self.model), printed.getvalue()
        except SystemExit as error:
            return ModelExitError(f"exited with code {error.code}")
        except Exception as error:
            return error
