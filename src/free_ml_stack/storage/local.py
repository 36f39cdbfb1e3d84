"""Local file systems with atomic writes."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import isfilelike

from free_ml_stack.storage.atomic import CHUNK, open_whole
from free_ml_stack.storage.rooted import RootedFileSystem

SCRATCH = ".part"  # the folder for temporary files at the root of a store
STALE = 24 * 3600  # seconds after which a temporary file is considered abandoned


def remove_stale(scratch: Path) -> None:
    """Remove temporary files of killed processes, and folders that they were about to delete."""
    for path in scratch.glob("*"):
        with suppress(FileNotFoundError):  # renamed since the listing
            if time.time() - path.stat().st_mtime > STALE:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


class DiskFileSystem(LocalFileSystem):  # type: ignore[misc]
    """fsspec's local file system with atomic writes; temporary files are in `<root>/.part`."""

    protocol = ("file", "local")

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(auto_mkdir=True, **options)
        self.scratch = Path(root) / SCRATCH
        remove_stale(self.scratch)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if mode in ("wb", "xb"):
            chosen = {"exclusive": "x" in mode, "autocommit": options.get("autocommit", True)}
            return open_whole(Path(self._strip_protocol(path)), self.scratch, **chosen)
        return super()._open(path, mode, block_size, **options)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        """Copy a file, or create the folder `path2` if `path1` is a folder."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with Path(self._strip_protocol(path1)).open("rb") as source, self.open(path2, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK)

    def get_file(self, rpath: str, lpath: Any, **options: Any) -> None:
        """Copy a file without a temporary one, as `lpath` may be on another disk; create a folder if it is one."""
        copy = super().get_file if isfilelike(lpath) else super().cp_file
        copy(rpath, lpath)

    def ls(self, path: str, detail: bool = False, **options: Any) -> list[Any]:
        """List a folder, without the folder of temporary files."""
        entries = super().ls(path, detail=detail, **options)
        return [entry for entry in entries if (entry["name"] if detail else entry) != str(self.scratch)]


def local_store(folder: Path, root: Path | None = None) -> AbstractFileSystem:
    """Return the file system of a local folder; temporary files are in `root` (default: the folder)."""
    return RootedFileSystem(str(folder), fs=DiskFileSystem(root=str(root or folder)))
