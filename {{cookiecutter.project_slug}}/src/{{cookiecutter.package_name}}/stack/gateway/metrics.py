"""The log of calls, and what is counted of them."""

import asyncio
import os
from collections import deque
from datetime import UTC, datetime
from typing import Any

import orjson
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from .wire import JSON_OPTIONS

FOLDER = "logs"
FILE_BYTES = 16 << 20
CHUNK = 64  # calls that are written down together


class CallLog:
    """Writes each call down in `logs/<name>/` of the store, in files that are kept below 16 MiB."""

    def __init__(self, store: AbstractFileSystem, summary: Any = None, seconds: float = 1.0) -> None:
        self.store, self.summary, self.seconds = store, summary, seconds
        self.pending: list[tuple[Any, ...]] = []
        self.recent: deque[dict[str, Any]] = deque(maxlen=2000)
        self.lines: dict[str, list[bytes]] = {}
        self.files: dict[str, tuple[str, int]] = {}
        self.appends = isinstance(store.fs if isinstance(store, DirFileSystem) else store, LocalFileSystem)

    def record(self, model: Any, payload: Any, answer: Any, seconds: float, error: str = "") -> None:
        """Note one call; it is written down within the second."""
        self.pending.append((datetime.now(UTC), model, payload, answer, seconds, error))
        if len(self.pending) >= CHUNK:
            self._digest()

    def _digest(self) -> None:
        pending, self.pending = self.pending, []
        for at, model, payload, answer, seconds, error in pending:
            entry = {"time": at, "version": model.build.version, "latency_ms": round(seconds * 1000, 3)}
            if error:
                entry["error"] = error
            elif isinstance(answer, dict):
                entry |= {key: answer[key] for key in ("label", "confidence") if key in answer}
            if self.summary and not error:
                entry["summary"] = self.summary(payload)
            self.recent.append(entry)
            self.lines.setdefault(model.algorithm, []).append(orjson.dumps(entry, option=JSON_OPTIONS))

    async def watch(self) -> None:
        """Write down for ever."""
        while True:
            await asyncio.sleep(self.seconds)
            await self.flush()

    async def flush(self) -> None:
        """Write down what has been noted."""
        self._digest()
        lines, self.lines = self.lines, {}
        for name, those in lines.items():
            await asyncio.to_thread(self._write, name, b"\n".join([*those, b""]))

    def _write(self, name: str, text: bytes) -> None:
        path, size = self.files.get(name, ("", FILE_BYTES))
        if size + len(text) > FILE_BYTES or not self.appends:
            path, size = f"{FOLDER}/{name}/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl", 0
            self.store.makedirs(f"{FOLDER}/{name}", exist_ok=True)
        with self.store.open(path, "ab" if self.appends else "wb") as file:
            file.write(text)
        self.files[name] = path, size + len(text)
