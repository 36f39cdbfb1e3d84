"""Updates with cruft from an earlier release of the template, which keep the owner's changes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from baking import SKELETON, template

COMMAND = str(Path(sys.executable).with_name("cruft"))
IDENTITY = "[user]\n\tname = Ada Lovelace\n\temail = ada@example.org\n"
[WHEEL] = (path.name for path in SKELETON.glob("vendor/*.whl"))
VERSION = WHEEL.split("-")[1]


class Owner:
    """A user with a home, a template with two releases, and a project of the first one."""

    def __init__(self, folder: Path) -> None:
        self.home, self.template, self.work = folder / "home", folder / "template", folder / "work"
        self.home.mkdir()
        self.work.mkdir()
        (self.home / ".gitconfig").write_text(IDENTITY, encoding="utf-8")
        self.project = self.work / "my-ml-project"
        shutil.copytree(template(), self.template)
        self.git("init", "-q", "-b", "main", at=self.template)

    def run(self, *words: str, at: Path) -> subprocess.CompletedProcess[str]:
        environ = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        return subprocess.run(words, cwd=at, env=environ, capture_output=True, text=True, check=False)

    def git(self, *words: str, at: Path | None = None) -> str:
        done = self.run("git", *words, at=at or self.project)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def cruft(self, *words: str, at: Path | None = None) -> str:
        done = self.run(COMMAND, *words, at=at or self.project)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def release(self) -> None:
        self.git("add", "-A", at=self.template)
        self.git("commit", "-q", "--allow-empty", "-m", "A release", at=self.template)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Work")

    def create(self, *answers: str) -> None:
        given = json.dumps({"check_credentials": "skip", **dict(answer.split("=") for answer in answers)})
        stdout = self.cruft("create", str(self.template), "--no-input", "--extra-context", given, at=self.work)
        assert (self.project / ".cruft.json").is_file(), stdout

    @property
    def made(self) -> Path:
        """The skeleton of the template, which the next release changes."""
        return self.template / SKELETON.name

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.project / name
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")

    def read(self, name: str) -> str:
        return (self.project / name).read_text("utf-8")


def earlier(template: Path) -> None:
    """Turn the current template into an earlier release."""
    skeleton = template / SKELETON.name
    new = skeleton / "vendor" / WHEEL
    new.with_name(WHEEL.replace(VERSION, "0.0.9")).write_bytes(b"PK\x05\x06 an older library \x00\xff" * 999)
    new.unlink()
    package = skeleton / "pyproject.toml"
    package.write_text(package.read_text("utf-8").replace(VERSION, "0.0.9"), "utf-8")
    model = template / "templates/tasks/image-classification/model.py"
    model.write_text("# An older note.\n" + model.read_text("utf-8"), "utf-8")
    (skeleton / "sweep.yaml").write_text("program: the-old-way\nmethod: grid\n", "utf-8")
    (skeleton / "gone.md").write_text("An older file.\n", "utf-8")
    (skeleton / "ruff.toml").unlink()
    for name in ("AGENTS.md", "AGENTS.stack.md"):
        (skeleton / name).write_text("# Older\n", "utf-8")


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """A project created with `cruft create` from the earlier release, and a newer template."""
    made = Owner(tmp_path)
    earlier(made.template)
    made.release()
    made.create()
    made.commit()
    for name in (SKELETON.name, "templates"):
        shutil.rmtree(made.template / name)
        shutil.copytree(template() / name, made.template / name)
    made.release()
    return made


@pytest.mark.slow
def test_an_update_applies_the_release_and_keeps_own_changes(owner: Owner) -> None:
    assert "out of date" in owner.cruft("check")
    owner.edit("src/my_ml_project/model.py", "class ", "# My own line.\nclass ")
    owner.edit("pyproject.toml", '    "numpy>=2.1",\n', '    "numpy>=2.1",\n    "polars>=1",\n')
    (owner.project / "src/my_ml_project/mine.py").write_text("MINE = 1\n", "utf-8")
    (owner.project / "AGENTS.md").write_text("# Older\n\nOur own rule.\n", "utf-8")
    owner.commit()
    assert "My own line" in owner.cruft("diff")
    stdout = owner.cruft("update", "--skip-apply-ask")
    assert "Created " not in stdout and "Your keys" not in stdout
    model, package = owner.read("src/my_ml_project/model.py"), owner.read("pyproject.toml")
    assert "# My own line." in model and "An older note" not in model
    assert "polars" in package and f"free-ml-stack=={VERSION}" in package and "0.0.9" not in package
    assert owner.read("src/my_ml_project/mine.py") == "MINE = 1\n"
    assert (owner.project / "vendor" / WHEEL).read_bytes() == (SKELETON / "vendor" / WHEEL).read_bytes()
    assert [path.name for path in owner.project.glob("vendor/*.whl")] == [WHEEL]
    assert (owner.project / "ruff.toml").is_file() and not (owner.project / "gone.md").exists()
    assert owner.read("AGENTS.md") == "# Older\n\nOur own rule.\n" and "info --json" in owner.read("AGENTS.stack.md")
    assert owner.git("rev-list", "--count", "HEAD") == "2"  # the history is the owner's
    owner.commit()
    assert "up to date" in owner.cruft("check")
    assert "Nothing to do" in owner.cruft("update", "--skip-apply-ask")


@pytest.mark.slow
def test_a_conflict_is_marked_and_the_rest_applied(owner: Owner) -> None:
    owner.edit("sweep.yaml", "method: grid", "method: random")
    owner.commit()
    owner.cruft("update", "--skip-apply-ask")
    text = owner.read("sweep.yaml")
    assert "<<<<<<<" in text and "method: random" in text and "method: bayes" in text
    assert (owner.project / "ruff.toml").is_file() and f"=={VERSION}" in owner.read("pyproject.toml")


@pytest.mark.slow
def test_an_update_needs_no_identity_and_no_key(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.release()
    owner.create()
    owner.commit()
    (owner.made / "notes.md").write_text("New.\n", "utf-8")
    owner.release()
    state = json.loads(owner.read(".cruft.json"))
    state["context"]["cookiecutter"]["check_credentials"] = "require"
    (owner.project / ".cruft.json").write_text(json.dumps(state), "utf-8")
    owner.commit()
    (owner.home / ".gitconfig").write_text("", encoding="utf-8")
    assert "updated" in owner.cruft("update", "--skip-apply-ask")
    assert owner.read("notes.md") == "New.\n"


@pytest.mark.slow
def test_a_project_inside_a_larger_repository_is_updated(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.release()
    owner.git("init", "-q", "-b", "main", at=owner.work)
    owner.create()
    assert not (owner.project / ".git").exists()
    (owner.work / "notes.md").write_text("Of another project.\n", "utf-8")
    owner.git("add", "-A", at=owner.work)
    owner.git("commit", "-q", "-m", "Both", at=owner.work)
    (owner.made / "notes.md").write_text("New.\n", "utf-8")
    owner.release()
    owner.cruft("update", "--skip-apply-ask")
    assert owner.read("notes.md") == "New.\n"
    assert (owner.work / "notes.md").read_text("utf-8") == "Of another project.\n"


def test_cruft_create_leaves_the_commit_to_the_user(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.release()
    owner.create()
    assert owner.git("status", "--porcelain", "--untracked-files=all").count("??") > 30
    owner.commit()
    assert owner.git("status", "--porcelain") == "" and ".cruft.json" in owner.git("ls-files")


def test_an_invalid_answer_creates_nothing(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.release()
    answers = json.dumps({"project_slug": "a/b"})
    done = owner.run(COMMAND, "create", str(owner.template), "--no-input", "--extra-context", answers, at=owner.work)
    assert done.returncode != 0 and "project_slug = 'a/b' must consist of letters" in done.stdout + done.stderr
    assert not list(owner.work.iterdir())
