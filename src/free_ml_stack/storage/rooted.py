"""A file system below a folder whose path may contain glob characters."""

from glob import has_magic
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem


class RootedFileSystem(DirFileSystem):  # type: ignore[misc]
    """DirFileSystem that does not interpret its root as a glob pattern, such as `a[1]`."""

    def glob(self, path: str, **options: Any) -> Any:
        """Return the paths that match a pattern."""
        return AbstractFileSystem.glob(self, path, **options)

    def expand_path(self, path: Any, *arguments: Any, **options: Any) -> Any:
        """Return the paths that match a path or pattern."""
        return AbstractFileSystem.expand_path(self, path, *arguments, **options)

    def get(self, rpath: Any, lpath: Any, *arguments: Any, **options: Any) -> Any:
        """Copy files to the local disk; use the other file system's method unless the root looks like a pattern."""
        if has_magic(self.path):
            return AbstractFileSystem.get(self, rpath, lpath, *arguments, **options)
        return super().get(rpath, lpath, *arguments, **options)
