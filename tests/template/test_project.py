"""A generated project passes its own checks, without an account."""

import os
import subprocess
import sys

import pytest
from baking import TEMPLATE, bake

OPTIONS = {
    "tests": ("pytest", "-q", "-p", "no:cacheprovider"),
    "types": ("mypy", "--cache-dir", str(TEMPLATE / "build" / "mypy")),  # with the types of torch, from `make lint`
}


def run(project, home, check):
    """Run one of the project's checks in this environment, which has the project's dependencies."""
    environ = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(project / "src"),
        "LANG": "C.UTF-8",
    }
    command = [sys.executable, "-m", *OPTIONS[check]]
    return subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("storage", "license"), [("huggingface", "Proprietary")])
def test_the_tests_of_a_project_pass(tmp_path, storage, license):
    """One storage and license suffice: the tests train and publish in a folder of their own."""
    project = bake(tmp_path, hooks=False, storage=storage, license=license)
    done = run(project, tmp_path, "tests")
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
def test_a_project_passes_mypy(tmp_path):
    done = run(bake(tmp_path, hooks=False), tmp_path, "types")
    assert done.returncode == 0, done.stdout
