"""Calls are compared with the deployed reference only."""

import json
import threading
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
    """A project with forty logged calls of its deployed model."""
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


def test_a_changed_reference_is_rejected(settings: Settings) -> None:
    assert monitor(settings).drift["verdict"] == "none"
    [path] = settings.root.glob("store/deployments/Words/0.1.0-*/reference.json")
    path.write_text(json.dumps(reference([{"length": 500.0}] * 10)))
    with pytest.raises(StackError, match=r"checksum mismatch for .*0.1.0-.*/reference.json; run `.* deploy`"):
        monitor(settings)


def test_a_call_that_is_logged_later_is_waited_for(settings: Settings) -> None:
    [log] = settings.root.glob("store/logs/Words/*.jsonl")
    aside = log.rename(settings.root / "aside")
    timer = threading.Timer(0.3, aside.rename, (log,))
    timer.start()
    assert monitor(settings).calls > 0
    timer.join()


def test_calls_of_a_deleted_algorithm_are_not_attributed_to_a_later_one(settings: Settings) -> None:
    remove(local_store(settings.root / "store"), "Words")
    redeploy(settings)
    with pytest.raises(StackError, match="no calls of version 0.1.0"):
        monitor(settings)
