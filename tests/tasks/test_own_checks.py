"""A generated project of each task passes its own tests and the type checker, without an account."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import forking
import pytest
from baking import SKELETON, bake
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
    """Also with the function `split` of the documents."""
    made, environ = project(task, tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "project.md").read_text("utf-8"), re.M | re.S)
    with next(made.glob("src/*/data.py")).open("a", encoding="utf-8") as file:
        file.writelines(snippet for snippet in snippets if "def split(" in snippet)
    cache = ROOT / "build" / "mypy"  # shared, as the types of torch and of the library take most of the time
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache)]
        done = subprocess.run(command, cwd=made, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("task", NAMES)
def test_mypy_knows_the_modules_that_have_no_types_in_a_project(task: str) -> None:
    """Unlike this environment, a project has neither packages of stubs nor its optional dependencies."""
    settings = tomllib.loads((SKELETON / "pyproject.toml").read_text("utf-8").partition("[tool.mypy]")[2])
    [known] = (one["module"] for one in settings["tool"]["mypy"]["overrides"] if one.get("ignore_missing_imports"))
    _, _, extras = (TASKS / task / "dependencies.toml").read_text("utf-8").partition("[project.optional-dependencies]")
    nodes = [node for path in (TASKS / task).glob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"free_ml_stack"}:
        spec = find_spec(name)
        optional = any(f'"{found.lower()}' in extras for found in packages_distributions().get(name, ()))
        typed = spec and spec.origin and Path(spec.origin).with_name("py.typed").exists()
        assert (typed and not optional) or f"{name}.*" in known, name
