"""Training that is killed and resumed gives the same result as uninterrupted training."""

import json
import random
import re
import shutil
import signal
from pathlib import Path

import projects
import pytest
from killing import MOMENTS, Blow, Training
from safetensors.numpy import load_file

from free_ml_stack.training.snapshot import DamagedCheckpointError, read_files

NAME = "one"
TRAIN = ("train", "--epochs", "6", "--checkpoint-steps", "7", "--checkpoint-seconds", "600", "--name", NAME)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an uninterrupted run."""
    folder = projects.make(tmp_path_factory.mktemp("whole"))
    assert Training(folder, *TRAIN).end() == 0
    return folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Path:
    folder = projects.make(tmp_path / "project", whole)
    shutil.rmtree(next((folder / ".stack" / "data").glob("*/*/checkpoints")))
    return folder


@pytest.fixture(scope="module")
def stopped(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run that was killed halfway."""
    folder = projects.make(tmp_path_factory.mktemp("stopped") / "project", whole)
    shutil.rmtree(next((folder / ".stack" / "data").glob("*/*/checkpoints")))
    # uploads are sequential, so the checkpoints in the store are complete
    training = Training(folder, *TRAIN, blow=Blow("upload", nth=4))
    assert training.end() == -signal.SIGKILL
    return folder


def results(folder: Path) -> tuple[bytes, bytes]:
    """The weights and the metrics record of a project's run."""
    run = folder / "runs" / NAME
    assert (run / "result.json").exists(), (folder / "printed.txt").read_text()
    return (run / "model" / "model.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


def finish(folder: Path) -> str:
    """Restart the run of a project until it is finished; return the output."""
    training = Training(folder, *TRAIN)
    assert training.end() == 0, training.printed()
    return training.printed()


@pytest.mark.slow
def test_twenty_kills_do_not_change_the_result(whole: Path, project: Path) -> None:
    chance = random.Random(0)
    for moment in [*MOMENTS[:4] * 4, *MOMENTS[4:] * 4]:  # the last one is while the model is written
        training = Training(project, *TRAIN, blow=Blow(moment, chance.choice((0, chance.uniform(0, 0.005)))))
        assert training.end() == -signal.SIGKILL
    finish(project)
    assert results(project) == results(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_prints_the_command_to_resume(whole: Path, project: Path, number: signal.Signals) -> None:
    training = Training(project, *TRAIN, blow=Blow("step", nth=50, number=number))
    assert training.end() == 75
    assert f"train --run {NAME}" in training.printed()
    assert f"Run {NAME}: 1 process on cpu." in training.printed()
    projects.run(project, "train", "--run", NAME)
    assert results(project) == results(whole)


def test_another_machine_resumes_from_the_store(whole: Path, stopped: Path, tmp_path: Path) -> None:
    other = projects.make(tmp_path / "other", stopped)  # with the store but without the runs
    assert "Resuming after step" in finish(other)
    assert results(other) == results(whole)


def test_a_changed_configuration_names_the_field(stopped: Path) -> None:
    training = Training(stopped, "train", "--run", NAME, "--lr", "0.1")
    assert training.end() == 1
    printed = training.printed()
    assert f"run {NAME} was started with lr 0.006, not 0.1; resume it with `skeleton train --run {NAME}`" in printed
    projects.run(stopped, "data", "--seed", "1")
    assert "with other data; restore the data set" in projects.run(stopped, "train", "--run", NAME, code=1)
    projects.run(stopped, "data")
    unknown = Training(stopped, "train", "--run", "unknown")
    assert unknown.end() == 1
    assert "no run unknown" in unknown.printed()


def test_a_finished_run_is_only_evaluated_again(whole: Path) -> None:
    before = results(whole)
    for words in (("--run", NAME), TRAIN[1:]):
        printed = projects.run(whole, "train", *words)
        assert f"Run {NAME} is finished; evaluating it again." in printed
    printed = projects.run(whole, "train", "--name", NAME, code=1)
    assert re.search(rf"error: run {NAME} is finished, with epochs \d+, not \d+.*; choose another --name", printed)
    assert results(whole) == before


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "sums.json", "metrics.jsonl"])
@pytest.mark.parametrize("place", ["disk", "store"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(
    whole: Path, stopped: Path, tmp_path: Path, file: str, place: str
) -> None:
    project = tmp_path / "project"
    shutil.copytree(stopped, project)
    stored = next((project / ".stack" / "data").glob(f"*/*/checkpoints/{NAME}"))
    folder, other = project / "runs" / NAME / "checkpoints", stored
    if place == "store":
        folder, other = other, folder
    shutil.rmtree(other)
    newest = max(folder.glob("step-*"))
    content = bytearray((newest / file).read_bytes())
    content[-2] ^= 1  # one changed bit; the next case truncates the file
    (newest / file).write_bytes(content if file == "state.safetensors" else content[: len(content) // 2])
    with pytest.raises(DamagedCheckpointError, match=newest.name):
        read_files(newest)
    printed = finish(project)
    assert f"checkpoint {newest.name}" in printed
    assert "Resuming after step" in printed
    assert results(project) == results(whole)


def test_weights_hold_no_pickle(whole: Path) -> None:
    checkpoint = max((whole / "runs" / NAME / "checkpoints").glob("step-*"))
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".jsonl", ".safetensors"}
    assert load_file(checkpoint / "state.safetensors")
    assert json.loads((checkpoint / "state.json").read_bytes())["at"]["epoch"] == 6
