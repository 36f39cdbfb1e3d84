"""The delay of training by a checkpoint, compared with torch.save and torch.distributed's async_save.

    python bench/checkpoint.py [--megabytes 286] [--times 15]

Prints the median milliseconds that the loop waits for a save of one state, and the share of training time for a
checkpoint of 100 MB every 30 seconds.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "build" / "src")]
EVERY, MEGA = 30.0, 10**6


class Lines:
    """An empty record."""

    def content(self) -> bytes:
        return b""

    def restore(self, content: bytes) -> None:
        pass


class Part:
    """A state of tensors, such as a model with its optimizer."""

    def __init__(self, megabytes: float) -> None:
        count = int(megabytes * MEGA / 4 / 30)
        self.state = {f"layer{i}": torch.randn(count) for i in range(30)}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def timed(save: Callable[[int], None], settle: Callable[[], None], times: int) -> float:
    """Return the median milliseconds of `save`; `settle` waits for its background work."""
    taken = []
    for number in range(times + 2):
        started = time.perf_counter()
        save(number)
        taken.append(1000 * (time.perf_counter() - started))
        settle()
    return statistics.median(taken[2:])


def ours(part: Part, folder: Path, times: int) -> float:
    from free_ml_stack.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder, Lines(), {})
    checkpoints.resume(part=part)

    def save(number: int) -> None:
        checkpoints.at.step = number
        checkpoints.save()

    def settle() -> None:
        assert checkpoints.writing
        checkpoints.writing.result()

    return timed(save, settle, times)


def plain(part: Part, folder: Path, times: int, synced: bool) -> float:
    def save(number: int) -> None:
        with (folder / f"{number % 2}.pt").open("wb") as file:
            torch.save(part.state, file)
            if synced:
                file.flush()
                os.fsync(file.fileno())

    return timed(save, lambda: None, times)


def distributed(part: Part, folder: Path, times: int) -> float:
    import torch.distributed.checkpoint as dcp

    pending: list[Any] = []

    def save(number: int) -> None:
        pending.append(dcp.async_save(part.state, checkpoint_id=str(folder / str(number % 2)), no_dist=True))

    return timed(save, lambda: pending.pop().result(), times)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")  # dcp prints its assumptions at each save
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=286)
    parser.add_argument("--times", type=int, default=15)
    args = parser.parse_args()
    part = Part(args.megabytes)
    contests: dict[str, Callable[[Path], float]] = {
        "this project": lambda folder: ours(part, folder, args.times),
        "torch.save": lambda folder: plain(part, folder, args.times, False),
        "torch.save, fsync": lambda folder: plain(part, folder, args.times, True),
        "dcp.async_save": lambda folder: distributed(part, folder, args.times),
    }
    print(f"{'a save of':20} {args.megabytes:.0f} MB delays training by")
    for name, contest in contests.items():
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
            print(f"{name:20} {contest(Path(folder)):8.1f} ms", flush=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        held = ours(Part(100), Path(folder), args.times)
    print(f"100 MB every {EVERY:.0f} s: {held:.1f} ms a save, {held / EVERY / 10:.3f} % of training time")


if __name__ == "__main__":
    main()
