"""Open a run with the tracker that the settings name."""

import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.console import say
from free_ml_stack.tracking import provenance
from free_ml_stack.tracking.run import CHANGES, EVENTS, Record, Run, claim
from free_ml_stack.tracking.tracker import Tracker, Values

if TYPE_CHECKING:
    from free_ml_stack.credentials.report import Report
    from free_ml_stack.project.settings import Settings


def open_run(
    settings: "Settings", id: str, kind: str, folder: Path, config: Values, tracker: Tracker | None = None
) -> Run:
    """Open the run `id` of a kind (train, sweep, publish, deploy, monitor), new or to be continued.

    Its record is `folder`/metrics.jsonl. `tracker` replaces the configured one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tracker or settings.tracker == "none" or settings.wandb_mode == "disabled":
        return Run(id, folder, tracker or Tracker())
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
    events = Record(folder / EVENTS, claim(folder))
    events.write(opened)
    online = settings.wandb_mode != "offline" and reachable(settings)
    run = Run(id, folder, open_tracker(settings, opened, folder, online), events=events)
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
