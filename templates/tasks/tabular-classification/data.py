"""The data set: 344 penguins of three species, measured at Palmer Station, or your own table. Edit me."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from free_ml_stack import StackError
from numpy.typing import NDArray

from .config import TrainConfig

if TYPE_CHECKING:
    import pyarrow
    from free_ml_stack.training import Split  # takes a second to import

Arrays = dict[str, NDArray[Any]]
NAME = "penguins"
SOURCE = "https://allisonhorst.github.io/palmerpenguins/"
LICENSE = "cc0-1.0"  # license id of the Hub
TARGET = "species"
KIND = "category"  # of the target
PACKAGE, FILE = "palmerpenguins", "data/penguins.csv"
KINDS = {"number": "number", "date": "date", "text": "category"}  # kind in the source: in the data set


def fetch() -> "pyarrow.Table":
    """Read the table from its package, without importing the package; empty fields and NA are missing values."""
    from pyarrow import csv

    [folder] = getattr(find_spec(PACKAGE), "submodule_search_locations", None) or [""]
    return csv.read_csv(Path(folder, FILE), convert_options=csv.ConvertOptions(strings_can_be_null=True))


def arrange(columns: Mapping[str, str], target: str) -> dict[str, tuple[str, str]]:
    """Map columns to (source column, kind): numbers, dates, and texts as categories."""
    kept = {name: (name, KINDS[kind]) for name, kind in columns.items() if name != target and kind in KINDS}
    if not kept:
        raise StackError(f"no column of numbers, dates or texts besides {target}, only {', '.join(columns)}")
    return {**kept, target: (target, KIND)}


def fields(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the model's input columns in order: name, type and, for a category, its values."""
    described = {name: entry for name, entry in facts["columns"].items() if name != facts["target"]}
    return [
        {"name": name, "type": entry["type"], "categories": entry.get("categories")}
        for name, entry in described.items()
    ]


def default_value(split: "Split", field: Mapping[str, Any]) -> float | None:
    """Return the default of a field that a call lacks: the median, or None (missing) if rows of the split lack it too.

    LightGBM takes a missing value for 0 where no training row lacks it.
    """
    if field["type"] == "category":
        return None
    middle = float(np.median(numbers(split[field["name"]], field["type"])))  # NaN if a row lacks it
    return middle if np.isfinite(middle) else None


def prepare(config: TrainConfig, facts: Mapping[str, Any], columns: Mapping[str, Any], draws: Any) -> Arrays:
    """Convert rows to inputs: float32 features (n, columns) with NaN for missing values, and the target (n,)."""
    known = fields(facts)
    features = np.empty((len(columns[facts["target"]]), len(known)), np.float32)
    with np.errstate(over="ignore"):  # float32 overflow gives infinity
        for place, field in enumerate(known):
            features[:, place] = numbers(columns[field["name"]], field["type"])
    return {"features": features, "target": columns[facts["target"]]}


def numbers(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """Convert a column (n,) to numbers: categories to indices, dates to days since 1970, missing values to NaN."""
    if kind == "category":
        return np.where(values < 0, np.nan, values)
    return (values - np.datetime64(0, "us")) / np.timedelta64(1, "D") if kind == "date" else values


def example(columns: "Split", row: int) -> dict[str, Any]:
    """Return the input that a caller sends for a row of a split: its fields by name, missing ones only if all are."""
    found = {}
    for field in fields(columns.facts):
        value = columns[field["name"]][row]
        if field["type"] == "category":
            value = field["categories"][value] if value >= 0 else None
        elif field["type"] == "date":
            value = None if np.isnat(value) else str(value)
        else:
            value = None if np.isnan(value) else value.item()
        found[field["name"]] = value
    return {name: value for name, value in found.items() if value is not None} or found
