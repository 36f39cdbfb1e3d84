"""The process that runs a model: it answers batches of calls, and describes them for the log when there is time.

The gateway is in another process, so that no input, however long it takes, holds up anything but its own answer.
Frames go both ways over a socket: 4 bytes of length, then what `marshal` makes of plain values.
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
from free_ml_stack.project.science import Predictor

BYTES = 1 << 16  # read at once
TOGETHER = 64  # answered calls that are described together
IDLE = 0.002  # seconds without a call after which there is time for that
NO_WAIT = getattr(socket, "MSG_DONTWAIT", 0)  # Windows has none
SPIN = 3e-4 if NO_WAIT and len(getattr(os, "sched_getaffinity", lambda _: ())(0)) > 1 else 0.0
# Seconds in which the next message is polled for: to sleep and be woken takes longer than a small model.
# With one processor, polling would keep the other process from it.
PDEATHSIG = 1  # linux/prctl.h


class Frames:
    """The values in a stream of bytes."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take the next bytes, and give the values that are whole with them."""
        if not self.rest and len(data) == 4 + int.from_bytes(data[:4], "little"):
            yield marshal.loads(data[4:])  # noqa: S302 - from a process of our own
            return
        self.rest += data
        while len(self.rest) >= 4 and len(self.rest) >= (end := 4 + int.from_bytes(self.rest[:4], "little")):
            value = marshal.loads(self.rest[4:end])  # noqa: S302
            del self.rest[:end]
            yield value


def frame(value: Any) -> bytes:
    """A value as bytes that `Frames` takes."""
    data = marshal.dumps(value)
    return len(data).to_bytes(4, "little") + data


def receive_soon(connection: socket.socket) -> bytes | None:
    """What comes within a fraction of a millisecond, or None."""
    end = time.perf_counter() + SPIN
    while time.perf_counter() < end:
        with suppress(BlockingIOError):
            return connection.recv(BYTES, NO_WAIT)
    return None


def work(connection: socket.socket, predictor: Predictor | str, folder: str) -> None:
    """Load a model folder, say whether that went well, and answer until the other side has gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the gateway answers what it has accepted, then closes the connection
    end_with_parent()
    try:
        loaded = load(predictor, Path(folder))
        reference = orjson.dumps(loaded.reference) if loaded.reference else b""
        ready = ("ready", (reference, loaded.watches), warm_up(loaded))
    except (Exception, SystemExit) as error:
        connection.sendall(frame(("failed", one_line(error) if isinstance(error, Exception) else repr(error), 0.0)))
        return
    gc.collect()
    gc.freeze()  # what is loaded stays; the collector need not look at it between calls
    connection.sendall(frame(ready))
    try:
        Server(connection, loaded).run()
    except ConnectionError:
        return


def report_check(connection: Connection, predictor: Predictor | str, folder: str) -> None:
    """Send what is wrong with a model folder, nothing where it answers its sample as recorded."""
    end_with_parent()
    try:
        check_sample(predictor, Path(folder))
        connection.send_bytes(b"")
    except StackError as error:
        connection.send_bytes(str(error).encode(errors="replace"))


def end_with_parent() -> None:
    """Let the system end this process with the one that started it, even while the model holds everything up."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)


def warm_up(loaded: Loaded) -> float:
    """Answer the sample twice for nobody; the seconds that it takes."""
    if loaded.sample is None:
        return 0.0
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        loaded.answers([(JSON, orjson.dumps(loaded.sample["input"]), False)])
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Server:
    """One connection to the gateway."""

    def __init__(self, connection: socket.socket, loaded: Loaded) -> None:
        self.connection, self.loaded = connection, loaded
        self.pairs: list[Pair] = []  # answered, and not described yet

    def run(self) -> None:
        """Answer until the other side closes the connection."""
        frames = Frames()
        soon = False  # whether the next batch is likely to come at once
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
        """Answer a batch, and describe those before it where there are many."""
        start = time.perf_counter()
        outputs, pairs = self.loaded.answers(batch)
        self.connection.sendall(frame(("answers", outputs, time.perf_counter() - start)))
        self.pairs += pairs if self.loaded.watches else []
        if len(self.pairs) >= TOGETHER:
            self.describe()

    def describe(self) -> None:
        """Send what monitoring notes of the answered calls."""
        found: list[Any] = list(self.loaded.watched(self.pairs)) if self.pairs else []
        count, self.pairs = len(self.pairs), []
        try:
            described = orjson.dumps(found, default=repr, option=JSON_OPTIONS)
        except TypeError:  # a key that JSON does not allow
            described = orjson.dumps([{}] * count)
        self.connection.sendall(frame(("watched", described, 0.0)))
