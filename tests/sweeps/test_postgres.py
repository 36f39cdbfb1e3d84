"""Sweeps whose trials are in a PostgreSQL database, shared by process groups that are killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import projects
import pytest
from optuna.trial import TrialState
from services import postgres
from waiting import until

from free_ml_stack.errors import StackError
from free_ml_stack.sweeps import shared
from free_ml_stack.sweeps.shared import open_storage

AGENTS = "5"
GRID = """
method: grid
metric: {name: validation_loss, goal: minimize}
parameters: {epochs: {value: 2}, seed: {values: [%s]}}
"""
POINTS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.serving() as running:
        yield running


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(shared.DRIVERS, "postgresql", "no_such_driver")
    with pytest.raises(StackError, match="no_such_driver is not installed; run `uv sync --extra postgres`"):
        open_storage("postgresql://stack@127.0.0.1:1/postgres", tmp_path, "s")


def test_an_unreachable_server_is_one_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="--study postgresql://…: ") as raised:
        open_storage("postgresql://stack:secret@127.0.0.1:1/postgres", tmp_path, "s")
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)


def start(project: Path, url: str) -> subprocess.Popen[str]:
    """A sweep of five workers in a process group of its own."""
    with (project / "printed.txt").open("a") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "skeleton", "sweep", "--study", url, "--agents", AGENTS],
            cwd=project,
            env=projects.environment(project),
            stdout=printed,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def trials(url: str) -> list[optuna.trial.FrozenTrial]:
    """All trials in the database."""
    storage = optuna.storages.RDBStorage(url.replace("://", "+psycopg://"))
    try:
        return [trial for study in storage.get_all_studies() for trial in storage.get_all_trials(study._study_id)]
    finally:
        storage.engine.dispose()


def completed(url: str) -> int:
    """The number of trials that have ended with a value."""
    return sum(trial.state == TrialState.COMPLETE for trial in trials(url))


@pytest.mark.engines
def test_ten_workers_that_are_killed_run_every_trial_once(server: postgres.Server, data: Path, tmp_path: Path) -> None:
    """Workers and a whole process group are killed, and the server restarts."""
    folders = [projects.make(tmp_path / name, data) for name in ("one", "two")]
    for folder in folders:
        (folder / "sweep.yaml").write_text(GRID % ", ".join(map(str, range(POINTS))))
    first, second = (start(folder, server.url) for folder in folders)
    try:
        until(lambda: len(projects.workers(second.pid)) == int(AGENTS) and completed(server.url) >= 2)
        for worker in projects.workers(second.pid)[:2]:
            os.kill(worker, signal.SIGKILL)
        done = completed(server.url)
        until(lambda: completed(server.url) >= done + 4)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        server.stop("immediate")
        server.start()
        done = completed(server.url)
        until(lambda: completed(server.url) >= done + 2)
        first = start(folders[0], server.url)
        codes = [process.wait(300) for process in (first, second)]
        assert codes == [0, 0], [(folder / "printed.txt").read_text() for folder in folders]
    finally:
        for process in (first, second):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = trials(server.url)
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["config"]["seed"] for trial in complete) == list(range(POINTS))
    assert {trial.state for trial in found} <= {TrialState.COMPLETE, TrialState.FAIL}  # none runs, none waits
    printed = (folders[1] / "printed.txt").read_text()
    assert "the process died (exit code -9); retrying it." in printed
    assert "Traceback" not in printed
