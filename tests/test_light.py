"""What is used before anything is installed needs the standard library only, read from the vendored wheel as it is."""

import subprocess
import sys

import pytest
from baking import SKELETON

[WHEEL] = SKELETON.glob("vendor/*.whl")


def run(code: str, python: str = sys.executable) -> str:
    """What `code` prints in an interpreter that sees the wheel and no installed package."""
    done = subprocess.run(
        [python, "-ISc", f"import sys; sys.path.insert(0, {str(WHEEL)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_hook_checks_credentials() -> None:
    code = "from free_ml_stack.credentials import check\nprint(check.check({'HOME': '/nowhere'}))"
    assert run(code).count("missing") >= 3


def test_colab_opens_the_project_before_it_installs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("project")
    (folder / "stack.toml").write_text('project = "digits"\n')
    code = f"import os; os.chdir({str(folder)!r})\nfrom free_ml_stack.notebook import Project\n"
    assert run(code + "print(Project('digits').root)").strip() == str(folder)


@pytest.mark.parametrize("name", ["errors", "notebook.packages", "project.arguments", "cli.main"])
def test_modules_that_open_the_library(name: str) -> None:
    assert run(f"import free_ml_stack.{name}\nprint('ok')") == "ok\n"
