"""Generate a project, or only judge answers, in this process."""

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
    """What a user clones: the template without what the tools of people at work on it have cached there."""
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
    """Generate a project below `folder` with the defaults but for `answers`; return its folder."""
    config = folder / "cookiecutter.yaml"
    config.write_text(f"replay_dir: {folder / 'replay'}\n", encoding="utf-8")
    extra = spelled({"check_credentials": "skip", **answers})
    options: dict[str, Any] = {"output_dir": str(folder), "config_file": str(config), "accept_hooks": hooks}
    return Path(cookiecutter(str(template()), no_input=True, extra_context=extra, **options))


def literal(text: str) -> str:
    """Spell an answer so that cookiecutter, which renders what a program answers, takes it as it is."""
    return '{{ "' + "".join(f"\\U{ord(character):08x}" for character in text) + '" }}'


def spelled(answers: dict[str, str]) -> dict[str, str]:
    """Answers with every text spelled literally; a choice is none of cookiecutter's templates."""
    choices = ("task", "license", "storage", "check_credentials")
    return {name: answer if name in choices else literal(answer) for name, answer in answers.items()}


def context(answers: dict[str, str]) -> dict[str, Any]:
    """The whole context that cookiecutter makes of literal answers: defaults and derived values added."""
    found = generate_context(str(TEMPLATE / "cookiecutter.json"), extra_context=spelled(answers))
    found["cookiecutter"].update(prompt_for_config(found, no_input=True))
    found["cookiecutter"]["_output_dir"] = str(TEMPLATE / "build")
    return found


@cache
def environment() -> StrictEnvironment:
    """Jinja as cookiecutter sets it up for this template; kept, so that each file is compiled once."""
    made = create_env_with_context(context({}))
    made.loader = FileSystemLoader([SKELETON, TEMPLATE / "hooks", TEMPLATE])
    return made


def refusals(answers: dict[str, str]) -> list[str]:
    """The lines with which answers are refused."""
    try:
        context(answers)
    except FailedHookException as refused:
        return str(refused).splitlines()
    return []
