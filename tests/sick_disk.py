"""A simulated disk that fails or loses power at a given call, with or without the loss of unsynced data.

It wraps the system calls of Python (open, write, fsync, mkdir, rename, unlink, rmdir) below its folder, and also
records the content of a disk after a power failure: the bytes of a file at its last fsync, and the names in a folder
at the folder's last fsync.
"""

import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "open")


class PowerCut(BaseException):
    """Simulated power failure: this call and all later ones do not happen."""


class File:
    """The bytes of a file, current and at its last fsync."""

    def __init__(self, content: bytes = b"", synced: bytes = b"") -> None:
        self.now, self.synced = bytearray(content), synced


class Folder:
    """The names in a folder, current and at its last fsync."""

    def __init__(self) -> None:
        self.now: dict[str, Any] = {}
        self.synced: dict[str, Any] = {}


class SickDisk:
    """A disk at `root`; `fault` is raised at call number `at` (the first is 0), or never."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, at: int = -1, fault: BaseException | None = None) -> None:
        self.root, self.at, self.fault = root, at, fault
        self.calls: list[str] = []
        self.elsewhere: list[str] = []
        self.off = False
        self.opened: dict[int, Path] = {}
        self.tree = self._scan(root)
        self.real = {name: getattr(os, name) for name in CALLS}
        self.real_open = io.open
        for name in CALLS:
            patch.setattr(os, name, getattr(self, name))
        patch.setattr(io, "open", self.open_file)

    def after(self, folder: Path, name: Callable[[], bool], content: Callable[[], bool]) -> None:
        """Write the content after the power failure to `folder`; the functions decide whether unsynced changes survived."""
        self._write(self.tree, folder, name, content)

    def call(self, name: str, path: Path) -> bool:
        """Count a call and return whether it is inside the root. Raises the fault at its call."""
        if self.root not in (path, *path.parents):
            return False
        if self.off:
            raise PowerCut
        self.calls.append(f"{name} {path.relative_to(self.root)}")
        if len(self.calls) - 1 == self.at and self.fault is not None:
            self.off = isinstance(self.fault, PowerCut)
            raise self.fault
        return True

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if self.call("mkdir", Path(path)):
            self.real["mkdir"](path, mode)
            self._names(Path(path))[Path(path).name] = Folder()
        else:
            self.elsewhere.append(f"mkdir {path}")
            self.real["mkdir"](path, mode, dir_fd=dir_fd)

    def rename(self, source: Any, target: Any, **options: Any) -> None:
        seen = self.call("rename", Path(source))
        self.real["rename"](source, target, **options)
        if seen:
            self._names(Path(target))[Path(target).name] = self._names(Path(source)).pop(Path(source).name)

    replace = rename

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("unlink", path, dir_fd)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("rmdir", path, dir_fd)

    def fsync(self, number: int) -> None:
        path = self.opened.get(number, Path("/"))
        if self.call("fsync", path):
            found = self._find(path)
            found.synced = dict(found.now) if isinstance(found, Folder) else bytes(found.now)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        full = self._full(path, dir_fd)
        self.call("open", full)
        number: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
        self.opened[number] = full
        return number

    def open_file(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if isinstance(path, int) or not set(mode) & set("wax"):
            return self.real_open(path, mode, *arguments, **options)
        full = Path(path)
        seen = self.call("open", full)
        opened = self.real_open(path, mode, *arguments, **options)
        if not seen:
            self.elsewhere.append(f"open {path}")
            return opened
        names = self._names(full)
        if full.name not in names:
            names[full.name] = File()
        elif "w" in mode:
            names[full.name].now.clear()
        self.opened[opened.fileno()] = full
        return Written(self, opened, full, names[full.name])

    def _remove(self, name: str, path: Any, dir_fd: int | None) -> None:
        full = self._full(path, dir_fd)
        seen = self.call(name, full)
        self.real[name](path, dir_fd=dir_fd)
        if seen:
            del self._names(full)[full.name]

    def _full(self, path: Any, dir_fd: int | None) -> Path:
        return Path(path) if dir_fd is None else self.opened[dir_fd] / path

    def _find(self, path: Path) -> Any:
        found: Any = self.tree
        for part in path.relative_to(self.root).parts:
            found = found.now[part]
        return found

    def _names(self, path: Path) -> dict[str, Any]:
        names: dict[str, Any] = self._find(path.parent).now
        return names

    def _scan(self, path: Path) -> Any:
        if path.is_file():
            return File(path.read_bytes(), path.read_bytes())
        found = Folder()
        found.now = {entry.name: self._scan(entry) for entry in path.iterdir()}
        found.synced = dict(found.now)
        return found

    def _write(self, found: Any, path: Path, name: Callable[[], bool], content: Callable[[], bool]) -> None:
        if isinstance(found, File):
            path.write_bytes(bytes(found.now) if bytes(found.now) != found.synced and content() else found.synced)
            return
        path.mkdir()
        for entry in sorted(found.now.keys() | found.synced.keys()):
            now, then = found.now.get(entry), found.synced.get(entry)
            kept = now if now is then or name() else then
            if kept is not None:
                self._write(kept, path / entry, name, content)


class Written:
    """A file open for writing on the sick disk."""

    def __init__(self, disk: SickDisk, opened: Any, path: Path, file: File) -> None:
        self.disk, self.opened, self.path, self.file = disk, opened, path, file

    def write(self, data: Any) -> int:
        """Write; a failing disk writes half of the data before the error."""
        view = memoryview(data).cast("B")
        try:
            self.disk.call("write", self.path)
        except BaseException:
            self._put(view[: len(view) // 2])
            raise
        return self._put(view)

    def fileno(self) -> int:
        return int(self.opened.fileno())

    def __enter__(self) -> "Written":
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def _put(self, data: memoryview) -> int:
        self.file.now += data
        return int(self.opened.write(data))


def chance(seed: int) -> Callable[[], bool]:
    """Return a seeded coin flip."""
    drawn = random.Random(seed)
    return lambda: drawn.random() < 0.5
