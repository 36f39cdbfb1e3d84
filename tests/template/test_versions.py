"""Supported versions of cookiecutter, of Python, and of the library's dependencies."""

import tomllib
from pathlib import Path

import pytest
import test_light
from baking import TEMPLATE, bake, template
from fresh import interpreter
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_delivery import UV, run
from test_hooks import files

from local_extensions import MINIMUM

OLDEST = ".".join(map(str, MINIMUM))


def generated(folder: Path, version: str, code: int = 0) -> str:
    """Generate a project in `folder` with a version of cookiecutter; return the output."""
    folder.mkdir()
    tool = (UV, "tool", "run", "--quiet", "--from", f"cookiecutter{version}", "cookiecutter")
    return run(folder, *tool, str(template()), "--no-input", "check_credentials=skip", code=code)


@pytest.mark.slow
def test_the_oldest_and_newest_cookiecutter_give_the_same_project(tmp_path: Path) -> None:
    for name, version in (("oldest", f"=={OLDEST}"), ("newest", "")):
        assert "uv run my-ml-project demo" in generated(tmp_path / name, version)
    assert files(tmp_path / "oldest/my-ml-project") == files(tmp_path / "newest/my-ml-project")


@pytest.mark.slow
def test_an_older_cookiecutter_is_rejected(tmp_path: Path) -> None:
    stdout = generated(tmp_path / "older", "==2.1.1", code=1)
    assert stdout.strip().splitlines()[-1] == f"cookiecutter 2.1.1 is too old: install {OLDEST} or later"
    assert "Traceback" not in stdout and not list((tmp_path / "older").iterdir())


PYTHONS = [version for version in ("3.11", "3.12", "3.13", "3.14") if interpreter(version)]


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_each_python_gives_the_same_project_and_imports_the_library(tmp_path: Path, version: str) -> None:
    (tmp_path / "here").mkdir()
    tool = (UV, "tool", "run", "--quiet", "--python", interpreter(version), "cookiecutter", str(template()))
    run(tmp_path, *tool, "--no-input", "check_credentials=skip")
    assert files(tmp_path / "my-ml-project") == files(bake(tmp_path / "here", hooks=False))
    modules = ["errors", "notebook.packages", "project.arguments", "cli.main", "credentials.check"]
    code = "\n".join(f"import free_ml_stack.{module}" for module in modules)
    assert test_light.run(code + "\nprint('ok')", interpreter(version)) == "ok\n"


def lower_bounds() -> dict[str, str]:
    """The lowest version of each dependency of the library."""
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))["project"]
    found = {}
    for requirement in map(Requirement, project["dependencies"]):
        [lowest] = [one.version for one in requirement.specifier if one.operator in (">=", "==")]
        found[canonicalize_name(requirement.name)] = lowest
    return found


def resolved(folder: Path, *words: str) -> dict[str, str]:
    """Versions that uv resolves for the library, from wheels of the package index only."""
    command = (
        UV,
        "pip",
        "compile",
        "--quiet",
        "--no-sources",
        "--no-header",
        "--no-annotate",
        "--only-binary",
        ":all:",
    )
    stdout = run(folder, *command, *words, str(TEMPLATE / "pyproject.toml"))
    return dict(line.split(" ")[0].split("==") for line in stdout.splitlines() if "==" in line)


@pytest.mark.slow
def test_the_lower_bounds_have_wheels_up_to_python_3_13(tmp_path: Path) -> None:
    found = resolved(tmp_path, "--resolution", "lowest-direct", "--python-version", "3.13")
    short = {
        name: found[name] for name, low in lower_bounds().items() if not f"{found[name]}.0.0".startswith(f"{low}.")
    }
    assert not short, "raise these bounds"


@pytest.mark.slow
def test_every_dependency_has_a_wheel_for_python_3_14(tmp_path: Path) -> None:
    found = resolved(tmp_path, "--python-version", "3.14", "--all-extras")
    assert found.keys() >= lower_bounds().keys()
