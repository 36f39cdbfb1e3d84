"""A generated project of each task passes its own tests and the type checker, without an account."""

import subprocess
import sys
from pathlib import Path

import forking
import pytest
from baking import bake
from filelock import FileLock
from places import ROOT, TASKS
from projects import environment

ANSWERS = {"storage": "huggingface", "license": "Proprietary"}  # of the image task; tests use a store of their own
NAMES = sorted(task.name for task in TASKS.glob("*-*/"))


def project(task: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a new project, and the environment of its user."""
    made = bake(folder, hooks=False, task=task, **ANSWERS if task == "image-classification" else {})
    return made, environment(folder, PYTHONPATH=str(made / "src"))


@pytest.mark.slow
@pytest.mark.parametrize("task", NAMES)
def test_the_tests_of_a_project_pass(task: str, tmp_path: Path) -> None:
    made, environ = project(task, tmp_path)
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # those of this environment, which users do not have
    running = forking.start(["-m", "pytest", "-q", "-p", "no:cacheprovider"], made, environ, merged=True)
    printed, _ = running.communicate(timeout=500)
    assert running.returncode == 0, printed[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("task", NAMES)
def test_a_project_passes_mypy(task: str, tmp_path: Path) -> None:
    made, environ = project(task, tmp_path)
    cache = ROOT / "build" / "mypy"  # shared, as the types of torch and of the library take most of the time
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache)]
        done = subprocess.run(command, cwd=made, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
