"""Install missing packages without a change of preinstalled torch, CUDA and numpy, which match on Colab."""

import hashlib
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distributions, requires
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack.console import say
from free_ml_stack.errors import StackError
from free_ml_stack.project.settings import read_toml

if TYPE_CHECKING:
    from packaging.requirements import Requirement

LIBRARY = "free-ml-stack"
KEPT = ("torch", "triton", "pytorch-triton", "nvidia-", "cuda-", "cupy", "jax", "numpy")


def install(root: Path) -> None:
    """Install the packages of the project in `root` that are missing or too old.

    Preinstalled torch, CUDA and numpy keep their versions, and the requirements of other installed packages stay
    satisfied. Raises StackError, with nothing installed, if that is impossible, or on a checksum mismatch of the
    vendored wheel.
    """
    wheel = vendored(root)
    wanted = missing(requirements(root, wheel))
    if not wanted:
        say("All packages are installed.")
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
            f"nothing was installed: no matching packages for the installed "
            f"{', '.join(sorted(before)) or 'packages'}:\n{done.stderr.strip()}"
        )
    importlib.invalidate_caches()
    changed = [name for name, number in before.items() if kept().get(name) != number]
    if changed:
        raise StackError(f"the installation changed {', '.join(changed)}; start a new session")
    say(
        f"Installed {', '.join(wanted)}.",
        "Unchanged: " + (", ".join(sorted(before)) or "nothing") + ".",
    )


def vendored(root: Path) -> Path | None:
    """Return the wheel of this library in pyproject.toml; None for another source.

    Raises StackError if the wheel is missing, or the SHA256SUMS beside it lacks its checksum.
    """
    source = library_path(root)
    if not source.endswith(".whl"):
        return None
    wheel, sums = root / source, (root / source).with_name("SHA256SUMS")
    if not wheel.is_file():
        raise StackError(f"{wheel} not found; restore it with `git checkout -- {source}`")
    lines = sums.read_text("utf-8-sig").splitlines() if sums.is_file() else []
    recorded = {name.lstrip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)}
    if recorded.get(wheel.name) != hashlib.sha256(wheel.read_bytes()).hexdigest():
        raise StackError(
            f"{wheel}: checksum mismatch with {sums.name}; restore it with `git checkout -- {source}`, or record an "
            f"update with `cd {wheel.parent.name} && sha256sum *.whl > {sums.name}`"
        )
    return wheel


def require_portable(root: Path) -> None:
    """Raise StackError if the project uses this library from a path outside of it, which another machine lacks."""
    source = library_path(root)
    if source and not (source.endswith(".whl") and (root / source).resolve().is_relative_to(root.resolve())):
        raise StackError(
            f"pyproject.toml uses {LIBRARY} from {source}, which is not on the other machine; build its wheel, copy "
            "it to vendor/ and run `uv add ./vendor/NAME.whl`"
        )


def library_path(root: Path) -> str:
    """Return the path of this library in pyproject.toml; "" for an index or a repository."""
    file = root / "pyproject.toml"
    known = read_toml(file) if file.exists() else {}
    return str(known.get("tool", {}).get("uv", {}).get("sources", {}).get(LIBRARY, {}).get("path", ""))


def requirements(root: Path, wheel: Path | None) -> list[str]:
    """Return the requirements of the project in `root`, and of this library (vendored wheel or installed)."""
    own: list[str] = read_toml(root / "pyproject.toml")["project"]["dependencies"]
    if wheel:  # uv uses the wheel for any version in the requirement
        own = [*(text for text in own if named(text) != LIBRARY), f"{LIBRARY}=={wheel.name.split('-')[1]}"]
        needed = next(iter(distributions(path=[str(wheel)]))).requires or []
    else:
        try:
            needed = requires(LIBRARY) or []
        except PackageNotFoundError:
            needed = []
    return [*own, *(text for text in needed if "extra ==" not in text)]


def named(requirement: str) -> str:
    """Return the normalized package name of a requirement."""
    found = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def missing(requirements: Iterable[str]) -> list[str]:
    """Return the requirements not satisfied by installed packages; all of them without `packaging`."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return list(requirements)

    here = installed()
    return [text for text in requirements if not met(Requirement(text), here)]


def met(requirement: "Requirement", here: Mapping[str, Distribution]) -> bool:
    """Return whether one of the installed packages satisfies a requirement."""
    one = here.get(named(requirement.name))
    return one is not None and requirement.specifier.contains(one.version, prereleases=True)


def required_here() -> list[str]:
    """Return the satisfied version requirements between installed packages; [] without `packaging`."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    here = installed()
    found = set()
    for text in (text for one in here.values() for text in one.requires or ()):
        with suppress(ValueError):  # an invalid requirement or version of an old package, which installers ignore
            requirement = Requirement(text)
            applies = not requirement.marker or requirement.marker.evaluate({"extra": ""})
            if applies and requirement.specifier and met(requirement, here):
                found.add(f"{named(requirement.name)}{requirement.specifier}")
    return sorted(found)


def kept() -> dict[str, str]:
    """Return names and versions of the installed packages that must not change."""
    return {name: one.version for name, one in installed().items() if name.startswith(KEPT)}


def installed() -> dict[str, Distribution]:
    """Return the installed packages by normalized name: the first on the path, which is imported.

    Remains of an interrupted removal, which have no name, do not count, and neither does the wheel that a notebook
    imports from, because its commands do not.
    """
    places = [place for place in sys.path if not str(place).endswith(".whl")]
    found = [one for one in distributions(path=places) if one.name]
    return {named(one.name): one for one in reversed(found)}


def installer() -> list[str]:
    """Return the install command of uv, which is faster, or of pip."""
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install"]
