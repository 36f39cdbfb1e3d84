"""Sweeps at Weights & Biases: made, run by its real agents, and fetched back."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import projects
import pytest
from services.hub_faults import Fault
from services.wandb_server import Wandb
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


@pytest.mark.slow
def test_a_sweep_is_run_by_agents_and_its_best_comes_back(project: Path, service: Wandb) -> None:
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
    assert "Next: `skeleton sweep`" not in printed  # what a trial that is trained by hand would say
    assert service.store.run(table[0]["run"]).summary["validation_accuracy"] == table[0]["value"]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not (project / "runs" / "latest").exists()  # a trial is not what is published next
    [told] = [run for run in service.store.runs.values() if run.facts.get("jobType") == "sweep"]
    assert told.summary["trials"] == 4

    # Started again, it makes another sweep, for this one is over; an agent that joins it has nothing to do.
    again = projects.run(project, "sweep", "--join", "me/skeleton/sweep0", "--agents", "1", **account(project, service))
    assert "Best: validation_accuracy" in again
    assert len(service.store.runs) == 4 + 2


@pytest.mark.slow
def test_a_finished_sweep_that_is_started_again_keeps_its_trials_and_its_best(project: Path, service: Wandb) -> None:
    """W&B makes another sweep of the file, whose trials end worse."""
    text = SWEEP.replace("method: grid", "method: random\nrun_cap: 1").replace("[0.1, 2.0]", "[0.1]")
    text = text.replace("{values: [0.00001, 0.006]}", "{min: 0.005, max: 0.006}")
    (project / "sweep.yaml").write_text(text)
    projects.run(project, "sweep", "--agents", "1", **account(project, service))
    folder = next(project.glob("runs/sweep-????????"))
    best = (folder / "best.json").read_bytes()
    table = json.loads((folder / "trials.json").read_text())
    table[0]["value"] = 1.5  # what no second trial reaches
    (folder / "trials.json").write_text(json.dumps(table))
    printed = projects.run(project, "sweep", "--agents", "1", **account(project, service))
    assert len(service.store.sweeps) == 2
    assert (folder / "best.json").read_bytes() == best
    kept = json.loads((folder / "trials.json").read_text())
    assert (kept[0]["trial"], kept[0]["value"]) == (0, 1.5)
    assert len({trial["run"] for trial in kept}) == 2
    assert "1.5" in printed


@pytest.mark.slow
def test_a_trial_that_the_sweep_stops_is_not_begun_again(project: Path, service: Wandb) -> None:
    """The agent hands the order on as a SIGTERM, which elsewhere means: go on later."""
    text = SWEEP.replace("[0.1, 2.0]", "[0.1]").replace("[0.00001, 0.006]", "[0.006]")
    (project / "sweep.yaml").write_text(text.replace("epochs: {value: 1}", "epochs: {value: 100000}"))
    process = projects.start(project, "sweep", "--agents", "1", **account(project, service))
    until(lambda: any(run.history for run in service.store.runs.values()))
    service.store.run("sweep0-run0").stopped = True
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, printed + complaint
    run = service.store.run("sweep0-run0")
    assert run.state == "finished"
    assert next(iter(service.store.sweeps.values())).runs == [run.name]
    assert "Best: validation_accuracy" in printed


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_goes_on_with_the_same_trial(project: Path, service: Wandb) -> None:
    text = SWEEP.replace("[0.1, 2.0]", "[0.1]").replace("[0.00001, 0.006]", "[0.006]")
    (project / "sweep.yaml").write_text(
        text.replace("epochs: {value: 1}", "epochs: {value: 100000}\n  patience: {value: 0}")
    )
    hasty = account(project, service, STACK_PATIENCE="0.2")
    process = projects.start(project, "sweep", "--agents", "1", **hasty)
    until(lambda: any(run.history for run in service.store.runs.values()))
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert any(line.startswith("Stopping: each trial writes its checkpoint") for line in process.stdout)
    process.send_signal(signal.SIGINT)  # of somebody impatient: the agents would be left behind
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 130, printed + complaint
    run = service.store.run("sweep0-run0")
    assert run.state == "preempted"
    assert not alive(process.pid)
    before = len(run.history)
    again = projects.start(project, "sweep", "--agents", "1", "--trials", "7", **account(project, service))
    until(lambda: len(run.history) > before)
    run.stopped = True  # it would train for long
    printed, complaint = again.communicate(timeout=280)
    assert again.returncode == 0, printed + complaint
    assert "--trials 7: the sweep at W&B goes on with the number that it was made with." in printed
    assert "Resuming after step" in printed
    assert len(service.store.sweeps) == 1
    assert run.state == "finished"
    steps = [row["step"] for row in run.history if "loss" in row]
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["UpsertSweep", "CreateAgent"])
def test_where_wandb_makes_no_sweep_it_is_run_here(project: Path, service: Wandb, operation: str) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.1, 2.0]", "[0.1]"))
    service.faults.append(Fault(403, match=operation))
    printed = projects.run(project, "sweep", **account(project, service))
    assert "The sweep goes on here." in printed
    folder = next(project.glob("runs/sweep-????????"))
    assert json.loads((folder / "best.json").read_text())["lr"] == 0.006


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["GetSweep", "graphql/Runs"])
def test_where_wandb_does_not_tell_of_its_trials_the_sweep_goes_on_here(
    project: Path, service: Wandb, operation: str
) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.00001, 0.006]", "[0.006]").replace(", 2.0", ""))
    process = projects.start(project, "sweep", "--agents", "1", **account(project, service))
    until(lambda: any(sweep.state == "FINISHED" for sweep in service.store.sweeps.values()))
    service.faults.append(Fault("reset", match=operation))
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, printed + complaint
    assert "The sweep goes on here." in printed
    assert "Best: validation_accuracy" in printed


@pytest.mark.slow
def test_where_each_trial_fails_a_table_says_why(project: Path, service: Wandb) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.1, 2.0]", "[2.0]"))
    printed = projects.run(project, "sweep", code=1, **account(project, service))
    table = next(project.glob("runs/sweep-????????/trials.json"))
    assert f"error: no trial has ended well; see the messages above, and {table.relative_to(project)}" in printed
    assert [trial["error"] for trial in json.loads(table.read_text())] == ["failed at W&B"] * 2


@pytest.mark.slow
def test_where_wandb_is_gone_between_two_trials_the_sweep_goes_on_here(project: Path, service: Wandb) -> None:
    """Its own agent would wait for it as long as it takes."""
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.1, 2.0]", "[0.1]"))
    hasty = account(project, service, WANDB_INIT_TIMEOUT="5", STACK_PATIENCE="0.2")
    process = projects.start(project, "sweep", "--agents", "1", **hasty)
    until(lambda: bool(service.store.runs))
    [sweep] = service.store.sweeps.values()
    sweep.state = "PAUSED"
    assert process.stdout
    assert any("W&B gives the agents no trial; the sweep may be paused." in line for line in process.stdout)
    until(lambda: service.store.run("sweep0-run0").state == "finished")
    service.faults.append(Fault("reset"))
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, printed + complaint
    assert "W&B: does not answer any more. The sweep goes on here." in printed
    assert "Trials that W&B's agents have run here: 1." in printed
    assert "Traceback" not in printed + complaint
    folder = next(project.glob("runs/sweep-????????"))
    assert json.loads((folder / "best.json").read_text())["lr"] == 0.006
    points = [trial["config"]["lr"] for trial in json.loads((folder / "trials.json").read_text())]
    assert sorted(points) == [0.00001, 0.006]
    assert "`skeleton sync` sends it" in printed


@pytest.mark.slow
def test_a_sweep_that_is_deleted_at_wandb_goes_on_here_with_the_trials_it_had(project: Path, service: Wandb) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.00001, 0.006]", "[0.006]").replace(", 2.0", ""))
    process = projects.start(project, "sweep", "--agents", "1", **account(project, service))
    until(lambda: any(sweep.state == "FINISHED" for sweep in service.store.sweeps.values()))
    service.store.sweeps.clear()
    printed, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, printed + complaint
    assert "W&B: the sweep me/skeleton/sweep0 is there no more. The sweep goes on here." in printed
    assert "Trials that W&B's agents have run here: 1." in printed
    assert "Best: validation_accuracy" in printed


def test_to_join_needs_a_key(project: Path) -> None:
    assert "--join needs a key for W&B that works" in projects.run(project, "sweep", "--join", "me/p/s", code=1)


@pytest.mark.parametrize("place", ["nosuch", "http://host/me/p/sweeps/s", "a/b/c/d"])
def test_what_names_no_sweep_is_told_how_it_is_named(project: Path, service: Wandb, place: str) -> None:
    printed = projects.run(project, "sweep", "--join", place, code=1, **account(project, service))
    assert f"--join {place}: name the sweep as ENTITY/PROJECT/ID" in printed


@pytest.mark.slow
def test_a_sweep_file_says_where_its_sweep_is_made(project: Path, service: Wandb) -> None:
    (project / "sweep.yaml").write_text(
        "entity: team\nproject: other\nname: Süß 🚀\n" + SWEEP.replace("[0.1, 2.0]", "[0.1]")
    )
    printed = projects.run(project, "sweep", **account(project, service))
    assert "sweep --join team/other/sweep0`" in printed


@pytest.mark.slow
def test_a_sweep_that_is_not_there_is_told(project: Path, service: Wandb) -> None:
    printed = projects.run(project, "sweep", "--join", "me/p/nosuch", code=1, **account(project, service))
    assert "W&B has no sweep me/p/nosuch" in printed


@pytest.mark.slow
def test_a_trial_that_wandb_did_not_take_is_sent_before_it_is_judged(project: Path, service: Wandb) -> None:
    (project / "sweep.yaml").write_text(SWEEP.replace("[0.1, 2.0]", "[0.1]"))
    service.faults.append(Fault(403, at=[1, 3], match="RunResumeStatus"))
    printed = projects.run(project, "sweep", "--agents", "1", **account(project, service))
    assert "Tracked offline" in printed
    assert "The sweep goes on here." in printed  # for W&B did not take the trial the second time either
    settings = project / "stack.toml"
    settings.write_text(settings.read_text().replace('"skeleton"', '"other"'))
    printed = projects.run(project, "sweep", "--join", "me/skeleton/sweep0", **account(project, service))
    assert "sweep0-run0: http" in printed
    assert "failed" not in printed
    runs = [service.store.run(f"sweep0-run{number}") for number in range(2)]
    assert [(run.state, run.project) for run in runs] == [("finished", "skeleton")] * 2
