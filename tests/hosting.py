"""A loopback Hub that hosts Spaces."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from baking import SKELETON
from huggingface_hub import HfApi, constants
from places import DEFAULT, TASKS
from services.hub_server import serving
from services.spaces import Spaces, interpreter

SAMPLES = [[[(row * column + number) % 17 for column in range(8)] for row in range(8)] for number in range(5)]


@contextmanager
def hub(root: Path, *granted: str, refusal: int = 402) -> Iterator[tuple[Spaces, HfApi]]:
    spaces = Spaces(root, set(granted), refusal)
    with serving(spaces) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", url)
        patch.setenv("HF_TOKEN", "hf_of_a_test")
        try:
            yield spaces, HfApi()
        finally:
            spaces.stop()


def space_files(folder: Path) -> Path:
    """Render a project's `space/` for the package `skeleton` into `folder`; return `folder`."""
    shutil.copytree(SKELETON / "space", folder / "space")
    (folder / "space" / "static" / "index.{{ 'html' }}").unlink()
    shutil.copy(TASKS / DEFAULT / "index.html", folder / "space" / "static")
    for path in folder.glob("space/*/app.{{ 'py' }}"):
        text = path.read_text("utf-8").replace("{{ cookiecutter.package_name }}", "skeleton")
        path.with_name("app.py").write_text(text, "utf-8")
        path.unlink()
    place = folder / "space" / "requirements.txt"
    extra = (TASKS / DEFAULT / "serving.txt").read_text("utf-8")
    place.write_text(re.sub(r"\{%.*%\}", extra, place.read_text("utf-8")), "utf-8")
    for sdk in ("docker", "gradio"):  # now, as a client does not wait for it
        interpreter(place, sdk)
    return folder
