"""One record of a run: a plain metrics.jsonl always, and the same numbers to Weights & Biases or Trackio."""

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
CLAIM = ".running"  # held by the process whose run it is
EVENTS = "tracked.jsonl"  # all that a tracker was given besides the metrics, so that it can be sent again
CHANGES = "changes.patch"  # what differs from the commit
LINE_SECONDS = 30.0  # between two lines of progress where nobody watches a bar
FACTS = ("commit", "environment", "data")  # what a tracker is told with a run's configuration


def claim(folder: Path) -> FileLock:
    """Mark a run as this process's own, until the lock is released or the process ends."""
    lock = FileLock(folder / CLAIM)
    with suppress(Timeout, OSError):
        lock.acquire(timeout=0)
    return lock


def claimed(folder: Path) -> bool:
    """Whether a process may have claimed a run; a pid alone says little, for it is used again after a restart."""
    try:
        FileLock(folder / CLAIM).acquire(timeout=0).lock.release()
    except (Timeout, OSError):
        return True
    return False


def file_sum(path: Path) -> str:
    """The checksum of a file, "" where there is none: what is sent later is compared with what it was."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def named_from(folder: Path, path: Path) -> str:
    """A path as a record of the run in `folder` keeps it: relative within the project, which may be moved."""
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    try:
        root = find_root(folder)
    except StackError:  # no project's run
        return str(path)
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(root) else str(path)


class Record:
    """A file of JSON lines that only grows, a line a call."""

    def __init__(self, path: Path, lock: FileLock | None = None) -> None:
        self.path, self.lock = path, lock
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")
        content = self.content()
        self.rows = content.count(b"\n")
        if not content.endswith(b"\n"):  # a line that a crash has left torn would spoil the next one
            self.file.truncate(content.rfind(b"\n") + 1)

    def write(self, values: Values) -> None:
        """Append one line; it survives the end of this process, however it ends."""
        self.file.write(json.dumps(values).encode() + b"\n")
        self.file.flush()
        self.rows += 1

    def content(self) -> bytes:
        """All that was written."""
        return self.path.read_bytes()

    def restore(self, content: bytes) -> None:
        """Begin again after `content`."""
        self.file.truncate(0)
        self.file.write(content)
        self.file.flush()
        self.rows = content.count(b"\n")

    def close(self) -> None:
        """Write no more."""
        self.file.close()
        if self.lock:
            self.lock.release()


class NoRecord(Record):
    """The record of a process that another one writes for."""

    def __init__(self) -> None:
        self.rows = 0

    def write(self, values: Values) -> None:
        """Keep nothing."""

    def content(self) -> bytes:
        """Nothing."""
        return b""

    def restore(self, content: bytes) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Nothing to close."""


class Run:
    """Record one run in `runs/<id>/`, and tell its tracker of it."""

    def __init__(
        self,
        id: str,
        folder: Path,
        tracker: Tracker,
        record: Record | None = None,
        events: Record | None = None,
    ) -> None:
        self.id, self.folder, self.tracker = id, folder, tracker
        self.shown = False  # whether its progress is; a trial's is not
        self.progress: Progress | None = None
        self.record, self.events = record or Record(folder / METRICS), events or NoRecord()

    def expect(self, steps: int, done: int) -> None:
        """Show progress towards `steps` optimizer steps in all, of which `done` were done before a restart."""
        if self.shown:
            self.progress = Progress(steps, "steps", done=done, seconds=LINE_SECONDS)

    def log(self, step: int, **values: float) -> None:
        """Record numbers of `step`, which counts optimizer steps from 1; a step may be logged more than once.

        Leave out what comes of the clock: equal runs have equal records. Raises RunStoppedError where the tracker
        ends the run.
        """
        row = {"step": step, **values}
        self.record.write(row)
        if self.progress:
            self.progress.at(step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self.tracker.log(self.record.rows - 1, row)

    def summary(self, **values: Any) -> None:
        """Set final values of the run: numbers, texts, or nested mappings of them."""
        self._tell("summary", values=values)

    def picture(self, name: str, path: Path) -> None:
        """Show the PNG file at `path` with the run, under `name`."""
        self._tell("picture", name=name, path=self._relative(path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table with the run, each row as long as `columns`; a Path in a cell is a picture."""
        cells = [[self._relative(cell) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self._tell("table", name=name, columns=list(columns), rows=cells)

    def uses(self, name: str, alias: str) -> None:
        """Say that this run starts from a version of an artifact that another one made."""
        self._tell("uses", name=name, alias=alias)

    def made(self, name: str, kind: str, files: Sequence[Path], alias: str, used: bool = False, **facts: Any) -> None:
        """Keep files as the version `alias` of an artifact: this run's output, or its input if `used`."""
        paths = [self._relative(path) for path in files]
        self._tell("made", name=name, kind=kind, files=paths, alias=alias, facts=facts, used=used)

    def file(self, path: Path) -> None:
        """Keep a file with the run."""
        self._tell("file", path=self._relative(path))

    @property
    def tracked(self) -> bool:
        """Whether anything but the metrics is kept, so that it is worth making."""
        return not isinstance(self.events, NoRecord)

    def finish(self, exit_code: int = 0) -> str:
        """End the run; returns the line that says where it can be seen, or how it gets there later."""
        self.record.close()
        if self.progress:
            self.progress.close()
        self.events.write({"call": "finish", "exit_code": exit_code})
        seen = self.tracker.finish(exit_code)
        if self.tracker.complete:
            self.events.write({"call": "sent", "rows": self.record.rows})
        self.events.close()
        return seen

    def _tell(self, call: str, **arguments: Any) -> None:
        if self.tracked:
            paths = [*arguments.get("files", ()), *filter(None, [arguments.get("path")])]
            sums = {path: total for path in paths if (total := file_sum(self.folder / path))}
            self.events.write({"call": call, **arguments, **({"sums": sums} if sums else {})})
        getattr(self.tracker, call)(**arguments)

    def _relative(self, path: Path) -> str:
        return named_from(self.folder, path)
