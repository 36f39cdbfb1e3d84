"""Batch concurrent calls into one run of the model; a slow call does not delay others."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from free_ml_stack.deployment.answering import FAULTS, Output
from free_ml_stack.deployment.worker import SPIN
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.workers import Question, Worker
from free_ml_stack.gateway.http import HTTPError

log = logging.getLogger(__name__)
BATCH = 64
BATCH_BYTES = 1 << 24  # of a batch without its last input
POLL_SECONDS = 0.005  # seconds between two checks of the workers
OVERRUN_SECONDS = 0.015  # seconds that a batch may exceed OVERRUN_FACTOR before other calls go to another worker
OVERRUN_FACTOR = 4  # multiple of a batch's latency
FREE_WORKERS = 2  # workers that are free, or will be soon
LOG_SECONDS = 1.0  # seconds to log answered calls on shutdown
HANG_SECONDS = 1.0  # seconds until a busy worker is replaced if all its calls have been answered


class QueueFullError(HTTPError):
    """The queue of waiting calls is full."""

    def __init__(self) -> None:
        super().__init__(429, "queue full: too many waiting calls", retry_after="1")


class Batcher:
    """A model, the worker processes that have loaded it, and the queue of its calls.

    Questions that arrive in one iteration of the event loop, or while the model is busy, form a batch; a single one is
    not delayed. One worker answers; if a batch takes longer than usual, other workers, up to `max_workers` in total,
    answer the next ones. A spare worker is kept for that. A worker that hangs after a timeout is replaced.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Worker]],
        max_workers: int,
        queue: int,
        on_failure: Callable[["Batcher"], None] = lambda _: None,
    ) -> None:
        self.name, self.start, self.max_workers = name, start, max_workers
        self.queue, self.on_failure = queue, on_failure
        self.waiting: deque[Question] = deque()
        self.idle: list[Worker] = []
        self.busy: list[Worker] = []
        self.starting: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.scheduled = self.closed = False
        self.last, self.seconds = 0.0, 0.0  # latency of the last batch, and the minimum of the last two
        self.load_seconds = 0.0
        self.drained = asyncio.Event()  # set if no question is queued or running
        self.drained.set()

    async def open(self) -> Worker:
        """Start the first worker. Raises StackError."""
        begun = asyncio.get_running_loop().time()
        worker = await self._start()
        self.load_seconds = asyncio.get_running_loop().time() - begun
        _, self.seconds = worker.ready.result()
        self._keep_spare(asyncio.get_running_loop().time())
        return worker

    @property
    def full(self) -> bool:
        """Whether the queue is full."""
        return len(self.waiting) >= self.queue

    def submit(self, question: Question, single_caller: bool = False) -> None:
        """Queue a question; send it immediately if there is a `single_caller`. Raises QueueFullError."""
        if len(self.waiting) >= self.queue:
            raise QueueFullError
        self.drained.clear()
        self.waiting.append(question)
        if self.scheduled:
            return
        if not single_caller:
            self._schedule()
        elif not self.busy:
            soon = self.seconds < SPIN
            self._dispatch(soon)
            if soon and self.busy:
                self.busy[0].wait()

    async def ask(self, content_type: str, body: bytes, capture: bool, seconds: float, deliver: Any) -> None:
        """Submit a question and wait until it is answered; after `seconds` the answer is a TimeoutError."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hand_over(output: Output) -> Any:
            if not answered.done():
                answered.set_result(None)
            return deliver(output)

        question = Question(content_type, body, hand_over, seconds, capture=capture)
        self.submit(question)
        timer = asyncio.get_running_loop().call_later(seconds, expire, question)
        await answered
        timer.cancel()

    def _schedule(self) -> None:
        self.scheduled = True
        asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self, soon: bool = False) -> None:
        self.scheduled = False
        now = asyncio.get_running_loop().time()
        while self.waiting and self.idle and len(self._overdue(now)) == len(self.busy):
            if batch := self._next_batch():
                worker = self.idle.pop(0)
                self.busy.append(worker)
                worker.ask(batch, now, soon)
        if not self.busy and not self.waiting:
            self.drained.set()
        elif self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(POLL_SECONDS, self._poll)

    def _next_batch(self) -> list[Question]:
        """Remove the next batch from the queue."""
        batch: list[Question] = []
        size = 0
        while self.waiting and len(batch) < BATCH and size < BATCH_BYTES:
            if batch and (batch[0].unbatched or self.waiting[0].unbatched):
                break
            question = self.waiting.popleft()
            if not question.done:
                batch.append(question)
                size += len(question.body)
        return batch

    def _on_answers(self, worker: Worker, seconds: float, outputs: list[Output]) -> None:
        last, self.last = self.last, seconds
        self.seconds = min(last, seconds)  # one slow batch may be an outlier
        batch, worker.batch = worker.batch, []
        self.busy.remove(worker)
        self.idle.insert(0, worker)
        for question, output in zip(batch, outputs, strict=True):
            entry = deliver(question, output)
            if output[0] not in FAULTS:
                worker.watch(entry)
        self._schedule_waiting()

    def _schedule_waiting(self) -> None:
        if not self.waiting:
            self._dispatch()
        elif not self.scheduled:
            self._schedule()

    def _poll(self) -> None:
        """Check deadlines and workers; scheduled every few milliseconds while there are questions."""
        self.timer, now = None, asyncio.get_running_loop().time()
        for question in [*islice(self.waiting, BATCH), *chain.from_iterable(worker.batch for worker in self.busy)]:
            if now > question.deadline:
                expire(question)
        for worker in self._overdue(now):
            self._requeue_or_replace(worker, now - worker.sent)
        self._keep_spare(now)
        self._dispatch()
        self._schedule_waiting()

    def _overdue(self, now: float) -> list[Worker]:
        """Return the workers that have been busy for longer than usual."""
        return [worker for worker in self.busy if now - worker.sent > OVERRUN_SECONDS + OVERRUN_FACTOR * self.seconds]

    def _requeue_or_replace(self, worker: Worker, seconds: float) -> None:
        """Requeue the questions of a slow batch one by one; replace the worker if all its questions have timed out."""
        left = [question for question in worker.batch if not question.done]
        if len(worker.batch) > 1 and self.max_workers > 1:
            self._requeue(left)
            worker.batch = [Question("", b"", lambda _: None, done=True) for _ in worker.batch]
        elif not left and seconds > max(HANG_SECONDS, self.load_seconds):
            log.warning("%s: a call has not finished after %.1f s; replacing its process", self.name, seconds)
            self.busy.remove(worker)
            worker.kill()

    def _requeue(self, questions: list[Question]) -> None:
        for question in questions:
            question.unbatched = True
        self.waiting.extendleft(reversed(questions))

    def _on_exit(self, worker: Worker) -> None:
        """Handle the exit of a worker process: retry the calls of its batch one by one."""
        if worker in self.idle:
            self.idle.remove(worker)
        if worker in self.busy:
            self.busy.remove(worker)
            left = [question for question in worker.batch if not question.done]
            log.warning("%s: the model process exited during a call; replacing it", self.name)
            if len(worker.batch) > 1:
                self._requeue(left)
            else:
                for question in left:
                    deliver(question, ("error", ("AlgorithmError", "the model process exited", ""), None))
        if not self.closed:
            self._keep_spare(asyncio.get_running_loop().time())
            self._dispatch()
            self._schedule_waiting()

    def _keep_spare(self, now: float) -> None:
        """Start a worker if fewer than two are free, or will be soon."""
        count = len(self.idle) + len(self.busy)
        free = count - len(self._overdue(now))
        if free < FREE_WORKERS and count < self.max_workers and not (self.starting or self.closed):
            self.starting = asyncio.ensure_future(self._start_another())

    async def _start_another(self) -> None:
        try:
            await self._start()
        except (StackError, OSError) as error:
            log.error("%s: cannot start another model process: %s", self.name, error)
            if not self.idle and not self.busy:
                self._fail(str(error))
        finally:
            self.starting = None

    async def _start(self) -> Worker:
        worker = await self.start()
        worker.on_answers, worker.on_exit = self._on_answers, self._on_exit
        self.idle.append(worker)
        self._dispatch()
        return worker

    def _fail(self, reason: str) -> None:
        waiting, self.waiting = self.waiting, deque()
        for question in waiting:
            deliver(question, ("error", ("LoadingError", reason, ""), None))
        self.on_failure(self)

    async def describe(self, seconds: float) -> None:
        """Have idle workers send the descriptions of answered calls for the log."""
        await asyncio.gather(*(worker.describe(seconds) for worker in self.idle))

    async def close(self, seconds: float | None = None) -> None:
        """Answer queued questions (within `seconds` if given), log them, and stop the processes."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.drained.wait(), seconds)
        self.closed = True
        if self.starting:
            self.starting.cancel()
        await self.describe(LOG_SECONDS)
        await asyncio.gather(*(worker.close() for worker in [*self.idle, *self.busy]))


def deliver(question: Question, output: Output) -> dict[str, Any] | None:
    """Answer a question; log an exception of its callback, so that other questions are not affected."""
    try:
        return question.answer(output)
    except Exception:
        log.exception("could not deliver an answer")
        return None


def expire(question: Question) -> None:
    """Answer a question with a TimeoutError."""
    text = f"timeout: no answer within {question.seconds:g} seconds"
    deliver(question, ("error", ("TimeoutError", text, ""), None))
