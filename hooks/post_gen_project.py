"""Finish a generated project: first commit, credential check, what to run next. Standard library only; idempotent."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")
ROOT = Path.cwd()


def prune():
    """Remove byte code that a template used in place leaves behind."""
    for folder in list(ROOT.glob("src/**/__pycache__")):
        shutil.rmtree(folder)


def git(*arguments):
    """Run git in the project, quietly and without a question; return whether it succeeded."""
    # Inside another repository's hook these would lead git to that repository.
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    try:
        done = subprocess.run(
            ["git", *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def in_repository():
    """Whether the project stands in a repository already (one that ignores it does not count)."""
    if (ROOT / ".git").exists():
        return True
    return any((parent / ".git").exists() for parent in ROOT.parents) and not git("check-ignore", "-q", ".")


def first_commit():
    """Make a repository with one commit where there is none; return what to tell."""
    if in_repository():
        return "already in a git repository: nothing committed"
    if not shutil.which("git"):
        return "no git here: no repository made"
    if not git("init", "-q"):
        return "git init failed: no repository made"
    quiet = ("-c", "commit.gpgsign=false", "-c", "user.useConfigOnly=true")
    if git("add", "-A") and git(*quiet, "commit", "-q", "--no-verify", "-m", "Generate the project"):
        return "git repository with a first commit"
    return "git repository; nothing committed yet, since git knows no user.name and user.email"


def load_credentials():
    """Load the project's own check by path; nothing is installed yet."""
    path = ROOT / "src" / ANSWERS["package_name"] / "stack" / "credentials.py"
    specification = importlib.util.spec_from_file_location("credentials", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["credentials"] = module  # dataclasses look their module up
    sys.dont_write_bytecode = True
    specification.loader.exec_module(module)
    return module


def main():
    sys.stdout.reconfigure(errors="replace")
    prune()
    committed = first_commit()
    print(f"\nMade {ROOT} ({committed}).")
    slug = ANSWERS["project_slug"]
    print(f"Next:\n  cd {slug}\n  uv sync\n  uv run {slug} demo", flush=True)


main()
