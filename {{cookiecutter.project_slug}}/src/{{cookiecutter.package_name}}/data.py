"""The data set: scikit-learn's digits, 1,797 real grey images of 8 x 8 pixels in ten classes. Edit me."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from free_ml_stack import StackError
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Arrays = dict[str, NDArray[Any]]

NAME = "digits"
SOURCE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
LICENSE = "cc-by-4.0"  # the Hub's id of it
LABELS = list(range(10))
SHAPES = {"image": (8, 8), "label": ()}  # of one example, by column
FRACTIONS = {"train": 0.7, "validation": 0.15, "test": 0.15}


def fetch() -> Arrays:
    """All images (n, 8, 8), grey values 0 to 16, and their labels (n,), both uint8.

    What scikit-learn's `load_digits` gives, from the same file: importing scikit-learn would take as long as training.
    """
    [package] = getattr(find_spec("sklearn"), "submodule_search_locations", None) or [""]
    rows = np.loadtxt(Path(package, "datasets", "data", "digits.csv.gz"), delimiter=",", dtype=np.uint8)
    return {"image": rows[:, :-1].reshape(-1, 8, 8), "label": rows[:, -1]}


def split(arrays: Arrays, seed: int) -> dict[str, Arrays]:
    """Train, validation and test: disjoint, each with every class in the same share, chosen by `seed`."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[NDArray[np.intp]]] = {name: [] for name in FRACTIONS}
    for label in np.unique(arrays["label"]):
        members = rng.permutation(np.flatnonzero(arrays["label"] == label))
        ends = np.cumsum([round(share * len(members)) for share in FRACTIONS.values()])[:-1]
        for name, part in zip(FRACTIONS, np.split(members, ends), strict=True):
            rows[name].append(part)
    chosen = {name: np.sort(np.concatenate(parts)) for name, parts in rows.items()}
    return {name: {key: column[index] for key, column in arrays.items()} for name, index in chosen.items()}


def example(columns: Mapping[str, Any], row: int) -> Any:
    """What a caller sends for a row: the image as a list of lists."""
    return columns["image"][row].tolist()


def fits(splits: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse data that the model can't take, as `data --from` may bring it. Raises StackError."""
    for name, columns in splits.items():
        found = {key: tuple(column.shape[1:]) for key, column in columns.items()}
        for key, shape in SHAPES.items():
            if found.get(key) != shape:
                raise StackError(
                    f"data: {name} must have a column {key} of shape {shape}, and has {found}; "
                    "bring other data, or edit data.py and model.py"
                )
        least, most = columns["label"].double().aminmax()
        if columns["label"].is_floating_point() or least < 0 or most >= len(LABELS):
            raise StackError(
                f"data: labels of {name} are {least:g} to {most:g}, must be whole numbers from 0 to {len(LABELS) - 1}"
            )


def shifted(images: Tensor, offsets: Tensor, limit: int) -> Tensor:
    """Images (n, h, w) moved by their own offsets (n, 2), 0 to 2 * limit, where `limit` leaves one in place."""
    height, width = images.shape[1:]
    padded = functional.pad(images, (limit, limit, limit, limit))
    rows = offsets[:, :1] + offsets.new_tensor(range(height))
    columns = offsets[:, 1:] + offsets.new_tensor(range(width))
    index = offsets.new_tensor(range(len(images)))
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
