"""Paths of the repository. On import, the package of each task becomes importable, the default one as `skeleton`.

The skeleton's Python contains no Jinja, so it is tested unchanged.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKELETON = ROOT / "{{cookiecutter.project_slug}}"
SOURCE = ROOT / "build" / "src"


TASKS = ROOT / "templates" / "tasks"
DEFAULT = "image-classification"


def package(task: str) -> str:
    """The import name of a task's package in tests."""
    return "skeleton" if task == DEFAULT else f"skeleton_{task.replace('-', '_')}"


def link_skeletons() -> None:
    """Create a package for each task, of links to files of the skeleton and the task; safe with parallel workers."""
    common = SKELETON / "src" / "{{cookiecutter.package_name}}"
    for task in TASKS.glob("*-*/"):
        folder = SOURCE / package(task.name)
        if folder.is_symlink():  # created before
            folder.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        for target in (*common.glob("*.py"), *task.glob("*.py")):
            link = folder / target.name
            if link.is_symlink() and link.resolve() == target:
                continue
            temporary = folder / f".{target.name}-{os.getpid()}"
            temporary.symlink_to(target)
            temporary.replace(link)


link_skeletons()
sys.path.insert(0, str(SOURCE))
