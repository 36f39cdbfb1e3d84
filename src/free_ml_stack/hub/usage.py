"""Use of a published model without its project: code in the model folder, Python lines of the card, a notebook."""

import ast
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.utils import canonicalize_name

CLIENT, NOTEBOOK = "huggingface_hub", "notebook.ipynb"
WEIGHTS = "*.safetensors"  # not used for inference
START = ("__init__.py", "predict.py")
LOAD = """import json
import sys
from pathlib import Path
{client}
folder = {folder}
sys.path.insert(0, str(folder))
from {package}.predict import apply, load

model = load(folder)"""
PRIVATE = " For a private model, add your token as the secret `HF_TOKEN` first."
TRY = """example = json.loads((folder / "sample.json").read_text(encoding="utf-8"))["input"]
answer = apply(example, model)"""


def copy_code(package: Path, folder: Path) -> None:
    """Copy predict.py of a package into a model folder, with the modules of the package that it imports."""
    target = folder / package.name
    shutil.rmtree(target, ignore_errors=True)
    for path in modules(package):
        copy = target / path.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def required_packages(package: Path) -> list[str]:
    """Return the packages to install for predict.py, by the names of their distributions."""
    imported = {name.partition(".")[0] for path in modules(package) for name, _ in imports(path, package)}
    known = providers()
    others = imported - sys.stdlib_module_names - {package.name, CLIENT}
    names = (min((one.name for one in known.get(name, ())), default=name) for name in {CLIENT, *others})
    return sorted({canonicalize_name(name) for name in names})


@cache
def providers() -> Mapping[str, list[Distribution]]:
    """Return the distributions of each module; cached for the card and the notebook.

    `importlib.metadata.packages_distributions` parses all metadata and paths, which takes ten times as long.
    """
    found: dict[str, list[Distribution]] = {}
    for one in distributions():
        listed = one.read_text("top_level.txt")
        rows = (listed or one.read_text("RECORD") or "").splitlines()
        names = rows if listed else {row.partition(",")[0].partition("/")[0].removesuffix(".py") for row in rows}
        for name in names:
            found.setdefault(name, []).append(one)
    return found


def modules(package: Path) -> list[Path]:
    """Return predict.py and the modules of its package that it imports, directly or not."""
    found: list[Path] = []
    waiting = [package / name for name in START]
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.append(path)
            for _, own in imports(path, package):
                waiting += own
    return sorted(found)


def imports(path: Path, package: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield the name of each module that a file imports, with its possible paths if it belongs to the package."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = path.parent.relative_to(package.parent).parts
            above = parts[: len(parts) - node.level + 1] if node.level else ()
            base = ".".join(filter(None, (*above, node.module)))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = tuple(name.split("."))
            yield name, list(_places(parts, package)) if parts[0] == package.name else []


def _places(parts: tuple[str, ...], package: Path) -> Iterator[Path]:
    for end in range(1, len(parts) + 1):
        place = package.parent.joinpath(*parts[:end])
        yield place.with_suffix(".py")
        yield place / "__init__.py"


def lines(package: str, repository: str) -> tuple[str, str]:
    """Return the Python lines that load a model from the Hub or from the current folder, and those that call it."""
    client, folder = source(repository, f', ignore_patterns="{WEIGHTS}"')
    return LOAD.format(client=client, folder=folder, package=package), TRY


def reload_lines(package: str, repository: str) -> str:
    """Return the Python lines that load the trained model inside its project."""
    client, folder = source(repository)
    return f"from pathlib import Path\n{client}\nfrom {package}.model import load\n\nmodel = load({folder})"


def source(repository: str, options: str = "") -> tuple[str, str]:
    """Return an import statement and an expression for the folder of a model."""
    if not repository:
        return "", 'Path(".")'
    return f"\nfrom {CLIENT} import snapshot_download\n", f'Path(snapshot_download("{repository}"{options}))'


def notebook(title: str, package: Path, repository: str) -> str:
    """Return a notebook that loads the model and calls it with its sample; the Hub opens it in Colab and Kaggle."""
    load, attempt = lines(package.name, repository)
    cells = [
        (
            "markdown",
            f"# {title}\n\nThis notebook loads the model and calls it with an example. A CPU is sufficient."
            f"{PRIVATE if repository else ''}",
        ),
        ("code", f"%pip install --quiet {' '.join(required_packages(package))}"),
        ("code", load),
        ("markdown", "## Try it\n\n`example` is an input of the test split; replace it with your own."),
        ("code", f"{attempt}\nprint(json.dumps(example)[:1000])\nanswer"),
    ]
    content = {
        "cells": [cell(number, *one) for number, one in enumerate(cells)],
        "metadata": {
            "colab": {"provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def cell(number: int, kind: str, text: str) -> dict[str, object]:
    """Return a notebook cell without outputs."""
    own: dict[str, object] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": str(number), "metadata": {}, "source": text.splitlines(keepends=True), **own}
