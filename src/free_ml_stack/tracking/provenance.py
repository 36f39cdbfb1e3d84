"""Where a result comes from: commit, versions, machine."""

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
SECONDS = 10.0  # that a call of git may take
# A difference that `git apply` takes back, whatever the user has configured.
PLAIN = (
    "--patch",
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-relative",
    "--no-renames",
    "--submodule=short",
    "--unified=3",
    "--inter-hunk-context=0",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
PACKAGES = (
    "torch",
    "numpy",
    "pyarrow",
    "safetensors",
    "onnxruntime",
    "optuna",
    "wandb",
    "huggingface_hub",
    "algorithmia",
)


def commit(root: Path) -> str:
    """The git commit of the project, `-dirty` where files differ from it, empty without git.

    Files of src/ that git neither tracks nor ignores make a difference, too.
    """
    name = _git(root, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    return f"{name}-dirty" if name and changes(root) else name


def changes(root: Path) -> bytes:
    """What differs from the commit, in the bytes that `git apply` takes back; empty without git.

    Files of src/ that git neither tracks nor ignores are among it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "index")  # the user's own is left as it is
        if not (named := os.fsdecode(_git(root, "rev-parse", "--git-path", "index").rstrip(b"\r\n"))):
            return b""
        with suppress(OSError):  # none yet, or one that only others may read
            shutil.copyfile(root / named, copy)
        index = {"GIT_INDEX_FILE": str(copy)}
        _git(root, "add", "--intent-to-add", "--", "src", variables=index)
        return _git(root, "diff", *PLAIN, "HEAD", "--", variables=index)


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def requirements(project: str) -> list[str]:
    """Every package that the project needs, as `name==version` of what is installed; this library is not among them.

    It comes from the project's vendor/, and an index need not have it.
    """
    found: dict[str, str] = {}
    try:
        waiting = list(requires(project) or [])
    except PackageNotFoundError:
        waiting = list(PACKAGES)  # run from its sources
    while waiting:
        name = re.split(r"[^\w.-]", wanted := waiting.pop(), maxsplit=1)[0]
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found or "extra ==" in wanted:
            continue
        try:
            found[key] = version(name)
            waiting += requires(name) or []
        except PackageNotFoundError:  # for another system or Python
            continue
    # without the +cpu of a build, which no index of packages has
    return [f"{name}=={found[name].partition('+')[0]}" for name in sorted(found.keys() - {LIBRARY})]


def machine(device: str) -> dict[str, Any]:
    """System, processor and the device that was used, by its name where it is a GPU."""
    return {
        "system": platform.system(),
        "processor": _processor(),
        "device": device,
        "accelerator": _gpu(device),
    }


def _processor() -> str:
    """The processor as its maker calls it where the system tells, with its cores; else its architecture."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", told.read_text(encoding="utf-8")) if told.exists() else []
    return f"{next(iter(names), platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def _gpu(device: str) -> str:
    if not device.startswith("cuda"):
        return ""
    import torch

    return torch.cuda.get_device_name(device)


def _git(root: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> bytes:
    try:
        done = git.run(root, arguments, variables, SECONDS)
    except (OSError, subprocess.SubprocessError):
        return b""
    return b"" if done.returncode else done.stdout
