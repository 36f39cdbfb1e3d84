"""Evaluation of a classifier from its probabilities and the true labels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from free_ml_stack.evaluation.result import Evaluation

BINS = 10  # equal-width bins of the calibration
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def classification(probabilities: ArrayLike, labels: ArrayLike, names: Sequence[Any]) -> Evaluation:
    """Evaluate a classifier on the examples of a split.

    `probabilities` (n, classes) may have any float dtype; each row sums to 1. `labels` (n,) are the true classes,
    counted from 0; `names` (classes,) are their display names.

    The metrics are accuracy; F1, precision and recall, averaged over the classes that occur; and log loss in nats, all
    equal to scikit-learn's with its defaults; and the expected calibration error with 10 bins of equal width (Guo et
    al., 2017). The evaluation also has a table with one row per class, a confusion matrix and a reliability diagram.

    Raises ValueError if the shapes do not match, a label is out of range, or a probability is not finite.
    """
    shares, truth = _checked(probabilities, labels, len(names))
    counts = confusion(truth, shares.argmax(axis=1), len(names))
    precision, recall, f1 = per_class(counts)
    seen = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))  # scikit-learn averages over these only
    confident, right, weights = reliability(shares, truth)
    metrics = {
        "accuracy": np.trace(counts) / len(truth),
        "f1": f1[seen].mean(),
        "precision": precision[seen].mean(),
        "recall": recall[seen].mean(),
        "log_loss": log_loss(shares, truth),
        "calibration_error": (np.abs(confident - right) * weights).sum(),
    }
    support = counts.sum(axis=1)
    rows = [
        [str(name), *(round(float(score[i]), 4) for score in (precision, recall, f1)), int(support[i])]
        for i, name in enumerate(names)
    ]
    return Evaluation(
        {name: float(value) for name, value in metrics.items()},
        {
            "Confusion matrix": partial(_draw_confusion, counts, names),
            "Calibration": partial(_draw_calibration, confident, right),
        },
        {"per_class": (("class", "precision", "recall", "f1", "examples"), rows)},
    )


def confusion(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Count the examples (classes, classes) by true class (row) and predicted class (column)."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def per_class(counts: Ints) -> tuple[Floats, Floats, Floats]:
    """Compute precision, recall and F1 (classes,) of a confusion matrix; 0 if the denominator is 0."""
    right, predicted, true = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    return (
        _share(right, predicted),
        _share(right, true),
        _share(2 * right, predicted + true),
    )


def log_loss(probabilities: Floats, labels: Ints) -> float:
    """Compute the mean negative log likelihood in nats; probabilities are clipped to the float64 epsilon."""
    likelihood = probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float64).eps, 1)
    return float(-np.log(likelihood).mean())


def reliability(probabilities: Floats, labels: Ints) -> tuple[Floats, Floats, Floats]:
    """Compute mean confidence, accuracy and share of the examples for each bin that is not empty.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks".
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sizes = np.bincount(places, minlength=BINS)
    used = sizes > 0
    means = [np.bincount(places, values, BINS)[used] / sizes[used] for values in (confidence, right)]
    return means[0], means[1], sizes[used] / len(labels)


def _checked(probabilities: ArrayLike, labels: ArrayLike, classes: int) -> tuple[Floats, Ints]:
    shares, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if shares.ndim != 2 or shares.shape[1] != classes or truth.shape != shares.shape[:1] or not len(truth):
        raise ValueError(f"expected probabilities (n, {classes}) and labels (n,), got {shares.shape} and {truth.shape}")
    if not np.isfinite(shares).all():
        raise ValueError("a probability is not finite")
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= classes:
        raise ValueError(f"labels must be integers from 0 to {classes - 1}")
    return shares, truth.astype(np.int64)


def _share(part: Ints, whole: Ints) -> Floats:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _draw_confusion(counts: Ints, names: Sequence[Any], path: Path) -> Path:
    from free_ml_stack.evaluation import plots  # imports matplotlib, which servers do not need

    return plots.confusion(counts, names, path)


def _draw_calibration(confident: Floats, right: Floats, path: Path) -> Path:
    from free_ml_stack.evaluation import plots  # imports matplotlib, which servers do not need

    return plots.calibration(confident, right, path)
