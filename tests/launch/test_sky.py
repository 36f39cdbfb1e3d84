"""Task files for SkyPilot: read by its own parser, and run as they stand."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import projects
import pytest
import yaml
from places import ROOT
from waiting import until

STORE = {"STACK_STORAGE": "s3://bucket/digits", "AWS_ACCESS_KEY_ID": "key-id", "AWS_SECRET_ACCESS_KEY": "top-secret"}
SKY = ROOT / "build" / "engines" / "sky" / "bin" / "python"
READ = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
[resources] = task.resources
print(json.dumps({
    "nodes": task.num_nodes, "spot": resources.use_spot, "recovery": resources.job_recovery,
    "gpus": str(resources.accelerators), "workdir": task.workdir,
    "secrets": sorted(secret.name for secret in task._managed_secret_refs), "run": task.run,
}))
"""


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A new project without data."""
    (tmp_path / "stack.toml").write_text('project = "skeleton"\nstorage = "algorithmia://.my/skeleton"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "extra", "error"),
    [
        (("--", "train"), {}, "storage: expected a store that another machine reaches"),
        (("--gpus", "H10", "--", "train"), STORE, "unknown GPU 'H10'; did you mean 'H100'?"),
        (("--gpus", "H100:0", "--", "train"), STORE, "--gpus: expected NAME or NAME:COUNT, got 'H100:0'"),
    ],
)
def test_invalid_tasks_give_one_line_errors(
    empty: Path, words: tuple[str, ...], extra: dict[str, str], error: str
) -> None:
    printed = projects.run(empty, "launch", "sky", *words, code=1, **extra)
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert error in printed


def test_trials_on_this_machine_are_rejected(empty: Path) -> None:
    (empty / "sweep.yaml").write_text("method: random\n")
    for study in ("shared", "sqlite:///trials.db"):
        printed = projects.run(empty, "launch", "sky", "--", "sweep", "--study", study, code=1, **STORE)
        assert f"--study: expected a database that another machine reaches, got {study}" in printed


def test_the_file_names_the_store_and_the_secrets_without_their_values(empty: Path) -> None:
    (empty / "sweep.yaml").write_text("method: random\n")
    words = ("sweep", "--study", "postgresql://me@db.example.org/trials", "--agents", "4")
    printed = projects.run(empty, "launch", "sky", "--nodes", "2", "--", *words, **STORE, PGPASSWORD="also-secret")
    [path] = empty.glob("runs/*.sky.yaml")
    secrets = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD")
    options = " ".join(f"--secret {name}" for name in secrets)
    assert printed.strip() == f"Next: `sky jobs launch {options} runs/{path.name}`"
    text = path.read_text()
    task = yaml.safe_load(text)
    assert "secret" not in text.replace("secrets:", "").lower().replace("aws_secret_access_key", "")
    assert task["secrets"] == dict.fromkeys(secrets)
    assert task["envs"]["STACK_STORAGE"] == "s3://bucket/digits"
    assert "uv sync --no-dev --extra postgres --extra s3\n" in task["setup"]
    assert task["run"].endswith(f"-m skeleton {' '.join(words)}\n")


def test_private_pretrained_weights_need_the_key_of_the_hub(empty: Path) -> None:
    words = ("launch", "sky", "--", "train", "--init", "hf://me/weights")
    assert "--secret HF_TOKEN" in projects.run(empty, *words, **STORE, HF_TOKEN="hf_secret")
    assert "HF_TOKEN" not in projects.run(empty, *words, **STORE)


@pytest.mark.engines
def test_skypilot_accepts_the_file_and_its_run_resumes_with_the_same_bytes(data: Path, tmp_path: Path) -> None:
    assert SKY.exists(), f"SkyPilot not found: `make test-engines` installs it into {SKY.parent.parent}"
    project = projects.make(tmp_path / "project", data)
    train = ("--", "train", "--epochs", "12", "--checkpoint-steps", "10", "--name")
    weights = []
    for name in ("whole", "stopped"):
        projects.run(project, "launch", "sky", "--nodes", "1", "--gpus", "l4:2", "--spot", *train, name, **STORE)
        path = project / "runs" / f"{name}.sky.yaml"
        home = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
        done = subprocess.run([SKY, "-c", READ, path], env=home, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        task = json.loads(done.stdout.splitlines()[-1])
        assert (task["nodes"], task["spot"], task["gpus"]) == (1, True, "{'L4': 2}")
        assert task["recovery"]["recover_on_exit_codes"] == [75]
        assert task["recovery"]["max_restarts_on_errors"] == 3
        assert task["secrets"] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        assert task["workdir"] == str(project)
        run = start(project, task["run"])
        if name == "stopped":
            until(lambda: any(project.glob("runs/stopped/checkpoints/step-*[0-9]")))
            run.send_signal(signal.SIGTERM)
            assert run.wait(60) == 75
            run = start(project, task["run"])
        assert run.wait(180) == 0
        weights.append((project / "runs" / name / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def start(project: Path, run: str) -> subprocess.Popen[bytes]:
    """Start a task as SkyPilot does, with the project's store in place of the cloud's."""
    venv = project / ".venv"
    if not venv.exists():
        venv.symlink_to(sys.prefix)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        "SKYPILOT_NUM_NODES": "1",
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_GPUS_PER_NODE": "2",
        "SKYPILOT_TASK_ID": f"sky-managed-2026-11-29-00-00-00-000000_{port}_1-0",
    }
    return subprocess.Popen(["bash", "-c", run], cwd=project, env=projects.environment(project, **variables))
