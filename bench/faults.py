"""Inject faults in calls of the demo to its services, once or permanently; print the number of violations.

python bench/faults.py [--services wandb hub algorithmia] [--steps publish deploy] [--each] [--whole]

By default the first call of each operation of a step; with --each all calls, which takes more than an hour.
"""

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    """Record the demo, inject each fault, repair, and compare."""
    import places  # noqa: F401 - links the skeleton
    from demo_faults import STEPS, recorded

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", nargs="*", default=["algorithmia", "hub", "wandb"])
    parser.add_argument("--steps", nargs="*", default=list(STEPS))
    parser.add_argument("--each", action="store_true", help="all calls, not only the first of an operation")
    parser.add_argument("--whole", action="store_true", help="run the whole demo as one command for each fault")
    args = parser.parse_args()
    calls, failed = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder, recorded(Path(folder).resolve()) as world:
        for step in STEPS:
            print(step, *(f"{name} {len(world.calls[name, step])}" for name in world.faulty), flush=True)
        for case in world.cases(each=args.each):
            if case.service not in args.services or case.step not in args.steps:
                continue
            begun = time.perf_counter()
            wrong = world.demo(case) if args.whole else world.suffer(case)
            calls[case.service] += 1
            failed[case.service] += bool(wrong)
            told = f"{'LOST' if wrong else 'ok'} {time.perf_counter() - begun:.0f} s {case}"
            print(told, *wrong, sep="\n    ", flush=True)
    print(f"{'service':<12} {'calls':>6} {'violations':>16}")
    for service in args.services:
        print(f"{service:<12} {calls[service]:>6} {failed[service]:>16}")
    sys.exit(bool(failed.total()))


if __name__ == "__main__":
    main()
