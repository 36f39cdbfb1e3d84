"""Trackio as tracker, set in stack.toml."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import projects
import pytest
from places import ROOT, SOURCE


@pytest.fixture(scope="module")
def trackio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package alone, because its dependencies change the event loop of the whole environment."""
    folder = tmp_path_factory.mktemp("trackio")
    uv = shutil.which("uv") or str(ROOT / "build" / "tools" / "bin" / "uv")
    command = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        "--python",
        sys.executable,
    ]
    subprocess.run([*command, "trackio>=0.40"], check=True)
    return folder


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_missing_trackio_is_reported_before_training(tmp_path: Path, command: str) -> None:
    projects.make(tmp_path)
    (tmp_path / "sweep.yaml").write_text("method: nonsense")
    printed = projects.run(tmp_path, command, "--set", "tracker=trackio", code=1)
    assert "not installed: run `pip install trackio`, or change tracker" in printed


@pytest.mark.slow
def test_a_run_is_logged_to_trackio_completely(tmp_path: Path, trackio: Path) -> None:
    projects.make(tmp_path)
    path = os.pathsep.join((str(SOURCE), str(trackio)))
    flags = ("--name", "one", "--epochs", "2")
    printed = projects.run(tmp_path, "train", *flags, STACK_TRACKER="trackio", PYTHONPATH=path)
    assert "Trackio: run `trackio show --project skeleton`" in printed
    assert "renamed" not in printed
    lines = (tmp_path / "runs" / "one" / "metrics.jsonl").read_text().splitlines()
    rows = [{name: value for name, value in json.loads(line).items() if name != "step"} for line in lines]
    with sqlite3.connect(next(tmp_path.rglob("trackio/skeleton.db"))) as database:
        found = [json.loads(row) for (row,) in database.execute("select metrics from metrics order by step, id")]
    database.close()
    assert found[: len(rows)] == rows
    assert any("final/test_accuracy" in row for row in found[len(rows) :])


def test_the_error_without_trackio_names_the_package(tmp_path: Path) -> None:
    projects.make(tmp_path)
    printed = projects.run(tmp_path, "train", "--epochs", "1", code=1, STACK_TRACKER="trackio")
    assert "pip install trackio" in printed
