"""Where a result comes from: commit, versions, machine."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    return _git(root, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: str) -> dict[str, Any]:
    """System, processor and the device that was used."""
    return {"system": platform.system(), "processor": platform.machine(), "device": device}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
