"""Files that have their old content or their new one, whatever happens."""

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
SHARING = (5, 32)  # Windows' errors for a file that another process has open
OPEN_ELSEWHERE = 2.0  # seconds in which that one may close it
CHUNK = 1 << 20  # bytes
SYNC = 1 << 24  # bytes that are written before the disk is told to begin with them


def replace(path: Path, content: bytes) -> None:
    """Give a file a new content: after a crash it has the old one or the new one."""
    part = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_native_id()}")
    write_synced(part, content)
    _renamed(part, path)
    fsync_directory(path.parent)


def fsync(number: int) -> None:
    """Bring an open file to the disk; macOS leaves it in the drive's memory unless it is told otherwise."""
    if fcntl is not None and hasattr(fcntl, "F_FULLFSYNC"):
        with suppress(OSError):  # a disk on the network that knows no such thing
            fcntl.fcntl(number, fcntl.F_FULLFSYNC)
            return
    os.fsync(number)


def fsync_directory(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows keeps names of folders safe by itself
    opened = os.open(folder, os.O_DIRECTORY)
    try:
        fsync(opened)
    finally:
        os.close(opened)


def write_synced(path: Path, content: Content) -> str:
    """Write a file and sync it; returns its sum."""
    total = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in [content] if isinstance(content, bytes) else content:
            total.update(piece)
            write_all(file, piece)
        fsync(file.fileno())
    return total.hexdigest()


def write_all(file: Any, data: bytes | memoryview) -> None:
    """Write to an open file; a raw one may take less at a time, down to where its disk is full."""
    view = memoryview(data)
    while len(view):
        count = file.write(view)
        view = view[len(view) if count is None else count :]


@contextmanager
def growing(target: Path, scratch: Path | None = None) -> Iterator[BinaryIO]:
    """A file in `scratch`, or beside `target`, that takes that name at the end of the block."""
    part = (scratch or target.parent) / f".{uuid.uuid4().hex}.part"
    try:
        with _created(part) as file:
            yield file
        _renamed(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _created(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path, "xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return io.FileIO(path, "xb")


def _renamed(path: Path, target: Path) -> None:
    end = time.monotonic() + OPEN_ELSEWHERE
    while True:
        try:
            path.replace(target)
            return
        except FileNotFoundError:
            if target.parent.exists():
                raise
            target.parent.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in SHARING or time.monotonic() > end:
                raise
            time.sleep(0.01)


def open_whole(path: Path, scratch: Path, **options: bool) -> "WholeFile":
    """Start a file that will be `path`, in the folder `scratch` on the same disk.

    `options` are those of WholeFile. Raises FileExistsError when `exclusive` and the name is taken.
    """
    if options.get("exclusive") and path.exists():
        raise FileExistsError(f"{path} exists")
    part = scratch / uuid.uuid4().hex
    return WholeFile(_created(part), part, path, **options)


class WholeFile(io.BufferedWriter):
    """A file in the making that takes the name `path` when it is closed, and makes the folders to it.

    An exception, `discard()` or the end of the process before that leaves `path` as it was. Without `autocommit` it
    takes the name when `commit` is called, as fsspec's transactions do.
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
        """Write without a copy in between; not to be mixed with `write`."""
        write_all(self.raw, data)
        self._sync_ahead(len(data))

    def _sync_ahead(self, count: int) -> None:
        """Have the disk work while the rest is still coming, so that the end need not wait for all of it."""
        self.unsynced += count
        if self.unsynced >= SYNC and not (self.syncing and self.syncing.is_alive()):
            self.unsynced = 0
            self.syncing = Thread(target=self._sync)
            self.syncing.start()

    def _sync(self) -> None:
        try:
            fsync(self.fileno())
        except OSError as error:  # the kernel tells it once, so it is kept for `finish`
            self.failure = error

    def close(self) -> None:
        """Take the name, unless an exception is on its way out since the file was opened."""
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
        """Bring the bytes to the disk: with that even a power cut leaves the old file or the new one."""
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
        """Take the name. Raises FileExistsError when `exclusive` and it has been taken meanwhile."""
        if not self.exclusive:
            _renamed(self.growing, self.path)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.hardlink_to(self.growing)
        self.growing.unlink()

    def discard(self) -> None:
        """Drop what was written; `path` stays as it was."""
        self._wait()
        self.raw.close()
        self.growing.unlink(missing_ok=True)

    def __del__(self) -> None:
        self.discard()
