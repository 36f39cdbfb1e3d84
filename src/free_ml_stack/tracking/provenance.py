"""Where a result comes from: commit, versions, machine."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

LIBRARY = "free-ml-stack"
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
    """The git commit of the project, `-dirty` where files differ from it, empty without git."""
    return _git(root, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*").decode().strip()


def changes(root: Path) -> bytes:
    """What differs from the commit, in the bytes that `git apply` takes back; empty without git."""
    return _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff")


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


def _git(root: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return b""
    return done.stdout
