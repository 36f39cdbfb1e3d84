"""Generation of projects and validation of answers in this process."""

import atexit
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from cookiecutter.environment import StrictEnvironment
from cookiecutter.exceptions import FailedHookException
from cookiecutter.generate import generate_context
from cookiecutter.main import cookiecutter
from cookiecutter.prompt import prompt_for_config
from cookiecutter.utils import create_env_with_context
from jinja2 import FileSystemLoader

TEMPLATE = Path(__file__).resolve().parent.parent
SKELETON = TEMPLATE / "{{cookiecutter.project_slug}}"
sys.path.append(str(TEMPLATE))  # as cookiecutter does, so that the template's extension is found


@cache
def template() -> Path:
    """The template as cloned by a user, without caches of development tools."""
    made = tempfile.TemporaryDirectory()
    atexit.register(made.cleanup)
    kept = ("{{", "hooks/", "templates/", "cookiecutter.json", "local_extensions.py", "copier.yml")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=TEMPLATE, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in listed:
        if name.startswith(kept) and (TEMPLATE / name).is_file():
            (Path(made.name) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TEMPLATE / name, Path(made.name) / name)
    return Path(made.name)


def bake(folder: Path, hooks: bool = True, **answers: str) -> Path:
    """Generate a project in `folder` with the defaults and `answers`; return its folder."""
    config = folder / "cookiecutter.yaml"
    config.write_text(f"replay_dir: {folder / 'replay'}\n", encoding="utf-8")
    extra = spelled({"check_credentials": "skip", **answers})
    options: dict[str, Any] = {"output_dir": str(folder), "config_file": str(config), "accept_hooks": hooks}
    return Path(cookiecutter(str(template()), no_input=True, extra_context=extra, **options))


def literal(text: str) -> str:
    """Escape an answer, because cookiecutter renders answers that are passed by a program."""
    return '{{ "' + "".join(f"\\U{ord(character):08x}" for character in text) + '" }}'


def spelled(answers: dict[str, str]) -> dict[str, str]:
    """Escape all text answers; choices are not rendered."""
    choices = ("task", "license", "storage", "check_credentials")
    return {name: answer if name in choices else literal(answer) for name, answer in answers.items()}


def context(answers: dict[str, str]) -> dict[str, Any]:
    """The complete context of cookiecutter for literal answers, with defaults and derived values."""
    found = generate_context(str(TEMPLATE / "cookiecutter.json"), extra_context=spelled(answers))
    found["cookiecutter"].update(prompt_for_config(found, no_input=True))
    found["cookiecutter"]["_output_dir"] = str(TEMPLATE / "build")
    return found


@cache
def environment() -> StrictEnvironment:
    """The Jinja environment of cookiecutter for this template, cached so that each file is compiled once."""
    made = create_env_with_context(context({}))
    made.loader = FileSystemLoader([SKELETON, TEMPLATE / "hooks", TEMPLATE])
    return made


def refusals(answers: dict[str, str]) -> list[str]:
    """The error lines for invalid answers."""
    try:
        context(answers)
    except FailedHookException as refused:
        return str(refused).splitlines()
    return []
