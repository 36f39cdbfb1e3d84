"""Install what a machine lacks, and leave alone what it brings: Colab's torch, CUDA and numpy fit each other."""

import hashlib
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Any

from free_ml_stack.console import say
from free_ml_stack.errors import StackError

LIBRARY = "free-ml-stack"
KEPT = ("torch", "triton", "pytorch-triton", "nvidia-", "cuda-", "cupy", "jax", "numpy")


def install(root: Path) -> None:
    """Install the packages of the project in `root` that are missing here or too old.

    Those of the machine's torch, CUDA and numpy keep their version, and what other packages here require of a version
    stays met. Raises StackError, with nothing installed, where a package can't be had so, or where the vendored wheel
    is not the one that was recorded.
    """
    wheel = vendored(root)
    wanted = missing(requirements(root, wheel))
    if not wanted:
        say("Every package is here.")
        return
    before = kept()
    sources = [str(wheel) if wheel and named(text) == LIBRARY else text for text in wanted]
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch, "constraints.txt")
        pins = [f"{name}=={number}" for name, number in before.items()]
        pinned.write_text("\n".join([*pins, *required_here()]), encoding="utf-8")
        done = subprocess.run(
            [*installer(), "--quiet", "--constraint", str(pinned), *sources],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
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


def vendored(root: Path) -> Path | None:
    """The wheel of this library that pyproject.toml names as its source; None where it comes from elsewhere.

    Raises StackError where the wheel is missing, or its SHA-256 is not the one in the SHA256SUMS beside it.
    """
    source: str = pyproject(root).get("tool", {}).get("uv", {}).get("sources", {}).get(LIBRARY, {}).get("path", "")
    if not source.endswith(".whl"):
        return None
    wheel, sums = root / source, (root / source).with_name("SHA256SUMS")
    if not wheel.is_file():
        raise StackError(f"{wheel} is missing: restore it with `git checkout -- {source}`")
    lines = sums.read_text("utf-8-sig").splitlines() if sums.is_file() else []
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if recorded.get(wheel.name, found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != found:
        raise StackError(
            f"{wheel} has changed: its SHA-256 is not the one in {sums.name}; restore it with "
            f"`git checkout -- {source}`"
        )
    return wheel


def requirements(root: Path, wheel: Path | None) -> list[str]:
    """What the project in `root` requires, and what this library does, by its vendored wheel or as it is installed."""
    own: list[str] = pyproject(root)["project"]["dependencies"]
    if wheel:  # uv takes the wheel that is its source whatever version the requirement names
        own = [*(text for text in own if named(text) != LIBRARY), f"{LIBRARY}=={wheel.name.split('-')[1]}"]
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            needed = message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    else:
        try:
            needed = requires(LIBRARY) or []
        except PackageNotFoundError:
            needed = []
    return [*own, *(text for text in needed if "extra ==" not in text)]


def pyproject(root: Path) -> dict[str, Any]:
    """The project's pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8-sig"))


def named(requirement: str) -> str:
    """The normalized name of the package that a requirement is for."""
    found = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def missing(requirements: Iterable[str]) -> list[str]:
    """Those requirements that no installed package meets; all of them where nothing here can compare versions."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return list(requirements)

    def met(requirement: Requirement) -> bool:
        try:
            return requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            return False

    return [text for text in requirements if not met(Requirement(text))]


def required_here() -> list[str]:
    """Return what installed packages require of the versions of others, as far as it is met and can be compared."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    here = {re.sub(r"[-_.]+", "-", one.name).lower(): one.version for one in distributions()}
    found = set()
    for requirement in (Requirement(text) for one in distributions() for text in one.requires or ()):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        applies = not requirement.marker or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.specifier and requirement.specifier.contains(here.get(name, ""), prereleases=True):
            found.add(f"{name}{requirement.specifier}")
    return sorted(found)


def kept() -> dict[str, str]:
    """Name and version of the installed packages that must not change."""
    found = ((package.name.lower().replace("_", "-"), package.version) for package in distributions())
    return {name: number for name, number in found if name.startswith(KEPT)}


def installer() -> list[str]:
    """uv where it is there, which takes seconds; else pip."""
    uv = shutil.which("uv")
    return [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
