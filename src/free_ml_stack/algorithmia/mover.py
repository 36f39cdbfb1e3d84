"""Transfer of files to and from an Algorithmia installation: atomic, verified, small files in bundles."""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any
from weakref import proxy

from fsspec import AbstractFileSystem
from urllib3 import BaseHTTPResponse

from free_ml_stack.algorithmia import bundle
from free_ml_stack.algorithmia.connection import Connection, read_json
from free_ml_stack.algorithmia.streams import WANT_DIGEST, ChecksumError, Download, Upload
from free_ml_stack.storage.atomic import growing, write_all
from free_ml_stack.storage.checksums import read_digest
from free_ml_stack.storage.parallel import InFlight

AT_ONCE = 8  # parallel requests
TRIES = 3  # attempts after a checksum mismatch


class Batch:
    """The files of one `put` or `get`: small ones are collected into bundles, others are transferred individually."""

    def __init__(self, calls: InFlight, move: Callable[..., None], sizes: dict[str, int], scratch: Path | None) -> None:
        self.calls, self.move, self.sizes, self.scratch = calls, move, sizes, scratch
        self.waiting: list[Any] = []
        self.size = 0

    def add(self, size: int | None, alone: Callable[..., None], *item: Any) -> None:
        """Transfer a file, now or with the next bundle; `size` is None if unknown."""
        if size is None or size > bundle.SMALL:
            self.calls.submit(alone, *item)
            return
        self.waiting.append(item)
        self.size += size
        if len(self.waiting) == bundle.COUNT or self.size > bundle.SIZE:
            self.flush()

    def flush(self) -> None:
        """Transfer the collected files."""
        if self.waiting:
            self.calls.submit(self.move, self.waiting)
        self.waiting, self.size = [], 0


class Mover:
    """Transfers the files of one file system."""

    def __init__(self, fs: AbstractFileSystem, connection: Connection) -> None:
        self.fs: AbstractFileSystem = proxy(fs)  # a reference cycle would keep sockets open until garbage collection
        self.connection = connection
        self.thread = local()

    @contextmanager
    def batched(
        self, move: Callable[..., None], sizes: dict[str, int] | None = None, scratch: Path | None = None
    ) -> Iterator[None]:
        """Transfer this thread's files together for a block; `move` transfers a bundle of small ones."""
        with InFlight(AT_ONCE) as calls:
            self.thread.batch = batch = Batch(calls, move, sizes or {}, scratch)
            try:
                yield
                batch.flush()
            finally:
                self.thread.batch = None

    def current_batch(self) -> Batch | None:
        """Return the batch of this thread's current block."""
        batch: Batch | None = getattr(self.thread, "batch", None)
        return batch

    def put(self, source: Path, target: str, callback: Any, exclusive: bool = False) -> None:
        """Store a local file; create a folder for a folder."""
        if source.is_dir():
            self.fs.makedirs(target, exist_ok=True)
            return
        size = source.stat().st_size
        callback.set_size(size)
        upload = Upload(lambda: source.open("rb", buffering=0), size, callback.relative_update)
        self.send(target, upload, exclusive=exclusive)

    def send(self, path: str, upload: Upload, extra: dict[str, str] | None = None, exclusive: bool = False) -> None:
        """Store a file; retry until the server's checksum matches, or its size if the server sends no checksum."""
        headers = {**WANT_DIGEST, **(extra or {})}
        if exclusive:
            self.raise_if_exists(path)
            headers["If-None-Match"] = "*"
        for _ in range(TRIES):
            answer = self._send_once(path, upload, headers)
            read_json(answer)
            kind, digest = read_digest(answer.headers.get("Repr-Digest", ""))
            if digest == upload.total.digest() or (not kind and self._has_size(path, len(upload))):
                return
        raise ChecksumError(errno.EIO, "checksum mismatch after upload", path)

    def _send_once(self, path: str, upload: Upload, headers: dict[str, str]) -> BaseHTTPResponse:
        try:
            return self.connection.send("PUT", path, headers, body=upload.begin)
        except FileNotFoundError:  # the original service does not create the collection
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            return self.connection.send("PUT", path, headers, body=upload.begin)
        finally:
            upload.file.close()

    def _has_size(self, path: str, size: int) -> bool:
        return self.fs.info(path)["size"] in (size, None)

    def raise_if_exists(self, path: str) -> None:
        """Raise FileExistsError if the path exists."""
        if self.fs.exists(path):
            raise FileExistsError(errno.EEXIST, "exists", path)

    def put_bundle(self, items: list[tuple[Path, str, Any]]) -> None:
        """Store small local files in one request."""
        body = bundle.pack((target, source.read_bytes()) for source, target, _ in items)
        stored = None
        try:
            answer = self.connection.send("POST", "", {"Content-Type": bundle.TYPE}, body=lambda: body, repeatable=True)
            stored = read_json(answer)["result"]["stored"]
        except ConnectionError:
            raise
        except (OSError, KeyError, TypeError):
            stored = None  # the original service does not support bundles
        for source, target, callback in items:
            if stored == len(items):
                callback.relative_update(source.stat().st_size)
            else:
                self.put(source, target, callback)

    def get(self, source: str, target: Path, callback: Any, scratch: Path | None = None) -> None:
        """Download a file atomically; create a folder for a folder."""
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
        """Download small files in one request."""
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
            found = {}  # the original service does not support bundles
        for source, target, callback, scratch in items:
            if source not in found:
                self.get(source, target, callback, scratch)
                continue
            with growing(target, scratch) as file:
                write_all(file, found[source])
            callback.relative_update(len(found[source]))
