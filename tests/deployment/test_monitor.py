"""Calls are compared with the reference that was deployed, and with no other."""

import json
from pathlib import Path

import pytest
from predictors import Echo, echo_folder

from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.deployment.monitor import monitor
from free_ml_stack.deployment.versions import remove
from free_ml_stack.errors import StackError
from free_ml_stack.evaluation.drift import reference
from free_ml_stack.project.settings import Settings
from free_ml_stack.storage.local import local_store
from free_ml_stack.storage.manifest import write_manifest


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A project whose deployed model has been called forty times."""
    settings = Settings(
        project="p", root=tmp_path, storage=f"file://{tmp_path}/store", algorithm="me/Words", tracker="none"
    )
    redeploy(settings)
    calls = [{"version": "0.1.0", "latency_ms": 1.0, "watched": {"length": 5.0}} for _ in range(40)]
    lines = "".join(f"{json.dumps(call)}\n" for call in calls)
    local_store(tmp_path / "store").pipe_file("logs/Words/1.jsonl", lines.encode())
    return settings


def redeploy(settings: Settings) -> None:
    folder = echo_folder(settings.root / f"model-{len(list(settings.root.iterdir()))}")
    (folder / "reference.json").write_text(json.dumps(reference([{"length": 5.0}] * 10)))
    write_manifest(folder)
    deploy(folder, local_store(settings.root / "store"), "Words", Echo())


def test_a_reference_that_was_changed_since_the_deployment_is_refused(settings: Settings) -> None:
    assert monitor(settings).drift["verdict"] == "none"
    path = settings.root / "store/deployments/Words/0.1.0/reference.json"
    path.write_text(json.dumps(reference([{"length": 500.0}] * 10)))
    with pytest.raises(StackError, match=r"0.1.0/reference.json is not the file that was deployed: run `.* deploy`"):
        monitor(settings)


def test_calls_of_a_deleted_algorithm_are_not_those_of_the_next_with_its_name(settings: Settings) -> None:
    remove(local_store(settings.root / "store"), "Words")
    redeploy(settings)
    with pytest.raises(StackError, match="nobody has called version 0.1.0 yet"):
        monitor(settings)
