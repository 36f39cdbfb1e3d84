"""timm with a CPU build of torch: with the CUDA build of torchvision, whose operators are declared."""

import shutil
import sys
from pathlib import Path

from filelock import FileLock
from fresh import PLACE, run, uv

# Its compiled operators are missing without CUDA, and its Python code refers to these two on import. timm's networks
# do not call them.
OPERATORS = """
from torch.library import Library

_DECLARED = Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _DECLARED.define(f"{_name}(Tensor boxes) -> Tensor")
"""


def folder() -> Path:
    """Return a folder for PYTHONPATH with timm and torchvision, created once in build/; dependencies are installed."""
    place = PLACE / "timm"
    PLACE.mkdir(parents=True, exist_ok=True)
    with FileLock(PLACE / "timm.lock"):
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            options = ("--quiet", "--no-deps", "--link-mode", "copy", "--compile-bytecode", "--target", str(place))
            run(uv(), "pip", "install", *options, "--python", sys.executable, "timm>=1.0.9", "torchvision")
            start = place / "torchvision" / "__init__.py"
            start.write_text(OPERATORS + start.read_text(encoding="utf-8"), encoding="utf-8")
            (place / "ready").touch()
    return place
