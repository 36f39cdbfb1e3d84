"""One record of a run: a plain metrics.jsonl always, and the same numbers to Weights & Biases or Trackio."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from free_ml_stack.tracking import provenance
from free_ml_stack.console import Progress, say
from free_ml_stack.locks import claim

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings
    from free_ml_stack.credentials.report import Report

METRICS = "metrics.jsonl"
TOLD = "tracked.jsonl"  # all that a tracker was told besides the metrics, so that it can be told again
CHANGES = "changes.patch"  # what differs from the commit
LINE_SECONDS = 30.0  # between two lines of progress where nobody watches a bar
FACTS = ("commit", "environment", "data")  # what a tracker is told with a run's configuration
PREEMPTED = 75  # the exit code of a run that goes on later
Values = Mapping[str, Any]


class Stopped(Exception):  # noqa: N818 - an order, not a fault
    """A sweep, or somebody at the tracker's page, has ended this run: raised by `log`."""


class Tracker(Protocol):
    """Where a run's numbers go besides the record on disk. Paths are relative to the run's folder or absolute."""

    def log(self, row: int, values: Mapping[str, float]) -> None: ...

    def summary(self, values: Values) -> None: ...

    def picture(self, name: str, path: str) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def confusion(self, labels: Sequence[int], predicted: Sequence[int], names: Sequence[str]) -> None: ...

    def uses(self, name: str, alias: str) -> None: ...

    def made(
        self, name: str, kind: str, files: Sequence[str], alias: str, facts: Values, used: bool
    ) -> None: ...

    def file(self, path: str) -> None: ...

    def finish(self, exit_code: int) -> str: ...

    def over(self) -> bool: ...

    @property
    def complete(self) -> bool: ...


class Untracked:
    """The tracker that keeps nothing, so that no caller needs to ask."""

    def log(self, row: int, values: Mapping[str, float]) -> None:
        """Keep nothing."""

    def summary(self, values: Values) -> None:
        """Keep nothing."""

    def picture(self, name: str, path: str) -> None:
        """Keep nothing."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep nothing."""

    def confusion(self, labels: Sequence[int], predicted: Sequence[int], names: Sequence[str]) -> None:
        """Keep nothing."""

    def uses(self, name: str, alias: str) -> None:
        """Keep nothing."""

    def made(self, name: str, kind: str, files: Sequence[str], alias: str, facts: Values, used: bool) -> None:
        """Keep nothing."""

    def file(self, path: str) -> None:
        """Keep nothing."""

    def finish(self, exit_code: int) -> str:
        """Say nothing."""
        return ""

    def over(self) -> bool:
        """Whether a run that the system stops is not to go on later."""
        return False

    @property
    def complete(self) -> bool:
        """Whether all has arrived elsewhere."""
        return False


class Record:
    """A file of JSON lines that only grows, a line a call."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
    """One run: its id, its folder, its record and its tracker."""

    def __init__(
        self,
        id: str,
        folder: Path,
        tracker: Tracker,
        record: Record | None = None,
        told: Record | None = None,
    ) -> None:
        self.id, self.folder, self.tracker = id, folder, tracker
        self.shown = False  # whether its progress is; a trial's is not
        self.progress: Progress | None = None
        self.record, self.told = record or Record(folder / METRICS), told or NoRecord()

    def expect(self, steps: int, done: int) -> None:
        """Show how far the run is, of `steps` in all, `done` of them before."""
        if self.shown:
            self.progress = Progress(steps, "steps", done=done, seconds=LINE_SECONDS)

    def log(self, step: int, **values: float) -> None:
        """Record numbers of a step; never of the clock, so that equal runs have equal records."""
        row = {"step": step, **values}
        self.record.write(row)
        if self.progress:
            self.progress.at(step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self.tracker.log(self.record.rows - 1, row)

    def summary(self, **values: Any) -> None:
        """Set final numbers of the run."""
        self._tell("summary", values=values)

    def picture(self, name: str, path: Path) -> None:
        """Show a picture with the run."""
        self._tell("picture", name=name, path=self._relative(path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table with the run; a Path in it is a picture."""
        cells = [[self._relative(cell) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self._tell("table", name=name, columns=list(columns), rows=cells)

    def confusion(self, labels: Sequence[int], predicted: Sequence[int], names: Sequence[Any]) -> None:
        """Show how often each class is taken for which."""
        named = [str(name) for name in names]
        self._tell("confusion", labels=list(labels), predicted=list(predicted), names=named)

    def uses(self, name: str, alias: str) -> None:
        """Say that this run starts from a version of an artifact that another one made."""
        self._tell("uses", name=name, alias=alias)

    def made(
        self, name: str, kind: str, files: Sequence[Path], alias: str, used: bool = False, **facts: Any
    ) -> None:
        """Keep files as the version `alias` of an artifact: this run's output, or its input if `used`."""
        paths = [self._relative(path) for path in files]
        self._tell("made", name=name, kind=kind, files=paths, alias=alias, facts=facts, used=used)

    def file(self, path: Path) -> None:
        """Keep a file with the run."""
        self._tell("file", path=self._relative(path))

    @property
    def tracked(self) -> bool:
        """Whether anything but the metrics is kept, so that it is worth making."""
        return not isinstance(self.told, NoRecord)

    def finish(self, exit_code: int = 0) -> str:
        """End the run; returns the line that says where it can be seen, or how it gets there later."""
        self.record.close()
        if self.progress:
            self.progress.close()
        self.told.write({"call": "finish", "exit_code": exit_code})
        seen = self.tracker.finish(exit_code)
        if self.tracker.complete:
            self.told.write({"call": "sent", "rows": self.record.rows})
        self.told.close()
        return seen

    def _tell(self, call: str, **arguments: Any) -> None:
        self.told.write({"call": call, **arguments})
        getattr(self.tracker, call)(**arguments)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)


def open_run(
    settings: "Settings",
    id: str,
    kind: str,
    folder: Path,
    config: Values,
    tracker: Tracker | None = None,
) -> Run:
    """Open the run `id` of a kind (train, sweep, publish, deploy, monitor), new or to be continued.

    Its record is `folder`/metrics.jsonl. `tracker` replaces the configured one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tracker or settings.tracker == "none" or settings.wandb_mode == "disabled":
        return Run(id, folder, tracker or Untracked())
    if settings.tracker == "trackio":
        from free_ml_stack.tracking.trackio_tracker import TrackioTracker

        return Run(id, folder, TrackioTracker(settings, id, kind, folder, config))
    from free_ml_stack.tracking.wandb_tracker import open_tracker

    opened = {"call": "open", "id": id, "kind": kind, "time": time.time(), "pid": os.getpid()}
    opened |= {"host": socket.gethostname(), "sweep": settings.wandb_sweep}
    if settings.wandb_sweep:  # it may be elsewhere than this project's own runs
        opened |= {name: os.environ.get(f"WANDB_{name.upper()}", "") for name in ("entity", "project")}
    opened["config"] = {
        **config,
        "commit": provenance.commit(settings.root),
        "environment": provenance.environment(),
    }
    told = Record(folder / TOLD)
    claim(told.file)
    told.write(opened)
    online = settings.wandb_mode != "offline" and reachable(settings)
    run = Run(id, folder, open_tracker(settings, opened, folder, online), told=told)
    if changes := provenance.changes(settings.root):
        (folder / CHANGES).write_bytes(changes)
        run.file(folder / CHANGES)
    return run


@cache
def reachable(settings: "Settings") -> bool:
    """Whether there is a key for W&B that works: one call of at most 5 s. What is wrong with one is said."""
    if "wandb" not in settings.credentials:
        return False
    report = _ask_wandb(settings)
    if not report.usable:
        say(f"W&B: {report.text}. Tracked offline. {report.remedy[:1].upper()}{report.remedy[1:]}")
    return report.usable


def answers(settings: "Settings") -> bool:
    """Whether W&B takes the key now."""
    return _ask_wandb(settings).usable


def _ask_wandb(settings: "Settings") -> "Report":
    from free_ml_stack.credentials import check as credentials

    return credentials.check_here("wandb", settings.wandb_entity, settings.root / ".env")
