"""Upload of recorded runs to Weights & Biases: in order, and only what is missing there."""

import json
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from free_ml_stack.errors import StackError, first_line
from free_ml_stack.processes import alive
from free_ml_stack.tracking.opening import reachable
from free_ml_stack.tracking.run import EVENTS, METRICS, Record, file_sum, is_claimed
from free_ml_stack.tracking.wandb_tracker import WandbTracker, end_service

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

LOCK = ".sync"
KILLED = 137  # exit code of a run whose record has no end
MARKS = ("open", "finish", "sent")


class IncompleteUploadError(StackError):
    """Report that a run was uploaded only partly."""


@dataclass(frozen=True)
class StoredRun:
    """The record of a run on disk."""

    folder: Path
    rows: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def opened(self) -> dict[str, Any]:
        """Return the last open event."""
        return next(line for line in reversed(self.events) if line["call"] == "open")

    @property
    def sent(self) -> bool:
        """Return whether it was uploaded completely."""
        return bool(self.events[-1]["call"] == "sent") and self.events[-1]["rows"] == len(self.rows)

    @property
    def exit_code(self) -> int:
        """Return its exit code."""
        ends: list[int] = [line["exit_code"] for line in self.events if line["call"] == "finish"]
        return ends[-1] if ends and self.events[-1]["call"] in ("finish", "sent") else KILLED

    @property
    def summary(self) -> dict[str, Any]:
        """Return its summary as W&B computes it: the last value of each metric."""
        last = {name: value for row in self.rows for name, value in row.items()}
        final = [line["values"] for line in self.events if line["call"] == "summary"]
        return last | {name: value for values in final for name, value in values.items()}

    @property
    def running(self) -> bool:
        """Return whether its process is still running on this machine."""
        if self.opened["host"] != socket.gethostname() or self.events[-1]["call"] in ("finish", "sent"):
            return False
        return alive(self.opened["pid"]) and is_claimed(self.folder)


def sync(settings: "Settings") -> Iterator[tuple[str, str]]:
    """Upload all runs that W&B does not have completely, oldest first; yield the name and the result of each.

    Raises StackError if the key is not accepted, if another `sync` is running, or if an upload fails. Rows that were
    uploaded are not sent again.
    """
    if not settings.runs.exists():
        return
    try:
        lock = FileLock(settings.runs / LOCK).acquire(timeout=0)
    except Timeout:
        raise StackError("another `sync` is running; run it again when that has finished") from None
    with lock:
        kept = [run for run in runs(settings.runs) if not run.sent]
        if kept and not reachable(settings):
            raise StackError(
                f"no valid W&B key; run `{settings.command} doctor` for details (the runs are kept on disk)"
            )
        try:
            failed = yield from send_each(settings, kept)
        except ConnectionError as error:
            raise StackError(f"{error}; run `{settings.command} sync` again later") from error
        if failed:
            raise StackError(f"{failed} of {len(kept)} uploads incomplete; run `{settings.command} sync` again later")


def send_each(settings: "Settings", kept: Sequence[StoredRun]) -> Generator[tuple[str, str], None, int]:
    """Upload runs; yield the name and the result of each, and return the number of incomplete uploads.

    Raises ConnectionError if W&B is unreachable.
    """
    failed = 0
    for run in kept:
        try:
            seen = "still running; run sync again later" if run.running else send(settings, run)
        except IncompleteUploadError as error:  # continue with the other runs
            failed += 1
            seen = str(error)
        yield run.folder.name, seen
    return failed


def runs(folder: Path) -> list[StoredRun]:
    """Return all runs recorded in a folder, oldest first."""
    found = [StoredRun(path.parent, lines(path.parent / METRICS), lines(path)) for path in folder.glob(f"*/{EVENTS}")]
    # a record without its first line has no configuration
    return sorted(
        (run for run in found if run.events and "time" in run.events[0]),
        key=lambda run: run.events[0]["time"],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    """Parse the lines of a record; skip lines that are incomplete or zeroed after a crash."""
    text = path.read_bytes() if path.exists() else b""
    read: list[dict[str, Any]] = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        with suppress(ValueError):
            read.append(json.loads(line))
    return read


def send(settings: "Settings", run: StoredRun) -> str:
    """Upload one run; return its URL. Raises IncompleteUploadError or, if nothing was uploaded, ConnectionError."""
    try:
        tracker = WandbTracker(settings, run.opened, run.folder, "online")
    except Exception as error:
        end_service()
        raise ConnectionError(f"upload of {run.folder.name} failed: {first_line(error)}") from error
    for row, values in enumerate(run.rows):
        tracker.log(row, values)
    changed: set[str] = set()
    for line in run.events:
        if line["call"] not in MARKS:
            arguments = {name: value for name, value in line.items() if name not in ("call", "sums")}
            sums = {name: file_sum(run.folder / name) for name in line.get("sums", ())}
            others = {name for name, total in sums.items() if total not in ("", line["sums"][name])}
            changed = (changed | others) - (set(sums) - others)
            if others:  # the files were changed or replaced since
                continue
            getattr(tracker, line["call"])(**arguments)
    seen = tracker.finish(run.exit_code)
    if not tracker.complete:
        raise IncompleteUploadError(f"upload incomplete: {tracker.failure}")
    record = Record(run.folder / EVENTS)
    record.write({"call": "sent", "rows": len(run.rows)})
    record.close()
    skipped = f"; skipped files that have changed: {', '.join(sorted(changed))}" if changed else ""
    return seen.removeprefix("W&B: ") + skipped
