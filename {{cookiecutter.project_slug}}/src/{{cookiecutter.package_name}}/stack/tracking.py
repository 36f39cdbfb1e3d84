"""One record of a run: a plain metrics.jsonl always, and the same numbers to Weights & Biases or Trackio."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .settings import Settings

METRICS = "metrics.jsonl"
PREEMPTED = 75  # the exit code of a run that goes on later
Values = Mapping[str, float]


class Tracker(Protocol):
    """Where a run's numbers go besides the record on disk."""

    def log(self, step: int, values: Values) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def picture(self, name: str, path: Path) -> None: ...

    def finish(self, exit_code: int) -> str: ...


class Untracked:
    """The tracker that keeps nothing, so that no caller needs to ask."""

    def log(self, step: int, values: Values) -> None:
        """Keep nothing."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Keep nothing."""

    def picture(self, name: str, path: Path) -> None:
        """Keep nothing."""

    def finish(self, exit_code: int) -> str:
        """Say nothing."""
        return ""


class Record:
    """A file of JSON lines that only grows, a line a call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line; it survives the end of this process, however it ends."""
        self.file.write(json.dumps(values).encode() + b"\n")
        self.file.flush()

    def content(self) -> bytes:
        """All that was written."""
        return self.path.read_bytes()

    def restore(self, content: bytes) -> None:
        """Begin again after `content`."""
        self.file.truncate(0)
        self.file.write(content)
        self.file.flush()

    def close(self) -> None:
        """Write no more."""
        self.file.close()


class NoRecord(Record):
    """The record of a process that another one writes for."""

    def __init__(self) -> None:
        pass

    def write(self, values: Mapping[str, Any]) -> None:
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

    def __init__(self, id: str, folder: Path, tracker: Tracker, record: Record | None = None) -> None:
        self.id, self.folder, self.tracker = id, folder, tracker
        self.record = record or Record(folder / METRICS)

    def log(self, step: int, **values: float) -> None:
        """Record numbers of a step; never of the clock, so that equal runs have equal records."""
        self.record.write({"step": step, **values})
        self.tracker.log(step, values)

    def summary(self, **values: Any) -> None:
        """Set final numbers of the run."""
        self.tracker.summary(values)

    def picture(self, name: str, path: Path) -> None:
        """Show a picture with the run."""
        self.tracker.picture(name, path)

    def finish(self, exit_code: int = 0) -> str:
        """End the run; returns the line that says where it can be seen, or how it gets there later."""
        self.record.close()
        return self.tracker.finish(exit_code)


class WandbTracker:
    """Weights & Biases through its own client."""

    def __init__(
        self, settings: "Settings", id: str, kind: str, folder: Path, config: Mapping[str, Any]
    ) -> None:
        import wandb

        self.online = "wandb" in settings.credentials
        self.command = settings.command
        self.run = wandb.init(
            project=settings.wandb_project or settings.project,
            entity=settings.wandb_entity or None,
            id=id,
            job_type=kind,
            dir=folder,
            config=dict(config),
            resume="allow" if self.online else None,
            mode="online" if self.online else "offline",
            settings=wandb.Settings(init_timeout=60, finish_timeout=120, silent=True, console="off"),
        )
        self.url = self.run.url or "" if self.online else ""

    def log(self, step: int, values: Values) -> None:
        """Send numbers of a step."""
        self.run.log(dict(values), step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final numbers."""
        self.run.summary.update(dict(values))

    def picture(self, name: str, path: Path) -> None:
        """Send a picture."""
        import wandb

        self.run.log({name: wandb.Image(str(path))})

    def finish(self, exit_code: int) -> str:
        """End the run; returns its address, or how to send it later."""
        folder = Path(self.run.dir).parent
        seen = (
            f"W&B: {self.run.url}" if self.online else f"W&B: offline; to send it later: wandb sync {folder}"
        )
        if exit_code == PREEMPTED:
            self.run.mark_preempting()
        self.run.finish(exit_code=exit_code)
        return seen


def open_run(
    settings: "Settings",
    id: str,
    kind: str,
    folder: Path,
    config: Mapping[str, Any],
    tracker: Tracker | None = None,
) -> Run:
    """Open the run `id` of a kind (train, sweep, publish, monitor), new or to be continued.

    Its record is `folder`/metrics.jsonl. `tracker` replaces the configured one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tracker is None and settings.tracker == "wandb":
        tracker = WandbTracker(settings, id, kind, folder, config)
    return Run(id, folder, tracker or Untracked())
