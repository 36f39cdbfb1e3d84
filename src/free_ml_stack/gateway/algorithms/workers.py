"""The gateway's side of the processes that run a model."""

import asyncio
import multiprocessing
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import orjson

from free_ml_stack.deployment.answering import Output
from free_ml_stack.deployment.worker import Frames, frame, receive_soon, report_check, work
from free_ml_stack.errors import StackError
from free_ml_stack.processes import process_context
from free_ml_stack.project.science import Predictor

# Shared by all workers; torch is left out, as a model may not use it.
PRELOADED = ["numpy", "onnxruntime", "free_ml_stack.deployment.worker"]
START_LOCK = threading.Lock()
EXIT_SECONDS = 5  # seconds for a process to exit before it is killed
CHECK_SECONDS = 300.0  # seconds to load a model and answer its sample


@dataclass(slots=True, eq=False)
class Question:
    """An input waiting for its answer. `deliver` receives the first answer and returns the call's log entry."""

    content_type: str
    body: bytes
    deliver: Callable[[Output], dict[str, Any] | None]
    seconds: float = 0.0  # timeout
    deadline: float = float("inf")  # the loop's time of the timeout, if the batcher has to check it
    capture: bool = False
    unbatched: bool = False  # to be answered in a batch of its own
    done: bool = False

    def answer(self, output: Output) -> dict[str, Any] | None:
        """Deliver an answer; ignore it if there was one already."""
        if self.done:
            return None
        self.done = True
        return self.deliver(output)


class Worker(asyncio.Protocol):
    """A process with a model. `on_answers` receives its outputs and latency; `on_exit` is called at its exit."""

    def __init__(self, process: Any, connection: socket.socket, record: Callable[[dict[str, Any]], None]) -> None:
        self.process, self.socket, self.record = process, connection, record
        self.on_answers: Callable[[Worker, float, list[Output]], None] = lambda *_: None
        self.on_exit: Callable[[Worker], None] = lambda _: None
        self.ready: asyncio.Future[tuple[bytes, float]] = asyncio.get_running_loop().create_future()
        self.watches = False
        self.batch: list[Question] = []
        self.sent = 0.0  # the loop's time at which the batch was sent
        self.undescribed: list[dict[str, Any] | None] = []  # log entries without the fields of monitoring
        self.described = asyncio.Event()  # set if there are none
        self.described.set()
        self.frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        for kind, content, seconds in self.frames.feed(data):
            if kind == "answers":
                self.on_answers(self, seconds, content)
            elif kind == "watched":
                self._complete(orjson.loads(content))
            elif kind == "ready":
                reference, self.watches = content
                self.ready.set_result((reference, seconds))
            elif not self.ready.done():
                self.ready.set_exception(StackError(content))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        if not self.ready.done():
            self.ready.set_exception(StackError("the model process exited during loading"))
        self._complete([{}] * len(self.undescribed))
        self.on_exit(self)

    def ask(self, batch: list[Question], now: float, soon: bool = False) -> None:
        """Send a batch; `soon` if the next one is likely to follow the answer immediately."""
        self.batch, self.sent = batch, now
        self.transport.write(frame((soon, [(q.content_type, q.body, q.capture) for q in batch])))

    def wait(self) -> None:
        """Receive the answers now if they arrive within SPIN, which saves an iteration of the event loop."""
        with suppress(ConnectionError):  # the event loop reports it, too
            if data := receive_soon(self.socket):
                self.data_received(data)

    def watch(self, entry: dict[str, Any] | None) -> None:
        """Hold a log entry until the worker has described its call; None for a call that is not logged."""
        if self.watches:
            self.undescribed.append(entry)
            self.described.clear()
        elif entry is not None:
            self.record(entry)

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.transport.abort()

    async def close(self) -> None:
        """Stop the process, or kill it if it is busy."""
        self.transport.close()
        if self.batch:  # its callers have been answered
            self.process.kill()
        await asyncio.to_thread(self.process.join, EXIT_SECONDS)
        self.process.kill()

    async def describe(self, seconds: float) -> None:
        """Request the descriptions of answered calls, and wait up to `seconds` for them."""
        if self.undescribed:
            self.transport.write(frame((False, [])))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.described.wait(), seconds)

    def _complete(self, watched: list[dict[str, Any]]) -> None:
        count = len(watched)
        for entry, found in zip(self.undescribed[:count], watched, strict=True):
            if entry is not None:
                self.record({**entry, "watched": found} if found else entry)
        del self.undescribed[:count]
        if not self.undescribed:
            self.described.set()


async def start(
    predictor: Predictor | ModuleType | str, folder: Path, record: Callable[[dict[str, Any]], None], seconds: float
) -> Worker:
    """Start a worker and load a model folder; `record` receives log entries. Raises StackError."""
    here, there = socket.socketpair()
    try:
        with there:
            process = await asyncio.to_thread(start_process, work, there, predictor, folder)
        loop = asyncio.get_running_loop()
        _, worker = await loop.create_connection(lambda: Worker(process, here, record), sock=here)
    except BaseException:
        here.close()  # the process exits when its connection is closed
        raise
    try:
        await asyncio.wait_for(asyncio.shield(worker.ready), seconds)
    except BaseException as error:
        worker.ready.cancel()
        worker.kill()
        if isinstance(error, TimeoutError):
            raise StackError(f"timeout: not loaded after {seconds:g} seconds") from None
        raise
    return worker


def check(predictor: Predictor | ModuleType | str, folder: Path, seconds: float = CHECK_SECONDS) -> None:
    """Check a model folder with its sample in a separate process. Raises StackError."""
    here, there = multiprocessing.Pipe(duplex=False)
    with here:
        with there:
            process = start_process(report_check, there, predictor, folder)
        try:
            if not here.poll(seconds):
                raise StackError(f"timeout: no answer to the model's sample after {seconds:g} seconds")
            fault = here.recv_bytes().decode()
        except EOFError:
            raise StackError("the model process exited") from None
        finally:
            process.kill()
    if fault:
        raise StackError(fault)


def start_process(
    target: Callable[..., None], connection: Any, predictor: Predictor | ModuleType | str, folder: Path
) -> Any:
    """Start a process; the first call also starts the fork server."""
    given = predictor.__name__ if isinstance(predictor, ModuleType) else predictor
    with START_LOCK, hidden_main():
        context = process_context(PRELOADED)
        process = context.Process(target=target, args=(connection, given, str(folder)), daemon=True)
        process.start()
    return process


@contextmanager
def hidden_main() -> Iterator[None]:
    """Hide the main module, so that child processes do not import it: it may be a large application."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
