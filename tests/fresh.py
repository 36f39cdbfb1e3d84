"""Environments with given packages only, created once in build/, and programs in them."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from places import ROOT

PLACE = ROOT / "build" / "fresh"
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def uv() -> str:
    """Return the path of uv, or of the copy that `make` installs."""
    return shutil.which("uv") or str(ROOT / "build" / "tools" / "bin" / "uv")


def interpreter(version: str) -> str:
    """Return the path of a local Python of a version, from pyenv or the path; "" if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [*sorted(map(str, pyenv.glob(f"{version}.*/bin/python"))), shutil.which(f"python{version}")]
    for place in filter(None, places):
        if subprocess.run([place, "-c", ""], capture_output=True, check=False).returncode == 0:  # a shim may fail
            return place
    return ""


def python(*packages: str, options: Sequence[str] = (), version: str = "") -> Path:
    """Return the interpreter of an environment with packages and their dependencies; `options` are uv's."""
    key = hashlib.sha256(repr((packages, options, version)).encode()).hexdigest()[:12]
    folder = PLACE / key
    PLACE.mkdir(parents=True, exist_ok=True)
    with FileLock(PLACE / f"{key}.lock"):
        if not (folder / "ready").exists():
            run(uv(), "venv", "--quiet", "--clear", "--python", version or sys.executable, str(folder))
            install = (uv(), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"))
            run(*install, *options, *packages)
            (folder / "ready").touch()
    return folder / "bin" / "python"


def run(*command: str, folder: Path | None = None, **environ: str) -> str:
    """Run a command in an environment without the project and keys; return its output. The command must succeed."""
    kept = ("PATH", "LANG", "UV_", "PIP_", "SSL_", "OPENBLAS_")
    given = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    home = str(folder or PLACE)
    given.setdefault("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    given.pop("UV_COMPILE_BYTECODE", None)  # modules are compiled as they are imported
    done = subprocess.run(
        command, cwd=folder, env={**given, "HOME": home, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def use(card: str, folder: Path, **environ: str) -> str:
    """Run the first Python code of a card with only the packages it lists; return the output."""
    [packages] = re.findall(r"^pip install (.*)$", card, re.MULTILINE)
    lines, *_ = PYTHON.findall(card)
    return run(str(python(*packages.split())), "-c", lines, folder=folder, **environ)


def execute(notebook: Path, **environ: str) -> str:
    """Execute a notebook with only the packages it installs; return the output of the last cell."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    [packages] = [cell.source.split()[3:] for cell in cells if cell.source.startswith("%pip install --quiet ")]
    here = python(*packages, "nbclient", "ipykernel", "pip")
    execution = str(here.with_name("jupyter-execute"))
    run(execution, "--inplace", notebook.name, folder=notebook.parent, **environ)
    [*_, last] = nbformat.read(notebook, as_version=4).cells
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in last.outputs)


def target(*packages: str) -> Path:
    """Return a folder for PYTHONPATH with these packages only, which precede installed ones."""
    folder = PLACE / hashlib.sha256(repr(packages).encode()).hexdigest()[:12]
    PLACE.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "ready").exists():
            options = ("--quiet", "--no-deps", "--compile-bytecode", "--target", str(folder))
            run(uv(), "pip", "install", *options, "--python", sys.executable, *packages)
            (folder / "ready").touch()
    return folder
