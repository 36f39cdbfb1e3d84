"""Training that is killed at any moment, and started again until it is done, ends as if it never had been."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import projects
import pytest
from safetensors.numpy import load_file
from skeleton.stack.checkpoint import DamagedCheckpoint, read

TRAIN = ("train", "--epochs", "6", "--checkpoint-steps", "7", "--checkpoint-seconds", "600")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run was never stopped."""
    folder = projects.make(tmp_path_factory.mktemp("whole"))
    projects.run(folder, *TRAIN)
    return folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Path:
    folder = projects.make(tmp_path / "project", whole)
    shutil.rmtree(next((folder / ".stack" / "data").glob("*/*/checkpoints")))
    return folder


def results(folder: Path) -> tuple[bytes, bytes]:
    """The weights and the record of a project's only run."""
    [result] = folder.glob("runs/*/result.json")
    return (result.parent / "model.safetensors").read_bytes(), (result.parent / "metrics.jsonl").read_bytes()


def run_folder(folder: Path) -> Path:
    return next(path for path in (folder / "runs").iterdir() if path.is_dir())


def begun(folder: Path) -> str:
    """The id of the run that has just started, once it has a checkpoint."""
    wait_until(lambda: bool(list(folder.glob("runs/*/checkpoints/step-*"))))
    return run_folder(folder).name


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for what another process does."""
    clock = threading.Event()
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        clock.wait(0.02)


@pytest.mark.slow
def test_twenty_kills_change_nothing(whole: Path, project: Path) -> None:
    chance = random.Random(0)
    process = projects.start(project, *TRAIN)
    run_id = begun(project)
    for _ in range(20):
        record = run_folder(project) / "metrics.jsonl"
        size = record.stat().st_size
        wait_until(lambda: process.poll() is not None or record.stat().st_size != size)  # noqa: B023
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0, 0.5))
        process.kill()
        process.communicate()
        process = projects.start(project, "train", "--run", run_id)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert results(project) == results(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_says_how_to_go_on(whole: Path, project: Path, number: signal.Signals) -> None:
    process = projects.start(project, *TRAIN)
    run_id = begun(project)
    process.send_signal(number)
    printed, complaint = process.communicate(timeout=60)
    assert process.returncode == 75, complaint
    assert f"train --run {run_id}" in printed
    projects.run(project, "train", "--run", run_id)
    assert results(project) == results(whole)


@pytest.mark.slow
def test_another_machine_goes_on_from_the_store(whole: Path, project: Path, tmp_path: Path) -> None:
    process = projects.start(project, *TRAIN)
    run_id = begun(project)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    other = tmp_path / "other"
    projects.make(other, project)  # the store comes along, the runs do not
    projects.run(other, *TRAIN, "--run", run_id)
    assert results(other) == results(whole)


@pytest.mark.slow
def test_a_changed_configuration_is_refused_by_name(project: Path) -> None:
    process = projects.start(project, *TRAIN)
    run_id = begun(project)
    process.kill()
    process.communicate()
    assert "lr was 0.006 when this run started" in projects.run(
        project, "train", "--run", run_id, "--lr", "0.1", code=1
    )
    assert "no run nobody" in projects.run(project, "train", "--run", "nobody", code=1)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "sums.json", "metrics.jsonl"])
def test_a_torn_checkpoint_is_named_and_the_one_before_it_used(whole: Path, project: Path, file: str) -> None:
    process = projects.start(project, *TRAIN)
    run_id = begun(project)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    newest = max((run_folder(project) / "checkpoints").glob("step-*"))
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedCheckpoint, match=newest.name):
        read(newest)
    printed = projects.run(project, "train", "--run", run_id)
    assert f"checkpoint {newest.name}" in printed
    assert results(project) == results(whole)


def test_weights_hold_no_pickle(whole: Path) -> None:
    checkpoint = max((run_folder(whole) / "checkpoints").glob("step-*"))
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".jsonl", ".safetensors"}
    assert load_file(checkpoint / "state.safetensors")
    assert json.loads((checkpoint / "state.json").read_bytes())["at"]["epoch"] == 6
