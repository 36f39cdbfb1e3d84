"""What commands print: plain lines, small tables, and a progress bar where somebody watches."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def say(*lines: str) -> None:
    """Print lines at once, also into a pipe."""
    for line in lines:
        print(line, flush=True)


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Rows of cells in aligned columns, as text; numbers stand to the right."""
    cells = [[str(cell) for cell in row] for row in ([header] if header else []) + list(rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(widths))]
    lines = [
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """`items`, behind a progress bar on a terminal and silently elsewhere."""
    if not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, desc=title, total=total, leave=False)
    return bar
