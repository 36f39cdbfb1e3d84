"""The benchmarks use names that exist; running them takes too long for a test."""

import ast
from importlib import import_module
from importlib.util import find_spec

import pytest
from places import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "bench").rglob("*.py")), ids=lambda path: path.name)
def test_a_benchmark_imports_names_that_exist(path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = [
        (node.module, alias.name)
        for node in imports
        if node.module.startswith(("free_ml_stack", "skeleton"))
        for alias in node.names
    ]
    assert [(module, name) for module, name in names if not exists(module, name)] == []


def exists(module: str, name: str) -> bool:
    found = import_module(module)
    return hasattr(found, name) or (hasattr(found, "__path__") and find_spec(f"{module}.{name}") is not None)
