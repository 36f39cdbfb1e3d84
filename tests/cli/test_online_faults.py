"""A service that fails during the demo: local results are complete, and uploads can be repeated later.

Some calls of each service; `bench/faults.py --each` lets every one of them fail.
"""

from collections.abc import Iterator

import pytest
from demo_faults import Case, World, recorded

STEPS = [  # service, step, request, failure, and whether all later requests fail
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
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A successful demo; every case starts from its state before a step."""
    with recorded(tmp_path_factory.mktemp("world")) as world:
        yield world


def first(world: World, service: str, step: str, word: str, kind: int | str, dies: bool) -> Case:
    """A failure of the first request of a step that contains the word."""
    calls = enumerate(world.calls[service, step], 1)
    number = next(number for number, call in calls if word in call)
    return Case(service, step, number, word, kind, dies)


@pytest.mark.parametrize(("service", "step", "word", "kind", "dies"), STEPS)
def test_a_failed_request_in_a_step(
    world: World, service: str, step: str, word: str, kind: int | str, dies: bool
) -> None:
    wrong = world.suffer(first(world, service, step, word, kind, dies))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("service", "step", "word", "kind", "dies"), DEMOS)
def test_a_failed_request_in_the_demo(
    world: World, service: str, step: str, word: str, kind: int | str, dies: bool
) -> None:
    wrong = world.demo(first(world, service, step, word, kind, dies))
    assert not wrong, "\n".join(wrong)
