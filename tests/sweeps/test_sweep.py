"""Local sweeps without an account, with worker processes that can die."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import places
import projects
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from waiting import fork_server_has, until

from free_ml_stack.processes import alive
from free_ml_stack.sweeps.sweep import importance
from free_ml_stack.sweeps.sweep_file import parse_sweep

GRID = """
method: grid
metric: {name: validation_accuracy, goal: maximize}
parameters:
  lr: {values: [0.001, 0.006]}
  seed: {values: [0, 1, 2]}
  epochs: {value: 1}
"""


@pytest.fixture
def project(data: Path, tmp_path: Path) -> Path:
    folder = projects.make(tmp_path / "project", data)
    (folder / "sweep.yaml").write_text(GRID)
    return folder


def trials(project: Path) -> list[optuna.trial.FrozenTrial]:
    """All trials in the sweep's journal."""
    journal = next(project.glob("runs/sweep-*/journal.log"))
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.load_study(study_name=journal.parent.name, storage=storage).get_trials()


def finished(project: Path) -> list[tuple[float, int]]:
    """The points of the grid that have succeeded."""
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
    assert f"written to runs/{folder.name}/best.json" in printed
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")

    projects.run(project, "train", "--config", str(folder / "best.json"))
    table = json.loads((folder / "trials.json").read_text())
    result = json.loads(next(project.glob("runs/2*/result.json")).read_text())
    assert result["validation"]["accuracy"] == table[0]["value"]  # training is reproducible


@pytest.mark.slow
def test_a_second_call_adds_no_trials_to_a_finished_sweep(project: Path) -> None:
    projects.run(project, "sweep", "--trials", "2")
    assert len(finished(project)) == 2
    again = projects.run(project, "sweep", "--trials", "2")
    assert "The sweep is complete: 2 trials; for more, run `sweep --trials N` or raise run_cap." in again
    assert len(trials(project)) == 6  # queued, of which two have run
    assert "complete" not in projects.run(project, "sweep")
    assert finished(project) == POINTS
    assert "The sweep is complete: 6 trials." in projects.run(project, "sweep")


@pytest.mark.slow
def test_a_sweep_of_another_data_set_begins_anew(project: Path) -> None:
    tables = []
    for seed in ("0", "1"):
        projects.run(project, "data", "--seed", seed)
        assert "complete" not in projects.run(project, "sweep", "--trials", "1")
        table = max(project.glob("runs/sweep-*/trials.json"), key=lambda path: path.stat().st_mtime)
        tables.append((table.parent, json.loads(table.read_text())))
    assert tables[0][0] != tables[1][0]
    projects.run(project, "data")
    again = projects.run(project, "sweep", "--trials", "1")
    assert "The sweep is complete: 1 trials" in again
    assert f"written to runs/{tables[0][0].name}/best.json" in again


@pytest.mark.slow
def test_a_killed_sweep_resumes(project: Path) -> None:
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
def test_a_trial_whose_process_dies_is_reported_and_retried(project: Path) -> None:
    (project / "start.sh").write_text('mkdir first && kill -9 $PPID\nexec "$@"\n')
    command = 'command: [sh, start.sh, "${interpreter}", -m, skeleton, train, "${args}"]\n'
    (project / "sweep.yaml").write_text(GRID + command)
    printed = projects.run(project, "sweep", "--agents", "1", "--trials", "3")
    assert "the process died (exit code -9)" in printed
    assert len(finished(project)) == 3
    assert "retrying it" in printed


@pytest.mark.slow
def test_two_sweeps_share_the_trials_of_one_folder(project: Path, data: Path, tmp_path: Path) -> None:
    """This simulates two machines with a shared disk."""
    other = projects.make(tmp_path / "other", data)
    (other / "sweep.yaml").write_text(GRID)
    place = tmp_path / "shared"
    sweeps = [projects.start(one, "sweep", "--study", str(place), "--agents", "1") for one in (project, other)]
    printed = [process.communicate(timeout=300) for process in sweeps]
    assert [process.returncode for process in sweeps] == [0, 0], printed
    tables = [json.loads(next(one.glob("runs/sweep-*/trials.json")).read_text()) for one in (project, other)]
    assert tables[0] == tables[1]
    assert sorted((trial["config"]["lr"], trial["config"]["seed"]) for trial in tables[0]) == POINTS


PROGRAM = """
import json, os, sys
import wandb
assert os.environ["WANDB_SWEEP_ID"] == os.environ["WANDB_RUN_ID"].rpartition("-")[0]
run = wandb.init(project="p")
assert dict(run.config) == json.loads(sys.argv[1]), dict(run.config)
run.log({"loss": run.config["deep"]["lr"] ** 2})
if run.config["deep"]["lr"] == 3:
    sys.exit("it does not converge")
run.finish()
"""
COMMAND = """
method: grid
metric: {name: loss}
program: other.py
parameters: {deep: {parameters: {lr: {values: [3, 2, 1]}}}}
command: ["${env}", "${interpreter}", "${program}", "${args_json}"]
"""


@pytest.mark.slow
def test_a_command_can_be_any_program_that_logs_to_wandb(tmp_path: Path) -> None:
    """The program gets the same input as from W&B's agent, including nested parameters, and needs no account or data."""
    (tmp_path / "stack.toml").write_text('project = "p"\nstorage = "./store"\n')
    (tmp_path / "store" / "data").mkdir(parents=True)
    (tmp_path / "store" / "data" / "manifest.json").write_text("damaged")
    (tmp_path / "sweep.yaml").write_text(COMMAND)
    (tmp_path / "other.py").write_text(PROGRAM)
    printed = projects.run(tmp_path, "sweep")
    folder = next(tmp_path.glob("runs/sweep-*"))
    assert json.loads((folder / "best.json").read_text()) == {"deep": {"lr": 1}}
    assert "Trial 0 failed: the program exited with code 1" in printed
    assert "it does not converge" in printed
    assert "1 of 3 trials failed" in printed
    assert "train --config" not in printed  # `train` does not accept another program's settings


PRICED = """
import wandb
with wandb.init() as run:
    run.define_metric("top", summary="max")
    run.log({"top": 1})
    run.log({"€ or $_{ of 数据 in $": run.config["lr"]})
"""


def test_parameter_importance_prints_nothing() -> None:
    """This includes sweeps at W&B, after which Optuna is used for the first time."""
    optuna.logging.set_verbosity(optuna.logging.INFO)
    plan = parse_sweep(GRID, "sweep.yaml")
    trials = [{"config": {"lr": 0.1, "seed": seed, "epochs": 1}, "value": 1.0 / (seed + 1)} for seed in range(4)]
    assert set(importance(plan, trials)) == {"seed"}
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


@pytest.mark.slow
def test_a_metric_can_have_any_name_and_failed_trials_are_retried_after_a_fix(tmp_path: Path) -> None:
    """The picture shows dollar signs literally, and missing glyphs give no warnings."""
    (tmp_path / "stack.toml").write_text('project = "p"\n')
    (tmp_path / "sweep.yaml").write_text(
        "method: random\nrun_cap: 3\nprogram: other.py\nmetric: {name: '€ or $_{ of 数据 in $'}\n"
        "parameters: {lr: {min: 0.0, max: 1.0}}\n"
    )
    assert "fix this error first" in projects.run(tmp_path, "sweep", "--agents", "1", code=1)
    (tmp_path / "other.py").write_text(PRICED)
    printed = projects.run(tmp_path, "sweep", "--agents", "1")
    assert "failed" not in printed
    assert "Glyph" not in printed
    assert "Best: € or $_{ of 数据 in $" in printed
    file = tmp_path / "sweep.yaml"
    file.write_text(file.read_text().replace("€ or $_{ of 数据 in $", "top"))
    assert "set the metric to one of top.max" in projects.run(tmp_path, "sweep", code=1)


ODD = """
import wandb
run = wandb.init()
value = run.config["x"]
run.log({"deep": {"loss": float("nan") if value == 7 else len(value)}})
run.finish()
"""


@pytest.mark.slow
def test_values_can_be_mappings_and_a_metric_nested_or_nan(tmp_path: Path) -> None:
    """This works with W&B disabled by the user, although the program logs its metric with W&B's client."""
    (tmp_path / "stack.toml").write_text('project = "p"\n')
    text = "method: grid\nmetric: {name: deep.loss}\nprogram: odd.py\n"
    (tmp_path / "sweep.yaml").write_text(text + "parameters: {x: {values: [{}, {a: 1, b: {c: 2}}, 7]}}\n")
    (tmp_path / "odd.py").write_text(ODD)
    printed = projects.run(tmp_path, "sweep", WANDB_MODE="disabled")
    folder = next(tmp_path.glob("runs/sweep-*"))
    assert json.loads((folder / "best.json").read_text()) == {"x": {}}
    assert "{'a': 1, 'b': {'c': 2}}" in printed
    assert "Trial 2 failed: the final value of deep.loss is NaN" in printed


@pytest.mark.slow
def test_a_command_can_wrap_train(project: Path) -> None:
    """The command is a wrapper that adds a flag to `train`; its trials can be stopped early too."""
    (project / "start.sh").write_text('exec "$@" --width 8\n')
    text = GRID.replace("epochs: {value: 1}", "epochs: {value: 4}").replace("[0.001, 0.006]", "[0.006, 0.0000001]")
    text += "early_terminate: {type: hyperband, min_iter: 2, eta: 1.5}\n"
    text += 'command: [sh, start.sh, "${interpreter}", -m, skeleton, train, "${args}"]\n'
    (project / "sweep.yaml").write_text(text)
    printed = projects.run(project, "sweep", "--agents", "1")
    table = json.loads(next(project.glob("runs/sweep-*/trials.json")).read_text())
    assert sorted((trial["config"]["lr"], trial["config"]["seed"]) for trial in table) == sorted(
        (lr, seed) for lr in (0.006, 0.0000001) for seed in (0, 1, 2)
    )
    assert "stopped early" in printed
    assert json.loads(next(project.glob("runs/sweep-*-0000/result.json")).read_text())["config"]["width"] == 8
    assert not (project / "runs" / "latest").exists()


@pytest.mark.slow
def test_flags_of_the_command_apply_to_every_trial(project: Path) -> None:
    text = GRID.replace("[0, 1, 2]", "[0]")
    text += 'command: ["${env}", "${interpreter}", "-m", "skeleton", "train", "--width", "8", "${args}"]\n'
    (project / "sweep.yaml").write_text(text)
    projects.run(project, "sweep")
    results = [json.loads(path.read_text()) for path in project.glob("runs/sweep-*/trials/*/result.json")]
    assert [result["config"]["width"] for result in results] == [8, 8]


@pytest.mark.slow
def test_a_trial_that_exceeds_the_time_limit_is_stopped_and_counted(project: Path) -> None:
    text = GRID.replace("epochs: {value: 1}", "epochs: {values: [1, 100000]}\n  patience: {value: 0}").replace(
        "[0, 1, 2]", "[0]"
    )
    (project / "sweep.yaml").write_text(text + "early_terminate: {type: hyperband, min_iter: 90000}\n")
    printed = projects.run(project, "sweep", "--timeout", "10", "--agents", "1")
    assert printed.count("exceeded the time limit of 10 seconds") == 2
    assert "2 of 4 trials failed" in printed
    assert len(finished(project)) == 2


@pytest.mark.slow
def test_a_stopped_sweep_exits_immediately_and_resumes_later(project: Path) -> None:
    text = GRID.replace("epochs: {value: 1}", "epochs: {value: 40}\n  patience: {value: 0}")
    (project / "sweep.yaml").write_text(text)
    process = projects.start(project, "sweep", "--trials", "3")
    assert process.stdout
    next(line for line in process.stdout if line.startswith("Trial"))  # now the other trials are training
    crew = projects.workers(process.pid)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert crew
    assert not [pid for pid in crew if alive(pid)]
    projects.run(project, "sweep", "--trials", "3")
    assert len(finished(project)) == 3


@pytest.mark.slow
def test_ctrl_c_during_the_start_is_reported_in_one_line(project: Path) -> None:
    """It is sent to all processes: also to the fork server, which imports the training code."""
    command, environ = [sys.executable, "-m", "skeleton", "sweep"], projects.environment(project)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=project, env=environ, start_new_session=True, **pipes) as process:
        until(lambda: fork_server_has("libtorch", process.pid))
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "interrupted; run the same command to continue the sweep\n")
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("error", ["import absent", "1 / 0"])
def test_an_error_of_the_training_code_at_its_import_is_reported(project: Path, tmp_path: Path, error: str) -> None:
    shutil.copytree(places.SOURCE / "skeleton", package := tmp_path / "source" / "skeleton")
    (package / "train.py").write_text(error)
    for command in ("sweep", "train"):
        process = projects.start(project, command, PYTHONPATH=str(package.parent))
        printed = process.communicate(timeout=300)[1]
        assert process.returncode == 1
        if command == "sweep":
            assert printed.endswith("error: workers cannot import the training code; run `train` to see the error\n")
            assert "free_ml_stack" not in printed  # no traceback of the sweep
        else:
            assert f"    {error}\n" in printed


@pytest.mark.slow
def test_a_metric_that_is_not_logged_is_reported_with_the_logged_ones(project: Path) -> None:
    (project / "sweep.yaml").write_text(GRID.replace("validation_accuracy", "acuracy"))
    printed = projects.run(project, "sweep", code=1)
    assert "metric 'acuracy' was not logged; logged metrics: " in printed
    assert "validation_accuracy" in printed


@pytest.mark.slow
@pytest.mark.parametrize("time", ["-3", "nan", "soon"])
def test_an_invalid_time_limit_is_rejected(project: Path, time: str) -> None:
    assert f"expected a number of seconds, 0 or more, got '{time}'" in projects.run(
        project, "sweep", "--timeout", time, code=2
    )


@pytest.mark.slow
def test_a_diverged_trial_is_reported(project: Path) -> None:
    text = GRID.replace("[0.001, 0.006]", "[1.0e+30, 0.006]").replace("[0, 1, 2]", "[0]")
    (project / "sweep.yaml").write_text(text)
    assert "training diverged: no epoch had a finite validation loss; try a lower learning rate" in projects.run(
        project, "sweep"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sead: {values: [0, 1, 2]}", "unknown setting 'sead'; did you mean 'seed'?"),
        ("deep: {parameters: {seed: {values: [0, 1]}}}", "parameter deep.seed: `train` has no nested settings"),
    ],
)
def test_a_parameter_that_train_lacks_is_reported_before_the_first_trial(
    project: Path, line: str, message: str
) -> None:
    (project / "sweep.yaml").write_text(GRID.replace("seed: {values: [0, 1, 2]}", line))
    assert projects.run(project, "sweep", code=1) == f"error: sweep.yaml: {message}\n"


def test_a_missing_data_set_is_reported(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text('project = "p"\n')
    (tmp_path / "sweep.yaml").write_text(GRID)
    assert "no data set in the store; run `p data`" in projects.run(tmp_path, "sweep", code=1)
