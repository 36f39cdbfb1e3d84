"""The log of calls in the store, in files that are rotated."""

import asyncio
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from .statistics import Statistics
from .wire import JSON_OPTIONS

if TYPE_CHECKING:
    from .models import Model

log = logging.getLogger(__name__)
FOLDER = "logs"
FILE_BYTES = 16 << 20
FILES = 64  # kept of each algorithm
CHUNK = 64  # calls that are written down together
Summary = Callable[[Any], dict[str, float]]


class CallLog:
    """Writes each call down in `logs/<name>/` of the store, and counts it.

    A local file is appended to within the second; another store gets a new file every half minute.
    """

    def __init__(self, store: AbstractFileSystem, summary: Summary | None, seconds: float = 0.0) -> None:
        self.store, self.summary = store, summary
        self.appends = isinstance(getattr(store, "fs", store), LocalFileSystem)
        self.seconds = seconds or (1.0 if self.appends else 30.0)
        self.statistics = Statistics()
        self.pending: list[tuple[datetime, Model, Any, Any, float, str]] = []
        self.lines: dict[str, list[bytes]] = {}
        self.files: dict[str, tuple[str, int]] = {}
        self.writing = asyncio.Lock()

    def record(self, model: "Model", payload: Any, answer: Any, seconds: float, error: str = "") -> None:
        """Note one call; it is written down soon."""
        self.pending.append((datetime.now(UTC), model, payload, answer, seconds, error))
        if len(self.pending) >= CHUNK:
            self.digest()

    def digest(self) -> None:
        """Turn the calls that have been noted into lines, and count them."""
        pending, self.pending = self.pending, []
        for at, model, payload, answer, seconds, error in pending:
            entry: dict[str, Any] = {
                "time": at,
                "version": model.build.version or model.build.hash,
                "latency_ms": round(seconds * 1000, 3),
            }
            if error:
                entry["error"] = error
            else:
                entry |= self._answered(payload, answer)
            self.write_down(model.algorithm, entry)
            self.statistics.counts.add(entry, seconds)

    def _answered(self, payload: Any, answer: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if isinstance(answer, dict):
            found = {key: answer[key] for key in ("label", "confidence") if key in answer}
        if self.summary:
            try:
                found["summary"] = self.summary(payload)
            except Exception as error:
                log.debug("an input could not be summarised: %s", error)
        return found

    def write_down(self, name: str, entry: dict[str, Any]) -> None:
        """Put a line into the file of `logs/<name>/`."""
        try:
            line = orjson.dumps(entry, option=JSON_OPTIONS)
        except TypeError as error:
            line = orjson.dumps({"time": entry["time"], "version": entry.get("version"), "error": str(error)})
        self.lines.setdefault(name, []).append(line)

    def report(self, name: str, insights: dict[str, float]) -> None:
        """Note what an algorithm says of itself."""
        self.statistics.counts.insights |= insights
        self.write_down(f"{name}/insights", {"time": datetime.now(UTC), **insights})

    async def watch(self) -> None:
        """Write down for ever."""
        waited = 0.0
        while True:
            await asyncio.sleep(min(1.0, self.seconds))
            self.digest()
            await asyncio.to_thread(self.statistics.publish)
            waited += 1.0
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
                    await asyncio.to_thread(self._write, name, b"\n".join([*those, b""]))
                except OSError as error:
                    log.warning("calls could not be logged yet: %s", error)
                    self.lines[name] = those[-FILE_BYTES // 256 :] + self.lines.get(name, [])

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
