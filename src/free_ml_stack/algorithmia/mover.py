"""Files on their way to and from an Algorithmia installation: whole, checked, small ones many at once."""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any, Protocol
from weakref import proxy

from urllib3 import BaseHTTPResponse

from free_ml_stack.algorithmia import bundle
from free_ml_stack.algorithmia.connection import Connection, read_json
from free_ml_stack.algorithmia.streams import WISH, ChecksumError, Download, Upload
from free_ml_stack.storage.atomic import growing, write_all
from free_ml_stack.storage.checksums import read_digest
from free_ml_stack.storage.parallel import InFlight

AT_ONCE = 8  # calls in flight when several files are moved
TRIES = 3  # for bytes that arrive with a wrong checksum


class Files(Protocol):
    """What a mover needs of its file system."""

    connection: Connection

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder and those above it."""

    def info(self, path: str) -> dict[str, Any]:
        """Tell type and size of a path."""

    def exists(self, path: str) -> bool:
        """Tell whether a path is there."""


class Batch:
    """The files of one call: small ones wait until they fill a bundle, others go on their own."""

    def __init__(self, calls: InFlight, move: Callable[..., None], sizes: dict[str, int], scratch: Path | None) -> None:
        self.calls, self.move, self.sizes, self.scratch = calls, move, sizes, scratch
        self.waiting: list[Any] = []
        self.size = 0

    def add(self, size: int | None, alone: Callable[..., None], *item: Any) -> None:
        """Move a file, now or with the next bundle; `size` is None where it is not known."""
        if size is None or size > bundle.SMALL:
            self.calls.submit(alone, *item)
            return
        self.waiting.append(item)
        self.size += size
        if len(self.waiting) == bundle.COUNT or self.size > bundle.SIZE:
            self.flush()

    def flush(self) -> None:
        """Send off what waits."""
        if self.waiting:
            self.calls.submit(self.move, self.waiting)
        self.waiting, self.size = [], 0


class Mover:
    """Moves the files of one file system."""

    def __init__(self, fs: Files) -> None:
        self.fs: Files = proxy(fs)  # which holds this: a circle would keep sockets open until the next collection
        self.connection = fs.connection
        self.thread = local()

    @contextmanager
    def batched(
        self, move: Callable[..., None], sizes: dict[str, int] | None = None, scratch: Path | None = None
    ) -> Iterator[None]:
        """A block in which this thread's files are moved together; `move` takes a bundle of small ones."""
        with InFlight(AT_ONCE) as calls:
            self.thread.batch = batch = Batch(calls, move, sizes or {}, scratch)
            try:
                yield
                batch.flush()
            finally:
                self.thread.batch = None

    def current_batch(self) -> Batch | None:
        """The block that this thread is in."""
        batch: Batch | None = getattr(self.thread, "batch", None)
        return batch

    def put(self, source: Path, target: str, callback: Any, exclusive: bool = False) -> None:
        """Store a local file, or make a folder for a folder."""
        if source.is_dir():
            self.fs.makedirs(target, exist_ok=True)
            return
        size = source.stat().st_size
        callback.set_size(size)
        upload = Upload(lambda: source.open("rb", buffering=0), size, callback.relative_update)
        self.send(target, upload, exclusive=exclusive)

    def send(self, path: str, upload: Upload, told: dict[str, str] | None = None, exclusive: bool = False) -> None:
        """Store a file: until its checksum is right on the other side, or its size where that is all it tells."""
        headers = {**WISH, **(told or {})}
        if exclusive:
            self.refuse_taken(path)
            headers["If-None-Match"] = "*"
        for _ in range(TRIES):
            answer = self._send_once(path, upload, headers)
            read_json(answer)
            kind, digest = read_digest(answer.headers.get("Repr-Digest", ""))
            if digest == upload.total.digest() or (not kind and self._has_size(path, len(upload))):
                return
        raise ChecksumError(errno.EIO, "the bytes that were sent arrive changed", path)

    def _send_once(self, path: str, upload: Upload, headers: dict[str, str]) -> BaseHTTPResponse:
        try:
            return self.connection.send("PUT", path, headers, body=upload.begin)
        except FileNotFoundError:  # the original service wants the collection made first
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            return self.connection.send("PUT", path, headers, body=upload.begin)
        finally:
            upload.file.close()

    def _has_size(self, path: str, size: int) -> bool:
        return self.fs.info(path)["size"] in (size, None)

    def refuse_taken(self, path: str) -> None:
        """Raise FileExistsError where there is something."""
        if self.fs.exists(path):
            raise FileExistsError(errno.EEXIST, "exists", path)

    def put_bundle(self, items: list[tuple[Path, str, Any]]) -> None:
        """Store small local files in one call."""
        body = bundle.pack((target, source.read_bytes()) for source, target, _ in items)
        stored = None
        try:
            answer = self.connection.send("POST", "", {"Content-Type": bundle.TYPE}, body=lambda: body, repeatable=True)
            stored = read_json(answer)["result"]["stored"]
        except ConnectionError:
            raise
        except (OSError, KeyError, TypeError):
            stored = None  # the original service has no bundles
        for source, target, callback in items:
            if stored == len(items):
                callback.relative_update(source.stat().st_size)
            else:
                self.put(source, target, callback)

    def get(self, source: str, target: Path, callback: Any, scratch: Path | None = None) -> None:
        """Fetch a file, which appears at `target` whole, or make a folder for a folder."""
        for attempt in range(1, TRIES + 1):
            try:
                with Download(self.connection, source) as download, growing(target, scratch) as file:
                    download.copy_to(file, callback)
                return
            except IsADirectoryError:
                target.mkdir(parents=True, exist_ok=True)
                return
            except ChecksumError:
                if attempt == TRIES:
                    raise

    def get_bundle(self, items: list[tuple[str, Path, Any, Path | None]]) -> None:
        """Fetch small files in one call."""
        wanted = json.dumps({"files": [source for source, *_ in items]}).encode()
        headers = {"Content-Type": "application/json"}
        found: dict[str, memoryview] = {}
        try:
            answer = self.connection.send("POST", "", headers, body=lambda: wanted, repeatable=True)
            if answer.headers.get("Content-Type") == bundle.TYPE:
                found = dict(bundle.unpack(answer.data))
        except ConnectionError:
            raise
        except (OSError, ValueError):
            found = {}  # the original service has no bundles
        for source, target, callback, scratch in items:
            if source not in found:
                self.get(source, target, callback, scratch)
                continue
            with growing(target, scratch) as file:
                write_all(file, found[source])
            callback.relative_update(len(found[source]))
