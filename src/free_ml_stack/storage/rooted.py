"""A file system below a folder whose path is a name, and never a pattern."""

from glob import has_magic
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem


class RootedFileSystem(DirFileSystem):  # type: ignore[misc]
    """fsspec's folder of another file system; that takes its root for a part of a pattern, as `a[1]` may be."""

    def glob(self, path: str, **options: Any) -> Any:
        """The paths that match a pattern."""
        return AbstractFileSystem.glob(self, path, **options)

    def expand_path(self, path: Any, *arguments: Any, **options: Any) -> Any:
        """The paths that one stands for."""
        return AbstractFileSystem.expand_path(self, path, *arguments, **options)

    def get(self, rpath: Any, lpath: Any, *arguments: Any, **options: Any) -> Any:
        """Copy files to the local disk, in its own way where the root is none to be mistaken."""
        if has_magic(self.path):
            return AbstractFileSystem.get(self, rpath, lpath, *arguments, **options)
        return super().get(rpath, lpath, *arguments, **options)
