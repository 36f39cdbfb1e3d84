"""What an evaluation says of a model on one split: numbers, pictures, and tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

Rows = tuple[Sequence[str], Sequence[Sequence[Any]]]  # the names of the columns, and the rows


@dataclass(frozen=True)
class Evaluation:
    """Hold what was measured of a model on one split.

    `metrics` are finite numbers by the Hub's ids of metrics; the first is the headline, which commands, card, sweep and
    report show. `pictures` are functions that draw a PNG file at the path they are given, by title. `tables` are
    (columns, rows) by name.
    """

    metrics: Mapping[str, float]
    pictures: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    tables: Mapping[str, Rows] = field(default_factory=dict)

    def with_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Evaluation":
        """Return this evaluation with another table; an array of uint8 (h, w) or (h, w, 3) in a cell is a picture."""
        return replace(self, tables={**self.tables, name: (columns, rows)})

    def with_bars(self, name: str, quantity: str, values: Mapping[str, float]) -> "Evaluation":
        """Return this evaluation with a number for each of some names, as a picture of the first 30 and as a table.

        `name` is that of both, in words joined by _; `quantity` says what the numbers are.
        """
        title = metric_title(name)
        drawn = partial(_draw_bars, dict(values), quantity, title)
        rows = [(key, round(float(value), 6)) for key, value in values.items()]
        judged = replace(self, pictures={**self.pictures, title: drawn})
        return judged.with_table(name, ("name", quantity), rows)


def headline(split: str, metrics: Mapping[str, float]) -> tuple[str, str]:
    """The first of some metrics as a title, with the split it was measured on, and its value."""
    name = next(iter(metrics))
    title = metric_title(name)
    return f"{split} {title if title.isupper() else title.lower()}", f"{metrics[name]:.4f}"


def metric_title(name: str) -> str:
    """Spell a metric's id for people: `log_loss` is Log loss, `f1` is F1, `rmse` is RMSE."""
    return name.upper() if len(name) <= 4 else name.replace("_", " ").capitalize()


def illustrated(pictures: Mapping[str, str], tables: Mapping[str, Any]) -> dict[str, Any]:
    """The tables that have a picture of their name, by its title; `pictures` are files by title."""
    named = {title: file.rpartition(".")[0] for title, file in pictures.items()}
    return {title: tables[name] for title, name in named.items() if name in tables}


def _draw_bars(values: Mapping[str, float], quantity: str, title: str, path: Path) -> Path:
    from free_ml_stack.evaluation import plots  # matplotlib, which a server does without

    return plots.bars(values, quantity, title, path)
