"""Change several files of a store at once: on the Hub, which counts commits and requests, in one of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem

if TYPE_CHECKING:
    from free_ml_stack.storage.repository import Repository


def change(store: AbstractFileSystem, add: Mapping[str, Path | bytes], remove: Iterable[str] = ()) -> None:
    """Add files, by local path or content, then remove files and folders.

    On the Hub it is one request; elsewhere one file follows the other in the given order.
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
    """The repository or bucket of which a store is a folder; None where it is not on the Hub."""
    path = ""
    while isinstance(store, DirFileSystem):
        path, store = store._join(path), store.fs
    if store.protocol != "hf":
        return None
    from free_ml_stack.storage import repository

    return repository.parse(f"{repository.SCHEME}{path}")


def _files(store: AbstractFileSystem, name: str) -> list[str]:
    """The files that a name stands for, as they are now."""
    store.invalidate_cache(name)
    return [str(path) for path in store.find(name)]
