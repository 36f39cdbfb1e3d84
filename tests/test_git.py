"""Calls of git ignore GIT_* variables and the user's configuration."""

import base64
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from free_ml_stack import git
from free_ml_stack.deployment.installation import Git
from free_ml_stack.errors import StackError
from free_ml_stack.notebook.sessions import packed
from free_ml_stack.tracking import provenance

ODD = """
[user]
name = me
email = me@x
[diff]
noprefix = true
mnemonicPrefix = true
external = false
context = 0
renames = copies
submodule = log
[color]
ui = always
[core]
quotePath = false
attributesFile = ~/attributes
excludesFile = ~/ignored
[diff "shout"]
textconv = "tr a-z A-Z <"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / ".gitconfig").write_text(ODD)
    (folder / "attributes").write_text("*.py diff=shout\n")
    (folder / "ignored").write_text("*.log\n")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return folder


def do(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words],
        cwd=folder,
        env=git.environment(),
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
    ).stdout.strip()


def repository(folder: Path) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "src/model.py").write_text("".join(f"line = {number}\n" for number in range(20)))
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    (folder / "name of ü").write_text(folder.name)
    (folder / ".gitignore").write_text("*.tmp\n")
    do(folder, "init", "-q")
    do(folder, "add", "-A")
    do(folder, "commit", "-qm", folder.name)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def alter(folder: Path) -> None:
    """Change a project in every way in which a working tree can differ from its commit."""
    lines = (folder / "src/model.py").read_text().splitlines(keepends=True)
    (folder / "src/model.py").write_text("".join([*lines[:9], "changed = 1\n", *lines[10:]]))
    (folder / "staged.bin").write_bytes(bytes(reversed(range(256))))
    (folder / "weights.bin").write_bytes(bytes(256))
    do(folder, "add", "staged.bin", "weights.bin")
    (folder / "name of ü").unlink()
    (folder / "src/new").mkdir()
    (folder / "src/new/layer ü.py").write_bytes(b"caf\xe9 = 1\r\nno end")
    (folder / "src/new/table.bin").write_bytes(b"\0\1\2")


@pytest.mark.parametrize("variables", [{}, {"GIT_EXTERNAL_DIFF": "false", "GIT_DIFF_OPTS": "-u0"}])
def test_the_changes_applied_to_the_commit_give_the_same_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    project = repository(tmp_path / "project")
    alter(project)
    index = (project / ".git/index").read_bytes()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    patch = provenance.changes(project)
    assert provenance.commit(project) == do(project, "rev-parse", "HEAD") + "-dirty"
    assert (project / ".git/index").read_bytes() == index
    do(tmp_path, "clone", "-q", str(project), "clone")
    (tmp_path / "changes.patch").write_bytes(patch)
    do(tmp_path / "clone", "apply", "../changes.patch")
    assert tree(tmp_path / "clone") == tree(project)


def test_an_untracked_module_marks_the_commit_dirty_and_ignored_files_do_not(tmp_path: Path) -> None:
    project = repository(tmp_path / "project")
    name = do(project, "rev-parse", "HEAD")
    for file in ("src/scratch.tmp", "src/mine.log", "notes"):
        (project / file).write_text("x")
    assert (provenance.commit(project), provenance.changes(project)) == (name, b"")
    (project / "src/new.py").write_text("x = 1\n")
    assert provenance.commit(project) == f"{name}-dirty"
    assert b"+x = 1" in provenance.changes(project)


def test_a_commit_is_marked_dirty_if_git_cannot_compare_it(tmp_path: Path) -> None:
    project = repository(tmp_path / "project")
    name, blob = do(project, "rev-parse", "HEAD", "HEAD:src/model.py").splitlines()
    (project / "src/model.py").write_text("changed = 1\n")
    (project / ".git/objects" / blob[:2] / blob[2:]).unlink()
    assert (provenance.commit(project), provenance.changes(project)) == (f"{name}-dirty", b"")


def test_an_upload_holds_new_modules_of_src_or_reports_the_reason_of_git(tmp_path: Path) -> None:
    project = repository(tmp_path / "project")
    for file in ("src/new.py", "src/mine.log", "src/.env", "notes"):
        (project / file).write_text("x")
    with tarfile.open(fileobj=io.BytesIO(git.archive(project))) as archive:
        assert archive.getnames() == [".gitignore", "name of ü", "src/model.py", "src/new.py", "weights.bin"]
    with pytest.raises(StackError, match="not a git repository.*run `git init`, add and commit$"):
        git.archive(tmp_path)
    (project / ".git/index").write_bytes(b"damaged")
    with pytest.raises(StackError, match=r"git cannot list the files to upload: (error|fatal): .") as found:
        git.archive(project)
    assert "git init" not in str(found.value)


def test_provenance_is_empty_without_a_repository_or_a_commit(tmp_path: Path) -> None:
    assert (provenance.commit(tmp_path), provenance.changes(tmp_path)) == ("", b"")
    do(tmp_path, "init", "-q")
    assert (provenance.commit(tmp_path), provenance.changes(tmp_path)) == ("", b"")


def misled(monkeypatch: pytest.MonkeyPatch, other: Path) -> None:
    """Set all variables that select another repository, as git does for hooks of a linked worktree."""
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git/objects"))
    monkeypatch.setenv("GIT_COMMON_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_PREFIX", "elsewhere/")


def test_provenance_ignores_git_variables_of_another_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, other = repository(tmp_path / "project"), repository(tmp_path / "other")
    wanted = do(project, "rev-parse", "HEAD")
    misled(monkeypatch, other)
    assert (provenance.commit(project), provenance.changes(project)) == (wanted, b"")


def test_the_packed_project_ignores_git_variables_of_another_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, other = repository(tmp_path / "project"), repository(tmp_path / "other")
    (other / "other.py").write_text("x")
    do(other, "add", "other.py")
    (project / "other.py").write_text("not tracked here")
    misled(monkeypatch, other)
    program = packed(project, "p", "p", [])
    sources = program.strip().splitlines()[-1].rpartition(", ")[2].strip('")')
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(sources))) as archive:
        assert sorted(archive.getnames()) == [".gitignore", "name of ü", "src/model.py", "weights.bin"]


def test_a_push_to_an_installation_leaves_the_users_repository_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing hook of the user neither runs nor stops the push."""
    served, other = repository(tmp_path / "served"), repository(tmp_path / "other")
    do(served, "config", "receive.denyCurrentBranch", "ignore")
    hook = tmp_path / "hooks/prepare-commit-msg"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    do(other, "config", "--global", "core.hooksPath", str(hook.parent))
    before = {**tree(other), "HEAD": do(other, "rev-parse", "HEAD")}
    misled(monkeypatch, other)
    clone = Git(tmp_path, str(served), "me", "key")
    clone.clone()
    (clone.tree / "new.py").write_text("x = 1\n")
    commit = clone.push("New")
    assert do(served, "rev-parse", "HEAD") == commit
    assert {**tree(other), "HEAD": do(other, "rev-parse", "HEAD")} == before


def test_all_local_variables_of_git_are_removed() -> None:
    local = subprocess.run(
        ["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(local) <= git.REPOSITORY


def test_git_is_called_by_one_module_only() -> None:
    sources = Path(str(git.__file__)).parent.rglob("*.py")
    assert [path.name for path in sources if '["git"' in path.read_text(encoding="utf-8")] == ["git.py"]
