"""A trial that is a program of its own: started as an agent of W&B would, and its metric read from what it records."""

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
from free_ml_stack.tracking.run import METRICS
from free_ml_stack.tracking.tracker import Tracker

POLL = 0.2  # seconds between two looks at a program's record
GRACE = 10  # seconds in which a program that is told to end does so
COLOUR = re.compile(r"\x1b\[[\d;]*m")
RESULT = "result.json"
SPLITS = ("validation", "test")


def run_program(
    words: list[str], environ: Mapping[str, str], root: Path, record: Path, scratch: Path, tracker: Tracker
) -> None:
    """Run a trial's program in `root`, and hand on what it logs.

    That is the lines of `record`/metrics.jsonl as they come, where it is a `train` of the project's, or else what its
    own W&B client leaves in `scratch`. Raises StackError where it fails, and what `tracker` raises to stop it.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    # offline whatever the user's own mode is, or its metric could not be read
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
            )
        except OSError as error:
            raise StackError(f"{words[0]} can't be started: {error.strerror}") from None
    # who ends this process ends the program
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        rows = _follow(process, record / METRICS)
        for number, row in enumerate(rows):
            tracker.log(number, row)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        signal.signal(signal.SIGTERM, before)
    if process.returncode:
        lines = COLOUR.sub("", printed.read_text(encoding="utf-8", errors="replace")).split("\n")
        own = [line for line in lines if line.strip() and not line.startswith("wandb:")]
        last = own[-1] if own else "it printed nothing"
        raise StackError(f"the program ended with code {process.returncode}; see {printed}. {last.strip()}")
    tracker.summary(_scores(record / RESULT) | _summary_at_wandb(scratch))


def _dying_with_us() -> Callable[[], object] | None:
    """What makes the kernel of Linux end a program with the worker that waits for it, however that ends."""
    if sys.platform != "linux":
        return None
    import ctypes

    control = ctypes.CDLL(None).prctl
    return lambda: control(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _follow(process: "subprocess.Popen[bytes]", path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a growing record, until its writer has ended."""
    place, ended = 0, False
    while not ended:
        try:
            process.wait(POLL)
            ended = True
        except subprocess.TimeoutExpired:
            pass  # it is still at it
        if not path.exists():
            continue
        with path.open("rb") as file:
            file.seek(place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        place += len(whole)
        yield from map(json.loads, whole.splitlines())


def _scores(path: Path) -> dict[str, Any]:
    """The final scores of a run of `train`."""
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {f"{split}_{name}": value for split in SPLITS for name, value in result.get(split, {}).items()}


def _summary_at_wandb(scratch: Path) -> dict[str, Any]:
    """The summary that a program's own W&B client has left, as `wandb leet` reads it."""
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
