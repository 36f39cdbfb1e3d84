"""The notebook is made from its percent-format source: `python tests/percent.py` makes it again."""

import sys

import jupytext
import nbformat
from baking import SKELETON, TEMPLATE

SOURCE = TEMPLATE / "tests" / "template" / "train.{{ 'py' }}"
NOTEBOOK = SKELETON / "notebooks" / "train.{{ 'ipynb' }}"


def converted(source: str) -> str:
    """The notebook of a percent-format source: no outputs, and cells that are numbered instead of named by chance."""
    notebook = jupytext.reads(source, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = str(number)
        cell.setdefault("metadata", {}).pop("lines_to_next_cell", None)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(converted(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"made {NOTEBOOK}\n")
