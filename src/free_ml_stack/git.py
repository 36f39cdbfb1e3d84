"""Every call of git: for the repository that is meant, whatever the environment names and the user has configured."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# What leads git elsewhere: `git rev-parse --local-env-vars` of its versions, and what changes how it reads and tells.
REPOSITORY = frozenset(
    f"GIT_{name}"
    for name in (
        "ALTERNATE_OBJECT_DIRECTORIES",
        "ATTR_SOURCE",
        "COMMON_DIR",
        "CONFIG",
        "CONFIG_COUNT",
        "CONFIG_PARAMETERS",
        "DIFF_OPTS",
        "DIR",
        "EXTERNAL_DIFF",
        "GRAFT_FILE",
        "GLOB_PATHSPECS",
        "ICASE_PATHSPECS",
        "IMPLICIT_WORK_TREE",
        "INDEX_FILE",
        "INDEX_VERSION",
        "INTERNAL_SUPER_PREFIX",
        "LITERAL_PATHSPECS",
        "NAMESPACE",
        "NOGLOB_PATHSPECS",
        "NO_REPLACE_OBJECTS",
        "OBJECT_DIRECTORY",
        "PREFIX",
        "REPLACE_REF_BASE",
        "SHALLOW_FILE",
        "WORK_TREE",
    )
)
# No hook, watcher, signature or paging of the user's. The rest of a configuration (proxies, certificates, safe
# folders, line ends, what is ignored) tells of the machine, and stays.
OPTIONS = (
    "core.hooksPath=" + os.devnull,
    "core.fsmonitor=false",
    "core.quotePath=true",
    "color.ui=false",
    "commit.gpgSign=false",
    "push.gpgSign=false",
)


def environment() -> dict[str, str]:
    """This process's environment without what names a repository; git asks nobody, and speaks English."""
    kept = {name: value for name, value in os.environ.items() if name not in REPOSITORY}
    return {**kept, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def run(
    root: Path | None,
    arguments: Sequence[str],
    variables: Mapping[str, str] | None = None,
    seconds: float = 0.0,
) -> "subprocess.CompletedProcess[bytes]":
    """Run git in `root`, with further `variables`, whatever its exit code.

    Raises OSError where there is no git, and subprocess.TimeoutExpired after `seconds` if those are given.
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
