"""The cookiecutters that the template is generated with: the oldest that will do, the newest, and one that is too old."""

from pathlib import Path

import pytest
from baking import template
from test_delivery import UV, run
from test_hooks import files

from local_extensions import MINIMUM

OLDEST = ".".join(map(str, MINIMUM))


def generated(folder: Path, version: str, code: int = 0) -> str:
    """What a version of cookiecutter prints as it generates into `folder`."""
    folder.mkdir()
    tool = (UV, "tool", "run", "--quiet", "--from", f"cookiecutter{version}", "cookiecutter")
    return run(folder, *tool, str(template()), "--no-input", "check_credentials=skip", code=code)


@pytest.mark.slow
def test_the_oldest_and_the_newest_make_the_same(tmp_path: Path) -> None:
    for name, version in (("oldest", f"=={OLDEST}"), ("newest", "")):
        assert "uv run my-ml-project demo" in generated(tmp_path / name, version)
    assert files(tmp_path / "oldest/my-ml-project") == files(tmp_path / "newest/my-ml-project")


@pytest.mark.slow
def test_an_older_one_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    told = generated(tmp_path / "older", "==2.1.1", code=1)
    assert told.strip().splitlines()[-1] == f"cookiecutter 2.1.1 is too old: install {OLDEST} or later"
    assert "Traceback" not in told and not list((tmp_path / "older").iterdir())
