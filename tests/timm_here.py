"""timm beside a torch without CUDA, for which the registry has no torchvision: that of CUDA, its operators declared."""

import shutil
import sys
from pathlib import Path

from filelock import FileLock
from fresh import PLACE, run, uv

# Its compiled operators are absent without CUDA, and its Python names these two as it is imported. None of timm's
# networks calls them.
OPERATORS = """
from torch.library import Library

_DECLARED = Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _DECLARED.define(f"{_name}(Tensor boxes) -> Tensor")
"""


def folder() -> Path:
    """A folder for PYTHONPATH with timm and torchvision, made once below build/; all else that they need is here."""
    place = PLACE / "timm"
    PLACE.mkdir(parents=True, exist_ok=True)
    with FileLock(PLACE / "timm.lock"):
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            options = ("--quiet", "--no-deps", "--link-mode", "copy", "--target", str(place))
            run(uv(), "pip", "install", *options, "--python", sys.executable, "timm>=1.0.9", "torchvision")
            start = place / "torchvision" / "__init__.py"
            start.write_text(OPERATORS + start.read_text(encoding="utf-8"), encoding="utf-8")
            (place / "ready").touch()
    return place
