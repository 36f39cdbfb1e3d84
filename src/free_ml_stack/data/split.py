"""One split of a data set, as training reads it: memory-mapped, a batch at a time, prepared in the background."""

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DRAWS = 16  # random numbers of each row
FORGET = 64 << 20  # bytes read of a file, after which its pages may leave this process's memory
THREADS = 4


class Process(Protocol):
    """One of those that train together."""

    @property
    def device(self) -> "torch.device":
        """Where its tensors are."""

    def mine(self, rows: Any) -> Any:
        """Its share of some rows."""


Columns = Mapping[str, Any]
Prepare = Callable[[Columns, NDArray[np.float32] | None], Mapping[str, Any]]


class Cells(Sequence[Any]):
    """A column of texts or bytes: one file of all of them, memory-mapped, and where each ends. None where missing."""

    def __init__(self, path: Path, text: bool) -> None:
        self.text = text
        self.ends: NDArray[np.int64] = np.load(path.with_suffix(".ends.npy"), mmap_mode="r")
        self.bytes: mmap.mmap | bytes = b""
        with path.open("rb") as file:
            if path.stat().st_size:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.read = 0

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        """The value of a row, or the list of them of a slice or of many rows."""
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not isinstance(row, int | np.integer):
            return [self[int(one)] for one in row]
        at = range(len(self))[int(row)]
        end = int(self.ends[at])
        if end < 0:  # missing: the complement of where it would be
            return None
        before = int(self.ends[at - 1]) if at else 0
        start = before if before >= 0 else ~before
        value = self.bytes[start:end]
        self._forget(len(value))
        return value.decode() if self.text else value

    def _forget(self, count: int) -> None:
        """Give pages back that were read: counted as this process's, they would look like a leak."""
        self.read += count
        if self.read > FORGET and isinstance(self.bytes, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.read = 0
            self.bytes.madvise(mmap.MADV_DONTNEED)


class Split(Mapping[str, Any]):
    """Map the columns of one split of the data set, by name.

    A number, tensor or category is an array (rows, …), memory-mapped: read it, never write to it. A category is a place
    among `facts["columns"][name]["categories"]`, -1 where it is missing. A date is datetime64 in microseconds. A text
    or encoded file is a sequence of str or bytes. `facts` is the manifest.
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

    def categories(self, name: str) -> list[Any]:
        """Return the sorted values of a category, each at the place that stands for it in the column."""
        found: list[Any] = self.facts["columns"][name]["categories"]
        return found

    def take(self, rows: Any) -> dict[str, Any]:
        """Gather some rows: of each column an array (len(rows), …), or a list of texts or bytes."""
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
        process: Process | None = None,
        seed: Sequence[int] = (),
        first: int = 0,
    ) -> "Iterator[dict[str, Tensor]]":
        """Prepare `rows`, `size` at a time from batch number `first` on, and move them to the process's device.

        `prepare(columns, draws)` gets what `take` gives and returns arrays or tensors by name. `draws` (rows, 16) are
        uniform in [0, 1), drawn from `seed` and the batch's number alone, whatever the process; None without `seed`.
        Of many processes each gets its share. Where a column is text or bytes, threads prepare the next batches
        meanwhile; `prepare` must be safe in them.
        """
        chosen = np.asarray(rows)

        def work(number: int) -> Mapping[str, Any]:
            part = chosen[number * size : (number + 1) * size]
            draws = np.random.default_rng((*seed, number)).random((len(part), DRAWS), np.float32) if seed else None
            if process:
                part, draws = process.mine(part), None if draws is None else process.mine(draws)
            return prepare(self.take(part), draws)

        variable = any(isinstance(column, Cells) for column in self.columns.values())
        numbers = range(first, -(-len(chosen) // size))
        for found in _ahead(work, numbers) if variable else map(work, numbers):
            yield {name: _tensor(values, process) for name, values in found.items()}


def _ahead(work: Callable[[int], Mapping[str, Any]], numbers: range) -> Iterator[Mapping[str, Any]]:
    """Do the next few pieces of work in threads, in order."""
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


def _tensor(values: Any, process: Process | None) -> "Tensor":
    import torch

    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(process.device, non_blocking=True) if process else tensor
