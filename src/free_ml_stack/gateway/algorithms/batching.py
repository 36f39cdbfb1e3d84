"""Answer calls that are in flight together with one run of the model; a slow one holds up no other."""

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
BATCH_BYTES = 1 << 24  # of a batch, but for its last input
TICK = 0.005  # seconds between two looks at the workers
PATIENCE = 0.015  # seconds beyond the usual that a batch may take before other calls go to another worker
USUAL = 4  # times what a batch takes
SPARE = 2  # workers that are free, or soon will be
CLOSING = 1.0  # seconds for what is answered to be logged in the end
HANGING = 1.0  # seconds after which a worker whose callers have all been answered is replaced


class QueueFullError(HTTPError):
    """More requests are waiting than the gateway allows."""

    def __init__(self) -> None:
        super().__init__(429, "too many calls are waiting", retry_after="1")


class Batcher:
    """One model, the workers that have loaded it, and the questions that wait for it.

    Questions that arrive in one turn of the event loop, or while the model is busy, form a batch; a lone one does not
    wait. One worker answers; up to `most` others take over while it is busy with an input for longer than usual, and
    a spare one is kept for that. One that has nobody left to answer is replaced.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Worker]],
        most: int,
        queue: int,
        given_up: Callable[["Batcher"], None] = lambda _: None,
    ) -> None:
        self.name, self.start, self.most, self.queue, self.given_up = name, start, most, queue, given_up
        self.waiting: deque[Question] = deque()
        self.idle: list[Worker] = []
        self.busy: list[Worker] = []
        self.starting: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.scheduled = self.closed = False
        self.last, self.seconds = 0.0, 0.0  # that the last batch took, and the quicker one of the last two
        self.load_seconds = 0.0
        self.empty = asyncio.Event()  # whether nothing is asked
        self.empty.set()

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
        """Whether the next question has to be refused."""
        return len(self.waiting) >= self.queue

    def submit(self, question: Question, alone: bool = False) -> None:
        """Answer a question: at once if it is `alone`, for no other can come in this turn. Raises QueueFullError."""
        if len(self.waiting) >= self.queue:
            raise QueueFullError
        self.empty.clear()
        self.waiting.append(question)
        if self.scheduled:
            return
        if not alone:
            self._schedule()
        elif not self.busy:
            soon = self.seconds < SPIN
            self._dispatch(soon)
            if soon and self.busy:
                self.busy[0].wait()

    async def ask(self, content_type: str, body: bytes, capture: bool, seconds: float, deliver: Any) -> None:
        """Submit a question, and return when it is answered: in time, or with a TimeoutError in place of the answer."""
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
        while self.waiting and self.idle and len(self._stuck(now)) == len(self.busy):
            if batch := self._take():
                worker = self.idle.pop(0)
                self.busy.append(worker)
                worker.ask(batch, now, soon)
        if not self.busy and not self.waiting:
            self.empty.set()
        elif self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(TICK, self._look)

    def _take(self) -> list[Question]:
        """The questions of the next batch, as many as may be asked together."""
        batch: list[Question] = []
        size = 0
        while self.waiting and len(batch) < BATCH and size < BATCH_BYTES:
            if batch and (batch[0].alone or self.waiting[0].alone):
                break
            question = self.waiting.popleft()
            if not question.done:
                batch.append(question)
                size += len(question.body)
        return batch

    def _answered(self, worker: Worker, seconds: float, outputs: list[Output]) -> None:
        last, self.last = self.last, seconds
        self.seconds = min(last, seconds)  # once may be an accident, twice is slow
        batch, worker.batch = worker.batch, []
        self.busy.remove(worker)
        self.idle.insert(0, worker)
        for question, output in zip(batch, outputs, strict=True):
            entry = deliver(question, output)
            if output[0] not in FAULTS:
                worker.watch(entry)
        self._settle()

    def _settle(self) -> None:
        if not self.waiting:
            self._dispatch()
        elif not self.scheduled:
            self._schedule()

    def _look(self) -> None:
        """Look at the workers every few milliseconds while there is something to do."""
        self.timer, now = None, asyncio.get_running_loop().time()
        for question in [*islice(self.waiting, BATCH), *chain.from_iterable(worker.batch for worker in self.busy)]:
            if now > question.deadline:
                expire(question)
        for worker in self._stuck(now):
            self._relieve(worker, now - worker.since)
        self._keep_spare(now)
        self._dispatch()
        self._settle()

    def _stuck(self, now: float) -> list[Worker]:
        """The workers that have been busy for longer than usual."""
        return [worker for worker in self.busy if now - worker.since > PATIENCE + USUAL * self.seconds]

    def _relieve(self, worker: Worker, seconds: float) -> None:
        """Ask others what a worker has not answered for long, each by itself; replace it when all is answered."""
        left = [question for question in worker.batch if not question.done]
        if len(worker.batch) > 1 and self.most > 1:
            self._ask_again(left)
            worker.batch = [Question("", b"", lambda _: None, done=True) for _ in worker.batch]
        elif not left and seconds > max(HANGING, self.load_seconds):
            log.warning("%s: a call has not come back after %.1f s; its process is replaced", self.name, seconds)
            self.busy.remove(worker)
            worker.kill()

    def _ask_again(self, questions: list[Question]) -> None:
        for question in questions:
            question.alone = True
        self.waiting.extendleft(reversed(questions))

    def _lost(self, worker: Worker) -> None:
        """A process has ended: the calls of its batch are tried once more, each by itself."""
        if worker in self.idle:
            self.idle.remove(worker)
        if worker in self.busy:
            self.busy.remove(worker)
            left = [question for question in worker.batch if not question.done]
            log.warning("%s: the process of the model ended during a call; it is replaced", self.name)
            if len(worker.batch) > 1:
                self._ask_again(left)
            else:
                for question in left:
                    deliver(question, ("error", ("AlgorithmError", "the model ended its process", ""), None))
        if not self.closed:
            self._keep_spare(asyncio.get_running_loop().time())
            self._dispatch()
            self._settle()

    def _keep_spare(self, now: float) -> None:
        """Start a worker where fewer than two are free, or soon will be."""
        count = len(self.idle) + len(self.busy)
        free = count - len(self._stuck(now))
        if free < SPARE and count < self.most and not (self.starting or self.closed):
            self.starting = asyncio.ensure_future(self._start_another())

    async def _start_another(self) -> None:
        try:
            await self._start()
        except (StackError, OSError) as error:
            log.error("%s: another process can't be started: %s", self.name, error)
            if not self.idle and not self.busy:
                self._fail(str(error))
        finally:
            self.starting = None

    async def _start(self) -> Worker:
        worker = await self.start()
        worker.answered, worker.lost = self._answered, self._lost
        self.idle.append(worker)
        self._dispatch()
        return worker

    def _fail(self, reason: str) -> None:
        waiting, self.waiting = self.waiting, deque()
        for question in waiting:
            deliver(question, ("error", ("LoadingError", reason, ""), None))
        self.given_up(self)

    async def describe(self, seconds: float) -> None:
        """Let idle workers send what the log lacks of answered calls."""
        await asyncio.gather(*(worker.describe(seconds) for worker in self.idle))

    async def close(self, seconds: float | None = None) -> None:
        """Answer what is asked, within some seconds where that is said, have it logged, and end the processes."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.empty.wait(), seconds)
        self.closed = True
        if self.starting:
            self.starting.cancel()
        await self.describe(CLOSING)
        await asyncio.gather(*(worker.close() for worker in [*self.idle, *self.busy]))


def deliver(question: Question, output: Output) -> dict[str, Any] | None:
    """Answer a question; what goes wrong with that concerns no other."""
    try:
        return question.answer(output)
    except Exception:
        log.exception("an answer could not be delivered")
        return None


def expire(question: Question) -> None:
    """Answer a question that has waited for too long."""
    text = f"no answer within {question.seconds:g} seconds"
    deliver(question, ("error", ("TimeoutError", text, ""), None))
