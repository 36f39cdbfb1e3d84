"""The process that runs a model: it answers batches of calls, and describes them for the log when idle.

The gateway runs in another process, so that a slow input delays only its own answer. Both send frames over a
socket: 4 bytes of length, then a value serialized with `marshal`.
"""

import ctypes
import gc
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson

from free_ml_stack.deployment.answering import JSON, JSON_OPTIONS, Loaded, Pair, check_sample, load
from free_ml_stack.errors import StackError, one_line
from free_ml_stack.processes import set_signals
from free_ml_stack.project.science import Predictor

BYTES = 1 << 16  # maximum bytes per recv
TOGETHER = 64  # answered calls described together
IDLE = 0.002  # seconds without a call after which answered calls are described
NO_WAIT = getattr(socket, "MSG_DONTWAIT", 0)  # missing on Windows
SPIN = 3e-4 if NO_WAIT and len(getattr(os, "sched_getaffinity", lambda _: ())(0)) > 1 else 0.0
# Seconds to poll for the next message: a sleep and a wake-up take longer than a small model.
# With a single processor, polling would block the other process.
PDEATHSIG = 1  # linux/prctl.h


class Frames:
    """An incremental parser of frames."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Add received bytes; yield the values of complete frames."""
        if not self.rest and len(data) == 4 + int.from_bytes(data[:4], "little"):
            yield marshal.loads(data[4:])  # noqa: S302 - from the gateway's own process
            return
        self.rest += data
        while len(self.rest) >= 4 and len(self.rest) >= (end := 4 + int.from_bytes(self.rest[:4], "little")):
            value = marshal.loads(self.rest[4:end])  # noqa: S302
            del self.rest[:end]
            yield value


def frame(value: Any) -> bytes:
    """Return a value as a frame."""
    data = marshal.dumps(value)
    return len(data).to_bytes(4, "little") + data


def receive_soon(connection: socket.socket) -> bytes | None:
    """Poll the socket for SPIN seconds; return the received bytes or None."""
    end = time.perf_counter() + SPIN
    while time.perf_counter() < end:
        with suppress(BlockingIOError):
            return connection.recv(BYTES, NO_WAIT)
    return None


def work(connection: socket.socket, predictor: Predictor | str, folder: str) -> None:
    """Load a model folder, report the result, and answer batches until the gateway closes the connection."""
    set_signals(signal.SIG_IGN, signal.SIG_IGN)  # the gateway answers accepted calls, then closes the connection
    end_with_parent()
    gc.freeze()  # a collection would copy every page shared with the fork server
    with suppress(ConnectionError):  # the gateway ended
        try:
            loaded = load(predictor, Path(folder))
            reference = orjson.dumps(loaded.reference) if loaded.reference else b""
            ready = ("ready", (reference, loaded.watches), warm_up(loaded))
        except (Exception, SystemExit) as error:
            reason = one_line(error) if isinstance(error, Exception) else repr(error)
            connection.sendall(frame(("failed", reason, 0.0)))
            return
        gc.collect()
        gc.freeze()  # loaded objects stay; exclude them from collections between calls
        connection.sendall(frame(ready))
        BatchServer(connection, loaded).run()


def report_check(connection: Connection, predictor: Predictor | str, folder: str) -> None:
    """Check a model folder with its sample; send the error message, or nothing on success."""
    set_signals(signal.SIG_DFL, signal.SIG_DFL)
    end_with_parent()
    try:
        check_sample(predictor, Path(folder))
        connection.send_bytes(b"")
    except StackError as error:
        connection.send_bytes(str(error).encode(errors="replace"))


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent exits, even if the model blocks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)


def warm_up(loaded: Loaded) -> float:
    """Run the model twice on its sample; return the lower latency in seconds."""
    if loaded.sample is None:
        return 0.0
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        loaded.answers([(JSON, orjson.dumps(loaded.sample["input"]), False)])
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class BatchServer:
    """Answers the batches on one connection to the gateway."""

    def __init__(self, connection: socket.socket, loaded: Loaded) -> None:
        self.connection, self.loaded = connection, loaded
        self.pairs: list[Pair] = []  # answered calls without a description

    def run(self) -> None:
        """Answer batches until the gateway closes the connection."""
        frames = Frames()
        soon = False  # whether the next batch is likely to follow immediately
        while True:
            data = receive_soon(self.connection) if soon else None
            if data is None:
                if self.pairs and not select.select([self.connection], [], [], IDLE)[0]:
                    self.describe()
                data = self.connection.recv(BYTES)
            if not data:
                return
            for another_soon, batch in frames.feed(data):
                soon = another_soon
                self.answer(batch) if batch else self.describe()

    def answer(self, batch: list[Any]) -> None:
        """Answer a batch; describe answered calls if there are many."""
        start = time.perf_counter()
        outputs, pairs = self.loaded.answers(batch)
        self.connection.sendall(frame(("answers", outputs, time.perf_counter() - start)))
        self.pairs += pairs if self.loaded.watches else []
        if len(self.pairs) >= TOGETHER:
            self.describe()

    def describe(self) -> None:
        """Send the monitoring fields of the answered calls."""
        found: list[Any] = list(self.loaded.watched(self.pairs)) if self.pairs else []
        count, self.pairs = len(self.pairs), []
        try:
            described = orjson.dumps(found, default=repr, option=JSON_OPTIONS)
        except TypeError:  # a key that JSON does not support
            described = orjson.dumps([{}] * count)
        self.connection.sendall(frame(("watched", described, 0.0)))
