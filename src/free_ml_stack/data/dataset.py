"""The data set in the store, as Parquet with a manifest, and its memory-mapped copy for training."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from free_ml_stack.data.columns import VARIABLE, to_array
from free_ml_stack.data.split import Cells, Split
from free_ml_stack.errors import StackError
from free_ml_stack.storage.atomic import CHUNK, replace
from free_ml_stack.storage.manifest import MANIFEST, DamagedError, read_manifest, verify

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science

FOLDER = "data"
VERIFIED = "verified.json"
ROWS = 512  # rows decoded at once
SPLITS = ("train", "validation", "test")


def read(store: AbstractFileSystem, cache: Path, command: str) -> tuple[dict[str, Split], dict[str, Any]]:
    """All splits of the store's data set, memory-mapped, and its manifest.

    Each Parquet file is decoded once, some rows at a time, into a folder of `cache`. Raises StackError where there is
    no data yet, and DamagedError naming a file that is not the one in the manifest.
    """
    source = in_store(store)
    if not source.exists(MANIFEST):
        raise StackError(f"no data yet: run `{command} data`")
    content = read_manifest(source)
    if not isinstance(content.get("columns"), dict):
        raise DamagedError(f"{FOLDER}: {MANIFEST} does not describe the columns; run `{command} data`")
    if absent := set(SPLITS) - {Path(name).stem for name in content["files"]}:
        raise StackError(f"the data set has no {', '.join(sorted(absent))}: run `{command} data`")
    folders = {name: cache / _sum([entry["sha256"], content["columns"]]) for name, entry in content["files"].items()}
    if not _seen(source, content, cache) or not all(_usable(folder, content) for folder in folders.values()):
        verify(source)
        for name, folder in folders.items():
            _decode(source, name, folder, content)
        _remember(source, content, cache)
    return {Path(name).stem: _open(folder, content) for name, folder in folders.items()}, content


def put(target: AbstractFileSystem, content: Mapping[str, Any], folder: Path) -> None:
    """Copy the files of a data set from a folder into the store, and its manifest last, unless they are there.

    What was there stays until all have come.
    """
    if _whole(target, content):
        return
    with innermost(target).transaction:
        for name in content["files"]:
            with (folder / name).open("rb") as file, target.open(name, "wb") as there:
                shutil.copyfileobj(file, there, CHUNK)
    target.pipe_file(MANIFEST, json.dumps(content, indent=1).encode())


def examples(science: "Science", split: Split, rows: Iterable[int]) -> list[Any]:
    """What callers send for some rows of a split."""
    return [science.data.example(split, row) for row in rows]


def fingerprint(content: Mapping[str, Any]) -> str:
    """One checksum for a data set: of its files' checksums, in the order of their names."""
    sums = [content["files"][name]["sha256"] for name in sorted(content["files"])]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def in_store(store: AbstractFileSystem) -> AbstractFileSystem:
    """The part of a store that holds the data set."""
    store.makedirs(FOLDER, exist_ok=True)
    return DirFileSystem(FOLDER, fs=store)


def innermost(store: AbstractFileSystem) -> AbstractFileSystem:
    """The file system of which a store is a folder: the one that knows transactions."""
    return innermost(store.fs) if isinstance(store, DirFileSystem) else store


def _whole(store: AbstractFileSystem, content: Mapping[str, Any]) -> bool:
    """Whether the store holds exactly this data set, every byte of it."""
    try:
        return bool(verify(store) == json.loads(json.dumps(content)))
    except DamagedError:
        return False


def _seen(source: AbstractFileSystem, content: Mapping[str, Any], cache: Path) -> bool:
    """Whether the store's files are those that were verified last, by their marks (time, size or ETag)."""
    record = cache / VERIFIED
    if not record.exists() or not all(source.exists(name) for name in content["files"]):
        return False
    return bool(json.loads(record.read_text(encoding="utf-8")) == _marks(source, content))


def _remember(source: AbstractFileSystem, content: Mapping[str, Any], cache: Path) -> None:
    replace(cache / VERIFIED, json.dumps(_marks(source, content)).encode())


def _marks(source: AbstractFileSystem, content: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(source.ukey(name)) for name in content["files"]}


def _decode(source: AbstractFileSystem, name: str, folder: Path, content: Mapping[str, Any]) -> None:
    """Write the columns of one Parquet file as arrays, some rows at a time, under another name until all are there.

    Trials that begin together come here together; the first one's copy is everybody's.
    """
    if _usable(folder, content):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        with source.open(name, "rb") as file:
            _write_columns(pq.ParquetFile(file), made, content["columns"])
        try:
            made.rename(folder)
        except OSError:
            if not _usable(folder, content):  # what is there is damaged
                shutil.rmtree(folder)
                made.rename(folder)


def _write_columns(parquet: pq.ParquetFile, folder: Path, described: Mapping[str, Any]) -> None:
    rows, start = parquet.metadata.num_rows, 0
    with ExitStack() as ends:
        paths = _paths(folder, described)
        variable = [name for name, facts in described.items() if facts["type"] in VARIABLE]
        files = {name: ends.enter_context(paths[name].open("wb")) for name in variable}
        arrays: dict[str, NDArray[Any]] = {
            name: open_memmap(paths[name].with_suffix(".ends.npy"), "w+", np.int64, (rows,)) for name in variable
        }
        for batch in parquet.iter_batches(ROWS):
            here = slice(start, start + batch.num_rows)
            for name, facts in described.items():
                column = batch.column(name)
                if name in files:
                    arrays[name][here] = _append(files[name], column)
                    continue
                values = to_array(column, facts)
                if name not in arrays:
                    shape = (rows, *values.shape[1:])
                    arrays[name] = open_memmap(paths[name], "w+", values.dtype, shape)
                arrays[name][here] = values
            start += batch.num_rows


def _append(file: Any, column: pa.Array) -> NDArray[np.int64]:
    """Write texts or bytes one after the other; where each ends, and the complement of that where it is missing."""
    ends, at = np.zeros(len(column), np.int64), file.tell()
    for row, value in enumerate(column.cast(pa.binary()).to_pylist()):
        at += file.write(value or b"")
        ends[row] = ~at if value is None else at
    return ends


def _usable(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether a decoded copy is there and whole, as far as its files' heads and sizes tell."""
    try:
        return bool(_open(folder, content))
    except (OSError, ValueError, EOFError):
        return False


def _open(folder: Path, content: Mapping[str, Any]) -> Split:
    columns: dict[str, Any] = {}
    for name, path in _paths(folder, content["columns"]).items():
        kind = content["columns"][name]["type"]
        # Copy-on-write: torch wants memory it may write to, and the file must stay as it is.
        columns[name] = Cells(path, kind == "text") if kind in VARIABLE else np.asarray(np.load(path, mmap_mode="c"))
    return Split(columns, content)


def _paths(folder: Path, described: Mapping[str, Any]) -> dict[str, Path]:
    """The file of each column; numbered, for a name may hold what no file's may."""
    kinds = {name: "cells" if facts["type"] in VARIABLE else "npy" for name, facts in described.items()}
    return {name: folder / f"{number}.{kind}" for number, (name, kind) in enumerate(kinds.items())}


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
