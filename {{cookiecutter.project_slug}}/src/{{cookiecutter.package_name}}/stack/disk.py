"""Files on local disk that appear whole under their name, or not at all."""

import io
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

SCRATCH = ".part"  # the folder, at the root of a store, where files grow until they are whole
CHUNK = 1 << 20  # bytes


def open_whole(path: Path, scratch: Path, **options: bool) -> "WholeFile":
    """Start a file that will be `path`, in the folder `scratch` on the same disk.

    `options` are those of WholeFile. Raises FileExistsError when `exclusive` and the name is taken.
    """
    if options.get("exclusive") and path.exists():
        raise FileExistsError(f"{path} exists")
    scratch.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return WholeFile(io.FileIO(scratch / uuid.uuid4().hex, "xb"), path, **options)


class WholeFile(io.BufferedWriter):
    """A file in the making that takes the name `path` when it is closed.

    An exception, `discard()` or the end of the process before that leaves `path` as it was. Without `autocommit` it
    takes the name when `commit` is called, as fsspec's transactions do.
    """

    def __init__(self, raw: io.FileIO, path: Path, exclusive: bool = False, autocommit: bool = True) -> None:
        super().__init__(raw, CHUNK)
        self.scratch, self.path = Path(str(raw.name)), path
        self.exclusive, self.autocommit = exclusive, autocommit
        self.raised = sys.exc_info()[1]

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
        os.fsync(self.fileno())
        super().close()

    def commit(self) -> None:
        """Take the name. Raises FileExistsError when `exclusive` and it has been taken meanwhile."""
        if self.exclusive:
            os.link(self.scratch, self.path)
            self.scratch.unlink()
        else:
            self.scratch.replace(self.path)

    def discard(self) -> None:
        """Drop what was written; `path` stays as it was."""
        self.raw.close()
        self.scratch.unlink(missing_ok=True)

    def __del__(self) -> None:
        self.discard()


class DiskFileSystem(LocalFileSystem):  # type: ignore[misc]
    """fsspec's local files with whole-file writes; files in the making live in `<root>/.part`."""

    protocol = ("file", "local")

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(auto_mkdir=True, **options)
        self.scratch = Path(root) / SCRATCH

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
