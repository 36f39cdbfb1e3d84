"""Hugging Face Jobs, with the real client on a loopback Hub."""

import json
import subprocess
import sys
from pathlib import Path

import forking
import projects
import pytest
from services.hub_server import Hub

STORAGE = "hf://buckets/me/digits"
TRAIN = ("--", "train", "--epochs", "1", "--name", "far")
UV = """\
#!/bin/sh
echo "$@" >>{recorded}
ln -s {venv} .venv
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that git tracks, but for its keys."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "stack.toml").write_text(f'project = "skeleton"\nstorage = "{STORAGE}"\n')
    (folder / ".gitignore").write_text("/runs/\n/.stack/\n")
    (folder / ".env").write_text("HF_TOKEN=hf_write\n")
    for words in (("init", "-q"), ("add", "--all", "--force")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def run(project: Path, hub: Hub, *words: str, code: int = 0, **extra: str) -> str:
    return projects.run(project, *words, code=code, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_TELEMETRY="1", **extra)


def test_nothing_is_sent_before_the_price_is_accepted(project: Path, hub: Hub) -> None:
    words = ("--flavor", "t4-x4", "--timeout", "90m", "--attempts", "2", *TRAIN)
    lines = run(project, hub, "launch", "hf", *words).splitlines()
    assert lines == [
        "t4-x4: 16 vCPU, 60 GB, 4 x T4 16 GB: $1.60 an hour; at most $4.80 for 2 x 90m.",
        "Nothing was sent; add --yes before `--` to start the job.",
    ]
    assert hub.calls == ["GET /api/jobs/hardware"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--flavor", "t4-smal", *TRAIN), "--flavor: unknown machine 't4-smal'; did you mean 't4-small'?"),
        (("--timeout", "long", *TRAIN), "--timeout: expected a time such as 90m or 4h, got 'long'"),
        (("--timeout", "0h", *TRAIN), "--timeout: expected a time such as 90m or 4h, got '0h'"),
        (
            ("--", "sweep", "--study", "postgresql://me@h/d"),
            "--file: expected a path of a file from the project's folder",
        ),
    ],
)
def test_invalid_jobs_give_one_line_errors(project: Path, hub: Hub, words: tuple[str, ...], error: str) -> None:
    printed = run(project, hub, "launch", "hf", "--yes", *words, code=1)
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert error in printed
    assert not hub.jobs.all


def test_a_local_store_is_rejected(project: Path, hub: Hub) -> None:
    printed = run(project, hub, "launch", "--set", "storage=./store", "hf", "--yes", *TRAIN, code=1)
    assert "storage: expected a store that another machine reaches, got ./store" in printed


def test_a_secret_that_is_not_set_is_named(project: Path, hub: Hub) -> None:
    (project / "sweep.yaml").write_text("method: random\n")
    words = ("launch", "hf", "--yes", "--", "sweep", "--study", "postgresql://me@h/d")
    assert "PGPASSWORD: expected the secret in the environment or .env" in run(project, hub, *words, code=1)


def test_a_refusal_is_one_line_and_not_repeated(project: Path, hub: Hub) -> None:
    hub.jobs.refusal = (402, "Pre-paid credit balance is insufficient")
    printed = run(project, hub, "launch", "hf", "--yes", *TRAIN, code=1)
    error = printed.splitlines()[-1]
    assert error.startswith("error: ") and "402" in error and "Pre-paid credit balance is insufficient" in error
    assert hub.calls.count("POST /api/jobs/me") == 1


@pytest.mark.slow
def test_a_job_trains_from_the_hub_and_stores_its_checkpoints_there(project: Path, hub: Hub, tmp_path: Path) -> None:
    """The machine of the job is this one, with a `uv` that links the environment of the tests."""
    run(project, hub, "data")
    printed = run(project, hub, "launch", "hf", "--yes", "--flavor", "t4-small", *TRAIN)
    [spec] = hub.jobs.all
    assert f"Job: {hub.url}/jobs/me/{0:024x}" in printed
    assert (spec["flavor"], spec["timeoutSeconds"], spec["attempts"]) == ("t4-small", 4 * 3600, 1)
    assert spec["secrets"] == {"HF_TOKEN": "hf_write"}
    assert spec["environment"] == {"STACK_STORAGE": STORAGE, "STACK_TRACKER": "none"}
    [volume] = spec["volumes"]
    assert spec["command"] == ["uv", "run", "/data/far.job.py"]
    files = hub.buckets.content(volume["source"])
    [sent] = [path for path in files if path.endswith("/far.job.py")]
    script = tmp_path / "far.job.py"
    script.write_bytes(files[sent])
    assert b"hf_write" not in script.read_bytes()

    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text(UV.format(recorded=tmp_path / "uv.txt", venv=sys.prefix))
    (tools / "uv").chmod(0o755)
    environ = projects.environment(tmp_path, **spec["environment"], **spec["secrets"], HF_ENDPOINT=hub.url)
    environ["PATH"] = f"{tools}:{environ['PATH']}"
    done = subprocess.run([forking.python(), script], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Run far: 1 process on cpu." in done.stdout
    assert (tmp_path / "uv.txt").read_text() == "sync --no-dev\n"
    stored = hub.buckets.all["me/digits"].files
    assert any(path.startswith("checkpoints/far/step-") for path in stored), json.dumps(list(stored))
