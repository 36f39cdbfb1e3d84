"""The code that a model folder carries: predict.py with what it imports of its package, and nothing else."""

from pathlib import Path

import nbformat
import pytest
from places import TASKS, package

from free_ml_stack.hub.usage import copy_code, needed, notebook
from free_ml_stack.project.science import Science

FILES = {
    "__init__.py": "",
    "predict.py": "import json\nimport numpy as np\nfrom . import words\nfrom .parts.pixels import read\n",
    "words.py": "from own.deep import more\nfrom PIL import Image\n",
    "parts/__init__.py": "",
    "parts/pixels.py": "def read():\n    import yaml\n    from ..late import last\n",
    "late.py": "import own.later\n",
    "later.py": "",
    "deep/__init__.py": "",
    "deep/more.py": "from free_ml_stack import StackError\n",
    "train.py": "import torch\nfrom .model import Net\n",
    "model.py": "import torch\n",
}


def own(folder: Path) -> Path:
    """A package whose predict.py imports others of its modules in each way that Python has."""
    for name, text in FILES.items():
        path = folder / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "own"


def test_what_predict_needs_of_its_package_comes_along(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (target / "own" / "old").mkdir(parents=True)
    copy_code(own(tmp_path), target)
    found = {path.relative_to(target / "own").as_posix() for path in (target / "own").rglob("*.py")}
    assert found == FILES.keys() - {"train.py", "model.py"}
    assert not (target / "own" / "old").exists()
    assert needed(tmp_path / "own") == ["free-ml-stack", "huggingface-hub", "numpy", "pillow", "pyyaml"]


@pytest.mark.parametrize("task", sorted(TASKS.glob("*-*/")), ids=lambda task: str(task.name))
def test_no_task_needs_torch_to_answer(task: Path) -> None:
    folder = Science(package(task.name)).folder
    assert {"huggingface-hub", "numpy", "onnxruntime"} <= set(needed(folder))
    assert set(needed(folder)) <= {"huggingface-hub", "numpy", "onnxruntime", "pillow", "tokenizers"}


def test_the_notebook_is_valid_and_holds_no_outputs() -> None:
    text = notebook('Digits "2" & more', Science("skeleton").folder, "")
    made = nbformat.reads(text, as_version=4)
    nbformat.validate(made)
    assert 'folder = Path(".")' in text.replace('\\"', '"')
    assert not any(cell.get("outputs") for cell in made.cells)
