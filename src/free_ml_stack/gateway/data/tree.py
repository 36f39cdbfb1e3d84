"""The files and folders that the Data API serves: on local disk, or on any fsspec store."""

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free_ml_stack.storage.atomic import CHUNK, WholeFile, open_whole
from free_ml_stack.storage.local import SCRATCH, remove_stale

KEEP = ".keep"  # stands for an empty folder in a store that has none
RACY = 0.1  # seconds; a file younger than that may change without its time changing


@dataclass(frozen=True)
class Entry:
    """A file or folder: `modified` in seconds since 1970, `version` differs for every content."""

    name: str
    is_folder: bool
    size: int = 0
    modified: float = 0.0
    version: str = ""


class StoreTree:
    """Any fsspec store. Paths are `user/collection/…`, checked by the caller. Raises OSError as stores do."""

    near = False  # whether a look at a file costs next to nothing

    def __init__(self, store: AbstractFileSystem, scratch: Path) -> None:
        self.store, self.scratch = store, scratch
        remove_stale(scratch)

    def stat(self, path: str) -> Entry:
        """What is at a path. Raises FileNotFoundError."""
        self.store.invalidate_cache()
        return _store_entry(self.store.info(path))

    def find(self, path: str) -> Entry | None:
        """What is at a path, None for nothing."""
        try:
            return self.stat(path)
        except FileNotFoundError:
            return None

    def names(self, path: str) -> list[tuple[bool, str]]:
        """`(is a file, name)` of a folder's entries, sorted."""
        entries = (_store_entry(info) for info in self.store.ls(path, detail=True, refresh=True))
        return sorted((not entry.is_folder, entry.name) for entry in entries if entry.name != KEEP)

    def entries(self, path: str, names: Iterable[str]) -> list[Entry]:
        """Some of a folder's entries, those apart that have gone since."""
        found = {entry.name: entry for entry in map(_store_entry, self.store.ls(path, detail=True))}
        return [found[name] for name in names if name in found]

    def open(self, path: str) -> tuple[BinaryIO, Entry]:
        """A file to read from, and what it is."""
        return self.store.open(path, "rb", block_size=CHUNK), self.stat(path)

    def create(self, path: str, exclusive: bool = False) -> WholeFile:
        """A file to write to, for `commit`. Raises FileExistsError when `exclusive` and there is one."""
        if exclusive and self.find(path):
            raise FileExistsError(path)
        return open_whole(self.scratch / f"{uuid.uuid4().hex}.whole", self.scratch)

    def commit(self, file: WholeFile, path: str) -> None:
        """Close a file from `create`; with that, and not before, it is at `path`."""
        file.close()
        try:
            self.store.put_file(str(file.path), path)
        finally:
            file.path.unlink()

    def make(self, path: str) -> None:
        """Make a folder, and those above it. Raises FileExistsError."""
        if self.find(path):
            raise FileExistsError(path)
        self.store.makedirs(path, exist_ok=True)
        if not self.find(path):
            self.store.pipe_file(f"{path}/{KEEP}", b"")

    def remove_file(self, path: str) -> None:
        """Remove a file."""
        self.store.rm_file(path)

    def remove_folder(self, path: str) -> int:
        """Remove a folder with all it holds; returns the number of files."""
        count = sum(not name.endswith(f"/{KEEP}") for name in self.store.find(path))
        self.store.rm(path, recursive=True)
        return count


class DiskTree(StoreTree):
    """A local folder, without fsspec in between. A link that leads out of it does not exist."""

    near = True

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        super().__init__(LocalFileSystem(), Path(self.root) / SCRATCH)

    def place(self, path: str) -> Path:
        """Where a path is on disk. Raises FileNotFoundError where a link leads out of the folder."""
        place = self.root
        for name in path.split("/"):
            place = f"{place}/{name}"
            try:
                mode = os.lstat(place).st_mode
            except FileNotFoundError:
                break  # and nothing below it, so no link either
            if stat.S_ISLNK(mode) and not os.path.realpath(place).startswith(f"{self.root}/"):
                raise FileNotFoundError(path)
        return Path(f"{self.root}/{path}")

    def stat(self, path: str) -> Entry:
        """What is at a path. Raises FileNotFoundError."""
        try:
            return _disk_entry(path, self.place(path).stat())
        except NotADirectoryError:
            raise FileNotFoundError(path) from None

    def names(self, path: str) -> list[tuple[bool, str]]:
        """`(is a file, name)` of a folder's entries, sorted."""
        with os.scandir(self.place(path)) as found:
            return sorted((not entry.is_dir(), entry.name) for entry in found)

    def entries(self, path: str, names: Iterable[str]) -> list[Entry]:
        """Some of a folder's entries, those apart that have gone since or are links out of the tree."""
        found = []
        for name in names:
            try:
                found.append(self.stat(f"{path}/{name}"))
            except FileNotFoundError:
                continue
        return found

    def open(self, path: str) -> tuple[BinaryIO, Entry]:
        """A file to read from, and what it is."""
        file = self.place(path).open("rb", buffering=0)
        return file, _disk_entry(path, os.fstat(file.fileno()))

    def create(self, path: str, exclusive: bool = False) -> WholeFile:
        """A file to write to, for `commit`. Raises FileExistsError when `exclusive` and there is one."""
        return open_whole(self.place(path), self.scratch, exclusive=exclusive)

    def commit(self, file: WholeFile, path: str) -> None:
        """Close a file from `create`; with that, and not before, it is at `path`."""
        file.close()

    def make(self, path: str) -> None:
        """Make a folder, and those above it. Raises FileExistsError."""
        self.place(path).mkdir(parents=True)

    def remove_file(self, path: str) -> None:
        """Remove a file."""
        self.place(path).unlink()

    def remove_folder(self, path: str) -> int:
        """Remove a folder with all it holds, at once for those who look; returns the number of files."""
        grave = self.scratch / uuid.uuid4().hex
        self.scratch.mkdir(exist_ok=True)
        self.place(path).rename(grave)
        count = sum(len(names) for _, _, names in os.walk(grave))
        shutil.rmtree(grave)
        return count


def tree_of(store: AbstractFileSystem | Path) -> StoreTree:
    """The tree of a local folder, or of any fsspec store rooted at its users."""
    if isinstance(store, Path):
        return DiskTree(store)
    if isinstance(getattr(store, "fs", None), LocalFileSystem):
        return DiskTree(Path(store.path))
    return StoreTree(store, Path(tempfile.gettempdir()) / "data-api-uploads")


def version_of(found: os.stat_result) -> str:
    """What differs for every content that a name on disk has had."""
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
