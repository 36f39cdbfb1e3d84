"""Data sets as Parquet in the store, and as memory-mapped arrays for training."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from free_ml_stack.errors import StackError
from free_ml_stack.storage.atomic import replace
from free_ml_stack.storage.manifest import MANIFEST, DamagedError, read_manifest, verify

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science

FOLDER = "data"
VERIFIED = "verified.json"
ROWS = 8192  # rows of a row group: what is in memory at once
ONE_DIMENSION = 1
SPLITS = {"train", "validation", "test"}

Columns = Mapping[str, NDArray[Any]]


class Split(dict[str, torch.Tensor]):
    """Map the columns of one split of the data set, by name.

    Each column is a tensor (rows, …) of the dtype that `data.py` gave it, over a memory-mapped file in `.stack/cache`;
    read it, never write to it.
    """

    @property
    def rows(self) -> int:
        """Count the examples of the split."""
        return len(next(iter(self.values())))

    def take(self, rows: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        """Gather a batch, each column (len(rows), …), and move it to `device`.

        `rows` are indices (n,) from 0 to `self.rows` - 1, on any device. Raises IndexError for any other.
        """
        return {name: column[rows.to(column.device)].to(device) for name, column in self.items()}

    def on(self, device: torch.device) -> "Split":
        """Move the whole split to `device` if it is a GPU with twice the bytes free; else return it as it is."""
        if device.type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(device)
        fits = sum(column.nbytes for column in self.values()) < free / 2
        return Split({name: column.to(device) for name, column in self.items()}) if fits else self


def write(store: AbstractFileSystem, splits: Mapping[str, Columns], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write one Parquet file a split and a manifest to the store's `data/`; returns the manifest.

    `facts` (source, seed, class names) go into the manifest. The same data gives the same bytes; what is there
    and whole is left alone.
    """
    target = in_store(store)
    tables = {
        name: pa.table({key: as_column(values) for key, values in split.items()}) for name, split in splits.items()
    }
    written = {f"{name}.parquet": _parquet(table) for name, table in tables.items()}
    content: dict[str, Any] = {
        **facts,
        "rows": {name: table.num_rows for name, table in tables.items()},
        "columns": {key: described(values) for key, values in next(iter(splits.values())).items()},
        "files": {name: {"sha256": _sha256(data), "size": len(data)} for name, data in written.items()},
    }
    if _whole(target, content):
        return content
    for name, data in written.items():
        target.pipe_file(name, data)
    target.pipe_file(MANIFEST, json.dumps(content, indent=1).encode())
    return content


def read(store: AbstractFileSystem, cache: Path, command: str) -> tuple[dict[str, Split], dict[str, Any]]:
    """All splits of the store's data set, memory-mapped, and its manifest.

    Each Parquet file is decoded once, row group by row group, into `cache/<sha256>/<column>.npy`. Raises StackError
    where there is no data yet, and DamagedError naming a file that is not the one in the manifest.
    """
    source = in_store(store)
    if not source.exists(MANIFEST):
        raise StackError(f"no data yet: run `{command} data`")
    content = read_manifest(source)
    if absent := SPLITS - {Path(name).stem for name in content["files"]}:
        raise StackError(f"the data set has no {', '.join(sorted(absent))}: run `{command} data`")
    folders = {name: cache / entry["sha256"] for name, entry in content["files"].items()}
    if not _seen(source, content, cache) or not all(map(_usable, folders.values())):
        verify(source)
        for name, folder in folders.items():
            _decode(source, name, folder)
        _remember(source, content, cache)
    return {Path(name).stem: _open(folder) for name, folder in folders.items()}, content


def examples(science: "Science", split: Split, rows: Iterable[int]) -> list[Any]:
    """What callers send for some rows of a split."""
    return [science.data.example(split, row) for row in rows]


def fingerprint(content: Mapping[str, Any]) -> str:
    """One sum for a data set: that of its files' sums, in the order of their names."""
    sums = [content["files"][name]["sha256"] for name in sorted(content["files"])]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def in_store(store: AbstractFileSystem) -> AbstractFileSystem:
    """The part of a store that holds the data set."""
    store.makedirs(FOLDER, exist_ok=True)
    return DirFileSystem(FOLDER, fs=store)


def as_column(values: NDArray[Any]) -> pa.Array:
    """An array (rows, …) as a column."""
    if values.ndim == ONE_DIMENSION:
        return pa.array(values)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def described(values: NDArray[Any]) -> dict[str, Any]:
    """What a manifest says of a column."""
    return {"type": str(values.dtype), "shape": list(values.shape[1:])}


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS)
    return bytes(sink.getvalue())


def _whole(store: AbstractFileSystem, content: dict[str, Any]) -> bool:
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


def _decode(source: AbstractFileSystem, name: str, folder: Path) -> None:
    """Write the columns of one Parquet file as .npy files, a row group at a time, under another name until all are.

    Trials that begin together come here together; the first one's copy is everybody's.
    """
    if _usable(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        with source.open(name, "rb") as file:
            _write_columns(pq.ParquetFile(file), made)
        try:
            made.rename(folder)
        except OSError:
            if not _usable(folder):  # what is there is damaged
                shutil.rmtree(folder)
                made.rename(folder)


def _write_columns(parquet: pq.ParquetFile, folder: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for batch in parquet.iter_batches(ROWS):
        for key in batch.schema.names:
            values = _numpy(batch.column(key))
            if key not in arrays:
                shape = (parquet.metadata.num_rows, *values.shape[1:])
                arrays[key] = open_memmap(folder / f"{key}.npy", "w+", values.dtype, shape)
            arrays[key][start : start + len(values)] = values
        start += batch.num_rows
    (folder / MANIFEST).write_text(json.dumps(list(arrays)), encoding="utf-8")


def _numpy(column: pa.Array) -> NDArray[Any]:
    tensor = isinstance(column, pa.FixedShapeTensorArray)
    values: NDArray[Any] = column.to_numpy_ndarray() if tensor else column.to_numpy(zero_copy_only=False)
    return values


def _usable(folder: Path) -> bool:
    """Whether a decoded copy is there and whole, as far as its files' heads and sizes tell."""
    try:
        return bool(_open(folder))
    except (OSError, ValueError, EOFError):
        return False


def _open(folder: Path) -> Split:
    names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    # Copy-on-write: torch wants memory it may write to, and the file must stay as it is.
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in names}
    return Split({name: torch.from_numpy(array) for name, array in arrays.items()})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
