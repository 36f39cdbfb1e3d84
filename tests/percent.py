"""Generation of each task's notebook from percent-format sources: run `python tests/percent.py`."""

import sys
from pathlib import Path

import jupytext
import nbformat
from baking import TEMPLATE

SOURCE = TEMPLATE / "tests" / "template" / "train.{{ 'py' }}"
TASKS = TEMPLATE / "templates" / "tasks"
MARK = "# %%\n"


def source(task: Path) -> str:
    """Return the percent-format source of a task's notebook: the common source with the task's parameters and functions."""
    parameters, mark, look = (task / "notebook.py.jinja").read_text("utf-8").partition(MARK)
    common = SOURCE.read_text(encoding="utf-8")
    return common.replace("# PARAMETERS\n", parameters.strip() + "\n").replace("# LOOK\n", (mark + look).strip() + "\n")


def converted(source: str) -> str:
    """Convert a percent-format source to a notebook without outputs, with numbered instead of random cell ids."""
    notebook = jupytext.reads(source, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = str(number)
        cell.setdefault("metadata", {}).pop("lines_to_next_cell", None)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for task in sorted(TASKS.glob("*-*/")):
        (task / "train.ipynb").write_text(converted(source(task)), encoding="utf-8")
        sys.stdout.write(f"made {task / 'train.ipynb'}\n")
