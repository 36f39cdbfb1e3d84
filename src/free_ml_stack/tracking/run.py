"""The record of a run: always a metrics.jsonl on disk, and optionally Weights & Biases or Trackio."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from free_ml_stack.console import Progress
from free_ml_stack.errors import StackError
from free_ml_stack.project.settings import find_root
from free_ml_stack.tracking.tracker import Tracker, Values

METRICS = "metrics.jsonl"
CLAIM = ".running"  # lock file held by the process of the run
EVENTS = "tracked.jsonl"  # all tracker calls except metrics, so that they can be repeated by `sync`
CHANGES = "changes.patch"  # differences from the commit
LINE_SECONDS = 30.0  # between two lines of progress without a terminal
FACTS = ("commit", "environment", "data")  # fields added to the configuration for the tracker


def claim(folder: Path) -> FileLock:
    """Lock a run for this process until the lock is released or the process ends."""
    lock = FileLock(folder / CLAIM)
    with suppress(Timeout, OSError):
        lock.acquire(timeout=0)
    return lock


def is_claimed(folder: Path) -> bool:
    """Return whether a process holds the lock of a run; its pid alone may have been reused."""
    try:
        FileLock(folder / CLAIM).acquire(timeout=0).lock.release()
    except (Timeout, OSError):
        return True
    return False


def file_sum(path: Path) -> str:
    """Compute the SHA-256 of a file, or "" if it does not exist; `sync` uses it to detect changed files."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


class Record:
    """An append-only JSON Lines file."""

    def __init__(self, path: Path, lock: FileLock | None = None) -> None:
        self.path, self.lock = path, lock
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")
        content = self.content()
        self.rows = content.count(b"\n")
        if not content.endswith(b"\n"):  # remove an incomplete line left by a crash
            self.file.truncate(content.rfind(b"\n") + 1)

    def write(self, values: Values) -> None:
        """Append one line, flushed so that it survives a crash of this process."""
        self.file.write(json.dumps(values).encode() + b"\n")
        self.file.flush()
        self.rows += 1

    def content(self) -> bytes:
        """Return the content of the file."""
        return self.path.read_bytes()

    def restore(self, content: bytes) -> None:
        """Replace the content of the file."""
        self.file.truncate(0)
        self.file.write(content)
        self.file.flush()
        self.rows = content.count(b"\n")

    def close(self) -> None:
        """Close the file and release the lock."""
        self.file.close()
        if self.lock:
            self.lock.release()


class NoRecord(Record):
    """A record that writes nothing, for all processes except the first."""

    def __init__(self) -> None:
        self.rows = 0

    def write(self, values: Values) -> None:
        """Do nothing."""

    def content(self) -> bytes:
        """Return nothing."""
        return b""

    def restore(self, content: bytes) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Run:
    """Record one run in `runs/<id>/` and in its tracker."""

    def __init__(
        self,
        id: str,
        folder: Path,
        tracker: Tracker,
        record: Record | None = None,
        events: Record | None = None,
    ) -> None:
        self.id, self.folder, self.tracker = id, folder, tracker
        self.shown = False  # whether progress is displayed; not for trials
        self.progress: Progress | None = None
        self.record, self.events = record or Record(folder / METRICS), events or NoRecord()

    def expect(self, steps: int, done: int) -> None:
        """Display progress towards `steps` optimizer steps, of which `done` were completed before a restart."""
        if self.shown:
            self.progress = Progress(steps, "steps", done=done, seconds=LINE_SECONDS)

    def log(self, step: int, **values: float) -> None:
        """Record metrics of `step`, which counts optimizer steps from 1; a step can be logged more than once.

        Do not log times, so that equal runs have equal records. Raises RunStoppedError if the tracker stops the run.
        """
        row = {"step": step, **values}
        self.record.write(row)
        if self.progress:
            self.progress.at(step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self.tracker.log(self.record.rows - 1, row)

    def summary(self, **values: Any) -> None:
        """Set summary values of the run: numbers, texts, or nested mappings of them."""
        self._forward("summary", values=values)

    def picture(self, name: str, path: Path) -> None:
        """Add the PNG file at `path` to the run as `name`."""
        self._forward("picture", name=name, path=self.relative(path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table to the run; rows have the length of `columns`, and a Path of a project's PNG is a picture."""
        cells = [[self.relative(cell) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self._forward("table", name=name, columns=list(columns), rows=cells)

    def uses(self, name: str, alias: str) -> None:
        """Record a version of an existing artifact as input of this run."""
        self._forward("uses", name=name, alias=alias)

    def made(self, name: str, kind: str, files: Sequence[Path], alias: str, used: bool = False, **facts: Any) -> None:
        """Record files as the version `alias` of an artifact: this run's output, or its input if `used`."""
        paths = [self.relative(path) for path in files]
        self._forward("made", name=name, kind=kind, files=paths, alias=alias, facts=facts, used=used)

    def file(self, path: Path) -> None:
        """Add a file to the run."""
        self._forward("file", path=self.relative(path))

    @property
    def tracked(self) -> bool:
        """Return whether tracker calls are recorded, so that artifacts are worth creating."""
        return not isinstance(self.events, NoRecord)

    def finish(self, exit_code: int = 0) -> str:
        """End the run; return the line that shows where to see it, or how to upload it later."""
        self.record.close()
        if self.progress:
            self.progress.close()
        self.events.write({"call": "finish", "exit_code": exit_code})
        seen = self.tracker.finish(exit_code)
        if self.tracker.complete:
            self.events.write({"call": "sent", "rows": self.record.rows})
        self.events.close()
        return seen

    def _forward(self, call: str, **arguments: Any) -> None:
        if self.tracked:
            paths = [*arguments.get("files", ()), *filter(None, [arguments.get("path")])]
            sums = {path: total for path in paths if (total := file_sum(self.folder / path))}
            self.events.write({"call": call, **arguments, **({"sums": sums} if sums else {})})
        getattr(self.tracker, call)(**arguments)

    def relative(self, path: Path) -> str:
        """Return a path for the record: relative to the run's folder if in the project, which may be moved."""
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        try:
            root = find_root(self.folder)
        except StackError:  # not in a project
            return str(path)
        return Path(os.path.relpath(path, self.folder)).as_posix() if path.is_relative_to(root) else str(path)
