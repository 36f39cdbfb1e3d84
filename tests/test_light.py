"""Modules that run before installation import the standard library only, from the vendored wheel."""

import subprocess
import sys

import pytest
from baking import SKELETON

[WHEEL] = SKELETON.glob("vendor/*.whl")


def run(code: str, python: str = sys.executable) -> str:
    """Run `code` in an interpreter that has the wheel and no installed package; return its output."""
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


def test_colab_opens_the_project_before_packages_are_installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("project")
    (folder / "stack.toml").write_text('project = "digits"\n')
    code = f"import os; os.chdir({str(folder)!r})\nfrom free_ml_stack.notebook import Project\n"
    assert run(code + "print(Project('digits').root)").strip() == str(folder)


@pytest.mark.parametrize("name", ["errors", "notebook.packages", "project.arguments", "cli.main"])
def test_entry_modules_need_the_standard_library_only(name: str) -> None:
    assert run(f"import free_ml_stack.{name}\nprint('ok')") == "ok\n"
