"""Ingestion of a data set: select and convert the columns, draw the splits, check the rows, write to the store."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from free_ml_stack.console import join_names, say
from free_ml_stack.data import columns as col
from free_ml_stack.data.dataset import SPLITS, arranged, data_folder, write_to_store
from free_ml_stack.data.source import FOLDER, TABLES, Rows, Source
from free_ml_stack.errors import StackError
from free_ml_stack.storage.manifest import DamagedError, verify, write_manifest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from free_ml_stack.project.science import Data

FRACTIONS = {"train": 0.7, "validation": 0.15, "test": 0.15}
GROUP_ROWS, GROUP_BYTES = 8192, 16 << 20  # maximum of a row group, which is held in memory
DROPPED = ""


class Plan(NamedTuple):
    """Map each column of the data set to (column of the source, kind), and name the target column."""

    columns: Mapping[str, tuple[str, str]]
    target: str
    found: Mapping[str, str]  # kinds of the source's columns

    @property
    def source(self) -> str:
        """Return the name of the target column in the source."""
        return self.columns[self.target][0]


def ingest(
    store: "AbstractFileSystem", source: Source, data: "Data", target: str, seed: int, scratch: Path
) -> dict[str, Any]:
    """Write a data set to the store's `data/`, as one Parquet file per split and a manifest; return the manifest.

    Splits that the source lacks are drawn from its training split with `seed`. Rows are processed in batches through
    files in `scratch`; the store is not changed until all rows are written and checked. Raises StackError.
    """
    asked = {"target": target, "seed": seed, "code": _code(data)}
    if found := stored_manifest(store, source, asked):
        return found
    plan = make_plan(source, data, target)
    if used := [f"{column} as {name}" for name, (column, _) in plan.columns.items() if column != name]:
        say(f"Used: {join_names(used)}.")
    if unused := source.splits["train"].types.keys() - {column for column, _ in plan.columns.values()}:
        say(f"Not used: {join_names(sorted(unused))}.")
    kinds = {name: col.Description(kind, name == plan.target) for name, (_, kind) in plan.columns.items()}
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".data-") as folder:
        files = _write_splits(source, data, plan, seed, Path(folder), kinds)
        rows = {name: file.rows for name, file in files.items()}
        described = kinds[plan.target]
        col.check_target(plan.source, described, rows, lambda line: say(f"warning: {line}"))
        for name, (column, _) in plan.columns.items():
            if mistake := kinds[name].mistake():
                say(f"warning: column {column} {mistake}")
        if empty := [name for name in SPLITS if not rows[name]]:
            raise StackError(f"no rows for {', '.join(empty)}; provide more rows (the store was not changed)")
        written = write_manifest(Path(folder))["files"]
        content: dict[str, Any] = {
            **source.facts,
            **({"split_seed": seed} if set(source.splits) != set(SPLITS) else {}),
            **({"asked": asked} if source.immutable else {}),
            "arranged": arranged(data, plan.found, plan.source),
            "target": plan.target,
            "rows": rows,
            "columns": {name: one.facts() for name, one in kinds.items()},
            "files": {file.path.name: written[file.path.name] for file in files.values()},
        }
        write_to_store(data_folder(store), content, Path(folder))
    return content


def _code(data: "Data") -> str:
    """Return the SHA-256 of data.py, which defines columns and splits; "" for an object without a file."""
    path = getattr(data, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def stored_manifest(store: "AbstractFileSystem", source: Source, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest in the store if `ingest` would make the same one: complete, and of an immutable source."""
    if not source.immutable:
        return None
    try:
        content = verify(data_folder(store))
    except DamagedError:
        return None
    return content if (content.get("source"), content.get("asked")) == (source.facts["source"], asked) else None


def make_plan(source: Source, data: "Data", target: str) -> Plan:
    """Select the columns of a source for the project. Raises StackError if a column or the split train is missing."""
    found = {
        split: {name: col.kind_of(kind) for name, kind in rows.types.items()} for split, rows in source.splits.items()
    }
    if "train" not in found:
        raise StackError(f"the source has no training split, only {', '.join(found) or 'no rows'}")
    columns = found["train"]
    wanted = target or (data.TARGET if data.TARGET in columns else source.target or data.TARGET)
    unreadable = source.splits["train"].unreadable
    if wanted in unreadable:
        raise StackError(unreadable[wanted])
    for reason in unreadable.values():
        say(f"Not used: {reason}.")
    lacking = f"; {source.facts['source']} has no table ({', '.join(TABLES)})" if source.target == FOLDER else ""
    if wanted not in columns:
        known = ", ".join(columns)
        raise StackError(f"no column {wanted}; set the target with --target COLUMN, one of {known}{lacking}")
    try:
        chosen = data.arrange(columns, wanted)
    except StackError as error:
        raise StackError(f"{error}{lacking}") from None
    for split, others in found.items():
        for name, _ in chosen.values():
            if name not in others:
                raise StackError(
                    f"{split} lacks the column {name}, which is in train; add it, or use the files of train only"
                )
            if others[name] != columns[name]:
                raise StackError(f"column {name} has kind {columns[name]} in train and {others[name]} in {split}")
    [name] = [name for name, (column, _) in chosen.items() if column == wanted]
    return Plan(chosen, name, columns)


def _write_splits(
    source: Source, data: "Data", plan: Plan, seed: int, folder: Path, kinds: Mapping[str, col.Description]
) -> dict[str, "_File"]:
    """Write the rows of each split to its Parquet file."""
    missing = [name for name in SPLITS if name not in source.splits]
    dropped = 0
    with ExitStack() as ends:
        files = {name: ends.enter_context(_File(folder / f"{name}.parquet")) for name in SPLITS}
        for split, rows in source.splits.items():
            places = _assign_splits(rows, data, plan, seed, split, missing if split == "train" else [])
            dropped += int((places == DROPPED).sum())
            start = 0
            for batch in _batches(rows, plan, source.folder):
                count = len(next(iter(batch.values())))
                _check(data, batch, split, rows, start)
                here = places[start : start + count]
                start += count
                for name in np.unique(here[here != DROPPED]):
                    mask = pa.array(here == name)
                    part = {key: column.filter(mask) for key, column in batch.items()}
                    for key, column in part.items():
                        kinds[key].add(column, name)
                    files[name].add(part)
    if dropped:
        say(f"Dropped {dropped} rows without a value of {plan.source}.")
    return files


def _batches(rows: Rows, plan: Plan, folder: Path | None) -> Iterator[dict[str, pa.Array]]:
    """Read the rows of a split with the columns and kinds of the plan."""
    wanted = list(dict.fromkeys(column for column, _ in plan.columns.values()))
    for batch in rows.read(wanted):
        yield {
            name: _column(batch[column], kind, f"column {column}", folder)
            for name, (column, kind) in plan.columns.items()
        }


def _column(column: pa.Array, kind: str, name: str, folder: Path | None) -> pa.Array:
    if kind == "bytes" and col.kind_of(column.type) == "text" and folder is not None:
        return pa.array([path and _file(folder / path, name) for path in column.to_pylist()], pa.binary())
    return col.cast(column, kind, name)


def _file(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StackError(f"{name}: cannot read the file {path} ({error.strerror})") from None


def _check(data: "Data", batch: Mapping[str, pa.Array], split: str, rows: Rows, start: int) -> None:
    """Run the project's check on a batch of rows. Raises StackError with the row that fails."""
    check = getattr(data, "check", None)
    if check is None:
        return
    values = {name: _plain(column) for name, column in batch.items()}
    try:
        check(values)
    except ValueError as batch_error:
        for row in range(len(next(iter(values.values())))):
            try:
                check({name: column[row : row + 1] for name, column in values.items()})
            except ValueError as error:
                raise StackError(f"{split}, {rows.name(start + row)}: {error}") from None
        raise StackError(f"{split}, {rows.name(start)} and later: {batch_error}") from None


def _plain(column: pa.Array) -> Any:
    """Convert a column to an array, or to a list if its values are not numbers."""
    if isinstance(column, pa.FixedShapeTensorArray):
        return column.to_numpy_ndarray()
    return column.to_numpy(zero_copy_only=False) if col.kind_of(column.type) == "number" else column.to_pylist()


def _assign_splits(
    rows: Rows, data: "Data", plan: Plan, seed: int, split: str, missing: Sequence[str]
) -> NDArray[np.str_]:
    """Assign each row to a split: its own, or one that the source lacks. Rows without a target are dropped."""
    parts = [batch[plan.source] for batch in rows.read([plan.source])]
    target = pa.chunked_array(parts, rows.types[plan.source])
    there = ~np.asarray(target.is_null(nan_is_null=True))
    places: NDArray[np.str_] = np.where(there, split, DROPPED).astype("<U10")
    if not missing:
        return places
    kept = np.flatnonzero(there)
    given = getattr(data, "split", None)
    if given:
        chosen = _checked(given(_Columns(rows, plan, kept), seed), missing, len(kept))
    else:
        values = target.to_numpy()[kept] if plan.columns[plan.target][1] == "category" else np.zeros(len(kept), int)
        chosen = stratified_split(values, seed)
    for name in missing:
        places[kept[chosen[name]]] = name
    return places


def _checked(chosen: Any, missing: Sequence[str], count: int) -> dict[str, NDArray[np.intp]]:
    """Return the rows that `split` in data.py chose for each of the `missing` splits. Raises StackError."""
    expected = f"split in data.py must return a dict of row numbers for {' and '.join(missing)}"
    if not isinstance(chosen, Mapping) or any(name not in chosen for name in missing):
        got = ", ".join(map(str, chosen)) if isinstance(chosen, Mapping) else type(chosen).__name__
        raise StackError(f"{expected}, got {got}")
    found = {name: np.asarray(chosen[name]) for name in missing}
    for name, each in found.items():
        if each.dtype == bool and each.shape == (count,):
            found[name] = each = np.flatnonzero(each)
        if len(each) and (each.dtype.kind not in "iu" or each.min() < 0 or each.max() >= count):
            raise StackError(f"{expected}; those of {name} are not all from 0 to {count - 1}")
    every = np.concatenate(list(found.values()))
    if len(np.unique(every)) < len(every):
        raise StackError(f"{expected}; some rows are in more than one of them")
    return {name: each.astype(np.intp) for name, each in found.items()}


def stratified_split(values: NDArray[Any], seed: int) -> dict[str, NDArray[np.intp]]:
    """Draw disjoint rows for each split with `seed`, stratified by value unless each value is too rare for that."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[NDArray[np.intp]]] = {name: [] for name in FRACTIONS}
    _, codes = np.unique(values.astype(str) if values.dtype == object else values, return_inverse=True)
    for code in range(codes.max(initial=-1) + 1):
        members = rng.permutation(np.flatnonzero(codes == code))
        ends = np.cumsum([round(share * len(members)) for share in FRACTIONS.values()])[:-1]
        for name, part in zip(FRACTIONS, np.split(members, ends), strict=True):
            rows[name].append(part)
    drawn = {name: np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.intp) for name, parts in rows.items()}
    if codes.max(initial=0) and not all(map(len, drawn.values())):
        return stratified_split(np.zeros(len(values), int), seed)
    return drawn


class _Columns(Mapping[str, Any]):
    """Columns of selected rows of a source, each read on access."""

    def __init__(self, rows: Rows, plan: Plan, kept: NDArray[np.intp]) -> None:
        self.rows, self.plan, self.kept = rows, plan, kept

    def __getitem__(self, name: str) -> Any:
        column, kind = self.plan.columns[name]
        parts = [_plain(col.cast(batch[column], kind, f"column {column}")) for batch in self.rows.read([column])]
        return np.concatenate([np.asarray(part) for part in parts])[self.kept]

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.columns)

    def __len__(self) -> int:
        return len(self.plan.columns)


class _File:
    """A Parquet file that is written one row group at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self.waiting: list[pa.Table] = []
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_File":
        return self

    def add(self, columns: Mapping[str, pa.Array]) -> None:
        """Add rows; they are buffered until a row group is full."""
        table = pa.table(dict(columns))
        self.writer = self.writer or pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self.waiting.append(table)
        self.rows += table.num_rows
        waiting = sum(one.num_rows for one in self.waiting), sum(one.nbytes for one in self.waiting)
        if waiting[0] >= GROUP_ROWS or waiting[1] >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self.writer and self.waiting:
            self.writer.write_table(pa.concat_tables(self.waiting), row_group_size=GROUP_ROWS)
            self.waiting = []

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self._flush()
        if self.writer:
            self.writer.close()
