"""Files and folders of the Data API, on a local disk or any fsspec store."""

import asyncio
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free_ml_stack.storage.atomic import CHUNK, WholeFile, open_whole
from free_ml_stack.storage.local import SCRATCH, remove_stale

T = TypeVar("T")
KEEP = ".keep"  # marks an empty folder in a store without folders
RACY_SECONDS = 0.1  # seconds; a newer file may change without a change of its time stamp


@dataclass(frozen=True)
class Entry:
    """A file or folder: `modified` in seconds since 1970, `version` changes with the content."""

    name: str
    is_folder: bool
    size: int = 0
    modified: float = 0.0
    version: str = ""


class StoreTree:
    """Any fsspec store. Paths are `user/collection/…`, checked by the caller. Methods raise OSError."""

    is_local = False  # whether files are on a local disk

    def __init__(self, store: AbstractFileSystem, scratch: Path) -> None:
        self.store, self.scratch = store, scratch
        self.lock = Lock()  # the cache of a store's listings may be used by one thread at a time
        remove_stale(scratch)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work`, in a thread unless the files are local: it may wait for another server."""
        return work(*arguments) if self.is_local else await asyncio.to_thread(work, *arguments)

    def stat(self, path: str) -> Entry:
        """Return the entry at a path. Raises FileNotFoundError."""
        with self.lock:
            self.store.invalidate_cache()
            return _store_entry(self.store.info(path))

    def find(self, path: str) -> Entry | None:
        """Return the entry at a path, None if the path does not exist."""
        try:
            return self.stat(path)
        except FileNotFoundError:
            return None

    def names(self, path: str) -> list[tuple[bool, str]]:
        """Return `(is a file, name)` of a folder's entries, sorted."""
        with self.lock:
            entries = [_store_entry(info) for info in self.store.ls(path, detail=True, refresh=True)]
        return sorted((not entry.is_folder, entry.name) for entry in entries if entry.name != KEEP)

    def entries(self, path: str, names: Iterable[str]) -> list[Entry]:
        """Return the named entries of a folder; omit those deleted since."""
        with self.lock:
            found = {entry.name: entry for entry in map(_store_entry, self.store.ls(path, detail=True))}
        return [found[name] for name in names if name in found]

    def open(self, path: str) -> tuple[BinaryIO, Entry]:
        """Open a file for reading; return it and its entry."""
        return self.store.open(path, "rb", block_size=CHUNK), self.stat(path)

    def create(self, path: str, exclusive: bool = False) -> WholeFile:
        """Create a file to write to, for `commit`. Raises FileExistsError if `exclusive` and the path exists."""
        if exclusive and self.find(path):
            raise FileExistsError(path)
        return open_whole(self.scratch / f"{uuid.uuid4().hex}.whole", self.scratch)

    def commit(self, file: WholeFile, path: str) -> None:
        """Close a file from `create` and store it at `path` atomically."""
        file.close()
        try:
            self.store.put_file(str(file.path), path)
        finally:
            file.path.unlink()

    def make_folder(self, path: str) -> None:
        """Create a folder and its parents. Raises FileExistsError."""
        if self.find(path):
            raise FileExistsError(path)
        self.store.makedirs(path, exist_ok=True)
        if not self.find(path):
            self.store.pipe_file(f"{path}/{KEEP}", b"")

    def remove_file(self, path: str) -> None:
        """Remove a file."""
        self.store.rm_file(path)

    def remove_folder(self, path: str) -> int:
        """Remove a folder and its contents; return the number of files."""
        count = sum(not name.endswith(f"/{KEEP}") for name in self.store.find(path))
        self.store.rm(path, recursive=True)
        return count


class DiskTree(StoreTree):
    """A local folder, without fsspec. Symbolic links that point outside are treated as missing."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        super().__init__(LocalFileSystem(), Path(self.root) / SCRATCH)

    def locate(self, path: str) -> Path:
        """Return the location of a path on disk. Raises FileNotFoundError if a link points outside."""
        location = self.root
        for name in path.split("/"):
            location = f"{location}/{name}"
            try:
                mode = os.lstat(location).st_mode
            except FileNotFoundError:
                break  # nothing below it, so no links
            if stat.S_ISLNK(mode) and not os.path.realpath(location).startswith(f"{self.root}/"):
                raise FileNotFoundError(path)
        return Path(f"{self.root}/{path}")

    def stat(self, path: str) -> Entry:
        """Return the entry at a path. Raises FileNotFoundError."""
        try:
            return _disk_entry(path, self.locate(path).stat())
        except NotADirectoryError:
            raise FileNotFoundError(path) from None

    def names(self, path: str) -> list[tuple[bool, str]]:
        """Return `(is a file, name)` of a folder's entries, sorted."""
        with os.scandir(self.locate(path)) as found:
            return sorted((not entry.is_dir(), entry.name) for entry in found)

    def entries(self, path: str, names: Iterable[str]) -> list[Entry]:
        """Return the named entries of a folder; omit those deleted since and links that point outside."""
        found = []
        for name in names:
            try:
                found.append(self.stat(f"{path}/{name}"))
            except FileNotFoundError:
                continue
        return found

    def open(self, path: str) -> tuple[BinaryIO, Entry]:
        """Open a file for reading; return it and its entry."""
        file = self.locate(path).open("rb", buffering=0)
        return file, _disk_entry(path, os.fstat(file.fileno()))

    def create(self, path: str, exclusive: bool = False) -> WholeFile:
        """Create a file to write to, for `commit`. Raises FileExistsError if `exclusive` and the path exists."""
        return open_whole(self.locate(path), self.scratch, exclusive=exclusive)

    def commit(self, file: WholeFile, path: str) -> None:
        """Close a file from `create` and store it at `path` atomically."""
        file.close()

    def make_folder(self, path: str) -> None:
        """Create a folder and its parents. Raises FileExistsError."""
        self.locate(path).mkdir(parents=True)

    def remove_file(self, path: str) -> None:
        """Remove a file."""
        self.locate(path).unlink()

    def remove_folder(self, path: str) -> int:
        """Remove a folder and its contents atomically for readers; return the number of files."""
        removed = self.scratch / uuid.uuid4().hex
        self.scratch.mkdir(exist_ok=True)
        self.locate(path).rename(removed)
        count = sum(len(names) for _, _, names in os.walk(removed))
        shutil.rmtree(removed)
        return count


def tree_of(store: AbstractFileSystem) -> StoreTree:
    """Return the tree of an fsspec store whose top level are the users."""
    if isinstance(getattr(store, "fs", None), LocalFileSystem):
        return DiskTree(Path(store.path))
    return StoreTree(store, Path(tempfile.gettempdir()) / "data-api-uploads")


def version_of(found: os.stat_result) -> str:
    """Return a version that changes with the content of a file."""
    return f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"


def _disk_entry(path: str, found: os.stat_result) -> Entry:
    folder = stat.S_ISDIR(found.st_mode)
    return Entry(path.rpartition("/")[2], folder, found.st_size, found.st_mtime, version_of(found))


def _store_entry(info: dict[str, Any]) -> Entry:
    name = str(info["name"]).rstrip("/").rpartition("/")[2]
    if info["type"] == "directory":
        return Entry(name, is_folder=True)
    times = (info.get(key) for key in ("mtime", "LastModified", "last_modified", "uploaded_at", "created"))
    modified = next((time for time in times if time), 0.0)
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    marks = (info.get(key) for key in ("ETag", "etag", "blob_id", "xet_hash"))
    version = next((str(mark) for mark in marks if mark), f"{info['size']:x}-{seconds}")
    return Entry(name, False, info["size"], seconds, version.strip('"'))
