"""Trackio as tracker, set in stack.toml."""

import json
import os
import sqlite3
from pathlib import Path

import fresh
import projects
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import SOURCE
from services.hub_server import Hub, serving


@pytest.fixture(scope="module")
def trackio() -> Path:
    """A folder with the package alone, because its dependencies change the event loop of the whole environment."""
    return fresh.target("trackio>=0.40")


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_missing_trackio_is_reported_before_training(tmp_path: Path, command: str) -> None:
    projects.make(tmp_path)
    (tmp_path / "sweep.yaml").write_text("method: nonsense")
    printed = projects.run(tmp_path, command, "--set", "tracker=trackio", code=1)
    assert (
        "error: tracker: trackio is not installed; run `uv sync --extra trackio`, or `pip install 'free-ml-stack[trackio]'`"
        in printed
    )


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

    sent = {"STACK_TRACKER": "trackio", "PYTHONPATH": path, "HF_HUB_DISABLE_TELEMETRY": "1"}
    hub = Hub(tmp_path / "hub")
    with serving(hub) as url:
        sent |= {"HF_ENDPOINT": url}
        assert "error: no key for Hugging Face: set HF_TOKEN" in projects.run(tmp_path, "sync", code=1, **sent)
        assert hub.repos == {}
        for _ in range(2):  # the second time it is made new
            printed = projects.run(tmp_path, "sync", HF_TOKEN="hf_write", **sent)
            assert f"Public dashboard: {url}/spaces/me/skeleton-runs" in printed
        assert [repo.space["sdk"] for repo in hub.repos.values()] == ["static"]
        files = hub.files("space", "me/skeleton-runs")
        assert b"sdk: static" in files["README.md"] and "index.html" in files
        about = json.loads(files["config.json"])
        assert (about["mode"], about["project"]) == ("static", "skeleton")
        kept = hub.buckets.content(about["bucket_id"])
        assert not hub.buckets.all[about["bucket_id"]].private
        table = pq.read_table(pa.BufferReader(kept["metrics.parquet"])).to_pylist()
        assert {row["validation_accuracy"] for row in table} >= {
            row["validation_accuracy"] for row in rows if "epoch" in row
        }
        assert "error: " in projects.run(tmp_path, "sync", code=1, HF_TOKEN="hf_read", **sent)


def test_the_error_without_trackio_names_the_package(tmp_path: Path) -> None:
    projects.make(tmp_path)
    printed = projects.run(tmp_path, "train", "--epochs", "1", code=1, STACK_TRACKER="trackio")
    assert "uv sync --extra trackio" in printed
