"""Trials that run another program: started as W&B's agent does, with the metric read from what it logs."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from free_ml_stack.errors import StackError
from free_ml_stack.processes import OWN_GROUP, TERMINATE
from free_ml_stack.tracking.run import METRICS
from free_ml_stack.tracking.tracker import Tracker

POLL = 0.2  # seconds between two reads of a program's record
GRACE = 10  # seconds between SIGTERM and SIGKILL
COLOUR = re.compile(r"\x1b\[[\d;]*m")
RESULT = "result.json"
SPLITS = ("validation", "test")


def run_program(
    words: list[str], environ: Mapping[str, str], root: Path, record: Path, scratch: Path, tracker: Tracker
) -> None:
    """Run a trial's program in `root`, and forward its metrics to `tracker`.

    Metrics are the lines of `record`/metrics.jsonl while it runs, if it calls the project's `train`, or the summary
    that its W&B client leaves in `scratch`. Raises StackError if the program fails, and the tracker's exception to
    stop it.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    # offline, whatever the user's mode, so that the metric can be read from disk
    given = {**os.environ, **environ, "WANDB_MODE": "offline", "WANDB_DIR": str(scratch)}
    printed = scratch / "printed.txt"
    with printed.open("wb") as output:
        try:
            process = subprocess.Popen(
                words,
                cwd=root,
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_dying_with_us(),
                creationflags=OWN_GROUP,
            )
        except OSError as error:
            raise StackError(f"cannot start {words[0]}: {error.strerror}") from None
    # forward SIGTERM to the program
    before = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(TERMINATE))
    try:
        rows = _follow(process, record / METRICS)
        for number, row in enumerate(rows):
            tracker.log(number, row)
    finally:
        if process.poll() is None:
            process.send_signal(TERMINATE)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        signal.signal(signal.SIGTERM, before)
    if process.returncode:
        lines = COLOUR.sub("", printed.read_text(encoding="utf-8", errors="replace")).split("\n")
        own = [line for line in lines if line.strip() and not line.startswith("wandb:")]
        last = own[-1] if own else "no output"
        raise StackError(f"the program exited with code {process.returncode}: {last.strip()} (full output: {printed})")
    tracker.summary(_scores(record / RESULT) | _summary_at_wandb(scratch))


def _dying_with_us() -> Callable[[], object] | None:
    """Return a pre-exec function that makes Linux kill the program when its worker dies."""
    if sys.platform != "linux":
        return None
    import ctypes

    control = ctypes.CDLL(None).prctl
    return lambda: control(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _follow(process: "subprocess.Popen[bytes]", path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a growing file until its writer has exited."""
    place, ended = 0, False
    while not ended:
        try:
            process.wait(POLL)
            ended = True
        except subprocess.TimeoutExpired:
            pass  # still running
        if not path.exists():
            continue
        with path.open("rb") as file:
            file.seek(place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        place += len(whole)
        yield from map(json.loads, whole.splitlines())


def _scores(path: Path) -> dict[str, Any]:
    """Return the final metrics of a run of `train`."""
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {f"{split}_{name}": value for split in SPLITS for name, value in result.get(split, {}).items()}


def _summary_at_wandb(scratch: Path) -> dict[str, Any]:
    """Return the summary that the program's W&B client wrote, as read by `wandb leet`."""
    runs = sorted(scratch.glob("wandb/offline-run-*"))
    if not runs:
        return {}
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(runs[-1])]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", check=False)
    try:
        summary: dict[str, Any] = json.loads(done.stdout)["summary"]
    except (ValueError, KeyError):
        return {}
    return summary
