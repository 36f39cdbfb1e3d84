"""Environments that hold the packages which a text names and no others, made once below build/; and what runs in them."""

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
    """The program, where `make` puts it if there is none."""
    return shutil.which("uv") or str(ROOT / "build" / "tools" / "bin" / "uv")


def interpreter(version: str) -> str:
    """The path of a Python on this machine, pyenv's or one on the path; empty where there is none of that version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [*sorted(map(str, pyenv.glob(f"{version}.*/bin/python"))), shutil.which(f"python{version}")]
    for place in filter(None, places):
        if subprocess.run([place, "-c", ""], capture_output=True, check=False).returncode == 0:  # a shim may fail
            return place
    return ""


def python(*packages: str, options: Sequence[str] = (), version: str = "") -> Path:
    """The interpreter of an environment with these packages and what they need; `options` are uv's."""
    key = hashlib.sha256(repr((packages, options, version)).encode()).hexdigest()[:12]
    folder = PLACE / key
    PLACE.mkdir(parents=True, exist_ok=True)
    with FileLock(PLACE / f"{key}.lock"):
        if not (folder / "ready").exists():
            run(uv(), "venv", "--quiet", "--clear", "--python", version or sys.executable, str(folder))
            run(uv(), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *options, *packages)
            (folder / "ready").touch()
    return folder / "bin" / "python"


def run(*command: str, folder: Path | None = None, **environ: str) -> str:
    """What a command prints, in an environment without the project and without keys; it must end well."""
    kept = ("PATH", "LANG", "UV_", "PIP_", "SSL_", "OPENBLAS_")
    given = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    home = str(folder or PLACE)
    given.setdefault("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    done = subprocess.run(
        command, cwd=folder, env={**given, "HOME": home, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def use(card: str, folder: Path, **environ: str) -> str:
    """What the first lines of Python on a card print, where only the packages are installed that the card names."""
    [packages] = re.findall(r"^pip install (.*)$", card, re.MULTILINE)
    lines, *_ = PYTHON.findall(card)
    return run(str(python(*packages.split())), "-c", lines, folder=folder, **environ)


def execute(notebook: Path, **environ: str) -> str:
    """What the last cell of a notebook shows, executed where only the packages are installed that it installs."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    [packages] = [cell.source.split()[3:] for cell in cells if cell.source.startswith("%pip install --quiet ")]
    here = python(*packages, "nbclient", "ipykernel", "pip")
    execution = str(here.with_name("jupyter-execute"))
    run(execution, "--inplace", notebook.name, folder=notebook.parent, **environ)
    [*_, last] = nbformat.read(notebook, as_version=4).cells
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in last.outputs)


def target(*packages: str) -> Path:
    """A folder for PYTHONPATH with these packages alone, which come before those of the same name that are here."""
    folder = PLACE / hashlib.sha256(repr(packages).encode()).hexdigest()[:12]
    PLACE.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "ready").exists():
            options = ("--quiet", "--no-deps", "--target", str(folder), "--python", sys.executable)
            run(uv(), "pip", "install", *options, *packages)
            (folder / "ready").touch()
    return folder
