"""Evaluation of a regression from its predictions and the true values, equal to scikit-learn's results."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from free_ml_stack.evaluation.result import Evaluation

Floats = NDArray[np.float64]


def regression(predicted: ArrayLike, true: ArrayLike, unit: str = "") -> Evaluation:
    """Evaluate a regression on the examples of a split.

    `predicted` and `true` are (n,) or (n, outputs), in the same `unit`. The metrics are root mean squared error and
    mean absolute error in that unit, and R², averaged over the outputs. They equal scikit-learn's with its defaults.
    The evaluation also has pictures of the predictions against the true values and of the residuals.

    Raises ValueError if the shapes differ or a value is not finite.
    """
    guesses, values = (np.asarray(array, dtype=np.float64) for array in (predicted, true))
    if guesses.shape != values.shape or not guesses.size:
        raise ValueError(f"expected predictions and values of the same shape, got {guesses.shape} and {values.shape}")
    if not (np.isfinite(guesses).all() and np.isfinite(values).all()):
        raise ValueError("a prediction or a true value is not finite")
    guesses, values = (array.reshape(len(array), -1) for array in (guesses, values))
    errors = guesses - values
    squares = (errors**2).mean(axis=0)
    metrics = {
        "rmse": np.sqrt(squares).mean(),
        "mae": np.abs(errors).mean(),
        "r2": _determination(squares, values.var(axis=0)).mean(),
    }
    return Evaluation(
        {name: float(value) for name, value in metrics.items()},
        {
            "Predicted against true": partial(_draw_scatter, guesses, values, unit),
            "Residuals": partial(_draw_residuals, errors, unit),
        },
    )


def _determination(squares: Floats, variances: Floats) -> Floats:
    """Compute R² of each output; for a constant output 1 if it is predicted exactly, otherwise 0."""
    rest = np.divide(squares, variances, out=(squares > 0).astype(float), where=variances > 0)
    return np.asarray(1 - rest)


def _draw_scatter(guesses: Floats, values: Floats, unit: str, path: Path) -> Path:
    from free_ml_stack.evaluation import plots  # imports matplotlib, which servers do not need

    return plots.scatter(values.ravel(), guesses.ravel(), unit, path)


def _draw_residuals(errors: Floats, unit: str, path: Path) -> Path:
    from free_ml_stack.evaluation import plots  # imports matplotlib, which servers do not need

    return plots.residuals(errors.ravel(), unit, path)
