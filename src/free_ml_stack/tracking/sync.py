"""Send to Weights & Biases what it lacks: from our own records, in order, nothing twice."""

import json
import os
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
from free_ml_stack.tracking.run import EVENTS, METRICS, Record, claimed, file_sum
from free_ml_stack.tracking.wandb_tracker import WandbTracker, end_service

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

LOCK = ".sync"
KILLED = 137  # the exit code of a run that has no end in its record
PATHS = {"path", "files", "rows"}  # what names files in a call
MARKS = ("open", "finish", "sent")


class IncompleteUploadError(StackError):
    """W&B has a run only in part."""


@dataclass(frozen=True)
class Kept:
    """A run as it is kept on disk."""

    folder: Path
    rows: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def opened(self) -> dict[str, Any]:
        """How it was opened last."""
        return next(line for line in reversed(self.events) if line["call"] == "open")

    @property
    def sent(self) -> bool:
        """Whether all of it has arrived before."""
        return bool(self.events[-1]["call"] == "sent") and self.events[-1]["rows"] == len(self.rows)

    @property
    def exit_code(self) -> int:
        """How it ended."""
        ends: list[int] = [line["exit_code"] for line in self.events if line["call"] == "finish"]
        return ends[-1] if ends and self.events[-1]["call"] in ("finish", "sent") else KILLED

    @property
    def summary(self) -> dict[str, Any]:
        """The last of each of its numbers, as W&B sums a run up."""
        last = {name: value for row in self.rows for name, value in row.items()}
        final = [line["values"] for line in self.events if line["call"] == "summary"]
        return last | {name: value for values in final for name, value in values.items()}

    @property
    def running(self) -> bool:
        """Whether its process, on this machine, is still at it."""
        if self.opened["host"] != socket.gethostname() or self.events[-1]["call"] in ("finish", "sent"):
            return False
        return alive(self.opened["pid"]) and claimed(self.folder)


def sync(settings: "Settings") -> Iterator[tuple[str, str]]:
    """Send each run that W&B does not have whole, oldest first; yields its name and what came of it.

    Raises StackError without a key that works, beside another `sync`, and where W&B takes no run any more, or not all
    of one: what was sent by then is not sent again.
    """
    if not settings.runs.exists():
        return
    try:
        lock = FileLock(settings.runs / LOCK).acquire(timeout=0)
    except Timeout:
        raise StackError("another `sync` is sending; run it again when that has ended") from None
    with lock:
        kept = [run for run in runs(settings.runs) if not run.sent]
        if kept and not reachable(settings):
            raise StackError(f"no key for W&B that works; `{settings.command} doctor` says more. Nothing is lost")
        try:
            failed = yield from send_each(settings, kept)
        except ConnectionError as error:
            raise StackError(f"{error}; run sync again later") from error
        if failed:
            raise StackError(f"{failed} of {len(kept)} runs were not sent whole; run sync again later")


def send_each(settings: "Settings", kept: Sequence[Kept]) -> Generator[tuple[str, str], None, int]:
    """Send runs; yields the name of each and what came of it, and returns how many did not arrive whole.

    Raises ConnectionError where W&B takes no run any more.
    """
    failed = 0
    for run in kept:
        try:
            seen = "is still running; sync again later" if run.running else send(settings, run)
        except IncompleteUploadError as error:  # what ails one run is no reason to keep the others
            failed += 1
            seen = str(error)
        yield run.folder.name, seen
    return failed


def runs(folder: Path) -> list[Kept]:
    """All runs that are kept in a folder, oldest first."""
    found = [Kept(path.parent, lines(path.parent / METRICS), lines(path)) for path in folder.glob(f"*/{EVENTS}")]
    # one whose beginning is lost has no configuration to open it with
    return sorted(
        (run for run in found if run.events and "time" in run.events[0]),
        key=lambda run: run.events[0]["time"],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a record; one cut short by a kill, or blanked by a machine that went down, is none."""
    text = path.read_bytes() if path.exists() else b""
    read: list[dict[str, Any]] = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        with suppress(ValueError):
            read.append(json.loads(line))
    return read


def moved(root: Path, value: Any) -> Any:
    """A path, or paths in lists, as they are now: an older record has absolute ones, and its project may have moved."""
    if isinstance(value, list):
        return [moved(root, one) for one in value]
    if not isinstance(value, str) or not (path := Path(value)).is_absolute() or os.path.exists(path):  # noqa: PTH110
        return value
    places = (root.joinpath(*path.parts[start:]) for start in range(1, len(path.parts)))
    return next((str(place) for place in places if place.is_file()), value)


def send(settings: "Settings", run: Kept) -> str:
    """Send one run; returns its address. Raises IncompleteUploadError or, if nothing arrived, ConnectionError."""
    try:
        tracker = WandbTracker(settings, run.opened, run.folder, "online")
    except Exception as error:
        end_service()
        raise ConnectionError(f"{run.folder.name} was not sent: {first_line(error)}") from error
    for row, values in enumerate(run.rows):
        tracker.log(row, values)
    changed: set[str] = set()
    for line in run.events:
        if line["call"] not in MARKS:
            told = {name: value for name, value in line.items() if name not in ("call", "sums")}
            sums = {name: file_sum(run.folder / name) for name in line.get("sums", ())}
            others = {name for name, total in sums.items() if total not in ("", line["sums"][name])}
            changed = (changed | others) - (set(sums) - others)
            if others:  # by now they are another run's, or of another moment of this one
                continue
            told |= {name: moved(settings.root, told[name]) for name in PATHS & set(told)}
            getattr(tracker, line["call"])(**told)
    seen = tracker.finish(run.exit_code)
    if not tracker.complete:
        raise IncompleteUploadError(f"was not sent whole: {tracker.failure}")
    record = Record(run.folder / EVENTS)
    record.write({"call": "sent", "rows": len(run.rows)})
    record.close()
    left_out = f"; left out, for they are others by now: {', '.join(sorted(changed))}" if changed else ""
    return seen.removeprefix("W&B: ") + left_out
