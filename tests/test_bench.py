"""The benchmarks and the scripts of docs/ use names that exist; running them takes too long for a test."""

import ast
from importlib import import_module
from importlib.util import find_spec

import pytest
from places import ROOT

SCRIPTS = sorted([*(ROOT / "bench").rglob("*.py"), *(ROOT / "docs").glob("*.py")])
OURS = {"free_ml_stack", *(path.stem for path in (ROOT / "tests").iterdir())}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_names_that_exist(path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = [
        (node.module, alias.name)
        for node in imports
        if node.module.partition(".")[0] in OURS or node.module.startswith("skeleton")
        for alias in node.names
    ]
    assert [(module, name) for module, name in names if not exists(module, name)] == []


def exists(module: str, name: str) -> bool:
    found = import_module(module)
    return hasattr(found, name) or (hasattr(found, "__path__") and find_spec(f"{module}.{name}") is not None)
