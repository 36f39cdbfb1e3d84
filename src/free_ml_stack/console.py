"""What commands print: plain lines, small tables, and a progress bar where somebody watches."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAST = 2  # the number of standard error


def open_streams() -> None:
    """Put the null device where standard input, output or error is closed: a file opened next would take its number.

    What any library writes as an error would go into that file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= LAST:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def watched() -> bool:
    """Whether somebody may be looking at what is said as an error."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(*lines: str) -> None:
    """Print lines at once, also into a pipe."""
    for line in lines:
        print(line, flush=True)


def shown(path: Path) -> str:
    """A path as it would be typed here: relative to the working directory, if it lies below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Rows of cells in aligned columns, as text; numbers stand to the right."""
    cells = [[str(cell) for cell in row] for row in ([header] if header else []) + list(rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(widths))]
    lines = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


class Progress:
    """How far long work is: a bar on a terminal, a line now and then elsewhere.

    `unit` is what is counted, with `scaled` in thousands and millions; `seconds` pass between two lines.
    """

    def __init__(self, total: int, unit: str, scaled: bool = False, done: int = 0, seconds: float = 5.0) -> None:
        self.total, self.unit, self.seconds = total, unit, seconds
        self.factor = 1_000_000 if scaled else 1
        self.next_line = time.monotonic() + seconds
        self.bar: Any = None
        if watched():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit=unit, unit_scale=scaled, leave=False)

    def at(self, done: int, note: str = "") -> None:
        """Tell how much is done, and what is to be said of it."""
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() > self.next_line:
            self.next_line = time.monotonic() + self.seconds
            unit = f"M{self.unit}" if self.factor > 1 else self.unit
            line = f"{done / self.factor:,.0f} of {self.total / self.factor:,.0f} {unit}"
            print(", ".join(filter(None, (line, note))), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
