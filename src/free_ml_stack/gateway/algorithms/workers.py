"""The processes that run a model, as the gateway sees them: each is started, given batches, and replaced."""

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
from typing import Any

import orjson

from free_ml_stack.deployment.answering import Output
from free_ml_stack.deployment.worker import Frames, frame, receive_soon, report_check, work
from free_ml_stack.errors import StackError
from free_ml_stack.processes import shorten_socket_paths
from free_ml_stack.project.science import Predictor

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PRELOADED = [
    "numpy",
    "onnxruntime",
    "free_ml_stack.deployment.worker",
]  # shared by the workers; torch may not be needed
STARTING = threading.Lock()
CLOSING = 5  # seconds for a process to end by itself
CHECKING = 300.0  # seconds for a model to be loaded and to answer its sample


@dataclass(slots=True, eq=False)
class Question:
    """An input that waits for its answer; `deliver` gets the first one, and returns what the log is to hold of it."""

    content_type: str
    body: bytes
    deliver: Callable[[Output], dict[str, Any] | None]
    seconds: float = 0.0  # after which it is answered with a TimeoutError
    deadline: float = float("inf")  # when that is, by the loop's clock, where nobody else sees to it
    capture: bool = False
    alone: bool = False  # not to be answered in a batch
    done: bool = False

    def answer(self, output: Output) -> dict[str, Any] | None:
        """Deliver an answer, unless there was one."""
        if self.done:
            return None
        self.done = True
        return self.deliver(output)


class Worker(asyncio.Protocol):
    """One process with a model. `answered` gets its outputs and the seconds, `lost` is called where it has ended."""

    def __init__(self, process: Any, connection: socket.socket, note: Callable[[dict[str, Any]], None]) -> None:
        self.process, self.socket, self.note = process, connection, note
        self.answered: Callable[[Worker, float, list[Output]], None] = lambda *_: None
        self.lost: Callable[[Worker], None] = lambda _: None
        self.ready: asyncio.Future[tuple[bytes, float]] = asyncio.get_running_loop().create_future()
        self.watches = False
        self.batch: list[Question] = []
        self.since = 0.0  # when it began with the batch, by the loop's clock
        self.unwatched: list[dict[str, Any] | None] = []  # entries of the log that lack what monitoring notes
        self.quiet = asyncio.Event()  # whether there are none
        self.quiet.set()
        self.frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        for kind, content, seconds in self.frames.feed(data):
            if kind == "answers":
                self.answered(self, seconds, content)
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
            self.ready.set_exception(StackError("its process ended while it was loading"))
        self._complete([{}] * len(self.unwatched))
        self.lost(self)

    def ask(self, batch: list[Question], now: float, soon: bool = False) -> None:
        """Send a batch; `soon` if the next one is likely to follow the answer at once."""
        self.batch, self.since = batch, now
        self.transport.write(frame((soon, [(q.content_type, q.body, q.capture) for q in batch])))

    def wait(self) -> None:
        """Take the answers if they come at once, which spares a caller who is alone the event loop's turn."""
        with suppress(ConnectionError):  # the event loop hears of it, too
            if data := receive_soon(self.socket):
                self.data_received(data)

    def watch(self, entry: dict[str, Any] | None) -> None:
        """Keep an entry of the log until the worker has described its call; None for a call that is not logged."""
        if self.watches:
            self.unwatched.append(entry)
            self.quiet.clear()
        elif entry is not None:
            self.note(entry)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.transport.abort()

    async def close(self) -> None:
        """End the process when it has nothing to do."""
        self.transport.close()
        if self.batch:  # nobody waits for that any more
            self.process.kill()
        await asyncio.to_thread(self.process.join, CLOSING)
        self.process.kill()

    async def describe(self, seconds: float) -> None:
        """Have the log told of what has been answered, unless the model is busy for longer."""
        if self.unwatched:
            self.transport.write(frame((False, [])))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.quiet.wait(), seconds)

    def _complete(self, watched: list[dict[str, Any]]) -> None:
        count = len(watched)
        for entry, found in zip(self.unwatched[:count], watched, strict=True):
            if entry is not None:
                self.note({**entry, "watched": found} if found else entry)
        del self.unwatched[:count]
        if not self.unwatched:
            self.quiet.set()


async def start(
    predictor: Predictor | ModuleType | str, folder: Path, note: Callable[[dict[str, Any]], None], seconds: float
) -> Worker:
    """A worker that has loaded a model folder; `note` gets entries of the log. Raises StackError."""
    here, there = socket.socketpair()
    try:
        with there:
            process = await asyncio.to_thread(launch, work, there, predictor, folder)
        loop = asyncio.get_running_loop()
        _, worker = await loop.create_connection(lambda: Worker(process, here, note), sock=here)
    except BaseException:
        here.close()  # with that the process ends by itself
        raise
    try:
        await asyncio.wait_for(asyncio.shield(worker.ready), seconds)
    except BaseException as error:
        worker.ready.cancel()
        worker.kill()
        if isinstance(error, TimeoutError):
            raise StackError(f"it is not loaded after {seconds:g} seconds") from None
        raise
    return worker


def check(predictor: Predictor | ModuleType | str, folder: Path, seconds: float = CHECKING) -> None:
    """Check that a model folder answers its sample, in a process of its own. Raises StackError."""
    here, there = multiprocessing.Pipe(duplex=False)
    with here:
        with there:
            process = launch(report_check, there, predictor, folder)
        try:
            if not here.poll(seconds):
                raise StackError(f"the model has not answered its sample after {seconds:g} seconds")
            fault = here.recv_bytes().decode()
        except EOFError:
            raise StackError("the model ended its process") from None
        finally:
            process.kill()
    if fault:
        raise StackError(fault)


def launch(target: Callable[..., None], connection: Any, predictor: Predictor | ModuleType | str, folder: Path) -> Any:
    """Start a process of multiprocessing; the first one takes longer."""
    given = predictor.__name__ if isinstance(predictor, ModuleType) else predictor
    context: Any = multiprocessing.get_context(METHOD)
    process = context.Process(target=target, args=(connection, given, str(folder)), daemon=True)
    with STARTING, without_main():
        if METHOD == "forkserver":
            shorten_socket_paths()
            multiprocessing.set_forkserver_preload(PRELOADED)
        process.start()
    return process


@contextmanager
def without_main() -> Iterator[None]:
    """A block in which multiprocessing has no main module to import in each process: it may be a whole application."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
