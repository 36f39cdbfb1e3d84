"""Training: boosting with LightGBM and early stopping on the validation split. Edit me."""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

import lightgbm
import numpy as np
from free_ml_stack import StackError
from free_ml_stack.evaluation import Evaluation, regression
from free_ml_stack.training import Checkpoints, Process, Run, Split

from .config import TrainConfig
from .data import default_value, example, prepare
from .model import Trees, build, parameters

WORST = 12  # rows in the table of the worst mistakes


def fit(
    config: TrainConfig, splits: Mapping[str, Split], run: Run, checkpoints: Checkpoints, process: Process
) -> Trees:
    """Train on the train split and return the trees up to the round with the lowest validation loss.

    With the checkpoints of an interrupted run, training resumes with the same result as without the interruption.
    """
    if process.size > 1:
        raise StackError("distributed training is not supported; run `train` without torchrun and with --threads 0")
    settings = parameters(config)
    model = build(config, splits["train"].facts)
    model.fields = [{**field, "usual": default_value(splits["train"], field)} for field in model.fields]
    at = checkpoints.resume(model=model)
    run.expect(config.rounds, at.step)
    train = dataset(config, splits["train"])
    held_out = dataset(config, splits["validation"], train)

    def before(state: Any) -> None:
        state.model.reset_parameter({"feature_fraction_seed": config.seed + at.step})  # independent of earlier rounds

    def after(state: Any) -> None:
        model.booster, at.step = state.model, at.step + 1
        loss = state.evaluation_result_list[0][2]
        at.best, at.stale = (float(loss), 0) if loss < at.best else (at.best, at.stale + 1)
        over = done(config, at)
        if over or at.step % config.log_every == 0:
            run.log(at.step, loss=float(state.model.eval_train()[0][2]), validation_loss=float(loss))
        checkpoints.step()
        if over:
            raise lightgbm.callback.EarlyStopException(at.step, [])

    before.before_iteration = True  # type: ignore[attr-defined]
    calls = [before, after] if config.column_dropout else [after]
    if not done(config, at):
        lightgbm.train(
            settings,
            train,
            config.rounds - at.step,
            [held_out],
            init_model=model.booster,
            callbacks=calls,
            keep_training_booster=True,
        )
    checkpoints.finish()
    if not isfinite(at.best):
        raise StackError("training diverged: no round had a finite validation loss; try a lower lr")
    return Trees(model.fields, model.text(at.step - at.stale))


def done(config: TrainConfig, at: Any) -> bool:
    """Return whether training is finished: all rounds done, or no improvement for `patience` rounds."""
    return bool(at.step >= config.rounds or (config.patience and at.stale >= config.patience))


def dataset(config: TrainConfig, split: Split, reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
    """Create a dataset of LightGBM from a split, with the bins of `reference`."""
    rows = prepare(config, split.facts, split, None)
    names = [name for name in split if name != split.facts["target"]]
    categories = [place for place, name in enumerate(names) if split.facts["columns"][name]["type"] == "category"]
    return lightgbm.Dataset(rows["features"], rows["target"], reference, categorical_feature=categories)


def evaluate(config: TrainConfig, model: Trees, split: Split) -> Evaluation:
    """Evaluate a trained model on a split: metrics, with the headline first, pictures and tables."""
    rows = prepare(config, split.facts, split, None)
    found, true = model.predict(rows["features"])[:, 0], rows["target"]
    worst = np.abs(found - true).argsort()[::-1][:WORST].tolist()
    table = [(record(split, i), float(true[i]), float(found[i])) for i in worst]
    judged = regression(found, true, split.facts["target"])
    judged = judged.with_bars("feature_importances", "share of the gain", importances(model))
    return judged.with_table("worst_mistakes", ("record", "true", "predicted"), table)


def record(split: Split, row: int) -> str:
    """Return a row as JSON, as a caller sends it."""
    return json.dumps(example(split, row), ensure_ascii=False)


def importances(model: Trees) -> dict[str, float]:
    """Return the share of each field in the total gain of all splits, in descending order."""
    assert model.booster is not None
    gains = model.booster.feature_importance("gain")
    shares = (gains / (gains.sum() or 1)).tolist()
    pairs = zip((field["name"] for field in model.fields), shares, strict=True)
    return dict(sorted(pairs, key=lambda pair: -pair[1]))
