"""Colab's environment: its packages are unchanged and consistent, and its clients are used."""

import contextlib
import json
import os
import sys
import tomllib
from pathlib import Path

import baking
import forking
import fresh
import pytest
from places import ROOT
from services.online import online
from test_packages import CODE, wheel

# Colab's image of August 2026. torch and torchvision are stand-ins with the requirements of the real ones.
TORCH = {"torch": "2.11.0+cu128", "torchvision": "0.26.0+cu128"}
BROUGHT = (
    "numpy==2.1.3", "pandas==2.2.3", "scikit-learn==1.6.1", "transformers==5.15.0", "datasets==4.0.0",
    "huggingface_hub==1.27.0", "safetensors==0.8.0", "wandb==0.28.1", "pyarrow==18.1.0", "gradio==6.24.0",
    "ipython==7.34.0", "ipykernel==6.17.1", "kaggle==2.0.2", "tensorboard==2.20.0",
)  # fmt: skip
KEPT = ("huggingface_hub", "transformers", "datasets", "pandas", "scikit-learn", "pyarrow", "gradio", "safetensors")
CLIENTS = ("huggingface_hub", "wandb")


def freeze(python: Path) -> dict[str, str]:
    """Return the installed packages and their versions."""
    lines = fresh.run(fresh.uv(), "pip", "list", "--format=json", "--python", str(python))
    return {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(lines)}


def colab(folder: Path) -> Path:
    """An environment with Colab's Python and packages, which tests may change."""
    shelf = folder / "shelf"
    shelf.mkdir()
    wheel(shelf, "torch", TORCH["torch"], "numpy")
    wheel(shelf, "torchvision", TORCH["torchvision"], "torch==2.11.0", "numpy")
    python = folder / "colab" / "bin" / "python"
    fresh.run(
        fresh.uv(), "venv", "--quiet", "--python", fresh.interpreter("3.13") or sys.executable, str(folder / "colab")
    )
    wanted = (*BROUGHT, *(f"{name}=={version}" for name, version in TORCH.items()))
    fresh.run(
        fresh.uv(),
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        "--find-links",
        str(shelf),
        *wanted,
        "packaging",
    )
    return python


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "text-classification"])
def test_installing_a_project_replaces_and_breaks_no_package(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project, python = baking.bake(tmp_path, hooks=False, task=task), colab(tmp_path)
    before = freeze(python)
    path = os.pathsep.join([str(Path(fresh.uv()).parent), os.environ["PATH"]])
    printed = fresh.run(str(python), "-c", CODE, "uv", folder=project, PATH=path, PYTHONPATH=str(ROOT / "src"))
    after = freeze(python)
    with capsys.disabled():
        changes = {
            name: f"{before.get(name, 'absent')} -> {after[name]}" for name in after if after[name] != before.get(name)
        }
        sys.stdout.write(f"\nOn Colab {task} changes: {json.dumps(changes, indent=1)}\n")
    assert "Installed " in printed and "Unchanged: numpy, torch, torchvision." in printed
    assert {name: after[name] for name in TORCH} == TORCH
    assert {name: after[name] for name in before} == before
    assert not [*python.parent.parent.glob("lib/*/site-packages/numpy/ma/tests/__pycache__/*")]  # compiled on import
    assert "All installed packages are compatible" in check(python)
    assert "All packages are installed." in fresh.run(
        str(python), "-c", CODE, "uv", folder=project, PATH=path, PYTHONPATH=str(ROOT / "src")
    )


def check(python: Path) -> str:
    """Return uv's report of inconsistent packages; it fails if there are any."""
    return fresh.run("/bin/sh", "-c", f"'{fresh.uv()}' pip check --python '{python}' 2>&1")


def lowest() -> list[str]:
    """The clients of the Hub and W&B in the lowest versions that the library allows."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    return [text.partition(",")[0].replace(">=", "==") for text in wanted if text.startswith(CLIENTS)]


@pytest.mark.slow
def test_the_whole_loop_works_with_the_oldest_clients(tmp_path: Path) -> None:
    """All other tests use the newest clients."""
    assert lowest() == ["huggingface_hub==1.27", "wandb==0.28.1"]  # Colab's
    clients = fresh.target(*lowest(), "sentry-sdk>=2")
    with online(tmp_path) as services, contextlib.closing(forking.Server({"PYTHONPATH": str(clients)})) as server:
        services.server = server
        sweep = services.project / "sweep.yaml"
        sweep.write_text(sweep.read_text().replace("run_cap: 8", "run_cap: 2"))
        services.environment["PYTHONPATH"] = os.pathsep.join([str(clients), services.environment["PYTHONPATH"]])
        shown = services.run("doctor")
        assert all(
            f"{name} {version}" in " ".join(shown.split()) for name, version in (one.split("==") for one in lowest())
        ), shown
        printed = services.run("demo")
        assert "all of it is kept here" not in printed and "Tracked offline" not in printed
        assert "Published at" in printed
        assert all(run.state == "finished" for run in services.wandb.store.runs.values())
        [of_agents] = services.wandb.store.sweeps.values()
        assert of_agents.state == "FINISHED" and len(of_agents.runs) == 2
        assert ("model", "me/digits-online") in services.hub.repos
        store = "hf://datasets/me/digits-data"
        assert "Published at" in services.run("data", "--publish", store)
        services.run("data", "--from", store)
