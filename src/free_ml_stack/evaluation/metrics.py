"""How good a classifier is, from its logits and the labels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = {"accuracy": "Accuracy", "f1": "F1 (macro)"}  # by the Hub's ids of metrics
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def softmax(logits: NDArray[Any]) -> Floats:
    """Probabilities (n, classes) of logits."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def confusion(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts (classes, classes): row the true class, column the predicted one."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def metrics(probabilities: Floats, labels: Ints) -> dict[str, float]:
    """Accuracy, F1 averaged over the classes, and mean cross entropy, as plain floats."""
    counts = confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    right = np.diag(counts)
    of_both = counts.sum(axis=0) + counts.sum(axis=1)
    f1 = np.divide(2 * right, of_both, out=np.zeros(len(right)), where=of_both > 0)
    likelihood = probabilities[np.arange(len(labels)), labels].clip(min=1e-12)
    return {
        "accuracy": float(right.sum() / len(labels)),
        "f1": float(f1.mean()),
        "loss": float(-np.log(likelihood).mean()),
    }


def worst(probabilities: Floats, labels: Ints, count: int = 12) -> Ints:
    """The rows (up to `count`) whose true class got the least probability, of those that are wrong."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order: Ints = wrong[np.argsort(probabilities[wrong, labels[wrong]], kind="stable")][:count]
    return order
