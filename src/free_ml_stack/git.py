"""Calls of git that are independent of the user's GIT_* variables, hooks and configuration."""

import io
import os
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from free_ml_stack.errors import StackError

# Variables that select another repository (`git rev-parse --local-env-vars` of all versions) or change git's output.
REPOSITORY = frozenset(
    f"GIT_{name}"
    for name in (
        "ALTERNATE_OBJECT_DIRECTORIES", "ATTR_SOURCE", "COMMON_DIR", "CONFIG", "CONFIG_COUNT", "CONFIG_PARAMETERS",
        "DIFF_OPTS", "DIR", "EXTERNAL_DIFF", "GRAFT_FILE", "GLOB_PATHSPECS", "ICASE_PATHSPECS", "IMPLICIT_WORK_TREE",
        "INDEX_FILE", "INDEX_VERSION", "INTERNAL_SUPER_PREFIX", "LITERAL_PATHSPECS", "NAMESPACE", "NOGLOB_PATHSPECS",
        "NO_REPLACE_OBJECTS", "OBJECT_DIRECTORY", "PREFIX", "QUARANTINE_PATH", "REPLACE_REF_BASE", "SHALLOW_FILE",
        "WORK_TREE",
    )
)  # fmt: skip
# Disable the user's hooks, file monitor, signatures and colours. The rest of the configuration (proxies, certificates,
# safe directories, line endings, ignored files) describes the machine and is kept.
OPTIONS = (
    "core.hooksPath=" + os.devnull,
    "core.fsmonitor=false",
    "core.quotePath=true",
    "color.ui=false",
    "commit.gpgSign=false",
    "push.gpgSign=false",
)


def environment() -> dict[str, str]:
    """Return the environment for git: no variables that select a repository, no prompts, messages in English."""
    kept = {name: value for name, value in os.environ.items() if name not in REPOSITORY}
    return {**kept, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def run(
    root: Path | None,
    arguments: Sequence[str],
    variables: Mapping[str, str] | None = None,
    seconds: float = 0.0,
) -> "subprocess.CompletedProcess[bytes]":
    """Run git in `root` with additional environment `variables`, and return the result whatever the exit code.

    Raises OSError if git is not installed, and subprocess.TimeoutExpired after `seconds` if they are given.
    """
    options = [word for option in OPTIONS for word in ("-c", option)]
    return subprocess.run(
        ["git", *options, *arguments],
        cwd=root,
        env={**environment(), **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=seconds or None,
    )


def archive(root: Path) -> bytes:
    """Return a compressed tar file of the files of `root`, as they are now, without `.env`.

    These are the tracked files, and the untracked ones of src/ unless git ignores them. Raises StackError if git cannot
    list them.
    """
    listed = [run(root, ["ls-files", "-z", *words]) for words in ((), ("--others", "--exclude-standard", "--", "src"))]
    if failed := next((done for done in listed if done.returncode), None):
        reason = " ".join(failed.stderr.decode(errors="replace").split())
        new = "; run `git init`, add and commit" if "not a git repository" in reason else ""
        raise StackError(f"git cannot list the files to upload: {reason}{new}")
    names = sorted(filter(None, os.fsdecode(b"".join(done.stdout for done in listed)).split("\0")))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        for name in names:
            if Path(name).name != ".env" and (root / name).is_file():
                file.add(root / name, name)
    return content.getvalue()
