"""Who may read a collection: kept in the store beside the data, a small file for each folder that sets it."""

import json
from collections.abc import Iterator

from free_ml_stack.gateway.data.tree import StoreTree

PUBLIC, MY_ALGORITHMS = "user://*", "algo://.my/*"
DEFAULT = [MY_ALGORITHMS]
FOLDER, RECORD = ".acl", "#read"  # names that no client can send


def read_list(acl: object) -> list[str]:
    """The `read` list of an `acl` object as clients send it. Raises ValueError for anything else."""
    read = acl.get("read") if isinstance(acl, dict) else None
    if read not in ([], [PUBLIC], [MY_ALGORITHMS]):
        raise ValueError(f'acl must be {{"read": []}}, ["{MY_ALGORITHMS}"] or ["{PUBLIC}"]')
    return list(read or [])


def get(tree: StoreTree, path: str) -> list[str]:
    """The read list of a folder: its own, else that of the nearest folder above, else the default."""
    for folder in _upwards(path):
        try:
            file, _ = tree.open(f"{FOLDER}/{folder}/{RECORD}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        with file:
            read: list[str] = json.loads(file.read())
            return read
    return DEFAULT


def put(tree: StoreTree, path: str, read: list[str]) -> None:
    """Set the read list of a folder."""
    record = f"{FOLDER}/{path}/{RECORD}"
    file = tree.create(record)
    file.write(json.dumps(read).encode())
    tree.commit(file, record)


def forget(tree: StoreTree, path: str) -> None:
    """Drop what is kept for a folder that is gone, and for those below it."""
    if tree.find(f"{FOLDER}/{path}"):
        tree.remove_folder(f"{FOLDER}/{path}")


def _upwards(path: str) -> Iterator[str]:
    segments = path.split("/")
    for depth in range(len(segments), 1, -1):
        yield "/".join(segments[:depth])
