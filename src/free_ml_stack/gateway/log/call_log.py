"""The log of calls in the store, in files that are rotated."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free_ml_stack.deployment.versions import Build
from free_ml_stack.gateway.http import JSON_OPTIONS
from free_ml_stack.gateway.log.statistics import Statistics
from free_ml_stack.project.science import Predictor


class Model(Protocol):
    """What the log tells of a model."""

    algorithm: str
    build: Build
    model: Any


log = logging.getLogger(__name__)
FOLDER = "logs"
FILE_BYTES = 16 << 20
FILES = 64  # kept of each algorithm
CHUNK = 64  # calls that are written down together
KEPT = 1000  # chunks, while the store takes none
Watch = Callable[[Any, Any, Any], Mapping[str, Any]]
WatchBatch = Callable[[list[Any], list[Any], Any], list[Mapping[str, Any]]]
Call = tuple[datetime, "Model", Any, Any, float, str]


class CallLog:
    """Writes each call down in `logs/<name>/` of the store, and counts those of the algorithm `name`.

    A local file is appended to every quarter of a second, so that memory and pauses stay small; another store gets a
    new file every half minute.
    """

    def __init__(self, store: AbstractFileSystem, name: str, predictor: Predictor, seconds: float = 0.0) -> None:
        self.store, self.name = store, name
        self.watch: Watch | None = getattr(predictor, "watch", None)
        self.watch_batch: WatchBatch | None = getattr(predictor, "watch_batch", None)
        self.appends = isinstance(getattr(store, "fs", store), LocalFileSystem)
        self.seconds = seconds or (0.25 if self.appends else 30.0)
        self.statistics = Statistics()
        self.pending: list[Call] = []
        self.lines: dict[str, list[bytes]] = {}
        self.files: dict[str, tuple[str, int]] = {}
        self.writing = asyncio.Lock()

    def record(self, model: "Model", payload: Any, answer: Any, seconds: float, error: str = "") -> None:
        """Note one call; it is written down soon, and not before it is answered."""
        self.pending.append((datetime.now(UTC), model, payload, answer, seconds, error))
        if len(self.pending) == CHUNK:
            asyncio.get_running_loop().call_soon(self.digest)

    def digest(self) -> None:
        """Turn the calls that have been noted into lines, and count them."""
        pending, self.pending = self.pending, []
        entries = []
        for at, model, _, _, seconds, error in pending:
            version = model.build.version or model.build.hash
            entry = {"time": at, "version": version, "latency_ms": round(seconds * 1000, 3)}
            if error:
                entry["error"] = error
            entries.append(entry)
        for model in {id(call[1]): call[1] for call in pending}.values():
            answered = [place for place, call in enumerate(pending) if call[1] is model and not call[-1]]
            watched = self._watched(model, [pending[place] for place in answered])
            for place, found in zip(answered, watched, strict=False):
                entries[place]["watched"] = found
        for name in {call[1].algorithm for call in pending}:
            mine = [place for place, call in enumerate(pending) if call[1].algorithm == name]
            lines = self.write_down(name, [entries[place] for place in mine])
            if name == self.name:
                self.statistics.counts.add(
                    [entries[place] for place in mine], [pending[place][4] for place in mine], lines
                )

    def _watched(self, model: Model, calls: list[Call]) -> list[Mapping[str, Any]]:
        if self.watch_batch and calls:
            with suppress(Exception):  # of calls that do not go together: each by itself
                return self.watch_batch([call[2] for call in calls], [call[3] for call in calls], model.model)
        return [self._watched_call(model, call) for call in calls] if self.watch else []

    def _watched_call(self, model: Model, call: Call) -> Mapping[str, Any]:
        try:
            return self.watch(call[2], call[3], model.model) if self.watch else {}
        except Exception as error:
            log.debug("a call could not be described: %s", error)
            return {}

    def write_down(self, name: str, entries: list[dict[str, Any]]) -> bytes:
        """Put lines into the file of `logs/<name>/`, and return them."""
        options = JSON_OPTIONS | orjson.OPT_APPEND_NEWLINE
        lines = b"".join(orjson.dumps(entry, default=repr, option=options) for entry in entries)
        self.lines.setdefault(name, []).append(lines)
        return lines

    def report(self, name: str, insights: dict[str, float]) -> None:
        """Note what an algorithm says of itself."""
        self.statistics.counts.insights |= insights
        self.write_down(f"{name}/insights", [{"time": datetime.now(UTC), **insights}])

    async def keep_writing(self) -> None:
        """Write the log until cancelled."""
        waited = 0.0
        while True:
            await asyncio.sleep(min(1.0, self.seconds))
            self.digest()
            await asyncio.to_thread(self.statistics.publish)
            waited += min(1.0, self.seconds)
            if waited >= self.seconds:
                waited = 0.0
                await self.flush()

    async def flush(self) -> None:
        """Write down what has been noted; what a store refuses is kept for the next time."""
        async with self.writing:
            self.digest()
            lines, self.lines = self.lines, {}
            for name, those in lines.items():
                try:
                    await asyncio.to_thread(self._write, name, b"".join(those))
                except OSError as error:
                    log.warning("calls could not be logged yet: %s", error)
                    self.lines[name] = those[-KEPT:] + self.lines.get(name, [])

    def _write(self, name: str, text: bytes) -> None:
        path, size = self.files.get(name, ("", FILE_BYTES))
        if size + len(text) > FILE_BYTES or not self.appends:
            path, size = f"{FOLDER}/{name}/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl", 0
            self.store.makedirs(f"{FOLDER}/{name}", exist_ok=True)
        with self.store.open(path, "ab" if self.appends else "wb") as file:
            file.write(text)
        self.files[name] = path, size + len(text)
        if not size:
            self._rotate(name)

    def _rotate(self, name: str) -> None:
        files = sorted(self.store.glob(f"{FOLDER}/{name}/*.jsonl"))
        for path in files[:-FILES]:
            self.store.rm_file(path)
