"""Install what a machine lacks, and leave alone what it brings: Colab's torch, CUDA and numpy fit each other."""

import importlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from free_ml_stack.console import say
from free_ml_stack.errors import StackError

KEPT = ("torch", "triton", "pytorch-triton", "nvidia-", "cuda-", "cupy", "jax", "numpy")


def install(root: Path) -> None:
    """Install the packages of the project in `root` that are missing here or too old.

    Those of the machine's torch, CUDA and numpy keep their version. Raises StackError, with nothing installed, where
    a package can't be had without changing them.
    """
    wanted = missing(dependencies(root))
    if not wanted:
        say("Every package is here.")
        return
    before = kept()
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch, "constraints.txt")
        pinned.write_text("\n".join(f"{name}=={number}" for name, number in before.items()), encoding="utf-8")
        done = subprocess.run(
            [*installer(), "--quiet", "--constraint", str(pinned), *wanted],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise StackError(
            f"nothing was installed: with {', '.join(sorted(before)) or 'what is here'} as this machine has them, "
            f"the packages can't be had:\n{done.stderr.strip()}"
        )
    importlib.invalidate_caches()
    changed = [name for name, number in before.items() if kept().get(name) != number]
    if changed:
        raise StackError(f"the installation changed {', '.join(changed)}; start a new session")
    say(
        f"Installed {', '.join(wanted)}.",
        "Left as they are: " + (", ".join(sorted(before)) or "nothing") + ".",
    )


def dependencies(root: Path) -> list[str]:
    """The requirements in the project's pyproject.toml."""
    found: list[str] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    return found


def missing(requirements: Iterable[str]) -> list[str]:
    """Those requirements that no installed package meets."""
    from packaging.requirements import Requirement

    def met(requirement: Requirement) -> bool:
        try:
            return requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            return False

    return [text for text in requirements if not met(Requirement(text))]


def kept() -> dict[str, str]:
    """Name and version of the installed packages that must not change."""
    found = ((package.name.lower().replace("_", "-"), package.version) for package in distributions())
    return {name: number for name, number in found if name.startswith(KEPT)}


def installer() -> list[str]:
    """uv where it is there, which takes seconds; else pip."""
    uv = shutil.which("uv")
    return (
        [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    )
