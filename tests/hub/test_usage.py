"""The code in a model folder: predict.py and the modules of its package that it imports."""

from pathlib import Path

import nbformat
import pytest
from places import TASKS, package

from free_ml_stack.hub.usage import copy_code, notebook, required_packages
from free_ml_stack.project.science import Science

FILES = {
    "__init__.py": "",
    "predict.py": "import json\nimport numpy as np\nfrom . import words\nfrom .parts.pixels import read\n",
    "words.py": "\ufefffrom own.deep import more\nfrom PIL import Image\n",
    "parts/__init__.py": "",
    "parts/pixels.py": "def read():\n    import _yaml, yaml\n    from ..late import last\n",
    "late.py": "import own.later\n",
    "later.py": "",
    "deep/__init__.py": "",
    "deep/more.py": "from free_ml_stack import StackError\n",
    "train.py": "import torch\nfrom .model import Net\n",
    "model.py": "import torch\n",
}


def own(folder: Path) -> Path:
    """Create a package whose predict.py imports other modules with every form of import, one with a byte order mark."""
    for name, text in FILES.items():
        path = folder / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "own"


def test_imported_modules_of_the_package_are_copied(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (target / "own" / "old").mkdir(parents=True)
    copy_code(own(tmp_path), target)
    found = {path.relative_to(target / "own").as_posix() for path in (target / "own").rglob("*.py")}
    assert found == FILES.keys() - {"train.py", "model.py"}
    assert not (target / "own" / "old").exists()
    assert required_packages(tmp_path / "own") == ["free-ml-stack", "huggingface-hub", "numpy", "pillow", "pyyaml"]


@pytest.mark.parametrize("task", sorted(TASKS.glob("*-*/")), ids=lambda task: str(task.name))
def test_inference_needs_no_torch_in_any_task(task: Path) -> None:
    folder = Science(package(task.name)).folder
    assert {"huggingface-hub", "numpy", "onnxruntime"} <= set(required_packages(folder))
    assert set(required_packages(folder)) <= {"huggingface-hub", "numpy", "onnxruntime", "pillow", "tokenizers"}


def test_the_notebook_is_valid_and_holds_no_outputs() -> None:
    text = notebook('Digits "2" & more', Science("skeleton").folder, "")
    made = nbformat.reads(text, as_version=4)
    nbformat.validate(made)
    assert 'folder = Path(".")' in text.replace('\\"', '"')
    assert not any(cell.get("outputs") for cell in made.cells)
