"""What an evaluation says of a model on one split: numbers, pictures, and rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table to show: the names of its columns, and its rows; a Path in a cell is a picture."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    `metrics` are finite numbers by the Hub's ids of metrics; the first is the headline, which commands, card, sweep and
    report show. `pictures` draw a PNG file at the path they are given, by title. `tables` are shown as they are.
    """

    metrics: Mapping[str, float]
    pictures: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
