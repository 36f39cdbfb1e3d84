"""Atomic writes: after any failure a file has its old or its new content."""

import hashlib
import io
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Content = bytes | Iterable[memoryview | bytes]
SHARING = (5, 32)  # Windows' errors for a file that is open in another process
CLOSE_SECONDS = 2.0  # seconds to wait until it is closed
CHUNK = 1 << 20  # bytes
SYNC_BYTES = 1 << 24  # bytes written before an fsync is started in the background


def replace(path: Path, content: bytes, private: bool = False) -> None:
    """Replace the content of a file atomically, also across a crash; only its owner can read a `private` file."""
    part = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_native_id()}")
    try:
        if private:
            part.touch(0o600)
        write_synced(part, content)
        _rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)  # of a full disk
        raise
    fsync_directory(path.parent)


def fsync(number: int) -> None:
    """Flush an open file to disk; on macOS fsync alone does not flush the drive's cache."""
    if fcntl is not None and hasattr(fcntl, "F_FULLFSYNC"):
        with suppress(OSError):  # not supported by some network file systems
            fcntl.fcntl(number, fcntl.F_FULLFSYNC)
            return
    os.fsync(number)


def fsync_directory(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows needs no flush of folders
    opened = os.open(folder, os.O_DIRECTORY)
    try:
        fsync(opened)
    finally:
        os.close(opened)


def write_synced(path: Path, content: Content) -> str:
    """Write a file and flush it to disk; return its SHA-256 checksum."""
    total = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in [content] if isinstance(content, bytes) else content:
            total.update(piece)
            write_all(file, piece)
        fsync(file.fileno())
    return total.hexdigest()


def write_all(file: Any, data: bytes | memoryview) -> None:
    """Write all bytes to an open file; a raw file may accept fewer bytes per call."""
    view = memoryview(data)
    while len(view):
        count = file.write(view)
        view = view[len(view) if count is None else count :]


@contextmanager
def growing(target: Path, scratch: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a file in `scratch`, or beside `target`, that is renamed to `target` at the end of the block."""
    part = (scratch or target.parent) / f".{uuid.uuid4().hex}.part"
    try:
        with _created(part) as file:
            yield file
        _rename(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _created(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path, "xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return io.FileIO(path, "xb")


def _rename(path: Path, target: Path) -> None:
    end = time.monotonic() + CLOSE_SECONDS
    while True:
        try:
            path.replace(target)
            return
        except FileNotFoundError:
            if not path.exists():
                raise
            target.parent.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in SHARING or time.monotonic() > end:
                raise
            time.sleep(0.01)


def open_whole(path: Path, scratch: Path, **options: bool) -> "WholeFile":
    """Open a temporary file in `scratch`, on the same disk, that is renamed to `path` on close.

    `options` are those of WholeFile. Raises FileExistsError if `exclusive` and `path` exists.
    """
    if options.get("exclusive") and path.exists():
        raise FileExistsError(f"{path} exists")
    part = scratch / uuid.uuid4().hex
    return WholeFile(_created(part), part, path, **options)


class WholeFile(io.BufferedWriter):
    """A temporary file that is renamed to `path` on close; missing folders are created.

    After an exception, `discard()` or the exit of the process `path` is unchanged. Without `autocommit` the file is
    renamed by `commit`, which fsspec's transactions call.
    """

    def __init__(
        self, raw: io.FileIO, growing: Path, path: Path, exclusive: bool = False, autocommit: bool = True
    ) -> None:
        super().__init__(raw, CHUNK)
        self.growing, self.path = growing, path
        self.exclusive, self.autocommit = exclusive, autocommit
        self.raised = sys.exc_info()[1]
        self.unsynced = 0
        self.syncing: Thread | None = None
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write to the buffer."""
        count = super().write(data)
        self._sync_ahead(count)
        return count

    def write_through(self, data: bytes | memoryview) -> None:
        """Write without buffering; do not mix with `write`."""
        write_all(self.raw, data)
        self._sync_ahead(len(data))

    def _sync_ahead(self, count: int) -> None:
        """Flush to disk in the background during the writes, so that `close` waits for the rest only."""
        self.unsynced += count
        if self.unsynced >= SYNC_BYTES and not (self.syncing and self.syncing.is_alive()):
            self.unsynced = 0
            self.syncing = Thread(target=self._sync)
            self.syncing.start()

    def _sync(self) -> None:
        try:
            fsync(self.fileno())
        except OSError as error:  # the kernel reports it only once; `finish` raises it
            self.failure = error

    def close(self) -> None:
        """Commit the file, or discard it if an exception was raised since it was opened."""
        if self.closed:
            return
        if sys.exc_info()[1] not in (None, self.raised):
            self.discard()
            return
        try:
            self.finish()
            if self.autocommit:
                self.commit()
        except BaseException:
            self.discard()
            raise

    def finish(self) -> None:
        """Flush the content to disk before the rename, so that a power failure leaves the old or the new file."""
        self.flush()
        self._wait()
        self._sync()
        if self.failure:
            raise self.failure
        super().close()

    def _wait(self) -> None:
        if self.syncing:
            self.syncing.join()

    def commit(self) -> None:
        """Rename the file to `path`. Raises FileExistsError if `exclusive` and `path` exists by now."""
        if not self.exclusive:
            _rename(self.growing, self.path)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.hardlink_to(self.growing)
        self.growing.unlink()

    def discard(self) -> None:
        """Delete the temporary file; `path` is unchanged."""
        self._wait()
        self.raw.close()
        self.growing.unlink(missing_ok=True)

    def __del__(self) -> None:
        self.discard()
