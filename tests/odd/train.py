"""Gradient descent in batches."""

from functools import partial
from typing import Any

import numpy as np

from free_ml_stack.evaluation import regression

from .data import features, prepare
from .model import Matrix, build


def fit(config: Any, splits: Any, run: Any, checkpoints: Any, process: Any) -> Matrix:
    """Minimize the squared error."""
    train, model = splits["train"], build(config, splits["train"].facts)
    at = checkpoints.resume(model=model)
    while at.epoch < config.sweeps:
        for batch in train.batches(range(train.rows), config.batch_size, partial(prepare, config, train.facts)):
            rows, moods = batch["features"].double().numpy(), batch["mood"].numpy()
            slope = rows.T @ (rows @ model.weights - moods) / len(rows) + config.ridge * model.weights / train.rows
            model.weights = model.weights - config.rate / 20 * slope
        at.epoch, at.step = at.epoch + 1, at.step + 1
        error = float(np.sqrt(((predicted(model, splits["validation"]) - splits["validation"]["mood"]) ** 2).mean()))
        run.log(at.step, validation_error=error)
        if error < at.best:
            at.best = error
            checkpoints.mark_best("model")
        checkpoints.step()
    checkpoints.finish()
    model.load_state_dict(checkpoints.best("model"))
    return model


def predicted(model: Matrix, split: Any) -> Any:
    """Return the moods of a split."""
    return features(split["note"][:], split["length"]) @ model.weights


def evaluate(config: Any, model: Matrix, split: Any) -> Any:
    """Evaluate both moods as a single list of numbers."""
    return regression(np.ravel(predicted(model, split)), np.ravel(split["mood"]))
