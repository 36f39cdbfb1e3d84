"""The pictures of a project: learning curves, confusion, sweep, latency, drift. Each writes one PNG."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREY = "#3566b8", "#d9822b", "#8a8f98"
WIDTH, HEIGHT = 6.4, 3.6  # inches
DPI = 120


def learning_curves(record: Path, path: Path) -> Path:
    """Training and validation loss, and validation accuracy, over the steps of a metrics.jsonl."""
    rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    figure = Figure((WIDTH * 1.5, HEIGHT))
    left, right = figure.subplots(1, 2)
    for name, title, color in (("loss", "training", GREY), ("validation_loss", "validation", BLUE)):
        _line(left, rows, name, title, color)
    left.set(xlabel="step", ylabel="cross entropy", title="Loss", yscale="log")
    left.legend(frameon=False)
    _line(right, rows, "validation_accuracy", "validation", BLUE)
    right.set(xlabel="step", ylabel="share of images that are right", title="Validation accuracy")
    return _save(figure, path)


def confusion(counts: NDArray[np.int64], labels: Sequence[Any], path: Path) -> Path:
    """The confusion matrix (classes, classes), row the true class."""
    figure = Figure((HEIGHT * 1.5, HEIGHT * 1.4))
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix (test split)")
    axes.set_xticks(range(len(labels)), [str(label) for label in labels])
    axes.set_yticks(range(len(labels)), [str(label) for label in labels])
    return _save(figure, path)


def latency(milliseconds: NDArray[np.float64], path: Path) -> Path:
    """How long calls took, with the median and the 99th percentile marked."""
    figure = Figure((WIDTH, HEIGHT))
    axes = figure.subplots()
    axes.hist(milliseconds, bins=40, color=BLUE)
    for share, color in ((50, GREY), (99, ORANGE)):
        value = float(np.percentile(milliseconds, share))
        axes.axvline(value, color=color, label=f"{share} % within {value:.1f} ms")
    axes.set(xlabel="milliseconds a call", ylabel="calls", title="Latency")
    axes.legend(frameon=False)
    return _save(figure, path)


def histograms(
    pairs: Mapping[str, tuple[Sequence[Any], Sequence[float], Sequence[float]]], path: Path
) -> Path:
    """Distributions side by side: for each title, the bins' names, their shares in training and in the calls."""
    figure = Figure((WIDTH * 1.6, HEIGHT))
    for axes, (title, (bins, reference, current)) in zip(
        np.atleast_1d(figure.subplots(1, len(pairs))), pairs.items(), strict=True
    ):
        places = np.arange(len(bins))
        axes.bar(places - 0.2, reference, 0.4, color=GREY, label="training")
        axes.bar(places + 0.2, current, 0.4, color=BLUE, label="calls")
        axes.set_xticks(places, [str(name) for name in bins], fontsize=7)
        axes.set(title=title, ylabel="share")
        axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _line(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, title: str, color: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, label=title)


def _save(figure: Figure, path: Path) -> Path:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    return path
