"""Change several files of a store together: in one request on the Hub, which limits commits and requests."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem

if TYPE_CHECKING:
    from free_ml_stack.storage.repository import Repository


def change(store: AbstractFileSystem, add: Mapping[str, Path | bytes], remove: Iterable[str] = ()) -> None:
    """Add files, given as local paths or contents, then remove files and folders.

    On the Hub this is one request; other stores get one file after another, in the given order.
    """
    target = on_hub(store)
    if target is None:
        for name, content in add.items():
            if isinstance(content, bytes):
                store.pipe_file(name, content)
            else:
                store.put_file(str(content), name)
        for name in remove:
            store.rm(name, recursive=True)
        return
    from free_ml_stack.storage import repository

    gone = [path for name in remove for path in _files(store, name)]
    repository.change(target, add, gone)
    for path in (*add, *gone):
        store.invalidate_cache(path)


def on_hub(store: AbstractFileSystem) -> "Repository | None":
    """Return the repository or bucket that a store is a folder of; None if it is not on the Hub."""
    path = ""
    while isinstance(store, DirFileSystem):
        path, store = store._join(path), store.fs
    if store.protocol != "hf":
        return None
    from free_ml_stack.storage import repository

    return repository.parse(f"{repository.SCHEME}{path}")


def _files(store: AbstractFileSystem, name: str) -> list[str]:
    """List the files of a folder, or a single file, without cached listings."""
    store.invalidate_cache(name)
    return [str(path) for path in store.find(name)]
