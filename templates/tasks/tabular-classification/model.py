"""The model: trees that LightGBM boosts. Edit me."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from free_ml_stack import StackError
from numpy.typing import NDArray

from .config import TrainConfig
from .data import fields

TASK = "tabular-classification"
OUTPUT = "probabilities"
FILE, FACTS = "trees.txt", "config.json"


class Trees:
    """Boosted trees, and what they must know of a table: its fields and the names of the classes."""

    def __init__(self, fields: list[dict[str, Any]], labels: list[Any], text: str = "") -> None:
        self.fields, self.labels = fields, labels
        self.booster = lightgbm.Booster(model_str=text) if text else None

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities (n, classes) of features (n, fields)."""
        assert self.booster is not None
        found = np.asarray(self.booster.predict(features))
        return np.stack((1 - found, found), axis=1) if found.ndim == 1 else found

    def text(self, rounds: int = -1) -> str:
        """The first trees in LightGBM's own format; without the parameters, which tell how often training stopped."""
        whole = self.booster.model_to_string(num_iteration=rounds) if self.booster else ""
        return whole.partition("\nparameters:")[0]

    def state_dict(self) -> dict[str, str]:
        """What a checkpoint keeps."""
        return {"text": self.text()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go back to what a checkpoint has kept."""
        self.booster = lightgbm.Booster(model_str=state["text"])


def parameters(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What LightGBM is told: the configuration in its words, the loss, and to be the same on any machine."""
    classes = len(facts["columns"][facts["target"]]["categories"])
    if classes < 2:
        raise StackError(f"{facts['target']} has one value in all rows: there is nothing to learn")
    loss: dict[str, Any] = {"objective": "binary", "metric": "binary_logloss"}
    if classes > 2:
        loss = {"objective": "multiclass", "num_class": classes, "metric": "multi_logloss"}
    return {**loss, **settings(config)}


def settings(config: TrainConfig) -> dict[str, Any]:
    """The configuration in LightGBM's words."""
    return {
        "learning_rate": config.lr,
        "num_leaves": config.leaves,
        "max_depth": config.depth,
        "min_data_in_leaf": config.min_rows,
        "min_data_per_group": config.min_rows,
        "feature_fraction": 1 - config.column_dropout,
        "lambda_l1": config.l1,
        "lambda_l2": config.l2,
        "max_bin": config.bins,
        "seed": config.seed,
        "num_threads": config.threads,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }


def build(config: TrainConfig, facts: Mapping[str, Any]) -> Trees:
    """The model without any trees, for the data set of this manifest."""
    return Trees(fields(facts), facts["columns"][facts["target"]]["categories"])


def inputs(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the exported model takes of a batch, by name."""
    return {"features": batch["features"]}


def export(model: Trees, inputs: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[Any]]:
    """Write the ONNX file, and return what the trees answer to some features, by output."""
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    shape = [("features", FloatTensorType([None, len(model.fields)]))]
    booster = lightgbm.Booster(model_str=single(model.text()))
    made = convert_lightgbm(booster, None, shape, target_opset=15, zipmap=False)
    path.write_bytes(made.SerializeToString())
    return {OUTPUT: model.predict(inputs["features"])}


def single(text: str) -> str:
    """Trees with thresholds that ONNX can hold: the largest float32 up to each, which splits float32 as it does."""

    def rounded(line: re.Match[str]) -> str:
        exact = np.array(line[1].split(), np.float64)
        near = exact.astype(np.float32)
        below = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
        return "threshold=" + " ".join(map(repr, below.astype(np.float64).tolist()))

    without_sizes = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^threshold=(.+)$", rounded, without_sizes, flags=re.MULTILINE)


def save(model: Trees, folder: Path) -> None:
    """Write the trees and all that goes with them into the model folder."""
    (folder / FILE).write_text(model.text(), encoding="utf-8")
    content = {"fields": model.fields, "labels": model.labels}
    (folder / FACTS).write_text(json.dumps(content, indent=1), encoding="utf-8")


def load(folder: Path) -> Trees:
    """The model of a model folder, ready to answer."""
    config = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Trees(**config, text=(folder / FILE).read_text(encoding="utf-8"))
