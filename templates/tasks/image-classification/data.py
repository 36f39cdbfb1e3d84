"""The data set: scikit-learn's digits (1,797 greyscale images of 8 x 8 pixels), or your own images. Edit me."""

import base64
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from free_ml_stack import StackError
from numpy.typing import NDArray

from .config import TrainConfig
from .predict import pixels

Arrays = dict[str, NDArray[Any]]
NAME = "digits"
SOURCE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
LICENSE = "cc-by-4.0"  # license id of the Hub
TARGET = "label"
SIZE = 64  # default height and width of image files in pixels


def fetch() -> Arrays:
    """Load all images (n, 8, 8) with values from 0 to 16, and their labels (n,), both uint8.

    This is the data set of scikit-learn's `load_digits`, read from its file because importing scikit-learn is slow.
    """
    [package] = getattr(find_spec("sklearn"), "submodule_search_locations", None) or [""]
    rows = np.loadtxt(Path(package, "datasets", "data", "digits.csv.gz"), delimiter=",", dtype=np.uint8)
    return {"image": rows[:, :-1].reshape(-1, 8, 8), "label": rows[:, -1]}


def arrange(columns: Mapping[str, str], target: str) -> dict[str, tuple[str, str]]:
    """Map columns to (source column, kind): images as pixels (h, w[, 3]), files or paths of files."""
    others = [name for name in columns if name != target]
    found = [name for kind in ("tensor", "bytes", "text") for name in others if columns[name] == kind]
    if not found:
        raise StackError(f"no column of images besides {target}, only {', '.join(columns)}")
    kind = "tensor" if columns[found[0]] == "tensor" else "bytes"
    return {"image": (found[0], kind), "label": (target, "category")}


def check(columns: Mapping[str, Any]) -> None:
    """Raise ValueError for images that cannot be read, and for arrays that are not images."""
    images = columns["image"]
    if isinstance(images, list):
        for picture in images:
            pixels(picture, None)
    elif len(images) and (
        images.ndim < 3 or images.shape[3:] not in ((), (3,)) or not (images.min() >= 0 and images.max() <= 255)
    ):  # not: also for NaN
        size = " x ".join(map(str, images.shape[1:]))
        raise ValueError(
            f"expected height x width or height x width x 3 numbers from 0 to 255, got {size} numbers from "
            f"{images.min():g} to {images.max():g}"
        )


def shape(config: TrainConfig, facts: Mapping[str, Any]) -> list[int]:
    """Return the shape of the model's input: height, width and, for colour images, channels."""
    stored = facts["columns"]["image"].get("shape") or [SIZE, SIZE, 3]
    return [config.size, config.size, *stored[2:]] if config.size else list(stored)


def prepare(config: TrainConfig, facts: Mapping[str, Any], columns: Mapping[str, Any], draws: Any) -> Arrays:
    """Convert rows to inputs: uint8 images (n, h, w[, 3]), augmented with `draws` (n, 16), and labels (n,)."""
    images, size = columns["image"], shape(config, facts)
    if isinstance(images, list) or list(images.shape[1:]) != size:
        boxes = [None] * len(images) if draws is None or not config.crop else crops(config.crop, draws)
        images = np.stack([pixels(image, size, box) for image, box in zip(images, boxes, strict=True)])
    if draws is not None and config.flip:
        mirrored = draws[:, 2] < config.flip
        images = np.where(mirrored.reshape(-1, *[1] * (images.ndim - 1)), images[:, :, ::-1], images)
    if draws is not None and config.shift:
        images = shifted(images, (draws[:, :2] * (2 * config.shift + 1)).astype(int), config.shift)
    return {"image": images, "label": columns["label"]}


def crops(most: float, draws: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return random boxes (n, 4): left, upper, right and lower edge as shares of the sides."""
    kept = 1 - most * draws[:, 3]
    left, upper = draws[:, 4] * (1 - kept), draws[:, 5] * (1 - kept)
    return np.stack((left, upper, left + kept, upper + kept), axis=1)


def shifted(images: NDArray[Any], offsets: NDArray[Any], limit: int) -> NDArray[Any]:
    """Shift images (n, h, w, …) by offsets (n, 2) from 0 to 2 * limit, where `limit` means no shift."""
    padded = np.pad(images, [(0, 0), (limit, limit), (limit, limit), *[(0, 0)] * (images.ndim - 3)])
    rows, columns = (offsets[:, i, None] + np.arange(images.shape[1 + i]) for i in (0, 1))
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def example(columns: Mapping[str, Any], row: int) -> Any:
    """Return the input that a caller sends for a row: nested lists of numbers, or a file in base64."""
    image = columns["image"][row]
    return base64.b64encode(image).decode() if isinstance(image, bytes) else image.tolist()
