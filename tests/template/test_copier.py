"""Copier: the same files from the same answers, the same refusals, and updates."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import copier
import copier_questions
import pytest
from baking import SKELETON, bake, context, template
from copier.errors import UserMessageError
from pairs import COMBINATIONS, answers_of
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from test_hooks import REFUSED, files

from local_extensions import RULES

COMMAND = str(Path(sys.executable).with_name("copier"))
LOGGED = ".copier-answers.yml"
OTHERS = (*RULES.keys() - {"project_name", "project_slug", "package_name"}, "task", "license", "storage")
CLEAR = "\x15"  # Ctrl-U


def copied(folder: Path, answers: dict[str, str]) -> Path:
    """Generate a project with copier, in this process."""
    data = {name: answer for name, answer in answers.items() if name != "check_credentials"}
    copier.run_copy(str(template()), folder, data=data, defaults=True, quiet=True)
    return folder


def test_copier_yml_is_up_to_date() -> None:
    assert copier_questions.MADE.read_text("utf-8") == copier_questions.converted(), (
        "run `python tests/copier_questions.py`"
    )


@pytest.mark.parametrize("row", COMBINATIONS, ids=lambda row: "-".join(row.values()))
def test_copier_and_cookiecutter_give_the_same_project(tmp_path: Path, row: dict[str, str]) -> None:
    whole = context(answers_of(row))["cookiecutter"]
    answers = answers_of(row) | {name: whole[name] for name in ("project_slug", "package_name")}
    made = files(bake(tmp_path, hooks=False, **answers))
    found = files(copied(tmp_path / "copied", answers))
    assert found.pop(LOGGED)
    assert found == made


def test_a_plain_title_gives_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for number, title in enumerate(["My ML Project", "3D shapes, again", "x" * 60 + " y", "C# & co."]):
        whole = context({"project_name": title})["cookiecutter"]
        project = copied(tmp_path / str(number), {"project_name": title})
        assert f'project = "{whole["project_slug"]}"' in (project / "stack.toml").read_text("utf-8")
        assert (project / "src" / whole["package_name"] / "train.py").is_file()


@pytest.mark.parametrize("name", REFUSED)
def test_copier_rejects_the_same_answers_as_cookiecutter(tmp_path: Path, name: str) -> None:
    for answer in REFUSED[name]:
        with pytest.raises(UserMessageError, match=f"invalid answers: {name} "):
            copied(tmp_path / "refused", {"project_slug": "fine", "package_name": "fine", name: answer})
    assert not list(tmp_path.iterdir())


def typed(folder: Path, *lines: str) -> Path:
    """Generate a project with names typed at the prompts; each line replaces the default."""
    data = {name: default for name, default in context({})["cookiecutter"].items() if name in OTHERS}
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text("".join(f"{CLEAR}{line}\r" if line else "\r" for line in lines))
        copier.run_copy(str(template()), folder, data=data, quiet=True)
    return folder


@pytest.mark.parametrize("lines", [("Test", "my-own", ""), ("", "a/b", "my-own", "")])
def test_an_invalid_name_is_asked_again(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """The default name of the title "Test" is invalid, too."""
    project = typed(tmp_path / "project", *lines)
    assert 'project = "my-own"' in (project / "stack.toml").read_text("utf-8")


def test_an_accepted_invalid_default_is_rejected_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(UserMessageError, match="project_slug is a Python keyword.*; package_name is a Python keyword"):
        typed(tmp_path / "project", "Test", "", "")
    assert not list(tmp_path.iterdir())


class Owner:
    """Who has a home, a template with tagged releases, and a project."""

    def __init__(self, folder: Path) -> None:
        self.home, self.template, self.project = folder / "home", folder / "template", folder / "project"
        self.home.mkdir()
        identity = "[user]\n\tname = Ada Lovelace\n\temail = ada@example.org\n"
        (self.home / ".gitconfig").write_text(identity, encoding="utf-8")
        shutil.copytree(template(), self.template)
        self.run("git", "init", "-q", "-b", "main", at=self.template)

    def run(self, *words: str, at: Path) -> str:
        environ = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        done = subprocess.run(
            words, cwd=at, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def commit(self, at: Path) -> None:
        self.run("git", "add", "-A", at=at)
        self.run("git", "commit", "-q", "-m", "Work", at=at)

    def release(self, tag: str) -> None:
        self.commit(self.template)
        self.run("git", "tag", tag, at=self.template)


@pytest.mark.slow
def test_an_update_applies_the_release_and_keeps_own_changes(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    made = owner.template / SKELETON.name
    (made / "gone.md").write_text("Older.\n", "utf-8")
    (made / "sweep.yaml").write_text("method: grid\n", "utf-8")
    (made / "ruff.toml").rename(tmp_path / "ruff.toml")
    (made / "AGENTS.md").write_text("# Older\n", "utf-8")
    owner.release("v0.0.8")
    stdout = owner.run(COMMAND, "copy", "--defaults", str(owner.template), str(owner.project), at=tmp_path)
    assert f"cd {owner.project}" in stdout and "uv run my-ml-project demo" in stdout
    owner.run("git", "init", "-q", at=owner.project)
    owner.commit(owner.project)
    shutil.rmtree(made)
    shutil.copytree(template() / SKELETON.name, made)
    owner.release("v0.0.9")
    model = owner.project / "src/my_ml_project/model.py"
    model.write_text(model.read_text("utf-8") + "\n# My own line.\n", "utf-8")
    (owner.project / "src/my_ml_project/mine.py").write_text("MINE = 1\n", "utf-8")
    (owner.project / "sweep.yaml").write_text("method: random\n", "utf-8")
    (owner.project / "AGENTS.md").write_text("# Older\n\nOur own rule.\n", "utf-8")
    owner.commit(owner.project)
    owner.run(COMMAND, "update", "--defaults", at=owner.project)
    assert "# My own line." in model.read_text("utf-8") and (owner.project / "src/my_ml_project/mine.py").is_file()
    assert (owner.project / "ruff.toml").is_file() and not (owner.project / "gone.md").exists()
    sweep = (owner.project / "sweep.yaml").read_text("utf-8")
    assert "<<<<<<<" in sweep and "method: random" in sweep and "method: bayes" in sweep
    assert (owner.project / "AGENTS.md").read_text("utf-8") == "# Older\n\nOur own rule.\n"
    assert "_commit: v0.0.9" in (owner.project / LOGGED).read_text("utf-8")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("project_slug=a/b", "project_slug must consist of letters and digits"),
        ("project_name=Torch", "project_slug is a Python keyword"),
        ("task=images", "task must be one of image-classification, tabular"),
    ],
)
def test_an_invalid_answer_is_one_line_and_creates_nothing(tmp_path: Path, answer: str, words: str) -> None:
    command = [COMMAND, "copy", "--quiet", "--defaults", "--data", answer, str(template()), str(tmp_path / "project")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"invalid answers: {words}" in done.stderr
    assert not list(tmp_path.iterdir())
