"""The data set: 344 penguins of three species, measured at Palmer Station, or a table of yours. Edit me."""

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
    from free_ml_stack.training import Split  # it takes a second to import

Arrays = dict[str, NDArray[Any]]
NAME = "penguins"
SOURCE = "https://allisonhorst.github.io/palmerpenguins/"
LICENSE = "cc0-1.0"  # the Hub's id of it
TARGET = "species"
KIND = "category"  # of the target
PACKAGE, FILE = "palmerpenguins", "data/penguins.csv"
KINDS = {"number": "number", "date": "date", "text": "category"}  # of the other columns: found and kept as


def fetch() -> "pyarrow.Table":
    """The table in the package that has it, read without importing that package; an empty field or NA is missing."""
    from pyarrow import csv

    [folder] = getattr(find_spec(PACKAGE), "submodule_search_locations", None) or [""]
    return csv.read_csv(Path(folder, FILE), convert_options=csv.ConvertOptions(strings_can_be_null=True))


def arrange(columns: Mapping[str, str], target: str) -> dict[str, tuple[str, str]]:
    """Choose the columns to keep, each as (source, kind): numbers, dates, and texts as categories."""
    kept = {name: (name, KINDS[kind]) for name, kind in columns.items() if name != target and kind in KINDS}
    if not kept:
        raise StackError(f"no column of numbers, dates or texts beside {target} among {', '.join(columns)}")
    return {**kept, target: (target, KIND)}


def fields(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns that the model learns from, in its order: name, type and, of a category, the values."""
    described = {name: entry for name, entry in facts["columns"].items() if name != facts["target"]}
    return [
        {"name": name, "type": entry["type"], "categories": entry.get("categories")}
        for name, entry in described.items()
    ]


def usual(split: "Split", field: Mapping[str, Any]) -> float | None:
    """What stands for a field that a call lacks: the median, where no row lacks it; None is missing, as in rows."""
    entry = split.facts["columns"][field["name"]]
    if entry["type"] == "category" or entry.get("missing"):
        return None
    middle = float(np.median(numbers(split[field["name"]], entry["type"])))
    return middle if np.isfinite(middle) else None


def prepare(config: TrainConfig, facts: Mapping[str, Any], columns: Mapping[str, Any], draws: Any) -> Arrays:
    """Read some rows for the model: features (n, columns) of float32, NaN where missing, and the target (n,)."""
    known = fields(facts)
    features = np.empty((len(columns[facts["target"]]), len(known)), np.float32)
    with np.errstate(over="ignore"):  # what float32 can't hold is infinite
        for place, field in enumerate(known):
            features[:, place] = numbers(columns[field["name"]], field["type"])
    return {"features": features, "target": columns[facts["target"]]}


def numbers(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """A column (n,) as numbers: a category as its place, a date as days since 1970; NaN where missing."""
    if kind == "category":
        return np.where(values < 0, np.nan, values)
    return (values - np.datetime64(0, "us")) / np.timedelta64(1, "D") if kind == "date" else values


def example(columns: "Split", row: int) -> dict[str, Any]:
    """What a caller sends for a row of a split: its fields by name, without those that are missing."""
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
    return {name: value for name, value in found.items() if value is not None}
