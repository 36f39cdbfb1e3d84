"""The library as a package: layers, public names, and the wheel in projects."""

import ast
import configparser
import hashlib
import importlib
import inspect
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterable
from email import message_from_bytes
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import nbformat
import pytest
import yaml
from baking import SKELETON, TEMPLATE
from fresh import uv
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from free_ml_stack.version import __version__

LIBRARY = TEMPLATE / "src" / "free_ml_stack"
PUBLIC = {
    "free_ml_stack": {"StackError", "flag", "main"},
    "free_ml_stack.evaluation": {"Evaluation", "classification", "regression"},
    "free_ml_stack.gateway": {"asgi_app", "serve_project"},
    "free_ml_stack.notebook": {"Project"},
    "free_ml_stack.training": {"Checkpoints", "Process", "Run", "Split"},
}
TASKS = TEMPLATE / "templates" / "tasks"
[WHEEL] = SKELETON.glob("vendor/*.whl")


def skeletons_code() -> dict[str, str]:
    """Return all Python code of the skeleton by path, including the notebook's cells."""
    files = [*SKELETON.rglob("*.py"), *SKELETON.rglob("*.{{ 'py' }}")]
    files += [*TASKS.rglob("*.py"), *TASKS.rglob("*.py.jinja")]
    code = {str(path.relative_to(TEMPLATE)): path.read_text("utf-8") for path in files}
    code = {place: text for place, text in code.items() if "{% include" not in text}
    for notebook in TASKS.rglob("*.ipynb"):
        cells = nbformat.reads(notebook.read_text("utf-8"), as_version=4).cells
        code |= {f"{notebook}:{cell.id}": cell.source for cell in cells if cell.cell_type == "code"}
    return {place: text.replace("{{ cookiecutter.package_name }}", "package") for place, text in code.items()}


def imported(text: str) -> set[tuple[str, str]]:
    """Return the uses of the library in Python code as (module, name); the name is "" for an import of a module."""
    found, known = set(), {LIBRARY.name: LIBRARY.name}  # modules by the name that they have in the code
    nodes = list(ast.walk(ast.parse(text)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == LIBRARY.name:
            found |= {(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            modules = {alias.name: alias for alias in node.names if alias.name.partition(".")[0] == LIBRARY.name}
            found |= {(name, "") for name in modules}
            known |= {alias.asname: name for name, alias in modules.items() if alias.asname}
        elif isinstance(node, ast.Constant) and re.fullmatch(rf"{LIBRARY.name}(\.\w+)*", str(node.value)):
            found.add((node.value, ""))  # as for import_module
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            found.add((known[node.value.id], node.attr))
    return found


@pytest.mark.parametrize(
    "code",
    ["from free_ml_stack.errors import StackError", "import free_ml_stack as lib; lib.project", "import free_ml_stack.cli",
     "import free_ml_stack.training as own; own.process", "import_module('free_ml_stack.storage.stores')"],
)  # fmt: skip
def test_each_use_of_another_name_is_found(code: str) -> None:
    assert any(module not in PUBLIC or (name and name not in PUBLIC[module]) for module, name in imported(code))


def test_a_project_imports_public_names_only() -> None:
    code = skeletons_code()
    found = {place: imported(text) for place, text in code.items()}
    assert any(found.values())
    for place, names in found.items():
        for module, name in names:
            assert module in PUBLIC and (not name or name in PUBLIC[module]), (place, module, name)
    tasks = {path.name for path in TASKS.glob("*-*/")}
    for task in tasks:
        others = tasks - {task}
        used = set().union(*(names for place, names in found.items() if others.isdisjoint(Path(place).parts)))
        assert 10 <= len({name for name in used if name[1]}) <= 12, task
    used = set().union(*found.values())
    assert {name for name in used if name[1]} == {(module, name) for module, names in PUBLIC.items() for name in names}
    assert len(PUBLIC) <= 5
    assert {module for module, _ in used} == set(PUBLIC), "a public module that no project uses"


def test_every_function_is_used_by_the_library_or_by_a_project() -> None:
    texts = [path.read_text("utf-8") for path in LIBRARY.rglob("*.py")]
    trees = [ast.parse(text) for text in texts]
    others = [(TEMPLATE / name).read_text("utf-8") for name in ("pyproject.toml", "docs/project.md")]
    count = Counter(re.findall(r"\w+", " ".join([*texts, *skeletons_code().values(), *others])))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}
    defined = {name for name in defined if not name.startswith("__")}
    called_by_clients = {"_render_traceback_", "branched", "rmdir"}  # IPython and fsspec
    assert {name for name in defined if count[name] == 1} == called_by_clients


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_declared_and_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    assert set(loaded.__all__) == PUBLIC[module]
    for name in loaded.__all__:
        value = getattr(loaded, name)
        assert (value.__doc__ or "").strip(), name
        for part, method in vars(value).items() if isinstance(value, type) else ():
            if not part.startswith("_") and inspect.isroutine(method):
                assert (method.__doc__ or "").strip(), f"{name}.{part}"


def test_there_is_no_import_circle() -> None:
    """Cycles of any length, including imports in functions and for types."""
    graph = grimp.build_graph(LIBRARY.name, cache_dir=None)
    assert len(graph.modules) > 100
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


def test_layers_import_lower_layers_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=TEMPLATE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    contracts = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    assert not any("ignore_imports" in contract for contract in contracts)


def test_dependencies_match_the_imports() -> None:
    command = [str(Path(sys.executable).with_name("deptry")), "src"]
    done = subprocess.run(command, cwd=TEMPLATE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_diagram_of_the_layers_is_up_to_date() -> None:
    sys.path.insert(0, str(TEMPLATE / "docs"))
    import layers

    assert layers.picture() == layers.PICTURE.read_text("utf-8"), "run `python docs/layers.py`"


def test_the_wheel_matches_src() -> None:
    """Run `make wheel` after a change of src/. Contents are compared, as WHEEL contains hatchling's version."""
    with zipfile.ZipFile(WHEEL) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    info = f"{WHEEL.name.removesuffix('-py3-none-any.whl')}.dist-info"
    files = {
        path.relative_to(TEMPLATE / "src").as_posix(): path.read_bytes()
        for path in LIBRARY.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    stale = [name for name in held.keys() | files if not name.startswith(info) and held.get(name) != files.get(name)]
    assert not stale, "the vendored wheel is stale: run `make wheel`"
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))["project"]
    metadata = message_from_bytes(held[f"{info}/METADATA"])
    extras = [
        f"{text}; extra == '{extra}'" for extra, texts in project["optional-dependencies"].items() for text in texts
    ]
    assert alike(metadata.get_all("Requires-Dist")) == alike([*project["dependencies"], *extras])
    assert (metadata["Name"], metadata["Version"]) == (project["name"], __version__)
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(project["requires-python"])
    assert f"-{__version__}-" in WHEEL.name
    points = configparser.ConfigParser()
    points.read_string(held[f"{info}/entry_points.txt"].decode())
    assert {name: dict(points[name]) for name in points.sections()} == project["entry-points"]


@pytest.mark.slow
def test_the_source_distribution_has_the_library_only(tmp_path: Path) -> None:
    subprocess.run([uv(), "build", "--quiet", "--sdist", "--out-dir", tmp_path, TEMPLATE], check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as source:
        paths = {name.split("/", 1)[1] for name in source.getnames()}
    others = {path for path in paths if not path.startswith("src/free_ml_stack/")}
    assert others == {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert "src/free_ml_stack/py.typed" in paths


@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), (__version__, 1), ("v99.0.0", 1), ("v", 1)])
def test_a_release_requires_the_tag_of_the_version(tag: str, code: int) -> None:
    workflow = yaml.safe_load((TEMPLATE / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    [check] = (step for step in workflow["jobs"]["build"]["steps"] if "TAG" in step.get("env", {}))
    done = subprocess.run(["bash", "-ec", check["run"]], cwd=TEMPLATE, env={**os.environ, "TAG": tag}, check=False)
    assert done.returncode == code


def alike(texts: Iterable[str]) -> set[tuple[str, ...]]:
    """Normalize requirements: punctuation, spaces and quotes."""
    found = [Requirement(text) for text in texts]
    return {
        (canonicalize_name(one.name), str(one.specifier), str(sorted(one.extras)), str(one.marker)) for one in found
    }


def test_the_wheel_matches_the_recorded_checksum_and_the_lock() -> None:
    digest = hashlib.sha256(WHEEL.read_bytes()).hexdigest()
    assert WHEEL.with_name("SHA256SUMS").read_text() == f"{digest}  {WHEEL.name}\n"
    text = (SKELETON / "pyproject.toml").read_text("utf-8")
    version = WHEEL.name.split("-")[1]
    assert f'"free-ml-stack=={version}"' in text and f'free-ml-stack = {{ path = "vendor/{WHEEL.name}" }}' in text
