"""Files on local disk that appear whole under their name, or not at all."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free_ml_stack.storage.atomic import CHUNK, open_whole
from free_ml_stack.storage.rooted import RootedFileSystem

SCRATCH = ".part"  # the folder, at the root of a store, where files grow until they are whole
STALE = 24 * 3600  # seconds after which a file in the making has been given up


def remove_stale(scratch: Path) -> None:
    """Remove the files in the making whose process was killed."""
    for file in scratch.glob("*"):
        with suppress(FileNotFoundError):  # finished meanwhile
            if time.time() - file.stat().st_mtime > STALE:
                file.unlink()


class DiskFileSystem(LocalFileSystem):  # type: ignore[misc]
    """fsspec's local files with whole-file writes; files in the making live in `<root>/.part`."""

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
        """Copy one file, or make the folder `path2` where `path1` is one."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with Path(self._strip_protocol(path1)).open("rb") as source, self.open(path2, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK)

    def ls(self, path: str, detail: bool = False, **options: Any) -> list[Any]:
        """The entries of a folder, without the files in the making."""
        entries = super().ls(path, detail=detail, **options)
        return [entry for entry in entries if (entry["name"] if detail else entry) != str(self.scratch)]


def local_store(folder: Path, root: Path | None = None) -> AbstractFileSystem:
    """The file system of a local folder; its files in the making live in `root` (default: the folder)."""
    return RootedFileSystem(str(folder), fs=DiskFileSystem(root=str(root or folder)))
