"""Kill a training run many times at random; print the lost steps, and check that the result is unchanged.

python bench/resume.py [--kills 500]
"""

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "build" / "src")]

EVERY = 7  # steps between two checkpoints


def main() -> None:
    """Kill, restart, and compare."""
    import places  # noqa: F401 - links the skeleton
    import projects
    from killing import MOMENTS, Blow, Training

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    args = parser.parse_args()
    chance = random.Random(args.kills)
    epochs = 10 + 4 * args.kills  # long enough for a kill
    train = (
        "train",
        "--epochs",
        str(epochs),
        "--patience",
        "0",
        "--checkpoint-steps",
        str(EVERY),
        "--name",
        "one",
    )
    lost, first, unread, number = [], [], 0, 0
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        whole = projects.make(Path(scratch, "whole"))
        started = time.perf_counter()
        assert Training(whole, *train).end(3600) == 0
        undisturbed = time.perf_counter() - started
        project = projects.make(Path(scratch, "project"), whole)
        shutil.rmtree(next((project / ".stack" / "data").glob("*/*/checkpoints")))
        record, folder = project / "runs" / "one" / "metrics.jsonl", project / "runs" / "one" / "checkpoints"
        started = time.perf_counter()
        while number < args.kills:
            later = chance.choice((0, chance.expovariate(2.5)))
            begun = time.perf_counter()
            training = Training(project, *train, blow=Blow(chance.choice(MOMENTS[:4]), later))
            if not training.end(3600):
                break  # the run has finished
            first.append(time.perf_counter() - begun - later)
            steps = record.read_bytes().count(b'"loss"') * 10
            number += 1
            kept = max((int(path.name[5:]) for path in folder.glob("step-*")), default=0)
            lost.append(max(0, steps - kept))
        assert Training(project, *train).end(3600) == 0
        disturbed = time.perf_counter() - started
        printed = (project / "printed.txt").read_text()
        unread = printed.count("using the previous one")
        for name in ("model/model.safetensors", "metrics.jsonl"):
            one, other = (run / "runs" / "one" / name for run in (whole, project))
            assert one.read_bytes() == other.read_bytes(), name
    print(f"{number} kills; weights and record equal those of an uninterrupted run")
    print(f"unreadable checkpoints: {unread}")
    print(f"steps lost to a kill: median {statistics.median(lost):.0f}, worst {max(lost)} (a checkpoint every {EVERY})")
    print(f"from start to the first step or save: median {statistics.median(first):.2f} s, without imports")
    each = (disturbed - undisturbed) / number
    print(f"{undisturbed:.1f} s uninterrupted, {disturbed:.1f} s with kills: {each:.2f} s per kill")


if __name__ == "__main__":
    main()
