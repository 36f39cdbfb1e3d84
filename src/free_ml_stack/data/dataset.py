"""The data set in the store (Parquet with a manifest), and its memory-mapped copy for training."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from numpy.typing import NDArray

from free_ml_stack.data.columns import VARIABLE, to_array
from free_ml_stack.data.shards import ShardedColumn, Shards
from free_ml_stack.data.split import CELLS, ENDS, Cells, Split
from free_ml_stack.errors import StackError
from free_ml_stack.storage.atomic import CHUNK, replace
from free_ml_stack.storage.changes import change, on_hub
from free_ml_stack.storage.manifest import MANIFEST, DamagedError, read_manifest, verify

if TYPE_CHECKING:
    from free_ml_stack.project.science import Data, Science
    from free_ml_stack.project.settings import Settings

FOLDER, SHARDS = "data", "shards"
VERIFIED, PUBLISHED = "verified.json", "published.json"
ROWS = 512  # decoded at once
SPLITS = ("train", "validation", "test")


def load(
    science: "Science", settings: "Settings", store: AbstractFileSystem
) -> tuple[dict[str, Split], dict[str, Any]]:
    """Read the data set of the project's store, as `read` does.

    Raises StackError if `arrange` in data.py would now select other columns.
    """
    splits, content = read(store, settings.private / "cache", settings.command, settings.cache_bytes)
    entry = content.get("arranged")
    if entry and arranged(science.data, entry["found"], entry["target"]) != entry:
        raise StackError(
            "`arrange` in data.py selects other columns than those of the stored data set; "
            f"run `{settings.command} data` again, with the same arguments"
        )
    return splits, content


def read(
    store: AbstractFileSystem, cache: Path, command: str, limit: int = 0
) -> tuple[dict[str, Split], dict[str, Any]]:
    """Read all splits of the store's data set, memory-mapped, and its manifest.

    Each Parquet file is decoded once, in batches of rows, into a folder of `cache`. If the files are larger than
    `limit` bytes, and `limit` is not 0, texts, bytes and tensors stay in the store and are fetched on demand. Raises
    StackError if the store has no data set, and DamagedError for a file that does not match the manifest.
    """
    source = data_folder(store)
    content = stored(store)
    if not content:
        raise StackError(f"no data set in the store; run `{command} data`")
    if not isinstance(content.get("columns"), dict):
        raise DamagedError(f"{FOLDER}: {MANIFEST} does not describe the columns; run `{command} data`")
    if absent := set(SPLITS) - {Path(name).stem for name in content["files"]}:
        raise StackError(f"the data set lacks the split {', '.join(sorted(absent))}; run `{command} data`")
    total = sum(entry["size"] for entry in content["files"].values())
    wide = {
        name: facts
        for name, facts in content["columns"].items()
        if 0 < limit < total and (facts["type"] in VARIABLE or facts.get("shape"))
    }
    local = {**content, "columns": {name: facts for name, facts in content["columns"].items() if name not in wide}}
    folders = {name: cache / _sum([entry["sha256"], local["columns"]]) for name, entry in content["files"].items()}
    marks = {name: str(source.ukey(name)) if source.exists(name) else "" for name in content["files"]}
    record = cache / VERIFIED  # times, sizes or ETags, taken before the verification
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if known != marks or not all(_usable(folder, local) for folder in folders.values()):
        verify(source)
        for name, folder in folders.items():
            _decode(source, name, folder, local)
        cache.mkdir(parents=True, exist_ok=True)
        replace(record, json.dumps(marks).encode())
    splits = {}
    for name, folder in folders.items():
        columns = dict(_open(folder, local))
        if wide:
            shards = _shards(source, name, wide, cache / SHARDS, limit, content["files"][name]["sha256"])
            columns |= {column: ShardedColumn(shards, column) for column in wide}
        splits[Path(name).stem] = Split({column: columns[column] for column in content["columns"]}, content)
    return splits, content


def _shards(
    source: AbstractFileSystem, name: str, wide: Mapping[str, Any], root: Path, limit: int, sha256: str
) -> Shards:
    """Return the row groups of a Parquet file in the store as shards with the columns `wide`."""
    with source.open(name, "rb") as file:
        metadata = pq.ParquetFile(file).metadata

    def fetch(number: int, folder: Path) -> None:
        try:
            with source.open(name, "rb") as file:
                _write_columns(pq.ParquetFile(file, metadata=metadata, pre_buffer=True), folder, wide, [number])
        finally:  # whether other data were read as these, or could not be
            if read_manifest(source)["files"].get(name, {}).get("sha256") != sha256:
                raise StackError("the data set in the store was replaced while it was in use; run the command again")

    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return Shards(root, _sum([sha256, wide]), limit, sizes, fetch, lambda folder: _open(folder, {"columns": wide}))


def write_to_store(target: AbstractFileSystem, content: Mapping[str, Any], folder: Path) -> None:
    """Copy a data set from a folder into the store, its manifest last, unless the store already holds it.

    The previous files are replaced only after all new ones are uploaded.
    """
    if _is_stored(target, content):
        return
    manifest = {MANIFEST: json.dumps(content, indent=1).encode()}
    if on_hub(target):
        change(target, {**{name: folder / name for name in content["files"]}, **manifest})
        return
    target.makedirs("", exist_ok=True)  # on S3 also the bucket
    with root_filesystem(target).transaction:
        for name in content["files"]:
            with (folder / name).open("rb") as file, target.open(name, "wb") as there:
                shutil.copyfileobj(file, there, CHUNK)
    change(target, manifest)


def examples(science: "Science", split: Split, rows: Iterable[int]) -> list[Any]:
    """Return the inputs that callers would send for some rows of a split."""
    return [science.data.example(split, row) for row in rows]


def arranged(data: "Data", found: Mapping[str, str], target: str) -> dict[str, Any]:
    """Return the manifest's entry on `arrange` of data.py: its arguments, and the columns that it selects."""
    columns = {name: list(column) for name, column in data.arrange(found, target).items()}
    return {"found": dict(found), "target": target, "columns": columns}


def fingerprint(content: Mapping[str, Any]) -> str:
    """Compute one SHA-256 for a data set from its files' checksums, in order of the file names."""
    sums = [content["files"][name]["sha256"] for name in sorted(content["files"])]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def stored(store: AbstractFileSystem) -> dict[str, Any]:
    """Return the manifest of the store's data set; {} if it has none. Raises DamagedError."""
    folder = data_folder(store)
    return read_manifest(folder) if folder.exists(MANIFEST) else {}


def remember_published(store: AbstractFileSystem, sha256: str, url: str) -> None:
    """Record in the store where on the Hub its data set was published, for the cards of models trained on it."""
    data_folder(store).pipe_file(PUBLISHED, json.dumps({"sha256": sha256, "url": url}).encode())


def published(store: AbstractFileSystem, sha256: str) -> str:
    """Return the Hub's URL of a data set that was published from the store; an empty text for any other data set."""
    folder = data_folder(store)
    record = json.loads(folder.cat_file(PUBLISHED)) if folder.exists(PUBLISHED) else {}
    return str(record["url"]) if record.get("sha256") == sha256 else ""


def data_folder(store: AbstractFileSystem) -> AbstractFileSystem:
    """Return the folder of a store that holds the data set, as a file system."""
    return DirFileSystem(FOLDER, fs=store)


def root_filesystem(store: AbstractFileSystem) -> AbstractFileSystem:
    """Return the file system below all folders of a store: the one that supports transactions."""
    return root_filesystem(store.fs) if isinstance(store, DirFileSystem) else store


def _is_stored(store: AbstractFileSystem, content: Mapping[str, Any]) -> bool:
    """Return whether the store holds exactly this data set, by checksums."""
    try:
        return bool(verify(store) == json.loads(json.dumps(content)))
    except DamagedError:
        return False


def _decode(source: AbstractFileSystem, name: str, folder: Path, content: Mapping[str, Any]) -> None:
    """Write the columns of one Parquet file as arrays, in batches of rows, to a temporary folder that is then renamed.

    Trials that start at the same time all decode the file; the first copy to be renamed is used by all.
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
            if not _usable(folder, content):  # the existing copy is damaged
                shutil.rmtree(folder)
                made.rename(folder)


def _write_columns(
    parquet: pq.ParquetFile, folder: Path, described: Mapping[str, Any], groups: Sequence[int] | None = None
) -> None:
    groups = range(parquet.metadata.num_row_groups) if groups is None else groups
    rows = sum(parquet.metadata.row_group(group).num_rows for group in groups)
    with ExitStack() as ends:
        paths = _paths(folder, described)
        cells = {name: ends.enter_context(path.open("wb")) for name, path in paths.items() if path.suffix == CELLS}
        arrays: dict[Path, BinaryIO] = {}

        def append(path: Path, values: NDArray[Any]) -> None:
            # not through a memory map, which kills the process with SIGBUS if the disk is full
            if path not in arrays:
                arrays[path] = ends.enter_context(path.open("wb"))
                kind, shape = dtype_to_descr(values.dtype), (rows, *values.shape[1:])
                write_array_header_1_0(arrays[path], {"descr": kind, "fortran_order": False, "shape": shape})
            arrays[path].write(values.tobytes())

        for batch in _batches(parquet, groups, list(described)):
            for name, facts in described.items():
                column, path = batch.column(name), paths[name]
                if name in cells:
                    append(path.with_suffix(ENDS), _append(cells[name], column))
                else:
                    append(path, to_array(column, facts))


def _batches(parquet: pq.ParquetFile, groups: Iterable[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read row groups one by one: read together, batches of large rows would be gathered from several."""
    for group in groups:
        yield from parquet.iter_batches(ROWS, row_groups=[group], columns=columns)


def _append(file: Any, column: pa.Array) -> NDArray[np.int64]:
    """Append texts or bytes to a file; return the end offset of each, as its complement (~) if the value is missing."""
    ends, at = np.zeros(len(column), np.int64), file.tell()
    for row, value in enumerate(column.cast(pa.binary()).to_pylist()):
        at += file.write(value or b"")
        ends[row] = ~at if value is None else at
    return ends


def _usable(folder: Path, content: Mapping[str, Any]) -> bool:
    """Return whether a decoded copy exists and is complete, by the headers and sizes of its files."""
    try:
        _open(folder, content)
    except (OSError, ValueError, EOFError):
        return False
    return True


def _open(folder: Path, content: Mapping[str, Any]) -> Split:
    columns: dict[str, Any] = {}
    for name, path in _paths(folder, content["columns"]).items():
        kind = content["columns"][name]["type"]
        # Copy-on-write: torch requires writable memory, and the file must not change.
        columns[name] = Cells(path, kind == "text") if kind in VARIABLE else np.asarray(np.load(path, mmap_mode="c"))
    return Split(columns, content)


def _paths(folder: Path, described: Mapping[str, Any]) -> dict[str, Path]:
    """Return the file of each column, numbered because a column name may not be a valid file name."""
    kinds = {name: CELLS if facts["type"] in VARIABLE else ".npy" for name, facts in described.items()}
    return {name: folder / f"{number}{kind}" for number, (name, kind) in enumerate(kinds.items())}


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
