"""Provenance of a result: commit, package versions, machine."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from free_ml_stack import git

LIBRARY = "free-ml-stack"
SECONDS = 10.0  # timeout of a git command
# Options for a diff that `git apply` accepts, independent of the user's configuration.
PLAIN = (
    "--patch", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "--no-renames",
    "--submodule=short", "--unified=3", "--inter-hunk-context=0", "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
PACKAGES = (
    "torch", "numpy", "pyarrow", "safetensors", "onnxruntime", "optuna", "wandb", "huggingface_hub", "algorithmia",
)  # fmt: skip


def commit(root: Path) -> str:
    """Return the git commit of the project, with `-dirty` unless all files equal it; empty without git.

    Untracked files of src/ count as differences unless git ignores them.
    """
    name = (_git(root, "rev-parse", "--verify", "--quiet", "HEAD") or b"").decode().strip()
    return f"{name}-dirty" if name and _difference(root) != b"" else name


def changes(root: Path) -> bytes:
    """Return the differences from the commit as a patch for `git apply`; empty without git.

    The patch includes untracked files of src/ unless git ignores them.
    """
    return _difference(root) or b""


def _difference(root: Path) -> bytes | None:
    """Return the patch; None if git fails, as for a tracked file that takes too long or cannot be read."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "index")  # the user's index must not change
        if not (named := os.fsdecode((_git(root, "rev-parse", "--git-path", "index") or b"").rstrip(b"\r\n"))):
            return None
        with suppress(OSError):  # missing or unreadable
            shutil.copyfile(root / named, copy)
        index = {"GIT_INDEX_FILE": str(copy)}
        if (root / "src").is_dir() and _git(root, "add", "--intent-to-add", "--", "src", variables=index) is None:
            return None
        return _git(root, "diff", *PLAIN, "HEAD", "--", variables=index)


def environment() -> dict[str, str]:
    """Return the versions of Python and of the main packages."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def requirements(project: str) -> list[str]:
    """List all dependencies of the project as `name==version`, as installed, without this library.

    The library is installed from the project's vendor/ and need not be on a package index.
    """
    found: dict[str, str] = {}
    try:
        waiting = list(requires(project) or [])
    except PackageNotFoundError:
        waiting = list(PACKAGES)  # the project is not installed
    while waiting:
        name = re.split(r"[^\w.-]", wanted := waiting.pop(), maxsplit=1)[0]
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found or "extra ==" in wanted:
            continue
        try:
            found[key] = version(name)
            waiting += requires(name) or []
        except PackageNotFoundError:  # a dependency for another system or Python version
            continue
    # without local version labels such as +cpu, which package indexes do not have
    return [f"{name}=={found[name].partition('+')[0]}" for name in sorted(found.keys() - {LIBRARY})]


def machine(device: str) -> dict[str, Any]:
    """Return the system, the processor, the device, and the GPU's name if one was used."""
    return {
        "system": platform.system(),
        "processor": _processor(),
        "device": device,
        "accelerator": _gpu(device),
    }


def _processor() -> str:
    """Return the processor's model name, or else its architecture, with the number of cores."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else []
    return f"{next(iter(names), platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def _gpu(device: str) -> str:
    if not device.startswith("cuda"):
        return ""
    import torch

    return torch.cuda.get_device_name(device)


def _git(root: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> bytes | None:
    try:
        done = git.run(root, arguments, variables, SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else done.stdout
