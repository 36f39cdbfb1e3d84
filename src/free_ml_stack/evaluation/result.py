"""The result of evaluating a model on one split: metrics, pictures and tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

Rows = tuple[Sequence[str], Sequence[Sequence[Any]]]  # column names, rows

SMALLEST, LARGEST = 1e-3, 1e6  # numbers with four decimals


@dataclass(frozen=True)
class Evaluation:
    """Hold the metrics, pictures and tables of a model on one split.

    `metrics` maps the Hub's metric ids to finite numbers; the first one is the headline, shown by commands, model card,
    sweep and report. `pictures` maps titles to functions that write a PNG file to the given path. `tables` maps names
    to (columns, rows).
    """

    metrics: Mapping[str, float]
    pictures: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    tables: Mapping[str, Rows] = field(default_factory=dict)

    def with_metric(self, name: str, value: float) -> "Evaluation":
        """Return a copy with one more metric, after the others. Raises ValueError if `value` is not finite."""
        if not isfinite(value):
            raise ValueError(f"{name} is {value}, expected a finite number")
        return replace(self, metrics={**self.metrics, name: float(value)})

    def with_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Evaluation":
        """Return a copy with one more table. A uint8 array (h, w) or (h, w, 3) in a cell is shown as an image."""
        return replace(self, tables={**self.tables, name: (columns, rows)})

    def with_bars(self, name: str, quantity: str, values: Mapping[str, float]) -> "Evaluation":
        """Return a copy with a bar chart of the first 30 `values` and a table of all of them.

        `name` is the snake_case name of both; `quantity` labels the numbers.
        """
        title = metric_title(name)
        drawn = partial(_draw_bars, dict(values), quantity, title)
        rows = [(key, round(float(value), 6)) for key, value in values.items()]
        judged = replace(self, pictures={**self.pictures, title: drawn})
        return judged.with_table(name, ("name", quantity), rows)


def headline(split: str, metrics: Mapping[str, float]) -> tuple[str, str]:
    """Format the first metric: its title with the name of the split, and its value."""
    name = next(iter(metrics))
    title = metric_title(name)
    return f"{split} {title if title.isupper() else title.lower()}", metric_text(metrics[name])


def metric_title(name: str) -> str:
    """Convert a metric id to a title: `log_loss` to Log loss, `f1` to F1, `rmse` to RMSE."""
    return name.upper() if len(name) <= 4 else name.replace("_", " ").capitalize()


def metric_text(value: float) -> str:
    """Format a metric with four decimals, or four significant digits if it is very small or large."""
    return f"{value:.4f}" if value == 0 or SMALLEST <= abs(value) < LARGEST else f"{value:.4g}"


def tables_with_pictures(pictures: Mapping[str, str], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables whose name matches the file name of a picture, by the picture's title."""
    named = {title: file.rpartition(".")[0] for title, file in pictures.items()}
    return {title: tables[name] for title, name in named.items() if name in tables}


def _draw_bars(values: Mapping[str, float], quantity: str, title: str, path: Path) -> Path:
    from free_ml_stack.evaluation import plots  # imports matplotlib, which servers do not need

    return plots.bars(values, quantity, title, path)
