"""`info`: the state of a project, and a program that improves a model with it."""

import json
from pathlib import Path
from typing import Any

import projects
import pytest


def info(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(projects.run(folder, "info", "--json"))
    return found


def test_info_of_a_new_project_has_its_settings_only(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text('project = "skeleton"\ntitle = "Digits"\n')
    found = info(tmp_path)
    assert found["settings"]["title"] == "Digits" and found["settings"]["tracker"] == "none"  # set in the environment
    assert (found["keys"], found["headline"], found["runs"]) == ([], None, [])
    assert (found["latest_model"], found["deployed"]) == (None, None)
    stdout = projects.run(tmp_path, "info").splitlines()
    assert stdout[-3:] == [
        "No finished runs.",
        "Latest published model: none.",
        "Deployed: none.",
    ]


def test_info_contains_no_key(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text('project = "skeleton"\n')
    stdout = projects.run(tmp_path, "info", "--json", WANDB_API_KEY="w" * 40)
    assert "wwww" not in stdout and json.loads(stdout)["keys"] == ["wandb"]


def test_a_damaged_result_gives_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text('project = "skeleton"\n')
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/config.json").write_text("{}")
    assert info(tmp_path)["runs"][0]["finished"] is False
    (tmp_path / "runs/one/result.json").write_text("{")
    stdout = projects.run(tmp_path, "info", code=1)
    assert "result.json" in stdout and len(stdout.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_program_can_improve_the_model_with_info_and_train(data: Path, tmp_path: Path) -> None:
    """Each of five runs changes one value of the best configuration so far."""
    folder = projects.make(tmp_path / "project", data)
    changes = [{}, {"lr": 0.02}, {"dropout": 0.0}, {"batch_size": 32}, {"label_smoothing": 0.0}]
    best: dict[str, Any] = {"score": -1.0, "config": {"epochs": 1, "lr": 0.001}}
    for number, change in enumerate(changes):
        config = best["config"] | change
        (tmp_path / "config.json").write_text(json.dumps(config))
        projects.run(folder, "train", "--config", str(tmp_path / "config.json"), "--name", f"try-{number}")
        found = info(folder)
        run = found["runs"][-1]
        assert run["run"] == f"try-{number}" and run["finished"] and run["config"].items() >= config.items()
        score = run["validation"][found["headline"]]
        if score > best["score"]:
            best = {"score": score, "config": run["config"], "run": run["run"]}
    first = info(folder)["runs"][0]["validation"]["accuracy"]
    assert best["score"] > first
    projects.run(folder, "publish", "--run", best["run"])
    projects.run(folder, "deploy")
    found = info(folder)
    assert found["latest_model"] == f"models/{best['run']}" and found["deployed"]["version"] == "0.1.0"
    assert f"try-4  {found['runs'][-1]['validation']['accuracy']:.4f}" in projects.run(folder, "info")
