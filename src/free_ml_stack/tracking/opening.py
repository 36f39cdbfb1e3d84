"""Opening of runs with the configured tracker."""

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
    """Open a new or existing run `id` of a kind (train, sweep, publish, deploy, monitor).

    Its record is `folder`/metrics.jsonl. `tracker` overrides the configured one.
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
    if settings.wandb_sweep:  # a sweep may be in another entity or project
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
    """Return whether W&B accepts the key, which is checked once; print a message if it does not."""
    if "wandb" not in settings.credentials:
        return False
    report = check_key(settings)
    if not report.usable:
        say(f"W&B: {report.text}. Tracking offline. {report.remedy[:1].upper()}{report.remedy[1:]}")
    return report.usable


def check_key(settings: "Settings") -> "Report":
    """Check W&B's key, by one request of at most 5 s."""
    from free_ml_stack.credentials import check as credentials

    return credentials.check_here("wandb", settings.wandb_entity, settings.root / ".env")
