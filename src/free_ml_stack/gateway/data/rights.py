"""Access rights of collections, stored beside the data in a small file per folder."""

import json
from collections.abc import Iterator

from free_ml_stack.gateway.data.tree import StoreTree
from free_ml_stack.gateway.http import HTTPError

PUBLIC, MY_ALGORITHMS = "user://*", "algo://.my/*"
DEFAULT = [MY_ALGORITHMS]
FOLDER, RECORD = ".acl", "#read"  # names that clients cannot use


def read_list(acl: object) -> list[str]:
    """Return the `read` list of an `acl` object in a request. Raises HTTPError if it is invalid."""
    read = acl.get("read") if isinstance(acl, dict) else None
    if read not in ([], [PUBLIC], [MY_ALGORITHMS]):
        raise HTTPError(400, f'acl must be {{"read": []}}, ["{MY_ALGORITHMS}"] or ["{PUBLIC}"]')
    return list(read or [])


def get(tree: StoreTree, path: str) -> list[str]:
    """Return the read list of a folder or of its nearest parent with one, or the default."""
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


def remove(tree: StoreTree, path: str) -> None:
    """Remove the rights of a deleted folder and its subfolders."""
    if tree.find(f"{FOLDER}/{path}"):
        tree.remove_folder(f"{FOLDER}/{path}")


def _upwards(path: str) -> Iterator[str]:
    segments = path.split("/")
    for depth in range(len(segments), 1, -1):
        yield "/".join(segments[:depth])
