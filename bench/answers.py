"""Ten thousand random sets of answers: each is rejected in one line, or gives a valid project; none runs as code.

    python bench/answers.py [CASES]

The same property as tests/template/test_answers.py with new draws, in one process per core. A failing case stops the
run with an error.
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from os import cpu_count
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from answering import any_answers, holds


def draw(start: int, cases: int) -> tuple[int, int]:
    """Check the property for `cases` draws; return the numbers of draws and of accepted ones."""
    outcomes = []

    @seed(start)
    @given(any_answers)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    def property_holds(answers: dict[str, str]) -> None:
        outcomes.append(holds(answers))

    property_holds()
    return len(outcomes), sum(outcomes)


def main() -> None:
    """Run the cases in parallel and print the table."""
    cases, workers = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, cpu_count() or 1
    began = time.perf_counter()
    starts = [time.time_ns() + worker for worker in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(draw, starts, [-(-cases // workers)] * workers))
    ran, accepted = (sum(column) for column in zip(*found, strict=True))
    print("| passed cases | rejected in one line | valid projects | seconds |")
    print("| ---: | ---: | ---: | ---: |")
    print(f"| {ran} | {ran - accepted} | {accepted} | {time.perf_counter() - began:.0f} |")


if __name__ == "__main__":
    main()
