"""A service that fails in the middle of the demo: what is made here is finished, and what is missing goes later.

Some calls of each service; `bench/faults.py --each` lets every one of them fail.
"""

from pathlib import Path

import pytest
from demo_faults import Case, recorded

STEPS = [  # service, step, what the call does, how it fails, and whether the service is gone from then on
    ("algorithmia", "data", "PUT ", 401, True),
    ("algorithmia", "train", "HEAD ", "reset", False),
    ("algorithmia", "deploy", "DELETE ", 403, True),
    ("algorithmia", "predict", "POST ", 500, False),
    ("hub", "publish", "POST /api/models", 403, False),
    ("wandb", "train", "ServerFeaturesQuery", "reset", True),
    ("wandb", "sweep", "Heartbeat", 500, False),
    ("wandb", "deploy", "CommitArtifact", 401, True),
]
DEMOS = [
    ("wandb", "doctor", "Viewer", 401, True),
    ("algorithmia", "deploy", "PUT ", 401, True),
    ("hub", "publish", "POST /api/models", 403, True),
]


@pytest.mark.slow
def test_a_failure_costs_nothing_that_was_made(tmp_path: Path) -> None:
    """One test, for all of it starts from one demo in which nothing fails."""
    wrong = {}
    with recorded(tmp_path) as world:

        def case(service: str, step: str, word: str, kind: int | str, dies: bool) -> Case:
            calls = enumerate(world.calls[service, step], 1)
            number = next(number for number, call in calls if word in call)
            return Case(service, step, number, word, kind, dies)

        for words in STEPS:
            wrong[words] = world.suffer(case(*words))
        for words in DEMOS:
            wrong[words] = world.demo(case(*words))
    assert not {words: found for words, found in wrong.items() if found}
