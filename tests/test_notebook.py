"""The notebook: made from its source, small, free of outputs, and it runs from top to bottom without any account."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from baking import bake
from nbclient import NotebookClient
from notebook import converted
from projects import environment


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(
        tmp_path_factory.mktemp("bake"),
        project_name="Ziffern",
        project_slug="ziffern",
        package_name="ziffern",
    )


@pytest.mark.parametrize("github", ["", "octocat"])
def test_it_is_what_its_source_gives(tmp_path: Path, github: str) -> None:
    folder = bake(tmp_path, github_username=github) / "notebooks"
    assert (folder / "train.ipynb").read_text("utf-8") == converted((folder / "train.py").read_text("utf-8"))


def test_it_is_small_and_free_of_outputs(project: Path) -> None:
    cells = nbformat.read(project / "notebooks" / "train.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    lines = [len(cell.source.splitlines()) for cell in code]
    assert 20 <= len(cells) <= 30
    assert sum(lines) <= 150
    assert max(lines) <= 15
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_every_parameter_is_a_field_of_the_configuration(project: Path) -> None:
    from dataclasses import fields

    from skeleton.config import TrainConfig

    cells = nbformat.read(project / "notebooks" / "train.ipynb", as_version=4).cells
    found = [line.split(" = ")[0] for cell in cells for line in cell.source.splitlines() if "@param" in line]
    assert found
    assert set(found) <= {field.name for field in fields(TrainConfig)}


def test_ruff_reads_it(project: Path) -> None:
    path = project / "notebooks" / "planted.ipynb"
    content = json.loads((project / "notebooks" / "train.ipynb").read_text("utf-8"))
    code = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    content["cells"].append({**code, "id": "planted", "source": ["import this_is_unused"]})
    path.write_text(json.dumps(content), encoding="utf-8")
    check = [sys.executable, "-m", "ruff", "check", "--no-cache"]
    planted = subprocess.run([*check, str(path)], cwd=project, capture_output=True, text=True, check=False)
    path.unlink()
    assert "F401" in planted.stdout
    subprocess.run([*check, "notebooks"], cwd=project, check=True)


@pytest.mark.slow
def test_it_runs_without_any_account(project: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(project / "notebooks" / "train.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("epochs = 15", "epochs = 2")
    sweep = project / "sweep.yaml"
    sweep.write_text(sweep.read_text().replace("run_cap: 8", "run_cap: 2").replace("value: 10", "value: 1"))
    given = environment(tmp_path, PYTHONPATH=str(project / "src"), MPLBACKEND="agg", IPYTHONDIR=str(tmp_path))
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(project)}}
    )
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(given)
    try:
        client.execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "Test accuracy" in printed
    assert "is at version 0.1.0" in printed
    assert list(project.glob("models/*/model.onnx"))
