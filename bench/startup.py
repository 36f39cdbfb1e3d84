"""Startup times of a generated project: help, first trained model, whole demo.

    python bench/startup.py [--quick]

Help is relative to `python -c "import argparse"`; both are medians of alternating runs. The demo runs twice in a
new project, the first time to warm the disk's cache.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]


def seconds(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Return the wall time of a command."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs of help, one demo")
    quick = parser.parse_args().quick
    from baking import bake

    with tempfile.TemporaryDirectory() as scratch:
        project = bake(Path(scratch), project_name="Bench", project_slug="bench-me", package_name="bench_me")
        environment = {**os.environ, "HOME": scratch, "PYTHONPATH": str(project / "src")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        floor = [sys.executable, "-c", "import argparse"]
        helped = [sys.executable, "-m", "bench_me", "--help"]
        rounds = [
            (seconds(floor, project, environment), seconds(helped, project, environment))
            for _ in range(5 if quick else 31)
        ]
        low, high = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
        print(f"{'help':22} {high * 1000:7.0f} ms  {high / low:5.2f} x import argparse ({low * 1000:.0f} ms), target 3")
        for _ in range(1 if quick else 2):
            demo = subprocess.run(
                [sys.executable, "-m", "bench_me", "demo"],
                cwd=project, env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
        first = re.search(r"Trained the first model after ([\d.]+) s", demo.stdout)
        whole = re.search(r"^Time +([\d.]+) s", demo.stdout, re.MULTILINE)
        assert first
        assert whole
        print(f"{'first trained model':22} {float(first[1]):7.1f} s   target 10 s")
        print(f"{'whole demo':22} {float(whole[1]):7.1f} s   target 60 s")


if __name__ == "__main__":
    main()
