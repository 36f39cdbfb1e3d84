"""Sweeps at Weights & Biases, run by its real agents."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import projects
import pytest
from services.hub_faults import Fault
from services.wandb_server import Wandb
from services.wandb_store import Run
from tracking_service import account, wandb_service
from waiting import until

from free_ml_stack.processes import alive

SWEEP = """
method: grid
metric: {name: validation_accuracy, goal: maximize}
parameters:
  lr: {values: [0.00001, 0.006]}
  dropout: {values: [0.1, 2.0]}
  epochs: {value: 1}
command: ["${env}", "${interpreter}", -m, skeleton, train, --config, "${args_json_file}"]
"""


@pytest.fixture
def service() -> Iterator[Wandb]:
    with wandb_service() as served:
        yield served


@pytest.fixture
def project(data: Path, tmp_path: Path) -> Path:
    folder = projects.make(tmp_path / "project", data)
    (folder / "sweep.yaml").write_text(SWEEP)
    return folder


def evaluated(run: Run) -> bool:
    """Whether a run has sent the metric of the sweep; a trial that is stopped before has failed."""
    return any("validation_accuracy" in row for row in run.history)


@pytest.mark.slow
def test_agents_run_a_sweep_and_its_best_configuration_is_written(project: Path, service: Wandb) -> None:
    printed = projects.run(project, "sweep", **account(project, service))
    [sweep] = service.store.sweeps.values()
    runs = [service.store.run(name) for name in sweep.runs]
    assert sweep.state == "FINISHED"
    assert len(service.store.agents) == 2
    points = {(run.config["lr"]["value"], run.config["dropout"]["value"]) for run in runs}
    assert points == {(lr, dropout) for lr in (0.00001, 0.006) for dropout in (0.1, 2.0)}
    assert "sweep --join me/skeleton/sweep0`" in printed
    assert "/sweeps/sweep0" in printed
    folder = next(project.glob("runs/sweep-????????"))
    assert json.loads((folder / "best.json").read_text()) == {"lr": 0.006, "dropout": 0.1, "epochs": 1}
    table = json.loads((folder / "trials.json").read_text())
    assert [trial["state"] for trial in table] == ["finished", "finished", "failed", "failed"]
    assert "2 of 4 trials failed" in printed
    assert "Next: `skeleton sweep`" not in printed  # printed by `train` only
    assert service.store.run(table[0]["run"]).summary["validation_accuracy"] == table[0]["value"]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not (project / "runs" / "latest").exists()  # trials are not published
    [tracked] = [run for run in service.store.runs.values() if run.facts.get("jobType") == "sweep"]
    assert tracked.summary["trials"] == 4

    # A second call creates a new sweep, because this one is finished; an agent that joins the first has nothing to do.
    again = projects.run(project, "sweep", "--join", "me/skeleton/sweep0", "--agents", "1", **account(project, service))
    assert "Best: validation_accuracy" in again
    assert len(service.store.runs) == 4 + 2


@pytest.mark.slow
def test_repeating_a_finished_sweep_keeps_its_earlier_trials(project: Path, service: Wandb) -> None:
    """W&B creates another sweep of the same file, with worse trials."""
    text = SWEEP.replace("method: grid", "method: random\nrun_cap: 1").replace("[0.1, 2.0]", "[0.1]")
    text = text.replace("{values: [0.00001, 0.006]}", "{min: 0.005, max: 0.006}")
    (project / "sweep.yaml").write_text(text)
    projects.run(project, "sweep", "--agents", "1", **account(project, service))
    folder = next(project.glob("runs/sweep-????????"))
    best = (folder / "best.json").read_bytes()
    table = json.loads((folder / "trials.json").read_text())
    table[0]["value"] = 1.5  # better than any other trial
    (folder / "trials.json").write_text(json.dumps(table))
    printed = projects.run(project, "sweep", "--agents", "1", **account(project, service))
    assert len(service.store.sweeps) == 2
    assert (folder / "best.json").read_bytes() == best
    kept = json.loads((folder / "trials.json").read_text())
    assert (kept[0]["trial"], kept[0]["value"]) == (0, 1.5)
    assert len({trial["run"] for trial in kept}) == 2
    assert "1.5" in printed


@pytest.mark.slow
def test_a_trial_stopped_by_the_sweep_is_not_restarted(project: Path, service: Wandb) -> None:
    """The agent forwards the stop as SIGTERM, which otherwise means preemption."""
    text = SWEEP.replace("[0.1, 2.0]", "[0.1]").replace("[0.00001, 0.006]", "[0.006]")
    (project / "sweep.yaml").write_text(
        text.replace("epochs: {value: 1}", "epochs: {value: 100000}\n  patience: {value: 0}")
    )
    process = projects.start(project, "sweep", "--agents", "1", **account(project, service))
    until(lambda: any(evaluated(run) for run in service.store.runs.values()))
    service.store.run("sweep0-run0").stopped = True
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, printed + complaint
    run = service.store.run("sweep0-run0")
    assert run.state == "finished"
    assert next(iter(service.store.sweeps.values())).runs == [run.name]
    assert "Best: validation_accuracy" in printed


@pytest.mark.slow
def test_an_interrupted_sweep_resumes_the_same_trial(project: Path, service: Wandb) -> None:
    text = SWEEP.replace("[0.1, 2.0]", "[0.1]").replace("[0.00001, 0.006]", "[0.006]")
    (project / "sweep.yaml").write_text(
        text.replace("epochs: {value: 1}", "epochs: {value: 100000}\n  patience: {value: 0}")
    )
    hasty = account(project, service, STACK_PATIENCE="0.2")
    process = projects.start(project, "sweep", "--agents", "1", **hasty)
    until(lambda: any(run.history for run in service.store.runs.values()))
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert any(line.startswith("Stopping: waiting up to a minute") for line in process.stdout)
    process.send_signal(signal.SIGINT)  # a second Ctrl-C must not orphan the agents
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 130, printed + complaint
    run = service.store.run("sweep0-run0")
    assert run.state == "preempted"
    assert not alive(process.pid)
    before = len(run.history)
    again = projects.start(project, "sweep", "--agents", "1", "--trials", "7", **account(project, service))
    until(lambda: len(run.history) > before and evaluated(run))
    run.stopped = True  # otherwise it trains for a long time
    printed, complaint = again.communicate(timeout=280)
    assert again.returncode == 0, printed + complaint
    assert "--trials 7 ignored: the number of trials of an existing sweep at W&B is fixed." in printed
    assert "Resuming after step" in printed
    assert len(service.store.sweeps) == 1
    assert run.state == "finished"
    steps = [row["step"] for row in run.history if "loss" in row]
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["UpsertSweep", "CreateAgent"])
def test_the_sweep_runs_locally_if_wandb_does_not_create_it(project: Path, service: Wandb, operation: str) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.1, 2.0]", "[0.1]"))
    service.faults.append(Fault(403, match=operation))
    printed = projects.run(project, "sweep", **account(project, service))
    assert "Continuing the sweep on this machine" in printed
    folder = next(project.glob("runs/sweep-????????"))
    assert json.loads((folder / "best.json").read_text())["lr"] == 0.006


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["GetSweep", "graphql/Runs"])
def test_the_sweep_continues_locally_if_wandb_does_not_return_its_trials(
    project: Path, service: Wandb, operation: str
) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.00001, 0.006]", "[0.006]").replace(", 2.0", ""))
    process = projects.start(project, "sweep", "--agents", "1", **account(project, service))
    until(lambda: any(sweep.state == "FINISHED" for sweep in service.store.sweeps.values()))
    service.faults.append(Fault("reset", match=operation))
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, printed + complaint
    assert "Continuing the sweep on this machine" in printed
    assert "Best: validation_accuracy" in printed


@pytest.mark.slow
def test_failures_of_all_trials_are_listed_in_a_table(project: Path, service: Wandb) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.1, 2.0]", "[2.0]"))
    printed = projects.run(project, "sweep", code=1, **account(project, service))
    table = next(project.glob("runs/sweep-????????/trials.json"))
    assert f"error: all trials failed (trial 0: failed at W&B); see {table.relative_to(project)}" in printed
    assert [trial["error"] for trial in json.loads(table.read_text())] == ["failed at W&B"] * 2


@pytest.mark.slow
def test_the_sweep_continues_locally_if_wandb_becomes_unreachable(project: Path, service: Wandb) -> None:
    """W&B's own agent would retry forever."""
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.1, 2.0]", "[0.1]"))
    hasty = account(project, service, WANDB_INIT_TIMEOUT="5", STACK_PATIENCE="0.2")
    process = projects.start(project, "sweep", "--agents", "1", **hasty)
    until(lambda: bool(service.store.runs))
    [sweep] = service.store.sweeps.values()
    sweep.state = "PAUSED"
    assert process.stdout
    assert any("Waiting for W&B to assign a trial; the sweep may be paused." in line for line in process.stdout)
    until(lambda: service.store.run("sweep0-run0").state == "finished")
    service.faults.append(Fault("reset"))
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, printed + complaint
    assert "W&B: no longer reachable. Continuing the sweep on this machine" in printed
    assert "Trials of W&B's agents on this machine, included in the sweep: 1." in printed
    assert "Traceback" not in printed + complaint
    folder = next(project.glob("runs/sweep-????????"))
    assert json.loads((folder / "best.json").read_text())["lr"] == 0.006
    points = [trial["config"]["lr"] for trial in json.loads((folder / "trials.json").read_text())]
    assert sorted(points) == [0.00001, 0.006]
    assert "run `skeleton sync` later to upload the run" in printed


@pytest.mark.slow
def test_a_sweep_deleted_at_wandb_continues_locally_with_its_trials(project: Path, service: Wandb) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.00001, 0.006]", "[0.006]").replace(", 2.0", ""))
    process = projects.start(project, "sweep", "--agents", "1", **account(project, service))
    until(lambda: any(sweep.state == "FINISHED" for sweep in service.store.sweeps.values()))
    service.store.sweeps.clear()
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, printed + complaint
    assert "W&B: sweep me/skeleton/sweep0 was deleted. Continuing the sweep on this machine" in printed
    assert "Trials of W&B's agents on this machine, included in the sweep: 1." in printed
    assert "Best: validation_accuracy" in printed


def test_join_requires_a_valid_key(project: Path) -> None:
    assert "--join requires a valid W&B key" in projects.run(project, "sweep", "--join", "me/p/s", code=1)


@pytest.mark.parametrize("place", ["nosuch", "http://host/me/p/sweeps/s", "a/b/c/d"])
def test_join_rejects_an_invalid_sweep_path(project: Path, service: Wandb, place: str) -> None:
    printed = projects.run(project, "sweep", "--join", place, code=1, **account(project, service))
    assert f"--join {place}: expected ENTITY/PROJECT/ID" in printed


@pytest.mark.slow
def test_a_sweep_file_sets_entity_and_project(project: Path, service: Wandb) -> None:
    (project / "sweep.yaml").write_text(
        "entity: team\nproject: other\nname: Süß 🚀\n" + SWEEP.replace("[0.1, 2.0]", "[0.1]")
    )
    printed = projects.run(project, "sweep", **account(project, service))
    assert "sweep --join team/other/sweep0`" in printed


@pytest.mark.slow
def test_join_reports_an_unknown_sweep(project: Path, service: Wandb) -> None:
    printed = projects.run(project, "sweep", "--join", "me/p/nosuch", code=1, **account(project, service))
    assert "sweep me/p/nosuch not found at W&B" in printed


@pytest.mark.slow
def test_a_trial_that_failed_to_upload_is_uploaded_before_the_results_are_read(project: Path, service: Wandb) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.1, 2.0]", "[0.1]"))
    service.faults.append(Fault(403, at=[1, 3], match="RunResumeStatus"))
    printed = projects.run(project, "sweep", "--agents", "1", **account(project, service))
    assert "Tracking offline" in printed
    assert "Continuing the sweep on this machine" in printed  # because the second upload of the trial failed too
    settings = project / "stack.toml"
    settings.write_text(settings.read_text().replace('"skeleton"', '"other"'))
    printed = projects.run(project, "sweep", "--join", "me/skeleton/sweep0", **account(project, service))
    assert "sweep0-run0: http" in printed
    assert "failed" not in printed
    runs = [service.store.run(f"sweep0-run{number}") for number in range(2)]
    assert [(run.state, run.project) for run in runs] == [("finished", "skeleton")] * 2
