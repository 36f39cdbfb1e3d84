"""Console output of the commands: lines, aligned tables and a progress bar."""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAST = 2  # file descriptor of standard error
CLOSED = 141  # exit code of a command whose output is closed, as of one that SIGPIPE ends


def open_streams() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise the next file to be opened gets that descriptor, and what libraries print to it ends up in the file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= LAST:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def is_terminal() -> bool:
    """Return whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(*lines: str) -> None:
    """Print lines and flush them, so that they appear immediately in a pipe too; on a terminal, wrap long ones."""
    try:
        for line in lines:
            print(wrapped(line) if sys.stdout.isatty() else line, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED) from None


def wrapped(text: str) -> str:
    """Wrap lines at the width of the terminal; rows of tables stay whole."""
    width = shutil.get_terminal_size().columns
    return "\n".join(
        fill(line, 2) if len(line) > width > 2 and "  " not in line.strip() else line for line in text.split("\n")
    )


def fill(line: str, indent: int) -> str:
    """Wrap one line at the width of the terminal, with a hanging indent; words and URLs stay whole."""
    width = max(shutil.get_terminal_size().columns, 2 * indent)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def display_path(path: Path, base: Path | None = None) -> str:
    """Format a path relative to `base` or the working directory if it is inside it, otherwise as it is."""
    here = base or Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def join_names(values: Sequence[str], most: int = 5) -> str:
    """Join the first names, and count the others."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Format rows of cells as aligned columns; columns of numbers are right-aligned."""
    cells = [[str(cell).replace("\n", " ") for cell in row] for row in ([header] if header else []) + list(rows)]
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
    """Show the progress of a long operation: as a bar on a terminal, otherwise as a line every few seconds.

    `unit` names what is counted; `scaled` shows it in thousands and millions. `seconds` is the time between two lines.
    """

    def __init__(self, total: int, unit: str, scaled: bool = False, done: int = 0, seconds: float = 5.0) -> None:
        self.total, self.unit, self.seconds = total, unit, seconds
        self.factor = 1_000_000 if scaled else 1
        self.next_line = time.monotonic() + seconds
        self.bar: Any = None
        if is_terminal():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit=unit, unit_scale=scaled, leave=False)

    def at(self, done: int, note: str = "") -> None:
        """Show that `done` of the total is finished, with an optional note."""
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() > self.next_line:
            self.next_line = time.monotonic() + self.seconds
            unit = f"M{self.unit}" if self.factor > 1 else self.unit
            line = f"{done / self.factor:,.0f} of {self.total / self.factor:,.0f} {unit}"
            print(", ".join(filter(None, (line, note))), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
