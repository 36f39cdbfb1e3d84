"""Sweeps without an account: from the same sweep.yaml, over processes that may die."""

import json
import os
import signal
import subprocess
from pathlib import Path

import optuna
import projects
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from skeleton.stack.pids import alive

GRID = """
method: grid
metric: {name: validation_accuracy, goal: maximize}
parameters:
  lr: {values: [0.001, 0.006]}
  seed: {values: [0, 1, 2]}
  epochs: {value: 1}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return projects.make(tmp_path_factory.mktemp("data"))


@pytest.fixture
def project(data: Path, tmp_path: Path) -> Path:
    folder = projects.make(tmp_path / "project", data)
    (folder / "sweep.yaml").write_text(GRID)
    return folder


def trials(project: Path) -> list[optuna.trial.FrozenTrial]:
    """All trials in the sweep's journal."""
    journal = next(project.glob("runs/sweep-*/journal.log"))
    return optuna.load_study(
        study_name="sweep", storage=JournalStorage(JournalFileBackend(str(journal)))
    ).get_trials()


def finished(project: Path) -> list[tuple[float, int]]:
    """The points of the grid that have ended well."""
    ended = (trial for trial in trials(project) if trial.state == TrialState.COMPLETE)
    return sorted((trial.user_attrs["config"]["lr"], trial.user_attrs["config"]["seed"]) for trial in ended)


POINTS = sorted((lr, seed) for lr in (0.001, 0.006) for seed in (0, 1, 2))


@pytest.mark.slow
def test_a_grid_runs_every_point_once_and_keeps_the_best(project: Path) -> None:
    printed = projects.run(project, "sweep")
    assert finished(project) == POINTS
    folder = next(project.glob("runs/sweep-*"))
    best = json.loads((folder / "best.json").read_text())
    assert best["lr"] == 0.006
    assert str(folder / "best.json") in printed
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")

    projects.run(project, "train", "--config", str(folder / "best.json"))
    table = json.loads((folder / "trials.json").read_text())
    result = json.loads(next(project.glob("runs/2*/result.json")).read_text())
    assert (
        result["validation"]["accuracy"] == table[0]["value"]
    )  # the same configuration trains the same model


@pytest.mark.slow
def test_a_second_call_adds_nothing_to_a_finished_sweep(project: Path) -> None:
    projects.run(project, "sweep", "--trials", "2")
    assert len(finished(project)) == 2
    projects.run(project, "sweep", "--trials", "2")
    assert len(trials(project)) == 6  # the queue, of which two have run
    projects.run(project, "sweep")
    assert finished(project) == POINTS


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(project: Path) -> None:
    process = projects.start(project, "sweep")
    assert process.stdout
    next(line for line in process.stdout if line.startswith("Trial"))
    process.kill()
    process.communicate()
    before = finished(project)
    projects.run(project, "sweep")
    assert finished(project) == POINTS
    assert set(before) <= set(POINTS)
    assert not [trial for trial in trials(project) if trial.state == TrialState.RUNNING]


@pytest.mark.slow
def test_a_trial_whose_process_dies_is_told_and_the_sweep_goes_on(project: Path) -> None:
    (project / "sweep.yaml").write_text(GRID.replace("epochs: {value: 1}", "epochs: {value: 8}"))
    process = projects.start(project, "sweep", "--workers", "1", "--trials", "3")
    assert process.stdout
    next(line for line in process.stdout if line.startswith("Trial"))
    for worker in workers(process.pid):
        os.kill(worker, signal.SIGKILL)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "the process died" in printed
    assert len(finished(project)) == 3


@pytest.mark.slow
def test_a_sweep_that_is_stopped_ends_at_once_and_goes_on_later(project: Path) -> None:
    (project / "sweep.yaml").write_text(GRID.replace("epochs: {value: 1}", "epochs: {value: 6}"))
    process = projects.start(project, "sweep", "--trials", "3")
    assert process.stdout
    next(line for line in process.stdout if line.startswith("Trial"))  # so that others are training now
    crew = workers(process.pid)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert crew
    assert not [pid for pid in crew if alive(pid)]
    projects.run(project, "sweep", "--trials", "3")
    assert len(finished(project)) == 3


def workers(parent: int) -> list[int]:
    """The processes that train: the children of the fork server."""
    table = subprocess.run(
        ["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    servers = [pid for pid, ppid, args in rows if int(ppid) == parent and "forkserver" in args]
    return [int(pid) for pid, ppid, _ in rows if ppid in servers]


@pytest.mark.slow
def test_a_metric_that_training_does_not_log_is_told_with_those_it_does(project: Path) -> None:
    (project / "sweep.yaml").write_text(GRID.replace("validation_accuracy", "acuracy"))
    printed = projects.run(project, "sweep", code=1)
    assert "training logs no 'acuracy'; it logs " in printed
    assert "validation_accuracy" in printed


@pytest.mark.slow
def test_an_unknown_parameter_is_refused_by_name(project: Path) -> None:
    (project / "sweep.yaml").write_text(GRID.replace("seed:", "sead:"))
    assert "did you mean 'seed'?" in projects.run(project, "sweep", code=1)


def test_no_data_yet(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text('project = "p"\n')
    (tmp_path / "sweep.yaml").write_text(GRID)
    assert "no data yet: run `p data`" in projects.run(tmp_path, "sweep", code=1)
