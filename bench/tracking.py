"""Overhead of tracking per training step at the default logging interval, with and without W&B's client.

    python bench/tracking.py [--quick]

Runs the project's `train` alternately in separate processes; the seconds are those of the loop alone.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "build" / "src")]
PROMISED = 0.01


def seconds(folder: Path, name: str, epochs: int, **extra: str) -> float:
    """Return the seconds of the loop of one run."""
    import projects

    flags = ("--epochs", str(epochs), "--patience", "0", "--name", name)
    projects.run(folder, "train", *flags, **extra)
    result = json.loads((folder / "runs" / name / "result.json").read_text())
    return float(result["seconds"])


def main() -> None:
    """Print the ratio of the medians."""
    import places  # noqa: F401 - links the skeleton
    import projects

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, epochs = (1, 40) if quick else (7, 240)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        folder = projects.make(Path(scratch, "project"))
        tracked = {"STACK_TRACKER": "wandb", "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
        seconds(folder, "warm", 2, **tracked)
        pairs = []
        for n in range(rounds):
            ways: list[tuple[str, dict[str, str]]] = [("plain", {}), ("tracked", tracked)]
            took = {}
            for way, extra in reversed(ways) if n % 2 else ways:  # the machine may slow down over time
                took[way] = seconds(folder, f"{way}-{n}", epochs, **extra)
            pairs.append((took["plain"], took["tracked"]))
    costs = sorted(100 * (tracked / plain - 1) for plain, tracked in pairs)
    plain = statistics.median(plain for plain, _ in pairs)
    print(
        f"{epochs * 19} steps: {plain:.2f} s without tracking, {statistics.median(costs):+.1f} % "
        f"({costs[0]:+.1f} to {costs[-1]:+.1f}) with W&B's client; target: under {100 * PROMISED:.0f} %"
    )


if __name__ == "__main__":
    main()
