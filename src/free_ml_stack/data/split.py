"""A split of the data set for training: memory-mapped columns, and batches prepared in background threads."""

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from free_ml_stack.data.shards import ShardedColumn, row_numbers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CELLS, ENDS = ".cells", ".ends.npy"  # suffixes of the two files of a column of texts or bytes
DRAWS = 16  # random numbers per row
RELEASE_BYTES = 64 << 20  # bytes read before the pages of a file are released
THREADS = 4
DECODED_BYTES = 256 << 20  # decoded values of a column that are kept in memory


class ProcessLike(Protocol):
    """A process of distributed training."""

    @property
    def device(self) -> "torch.device":
        """Return the device of its tensors."""

    def mine(self, rows: Any) -> Any:
        """Return its share of some rows."""


Columns = Mapping[str, Any]
Prepare = Callable[[Columns, NDArray[np.float32] | None], Mapping[str, Any]]


class Cells(Sequence[Any]):
    """A memory-mapped column of texts or bytes: one file of all values, one of their ends. Missing values are None.

    Raises ValueError if the file of the values does not have the length that the other one states.
    """

    def __init__(self, path: Path, text: bool) -> None:
        self.text = text
        self.ends: NDArray[np.int64] = np.load(path.with_suffix(ENDS), mmap_mode="r")
        last = int(self.ends[-1]) if len(self.ends) else 0
        if path.stat().st_size != max(last, ~last):
            raise ValueError(f"{path} is not complete")
        self.bytes: mmap.mmap | bytes = b""
        with path.open("rb") as file:
            if path.stat().st_size:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.read = 0

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        """Return the value of a row, or a list of values for a slice or an array of rows."""
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not isinstance(row, int | np.integer):
            return [self[int(one)] for one in row]
        at = range(len(self))[int(row)]
        end = int(self.ends[at])
        if end < 0:  # missing: the complement of its offset
            return None
        before = int(self.ends[at - 1]) if at else 0
        start = before if before >= 0 else ~before
        value = self.bytes[start:end]
        self._release_pages(len(value))
        return value.decode() if self.text else value

    def _release_pages(self, count: int) -> None:
        """Release pages that were read: they count as this process's memory and look like a leak."""
        self.read += count
        if self.read > RELEASE_BYTES and isinstance(self.bytes, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.read = 0
            self.bytes.madvise(mmap.MADV_DONTNEED)


class Decoded(Sequence[Any]):
    """A column whose values `decode` converts to arrays of one shape, at first use; the first rows are kept."""

    def __init__(self, column: Any, decode: Callable[[Any], NDArray[Any]]) -> None:
        self.column, self.decode = column, decode
        one = decode(column[0])
        kept = min(len(column), DECODED_BYTES // max(one.nbytes, 1))
        self.values: NDArray[Any] = np.empty((kept, *one.shape), one.dtype)  # uses memory as it is filled
        self.known: NDArray[np.bool_] = np.zeros(len(column), bool)  # rows in `values`

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: Any) -> Any:
        """Return the array of a row, or of a slice or an array of rows (n, …)."""
        if isinstance(row, int | np.integer):
            return self[[range(len(self))[int(row)]]][0]
        chosen = row_numbers(row, len(self))
        found = np.empty((len(chosen), *self.values.shape[1:]), self.values.dtype)
        known = self.known[chosen]
        found[known] = self.values[chosen[known]]
        missing = np.flatnonzero(~known)
        for place, value in zip(missing, self.column[chosen[missing]], strict=True):
            found[place] = self.decode(value)
        new = missing[chosen[missing] < len(self.values)]
        self.values[chosen[new]] = found[new]  # two threads may both write a row: the same bytes
        self.known[chosen[new]] = True
        return found


class Split(Mapping[str, Any]):
    """Map the columns of one split of the data set, by name.

    A number, tensor or category is a memory-mapped array (rows, …); do not write to it. A category is an index into
    `facts["columns"][name]["categories"]`, or -1 if missing. A date is datetime64 in microseconds. A text or encoded
    file is a sequence of str or bytes. With the setting `cache_bytes`, tensors, texts and files of a larger data set
    are read by rows only: `split.take(rows)`, `split["image"][rows]`. `facts` is the manifest.
    """

    def __init__(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.columns, self.facts = dict(columns), facts

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def rows(self) -> int:
        """Count the examples of the split."""
        return len(next(iter(self.columns.values())))

    def decoded(self, name: str, decode: Callable[[Any], NDArray[Any]]) -> "Split":
        """Return this split with the values of a column as arrays of one shape, each decoded once if memory allows.

        Up to 256 MiB are kept; further rows are decoded in each epoch. Not for what depends on random numbers.
        """
        return Split({**self.columns, name: Decoded(self.columns[name], decode)}, self.facts)

    def order(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """Return all rows in random order; with a bounded cache, rows are mixed within a few shards at a time."""
        stored = [column.column if isinstance(column, Decoded) else column for column in self.columns.values()]
        shards = [column.shards for column in stored if isinstance(column, ShardedColumn)]
        return shards[0].order(rng) if shards else rng.permutation(self.rows)

    def categories(self, name: str) -> list[Any]:
        """Return the sorted values of a category; the column holds indices into this list."""
        found: list[Any] = self.facts["columns"][name]["categories"]
        return found

    def take(self, rows: Any) -> dict[str, Any]:
        """Gather rows: an array (len(rows), …) of each column, or a list of texts or bytes."""
        chosen = np.asarray(rows)
        return {
            name: [column[row] for row in chosen] if isinstance(column, list) else column[chosen]
            for name, column in self.columns.items()
        }

    def batches(
        self,
        rows: Any,
        size: int,
        prepare: Prepare,
        process: ProcessLike | None = None,
        seed: Sequence[int] = (),
        first: int = 0,
    ) -> "Iterator[dict[str, Tensor]]":
        """Iterate over batches of `size` `rows`, starting at batch number `first`, on the device of `process`.

        `prepare(columns, draws)` receives the result of `take` and returns arrays or tensors by name. `draws` (rows,
        16) are uniform in [0, 1) and depend on `seed` and the batch number only, not on the process; None without
        `seed`. With several processes, each one receives its share of every batch. If a column is text or bytes,
        threads prepare the next batches in the background, so `prepare` must be thread-safe.
        """
        chosen = np.asarray(rows)

        def work(number: int) -> Mapping[str, Any]:
            part = chosen[number * size : (number + 1) * size]
            draws = np.random.default_rng((*seed, number)).random((len(part), DRAWS), np.float32) if seed else None
            if process:
                part, draws = process.mine(part), None if draws is None else process.mine(draws)
            return prepare(self.take(part), draws)

        variable = any(isinstance(column, Cells | ShardedColumn | Decoded) for column in self.columns.values())
        numbers = range(first, -(-len(chosen) // size))
        for found in _prefetch(work, numbers) if variable else map(work, numbers):
            yield {name: _tensor(values, process) for name, values in found.items()}


def _prefetch(work: Callable[[int], Mapping[str, Any]], numbers: range) -> Iterator[Mapping[str, Any]]:
    """Compute the next few results in threads; yield them in order."""
    threads = min(THREADS, os.cpu_count() or 1)
    waiting: deque[Future[Mapping[str, Any]]] = deque()
    with ThreadPoolExecutor(threads, "prepare") as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(work, number))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _tensor(values: Any, process: ProcessLike | None) -> "Tensor":
    import torch

    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(process.device, non_blocking=True) if process else tensor
