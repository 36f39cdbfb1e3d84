"""The log of calls in the store, in rotated files."""

import asyncio
import logging
import os
from datetime import UTC, datetime
from typing import Any

import orjson
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free_ml_stack.deployment.answering import JSON_OPTIONS
from free_ml_stack.errors import is_external
from free_ml_stack.gateway.log.statistics import Statistics
from free_ml_stack.hub.client import error_line
from free_ml_stack.storage.changes import change, on_hub

log = logging.getLogger(__name__)
FOLDER = "logs"
FILE_BYTES = 16 << 20
FILES = 64  # kept per algorithm
CHUNK = 64  # calls serialized together
COMMIT_SECONDS = 600.0  # between writes to a repository: the Hub limits commits per hour
MAX_CHUNKS = 1000  # maximum chunks kept in memory if the store rejects writes


class CallLog:
    """Logs each call in `logs/<name>/` of the store, and counts those of the algorithm `name`.

    A local file is appended to every quarter of a second, so that memory and pauses stay small; another store gets a
    new file every half minute, a repository on the Hub every ten minutes.
    """

    def __init__(self, store: AbstractFileSystem, name: str) -> None:
        self.store, self.name = store, name
        self.appends = isinstance(getattr(store, "fs", store), LocalFileSystem)
        target = on_hub(store)
        self.one_request = target is not None  # one request for all algorithms
        commits = target is not None and target.versioned
        self.seconds = COMMIT_SECONDS if commits else 0.25 if self.appends else 30.0
        self.statistics = Statistics()
        self.pending: list[tuple[str, dict[str, Any]]] = []
        self.lines: dict[str, list[bytes]] = {}
        self.files: dict[str, tuple[str, int]] = {}
        self.writing = asyncio.Lock()
        self.failing = False  # since the last successful write

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """Queue the entry of one call of an algorithm."""
        self.pending.append((name, entry))
        if len(self.pending) == CHUNK:
            asyncio.get_running_loop().call_soon(self.process_pending)

    def process_pending(self) -> None:
        """Convert queued entries to lines, and count them."""
        pending, self.pending = self.pending, []
        for name in {each[0] for each in pending}:
            entries = [entry for owner, entry in pending if owner == name]
            lines = self.add_lines(name, entries)
            if name == self.name:
                self.statistics.counts.add(entries, [entry["latency_ms"] / 1000 for entry in entries], lines)

    def add_lines(self, name: str, entries: list[dict[str, Any]]) -> bytes:
        """Add lines for `logs/<name>/`, and return them."""
        options = JSON_OPTIONS | orjson.OPT_APPEND_NEWLINE
        lines = b"".join(orjson.dumps(entry, default=repr, option=options) for entry in entries)
        self.lines.setdefault(name, []).append(lines)
        return lines

    def report(self, name: str, insights: dict[str, float]) -> None:
        """Record the insights reported by an algorithm."""
        self.statistics.counts.insights |= insights
        self.add_lines(f"{name}/insights", [{"time": datetime.now(UTC), **insights}])

    async def write_periodically(self) -> None:
        """Write the log periodically until cancelled; a failure is reported once and does not end it."""
        waited = 0.0
        while True:
            await asyncio.sleep(min(1.0, self.seconds))
            try:
                self.process_pending()
                await asyncio.to_thread(self.statistics.publish)
                waited += min(1.0, self.seconds)
                if waited >= self.seconds:
                    waited = 0.0
                    await asyncio.shield(self.flush())  # cancelled, it would lose what it is about to write
            except Exception as error:
                self._report(error)

    async def flush(self) -> None:
        """Write queued entries; keep those that failed for the next attempt."""
        async with self.writing:
            failed = False
            self.process_pending()
            lines, self.lines = self.lines, {}
            texts = {name: b"".join(those) for name, those in lines.items()}
            for group in [list(texts)] if self.one_request and texts else [[name] for name in texts]:
                try:
                    await asyncio.to_thread(self._write, {name: texts[name] for name in group})
                except Exception as error:  # the clients of stores raise many types
                    failed = True
                    self._report(error)
                    for name in group:
                        self.lines[name] = lines[name][-MAX_CHUNKS:] + self.lines.get(name, [])
            if texts and not failed:
                self.failing = False

    def _report(self, error: Exception) -> None:
        """Report the first error since the last successful write."""
        if not self.failing:
            line = error_line(error)
            log.warning("call log not written, retrying later: %s", line, exc_info=not is_external(error))
        self.failing = True

    def _write(self, texts: dict[str, bytes]) -> None:
        """Write the lines of several algorithms: append if the store supports it, otherwise add new files together."""
        if not self.appends:
            added = {self._new(name): text for name, text in texts.items()}
            change(self.store, added, [path for name in texts for path in self._surplus(name, FILES - 1)])
            return
        for name, text in texts.items():
            path, size = self.files.get(name, ("", FILE_BYTES))
            if size + len(text) > FILE_BYTES:
                path, size = self._new(name), 0
                self.store.makedirs(f"{FOLDER}/{name}", exist_ok=True)
            with self.store.open(path, "ab") as file:
                file.write(text)
            self.files[name] = path, size + len(text)
            if not size:
                change(self.store, {}, self._surplus(name, FILES))

    def _new(self, name: str) -> str:
        return f"{FOLDER}/{name}/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl"

    def _surplus(self, name: str, kept: int) -> list[str]:
        """Return the oldest log files, beyond those to keep."""
        try:
            return sorted(self.store.glob(f"{FOLDER}/{name}/*.jsonl"))[:-kept]
        except FileNotFoundError:  # the Hub has no empty folders
            return []
