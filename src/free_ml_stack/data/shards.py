"""Columns of a split that does not fit the disk: shards fetched on demand into a cache with an upper bound."""

import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIX = 4  # shards whose rows are shuffled together
OPEN = 2 * MIX  # shards of a split that are mapped at a time: those in use, and those that are read ahead
STALE = 600  # seconds after which a temporary folder belongs to a killed process

Columns = Mapping[str, Any]


class Shards:
    """The shards of one split in a cache folder of at most `limit` bytes, shared with other splits and processes.

    `sizes` are the rows of each shard, `fetch(number, folder)` decodes a shard into a folder, and `load(folder)` maps
    it, or raises OSError, ValueError or EOFError if it is missing or damaged. The least recently used are removed.
    """

    def __init__(
        self,
        root: Path,
        key: str,
        limit: int,
        sizes: Sequence[int],
        fetch: Callable[[int, Path], None],
        load: Callable[[Path], Columns],
    ) -> None:
        self.root, self.key, self.limit, self.fetch, self.load = root, key, limit, fetch, load
        self.ends: NDArray[np.int64] = np.cumsum(sizes, dtype=np.int64)
        self.mapped: OrderedDict[int, Columns] = OrderedDict()
        self.lock = threading.Lock()
        self.locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)

    @property
    def rows(self) -> int:
        """Count the rows of all shards."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def start(self, number: int) -> int:
        """Return the first row of a shard."""
        return int(self.ends[number - 1]) if number else 0

    def get(self, number: int) -> Columns:
        """Return the columns of a shard; fetch it unless the cache has it."""
        with self.lock:
            own = self.locks[number]
        with own:
            with self.lock:
                found = self.mapped.get(number)
            folder = self.root / f"{self.key}-{number}"
            found = self._load(number, folder) if found is None else found
            with suppress(OSError):
                os.utime(folder)
            with self.lock:
                self.mapped[number] = found
                self.mapped.move_to_end(number)
                while len(self.mapped) > OPEN:
                    self.mapped.popitem(last=False)
        return found

    def order(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """Return all rows in random order: the shards are shuffled, and the rows of every MIX shards together."""
        shards = rng.permutation(len(self.ends))
        rows = [np.arange(self.start(number), self.ends[number], dtype=np.intp) for number in shards]
        mixed = [rng.permutation(np.concatenate(rows[at : at + MIX])) for at in range(0, len(rows), MIX)]
        return np.concatenate(mixed) if mixed else np.zeros(0, np.intp)

    def _load(self, number: int, folder: Path) -> Columns:
        """Map a shard; fetch it if it is missing or damaged."""
        try:
            return self.load(folder)
        except (OSError, ValueError, EOFError):
            return self._fetch(number, folder)

    def _fetch(self, number: int, folder: Path) -> Columns:
        """Fetch a shard and add it to the cache; return it, mapped before another process can remove it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".") as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            self.fetch(number, made)
            found = self.load(made)
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another process was faster
                made.rename(folder)
        self._evict(folder)
        return found

    def _evict(self, kept: Path) -> None:
        """Remove the least recently used shards above the limit, and what killed processes left."""
        entries = []
        for path in self.root.iterdir():
            with suppress(OSError):
                entries.append((path.stat().st_mtime, sum(file.stat().st_size for file in path.rglob("*")), path))
        total = sum(size for _, size, _ in entries)
        for used, size, path in sorted(entries):
            temporary = path.name.startswith(".")
            stale = temporary and time.time() - used > STALE
            if stale or (total > self.limit and path != kept and not temporary):
                total -= size
                shutil.rmtree(path, ignore_errors=True)


def row_numbers(rows: Any, count: int) -> NDArray[np.int64]:
    """Return the rows (n,) of `count` that a slice, a mask, or numbers, also negative ones, select."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count))
    chosen = np.asarray(rows)
    chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
    return np.where(chosen < 0, chosen + count, chosen)


class ShardedColumn(Sequence[Any]):
    """A column in shards. An array of rows or a slice gives an array, or a list of texts or bytes."""

    def __init__(self, shards: Shards, name: str) -> None:
        self.shards, self.name = shards, name

    def __len__(self) -> int:
        return self.shards.rows

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, int | np.integer):
            row = range(len(self))[int(rows)]
            number = int(np.searchsorted(self.shards.ends, row, "right"))
            return self.shards.get(number)[self.name][row - self.shards.start(number)]
        chosen = row_numbers(rows, len(self))
        numbers = np.searchsorted(self.shards.ends, chosen, "right")
        found: Any = None
        for number in np.unique(numbers) if len(chosen) else [0]:
            at = np.flatnonzero(numbers == number)
            part = self.shards.get(int(number))[self.name][chosen[at] - self.shards.start(int(number))]
            if found is None:
                found = (
                    [None] * len(chosen)
                    if isinstance(part, list)
                    else np.empty((len(chosen), *part.shape[1:]), part.dtype)
                )
            if isinstance(part, list):
                for place, value in zip(at, part, strict=True):
                    found[place] = value
            else:
                found[at] = part
        return found
